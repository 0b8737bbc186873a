"""Runs many tasks at once, and many where something runs out, and says what that took.

`python -m tests._support.load [--part N] [NAME ...]` makes all trials, or those that are named,
with an N-th of the tasks. Each runs in processes of its own, with limits of their own. It
prints a line for each, and exits with 1 where one has not ended as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, WorkflowEngine

ROOT = Path(__file__).parents[2]
WINDOW = 1000
USER = 54321
"""A user who has no other process, so that all are counted that a limit counts."""

LISTENER = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()
"""

Ends = list[Any]
"""Of each task what it returned, or raised."""


# What runs, in a process of its own.


async def functions(flow: WorkflowEngine, count: int) -> Ends:
    """Functions that do next to nothing; what they return is not kept."""
    same: Any = flow.function_task(int)
    total = 0
    async for number in flow.imap(same, range(count), window=WINDOW):
        total += number
    assert total == count * (count - 1) // 2
    return []


async def programs(flow: WorkflowEngine, count: int) -> Ends:
    """Programs that do nothing."""

    @flow.executable_task
    def true(number: int) -> list[str]:
        return ["/bin/true"]

    return await asyncio.gather(*flow.map(true, range(count)), return_exceptions=True)


async def files(flow: WorkflowEngine, count: int) -> Ends:
    """Programs that write a file, and functions that read it."""

    @flow.executable_task
    def write(number: int, file: OutputFile) -> str:
        return f"echo {number} > {file}"

    @flow.function_task
    def read(number: int, written: Any, file: InputFile) -> None:
        with open(file) as text:
            assert int(text.read()) == number

    def pair(number: int) -> Any:
        name = f"file{number}"
        return read(number, write(number, OutputFile(name)), InputFile(name))

    return await asyncio.gather(*map(pair, range(count)), return_exceptions=True)


