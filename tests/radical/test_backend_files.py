"""Files of the backend, which exist only in its session's directory."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend, cleanup
from rhapsody_radical.pilot import PilotException


def python(code: str, home: Path, cwd: Path) -> None:
    """Run a program with its own home directory and current directory."""
    environment = {k: v for k, v in os.environ.items() if k != "RADICAL_BASE"}
    environment["HOME"] = str(home)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_backend_without_a_pilot_leaves_no_files(
    tmp_path: Path,
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    code = """
import sys
from rhapsody_radical import RadicalExecutionBackend, cleanup
RadicalExecutionBackend(raptor_config={"masters": [{"workers": [{}]}]})
assert not [name for name in sys.modules if name.partition(".")[0] == "radical"]
"""
    python(code, home, here)
    assert sorted(tmp_path.rglob("*")) == [here, home]


@pytest.mark.asyncio
async def test_the_session_is_in_the_engines_directory(tmp_path: Path) -> None:
    strange = tmp_path / "the engine's"
    with pytest.raises(PilotException, match=r"the engine's.*Use another directory"):
        await WorkflowEngine.create(RadicalExecutionBackend(), work_dir=strange)
    assert not strange.exists()


@pytest.mark.asyncio
async def test_the_engines_directory_is_removed_after_a_failed_start(
    tmp_path: Path,
) -> None:
    places = []

    class Seen(RadicalExecutionBackend):
        def _place(self) -> Path:
            places.append(super()._place())
            return places[-1]

    with pytest.raises(PilotException, match="Similar known resources"):
        await WorkflowEngine.create(Seen({"resource": "local.nowhere"}))
    (place,) = places
    run, engine, session = place.relative_to(tmp_path / ".rhapsody").parts
    assert re.fullmatch(r"\d{8}T\d{6}-.+-[0-9a-f]{4}", run)
    assert engine.startswith("engine.")
    assert session.startswith("rhapsody.")
    assert not place.parent.exists()
    left = [name for _, _, names in os.walk(tmp_path) for name in names]
    assert set(left) <= {"log.txt"}  # with a warning, if closing the session took long


@pytest.mark.asyncio
async def test_work_dir_takes_precedence_over_the_engines_directory(tmp_path: Path) -> None:
    backend = RadicalExecutionBackend(work_dir=tmp_path / "the $backend's")
    assert backend.session.path == str(tmp_path / "the $backend's")
    with pytest.raises(PilotException, match="the \\$backend's"):
        await WorkflowEngine.create(backend, work_dir=tmp_path)


def test_an_existing_work_dir_is_kept(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()

    async def fail() -> None:
        with pytest.raises(PilotException, match="Similar known resources"):
            await RadicalExecutionBackend({"resource": "local.nowhere"}, work_dir=work)

    asyncio.run(fail())
    assert list(tmp_path.iterdir()) == [work]
    assert list(work.iterdir()) == []


@pytest.mark.asyncio
async def test_the_start_continues_with_a_warning_if_no_session_file_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = cleanup.place(tmp_path)
    place.mkdir(mode=0o700)
    place.chmod(0o777)  # as another user of a shared directory could have made it
    with pytest.raises(PilotException, match="Similar known resources"):
        await RadicalExecutionBackend({"resource": "local.nowhere"}, work_dir=tmp_path)
    (said,) = (text for text in caplog.messages if "cannot write the session file" in text)
    assert f"chmod go-w {place}" in said
    assert os.listdir(tmp_path) == [place.name]
