"""The Gibbs step of inverse-gamma scales between transitions of a sampler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.diagnostics import ess
from probnn.errors import DomainError
from probnn.inference import Target
from probnn.inference.collapsed import CollapsedTarget
from tests.cases import DOUBLE

WEIGHTS = {
    "inverse gamma": priors.InverseGammaWeights((3.0, 4.0), (2.0, 5.0), 3.5, 1.0),
    "hierarchical": priors.HierarchicalWeights((1.5, 0.7), 0.5, scale_prior="inverse_gamma", shape=3.0, rate=2.0),
}
NOISE = likelihoods.Gaussian(noise=0.3)


def network(weights: priors.WeightPrior, input_dim: int) -> probnn.BayesianNetwork:
    return probnn.BayesianNetwork(probnn.MLP(input_dim=input_dim, hidden=(3,)), weights, dtype=DOUBLE)


def statistics(prior: probnn.BayesianNetwork, theta: Tensor, Y: Tensor) -> Tensor:
    """What a wrong step would change: scales, squares of weights, and how both go along with the outcomes."""
    blocks = {block.name: theta[..., part] for block, part in prior.layout.slices()}
    u = blocks.pop("log_scale")
    size = Y.abs().flatten(1).mean(-1, keepdim=True).log()
    weights = prior.weight_prior.weights(prior.network.layout, theta)
    squares = [weights[..., part].abs().mean(-1, keepdim=True) for _, part in prior.network.layout.slices()]
    first = torch.cat([u, u.square(), *squares], -1)
    return torch.cat([first, u * size, *(s * size for s in squares)], -1)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("kind", "n", "d"), [(Target, 2, 1), (CollapsedTarget, 3, 1), (CollapsedTarget, 2, 5)])
def test_the_joint_law_of_scales_and_outcomes_stays(name: str, kind: type[Target], n: int, d: int, seed: int) -> None:
    """Draw theta and Y, refresh and complete: their law is what it was (after Geweke, 2004), n < d included.

    Both samples start from the same thetas and outcomes, so differences are tested pairwise.
    """
    prior, R = network(WEIGHTS[name], d), 40_000
    g = rnd.generator_from(seed)
    X = rnd.normal((n, d), generator=g, dtype=DOUBLE)
    before = prior.sample_parameters((R,), generator=g)
    f = prior.apply(before, X)
    Y = f + 0.3 * rnd.normal(f.shape, generator=g, dtype=DOUBLE)
    target = kind(prior, NOISE, X, Y.unsqueeze(1))
    z = target.restrict(before).unsqueeze(1)
    new = target.refresh(z, g)
    assert new is not None
    after, _ = target.complete(new, g)
    change = statistics(prior, after.squeeze(1), Y) - statistics(prior, before, Y)
    moved = change.abs().amax(0) > 1e-9
    error = change.std(0) / R**0.5
    assert (change.mean(0).abs() <= 5 * error + 1e-12).all()
    assert moved[: len(prior.network.layout.blocks)].tolist() == (
        [True] * 4 if kind is Target else [True, True, False, False]
    )


@pytest.mark.parametrize("kind", [Target, CollapsedTarget])
def test_functions_stay(kind: type[Target], seed: int) -> None:
    prior = network(WEIGHTS["inverse gamma"], 2)
    g = rnd.generator_from(seed)
    X = rnd.normal((6, 2), generator=g, dtype=DOUBLE)
    target = kind(prior, likelihoods.Gaussian(), X, X[:, :1])
    z = target.start((4,), g)
    new = target.refresh(z, g)
    assert new is not None and (new - z).abs().max() > 0.01
    theta, psi = target.split(z)
    other, same = target.split(new)
    assert (psi == same).all()
    if isinstance(target, CollapsedTarget):
        torch.testing.assert_close(target._features(theta)[0], target._features(other)[0], rtol=1e-10, atol=1e-12)
    else:
        torch.testing.assert_close(prior.apply(theta, X), prior.apply(other, X), rtol=1e-10, atol=1e-12)


def test_priors_without_known_law_are_left_alone() -> None:
    for weights in (priors.NormalWeights(), priors.HierarchicalWeights(), priors.StudentTWeights()):
        target = Target(network(weights, 1), NOISE, torch.ones(2, 1, dtype=DOUBLE), torch.ones(2, 1, dtype=DOUBLE))
        assert target.refresh(target.start((2,), None), None) is None
    linear = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), WEIGHTS["inverse gamma"].__class__())
    ones = torch.ones(2, 1)
    assert CollapsedTarget(linear, likelihoods.Gaussian(), ones, ones).refresh(torch.zeros(3, 3), None) is None


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_same_posterior_with_and_without(collapsed: bool, seed: int) -> None:
    """Means and spreads of function values and log scales agree within five Monte-Carlo errors of both."""
    prior = network(WEIGHTS["inverse gamma"], 1)
    X = torch.linspace(-1.5, 1.5, 8, dtype=DOUBLE).unsqueeze(-1)
    Y = (2 * X).sin()
    found = []
    for gibbs in (False, True):
        hmc = probnn.HMC(
            num_chains=16, num_warmup=150, num_samples=200, collapse_last_layer=collapsed, gibbs_scales=gibbs
        )
        post = hmc.fit(prior, NOISE, X, Y, seed=seed + gibbs)
        draws = torch.cat([prior.apply(post.theta, X).squeeze(-1), post.theta[..., -4:]], -1)
        found.append(
            [(d.mean((0, 1)), d.flatten(0, 1).std(0) / ess(d, "mean").sqrt()) for d in (draws, draws.square())]
        )
    for (one, error), (other, of_other) in zip(*found, strict=True):
        assert ((one - other).abs() <= 5 * (error.square() + of_other.square()).sqrt()).all()


def test_bad_setting() -> None:
    with pytest.raises(DomainError, match="gibbs_scales must be True or False"):
        probnn.HMC(gibbs_scales=1)  # type: ignore[arg-type]
