"""Undeclared files: the copies of what a task left in its sandbox."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from rhapsody import DataError, undeclared
from rhapsody.undeclared import copy_all
from tests._support.staging import no_clones


def test_all_names_are_copied_except_those_of_backends(tmp_path: Path) -> None:
    first, second = tmp_path / "first box", tmp_path / "second"
    first.mkdir()
    for name in ("plain", "with space", "new\nline", "$(id)", "-rf", ".rhapsody.stdout", "taken"):
        (first / name).write_text(name)
    (first / "folder").mkdir()
    (first / "folder" / "inner").write_text("inner")
    (first / "unwanted").touch()
    second.mkdir()
    (second / "taken").write_text("mine")
    copied = copy_all(first, second, ["unwanted"])
    assert copied == ["$(id)", "-rf", "folder", "new\nline", "plain", "with space"]
    for name in ("plain", "with space", "new\nline", "$(id)", "-rf"):
        assert (second / name).read_text() == name
        assert not (second / name).is_symlink()
    assert (second / "folder" / "inner").read_text() == "inner"
    assert (second / "taken").read_text() == "mine"
    assert copy_all(first, second) == ["unwanted"]


def test_an_empty_or_missing_sandbox_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        assert copy_all(tmp_path / name, tmp_path / "box") == []
    assert not (tmp_path / "box").exists()


def test_a_copy_has_the_mode_and_time_of_the_original(tmp_path: Path) -> None:
    program = tmp_path / "a" / "program"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o750)
    os.utime(program, ns=(1, 1_234_567_891))
    copy_all(program.parent, tmp_path / "b")
    found = (tmp_path / "b" / "program").stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o750, 1_234_567_891)


def test_links_stay_links_and_lead_to_the_copy_or_out_of_the_sandbox(tmp_path: Path) -> None:
    box, outside = tmp_path / "box", tmp_path / "outside.txt"
    (box / "deep").mkdir(parents=True)
    outside.write_text("outside")
    (box / "data").write_text("data")
    (box / "relative").symlink_to("data")
    (box / "absolute").symlink_to(box / "data")
    (box / "deep" / "up").symlink_to("../data")
    (box / "input").symlink_to(outside)
    (box / "deep" / "out").symlink_to("../../outside.txt")
    (box / "dangling").symlink_to("nothing")
    copy_all(box, tmp_path / "copy")
    copy = tmp_path / "copy"
    for name in ("relative", "absolute", "deep/up"):
        assert (copy / name).is_symlink()
        assert (copy / name).resolve() == copy / "data"
    for name in ("input", "deep/out"):
        assert Path(os.readlink(copy / name)) == outside
    assert os.readlink(copy / "dangling") == "nothing"


def test_sockets_and_pipes_are_skipped(tmp_path: Path, monkeypatch: Any) -> None:
    box = tmp_path / "box"
    box.mkdir()
    monkeypatch.chdir(box)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    assert copy_all(box, tmp_path / "copy") == []


def test_a_file_is_passed_on_through_a_long_chain(tmp_path: Path) -> None:
    boxes = [tmp_path / f"box{number}" for number in range(60)]
    boxes[0].mkdir()
    (boxes[0] / "data.txt").write_text("data")
    (boxes[0] / "relative").symlink_to("data.txt")
    (boxes[0] / "input").symlink_to(__file__)
    for before, after in itertools.pairwise(boxes):
        copy_all(before, after)
    assert (boxes[-1] / "data.txt").read_text() == "data"
    assert (boxes[-1] / "relative").read_text() == "data"
    assert (boxes[-1] / "input").samefile(__file__)


def test_the_largest_files_are_linked_where_all_exceed_the_limit(
    tmp_path: Path, monkeypatch: Any
) -> None:
    no_clones(monkeypatch, 100)
    box, copy = tmp_path / "box", tmp_path / "copy"
    (box / "deep").mkdir(parents=True)
    for name, size in (("log", 40), ("deep/trajectory", 80), ("deep/log", 40)):
        (box / name).write_bytes(b"x" * size)
    copy_all(box, copy)
    assert [p.is_symlink() for p in (copy / "log", copy / "deep", copy / "deep/log")] == [False] * 3
    assert os.readlink(copy / "deep/trajectory") == str(box / "deep/trajectory")


def test_a_file_that_cannot_be_copied_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "data").write_text("x")
    monkeypatch.setattr(undeclared, "copy_file", full)
    with pytest.raises(DataError, match="'data'") as caught:
        copy_all(tmp_path / "box", tmp_path / "copy")
    assert isinstance(caught.value.__cause__, OSError)
