"""Tests that kill programs that use RADICAL-Pilot and check that nothing of their sessions remains.

`python -m tests.radical.kills [--rounds N] [--seed S] [--slurm] [--client] [MOMENT ...]` kills a
program at each of ten moments, alternately with and without a fork that outlives the program; from
the third round on, shortly after the moment. With `--client`, it also kills the client and then
cleans up as the next start does. It prints a line for each kill, and exits with 1 if anything
remained after one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rhapsody_radical import cleanup
from rhapsody_radical.cleanup import MARK, SESSION
from tests._support.machine import alive
from tests._support.slurm import slurm
from tests.radical import cluster
from tests.radical.pilots import resources

MOMENTS = (
    "starting",
    "submitting",
    "launched",
    "active",
    "executables",
    "service",
    "raptor starting",
    "raptor calls",
    "closing",
    "closing late",
)
"""Moments at which the program is killed; at `submitting` its pilot's directory is created, at
`closing late` its pilot has ended."""

LIMIT = 30.0
"""Seconds within which everything must have ended."""

START = 150.0
"""Seconds until a program is at its moment."""

ROOT = Path(__file__).parents[2]


class LeftBehindError(AssertionError):
    """Something of a killed program's session remained, or an unrelated process was ended."""


@dataclass
class Program:
    """Program that has reached its moment.

    Attributes:
        process: The program's process.
        fork: Its fork, or `None`.
        directory: The directory of its files.
        session: The directory of its session.
        keep: Whether the session's directory is kept.
    """

    process: subprocess.Popen[str]
    fork: psutil.Process | None
    directory: Path
    session: Path
    keep: bool

    def client(self) -> psutil.Process:
        """The client of RADICAL-Pilot, found as any process of the session."""
        children = psutil.Process(self.process.pid).children()
        (found,) = (one for one in children if "rhapsody_radical.client" in one.cmdline())
        return found

    def processes(self) -> list[psutil.Process]:
        """The session's processes: they name it in their environment."""
        wanted = [f"{name}={self.session.name}".encode() for name in (MARK, SESSION)]
        found = []
        for process in psutil.process_iter():
            with suppress(OSError):
                lines = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if any(line in lines for line in wanted):
                    found.append(process)
        return found

    def others(self, bystanders: list[psutil.Process]) -> list[psutil.Process]:
        """The processes that work below its directory but are no bystanders."""
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                place = os.readlink(f"/proc/{process.pid}/cwd").removesuffix(" (deleted)")
                if f"{place}/".startswith(f"{self.directory}/") and alive(process.pid):
                    found.append(process)
        here = psutil.Process()
        return [process for process in found if process not in (here, *bystanders)]

    def files(self) -> list[str]:
        """The files of the session that the settings do not keep."""
        work = self.directory / "work"
        temporary = Path(os.environ.get("TMPDIR", "/tmp"), self.session.name)
        found = [*work.glob("*"), *work.glob("radical.*/*"), *([temporary] * temporary.exists())]
        if self.keep and self.session in found:
            found.remove(self.session)
        return [str(path) for path in found]

    def left(self, bystanders: list[psutil.Process], *, files: bool = True) -> list[str]:
        """Return a description of what is left of the session."""
        forks = [] if self.fork is None else [self.fork]
        processes = {*self.processes(), *self.others([*bystanders, *forks])}
        jobs = cluster.jobs(self.directory) if shutil.which("squeue") else []
        shown = [f"process {_shown(process)}" for process in processes if alive(process.pid)]
        return shown + [f"job {job}" for job in jobs] + (self.files() if files else [])

    def gone(self, bystanders: list[psutil.Process], *, files: bool = True) -> float:
        """Wait until nothing is left; return how many seconds that took.

        Raises:
            LeftBehindError: It took too long, or a bystander was ended.
        """
        began = time.monotonic()
        while left := self.left(bystanders, files=files):
            if time.monotonic() - began > LIMIT:
                raise LeftBehindError(f"after {LIMIT:g} s there is {', '.join(left)}")
            time.sleep(0.1)
        seconds = time.monotonic() - began
        if self.keep and not self.session.exists():
            raise LeftBehindError("its directory was to stay")
        for one in [*bystanders, *([] if self.fork is None else [self.fork])]:
            if not alive(one.pid):
                raise LeftBehindError(f"bystander {one} was ended")
        return seconds


