"""What acquisition functions over draws cost, and whether they repeat themselves.

`python -m benchmarks.acquisition [--quick]`. Beside every figure of ours is BoTorch's own ensemble
(`EnsembleModel` over the same draws, evaluated as its documentation does it), measured in the same run.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from botorch.acquisition import qExpectedImprovement, qKnowledgeGradient
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.multi_objective import logei as multi_objective
from botorch.models.ensemble import EnsembleModel
from botorch.optim import optimize_acqf
from botorch.sampling.get_sampler import get_sampler
from torch import Tensor

import probnn
from probnn.surrogates import ExpectedInformationGain, MaxValueEntropy

from ._common import Report

DOUBLE = torch.float64
GOAL = 0.25  # seconds, forward and backward of the first row
# Draws, t-batches, points of a batch.
SIZES = ((512, 64, 1), (128, 64, 1), (256, 5, 4), (512, 16, 50))


def draws(S: int, d: int, m: int = 1, hidden: tuple[int, ...] = (64, 64), seed: int = 0) -> probnn.EmpiricalProcess:
    """Draws of a network prior, as a sampler would return them."""
    net = probnn.MLP(input_dim=d, hidden=hidden, output_dim=m)
    weights = probnn.priors.NormalWeights(weight_scale=(4.0, 2.0, 1.5), bias_scale=(2.0, 1.0, 0.1))
    prior = probnn.BayesianNetwork(net, weights, dtype=DOUBLE)
    theta = prior.sample_parameters((1, S), generator=torch.Generator().manual_seed(seed))
    return probnn.EmpiricalProcess(prior, theta, theta.new_zeros(1, S, 0), probnn.likelihoods.Gaussian(noise=0.3))


class Stock(EnsembleModel):
    """BoTorch's ensemble of the same draws, by broadcasting matrix products."""

    def __init__(self, process: probnn.EmpiricalProcess):
        super().__init__()
        self.named = process.layout.unflatten(process.theta[0])
        self.layers = len(self.named) // 2
        self._num_outputs = process.output_dim

    def forward(self, X: Tensor) -> Tensor:
        h = X.unsqueeze(-3)
        for i in range(self.layers):
            weight, bias = self.named[f"layers.{i}.weight"], self.named[f"layers.{i}.bias"]
            h = h @ weight.mT + bias.unsqueeze(-2)
            h = torch.tanh(h) if i < self.layers - 1 else h
        return h


