"""Planar flows: the maps, their determinants and gradients, moments, inference and matching with them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy
import pytest
import torch

import probnn
from probnn import likelihoods
from probnn import random as rnd
from probnn.diagnostics import ess
from probnn.errors import DomainError, NonFiniteError
from probnn.inference.gaussian import gaussian_law
from probnn.inference.target import Target
from probnn.inference.variational import Bound
from probnn.priors import FlowWeights, Grid, NormalWeights, WeightPrior
from tests.cases import data, module

DOUBLE = torch.double
NET = probnn.MLP(input_dim=2, hidden=(3,), output_dim=2)  # layers of 9 and 8
LINE = probnn.MLP(input_dim=1, hidden=())  # f(x) = w x + b


def flow(network: probnn.MLP, seed: int, num_flows: int = 3, strength: float = 1.0, **options) -> FlowWeights:
    """Planar maps of random tables."""
    generator = rnd.generator_from(seed)
    sizes = {"directions": network.num_parameters, "shifts": network.num_parameters, "offsets": len(network.hidden) + 1}
    tables = {k: rnd.normal((num_flows, v), generator=generator, dtype=DOUBLE) for k, v in sizes.items()}
    tables["shifts"] *= strength
    return FlowWeights(**{"weight_scale": 1.5, "bias_scale": 0.5, **options}, num_flows=num_flows, **tables)


def draw(prior, shape, seed, network=NET, dtype=DOUBLE):
    return prior.sample(network.layout, shape, generator=rnd.generator_from(seed), dtype=dtype)


def naive(prior: FlowWeights, z: torch.Tensor) -> list[float]:
    """The weights of one z for NET, number by number."""
    weights, at = [], 0
    for layer, (inputs, units) in enumerate(((2, 3), (3, 2))):
        n = (inputs + 1) * units
        x = [float(v) for v in z[at : at + n]]
        for k in range(prior.num_flows):
            omega = [float(v) / math.sqrt(n) for v in prior.directions[k, at : at + n]]
            u = [float(v) for v in prior.shifts[k, at : at + n]]
            product, square = sum(a * b for a, b in zip(omega, u, strict=True)), sum(a * a for a in omega)
            scale = (math.log(1 + math.exp(product)) - 1 - product) / square
            t = math.tanh(sum(a * b for a, b in zip(omega, x, strict=True)) + float(prior.offsets[k, layer]))
            x = [c + (b + scale * a) * t for a, b, c in zip(omega, u, x, strict=True)]
        weights += [1.5 / math.sqrt(inputs) * v for v in x[: inputs * units]] + [0.5 * v for v in x[inputs * units :]]
        at += n
    return weights


def test_the_maps_are_those_of_the_definition(seed: int) -> None:
    prior = flow(NET, seed)
    theta = draw(prior, (2, 2), seed)
    expected = [[naive(prior, z) for z in row] for row in theta]
    torch.testing.assert_close(
        prior.weights(NET.layout, theta), torch.tensor(expected, dtype=DOUBLE), rtol=1e-12, atol=1e-12
    )


def test_no_maps_are_normal_weights_and_so_are_the_first_ones(seed: int) -> None:
    normal = NormalWeights((2.0, 1.0), 0.3)
    for dtype in (torch.float32, DOUBLE):
        expected = draw(normal, (5,), seed, dtype=dtype)
        prior = FlowWeights((2.0, 1.0), 0.3, num_flows=0)
        assert torch.equal(prior.weights(NET.layout, draw(prior, (5,), seed, dtype=dtype)), expected)
    first = FlowWeights((2.0, 1.0), 0.3, num_flows=3, seed=seed)
    theta = draw(first, (5,), seed)
    torch.testing.assert_close(first.weights(NET.layout, theta), expected, rtol=1e-12, atol=1e-12)
    # The density of the weights, by the determinant, is that of normal ones.
    density = first.log_prob(NET.layout, theta) - first.log_abs_det(NET.layout, theta)
    torch.testing.assert_close(density, normal.log_prob(NET.layout, expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strength", [1.0, 30.0])
def test_the_determinant_is_that_of_autograd_and_positive(strength: float, seed: int) -> None:
    """Shifts of 30 go against their direction by far more than one, which u-hat has to mend."""
    for network in (LINE, NET):
        prior = flow(network, seed, strength=strength)
        if strength > 1:
            prior = replace(prior, shifts=prior.shifts - 2 * strength * prior.directions)
        theta = draw(prior, (4,), seed, network)
        jacobian = torch.autograd.functional.jacobian
        jacobians = [jacobian(partial(prior.weights, network.layout), z) for z in theta]
        sign, logarithm = torch.linalg.slogdet(torch.stack(jacobians))
        # What rounding may do to the determinant of a matrix that is nearly singular.
        rounding = 1000 * network.num_parameters * torch.finfo(DOUBLE).eps * torch.linalg.cond(torch.stack(jacobians))
        assert rounding.min() < 1e-6 and (sign[rounding < 0.1] > 0).all()
        assert ((prior.log_abs_det(network.layout, theta) - logarithm).abs() < rounding).all()


def test_two_weights_have_a_density_that_integrates_to_one(seed: int) -> None:
    """Of w, on a grid of w: its z is found by Newton's method, so this holds only if the map is one to one."""
    prior = flow(LINE, seed, num_flows=2, weight_scale=1.0, bias_scale=1.0)
    # Maps that stretch: where they squeeze, the density is too sharp for a grid.
    prior = replace(prior, shifts=prior.shifts * (prior.shifts * prior.directions).sum(-1, keepdim=True).sign())
    side = torch.linspace(-14, 14, 141, dtype=DOUBLE)
    w = torch.cartesian_prod(side, side)
    z, eye = w.clone(), torch.eye(2, dtype=DOUBLE)

    def residual(z: torch.Tensor) -> torch.Tensor:
        return prior.weights(LINE.layout, z) - w

    for _ in range(40):  # damped: a step is halved where it does not help
        moved, back = prior.pullback(LINE.layout, z)
        J = torch.stack([back(eye[i].expand_as(z)) for i in range(2)], -2)
        step, before = torch.linalg.solve(J, w - moved), residual(z).norm(dim=-1)
        size = torch.ones_like(before)
        for _ in range(20):
            size = torch.where(residual(z + size[:, None] * step).norm(dim=-1) > before, size / 2, size)
        z = z + size[:, None] * step
    assert residual(z).norm(dim=-1).max() < 1e-9
    density = (prior.log_prob(LINE.layout, z) - prior.log_abs_det(LINE.layout, z)).exp()
    assert abs(density.sum().item() * 0.2**2 - 1) < 1e-6


