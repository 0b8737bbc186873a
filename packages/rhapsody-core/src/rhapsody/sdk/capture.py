"""Keeps what tasks print while it still goes where it always went.

While a backend runs, `sys.stdout` and `sys.stderr` are wrapped; the wrapper asks
the context it is called in whose task that is. Works for threads and coroutines
side by side. Threads that a task starts by itself, programs that it starts and
C code that writes past Python are not kept, only passed on.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal, TextIO

from rhapsody.context import Setting
from rhapsody.data import OUTPUT_FILES
from rhapsody.sdk.runner import Output
from rhapsody.task import TaskDescription

__all__ = ["CapturedOutput", "Recorder", "recording", "streams"]

LIMIT = 1 << 20
"""Characters of one stream of one task that are kept in memory."""

TEES = 16
"""How many of the wrappers of standard streams are kept for good.

`print` borrows `sys.stdout` and does not hold it in Python 3.11, and in 3.12 and 3.13
before April 2025: were the wrapper freed while a thread prints, the process would crash
(python/cpython#130163).
"""

Name = Literal["stdout", "stderr"]
NAMES: tuple[Name, Name] = ("stdout", "stderr")

Capture = bool | Literal["files", "quiet"]
"""What a task's description says about its output."""


class Record:
    """What one task prints to one stream.

    Args:
        path: The file for what exceeds `LIMIT`; without one the rest is dropped.
        whole: All of it goes to the file, and `result` gives the path.
    """

    def __init__(self, path: str | None, *, whole: bool = False) -> None:
        self._path = path
        self._whole = whole and path is not None
        self._parts: list[str] = []
        self._size = 0
        self._file: TextIO | None = None
        self._lock = threading.Lock()
        self._closed = False

    def write(self, text: str) -> None:
        """Adds text. What comes after `result` is ignored."""
        with self._lock:
            if self._closed:
                return
            kept = self._size
            self._size += len(text)
            if self._size <= LIMIT and not self._whole:
                self._parts.append(text)
                return
            if kept < LIMIT and not self._whole:
                self._parts.append(text[: LIMIT - kept])
                text = text[LIMIT - kept :]
            if self._path is not None:
                self._spill(self._path).write(text)

    @property
    def in_file(self) -> bool:
        """Whether some of it is in the file."""
        return self._file is not None

    def result(self) -> str:
        """What was printed, or the path of its file; nothing is added after this."""
        with self._lock:
            self._closed = True
            if self._whole and self._path is not None:
                self._spill(self._path).close()
                return self._path
            text = "".join(self._parts)
            self._parts = []
            if self._file is not None:
                self._file.close()
                return f"{text}\n[cut: all {self._size} characters are in {self._path}]\n"
            if self._size > LIMIT:
                return f"{text}\n[cut: {self._size} characters were printed]\n"
            return text

    def _spill(self, path: str) -> TextIO:
        if self._file is None:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):  # the task may have put anything there, a FIFO say
                os.unlink(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._file = os.fdopen(
                os.open(path, flags, 0o600), "w", encoding="utf-8", errors="replace", newline=""
            )
            self._file.writelines(self._parts)
        return self._file


class Recorder:
    """Keeps what one task prints; one for each attempt, for `recording`. Any thread.

    Args:
        directory: The task's sandbox, for large output; made when there is some.
        files: All output goes to files there.
        quiet: It is kept only, and does not go where it always went.
    """

    def __init__(
        self, directory: str | None = None, *, files: bool = False, quiet: bool = False
    ) -> None:
        self._quiet_in = os.getpid() if quiet else None
        self._directory = directory
        self._files = files
        self._records: dict[Name, Record] = {}  # most tasks print nothing
        self._ended = False

    def write(self, name: Name, text: str) -> None:
        """Keep text that goes to one of the streams. What comes after a result is ignored."""
        if not self._ended:
            self._record(name).write(text)

    def _record(self, name: Name) -> Record:
        record = self._records.get(name)
        if record is None:
            file = OUTPUT_FILES[NAMES.index(name)]
            path = None if self._directory is None else os.path.join(self._directory, file)
            record = self._records.setdefault(name, Record(path, whole=self._files))
        return record

    @property
    def quiet(self) -> bool:
        """Whether text is kept only; not in processes that the task forks, which keep none."""
        return self._quiet_in is not None and self._quiet_in == os.getpid()

    @property
    def in_files(self) -> str | None:
        """The directory that holds output of the task's, `None` where none does."""
        written = any(record.in_file for record in self._records.values())
        return self._directory if written else None

    def result(self, name: Name) -> str:
        """Return what was printed to a stream, or with `files` the path of its file."""
        self._ended = True
        if name in self._records or self._files:
            return self._record(name).result()
        return ""

    def report(self, task: TaskDescription) -> None:
        """Write what was printed into the task's description.

        Raises:
            OSError: Its files cannot be written.
        """
        if not (self._records or self._files):
            self._ended = True
            task["stdout"] = task["stderr"] = ""
            return
        task["stdout"], task["stderr"] = map(self.result, NAMES)
        if self.in_files is not None:
            task["sandbox"] = self.in_files


def recorder_for(capture: Capture, directory: str | None = None) -> Recorder | None:
    """Return what keeps the output of a task whose description says so; `None` for nothing."""
    if capture is False:
        return None
    return Recorder(directory, files=capture == "files", quiet=capture == "quiet")


_recorder: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar(
    "rhapsody_recorder", default=None
)


def recording(recorder: Recorder | None) -> Setting[Recorder | None]:
    """Keep what a `with` block prints in `recorder`; with `None` it is only passed on.

    In the block's context, so threads and coroutines side by side each have their own.
    The standard streams must be wrapped: see `streams`.
    """
    return Setting(_recorder, recorder)


def keep(name: Name, text: str) -> None:
    """Keep text as if the task that runs here had printed it; without one it is nobody's."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.write(name, text)


def record_in(recorder: Recorder | None) -> None:
    """Keep what is printed in the rest of this `contextvars.Context`, see `recording`."""
    _recorder.set(recorder)


class CapturedOutput(Output):
    """Keeps what the call in a `with` prints, on whatever thread, while others print, too.

    Args:
        directory: The directory for large output; made when there is some.
        capture: As in the task's description.
    """

    stdout: str | None
    stderr: str | None
    directory: str | None

    def __init__(self, directory: str | None, capture: Capture) -> None:
        streams.ensure()
        self._recorder = recorder_for(capture, directory)
        self._setting = recording(self._recorder)

    def __enter__(self) -> CapturedOutput:
        self._setting.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._setting.__exit__(*error)
        recorder = self._recorder
        if recorder is not None:
            self.stdout, self.stderr = map(recorder.result, NAMES)
            self.directory = recorder.in_files


class Tee:
    """Stands in for a standard stream: keeps a task's text and passes all of it on.

    It goes on passing text to the stream after it was taken away, since handlers
    and redirections may hold it.

    Args:
        name: Which stream it stands for.
        stream: The real one.
    """

    def __init__(self, name: Name, stream: Any) -> None:
        self.rhapsody_stream: Any = stream
        self.rhapsody_name: Name = name
        self._on_terminal = False
        with suppress(ValueError):  # it is closed
            self._on_terminal = hasattr(stream, "isatty") and stream.isatty()

    def write(self, text: str) -> int:
        """Writes text to the real stream, and to the record of the task that runs here."""
        recorder = _recorder.get()
        if recorder is not None:
            recorder.write(self.rhapsody_name, text)
            if streams.exiting or recorder.quiet:
                return len(text)
        if self.rhapsody_stream is None:
            return len(text)
        terminal = streams.terminal
        if terminal is not None and self._on_terminal and terminal(text):
            return len(text)
        try:
            written: int = self.rhapsody_stream.write(text)
        except BrokenPipeError:
            if recorder is None:
                raise
            return len(text)  # kept with the task, which must not fail with a closed stdout
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the real stream."""
        if self.rhapsody_stream is None or (streams.exiting and _recorder.get() is not None):
            return
        try:
            self.rhapsody_stream.flush()
        except BrokenPipeError:
            if _recorder.get() is None:
                raise

    @property
    def buffer(self) -> Any:
        """The stream for bytes; what a task writes there is kept as text."""
        buffer = self.rhapsody_stream.buffer
        recorder = _recorder.get()
        return buffer if recorder is None else _Bytes(self.rhapsody_name, buffer, recorder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rhapsody_stream, name)


class _Bytes:
    """Stands in for the `buffer` of a standard stream, for one task."""

    def __init__(self, name: Name, buffer: Any, recorder: Recorder) -> None:
        self._name: Name = name
        self._buffer = buffer
        self._recorder = recorder

    def write(self, data: Any) -> Any:
        self._recorder.write(self._name, bytes(data).decode("utf-8", "replace"))
        if self._recorder.quiet:
            return len(data)
        return self._buffer.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)


