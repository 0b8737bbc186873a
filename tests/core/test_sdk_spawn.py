"""How programs are started: quickly, and as `subprocess.Popen` does it elsewhere."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rhapsody.sdk import _spawn
from rhapsody.sdk._spawn import inherited
from rhapsody.sdk.processes import Program
from tests.core.scripted import within

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["here", "another Python", "a later fork_exec"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs each test by both ways to start a program, and looks for what they leave open."""
    if request.param == "another Python":
        monkeypatch.setattr(_spawn, "fork_exec", None)
    elif request.param == "a later fork_exec":
        monkeypatch.setattr(_spawn, "fork_exec", lambda only: only)
    opened, children = os.listdir("/dev/fd"), psutil.Process().children()
    yield
    assert os.listdir("/dev/fd") == opened
    assert psutil.Process().children() == children


async def printed(
    tmp_path: Path, *command: str, environment: dict[str, str] | None = None, stdin: str = ""
) -> tuple[int, str]:
    """The exit code of a program, and what it printed."""
    path = tmp_path / "printed"
    with path.open("wb") as file:
        program = Program(
            command,
            cwd=str(tmp_path),
            environment=inherited() if environment is None else environment,
            stdin=stdin,
            stdout=file,
            stderr=file.fileno(),
        )
        assert os.getsid(program.pid) == program.pid
        code = await within(asyncio.shield(program.exited))
    return code, path.read_text(errors="surrogateescape")


async def test_a_program_has_the_variables_that_it_is_given(tmp_path: Path) -> None:
    given = {"A": "1=2", "B": "", "C": "two\nlines \u00e9", "D": "\udcff"}
    _, text = await printed(tmp_path, "/usr/bin/env", "-0", environment=given)
    assert dict(line.split("=", 1) for line in text.split("\0")[:-1]) == given
    assert await printed(tmp_path, "/usr/bin/env", environment={}) == (0, "")


async def test_a_change_of_this_process_s_variables_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("1", "2"):
        monkeypatch.setenv("RHAPSODY_TRIAL", value)
        assert await printed(tmp_path, "/bin/sh", "-c", "echo $RHAPSODY_TRIAL") == (0, f"{value}\n")
    monkeypatch.delenv("RHAPSODY_TRIAL")
    assert "RHAPSODY_TRIAL" not in inherited()
    assert inherited() == dict(os.environ)
    monkeypatch.setattr(os, "environ", {"PATH": "/bin"})
    assert inherited() == {"PATH": "/bin"}


async def test_it_runs_in_its_directory_with_its_input_and_no_other_files(tmp_path: Path) -> None:
    command = "pwd; cat; exec 2>&-; ls /dev/fd/; kill -KILL $$"
    code, text = await printed(tmp_path, "/bin/sh", "-c", command, stdin="read\n")
    assert code == -9
    directory, read, *descriptors = text.split()
    assert directory.endswith(tmp_path.name)
    assert read == "read"
    if sys.platform == "linux":  # the last is the directory itself
        assert descriptors == ["0", "1", "2"]
    assert await printed(tmp_path, "/bin/cat") == (0, "")


async def test_it_is_looked_for_where_its_own_path_says(tmp_path: Path) -> None:
    program = tmp_path / "places" / "tool"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{program.parent}"}
    assert await printed(tmp_path, "tool", environment=path) == (0, "found\n")
    with pytest.raises(FileNotFoundError) as error:
        await printed(tmp_path, "tool", environment={"PATH": "/bin"})
    assert error.value.filename == "tool"


async def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(PermissionError) as denied:
        await printed(tmp_path, str(tmp_path / "text"))
    assert denied.value.filename == str(tmp_path / "text")
    with pytest.raises(FileNotFoundError) as missing:
        Program(
            ["/bin/true"],
            cwd=str(tmp_path / "gone"),
            environment={},
            stdin=None,
            stdout=None,
            stderr=None,
        )
    assert missing.value.filename == str(tmp_path / "gone")
    for variables in ({"A=B": "1"}, {"A": "1\0B=2"}, {"A": "1\0B=2", "C\0D": ""}):
        with pytest.raises(ValueError, match=r"environment|null|NUL"):
            await printed(tmp_path, "/bin/true", environment=variables)
    with pytest.raises(ValueError, match="null"):
        await printed(tmp_path, "/bin/echo", "a\0b")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="what `Popen` calls may be another there")
async def test_the_quick_way_is_taken_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.id == "here":
        monkeypatch.setattr(subprocess, "Popen", None)
    assert await printed(tmp_path, "/bin/echo", "1") == (0, "1\n")
