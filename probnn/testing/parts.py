"""Checks of the parts a process is made of."""

from __future__ import annotations

import torch

from .. import random as rnd
from ..errors import UnsupportedError
from ..likelihoods import Likelihood
from ..networks import Layout, Network
from ..priors import WeightPrior
from .common import close, expect, instance, points, raises, untouched_stream


def check_network(network: Network, *, seed: int = 0) -> None:
    """Check a network: broadcasting against a loop over draws and inputs, empty stacks, and its pullback.

    Args:
        network: The network.
        seed: Seed of parameters and inputs.

    Raises:
        AssertionError: The contract is broken; the message says where.
        DomainError: An argument is of another type.
    """
    instance("check_network", "network", network, Network, "one such as probnn.MLP(input_dim=2)")
    name, d, c, P = type(network).__name__, network.input_dim, network.output_dim, network.num_parameters
    dtype = torch.float64
    expect(network.layout.size == P, f"{name}: the layout has {network.layout.size} entries, not {P}")
    params = points((3, 2, P), dtype, seed)
    cases = {
        "draws by points": (params, points((5, d), dtype, seed)),
        "draws by a batch of points": (params[:, :, None], points((4, 5, d), dtype, seed)),
        "points of their own": (params, points((3, 2, 5, d), dtype, seed)),
        "mixed": (params[:, :1, None], points((2, 4, 5, d), dtype, seed)),
        "one draw": (params[0, 0], points((2, 5, d), dtype, seed)),
        "no draws": (params[:0, 0], points((5, d), dtype, seed)),
    }
    for case, (p, X) in cases.items():
        lead = torch.broadcast_shapes(p.shape[:-1], X.shape[:-2])
        value = network(p, X)
        expect(value.shape == (*lead, 5, c), f"{name}, {case}: shape {tuple(value.shape)}")
        all_p = p.expand(*lead, P).reshape(-1, P)
        all_X = X.expand(*lead, 5, d).reshape(-1, 5, d)
        if not len(all_p):
            continue
        looped = torch.stack([network(q, x) for q, x in zip(all_p, all_X, strict=True)]).reshape(value.shape)
        close(value, looped, 1e-12, f"{name}, {case}: batched against looped")
        leaf = p.clone().requires_grad_(True)
        cotangent = points(tuple(value.shape), dtype, seed + 1)
        (expected,) = torch.autograd.grad(network(leaf, X), leaf, cotangent)
        pulled, back = network.pullback(p, X)
        close(pulled, value, 1e-12, f"{name}, {case}: value of the pullback")
        close(back(cotangent), expected, 1e-10, f"{name}, {case}: pullback against autograd")


def check_weight_prior(prior: WeightPrior, network: Layout, *, seed: int = 0) -> None:
    """Check a weight prior: shapes, density gradient, pullback, randomness.

    Args:
        prior: The prior.
        network: Layout of the weights.
        seed: Seed of draws.

    Raises:
        AssertionError: The contract is broken; the message says where.
        DomainError: An argument is of another type.
    """
    where = "check_weight_prior"
    instance(where, "prior", prior, WeightPrior, "one such as probnn.priors.NormalWeights()")
    instance(where, "network", network, Layout, "the layout of a network, network.layout")
    name, P = type(prior).__name__, prior.layout(network).size
    with untouched_stream(f"{name}.sample"):
        theta = prior.sample(network, (3, 2), generator=rnd.generator_from(seed), dtype=torch.float64)
        same = prior.sample(network, (3, 2), generator=rnd.generator_from(seed), dtype=torch.float64)
    expect(theta.shape == (3, 2, P), f"{name}.sample: shape {tuple(theta.shape)}")
    expect(theta.dtype == torch.float64, f"{name}.sample: dtype {theta.dtype}")
    expect(torch.equal(theta, same), f"{name}.sample: the same generator gives other draws")
    weights = prior.weights(network, theta)
    expect(weights.shape == (3, 2, network.size), f"{name}.weights: shape {tuple(weights.shape)}")
    leaf = theta.clone().requires_grad_(True)
    density = prior.log_prob(network, leaf)
    expect(density.shape == (3, 2), f"{name}.log_prob: shape {tuple(density.shape)}")
    (expected,) = torch.autograd.grad(density.sum(), leaf)
    value, gradient = prior.log_prob_and_grad(network, theta)
    close(value, density.detach(), 1e-12, f"{name}.log_prob_and_grad: value")
    close(gradient, expected, 1e-10, f"{name}.log_prob_and_grad: gradient against autograd")
    cotangent = points(tuple(weights.shape), torch.float64, seed)
    (expected,) = torch.autograd.grad(prior.weights(network, leaf), leaf, cotangent)
    pulled, back = prior.pullback(network, theta)
    close(pulled, weights, 1e-12, f"{name}.pullback: value")
    close(back(cotangent), expected, 1e-10, f"{name}.pullback: gradient against autograd")


