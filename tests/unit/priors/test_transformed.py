"""Transforms of torch and Pyro as laws of weights: their values, their parameters, and what they leave behind."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pyro.distributions.transforms as T
import pytest
import torch

import probnn
from probnn import likelihoods
from probnn import random as rnd
from probnn.errors import DomainError, SerializationError, ShapeError
from probnn.priors import FlowWeights, Grid, NormalWeights, TransformedWeights
from probnn.testing import check_weight_prior

DOUBLE = torch.double
NET = probnn.MLP(input_dim=2, hidden=(3,), output_dim=2)  # layers of 9 and 8
LINE = probnn.MLP(input_dim=1, hidden=())


def draw(prior, shape, seed, net=NET, dtype=DOUBLE):
    return prior.sample(net.layout, shape, generator=rnd.generator_from(seed), dtype=dtype)


def modules(seed: int) -> tuple:
    """Transforms with parameters, drawn without the global stream's noticing."""
    with rnd.forked(rnd.generator_from(seed)):
        coupling, spline, planar = T.affine_coupling(9, hidden_dims=[4]), T.spline(8), T.planar(9)
    return ([planar, coupling], [spline, torch.distributions.AffineTransform(1.0, 2.0)])


def test_pyro_s_planar_maps_are_ours(seed: int) -> None:
    """Two ways of writing: their w is our direction over sqrt(n)."""
    with rnd.forked(rnd.generator_from(seed)):
        flows = [[T.planar(9), T.planar(9)], [T.planar(8), T.planar(8)]]
    for module in (m for layer in flows for m in layer):
        with torch.no_grad():
            module.u += 2 * rnd.normal(module.u.shape, generator=rnd.generator_from(seed + 1))
            module.bias += 0.5
    rows = {
        "directions": [torch.cat([math.sqrt(len(layer[k].w)) * layer[k].w for layer in flows]) for k in range(2)],
        "shifts": [torch.cat([layer[k].u for layer in flows]) for k in range(2)],
        "offsets": [torch.cat([layer[k].bias for layer in flows]) for k in range(2)],
    }
    tables = {name: torch.stack(values).detach().double() for name, values in rows.items()}
    ours = FlowWeights((2.0, 1.0), 0.3, num_flows=2, **tables)
    theirs = TransformedWeights((2.0, 1.0), 0.3, transforms=flows)
    theta = draw(ours, (3, 2), seed)
    found = theirs.weights(NET.layout, theta)  # of modules in single precision, in double
    torch.testing.assert_close(found, ours.weights(NET.layout, theta), rtol=1e-6, atol=1e-6)
    assert found.dtype == DOUBLE


def test_transforms_without_parameters_by_hand(seed: int) -> None:
    bend = torch.distributions.ComposeTransform([T.AffineTransform(0.5, 2.0), T.TanhTransform()])
    prior = TransformedWeights(1.5, 0.5, scaling="none", transforms=(bend, []))
    z = draw(prior, (4,), seed)
    w = prior.weights(NET.layout, z)
    torch.testing.assert_close(w[:, :6], 1.5 * torch.tanh(0.5 + 2 * z[:, :6]))
    torch.testing.assert_close(w[:, 6:9], 0.5 * torch.tanh(0.5 + 2 * z[:, 6:9]))
    torch.testing.assert_close(w[:, 9:], z[:, 9:] * torch.tensor([1.5] * 6 + [0.5] * 2, dtype=DOUBLE))
    assert "parameters" not in prior.hyperparameters(NET.layout)
    none = TransformedWeights((2.0, 1.0), 0.3, transforms=(None, None))
    normal = NormalWeights((2.0, 1.0), 0.3)
    assert torch.equal(none.weights(NET.layout, draw(none, (3,), seed)), draw(normal, (3,), seed))


def test_the_contract(seed: int) -> None:
    prior = TransformedWeights(1.5, 0.5, transforms=modules(seed))
    check_weight_prior(prior, NET.layout, seed=seed)
    size = sum(p.numel() for layer in prior.transforms for t in layer for p in getattr(t, "parameters", list)())
    value, bound = prior.hyperparameters(NET.layout)["parameters"]
    assert value.shape == (size,) and bound is None
    same = replace(prior, parameters=value)
    theta = draw(prior, (3,), seed)
    torch.testing.assert_close(same.weights(NET.layout, theta), prior.weights(NET.layout, theta))


def test_parameters_take_the_place_of_the_modules_own(seed: int) -> None:
    prior = TransformedWeights(transforms=modules(seed))
    before = [p.clone() for p in prior._own()]
    value, _ = prior.hyperparameters(NET.layout)["parameters"]
    theta = draw(prior, (2,), seed)
    direction = rnd.normal(value.shape, generator=rnd.generator_from(seed), dtype=DOUBLE)

    def weights(parameters):
        return replace(prior, parameters=parameters).weights(NET.layout, theta)

    # The same theta throughout: what a transform remembers of its last call must not come back.
    leaf = value.clone().requires_grad_()
    cotangent = torch.ones_like(theta)
    (slope,) = torch.autograd.grad(weights(leaf), leaf, cotangent)
    step = 1e-6
    change = (weights(value + step * direction) - weights(value - step * direction)).sum() / (2 * step)
    torch.testing.assert_close(slope @ direction, change, rtol=1e-5, atol=1e-6)
    assert change.abs() > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(before, prior._own(), strict=True))
    assert not prior.weights(NET.layout, theta).requires_grad  # so that draws of functions are plain numbers


