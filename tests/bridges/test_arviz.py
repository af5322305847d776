"""The ArviZ bridge: every number in its place, and the diagnostics of both libraries agree."""

from __future__ import annotations

import math
from typing import Any

import arviz
import numpy
import pytest
import torch
import xarray
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.bridges import arviz_summary, to_arviz
from probnn.diagnostics import ess, rhat
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.inference import FitInfo

DOUBLE = torch.float64
C, S = 3, 40


def draws(seed: int, likelihood: Any = None, channels: int = 1, **options: Any) -> probnn.EmpiricalProcess:
    """Draws of a small network that know their place: three chains of forty."""
    net = probnn.MLP(input_dim=2, hidden=(4,), output_dim=channels)
    prior = probnn.BayesianNetwork(net, priors.NormalWeights(), dtype=DOUBLE)
    likelihood, generator = likelihood or likelihoods.Gaussian(noise_median=0.5), rnd.generator_from(seed)
    theta = prior.sample_parameters((C, S), generator=generator)
    psi = likelihood.sample_prior((C, S), generator=generator, dtype=DOUBLE)
    return probnn.EmpiricalProcess(prior, theta, psi, likelihood, **options)


def inputs(n: int, seed: int) -> Tensor:
    return 2 * rnd.uniform((n, 2), generator=rnd.generator_from(seed), dtype=DOUBLE) - 1


def outcomes(n: int, m: int, seed: int) -> Tensor:
    return rnd.normal((n, m), generator=rnd.generator_from(seed + 1), dtype=DOUBLE)


def values(tree: Any, group: str, name: str) -> Tensor:
    return torch.as_tensor(tree[group][name].to_numpy())


def autoregression(shape: tuple[int, ...], coefficient: float, seed: int) -> Tensor:
    noise = rnd.normal(shape, generator=rnd.generator_from(seed), dtype=DOUBLE)
    steps = [noise[:, 0] / math.sqrt(1 - coefficient**2)]
    for s in range(1, shape[1]):
        steps.append(coefficient * steps[-1] + noise[:, s])
    return torch.stack(steps, 1)


def test_function_values_keep_chain_draw_and_point(seed: int) -> None:
    posterior, X_test = draws(seed, likelihoods.Gaussian(levels=2), channels=2), inputs(5, seed)
    tree = posterior.to_arviz(X_test=X_test)
    assert dict(tree["posterior"]["f"].sizes) == {"chain": C, "draw": S, "point": 5, "channel": 2}
    f = values(tree, "posterior", "f")
    for c, s, i in ((0, 0, 0), (1, 7, 4), (2, 39, 2)):
        expected = posterior.base.apply(posterior.theta[c, s], X_test[i : i + 1]).squeeze(0)
        torch.testing.assert_close(f[c, s, i], expected, rtol=0, atol=1e-12)
    assert torch.equal(values(tree, "constant_data", "X_test"), X_test)
    assert tree["posterior"]["f"].coords["draw"].to_numpy().tolist() == list(range(S))
    assert "row" not in tree["posterior"].sizes and not hasattr(tree, "log_likelihood")


def test_likelihood_parameters_have_their_natural_scale(seed: int) -> None:
    posterior = draws(seed)
    tree = to_arviz(posterior, X_test=inputs(2, seed))
    assert dict(tree["posterior"]["noise"].sizes) == {"chain": C, "draw": S}
    assert torch.equal(values(tree, "posterior", "noise"), posterior.psi[..., 0].exp())
    posterior = draws(seed, likelihoods.Gaussian(levels=2), channels=2)
    tree = to_arviz(posterior)  # no points: the noise alone
    assert list(tree["posterior"].data_vars) == ["noise"]
    assert dict(tree["posterior"]["noise"].sizes) == {"chain": C, "draw": S, "outcome": 2}
    assert torch.equal(values(tree, "posterior", "noise"), posterior.psi.exp())