def check_likelihood(likelihood: Likelihood, *, num_outcomes: int = 1, seed: int = 0) -> None:
    """Check a likelihood: channels, densities against its distribution, gradients, moments by simulation.

    Args:
        likelihood: The likelihood.
        num_outcomes: Number of outcomes m to check it with.
        seed: Seed of draws; the moments must agree within five standard errors.

    Raises:
        AssertionError: The contract is broken; the message says where.
        DomainError: An argument is of another type.
    """
    hint = "one such as probnn.likelihoods.Gaussian()"
    instance("check_likelihood", "likelihood", likelihood, Likelihood, hint)
    name, m, R = type(likelihood).__name__, num_outcomes, likelihood.num_parameters
    c, generator = likelihood.channels(m), rnd.generator_from(seed)
    expect(likelihood.outcomes(c) == m, f"{name}: outcomes(channels({m})) is {likelihood.outcomes(c)}")
    f = rnd.normal((3, 2, 5, c), generator=generator, dtype=torch.float64)
    with untouched_stream(f"{name}.sample_prior"):
        psi = likelihood.sample_prior((3, 2), generator=generator, dtype=torch.float64)
    expect(psi.shape == (3, 2, R), f"{name}.sample_prior: shape {tuple(psi.shape)}")
    expect(likelihood.log_prior(psi).shape == (3, 2), f"{name}.log_prior: wrong shape")
    expect(likelihood.prior_median(dtype=torch.float64).shape == (R,), f"{name}.prior_median: wrong shape")
    rows = psi.unsqueeze(-2)
    with untouched_stream(f"{name}.sample"):
        Y = likelihood.sample(f, rows, generator=generator)
    expect(Y.shape == (3, 2, 5, m) and Y.dtype == f.dtype, f"{name}.sample: {tuple(Y.shape)}, {Y.dtype}")
    likelihood.check_outcomes(name, Y)
    density = likelihood.log_prob(Y, f, rows)
    close(density, likelihood.distribution(f, rows).log_prob(Y), 1e-10, f"{name}.log_prob against its distribution")
    leaf, leaf_psi = f.clone().requires_grad_(True), rows.clone().requires_grad_(True)
    total = likelihood.log_prob(Y, leaf, leaf_psi).sum()
    df, dpsi = torch.autograd.grad(total, (leaf, leaf_psi), allow_unused=True)
    value, by_f, by_psi = likelihood.log_prob_and_grad(Y, f, rows)
    close(value, density.sum(-1), 1e-10, f"{name}.log_prob_and_grad: value")
    close(by_f, df, 1e-9, f"{name}.log_prob_and_grad: gradient in f")
    if R:
        close(by_psi, dpsi, 1e-9, f"{name}.log_prob_and_grad: gradient in psi")
    _check_moments(likelihood, f[0, 0], rows[0, 0], generator)
    try:
        likelihood.log_prob(Y, f, rows, torch.ones_like(Y))
    except UnsupportedError as error:
        raises(UnsupportedError, lambda: likelihood.given_noise(torch.ones_like(Y)), f"{name}.given_noise")
        expect("noise_variance" in str(error), f"{name}: {error}")


def _check_moments(likelihood: Likelihood, f: torch.Tensor, psi: torch.Tensor, generator: torch.Generator) -> None:
    name, n = type(likelihood).__name__, 20_000
    mean, variance = likelihood.moments(f, psi)
    draws = likelihood.sample(f.expand(n, *f.shape), psi.expand(n, *psi.shape), generator=generator)
    if mean.shape != draws.shape[1:]:  # predictions are probabilities of classes
        draws = torch.nn.functional.one_hot(draws.squeeze(-1).long(), mean.shape[-1]).to(mean)
    finite = variance.isfinite()
    bound = 5 * (variance / n).sqrt()
    expect(((draws.mean(0) - mean).abs() <= bound)[finite].all(), f"{name}.moments: mean against draws")
    squares = (draws - mean).square()
    bound = 5 * squares.std(0) / n**0.5
    # Heavy tails, perhaps without a fourth moment: the standard error is no guide, and a quarter is close.
    heavy = squares.square().mean(0) > 8 * squares.mean(0).square()
    bound = torch.where(heavy, torch.maximum(bound, 0.25 * variance), bound)
    expect(((squares.mean(0) - variance).abs() <= bound)[finite].all(), f"{name}.moments: variance against draws")
