"""Mixtures of experts: Newton on the observed likelihood against EM, batched and as a numpy loop.

Data are those of the exact-fit study of Nguyen, Nguyen & Ho (2023, arXiv 2305.03288): two crossing lines with a steep
gate, n = 1000, fitted with k = 3 experts, 40 replicates, starts near the truth; CPU seconds of one thread.

1. Seconds a fit from the same starts: Newton (with its 10 EM iterations), EM to a relative change of 1e-9 and of 1e-6,
   SQUAREM, and a loop over replicates in numpy (one replicate at a time, vectorised over rows, the gate by iteratively
   reweighted least squares in every M-step) to the same relative changes; the literature's code stops at 1e-6. What is
   missing to the best log-likelihood of all from that start is in nats.
2. Restarts: ten starts of the library a replicate; the best Newton maximum minus the best of EM from the same starts.
3. A million rows from disk: memory over that of opening them, and the difference to the fit in memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from probnn import moe
from probnn.moe._checks import log_variance_floor
from probnn.moe.accelerate import run_squarem
from probnn.moe.em import run_em
from probnn.moe.newton import run_newton
from probnn.moe.objective import Objective
from probnn.moe.starts import KINDS, near_truth, starting_points

from ._common import Report

TRUTH = moe.MixingMeasure(
    gate_bias=[-8.0, 0.0],
    gate_weight=[[25.0], [0.0]],
    intercept=[15.0, -5.0],
    coef=[[-20.0], [20.0]],
    variance=[0.09, 0.16],
)


def simulate(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs uniform on [0, 1], and outcomes."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(*shape, 1, generator=generator, dtype=torch.double)
    return X, moe.GaussianMoE.from_mixing_measure(TRUTH).sample_outcomes(X, generator=generator)


def cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its CPU seconds."""
    started = time.process_time()
    return call(), time.process_time() - started


