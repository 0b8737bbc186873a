"""`rhapsody show`: everything that a run has recorded about one task."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rhapsody.cli.lookup import (
    LISTED,
    TASK_HELP,
    attempt_json,
    chosen_task,
    read_record,
    run_json,
    shown,
    task_json,
)
from rhapsody.cli.output import DONE, say_json, say_lines, wrapped
from rhapsody.history.values import (
    RUN_HELP,
    call_of,
    clock,
    duration,
    may_run,
    percent,
    printable,
    program_of,
    resources_text,
    size,
    where,
)

if TYPE_CHECKING:
    from rhapsody.history.reader import Attempt, FileRecord, RunHistory, RunRecord, TaskRun


MAX_LINES = 20
"""Maximum number of lines that are shown of the end of each output stream."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print a task.

    Returns:
        The exit code.
    """
    history = read_record(arguments.run)
    task = chosen_task(arguments.run, arguments.task, history)
    again = _rerun_command(history.run, task)
    if arguments.json:
        say_json(
            {
                "run": run_json(history.run),
                **task_json(task),
                "attempts": [attempt_json(each) for each in task.attempts],
                "rerun": again,
            }
        )
        return DONE
    lines = [call_of(task), *_rows(_task(history, task))]
    for attempt in task.attempts:
        lines += ["", f"attempt {attempt.number}: {_state(history.run, attempt)}"]
        lines += _rows(_attempt(task, attempt))
    if again is not None:
        lines += ["", f"to run it again: {again}"]
    say_lines(lines)
    return DONE


def _rows(rows: Iterable[tuple[str, str | list[str]]]) -> Iterator[str]:
    """Yield lines with names and values; a value of several lines follows its name, indented."""
    for name, value in rows:
        if isinstance(value, str):
            yield f"  {name:<12}{printable(value)}"
        elif value:
            yield f"  {name}:"
            for line in value:
                yield from wrapped(f"    {printable(line.expandtabs())}")


def _task(history: RunHistory, task: TaskRun) -> Iterator[tuple[str, str | list[str]]]:
    """Yield what is known about a task as a whole."""
    yield "task", f"{task.key}, {task.kind} {task.name}" if task.name else task.key
    yield "run", f"{history.run.name}, {program_of(history.run)}"
    yield "state", _how(task)
    if task.time:
        yield "called", clock(task.time, day=True)
    if task.block is not None:
        yield "block", _named(history, task.block)
    if task.scope is not None:
        yield "scope", task.scope
    found = [_named(history, each) for each in task.dependencies]
    if len(found) == 1:
        yield "depends on", found[0]
    else:
        more = [f"and {len(found) - LISTED} more"] if len(found) > LISTED else []
        yield "depends on", [*found[:LISTED], *more]
    if task.resources:
        yield "resources", resources_text(task.resources)
    if task.settings:
        yield "settings", ", ".join(f"{name}={value!r}" for name, value in task.settings.items())


def _how(task: TaskRun) -> str:
    state = "skipped, because a dependency failed" if task.skipped else str(task.state).lower()
    if task.reused:
        return f"{state}, with the result of an earlier run"
    last = task.last
    if last is not None and task.fallback:
        error = "" if last.error is None else f" after {last.error.kind}"
        state = f"{state} by fallback{error}"
        return f"{state}, {len(task.attempts)} attempts" if len(task.attempts) > 1 else state
    return f"{state} after {len(task.attempts)} attempts" if len(task.attempts) > 1 else state


def _named(history: RunHistory, key: str) -> str:
    task = history.tasks.get(key)
    return key if task is None else f"{key}  {call_of(task)}  {str(task.state).lower()}"


def _state(run: RunRecord, attempt: Attempt) -> str:
    state = str(attempt.state).lower()
    if attempt.ended is None and not may_run(run):
        return f"{state} when the run ended"
    if attempt.retried:
        return f"{state}, retried"
    if attempt.fallback:
        return "failed, replaced by the fallback"
    if attempt.submitted is None and attempt.started is None:
        return f"{state}, not submitted"
    return state


def _attempt(task: TaskRun, attempt: Attempt) -> Iterator[tuple[str, str | list[str]]]:
    """Yield what is known about an attempt."""
    if attempt.backend or attempt.worker:
        yield "on", where(attempt)
    for name, seconds in (
        ("submitted", attempt.submitted),
        ("started", attempt.started),
        ("ended", attempt.ended),
    ):
        if seconds is not None:
            after = {"started": attempt.waited, "ended": attempt.seconds}.get(name)
            how = {"started": "waited", "ended": "ran"}.get(name, "")
            extra = "" if after is None else f"  {how} {duration(after)}"
            yield name, f"{clock(seconds, day=True)}{extra}"
    if attempt.resources:
        yield "resources", resources_text(attempt.resources)
    used = _used(task, attempt)
    if used:
        yield "used", used
    if attempt.exit_code is not None:
        yield "exit code", str(attempt.exit_code)
    if attempt.error is not None:
        text = str(attempt.error).splitlines()
        yield "error", [*text, *(f"  {line}" for line in attempt.error.traceback)]
        yield "caused by", list(attempt.error.caused_by)
    yield "inputs", [_file(each) for each in attempt.inputs]
    yield "outputs", [_file(each) for each in attempt.outputs]
    yield from _output(attempt)
    if attempt.sandbox is not None:
        removed = "" if os.path.isdir(attempt.sandbox) else "  (removed)"
        yield "sandbox", f"{shown(attempt.sandbox)}{removed}"


def _used(task: TaskRun, attempt: Attempt) -> str:
    """Return an attempt's used resources as text, with their share of the requested ones."""
    from rhapsody.history.statistics import available_time

    usage = attempt.usage or {}
    requested = {**task.resources, **(attempt.resources or {})}
    parts = []
    cpu, peak, memory = usage.get("cpu_seconds"), usage.get("peak_memory"), requested.get("memory")
    if cpu is not None:
        cores = requested.get("cores", 1) * requested.get("ranks", 1)
        available = available_time(attempt, requested)
        of = (
            ""
            if available is None
            else f" ({percent(cpu / available)} of {cores:g} core{'s' * (cores != 1)})"
        )
        parts.append(f"CPU {duration(cpu)}{of}")
    if peak is not None:
        of = "" if not memory else f" of {size(memory)}"
        parts.append(f"memory {size(peak)}{of}")
    for name, word in (("read_bytes", "read"), ("written_bytes", "written")):
        if name in usage:
            parts.append(f"{word} {size(usage[name])}")  # type: ignore[literal-required]
    if "build_seconds" in usage:
        parts.append(f"worker values built in {duration(usage['build_seconds'])}, before it ran")
    return ", ".join(parts)


