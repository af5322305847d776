"""What Laplace's method returns and predicts, and how its fit starts, stops, warns and refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DomainError,
    PrecisionWarning,
    ShapeError,
    UnsupportedError,
)
from probnn.inference import GaussianWeightProcess
from tests.unit.inference.laplace_cases import DOUBLE, network, problem

# ---- the process -------------------------------------------------------------------------------------------------


def fitted(m: int = 1, seed: int = 0, **options: object) -> GaussianWeightProcess:
    X, Y = problem(12, m=m, seed=seed)
    return probnn.Laplace(steps=200, **options).fit(  # type: ignore[arg-type, return-value]
        network((4,), output_dim=m), likelihoods.Gaussian(noise=0.1), X, Y, seed=seed
    )


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("structure", ["full", "last_layer", "diagonal"])
def test_linearised_prediction_is_the_naive_one(structure: str, m: int, seed: int) -> None:
    post = fitted(m, seed, structure=structure)
    X = problem(3 * 4, seed=seed + 1)[0].reshape(3, 4, 2)
    mean, covariance = post.predict(X).mean, post.predict(X).distribution.covariance_matrix
    noisy = post.predict(X, observation_noise=True)
    kept = slice(None) if post.support is None else post.support
    for b in range(3):
        J = torch.autograd.functional.jacobian(lambda t, b=b: post.base.apply(t, X[b]), post.loc)[..., kept]
        J = J.reshape(4 * m, -1)  # outcome j at point i has index i m + j
        naive = J @ post.spread.dense() @ J.mT
        torch.testing.assert_close(mean[b], post.base.apply(post.loc, X[b]), rtol=0, atol=1e-12)
        torch.testing.assert_close(covariance[b], naive, rtol=0, atol=1e-10)
        torch.testing.assert_close(noisy.variance[b].flatten(), naive.diagonal() + 0.01, rtol=0, atol=1e-10)
    # One batch element is predicted as it is alone, whatever the pieces.
    torch.testing.assert_close(post.predict(X[1]).mean, mean[1], rtol=0, atol=1e-12)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    post, X = fitted(2, seed), problem(12, seed=seed)[0].reshape(3, 4, 2)
    theta = post.sample_parameters((5,), generator=rnd.generator_from(seed))
    whole = post.predict(X).variance, post.apply(theta, X)
    for module in ("gaussian", "curvature"):
        monkeypatch.setattr(f"probnn.inference.{module}.CHUNK_BYTES", 500)
    torch.testing.assert_close(post.predict(X).variance, whole[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(post.apply(theta, X), whole[1], rtol=0, atol=1e-12)


def test_prediction_is_differentiable_in_inputs(seed: int) -> None:
    post = fitted(1, seed)
    X = problem(3, seed=seed + 1)[0].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: post.predict(x).mean, X)
    assert torch.autograd.gradcheck(lambda x: post.predict(x).variance, X)


def test_more_points_than_parameters_can_be_sampled(seed: int) -> None:
    """A singular covariance: samples of a linear function stay on a line."""
    X, Y = problem(12, d=1, seed=seed)
    post = probnn.Laplace(steps=100).fit(network((), d=1), likelihoods.Gaussian(noise=0.1), X, Y, seed=seed)
    grid = torch.linspace(-1, 1, 7, dtype=DOUBLE).unsqueeze(-1)
    with rnd.forked(rnd.generator_from(seed)):
        samples = post.predict(grid).rsample(torch.Size([5]))
    torch.testing.assert_close(samples.diff(n=2, dim=-2), torch.zeros(5, 5, 1, dtype=DOUBLE), rtol=0, atol=1e-10)
    base = torch.eye(7, dtype=DOUBLE)
    rows = post.predict(grid).rsample_from_base_samples(torch.Size([7]), base) - post.predict(grid).mean
    torch.testing.assert_close(
        rows.squeeze(-1).mT @ rows.squeeze(-1), post.predict(grid).distribution.covariance_matrix, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("structure", ["full", "last_layer"])
def test_linearised_functions(structure: str, seed: int) -> None:
    """f(x; loc) + J (theta - loc), for shared inputs and for inputs of every draw's own, and its pullback."""
    post = fitted(2, seed, structure=structure)
    theta = post.sample_parameters((3,), generator=rnd.generator_from(seed))
    X = problem(15, seed=seed + 1)[0].reshape(3, 5, 2)
    kept = slice(None) if post.support is None else post.support
    J = torch.autograd.functional.jacobian(lambda t: post.base.apply(t, X), post.loc)[..., kept]
    expected = post.base.apply(post.loc, X) + torch.einsum("bnck,sk->sbnc", J, theta - post.mean)
    torch.testing.assert_close(post.apply(theta, X), expected, rtol=0, atol=1e-10)
    own = torch.stack([expected[s, s] for s in range(3)])
    torch.testing.assert_close(post._apply(theta, X), own, rtol=0, atol=1e-10)
    for at in (X, X[0]):
        value, pullback = post._pullback(theta, at)
        cotangent = rnd.normal(value.shape, generator=rnd.generator_from(seed + 2), dtype=DOUBLE)
        leaf = theta.clone().requires_grad_(True)
        slope = torch.autograd.grad(post._apply(leaf, at), leaf, cotangent)[0]
        torch.testing.assert_close(value, post._apply(theta, at), rtol=0, atol=1e-12)
        torch.testing.assert_close(pullback(cotangent), slope, rtol=0, atol=1e-10)


