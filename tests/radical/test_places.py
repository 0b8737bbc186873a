"""Where the backend keeps its files: nowhere but in its session's directory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend, leftovers
from rhapsody_radical.environment import Environment
from rhapsody_radical.library import ru
from rhapsody_radical.pilot import PilotException


def python(code: str, home: Path, cwd: Path) -> None:
    """Runs a program with a home directory and a current directory of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "RADICAL_BASE"}
    environment["HOME"] = str(home)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_radical_pilot_leaves_nothing_in_the_home(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    python("import rhapsody_radical.library", home, here)
    assert sorted(tmp_path.rglob("*")) == [here, home]


def test_a_forked_process_closes_no_session_at_its_exit(tmp_path: Path) -> None:
    code = """
import multiprocessing, sys
from rhapsody_radical import session

class Client:
    def close(self):
        open("closed", "a").write("x")

session._open.add(Client())
process = multiprocessing.get_context("fork").Process(target=int)
process.start()
process.join()
assert process.exitcode == 0
"""
    python(code, tmp_path, tmp_path)
    assert (tmp_path / "closed").read_text() == "x"


def test_radical_pilots_counters_are_in_the_session_while_it_is_held(tmp_path: Path) -> None:
    def counted() -> list[str]:
        ru.generate_id("it.%(item_counter)04d", mode=ru.ID_CUSTOM, ns="session")
        return sorted(path.name for path in tmp_path.iterdir() if any(path.rglob("*.cnt")))

    sessions = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sessions.append(Environment(tmp_path / name, name, verbose=False))
    one, two = sessions
    one.hold()
    assert counted() == ["one"]
    two.hold()
    one.release()
    before = len(list((tmp_path / "one").rglob("*")))
    assert counted() == ["one", "two"]
    assert len(list((tmp_path / "one").rglob("*"))) == before
    two.release()
    assert str(tmp_path) not in sys.modules["radical.utils.ids"]._BASE


@pytest.mark.asyncio
async def test_an_engine_gives_its_directory_to_a_backend_that_has_none(tmp_path: Path) -> None:
    strange = tmp_path / "the engine's"
    with pytest.raises(PilotException, match=r"the engine's.*give another directory"):
        await WorkflowEngine.create(RadicalExecutionBackend(), work_dir=strange)
    assert not strange.exists()


@pytest.mark.asyncio
async def test_a_directory_of_its_own_is_kept_under_an_engine(tmp_path: Path) -> None:
    backend = RadicalExecutionBackend(work_dir=tmp_path / "the $backend's")
    assert backend.session.path == str(tmp_path / "the $backend's")
    with pytest.raises(PilotException, match="the \\$backend's"):
        await WorkflowEngine.create(backend, work_dir=tmp_path)


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()

    async def fail() -> None:
        with pytest.raises(PilotException, match="Known resources"):
            await RadicalExecutionBackend({"resource": "local.nowhere"}, work_dir=work)

    asyncio.run(fail())
    assert list(tmp_path.iterdir()) == [work]
    assert list(work.iterdir()) == []


def test_notes_of_killed_programs_are_found_beside_an_engines_default_directory(
    tmp_path: Path,
) -> None:
    mine = tmp_path / ".rhapsody" / "engine.two"
    others = [
        tmp_path / ".rhapsody" / "engine.one" / "rhapsody.1" / leftovers.NOTE,
        tmp_path / ".rhapsody" / "rhapsody.2" / leftovers.NOTE,
        mine / "rhapsody.3" / leftovers.NOTE,
    ]
    elsewhere = tmp_path / "engine.four" / "rhapsody.4" / leftovers.NOTE
    for note in (*others, elsewhere):
        note.parent.mkdir(parents=True)
        note.touch()
    assert sorted(leftovers.notes(mine)) == sorted(others)
    assert leftovers.notes(tmp_path / "engine.four") == [elsewhere]
