"""What `probnn suggest` costs: seconds and memory of the whole command, beside plain BoTorch on the same table.

`python -m benchmarks.suggest [--quick]`. Every run is a process of its own, started with one thread a process as the
command does: reading the table, the check of the model and a batch of four included. BoTorch's is a script that reads
the same table, fits a SingleTaskGP and maximises qLogEI, point by point with the ones before pending; it checks
nothing. CPU seconds count threads too; where other work runs on the machine, they tell more than wall seconds.
"""

from __future__ import annotations

import csv
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from ._common import Report

ROWS, BATCH = 100, 4
GOALS = {"gp": 8.0, "bnn-hmc": 30.0}  # wall seconds on two idle cores
MEMORY = 1.5  # GB

PEER = f"""
import csv, sys, warnings
import torch
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf, optimize_acqf_mixed_alternating
from gpytorch.mlls import ExactMarginalLogLikelihood
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
rows = list(csv.reader(open(sys.argv[1])))[1:]
choices = int(sys.argv[2])
Y = torch.tensor([[float(r[-1])] for r in rows], dtype=torch.double)
X = torch.tensor([[float(v.lstrip("v")) for v in r[:-1]] for r in rows], dtype=torch.double)
d = X.shape[1]

def features(x):
    if not choices:
        return x
    return torch.nn.functional.one_hot(x.round().long(), choices).to(x).flatten(-2)

class Encoded(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(features(x))

gp = SingleTaskGP(features(X), Y)
fit_gpytorch_mll(ExactMarginalLogLikelihood(gp.likelihood, gp))
top = float(choices - 1) if choices else 1.0
bounds = torch.tensor([[0.0] * d, [top] * d], dtype=torch.double)
pending = None
for _ in range({BATCH}):
    waiting = None if pending is None else features(pending)
    acquisition = Encoded(qLogExpectedImprovement(gp, Y.max(), X_pending=waiting))
    if choices:
        kinds = {{i: list(range(choices)) for i in range(d)}}
        x, _ = optimize_acqf_mixed_alternating(
            acquisition, bounds, cat_dims=kinds, q=1, raw_samples=192, num_restarts=4
        )
    else:
        x, _ = optimize_acqf(acquisition, bounds, q=1, raw_samples=192, num_restarts=4)
    pending = x if pending is None else torch.cat([pending, x])
print(pending)
"""


def reals(folder: Path) -> Path:
    """Six numbers."""
    draw = random.Random(0)
    rows = [[draw.random() for _ in range(6)] for _ in range(ROWS)]
    names = [f"x{i}" for i in range(6)]
    space = "".join(f'[{name}]\ntype = "real"\nlow = 0\nhigh = 1\n' for name in names)
    return _write(folder / "six_reals", names, [[*row, -sum((v - 0.3) ** 2 for v in row)] for row in rows], space)


def categories(folder: Path) -> Path:
    """Ten categories of twenty choices."""
    draw = random.Random(0)
    rows = [[f"v{draw.randrange(20)}" for _ in range(10)] for _ in range(ROWS)]
    names = [f"c{i}" for i in range(10)]
    choices = ", ".join(f'"v{j}"' for j in range(20))
    space = "".join(f'[{name}]\ntype = "categorical"\nchoices = [{choices}]\n' for name in names)
    scored = [[*row, sum(_effect(i, v) for i, v in enumerate(row))] for row in rows]
    return _write(folder / "ten_categories_of_20", names, scored, space)


def _effect(position: int, choice: str) -> float:
    """A number of [0, 1) for each choice of each parameter, the same in every process."""
    return zlib.crc32(f"{position} {choice}".encode()) % 97 / 97


def _write(stem: Path, names: list[str], rows: list[list[Any]], space: str) -> Path:
    with open(f"{stem}.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[*names, "y"], *rows])
    Path(f"{stem}.toml").write_text(space, encoding="utf-8")
    return stem


def measure(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (GB) of a process, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        said = process.stderr.read().decode() if process.stderr is not None else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said}")
    return {"wall s": wall, "CPU s": used.ru_utime + used.ru_stime, "memory (GB)": _gigabytes(used)}


def _gigabytes(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e9 / 1024)


def rows_of(stem: Path, choices: int, surrogates: list[str]) -> list[dict[str, Any]]:
    """BoTorch first, then every surrogate against it."""
    peer = measure([sys.executable, "-c", PEER, f"{stem}.csv", str(choices)])
    name = stem.name.replace("_", " ")
    found: list[dict[str, Any]] = [{"space": name, "surrogate": "SingleTaskGP + qLogEI", **peer, "CPU ratio": 1.0}]
    for surrogate in surrogates:
        command = [
            *(sys.executable, "-m", "probnn", "suggest", f"{stem}.csv", "--space", f"{stem}.toml"),
            *("--maximize", "y", "--batch", str(BATCH), "--surrogate", surrogate),
        ]
        ours = measure(command)
        ratio = ours["CPU s"] / peer["CPU s"]
        found.append({"space": name, "surrogate": surrogate, **ours, "CPU ratio": ratio, "goal": GOALS.get(surrogate)})
    return found


def main() -> None:
    """Measure, print the table and write the JSON."""
    report = Report("suggest", __doc__)
    surrogates = ["gp", "bnn-hmc"] if report.quick else ["gp", "bnn-hmc", "ensemble", "laplace", "vi"]
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(reals(Path(folder)), 0, surrogates) + rows_of(categories(Path(folder)), 20, surrogates)
    columns = list(rows[1])
    title = f"probnn suggest: {ROWS} rows, batch {BATCH}; goal in wall seconds on two idle cores, memory {MEMORY} GB"
    report.table(title, [{column: row.get(column) for column in columns} for row in rows])
    report.write()


if __name__ == "__main__":
    main()
