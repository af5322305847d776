"""`probnn backtest`: replays, their file, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from probnn.cli import main

from .tables import experiments, write

WORDS = ["backtest", "done.csv", "--space", "space.toml", "--maximize", "yield", "--surrogates", "gp", "--seeds", "2"]


@pytest.fixture
def done(lab: Path) -> Path:
    """Forty finished experiments."""
    write(lab / "done.csv", experiments(40))
    return lab


def test_replays_are_kept_and_told(done: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(WORDS) == 0
    first, err = capsys.readouterr()
    assert sorted(p.name for p in (done / "backtest").iterdir()) == ["backtest.png", "replays.csv", "summary.csv"]
    assert (done / "backtest" / "backtest.png").read_bytes().startswith(b"\x89PNG")
    assert "40 settings, 2 of them the best 5 %" in first
    assert "random search" in first
    assert "A finished table flatters" in first
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "gp, seed 0", "gp, seed 1", "random, seed 0", "random, seed 1"
    ]  # fmt: skip
    # A replay that is missing, and half a line of a killed process: done again, with the same result.
    whole = (done / "backtest" / "replays.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    (done / "backtest" / "replays.csv").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert main([*WORDS, "-q"]) == 0
    assert capsys.readouterr() == (first, "")
    assert (done / "backtest" / "replays.csv").read_bytes() == whole


def test_another_table_is_refused(done: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*WORDS, "--surrogates", "random"]) == 0
    capsys.readouterr()
    write(done / "done.csv", experiments(40, seed=1))
    assert main(WORDS) == 2
    assert capsys.readouterr().err.startswith("probnn: backtest/replays.csv, row 2: is a replay of another table")


def test_too_small_a_table(done: Path, capsys: pytest.CaptureFixture) -> None:
    write(done / "done.csv", experiments(12))
    assert main(WORDS) == 2
    assert capsys.readouterr().err == (
        "probnn: done.csv: needs at least 20 different settings with an outcome within the space, got 12\n"
    )
    assert not (done / "backtest").exists()
