"""Information acquisitions for draws against numerical integrals and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from botorch.acquisition.bayesian_active_learning import qBayesianActiveLearningByDisagreement
from botorch.acquisition.joint_entropy_search import qJointEntropySearch
from botorch.acquisition.max_value_entropy_search import qMaxValueEntropy
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.acquisition.predictive_entropy_search import qPredictiveEntropySearch
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.optim import optimize_acqf
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn.errors import DomainError, ShapeError, UnsupportedError
from probnn.predictive import DrawsPosterior
from probnn.surrogates import ExpectedInformationGain, MaxValueEntropy
from tests.unit.surrogates.toy import BOX, DOUBLE, draws, model, points


def _integral(made: Model, x: Tensor, labels: Tensor) -> float:
    """I(y; label) at one point by the trapezoid rule, from the definition."""
    posterior = made.posterior(x, observation_noise=True)
    f, sd, w = posterior.values.flatten(), posterior.noise_std.flatten(), posterior.weights
    y = torch.linspace(float((f - 10 * sd).min()), float((f + 10 * sd).max()), 20_001, dtype=DOUBLE)
    component = w * torch.exp(-0.5 * ((y[:, None] - f) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
    total = component.sum(-1)
    information = 0.0
    for label in labels.unique():
        part = component[:, labels == label].sum(-1)
        weight = w[labels == label].sum()
        ratio = torch.where(part > 0, part / (weight * total), 1.0)
        information += torch.trapezoid(part * ratio.log(), y).item()
    return information


@pytest.mark.parametrize("scaled", [False, True])
def test_information_gain_is_the_integral(scaled: bool, seed: int) -> None:
    made = model(24, scaled=scaled, seed=seed)
    gain = ExpectedInformationGain(made, num_samples=8192, seed=seed)
    for x in points(4, 1, seed=seed):
        # Terms are at most about log 24; 8,192 of them, chosen better than at random: 5 standard errors.
        assert abs(gain(x).item() - _integral(made, x, torch.arange(24))) < 5 * math.log(24) / math.sqrt(8192)


def test_max_value_entropy_is_the_integral(seed: int) -> None:
    made, grid = model(60, scaled=True, seed=seed), points(100, seed=9)
    for maximize in (True, False):
        entropy = MaxValueEntropy(made, grid, num_bins=5, maximize=maximize, num_samples=8192, seed=seed)
        values = made.posterior(grid).values.squeeze(-1)
        best = values.amax(-1) if maximize else values.amin(-1)
        torch.testing.assert_close(entropy.best_values, best)
        weight = torch.stack([made.process.weights[entropy.bins == k].sum() for k in range(5)])
        assert ((weight - 0.2).abs() < made.process.weights.max()).all()
        order = entropy.bins[best.argsort(descending=not maximize)]
        assert (order.diff() >= 0).all()
        for x in points(3, 1, seed=seed):
            expected = _integral(made, x, entropy.bins)
            assert abs(entropy(x).item() - expected) < 5 * math.log(5) / math.sqrt(8192)


def test_information_gain_of_a_linear_model() -> None:
    """Jointly at three points, against half the log determinant of a Gaussian."""
    net = probnn.MLP(input_dim=2, hidden=())
    prior = probnn.BayesianNetwork(net, priors.NormalWeights(scaling="none"), dtype=DOUBLE)
    z = torch.special.ndtri(torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(4096, dtype=DOUBLE))
    process = probnn.EmpiricalProcess(prior, z.unsqueeze(0), z.new_zeros(1, 4096, 0), likelihoods.Gaussian(noise=2.0))
    gain = ExpectedInformationGain(probnn.ProcessModel(process, num_draws=4096), num_samples=4096)
    X = points(3)
    A = torch.cat([X, torch.ones(3, 1, dtype=DOUBLE)], -1)
    exact = 0.5 * torch.logdet(torch.eye(3, dtype=DOUBLE) + A @ A.T / 4)
    # The information density has the variance sum of rho^2 over the canonical correlations rho.
    precision = torch.linalg.inv(torch.eye(3, dtype=DOUBLE) + A @ A.T / 4)
    error = ((3 - precision.trace()) / 4096).sqrt()
    assert abs(gain(X) - exact) < 5 * error < 0.15 * exact


def test_bounds_and_batches() -> None:
    made, X = model(32, m=2), points(6, 2)
    gain = ExpectedInformationGain(made)
    value = gain(X)
    assert value.shape == (6,) and (value > 0).all()
    w = made.process.weights
    assert (value <= -(w * w.log()).sum() + w.max() * 32 / 256 * math.log(256)).all()
    for i in range(6):
        torch.testing.assert_close(gain(X[i]), value[i : i + 1], rtol=0, atol=1e-12)
    assert (gain(X) >= gain(X[:, :1]) - 1e-3).all()  # another observation never hurts
    pending = ExpectedInformationGain(made, X_pending=points(1, seed=5))
    both = gain(torch.cat([X, points(1, seed=5).expand(6, 1, 2)], -2))
    torch.testing.assert_close(pending(X), both, rtol=0, atol=1e-12)
    assert torch.equal(ExpectedInformationGain(made)(X), value)
    assert not torch.equal(ExpectedInformationGain(made, seed=1)(X), value)


def test_much_noise_says_nothing() -> None:
    made = model(32, likelihood=likelihoods.Gaussian(noise=1e4))
    assert ExpectedInformationGain(made)(points(1, 1)).abs() < 1e-4
    assert MaxValueEntropy(made, points(50), num_bins=4)(points(1, 1)).abs() < 1e-3


class Masses(Model):
    """Draws with given values and noise ``S x 1`` at every point, the latter perhaps zero."""

    num_outputs = 1
    batch_shape = torch.Size()

    def __init__(self, values: Tensor, noise: Tensor, log_weights: Tensor):
        super().__init__()
        self.values, self.noise, self.log_weights = values, noise.expand(values.shape), log_weights

    def posterior(self, X: Tensor, *args: Any, observation_noise: bool = False, **options: Any) -> DrawsPosterior:
        f = self.values.unsqueeze(-2) + 0 * X.sum(-1, keepdim=True).unsqueeze(-3)  # differentiable
        return DrawsPosterior(
            f, self.log_weights, self.noise.unsqueeze(-2).expand(f.shape) if observation_noise else None
        )


def test_outcomes_without_noise_tell_draws_apart() -> None:
    """Worth the entropy of the groups of equal draws, as little noise is; beside draws with noise as well."""
    w = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE)
    column = torch.tensor([[1.0], [1.0], [2.0], [5.0]], dtype=DOUBLE)
    x = torch.full((1, 2), 0.5, dtype=DOUBLE)

    def gain(noise: Tensor) -> ExpectedInformationGain:
        return ExpectedInformationGain(Masses(column, noise, w.log()), num_samples=8192)

    groups = torch.tensor([0.3, 0.3, 0.4], dtype=DOUBLE)
    entropy, error = -(groups * groups.log()).sum().item(), 5 * math.log(10) / math.sqrt(8192)
    exact, little = gain(torch.zeros(1, dtype=DOUBLE)), gain(torch.full((1,), 1e-6, dtype=DOUBLE))
    assert abs(exact(x).item() - entropy) < error
    assert abs(exact(x).item() - little(x).item()) < 1e-9
    # One draw of four has noise: what it brings forth has no probability under the point masses, though the
    # density of its normal is positive at all of them.
    some = torch.tensor([[0.0], [0.0], [1.0], [0.0]], dtype=DOUBLE)
    assert abs(gain(some)(x).item() - entropy) < error
    # Two with noise: those two are told apart as two normals are, the others exactly.
    two = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=DOUBLE)
    among = _integral(Masses(column[2:], two[2:], w[2:].log()), x, torch.arange(2))
    apart = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert abs(gain(two)(x).item() - (apart + 0.7 * among)) < error
    # The best value of every draw, which is its only one, in bins: known exactly too.
    made = Masses(column, torch.zeros(1, dtype=DOUBLE), w.log())
    best = MaxValueEntropy(made, points(3), num_bins=2, num_samples=8192)
    share = float(w[best.bins == 0].sum())
    assert 0 < share < 1
    assert best.bins[0] == best.bins[1]  # equal draws in two bins could not be told apart
    assert abs(best(x).item() + share * math.log(share) + (1 - share) * math.log(1 - share)) < error
    point = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(gain(some)(point).sum(), point)
    assert slope.isfinite().all()


def test_scalarised_outcomes() -> None:
    pair, X = model(48, m=2), points(3, 1)
    transform = ScalarizedPosteriorTransform(torch.tensor([1.0, 0.0], dtype=DOUBLE))
    one = pair.subset_output([0])
    for make in (
        lambda model, **k: ExpectedInformationGain(model, **k),
        lambda model, **k: MaxValueEntropy(model, points(50), num_bins=4, **k),
    ):
        torch.testing.assert_close(make(pair, posterior_transform=transform)(X), make(one)(X))
    with pytest.raises(DomainError, match="needs one outcome"):
        MaxValueEntropy(pair, points(50))


def test_gradients_and_optimisation() -> None:
    made = model(24, scaled=True)
    for acquisition in (
        ExpectedInformationGain(made, num_samples=32),
        MaxValueEntropy(made, points(50), num_bins=4, num_samples=32),
    ):
        X = points(2, 2).requires_grad_(True)
        assert torch.autograd.gradcheck(acquisition, (X,), eps=1e-6, atol=1e-5)
        start = points(256, 1, seed=3)
        values = acquisition(start).detach()
        best = start[values.argmax()].reshape(1, 1, 2)
        x, value = optimize_acqf(acquisition, BOX, q=1, num_restarts=1, batch_initial_conditions=best)
        assert value >= values.max() - 1e-9 and ((x >= 0) & (x <= 1)).all()


def test_what_needs_draws_says_so() -> None:
    X = points(6)
    gp = SingleTaskGP(X, X.sum(-1, keepdim=True))
    with pytest.raises(UnsupportedError, match="GPyTorchPosterior"):
        ExpectedInformationGain(gp)(X)
    with pytest.raises(UnsupportedError, match="GPyTorchPosterior"):
        MaxValueEntropy(gp, X)
    batch = model().condition_on_observations(points(3, 1), torch.zeros(3, 1, 1, dtype=DOUBLE))
    with pytest.raises(UnsupportedError, match=r"\(3,\)"):
        ExpectedInformationGain(batch)(X)
    for wrong in (X[0], X[:0], X.unsqueeze(0), [[0.0, 0.0]]):
        with pytest.raises(ShapeError, match="candidate_set"):
            MaxValueEntropy(model(), wrong)
    with pytest.raises(DomainError, match="num_bins"):
        MaxValueEntropy(model(), X, num_bins=1)
    with pytest.raises(DomainError, match="seed"):
        ExpectedInformationGain(model(), seed=-1)


def test_botorchs_gaussian_ones_name_the_alternative() -> None:
    made, X = model(), points(6)
    words = "MaxValueEntropy or ExpectedInformationGain"
    with pytest.raises(UnsupportedError, match=words):
        qMaxValueEntropy(made, X)(points(2, 1))
    with pytest.raises(UnsupportedError, match=words):
        qPredictiveEntropySearch(made, X[:2])(points(2, 1))
    wide = model(likelihood=likelihoods.Gaussian(noise=3.0))
    with pytest.raises(UnsupportedError, match=words):
        qJointEntropySearch(wide, X[:2], torch.zeros(2, 1, dtype=DOUBLE), condition_noiseless=False)(points(2, 1))
    # BoTorch refuses here before the model is asked anything.
    with pytest.raises(RuntimeError, match="SaasFullyBayesianSingleTaskGP"):
        qBayesianActiveLearningByDisagreement(made)


def test_weights_of_zero() -> None:
    process = draws(16)
    log_weights = torch.where(torch.arange(16) < 8, 0.0, -math.inf).double()
    half = probnn.EmpiricalProcess(process.base, process.theta, process.psi, process.likelihood, log_weights)
    kept = probnn.EmpiricalProcess(process.base, process.theta[:, :8], process.psi[:, :8], process.likelihood)
    X = points(3, 1).requires_grad_(True)
    a = ExpectedInformationGain(probnn.ProcessModel(half), num_samples=4096)(X)
    b = ExpectedInformationGain(probnn.ProcessModel(kept), num_samples=4096)(X)
    torch.testing.assert_close(a, b, rtol=0, atol=5 * math.log(8) / math.sqrt(4096))
    assert torch.autograd.grad(a.sum(), X)[0].isfinite().all()