def test_pullback_is_that_of_differences_and_of_autograd(seed: int) -> None:
    prior = flow(NET, seed)
    theta, step = draw(prior, (3,), seed), 1e-6
    weights, back = prior.pullback(NET.layout, theta)
    cotangent = rnd.normal(weights.shape, generator=rnd.generator_from(seed + 1), dtype=DOUBLE)
    found = back(cotangent)
    for i in range(theta.shape[-1]):
        move = step * torch.eye(theta.shape[-1], dtype=DOUBLE)[i]
        change = (prior.weights(NET.layout, theta + move) - prior.weights(NET.layout, theta - move)) / (2 * step)
        torch.testing.assert_close(found[:, i], (cotangent * change).sum(-1), rtol=1e-7, atol=1e-7)
    other, other_back = WeightPrior.pullback(prior, NET.layout, theta)
    torch.testing.assert_close(weights, other, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found, other_back(cotangent), rtol=1e-12, atol=1e-12)


def test_everything_is_differentiable_in_the_tables(seed: int) -> None:
    prior = flow(LINE, seed, num_flows=2)
    theta = draw(prior, (3,), seed, LINE)

    def weights(directions, shifts, offsets, scale):
        tables = {"directions": directions, "shifts": shifts, "offsets": offsets}
        return replace(prior, weight_scale=scale, **tables).weights(LINE.layout, theta)

    scale = torch.tensor(0.7, dtype=DOUBLE)
    leaves = [x.clone().requires_grad_() for x in (prior.directions, prior.shifts, prior.offsets, scale)]
    assert torch.autograd.gradcheck(weights, leaves)


