"""`probnn suggest`: the next experiments, and nothing of the user's changed without a word."""

from __future__ import annotations

import csv
import io
import json
import random
import warnings
from pathlib import Path

import pytest

from probnn.cli import main
from probnn.optimization.spacefile import read_space
from probnn.optimization.table import read_table

from .tables import HEADER, experiments, write

COLUMNS = [*HEADER[:3], "yield_mean", "yield_std", "yield_q05", "yield_q95", "p_ok", "source"]
GP = ["--space", "space.toml", "--maximize", "yield", "--surrogate", "gp"]


def suggest(*words: str, table: str = "experiments.csv") -> int:
    return main(["suggest", table, *GP, *words])


def test_the_table_and_the_check(lab: Path, capsys: pytest.CaptureFixture) -> None:
    before = (lab / "experiments.csv").read_bytes()
    assert suggest("--batch", "2") == 0
    out, err = capsys.readouterr()
    check, blank, header, *rows = out.splitlines()
    assert check.startswith("yield: leave-one-out rank correlation 0.9")
    assert "of 24 rows (exact" in check
    assert blank == ""
    assert header.split() == COLUMNS
    assert len(rows) == 2
    assert err == ""
    assert (lab / "experiments.csv").read_bytes() == before
    assert sorted(p.name for p in lab.iterdir()) == ["experiments.csv", "space.toml"]


def test_json_alone_on_stdout(lab: Path, capsys: pytest.CaptureFixture) -> None:
    assert suggest("--batch", "2", "--format", "json") == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    space = read_space("space.toml")
    for row in rows:
        assert list(row) == COLUMNS
        assert space.violations({name: row[name] for name in space.parameters}) == []
        assert row["yield_q05"] < row["yield_mean"] < row["yield_q95"]
        # The 5 and 95 per cent points of a normal distribution lie 1.645 standard deviations off.
        assert row["yield_q95"] - row["yield_mean"] == pytest.approx(1.6448536 * row["yield_std"], rel=1e-4)
        assert row["p_ok"] is None
        assert row["source"] == "model"
    assert "rank correlation" in err


def test_csv_in_the_dialect_of_the_table(lab: Path, capsys: pytest.CaptureFixture) -> None:
    write(lab / "de.csv", experiments(), delimiter=";", decimal=",", bom=True, newline="\r\n")
    assert suggest("--format", "csv", "--decimal", ",", "-q", table="de.csv") == 0
    german, err = capsys.readouterr()
    assert err == ""
    assert suggest("--format", "csv", "-q") == 0
    plain = capsys.readouterr().out
    [row] = csv.DictReader(io.StringIO(plain))
    [same] = csv.DictReader(io.StringIO(german), delimiter=";")
    assert {k: v.replace(",", ".") for k, v in same.items()} == row


def test_append_adds_rows_and_nothing_else(lab: Path, capsys: pytest.CaptureFixture) -> None:
    header = ["who", *HEADER, "remark"]
    write(lab / "own.csv", [["me", *r, "fine"] for r in experiments()], header, delimiter=";", newline="\r\n")
    before = (lab / "own.csv").read_bytes()
    assert suggest("--batch", "3", "--append", "--format", "json", table="own.csv") == 0
    out, err = capsys.readouterr()
    assert "3 rows added to own.csv" in err
    after = (lab / "own.csv").read_bytes()
    assert after.startswith(before)
    added = read_table(lab / "own.csv").rows[-3:]
    for row, asked in zip(added, json.loads(out), strict=True):
        assert row["yield"] == row["who"] == row["remark"] == ""
        assert [row["temperature"], row["solvent"]] == [str(asked["temperature"]), asked["solvent"]]
        assert float(row["pressure"]) == asked["pressure"]
    # What was added is pending now: the next batch differs from it.
    assert suggest("--batch", "1", "--format", "json", "-q", table="own.csv") == 0
    [again] = json.loads(capsys.readouterr().out)
    assert all(any(again[k] != asked[k] for k in HEADER[:3]) for asked in json.loads(out))


def test_fixed_values_and_a_pool(lab: Path, capsys: pytest.CaptureFixture) -> None:
    assert suggest("--fix", "temperature=45", "--fix", "solvent=DMF", "--format", "json", "-q", "--batch", "2") == 0
    assert {(r["temperature"], r["solvent"]) for r in json.loads(capsys.readouterr().out)} == {(45, "DMF")}
    write(lab / "shelf.csv", [["A", "60", "2.5", "THF"], ["B", "20", "5", "DMF"]], ["bottle", *HEADER[:3]])
    assert suggest("--pool", "shelf.csv", "--format", "json", "-q") == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["temperature"], row["pressure"], row["solvent"], row["source"]) == (60, 2.5, "THF", "pool")


