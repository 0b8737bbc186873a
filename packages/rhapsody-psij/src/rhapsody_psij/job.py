"""Program of a job: runs the tasks in an order file one after the other, and reports each.

The job of a single command is a shell script instead, which starts this program only if the command
cannot be started (`rhapsody_psij.jobs.script_of`).

The reports are files in one directory, named after the task. A task that starts creates
`UID.started`, whose first line is the name of the host. When the task ends, its outcome is appended
to the file, and the file is renamed to `UID.ended`. Outcomes are pickled dicts: `call` contains the
result of a call as bytes; `exit_code`, `stdout`, `stderr`, `usage` and `interval` are those of an
executable; `exception`, `lost` and `canceled` describe other ends. `seconds` is the time that the
task took in the job, including the start of its process and its imports.

Job scripts create no files for their reports, because directories are slow on the file systems of
clusters. They append lines to `HOST.log`, a file for all jobs on a host, so that only one machine
writes to it: `UID started HOST`, and `UID exited` with the values that `exited` reads.

To cancel a task of a shared job, which also runs other tasks, the program creates `UID.started` as
a link. The job does not overwrite the file, so only one of them succeeds. If the task has started,
the program creates the file `UID.cancel`, which the job looks for while it runs the task.

The job removes its order file when it starts. If the batch system starts the job again, for example
after the failure of a node, the job therefore ends at once: its tasks that have not ended are lost,
and the program runs them again, each in a new sandbox.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rhapsody import TaskDescription
from rhapsody.sdk import Program, Reaper, Runner, TaskProgram, task_environment, worker_values
from rhapsody_psij.jobs import TERMINATION

CHECK_INTERVAL = 2.0
"""Seconds between checks whether a running task of a shared job was canceled."""

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL when an executable of a shared job is canceled, and when the
job of a container is ended.
"""

TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a program that was ended by SIGTERM, directly or below a shell."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class ReportDirectory:
    """Directory for the reports of tasks."""

    def __init__(self, directory: str, *, shared: bool) -> None:
        self._directory = Path(directory)
        self.interval: float | None = CHECK_INTERVAL if shared else None

    def path(self, uid: str, kind: str) -> Path:
        """Return the path of a report."""
        return self._directory / f"{uid}.{kind}"

    def start(self, uid: str) -> bool:
        """Report the start of a task.

        Returns:
            False if the task was canceled before.
        """
        try:
            with open(self.path(uid, "started"), "xb") as file:
                file.write(f"{socket.gethostname()}\n".encode())
        except FileExistsError:
            return False
        return True

    def end(self, uid: str, outcome: dict[str, Any]) -> None:
        """Report the end of a task."""
        started = self.path(uid, "started")
        with open(started, "ab") as report:
            report.write(pickle.dumps(outcome))
        started.rename(self.path(uid, "ended"))

    def canceled(self, uid: str) -> bool:
        """Return True if a task of a shared job was canceled."""
        return self.interval is not None and self.path(uid, "cancel").exists()