def test_parameters_come_when_asked_for(seed: int) -> None:
    posterior, X_test = draws(seed), inputs(2, seed)
    assert set(to_arviz(posterior, X_test=X_test)["posterior"].data_vars) == {"f", "noise"}
    tree = to_arviz(posterior, include_parameters=True)
    assert dict(tree["posterior"]["layers.0.weight"].sizes) == {
        "chain": C,
        "draw": S,
        "layers.0.weight_dim_0": 4,
        "layers.0.weight_dim_1": 2,
    }
    named = {b.name: values(tree, "posterior", b.name) for b in posterior.layout.blocks}
    assert torch.equal(posterior.layout.flatten(named), posterior.theta)
    taken = torch.nn.Module()
    taken.noise = torch.nn.Parameter(torch.zeros(1))
    taken.forward = lambda X: X[..., :1] * taken.noise  # type: ignore[method-assign]
    network = probnn.BayesianNetwork(probnn.ModuleNetwork(taken, input_dim=2), priors.NormalWeights(), dtype=DOUBLE)
    clash = probnn.EmpiricalProcess(
        network, torch.zeros(1, 4, 1, dtype=DOUBLE), posterior.psi[:1, :4], likelihoods.Gaussian()
    )
    with pytest.raises(DomainError, match="'noise'"):
        to_arviz(clash, include_parameters=True)


def test_sample_stats(seed: int) -> None:
    generator = rnd.generator_from(seed)
    trace = {name: rnd.normal((C, S), generator=generator) for name in ("energy", "acceptance", "log_prob")}
    trace |= {"divergent": trace["energy"] > 1.5, "num_leapfrog": torch.arange(S)}  # all chains take as many steps
    trace |= {"loss": torch.zeros(C, S), "inverse_mass": torch.zeros(7)}
    tree = to_arviz(draws(seed, info=FitInfo(method="HMC", step_size=0.25, trace=trace)), X_test=inputs(1, seed))
    stats = tree["sample_stats"]
    assert set(stats.data_vars) == {"energy", "acceptance_rate", "diverging", "lp", "n_steps", "step_size"}
    assert stats["diverging"].dtype == bool
    pairs = {"energy": "energy", "acceptance_rate": "acceptance", "lp": "log_prob"}
    for theirs, ours in (pairs | {"diverging": "divergent"}).items():
        assert dict(tree["sample_stats"][theirs].sizes) == {"chain": C, "draw": S}
        assert torch.equal(values(tree, "sample_stats", theirs), trace[ours])
    assert torch.equal(values(tree, "sample_stats", "n_steps"), torch.arange(S).expand(C, S))
    assert (values(tree, "sample_stats", "step_size") == 0.25).all()
    assert dict(tree["sample_stats"]["step_size"].sizes) == {"chain": C, "draw": S}


def test_sample_stats_speak_of_the_draws_that_are_there(seed: int) -> None:
    trace = {"energy": torch.zeros(C, S), "num_leapfrog": torch.ones(S)}
    posterior = draws(seed, info=FitInfo(method="HMC", step_size=0.25, trace=trace))
    assert hasattr(to_arviz(posterior), "sample_stats")
    for number in (30, S):
        assert not hasattr(to_arviz(posterior.thin(number)), "sample_stats")
    assert not hasattr(to_arviz(draws(seed, info=FitInfo(method="DeepEnsemble"))), "sample_stats")


def test_hamiltonian_monte_carlo_from_end_to_end(seed: int) -> None:
    linear = probnn.MLP(input_dim=2, hidden=())  # a target on which so short a run is no cause for warnings
    prior, X = probnn.BayesianNetwork(linear, priors.NormalWeights(), dtype=DOUBLE), inputs(8, seed)
    method = probnn.HMC(num_chains=2, num_warmup=50, num_samples=15)
    posterior = method.fit(prior, likelihoods.Gaussian(0.5), X, outcomes(8, 1, seed), seed=seed)
    tree = posterior.to_arviz(X_test=X)
    assert dict(tree["posterior"]["f"].sizes) == {"chain": 2, "draw": 15, "point": 8, "channel": 1}
    stats = tree["sample_stats"]
    assert {"diverging", "acceptance_rate", "energy", "lp", "step_size", "n_steps"} <= set(stats.data_vars)
    assert int(stats["diverging"].sum()) == posterior.info.divergences
    assert torch.equal(values(tree, "sample_stats", "lp"), posterior.info.trace["log_prob"])
    assert math.isclose(float(stats["acceptance_rate"].mean()), posterior.info.acceptance, rel_tol=1e-6)


