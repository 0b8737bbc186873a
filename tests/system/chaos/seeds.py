"""Runs the graph of one seed in processes of its own, and judges what came of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.system.chaos.graphs import (
    BLOCKS,
    INNER,
    KINDS,
    MAKES,
    ON_DISK,
    RETRIED,
    Call,
    make_graph,
)
from tests.system.chaos.model import End, ran_after_seen, runs_again, wrong_counts, wrong_ends

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("program.py")

MODES = {
    "threads": ("reports", "reports", "disk", "killed", "shutdown", "reports shutdown disk"),
    "processes": (
        "workers",
        "workers reports",
        "reports",
        "disk",
        "killed",
        "workers shutdown",
        "reports shutdown disk",
    ),
    "dask": ("workers", "workers reports", "reports", "killed", "scheduler", "workers shutdown"),
    "dragon": ("workers", "workers reports", "reports", "killed", "workers shutdown"),
    "pilot": ("plain",),
}
"""Faults that may occur on each backend, those of a line together; the seed selects a line."""

MAY_FAIL = {
    "disk": ON_DISK,
    "scheduler": (*KINDS, "service"),
    "shutdown": (*BLOCKS, *RETRIED),  # nothing is called or tried again while an engine ends
}
"""Kinds that may fail because of what goes wrong."""

OPTIONS = {
    "threads": ["-b", "local"],
    "processes": ["-b", "local", "-o", "executor=process", "-o", "cores=2"],
    "dask": ["-b", "dask", "-o", "n_workers=2", "-o", "threads=1", "-e", "push_down=false"],
    "dragon": ["-b", "dragon", "-o", "cores=2"],
}
"""The backends for `rhapsody run`."""

MARK = "CHAOS_SEED"
"""Environment variable that marks the processes of a seed, whatever their parent."""

BAD_WORDS = ("never retrieved", "never awaited", "Exception ignored")
TRACEBACK = "Traceback (most recent call last)"
"""Text that must not be on standard error, except from Dask's workers, which log lost peers."""


class WrongError(Exception):
    """Something was not as it should be."""


@dataclass(frozen=True)
class Seed:
    """One graph and its misfortunes.

    Attributes:
        backend: One of `MODES`.
        number: The seed.
        tasks: How many calls.
        chosen: Faults that occur, instead of those that the seed selects.
    """

    backend: str
    number: int
    tasks: int
    chosen: str = ""

    @property
    def mode(self) -> str:
        """Return the kind of faults."""
        return self.chosen or random.Random(f"mode of {self.number}").choice(MODES[self.backend])

    @property
    def command(self) -> str:
        """Runs this seed alone."""
        mode = f" --mode '{self.chosen}'" if self.chosen else ""
        return (
            f"python -m tests.system.chaos --backend {self.backend} --tasks {self.tasks} "
            f"--seeds 1 --first {self.number}{mode}"
        )

    @property
    def limit(self) -> float:
        """Seconds without a new attempt after which it counts as hanging."""
        return 120 + self.tasks * (0.3 if self.backend == "pilot" else 0.1)


def run_seed(seed: Seed) -> str:
    """Runs a seed.

    Returns:
        The observations.

    Raises:
        WrongError: What went wrong; the directory of the run is left.
    """
    place = Path(tempfile.mkdtemp(prefix=f"chaos-{seed.backend}-{seed.number}-"))
    mark = f"{seed.backend}-{seed.number}-{os.getpid()}-{time.monotonic_ns()}"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        MARK: mark,
        "CHAOS_LIMIT": str(seed.limit),
        "TMPDIR": str(place / "tmp"),
    }
    (place / "tmp").mkdir()
    began = time.perf_counter()
    try:
        if "killed" in seed.mode:
            said = _killed(seed, place, environment)
        elif "disk" in seed.mode:
            with small_disk(place) as disk:
                if disk is None:
                    return "skipped: a small disk can only be mounted by root"
                said = _in_one_process(seed, place, {**environment, "CHAOS_DISK": str(disk)})
        else:
            said = _in_one_process(seed, place, environment)
    except WrongError as error:
        raise WrongError(f"{error}\nwhat it left: {place}\nagain: {seed.command}") from None
    finally:
        still = marked(mark)
        for process in still:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    if still:
        raise WrongError(f"processes are left: {still}\n{place}\nagain: {seed.command}")
    stays = f"rhapsody-dask-{os.getuid()}"  # the directory of all clusters of the user
    found = (path.name for path in (place / "tmp").iterdir())
    rest = [name for name in found if "rhapsody" in name and name != stays]
    if rest:
        raise WrongError(f"temporary files are left: {rest} in {place}\nagain: {seed.command}")
    shutil.rmtree(place)
    return f"{said}, {time.perf_counter() - began:.1f} s"


