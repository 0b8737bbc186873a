"""`rhapsody stats`: statistics of a run by task name, its critical path, and two runs compared."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rhapsody.cli.lookup import LISTED, read_record, run_json
from rhapsody.cli.output import DONE, say_json, say_lines, table
from rhapsody.history.values import (
    RUN_HELP,
    call_of,
    counts_from,
    counts_of,
    counts_text,
    duration,
    percent,
    printable,
    program_of,
    seconds_so_far,
    size,
)
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.history.reader import RunHistory
    from rhapsody.history.statistics import NameStatistics, Step


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = f"{RUN_HELP}; two runs are compared"
    parser.add_argument("runs", nargs="*", metavar="RUN", help=text)
    text = "list the whole critical path, or all names of two runs"
    parser.add_argument("--all", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the statistics of a run, or of two runs side by side.

    Returns:
        The exit code.

    Raises:
        UsageError: More than two runs are named.
    """
    from rhapsody.history.reader import no_collection

    if len(arguments.runs) > 2:
        raise UsageError(f"cannot compare {len(arguments.runs)} runs; name one run or two runs")
    with no_collection():  # the collector would traverse each task of a large record
        _print(arguments)
    return DONE


def _print(arguments: argparse.Namespace) -> None:
    """Print the statistics, which are deleted before the garbage collector is turned on again."""
    found = [_Statistics(name) for name in arguments.runs or [None]]
    if len(found) == 2:
        _compare(*found, json=arguments.json, everything=arguments.all)
    else:
        _show(found[0], json=arguments.json, everything=arguments.all)


class _Statistics:
    """Statistics of one run.

    Args:
        name: The user's text that selects the run.
    """

    def __init__(self, name: str | None) -> None:
        from rhapsody.history.statistics import by_name, critical_path

        history = read_record(name)
        self.history: RunHistory = history
        now = time.time() if history.run.outcome == "running" else None
        self.names: list[NameStatistics] = sorted(by_name(history), key=_total, reverse=True)
        self.path: list[Step] = critical_path(history, now)

    @property
    def counts(self) -> dict[str, int]:
        """The counts of tasks; those of a run that has ended are in its record."""
        run = self.history.run
        return counts_of(self.history) if run.ended is None else counts_from(run.stats)

    @property
    def seconds(self) -> float | None:
        """The duration of the run so far."""
        return seconds_so_far(self.history.run)

    @property
    def length(self) -> float | None:
        """The length of the critical path; `None` if there is none."""
        return sum(step.seconds for step in self.path) if self.path else None

    def json(self) -> dict[str, Any]:
        """Return the statistics as JSON."""
        return {
            "run": {**run_json(self.history.run), "counts": self.counts},
            "names": [asdict(each) for each in self.names],
            "critical_path": {
                "seconds": self.length or 0.0,
                "waited": sum(step.waited for step in self.path),
                "ran": sum(step.ran for step in self.path),
                "tasks": [
                    {
                        "task": step.task.key,
                        "name": step.task.name,
                        "call": step.task.call,
                        "waited": step.waited,
                        "ran": step.ran,
                    }
                    for step in self.path
                ],
            },
        }


def _total(each: NameStatistics) -> float:
    """Return the sum of durations; blocks, which contain other tasks, are sorted last."""
    return -1.0 if each.kind == "block" or each.durations is None else each.durations.total


def _show(found: _Statistics, *, json: bool, everything: bool) -> None:
    """Print the statistics of one run."""
    if json:
        say_json(found.json())
        return
    run, counts = found.history.run, found.counts
    lines = [
        f"{program_of(run)}, run {run.name}",
        f"{_how(found)}: {counts_text(counts)}",
        "",
        *_names_table(found.names),
        *_path_lines(found, everything),
    ]
    say_lines(lines)


NAMED = 5
"""Maximum number of names whose used memory is unknown."""


def _how(found: _Statistics) -> str:
    """Return the outcome and the duration of a run."""
    outcome, seconds = found.history.run.outcome, found.seconds
    if seconds is None:
        return outcome
    return f"{outcome} {'for' if outcome == 'running' else 'in'} {duration(seconds)}"


COLUMNS = ("NAME", "COUNT", "FAILED", "MEDIAN", "P95", "MAX", "TOTAL", "CPU", "MEMORY", "ASKED")


def _names_table(names: Sequence[NameStatistics]) -> list[str]:
    """Return the table of task names, and lines about what it shows."""
    from rhapsody.history.statistics import most_unused_memory

    if not names:
        return []
    rows = [
        (
            _name(each),
            str(each.count),
            str(each.failed),
            *_times(each),
            percent(each.cpu_efficiency),
            size(each.peak_memory),
            size(each.requested_memory),
        )
        for each in names
    ]
    optional = ("P95", "CPU", "ASKED", "MEMORY")
    lines = table(COLUMNS, rows, numbers=COLUMNS[1:], flexible=("NAME",), optional=optional)
    worst = most_unused_memory(names)
    unknown = [each for each in names if each.requested_memory and each.peak_memory is None]
    about = []
    if worst is not None:
        about.append(
            f"most unused memory: {printable(worst.name)}, {size(worst.unused_memory)} of the "
            f"{size(worst.requested_memory)} that were requested"
        )
    if built := [each for each in names if each.build_seconds is not None]:
        times = (f"{printable(each.name)} {duration(each.build_seconds)}" for each in built)
        about.append(f"time for building worker values: {', '.join(times)}")
    if unknown:
        shown = ", ".join(printable(each.name) for each in unknown[:NAMED])
        about.append(f"used memory unknown: {shown}{', ...' if len(unknown) > NAMED else ''}")
    return [*lines, *([""] if about else []), *about, ""]


