"""SGHMC: posteriors against closed forms and HMC, and its settings."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.diagnostics import mcse
from probnn.errors import ConvergenceError, ConvergenceWarning, DomainError, ShapeError
from probnn.inference import Target
from probnn.inference.friction import LOUD, STEP, Walkers
from probnn.inference.minibatch import Minibatches
from tests.cases import DOUBLE, data, mean_square, network

SHORT = probnn.SGHMC(num_chains=4, num_warmup=60, num_samples=6, keep_every=5, start_steps=20)
# Short chains are not expected to agree.
quiet = pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning")


# Posteriors ----------------------------------------------------------------------------------------------------------


def line(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, outcomes of a line with noise .5, and the inputs with a column of ones."""
    g = rnd.generator_from(seed)
    X = 2 * rnd.uniform((n, 2), generator=g, dtype=DOUBLE) - 1
    Y = X.sum(-1, keepdim=True) + 0.5 * rnd.normal((n, 1), generator=g, dtype=DOUBLE)
    return X, Y, torch.cat([X, torch.ones(n, 1, dtype=DOUBLE)], -1)


@pytest.mark.parametrize(
    ("n", "batch_size", "temperature"),
    [(20, None, 1.0), (20, None, 0.5), (20, None, 2.0), (200, 50, 1.0), (200, 50, 2.0)],
)
@quiet
def test_linear_regression_has_its_closed_form(n: int, batch_size: int | None, temperature: float, seed: int) -> None:
    X, Y, columns = line(n, seed)
    prior = network(priors.NormalWeights(scaling="none"), hidden=())
    method = probnn.SGHMC(
        num_chains=64, num_warmup=1000, num_samples=40, keep_every=20, friction=0.02, step_size=0.02,
        batch_size=batch_size, temperature=temperature,
    )  # fmt: skip
    posterior = method.fit(prior, likelihoods.Gaussian(noise=0.5), X, Y, seed=seed)
    precision = torch.eye(3, dtype=DOUBLE) + columns.mT @ columns / (0.25 * temperature)
    mean = torch.linalg.solve(precision, columns.mT @ Y[:, 0] / (0.25 * temperature))
    whitened = (posterior.theta - mean) @ torch.linalg.cholesky(precision)
    for j in range(3):
        assert whitened[..., j].mean().abs() < 5 * mcse(whitened[..., j])
    found, error = mean_square(whitened.transpose(0, 1))
    bias = 0.0 if batch_size is None else 0.25
    assert ((found - 1).abs() < 5 * error + bias).all(), (found, error)
    assert posterior.info.temperature == temperature


@quiet
def test_features_that_go_together_do_not_widen_their_sum(seed: int) -> None:
    """The heat of no coordinate tells of what their noises bring to the sum of all."""
    d, n, g = 20, 1000, rnd.generator_from(seed)
    x = rnd.normal((n, 1), generator=g, dtype=DOUBLE)
    X = x + 0.01 * rnd.normal((n, d), generator=g, dtype=DOUBLE)
    Y = x + 0.5 * rnd.normal((n, 1), generator=g, dtype=DOUBLE)
    columns = torch.cat([X, torch.ones(n, 1, dtype=DOUBLE)], -1)
    precision = torch.eye(d + 1, dtype=DOUBLE) + columns.mT @ columns / 0.25
    exact = torch.linalg.inv(precision)[:d, :d].sum().sqrt()
    prior = network(priors.NormalWeights(scaling="none"), hidden=(), input_dim=d)
    method = probnn.SGHMC(num_chains=16, num_warmup=600, num_samples=60, keep_every=20, batch_size=50, start_steps=100)
    posterior = method.fit(prior, likelihoods.Gaussian(noise=0.5), X, Y, seed=seed)
    total = posterior.theta[..., :d].sum(-1)
    # The noise is known to some per cent, and the batches' noise changes with the residuals.
    allowed = (1 + LOUD) ** 0.5 + 0.05
    assert total.std() / exact - 5 * mcse(total, kind="sd") / exact < allowed
    with pytest.warns(ConvergenceWarning, match="in the direction where it is the most"):
        replace(method, step_size=2 * posterior.info.step_size, num_samples=4).fit(
            prior, likelihoods.Gaussian(noise=0.5), X, Y, seed=seed
        )