def test_moments_of_one_map(seed: int) -> None:
    """With t = tanh(omega . z + b): E w = u E t and, by Stein's lemma, E z t = omega E (1 - t^2)."""
    prior, count = flow(LINE, seed, num_flows=1, weight_scale=1.0, bias_scale=1.0), 100_000
    w = prior.weights(LINE.layout, draw(prior, (count,), seed + 1, LINE))
    omega, u, b = prior.directions[0] / math.sqrt(2), prior.shifts[0], prior.offsets[0, 0]
    product = omega @ u
    u = u + (math.log1p(product.exp()) - 1 - product) * omega / omega.square().sum()
    nodes, masses = map(torch.from_numpy, numpy.polynomial.hermite_e.hermegauss(100))
    t, masses = torch.tanh(omega.norm() * nodes + b), masses / masses.sum()
    first, second = masses @ t, masses @ t.square()
    cross = torch.outer(omega, u) * (1 - second)
    moments = torch.eye(2, dtype=DOUBLE) + cross + cross.mT + torch.outer(u, u) * second
    for values, expected in ((w, u * first), (w.unsqueeze(-1) * w.unsqueeze(-2), moments)):
        error = values.std(0) / math.sqrt(count)
        assert ((values.mean(0) - expected).abs() < 5 * error).all()
    assert (w.mean(0) / (w.std(0) / math.sqrt(count))).abs().max() > 10  # it is not centred, whatever the seed


def test_hmc_finds_the_posterior_of_quadrature(seed: int) -> None:
    """Two weights: the posterior mean and variance of f by a grid over z, which is exact here."""
    weight_prior = flow(LINE, seed, num_flows=2, strength=2.0)
    prior = probnn.BayesianNetwork(LINE, weight_prior, dtype=DOUBLE)
    X = torch.tensor([[-1.0], [0.2], [0.9]], dtype=DOUBLE)
    Y, at = X.sin() + 0.5, torch.tensor([[-1.5], [0.0], [1.5]], dtype=DOUBLE)
    likelihood = likelihoods.Gaussian(noise=0.7)
    side = torch.linspace(-8, 8, 401, dtype=DOUBLE)
    z = torch.cartesian_prod(side, side)
    w = weight_prior.weights(LINE.layout, z)
    residual = Y.T - (w[:, :1] * X.T + w[:, 1:])
    mass = torch.softmax(-0.5 * z.square().sum(-1) - 0.5 * (residual / 0.7).square().sum(-1), 0)
    f = w[:, :1] * at.T + w[:, 1:]
    mean = mass @ f
    variance = mass @ (f - mean).square()

    method = probnn.HMC(num_chains=32, num_warmup=200, num_samples=300)
    post = method.fit(prior, likelihood, X, Y, seed=seed)
    found = post.apply(post.theta, at).squeeze(-1)  # chains x draws x points
    for values, expected in ((found, mean), ((found - mean).square(), variance)):
        error = values.flatten(0, 1).std(0) / ess(values).sqrt()
        assert ((values.mean((0, 1)) - expected).abs() < 5 * error).all()
        assert (error < 0.1 * variance.clamp_max(1.0).sqrt()).all()  # sharp enough to see a wrong posterior