def test_tempered_posteriors_have_no_log_likelihood(seed: int) -> None:
    X, Y = inputs(6, seed), outcomes(6, 1, seed)
    plain, tempered = (to_arviz(draws(seed, info=FitInfo(temperature=T)), X=X, Y=Y) for T in (1.0, 0.5))
    assert hasattr(plain, "log_likelihood") and not hasattr(tempered, "log_likelihood")
    assert tempered["posterior"].attrs["likelihood_temperature"] == 0.5


@pytest.mark.parametrize("known_noise", [False, True])
def test_log_likelihood(known_noise: bool, seed: int) -> None:
    posterior = draws(seed, likelihoods.Gaussian(noise_median=0.5, levels=2), channels=2)
    X, Y = inputs(6, seed), outcomes(6, 2, seed)
    variance = torch.linspace(0.1, 2.0, 12, dtype=DOUBLE).reshape(6, 2) if known_noise else None
    tree = to_arviz(posterior, X=X, Y=Y, noise_variance=variance)
    assert dict(tree["log_likelihood"]["Y"].sizes) == {"chain": C, "draw": S, "row": 6}
    found = values(tree, "log_likelihood", "Y")
    for c, s, i in ((0, 0, 0), (1, 20, 5), (2, 39, 3)):
        f = posterior.base.apply(posterior.theta[c, s], X)[i]
        sd = posterior.psi[c, s].exp() if variance is None else variance[i].sqrt()
        assert abs(found[c, s, i] - torch.distributions.Normal(f, sd).log_prob(Y[i]).sum()) < 1e-9
    assert torch.equal(values(tree, "observed_data", "Y"), Y) and torch.equal(values(tree, "constant_data", "X"), X)
    assert dict(tree["posterior"]["f"].sizes)["point"] == 6  # without X_test the function is shown at X


@pytest.mark.parametrize("known_noise", [False, True])
def test_new_outcomes_have_the_noise_of_their_draw(known_noise: bool, seed: int) -> None:
    posterior, X = draws(seed), inputs(50, seed)
    variance = torch.linspace(0.1, 2.0, 50, dtype=DOUBLE).unsqueeze(-1) if known_noise else None
    X_test = X[:20]
    tree = to_arviz(posterior, X_test=X_test, X=X, Y=outcomes(50, 1, seed), noise_variance=variance, seed=seed)
    noise = posterior.psi.exp().unsqueeze(-2)
    at_rows = noise if variance is None else variance.sqrt()
    for name, dim, points, sd in (("Y", "row", X, at_rows), ("Y_test", "point", X_test, noise)):
        assert dict(tree["posterior_predictive"][name].sizes) == {"chain": C, "draw": S, dim: len(points), "outcome": 1}
        z = (values(tree, "posterior_predictive", name) - posterior.base.apply(posterior.theta, points)) / sd
        # Every standardised residual is a standard normal of its own.
        assert abs(z.mean()) < 5 / math.sqrt(z.numel())
        assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / z.numel())
        assert len(z.flatten().unique()) == z.numel()


def test_prior_group(seed: int) -> None:
    net = probnn.MLP(input_dim=2, hidden=())
    weights = priors.NormalWeights(weight_scale=1.5, bias_scale=0.5, scaling="none")
    prior, likelihood = probnn.BayesianNetwork(net, weights, dtype=DOUBLE), likelihoods.Gaussian(noise_median=0.3)
    zero = torch.zeros(1, 4, 3, dtype=DOUBLE)
    posterior, X_test = probnn.EmpiricalProcess(prior, zero, zero[..., :1], likelihood), inputs(3, seed)
    tree = to_arviz(posterior, X_test=X_test, num_prior=4000, seed=seed)
    assert dict(tree["prior"]["f"].sizes) == {"chain": 1, "draw": 4000, "point": 3, "channel": 1}
    assert dict(tree["prior"]["noise"].sizes) == {"chain": 1, "draw": 4000}
    variance = 2.25 * X_test.square().sum(-1) + 0.25
    second = values(tree, "prior", "f").square().mean((0, 1)).squeeze(-1)
    assert ((second / variance - 1).abs() < 5 * math.sqrt(2 / 4000)).all()
    log_noise = values(tree, "prior", "noise").log()
    assert abs(log_noise.mean() - math.log(0.3)) < 5 / math.sqrt(4000)
    assert values(tree, "posterior", "f").abs().max() == 0
    assert not hasattr(to_arviz(posterior, X_test=X_test, num_prior=0), "prior")