def test_functions_of_the_network_itself(seed: int) -> None:
    post = fitted(1, seed, structure="last_layer", linearized=False)
    theta = post.sample_parameters((3,), generator=rnd.generator_from(seed))
    full = post.loc.expand(3, -1).clone()
    full[:, post.support] = theta
    X = problem(4, seed=seed)[0]
    torch.testing.assert_close(post.apply(theta, X), post.base.apply(full, X), rtol=0, atol=1e-12)
    assert post.predict(X).values.shape == (256, 4, 1)


def test_log_prob_is_the_normal_one(seed: int) -> None:
    for structure in ("full", "last_layer", "diagonal"):
        post = fitted(1, seed, structure=structure)
        theta = post.sample_parameters((6,), generator=rnd.generator_from(seed))
        law = torch.distributions.MultivariateNormal(post.mean, post.spread.dense())
        torch.testing.assert_close(post.log_prob(theta), law.log_prob(theta), rtol=1e-8, atol=1e-8)


def test_other_likelihoods_predict_by_draws(seed: int) -> None:
    X, Y = problem(15, seed=seed)
    post = probnn.Laplace(steps=200).fit(network((4,)), likelihoods.Bernoulli(), X, (Y > 0).double(), seed=seed)
    posterior = post.predict(X)
    assert posterior.values.shape == (256, 15, 1) and ((posterior.mean > 0) & (posterior.mean < 1)).all()
    torch.testing.assert_close(post.predict(X).mean, posterior.mean, rtol=0, atol=0)
    with pytest.raises(UnsupportedError, match="draws"):
        post.condition(X, (Y > 0).double())


def test_correlated_prior_is_exact(seed: int) -> None:
    """The posterior of half the data as prior for the rest, where the function is linear."""
    X, Y = problem(14, seed=seed)
    likelihood, method = likelihoods.Gaussian(noise=0.1), probnn.Laplace(steps=100)
    first = method.fit(network(()), likelihood, X[:5], Y[:5], seed=seed)
    second = method.fit(first, likelihood, X[5:], Y[5:], seed=seed)
    whole = method.fit(network(()), likelihood, X, Y, seed=seed)
    torch.testing.assert_close(second.loc, whole.loc, rtol=0, atol=1e-8)
    torch.testing.assert_close(second.spread.dense(), whole.spread.dense(), rtol=0, atol=1e-10)
    total = first.info.log_evidence + second.info.log_evidence
    assert total == pytest.approx(whole.info.log_evidence, abs=1e-8)
    last = probnn.Laplace(steps=100, structure="last_layer")
    with pytest.raises(UnsupportedError, match="last_layer.*needs a BayesianNetwork"):
        last.fit(first, likelihood, X, Y)
    with pytest.raises(UnsupportedError, match="diagonal.*independent coordinates"):
        probnn.Laplace(steps=100, structure="diagonal").fit(first, likelihood, X, Y)


# ---- the method --------------------------------------------------------------------------------------------------


