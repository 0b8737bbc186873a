"""Session files, with which the next start cleans up after killed clients."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rhapsody_radical import cleanup
from rhapsody_radical.cleanup import BatchJob, SessionFile, clean_up, end_session, place
from tests._support.machine import gone
from tests.radical.marked import MINE, running

CLIENT = """
import sys
from pathlib import Path
from rhapsody_radical.cleanup import SessionFile
file = SessionFile(Path(sys.argv[1]), Path(sys.argv[2]).name, Path(sys.argv[2]), ["FORK"])
print(flush=True)
for line in sys.stdin:
    getattr(file, line.strip())()
    print(flush=True)
"""


FIELDS = ("directory", "host", "managers", "session")
"""The fields of a session file."""


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch system, wherever the tests run."""
    monkeypatch.setattr(cleanup, "find_jobs", lambda session: None)


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """The directory of the session files."""
    return place(tmp_path / "work")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The session's directory."""
    made = tmp_path / "work" / MINE
    made.mkdir(parents=True)
    return made


@contextmanager
def client(
    where: Path, directory: Path, *before: str
) -> Iterator[tuple[subprocess.Popen[str], Callable[[str], None]]]:
    """Start a client with a file of our session, and a function that calls the file's methods."""
    process = subprocess.Popen(
        [*before, sys.executable, "-W", "ignore", "-c", CLIENT, str(where), str(directory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def tell(method: str) -> None:
        stdin.write(f"{method}\n")
        stdin.flush()
        assert stdout.readline() == "\n"

    assert stdout.readline() == "\n"
    try:
        yield process, tell
    finally:
        process.kill()
        process.communicate()


def left(where: Path, directory: Path) -> Path:
    """The session file of a client that was killed."""
    with client(where, directory) as (process, _):
        process.kill()
        process.wait()
    return where / MINE


def rewritten(file: Path, **changes: str) -> None:
    """Change fields of a session file."""
    values = dict(zip(FIELDS, file.read_text().split("\0"), strict=True))
    file.write_text("\0".join({**values, **changes}.values()))


def test_session_files_are_in_a_directory_shared_by_all_engines(tmp_path: Path) -> None:
    own = f"radical.{os.geteuid()}"  # of several users who share the directory
    common = tmp_path / ".rhapsody" / own
    run = tmp_path / ".rhapsody" / "20261121T041233-digits-7f3a"
    assert place(run / "engine.1") == common
    assert place(run / "engine.1" / "box" / ".rhapsody" / run.name / "engine.2") == (
        run / "engine.1" / "box" / ".rhapsody" / own
    )
    assert place(tmp_path / ".rhapsody") == common
    assert place(tmp_path / "work") == tmp_path / "work" / own


def test_a_session_file_is_private_and_removed_with_its_directory(
    where: Path, directory: Path
) -> None:
    file = SessionFile(where, MINE, directory, ["SLURM", "FORK", "SLURM"])
    assert where.stat().st_mode & 0o777 == 0o700
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.read_text().split("\0")[2] == "FORK SLURM"
    with pytest.raises(FileExistsError):
        SessionFile(where, MINE, directory, [])
    other = SessionFile(where, "other", directory.with_name("other"), [])
    file.remove()
    assert os.listdir(where) == ["other"]
    other.remove()
    assert not where.exists()


def test_processes_of_a_killed_client_are_ended(
    where: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = left(where, directory)
    with running(RADICAL_RHAPSODY=MINE) as task, running(cwd=directory) as bystander:
        assert clean_up(where) == [MINE]
        assert gone([task.pid])
        assert bystander.poll() is None
    (said,) = caplog.messages
    assert "machine: 1," in said
    assert str(directory) in said
    assert not file.exists()
    assert directory.exists()
    assert clean_up(where) == []


def test_batch_jobs_of_a_killed_client_are_canceled(
    where: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = left(where, directory)
    rewritten(file, managers="SLURM PBSPRO")
    jobs = [BatchJob("17", "RUNNING", "", "", "")]
    cancelled: list[BatchJob] = []
    answers = [False, True]

    def cancel(found: list[BatchJob]) -> bool:
        cancelled.extend(found)
        return answers.pop(0)

    monkeypatch.setattr(cleanup, "cancel_jobs", cancel)
    assert clean_up(where) == []  # Slurm does not answer
    assert file.exists()
    monkeypatch.setattr(cleanup, "find_jobs", lambda session: jobs)
    assert clean_up(where) == []  # it answers, but does not cancel
    assert file.exists()
    assert "will try again" in caplog.messages[-1]
    assert clean_up(where) == [MINE]
    assert cancelled == jobs * 2
    assert "batch jobs canceled: 1)" in caplog.messages[-1]
    assert "cancel its PBSPRO jobs yourself" in caplog.messages[-1]


def test_a_running_session_is_not_cleaned_up(
    where: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with client(where, directory), running(RADICAL_RHAPSODY=MINE) as task:
        assert clean_up(where) == []
        assert task.poll() is None
        assert (where / MINE).exists()
    assert caplog.messages == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_of_the_client_does_not_hold_the_lock(where: Path, directory: Path) -> None:
    forking = "import os, time\nif not os.fork():\n    file.close()\n    os.closerange(0, 3)\n"
    program = CLIENT.partition("print")[0] + forking + "time.sleep(600)\n"
    with running(
        *[sys.executable, "-W", "ignore", "-c", program, str(where), str(directory)],
        PYTHONPATH=os.pathsep.join(sys.path),
        RADICAL_RHAPSODY=MINE,
    ) as process:
        while not psutil.Process(process.pid).children():
            assert process.poll() is None
        (child,) = psutil.Process(process.pid).children()
        while child.num_fds():
            assert child.is_running()
        process.kill()
        process.wait()
        assert child.is_running()
        assert clean_up(where) == [MINE]
        assert gone([child.pid])


@pytest.mark.parametrize(("manager", "level"), [("PBSPRO", "WARNING"), ("FORK", "INFO")])
def test_the_end_of_a_client_is_a_warning_only_if_action_is_needed(
    where: Path, directory: Path, caplog: pytest.LogCaptureFixture, manager: str, level: str
) -> None:
    rewritten(left(where, directory), managers=manager)
    with caplog.at_level("INFO", "rhapsody.radical"):
        end_session(where, MINE)
    assert not list(where.parent.glob("radical.*"))
    (said,) = caplog.records
    assert said.levelname == level
    assert ("PBSPRO jobs yourself" in said.getMessage()) == (manager == "PBSPRO")


def has_namespaces() -> bool:
    words = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not has_namespaces(), reason="no namespace of processes can be made here")
def test_the_session_of_a_client_in_a_container_is_not_cleaned_up(
    where: Path, directory: Path
) -> None:
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with client(where, directory, *unshare), running(RADICAL_RHAPSODY=MINE) as task:
        assert clean_up(where) == []
        assert task.poll() is None


# Sessions of which nothing is known here.


def without_locks(file: int, operation: int) -> None:
    """Fail as `fcntl.flock` does on some network file systems."""
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("far", ["host", "file system"])
def test_a_session_that_may_run_elsewhere_is_only_reported(
    where: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    far: str,
) -> None:
    file = left(where, directory)
    host = "far-away" if far == "host" else socket.gethostname()
    rewritten(file, host=host, managers="LSF")
    if far == "file system":
        monkeypatch.setattr("fcntl.flock", without_locks)
    with running(RADICAL_RHAPSODY=MINE) as task:
        assert clean_up(where) == []
        assert task.poll() is None
        assert file.exists()
        (said,) = caplog.messages
        assert f"started on {host}" in said
        assert f"RADICAL_RHAPSODY={MINE} in their environment" in said
        assert f"remove {file}" in said


# Session files that are ignored.


@pytest.fixture
def _nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any, **more: Any) -> int:
        raise AssertionError("something was ended")

    monkeypatch.setattr(cleanup, "end", forbidden)
    monkeypatch.setattr(cleanup, "cancel_jobs", forbidden)


def another_link(file: Path) -> None:
    file.rename(file.parent.parent / "file")
    file.symlink_to(file.parent.parent / "file")


def another_place(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))
    file.parent.symlink_to(file.parent.with_name("moved"))


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.mark.usefixtures("_nothing_ends")
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda file: os.chown(file.parent, 65534, -1), id="place", marks=as_root),
        pytest.param(lambda file: file.parent.chmod(0o777), id="others"),
        another_link,
        another_place,
        a_pipe,
        pytest.param(lambda file: file.rename(file.with_name("other")), id="name"),
        pytest.param(lambda file: rewritten(file, session=f"../{MINE}"), id="session"),
        pytest.param(lambda file: rewritten(file, host="\0"), id="more"),
        pytest.param(lambda file: rewritten(file, managers="x" * 20000), id="long"),
        pytest.param(lambda file: file.write_text(file.read_text()[:-1]), id="incomplete"),
        pytest.param(lambda file: file.write_text(""), id="empty"),
    ],
)
def test_a_session_file_that_others_could_write_is_ignored(
    where: Path, directory: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(left(where, directory))
    assert clean_up(where) == []
    assert os.listdir(where)


def test_no_session_file_is_written_to_a_directory_that_others_can_write_to(
    where: Path, directory: Path
) -> None:
    where.mkdir(mode=0o700)
    where.chmod(0o770)
    with pytest.raises(PermissionError, match="chmod go-w"):
        SessionFile(where, MINE, directory, [])


@pytest.mark.usefixtures("_nothing_ends")
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=st.binary() | st.lists(st.binary(), min_size=4, max_size=4).map(b"\0".join))
@example(content=b"\xff" * 20000)
def test_a_malformed_session_file_does_no_harm(where: Path, content: bytes) -> None:
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(mode=0o700, parents=True)
    (where / MINE).write_bytes(content)
    assert clean_up(where) == []
    assert (where / MINE).read_bytes() == content
