"""Recipes: what reaches the inference, in which units, and what does not."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn.errors import DomainError, NonFiniteError, ShapeError
from probnn.surrogates import (
    Inferred,
    Surrogate,
    available_surrogates,
    get_surrogate,
    recipe,
    register_surrogate,
)
from tests.unit.surrogates.toy import DOUBLE, draws, model, points

BOUNDS = torch.tensor([[-1.0, 10.0], [2.0, 30.0]], dtype=DOUBLE)


class Spy:
    """Builds nothing, remembers what it was given."""

    def __call__(self, X: Tensor, Y: Tensor, **options: Any) -> probnn.EmpiricalProcess:
        self.X, self.Y, self.options = X, Y, options
        return draws(16, Y.shape[-1])


def data(n: int = 6, m: int = 1) -> tuple[Tensor, Tensor]:
    X = BOUNDS[0] + (BOUNDS[1] - BOUNDS[0]) * points(n)
    return X, 50.0 + 7.0 * torch.cat([X.sin(), X.cos()], -1)[:, :m]


@pytest.mark.parametrize("interval", [(-1.0, 1.0), (0.0, 1.0), (-3, 5)])
def test_the_box_becomes_the_interval(interval: tuple[float, float]) -> None:
    spy = Spy()
    X, Y = data()
    corners = torch.cat([BOUNDS, BOUNDS + (BOUNDS[1] - BOUNDS[0])])  # the last two rows lie outside
    fitted = Surrogate(spy, input_transform=interval).fit(torch.cat([X, corners]), Y.repeat(2, 1)[:10], bounds=BOUNDS)
    low, high = interval
    expected = torch.tensor([low, high, high, 2 * high - low], dtype=DOUBLE)[:, None].expand(4, 2)
    torch.testing.assert_close(spy.X[-4:], expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(fitted.input_transform.untransform(spy.X[:6]), X, rtol=0, atol=1e-12)


def test_without_bounds_the_data_span_the_interval() -> None:
    spy = Spy()
    X, Y = data()
    Surrogate(spy).fit(X, Y)
    torch.testing.assert_close(spy.X.amin(0), torch.full((2,), -1.0, dtype=DOUBLE))
    torch.testing.assert_close(spy.X.amax(0), torch.full((2,), 1.0, dtype=DOUBLE))
    X[:, 1] = 3.0  # never varied: in the middle, one unit is the width of the interval
    fitted = Surrogate(spy).fit(X, Y)
    assert (spy.X[:, 1] == 0).all()
    torch.testing.assert_close(fitted.input_transform(X + 0.5)[:, 1], torch.ones(6, dtype=DOUBLE))
    Surrogate(spy, input_transform=None).fit(X, Y)
    assert spy.X is X


def test_outcomes_are_standardised_in_any_unit() -> None:
    spy = Spy()
    X, Y = data(m=2)
    Yvar = torch.rand(6, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) + 0.1
    for scale in (1.0, 1e-9, 1e9):
        fitted = Surrogate(spy).fit(X, scale * Y, scale**2 * Yvar)
        torch.testing.assert_close(spy.Y.mean(0), torch.zeros(2, dtype=DOUBLE), rtol=0, atol=1e-12)
        torch.testing.assert_close(spy.Y.std(0), torch.ones(2, dtype=DOUBLE))
        torch.testing.assert_close(spy.options["noise_variance"], Yvar / Y.var(0))
        torch.testing.assert_close(fitted.outcome_transform.untransform(spy.Y)[0], scale * Y)
    Surrogate(spy, outcome_transform=None).fit(X, Y, Yvar)
    assert spy.Y is Y and spy.options["noise_variance"] is Yvar


def test_constant_and_single_outcomes_keep_their_scale() -> None:
    spy = Spy()
    X, _ = data()
    for Y in (torch.full((6, 1), 0.1, dtype=DOUBLE), torch.full((6, 1), 1e6 / 3, dtype=DOUBLE)):
        fitted = Surrogate(spy).fit(X, Y)
        assert (fitted.outcome_transform.stdvs == 1).all() and spy.Y.abs().max() < 1e-9
    fitted = Surrogate(spy).fit(X[:1], Y[:1])
    assert (spy.Y == 0).all() and fitted.posterior(X).mean.isfinite().all()


def test_no_data() -> None:
    spy = Spy()
    nothing = torch.zeros(0, 2, dtype=DOUBLE), torch.zeros(0, 1, dtype=DOUBLE)
    fitted = Surrogate(spy).fit(*nothing, bounds=BOUNDS)
    assert not hasattr(fitted, "outcome_transform") and fitted.posterior(BOUNDS).mean.shape == (2, 1)
    with pytest.raises(DomainError, match="bounds must be given"):
        Surrogate(spy).fit(*nothing)


def test_options_reach_the_build() -> None:
    spy = Spy()
    before = model(scaled=True)
    told = before.condition_on_observations(points(1), torch.full((1, 1), 5.0, dtype=DOUBLE))
    Surrogate(spy).fit(*data(), seed=5, init=told)
    assert spy.options == {"noise_variance": None, "seed": 5, "init": before.source}
    Surrogate(spy).fit(*data(), init=before.process)
    assert spy.options["init"] is before.process and spy.options["seed"] == 0
    assert Surrogate(spy, num_draws=8).fit(*data()).process.num_draws == 8


def test_thinned_models_start_the_next_fit_from_all_they_had() -> None:
    spy = Spy()
    process = draws(64)
    Surrogate(spy).fit(*data(), init=probnn.ProcessModel(process, num_draws=8))
    assert spy.options["init"] is process


@dataclass(frozen=True)
class Linear:
    """A prior factory."""

    scale: float = 1.0

    def __call__(self, input_dim: int, num_channels: int) -> probnn.BayesianNetwork:
        net = probnn.MLP(input_dim=input_dim, hidden=(), output_dim=num_channels)
        return probnn.BayesianNetwork(net, priors.NormalWeights(weight_scale=self.scale, scaling="none"))


def test_inferred_makes_room_for_the_likelihood() -> None:
    X, Y = points(5), points(5)
    posterior = Inferred(Linear(), likelihoods.Heteroscedastic(), probnn.Laplace())(X, Y, seed=1)
    assert posterior.output_dim == 4 and posterior.num_outcomes == 2 and posterior.dtype == DOUBLE
    noisy = Inferred(Linear(), likelihoods.Gaussian(), probnn.Laplace())
    assert noisy(X, Y).likelihood.levels == 2  # an inferred noise for each outcome
    variance = torch.full_like(Y, 0.01)
    assert noisy(X, Y, noise_variance=variance).likelihood.num_parameters == 0


def test_recipes_are_values() -> None:
    make = lambda: Surrogate(Inferred(Linear(2.0), likelihoods.Gaussian(), probnn.Laplace()), num_draws=32)  # noqa: E731
    a, b = make(), make()
    assert a == b and hash(a) == hash(b) and pickle.loads(pickle.dumps(a)) == a
    assert a != dataclasses.replace(a, num_draws=33) and a != Surrogate(dataclasses.replace(a.build, prior=Linear()))
    for name in available_surrogates():
        recipe_ = get_surrogate(name)
        assert pickle.loads(pickle.dumps(recipe_)) == recipe_ and {recipe_: 1}[get_surrogate(name)] == 1


def test_registered_recipes_are_saved(tmp_path: Path) -> None:
    for name in available_surrogates():
        probnn.save(get_surrogate(name), tmp_path / name)
        assert probnn.load(tmp_path / name) == get_surrogate(name)


def test_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_recipes", dict(recipe._recipes))
    mine = Surrogate(Inferred(Linear(), likelihoods.Gaussian(), probnn.Laplace()))
    register_surrogate("mine", mine)
    register_surrogate("mine", mine)  # again the same: as when a module is imported twice
    assert get_surrogate("mine") is mine and "mine" in available_surrogates()
    assert list(available_surrogates()) == sorted(available_surrogates())
    with pytest.raises(DomainError, match="name of another recipe"):
        register_surrogate("mine", dataclasses.replace(mine, num_draws=3))
    with pytest.raises(DomainError, match="bnn-hmc"):
        get_surrogate("bnn")
    with pytest.raises(DomainError, match=r"no surrogate \['gp'\]"):
        get_surrogate(["gp"])  # type: ignore[arg-type]
    for wrong in (("", mine), (3, mine), ("other", Linear())):
        with pytest.raises(DomainError, match="needs a name and a Surrogate"):
            register_surrogate(*wrong)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"build": 3}, "callable"),
        ({"input_transform": (1.0, -1.0)}, "interval"),
        ({"input_transform": "unit"}, "interval"),
        ({"input_transform": (0.0, 1.0, 2.0)}, "interval"),
        ({"outcome_transform": "log"}, "'standardize'"),
        ({"num_draws": 0}, "num_draws"),
    ],
)
def test_bad_recipes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        Surrogate(**{"build": Spy(), **options})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda k: k.update(train_X=k["train_X"][0]), ShapeError, r"train_X must have shape .*got \(2,\)"),
        (lambda k: k.update(train_X=k["train_X"][:, :0]), ShapeError, r"got \(6, 0\)"),
        (lambda k: k.update(train_X=k["train_X"].unsqueeze(0)), ShapeError, r"\(1, 6, 2\)"),
        (lambda k: k.update(train_X=k["train_X"].tolist()), DomainError, "got a list"),
        (lambda k: k.update(train_X=k["train_X"].long()), DomainError, "int64"),
        (lambda k: k.update(train_X=k["train_X"] * torch.nan), NonFiniteError, "finite"),
        (lambda k: k.update(train_X=k["train_X"].float()), DomainError, "float32"),
        (lambda k: k.update(train_Y=k["train_Y"][:, 0]), ShapeError, r"got \(6,\); one column"),
        (lambda k: k.update(train_Y=k["train_Y"][:5]), ShapeError, r"\(6, 1\).*got \(5, 1\)"),
        (lambda k: k.update(train_Y=None), DomainError, "NoneType"),
        (lambda k: k.update(train_Y=k["train_Y"] / 0), NonFiniteError, "train_Y"),
        (lambda k: k.update(train_Yvar=k["train_Y"][:5]), ShapeError, r"train_Yvar.*\(5, 1\)"),
        (lambda k: k.update(train_Yvar=-k["train_Y"].abs()), DomainError, "positive"),
        (lambda k: k.update(train_Yvar=0 * k["train_Y"]), DomainError, "positive"),
        (lambda k: k.update(bounds=BOUNDS.T[:1]), ShapeError, r"\(2, 2\).*got \(1, 2\)"),
        (lambda k: k.update(bounds=[[0, 0], [1, 1]]), ShapeError, "got a list"),
        (lambda k: k.update(bounds=BOUNDS.flip(0)), DomainError, "got 2 and -1 in column 0"),
        (lambda k: k.update(bounds=BOUNDS[:1].expand(2, 2)), DomainError, "lower < upper"),
        (lambda k: k.update(bounds=BOUNDS.float()), DomainError, "bounds.*float32"),
        (lambda k: k.update(bounds=BOUNDS * torch.inf), NonFiniteError, "bounds"),
        (lambda k: k.update(seed="a"), DomainError, "'a'"),
        (lambda k: k.update(seed=-1), DomainError, "-1"),
        (lambda k: k.update(init="old"), DomainError, "init must be"),
    ],
)
def test_bad_data_are_named(change: Any, error: type[Exception], words: str) -> None:
    X, Y = data()
    arguments: dict[str, Any] = {"train_X": X, "train_Y": Y}
    change(arguments)
    with pytest.raises(error, match=words):
        Surrogate(Spy()).fit(**arguments)


def test_a_build_must_build() -> None:
    with pytest.raises(DomainError, match="StochasticProcess, got a list"):
        Surrogate(lambda X, Y, **_: [X, Y]).fit(*data())
    with pytest.raises(TypeError, match="unknown"):
        Surrogate(Spy()).fit(*data(), unknown=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prior": Linear()(2, 1)},
            "prior must make the prior.*got a BayesianNetwork, whose dimensions are fixed already",
        ),
        ({"prior": priors.BNNPrior}, r"got the class BNNPrior, give BNNPrior\(\.\.\.\)"),
        ({"prior": "bnn"}, "prior must make the prior.*got a str"),
        ({"likelihood": 0.1}, "likelihood must be an object of a Likelihood class, got a float"),
        ({"likelihood": likelihoods.Gaussian}, "got the class Gaussian"),
        ({"method": probnn.Laplace}, "method must be an object of a InferenceMethod class, got the class Laplace"),
        ({"method": "hmc"}, "got a str"),
    ],
)
def test_bad_parts_are_refused_when_they_are_put_together(changes: dict[str, Any], message: str) -> None:
    parts = {"prior": Linear(), "likelihood": likelihoods.Gaussian(), "method": probnn.Laplace(), **changes}
    with pytest.raises(DomainError, match=f"Inferred: .*{message}"):
        Inferred(**parts)


@pytest.mark.parametrize(
    "likelihood", [likelihoods.Bernoulli(), likelihoods.Categorical(3), likelihoods.Poisson()], ids=type
)
def test_outcomes_that_are_not_real_are_not_standardised(likelihood: likelihoods.Likelihood) -> None:
    build = Inferred(Linear(), likelihood, probnn.Laplace())
    name = type(likelihood).__name__
    with pytest.raises(DomainError, match=f"a {name} likelihood cannot take .* set outcome_transform=None"):
        Surrogate(build)
    X, Y = data()
    fitted = Surrogate(build, outcome_transform=None).fit(X, (Y > Y.mean()).double())
    assert fitted.posterior(X).mean.isfinite().all()


@pytest.mark.parametrize("value", ["log", 3, ("standardize",)])
def test_every_outcome_transform_there_is_is_named(value: Any) -> None:
    with pytest.raises(DomainError, match="outcome_transform must be 'standardize' or None, got"):
        Surrogate(Spy(), outcome_transform=value)


def test_arguments_of_fit_have_their_own_names() -> None:
    X, Y = data()
    with pytest.raises(DomainError, match=r"train_X must be a torch tensor of shape \(n, d\), got a ndarray; convert"):
        Surrogate(Spy()).fit(X.numpy(), Y)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match=r"train_Y must be a torch tensor of shape \(n, m\), got a list"):
        Surrogate(Spy()).fit(X, Y.tolist())  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"train_X must have shape \(n, d\), got \(6,\)"):
        Surrogate(Spy()).fit(X[:, 0], Y)
    with pytest.raises(NonFiniteError, match="train_X must be finite"):
        Surrogate(Spy()).fit(X * torch.nan, Y)
    with pytest.raises(DomainError, match="train_Yvar must be positive"):
        Surrogate(Spy()).fit(X, Y, torch.zeros_like(Y))


def test_integers_of_numpy_are_integers() -> None:
    spy = Spy()
    Surrogate(spy, num_draws=numpy.int64(8)).fit(*data(), seed=numpy.int64(5))  # type: ignore[arg-type]
    assert type(spy.options["seed"]) is int