def test_the_bound_of_variational_inference_is_unbiased(seed: int) -> None:
    """The prior's term in closed form, because z is normal; against draws of the definition."""
    X, Y = data(5, seed=seed)
    generator = rnd.generator_from(seed)
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(3,)), FlowWeights(), dtype=DOUBLE)
    prior = replace(prior, weight_prior=flow(prior.network, seed))
    target = Target(prior, likelihoods.Gaussian(noise=0.3), X, Y)
    loc = 0.5 * target.start((), generator)
    scale = 0.1 + 0.2 * rnd.uniform(loc.shape, generator=generator, like=loc)
    bound = Bound(target)
    assert not bound.local and bound.law is not None
    with torch.no_grad():
        told = bound(loc, scale, 20_000, generator)
        q = torch.distributions.Normal(loc, scale)
        z = loc + scale * rnd.normal((20_000, *loc.shape), generator=generator, like=loc)
        naive = target.log_prob(z) - q.log_prob(z).sum(-1)
    error = math.sqrt((told.var() + naive.var()).item() / 20_000)
    assert abs((told.mean() - naive.mean()).item()) < 5 * error


def test_coordinates_are_gaussian_for_who_asks(seed: int) -> None:
    prior = probnn.BayesianNetwork(NET, flow(NET, seed), dtype=DOUBLE)
    mean, spread = gaussian_law(prior)
    assert torch.equal(mean, torch.zeros(17, dtype=DOUBLE)) and torch.equal(spread.dense(), torch.eye(17, dtype=DOUBLE))
    assert all(block.exchangeable == () for block in prior.layout.blocks)
    assert [b.name for b in prior.layout.blocks] == [b.name for b in NET.layout.blocks]
    # Density and covariance agree: HMC, ensembles and Laplace see the same prior.
    theta = prior.sample_parameters((3,), generator=rnd.generator_from(seed))
    normal = torch.distributions.Normal(torch.zeros((), dtype=DOUBLE), 1.0)
    torch.testing.assert_close(prior.log_prob(theta), normal.log_prob(theta).sum(-1))


def test_matching_finds_what_normal_weights_cannot(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's functions have a mean, and centred weights have none."""
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 1000)
    tables = {"directions": [[1.0, 0.5]], "shifts": [[2.0, 3.0]], "offsets": [[1.0]]}
    true = FlowWeights(0.7, 0.5, num_flows=1, **tables)
    target = probnn.BayesianNetwork(LINE, true, dtype=DOUBLE)
    grid, energy, untuned = Grid(-1, 1, 6), {}, {}
    for start in (NormalWeights(), FlowWeights(num_flows=2, seed=seed)):
        prior = probnn.BayesianNetwork(LINE, start, dtype=DOUBLE)
        match = probnn.match_prior(prior, target, grid, "energy", num_steps=150, num_draws=200, seed=seed)
        energy[type(start)], untuned[type(start)] = match.distances["energy"], match.untuned["energy"]
    found = match.prior.weight_prior
    assert found.directions.shape == found.shifts.shape == (2, 2) and found.offsets.shape == (2, 1)
    assert start.directions is None  # untouched
    assert abs(untuned[FlowWeights] - untuned[NormalWeights]) < 1e-9  # it starts where normal weights are
    assert energy[FlowWeights] < 0.1 * energy[NormalWeights] and energy[FlowWeights] < 0.05 * untuned[FlowWeights]
    assert "shifts" in repr(match)


def test_auto_does_without_a_closed_form(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 500)
    target = probnn.BayesianNetwork(NET, NormalWeights(2.0, 1.0), dtype=DOUBLE)
    prior = probnn.BayesianNetwork(NET, FlowWeights(0.3, 2.0, num_flows=2), dtype=DOUBLE)
    match = probnn.match_prior(prior, target, Grid((-1, -1), (1, 1), 3), num_steps=60, num_draws=64, seed=seed)
    assert list(match.history) == ["energy"] and match.distances["energy"] < 0.5 * match.untuned["energy"]
    with pytest.raises(probnn.errors.UnsupportedError, match="FlowWeights"):
        probnn.match_prior(prior, target, Grid((-1, -1), (1, 1), 3), "nngp")


