"""Inputs, losses, estimators and selections of studies of convergence."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from probnn import moe
from probnn.errors import DomainError, UnsupportedError
from probnn.studies._estimators import STATUSES, Estimator, Fitted, SelectionSweep
from probnn.studies._losses import LOSSES, Losses
from probnn.studies._simulation import MoESimulation

from .convergence_cases import GENTLE, STEEP, regated, seeds


class TestLosses:
    """Names of losses, and what they are."""

    def near(self, k=2):
        """A fitted measure with all that can differ, and two replicates."""
        index = torch.tensor([0, 1, 1])[:k]
        G = replace(
            GENTLE, gate_bias=GENTLE.gate_bias[index], gate_weight=GENTLE.gate_weight[index],
            intercept=GENTLE.intercept[index] + 0.1, coef=GENTLE.coef[index] - 0.2, variance=GENTLE.variance[index],
        )  # fmt: skip
        names = ("gate_bias", "gate_weight", "intercept", "coef", "variance")
        return replace(G, **{name: torch.stack([getattr(G, name), getattr(G, name)]) for name in names})

    @pytest.mark.parametrize("k", [2, 3])
    def test_voronoi(self, k):
        points = torch.rand(8, 1).double()
        names = ("voronoi", "voronoi_truth", "voronoi_raw", "voronoi_exact")
        out = Losses(names, GENTLE, points)(self.near(k))
        kind = "exact" if k == 2 else "overfit"
        wanted = [
            moe.voronoi_loss(self.near(k), GENTLE, how, translate=t)
            for how, t in ((kind, "fit"), (kind, "truth"), (kind, None), ("exact", "fit"))
        ]
        for name, value in zip(names, wanted, strict=True):
            assert torch.equal(out[name], value), name

    def test_errors_of_experts(self):
        """By hand: intercepts are 0.1 off and coefficients 0.2, whatever the weights; the variances are right."""
        out = Losses(("intercept_error", "coef_error", "variance_error"), GENTLE, torch.rand(8, 1).double())(
            self.near(3)
        )
        for name, value in (("intercept_error", 0.1), ("coef_error", 0.2), ("variance_error", 0.0)):
            torch.testing.assert_close(out[name], torch.full((2,), value).double())

    def test_cells_of_many_atoms_have_the_heuristic_exponent(self):
        G = replace(
            GENTLE, gate_bias=[0.0] * 4, gate_weight=[[3.0]] * 4, intercept=[1.0, 1.1, 0.9, 1.2], coef=[[2.0]] * 4,
            variance=[0.16] * 4,
        )  # fmt: skip
        value = Losses(("voronoi",), GENTLE, torch.zeros(1, 1).double())(G)["voronoi"]
        assert value == moe.voronoi_loss(G, GENTLE, "overfit", bar_r={4: 8.0})
        other = Losses(("voronoi",), GENTLE, torch.zeros(1, 1).double(), {4: 6.0})(G)["voronoi"]
        assert other == moe.voronoi_loss(G, GENTLE, "overfit", bar_r={4: 6.0})

    def test_overflow_is_infinite(self):
        """A gate whose biases overflow has an infinite loss where nothing scales it, and is not refused."""
        G = replace(
            GENTLE, gate_bias=[900.0, 0.0, 0.0], gate_weight=[[3.0], [0.0], [0.0]], intercept=[1.1, -1.0, -1.1],
            coef=[[2.0], [-1.5], [-1.5]], variance=[0.16, 0.25, 0.25],
        )  # fmt: skip
        out = Losses(("voronoi", "voronoi_raw"), GENTLE, torch.zeros(1, 1).double())(G)
        assert out["voronoi_raw"].isinf() and out["voronoi"].isfinite()

    def test_temperatures(self):
        truth = regated(moe.TemperatureGate(), temperature=0.5)
        losses = Losses(("temperature_error", "voronoi", "voronoi_temperature"), truth, torch.zeros(1, 1).double())
        # The same density with everything twice as large: a loss that divides the temperature out does not see it.
        double = replace(truth, gate_bias=2 * truth.gate_bias, gate_weight=2 * truth.gate_weight, temperature=1.0)
        out = losses(double)
        assert out["temperature_error"] == 0.5
        assert out["voronoi"] < 1e-12
        assert out["voronoi_temperature"] > 0.5

    def test_unfit(self):
        points = torch.zeros(1, 1).double()
        with pytest.raises(DomainError, match="'d1'"):
            Losses(("d1",), GENTLE, points)
        with pytest.raises(DomainError, match="different names"):
            Losses(("voronoi", "voronoi"), GENTLE, points)
        with pytest.raises(DomainError, match="temperature"):
            Losses(("temperature_error",), GENTLE, points)
        assert set(LOSSES) >= {"voronoi", "total_variation", "hellinger"}


class TestEstimators:
    """Settings of estimators and selections."""

    def test_best_restart(self):
        model = moe.GaussianMoE.from_mixing_measure(GENTLE)
        nan = math.nan

        def fits(values, statuses, mark):
            theta = torch.full((len(values), model.num_parameters), float(mark)).double()
            status = torch.tensor([STATUSES.index(s) for s in statuses])
            numbers = torch.full((len(values),), mark)
            return Fitted(replace(model, theta=theta), torch.tensor(values).double(), status, numbers > 0, numbers)

        a = fits([1.0, 2.0, 9.0, nan, nan, 3.0], ["converged"] * 2 + ["degenerate", "failed", "failed", "converged"], 1)
        b = fits([2.0, 1.0, 1.0, 0.0, nan, 9.0], ["converged"] * 4 + ["failed", "degenerate"], 2)
        best = a.better(b)
        assert best.num_iter.tolist() == [2, 1, 2, 2, 1, 1]
        assert best.model.theta[:, 0].tolist() == [2, 1, 2, 2, 1, 1]
        assert best.log_likelihood[:4].tolist() == [2.0, 2.0, 1.0, 0.0] and best.log_likelihood[4].isnan()

    def test_more_restarts_are_not_worse(self, seed):
        X, Y = MoESimulation(STEEP, {"it": Estimator(num_experts=3)}).sample(300, seeds(4, seed))
        one, five = (Estimator(num_experts=3, num_restarts=s).fit(STEEP, X, Y, [7, 8, 9, 10]) for s in (1, 5))
        assert (five.log_likelihood > one.log_likelihood - 1e-4).sum() >= 3  # starts are others, but there are five

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_experts": 0}, "num_experts"),
            ({"num_experts": 2, "method": "bfgs"}, "method"),
            ({"num_experts": 2, "starts": "near"}, "starts"),
            ({"num_experts": 2, "starts": ("near_truth", "kmeans")}, "starts"),
            ({"num_experts": 2, "tolerance": 0.0}, "tolerance"),
            ({"num_experts": 2, "criterion": "absolute"}, "criterion"),
            ({"num_experts": 2, "variance": "pooled"}, "variance"),
            ({"num_experts": 2, "max_iter": 0}, "max_iter"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(DomainError, match=message):
            Estimator(**settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"candidates": (2, 1)}, "increasing"),
            ({"candidates": ()}, "increasing"),
            ({"candidates": (1,)}, "2 experts"),
            ({"criteria": ("bic", "cv")}, "criteria"),
            ({"criteria": ("bic", "bic")}, "different"),
            ({"starts": "near_truth"}, "starts"),
        ],
    )
    def test_bad_selections(self, settings, message):
        with pytest.raises(DomainError, match=message):
            SelectionSweep(**settings)

    def test_kinds_are_not_mixed(self):
        with pytest.raises(DomainError, match="or to studies.SelectionSweep"):
            MoESimulation(GENTLE, {"a": Estimator(num_experts=2), "b": SelectionSweep()})

    def test_unknown_parts_cannot_be_recorded(self):
        from probnn.studies._truths import record

        with pytest.raises(UnsupportedError, match="torch"):
            record(torch.ones(2), "torch's")


class TestSelection:
    """Choices of the number of experts."""

    def test_criteria_are_those_of_the_library(self, seed):
        """Fits from the same starts have the criteria that moe has of them."""
        X, Y = MoESimulation(STEEP, {"it": Estimator(num_experts=2)}).sample(300, seeds(3, seed))
        from probnn.studies._estimators import _criterion

        fitted = Estimator(num_experts=2, starts="auto", tolerance=1e-12).fit(STEEP, X, Y, [1, 2, 3])
        again = moe.fit(moe.GaussianMoE(2, 1), X, Y, starts=fitted.model, tol=1e-12)
        for name, wanted in (("aic", again.aic), ("bic", again.bic), ("icl", moe.icl(again, X, Y))):
            torch.testing.assert_close(_criterion(name, fitted, X, Y), wanted, rtol=1e-7, atol=1e-4)

    def test_choices(self, seed):
        selection = SelectionSweep(candidates=(1, 2, 3), num_restarts=2)
        simulate = MoESimulation(STEEP, {"sweep": selection})
        out = simulate({"estimator": "sweep", "n": 300}, seeds(8, seed))
        assert list(out) == list(selection.outputs)
        # Two lines that cross at a steep angle: BIC was right in 36 of 36 data sets (specification of the study).
        assert (out["bic"] == 2).sum() >= 7
        assert (out["aic"] >= out["bic"]).all()
        assert set(np.unique(out["dsc"])) <= {2.0, 3.0}
        assert (out["height_3"] >= 0).all() and (out["num_unusable"] == 0).all()
        alone = simulate({"estimator": "sweep", "n": 300}, seeds(8, seed)[-1:])
        for name in selection.outputs:
            assert alone[name][0] == pytest.approx(out[name][-1], rel=1e-6)

    def test_heights_are_those_of_dendrograms(self):
        selection = SelectionSweep(candidates=(3,), criteria=("dsc", "dsc_mean_gate"), num_restarts=1)
        simulate = MoESimulation(GENTLE, {"sweep": selection})
        X, Y = simulate.sample(200, [5])
        from probnn.studies._simulation import _STARTS, stream

        out = selection.choose(GENTLE, X, Y, [stream(5, _STARTS)])
        fit = selection._estimator(3).fit(GENTLE, X, Y, [stream(5, _STARTS)])
        for name, inputs in (("height", None), ("mean_gate_height", X[0])):
            tree = moe.Dendrogram(fit.model.mixing_measure()[0], inputs)
            assert [out[f"{name}_{k}"][0] for k in (3, 2)] == tree.heights.tolist()
