"""Matching a network's prior to a Gaussian process: what every objective costs and how near it comes.

Target: an RBF process of length scale .6 on 64 points of [-3, 3]; prior: two hidden layers of 50, one scale a layer
for weights and one for biases, from scale one. Distances are of 20,000 fresh draws (energy: 5,000), the same of the
target for all rows; the first row is the target against itself. Seconds are CPU time of the matching alone, one thread.
`roughness` is the mean squared step between neighbouring points over the target's: distances of laws hardly see it.
"""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from torch import Tensor

import probnn
from probnn import diagnostics, priors
from probnn import random as rnd

from ._common import Report

GRID = priors.Grid(-3, 3, 64)
NUM_DRAWS, NUM_ENERGY = 20_000, 5_000


def target() -> probnn.GaussianProcess:
    """The process to look like."""
    kernel = gpytorch.kernels.RBFKernel()
    kernel.lengthscale = 0.6
    return probnn.GaussianProcess(kernel, input_dim=1)


def network(activation: str = "tanh") -> probnn.BayesianNetwork:
    """The network, its scales one."""
    net = probnn.MLP(input_dim=1, hidden=(50, 50), activation=activation)
    return probnn.BayesianNetwork(net, priors.NormalWeights())


def draws(process: probnn.StochasticProcess, seed: int) -> Tensor:
    """Function values ``draws x 64``."""
    X, g = GRID.points(torch.empty(0)), rnd.generator_from(seed)
    return torch.cat([process.sample(X, (2000,), generator=g).squeeze(-1) for _ in range(NUM_DRAWS // 2000)]).double()


def row(name: str, x: Tensor, y: Tensor, **more: Any) -> dict[str, Any]:
    """One row of the table, from draws of the prior and of the target."""
    second = [f.mT @ f / len(f) for f in (x, y)]
    return {
        "objective": name,
        "cpu s": None,
        "steps": None,
        "energy": diagnostics.energy_distance(x[:NUM_ENERGY], y[:NUM_ENERGY]).item(),
        "sliced W1": diagnostics.sliced_wasserstein(x, y, generator=rnd.generator_from(0)).item(),
        "marginal W1": diagnostics.marginal_wasserstein(x, y).item(),
        "moments": diagnostics.squared_bures(*second).item(),
        "roughness": (x.diff(dim=1).square().mean() / y.diff(dim=1).square().mean()).item(),
        **more,
    }


def matched(name: str, objective: Any, y: Tensor, activation: str = "tanh", **options: Any) -> dict[str, Any]:
    """The row of one objective, seed 0."""
    match = probnn.match_prior(network(activation), target(), GRID, objective, seed=0, **options)
    taken = " + ".join(str(len(values)) for values in match.history.values())
    return row(name, draws(match.prior, 1), y, **{"cpu s": match.seconds, "steps": taken})


def repeats(y: Tensor, count: int) -> list[dict[str, Any]]:
    """`auto` once for each seed: how much of a figure is luck."""
    rows = []
    for seed in range(count):
        match = probnn.match_prior(network(), target(), GRID, seed=seed)
        found = row(f"seed {seed}", draws(match.prior, 1), y, **{"cpu s": match.seconds})
        rows.append({"auto": found.pop("objective"), **{k: v for k, v in found.items() if k != "steps"}})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    report = Report("matching", __doc__, arguments)
    torch.set_num_threads(1)
    y = draws(target(), 0)
    probnn.match_prior(network(), target(), GRID, num_steps=1)  # the first call imports
    rows = [row("floor: target and target", draws(target(), 2), y), row("untuned", draws(network(), 1), y)]
    rows.append(matched("auto", "auto", y))
    rows.append(matched("auto, shrinkage .001", "auto", y, shrinkage=0.001))
    rows += [matched(name, name, y) for name in ("nngp", "energy", "mmd", "sliced")]
    rows.append(matched("wasserstein, persistent critic", priors.Wasserstein(persistent=True), y))
    if report.quick:
        rows.append(matched("wasserstein, cut: 20 x 50", priors.Wasserstein(inner_steps=50), y, num_steps=20))
    else:
        full = priors.Wasserstein(threshold=0.0)
        rows.append(matched("wasserstein, the paper's 200 x 200", full, y))
    rows.append(matched("auto, sin units", "auto", y, "sin"))
    report.table("RBF process, length scale .6; 2 x 50 tanh units but for the last row", rows)
    report.table("auto, tanh, other seeds", repeats(y, 2 if report.quick else 5))
    print(f"\nwritten to {report.write()}")


if __name__ == "__main__":
    main()