def test_saving_equality_and_moving(seed: int, tmp_path) -> None:
    prior = flow(NET, seed)
    process = probnn.BayesianNetwork(NET, prior, dtype=DOUBLE)
    process.save(tmp_path / "prior")
    again = probnn.load(tmp_path / "prior")
    assert again.weight_prior == prior and hash(again.weight_prior) == hash(prior)
    assert replace(prior, offsets=prior.offsets + 1) != prior
    single = process.to(torch.float32)
    assert single.weight_prior.shifts.dtype == torch.float32 and prior.shifts.dtype == DOUBLE
    theta = process.sample_parameters((4,), generator=rnd.generator_from(seed))
    expected = process.weight_prior.weights(NET.layout, theta)
    found = single.weight_prior.weights(NET.layout, theta.float())
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    lists = {name: getattr(prior, name).tolist() for name in ("directions", "shifts", "offsets")}
    assert replace(prior, **lists) == prior
    assert FlowWeights(seed=1) != FlowWeights(seed=2)
    tables = [FlowWeights(seed=s).hyperparameters(NET.layout)["directions"][0] for s in (1, 1, 2)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])


def test_layers_of_a_module_are_told_by_name() -> None:
    layout = probnn.ModuleNetwork(module(), input_dim=2).layout  # 12 and 5
    offsets = FlowWeights(num_flows=2).hyperparameters(layout)["offsets"][0]
    assert offsets.shape == (2, 2)
    prior = FlowWeights(num_flows=1, directions=torch.ones(1, 17), shifts=torch.ones(1, 17), offsets=torch.zeros(1, 2))
    z = torch.zeros(17)
    z[0] = 1.0  # moves its own layer, not the other
    moved = prior.weights(layout, z)
    assert (moved[:12] != 0).all() and (moved[12:] == 0).all()


TABLES = {"directions": torch.ones(1, 17), "shifts": torch.ones(1, 17), "offsets": torch.zeros(1, 2)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_flows": -1}, DomainError, "num_flows"),
        ({"seed": -1}, DomainError, "seed"),
        ({"weight_scale": 0.0}, DomainError, "weight_scale"),
        ({"shifts": torch.ones(4, 17)}, DomainError, "together, or none; missing: .'directions', 'offsets'"),
        ({**TABLES, "num_flows": 2}, DomainError, r"directions must have 2 rows.*got \(1, 17\)"),
        ({**TABLES, "num_flows": 1, "shifts": "no"}, DomainError, "shifts must be a tensor, got str"),
        ({**TABLES, "num_flows": 1, "offsets": torch.full((1, 2), math.nan)}, NonFiniteError, "offsets"),
        ({**TABLES, "num_flows": 1, "shifts": torch.ones(1, 16)}, DomainError, r"shifts has \(1, 16\).*17 weights"),
        ({**TABLES, "num_flows": 1, "offsets": torch.ones(1, 3)}, DomainError, r"offsets has \(1, 3\).*needs \(1, 2\)"),
        ({**TABLES, "num_flows": 1, "directions": torch.cat([torch.ones(1, 9), torch.zeros(1, 8)], 1)}, DomainError,
         "direction of layer 1 is zero"),
    ],
)  # fmt: skip
def test_bad_input(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        probnn.BayesianNetwork(NET, FlowWeights(**options))


@pytest.mark.parametrize("dtype", [torch.double, torch.float32])
def test_the_determinant_of_an_almost_flat_map(dtype: torch.dtype) -> None:
    """omega . u = -a: the slope at zero is softplus(-a), and next to it t^2 takes over."""
    net = probnn.MLP(input_dim=2, hidden=())
    d = torch.ones(1, 3, dtype=torch.double)
    for a in (60.0, 300.0):
        flow = FlowWeights(scaling="none", num_flows=1, directions=d, shifts=-d * a / 3**0.5, offsets=torch.zeros(1, 1))
        for z in (0.0, 1e-9, 1e-5, 1.0):
            theta = torch.full((3,), z, dtype=dtype, requires_grad=True)
            found = flow.log_abs_det(net.layout, theta)
            t = math.tanh(3**0.5 * z)
            gain = math.exp(-a)  # softplus so far below zero
            expected = -a if z == 0 else math.log(t**2 + (1 - t**2) * gain)
            assert found.item() == pytest.approx(expected, rel=1e-5)
            assert torch.autograd.grad(found, theta)[0].isfinite().all()