def marked(mark: str) -> list[psutil.Process]:
    """The processes of a seed that are there after some seconds still."""
    end = time.monotonic() + 10
    while True:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                    found.append(process)
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


@contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A file system of a few megabytes; `None` where it cannot be mounted."""
    disk = place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "chaos", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _in_one_process(seed: Seed, place: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "tests.system.chaos.trial", seed.backend, seed.mode]
    command += [str(seed.number), str(seed.tasks), str(place)]
    with open(place / "output.txt", "wb") as output:
        try:
            done = subprocess.run(
                command,
                cwd=place,
                env=environment,
                stdout=output,
                stderr=output,
                timeout=seed.limit * 10,
            )
        except subprocess.TimeoutExpired:
            raise WrongError("it hangs, and does not even say where") from None
    printed = (place / "output.txt").read_text(errors="replace")
    if done.returncode != 0:
        raise WrongError(f"it ended with exit code {done.returncode}:\n{printed[-8000:]}")
    report = json.loads((place / "report.json").read_text())
    ends: dict[int, End] = {number: tuple(end) for number, end in report["ends"]}
    graph = make_graph(seed.number, seed.tasks, services=0 if seed.backend == "pilot" else 2)
    words = seed.mode.split()
    may_fail = [kind for word in words for kind in MAY_FAIL.get(word, ())]
    lost = not {"workers", "disk", "scheduler"}.isdisjoint(words)
    log = (place / "log.txt").read_text().splitlines()
    if cut_short := "shutdown" in words:
        del graph[len(ends) :]
    cancelled = set(report["cancelled"])
    more = {"lost": lost, "cut_short": cut_short, "pushed": seed.backend == "dask"}
    wrong = wrong_ends(graph, ends, cancelled, may_fail, **more)
    if not wrong:
        wrong = wrong_counts(graph, ends, cancelled, log, **more)
    wrong += [f"{key} are left: {value}" for key, value in report["left"].items() if value]
    wrong += report["complaints"]
    bad_words = BAD_WORDS if seed.backend == "dask" else (*BAD_WORDS, TRACEBACK)
    wrong += [line for line in printed.splitlines() if any(word in line for word in bad_words)]
    wrong += wrong_sandboxes(report, graph, ends, lost=lost)
    if not may_fail:
        wrong += wrong_results(graph, ends, place)
    if wrong:
        raise WrongError(f"{len(wrong)} wrong; the first ones:\n" + "\n".join(wrong[:5]))
    return _said(seed.mode, ends)


def wrong_sandboxes(
    report: dict[str, Any], graph: list[Call], ends: dict[int, End], *, lost: bool
) -> list[str]:
    """The sandboxes that stay although they should not."""
    may_stay = set()
    if report["keep"] != "none":  # what a failed task has read stays with its own
        wanted = {
            call.number
            for call in graph
            if lost or call.kind in RETRIED or ends[call.number][0] == "failed"
        }
        for call in reversed(graph):
            if call.number in wanted:
                wanted.update(call.needs, call.after)
        # Declared outputs stay with "results", and with "failed" while futures are held.
        if report["keep"] in ("failed", "results"):
            wanted.update(call.number for call in graph if call.kind in MAKES)
        may_stay = {report["uids"][number] for number in wanted}
    wrong = []
    for name in report["sandboxes"]:
        uid = ".".join(name.split(".")[-3:-1])
        lost_block = uid not in report["uids"] and lost and report["keep"] != "none"
        shown = report["keep"] == "results" and any(f"/{name}/" in path for path in report["kept"])
        if uid not in may_stay and not lost_block and not shown:
            of = report["uids"].index(uid) if uid in report["uids"] else None
            whose = "a block's task" if of is None else f"{graph[of]}, {ends[of]}"
            wrong.append(f"{name} of {whose} is left with keep_sandboxes={report['keep']!r}")
    return wrong


def wrong_results(graph: list[Call], ends: dict[int, End], place: Path) -> list[str]:
    """The saved files that are not there, or not as they should be."""
    wrong = []
    for call in graph:
        if call.kind == "save":
            path = place / "results" / f"made{call.number}.txt"
            found = path.read_text() if path.exists() else None
            if ends[call.number][0] == "done" and found != f"{call.number}\n":
                wrong.append(f"{path} holds {found!r}; {call} ended as {ends[call.number]}")
    return wrong


def _said(mode: str, ends: dict[int, End]) -> str:
    counts = Counter(kind for kind, _ in ends.values())
    return f"{mode}, " + " ".join(f"{kind} {number}" for kind, number in sorted(counts.items()))


# Killed, and taken up.


def _killed(seed: Seed, place: Path, environment: dict[str, str]) -> str:
    chance = random.Random(f"kills of {seed.number}")
    graph = make_graph(seed.number, seed.tasks)
    kills = 0
    for _ in range(chance.randint(1, 2 if seed.backend == "dask" else 6)):
        how = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        if _run_program(seed, place, environment, (chance.randrange(seed.tasks // 2), how)):
            (place / "log.txt").unlink()  # it was too quick, and has ended well or not
            shutil.rmtree(place / "marks")
        else:
            kills += 1
            _judge_log(place, graph)
    if not _run_program(seed, place, environment, None):
        raise WrongError("the last run did not end")
    _judge_log(place, graph)
    report = json.loads((place / "ends.json").read_text())
    ends: dict[int, End] = {number: tuple(end) for number, end in report["ends"]}
    wrong = wrong_ends(graph, ends, report["cancelled"]) + wrong_results(graph, ends, place)
    if wrong:
        raise WrongError(f"{len(wrong)} wrong; the first ones:\n" + "\n".join(wrong[:5]))
    return f"{_said('killed', ends)}, {kills} kills"


def _run_program(
    seed: Seed, place: Path, environment: dict[str, str], kill: tuple[int, signal.Signals] | None
) -> bool:
    """Runs the program, and sends it a signal when it has seen so many results.

    Returns:
        True if it came to its end.
    """
    command = [sys.executable, "-m", "rhapsody", "run", "-q", *OPTIONS[seed.backend]]
    command += ["-e", "lost_retries=50", str(PROGRAM), "--"]
    command += [str(seed.number), str(seed.tasks), str(place)]
    ends = place / "ends.json"
    ends.unlink(missing_ok=True)
    output = place / "output.txt"
    with (
        open(output, "ab") as errors,
        subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for count, _ in enumerate(process.stdout):
                if kill is not None and count == kill[0]:
                    process.send_signal(kill[1])
            process.wait(seed.limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise WrongError("`rhapsody run` hangs") from None
    printed = output.read_text(errors="replace")
    if wrong := [line for line in printed.splitlines() if any(w in line for w in BAD_WORDS)]:
        raise WrongError(f"it printed {wrong[0]}\n{printed[-8000:]}")
    if ends.exists():
        return True
    if kill is None or process.returncode not in (-kill[1], 128 + kill[1]):
        raise WrongError(f"it ended with exit code {process.returncode}:\n{printed[-8000:]}")
    return False


def _judge_log(place: Path, graph: Sequence[Call]) -> None:
    lines = (place / "log.txt").read_text().splitlines() if (place / "log.txt").exists() else []
    again = runs_again(graph)
    numbers = [int(each) for each in ran_after_seen(lines)]
    if wrong := [each for each in numbers if each < INNER and each not in again]:
        raise WrongError(f"ran after they were seen: {wrong[:5]}")
