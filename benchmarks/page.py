"""Write docs/benchmarks.md from the results in benchmarks/results.

``python -m benchmarks.page`` after copying the JSON files of new runs there; a test holds the page to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
RESULTS = HERE / "results"

INTRODUCTION = """# Benchmarks

`make bench NAME=hmc` runs one (`QUICK=1` for a short version, `DATA=folder` for data), prints a table and writes JSON
with versions, threads and the peers' figures measured in the same run. The tables below are those files; times are
seconds of CPU on one core, and only ratios of one run mean much.

| name | what it measures | peers |
|---|---|---|
| `hmc` | min ESS of function values per CPU second, gradient cost | numpyro NUTS, Pyro NUTS |
| `acquisition` | posterior forward and backward; one value in any t-batch | BoTorch's EnsemblePosterior |
| `bo` | regret; share of the best experiments of finished tables | SingleTaskGP, random forest, random search |
| `failures` | failing suggestions where a third of the box fails | the same loop without a model of failures |
| `suggest` | the whole command `probnn suggest`: seconds and memory | SingleTaskGP with qLogEI |
| `moe` | mixtures of experts: seconds a fit, restarts, memory | EM and SQUAREM here, EM in numpy |
| `matching` | what every objective of `match_prior` costs, and how near it comes | the paper's critic |
| `uci` | regression on the standard splits: error, likelihood, CRPS and coverage | exact GP, deep ensemble |
| `classification` | matched, fixed and tempered posteriors: likelihood and calibration | the true probabilities |
| `studies` | what a replicate costs beside its own work; rows written a second | joblib alone, a file or a line each |
| `imports` | what `import probnn` and `probnn --help` cost | `import torch` |
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        parts.append(_section(result))
    return "\n".join(parts)


def _section(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"## {result['benchmark']}", ""]
    if result.get("note"):
        lines += [result["note"], ""]
    lines += [f"{versions}; {result['threads']} thread(s) of {result['cores']} cores.", ""]
    for table in result["tables"]:
        columns = list(table["rows"][0])
        lines += [f"**{table['title']}**", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in table["rows"]]
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
