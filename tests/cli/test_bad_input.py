"""Bad input: exit code 2, one line that says where, and files as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from probnn.cli import main
from probnn.optimization.history import History
from probnn.optimization.problems import named_problem

from .tables import HEADER, experiments, write

TABLE, GOAL = "experiments.csv", ["--space", "space.toml", "--maximize", "yield"]
ROWS = [",".join(row) for row in experiments(6)]
HEAD = ",".join(HEADER)
ONE = "[x]\n"


def refused(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line of a command that must fail; argparse leaves by SystemExit."""
    before = {p: p.read_bytes() for p in Path.cwd().rglob("*") if p.is_file()}
    try:
        status: object = main(words)
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("probnn"), err
    assert "Traceback" not in err
    assert {p: p.read_bytes() for p in Path.cwd().rglob("*") if p.is_file()} == before
    return err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "experiments.csv: the file is empty"),
        (f"{HEAD}\n{ROWS[0]}\n45,2.5,THF,4o\n", "row 3, column 'yield': expected a number"),
        (f"{HEAD}\n{ROWS[0]}\nhot,2.5,THF,40\n", "row 3, column 'temperature'"),
        (f"{HEAD}\n{ROWS[0]}\n45,,THF,40\n", "row 3, column 'pressure': the cell is empty"),
        (f"{HEAD}\n{ROWS[0]}\n45,2.5,THF,nan\n", "row 3, column 'yield'"),
        (f"{HEAD}\n{ROWS[0]}\n45,2.5,THF\n", "row 3: 3 cells where the header has 4; column 'yield' is missing"),
        (f"{HEAD},yield\n{ROWS[0]},1\n", "row 1: columns 4 and 5 are both called 'yield'"),
        ("temperature,solvent,yield\n45,THF,2\n", "row 1: there is no column for the parameter 'pressure'"),
        ("temperature,pressure,solvent,yeild\n45,2,THF,2\n", "column for the target 'yield'; is it 'yeild'?"),
        ("temperature;pressure;solvent;yield\n45;2,5;THF;2\n", "row 2, column 'pressure'"),
    ],
)
def test_tables(lab: Path, text: str, words: str, capsys: pytest.CaptureFixture) -> None:
    (lab / TABLE).write_text(text)
    assert words in refused(["suggest", TABLE, *GOAL], capsys)


