"""What SGHMC is made of: its stationary law by closed forms, the noise of its gradients, its minibatches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from probnn import likelihoods
from probnn import random as rnd
from probnn.inference import Target
from probnn.inference.friction import HEAT, LOUD, STEP, Adaptation, Walkers, top_variance
from probnn.inference.minibatch import Minibatches
from tests.cases import DOUBLE, data, mean_square, network


@dataclass
class NormalBatches:
    """Gradients of N(0, P^-1), with normal noise of standard deviation `noise` where it is not 0.

    Noise of every coordinate by itself, or with `common` the same of all.
    """

    precision: Tensor
    generator: torch.Generator
    noise: float = 0.0
    common: bool = False

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
        shape = (*z.shape[:-1], 1) if self.common else z.shape
        noise = self.noise * rnd.normal(shape, generator=self.generator, like=z)
        return 0.5 * (slope * z).sum(-1), slope + noise


def correlated(size: int, seed: int) -> Tensor:
    """A covariance with variances from .1 to 10 along random axes."""
    axes = torch.linalg.qr(rnd.normal((size, size), generator=rnd.generator_from(seed), dtype=DOUBLE))[0]
    return axes @ torch.diag(torch.logspace(-1, 1, size, dtype=DOUBLE)) @ axes.mT


def stationary(
    batches: NormalBatches, step_size: float | None, friction: float, draws: int = 60
) -> tuple[Walkers, Tensor]:
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


def test_noises_that_add_up_are_bounded_in_their_direction(seed: int) -> None:
    """The same noise in 20 coordinates: 20 times the heat of each, and so more variance, less what is taken off."""
    size, friction = 20, 0.05
    ones = torch.ones(size, size, dtype=DOUBLE)
    precision = 1e6 * torch.eye(size, dtype=DOUBLE) + 2e5 * ones
    batches = NormalBatches(precision, rnd.generator_from(seed), 500.0, common=True)
    walkers, _ = stationary(batches, None, friction, draws=1)
    walkers.cool()
    assert size * walkers.heat.mean() == pytest.approx(LOUD, rel=0.02)
    assert walkers.loudest.item() == pytest.approx(LOUD)
    values = []
    for _ in range(60):
        for _ in range(20):
            walkers.step()
        values.append(walkers.z[0].sum(-1, keepdim=True) / torch.linalg.inv(precision).sum().sqrt())
    found, error = mean_square(torch.stack(values))
    # The share common to all is known to 2 %.
    assert (found - (1 + LOUD * (1 - 1 / size))).abs() < 5 * error + 0.02 * LOUD


@pytest.mark.parametrize(("size", "spike"), [(200, 1.0), (20, 1.0), (20, 30.0), (1, 4.0)])
def test_the_top_variance_is_estimated_from_below(size: int, spike: float, seed: int) -> None:
    """Where the largest eigenvalue of the sample covariance is many times too large."""
    z = rnd.normal((500, 50, size), generator=rnd.generator_from(seed), dtype=DOUBLE)
    z[..., 0] *= spike**0.5
    found = top_variance(z)
    error = found.std().item() / 500**0.5
    # Isotropic: unbiased. A spike in D coordinates: the direction found from 25 loses (D - 1) / 25 / spike of it.
    assert found.mean() < spike + 5 * error
    assert found.mean() > spike * (1 - (size > 1) * (spike > 1) * (size - 1) / 25 / spike) - 5 * error
    if size == 200:
        assert torch.linalg.matrix_norm(z[:20], 2).square().mean() / 50 > 6
    assert not top_variance(torch.zeros(3, 20, 4)).any()


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