class Streams:
    """Wraps the standard streams of this process, for all who run tasks in it. Any thread.

    Attributes:
        terminal: Takes the text that would go to a terminal, while somebody draws on it; says
            whether it did.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._tees: deque[Tee] = deque(maxlen=TEES)
        self.terminal: Callable[[str], bool] | None = None
        self.exiting: bool = False

    def acquire(self) -> None:
        """Wrap the standard streams for one more user, who calls `release` when it ends."""
        with self._lock:
            self._users += 1
        self.ensure()

    def ensure(self) -> None:
        """Wrap them again where somebody has put others in their place; before each task."""
        for name in NAMES:
            stream = getattr(sys, name)
            if type(stream) is not Tee:
                _replace(name, self._tee(name, stream))

    def release(self) -> None:
        """Put the real streams back after the last user."""
        with self._lock:
            self._users -= 1
            if not self._users:
                for name in NAMES:
                    _replace(name, self.real(name))

    def real(self, name: Name) -> Any:
        """Return the stream that is wrapped."""
        stream = getattr(sys, name)
        while type(stream) is Tee:
            stream = stream.rhapsody_stream
        return stream

    def _tee(self, name: Name, stream: Any) -> Tee:
        for tee in self._tees:
            if tee.rhapsody_name == name and tee.rhapsody_stream is stream:
                return tee
        self._tees.append(Tee(name, stream))
        return self._tees[-1]

    def exit(self) -> None:
        """Pass on no more of what tasks print: the interpreter is about to close the streams."""
        self.exiting = True


def _replace(name: Name, stream: Any) -> None:
    """Sets a standard stream, also for the log handlers that write to it."""
    former = getattr(sys, name)
    setattr(sys, name, stream)
    if former is None or stream is None or former is stream:
        return
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is former:
                handler.setStream(stream)


streams: Streams = Streams()
"""The wrapped streams of this process."""

atexit.register(streams.exit)
