"""Files that are replaced as a whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tokenissuer import replace_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that its group may read."""
    path = tmp_path / "auth.key"
    path.write_bytes(b"old")
    path.chmod(0o640)
    return path


def test_mode_and_link_stay(file: Path, tmp_path: Path) -> None:
    """And what a killed process left is gone."""
    (tmp_path / ".auth.key.new").write_bytes(b"half")
    link = tmp_path / "link"
    link.symlink_to(file.name)
    replace_file(link, b"new", link)
    assert link.is_symlink()
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"new", 0o640)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["auth.key", "link"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to another group")
def test_a_folder_that_gives_its_group_to_new_files_does_not_open_them_to_it(file: Path, tmp_path: Path) -> None:
    """As folders with the set-group-ID bit do: the group of the key may read it, and no other."""
    os.chown(tmp_path, 0, 1)
    tmp_path.chmod(0o2770)
    replace_file(tmp_path / "auth.key.next", b"new", file)
    assert (tmp_path / "auth.key.next").stat().st_gid == file.stat().st_gid == 0


def test_what_cannot_be_written_is_as_before(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing beside it."""

    def is_full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", is_full)
    with pytest.raises(OSError, match="no space"):
        replace_file(file, b"new", file)
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == ["auth.key"]
