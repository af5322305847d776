"""Statistics of functions on a box, where they are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import probnn
from probnn.diagnostics import function_statistics
from probnn.diagnostics.functions import _turns
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.priors import NormalWeights
from probnn.process import StochasticProcess


@dataclass(frozen=True, eq=False)
class Given(StochasticProcess):
    """Functions ``curve(x, e)`` of standard normals e, one for each function and channel."""

    curve: Callable
    input_dim: int = 1
    output_dim: int = 1
    dtype: torch.dtype = torch.double
    device: torch.device = torch.device("cpu")

    def _sample_functions(self, shape, generator):
        e = torch.randn(*shape, self.output_dim, dtype=self.dtype, generator=generator)
        return lambda X: self.curve(X, e[(..., *(None,) * (X.ndim - 1), slice(None))])


def box(d=1, low=-1.0, high=1.0, dtype=torch.double):
    return torch.tensor([[low] * d, [high] * d], dtype=dtype)


def check(statistics, **expected):
    for name, value in expected.items():
        error = statistics.standard_errors[name]
        got = getattr(statistics, name)
        assert got.dtype == torch.double and error.isfinite().all()
        assert ((got - torch.as_tensor(value)).abs() <= 5 * error + 1e-3).all(), (name, got, value, error)


def test_constant_functions_are_all_offset(seed):
    process = Given(lambda X, e: 2 * e + 0 * X[..., :1])
    statistics = function_statistics(process, box(), num_functions=2000, seed=seed)
    check(statistics, total_sd=2.0, offset_sd=2.0, within_sd=0.0, within_share=0.0, axis_sd=0.0, turns=0.0)


def test_lines_are_all_within(seed):
    """f = e x on [-1, 1]: Var f = 1/3, and |e| has the mean sqrt(2 / pi)."""
    process = Given(lambda X, e: e * X)
    statistics = function_statistics(process, box(), num_functions=4000, num_steps=1001, seed=seed)
    sd = 3**-0.5
    mean = (2 / torch.pi) ** 0.5 * sd
    check(statistics, total_sd=sd, within_sd=mean, within_share=1.0, axis_sd=mean, turns=0.0)
    assert statistics.offset_sd < 0.01


def test_offset_and_variation_add_up(seed):
    """f = e (1 + x): Var = 1 + 1/3 whatever the function."""
    process = Given(lambda X, e: e * (1 + X))
    statistics = function_statistics(process, box(), num_functions=4000, num_steps=1001, seed=seed)
    check(statistics, total_sd=(4 / 3) ** 0.5, offset_sd=1.0, within_share=0.25)
    share = 1 - statistics.offset_sd**2 / statistics.total_sd**2
    torch.testing.assert_close(statistics.within_share, share)


def test_axes_and_channels_and_the_box(seed):
    """Channel 0 varies along the first of two axes only, channel 1 along both; the box is not centred."""
    process = Given(lambda X, e: torch.stack([X[..., 0], X.sum(-1)], -1) + 5 * e, input_dim=2, output_dim=2)
    statistics = function_statistics(process, box(2, 2.0, 6.0), num_steps=2001, seed=seed)
    sd = 4 / 12**0.5
    along, within = torch.tensor([[sd / 2, sd], [sd, sd * 2**0.5]], dtype=torch.double)
    torch.testing.assert_close(statistics.axis_sd, along, rtol=2e-3, atol=0)
    torch.testing.assert_close(statistics.within_sd, within, rtol=0.02, atol=0)


@pytest.mark.parametrize(("frequency", "turns"), [(1, 2), (3, 6), (10, 20)])
def test_waves_turn_twice_a_period(frequency, turns):
    process = Given(lambda X, e: torch.sin(2 * torch.pi * frequency * X + 0.1) * (1 + e.abs()))
    statistics = function_statistics(process, box(low=0.0), num_functions=5, num_steps=257)
    assert statistics.turns.item() == turns and statistics.standard_errors["turns"].item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_and_flat_stretches_are_no_turns(dtype):
    wiggle = torch.finfo(dtype).eps * torch.tensor([0.0, 3.0, 0.0, 3.0, 0.0, 3.0], dtype=dtype)
    ramp = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0, 4.0], dtype=dtype)
    hill = torch.tensor([1.0, 2.0, 2.0, 2.0, 1.0, 1.0], dtype=dtype)
    lines = torch.stack([1 + wiggle, ramp, hill, -hill])[:, None, :, None]
    assert _turns(lines).flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_seed_repeats_and_leaves_the_global_stream(seed):
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2), NormalWeights())
    state = torch.get_rng_state()
    first = function_statistics(prior, box(2, dtype=torch.float32), num_functions=50, seed=seed)
    again = function_statistics(prior, box(2, dtype=torch.float32), num_functions=50, seed=seed)
    other = function_statistics(prior, box(2, dtype=torch.float32), num_functions=50, seed=seed + 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.total_sd, again.total_sd) and not torch.equal(first.total_sd, other.total_sd)
    assert str(first).count("+-") == 6 and first.num_functions == 50


def test_standard_errors_are_the_spread_of_the_estimates(seed):
    """Over 100 repetitions of 100 functions the estimates vary as their standard errors say."""
    process = Given(lambda X, e: e * (1 + torch.sin(4 * X * e)))
    runs = [function_statistics(process, box(), num_functions=100, seed=1000 * seed + k) for k in range(100)]
    for name in runs[0].standard_errors:
        spread = torch.cat([getattr(run, name) for run in runs]).std().item()
        claimed = torch.cat([run.standard_errors[name] for run in runs]).mean().item()
        # The spread of 100 estimates is known to 7 %; the claims fall short by a few per cent in small samples.
        assert 0.6 < spread / claimed < 1.5, (name, spread, claimed)


def test_bad_input_is_refused():
    process = Given(lambda X, e: e * X)
    with pytest.raises(ShapeError, match=r"bounds must have shape \(2, 1\)"):
        function_statistics(process, box(2))
    with pytest.raises(DomainError, match="below its upper bound"):
        function_statistics(process, box(low=1.0))
    with pytest.raises(DomainError, match="bounds must have dtype"):
        function_statistics(process, box(dtype=torch.float32))
    with pytest.raises(DomainError, match="bounds must be a torch tensor"):
        function_statistics(process, [[0.0], [1.0]])
    with pytest.raises(NonFiniteError, match="bounds must be finite"):
        function_statistics(process, box(high=torch.inf))
    with pytest.raises(DomainError, match="process must be a StochasticProcess, got a MLP"):
        function_statistics(probnn.MLP(input_dim=1), box())
    for name, value in (("num_functions", 1), ("num_points", 1), ("num_steps", 2), ("seed", -1), ("seed", "a")):
        with pytest.raises(DomainError, match=name):
            function_statistics(process, box(), **{name: value})

    class MarginalsOnly(Given):
        joint = None

    with pytest.raises(UnsupportedError, match="joint=None"):
        function_statistics(MarginalsOnly(process.curve), box())
