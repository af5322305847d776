"""Small editions of every registered surrogate, fitted once for all contract tests."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

import probnn
from probnn import random as rnd
from probnn.surrogates import Inferred, Surrogate, available_surrogates, get_surrogate

DOUBLE = torch.float64
S = 64  # draws

# What makes each recipe small: fields of its method, and of its prior.
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bnn-functional": (
        {"num_chains": 16, "num_warmup": 40, "num_samples": 4},
        {"base": probnn.priors.BNNPrior(hidden=(12, 12), activation="sin"), "num_steps": 20, "num_draws": 32},
    ),
    "bnn-hmc": ({"num_chains": 16, "num_warmup": 40, "num_samples": 4}, {"hidden": (12, 12)}),
    "bnn-sghmc": ({"num_warmup": 300, "num_samples": 8, "keep_every": 20, "start_steps": 100}, {"hidden": (12, 12)}),
    "ensemble": ({"size": S, "steps": 100}, {"hidden": (12, 12)}),
    "gp": ({}, {}),
    "laplace": ({"steps": 150, "num_starts": 2}, {"hidden": (8, 8)}),
    "moe": ({"size": S}, {}),
    "vi": ({"steps": 200}, {"hidden": (12, 12)}),
}
ALL = tuple(SMALL)
DRAWS = tuple(name for name in ALL if name != "gp")
JOINT = ALL  # none of them knows marginals only


def test_every_registered_surrogate_is_under_contract() -> None:
    assert set(available_surrogates()) == set(ALL)
    for name in ALL:
        process = fitted(name).process
        assert isinstance(process, probnn.EmpiricalProcess) == (name in DRAWS)
        assert (process.joint is not None) == (name in JOINT)


def small(name: str) -> Surrogate:
    """The recipe with fewer steps, units and draws."""
    recipe = get_surrogate(name)
    method, prior = SMALL[name]
    build: Any = recipe.build
    less = dataclasses.replace(
        build, method=dataclasses.replace(build.method, **method), prior=dataclasses.replace(build.prior, **prior)
    )
    assert isinstance(less, Inferred)
    return dataclasses.replace(recipe, build=less, num_draws=S)


# Not the unit box, and outcomes far from standardised.
BOUNDS = torch.tensor([[-1.0, 0.0], [2.0, 1.5]], dtype=DOUBLE)


def points(*shape: int, seed: int = 0) -> Tensor:
    """Points in the box, ``shape x 2``."""
    u = rnd.uniform((*shape, 2), generator=rnd.generator_from(seed), dtype=DOUBLE)
    return BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) * u


def data(m: int = 1, n: int = 10) -> tuple[Tensor, Tensor]:
    """Noisy outcomes of a smooth function with offset and scale."""
    X = points(n, seed=17)
    clean = torch.stack([torch.sin(2 * X.sum(-1) + j) for j in range(m)], -1)
    return X, 20.0 + 4.0 * clean + 0.8 * rnd.normal((n, m), generator=rnd.generator_from(18), dtype=DOUBLE)


@functools.cache
def fitted(name: str, m: int = 1) -> probnn.ProcessModel:
    """The small surrogate on the data; shared, so tests must not change it."""
    return small(name).fit(*data(m), bounds=BOUNDS, seed=3)
