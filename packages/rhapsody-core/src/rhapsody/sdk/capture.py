"""Capture of the output of function tasks, which normally also reaches the standard streams.

While a backend runs, `sys.stdout` and `sys.stderr` are each wrapped in a `Tee`. A context variable
contains the recorder of the running task, so each task has its own recorder, even if tasks run in
threads and coroutines of one process. The output of threads and programs that a task starts, and of
C code that bypasses Python, is not captured.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import os
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal, TextIO

from rhapsody.context import Setting
from rhapsody.data import OUTPUT_FILES
from rhapsody.sdk.runner import Output
from rhapsody.task import TaskDescription

__all__ = ["CapturedOutput", "Recorder", "recording", "streams"]

MAX_CAPTURED = 1 << 20
"""Maximum number of characters of one stream of a task that are kept in memory."""

MAX_PACKED = 4 << 20
"""Maximum size in bytes, after compression, of the rest of such a stream."""

MAX_END = 4000
"""Number of last characters that are kept of a stream whose rest is larger than that."""

MAX_TEES = 16
"""Number of the most recent wrappers of standard streams, which are not freed.

`print` borrows `sys.stdout` and does not hold it in Python 3.11, and in 3.12 and 3.13
before April 2025: if the wrapper were freed while a thread prints, the process would crash
(python/cpython#130163).
"""

Name = Literal["stdout", "stderr"]
NAMES: tuple[Name, Name] = ("stdout", "stderr")

Capture = bool | Literal["files", "quiet"]
"""The setting `capture` of a task."""


class TruncatedText(str):
    """Output that is too large to be kept in memory: its beginning, and a note about the rest.

    Args:
        beginning: The beginning of the output.
        note: The note, which follows it, and the end of the output if the rest was not kept.
        rest: The rest of the output, compressed with zlib; `None` if it was not kept.
        size: The number of characters of the output.
    """

    def __new__(
        cls, beginning: str, note: str = "", rest: bytes | None = None, size: int = 0
    ) -> TruncatedText:
        made = super().__new__(cls, beginning + note)
        made._kept = len(beginning)
        made._rest = rest
        made.size = size
        return made

    _kept: int
    _rest: bytes | None
    size: int

    @property
    def stored(self) -> int:
        """The number of characters of `whole`."""
        return len(self) if self._rest is None else self.size

    def whole(self) -> str:
        """Return the whole output or, if its rest was not kept, its beginning and the note."""
        if self._rest is None:
            return str(self)
        return self[: self._kept] + zlib.decompress(self._rest).decode("utf-8", "replace")


class CapturedText:
    """Text that one task prints to one stream.

    Args:
        path: The file to which all text is written once it exceeds `MAX_CAPTURED`. With or without
            a file, the text beyond `MAX_CAPTURED` is kept compressed, up to `MAX_PACKED`.
        whole: True to write all text to the file, whatever its size; `result` then returns the
            path.
    """

    def __init__(self, path: str | None, *, whole: bool = False) -> None:
        self._path = path
        self._whole = whole and path is not None
        self._parts: list[str] = []
        self._size = 0
        self._packed = bytearray()  # the text beyond `MAX_CAPTURED`, compressed
        self._packer: Any = None
        self._end = ""  # the end of the text if the compressed text became too large
        self._file: TextIO | None = None
        self._lock = threading.Lock()
        self._closed = False

    def write(self, text: str) -> None:
        """Add text, unless `result` has been called.

        Raises:
            TypeError: `text` is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            if self._closed:
                return
            kept = self._size
            self._size += len(text)
            if self._size <= MAX_CAPTURED and not self._whole:
                self._parts.append(text)
                return
            if kept < MAX_CAPTURED and not self._whole:
                self._parts.append(text[: MAX_CAPTURED - kept])
                text = text[MAX_CAPTURED - kept :]
            if self._path is not None:
                self._spill(self._path).write(text)
            if not self._whole:
                self._pack(text, first=kept <= MAX_CAPTURED)

    def _pack(self, text: str, *, first: bool) -> None:
        """Compress text, unless the compressed text would become too large."""
        if first and self._packer is None:
            self._packer = zlib.compressobj(1)
        if self._packer is not None:
            self._packed += self._packer.compress(text.encode("utf-8", "replace"))
            if len(self._packed) <= MAX_PACKED:
                return
            self._packer = None
            self._packed.clear()
        self._end = (self._end + text[-MAX_END:])[-MAX_END:]

    @property
    def in_file(self) -> bool:
        """True if text was written to the file."""
        return self._file is not None

    def result(self) -> str:
        """Return the text or, with `whole`, the path of the file. Text written later is ignored."""
        with self._lock:
            self._closed = True
            if self._whole and self._path is not None:
                self._spill(self._path).close()
                return self._path
            text = "".join(self._parts)
            self._parts = []
            if self._file is not None:
                self._file.close()
            if self._size > MAX_CAPTURED:
                return self._truncated(text)
            return text

    def _truncated(self, text: str) -> TruncatedText:
        note, rest = f"[truncated: the whole output has {self._size} characters", None
        if self._file is not None:
            note += f", which are in {self._path} until the sandbox is removed"
        if self._packer is not None:
            rest = bytes(self._packed + self._packer.flush())
            note += "; `rhapsody logs` prints all of it if the run is recorded"
        else:
            note += f"; its last {len(self._end)} characters follow"
        return TruncatedText(text, f"\n{note}]\n{self._end}", rest, self._size)

    def _spill(self, path: str) -> TextIO:
        if self._file is None:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):  # the task may have created anything there
                os.unlink(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._file = os.fdopen(
                os.open(path, flags, 0o600), "w", encoding="utf-8", errors="replace", newline=""
            )
            self._file.writelines(self._parts)
        return self._file


class Recorder:
    """Recorder of the output of one attempt of a task, to pass to `recording`. Thread-safe.

    Args:
        directory: The directory for large output, which is created when it is needed. Without a
            directory, output beyond `MAX_CAPTURED` is dropped.
        capture: The task's setting `capture`: with `"files"` all output is written to files in
            `directory`, with `"quiet"` output is not passed on to the standard streams.
    """

    def __init__(self, directory: str | None = None, capture: Capture = True) -> None:
        self._quiet_in = os.getpid() if capture == "quiet" else None
        self._directory = directory
        self._files = capture == "files"
        self._records: dict[Name, CapturedText] = {}  # most tasks print nothing
        self._ended = False

    def write(self, name: Name, text: str) -> None:
        """Record text for one of the streams, unless `result` has been called."""
        if not self._ended:
            (self._records.get(name) or self._record(name)).write(text)

    def _record(self, name: Name) -> CapturedText:
        file = OUTPUT_FILES[NAMES.index(name)]
        path = None if self._directory is None else os.path.join(self._directory, file)
        return self._records.setdefault(name, CapturedText(path, whole=self._files))

    @property
    def quiet(self) -> bool:
        """True if output is recorded but not passed on to the standard streams.

        Always False in forked processes: they record nothing, so they must pass output on.
        """
        return self._quiet_in is not None and self._quiet_in == os.getpid()

    @property
    def in_files(self) -> str | None:
        """The directory of the output files, or `None` if no output was written to a file."""
        written = any(record.in_file for record in self._records.values())
        return self._directory if written else None

    def result(self, name: Name) -> str:
        """Return the text of a stream, or the path of its file if all output goes to files."""
        self._ended = True
        if name in self._records or self._files:
            return self._record(name).result()
        return ""

    def results(self) -> tuple[str, str, str | None]:
        """Return `result` for both streams, and `in_files`."""
        if not (self._records or self._files):  # most tasks print nothing
            self._ended = True
            return "", "", None
        return self.result("stdout"), self.result("stderr"), self.in_files

    def report(self, task: TaskDescription) -> None:
        """Write the output into the task's description.

        Raises:
            OSError: A file cannot be written.
        """
        task["stdout"], task["stderr"], directory = self.results()
        if directory is not None:
            task["sandbox"] = directory


_recorder: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar(
    "rhapsody_recorder", default=None
)


def recording(recorder: Recorder | None) -> Setting[Recorder | None]:
    """Return a context manager that records the output of its `with` block in `recorder`.

    If `recorder` is `None`, the output is not recorded. The manager sets a context variable, so
    other threads and coroutines are not affected. The standard streams must be wrapped; see
    `streams`.
    """
    return Setting(_recorder, recorder)


def keep(name: Name, text: str) -> None:
    """Record text as if the current task had printed it. Do nothing outside of tasks."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.write(name, text)


record_in: Callable[[Recorder | None], object] = _recorder.set
"""Set the recorder for the rest of the current `contextvars.Context`; see `recording`."""


class CapturedOutput(Output):
    """Context manager that records the output of a call in its `with` block; see `recording`.

    Args:
        directory: The directory for large output, which is created when it is needed.
        capture: The task's setting `capture`.
    """

    stdout: str | None
    stderr: str | None
    directory: str | None

    def __init__(self, directory: str | None, capture: Capture) -> None:
        streams.ensure()
        self._recorder = None if capture is False else Recorder(directory, capture)

    def __enter__(self) -> CapturedOutput:
        self._token = _recorder.set(self._recorder)
        return self

    def __exit__(self, *error: object) -> None:
        _recorder.reset(self._token)
        recorder = self._recorder
        if recorder is not None:
            self.stdout, self.stderr, self.directory = recorder.results()


class Tee:
    """Wrapper of a standard stream: records the text of tasks and passes text on.

    The text of quiet tasks is recorded but not passed on. The same is true of the text of all tasks
    while the interpreter exits.

    The wrapper continues to pass text on after the real stream has been restored, because log
    handlers and redirections may still refer to the wrapper.

    Args:
        name: The name of the stream.
        stream: The real stream.
    """

    def __init__(self, name: Name, stream: Any) -> None:
        self.rhapsody_stream: Any = stream
        self.rhapsody_name: Name = name
        self._on_terminal = False
        with suppress(ValueError):  # the stream is closed
            self._on_terminal = hasattr(stream, "isatty") and stream.isatty()

    def write(self, text: str) -> int:
        """Write text to the real stream, and record it for the current task."""
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
            return len(text)  # recorded; a closed stdout must not fail the task
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the real stream."""
        if self.rhapsody_stream is None or (streams.exiting and _recorder.get() is not None):
            return
        try:
            self.rhapsody_stream.flush()
        except BrokenPipeError:
            if _recorder.get() is None:
                raise

    def close(self) -> None:
        """Close the real stream; in a task, only flush it, because other tasks write to it."""
        if _recorder.get() is None:
            self.rhapsody_stream.close()
        else:
            self.flush()

    def __enter__(self) -> Tee:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def buffer(self) -> Any:
        """The binary stream. Data that a task writes to this stream is recorded as text."""
        buffer = self.rhapsody_stream.buffer
        recorder = _recorder.get()
        return buffer if recorder is None else _Bytes(self.rhapsody_name, buffer, recorder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rhapsody_stream, name)


class _Bytes:
    """Wrapper of the `buffer` of a standard stream for one task."""

    def __init__(self, name: Name, buffer: Any, recorder: Recorder) -> None:
        self._name: Name = name
        self._buffer = buffer
        self._recorder = recorder

    def write(self, data: Any) -> Any:
        self._recorder.write(self._name, bytes(data).decode("utf-8", "replace"))
        if streams.exiting or self._recorder.quiet:
            return len(data)
        return self._buffer.write(data)

    def flush(self) -> None:
        if not streams.exiting:
            self._buffer.flush()

    def close(self) -> None:  # also called when a wrapper is garbage-collected
        self.flush()

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)


