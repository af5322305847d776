"""Studies of convergence: what they draw, fit and identify."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from probnn import moe
from probnn.errors import DomainError, UnsupportedError
from probnn.studies._estimators import STATUSES, Estimator, Fitted
from probnn.studies._inputs import Inputs
from probnn.studies._simulation import PROTOCOL, MoESimulation
from probnn.studies.convergence import ConvergenceStudy

from .convergence_cases import GAUSSIAN, GENTLE, STEEP, regated, seeds


class TestRates:
    """Rates that are known."""

    def test_exact_fit(self, seed):
        """Mean D1 and total variation fall like the root of n.

        Of 200 replicates at n from 100 to 100,000: slopes of -0.497 ± 0.007 and -0.508 ± 0.003, mean D1(1000) of 0.226
        with a standard deviation of 0.14 a replicate. With 100 replicates here the slope of D1 has a standard error of
        0.02, so that all bounds are four standard errors away at least.
        """
        study = ConvergenceStudy(
            STEEP, {"newton": Estimator(num_experts=2)}, n_grid=(100, 300, 1000, 3000, 10_000), replicates=100,
            seed=seed, num_points=128, batch_size=50,
        ).run()  # fmt: skip
        rates = study.rates().table
        d1, tv = (rates.where(loss=name) for name in ("voronoi", "total_variation"))
        assert -0.58 < d1["slope"][0] < -0.42
        assert d1["se"][0] < 0.05
        assert -0.56 < tv["slope"][0] < -0.42
        table = study.table()
        assert 0.15 < table.where(n=1000)["voronoi"].mean() < 0.30
        assert (table["converged"] == 1).all()

    def test_one_expert_too_many(self, seed):
        """The density of the converged maximum has the parametric rate; EM that stops early stays near its start.

        Of 100 replicates at n from 300 to 30,000 the total variation of converged maxima has a slope of -0.519 ± 0.006,
        which is gated on. The mean of D2 has -0.13 ± 0.02 then (the median -0.44 ± 0.07), and -0.69 ± 0.03 where EM is
        stopped by a relative change of 1e-6. At n = 3000, where the same data and starts are compared, EM ends
        2.5 nats below the converged fits in the mean and has a mean D2 of 0.30 ± 0.04 against 0.57 ± 0.04, six standard
        errors.
        """
        newton = Estimator(num_experts=3)
        early = replace(newton, method="em", criterion="relative")
        common = {"replicates": 60, "seed": seed, "num_points": 128}
        converged = ConvergenceStudy(STEEP, {"newton": newton}, n_grid=(300, 1000, 3000), **common).run()
        rate = converged.rates(losses="total_variation").table
        assert -0.58 < rate["slope"][0] < -0.40
        newton = converged.table().where(n=3000)
        em = ConvergenceStudy(STEEP, {"early": early}, n_grid=(3000,), **common).run().table()
        # The same data: the log-likelihood of the truth, which is the fit's minus its gain, is the same.
        truth = [x["log_likelihood"] - x["gain"] for x in (newton, em)]
        np.testing.assert_allclose(*truth, rtol=1e-12)
        lead = newton["gain"] - em["gain"]
        assert lead.mean() > 5 * lead.std(ddof=1) / math.sqrt(len(lead))
        farther = newton["voronoi"] - em["voronoi"]
        assert farther.mean() > 0


CASES = {
    "exact": (STEEP, Estimator(num_experts=2), "uniform"),
    "too many": (GENTLE, Estimator(num_experts=3, tolerance=1e-9), "uniform"),
    "early EM": (STEEP, Estimator(num_experts=3, method="em", criterion="relative"), "uniform"),
    "shared inputs": (STEEP, Estimator(num_experts=2), "grid"),
    "restarts": (GENTLE, Estimator(num_experts=2, starts="auto", num_restarts=3), "uniform"),
    "penalty": (GENTLE, Estimator(num_experts=2, penalty=moe.Penalty(gate_scale=5.0)), "uniform"),
    "Gaussian gate": (GAUSSIAN, Estimator(num_experts=2), "gate"),
    "Laplace gate": (regated(moe.LaplaceGate()), Estimator(num_experts=2), "uniform"),
    "top-1 gate": (regated(moe.TopKGate(active=1), STEEP), Estimator(num_experts=2), "uniform"),
    "activation": (
        moe.MixingMeasure(
            [0.0, 0.0],
            [[-4.0, 0.0], [0.0, -2.0]],
            [1.0, -1.0],
            [[2.0, 1.0], [-1.5, 0.5]],
            [0.16, 0.25],
            temperature=0.5,
            gate=moe.ActivationGate("gelu"),
        ),
        Estimator(num_experts=2),
        "centred",
    ),
    "temperature": (
        regated(moe.TemperatureGate(), temperature=0.5),
        Estimator(num_experts=2, gate=moe.TemperatureGate(None)),
        "uniform",
    ),
}


class TestSimulation:
    """Replicates are what their seeds make them."""

    @pytest.mark.parametrize("name", CASES)
    def test_alone_as_in_a_batch(self, name, seed):
        truth, estimator, inputs = CASES[name]
        simulate = MoESimulation(truth, {"it": estimator}, inputs, num_points=16)
        # Rounding is amplified where data say little, as they do about an activation's temperature.
        cell = {"estimator": "it", "n": 3000 if name == "activation" else 250}
        together = simulate(cell, seeds(6, seed))
        for i, one in enumerate(seeds(6, seed)):
            alone = simulate(cell, [one])
            for output, values in together.items():
                np.testing.assert_allclose(alone[output][0], values[i], rtol=1e-10, atol=1e-10, err_msg=output)

    def test_many_rows_are_split_into_batches(self, monkeypatch, seed):
        simulate = MoESimulation(GENTLE, {"it": Estimator(num_experts=2)}, num_points=16)
        cell = {"estimator": "it", "n": 200}
        whole = simulate(cell, seeds(5, seed))
        monkeypatch.setattr("probnn.studies._simulation._ROWS", 400)
        for output, values in simulate(cell, seeds(5, seed)).items():
            np.testing.assert_allclose(values, whole[output], rtol=1e-10, atol=1e-10, err_msg=output)

    def test_data_depend_on_the_seed_alone(self):
        simulate = MoESimulation(STEEP, {"it": Estimator(num_experts=2)})
        X, Y = simulate.sample(50, [4, 5])
        one_X, one_Y = simulate.sample(50, [5])
        assert (X[1] == one_X[0]).all() and (Y[1] == one_Y[0]).all()
        assert (X[0] != X[1]).any()

    def test_estimators_see_the_same_data(self):
        simulate = MoESimulation(GENTLE, {"two": Estimator(num_experts=2), "three": Estimator(num_experts=3)})
        out = [simulate({"estimator": name, "n": 200}, [1, 2]) for name in ("two", "three")]
        assert (out[1]["log_likelihood"] > out[0]["log_likelihood"]).all()  # a larger family
        truth = [o["log_likelihood"] - o["gain"] for o in out]
        np.testing.assert_allclose(*truth, rtol=1e-12)

    def test_outputs(self):
        simulate = MoESimulation(GENTLE, {"it": Estimator(num_experts=2)}, losses=("voronoi", "hellinger"))
        out = simulate({"estimator": "it", "n": 300}, [1])
        X, Y = simulate.sample(300, [1])
        assert list(out) == ["voronoi", "hellinger", "log_likelihood", "gain", "num_iter", "converged", "fit_status"]
        # A maximum near the truth is the maximum that the library's own starts find.
        best = moe.fit(moe.GaussianMoE(2, 1), X, Y, num_restarts=4)
        assert out["log_likelihood"][0] == pytest.approx(best.log_likelihood.item(), abs=1e-5)
        loss = moe.voronoi_loss(best.model.mixing_measure(), GENTLE)
        assert out["voronoi"][0] == pytest.approx(loss.item(), rel=0.02)
        assert out["gain"][0] > 0
        assert out["converged"][0] == 1 and out["fit_status"][0] == STATUSES.index("converged")

    def test_a_copy_does_the_same(self):
        simulate = MoESimulation(GENTLE, {"it": Estimator(num_experts=2)}, num_points=16)
        cell = {"estimator": "it", "n": 100}
        copy = pickle.loads(pickle.dumps(simulate))
        assert copy.identity(cell) == simulate.identity(cell)
        for output, values in copy(cell, [3]).items():
            assert (values == simulate(cell, [3])[output]).all()

    def test_failed_fits_have_no_loss_and_stay(self):
        model = moe.GaussianMoE.from_mixing_measure(GENTLE)
        theta = torch.stack([model.theta, torch.zeros_like(model.theta)])
        fitted = Fitted(
            replace(model, theta=theta), torch.tensor([1.0, math.nan]).double(), torch.tensor([0, 5]),
            torch.tensor([True, False]), torch.tensor([3, 0]),
        )  # fmt: skip
        simulate = MoESimulation(GENTLE, {"it": Estimator(num_experts=2)}, num_points=16)
        out = simulate._measured(fitted)
        assert out["voronoi"][0] < 1e-12 and out["total_variation"][0] < 1e-12
        assert out["voronoi"].isnan().tolist() == [False, True]
        assert out["total_variation"].isnan().tolist() == [False, True]

    def test_unknown_cells(self):
        simulate = MoESimulation(GENTLE, {"it": Estimator(num_experts=2)})
        with pytest.raises(DomainError, match="one of it"):
            simulate({"estimator": "that", "n": 100}, [1])
        with pytest.raises(DomainError, match="estimator"):
            simulate({"n": 100}, [1])


def test_sizes_that_were_not_run_are_no_rate():
    study = ConvergenceStudy(
        GENTLE, {"it": Estimator(num_experts=2)}, n_grid=(50, 100, 200, 400), replicates=4, batch_size=4
    )
    study.run(shard=(1, 2))
    rates = study.rates().table
    assert np.isnan(rates["slope"]).all() and all("no rows at n = " in note for note in rates["note"])
    assert np.isfinite(study.run().rates().table["slope"]).all()


def test_others_gates_and_single_precision_are_refused():
    @dataclass(frozen=True)
    class Own(moe.SoftmaxGate):
        pass

    simulate = MoESimulation(GENTLE, {"it": Estimator(num_experts=2, gate=Own())})
    with pytest.raises(UnsupportedError, match="the library's own gates"):
        simulate.identity({"estimator": "it", "n": 100})
    names = ("gate_bias", "gate_weight", "coef", "intercept", "variance")
    single = replace(GENTLE, **{name: getattr(GENTLE, name).float() for name in names})
    with pytest.raises(DomainError, match="must be of double precision"):
        MoESimulation(single, {"it": Estimator(num_experts=2)})


def test_rows_are_those_of_the_protocol():
    """Rows in stores belong to a protocol: where these numbers change, so must MoESimulation's PROTOCOL."""
    simulate = MoESimulation(GENTLE, {"it": Estimator(num_experts=2)}, losses=("voronoi", "total_variation"))
    out = simulate({"estimator": "it", "n": 200}, [1, 2])
    expected = {
        "voronoi": [0.56025843, 2.0708575],
        "total_variation": [0.040149566, 0.081647076],
        "log_likelihood": [-186.68382, -203.17524],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(out[name], values, rtol=1e-6, err_msg="results have changed: raise PROTOCOL")
    assert PROTOCOL == 1


class TestIdentity:
    """A row is identified by what determines it, and by nothing else."""

    def build(self, truth=GENTLE, inputs="uniform", losses=("voronoi",), others=(), **settings):
        estimators = {"it": Estimator(num_experts=2, **settings), **dict(others)}
        return MoESimulation(truth, estimators, inputs, losses)

    def identity(self, **settings):
        found = self.build(**settings).identity({"estimator": "it", "n": 100})
        return json.dumps(found, sort_keys=True)

    def test_same(self):
        assert self.identity() == self.identity()
        assert self.identity(others={"more": Estimator(num_experts=3)}) == self.identity()

    @pytest.mark.parametrize(
        "settings",
        [
            {"tolerance": 1e-7},
            {"method": "em"},
            {"method": "em", "criterion": "relative"},
            {"starts": "auto"},
            {"starts": ("kmeans",)},
            {"num_restarts": 2},
            {"num_warmup": (5,)},
            {"max_iter": 50},
            {"variance": "shared"},
            {"penalty": moe.Penalty(gate_scale=3.0)},
            {"gate": moe.SoftmaxGate(temperature=2.0)},
            {"truth": STEEP},
            {"truth": replace(GENTLE, variance=[0.16, 0.2500001])},
            {"inputs": "grid"},
            {"inputs": lambda n, generator: torch.rand(n, 1, generator=generator, dtype=torch.double)},
            {"losses": ("voronoi", "hellinger")},
        ],
        ids=[str(i) for i in range(16)],
    )
    def test_changed(self, settings):
        assert self.identity(**settings) != self.identity()

    def test_functions_by_their_code(self):
        a = self.identity(inputs=lambda n, generator: torch.rand(n, 1, generator=generator, dtype=torch.double))
        b = self.identity(inputs=lambda n, generator: torch.rand(n, 1, generator=generator, dtype=torch.double) / 2)
        assert a != b

    def test_a_study_refuses_another_tolerance(self, tmp_path):
        def study(tolerance):
            return ConvergenceStudy(
                GENTLE, {"it": Estimator(num_experts=2, tolerance=tolerance)}, n_grid=(50,), replicates=2,
                losses=("voronoi",), batch_size=2, store=tmp_path / "store",
            )  # fmt: skip

        first = study(1e-6).run().table()
        assert study(1e-6).table() == first
        with pytest.raises(DomainError, match="tolerance"):
            study(1e-7)

    def test_estimators_can_be_added(self, tmp_path):
        def study(**estimators):
            return ConvergenceStudy(
                GENTLE, estimators, n_grid=(60,), replicates=2, losses=("voronoi",), batch_size=2,
                store=tmp_path / "store",
            )  # fmt: skip

        first = study(two=Estimator(num_experts=2)).run().table()
        both = study(two=Estimator(num_experts=2), three=Estimator(num_experts=3)).run().table()
        assert both.where(estimator="two") == first
        assert both.where(estimator="three")["seed"].tolist() == first["seed"].tolist()  # the same data


class TestInputs:
    """Laws of the inputs, and the points that stand for them."""

    @pytest.mark.parametrize(
        ("law", "truth", "mean", "variance"),
        [
            ("uniform", GENTLE, 0.5, 1 / 12),
            ("centred", GENTLE, 0.0, 1 / 3),
            ("grid", GENTLE, 0.5, 1 / 12),
        ],
    )
    def test_moments(self, law, truth, mean, variance, seed):
        inputs, n = Inputs(law, truth), 4000
        x = inputs.draw(n, torch.Generator().manual_seed(seed)).flatten()
        assert abs(x.mean() - mean) < 5 * math.sqrt(variance / n)
        # The variance of a square of a uniform is 4/5 of the squared variance.
        assert abs((x - mean).square().mean() - variance) < 5 * math.sqrt(0.8 / n) * variance + 1e-3
        points = inputs.reference(256).flatten()
        assert points.mean() == pytest.approx(mean, abs=1e-12)
        assert (points - mean).square().mean() == pytest.approx(variance, rel=1e-4)

    def test_mixture_of_a_gaussian_gate(self, seed):
        inputs, n = Inputs("gate", GAUSSIAN), 20_000
        p = GAUSSIAN.gate_bias.exp()
        mean = p @ GAUSSIAN.gate_weight
        off = GAUSSIAN.gate_weight - mean
        covariance = torch.einsum("k,kij->ij", p, GAUSSIAN.gate_covariance + off.unsqueeze(-1) * off.unsqueeze(-2))
        X = inputs.draw(n, torch.Generator().manual_seed(seed))
        for x, rough in ((X, True), (inputs.reference(4096), False)):
            gap = x - mean
            products = gap.unsqueeze(-1) * gap.unsqueeze(-2)
            for value, aim in ((x, mean), (products, covariance)):
                bound = 5 * value.std(0) / math.sqrt(n) if rough else torch.full_like(aim, 2e-3)
                assert ((value.mean(0) - aim).abs() < bound).all()

    def test_outcomes_given_inputs_of_a_gaussian_gate(self, seed):
        """Mean log densities of x and y together agree with those of draws from the joint mixture by hand."""
        simulate = MoESimulation(GAUSSIAN, {"it": Estimator(num_experts=2)}, "gate")
        X, Y = simulate.sample(20_000, [seed])
        g = torch.Generator().manual_seed(seed + 1)
        atom = (torch.rand(20_000, generator=g) < 0.7).long()
        factor = torch.linalg.cholesky(GAUSSIAN.gate_covariance)[atom]
        z = torch.randn(20_000, 3, generator=g, dtype=torch.double)
        x = GAUSSIAN.gate_weight[atom] + (factor @ z[:, :2, None]).squeeze(-1)
        y = GAUSSIAN.intercept[atom] + (GAUSSIAN.coef[atom] * x).sum(-1) + GAUSSIAN.variance[atom].sqrt() * z[:, 2]
        model = moe.GaussianMoE.from_mixing_measure(GAUSSIAN)
        a, b = model.log_prob(X[0], Y[0]), model.log_prob(x, y.unsqueeze(-1))
        assert abs(a.mean() - b.mean()) < 5 * math.sqrt((a.var() + b.var()) / 20_000)

    def test_unfit(self):
        for law, truth in (("gate", GENTLE), ("uniform", GAUSSIAN), ("grid", GAUSSIAN)):
            with pytest.raises(DomainError, match="Gaussian gate"):
                Inputs(law, truth)
        with pytest.raises(DomainError, match="one input"):
            Inputs("grid", replace(GENTLE, gate_weight=[[1.0, 2.0], [0.0, 0.0]], coef=[[1.0, 1.0], [0.0, 1.0]]))
        with pytest.raises(DomainError, match="'normal'"):
            Inputs("normal", GENTLE)
        with pytest.raises(ValueError, match="3 rows"):
            Inputs(lambda n, generator: torch.zeros(2, 1, dtype=torch.double), GENTLE).draw(3, torch.Generator())
