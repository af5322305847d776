"""Weights with random scales: densities with their Jacobians, gradients, draws and bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch

import probnn
from probnn.errors import DomainError
from probnn.inference.target import Target
from probnn.likelihoods import Gaussian
from probnn.networks import Block, Layout
from probnn.priors import HierarchicalWeights, NormalWeights, StudentTWeights, WeightPrior

NET = probnn.MLP(input_dim=3, hidden=(5, 4), output_dim=2)
SCALES = {"weight_scale": (4.0, 2.0, 1.5), "bias_scale": (2.0, 1.0, 0.1)}
PRIORS = {
    "log_normal": HierarchicalWeights(**SCALES),
    "log_normal per block": HierarchicalWeights(spread=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
    "half_cauchy": HierarchicalWeights(**SCALES, scale_prior="half_cauchy"),
    "inverse_gamma": HierarchicalWeights(**SCALES, scale_prior="inverse_gamma", shape=1.5, rate=torch.tensor(0.8)),
    "inverse_gamma unscaled": HierarchicalWeights(scale_prior="inverse_gamma", scaling="none"),
}
ONE = Layout((Block("w", (1,)),))


@pytest.fixture(params=PRIORS.values(), ids=PRIORS.keys())
def prior(request: pytest.FixtureRequest) -> HierarchicalWeights:
    return request.param


def draw(prior, shape, seed, layout=NET.layout, **options):
    return prior.sample(layout, shape, generator=torch.Generator().manual_seed(seed), **options)


def log_scale_density(prior, u):
    """Density of the log scale from Pyro's law of the scale (or of its square) and the Jacobian by hand."""
    if prior.scale_prior == "half_cauchy":
        return dist.HalfCauchy(u.new_ones(())).log_prob(u.exp()) + u
    if prior.scale_prior == "log_normal":
        spread = u.new_tensor(0.5 if prior.spread is None else prior.spread)
        return dist.LogNormal(u.new_zeros(()), spread).log_prob(u.exp()) + u
    a, b = (u.new_tensor(float(default if v is None else v)) for v, default in ((prior.shape, 3.0), (prior.rate, 2.0)))
    return dist.InverseGamma(a, b).log_prob((2 * u).exp()) + math.log(2) + 2 * u


def test_layout_keeps_the_blocks_and_adds_the_log_scales(prior):
    layout = prior.layout(NET.layout)
    assert layout.blocks[:-1] == NET.layout.blocks
    assert layout.blocks[-1] == Block("log_scale", (6,), role="scale")
    assert probnn.BayesianNetwork(NET, prior).num_parameters == NET.num_parameters + 6


def test_log_prob_has_every_jacobian(prior, seed):
    theta = draw(prior, (3, 2), seed, dtype=torch.double)
    z, u = theta[..., :-6], theta[..., -6:]
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + log_scale_density(prior, u).sum(-1)
    torch.testing.assert_close(prior.log_prob(NET.layout, theta), expected, rtol=1e-10, atol=0)


