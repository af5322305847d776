"""Files are replaced in one step, and stay what they were otherwise."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from probnn import io


def write(path: Path, text: str) -> None:
    with io.replacing(path) as temporary:
        Path(temporary).write_text(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_mode_of_new_files_and_an_old_one_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ordinary").touch()
    # The mask belongs to the whole process: another thread would make its files with what is set here.
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the mask was moved"))
    write(tmp_path / "new", "a")
    assert mode(tmp_path / "new") == mode(tmp_path / "ordinary")
    for kept in (0o600, 0o640):
        (tmp_path / "new").chmod(kept)
        write(tmp_path / "new", "b")
        assert mode(tmp_path / "new") == kept and (tmp_path / "new").read_text() == "b"


def test_the_file_behind_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "file").read_text() == "new"
    assert sorted(os.listdir(tmp_path / "folder")) == ["file"]


def test_errors_name_the_path_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere" / "file", tmp_path / "folder"):
        with pytest.raises(OSError) as caught:
            write(path, "a")
        assert caught.value.filename == str(path) and ".probnn-" not in str(caught.value)
    assert os.listdir(tmp_path) == ["folder"] and not os.listdir(tmp_path / "folder")


def test_errors_about_other_files_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="another"), io.replacing(tmp_path / "file"):
        (tmp_path / "another").read_text()
    assert not os.listdir(tmp_path)
