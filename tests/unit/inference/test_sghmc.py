"""SGHMC: its stationary law by closed forms, its minibatches, its settings; small networks against HMC."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.diagnostics import mcse
from probnn.errors import ConvergenceError, ConvergenceWarning, DomainError, ShapeError
from probnn.inference import Target
from probnn.inference.friction import HEAT, STEP, Adaptation, Walkers
from probnn.inference.minibatch import Minibatches
from tests.cases import DOUBLE, data, network

SHORT = probnn.SGHMC(num_chains=4, num_warmup=60, num_samples=6, keep_every=5, start_steps=20)
# Short chains are not expected to agree.
quiet = pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning")


@dataclass
class NormalBatches:
    """Gradients of N(0, P^-1), with normal noise of standard deviation `noise` where it is not 0."""

    precision: Tensor
    generator: torch.Generator
    noise: float = 0.0

    @property
    def exact(self) -> bool:
        return self.noise == 0

    @property
    def target(self) -> NormalBatches:
        return self

    def pool(self, values: Tensor) -> Tensor:
        return values

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Three times as far out as the target."""
        root = torch.linalg.cholesky(torch.linalg.inv(self.precision))
        return 3 * rnd.normal((*shape, len(root)), generator=generator, dtype=DOUBLE) @ root.mT

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        slope = -z @ self.precision
        noise = self.noise * rnd.normal(z.shape, generator=self.generator, like=z)
        return 0.5 * (slope * z).sum(-1), slope + noise


def correlated(size: int, seed: int) -> Tensor:
    """A covariance with variances from .1 to 10 along random axes."""
    axes = torch.linalg.qr(rnd.normal((size, size), generator=rnd.generator_from(seed), dtype=DOUBLE))[0]
    return axes @ torch.diag(torch.logspace(-1, 1, size, dtype=DOUBLE)) @ axes.mT


def stationary(batches: NormalBatches, step_size: float, friction: float, draws: int = 60) -> tuple[Walkers, Tensor]:
    """Independent chains from the target itself, adapted: whitened middles and ends of steps, 2 x draws x C x D."""
    root = torch.linalg.cholesky(batches.precision)
    size, generator = len(root), batches.generator
    z = torch.linalg.solve_triangular(root.mT, rnd.normal((size, 400), generator=generator, dtype=DOUBLE), upper=True)
    scales = 3 / batches.precision.diagonal().sqrt()
    walkers = Walkers(batches, z.mT.unsqueeze(0), scales, step_size, friction, 0)  # type: ignore[arg-type]
    adaptation = Adaptation(walkers, 600)
    for _ in range(600):
        adaptation.step()
    kept = []
    for _ in range(draws):
        for _ in range(20):
            walkers.step()
        kept.append(torch.stack([walkers.z[0], walkers.end[0]]))
    return walkers, torch.stack(kept, 1) @ root


def mean_square(whitened: Tensor) -> tuple[Tensor, Tensor]:
    """Mean square of every coordinate over draws and chains, and its standard error from the (independent) chains."""
    per_chain = whitened.square().mean(0)
    return per_chain.mean(0), per_chain.std(0) / len(per_chain) ** 0.5


@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_one_coordinate_has_the_variance_of_the_closed_form(step_size: float, seed: int) -> None:
    """Middles of steps have that of the target, ends that of the autoregression."""
    friction = 0.1
    walkers, whitened = stationary(
        NormalBatches(torch.ones(1, 1, dtype=DOUBLE), rnd.generator_from(seed)), step_size, friction
    )
    k = walkers.eta.item()
    for of, expected in ((whitened[0], 1.0), (whitened[1], 1 / (1 - k / (4 - 2 * friction)))):
        found, error = mean_square(of)
        assert (found - expected).abs() < 5 * error
    # The velocity is 4 eta / (4 - 2 alpha - k) at any one step.
    speed = walkers.velocity.square().flatten() / walkers.eta.item() * (1 - (2 * friction + k) / 4)
    assert (speed.mean() - 1).abs() < 5 * speed.std() / len(speed) ** 0.5


@pytest.mark.parametrize(("step_size", "noise"), [(0.3, 0.0), (0.1, 0.0), (0.3, 1.0), (0.1, 3.0)])
def test_a_correlated_normal_in_20_coordinates(step_size: float, noise: float, seed: int) -> None:
    """Every whitened variance is 1 in spite of steps and of gradients' noise, which is measured in the warm-up."""
    precision = torch.linalg.inv(correlated(20, seed))
    walkers, whitened = stationary(NormalBatches(precision, rnd.generator_from(seed), noise), step_size, 0.05)
    found, error = mean_square(whitened[0])
    # The noise is known to a few per cent (50 looks at 400 chains: 1 %), and heat times that is what is missed.
    assert ((found - 1).abs() < 5 * error + 0.03 * walkers.heat.max()).all()
    if noise:
        # Half the squared difference of two normals: variance 2 B^2 a look.
        looks = 400 * 50
        assert (walkers.gradient_noise / noise**2 - 1).abs().max() < 5 * (2 / looks) ** 0.5
        assert 0.2 < walkers.heat.max() < 1


