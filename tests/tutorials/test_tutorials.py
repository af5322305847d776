"""Every tutorial runs, in smoke mode, to the assertions at its end."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("[0-9]*.py"))
each = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells(path: Path) -> list[tuple[str, str]]:
    """The kind and the text of each cell of a script in percent format."""
    parts = re.split(r"^# %%(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [
        ("text" if "[markdown]" in head else "code", body) for head, body in zip(parts[::2], parts[1::2], strict=True)
    ]


def test_there_are_tutorials() -> None:
    assert [path.name[:3] for path in TUTORIALS] == [f"{i:02}_" for i in range(1, len(TUTORIALS) + 1)]
    assert len(TUTORIALS) >= 2


@each
def test_text_begins_and_assertions_end_it(path: Path) -> None:
    kinds = cells(path)
    assert kinds[0][0] == "text" and kinds[0][1].strip().startswith("# # "), "a title"
    assert kinds[-1][0] == "code" and any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(kinds[-1][1])))
    for kind, body in kinds:
        if kind == "text":
            assert all(line.startswith("#") for line in body.strip().splitlines()), body


# Runs this short do not converge, and say so; everything else that warns is a fault of the tutorial.
@pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning", "ignore::probnn.errors.DivergenceWarning")
@each
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[int] = []

    def show() -> None:
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
            figures.append(number)
        plt.close("all")

    monkeypatch.setenv("PROBNN_SMOKE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", show)
    with plt.rc_context():
        runpy.run_path(str(path), run_name="__main__")
    assert figures, "a tutorial shows figures"
    assert not list(tmp_path.iterdir()), "and leaves no files behind"