@contextmanager
def program(
    directory: Path,
    moment: str,
    *,
    fork: bool = False,
    keep: bool = False,
    pilot: dict[str, Any] | None = None,
) -> Iterator[Program]:
    """Run a program up to a moment; end its remaining processes at the end of the block."""
    settings = {"fork": fork, "keep": keep, "pilot": pilot or resources(runtime=5)}
    work = directory / "work"
    work.mkdir(exist_ok=True)
    former = set(work.iterdir())
    words = ["-W", "ignore", "-m", "tests.radical.victim", str(directory), moment]
    with ExitStack() as stack:
        errors = stack.enter_context(open(directory / "errors", "w+"))
        process = subprocess.Popen(
            [sys.executable, *words, json.dumps(settings)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        timer = stack.enter_context(_limited(process))
        line = process.stdout.readline()
        timer()
        if not line:
            raise AssertionError(f"{moment} was not reached: {_text(directory / 'errors')}")
        child = psutil.Process(int(line)) if int(line) else None
        if child is not None:
            stack.callback(child.kill)
        (session,) = set(work.glob("rhapsody.*")) - former
        found = Program(process, child, directory, session, keep)
        stack.callback(_end, found)
        yield found


@contextmanager
def _limited(process: subprocess.Popen[str]) -> Iterator[Any]:
    timer = threading.Timer(START, process.kill)
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


@contextmanager
def bystanders(found: Program) -> Iterator[list[psutil.Process]]:
    """Run unrelated programs in the session's, its pilot's and a task's directory."""
    places = [found.session, *found.session.glob("radical.pilot.sandbox/*/pilot.0000")]
    places += sorted((found.directory / "tasks").glob("*"))[:1]
    started = [subprocess.Popen(["sleep", "600"], cwd=p, start_new_session=True) for p in places]
    try:
        yield [psutil.Process(one.pid) for one in started]
    finally:
        for one in started:
            one.kill()
            one.wait()


def kill(
    directory: Path, moment: str, *, delay: float = 0.0, client: bool = False, **settings: Any
) -> float:
    """Kill a program at a moment; return the seconds until nothing was left of its session.

    Args:
        directory: A new one, for all of its files.
        moment: One of `MOMENTS`.
        delay: Seconds from the moment to the kill.
        client: Whether its client is killed, too, and what they left is ended as at the next start.
        settings: For `program`.

    Raises:
        LeftBehindError: Something is left.
    """
    with program(directory, moment, **settings) as found, bystanders(found) as others:
        time.sleep(delay)
        killed = [psutil.Process(found.process.pid), *([found.client()] if client else [])]
        for each in killed:
            each.kill()
        found.process.wait()
        if client:
            began = time.monotonic()
            # The client's lock is free when the last of its threads has ended.
            while not cleanup.clean_up(cleanup.place(found.session.parent)):
                if time.monotonic() - began > LIMIT:
                    raise LeftBehindError("its session is not recognized as ended")
                time.sleep(0.1)
            return time.monotonic() - began + found.gone(others, files=False)
        return found.gone(others)


def _end(found: Program) -> None:
    for process in found.processes():
        with suppress(psutil.Error):
            process.kill()
    jobs = cluster.jobs(found.directory) if shutil.which("squeue") else []
    if jobs:
        subprocess.run(["scancel", *jobs], check=False)


def _shown(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.pid} ({' '.join(process.cmdline())[:80]})"
    return str(process.pid)


def _text(path: Path) -> str:
    return path.read_text()[-2000:]


def main() -> int:
    """Kill all programs, and return the number of those that left something behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("moments", nargs="*", choices=[[], *MOMENTS], default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true", help="pilots are jobs of a Slurm")
    parser.add_argument("--client", action="store_true", help="kill the clients, too")
    words = parser.parse_args()
    chance, bad, pilot = random.Random(words.seed), 0, None
    with tempfile.TemporaryDirectory(prefix="kills.") as name, ExitStack() as stack:
        root = Path(name)
        if words.slurm:
            (root / "slurm").mkdir()
            stack.enter_context(slurm(root / "slurm"))
            os.environ["RADICAL_CONFIG_USER_DIR"] = cluster.configured(root)
            pilot = cluster.settings()
        for number in range(words.rounds):
            for index, moment in enumerate(words.moments or MOMENTS):
                fork = (number + index) % 2 == 0
                directory = root / f"{number}-{moment.replace(' ', '-')}"
                directory.mkdir()
                delay = chance.uniform(0, 2) if number > 1 else 0.0
                keep = number > 1 and chance.random() < 0.25
                queued = words.slurm and moment == "launched"
                try:
                    with cluster.held() if queued else nullcontext():
                        seconds = kill(
                            directory, moment, delay=delay, client=words.client, fork=fork,
                            keep=keep, pilot=pilot,
                        )  # fmt: skip
                    said = f"{seconds:5.1f} s"
                except AssertionError as error:
                    bad, said = bad + 1, f"{type(error).__name__}: {error}"
                kind = "fork" if fork else "no fork"
                print(f"{moment:16} {kind:8} +{delay:.1f} s: {said}", flush=True)
    print(f"{bad} of {words.rounds * len(words.moments or MOMENTS)} left something behind")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
