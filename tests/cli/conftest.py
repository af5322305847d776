"""A fresh folder with a table and a space."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tables import SPACE, experiments, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lab(folder: Path) -> Path:
    """A folder with experiments.csv and space.toml."""
    write(folder / "experiments.csv", experiments())
    (folder / "space.toml").write_text(SPACE)
    return folder
