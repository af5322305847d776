"""Independent weight priors: densities, gradients, draws and bad input."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch

import probnn
from probnn import random as rnd
from probnn.errors import DomainError
from probnn.networks import Layout
from probnn.priors import LaplaceWeights, NormalWeights, StudentTWeights, WeightPrior

NET = probnn.MLP(input_dim=3, hidden=(5, 4), output_dim=2)
SCALES = {"weight_scale": (4.0, 2.0, 1.5), "bias_scale": (2.0, 1.0, 0.1)}
PRIORS = {
    "normal": NormalWeights(**SCALES),
    "normal unscaled": NormalWeights(weight_scale=0.7, bias_scale=torch.tensor(1.3), scaling="none"),
    "laplace": LaplaceWeights(**SCALES),
    "student": StudentTWeights(**SCALES, df=4.5),
    "cauchy": StudentTWeights(weight_scale=torch.tensor([1.0, 2.0, 3.0]), df=torch.tensor(1.0)),
}


@pytest.fixture(params=PRIORS.values(), ids=PRIORS.keys())
def prior(request: pytest.FixtureRequest) -> WeightPrior:
    return request.param


def law(prior, scale):
    if isinstance(prior, NormalWeights):
        return dist.Normal(0.0, scale)
    if isinstance(prior, LaplaceWeights):
        return dist.Laplace(0.0, scale)
    return dist.StudentT(torch.as_tensor(prior.df, dtype=torch.double), 0.0, scale)


def naive_scales(prior, layout: Layout) -> list[float]:
    """Scale of every block, read off the definition."""
    out, at = [], {"weight": 0, "bias": 0}
    for block in layout.blocks:
        given = prior.weight_scale if block.role == "weight" else prior.bias_scale
        value = float(given[at[block.role]]) if isinstance(given, tuple) or getattr(given, "ndim", 0) else float(given)
        at[block.role] += 1
        fan_in = {"layers.0.weight": 3, "layers.1.weight": 5, "layers.2.weight": 4}.get(block.name, 1)
        out.append(value / math.sqrt(fan_in) if prior.scaling == "fan_in" else value)
    return out


def draw(prior, shape, seed, **options):
    generator = torch.Generator().manual_seed(seed)
    return prior.sample(NET.layout, shape, generator=generator, **options)


def test_log_prob_is_the_sum_over_weights(prior, seed):
    theta = draw(prior, (3, 2), seed, dtype=torch.double)
    named = NET.layout.unflatten(theta)
    expected = torch.zeros(3, 2, dtype=torch.double)
    for block, scale in zip(NET.layout.blocks, naive_scales(prior, NET.layout), strict=True):
        values = law(prior, torch.tensor(scale, dtype=torch.double)).log_prob(named[block.name])
        expected += values.flatten(2).sum(-1)
    torch.testing.assert_close(prior.log_prob(NET.layout, theta), expected, rtol=1e-12, atol=0)


def test_closed_form_gradient_is_that_of_autograd(prior, seed):
    theta = draw(prior, (3, 2), seed, dtype=torch.double)
    value, grad = prior.log_prob_and_grad(NET.layout, theta)
    by_autograd, grad_by_autograd = WeightPrior.log_prob_and_grad(prior, NET.layout, theta)
    assert not value.requires_grad and not grad.requires_grad
    torch.testing.assert_close(value, by_autograd, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, grad_by_autograd, rtol=1e-12, atol=1e-12)


def test_theta_are_the_weights(prior, seed):
    theta = draw(prior, (3,), seed)
    assert prior.layout(NET.layout) is NET.layout
    assert prior.weights(NET.layout, theta) is theta
    weights, back = prior.pullback(NET.layout, theta)
    assert weights is theta and back(theta) is theta


@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 3)])
def test_draws_have_the_shape_and_dtype_asked_for(prior, shape, seed):
    for dtype in (torch.float32, torch.float64):
        theta = draw(prior, shape, seed, dtype=dtype)
        assert theta.shape == (*shape, NET.num_parameters) and theta.dtype == dtype
        assert prior.log_prob(NET.layout, theta).shape == shape
        assert prior.log_prob(NET.layout, theta).dtype == dtype


def test_a_seed_repeats_and_leaves_the_global_stream(prior, seed):
    state = torch.get_rng_state()
    first = draw(prior, (4,), seed)
    assert torch.equal(first, draw(prior, (4,), seed))
    assert not torch.equal(first, draw(prior, (4,), seed + 1))
    assert torch.equal(torch.get_rng_state(), state)
    prior.sample(NET.layout, (1,))
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)


@pytest.mark.parametrize("cls", [NormalWeights, LaplaceWeights, StudentTWeights])
def test_everything_is_differentiable_in_the_scales(cls, seed):
    theta = draw(NormalWeights(), (2,), seed, dtype=torch.double)
    scales = torch.tensor([1.5, 0.7, 2.0], dtype=torch.double, requires_grad=True)
    bias = torch.tensor(0.4, dtype=torch.double, requires_grad=True)

    def both(weight_scale, bias_scale):
        prior = cls(weight_scale=weight_scale, bias_scale=bias_scale)
        return prior.log_prob(NET.layout, theta), draw(prior, (2,), seed, dtype=torch.double)

    assert torch.autograd.gradcheck(both, (scales, bias))


def test_student_is_differentiable_in_df(seed):
    theta = draw(NormalWeights(), (2,), seed, dtype=torch.double)

    def both(df):
        prior = StudentTWeights(df=df)
        return prior.log_prob(NET.layout, theta), draw(prior, (2,), seed, dtype=torch.double)

    assert torch.autograd.gradcheck(both, (torch.tensor(2.5, dtype=torch.double, requires_grad=True),))


@pytest.mark.parametrize("cls", [LaplaceWeights, StudentTWeights])
def test_extreme_uniforms_give_finite_draws_and_gradients(cls, monkeypatch):
    """A uniform is exactly zero about once in 17 million in single precision."""
    extreme = torch.tensor([0.0, 1 - 2**-24])
    pairs = torch.stack([extreme.repeat_interleave(2), extreme.repeat(2)])  # both, against both
    monkeypatch.setattr("probnn.random.uniform", lambda shape, **_: pairs)
    df = torch.tensor(3.0, requires_grad=True)
    prior = cls() if cls is LaplaceWeights else cls(df=df)
    z = prior._standard((4,), torch.empty(0), None)
    assert z.isfinite().all()
    if cls is StudentTWeights:
        assert torch.autograd.grad(z.sum(), df)[0].isfinite()


def test_large_df_is_normal(seed):
    theta = draw(NormalWeights(), (5,), seed, dtype=torch.double)
    near, normal = StudentTWeights(df=1e8), NormalWeights()
    torch.testing.assert_close(near.log_prob(NET.layout, theta), normal.log_prob(NET.layout, theta), rtol=1e-6, atol=0)


def test_a_module_network_takes_them(prior, seed):
    net = probnn.ModuleNetwork(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)), 2)
    if isinstance(prior.weight_scale, tuple) or getattr(prior.weight_scale, "ndim", 0):
        with pytest.raises(DomainError, match=r"weight_scale has \(3,\) values but the network has 2 weight blocks"):
            probnn.BayesianNetwork(net, prior).sample_parameters()
    else:
        assert probnn.BayesianNetwork(net, prior).sample(torch.zeros(4, 2), (3,)).shape == (3, 4, 1)


def test_a_process_with_it_survives_saving(prior, tmp_path):
    process = probnn.BayesianNetwork(NET, prior, dtype=torch.double)
    process.save(tmp_path / "prior.safetensors")
    loaded = probnn.load(tmp_path / "prior.safetensors")
    X = torch.zeros(2, 3, dtype=torch.double)
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(process.sample(X, (3,), generator=seeds[0]), loaded.sample(X, (3,), generator=seeds[1]))


@pytest.mark.parametrize("cls", [NormalWeights, LaplaceWeights, StudentTWeights])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_scale": -1.0}, "weight_scale must be positive"),
        ({"bias_scale": 0.0}, "bias_scale must be positive"),
        ({"weight_scale": math.nan}, "weight_scale must be positive"),
        ({"weight_scale": "1"}, "weight_scale must be a number"),
        ({"weight_scale": (1.0, -2.0)}, "every entry of weight_scale must be positive"),
        ({"weight_scale": (1.0, torch.tensor(2.0))}, "one tensor"),
        ({"bias_scale": torch.tensor([1.0, -1.0])}, "bias_scale must be positive"),
        ({"scaling": "he"}, "scaling must be one of 'none', 'fan_in'"),
    ],
)
def test_bad_settings_are_refused(cls, options, message):
    with pytest.raises(DomainError, match=message):
        cls(**options)


@pytest.mark.parametrize("df", [0.0, -1.0, math.inf, "3", torch.tensor([3.0, 4.0])])
def test_bad_df_is_refused(df):
    with pytest.raises(DomainError, match="df must be"):
        StudentTWeights(df=df)


def test_unknown_keywords_fail():
    with pytest.raises(TypeError, match="sd"):
        LaplaceWeights(sd=1.0)


def test_scales_must_match_the_layers():
    with pytest.raises(DomainError, match=r"weight_scale has \(2,\) values but the network has 3 weight blocks"):
        NormalWeights(weight_scale=(1.0, 2.0)).sample(NET.layout)


def test_heavy_tails_are_drawn_as_far_as_numbers_reach(seed):
    """At df = 0.1 in single precision exp(2E / df) overflows in one draw of eighty, its root in one of 7,000."""
    net, count = probnn.MLP(input_dim=1, hidden=()).layout, 40_000
    prior = StudentTWeights(df=0.1)
    drawn = prior.sample(net, (count,), generator=rnd.generator_from(seed), dtype=torch.float32).flatten()
    # P(|t| > x) from the density; sqrt(expm1) of a single overflows at 1.8e19, the number itself at 3.4e38.
    for x in (1e10, 1e19, 1e30):
        tail = 2 * st.t(0.1).sf(x)
        error = (tail * (1 - tail) / len(drawn)) ** 0.5
        assert abs((drawn.abs() > x).double().mean().item() - tail) < 5 * error, x
    largest = 2 * st.t(0.1).sf(3.4e38)
    infinite = drawn.isinf().double().mean().item()
    assert infinite < largest + 5 * (largest / len(drawn)) ** 0.5 and not drawn.isnan().any()
