"""`rhapsody logs`: prints the output of a task, also while the task is running.

The output of an executable is in files in its sandbox, as long as the sandbox exists. Otherwise,
the record contains the output, or its end and the place of the whole output in a compressed file.
"""

from __future__ import annotations

import argparse
import codecs
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from rhapsody.cli.lookup import (
    TASK_HELP,
    chosen_task,
    open_record,
    readable,
    shown,
)
from rhapsody.cli.output import DONE, FAILED, CommandError, complain, flush_stdout, say_json, write
from rhapsody.history.reader import open_recorded
from rhapsody.history.values import RUN_HELP, may_run
from rhapsody.masking import escaped
from rhapsody.plugins.specs import UsageError
from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from rhapsody.history.reader import Attempt, RecordReader, TaskRun


POLL = 0.5
"""Seconds between two checks for new output with `-f`."""

CHUNK = 1 << 16
"""Maximum number of bytes that are read at once."""

Stream = Literal["stdout", "stderr"]
STREAMS: dict[Stream, str] = {"stdout": "standard output", "stderr": "standard error"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    text = "print the output until the task ends"
    parser.add_argument("-f", "--follow", action="store_true", help=text)
    text = "the number of the attempt (default: the last one)"
    parser.add_argument("--attempt", type=int, metavar="N", help=text)
    one = parser.add_mutually_exclusive_group()
    for name, long in STREAMS.items():
        one.add_argument(
            f"--{name}", dest="streams", action="store_const", const=[name], default=[*STREAMS],
            help=f"print only the {long}",
        )  # fmt: skip
    text = "print control characters as they are, instead of escaping them"
    parser.add_argument("--raw", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the output of a task.

    Returns:
        The exit code.

    Raises:
        UsageError: There is no such attempt, or the options contradict each other.
    """
    if arguments.follow and arguments.json:
        raise UsageError("--json prints the output so far; it cannot be combined with -f")
    reader, history = open_record(arguments.run)
    task = chosen_task(arguments.run, arguments.task, history)
    printer = _Printer(arguments.streams, raw=arguments.raw)
    if arguments.follow:
        _follow(reader, task.key, arguments.attempt, printer)
        return DONE
    attempt = _attempt(task, arguments.attempt)
    if arguments.json:
        say_json(_json(reader.path, task, attempt, arguments.streams))
        return DONE
    with _Files(reader.path, attempt, arguments.streams) as files:
        files.copy(printer)
        files.copy_recorded(printer)
    if not printer.written:
        return _explain(task, attempt, arguments.streams)
    return DONE


def _limit() -> int:
    """Return the number of characters to which recorded output is shortened."""
    from rhapsody.history.outputs import PRINTED

    return PRINTED


def _attempt(task: TaskRun, number: int | None) -> Attempt:
    """Return an attempt at a task, by default the last one.

    Raises:
        UsageError: There is no attempt with this number.
        CommandError: There is no attempt yet.
    """
    found = {attempt.number: attempt for attempt in task.attempts}
    if number is not None and number not in found:
        numbers = ", ".join(map(str, found)) or "none"
        raise UsageError(f"{task.key} has no attempt {number}; its attempts are: {numbers}")
    if not found:
        raise CommandError(f"{task.key} has not started; to wait for its output, pass -f")
    return task.attempts[-1] if number is None else found[number]


class _Printer:
    """Writer of output streams, with a title wherever the stream or the attempt changes.

    Args:
        streams: The streams to write. If there is only one, its title is omitted.
        raw: True to write control characters as they are.

    Attributes:
        streams: The argument `streams`.
        written: True if anything was written.
    """

    def __init__(self, streams: Sequence[Stream], *, raw: bool) -> None:
        self.streams: Sequence[Stream] = streams
        self._raw = raw
        self._several = len(streams) > 1
        self._last: Stream | None = None
        self._at_start = True
        self.written: bool = False

    def write(self, stream: Stream, text: str) -> None:
        """Write a piece of a stream."""
        if not text:
            return
        self.written = True
        if self._several and stream != self._last:
            # As for `cat`, the usual case of a single stream needs no title.
            if self._last is not None or stream == "stderr":
                self._title(STREAMS[stream])
            self._last = stream
        write(text if self._raw else escaped(text))
        self._at_start = text.endswith("\n")

    def begin(self, attempt: int) -> None:
        """Begin with another attempt."""
        self._title(f"attempt {attempt}")
        self._last = None

    def _title(self, text: str) -> None:
        write(f"{'' if self._at_start else chr(10)}==> {text} <==\n")
        self._at_start = True


class _Files(ExitStack):
    """Open files with the output of an attempt, and the recorded output for missing files.

    An open file remains readable when the sandbox is removed at the end of the task.

    Args:
        record: The path of the record.
        attempt: The attempt.
        streams: The streams.
    """

    def __init__(self, record: Path, attempt: Attempt, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.attempt = attempt
        self._record = record
        self._streams = streams
        self._files: dict[Stream, tuple[IO[bytes], codecs.IncrementalDecoder]] = {}

    def copy(self, printer: _Printer) -> None:
        """Write what was added to the files since the last call."""
        for stream in self._streams:
            path = self.attempt.output_path(stream)
            if stream not in self._files and path is not None:
                with suppress(FileNotFoundError, NotADirectoryError, ValueError), _allowed(path):
                    # Otherwise, it was not created yet, was removed, or is on another host.
                    opened = self.enter_context(open_recorded(path, self._record))
                    self._files[stream] = opened, codecs.getincrementaldecoder("utf-8")("replace")
            if stream in self._files:
                file, decoder = self._files[stream]
                with readable(Path(file.name)):
                    while data := file.read(CHUNK):
                        printer.write(stream, decoder.decode(data))

    def copy_recorded(self, printer: _Printer) -> None:
        """Write the recorded output of the streams that were not read from files."""
        for stream in self._streams:
            text, complete = recorded(self._record, self.attempt, stream)
            if stream in self._files or not text:
                continue
            printer.write(stream, text)
            if not complete:
                flush_stdout()
                complain(
                    f"only the last {len(text)} characters of the {STREAMS[stream]} are available; "
                    'tasks with capture="files" keep all of it in files'
                )


def recorded(record: Path, attempt: Attempt, stream: Stream) -> tuple[str | None, bool]:
    """Return the recorded output of an attempt, and True if it is the whole output."""
    from rhapsody.history.outputs import read_output

    end, place = (
        (attempt.stdout, attempt.stdout_at)
        if stream == "stdout"
        else (attempt.stderr, attempt.stderr_at)
    )
    whole = None if place is None else read_output(record, place)
    if whole is not None:
        return whole, True
    return end, end is not None and len(end) < _limit()


def _follow(reader: RecordReader, key: str, number: int | None, printer: _Printer) -> None:
    """Print the output of one attempt, or of all if none is named, until the task ends."""
    current, started = number, False
    files: _Files | None = None
    while True:
        history = reader.history()
        task, active = history.tasks[key], may_run(history.run)
        attempts = {attempt.number: attempt for attempt in task.attempts}
        if current is None and attempts:
            current = max(attempts)
        attempt = None if current is None else attempts.get(current)
        if attempt is not None:
            if files is None:
                files = _Files(reader.path, attempt, printer.streams)
                if started:
                    printer.begin(attempt.number)
                started = True
            files.attempt = attempt
            files.copy(printer)
            if attempt.ended is not None or not active:
                files.copy_recorded(printer)
                files.close()
                if not attempt.retried or number is not None or not active:
                    break
                current, files = attempt.number + 1, None
        elif not active or task.ended:
            break
        flush_stdout()
        time.sleep(POLL)
        with readable(reader.path):
            reader.update()
    if attempt is None:
        attempt = _attempt(task, number)
    if not printer.written:
        _explain(task, attempt, printer.streams)


def _explain(task: TaskRun, attempt: Attempt, streams: Sequence[Stream]) -> int:
    """Print the reason why there is no output, and return the exit code."""
    reason, code = _reason(task, attempt, streams)
    complain(reason)
    return code


def _reason(task: TaskRun, attempt: Attempt, streams: Sequence[Stream]) -> tuple[str, int]:
    what = " and ".join(STREAMS[stream] for stream in streams)
    if task.settings.get("capture") is False:
        return (
            f"no {what} of {task.key} was kept, because the task has capture=False; "
            "capture=True keeps it",
            FAILED,
        )
    if attempt.state is TasksMainStates.RUNNING:
        if task.kind == "function":
            return (
                f"{task.key} is running; the output of a function is recorded when it ends: to "
                "wait for it, pass -f",
                FAILED,
            )
        return f"{task.key} is running, and no {_or(what)} was found so far", DONE
    for stream in streams:
        path = attempt.stdout_path if stream == "stdout" else attempt.stderr_path
        if path is not None and not Path(path).exists():
            return (
                f"the {STREAMS[stream]} of {task.key} was written to {shown(path)}, which was "
                "removed or is on another host",
                FAILED,
            )
    if attempt.skipped:
        return f"{task.key} did not run, because a dependency failed", FAILED
    if attempt.reused:
        return f"{task.key} did not run, because the result of an earlier run was used", FAILED
    if attempt.exit_code is not None:
        return f"{task.key} wrote nothing to {what}", DONE
    return f"no {_or(what)} of {task.key} is recorded", FAILED


@contextmanager
def _allowed(path: str | None) -> Iterator[None]:
    """Raise a `CommandError` if there is no permission to read a file."""
    try:
        yield
    except PermissionError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None


def _or(what: str) -> str:
    return what.replace(" and ", " or ")


def _json(
    record: Path, task: TaskRun, attempt: Attempt, streams: Sequence[Stream]
) -> dict[str, Any]:
    """Return the output of an attempt as JSON; `complete` is false if only the end is known."""
    found: dict[str, Any] = {"task": task.key, "attempt": attempt.number}
    for stream in STREAMS:
        if stream not in streams:
            continue
        path = attempt.output_path(stream)
        try:
            with (
                _allowed(path),
                io.TextIOWrapper(open_recorded(path or "", record), "utf-8", "replace") as file,
            ):
                text = file.read()
            found[stream] = {"text": text, "path": path, "complete": attempt.ended is not None}
        except (OSError, ValueError):
            recorded_text, complete = recorded(record, attempt, stream)
            if recorded_text is None and _reason(task, attempt, [stream])[1] == DONE:
                recorded_text, complete = "", True  # it wrote nothing
            found[stream] = {"text": recorded_text, "path": None, "complete": complete}
    return found
