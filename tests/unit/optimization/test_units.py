"""Outcomes in units of their own spread: models, predictions, checks and figures do not depend on a person's units."""

from __future__ import annotations

import pytest
import torch

from probnn import get_surrogate
from probnn.errors import ProbnnError
from probnn.inference import DeepEnsemble, Exact
from probnn.likelihoods import Gaussian
from probnn.optimization import BayesianOptimization, Real, Space
from probnn.optimization.checking import check_model
from probnn.optimization.goals import Goals
from probnn.optimization.models import Data
from probnn.optimization.predicting import predict
from probnn.optimization.units import Units, in_units
from probnn.plots import plot_pareto, plot_slices
from probnn.priors import BNNPrior, GPPrior
from probnn.surrogates import Inferred, Surrogate

DOUBLE = torch.double
UNIT = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
X = torch.linspace(0, 1, 9, dtype=DOUBLE).unsqueeze(-1)
Y = (5 * X).sin() + 3
AT = torch.tensor([[[0.13], [0.72]]], dtype=DOUBLE)


def test_units_are_those_of_the_outcomes() -> None:
    units = Units.of(1e-7 * Y)
    inside = units.inside(1e-7 * Y)
    assert abs(float(inside.mean())) < 1e-12 and float(inside.std()) == pytest.approx(1.0)
    assert torch.allclose(units.outside(inside), 1e-7 * Y, rtol=1e-14, atol=0)
    assert units.outside(units.inside(0.3)) == pytest.approx(0.3, rel=1e-12)
    # Outcomes that do not differ, but for rounding, and single ones.
    same = torch.full((4, 1), 0.1 + 0.2, dtype=DOUBLE)
    same[0] = 0.3
    assert Units.of(same).scale == 1.0 and Units.of(same[:1]) == Units(0.3, 1.0) and Units.of(same[:0]) == Units(0, 1)


@pytest.mark.parametrize("name", ["gp", "laplace", "plain"])
def test_the_same_model_in_other_units(name: str) -> None:
    plain = Surrogate(Inferred(GPPrior(), Gaussian(0.1), Exact()), outcome_transform=None)
    model = (plain if name == "plain" else get_surrogate(name)).fit(X, Y, bounds=UNIT)
    for units in (Units.of(Y), Units(-2.0, 0.25)):
        other = in_units(model, units)
        for noise in (False, True):
            a, b = (m.posterior(AT, observation_noise=noise) for m in (model, other))
            assert torch.allclose(a.mean, units.outside(b.mean), rtol=1e-10)
            assert torch.allclose(a.variance, units.scale**2 * b.variance, rtol=1e-8)
    assert other.process is model.process


@pytest.mark.parametrize("unit", [1e-9, 1e9])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", ["gp", "draws"])
def test_predictions_and_checks(name: str, known: bool, unit: float) -> None:
    """GPyTorch raises variances to 1e-10: a thousand times the spread of outcomes of 1e-9, were they not rescaled."""
    quick = DeepEnsemble(size=8, steps=20, anchored=True)
    draws = Surrogate(Inferred(BNNPrior(hidden=(5,), scale_prior=None), Gaussian(0.3), quick), num_draws=8)
    recipe = get_surrogate("gp") if name == "gp" else draws
    rows, checks = [], []
    for scale in (1.0, unit):
        bo = BayesianOptimization(Space(x=Real(0, 1)), minimize="y", subject_to=f"y >= {2.5 * scale}", surrogate=recipe)
        for x, y in zip(X.flatten().tolist(), Y.flatten().tolist(), strict=True):
            bo.add({"x": x}, scale * y, sem=0.1 * scale if known else None)
        rows.append(predict(bo, [{"x": 0.13}, {"x": 0.72}]))
        variance = torch.full_like(Y, (0.1 * scale) ** 2) if known else None
        data = Data(X, scale * Y, variance)
        checks.append(check_model(recipe, recipe.fit(X, scale * Y, variance, bounds=UNIT), data, UNIT))
    for one, two in zip(*rows, strict=True):
        assert two["p_ok"] == pytest.approx(one["p_ok"], abs=1e-3)
        for key in ("y_mean", "y_std", "y_q05", "y_q95"):
            assert two[key] == pytest.approx(unit * one[key], rel=1e-3), key
    assert torch.allclose(checks[0].position, checks[1].position, atol=1e-3)
    assert torch.allclose(unit * checks[0].mean, checks[1].mean, rtol=1e-3)


def test_the_reference_point() -> None:
    scores = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.5, 0.5]], dtype=DOUBLE)
    goals = Goals.of(["a", "b"])
    for unit in (1e-9, 1.0, 1e9):
        expected = unit * torch.tensor([0.9, 0.9], dtype=DOUBLE)
        assert torch.allclose(goals.reference_point(unit * scores), expected, rtol=1e-12, atol=0)
    assert torch.isfinite(goals.reference_point(torch.zeros(2, 2, dtype=DOUBLE))).all()


def test_figures() -> None:
    bands = []
    for unit in (1.0, 1e-8):
        bo = BayesianOptimization(Space(x=Real(0, 1)), maximize="y", minimize="z", surrogate="gp", num_initial=4)
        bo.run(lambda x, u=unit: {"y": u * x * (1 - x), "z": u * x}, 5)
        bo.ask()
        outline = plot_slices(bo, outcome="z")[0].collections[0].get_paths()[0].vertices[:, 1]
        waiting = plot_pareto(bo).get_lines()
        bands.append((torch.as_tensor(outline) / unit, [float(v) / unit for g in waiting for v in g.get_ydata()]))
    assert torch.allclose(bands[0][0], bands[1][0], rtol=1e-2, atol=1e-3)
    assert bands[0][1] == pytest.approx(bands[1][1], rel=1e-2, abs=1e-3)


def test_bounds_in_units() -> None:
    """A model's values in units are within a bound exactly where the person's values are."""
    goals = Goals.of(["a"], ["b"], ["a <= 3", "b <= -2", "b >= -9"])
    units = [Units(5.0, 2.0), Units(-4.0, 0.5)]
    person = torch.tensor([[2.9, -2.1], [3.1, -1.9], [2.9, -9.1]], dtype=DOUBLE)
    samples = torch.stack(
        [u.inside(goals.sign(n) * person[:, i]) for i, (n, u) in enumerate(zip("ab", units, strict=True))], -1
    )
    found = torch.stack([held(samples) <= 0 for held in goals.constraint_functions(units)], -1)
    signed = person * torch.tensor([goals.sign(n) for n in "ab"])
    plain = torch.stack([held(signed) <= 0 for held in goals.constraint_functions()], -1)
    expected = torch.tensor([[True, True, True], [False, False, True], [True, True, False]])
    assert torch.equal(found, expected) and torch.equal(plain, expected)
    assert float(goals.constraint_functions(units)[0](samples)[1]) == pytest.approx(0.1 / 2.0)


def test_nothing_measured_has_no_model() -> None:
    bo = BayesianOptimization(Space(x=Real(0, 1)), maximize="y", surrogate="gp")
    with pytest.raises(ProbnnError, match="'y' is not measured"):
        bo.unit_model("y")
