"""Incomplete copies that a killed run left next to its destinations are removed by the next run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody import OutputFile, WorkflowEngine
from rhapsody.staging.outputs import part_of

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
    (part / "content").touch()
    changed = part.stat().st_mtime - AGES[age]
    os.utime(part, (changed, changed))
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def make(output: OutputFile) -> str:
            return f"echo made > {output}"

        await make(OutputFile("table.txt", save="results/"))
    kept = {".table.txt.part", "table.txt", *([part.name] if stays else [])}
    assert set(os.listdir(directory)) == kept