def _name(each: NameStatistics) -> str:
    return f"{each.name} (block)" if each.kind == "block" else each.name or "-"


def _times(each: NameStatistics) -> Sequence[str]:
    took = each.durations
    if took is None:
        return ["-"] * 4
    return [duration(seconds) for seconds in (took.median, took.p95, took.max, took.total)]


def _path_lines(found: _Statistics, everything: bool) -> list[str]:
    """Return lines about the critical path. For a long path, show only the longest steps."""
    path = found.path
    if not path:
        return ["critical path: no task has ended"]
    total, waited = found.length or 0.0, sum(step.waited for step in path)
    of = "" if found.seconds is None else f" of {duration(found.seconds)}"
    tasks = f"{len(path)} task{'s' * (len(path) != 1)}"
    title = f"critical path: {tasks}, {duration(total)}{of}"
    listed = path
    if len(path) > LISTED and not everything:
        longest = sorted(path, key=lambda step: step.seconds, reverse=True)[:LISTED]
        kept = {step.task.key for step in longest}
        listed = [step for step in path if step.task.key in kept]
    rows = [
        (step.task.key, duration(step.waited), duration(step.ran), call_of(step.task))
        for step in listed
    ]
    lines = [
        f"{title}, {duration(waited)} of it waiting",
        *table(
            ("TASK", "WAITED", "RAN", "CALL"),
            rows,
            numbers=("WAITED", "RAN"),
            flexible=("CALL", "TASK"),
        ),
    ]
    if len(path) > len(listed):
        rest = total - sum(step.seconds for step in listed)
        lines.append(
            f"and {len(path) - len(listed)} shorter ones, {duration(rest)}; --all lists them"
        )
    return lines


# Two runs.

MEASURES: Mapping[str, Callable[..., str]] = {
    "count": str,
    "failed": str,
    "skipped": str,
    "reused": str,
    "median": duration,
    "p95": duration,
    "max": duration,
    "total": duration,
    "cpu": percent,
    "memory": size,
    "asked": size,
    "build": duration,
}
"""Compared values of a name, each with the function that formats it."""

EVENTS = ("failed", "skipped", "reused")
"""Values that are shown if they are not zero in both runs."""

OF_SEVERAL = ("median", "p95", "max")
"""Values that equal the total if there is a single task."""


def _values(each: NameStatistics | None) -> Mapping[str, float | None]:
    """Return the compared values of a name; unknown ones may be absent."""
    if each is None:
        return {}
    took = each.durations
    times = {} if took is None else asdict(took)
    return {
        **times,
        "count": each.count,
        "failed": each.failed,
        "skipped": each.skipped,
        "reused": each.reused,
        "cpu": each.cpu_efficiency,
        "memory": each.peak_memory,
        "asked": each.requested_memory,
        "build": each.build_seconds,
    }


def _compare(first: _Statistics, second: _Statistics, *, json: bool, everything: bool) -> None:
    """Print the statistics of two runs side by side."""
    if json:
        say_json({"runs": [first.json(), second.json()]})
        return
    one, two = first.history.run, second.history.run
    lines = [
        f"1: {program_of(one)}, run {one.name}, {one.outcome}",
        f"2: {program_of(two)}, run {two.name}, {two.outcome}",
        "",
    ]
    length = first.length, second.length
    rows = [
        ("run", "time", *_pair(first.seconds, second.seconds, duration)),
        ("", "tasks", *_pair(len(first.history.tasks), len(second.history.tasks), str)),
        ("", "critical path", *_pair(*length, duration)),
    ]
    known = [{_name(each): each for each in found.names} for found in (first, second)]
    names = dict.fromkeys([*known[0], *known[1]])
    ordered = sorted(names, key=lambda name: _change(known[0].get(name), known[1].get(name)))
    listed = ordered if everything else ordered[:LISTED]
    for name in listed:
        label, values = name, [_values(each.get(name)) for each in known]
        single = all((each.get("count") or 0) <= 1 for each in values)
        for measure, text in MEASURES.items():
            pair = values[0].get(measure), values[1].get(measure)
            if single and measure in OF_SEVERAL:
                continue
            if pair != (None, None) and (any(pair) or measure not in EVENTS):
                rows.append((label, measure, *_pair(*pair, text)))
                label = ""
    header = ("NAME", "VALUE", "RUN 1", "RUN 2", "RATIO")
    lines += table(header, rows, numbers=header[2:], flexible=("NAME",))
    if len(ordered) > len(listed):
        lines.append(f"and {len(ordered) - len(listed)} more names; --all lists them")
    say_lines(lines)


def _pair(
    first: float | None, second: float | None, text: Callable[..., str]
) -> tuple[str, str, str]:
    """Return two values and their ratio as text."""
    ratio = "-" if not first or second is None else f"{second / first:.2f}"
    return "-" if first is None else text(first), "-" if second is None else text(second), ratio


def _change(first: NameStatistics | None, second: NameStatistics | None) -> float:
    """Return a sort key by which the names with the largest change of the total come first."""
    total = [max(0.0, _total(each)) if each is not None else 0.0 for each in (first, second)]
    return -abs(total[0] - total[1])
