"""Rounds of a measure, in which each contestant takes its turn in a new process.

Contestants that are not installed, fail or take too long are noted in the results; the others
continue.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.suite import graphs
from benchmarks.suite.contestant import SLOTS
from benchmarks.suite.measures import MEASURES, RECIPES, Measure

ROOT = Path(__file__).parents[2]


@dataclass
class Results:
    """Results of one measure.

    Attributes:
        date: The date.
        values: A value for each round, by column and contestant.
        notes: Reasons for missing values, by contestant.
        versions: Versions of the contestants' distributions.
    """

    date: str
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def note(self, contestant: str, text: str) -> None:
        """Add a reason for a missing value, unless it is already noted."""
        notes = self.notes.setdefault(contestant, [])
        if text not in notes:
            notes.append(text)

    def add(self, contestant: str, line: str) -> None:
        """Add the figure in a line that a turn printed; ignore other output."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found: Any = json.loads(line)
            if "skipped" in found:
                self.note(contestant, f"too long: {found['skipped']}")
            contestant, column = found.get("contestant", contestant), found["column"]
            self.values.setdefault(column, {}).setdefault(contestant, []).extend(found["values"])


def make_graphs(directory: Path, smoke: bool) -> None:
    """Write the graphs that all contestants run."""
    if smoke:
        few = [graphs.timed(0.001, range(max(0, n - 2), n)) for n in range(20)]
        graphs.save(few, directory / "small.json")
        return
    for size, seconds in ((1_000, 2.0), (10_000, 8.0)):
        for name in RECIPES:
            graph = graphs.recipe(name, size, SLOTS, seconds)
            graphs.save(graph, directory / f"{name} {size:,}.json")


def run(name: str, rounds: int, limit: float, smoke: bool) -> Results:
    """Run one measure."""
    measure = MEASURES[name]
    results = Results(time.strftime("%Y-%m-%d"))
    with tempfile.TemporaryDirectory() as directory:
        if name == "workflows":
            make_graphs(Path(directory), smoke)
        words = [name, "--limit", str(limit), "--graphs", directory, *["--smoke"] * smoke]
        if measure.needs and importlib.util.find_spec(measure.needs) is None:
            results.note("all", f"{measure.needs} is not installed")
        elif measure.whole is not None:
            turn(results, "", 0, words, limit * 40)
        else:
            there = list(present(measure, results))
            for _ in range(rounds):
                for title, number in there:
                    turn(results, title, number, words, limit * 10)
    return results


def present(measure: Measure, results: Results) -> Iterator[tuple[str, int]]:
    """Yield the titles and numbers of the installed contestants; note the others."""
    for number, contestant in enumerate(measure.contestants):
        version = contestant.version()
        if version is None:
            results.note(contestant.title, f"{contestant.needs} is not installed")
            continue
        if version:
            results.versions[contestant.needs] = version
        yield contestant.title, number


def turn(results: Results, title: str, number: int, words: list[str], deadline: float) -> None:
    """Run one contestant's turn until the deadline."""
    print(f"{words[0]}: {title or 'all'}", file=sys.stderr, flush=True)
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]  # for Parsl's programs
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": os.pathsep.join(path)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        out, errors = Path(place, "out"), Path(place, "errors")
        command = [sys.executable, "-m", "benchmarks.suite.turn", words[0], str(number), *words[1:]]
        with out.open("wb") as stdout, errors.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, "--began", str(time.monotonic())],
                stdout=stdout,
                stderr=stderr,
                cwd=place,
                env=environment,
                start_new_session=True,
            )
            try:
                code = process.wait(deadline)
            except subprocess.TimeoutExpired:
                code = None
            finally:  # also end the processes that it started
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for line in out.read_text(errors="replace").splitlines():
            results.add(title, line)
        if code is None:
            results.note(title, f"timed out after {deadline:.0f} s")
        elif code:
            results.note(title, f"failed: {last_error(errors.read_text(errors='replace'))}")


def last_error(text: str) -> str:
    """Return the last error of a traceback, without paths on this machine."""
    errors = re.findall(r"^[\w.]+(?:Error|Exception|Exit|Interrupt)\b.*", text, re.MULTILINE)
    last = errors[-1] if errors else "no error in its output"
    return re.sub(r"(?<!\w)/[^\s'\"]+", "...", last)[:200]