def test_nothing_is_left_in_the_transforms(seed: int) -> None:
    """A graph in them would keep memory, and cannot be copied: `to` copies modules."""
    process = probnn.BayesianNetwork(NET, TransformedWeights(transforms=modules(seed)), dtype=DOUBLE)
    theta = process.sample_parameters((2,), generator=rnd.generator_from(seed)).requires_grad_()
    process.weight_prior.weights(NET.layout, theta).sum().backward()
    copy.deepcopy(process.weight_prior.transforms)
    single = process.to(torch.float32)
    expected = process.weight_prior.weights(NET.layout, theta)
    found = single.weight_prior.weights(NET.layout, theta.float())
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    X = torch.zeros(3, 2)
    assert single.sample(X, (2,), generator=rnd.generator_from(0)).dtype == torch.float32


def test_hmc_finds_a_posterior_in_closed_form(seed: int) -> None:
    """An affine transform is a normal prior with a mean: HMC finds the posterior known in closed form."""
    shift = torch.distributions.AffineTransform(1.0, 2.0)
    prior = probnn.BayesianNetwork(LINE, TransformedWeights(transforms=[shift]), dtype=DOUBLE)
    X = torch.tensor([[-1.0], [0.5], [1.0]], dtype=DOUBLE)
    Y = 2 * X - 0.5
    features = torch.cat([X, torch.ones_like(X)], -1)
    precision = torch.eye(2, dtype=DOUBLE) / 4 + features.mT @ features / 0.09
    rhs = torch.full((2,), 0.25, dtype=DOUBLE) + features.mT @ Y.squeeze(-1) / 0.09
    mean, covariance = torch.linalg.solve(precision, rhs), torch.linalg.inv(precision)
    post = probnn.HMC(num_chains=32, num_warmup=150, num_samples=150).fit(
        prior, likelihoods.Gaussian(noise=0.3), X, Y, seed=seed
    )
    w = prior.weight_prior.weights(LINE.layout, post.theta)
    error = w.flatten(0, 1).std(0) / probnn.diagnostics.ess(w).sqrt()
    assert ((w.mean((0, 1)) - mean).abs() < 5 * error).all()
    centred = (w - mean).square()
    error = centred.flatten(0, 1).std(0) / probnn.diagnostics.ess(centred).sqrt()
    assert ((centred.mean((0, 1)) - covariance.diagonal()).abs() < 5 * error).all()


def test_matching_tunes_the_modules_parameters(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of the functions, which no scale gives."""
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 1000)
    shift = torch.distributions.AffineTransform(torch.tensor([1.5, -1.0], dtype=DOUBLE), 0.5)
    target = probnn.BayesianNetwork(LINE, TransformedWeights(transforms=[shift]), dtype=DOUBLE)
    with rnd.forked(rnd.generator_from(seed)):
        start = TransformedWeights(transforms=[[T.planar(2), T.planar(2)]])
    before = [p.clone() for p in start._own()]
    prior = probnn.BayesianNetwork(LINE, start, dtype=DOUBLE)
    match = probnn.match_prior(prior, target, Grid(-1, 1, 6), "energy", num_steps=150, num_draws=128, seed=seed)
    assert match.distances["energy"] < 0.1 * match.untuned["energy"]
    found = match.prior.weight_prior
    assert found.parameters.shape == (10,) and found.transforms == start.transforms and start.parameters is None
    assert all(torch.equal(a, b) for a, b in zip(before, start._own(), strict=True))
    assert "parameters" in repr(match)


def test_equality_is_of_the_same_objects(seed: int, tmp_path) -> None:
    flows = modules(seed)
    prior = TransformedWeights(transforms=flows)
    assert prior == TransformedWeights(transforms=flows) and hash(prior) == hash(TransformedWeights(transforms=flows))
    assert prior != TransformedWeights(transforms=modules(seed)) and prior != TransformedWeights(2.0, transforms=flows)
    assert prior != NormalWeights() and replace(prior) == prior
    value, _ = prior.hyperparameters(NET.layout)["parameters"]
    assert replace(prior, parameters=value) != prior
    assert replace(prior, parameters=tuple(value.tolist())) == replace(prior, parameters=value)
    with pytest.raises(SerializationError, match="TransformedWeights cannot be saved.*FlowWeights"):
        probnn.BayesianNetwork(NET, prior).save(tmp_path / "prior")
    assert not list(tmp_path.iterdir())


AFFINE = torch.distributions.AffineTransform(0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, DomainError, "one entry a layer"),
        ({"transforms": AFFINE}, DomainError, "one entry a layer, got AffineTransform"),
        ({"transforms": [AFFINE, torch.tanh]}, DomainError, r"transforms\[1\] must be transforms of vectors"),
        ({"transforms": [AFFINE, torch.distributions.LowerCholeskyTransform()]}, DomainError, r"transforms\[1\]"),
        ({"transforms": [AFFINE]}, DomainError, "1 entries but the network has 2 layers"),
        ({"transforms": [None, torch.distributions.StickBreakingTransform()]}, ShapeError, "keep the 8 weights"),
        ({"transforms": [None, T.AffineTransform(torch.zeros(8).double(), 1.0)]}, DomainError, "gives torch.float64"),
        ({"transforms": [T.planar(9), None], "parameters": torch.zeros(3)}, ShapeError, r"shape \(19,\), got \(3,\)"),
        ({"transforms": [AFFINE, None], "weight_scale": -1.0}, DomainError, "weight_scale"),
    ],
)
def test_bad_input(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        probnn.BayesianNetwork(NET, TransformedWeights(**options))
