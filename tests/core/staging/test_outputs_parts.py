"""Incomplete copies that a killed run left next to its destinations are removed by the next run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody import OutputDir, OutputFile, WorkflowEngine, fsutil
from rhapsody.copying import copy_file
from rhapsody.fsutil import COPY
from rhapsody.staging.outputs import part_of, remove_parts

AGES = {"new": 0.0, "old": 2 * 86_400.0}


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def left_by(process: int, host: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process)
        patch.setattr(socket, "gethostname", lambda: host)
        return part_of(directory / "table.txt")


@pytest.mark.parametrize(
    ("host", "alive", "age", "stays"),
    [
        ("here", True, "old", True),
        ("here", False, "new", False),
        ("elsewhere", True, "new", True),
        ("elsewhere", False, "new", True),
        ("elsewhere", True, "old", False),
    ],
)
@pytest.mark.asyncio
async def test_only_what_no_process_completes_is_removed(
    here: Path, monkeypatch: pytest.MonkeyPatch, host: str, alive: bool, age: str, stays: bool
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    directory = here / "results"
    (directory / ".table.txt.part").mkdir(parents=True)
    part = left_by(os.getppid() if alive else ended_process(), host, directory, monkeypatch)
    part.mkdir()
    (part / COPY).mkdir(0o500)
    changed = part.stat().st_mtime - AGES[age]
    os.utime(part, (changed, changed))
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def make(output: OutputFile) -> str:
            return f"echo made > {output}"

        await make(OutputFile("table.txt", save="results/"))
    kept = {".table.txt.part", "table.txt", *([part.name] if stays else [])}
    assert set(os.listdir(directory)) == kept


@pytest.mark.parametrize("owner", ["own", "other"])
def test_a_directory_that_another_user_has_given_such_a_name_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    part = left_by(ended_process(), socket.gethostname(), tmp_path, monkeypatch)
    part.mkdir()
    (part / (COPY if owner == "other" else "thesis.tex")).touch()
    if owner == "other":
        if os.getuid() != 0:
            pytest.skip("only root can give a directory to another user")
        os.chown(part, 23002, 23002)
    remove_parts(tmp_path)
    assert len(list(part.iterdir())) == 1


@pytest.mark.asyncio
async def test_a_link_instead_of_an_incomplete_copy_is_not_followed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who can write to the directory of the destination creates it during the copy."""
    (here / "home").mkdir(0o750)

    def copy(source: str, target: str) -> None:
        for part in here.glob(".d.*.part"):
            part.rename(here / "aside")
            part.symlink_to("home")
        copy_file(source, target)

    monkeypatch.setattr(fsutil, "copy_file", copy)
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def make(output: OutputDir) -> str:
            return f"mkdir -m 500 {output}; touch {output}/a || exit 1"

        await make(OutputDir("d", save=here))
    assert os.listdir(here / "d") == ["a"]
    assert (here / "d").stat().st_mode & 0o777 == 0o500
    assert os.listdir(here / "home") == []
    assert (here / "home").stat().st_mode & 0o777 == 0o750


def test_a_directory_that_replaces_the_old_one_meanwhile_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("source", "d", "thesis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    remove_content = fsutil.remove_content

    def remove(directory: int) -> None:
        if (tmp_path / "thesis").exists():
            (old,) = tmp_path.glob(".d.*.old")
            old.rename(tmp_path / "aside")
            (tmp_path / "thesis").rename(old)
        remove_content(directory)

    monkeypatch.setattr(fsutil, "remove_content", remove)
    fsutil.save_directory(str(tmp_path / "source"), tmp_path / "d", ".d.part")
    (thesis,) = tmp_path.glob(".d.*.old/thesis")
    assert thesis.exists()
    assert os.listdir(tmp_path / "d") == ["source"]
