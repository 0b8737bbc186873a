"""Files that commands write: private, and not through the links of others."""

from __future__ import annotations

import os
from pathlib import Path

from rhapsody.history import new_file


def test_only_the_user_can_read_a_new_file(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        with new_file(tmp_path / "run.html") as new:
            new.write_text("page")
        assert os.umask(0) == 0  # it is restored
    finally:
        os.umask(former)
    assert (tmp_path / "run.html").stat().st_mode & 0o077 == 0


def test_a_new_file_is_not_written_through_a_link_instead_of_its_directory(tmp_path: Path) -> None:
    """A user who can write to the directory creates it while the file is written."""
    target = tmp_path / "bashrc"
    target.write_text("mine")
    with new_file(tmp_path / "run.html") as new:
        (private,) = tmp_path.glob(".rhapsody-*")
        private.rename(tmp_path / "aside")
        private.mkdir()
        (private / "run.html").symlink_to(target)
        new.write_text("page")
    assert target.read_text() == "mine"
    assert (tmp_path / "run.html").read_text() == "page"