def test_the_published_rule_for_the_noise_is_too_narrow(seed: int) -> None:
    """Taking eps^4 off where gradients are exact: the variance falls by its share of the noise, as derived."""
    batches = NormalBatches(torch.ones(1, 1, dtype=DOUBLE), rnd.generator_from(seed))
    walkers, _ = stationary(batches, 0.3, 0.05, draws=1)
    asked = 2 * 0.05 * walkers.eta
    walkers._sd = (asked - 0.3**4).sqrt()
    kept = []
    for step in range(1600):
        walkers.step()
        if step >= 400 and step % 20 == 0:
            kept.append(walkers.z[0])
    found, error = mean_square(torch.stack(kept))
    expected = 1 - 0.3**4 / asked.item()
    assert expected < 0.4 and (found - expected).abs() < 5 * error


def test_the_step_is_shortened_until_gradients_are_quiet(seed: int) -> None:
    precision = torch.diag(torch.tensor([1.0, 4.0], dtype=DOUBLE))
    for noise, short in ((100.0, True), (0.0, False)):
        batches = NormalBatches(precision, rnd.generator_from(seed), noise)
        walkers = Walkers(batches, torch.zeros(1, 8, 2, dtype=DOUBLE), torch.ones(2).double(), None, 0.001, 0)  # type: ignore[arg-type]
        adaptation = Adaptation(walkers, 400)
        for _ in range(400):
            adaptation.step()
        assert bool(walkers.step_size < STEP) == short
        assert walkers.heat.max().item() == pytest.approx(HEAT if short else 0.0)


# Minibatches ---------------------------------------------------------------------------------------------------------


def regression(n: int = 12, **options) -> Target:
    X, Y = data(n)
    return Target(network(), likelihoods.Gaussian(noise_spread=0.3), X, Y, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_equal_parts_of_the_data_average_to_the_whole(temperature: float) -> None:
    """Values and gradients of a partition's batches; unequal parts do so weighted by their rows."""
    target, g = regression(temperature=temperature), rnd.generator_from(0)
    batches, z = Minibatches(target, 4, g), target.start((1, 3), g)
    whole = target.value_and_grad(z)
    for sizes in ((4, 4, 4), (1,) * 12, (5, 5, 2)):
        parts = torch.randperm(12, generator=g).split(sizes)
        found = [batches.batch(rows.expand(1, 3, -1)).value_and_grad(z) for rows in parts]
        for i in range(2):
            mean = sum(len(rows) / 12 * part[i] for rows, part in zip(parts, found, strict=True))
            assert (mean - whole[i]).abs().max() < 1e-9 * whole[i].abs().max()


def test_rows_are_uniform_and_each_chains_own(seed: int) -> None:
    batches = Minibatches(regression(), 5, rnd.generator_from(seed))
    rows = torch.stack([batches._rows(torch.Size([2, 3])) for _ in range(2000)])
    assert rows.shape == (2000, 2, 3, 5)
    share = torch.bincount(rows.flatten(), minlength=12) / rows.numel()
    assert (share - 1 / 12).abs().max() < 5 * (1 / 12 * 11 / 12 / rows.numel()) ** 0.5
    same = (rows[:, 0, 0] == rows[:, 1, 2]).double().mean()
    assert (same - 1 / 12).abs() < 5 * (1 / 12 * 11 / 12 / 10000) ** 0.5


@pytest.mark.parametrize("shared", [True, False])
def test_every_data_set_gives_its_own_rows(shared: bool) -> None:
    g = rnd.generator_from(0)
    X = rnd.normal((6, 2) if shared else (3, 1, 6, 2), generator=g, dtype=DOUBLE)
    Y, noise = rnd.normal((3, 1, 6, 1), generator=g, dtype=DOUBLE), rnd.uniform((3, 1, 6, 1), generator=g) + 0.5
    target = Target(network(), likelihoods.Gaussian().given_noise(noise), X, Y, noise.double())
    rows = rnd.integers(6, (3, 4, 5), generator=g)
    z = target.start((3, 4), g)
    value, slope = Minibatches(target, 5, g).batch(rows).value_and_grad(z)
    for r in range(3):
        for c in range(4):
            at = rows[r, c]
            one = replace(
                target,
                X=(X if shared else X[r, 0])[at],
                Y=Y[r, 0, at],
                noise_variance=noise.double()[r, 0, at],
                temperature=5 / 6,
            ).value_and_grad(z[r, c])
            assert (one[0] - value[r, c]).abs() < 1e-9 * one[0].abs()
            assert (one[1] - slope[r, c]).abs().max() < 1e-9 * one[1].abs().max()


def test_a_batch_as_large_as_the_data_is_the_data() -> None:
    X, Y = data()
    likelihood = likelihoods.Gaussian(noise=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        draws = [replace(SHORT, batch_size=b).fit(network(), likelihood, X, Y).theta for b in (None, 8, 1000, 7)]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


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
    advised = float(str(told[0].message).split("step_size to ")[1].split()[0])
    assert advised < 0.01
    free = replace(method, step_size=None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert free.fit(network(hidden=()), likelihoods.Gaussian(0.2), X, Y).info.step_size < 0.01
    assert not any("minibatches" in str(w.message) for w in told)


@quiet
def test_steps_that_are_too_long_are_told() -> None:
    """Just inside of what is stable, velocities are much too fast."""
    X, Y, columns = line(50, 0)
    prior = network(priors.NormalWeights(scaling="none"), hidden=())
    curvature = (torch.eye(3, dtype=DOUBLE) + columns.mT @ columns / 0.25).diagonal().sqrt().max().item()
    method = replace(SHORT, num_warmup=1000, step_size=(3.0 / curvature) ** 0.5)
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