def moments(prior: probnn.BayesianNetwork, theta: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, its error, and standard deviation of f at the points."""
    f = prior._apply(theta, points)[..., 0]
    return f.mean((0, 1)), torch.stack([mcse(f[..., j]) for j in range(f.shape[-1])]), f.flatten(0, 1).std(0)


@pytest.mark.parametrize("batch_size", [None, 10])
@quiet
def test_a_small_network_has_the_posterior_of_hmc(batch_size: int | None, seed: int) -> None:
    X, Y = data(20, d=1, seed=seed)
    prior, likelihood = network(hidden=(5,), input_dim=1), likelihoods.Gaussian(noise=0.3)
    points = torch.linspace(-1, 1, 5, dtype=DOUBLE).unsqueeze(-1)
    hmc = probnn.HMC(num_chains=16, num_warmup=100, num_samples=60).fit(prior, likelihood, X, Y, seed=seed)
    method = probnn.SGHMC(num_chains=32, num_warmup=1000, num_samples=50, keep_every=40, batch_size=batch_size)
    sghmc = method.fit(prior, likelihood, X, Y, seed=seed)
    exact, approximate = (moments(prior, p.theta, points) for p in (hmc, sghmc))
    errors = (exact[1].square() + approximate[1].square()).sqrt()
    # What minibatches add to the mean: a tenth of a standard deviation is allowed.
    allowed = 5 * errors + (0.0 if batch_size is None else 0.1) * exact[2]
    assert ((exact[0] - approximate[0]).abs() < allowed).all()
    assert ((approximate[2] / exact[2] - 1).abs() < 0.25).all()


@quiet
def test_scales_drawn_by_gibbs_have_the_posterior_of_hmc(seed: int) -> None:
    X, Y = data(10, d=1, seed=seed)
    prior = network(priors.InverseGammaWeights(shape=3.0), hidden=(3,), input_dim=1)
    likelihood = likelihoods.Gaussian(noise=0.5)
    scales = next(of for block, of in prior.layout.slices() if block.role == "scale")
    hmc = probnn.HMC(num_chains=16, num_warmup=100, num_samples=60).fit(prior, likelihood, X, Y, seed=seed)
    method = probnn.SGHMC(num_chains=32, num_warmup=1000, num_samples=50, keep_every=40, step_size=0.02, gibbs_every=10)
    sghmc = method.fit(prior, likelihood, X, Y, seed=seed)
    for j in range(scales.start, scales.stop):
        a, b = hmc.theta[..., j], sghmc.theta[..., j]
        assert (a.mean() - b.mean()).abs() < 5 * (mcse(a) ** 2 + mcse(b) ** 2) ** 0.5
        assert 0.75 < b.std() / a.std() < 1.33


@quiet
def test_gibbs_leaves_the_function_and_the_velocity_alone() -> None:
    prior = network(priors.InverseGammaWeights(), hidden=(3,))
    X, Y = data()
    g = rnd.generator_from(0)
    target = Target(prior, likelihoods.Gaussian(noise=0.3), X, Y)
    after = []
    for every in (0, 1):
        batches = Minibatches(target, 8, rnd.generator_from(1))
        walkers = Walkers(batches, target.start((1, 4), rnd.generator_from(2)), torch.ones(prior.num_parameters), 0.01,
                          0.1, every)  # fmt: skip
        walkers.step()
        after.append(walkers)
    without, drawn = after
    assert torch.equal(without.velocity, drawn.velocity)
    assert not torch.equal(without.z, drawn.z)
    assert (prior._apply(without.z, X) - prior._apply(drawn.z, X)).abs().max() < 1e-9
    assert target.refresh(without.z, g) is not None


@quiet
def test_data_sets_in_one_batch_have_the_spread_of_hmc(seed: int) -> None:
    """Over data sets drawn from the prior: the sd of f is within a quarter of HMC's."""
    g = rnd.generator_from(seed)
    prior, likelihood = network(hidden=(5,), input_dim=1), likelihoods.Gaussian(noise=0.3)
    X = torch.linspace(-1, 1, 10, dtype=DOUBLE).unsqueeze(-1)
    truth = prior._sample_parameters(torch.Size([12, 1]), g)
    Y = prior._apply(truth, X) + 0.3 * rnd.normal((12, 1, 10, 1), generator=g, dtype=DOUBLE)
    hmc = probnn.HMC(num_chains=8, num_warmup=80, num_samples=60).fit_batch(prior, likelihood, X, Y, seed=seed)[0]
    method = probnn.SGHMC(num_chains=16, num_warmup=1000, num_samples=50, keep_every=40)
    theta, psi = method.fit_batch(prior, likelihood, X, Y, seed=seed)
    assert theta.shape == (12, 16, 50, prior.num_parameters) and psi.shape == (12, 16, 50, 0)
    points = torch.tensor([[-0.9], [0.1], [0.8]], dtype=DOUBLE)
    exact, found = (prior._apply(t, points)[..., 0].flatten(1, 2).std(1) for t in (hmc, theta))
    assert ((found / exact).log().mean(0).abs() < 0.1).all() and ((found / exact - 1).abs() < 0.35).all()


# Mechanics -----------------------------------------------------------------------------------------------------------


def test_a_batch_as_large_as_the_data_is_the_data() -> None:
    X, Y = data()
    likelihood = likelihoods.Gaussian(noise=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        draws = [replace(SHORT, batch_size=b).fit(network(), likelihood, X, Y).theta for b in (None, 8, 1000, 7)]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


@quiet
def test_everything_that_happened_is_kept() -> None:
    X, Y = data()
    likelihood = likelihoods.Gaussian(noise_spread=0.3)
    posterior = SHORT.fit(network(), likelihood, X, Y)
    info = posterior.info
    assert posterior.theta.shape == (4, 6, posterior.num_parameters) and posterior.psi.shape == (4, 6, 1)
    assert info.steps == 60 + 6 * 5 and info.gradients == 4 * (20 + 1 + info.steps)
    assert info.step_size == pytest.approx(STEP) and info.converged is False
    expected = Target(network(), likelihood, X, Y).log_prob(torch.cat([posterior.theta, posterior.psi], -1))
    assert (info.trace["log_prob"] - expected).abs().max() < 1e-9
    assert info.trace["kinetic_temperature"].shape == (4, 6)
    # Two gradients in each of 20 looks at the start, and one more in that of every tenth step.
    noisy = replace(SHORT, batch_size=3).fit(network(), likelihood, X, Y)
    assert noisy.info.gradients == 4 * (20 + 1 + 40 + info.steps + 6)


@quiet
def test_the_log_density_of_many_rows_is_told_by_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probnn.inference.sghmc, "_WHOLE", 5)
    X, Y = data(9)
    likelihood, noise = likelihoods.Gaussian(noise=0.3), 0.1 + Y.square()
    posterior = SHORT.fit(network(), likelihood, X, Y, noise_variance=noise)
    rows = torch.tensor([0, 2, 4, 6, 8])
    told = Target(network(), posterior.likelihood, X[rows], Y[rows], noise[rows], 5 / 9)
    assert (posterior.info.trace["log_prob"] - told.log_prob(posterior.theta)).abs().max() < 1e-9


@quiet
@pytest.mark.parametrize("batch_size", [None, 3])
def test_seeds(batch_size: int | None) -> None:
    X, Y = data()
    before = torch.random.get_rng_state()
    method = replace(SHORT, batch_size=batch_size)
    runs = [method.fit(network(), likelihoods.Gaussian(noise_spread=0.3), X, Y, seed=s) for s in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(runs[0].theta, runs[1].theta) and torch.equal(runs[0].psi, runs[1].psi)
    assert not torch.equal(runs[0].theta, runs[2].theta)


@quiet
@pytest.mark.parametrize(("at", "steps", "draws"), [(10, 40, 6), (62, 62, 1), (71, 71, 2)])
def test_a_callback_stops_the_phase(at: int, steps: int, draws: int) -> None:
    """In the warm-up that one alone; before the first draw the present point is the draw."""
    X, Y = data()
    posterior = SHORT.fit(
        network(), likelihoods.Gaussian(noise=0.3), X, Y, callback=lambda step, total, state: step == at
    )
    assert posterior.info.steps == steps and posterior.theta.shape[1] == draws


@quiet
def test_single_precision_and_warm_starts() -> None:
    X, Y = (part.float() for part in data())
    first = SHORT.fit(network(), likelihoods.Gaussian(noise=0.3), X, Y)
    assert first.theta.dtype == torch.float32
    again = replace(SHORT, num_warmup=0, num_samples=1, keep_every=1).fit(
        network(), likelihoods.Gaussian(noise=0.3), X, Y, init=first
    )
    assert (again.theta[:, 0] - first.thin(4).theta[0]).abs().max() < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hmc = probnn.HMC(num_chains=4, num_warmup=8, num_samples=2).fit(
            network(), likelihoods.Gaussian(noise=0.3), X, Y, init=first
        )
    assert hmc.info.trace["warmup_acceptance"].shape == (8,), "steps of SGHMC are none of HMC's"


@pytest.mark.parametrize("step_size", [2.0, 1e150])
def test_chains_that_are_lost_are_named(step_size: float) -> None:
    """Whether they overflow or oscillate."""
    X, Y = data()
    with pytest.raises(ConvergenceError, match=r"chains \[0, 1, 2, 3\] ran away .* smaller step_size"):
        replace(SHORT, step_size=step_size, num_warmup=100).fit(network(hidden=()), likelihoods.Gaussian(0.1), X, Y)


def test_noise_beyond_the_friction_is_told() -> None:
    X, Y = data(200)
    method = replace(SHORT, num_warmup=300, step_size=0.01, batch_size=4, friction=0.01)
    with pytest.warns(ConvergenceWarning, match="minibatches bring up to .* set step_size to") as told:
        posterior = method.fit(network(hidden=()), likelihoods.Gaussian(0.2), X, Y)
    assert posterior.info.converged is False
    assert "or to None" in str(told[0].message)
    advised = float(str(told[0].message).split("step_size to ")[1].split()[0])
    assert advised < 0.01


@pytest.mark.parametrize(("num_warmup", "stop"), [(300, None), (300, 40), (0, None), (5, None), (10, None)])
def test_none_leaves_no_noise_beyond_the_friction(num_warmup: int, stop: int | None) -> None:
    """However short the warm-up was, or became."""
    X, Y = data(200)
    method = replace(SHORT, num_warmup=num_warmup, batch_size=4, friction=0.01)
    callback = None if stop is None else lambda step, total, state: step == stop
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        posterior = method.fit(network(hidden=()), likelihoods.Gaussian(0.2), X, Y, callback=callback)
    assert posterior.info.step_size < 0.01
    assert not any("minibatches" in str(w.message) for w in told)


@quiet
def test_steps_that_are_too_long_are_told() -> None:
    """Just inside of what is stable, velocities are much too fast."""
    X, Y, columns = line(50, 0)
    prior = network(priors.NormalWeights(scaling="none"), hidden=())
    curvature = (torch.eye(3, dtype=DOUBLE) + columns.mT @ columns / 0.25).diagonal().sqrt().max().item()
    method = replace(SHORT, num_warmup=1000, step_size=(3.6 / curvature) ** 0.5)
    with pytest.warns(ConvergenceWarning, match="kinetic temperature"):
        method.fit(prior, likelihoods.Gaussian(noise=0.5), X, Y)


@pytest.mark.parametrize(
    "setting",
    [{"num_chains": 0}, {"num_samples": 0}, {"keep_every": 0}, {"num_warmup": -1}, {"start_steps": -1},
     {"gibbs_every": -1}, {"step_size": 0.0}, {"step_size": torch.nan}, {"friction": 0.0}, {"friction": 1.0},
     {"batch_size": 0}, {"batch_size": 1.5}, {"temperature": 0.0}, {"momentum": 0.9}],
)  # fmt: skip
def test_bad_settings(setting: dict) -> None:
    with pytest.raises((DomainError, TypeError), match=next(iter(setting))):
        probnn.SGHMC(**setting)


def test_data_sets_in_one_batch_are_checked() -> None:
    X, Y = data(5)
    for bad in (Y, Y.expand(3, 5, 1)):
        with pytest.raises(ShapeError, match=r"SGHMC.fit_batch: Y must have shape \(R, 1, 5, 1\)"):
            SHORT.fit_batch(network(hidden=()), likelihoods.Gaussian(), X, bad)
    with pytest.raises(ShapeError, match="one data set"):
        SHORT.fit_batch(network(hidden=()), likelihoods.Gaussian(), X, Y.expand(0, 1, 5, 1))
    with pytest.raises(DomainError, match="parametric prior"):
        SHORT.fit_batch(likelihoods.Gaussian(), likelihoods.Gaussian(), X, Y.expand(3, 1, 5, 1))  # type: ignore[arg-type]
    theta, psi = SHORT.fit_batch(network(hidden=()), likelihoods.Gaussian(), X, Y.expand(3, 1, 5, 1))
    assert theta.shape == (3, 4, 6, 3) and psi.shape == (3, 4, 6, 1)
