"""Draws of weight priors against their laws, and functions on a box against known figures.

Kolmogorov-Smirnov tests reject at 1e-6, about five standard errors.
"""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

import probnn
from probnn.diagnostics import function_statistics
from probnn.networks import Block, Layout
from probnn.priors import HierarchicalWeights, LaplaceWeights, NormalWeights, StudentTWeights

ONE = Layout((Block("w", (1,), fan_in=4),))
NUM_DRAWS = 40_000


def draws(prior, seed, num_draws=NUM_DRAWS):
    generator = torch.Generator().manual_seed(seed)
    return prior.sample(ONE, (num_draws,), generator=generator, dtype=torch.double)


def mean_within_five_standard_errors(values, expected):
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - expected) < 5 * error, (values.mean().item(), expected, error.item())


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (NormalWeights(weight_scale=3.0), scipy.stats.norm(scale=1.5)),
        (LaplaceWeights(weight_scale=3.0), scipy.stats.laplace(scale=1.5)),
        (StudentTWeights(weight_scale=3.0, df=0.7), scipy.stats.t(0.7, scale=1.5)),
        (StudentTWeights(weight_scale=3.0, df=5.0), scipy.stats.t(5.0, scale=1.5)),
        (StudentTWeights(weight_scale=3.0, df=1e5, scaling="none"), scipy.stats.norm(scale=3.0)),
    ],
    ids=["normal", "laplace", "student .7", "student 5", "student 1e5"],
)
def test_independent_weights_follow_their_law(prior, law, seed):
    w = draws(prior, seed).squeeze(-1).numpy()
    assert scipy.stats.kstest(w, law.cdf).pvalue > 1e-6


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (HierarchicalWeights(spread=0.7), scipy.stats.norm(scale=0.7)),
        (HierarchicalWeights(scale_prior="half_cauchy"), scipy.stats.hypsecant()),
        (
            HierarchicalWeights(scale_prior="inverse_gamma", shape=0.3, rate=2.0),
            scipy.stats.loggamma(0.3, loc=-math.log(2.0)),
        ),
        (HierarchicalWeights(scale_prior="inverse_gamma"), scipy.stats.loggamma(3.0, loc=-math.log(2.0))),
    ],
    ids=["log_normal", "half_cauchy", "inverse_gamma .3", "inverse_gamma 3"],
)
def test_log_scales_follow_their_law(prior, law, seed):
    u = draws(prior, seed)[:, 1]
    if prior.scale_prior == "inverse_gamma":
        u = -2 * u  # the log of a Gamma(a, b) precision
    assert scipy.stats.kstest(u.numpy(), law.cdf).pvalue > 1e-6


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.5), (3.0, 2.0)])
def test_under_inverse_gamma_a_weight_is_student_t(a, b, seed):
    prior = HierarchicalWeights(weight_scale=3.0, scale_prior="inverse_gamma", shape=a, rate=b)
    w = prior.weights(ONE, draws(prior, seed)).squeeze(-1)
    law = scipy.stats.t(2 * a, scale=1.5 * math.sqrt(b / a))
    assert scipy.stats.kstest(w.numpy(), law.cdf).pvalue > 1e-6


def test_gradients_of_draws_are_those_of_their_expectation(seed):
    """E u = (log b - digamma(a)) / 2 under the inverse gamma, reparameterised in both."""
    # A block for each draw, with hyper-parameters of its own, so that every draw has a gradient of its own.
    layout = Layout(tuple(Block(f"w{i}", (1,)) for i in range(2000)))
    a = torch.full((2000,), 1.7, dtype=torch.double, requires_grad=True)
    b = torch.full((2000,), 0.6, dtype=torch.double, requires_grad=True)
    prior = HierarchicalWeights(scale_prior="inverse_gamma", shape=a, rate=b)
    u = prior.sample(layout, generator=torch.Generator().manual_seed(seed), dtype=torch.double)[2000:]
    by_a, by_b = torch.autograd.grad(u.sum(), (a, b))
    mean_within_five_standard_errors(u.detach(), 0.5 * (math.log(0.6) - scipy.special.digamma(1.7)))
    mean_within_five_standard_errors(by_a, -0.5 * scipy.special.polygamma(1, 1.7))
    torch.testing.assert_close(by_b, torch.full((2000,), 0.5 / 0.6, dtype=torch.double))