def read_log(path: Path, offset: int = 0) -> tuple[list[tuple[str, str, bytes]], int]:
    """Read the complete lines of a log of job scripts.

    Args:
        path: The path of the log.
        offset: The number of bytes that were read before.

    Returns:
        The uid, the kind and the values of each line, and the new offset.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        lines, newline, _ = file.read().rpartition(b"\n")
    words = [line.split(b" ", 2) for line in lines.splitlines()]
    found = [(uid.decode(), kind.decode(), values) for uid, kind, values in words]
    return found, offset + len(lines) + len(newline)


def read_outcome(kind: str, content: bytes) -> dict[str, Any]:
    """Return the outcome in a report of the end of a task.

    Args:
        kind: `"ended"` for a pickled outcome, `"exited"` for the values in a line of a log.
        content: The outcome or the values.
    """
    if kind == "ended":
        outcome: dict[str, Any] = pickle.loads(content)  # noqa: S301 - of our own job
        return outcome
    begin, end, status, out_of_memory, ticks = content.split()
    code = int(status)
    if code - 128 in signal.valid_signals():  # bash adds 128
        code = 128 - code
    return {
        "exit_code": code,
        "interval": (float(begin), float(end)),
        "usage": {} if ticks == b"-" else {"cpu_seconds": int(ticks) / os.sysconf("SC_CLK_TCK")},
        "out_of_memory": out_of_memory == b"1",
    }


def run_call(uid: str, packed: bytes, reports: ReportDirectory) -> dict[str, Any]:
    """Make a call in a child process, and return its outcome."""
    context = multiprocessing.get_context("fork")  # this process has one thread
    path = reports.path(uid, "call")
    child = context.Process(target=_call, args=(packed, str(path)))
    child.start()
    canceled = False
    while child.is_alive():
        child.join(reports.interval)
        if child.is_alive() and reports.canceled(uid):
            canceled = True
            break
    child.kill()
    with suppress(ProcessLookupError):  # also ends what the call has left behind
        os.killpg(child.pid or 0, signal.SIGKILL)
    child.join()
    try:
        return {"call": path.read_bytes()}
    except FileNotFoundError:
        if canceled:
            return {"canceled": True}
        return {"lost": f"its process ended with exit code {child.exitcode}"}
    finally:
        path.unlink(missing_ok=True)


def _call(packed: bytes, path: str) -> None:
    os.setsid()
    if sys.platform == "linux":  # end with the job's process, even if only that one is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    outcome = Runner().run(packed)
    Path(f"{path}.part").write_bytes(outcome)
    os.rename(f"{path}.part", path)
    worker_values().close()  # this process makes no other call
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads that the call has started


async def run_executable(
    task: TaskDescription, cores: int, reports: ReportDirectory, reaper: Reaper
) -> dict[str, Any]:
    """Run the program of a task in its sandbox.

    If this process receives SIGTERM, it ends at once, and the reaper kills the program. A container
    would go on, so it is stopped first.

    Returns:
        The outcome.
    """
    environment = task_environment(task, cores=cores)
    begin = time.time()
    program = TaskProgram(task, environment, launch=partial(Program, reaper=reaper))
    ended = asyncio.create_task(program.wait(GRACE))
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        ended.cancel()

    if "container" in task:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    while not ended.done():
        await asyncio.wait([ended], timeout=reports.interval)
        if reports.canceled(task["uid"]):
            ended.cancel()
            await asyncio.wait([ended])
    if terminated:  # the batch system ends the job
        sys.exit(128 + signal.SIGTERM)
    if ended.cancelled():
        return {"canceled": True}
    error = ended.exception()
    outcome: dict[str, Any] = {} if error is None else {"exception": error}
    keys = ("exit_code", "stdout", "stderr", "usage")
    outcome["interval"] = begin, time.time()
    return outcome | {key: task[key] for key in keys if key in task}  # type: ignore[literal-required]


def outcome_of(entry: dict[str, Any], reports: ReportDirectory, reaper: Reaper) -> dict[str, Any]:
    """Run one task of an order, and return its outcome."""
    task = entry["task"]
    if entry["call"] is not None:
        return run_call(task["uid"], entry["call"], reports)
    try:
        return asyncio.run(run_executable(task, entry["cores"], reports, reaper))
    except (OSError, ValueError) as error:  # the program cannot be started
        return {"exception": error}


def main(path: str | None = None) -> None:
    """Run the tasks of an order file, or of the order in standard input."""
    if sys.platform == "linux":  # orphans of a task stay below this process, and end with its job
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        if path is None:
            content = base64.b64decode(sys.stdin.read())
        else:
            content = Path(path).read_bytes()
            os.unlink(path)
    except FileNotFoundError:  # the job was canceled, or is started again
        return
    order = pickle.loads(content)  # noqa: S301 - of the program's user
    reports = ReportDirectory(order["reports"], shared=len(order["tasks"]) > 1)
    reaper = Reaper()
    for entry in order["tasks"]:
        uid = entry["task"]["uid"]
        if reports.start(uid):
            begin = time.monotonic()
            outcome = outcome_of(entry, reports, reaper)
            outcome["seconds"] = time.monotonic() - begin
            if outcome.get("exit_code") in TERMINATED:
                # A batch system that ends a job signals all its processes, in any order. This one
                # then ends without a report.
                time.sleep(TERMINATION)
            reports.end(uid, outcome)
    reaper.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
