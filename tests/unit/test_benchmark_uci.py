"""The benchmark of the UCI splits: its scores against loops, its runner on a folder of scikit-learn's diabetes."""

from __future__ import annotations

import csv
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probnn
from benchmarks import _uci as uci
from benchmarks import uci as runner

TINY = uci.Settings.tiny()


@pytest.fixture
def mixture(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outcomes of seven rows, and means and standard deviations of five draws."""
    g = torch.Generator().manual_seed(seed)
    y, means = torch.randn(7, generator=g).double(), torch.randn(5, 7, generator=g).double()
    return y, means, 0.3 + torch.rand(5, 7, generator=g).double()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Diabetes in the format of the UCI folders, 60 rows in two splits, with a constant feature."""
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        np.savez(tmp_path / "data" / name / "data.npz", X=np.column_stack([X[:60, :3], np.full(60, 0.1)]), y=y[:60])
        (tmp_path / "data" / name / "test_splits.txt").write_text("0 7 9 30\n1 5 50 59\n", encoding="utf-8")
    return tmp_path / "data"


def test_scores_are_those_of_naive_loops(mixture: tuple[Tensor, Tensor, Tensor]) -> None:
    y, means, stds = mixture
    found = uci.score(y, means, stds)
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.double)
    squares, single, mixed, crps, inside = [], [], [], [], []
    for i in range(len(y)):
        laws = [statistics.NormalDist(m, s) for m, s in zip(means[:, i].tolist(), stds[:, i].tolist(), strict=True)]
        mean = statistics.fmean(law.mean for law in laws)
        variance = statistics.fmean(law.variance + law.mean**2 for law in laws) - mean**2
        value = y[i].item()
        squares.append((mean - value) ** 2)
        single.append(-math.log(statistics.NormalDist(mean, math.sqrt(variance)).pdf(value)))
        mixed.append(-math.log(statistics.fmean(law.pdf(value) for law in laws)))
        inside.append(0.05 <= statistics.fmean(law.cdf(value) for law in laws) <= 0.95)
        cdf = torch.special.ndtr((grid[:, None] - means[:, i]) / stds[:, i]).mean(1)
        crps.append(torch.trapezoid((cdf - (grid >= y[i]).double()).square(), grid).item())
    assert found["rmse"] == pytest.approx(math.sqrt(statistics.fmean(squares)))
    assert found["nll"] == pytest.approx(statistics.fmean(single))
    assert found["nll_mixture"] == pytest.approx(statistics.fmean(mixed))
    assert found["coverage"] == pytest.approx(statistics.fmean(inside))
    assert found["crps"] == pytest.approx(statistics.fmean(crps), abs=2e-3)  # a step of the grid is .001


def test_the_scores_of_one_draw_agree(mixture: tuple[Tensor, Tensor, Tensor]) -> None:
    y, means, stds = mixture
    found = uci.score(y, means[:1], stds[:1])
    assert found["nll"] == pytest.approx(found["nll_mixture"])