def test_closed_forms_are_those_of_autograd(prior, seed):
    theta = draw(prior, (3, 2), seed, dtype=torch.double)
    pairs = [prior.log_prob_and_grad(NET.layout, theta), WeightPrior.log_prob_and_grad(prior, NET.layout, theta)]
    for closed, autograd in zip(*pairs, strict=True):
        assert not closed.requires_grad
        torch.testing.assert_close(closed, autograd, rtol=1e-12, atol=1e-12)
    weights, back = prior.pullback(NET.layout, theta)
    weights_by_autograd, back_by_autograd = WeightPrior.pullback(prior, NET.layout, theta)
    cotangent = torch.randn(weights.shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(weights, weights_by_autograd, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back(cotangent), back_by_autograd(cotangent), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("law", ["log_normal", "half_cauchy", "inverse_gamma"])
def test_the_log_density_is_finite_far_out(law):
    prior = HierarchicalWeights(scale_prior=law)
    theta = torch.tensor([[0.0, 300.0], [0.0, -300.0]], dtype=torch.double)
    value, grad = prior.log_prob_and_grad(ONE, theta)
    assert value[0].isfinite() and grad[0].isfinite().all() and not value.isnan().any()


def test_weights_are_scale_times_z(prior, seed):
    theta = draw(prior, (3,), seed, dtype=torch.double)
    z, u = NET.layout.unflatten(theta[..., :-6]), theta[..., -6:]
    weights = NET.layout.unflatten(prior.weights(NET.layout, theta))
    given = {"weight": prior.weight_scale, "bias": prior.bias_scale}
    fan_in = (3, 5, 4)
    for k, block in enumerate(NET.layout.blocks):
        scale = given[block.role][k // 2] if isinstance(given[block.role], tuple) else given[block.role]
        if block.role == "weight" and prior.scaling == "fan_in":
            scale /= math.sqrt(fan_in[k // 2])
        for s in range(3):
            sigma = scale * math.exp(u[s, k])
            assert prior.sigma(NET.layout, theta)[s, k].item() == pytest.approx(sigma, rel=1e-12)
            torch.testing.assert_close(weights[block.name][s], sigma * z[block.name][s], rtol=1e-12, atol=0)


@pytest.mark.parametrize("law", ["log_normal", "half_cauchy", "inverse_gamma"])
def test_the_density_of_theta_integrates_to_one(law):
    prior = HierarchicalWeights(scale_prior=law)
    z = torch.linspace(-9, 9, 721, dtype=torch.double)
    u = torch.linspace(-40, 40, 8001, dtype=torch.double)
    theta = torch.stack(torch.meshgrid(z, u, indexing="ij"), -1)
    density = prior.log_prob(ONE, theta).exp()
    assert torch.trapezoid(torch.trapezoid(density, u), z).item() == pytest.approx(1.0, abs=1e-9)


def test_under_inverse_gamma_a_weight_is_student_t():
    a, b, s = 1.5, 0.8, 2.0
    prior = HierarchicalWeights(weight_scale=s, scale_prior="inverse_gamma", shape=a, rate=b)
    w = torch.tensor([-3.0, 0.1, 2.0, 30.0], dtype=torch.double)[:, None]
    u = torch.linspace(-6, 30, 20001, dtype=torch.double)
    sigma = s * u.exp()
    # density of w = sigma z at each u: that of (z, u) over the Jacobian sigma
    joint = prior.log_prob(ONE, torch.stack([w / sigma, u.expand(4, -1)], -1)) - sigma.log()
    student = StudentTWeights(weight_scale=s * math.sqrt(b / a), df=2 * a)
    torch.testing.assert_close(torch.trapezoid(joint.exp(), u), student.log_prob(ONE, w).exp(), rtol=1e-8, atol=0)


def test_median_and_root_mean_square_are_the_given_scale():
    u = torch.linspace(-40, 40, 80001, dtype=torch.double)
    at_zero = torch.zeros(1, 1, dtype=torch.double)
    for law in ("log_normal", "half_cauchy"):
        density = HierarchicalWeights(scale_prior=law)._law(u[:, None])[0].exp().squeeze(-1)
        assert torch.trapezoid(density[u <= 0], u[u <= 0]).item() == pytest.approx(0.5, abs=1e-9)
    density = HierarchicalWeights(scale_prior="inverse_gamma")._law(u[:, None])[0].exp().squeeze(-1)
    assert torch.trapezoid(density * (2 * u).exp(), u).item() == pytest.approx(1.0, abs=1e-9)
    assert HierarchicalWeights(weight_scale=3.0).sigma(ONE, torch.cat([at_zero, at_zero], -1)).item() == 3.0


@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 3)])
def test_draws_have_the_shape_and_dtype_asked_for(prior, shape, seed):
    for dtype in (torch.float32, torch.float64):
        theta = draw(prior, shape, seed, dtype=dtype)
        assert theta.shape == (*shape, NET.num_parameters + 6) and theta.dtype == dtype
        assert prior.log_prob(NET.layout, theta).shape == shape


def test_a_seed_repeats_and_leaves_the_global_stream(prior, seed):
    state = torch.get_rng_state()
    first = draw(prior, (4,), seed)
    assert torch.equal(first, draw(prior, (4,), seed))
    assert not torch.equal(first, draw(prior, (4,), seed + 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_half_cauchy_draws_are_finite_at_extreme_uniforms(monkeypatch):
    extreme = torch.tensor([0.0, 1 - 2**-24])
    monkeypatch.setattr("probnn.random.uniform", lambda shape, **_: torch.stack([extreme, extreme]))
    prior = HierarchicalWeights(scale_prior="half_cauchy")
    assert prior._draw((2,), torch.empty(0), None).isfinite().all()


def test_tiny_shape_still_draws_finite_scales(seed):
    """Gamma(0.01) draws underflow in single precision; their logarithms must not."""
    prior = HierarchicalWeights(scale_prior="inverse_gamma", shape=0.01, rate=1.0)
    u = draw(prior, (2000,), seed, ONE, dtype=torch.float32)[:, 1]
    assert u.isfinite().all() and u.unique().numel() > 1900


def test_everything_is_differentiable_in_the_hyperparameters(seed):
    theta = draw(PRIORS["log_normal"], (2,), seed, dtype=torch.double)

    def positive(*shape):
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(shape, dtype=torch.double, generator=generator) + 0.5).requires_grad_()

    def of_scales(weight_scale, bias_scale):
        return HierarchicalWeights(weight_scale, bias_scale).weights(NET.layout, theta)

    def of_spread(spread):
        prior = HierarchicalWeights(spread=spread)
        return prior.log_prob(NET.layout, theta), draw(prior, (2,), seed, dtype=torch.double)

    def of_gamma(shape, rate):
        return HierarchicalWeights(scale_prior="inverse_gamma", shape=shape, rate=rate).log_prob(NET.layout, theta)

    assert torch.autograd.gradcheck(of_scales, (positive(3), positive()))
    assert torch.autograd.gradcheck(of_spread, (positive(6),))
    assert torch.autograd.gradcheck(of_gamma, (positive(6), positive()))


def test_target_takes_the_hand_written_pullback(seed):
    prior = probnn.BayesianNetwork(NET, PRIORS["half_cauchy"], dtype=torch.double)
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(7, 3, dtype=torch.double, generator=generator)
    Y = torch.randn(7, 2, dtype=torch.double, generator=generator)
    target = Target(prior, Gaussian(), X, Y)
    z = target.start((2, 3), generator)
    value, grad = target.value_and_grad(z)
    leaf = z.clone().requires_grad_(True)
    expected = target.log_prob(leaf)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-8, atol=1e-10)


def test_a_process_with_it_survives_saving_and_moving(prior, tmp_path):
    process = probnn.BayesianNetwork(NET, prior, dtype=torch.double)
    process.save(tmp_path / "prior.safetensors")
    loaded = probnn.load(tmp_path / "prior.safetensors")
    X = torch.zeros(2, 3, dtype=torch.double)
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(process.sample(X, (3,), generator=seeds[0]), loaded.sample(X, (3,), generator=seeds[1]))
    assert process.to(dtype=torch.float32).sample(X.float()).dtype == torch.float32


def test_replace_changes_one_thing():
    prior = replace(PRIORS["half_cauchy"], bias_scale=torch.tensor(2.0))
    assert prior.scale_prior == "half_cauchy" and prior.weight_scale == SCALES["weight_scale"]
    assert isinstance(PRIORS["log_normal"], WeightPrior) and not isinstance(PRIORS["log_normal"], NormalWeights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_scale": 0.0}, "weight_scale must be positive"),
        ({"scale_prior": "cauchy"}, "scale_prior must be one of 'log_normal', 'half_cauchy', 'inverse_gamma'"),
        ({"spread": 0.0}, "spread must be positive"),
        ({"spread": (0.1, -0.1)}, "every entry of spread must be positive"),
        ({"shape": 3.0}, "shape belongs to scale_prior='inverse_gamma', got it with 'log_normal'"),
        ({"scale_prior": "half_cauchy", "spread": 1.0}, "spread belongs to scale_prior='log_normal'"),
        ({"scale_prior": "inverse_gamma", "rate": -1.0}, "rate must be positive"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(DomainError, match=message):
        HierarchicalWeights(**options)


def test_hyperparameters_must_match_the_blocks():
    with pytest.raises(DomainError, match=r"spread has \(2,\) values but the network has 6 blocks"):
        HierarchicalWeights(spread=(0.1, 0.2)).sample(NET.layout)
    with pytest.raises(DomainError, match=r"bias_scale has \(2,\) values but the network has 3 bias blocks"):
        HierarchicalWeights(bias_scale=(0.1, 0.2)).weights(NET.layout, torch.zeros(NET.num_parameters + 6))