def numpy_em(x: numpy.ndarray, y: numpy.ndarray, W: Any, B: Any, v: Any, tol: float) -> tuple[float, int]:
    """EM of one data set: gate weights W ``k x 2``, lines B ``k x 2`` and variances v, with ones as first input."""
    X = numpy.stack([numpy.ones_like(x), x], 1)
    k, old, iterations = len(v), -numpy.inf, 0
    while iterations < 5000:
        scores = X @ W.T
        log_pi = scores - numpy.logaddexp.reduce(scores, 1, keepdims=True)
        residual = y[:, None] - X @ B.T
        joint = log_pi - 0.5 * (numpy.log(2 * numpy.pi * v) + residual**2 / v)
        row = numpy.logaddexp.reduce(joint, 1)
        value = row.sum()
        if abs(value - old) <= tol * abs(value):
            break
        old, r, iterations = value, numpy.exp(joint - row[:, None]), iterations + 1
        for i in range(k):
            weighted = X * r[:, i : i + 1]
            B[i] = numpy.linalg.solve(weighted.T @ X + 1e-12 * numpy.eye(2), weighted.T @ y)
            v[i] = max((r[:, i] * (y - X @ B[i]) ** 2).sum() / r[:, i].sum(), 1e-8)
        for _ in range(50):
            scores = X @ W.T
            p = numpy.exp(scores - numpy.logaddexp.reduce(scores, 1, keepdims=True))
            gradient = ((r - p)[:, :-1].T @ X).ravel()
            size = 2 * (k - 1)
            hessian = numpy.empty((size, size))
            for i in range(k - 1):
                for j in range(k - 1):
                    weight = p[:, i] * ((i == j) - p[:, j])
                    hessian[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = (X * weight[:, None]).T @ X
            step = numpy.linalg.solve(hessian + 1e-9 * numpy.eye(size), gradient)
            W[:-1] += step.reshape(k - 1, 2)
            if abs(step).max() < 1e-6 * (1 + abs(W).max()):
                break
    return float(value), iterations


def same_starts(report: Report) -> None:
    """Every method from one start near the truth a replicate."""
    R, n = (8, 300) if report.quick else (40, 1000)
    X, Y = simulate(R, n, seed=1)
    model = moe.GaussianMoE(3, 1)
    objective = Objective.of(model, X, Y)
    theta = near_truth(model, TRUTH, n, (R, 1), torch.Generator().manual_seed(1)).squeeze(1)

    def newton() -> Any:
        warm = run_em(objective, theta, max_iter=10, tol=1e-300, criterion="relative").theta
        return run_newton(objective, warm, floor=log_variance_floor(objective.data))

    def em(tol: float) -> Any:
        return run_em(objective, theta, max_iter=5000, tol=tol, criterion="relative")

    runs = {
        "Newton": cpu(newton),
        "EM, relative 1e-9": cpu(lambda: em(1e-9)),
        "EM, relative 1e-6": cpu(lambda: em(1e-6)),
        "SQUAREM, relative 1e-9": cpu(
            lambda: run_squarem(objective, theta, max_iter=2000, tol=1e-9, criterion="relative")
        ),
    }
    gamma, beta, scales, _ = model.split(theta)
    loops = min(R, 4 if report.quick else 10)

    def loop(tol: float) -> list[tuple[float, int]]:
        found = []
        for r in range(loops):
            W, B = (torch.stack([z[r, :, 1], z[r, :, 0]], -1).numpy().copy() for z in (gamma, beta.squeeze(-2)))
            v = scales[r, :, 0].exp().numpy().copy()
            found.append(numpy_em(X[r, :, 0].numpy(), Y[r, :, 0].numpy(), W, B, v, tol))
        return found

    # A variance that collapsed has a likelihood without bound, which is no maximum to be short of.
    best = torch.stack([s.value.masked_fill(s.degenerate, -torch.inf) for s, _ in runs.values()]).amax(0)
    ours = runs["Newton"][1] / R
    rows = []
    for name, (state, used) in runs.items():
        short = (best - state.value)[~state.degenerate]
        derivatives = objective.derivatives(state.theta)
        decrement = moe.newton.newton_decrement(*derivatives[1:])
        rows.append(
            {
                "method": name,
                "fits": R,
                "s a fit": used / R,
                "times Newton": used / R / ours,
                "iterations (median)": state.num_iter.double().median().item(),
                "nats short (mean)": short.mean().item(),
                "nats short (worst)": short.max().item(),
                "decrement < 1e-6": f"{int((decrement < 1e-6).sum())} of {R}",
                "degenerate": int(state.degenerate.sum()),
            }
        )
    for tol in (1e-9, 1e-6):
        values, seconds = cpu(lambda tol=tol: loop(tol))
        missing = best[:loops] - torch.tensor([v for v, _ in values], dtype=torch.double)
        rows.append(
            {
                "method": f"numpy loop, relative {tol:.0e}",
                "fits": loops,
                "s a fit": seconds / loops,
                "times Newton": seconds / loops / ours,
                "iterations (median)": float(numpy.median([i for _, i in values])),
                "nats short (mean)": missing.mean().item(),
                "nats short (worst)": missing.max().item(),
                "decrement < 1e-6": "",
                "degenerate": "",
            }
        )
    report.table(f"from one start near the truth, n = {n}, k = 3", rows)


def restarts(report: Report) -> None:
    """The best of ten starts a replicate."""
    R, n, S = (4, 300, 4) if report.quick else (40, 1000, 10)
    X, Y = simulate(R, n, seed=2)
    model = moe.GaussianMoE(3, 1)
    fit, ours = cpu(lambda: moe.fit(model, X, Y, num_restarts=S, seed=0))
    data = Objective.of(model, X, Y).data
    starts = starting_points(model, data, KINDS, S, torch.Generator().manual_seed(0)).flatten(0, 1)
    objective = Objective.of(model, X.repeat_interleave(S, 0), Y.repeat_interleave(S, 0))
    em, theirs = cpu(lambda: run_em(objective, starts, max_iter=5000, tol=1e-9, criterion="relative"))
    best = em.value.masked_fill(em.degenerate, -torch.inf).reshape(R, S).amax(-1)
    lead = fit.log_likelihood - best
    rows = [
        {
            "replicates": R,
            "starts": S,
            "s a replicate, Newton": ours / R,
            "s a replicate, EM 1e-9": theirs / R,
            "times": theirs / ours,
            "lead in nats, smallest": lead.min().item(),
            "lead, mean": lead.mean().item(),
            "Newton higher": int((lead > 1e-3).sum()),
            "EM higher": int((lead < -1e-4).sum()),
        }
    ]
    report.table(f"best of the restarts, n = {n}, k = 3", rows)


_STREAM = """
import numpy, resource, sys, torch
from probnn import moe
torch.set_num_threads(1)
X, Y = (numpy.load(f"{sys.argv[1]}/{name}.npy", mmap_mode="r") for name in "XY")
few = moe.fit(moe.GaussianMoE(2, 1), X[:2000], Y[:2000], num_restarts=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit = moe.fit(moe.GaussianMoE(2, 1), X, Y, num_restarts=2, num_warmup=10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, fit.seconds, fit.log_likelihood.item())
print(*fit.model.theta.tolist())
"""


def streamed(report: Report) -> None:
    """Rows from disk, in a process of their own."""
    n = 50_000 if report.quick else 1_000_000
    X, Y = simulate(n, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        for name, x in (("X", X), ("Y", Y)):
            numpy.save(Path(folder) / f"{name}.npy", x.numpy())
        done = subprocess.run([sys.executable, "-c", _STREAM, folder], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()[-2:]
    growth, seconds, value = (float(v) for v in first.split())
    theta = torch.tensor([float(v) for v in second.split()], dtype=torch.double)
    memory = moe.fit(moe.GaussianMoE(2, 1), X, Y, num_restarts=2, num_warmup=10)
    rows = [
        {
            "rows": n,
            "s": seconds,
            "memory growth, MB": growth / 1024 if sys.platform != "darwin" else growth / 2**20,
            "difference of theta": (theta - memory.model.theta).abs().max().item(),
            "relative difference of the log-likelihood": abs(value / memory.log_likelihood.item() - 1),
        }
    ]
    report.table("streamed from disk against in memory, k = 2", rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    report = Report("moe", __doc__, arguments)
    torch.set_num_threads(1)
    same_starts(report)
    restarts(report)
    streamed(report)
    print(f"\nwritten to {report.write()}")


if __name__ == "__main__":
    main()
