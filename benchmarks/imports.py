"""What importing costs: `python -m benchmarks.imports [--quick]`.

Fresh interpreters, the cases in turn within every round, the least of all rounds: what is left is
the work itself, not the load of the machine. "after torch" is what an import adds to an
interpreter that already has torch.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

from ._common import Report

AFTER_TORCH = (
    "import torch, time; wall, cpu = time.perf_counter(), time.process_time(); {}; "
    "print(time.perf_counter() - wall, time.process_time() - cpu)"
)
# Case: code, whether it is timed after `import torch`, and the goal in seconds of wall time.
CASES: dict[str, tuple[str, bool, float | None]] = {
    "python, nothing imported": ("pass", False, None),
    "probnn --help": ("from probnn.cli import main; main(['--help'])", False, 0.5),
    "import torch": ("import torch", False, None),
    "import torch, probnn": ("import torch, probnn", False, None),
    "import probnn, after torch": ("import probnn", True, 0.2),
    "import probnn.inference, after torch": ("import probnn.inference", True, None),
    "import probnn.surrogates, after torch": ("import probnn.surrogates", True, None),
    "import botorch.models, after torch": ("import botorch.models", True, None),
}


def measure(code: str, after_torch: bool) -> tuple[float, float]:
    """Wall and CPU seconds of one case in a fresh interpreter."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", AFTER_TORCH.format(code) if after_torch else code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if after_torch:
        wall, cpu = map(float, done.stdout.split())
        return wall, cpu
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print the table and write the JSON."""
    report = Report("imports", __doc__)
    rounds = 2 if report.quick else 7
    times: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
    for _ in range(1 + rounds):
        for case, (code, after_torch, _) in CASES.items():
            times[case].append(measure(code, after_torch))
    rows: list[dict[str, Any]] = []
    for case, measured in times.items():
        wall, cpu = (min(column) for column in zip(*measured[1:], strict=True))  # the first round fills the file cache
        rows.append({"case": case, "wall s": wall, "CPU s": cpu, "goal": CASES[case][2]})
    report.table(f"imports, the least of {rounds} fresh interpreters", rows)
    report.write()


if __name__ == "__main__":
    main()