class Streams:
    """The standard streams of this process, wrapped while backends run. Thread-safe.

    Attributes:
        terminal: While a display draws on the terminal, a function that writes text there and
            returns True if it has written the text; otherwise `None`.
        exiting: True if the interpreter is exiting.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._tees: deque[Tee] = deque(maxlen=MAX_TEES)
        self.terminal: Callable[[str], bool] | None = None
        self.exiting: bool = False

    def acquire(self) -> None:
        """Wrap the standard streams. Each call requires a later call of `release`."""
        with self._lock:
            self._users += 1
        self.ensure()

    def ensure(self) -> None:
        """Wrap the streams again if they were replaced. Called before each task."""
        for name in NAMES:
            stream = getattr(sys, name)
            if type(stream) is not Tee:
                _replace(name, self._tee(name, stream))

    def release(self) -> None:
        """Undo one call of `acquire`. The last `release` restores the real streams."""
        with self._lock:
            self._users -= 1
            if not self._users:
                for name in NAMES:
                    _replace(name, self.real(name))

    def real(self, name: Name) -> Any:
        """Return the real stream inside any wrappers."""
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
        """Stop passing on the text of tasks, because the interpreter will close the streams."""
        self.exiting = True


def _replace(name: Name, stream: Any) -> None:
    """Replace a standard stream, including in log handlers that write to it."""
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