def test_minimize_turns_the_figures_round(lab: Path, capsys: pytest.CaptureFixture) -> None:
    """A loss that is the yield with its sign changed gives the same suggestion and mirrored figures."""
    rows = [[*r[:3], str(-float(r[3]))] for r in experiments()]
    write(lab / "loss.csv", rows, [*HEADER[:3], "loss"])
    words = ["--space", "space.toml", "--surrogate", "gp", "--format", "json", "-q"]
    assert main(["suggest", "loss.csv", "--minimize", "loss", *words]) == 0
    [down] = json.loads(capsys.readouterr().out)
    assert main(["suggest", "experiments.csv", "--maximize", "yield", *words]) == 0
    [up] = json.loads(capsys.readouterr().out)
    assert [down[k] for k in HEADER[:3]] == [up[k] for k in HEADER[:3]]
    for ours, theirs in (("mean", "mean"), ("q05", "q95"), ("q95", "q05")):
        assert down[f"loss_{ours}"] == pytest.approx(-up[f"yield_{theirs}"])


def test_a_bound_and_failures_give_p_ok(lab: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [[*r, f"{float(r[1]) / 10:.3f}"] for r in experiments()]
    write(lab / "two.csv", rows, [*HEADER, "impurity"])
    words = ["suggest", "two.csv", *GP, "--format", "json", "-q", "--fix", "solvent=THF", "--fix", "pressure=2"]
    chances = []
    for bound in ("0.1", "0.2", "0.4"):
        assert main([*words, "--subject-to", f"impurity <= {bound}"]) == 0
        [row] = json.loads(capsys.readouterr().out)
        chances.append(row["p_ok"])
        assert row["impurity_mean"] == pytest.approx(0.2, abs=0.02)
    assert chances[0] < 0.1 < chances[1] < 0.9 < chances[2]
    for i in (1, 5, 9):
        rows[i][3] = "failed"
    write(lab / "two.csv", rows, [*HEADER, "impurity"])
    assert main([*words, "--subject-to", "impurity <= 0.4"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["p_ok"] < chances[2]


def test_a_model_that_predicts_nothing_is_called_so(lab: Path, capsys: pytest.CaptureFixture) -> None:
    draw = random.Random(1)
    noise = [[*r[:3], f"{draw.gauss(0, 1):.3f}"] for r in experiments()]
    write(lab / "noise.csv", noise)
    assert suggest(table="noise.csv") == 0
    assert "the model does not yet predict the data (yield)" in capsys.readouterr().out


def test_few_rows(lab: Path, capsys: pytest.CaptureFixture) -> None:
    write(lab / "few.csv", experiments()[:1])
    assert suggest("--format", "json", table="few.csv") == 0
    out, err = capsys.readouterr()
    [row] = json.loads(out)
    assert row["source"] == "initial"
    assert row["yield_mean"] is None
    assert err == "yield: measured in 1 row, too few to tell whether a model predicts it\n"


def test_old_rows_outside_are_told_and_strict_refuses_them(lab: Path, capsys: pytest.CaptureFixture) -> None:
    write(lab / "old.csv", [*experiments(), ["95", "2", "THF", "30"]])
    assert suggest(table="old.csv") == 0
    assert "1 of 25 rows lie outside today's space (1 out of range: temperature)" in capsys.readouterr().out
    assert suggest("--strict", table="old.csv") == 2
    assert capsys.readouterr().err.startswith("probnn: old.csv, row 26, column 'temperature': must be from 20 to 80")


def test_a_file_for_the_answer(lab: Path, capsys: pytest.CaptureFixture) -> None:
    assert suggest("--format", "csv", "-o", "next.csv", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert read_table(lab / "next.csv").header == tuple(COLUMNS)
    assert suggest("-o", "next.csv") == 2
    assert "next.csv: is there already" in capsys.readouterr().err


def test_without_a_model(lab: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["suggest", "experiments.csv", "--space", "space.toml", "--maximize", "yield", "--format", "json"]
    assert main([*words, "--surrogate", "random"]) == 0
    out, err = capsys.readouterr()
    [row] = json.loads(out)
    assert (row["yield_mean"], row["source"], err) == (None, "random", "")


def test_other_libraries_say_nothing(lab: Path, capsys: pytest.CaptureFixture) -> None:
    """A warning that gets past every filter is not shown; one of our own is, in one line."""
    from probnn.cli.main import only_own_warnings
    from probnn.errors import ConvergenceWarning

    for quiet in (False, True):
        with only_own_warnings(quiet):
            warnings.simplefilter("always", RuntimeWarning)
            warnings.warn("theirs", RuntimeWarning, stacklevel=1)
            warnings.warn("ours,\n  of two lines", ConvergenceWarning, stacklevel=1)
        assert capsys.readouterr() == ("", "" if quiet else "probnn: note: ours, of two lines\n")
