"""The benchmark of classification: its scores against loops, its data, its runner on data made here."""

from __future__ import annotations

import csv
import gzip
import json
import math
import statistics
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probnn
from benchmarks import _classification as parts
from benchmarks import classification as runner
from probnn import priors
from probnn import random as rnd
from probnn.priors import matching

TINY = parts.Settings.tiny()


def write_idx(path: Path, array: np.ndarray) -> None:
    """An IDX file of unsigned bytes, as LeCun's page describes it."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def folder(tmp_path: Path, seed: int) -> Path:
    """A banana of 30 rows and 40 images, in the formats of the data folder."""
    random = np.random.default_rng(seed)
    data = tmp_path / "data"
    for name in ("banana", "mnist"):
        (data / name).mkdir(parents=True)
    X = random.normal(1.0, 2.0, (30, 2))
    np.savetxt(data / "banana" / "banana_X_train", X, delimiter=",")
    np.savetxt(data / "banana" / "banana_Y_train", np.arange(30) % 2)
    write_idx(data / "mnist" / "t10k-images-idx3-ubyte.gz", random.integers(0, 256, (40, 28, 28)))
    write_idx(data / "mnist" / "t10k-labels-idx1-ubyte.gz", np.arange(40) % 10)
    return data


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_those_of_naive_loops(classes: int, seed: int) -> None:
    generator = rnd.generator_from(seed)
    p = rnd.normal((30, classes), generator=generator, dtype=torch.double).softmax(-1)
    Y = rnd.integers(classes, (30,), generator=generator)
    found = parts.score(p, Y)
    rows = list(zip(p.tolist(), Y.tolist(), strict=True))
    nll = [-math.log(row[y]) for row, y in rows]
    brier = [sum((value - (k == y)) ** 2 for k, value in enumerate(row)) for row, y in rows]
    ece = 0.0
    for b in range(15):
        own = [(max(row), row.index(max(row)) == y) for row, y in rows if b / 15 < max(row) <= (b + 1) / 15]
        ece += abs(sum(hit for _, hit in own) - sum(confidence for confidence, _ in own)) / 30
    assert found["accuracy"] == pytest.approx(statistics.fmean(row.index(max(row)) == y for row, y in rows))
    assert found["nll"] == pytest.approx(statistics.fmean(nll))
    assert found["nll_error"] == pytest.approx(statistics.stdev(nll) / math.sqrt(30))
    assert found["brier"] == pytest.approx(statistics.fmean(brier))
    assert found["ece"] == pytest.approx(ece)
    assert found["ece_mass"] != found["ece"]


def test_reader_gives_back_what_was_written(folder: Path) -> None:
    images = parts.idx(folder / "mnist" / "t10k-images-idx3-ubyte.gz")
    labels = parts.idx(folder / "mnist" / "t10k-labels-idx1-ubyte.gz")
    assert images.shape == (40, 28, 28) and labels.tolist() == [i % 10 for i in range(40)]
    raw = gzip.decompress((folder / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert images[3, 5, 7] == raw[16 + (3 * 28 + 5) * 28 + 7]
    floats = folder / "floats.gz"
    floats.write_bytes(gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 0])))
    with pytest.raises(ValueError, match="no IDX file of unsigned bytes"):
        parts.idx(floats)


def test_images_are_split_in_the_order_of_the_file(folder: Path) -> None:
    data = parts.mnist(folder / "mnist", 16)
    pixels = torch.from_numpy(parts.idx(folder / "mnist" / "t10k-images-idx3-ubyte.gz").astype(np.float32))
    assert data.Y[:, 0].tolist() == [i % 10 for i in range(16)]
    assert data.test_Y.tolist() == [i % 10 for i in range(32, 40)]
    expected = (pixels[32:] - pixels[:16].mean()) / pixels[:16].std()
    torch.testing.assert_close(data.test_X, expected.flatten(1))
    assert len(parts.mnist(folder / "mnist", 1000).X) == 32  # never a test image


def test_folds_share_no_test_row_and_are_standardised_by_the_others(folder: Path) -> None:
    masks = [parts.dealt(30) == fold for fold in range(parts.FOLDS)]
    assert torch.stack(masks).sum(0).tolist() == [1] * 30 and {int(mask.sum()) for mask in masks} == {6}
    X = torch.from_numpy(np.loadtxt(folder / "banana" / "banana_X_train", delimiter=","))
    for fold, mask in enumerate(masks):
        data = parts.banana(folder / "banana", fold)
        torch.testing.assert_close(data.test_X, (X[mask] - X[~mask].mean(0)) / X[~mask].std(0))
        torch.testing.assert_close(data.X, (X[~mask] - X[~mask].mean(0)) / X[~mask].std(0))
        assert data.test_Y.tolist() == (torch.arange(30)[mask] % 2).tolist()
        assert data.Y[:, 0].tolist() == (torch.arange(30)[~mask] % 2).tolist()


def test_truth_of_the_rings_is_calibrated_and_beats_others(seed: int) -> None:
    """Mean of 1[y = 1] - p is zero, also in the half of the rows where p is larger, by five standard errors."""
    data = parts.rings((50, 20_000), seed)
    assert data.truth is not None
    p, y = data.truth[:, 1], data.test_Y.double()
    torch.testing.assert_close(data.truth.sum(-1), torch.ones_like(p))
    for part in (p >= 0, p > 0.5):
        error = ((p * (1 - p))[part].sum().sqrt() / part.sum()).item()
        assert abs((y - p)[part].mean().item()) < 5 * error
    best = parts.score(data.truth, data.test_Y)["nll"]
    for power in (0.5, 2.0):
        other = data.truth.pow(power) / data.truth.pow(power).sum(-1, keepdim=True)
        assert parts.score(other, data.test_Y)["nll"] > best


def test_probability_of_the_rings_is_the_ratio_of_their_densities() -> None:
    x = torch.tensor([[0.3, -0.4], [1.2, 0.5], [0.05, 0.0]]).double()
    found = parts.ring_probabilities(x)
    for point, p in zip(x, found, strict=True):
        r = point.norm().item()
        # Both signs of the radius lead to the point, with the same Jacobian r for either ring.
        density = [sum(statistics.NormalDist(R, parts.SPREAD).pdf(s * r) for s in (1, -1)) for R in parts.RADII]
        assert p.tolist() == pytest.approx([d / sum(density) for d in density])


def test_lenet_is_of_the_shape_and_size_that_is_told() -> None:
    net = probnn.ModuleNetwork(parts.LeNet(), input_dim=784, output_dim=10)
    assert net.num_parameters == 6 * 26 + 16 * 151 + 257 * 120 + 121 * 84 + 85 * 10
    assert [block.fan_in for block in net.layout.blocks if block.role == "weight"] == [25, 150, 256, 120, 84]


@pytest.mark.parametrize("channels", [1, 2])
def test_targets_have_the_variances_that_are_told(channels: int, seed: int) -> None:
    x = torch.zeros(1, 2).double()
    generator = rnd.generator_from(seed)
    f = parts.target("matched (32, 4)", channels).sample(x, (4000,), generator=generator)
    assert f.shape == (4000, 1, channels)
    assert (f.square().mean(0) - 32).abs().max() < 5 * 32 * math.sqrt(2 / 4000)
    # log f^2 = log v + log chi^2, of variances 0.3 and pi^2 / 2, and means log 8 and -1.2704.
    logs = parts.target(parts.MATCHED, channels).sample(x, (4000,), generator=generator).square().log()
    deviations = (logs - logs.mean(0)).square()
    assert (logs.mean(0) - math.log(8) + 1.2704).abs().max() < 5 * logs.std() / math.sqrt(4000)
    assert (logs.var(0) - 0.3 - math.pi**2 / 2).abs().max() < 5 * deviations.std() / math.sqrt(4000)


def test_samplers_are_those_that_are_named() -> None:
    assert parts.sampler("banana", "hmc", TINY).temperature == 1.0
    cold = parts.sampler("mnist", "sghmc T=0.1", TINY)
    assert (type(cold).__name__, cold.temperature, cold.batch_size) == ("SGHMC", 0.1, TINY.batch)
    assert parts.sampler("banana", "sghmc", TINY).batch_size is None


def test_a_matched_prior_is_nearer_to_the_target_and_kept_for_the_next_sampler(seed: int) -> None:
    settings = parts.replace(TINY, auto_steps=5, measured=20, ring_rows=(40, 10))
    start, nothing = parts.prior_of(None, "rings", "bernoulli", parts.FIXED, seed, settings)
    found, seconds = parts.prior_of(None, "rings", "bernoulli", parts.MATCHED, seed, settings)
    assert nothing == 0 and seconds > 0
    assert parts.prior_of(None, "rings", "bernoulli", parts.MATCHED, seed, settings)[0] is found
    assert isinstance(start.weight_prior, priors.NormalWeights) and start.weight_prior.weight_scale == 1.0
    X = parts.rings((40, 10), seed).X
    variances = [
        process.sample(X, (500,), generator=rnd.generator_from(seed)).var(0).mean() for process in (start, found)
    ]
    assert variances[1] > 2 * variances[0]  # the target's is 8 and more


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_runner_writes_all_tables_and_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["--data", str(folder), "--out", str(out), "--quick"]
    # Matching draws thousands of functions for its report: here some, of 7,850 weights and not of 44,000.
    monkeypatch.setattr(parts, "LeNet", lambda: torch.nn.Linear(784, 10))
    monkeypatch.setattr(matching, "NUM_EVALUATIONS", 50)
    parts.load.cache_clear()
    parts.prior_of.cache_clear()
    runner.main(command, TINY)
    keys = runner.tasks(with_data=True, quick=True)
    first = rows(out / "classification_runs.csv")
    assert [tuple(row[name] for name in ("task", "model", "prior", "method")) for row in first] == [
        key.setting for key in keys
    ]
    assert {row["task"] for row in first} == {"rings", "banana", "mnist"}
    for row in first:
        assert all(math.isfinite(float(row[name])) for name in runner.SCORES)
        assert (row["rhat"] == "") == (row["prior"] == "truth")
    for task in ("banana", "rings"):
        assert (out / f"classification_{task}.png").stat().st_size > 10_000
        with np.load(out / "classification_planes" / f"{task}_matched.npz") as plane:
            assert plane["mean"].shape == plane["std"].shape == (60, 60)
    report = json.loads((out / "classification.json").read_text(encoding="utf-8"))
    assert [table["title"].split(",")[0] for table in report["tables"]] == [
        "banana",
        "rings",
        "mnist",
        "matched less fixed",
    ]

    # The last fit is lost, and the run is now a whole one: the others are not done again.
    lines = (out / "classification_runs.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "classification_runs.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    done: list[runner.Key] = []

    def counted(key: runner.Key, *rest: Any) -> dict[str, float]:
        done.append(key)
        return dict.fromkeys(runner.FIELDS, 1.0)

    monkeypatch.setattr(runner, "job", counted)
    monkeypatch.setattr(runner, "plot", lambda task, out: None)
    runner.main(command[:-1], TINY)
    whole = runner.tasks(with_data=True, quick=False)
    assert done == [key for key in whole if key not in keys[:-1]]
    assert {key.prior for key in whole if key.task == "banana"} == {*runner.PRIORS, *parts.TARGETS}
    assert rows(out / "classification_runs.csv")[: len(first) - 1] == first[:-1]


def test_planes_hold_the_second_input_in_their_rows(folder: Path, tmp_path: Path) -> None:
    """A posterior whose probability grows with the first input alone is constant along columns."""

    class First:
        def predict(self, X: torch.Tensor) -> Any:
            return type("Law", (), {"values": X[:, :1].sigmoid().expand(3, -1, 1)})

    parts.save_plane(tmp_path / "plane.npz", First(), parts.banana(folder / "banana", 0), size=5)
    with np.load(tmp_path / "plane.npz") as plane:
        assert (np.diff(plane["mean"], axis=0) == 0).all() and (np.diff(plane["mean"], axis=1) > 0).all()


def test_a_failed_fit_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from probnn.errors import ConvergenceError

    def run(folder: Any, task: str, model: str, prior: str, *rest: Any) -> dict[str, float]:
        if prior == "matched":
            raise ConvergenceError("no density")
        return dict.fromkeys(runner.FIELDS, 0.5)

    monkeypatch.setattr(runner, "run", run)
    runner.main(["--out", str(tmp_path), "--quick"], TINY)
    assert "rings fold 0 bernoulli matched hmc: failed, ConvergenceError: no density" in capsys.readouterr().out
    assert "matched" not in {row["prior"] for row in rows(tmp_path / "classification_runs.csv")}


def test_differences_are_paired() -> None:
    runs = {}
    for fold, (base, other) in enumerate([(0.5, 0.3), (0.6, 0.5), (0.4, 0.4)]):
        runs[runner.Key("rings", "bernoulli", "fixed", "hmc", fold)] = dict.fromkeys(runner.FIELDS, base)
        runs[runner.Key("rings", "bernoulli", "matched", "hmc", fold)] = dict.fromkeys(runner.FIELDS, other)
    runs[runner.Key("rings", "bernoulli", "fixed", "hmc", 9)] = dict.fromkeys(runner.FIELDS, 100.0)
    (row,) = runner.differences(runs)
    assert row["folds"] == 3
    assert row["nll"] == f"-0.100 +- {statistics.stdev([-0.2, -0.1, 0.0]) / math.sqrt(3):.3f}"


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no banana/banana_X_train, mnist/t10k-images-idx3-ubyte.gz"):
        runner.main(["--data", str(tmp_path), "--out", str(tmp_path)])