async def services(flow: WorkflowEngine, count: int) -> Ends:
    """Services that listen, all at once."""

    @flow.executable_task(service=True, ready="tcp", ready_timeout=120)
    def serve(number: int) -> list[str]:
        return [sys.executable, "-S", "-c", LISTENER, "{port}"]

    calls = [serve(number) for number in range(count)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    for call in calls:
        call.cancel()
    return ends


WORK: dict[str, Callable[[WorkflowEngine, int], Awaitable[Ends]]] = {
    each.__name__: each for each in (functions, programs, files, services)
}


async def work(kind: str, count: int, resources: Any, engine: dict[str, Any]) -> dict[str, Any]:
    """Runs tasks of a kind, and one more, and returns what came of them."""
    backend = LocalExecutionBackend(resources=resources)
    began = time.perf_counter()
    async with WorkflowEngine.create(backend, **engine) as flow:
        ends = await WORK[kind](flow, count)
        later = await flow.function_task(int)()
        assert later == 0
    failures = [each for each in ends if isinstance(each, BaseException)]
    causes = [getattr(each, "root_cause", None) or each for each in failures]
    return {
        "ends": count,
        "failures": ["\n".join([str(each), *getattr(each, "__notes__", [])]) for each in causes],
        "reused": flow.stats.recorded,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "seconds": time.perf_counter() - began,
    }


# What starts it.


def run(
    place: Path, kind: str, count: int, *, limit: str = "", resources: Any = None, **engine: Any
) -> dict[str, Any]:
    """Runs tasks in a directory, in a process with a limit, and returns what came of them.

    Args:
        place: The directory.
        kind: Which of `WORK`.
        count: How many.
        limit: Options of `ulimit`. With `-u` it runs as another user, as root has no such limit.
        resources: What the backend has to give.
        engine: Options of the engine.

    Raises:
        PermissionError: It cannot be started with that limit here.
    """
    if limit.startswith("-u") and not can_change_user():
        raise PermissionError("no process can be started as another user")
    given = json.dumps([kind, count, resources, engine])
    command = ["bash", "-c", f'ulimit {limit or "-n"} >/dev/null && exec "$@"', "load"]
    command += [sys.executable, "-m", "tests._support.load", "--work", given]
    if limit.startswith("-u"):
        place.chmod(0o777)
        rights = "+dac_override,+dac_read_search"
        another = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        command = [*another, f"--inh-caps={rights}", f"--ambient-caps={rights}", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "log": done.stderr}


def can_change_user() -> bool:
    """Return whether a process can be started as another user."""
    return os.geteuid() == 0 and shutil.which("setpriv") is not None


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A disk of 1 MB.

    Raises:
        PermissionError: It cannot be mounted here.
    """
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("no disk can be mounted")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# Trials.


def check(found: dict[str, Any], *, fail: str | None = None) -> str:
    """Holds that no task has failed, or that some have, and say a text; says how many there were.

    Raises:
        AssertionError: It is not so.
    """
    failures = found["failures"]
    if fail is None:
        assert not failures, failures[0]
    else:
        assert 0 < len(failures) < found["ends"]
        other = [each for each in failures if fail not in each]
        assert not other, other[0]
    return f"{found['ends']} ends, {len(failures)} failed, {found['seconds']:.0f} s"


def memory(place: Path, count: int, **engine: Any) -> str:
    """Compares what many tasks take with what a tenth of them takes."""
    few, many = (run(place, "functions", each, **engine) for each in (count // 10, count))
    growth = (many["memory"] - few["memory"]) / (count - count // 10)
    assert many["memory"] - few["memory"] < (8 << 20) + count * 300, (few, many)
    took = f"{few['memory'] >> 20} and {many['memory'] >> 20} MiB, {growth:.0f} bytes a task more"
    return f"{count // 10} and {count} tasks: {took}, {many['seconds']:.0f} s"


def disk(place: Path, part: int) -> str:
    """Files that do not fit onto a disk."""
    with small_disk(place / "disk") as where:
        full = f"no space left on device: {where} is full"
        said = check(run(place, "files", 400, work_dir=str(where / "work")), fail=full)
    return said


def journal_disk(place: Path, count: int) -> str:
    """A journal that does not fit onto a disk, and is taken up when there is room."""
    with small_disk(place / "disk") as where:
        journal = str(where / "journal.sqlite")
        first = run(place, "functions", count, journal=journal)
        assert "later results are not recorded" in first["log"], first
        room = ["mount", "-o", "remount,size=64m", str(where)]
        subprocess.run(room, check=True)
        again = run(place, "functions", count, journal=journal, resume=True)
    return f"{check(first)}; the next one reused {again['reused']}"


MANY = {"cores": 200}
TRIALS: dict[str, Callable[[Path, int], str]] = {
    "functions": lambda place, part: memory(place, 1_000_000 // part),
    "journal": lambda place, part: memory(place, 100_000 // part, journal="journal.sqlite"),
    "programs": lambda place, part: check(run(place, "programs", 10_000 // part)),
    "programs, 256 descriptors": lambda place, part: check(
        run(place, "programs", 10_000 // part, limit="-n 256")
    ),
    "files, 256 descriptors": lambda place, part: check(
        run(place, "files", 1000 // part, limit="-n 256")
    ),
    "services": lambda place, part: check(run(place, "services", 50)),
    "services, 256 descriptors": lambda place, part: check(
        run(place, "services", 50, limit="-n 256")
    ),
    "too few descriptors": lambda place, part: check(
        run(place, "files", max(100, 1000 // part), limit="-n 64", resources=MANY),
        fail="`ulimit -n`",
    ),
    "too few processes": lambda place, part: check(
        run(place, "files", max(100, 1000 // part), limit="-u 20", resources=MANY),
        fail="`ulimit -u`",
    ),
    "a full disk": disk,
    "a journal on a full disk": lambda place, part: journal_disk(place, 20_000),
}
"""Each in an empty directory, with a part of the tasks."""


def main() -> int:
    """Makes the trials that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TRIALS))
    parser.add_argument("--part", type=int, default=1)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        kind, count, resources, engine = json.loads(given.work)
        print(json.dumps(asyncio.run(work(kind, count, resources, engine))))
        return 0
    failed = False
    for name in given.names or TRIALS:
        with tempfile.TemporaryDirectory(prefix="rhapsody-load-") as place:
            try:
                said = TRIALS[name](Path(place), given.part)
            except (AssertionError, PermissionError) as error:
                failed = failed or isinstance(error, AssertionError)
                said = f"{type(error).__name__}: {error}"
        print(f"{name}: {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