def _file(file: FileRecord) -> str:
    """Return a file as text."""
    path = "" if file.path is None or file.path == file.name else f"  {shown(file.path)}"
    return f"{file.name}{path}{'' if file.size is None else f'  {size(file.size)}'}"


def _output(attempt: Attempt) -> Iterator[tuple[str, str | list[str]]]:
    """Yield the ends of the output streams, or the files that contain them."""
    for name, text, path in (
        ("stdout", attempt.stdout, attempt.stdout_path),
        ("stderr", attempt.stderr, attempt.stderr_path),
    ):
        if not text and name == "stderr" and attempt.error is not None:
            text = attempt.error.stderr
        if path is not None:
            yield name, shown(path)
        if text:
            lines = text.splitlines()
            more = ["..."] if len(lines) > MAX_LINES else []
            yield name, [*more, *lines[-MAX_LINES:]]


def _rerun_command(run: RunRecord, task: TaskRun) -> str | None:
    """Return a command that runs a task again, or `None` if there is none.

    This is the script in the sandbox of a failed executable. Otherwise, it is the command of the
    run with an option that runs all tasks of this name again.
    """
    from rhapsody.backends.programs import RERUN_SCRIPT

    for attempt in reversed(task.attempts):
        if attempt.sandbox is not None:
            script = os.path.join(attempt.sandbox, RERUN_SCRIPT)
            if os.path.exists(script):
                return f"sh {shlex.quote(shown(script))}"
    command = list(run.command)
    starts = [at for at, word in enumerate(command) if os.path.basename(word) == "rhapsody"]
    if not starts or command[starts[0] + 1 : starts[0] + 2] != ["run"] or task.kind == "block":
        return None
    rest = command[starts[0] + 2 :]
    own = rest.index("--") if "--" in rest else len(rest)  # after these, the script's arguments
    rest = [*(word for word in rest[:own] if word != "--fresh"), *rest[own:]]
    there = "" if run.cwd is None or run.cwd == os.getcwd() else f"cd {shlex.quote(run.cwd)} && "
    return f"{there}{shlex.join(['rhapsody', 'run', '--rerun', task.name, *rest])}"
