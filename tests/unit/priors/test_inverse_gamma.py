"""Inverse-gamma variances: the law of theta and of a weight, the Gibbs step, gradients and bad input."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch

import probnn
from probnn import random as rnd
from probnn.errors import DomainError, UnsupportedError
from probnn.networks import Block, Layout
from probnn.priors import HierarchicalWeights, InverseGammaWeights, WeightPrior

NET = probnn.MLP(input_dim=3, hidden=(5, 4), output_dim=2)
A, B = (1.5, 3.0, 0.8), (2.0, 0.5, 1.0)
OWN = InverseGammaWeights(shape=A, scale=B, bias_shape=torch.tensor([2.0, 4.0, 1.0]), bias_scale=0.3)
PRIORS = {"per layer": OWN, "plain": InverseGammaWeights(scaling="none")}
ONE = Layout((Block("w", (1,), fan_in=4),))
DOUBLE = torch.double


@pytest.fixture(params=PRIORS.values(), ids=PRIORS.keys())
def prior(request: pytest.FixtureRequest) -> InverseGammaWeights:
    return request.param


def draw(prior, shape, seed, layout=NET.layout, dtype=DOUBLE):
    return prior.sample(layout, shape, generator=rnd.generator_from(seed), dtype=dtype)


def by_block(prior, index):
    """a and b of a block of NET, read off the definition."""
    kind = ("bias_shape", "bias_scale") if index % 2 else ("shape", "scale")
    return (torch.as_tensor(getattr(prior, k), dtype=DOUBLE).expand(3)[index // 2] for k in kind)


def naive_log_prob(prior, theta):
    """Density of (w, sigma^2) from Pyro's laws, and the Jacobian of theta -> (w, sigma^2) by hand."""
    z, u = NET.layout.unflatten(theta[:-6]), theta[-6:]
    total = 0.0
    for k, block in enumerate(NET.layout.blocks):
        a, b = by_block(prior, k)
        variance = b / a * torch.exp(2 * u[k])
        fan = (3, 5, 4)[k // 2] if prior.scaling == "fan_in" and k % 2 == 0 else 1
        sd = (variance / fan).sqrt()
        total += dist.InverseGamma(a, b).log_prob(variance) + (2 * variance).log()
        total += (dist.Normal(0.0, sd).log_prob(sd * z[block.name]) + sd.log()).sum()
    return total


def test_log_prob_has_every_jacobian(prior, seed):
    theta = draw(prior, (6,), seed)
    expected = torch.stack([naive_log_prob(prior, row) for row in theta])
    torch.testing.assert_close(prior.log_prob(NET.layout, theta), expected, rtol=1e-10, atol=0)


def test_closed_forms_are_those_of_autograd(prior, seed):
    theta = draw(prior, (3, 2), seed)
    pairs = [prior.log_prob_and_grad(NET.layout, theta), WeightPrior.log_prob_and_grad(prior, NET.layout, theta)]
    for closed, autograd in zip(*pairs, strict=True):
        torch.testing.assert_close(closed, autograd, rtol=1e-12, atol=1e-12)
    weights, back = prior.pullback(NET.layout, theta)
    other, other_back = WeightPrior.pullback(prior, NET.layout, theta)
    cotangent = rnd.normal(weights.shape, generator=rnd.generator_from(seed), dtype=DOUBLE)
    torch.testing.assert_close(weights, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back(cotangent), other_back(cotangent), rtol=1e-12, atol=1e-12)


def test_a_weight_is_student_t(seed):
    """Kolmogorov and Smirnov against the Student-t law with 2a degrees of freedom and scale sqrt(b / a)."""
    a, b = 1.5, 0.8
    prior = InverseGammaWeights(shape=a, scale=b)
    w = prior.weights(ONE, draw(prior, (20_000,), seed, ONE)).squeeze(-1)
    assert st.kstest(w.numpy(), st.t(2 * a, scale=math.sqrt(b / a / 4)).cdf).pvalue > 1e-3


def test_every_function_has_scales_of_its_own(seed):
    """Variances of a layer over draws: as they are under InvGamma(a, b), a = 3 having mean b / 2."""
    prior = InverseGammaWeights(shape=6.0, scale=2.0)
    sigma = prior.sigma(ONE, draw(prior, (20_000,), seed, ONE)).squeeze(-1).square() * 4
    assert sigma.unique().numel() == 20_000
    assert abs(sigma.mean() - 2 / 5) < 5 * sigma.std() / 20_000**0.5
    assert st.kstest(sigma.numpy(), st.invgamma(6.0, scale=2.0).cdf).pvalue > 1e-3


def test_gibbs_draws_from_the_conditional(prior, seed):
    """Mean and variance of 50,000 precisions against Gamma(a + n / 2, b + n_in sum w^2 / 2); weights stay."""
    theta, count = draw(prior, (1,), seed), 50_000
    new = prior.gibbs(NET.layout, theta.expand(count, -1), rnd.generator_from(seed + 1))
    weights = prior.weights(NET.layout, theta)
    error = (prior.weights(NET.layout, new) - weights).abs().max()
    assert error <= 1e-12 * weights.abs().max()
    named = NET.layout.unflatten(weights)
    sigma = prior.sigma(NET.layout, new)
    for k, block in enumerate(NET.layout.blocks):
        a, b = by_block(prior, k)
        fan = (3, 5, 4)[k // 2] if prior.scaling == "fan_in" and k % 2 == 0 else 1
        shape = a + block.size / 2
        rate = b + fan * named[block.name].square().sum() / 2
        precision = 1 / (fan * sigma[:, k].square())
        assert abs(precision.mean() - shape / rate) <= 5 * (shape.sqrt() / rate) / count**0.5
        # The fourth central moment of Gamma(shape, rate) is 3 shape (shape + 2) / rate^4.
        of_variance = (2 * shape.square() + 6 * shape).sqrt() / rate.square() / count**0.5
        assert abs(precision.var() - shape / rate.square()) <= 5 * of_variance
        assert st.kstest(precision.numpy(), st.gamma(shape.item(), scale=1 / rate.item()).cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    "prior", [OWN, HierarchicalWeights((2.0, 1.0, 0.5), 0.3, scale_prior="inverse_gamma", shape=1.5, rate=0.8)]
)
def test_gibbs_leaves_the_prior_invariant(prior, seed):
    """Steps from prior draws give prior draws: scales, and coordinates z, which the step divides."""
    before, after = draw(prior, (20_000,), seed), draw(prior, (20_000,), seed + 1)
    for _ in range(3):
        after = prior.gibbs(NET.layout, after, rnd.generator_from(seed + 2))
    for k in (0, 15, 20, *range(-6, 0)):
        assert st.ks_2samp(before[:, k].numpy(), after[:, k].numpy()).pvalue > 1e-4
    assert abs(st.spearmanr(after[:, 0].abs().numpy(), after[:, -6].numpy()).statistic) < 5 / 20_000**0.5


def test_gibbs_where_numbers_end():
    """Scales that overflow their squares, and weights of exactly zero."""
    prior = InverseGammaWeights()
    theta = torch.tensor([[1.0, 400.0], [1.0, -400.0], [0.0, 1.0]], dtype=DOUBLE)
    assert prior.gibbs(ONE, theta, rnd.generator_from(0)).isfinite().all()


def test_gibbs_is_for_inverse_gamma_laws_only():
    theta = HierarchicalWeights().sample(ONE, (2,), generator=rnd.generator_from(0))
    with pytest.raises(UnsupportedError, match="InverseGammaWeights"):
        HierarchicalWeights().gibbs(ONE, theta)


def test_draws_are_differentiable_in_the_hyperparameters(seed):
    """Slopes of drawn weights: in b exactly; in a, of the mean square, against its closed form b / (a - 1)."""
    a = torch.tensor(8.0, dtype=DOUBLE, requires_grad=True)
    b = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    prior = InverseGammaWeights(shape=a, scale=b, scaling="none")
    theta = draw(prior, (4000,), seed, ONE)
    squares = prior.weights(ONE, theta).squeeze(-1).square()
    of_a, of_b = torch.autograd.grad(squares.mean(), (a, b))
    torch.testing.assert_close(of_b, squares.detach().mean() / b.detach(), rtol=1e-10, atol=0)
    # Slopes one draw each, for their standard error.
    each = []
    for start in range(0, 4000, 100):
        part = InverseGammaWeights(shape=a, scale=b, scaling="none")
        w = part.weights(ONE, draw(part, (100,), seed + 10 + start, ONE)).square().mean()
        each.append(torch.autograd.grad(w, a)[0])
    slopes = torch.stack(each)
    assert of_a.isfinite()
    assert abs(slopes.mean() + 2 / 7**2) <= 5 * slopes.std() / len(slopes) ** 0.5


def test_the_density_is_differentiable_in_the_hyperparameters(seed):
    theta = draw(OWN, (2,), seed)

    def of_all(shape, scale, bias_shape, bias_scale):
        prior = InverseGammaWeights(shape, scale, bias_shape, bias_scale)
        return prior.log_prob(NET.layout, theta), prior.weights(NET.layout, theta)

    values = [torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (A, B, 1.2, (0.5, 1.0, 2.0))]
    assert torch.autograd.gradcheck(of_all, values)


def test_agrees_with_the_general_hierarchical_prior(seed):
    """The same draws of weights as HierarchicalWeights with s = sqrt(b / a), shape a and rate a."""
    own = InverseGammaWeights(3.0, 2.0, 3.0, 2.0)
    general = HierarchicalWeights((2 / 3) ** 0.5, (2 / 3) ** 0.5, scale_prior="inverse_gamma", shape=3.0, rate=3.0)
    theta = draw(own, (5,), seed)
    torch.testing.assert_close(theta, draw(general, (5,), seed), rtol=1e-12, atol=1e-12)
    weights = (p.weights(NET.layout, theta) for p in (own, general))
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-12)


def test_what_matching_may_tune():
    found = OWN.hyperparameters(NET.layout, order=2.0)
    assert {name: bound for name, (_, bound) in found.items()} == {
        "shape": 1.0, "scale": 0.0, "bias_shape": 1.0, "bias_scale": 0.0,
    }  # fmt: skip
    assert found["shape"][0].tolist() == list(A) and found["bias_scale"][0].tolist() == [0.3] * 3
    assert OWN.moment_order == pytest.approx(1.6)


def test_a_process_with_it_survives_saving(prior, tmp_path):
    process = probnn.BayesianNetwork(NET, prior, dtype=DOUBLE)
    process.save(tmp_path / "prior.safetensors")
    assert probnn.load(tmp_path / "prior.safetensors").weight_prior == prior


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": -1.0}, "shape must be positive"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"bias_shape": (1.0, -2.0)}, "every entry of bias_shape must be positive"),
        ({"bias_scale": "1"}, "bias_scale must be a number"),
        ({"scaling": "he"}, "scaling must be one of"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(DomainError, match=message):
        InverseGammaWeights(**options)


def test_values_must_match_the_layers():
    with pytest.raises(DomainError, match=r"bias_shape has \(2,\) values but the network has 3 bias blocks"):
        InverseGammaWeights(bias_shape=(1.0, 2.0)).sample(NET.layout)