def test_a_split_is_standardised_by_its_training_rows(folder: Path) -> None:
    X, y, test = uci.load(folder / "one")
    split = uci.Split.of(X, y, test[1])
    train = [i for i in range(60) if i not in test[1]]
    torch.testing.assert_close(split.X[:, :3].mean(0), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(split.X[:, :3].std(0), torch.ones(3).double())
    assert split.X[:, 3].abs().max() < 1e-12  # constant: centred, not divided by rounding errors
    torch.testing.assert_close(split.mean + split.scale * split.Y[:, 0], y[train])
    torch.testing.assert_close(split.test_y, y[test[1]])
    expected = (X[test[1], :3] - X[train, :3].mean(0)) / X[train, :3].std(0)
    torch.testing.assert_close(split.test_X[:, :3], expected)


def test_evidence_is_the_log_density_and_its_gradient(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    X, y = torch.randn(12, 3, generator=g).double(), torch.randn(12, generator=g).double()
    log = torch.tensor([0.1, -0.4, 0.9, 0.3, -1.0], dtype=torch.double, requires_grad=True)
    Z = X / log[:3].exp()
    noise = (2 * log[4]).exp() * torch.eye(12, dtype=torch.double)
    A = (2 * log[3] - 0.5 * (Z[:, None] - Z).square().sum(-1)).exp() + noise
    expected = -torch.distributions.MultivariateNormal(torch.zeros(12).double(), A).log_prob(y)
    (gradient,) = torch.autograd.grad(expected, log)
    value, found = uci.negative_evidence(X.numpy(), y.numpy(), log.detach().numpy())
    assert value == pytest.approx(expected.item())
    np.testing.assert_allclose(found, gradient.numpy(), rtol=1e-8)


def test_the_process_finds_which_input_matters(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    X = 2 * torch.rand(80, 2, generator=g).double() - 1
    y = 50 + 10 * (3 * X[:, 0]).sin() + torch.randn(80, generator=g).double()
    split = uci.Split.of(X, y, list(range(20)))
    log = uci.most_likely(split.X, split.Y, 3, seed)
    assert log[1] - log[0] > 1
    found = uci.run(split, uci.GP, "-", seed, TINY)
    assert found["rmse"] < 3 and 0.4 < found["noise"] < 2  # the noise is 1, and y varies by 7


def test_target_has_hyper_parameters_of_its_own_for_every_function(seed: int) -> None:
    """The variance of the variance's logarithm: E f(x)^4 / 3 (E f(x)^2)^2 = e of a log-normal scale."""
    process = uci.target(3)
    f = process.sample(torch.zeros(1, 3).double(), (4000,), generator=torch.Generator().manual_seed(seed))
    scale = (0.5 * math.log(2 * 3), 0.1)
    laws = process.hyperprior
    assert laws is not None
    assert (laws["base_kernel.lengthscale"].loc, laws["outputscale"].loc) == scale
    # f = e^{z/2} e with z ~ N(.1, 1): log f^2 has variance 1 + pi^2 / 2.
    logs = f.flatten().square().log()
    expected = 1 + math.pi**2 / 2
    error = ((logs - logs.mean()).square().var() / len(logs)).sqrt().item()
    assert abs(logs.var().item() - expected) < 5 * error


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_runner_writes_all_tables_and_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["--data", str(folder), "--out", str(out), "--sets", "one"]
    runner.main(command, TINY)
    first = rows(out / "uci_runs.csv")
    assert {(r["method"], r["net"], r["split"]) for r in first} == {
        (method, "-" if method == uci.GP else "small", str(split)) for method in uci.METHODS for split in (0, 1)
    }
    assert all(math.isfinite(float(r[name])) for r in first for name in (*runner.SCORES, "cpu_s", "noise"))
    sampled = {r["method"] for r in first if r["rhat"]}
    assert sampled == {"fixed", "matched", "matched hierarchical"}

    # The last fit is lost, and a set added: just these are done.
    lines = (out / "uci_runs.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "uci_runs.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    done: list[runner.Key] = []

    def counted(data: Path, key: runner.Key, settings: uci.Settings) -> tuple[runner.Key, dict[str, float]]:
        done.append(key)
        return key, dict.fromkeys((*runner.SCORES, "cpu_s"), 1.0)

    monkeypatch.setattr(runner, "job", counted)
    runner.main([*command[:-1], "one,two"], TINY)
    assert done[0] == runner.Key("one", "-", uci.GP, 1)
    assert [key.data_set for key in done[1:]] == ["two"] * 2 * len(uci.METHODS)
    assert rows(out / "uci_runs.csv")[: len(first) - 1] == first[:-1]
    report = json.loads((out / "uci.json").read_text(encoding="utf-8"))
    one, two, paired = report["tables"]
    assert [row["method"] for row in one["rows"]] == list(uci.METHODS)
    assert two["rows"][0]["rmse"] == "1.000 +- 0.000"
    assert {(row["set"], row["method"]) for row in paired["rows"]} == {
        (name, method) for name in ("one", "two") for method in ("matched", "matched hierarchical")
    }


def test_large_sets_are_sampled_by_minibatches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, test = uci.load(folder / "one")
    split = uci.Split.of(X, y, test[0])
    used: list[object] = []
    for kind in (probnn.HMC, probnn.SGHMC):
        fit = kind.fit
        monkeypatch.setattr(kind, "fit", lambda self, *a, fit=fit, **k: (used.append(self), fit(self, *a, **k))[1])
    for rows in (len(split.X), len(split.X) - 1):
        found = uci.run(split, "fixed", "small", 0, replace(TINY, exact_rows=rows))
        assert all(math.isfinite(found[name]) for name in (*runner.SCORES, "noise"))
    assert [type(method) for method in used] == [probnn.HMC, probnn.SGHMC]
    assert used[1].batch_size < len(split.X)  # type: ignore[attr-defined]


def test_a_failed_fit_is_told_and_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from probnn.errors import ConvergenceError

    def run(split: Any, method: str, *rest: Any) -> dict[str, float]:
        if method == "matched":
            raise ConvergenceError("no density")
        return dict.fromkeys(runner.FIELDS, 2.0)

    monkeypatch.setattr(runner, "run", run)
    runner.main(["--data", str(folder), "--out", str(tmp_path), "--sets", "one"], TINY)
    assert "one split 0 small matched: failed, ConvergenceError: no density" in capsys.readouterr().out
    assert "matched" not in {r["method"] for r in rows(tmp_path / "uci_runs.csv")}


def test_first_set_goes_first_and_the_others_split_by_split(folder: Path) -> None:
    (folder / "three").symlink_to(folder / "two")
    keys = runner.tasks(folder, ["one", "two", "three"], ["a"], None)
    order = list(dict.fromkeys((key.data_set, key.split) for key in keys))
    assert order == [("one", 0), ("one", 1), ("two", 0), ("three", 0), ("two", 1), ("three", 1)]
    assert len(keys) == 6 * len(uci.METHODS)


def test_differences_are_paired() -> None:
    runs = {}
    for split, (base, other) in enumerate([(3.0, 2.0), (5.0, 4.5), (4.0, 4.0)]):
        runs[runner.Key("one", "a", "fixed", split)] = dict.fromkeys(runner.FIELDS, base)
        runs[runner.Key("one", "a", "matched", split)] = dict.fromkeys(runner.FIELDS, other)
    runs[runner.Key("one", "a", "fixed", 9)] = dict.fromkeys(runner.FIELDS, 100.0)
    (row,) = runner.differences(runs)
    assert row["splits"] == 3
    assert row["nll"] == f"-0.500 +- {statistics.stdev([-1.0, -0.5, 0.0]) / math.sqrt(3):.3f}"


def test_missing_data_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="needs --data"):
        runner.main(["--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"has no nowhere \(no data.npz there\)"):
        runner.main(["--data", str(folder), "--out", str(tmp_path), "--sets", "one,nowhere"])