def test_a_decimal_comma_names_the_option(lab: Path, capsys: pytest.CaptureFixture) -> None:
    (lab / TABLE).write_text("temperature;pressure;solvent;yield\n45;2,5;THF;2\n")
    assert refused(["suggest", TABLE, *GOAL], capsys).endswith("for numbers written like that give --decimal ,\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('type = "real"\nlow = 3\nhigh = 1\n', "[x]: low must be below high"),
        ('type = "real"\nlow = 0\nhigh = 1\nlog = true\n', "[x]: a log scale needs low above 0"),
        ('type = "categorical"\nchoices = ["a"]\n', "[x]: needs at least two choices"),
        ('type = "real"\nlow = 0\nhigh = 1\nstep = 2\n', "[x]: step 2 is larger than the range"),
        ('type = "reel"\nlow = 0\nhigh = 1\n', "[x]: type: expected one of"),
        ("low = \n", "is not valid TOML"),
    ],
)
def test_spaces(lab: Path, text: str, words: str, capsys: pytest.CaptureFixture) -> None:
    (lab / "space.toml").write_text(ONE + text)
    message = refused(["suggest", TABLE, *GOAL], capsys)
    assert message.startswith("probnn: space.toml: ")
    assert words in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suggest", "nowhere.csv", *GOAL], "probnn: nowhere.csv: there is no such file"),
        (["suggest", TABLE, "--space", "no.toml", "--maximize", "yield"], "probnn: no.toml: cannot be read"),
        (["suggest", TABLE, "--space", "space.toml"], "probnn: name a target, by --maximize or --minimize"),
        (["suggest", TABLE, *GOAL, "--batch", "0"], "probnn suggest: argument --batch: expected a whole number"),
        (["suggest", TABLE, *GOAL, "--surrogate", "gpp"], "probnn: no surrogate 'gpp'"),
        (["suggest", TABLE, *GOAL, "--fix", "temprature=80"], "--fix: expected NAME=VALUE"),
        (["suggest", TABLE, *GOAL, "--fix", "temperature=hot"], "--fix: temperature: "),
        (["suggest", TABLE, *GOAL, "--fix", "temperature=81", "--surrogate", "random"], "probnn: --fix: temperature: "),
        (["suggest", TABLE, *GOAL, "--subject-to", "impurity < 1"], "probnn: --subject-to needs bounds"),
        (["suggest", TABLE, *GOAL, "--pool", "nothing.csv"], "probnn: nothing.csv: there is no such file"),
        (["suggest", TABLE, *GOAL, "--colour", "red"], "unrecognized arguments"),
        (["backtest", TABLE, "--space", "space.toml"], "required"),
        (["backtest", TABLE, *GOAL, "--surrogates", "gp,magic"], "no surrogate 'magic'"),
        (["bo", "rosenbrock", "--num-evaluations", "3"], "expected branin, hartmann6, ackley5 or module:function"),
        (["bo", "nowhere:f", *GOAL, "--num-evaluations", "3"], "there is no module 'nowhere'"),
        (["bo", "broken:f", *GOAL, "--num-evaluations", "3"], "importing 'broken' failed: ZeroDivisionError"),
        (["bo", "math:nothing", *GOAL, "--num-evaluations", "3"], "'math' has no function 'nothing'"),
        (["bo", "a/b.py:f", *GOAL, "--num-evaluations", "3"], "write a.b:f, a module and no file"),
        (["bo", "branin", "--timeout", "-1", "--num-evaluations", "3"], "--timeout: expected a number above 0"),
        (["init", TABLE, "-o", "new.toml", "--target", "profit"], "there is no column 'profit'"),
        (["frobnicate"], "invalid choice"),
    ],
)  # fmt: skip
def test_options(lab: Path, words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    (lab / "broken.py").write_text("1 / 0\n")
    assert message in refused(words, capsys)


def test_a_candidate_that_cannot_be_set(lab: Path, capsys: pytest.CaptureFixture) -> None:
    write(lab / "pool.csv", [["45", "2", "THF"], ["45", "9", "THF"]], HEADER[:3])
    message = refused(["suggest", TABLE, *GOAL, "--pool", "pool.csv"], capsys)
    assert message.startswith("probnn: pool.csv, row 3, column 'pressure': must be from 1.0 to 5.0, got 9.0")


@pytest.mark.parametrize("body", ["raise RuntimeError('no power')", "return float('nan')", "return 'much'"])
def test_an_objective_that_only_fails(lab: Path, body: str, capsys: pytest.CaptureFixture) -> None:
    module = f"fails_{abs(hash(body))}"
    (lab / f"{module}.py").write_text(f"def f(**settings):\n    {body}\n")
    status = main(["bo", f"{module}:f", *GOAL, "--num-evaluations", "9", "--history", "h.csv", "--surrogate", "random"])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("probnn: ") and "5 evaluations failed in a row" in err and err.count("\n") == 1
    assert err.endswith("; the trials are in h.csv, and the same command goes on from there\n")
    assert (lab / "h.csv").read_text().count(",failed,") == 5


def test_two_processes_on_one_history(lab: Path, capsys: pytest.CaptureFixture) -> None:
    problem = named_problem("branin")
    with History("h.csv", problem.space, ["value"]):
        message = refused(["bo", "branin", "--history", "h.csv", "--num-evaluations", "3"], capsys)
    assert message.startswith("probnn: h.csv: is in use by another process")


def test_a_full_disk(lab: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*anything: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("probnn.optimization.table.write_all", full)
    before = (lab / TABLE).read_bytes()
    assert main(["suggest", TABLE, *GOAL, "--surrogate", "random", "--append", "-q"]) == 2
    assert "experiments.csv: cannot be written (No space left on device)" in capsys.readouterr().err
    assert (lab / TABLE).read_bytes() == before


def test_a_folder_that_is_not_there(lab: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["suggest", TABLE, *GOAL, "--surrogate", "random", "-q", "-o", "no/where.csv"]
    assert refused(words, capsys) == "probnn: no/where.csv: No such file or directory\n"
