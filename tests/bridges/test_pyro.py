"""The Pyro bridge: the same density, and Pyro's own inference on it, brought back."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.bridges import from_pyro, to_pyro
from probnn.diagnostics import mcse
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.inference import Target

DOUBLE = torch.float64
# Tracing the potential makes Pyro's sampler about five times faster; PyTorch wants torch.export instead.
traced = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.trace:DeprecationWarning")


@pytest.fixture(autouse=True)
def pyro_as_found() -> Iterator[None]:
    """Guides keep their parameters in Pyro's global store: leave it as it was."""
    before = pyro.get_param_store().get_state()
    yield
    pyro.get_param_store().set_state(before)


def network(
    hidden: tuple[int, ...] = (3,), channels: int = 1, inputs: int = 1, weights: Any = None
) -> probnn.BayesianNetwork:
    net = probnn.MLP(input_dim=inputs, hidden=hidden, output_dim=channels)
    return probnn.BayesianNetwork(net, weights or priors.NormalWeights(), dtype=DOUBLE)


def regression(n: int, d: int, m: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = rnd.generator_from(seed)
    X = 2 * rnd.uniform((n, d), generator=generator, dtype=DOUBLE) - 1
    return X, torch.sin(2 * X.sum(-1, keepdim=True)) + 0.3 * rnd.normal((n, m), generator=generator, dtype=DOUBLE)


def split_sites(z: Tensor, prior: probnn.ParametricProcess) -> dict[str, Tensor]:
    theta, psi = z[..., : prior.num_parameters], z[..., prior.num_parameters :]
    return {"theta": theta, "psi": psi} if psi.shape[-1] else {"theta": theta}


def linear_posterior(X: Tensor, Y: Tensor, sd: Tensor, prior_sd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (weights, bias) in y = Xw + b + noise of standard deviation `sd` a row."""
    A = torch.cat([X, torch.ones_like(X[:, :1])], -1) / sd
    covariance = torch.linalg.inv(A.mT @ A + torch.diag(prior_sd**-2))
    return covariance @ A.mT @ (Y / sd).squeeze(-1), covariance


# Likelihood, channels, outcomes, and what Y becomes to be legal.
CASES: dict[str, tuple[Any, int, int, Any]] = {
    "gaussian, fixed": (likelihoods.Gaussian(0.3), 1, 1, None),
    "gaussian, inferred": (likelihoods.Gaussian(noise_median=0.5), 1, 1, None),
    "gaussian, inferred by outcome": (likelihoods.Gaussian(noise_median=0.5, levels=2), 2, 2, None),
    "student-t, inferred": (likelihoods.StudentT(noise_median=0.5), 2, 2, None),
    "heteroscedastic": (likelihoods.Heteroscedastic(noise_median=0.5), 2, 1, None),
    "bernoulli": (likelihoods.Bernoulli(), 1, 1, lambda Y: (Y > 0).to(Y)),
    "categorical": (likelihoods.Categorical(3), 3, 1, lambda Y: (Y > 0).to(Y) + (Y > 0.5).to(Y)),
    "poisson": (likelihoods.Poisson(), 1, 1, lambda Y: Y.abs().ceil()),
}


# Known noise is the Gaussian likelihood's alone.
DATA = [(name, known) for name in CASES for known in (False, True) if not known or name.startswith("gaussian")]


@pytest.mark.parametrize(("name", "known_noise"), DATA)
def test_potential_is_the_target(name: str, known_noise: bool, seed: int) -> None:
    likelihood, channels, outcomes, legal = CASES[name]
    prior = network((4,), channels, inputs=2)
    X, Y = regression(9, 2, outcomes, seed)
    Y = legal(Y) if legal else Y
    variance = 0.1 + 0.5 * rnd.uniform(Y.shape, generator=rnd.generator_from(seed), like=Y) if known_noise else None
    data = (X, Y, variance) if known_noise else (X, Y)
    potential = initialize_model(to_pyro(prior, likelihood), data)[1]
    if variance is not None:
        likelihood = likelihood.given_noise(variance)  # nothing is left to infer
    target = Target(prior, likelihood, X, Y, variance)
    z = 0.7 * rnd.normal((20, target.size), generator=rnd.generator_from(seed + 1), dtype=DOUBLE)
    found = torch.stack([potential(split_sites(row, prior)) for row in z])
    # Both are normalised, so not even a constant may stand between them.
    assert (found + target.log_prob(z)).abs().max() < 1e-9


@pytest.mark.parametrize("law", ["log_normal", "half_cauchy", "inverse_gamma"])
def test_potential_of_hierarchical_weights(law: str, seed: int) -> None:
    prior, likelihood = network((4,), weights=priors.HierarchicalWeights(scale_prior=law)), likelihoods.Gaussian()
    X, Y = regression(9, 1, 1, seed)
    potential = initialize_model(to_pyro(prior, likelihood), (X, Y))[1]
    target = Target(prior, likelihood, X, Y)
    z = 0.7 * rnd.normal((20, target.size), generator=rnd.generator_from(seed), dtype=DOUBLE)
    found = torch.stack([potential(split_sites(row, prior)) for row in z])
    assert (found + target.log_prob(z)).abs().max() < 1e-9 * found.abs().max()


def test_gradient_of_the_potential(seed: int) -> None:
    prior, likelihood = network(), likelihoods.Gaussian()
    X, Y = regression(6, 1, 1, seed)
    potential = initialize_model(to_pyro(prior, likelihood), (X, Y))[1]
    target = Target(prior, likelihood, X, Y)
    z = rnd.normal((target.size,), generator=rnd.generator_from(seed), dtype=DOUBLE).requires_grad_(True)
    (gradient,) = torch.autograd.grad(potential(split_sites(z, prior)), z)
    expected = target.value_and_grad(z.detach())[1]
    torch.testing.assert_close(-gradient, expected, rtol=1e-9, atol=1e-9)


def test_sites() -> None:
    prior, (X, Y) = network(channels=2), regression(5, 1, 2, 0)
    trace = pyro.poutine.trace(to_pyro(prior, likelihoods.Gaussian(levels=2))).get_trace(X, Y)
    assert set(trace.stochastic_nodes) == {"theta", "psi", "rows"}
    assert trace.nodes["Y"]["cond_indep_stack"][0].name == "rows" and trace.nodes["Y"]["cond_indep_stack"][0].dim == -1
    assert trace.nodes["theta"]["value"].shape == (prior.num_parameters,)
    assert trace.nodes["psi"]["value"].shape == (2,)
    observed = trace.nodes["Y"]
    assert observed["is_observed"] and observed["fn"].batch_shape == (5,) and observed["fn"].event_shape == (2,)
    assert torch.equal(trace.nodes["f"]["value"], prior.apply(trace.nodes["theta"]["value"], X))
    without = pyro.poutine.trace(to_pyro(prior, likelihoods.Gaussian(0.1))).get_trace(X, Y)
    assert set(without.stochastic_nodes) == {"theta", "rows"}


def test_no_rows_is_the_prior(seed: int) -> None:
    prior, likelihood = network(), likelihoods.Gaussian()
    X, Y = regression(0, 1, 1, 0)
    potential = initialize_model(to_pyro(prior, likelihood), (X, Y))[1]
    z = rnd.normal((prior.num_parameters + 1,), generator=rnd.generator_from(seed), dtype=DOUBLE)
    expected = prior.log_prob(z[:-1]) + likelihood.log_prior(z[-1:])
    assert abs(potential(split_sites(z, prior)) + expected) < 1e-10


def test_distribution_expands_and_batches(seed: int) -> None:
    prior = network()
    trace = pyro.poutine.trace(to_pyro(prior, likelihoods.Gaussian())).get_trace(regression(3, 1, 1, 0)[0])
    law = trace.nodes["theta"]["fn"]
    assert law.event_shape == (10,) and law.support is torch.distributions.constraints.real_vector
    wide = law.expand([4, 2])
    pyro.set_rng_seed(seed)
    draws = wide.sample(torch.Size([3]))
    assert draws.shape == (3, 4, 2, 10) and len(draws.flatten(0, 2).unique(dim=0)) == 24
    assert torch.equal(wide.log_prob(draws), prior.log_prob(draws))
    assert wide.log_prob(draws[0, 0, 0]).shape == (4, 2)
    assert law.mask(False).log_prob(draws).abs().max() == 0
    with pytest.raises(ShapeError, match=r"\(\.\.\., 10\), got \(3, 1\)"):
        law.log_prob(torch.zeros(3, 1, dtype=DOUBLE))


@pytest.mark.parametrize("parallel", [False, True])
def test_prior_predictive(parallel: bool, seed: int) -> None:
    prior = network((), inputs=2, weights=priors.NormalWeights(weight_scale=1.5, bias_scale=0.5, scaling="none"))
    X, draws = torch.tensor([[0.3, -1.0], [2.0, 0.0]], dtype=DOUBLE), 4000 if parallel else 400
    pyro.set_rng_seed(seed)
    found = Predictive(to_pyro(prior, likelihoods.Gaussian(noise=0.4)), num_samples=draws, parallel=parallel)(X)
    assert found["f"].shape == found["Y"].shape == (draws, 2, 1)
    for values, variance in (
        (found["f"], 2.25 * X.square().sum(-1) + 0.25),
        (found["Y"] - found["f"], torch.full((2,), 0.16, dtype=DOUBLE)),
    ):
        # The variance of a normal sample's second moment is 2 sigma^4 / S, and that of its mean sigma^2 / S.
        assert ((values.square().mean(0).squeeze(-1) / variance - 1).abs() < 5 * math.sqrt(2 / draws)).all()
        assert (values.mean(0).squeeze(-1).abs() < 5 * (variance / draws).sqrt()).all()
    correlation = torch.corrcoef(found["f"].squeeze(-1).mT)[0, 1]
    expected = (2.25 * 0.6 + 0.25) / math.sqrt((2.25 * 1.09 + 0.25) * (2.25 * 4 + 0.25))
    assert abs(correlation - expected) < 5 * (1 - expected**2) / math.sqrt(draws)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("squeezed", [False, True])
def test_posterior_predictive_uses_every_draw_once(parallel: bool, squeezed: bool, seed: int) -> None:
    prior, likelihood = network(channels=2), likelihoods.Gaussian(levels=2)
    X, _ = regression(4, 1, 2, seed)
    generator = rnd.generator_from(seed)
    draws = {
        "theta": prior.sample_parameters((5,), generator=generator),
        "psi": likelihood.sample_prior((5,), generator=generator, dtype=DOUBLE),
    }
    given = draws if squeezed else {name: value.unsqueeze(1) for name, value in draws.items()}
    found = Predictive(to_pyro(prior, likelihood), posterior_samples=given, parallel=parallel)(X)
    torch.testing.assert_close(found["f"], prior.apply(draws["theta"], X), rtol=0, atol=1e-12)
    assert found["Y"].shape == (5, 4, 2)
    # With noise of 1e-9 the outcomes show whose noise they got: that of outcome 0 is tiny, that of outcome 1 is not.
    quiet = {**given, "psi": torch.tensor([-20.0, 0.0], dtype=DOUBLE).expand_as(given["psi"])}
    found = Predictive(to_pyro(prior, likelihood), posterior_samples=quiet, parallel=parallel)(X)
    residual = (found["Y"] - found["f"]).abs()
    assert residual[..., 0].max() < 1e-7 and residual[..., 1].min() > 1e-7


def test_svi_finds_the_evidence(seed: int) -> None:
    """In an orthogonal design the posterior factorises, so the ELBO of AutoNormal reaches the log evidence itself."""
    prior = network((), weights=priors.NormalWeights(weight_scale=1.0, bias_scale=1.0))
    X = torch.tensor([[-1.0], [1.0], [-0.5], [0.5]], dtype=DOUBLE)
    Y = 0.7 * X + 0.2 + 0.3 * rnd.normal((4, 1), generator=rnd.generator_from(seed), dtype=DOUBLE)
    pyro.set_rng_seed(seed)
    model, before = to_pyro(prior, likelihoods.Gaussian(0.5)), set(pyro.get_param_store())
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.985}), Trace_ELBO(32, vectorize_particles=True))
    for _ in range(400):
        svi.step(X, Y)
    assert {name.split(".")[0] for name in set(pyro.get_param_store()) - before} == {"AutoNormal"}
    mean, covariance = linear_posterior(X, Y, torch.full_like(Y, 0.5), torch.ones(2, dtype=DOUBLE))
    assert abs(covariance[0, 1]) < 1e-12
    assert ((guide.locs.theta - mean).abs() < 0.1 * covariance.diag().sqrt()).all()
    assert ((guide.scales.theta / covariance.diag().sqrt()).log().abs() < 0.07).all()
    law = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=DOUBLE), X @ X.mT + 1 + 0.25 * torch.eye(4))
    evidence = law.log_prob(Y.squeeze(-1)).item()
    elbo = -sum(svi.evaluate_loss(X, Y) for _ in range(20)) / 20
    assert abs(elbo - evidence) < 0.02
    back = from_pyro(Predictive(guide, num_samples=50)(X, Y), prior, likelihoods.Gaussian(0.5))
    assert back.theta.shape == (1, 50, 2)


@traced
@pytest.mark.parametrize("case", ["1-3-1, fixed noise", "linear, inferred noise", "linear, known noise"])
def test_nuts_agrees_with_hmc(case: str, seed: int) -> None:
    prior = network((3,) if case.startswith("1-3-1") else ())
    # Twelve points and a narrow prior of the noise keep the tails light: else standard errors of the sd say little.
    inferred = likelihoods.Gaussian(noise_median=0.4, noise_spread=0.4)
    likelihood = likelihoods.Gaussian(0.5) if "fixed" in case else inferred
    X, Y = regression(12, 1, 1, seed)
    variance = torch.linspace(0.05, 0.5, 12, dtype=DOUBLE).unsqueeze(-1) if "known" in case else None
    pyro.set_rng_seed(seed)
    store = set(pyro.get_param_store())
    sampler = NUTS(to_pyro(prior, likelihood), jit_compile=True, ignore_jit_warnings=True)
    run = MCMC(sampler, num_samples=500, warmup_steps=100, disable_progbar=True)
    run.run(X, Y, noise_variance=variance)
    assert set(pyro.get_param_store()) == store
    theirs = from_pyro(run, prior, likelihood, noise_variance=variance)
    assert theirs.theta.shape == (1, 500, prior.num_parameters) and theirs.info.method == "pyro.NUTS"
    ours = probnn.HMC(num_chains=8, num_warmup=200, num_samples=250).fit(
        prior, likelihood, X, Y, noise_variance=variance, seed=seed
    )
    assert theirs.psi.shape[-1] == ours.psi.shape[-1] == (1 if "inferred" in case else 0)
    points = torch.tensor([[-0.5], [1.5]], dtype=DOUBLE)
    f, g = (p.apply(p.theta, points) for p in (theirs, ours))
    error = {kind: (mcse(f, kind).square() + mcse(g, kind).square()).sqrt() for kind in ("mean", "sd")}
    assert ((f.mean((0, 1)) - g.mean((0, 1))).abs() < 5 * error["mean"]).all()
    assert ((f.flatten(0, 1).std(0) - g.flatten(0, 1).std(0)).abs() < 5 * error["sd"]).all()
    if "inferred" in case:
        error = {"mean": (mcse(theirs.psi).square() + mcse(ours.psi).square()).sqrt()}
        assert (theirs.psi.mean() - ours.psi.mean()).abs() < 5 * error["mean"]
    if "known" in case:
        mean, covariance = linear_posterior(X, Y, variance.sqrt(), torch.ones(2, dtype=DOUBLE))
        assert ((theirs.theta.mean((0, 1)) - mean).abs() < 5 * mcse(theirs.theta)).all()
        assert ((theirs.theta.std((0, 1)) - covariance.diag().sqrt()).abs() < 5 * mcse(theirs.theta, "sd")).all()


def test_making_the_model_moves_nothing() -> None:
    pyro.param("mine", torch.tensor(3.0))
    state, store = torch.random.get_rng_state(), set(pyro.get_param_store())
    prior, likelihood = network(), likelihoods.Gaussian()
    to_pyro(prior, likelihood)
    from_pyro({"theta": torch.zeros(5, 10), "psi": torch.zeros(5, 1)}, prior, likelihood)
    assert torch.equal(torch.random.get_rng_state(), state) and set(pyro.get_param_store()) == store
    Predictive(to_pyro(prior, likelihood), num_samples=2)(torch.zeros(3, 1))
    assert set(pyro.get_param_store()) == store and pyro.param("mine").item() == 3.0


def test_the_model_can_be_pickled(seed: int) -> None:
    prior, likelihood = network(), likelihoods.Gaussian()
    data = regression(4, 1, 1, seed)
    model = to_pyro(prior, likelihood)
    sites = {"theta": torch.ones(10, dtype=DOUBLE), "psi": torch.ones(1, dtype=DOUBLE)}
    expected, found = (initialize_model(m, data)[1](sites) for m in (model, pickle.loads(pickle.dumps(model))))
    assert torch.equal(found, expected)


def test_the_prior_follows_the_data() -> None:
    double, single = network(), torch.zeros(3, 1)
    found = Predictive(to_pyro(double, likelihoods.Gaussian()), num_samples=2)(single)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert double.dtype == DOUBLE


def test_a_diverging_trajectory_is_no_error() -> None:
    prior, data = network(), regression(4, 1, 1, 0)
    potential = initialize_model(to_pyro(prior, likelihoods.Gaussian(0.1)), data)[1]
    with pyro.validation_enabled(False):  # as within MCMC
        assert potential({"theta": torch.full((10,), math.nan, dtype=DOUBLE)}).isnan()


def test_draws_serve_predictive_and_no_sampler(seed: int) -> None:
    draws, (X, Y) = network().draws(20, seed=seed), regression(4, 1, 1, seed)
    model = to_pyro(draws, likelihoods.Gaussian(0.1))
    pyro.set_rng_seed(seed)
    found = Predictive(model, num_samples=6, parallel=True)(X)["theta"].flatten(0, 1)
    assert (found.unsqueeze(1) == draws.theta[0]).all(-1).any(-1).all()
    with pytest.raises(UnsupportedError, match="draws have no density"):
        initialize_model(model, (X, Y))


def test_what_the_model_refuses() -> None:
    X, Y = regression(4, 1, 1, 0)
    model = to_pyro(network(), likelihoods.Gaussian())
    with pytest.raises(ShapeError, match=r"X must have shape \(n, 1\)"):
        model(X.expand(3, 4, 1), Y)
    with pytest.raises(ShapeError, match="Y must have shape"):
        model(X, Y[:3])
    with pytest.raises(NonFiniteError, match="Y must be finite"):
        model(X, torch.full_like(Y, math.nan))
    with pytest.raises(DomainError, match="noise_variance must be positive"):
        model(X, Y, torch.zeros_like(Y))
    with pytest.raises(DomainError, match="count"):
        to_pyro(network(), likelihoods.Poisson())(X, -Y.abs())
    with pytest.raises(UnsupportedError, match="noise_variance"):
        to_pyro(network(), likelihoods.Poisson())(X, Y.abs().ceil(), torch.ones_like(Y))


def test_what_to_pyro_refuses() -> None:
    with pytest.raises(DomainError, match="prior must be a StochasticProcess, got a MLP"):
        to_pyro(probnn.MLP(input_dim=1), likelihoods.Gaussian())  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="prior must be parametric"):
        to_pyro(probnn.priors.GPPrior()(1, 1), likelihoods.Gaussian())  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="likelihood must be"):
        to_pyro(network(), "gaussian")  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="3 channels"):
        to_pyro(network(channels=2), likelihoods.Categorical(3))


def test_from_pyro_keeps_chains_and_draws(seed: int) -> None:
    prior, likelihood = network(), likelihoods.Gaussian()
    theta, psi = (rnd.normal((3, 7, size), generator=rnd.generator_from(seed), dtype=torch.float32) for size in (10, 1))
    grouped = from_pyro({"theta": theta, "psi": psi, "f": torch.zeros(2)}, prior, likelihood)
    assert torch.equal(grouped.theta, theta) and torch.equal(grouped.psi, psi)
    assert grouped.dtype == grouped.base.dtype == torch.float32 and grouped.info is None
    assert grouped.prior is grouped.base and grouped.log_weights is None
    flat = from_pyro({"theta": theta[0], "psi": psi[0]}, prior, likelihood)
    assert torch.equal(flat.theta, theta[:1]) and torch.equal(flat.psi, psi[:1])
    predicted = from_pyro({"theta": theta[0].unsqueeze(1), "psi": psi[0].unsqueeze(1)}, prior, likelihood)
    assert torch.equal(predicted.theta, theta[:1]) and torch.equal(predicted.psi, psi[:1])
    variance = torch.tensor([[0.2], [0.4]])
    known = from_pyro({"theta": theta}, prior, likelihood, noise_variance=variance)
    assert known.psi.shape == (3, 7, 0) and math.isclose(known.likelihood.noise.item() ** 2, 0.3, rel_tol=1e-6)


class Finished(MCMC):
    """A run of two chains that is over; running two takes as many processes."""

    def __init__(self, model: Any, sites: dict[str, Tensor]):
        super().__init__(NUTS(model), num_samples=5, warmup_steps=3)
        self.sites = sites

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        return self.sites if group_by_chain else {name: x.flatten(0, 1) for name, x in self.sites.items()}

    def diagnostics(self) -> dict[str, Any]:
        return {"theta": {}, "divergences": {"chain 0": [1, 4], "chain 1": []}}


def test_from_pyro_keeps_what_a_run_knows() -> None:
    prior, likelihood = network(), likelihoods.Gaussian()
    theta = torch.arange(100, dtype=DOUBLE).reshape(2, 5, 10)
    run = Finished(to_pyro(prior, likelihood), {"theta": theta, "psi": theta[..., :1]})
    found = from_pyro(run, prior, likelihood)
    assert torch.equal(found.theta, theta)
    assert found.info.divergences == 2 and found.info.steps == 8
    assert found.info.trace["divergent"].tolist() == [[False, True, False, False, True], [False] * 5]


def test_what_from_pyro_refuses() -> None:
    prior, inferred, fixed = network(), likelihoods.Gaussian(), likelihoods.Gaussian(0.1)
    theta, psi = torch.zeros(5, 10), torch.zeros(5, 1)
    bad: list[tuple[Any, Any, type[Exception], str]] = [
        ([theta], fixed, DomainError, "MCMC or a dictionary"),
        (MCMC(NUTS(to_pyro(prior, fixed)), 5), fixed, DomainError, "call its run"),
        ({"psi": psi}, inferred, DomainError, "must have the site 'theta', got .'psi'."),
        ({"theta": theta}, inferred, DomainError, "must have the site 'psi'"),
        ({"theta": theta, "psi": psi}, fixed, ShapeError, "has no parameters"),
        ({"theta": theta[:, :9]}, fixed, ShapeError, r"theta must have shape \(draws, 10\)"),
        ({"theta": theta[0]}, fixed, ShapeError, "theta must have shape"),
        ({"theta": theta[:0]}, fixed, ShapeError, "at least one draw"),
        ({"theta": theta[None, None]}, fixed, ShapeError, "theta must have shape"),
        ({"theta": theta, "psi": psi[:4]}, inferred, ShapeError, "same chains and draws"),
        ({"theta": theta, "psi": psi.double()}, inferred, DomainError, "psi must have dtype"),
        ({"theta": torch.full_like(theta, math.inf)}, fixed, NonFiniteError, "theta must be finite"),
        ({"theta": theta.tolist()}, fixed, DomainError, "theta must be a torch tensor"),
    ]
    for samples, likelihood, error, words in bad:
        with pytest.raises(error, match=words):
            from_pyro(samples, prior, likelihood)
    with pytest.raises(ShapeError, match=r"noise_variance must have shape \(n, 1\), got \(3,\)"):
        from_pyro({"theta": theta}, prior, inferred, noise_variance=torch.ones(3))
    with pytest.raises(DomainError, match="positive"):
        from_pyro({"theta": theta}, prior, inferred, noise_variance=-torch.ones(3, 1))
