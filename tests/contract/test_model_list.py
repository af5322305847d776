"""The contract of surrogates: beside other models in a ModelList, the samples of members are independent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.objective import GenericMCObjective
from botorch.models import ModelList, SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from botorch.optim import optimize_acqf
from botorch.sampling.get_sampler import get_sampler
from torch import Tensor

import probnn
from probnn.optimization.acquisition import build
from probnn.optimization.goals import Goals
from tests.surrogate_models import ALL, BOUNDS, DRAWS, data, fitted, points

N = 4096
OPTIONS: dict[str, Any] = {"num_restarts": 1, "raw_samples": 4, "options": {"maxiter": 3}}


def gp() -> SingleTaskGP:
    X, Y = data(2)
    return SingleTaskGP(
        X, Y[:, 1:], train_Yvar=torch.full_like(Y[:, 1:], 0.6),
        input_transform=Normalize(2, bounds=BOUNDS), outcome_transform=Standardize(1),
    )  # fmt: skip


def one(name: str) -> probnn.ProcessModel:
    return fitted(name, 2).subset_output([0])


def correlations(samples: Tensor) -> Tensor:
    """Of two outcomes over samples ``N x b x 1 x 2``, at each of b points."""
    z = samples.squeeze(-2)
    z = (z - z.mean(0)) / z.std(0)
    return (z[..., 0] * z[..., 1]).mean(0)


@pytest.mark.parametrize("name", DRAWS)
def test_samples_beside_a_gp_are_independent(name: str, seed: int) -> None:
    """One seed for the list: 5 standard errors, 1/sqrt(N), of the correlation at each of five points."""
    posterior = ModelList(one(name), gp()).posterior(points(5, 1))
    samples = get_sampler(posterior, torch.Size([N]), seed=seed)(posterior)
    assert (correlations(samples).abs() < 5 / N**0.5).all()
    again = get_sampler(posterior, torch.Size([N]), seed=seed)(posterior)
    assert torch.equal(samples, again)


@pytest.mark.parametrize("name", ALL)
def test_outcomes_of_one_seed_are_independent_in_the_loop(name: str, seed: int) -> None:
    """Two models of one recipe and seed: BoTorch's own list would give normal members the same numbers."""
    X, Y = data(2)
    models = [one(name), fitted(name, 2).subset_output([1])]
    if name in DRAWS:  # members of one posterior share their draws: take two that were fitted apart
        models[1] = fitted(name)
    goals = Goals.of("y", None, "z <= 0")
    acquisition: Any = build("qLogNEI", models, goals, X, Y[:, :1], X[:0], reference=None, seed=seed)
    sampler: Any = acquisition.sampler
    posterior = ModelList(*models).posterior(points(5, 1))
    many = [type(s)(torch.Size([N]), seed=s.seed) for s in sampler.samplers]
    samples = torch.cat([s(p) for s, p in zip(many, posterior.posteriors, strict=True)], -1)
    assert (correlations(samples).abs() < 5 / N**0.5).all()


@pytest.mark.parametrize("name", ALL)
def test_acquisitions_beside_a_gp(name: str) -> None:
    """The noisy improvements of BoTorch, seeded: finite, the same again, and the same alone as in a batch."""
    X, Y = data(2)
    model = ModelList(one(name), gp())

    def functions() -> tuple[Any, Any]:
        sampler = get_sampler(model.posterior(X[:1]), torch.Size([64]), seed=0)
        other = get_sampler(model.posterior(X[:1]), torch.Size([64]), seed=0)
        total = GenericMCObjective(lambda samples, X=None: samples.sum(-1))
        return (
            qLogNoisyExpectedImprovement(model, X, sampler=sampler, objective=total, prune_baseline=False),
            qLogNoisyExpectedHypervolumeImprovement(model, Y.amin(0), X, sampler=other, prune_baseline=False),
        )

    at = points(3, 2)
    for first, second in zip(functions(), functions(), strict=True):
        values = first(at)
        assert values.shape == (3,) and values.isfinite().all()
        assert torch.equal(values, second(at))
        torch.testing.assert_close(second(at[:1]), values[:1], rtol=0, atol=1e-7)
        torch.manual_seed(0)
        x, value = optimize_acqf(first, BOUNDS, q=1, **OPTIONS)
        assert value.isfinite() and bool(((x >= BOUNDS[0]) & (x <= BOUNDS[1])).all())
