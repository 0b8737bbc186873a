"""Jobs that go on when the program is killed, and the next run, which takes over their results."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody import BackendUnavailableError
from rhapsody_psij import PsijExecutionBackend
from rhapsody_psij.detached import JOURNAL, LIST, LOCK, LeftJob, LeftJobs, locked, succeeded
from tests._support.slurm import until_no_jobs

ROOT = Path(__file__).parents[2]
RESULTS = "[0, 1, 'printed 0, written 0', 'printed 1, written 1', 'ranked\\nranked\\n']\n"
IN_A_JOB = """
async def main(flow):
    @flow.executable_task
    def wait():
        return "echo started >>{place}/started; until [ -e {place}/gate ]; do sleep 0.1; done"

    await wait()
"""
ENDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
NAMES = ("function0", "function1", "program0", "program1", "rank0", "rank1")


def only_long(test: Callable[..., None]) -> Any:
    """Mark a test that runs the program on Slurm, in `nox -s long`."""
    test = pytest.mark.long(pytest.mark.timeout(300)(test))
    return pytest.mark.usefixtures("cluster")(test)


def on_slurm(test: Callable[..., None]) -> Any:
    """Mark a test that runs the program on Slurm, also in `nox -s slurm`."""
    return pytest.mark.slurm(only_long(test))


def until(condition: Callable[[], bool], seconds: float = 100) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def started(place: Path, shared: int = 1, *names: str) -> subprocess.Popen[str]:
    """Start the program in a directory."""
    words = [sys.executable, "-m", "tests.psij.detaching", str(place), str(shared), *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=place, env=environment)


def killed(
    place: Path, lines: int, shared: int = 1, number: signal.Signals = signal.SIGKILL
) -> None:
    """Start the program, and send it a signal when the log of its tasks has a number of lines."""
    log = place / "log"
    log.touch()
    with started(place, shared) as program:
        until(lambda: log.read_text().count("\n") >= lines)
        program.send_signal(number)
    assert program.returncode in (0, -number, 128 + number)


def finished(program: subprocess.Popen[str]) -> str:
    """Wait for the end of a program, and return its output."""
    output, _ = program.communicate(timeout=150)
    assert program.returncode == 0
    return output


def said(place: Path, *words: str) -> str:
    """Return the output of a command of `rhapsody`."""
    command = [sys.executable, "-m", "rhapsody", *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout


def tasks_listed(place: Path) -> int:
    """Return the number of tasks whose jobs the newest run lists."""
    *_, path = sorted(place.glob(f".rhapsody/2*/*/*/{LIST}")) or [Path(os.devnull)]
    return sum(len(json.loads(line)["tasks"]) for line in path.read_text().splitlines())


def require_run_once(place: Path) -> None:
    """Require that each task has started and ended exactly once, and that no job is left."""
    lines = (place / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{what} {name}" for what in ("start", "end") for name in NAMES)
    until_no_jobs()
    assert not list(place.glob(f".rhapsody/*/*/*/{LIST}"))


@on_slurm
@pytest.mark.parametrize("lines", [0, 1, 2, 5, 9])
def test_no_task_is_repeated_after_a_kill(lines: int, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    killed(tmp_path, lines, number=ENDS[lines % 3])
    assert finished(started(tmp_path)) == RESULTS
    require_run_once(tmp_path)


@only_long
@pytest.mark.parametrize("lines", [3, 4, 6, 7, 8])
def test_no_task_is_repeated_after_a_kill_at_any_other_moment(lines: int, tmp_path: Path) -> None:
    test_no_task_is_repeated_after_a_kill(lines, tmp_path)


@on_slurm
@pytest.mark.parametrize("number", ENDS[:2])
def test_results_of_jobs_that_ended_meanwhile_are_taken_over(
    number: signal.Signals, tmp_path: Path
) -> None:
    killed(tmp_path, 2, number=number)
    until(lambda: "jobs that may continue (5)" in said(tmp_path, "status"))
    assert len(json.loads(said(tmp_path, "status", "--json"))["jobs"]) == 5
    assert "1 may have jobs" in said(tmp_path, "clean")
    (tmp_path / "gate").touch()
    until_no_jobs(100)
    (tmp_path / "gate").unlink()  # a task that ran again would not end
    assert len((tmp_path / "log").read_text().splitlines()) == 12
    assert finished(started(tmp_path)) == RESULTS
    require_run_once(tmp_path)
    assert "2 runs" in said(tmp_path, "clean")


@on_slurm
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "canceled"])
def test_jobs_of_a_program_in_a_job_that_is_canceled(detach: bool, tmp_path: Path) -> None:
    (tmp_path / "workflow.py").write_text(IN_A_JOB.format(place=tmp_path))
    options = f"-b psij -o executor=slurm -o detach={str(detach).lower()}"
    run = f"exec {sys.executable} -m rhapsody run workflow.py {options}"
    batch = ["sbatch", "--parsable", f"--chdir={tmp_path}", "--output=out", f"--wrap={run}"]
    job = subprocess.check_output(batch, text=True).strip()
    until((tmp_path / "started").exists)
    subprocess.run(["scancel", job], check=True)
    if detach:
        until(lambda: "jobs that may continue (1)" in said(tmp_path, "status"))
        (tmp_path / "gate").touch()
        said(tmp_path, *run.split()[4:])
        assert (tmp_path / "started").read_text() == "started\n"
    until_no_jobs()


@on_slurm
@pytest.mark.parametrize("shared", [1, 3], ids=["own jobs", "shared jobs"])
def test_jobs_that_continue_are_taken_over_even_twice(
    shared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_JOBS", "2" if shared == 1 else "100")
    killed(tmp_path, 1, shared)
    second = started(tmp_path, shared)
    until(lambda: len(list(tmp_path.glob(f".rhapsody/2*/*/*/{LOCK}"))) == 2)
    tasks = 2 if shared == 1 else 5
    until(lambda: tasks_listed(tmp_path) >= tasks)
    with second:
        second.terminate()
    assert f"jobs that may continue ({tasks})" in said(tmp_path, "status")
    queue = subprocess.check_output(["squeue", "--noheader"], text=True)
    assert shared > 1 or len(queue.splitlines()) == 2  # MAX_JOBS
    third = started(tmp_path, shared)
    (tmp_path / "gate").touch()
    assert finished(third) == RESULTS
    require_run_once(tmp_path)


@on_slurm
def test_jobs_whose_tasks_are_no_longer_called_are_canceled(tmp_path: Path) -> None:
    killed(tmp_path, 2)
    (tmp_path / "gate-function").touch()
    second = started(tmp_path, 1, "function")
    until(lambda: "end program" in (tmp_path / "log").read_text() or second.poll() is not None)
    assert finished(second) == "[0, 1]\n"
    until_no_jobs()
    assert "end program" not in (tmp_path / "log").read_text()


@on_slurm
def test_another_program_leaves_the_jobs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, 2)
    (tmp_path / "gate").touch()
    with monkeypatch.context() as other:
        other.setenv("JOURNAL", "other.sqlite")
        assert finished(started(tmp_path, 1, "function")) == "[0, 1]\n"
    assert finished(started(tmp_path)) == RESULTS
    lines = (tmp_path / "log").read_text().splitlines()
    for name in NAMES:
        assert lines.count(f"start {name}") == (2 if name.startswith("function") else 1)
    until_no_jobs()


# Without Slurm.


def left(place: Path, name: str, identity: str, mode: int = 0o700) -> Path:
    """Create the directory of a run that was killed, with one job, and return it."""
    directory = place / name
    (directory / "reports").mkdir(parents=True)
    directory.chmod(mode)
    task: dict[str, object] = {"identity": identity, "files": {}, "sandbox": None}
    line = {"job": "7", "ranks": False, "tasks": {"a.task.000001.1": task}}
    (directory / LIST).write_text(json.dumps(line) + "\n{damaged\n")
    return directory


def test_only_ended_runs_in_private_directories_are_taken_over(tmp_path: Path) -> None:
    mine = left(tmp_path, "psij-1", "one")
    left(tmp_path, "psij-2", "two", mode=0o770)
    lock = locked(left(tmp_path, "psij-3", "three") / LOCK, wait=False)
    assert lock is not None
    (tmp_path / "psij-4").symlink_to(mine)
    for number, target in enumerate(("missing", LIST, "a" * 300)):  # dangling, endless, too long
        other = tmp_path / f"psij-{5 + number}"
        other.mkdir()
        (other / LIST).symlink_to(target)
    (mine / JOURNAL).write_bytes(b"/mine.sqlite")
    assert LeftJobs.take_over(str(tmp_path / "psij-*"), journal=b"/other.sqlite").jobs == []
    found = LeftJobs.take_over(str(tmp_path / "psij-*"), journal=b"/mine.sqlite")
    assert found.tasks.keys() == {"one"}
    job, uid = found.tasks["one"]
    assert (job.native, uid) == ("7", "a.task.000001.1")
    assert job.outcome(uid, "slurm") is None
    (mine / "reports" / f"{uid}.ended").write_bytes(b"node1\n" + pickle.dumps({"exit_code": 0}))
    assert job.outcome(uid, "slurm") == {"exit_code": 0}
    assert LeftJobs.take_over(str(tmp_path / "psij-1")).jobs == []  # it is locked
    assert found.close() == [mine]
    os.close(lock)


@pytest.mark.asyncio
async def test_a_failed_start_leaves_the_jobs_of_earlier_runs(tmp_path: Path) -> None:
    earlier = left(tmp_path / "earlier", "psij-none-1", "one")
    backend = PsijExecutionBackend("none", detach=True)
    backend.session.path, backend.session.earlier = str(tmp_path / "new"), str(tmp_path / "earlier")
    with pytest.raises(BackendUnavailableError, match="'none' cannot be used"):
        await backend
    assert (earlier / LIST).exists()
    assert not os.listdir(tmp_path / "new")


@pytest.mark.asyncio
async def test_jobs_of_earlier_runs_count_for_max_jobs(tmp_path: Path) -> None:
    backend: Any = PsijExecutionBackend("slurm", detach=True, max_jobs=1)
    backend._reports = tmp_path
    backend._left.jobs.append(LeftJob(tmp_path, "7", False, {"a.task.000001.1": {}}))
    backend._attach()
    (job,) = backend._left_jobs.values()
    run = SimpleNamespace(uid="a.task.000002.1", kind=None, job=None)
    backend._waiting["a.task.000002.1"] = deque([run])
    backend._spawn = lambda work: work.close()
    backend._fill()
    assert run.job is None
    backend._changed(job, "COMPLETED", None, None)
    await asyncio.sleep(0)
    assert run.job is not None


def test_only_successful_outcomes_are_taken_over() -> None:
    assert succeeded({"exit_code": 0, "stdout": "", "stderr": ""})
    assert not succeeded({"exit_code": 1, "stdout": "", "stderr": ""})
    assert not succeeded({"exception": OSError()})
    assert not succeeded({"lost": "its process ended"})
    assert not succeeded({"canceled": True})
