"""Files and reports of studies of convergence."""

from __future__ import annotations

import json

import pytest

from probnn import moe
from probnn.errors import DomainError
from probnn.studies._truths import gate_from, measure_from, record_of_measure
from probnn.studies.configuration import load
from probnn.studies.convergence import convergence_from_config
from probnn.studies.parts import Row

from .convergence_cases import GENTLE, SHIPPED, SMALL


class TestFiles:
    """Studies as tables of a file."""

    def test_sizes(self):
        quick, full = (convergence_from_config(SMALL, size=size) for size in ("quick", "full"))
        assert (quick.n_grid, quick.replicates) == ((60, 120, 240), 4)
        assert (full.n_grid, full.replicates) == ((100, 1000, 10_000), 40)
        assert quick.account.title == "Two gentle experts"
        assert record_of_measure(quick.truth) == record_of_measure(GENTLE)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"estimator": {}}, "unknown entries estimator"),
            ({"truth": {"gate_bias": [0.0]}}, "gate_weight"),
            ({"truth": {**SMALL["truth"], "weight": 1}}, "weight"),
            ({"truth": {**SMALL["truth"], "gate": "hard"}}, "'hard'"),
            ({"truth": {**SMALL["truth"], "gate": {"kind": "topk", "k": 1}}}, "topk"),
            ({"estimators": {}}, "estimators.name"),
            ({"estimators": {"a": {"num_experts": 2, "tol": 1e-6}}}, "unknown entries tol"),
            ({"estimators": {"a": {}}}, "lacks num_experts"),
            ({"estimators": {"a": {"num_experts": 2, "penalty": {"ridge": 1.0}}}}, "ridge"),
            ({"theory": {"loss": -0.5}}, "theory"),
            ({"losses": "voronoi"}, "list"),
            ({"quick": {"n": [10]}}, "lacks replicates"),
            ({"quick": {"n": [100], "replicates": 2, "rows": 3}}, "unknown entries rows"),
        ],
    )
    def test_mistakes(self, change, message):
        with pytest.raises(DomainError, match=message):
            convergence_from_config({**SMALL, **change}, size="quick")

    def test_no_such_size(self):
        with pytest.raises(DomainError, match="'large'"):
            convergence_from_config(SMALL, size="large")

    def test_gates(self):
        assert gate_from("here", {"kind": "topk", "active": 2}) == moe.TopKGate(active=2)
        assert gate_from("here", {"kind": "temperature", "normalise": "none"}) == moe.TemperatureGate(None)
        assert measure_from("here", SMALL["truth"]).gate == moe.SoftmaxGate()

    @pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda p: p.stem)
    def test_shipped(self, path, tmp_path):
        """Every shipped study of this kind can be made, in both sizes, and says what the literature says."""
        quick, full = (load(path, size=size, store=tmp_path / size) for size in ("quick", "full"))
        assert len(quick.n_grid) >= 3 and quick.replicates <= full.replicates
        assert max(quick.n_grid) <= max(full.n_grid)
        assert quick.account.title and len(quick.account.paper) > 100 and len(quick.account.notes) > 100
        assert json.dumps([quick.simulation.identity(cell) for cell in quick.cells])

    def test_there_are_shipped_ones(self):
        names = {path.stem for path in SHIPPED.glob("*.toml")}
        assert names >= {
            "s1",
            "s2",
            "s2-converged",
            "s3",
            "s4-top1",
            "s4-top2",
            "s5-linear",
            "s5-gelu",
            "s6",
            "s7-exp3",
        }


@pytest.fixture(scope="module")
def study():
    return convergence_from_config(SMALL, size="quick").run()


class TestReports:
    """Markdown and figures."""

    def test_report(self, study, tmp_path):
        text = study.report(tmp_path / "out.md")
        assert (tmp_path / "out.md").read_text(encoding="utf-8") == text
        assert (tmp_path / "out.png").stat().st_size > 1000
        for part in (
            "# Two gentle experts", "## Losses", "## How the fits ended", "## Rates of the mean",
            "## Rates of the median", "It is known.", "tolerance 1e-06", "24 of 24 rows complete",
        ):  # fmt: skip
            assert part in text, part
        mean = study.table().where(estimator="em", n=240)["voronoi"].mean()
        assert f"{mean:.3g} ±" in text

    def test_sentences_agree_with_intervals(self, study):
        from probnn.studies._report import _against_theory

        rates = study.rates()
        (lines,) = _against_theory(rates)
        for row, line in zip(rates.table.where(loss="voronoi").rows(), lines.splitlines(), strict=True):
            inside = row["low"] <= -0.5 <= row["high"]
            assert ("the interval has it" in line) == inside
            assert ("slower" in line) == (not inside and row["slope"] > -0.5)

    def test_plot(self, study, tmp_path):
        from matplotlib import pyplot as plt

        axes = study.plot(tmp_path / "rates.png", statistic="median")
        assert len(axes) == 2 and (tmp_path / "rates.png").exists()
        ax = plt.subplots()[1]
        with pytest.raises(DomainError, match="one loss"):
            study.plot(ax)
        plt.close("all")

    def test_replay(self, study):
        """A row is its block's, bit for bit."""
        assert study.replay({"estimator": "newton", "n": 120}, 2).equal

    def test_rates_of_one_loss(self, study):
        rates = study.rates("median", losses="voronoi", method="wls")
        assert rates.losses == ("voronoi",) and rates.statistic == "median"
        assert rates.table["theory"].tolist() == [-0.5, -0.5]

    def test_a_study_of_which_nothing_worked(self, tmp_path):
        """Settings, and why: no rates of nothing."""
        study = convergence_from_config(SMALL, size="quick", store=tmp_path / "store")
        study._rows.prepare()
        for r in range(2):
            study._rows.add(Row(0, r, 2, error="RuntimeError: singular"))
        study._rows.flush()
        text = study.report(tmp_path / "out.md")
        assert "No replicate has a result." in text and "RuntimeError: singular" in text and "Rates" not in text

    def test_nothing_to_report(self, tmp_path):
        with pytest.raises(DomainError, match="run the study first"):
            convergence_from_config(SMALL, size="quick").report(tmp_path / "out.md")

    def test_report_of_selections(self, tmp_path):
        config = {k: v for k, v in SMALL.items() if k not in ("losses", "theory")}
        sweep = {"candidates": [1, 2], "num_restarts": 1}
        study = convergence_from_config({**config, "estimators": {"sweep": sweep}}, size="quick").run()
        text = study.report(tmp_path / "out.md")
        assert "## Choices" in text and "chose 2" in text and "height_2" in text
        table = study.table().where(n=240)
        right = (table["bic"] == 2).mean()
        row = next(line for line in text.splitlines() if line.startswith("| sweep | 240 | bic"))
        assert float(row.split("|")[4]) == pytest.approx(right, abs=1e-3)
