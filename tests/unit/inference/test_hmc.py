"""The sampler's mechanics: integrator, start, warm start, seeds, traces, warnings."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import probnn
from probnn import likelihoods
from probnn import random as rnd
from probnn.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DivergenceWarning,
    DomainError,
    PrecisionWarning,
    ShapeError,
)
from probnn.inference import Target, start
from probnn.inference.adaptation import van_der_corput
from probnn.inference.integrator import energy, initial_state, leapfrog
from probnn.inference.mixing import worst_rhat
from tests.cases import DOUBLE, data, network

SHORT = probnn.HMC(num_chains=4, num_warmup=40, num_samples=12)
pytestmark = pytest.mark.filterwarnings("ignore::probnn.errors.DivergenceWarning")


def target() -> Target:
    return Target(network(), likelihoods.Gaussian(noise=0.3), *data())


def trajectory(step: float, num_steps: int, seed: int = 0):
    t = target()
    z = start.cold(t, t.value_and_grad, (1, 5), start.prior_scales(t, rnd.generator_from(1)), 50, rnd.generator_from(2))
    before = initial_state(t.value_and_grad, z)
    momentum = rnd.normal(z.shape, generator=rnd.generator_from(seed), like=z)
    return t, before, momentum, leapfrog(t.value_and_grad, before, momentum, torch.full_like(z, step), num_steps)


def test_trajectories_are_reversible() -> None:
    t, before, momentum, (end, after) = trajectory(0.005, 40)
    back, there = leapfrog(t.value_and_grad, end, -after, torch.full_like(end.z, 0.005), 40)
    assert (back.z - before.z).abs().max() < 1e-6 and (there + momentum).abs().max() < 1e-6


def test_the_energy_error_is_of_second_order() -> None:
    """Halving the step at the same length divides the error by four."""
    errors = []
    for halving in range(3):
        _, before, momentum, (end, after) = trajectory(0.004 / 2**halving, 30 * 2**halving)
        errors.append((energy(end.log_prob, after) - energy(before.log_prob, momentum)).abs().mean())
    slopes = [torch.log2(a / b).item() for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.8 < s < 2.2 for s in slopes), slopes


def test_the_jitter_fills_the_interval() -> None:
    values = sorted(van_der_corput(i) for i in range(1, 64))
    assert values == [i / 64 for i in range(1, 64)]


def test_the_start_moves_theta_and_holds_psi_at_its_median() -> None:
    t = Target(network(), likelihoods.Gaussian(noise_median=0.2), *data())
    scales = start.prior_scales(t, rnd.generator_from(0))
    drawn = t.start((1, 6), rnd.generator_from(3))
    z = start.cold(t, t.value_and_grad, (1, 6), scales, 150, rnd.generator_from(3))
    assert (t.split(z)[1].exp() - 0.2).abs().max() < 1e-12
    assert (t.log_prob(z) > t.log_prob(drawn)).all()
    assert torch.equal(start.cold(t, t.value_and_grad, (1, 6), scales, 0, rnd.generator_from(3)), drawn)


def test_everything_that_happened_is_kept() -> None:
    posterior = SHORT.fit(network(), likelihoods.Gaussian(noise=0.3), *data())
    info = posterior.info
    assert posterior.theta.shape == (4, 12, posterior.num_parameters) and info.method == "HMC"
    for name in ("energy", "log_prob", "acceptance", "divergent"):
        assert info.trace[name].shape == (4, 12), name
    assert info.trace["num_leapfrog"].shape == (12,) and info.trace["warmup_step_size"].shape == (40,)
    z = posterior.theta
    expected = Target(network(), likelihoods.Gaussian(noise=0.3), *data()).log_prob(z)
    assert (info.trace["log_prob"] - expected).abs().max() < 1e-9
    assert 0 < info.acceptance <= 1 and info.step_size > 0 and info.trajectory > 0
    assert info.divergences == int(info.trace["divergent"].sum()) and info.seconds > 0
    assert info.gradients > 4 * info.trace["num_leapfrog"].sum()
    steps = info.trace["num_leapfrog"].tolist()
    assert len(set(steps)) > 1, "the trajectory length must be jittered"


def test_seeds() -> None:
    X, Y = data()
    before = torch.random.get_rng_state()
    runs = [SHORT.fit(network(), likelihoods.Gaussian(noise_spread=0.3), X, Y, seed=s) for s in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(runs[0].theta, runs[1].theta) and torch.equal(runs[0].psi, runs[1].psi)
    assert not torch.equal(runs[0].theta, runs[2].theta)


def test_pieces_of_chains_give_the_same_draws() -> None:
    X, Y = data()
    whole = SHORT.fit(network(), likelihoods.Gaussian(noise=0.3), X, Y)
    pieces = replace(SHORT, chain_chunk=3).fit(network(), likelihoods.Gaussian(noise=0.3), X, Y)
    assert (whole.theta - pieces.theta).abs().max() < 1e-6


def test_a_warm_start_carries_draws_and_tuning_and_costs_less() -> None:
    X, Y = data(9)
    likelihood, method = likelihoods.Gaussian(noise=0.3), replace(SHORT, num_warmup=80)
    cold = method.fit(network(), likelihood, X[:8], Y[:8])
    warm = method.fit(network(), likelihood, X, Y, init=cold)
    assert warm.info.gradients < 0.6 * cold.info.gradients
    first = warm.info.trace["warmup_step_size"][0].item()
    assert first == pytest.approx(cold.info.step_size, rel=1e-6)
    assert warm.info.trace["warmup_acceptance"].shape == (20,)
    other_noise = method.fit(network(), likelihoods.Gaussian(), X, Y, init=cold)
    assert other_noise.psi.shape == (4, 12, 1)
    from_density = method.fit(network(), likelihood, X, Y, init=network())
    assert from_density.theta.shape == cold.theta.shape
    with pytest.raises(ShapeError, match="init must have the prior's"):
        method.fit(network(hidden=(3,)), likelihood, X, Y, init=cold)


def test_a_density_that_is_not_finite_at_the_start_names_the_chains() -> None:
    X, _ = data(3)
    prior = network(probnn.priors.NormalWeights(1e200, 1e200, "none"), hidden=())
    with pytest.raises(ConvergenceError, match=r"not finite at the start of chains \[0, 1, 2, 3\]"):
        SHORT.fit(prior, likelihoods.Poisson(), X, torch.ones(3, 1, dtype=DOUBLE))


def test_divergences_are_flagged() -> None:
    """A step adapted to nothing: no warm-up on a posterior that is far narrower than the first guess knows."""
    X, Y = data()
    method = probnn.HMC(num_chains=4, num_warmup=0, num_samples=30, start_steps=0, target_accept=0.8)
    init = SHORT.fit(network(), likelihoods.Gaussian(noise=3.0), X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with pytest.warns(DivergenceWarning, match="diverged"):
            posterior = method.fit(network(), likelihoods.Gaussian(noise=1e-4), X, Y, init=init)
    assert posterior.info.divergences > 0.05 * 4 * 30 and any("diverged" in w for w in posterior.info.warnings)


@pytest.mark.parametrize(
    "setting",
    [{"num_chains": 0}, {"num_samples": 0}, {"target_accept": 0.0}, {"target_accept": 1.0}, {"max_leapfrog": 0},
     {"num_warmup": -1}, {"chain_chunk": 0}, {"step_size": -0.1}],
)  # fmt: skip
def test_bad_settings(setting: dict) -> None:
    name = next(iter(setting))
    with pytest.raises((DomainError, TypeError), match=name):
        probnn.HMC(**setting)


def test_replications_in_one_batch_are_checked() -> None:
    X, Y = data(5)
    theta, psi = SHORT.fit_batch(network(hidden=()), likelihoods.Gaussian(), X, Y.expand(3, 1, 5, 1))
    assert theta.shape == (3, 4, 12, 3) and psi.shape == (3, 4, 12, 1)
    for bad in (Y, Y.expand(3, 5, 1)):
        with pytest.raises(ShapeError, match=r"\(R, 1, 5, 1\)"):
            SHORT.fit_batch(network(hidden=()), likelihoods.Gaussian(), X, bad)


def chains(seed: int, **shift: float) -> tuple:
    """Draws of two weights and a log scale that agree, but for one chain moved by so much in what is named."""
    prior = network(probnn.priors.HierarchicalWeights(), hidden=())
    g = rnd.generator_from(seed)
    theta = 0.1 * rnd.normal((4, 200, prior.num_parameters), generator=g, dtype=DOUBLE)
    psi, log_prob = rnd.normal((4, 200, 1), generator=g, dtype=DOUBLE), rnd.normal((4, 200), generator=g, dtype=DOUBLE)
    slices = {b.name: s for b, s in prior.layout.slices() if b.role == "scale"}
    names = [b.name for b, _ in prior.layout.slices() if b.role != "scale"]
    weight = next(s for b, s in prior.layout.slices() if b.name == names[0])
    # The function is the weights times their scales: moved together with its weight's a scale leaves it alone.
    theta[0, :, next(iter(slices.values()))] += shift.get("scale", 0.0)
    theta[0, :, weight] *= torch.tensor(-shift.get("scale", 0.0)).exp()
    theta[0, :, weight] += shift.get("weight", 0.0)
    psi[0] += shift.get("psi", 0.0)
    log_prob[0] += shift.get("log_prob", 0.0)
    return prior, theta, psi, log_prob


@pytest.mark.parametrize(
    ("shift", "name"),
    [({}, None), ({"psi": 5.0}, "parameters of the likelihood"), ({"log_prob": 5.0}, "log density"),
     ({"scale": 2.0}, "scales of the prior")],
)  # fmt: skip
def test_everything_that_chains_must_agree_on_is_judged(shift: dict, name: str | None, seed: int) -> None:
    what, value = worst_rhat(*(lambda p, *rest: (p, data()[0], *rest))(*chains(seed, **shift)))
    assert (value < 1.05) if name is None else (value > 1.2 and name in what), (what, value)


def test_functions_are_judged_off_the_data_too(seed: int) -> None:
    """All rows of X have x_0 = 0, so that nothing there tells what the first weight is."""
    prior, theta, psi, log_prob = chains(seed, weight=5.0)
    X = data()[0] * torch.tensor([0.0, 1.0], dtype=DOUBLE)
    X[0, 0] = 1e-3
    what, value = worst_rhat(prior, X, theta, psi, log_prob)
    assert value > 1.2 and "function" in what
    stuck = theta.clone()
    stuck[1] = stuck[1, :1]
    assert not worst_rhat(prior, X, stuck, psi, log_prob)[1] <= 1.2


def test_chains_that_disagree_about_the_noise_are_not_converged() -> None:
    """Held at their starts by trajectories of one tiny step."""
    X, Y = data()
    method = probnn.HMC(num_chains=4, num_warmup=0, num_samples=24, max_leapfrog=1)
    init = network().draws(4)
    law = likelihoods.Gaussian(noise_spread=1e-3)
    with pytest.warns(ConvergenceWarning, match=r"chains disagree, most about the .* \(R-hat"):
        posterior = method.fit(network(), law, X, Y, init=init)
    assert posterior.info.converged is False
    short = replace(method, num_samples=4).fit(network(), law, X, Y, init=init)
    assert short.info.converged is False and not short.info.warnings
    assert replace(method, num_samples=3).fit(network(), law, X, Y, init=init).info.converged is None


def test_batches_of_data_are_checked_like_data() -> None:
    prior, method = network(hidden=(3,)), probnn.HMC(num_chains=2, num_warmup=3, num_samples=2)
    X, Y = data()
    with pytest.raises(ShapeError, match=r"HMC.fit_batch: Y must hold one data set .* or more, got \(0, 1, 8, 1\)"):
        method.fit_batch(prior, likelihoods.Gaussian(), X, Y.expand(0, 1, 8, 1))
    with pytest.warns(PrecisionWarning, match="HMC.fit_batch: float32 data"):
        method.fit_batch(prior, likelihoods.Gaussian(), X.float(), Y.expand(2, 1, 8, 1).float())
