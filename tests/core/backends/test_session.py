"""Tests of the directory for a backend's own files, with and without an engine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from rhapsody import WorkflowEngine
from rhapsody.backends.base import Session
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody_testing import Driver
from tests._support.scripted import within


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def test_a_session_without_a_place_is_in_a_temporary_directory(tmp_path: Path) -> None:
    session = Session()
    assert session.directory("x") == str(tmp_path / "temporary" / session.uid / "x")
    session.path = str(tmp_path / "chosen")
    assert session.directory("x") == str(tmp_path / "chosen" / "x")


@pytest.mark.asyncio
async def test_without_an_engine_nothing_is_written_here_and_nothing_stays(tmp_path: Path) -> None:
    async with LocalExecutionBackend() as backend:
        async with Driver(backend) as driver:
            task = driver.describe("pwd", executable="pwd; echo 2 > left.txt")
            end = await within(driver.run_one(task))
        sandbox = (end.stdout or "").strip()
        assert os.listdir(sandbox).count("left.txt") == 1
        assert backend.session.uid in sandbox
    assert os.listdir(tmp_path / "here") == []
    assert [name for name in os.listdir(tmp_path / "temporary") if "session" in name] == []


@pytest.mark.asyncio
async def test_with_an_engine_it_is_in_the_engines_directory(tmp_path: Path) -> None:
    backend = LocalExecutionBackend()
    async with WorkflowEngine.create(backend, work_dir=tmp_path / "work", handle_signals=False):
        assert backend.session.directory("x") == str(tmp_path / "work" / "x")
