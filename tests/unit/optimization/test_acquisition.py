"""Acquisition functions of the loop."""

from __future__ import annotations

import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.sampling.get_sampler import get_sampler

import probnn
from probnn import random as rnd
from probnn.optimization.acquisition import DrawsNoisyImprovement
from probnn.surrogates import Inferred, ProcessModel, Surrogate

DOUBLE = torch.double


def model(n: int, seed: int) -> tuple[ProcessModel, torch.Tensor]:
    X = rnd.uniform((n, 2), generator=rnd.generator_from(seed), dtype=DOUBLE)
    build = Inferred(probnn.priors.BNNPrior(hidden=(8,)), probnn.likelihoods.Gaussian(), probnn.DeepEnsemble(size=8))
    recipe = Surrogate(build, num_draws=8)
    bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=DOUBLE)
    with torch.random.fork_rng():
        return recipe.fit(X, torch.sin(5 * X.sum(-1, keepdim=True)), bounds=bounds, seed=seed), X


def test_the_improvement_of_draws_is_botorchs(seed: int) -> None:
    """The same value and gradient as qLogNEI over all points, with the pending ones in its baseline or beside it."""
    surrogate, X = model(9, seed)
    baseline, pending = X[:6], X[6:8]
    Z = rnd.uniform((20, 1, 2), generator=rnd.generator_from(seed + 1), dtype=DOUBLE)
    sampler = get_sampler(surrogate.posterior(X[:1]), torch.Size([64]), seed=seed)
    ours = DrawsNoisyImprovement(surrogate, torch.cat([baseline, pending]), seed, num_samples=64)
    theirs = qLogNoisyExpectedImprovement(
        surrogate, torch.cat([baseline, pending]), sampler=sampler, prune_baseline=False, cache_root=False
    )
    points = Z.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(ours(points).sum(), points)
    (expected,) = torch.autograd.grad(theirs(points).sum(), points)
    assert (ours(Z) - theirs(Z)).abs().max() < 1e-9
    assert (slope - expected).abs().max() <= 1e-8 * expected.abs().max()
    beside = qLogNoisyExpectedImprovement(
        surrogate, baseline, sampler=sampler, X_pending=pending, prune_baseline=False, cache_root=False
    )
    # With the pending points beside it BoTorch counts their improvement too: another constant in each draw.
    draws = sampler(surrogate.posterior(torch.cat([baseline, pending, Z.squeeze(1)]))).squeeze(-1)
    by_hand = draws[:, 8:].maximum(draws[:, 6:8].amax(-1, keepdim=True)) - draws[:, :6].amax(-1, keepdim=True)
    assert (beside(Z).exp() - by_hand.clamp_min(0).mean(0)).abs().max() < 1e-4  # the smoothing of BoTorch's logarithm
    ranks = ours(Z).argmax(), beside(Z).argmax()
    assert ranks[0] == ranks[1]