def test_seeds(seed: int) -> None:
    posterior, X_test = draws(seed), inputs(4, seed)
    state = torch.random.get_rng_state()
    a, b, other = (to_arviz(posterior, X_test=X_test, seed=s) for s in (seed, seed, seed + 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for group, name in (("posterior_predictive", "Y_test"), ("prior", "f"), ("prior", "noise")):
        assert torch.equal(values(a, group, name), values(b, group, name))
        assert not torch.equal(values(a, group, name), values(other, group, name))
    assert torch.equal(values(a, "posterior", "f"), values(other, "posterior", "f"))


@pytest.mark.parametrize("coefficient", [0.0, 0.9, -0.5])
def test_diagnostics_agree_on_an_autoregression(coefficient: float, seed: int) -> None:
    x = autoregression((4, 500, 3), coefficient, seed)
    data = xarray.Dataset({"x": (("chain", "draw", "i"), x.numpy())})
    for ours, theirs in (
        (rhat(x), arviz.rhat(data)),
        (ess(x), arviz.ess(data)),
        (ess(x, "tail"), arviz.ess(data, method="tail")),
        (ess(x, "mean"), arviz.ess(data, method="mean")),
        (ess(x, "sd"), arviz.ess(data, method="sd")),
    ):
        numpy.testing.assert_allclose(ours.numpy(), theirs["x"].to_numpy(), rtol=1e-6)


def test_diagnostics_agree_on_exported_functions(seed: int) -> None:
    posterior, X_test = draws(seed, likelihoods.Gaussian(levels=2), channels=2), inputs(5, seed)
    # Chains that move slowly and stand apart, so that neither number is trivial.
    walk = autoregression((C, S, posterior.num_parameters), 0.8, seed) + torch.arange(C).reshape(C, 1, 1)
    posterior = probnn.EmpiricalProcess(posterior.base, walk, posterior.psi, posterior.likelihood)
    tree, f = to_arviz(posterior, X_test=X_test), posterior.apply(walk, X_test)
    assert rhat(f).max() > 1.05
    numpy.testing.assert_allclose(rhat(f).numpy(), arviz.rhat(tree)["f"].to_numpy(), rtol=1e-6)
    numpy.testing.assert_allclose(ess(f).numpy(), arviz.ess(tree)["f"].to_numpy(), rtol=1e-6)


def test_leave_one_out_against_the_closed_form(seed: int) -> None:
    """ArviZ's model comparison finds the groups it needs, and they hold the right numbers."""
    net = probnn.MLP(input_dim=2, hidden=())
    prior = probnn.BayesianNetwork(net, priors.NormalWeights(scaling="none"), dtype=DOUBLE)
    X, noise = inputs(30, seed), 0.5
    A = torch.cat([X, torch.ones(30, 1, dtype=DOUBLE)], -1)
    truth = torch.tensor([[1.0], [-0.5], [0.3]], dtype=DOUBLE)
    Y = A @ truth + noise * outcomes(30, 1, seed)

    def exact(rows: Tensor) -> tuple[Tensor, Tensor]:
        covariance = torch.linalg.inv(A[rows].mT @ A[rows] / noise**2 + torch.eye(3, dtype=DOUBLE))
        return covariance @ A[rows].mT @ Y[rows].squeeze(-1) / noise**2, covariance

    mean, covariance = exact(torch.arange(30))
    z = rnd.normal((4, 1000, 3), generator=rnd.generator_from(seed), dtype=DOUBLE)
    theta = mean + z @ torch.linalg.cholesky(covariance).mT
    posterior = probnn.EmpiricalProcess(prior, theta, theta.new_zeros(4, 1000, 0), likelihoods.Gaussian(noise))
    found = arviz.loo(posterior.to_arviz(X=X, Y=Y), pointwise=True).loo_i.to_numpy()
    expected = []
    for i in range(30):
        mean, covariance = exact(torch.tensor([j for j in range(30) if j != i]))
        sd = (A[i] @ covariance @ A[i] + noise**2).sqrt()
        expected.append(torch.distributions.Normal(A[i] @ mean, sd).log_prob(Y[i, 0]).item())
    numpy.testing.assert_allclose(found, expected, atol=0.05)


def test_summary(seed: int) -> None:
    tree = draws(seed).to_arviz(X_test=inputs(2, seed))
    table = arviz_summary(tree, prob=0.5)
    assert table.index.tolist() == ["f[0, 0]", "f[1, 0]", "noise"]
    f = values(tree, "posterior", "f")
    numpy.testing.assert_allclose(table["mean"].to_numpy()[:2], f.mean((0, 1)).flatten().numpy(), rtol=1e-9)
    numpy.testing.assert_allclose(table["r_hat"].to_numpy()[:2], rhat(f).flatten().numpy(), rtol=1e-6)
    low, high = (table[name].to_numpy()[0] for name in table.columns if name.startswith("hdi"))
    inside = ((f[..., 0, 0] >= low) & (f[..., 0, 0] <= high)).double().mean()
    assert abs(inside - 0.5) <= 2 / (C * S)
    assert arviz_summary(tree, var_names=["noise"]).index.tolist() == ["noise"]


@pytest.mark.parametrize("plot", ["plot_trace", "plot_ppc", "plot_energy"])
def test_plots(plot: str, seed: int) -> None:
    import matplotlib.pyplot as plt

    posterior = draws(seed, info=FitInfo(trace={"energy": rnd.normal((C, S), generator=rnd.generator_from(seed))}))
    tree = posterior.to_arviz(X_test=inputs(2, seed), X=inputs(6, seed), Y=outcomes(6, 1, seed))
    axes = getattr(arviz, plot)(tree, **({"num_pp_samples": 20} if plot == "plot_ppc" else {}))
    # plot_trace has a row a variable; the others one picture of lines.
    assert axes.shape == (2, 2) if plot == "plot_trace" else axes.get_lines()
    plt.close("all")


def test_a_file_keeps_everything(seed: int, tmp_path: Any) -> None:
    posterior = draws(seed, info=FitInfo(trace={"divergent": torch.zeros(C, S, dtype=torch.bool)}))
    tree = posterior.to_arviz(X_test=inputs(2, seed), include_parameters=True)
    tree.to_netcdf(str(tmp_path / "draws.nc"))
    back = arviz.from_netcdf(str(tmp_path / "draws.nc"))
    assert sorted(back.groups()) == sorted(tree.groups())
    for group in tree.groups():
        xarray.testing.assert_equal(back[group], tree[group])
    assert back["posterior"].attrs["inference_library"] == "probnn"


def test_version_one_gets_a_tree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """ArviZ 1 needs a newer Python than the library: here its version and its `summary` are pretended."""
    posterior, X_test = draws(seed), inputs(2, seed)
    data = to_arviz(posterior, X_test=X_test)
    monkeypatch.setattr(arviz, "__version__", "1.3.0")
    tree = to_arviz(posterior, X_test=X_test)
    assert isinstance(tree, xarray.DataTree) and sorted(tree.children) == sorted(data.groups())
    for group in data.groups():
        xarray.testing.assert_identical(tree[group].to_dataset(), data[group])
    asked: dict[str, Any] = {}
    monkeypatch.setattr(arviz, "summary", lambda data, **options: asked.update(options))
    arviz_summary(tree, prob=0.8)
    assert asked == {"var_names": None, "round_to": "none", "ci_prob": 0.8, "ci_kind": "hdi"}


@pytest.mark.parametrize(("chains", "length"), [(4, 1), (1, 3), (1, 40), (2, 4)])
def test_a_summary_has_the_columns_there_can_be(
    chains: int, length: int, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An ensemble's members are chains of one draw: no R-hat, no effective size, and no complaint about it."""
    whole = draws(seed).theta.flatten(0, 1)[: chains * length].unflatten(0, (chains, length))
    posterior = probnn.EmpiricalProcess(draws(seed).base, whole, whole[..., :0])
    X = inputs(3, seed)
    table = arviz_summary(posterior.to_arviz(X_test=X))
    f = posterior.apply(whole, X).squeeze(-1).flatten(0, 1)
    assert numpy.allclose(table["mean"], f.mean(0)) and numpy.allclose(table["sd"], f.std(0))
    diagnosed = {"mcse_mean", "ess_bulk", "ess_tail"}
    assert diagnosed <= set(table) if length >= 4 else not diagnosed & set(table)
    assert ("r_hat" in table) == (chains > 1 and length >= 4)
    assert not table.isna().any(axis=None) and not caplog.records


def test_summaries_of_something_else_are_refused(seed: int) -> None:
    posterior, X = draws(seed), inputs(2, seed)
    with pytest.raises(DomainError, match=r"got a EmpiricalProcess; give posterior.to_arviz\(X_test=...\)"):
        arviz_summary(posterior)
    with pytest.raises(DomainError, match="got a Tensor; give what to_arviz returns"):
        arviz_summary(X)
    data = posterior.to_arviz(X_test=X)
    with pytest.raises(DomainError, match=r"no variables \['g'\] in the posterior group; it has \['f', 'noise'\]"):
        arviz_summary(data, var_names=["f", "g"])
    del data.posterior
    with pytest.raises(DomainError, match="no posterior group"):
        arviz_summary(data)


def test_names_of_variables(seed: int) -> None:
    data = draws(seed).to_arviz(X_test=inputs(2, seed))
    assert arviz_summary(data, var_names="noise").index.tolist() == ["noise"]
    assert arviz_summary(data, var_names=["~f"]).index.tolist() == ["noise"]
    assert len(arviz_summary(data)) == 3


def test_what_it_refuses(seed: int) -> None:
    posterior, X, Y = draws(seed), inputs(6, seed), outcomes(6, 1, seed)
    weighted = posterior.condition(X[:1], Y[:1])
    with pytest.raises(UnsupportedError, match="posterior.thin"):
        weighted.to_arviz(X_test=X)
    assert weighted.thin(50).to_arviz(X_test=X)["posterior"].sizes["draw"] == 50
    with pytest.raises(DomainError, match="must be an EmpiricalProcess, got a BayesianNetwork"):
        to_arviz(posterior.base, X_test=X)  # type: ignore[arg-type]
    fixed = probnn.EmpiricalProcess(posterior.base, posterior.theta, posterior.psi[..., :0], likelihoods.Gaussian(0.1))
    with pytest.raises(DomainError, match="nothing to export"):
        to_arviz(fixed)
    with pytest.raises(DomainError, match="give X and Y together"):
        to_arviz(posterior, X=X)
    with pytest.raises(DomainError, match="give X and Y together"):
        to_arviz(posterior, X_test=X, Y=Y)
    with pytest.raises(DomainError, match="give X and Y together"):
        to_arviz(posterior, X_test=X, noise_variance=Y.square())
    with pytest.raises(UnsupportedError, match="no likelihood"):
        to_arviz(posterior.base.draws(5), X=X, Y=Y)
    with pytest.raises(ShapeError, match=r"\(n, 2\)"):
        to_arviz(posterior, X_test=X[:, :1])
    with pytest.raises(ShapeError, match=r"\(n, 2\)"):
        to_arviz(posterior, X_test=X.expand(2, 6, 2))
    with pytest.raises(ShapeError, match="Y must have shape"):
        to_arviz(posterior, X=X, Y=Y[:5])
    with pytest.raises(NonFiniteError, match="Y must be finite"):
        to_arviz(posterior, X=X, Y=torch.full_like(Y, math.nan))
    with pytest.raises(DomainError, match="dtype"):
        to_arviz(posterior, X_test=X.float())
    with pytest.raises(DomainError, match="noise_variance must be positive"):
        to_arviz(posterior, X=X, Y=Y, noise_variance=-Y.square())
    poisson = draws(seed, likelihoods.Poisson())
    with pytest.raises(UnsupportedError, match="noise_variance"):
        to_arviz(poisson, X=X, Y=Y.abs().ceil(), noise_variance=Y.square())
    with pytest.raises(DomainError, match="count"):
        to_arviz(poisson, X=X, Y=Y)
    for name, value in (("num_prior", -1), ("seed", "a")):
        with pytest.raises(DomainError, match=name):
            to_arviz(posterior, X_test=X, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x_test"):
        posterior.to_arviz(x_test=X)
    for prob in (0, 1.0, True, "90%"):
        with pytest.raises(DomainError, match="prob"):
            arviz_summary(to_arviz(posterior, X_test=X), prob=prob)  # type: ignore[arg-type]