def test_seeds_and_the_global_stream() -> None:
    X, Y = problem(12)
    fit = probnn.Laplace(steps=60).fit
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = (fit(network((4,)), likelihoods.Gaussian(), X, Y, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("loc", "directions", "gains", "psi"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert not torch.equal(one.loc, fit(network((4,)), likelihoods.Gaussian(), X, Y, seed=6).loc)


def test_saving(tmp_path: object) -> None:
    post = fitted(structure="last_layer")
    post.save(f"{tmp_path}/post.safetensors")
    back = probnn.load(f"{tmp_path}/post.safetensors")
    X = problem(3)[0]
    assert torch.equal(back.predict(X).variance, post.predict(X).variance)
    assert back.to(dtype=torch.float32).predict(X.float()).mean.dtype == torch.float32


def test_warm_start_and_support(seed: int) -> None:
    X, Y = problem(12, seed=seed)
    likelihood, prior = likelihoods.Gaussian(noise=0.1), network((4,))
    cold = probnn.Laplace(steps=400, tolerance=1e-10, polish_steps=1000).fit(prior, likelihood, X, Y, seed=seed)
    warm = probnn.Laplace(steps=1, lr=1e-9, tolerance=1e-10).fit(prior, likelihood, X, Y, init=cold, seed=seed + 1)
    assert warm.info.converged
    torch.testing.assert_close(warm.predict(X).mean, cold.predict(X).mean, rtol=0, atol=1e-4)
    last = probnn.Laplace(structure="last_layer", steps=50).fit(prior, likelihood, X, Y, seed=seed)
    probnn.Laplace(steps=50).fit(prior, likelihood, X, Y, init=last)  # the mode is a start for all weights
    probnn.Laplace(steps=50).fit(prior, likelihood, X, Y, init=cold.draws(4))
    with pytest.raises(ShapeError, match="parameters"):
        probnn.Laplace().fit(network((5,)), likelihood, X, Y, init=cold)


def test_callback_stops_and_says_where_it_is() -> None:
    X, Y = problem(12)
    calls: list[tuple[int, int, dict]] = []
    post = probnn.Laplace(steps=40, rounds=3).fit(
        network((4,)), likelihoods.Gaussian(), X, Y, callback=lambda *state: calls.append(state)
    )
    assert [step for step, *_ in calls] == sorted({step for step, *_ in calls}) and calls[-1][0] < calls[-1][1] == 43
    assert {state["phase"] for *_, state in calls} == {"mode", "evidence"} and len(post.info.trace["log_prob"]) == 41
    stopped = probnn.Laplace(steps=40).fit(
        network((4,)), likelihoods.Gaussian(), X, Y, callback=lambda step, total, state: step == 7
    )
    assert stopped.info.converged is False and stopped.info.steps == 7


def test_no_data_is_the_prior() -> None:
    X, Y = torch.zeros(0, 2, dtype=DOUBLE), torch.zeros(0, 1, dtype=DOUBLE)
    prior = network((4,), priors.NormalWeights((2.0, 3.0), 0.5))
    post = probnn.Laplace().fit(prior, likelihoods.Gaussian(), X, Y)
    scales = prior.weight_prior.scales(prior.network.layout, X)
    assert torch.equal(post.loc, torch.zeros_like(scales)) and torch.equal(post.spread.dense(), torch.diag(scales**2))
    assert post.info.log_evidence == 0.0 and not post.linearized and post.psi.exp().item() == pytest.approx(0.1)
    hierarchical = probnn.Laplace().fit(network((4,), priors.HierarchicalWeights()), likelihoods.Gaussian(), X, Y)
    assert isinstance(hierarchical, probnn.EmpiricalProcess)


def test_what_it_refuses() -> None:
    X, Y = problem(12)
    gaussian = likelihoods.Gaussian(noise=0.1)
    with pytest.raises(UnsupportedError, match="log prior of LaplaceWeights has no curvature at the mode"):
        probnn.Laplace(steps=20).fit(network((4,), priors.LaplaceWeights()), gaussian, X, Y)
    with pytest.raises(UnsupportedError, match="tune=True sets the scales of a NormalWeights prior, got Hierarchical"):
        probnn.Laplace(tune=True).fit(network((4,), priors.HierarchicalWeights()), gaussian, X, Y)
    for bad in ({"structure": "kron"}, {"steps": 0}, {"lr": -1.0}, {"tolerance": 0.0}, {"tune": 1}, {"rounds": 2.0}):
        with pytest.raises(DomainError, match=f"Laplace: {next(iter(bad))}"):
            probnn.Laplace(**bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        probnn.Laplace(sizes=3)  # type: ignore[call-arg]


def test_priors_with_coupled_coordinates_are_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Coupled(priors.NormalWeights):
        """Normal weights under another name, and pulled together."""

        def log_prob(self, network: object, theta: Tensor) -> Tensor:
            return -0.5 * theta.square().sum(-1) - theta.sum(-1).square()

        def log_prob_and_grad(self, network: object, theta: Tensor) -> tuple[Tensor, Tensor]:
            return self.log_prob(network, theta), -theta - 2 * theta.sum(-1, keepdim=True)

    X, Y = problem(12)
    with pytest.raises(UnsupportedError, match="log prior of Coupled couples coordinates"):
        probnn.Laplace(steps=20).fit(network((4,), Coupled()), likelihoods.Gaussian(0.1), X, Y)


def test_warnings_and_errors_of_the_fit() -> None:
    X, Y = problem(12)
    with pytest.warns(ConvergenceWarning, match="mode was not reached in 1 steps"):
        post = probnn.Laplace(steps=2, polish_steps=1).fit(network((8,)), likelihoods.Gaussian(noise=0.01), X, Y)
    assert post.info.converged is False and len(post.info.warnings) == 1
    with pytest.warns(PrecisionWarning, match="float32"):
        probnn.Laplace(steps=20).fit(network(()), likelihoods.Gaussian(noise=0.5), X.float(), Y.float())
    with pytest.raises(ConvergenceError, match="not finite at any of 2 starts") as caught:
        probnn.Laplace(steps=2, num_starts=2).fit(network(()), likelihoods.Gaussian(noise=0.1), X, Y * 1e200)
    assert caught.value.partial.shape == (2, 3)


def test_gaussian_weight_process_checks_its_tensors() -> None:
    base, ones = network(()), torch.ones(3, dtype=DOUBLE)
    with pytest.raises(ShapeError, match="scale must have shape \\(3,\\)"):
        GaussianWeightProcess(base, ones, ones[:2])
    with pytest.raises(DomainError, match="both directions and gains"):
        GaussianWeightProcess(base, ones, ones, gains=ones[:0])
    with pytest.raises(DomainError, match="scale must be positive"):
        GaussianWeightProcess(base, ones, -ones)
    with pytest.raises(DomainError, match="psi is needed"):
        GaussianWeightProcess(base, ones, ones, likelihood=likelihoods.Gaussian())
    for support in (torch.tensor([1, 0]), torch.tensor([0, 3]), torch.tensor([0.0, 1.0])):
        with pytest.raises(DomainError, match="increasing indices"):
            GaussianWeightProcess(base, ones, ones[:2], support=support)
    cut = GaussianWeightProcess(base, ones, ones[:2], support=torch.tensor([0, 2]))
    assert [(block.name, block.shape) for block in cut.layout.blocks] == [("support", (2,))]
    theta, psi = GaussianWeightProcess(
        base, ones, ones, psi=ones[:1], psi_scale=ones[:1], likelihood=likelihoods.Gaussian()
    )._sample_joint(torch.Size([500]), rnd.generator_from(0))
    assert theta.shape == (500, 3) and psi.shape == (500, 1) and 0.8 < psi.std() < 1.2


def test_only_kinks_are_blamed_on_the_activation() -> None:
    X, Y = problem(12)
    for activation, said in (("relu", True), ("tanh", False)):
        prior = probnn.BayesianNetwork(
            probnn.MLP(input_dim=2, hidden=(8,), activation=activation), priors.NormalWeights(), dtype=DOUBLE
        )
        with pytest.warns(ConvergenceWarning, match="mode was not reached") as caught:
            probnn.Laplace(steps=2, polish_steps=1).fit(prior, likelihoods.Gaussian(noise=0.01), X, Y)
        assert ("smooth activation" in str(caught[0].message)) is said
