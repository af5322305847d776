"""What every benchmark shares: its options, its tables and its JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("probnn", "torch", "gpytorch", "botorch", "pyro-ppl", "numpyro", "numpy")


class Report:
    """One run of a benchmark: its command line, the tables it prints and the file it writes.

    Args:
        name: Name of the benchmark: of its module, and of the JSON file.
        description: What it measures, for `--help`.
        arguments: The command line; None: that of the interpreter.

    Attributes:
        quick: Fewer rounds and smaller sizes were asked for.
        data: Folder with data sets, where one was given.
    """

    def __init__(self, name: str, description: str | None = None, arguments: list[str] | None = None):
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
        parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
        parser.add_argument("--data", type=Path, default=None, help="folder with data sets")
        parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help=f"folder for {name}.json")
        options = parser.parse_args(arguments)
        self.name, self.quick, self.data, self.out = name, options.quick, options.data, options.out
        self._tables: list[dict[str, Any]] = []

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """Print a table, whose columns are the keys of the first row, and keep it for the file."""
        columns = list(rows[0])
        cells = [columns, *([_text(row[column]) for column in columns] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        print(f"\n{title}")
        for row in cells:
            first, *others = (
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            print("  ".join([first, *others]), flush=True)
        self._tables.append({"title": title, "rows": rows})

    def write(self) -> Path:
        """Write tables, versions and threads as JSON; returns the file."""
        import torch

        facts = {
            "benchmark": self.name,
            "quick": self.quick,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "versions": _versions(),
            "tables": self._tables,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.name}.json"
        path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return path


def _text(value: Any) -> str:
    if value is None:
        return ""
    return format(value, ".3g") if isinstance(value, float) else str(value)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