def looped(process: probnn.EmpiricalProcess) -> Callable[[Tensor], Tensor]:
    """The same by `torch.func.vmap`."""
    named = process.layout.unflatten(process.theta[0])
    layers = len(named) // 2

    def one(values: dict[str, Tensor], X: Tensor) -> Tensor:
        for i in range(layers):
            X = X @ values[f"layers.{i}.weight"].mT + values[f"layers.{i}.bias"]
            X = torch.tanh(X) if i < layers - 1 else X
        return X

    return lambda X: torch.func.vmap(one, in_dims=(0, None))(named, X)


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Least CPU seconds of some rounds, after one to warm up."""
    call()
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def forward_and_backward(report: Report, rounds: int) -> None:
    """Posterior values and their gradient in X."""
    rows = []
    for S, b, q in SIZES:
        process = draws(S, 6)
        model, stock, mapped = probnn.ProcessModel(process, num_draws=S), Stock(process), looped(process)
        X = torch.rand(b, q, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).requires_grad_(True)

        def timed(f: Callable[[Tensor], Tensor], X: Tensor = X) -> float:
            return seconds(lambda: torch.autograd.grad(f(X).sum(), X), rounds)

        # BoTorch's way takes minutes and gigabytes at the last size.
        theirs = timed(lambda X, stock=stock: stock.posterior(X).mean) if b * q <= 64 else None
        rows.append(
            {
                "draws": S,
                "batches": b,
                "points": q,
                "ours": timed(lambda X, model=model: model.posterior(X).mean),
                "EnsembleModel": theirs,
                "vmap": timed(mapped),
                "goal": GOAL if (S, b, q) == SIZES[0] else None,
            }
        )
    report.table("forward and backward of the posterior mean, 2 x 64 hidden, d = 6 (CPU seconds)", rows)


def repeatability(report: Report) -> None:
    """One candidate in five t-batches, and the error over seeds of expected improvement."""
    process = draws(64, 2, hidden=(32, 32))
    x = torch.full((1, 1, 2), 0.4, dtype=DOUBLE)
    values = probnn.ProcessModel(process).posterior(x).values.flatten()
    best = values.mean() + 0.5 * values.std()
    exact = (values - best).clamp_min(0).mean()
    rows = []
    for name, model in (("ours", probnn.ProcessModel(process)), ("EnsemblePosterior", Stock(process))):

        def acquisition(seed: int, model: Any = model) -> Any:
            sampler = get_sampler(model.posterior(x), torch.Size([128]), seed=seed)
            return qExpectedImprovement(model, best, sampler=sampler)

        together = acquisition(0)(x.expand(5, 1, 2))
        estimates = torch.cat([acquisition(seed)(x) for seed in range(30)])
        error = (estimates - exact).square().mean().sqrt() / exact
        spread = (together.max() - together.min()) / exact
        rows.append({"posterior": name, "relative spread": spread.item(), "relative error over seeds": error.item()})
    report.table("qEI with 128 samples of 64 draws: spread over t-batches, error over 30 seeds", rows)


def optimisation(report: Report, rounds: int) -> None:
    """What one suggestion costs with 256 draws."""
    d, box = 6, torch.tensor([[-1.0] * 6, [1.0] * 6], dtype=DOUBLE)
    seen = 2 * torch.rand(50, d, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) - 1
    grid = 2 * torch.rand(500, d, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)) - 1
    model = probnn.ProcessModel(draws(256, d, hidden=(50, 50)))
    pair = probnn.ProcessModel(draws(256, d, 2, hidden=(50, 50)))
    best = model.posterior(seen).mean.max().item()
    reference = pair.posterior(seen).mean.amin(0).detach()
    cases: dict[str, tuple[Callable[[], Any], int, int]] = {
        "qLogEI": (lambda: qLogExpectedImprovement(model, best), 1, 8),
        "qLogEI, q = 3": (lambda: qLogExpectedImprovement(model, best), 3, 8),
        "qLogNEI, 50 observed": (lambda: qLogNoisyExpectedImprovement(model, seen), 1, 2),
        "ExpectedInformationGain": (lambda: ExpectedInformationGain(model), 1, 2),
        "MaxValueEntropy": (lambda: MaxValueEntropy(model, grid), 1, 2),
        "qKG, 8 fantasies": (lambda: qKnowledgeGradient(model, num_fantasies=8), 1, 2),
        "qLogNEHVI, 50 observed": (
            lambda: multi_objective.qLogNoisyExpectedHypervolumeImprovement(pair, reference, seen),
            1,
            2,
        ),
    }
    rows = []
    for name, (make, q, restarts) in cases.items():

        def suggest(make: Callable[[], Any] = make, q: int = q, restarts: int = restarts) -> None:
            torch.manual_seed(0)
            optimize_acqf(make(), box, q=q, num_restarts=restarts, raw_samples=16 * restarts, options={"maxiter": 50})

        wall, cpu = time.perf_counter(), time.process_time()
        suggest()
        cpu = time.process_time() - cpu
        rows.append({"acquisition": name, "restarts": restarts, "CPU s": cpu, "wall s": time.perf_counter() - wall})
    report.table("one suggestion: 256 draws, 2 x 50 hidden, d = 6, at most 50 iterations", rows)
    posterior = model.posterior(grid[:1].expand(512, 1, d), observation_noise=True)
    rows = [
        {
            "case": "base samples and values: 512 t-batches, 256 draws, 128 samples",
            "CPU s": seconds(lambda: get_sampler(posterior, torch.Size([128]), seed=0)(posterior), rounds),
            "goal": 0.02,
        }
    ]
    report.table("sampler", rows)


def main() -> None:
    """Measure, print the tables and write the JSON."""
    report = Report("acquisition", __doc__)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # plain qEI, and lookahead that rests on few draws: both are known here
    multi_objective._load_attempted = True  # no C++ compilation, which takes minutes, within a measurement
    rounds = 2 if report.quick else 5
    forward_and_backward(report, rounds)
    repeatability(report)
    optimisation(report, rounds)
    report.write()


if __name__ == "__main__":
    main()
