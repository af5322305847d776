"""The commands that the documentation prints run as they stand there, and its list of options is the command line's."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import probnn
from probnn.cli.main import main, make_parser
from probnn.optimization.spacefile import read_space

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\{code-block\} \w+|bash)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
PAGES = [
    page
    for page in [*sorted((DOCS / "how-to").glob("*.md")), DOCS / "command-line.md"]
    if "\nprobnn " in page.read_text(encoding="utf-8")
]
COMMANDS = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


def quick(name: str) -> Any:
    """The recipe, doing little."""
    few = {"num_chains": 4, "num_warmup": 10, "num_samples": 10, "max_leapfrog": 8, "start_steps": 20, "steps": 50}
    few |= {"num_starts": 1, "polish_steps": 5}
    recipe = probnn.surrogates.get_surrogate(name)
    method = recipe.build.method
    return replace(
        recipe,
        build=replace(
            recipe.build, method=replace(method, **{k: v for k, v in few.items() if k in method.__dataclass_fields__})
        ),
    )


def test_there_are_pages() -> None:
    assert {"command-line", "failed-experiments", "resume", "which-surrogate"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block with a caption is that file; lines of bash blocks that begin with probnn are run in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("probnn.optimization.loop.get_surrogate", quick)
    run = 0
    for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        named = re.match(r":caption: (\S+)\n\n", body)
        if named:
            (tmp_path / named[1]).write_text(body[named.end() :], encoding="utf-8")
        for line in body.splitlines() if kind == "bash" else ():
            if line.startswith("probnn "):
                assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
                assert capsys.readouterr().out.strip(), line
                run += 1
    assert run


@pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning", "ignore::probnn.errors.DivergenceWarning")
def test_getting_started_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("probnn.optimization.loop.get_surrogate", quick)
    names: dict[str, Any] = {}
    text = (DOCS / "getting-started.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert [t.status for t in names["bo"].trials] == ["complete", "failed"] + ["complete"] * 6
    assert (tmp_path / "runs" / "trials.csv").exists()
    names["bo"].close()


def test_the_page_of_old_rows_quotes_what_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "how-to" / "old-runs.md").read_text(encoding="utf-8")
    for _, body in BLOCK.findall(text):
        named = re.match(r":caption: (\S+)\n\n", body)
        if named:
            (tmp_path / named[1]).write_text(body[named.end() :], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = ["experiments.csv", "--space", "space.toml", "--maximize", "yield", "--surrogate", "random"]
    assert main(["suggest", *words]) == 0
    quoted = re.search(r"begins with `(.*?)`", text)
    assert quoted and capsys.readouterr().out.startswith(quoted[1])
    assert main(["suggest", *words, "--strict"]) == 2


def test_the_space_file_of_the_page_on_files_is_one(tmp_path: Path) -> None:
    [body] = [b for _, b in BLOCK.findall((DOCS / "files.md").read_text(encoding="utf-8")) if "space.toml" in b]
    (tmp_path / "space.toml").write_text(body.partition("\n\n")[2], encoding="utf-8")
    space = read_space(tmp_path / "space.toml")
    assert set(space.fixed) == {"operator"} and len(space.constraints) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_on_the_page(command: str) -> None:
    """The page lists the options there are, and no others."""
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    part = re.search(rf"^## probnn {command}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert part
    rows = [row.removeprefix("| ").split(" | ") for row in part[1].splitlines() if row.startswith("| ")]
    # Where a command has actions, those stand in front of their options.
    cells = [row[0] if row[0].startswith("`") else row[1] for row in rows if len(row) > 1]
    listed = {word for cell in cells for word in re.findall(r"`(-[\w-]*|[A-Z][\w.]*)", cell)}
    there: set[str] = set()
    for action in _options(COMMANDS[command]):
        there |= set(action.option_strings) or {str(action.metavar)}
        if action.help:
            shown = action.help % {"default": action.default}
            assert shown in part[1], f"the words on {action.dest} are those of --help"
    assert listed == there


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Options of a command, and of what it can be told to do."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)
        if not isinstance(action, argparse._HelpAction):
            yield action