def test_every_function_has_scales_of_its_own(seed):
    """The log mean square of a block of n weights varies by 4 tau^2 + Var(log chi2_n) between functions.

    Were one scale drawn for a batch of functions, the first term would be missing.
    """
    n, tau, num_draws = 50, 0.4, 4000
    layout = Layout((Block("w", (n,)), Block("v", (n,))))
    prior = HierarchicalWeights(spread=tau)
    generator = torch.Generator().manual_seed(seed)
    weights = prior.weights(layout, prior.sample(layout, (num_draws,), generator=generator, dtype=torch.double))
    logs = weights.reshape(num_draws, 2, n).square().mean(-1).log()
    expected = 4 * tau**2 + scipy.special.polygamma(1, n / 2)
    for k in range(2):
        mean_within_five_standard_errors((logs[:, k] - logs[:, k].mean()).square(), expected)
    cross = (logs[:, 0] - logs[:, 0].mean()) * (logs[:, 1] - logs[:, 1].mean())  # blocks are independent
    mean_within_five_standard_errors(cross, 0.0)


@pytest.mark.parametrize(
    "prior",
    [NormalWeights(bias_scale=0.3), HierarchicalWeights(bias_scale=0.3, scale_prior="inverse_gamma")],
    ids=["normal", "inverse_gamma"],
)
def test_fan_in_scaling_keeps_the_scale_of_functions(prior, seed):
    """The linear model has E f(x)^2 = s_b^2 + s_w^2 |x|^2 / d, in any dimension d."""
    net = probnn.MLP(input_dim=300, hidden=())
    process = probnn.BayesianNetwork(net, prior, dtype=torch.double)
    x = torch.linspace(-2, 2, 300, dtype=torch.double)
    f = process.sample(x[None], (4000,), generator=torch.Generator().manual_seed(seed)).flatten()
    mean_within_five_standard_errors(f.square(), 0.3**2 + x.square().mean().item())


# Figures found once with 400 functions of another implementation, rounded: box, d, activation, scales of the
# weights and biases, then total, offset, within and axis sd, and turns.
TABLE = [
    (0.0, 2, "tanh", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.22, 1.22, 0.10, 0.06, 0.4)),
    (-1.0, 2, "tanh", (4.0, 2.0, 1.5), (2.0, 1.0, 0.1), (1.18, 0.82, 0.79, 0.61, 2.7)),
    (-1.0, 2, "sin", (4.0, 2.0, 1.5), (2.0, 1.0, 0.1), (1.06, 0.49, 0.93, 0.80, 5.2)),
    (-1.0, 6, "tanh", (4.0, 2.0, 1.5), (2.0, 1.0, 0.1), (1.19, 0.81, 0.85, 0.42, 1.9)),
    (-1.0, 20, "sin", (6.0, 2.0, 1.5), (3.0, 1.0, 0.1), (1.06, 0.38, 0.99, 0.61, 2.4)),
]


@pytest.mark.parametrize(("low", "d", "activation", "weights", "biases", "expected"), TABLE)
def test_function_statistics_give_the_known_figures(low, d, activation, weights, biases, expected, seed):
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=d, activation=activation), NormalWeights(weights, biases))
    statistics = function_statistics(prior, torch.tensor([[low] * d, [1.0] * d]), seed=seed)
    names = ("total_sd", "offset_sd", "within_sd", "axis_sd", "turns")
    rounding = (0.005, 0.005, 0.005, 0.005, 0.05)
    for name, value, rounded in zip(names, expected, rounding, strict=True):
        error = statistics.standard_errors[name].item()
        # both sides are means over 400 functions
        difference = abs(getattr(statistics, name).item() - value)
        assert difference < 5 * math.sqrt(2) * error + rounded, (name, str(statistics))
