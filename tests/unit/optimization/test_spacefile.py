"""Spaces as TOML files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probnn.errors import DomainError
from probnn.optimization import Categorical, Fixed, Integer, Real, Space
from probnn.optimization.spacefile import read_space, write_space

from .spaces import spaces

TEXT = """
# what can be set
constraints = ["power + depth <= 14", 'same in batch: "flow rate"']

[depth]
type = "integer"   # blocks
low = 1
high = 8

[power]
type = "real"
low = 8
high = 9.8
step = 0.1

[rate]
type = "real"
log = true
low = 1e-4
high = 0.1

[size]
type = "categorical"
choices = [1, 10, 100]
ordered = true

["flow rate"]
type = "categorical"
choices = ["slow", "fast"]

[solvent]
type = "fixed"
value = "water"
"""
SPACE = Space(
    depth=Integer(1, 8),
    power=Real(8, 9.8, step=0.1),
    rate=Real(1e-4, 0.1, log=True),
    size=Categorical([1, 10, 100], ordered=True),
    **{"flow rate": Categorical(["slow", "fast"])},
    solvent=Fixed("water"),
    constraints=["power + depth <= 14", 'same in batch: "flow rate"'],
)


@pytest.mark.parametrize("change", [str.encode, lambda t: b"\xef\xbb\xbf" + t.replace("\n", "\r\n").encode()])
def test_reading(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "space.toml"
    path.write_bytes(change(TEXT))
    assert Space.from_toml(path) == SPACE == Space.from_toml(str(path))


@settings(deadline=None, max_examples=30)
@given(made=spaces())
def test_round_trips(tmp_path_factory: pytest.TempPathFactory, made: tuple[Space, dict[str, Any]]) -> None:
    space, _ = made
    path = tmp_path_factory.getbasetemp() / "round.toml"
    text = space.to_toml(path)
    assert read_space(path) == space and path.read_text() == text == space.to_toml()


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=50)
@given(name=words, choices=st.lists(words, min_size=2, unique_by=str.strip), comment=words)
def test_any_words_round_trip(
    tmp_path_factory: pytest.TempPathFactory, name: str, choices: list[str], comment: str
) -> None:
    name = name.replace("\n", "").replace("\r", "")
    if not name.strip() or name == "constraints":
        return
    space = Space(**{name: Categorical(choices), "k": Fixed(True), "x": Real(1e-300, 0.1 + 0.2)})
    path = tmp_path_factory.getbasetemp() / "words.toml"
    space.to_toml(path, comments={name: comment, "": comment, "constraints": comment})
    assert Space.from_toml(path) == space


def test_comments(tmp_path: Path) -> None:
    text = SPACE.to_toml(comments={"": "Made from a table.\nEdit freely.", "depth": "seen: 1 to 8", "constraints": "c"})
    lines = text.splitlines()
    assert lines[:2] == ["# Made from a table.", "# Edit freely."]
    assert lines[lines.index("[depth]") - 1] == "# seen: 1 to 8"
    assert lines[lines.index("constraints = [") - 1] == "# c"
    assert list(tomllib.loads(text)) == ["constraints", "depth", "power", "rate", "size", "flow rate", "solvent"]
    with pytest.raises(DomainError, match="comment for 'dept'"):
        write_space(SPACE, comments={"dept": "?"})


def test_files_are_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text("old")
    with pytest.raises(DomainError):
        SPACE.to_toml(path, comments={"nothing": ""})
    assert path.read_text() == "old"
    SPACE.to_toml(path)
    assert [p.name for p in tmp_path.iterdir()] == ["space.toml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[depth]\ntype = "integer"\nlow = 8\nhigh = 1', r"space.toml: \[depth\]: low must be below high, got 8 and 1"),
        ('[rate]\ntype = "real"\nlow = 0\nhigh = 1\nlog = true', r"\[rate\]: a log scale needs low above 0 \(zero has"),
        ('[x]\ntype = "real"\nlow = 0\nhigh = 1\nstep = 2', r"\[x\]: step 2 is larger than the range"),
        ('[x]\ntype = "categorical"\nchoices = ["a"]', r"\[x\]: needs at least two choices"),
        ('[x]\ntype = "categorical"\nchoices = ["a"]', r"a fixed parameter holds a single one"),
        ('[x]\ntype = "real"\nlow = 1\nhigh = 1', r"\[x\]: low must be below .*; a fixed parameter holds one value$"),
        ('[x]\ntype = "real"\nlow = 0\nhigh = 1\nlog = "yes"', r"\[x\]: log must be true or false, got 'yes'$"),
        ('[x]\ntype = "real"\nlow = 0\nhigh = 1\nlog = "True"', r"\[x\]: log must be true or false, got 'True'$"),
        ('[x]\ntype = "real"\nlow = false\nhigh = 1', r"\[x\]: low and high must be finite numbers, got false and 1$"),
        ('[x]\ntype = "real"\nlow = 0\nhigh = 1\nstep = -1', r"\[x\]: step must be a positive number \(or be left"),
        ('[x]\ntype = "integer"\nlow = 0.5\nhigh = 1', r"\[x\]: low must be a whole number, .*; a real parameter"),
        ('[x]\ntype = "reel"\nlow = 0\nhigh = 1', r"\[x\]: type: expected one of .* got 'reel' \(did you mean 'real'"),
        ("[x]\nlow = 0\nhigh = 1", r"\[x\]: type is missing; it is one of 'real', 'integer', 'categorical', 'fixed'"),
        ('[x]\ntype = "real"\nlow = 0\nhihg = 1', r"\[x\]: unknown key 'hihg' \(did you mean 'high'\?\)"),
        ('[x]\ntype = "integer"\nchoices = [1]', r"\[x\]: unknown key 'choices'; a parameter of type 'integer'"),
        ('[x]\ntype = "real"\nlow = 0', r"\[x\]: high is missing; a parameter of type 'real' needs it"),
        ('[x]\ntype = "real"\nlow = "0"\nhigh = 1', r"\[x\]: low and high must be finite numbers, got '0'"),
        ('[x]\ntype = "real"\nlow = 0\nhigh = inf', r"\[x\]: low and high must be finite numbers"),
        ('[x]\ntype = "fixed"\nvalue = [1]', r"\[x\]: the value must be a word"),
        ("x = 3", r"space.toml: \[x\]: expected a table, such as \[x\]"),
        ('constraint = ["x <= 1"]', r"did you mean 'constraints'\?"),
        ('constraints = "x <= 1"', "space.toml: constraints: expected a list of strings"),
        ('[constraints]\ntype = "real"\nlow = 0\nhigh = 1', "constraints: expected a list .* cannot have that name"),
        ('constraints = ["y <= 1"]\n[x]\ntype = "real"\nlow = 0\nhigh = 1', "space.toml: constraint 'y <= 1'"),
        ('constraints = ["x >= 2"]\n[x]\ntype = "real"\nlow = 0\nhigh = 1', "space.toml: no setting satisfies 'x"),
        ("[x\n[y]", r"space.toml: is not valid TOML: .*line 1"),
        ("", "space.toml: needs at least one parameter"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text(text)
    with pytest.raises(DomainError, match=message):
        Space.from_toml("space.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match=r"none.toml: cannot be read: No such file"):
        Space.from_toml(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("[größe]".encode("latin-1"))
    with pytest.raises(DomainError, match=r"latin.toml: is not UTF-8 text"):
        Space.from_toml(tmp_path / "latin.toml")
