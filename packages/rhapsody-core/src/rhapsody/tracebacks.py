"""Tracebacks of failed tasks as text: whole ones, and the last frames for summaries and logs.

Works for tracebacks of this process and for those that arrive as text from a worker process.
Frames of the user's code are preferred: an error in the depths of a library is found by the line
that called the library.
"""

from __future__ import annotations

import functools
import itertools
import linecache
import os
import re
import traceback
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from rhapsody.errors import text_of
from rhapsody.sdk.modules import Origins

SHOWN = 3
"""Maximum number of the user's own frames that are shown."""

OURS: str = os.path.dirname(__file__) + os.sep

_AWAITED = f"{OURS}task.py"
"""File whose last frame separates the code that awaited the task from the task itself."""

_FRAME = re.compile(r'^ *File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<function>.+)$')
_BEGIN = "Traceback (most recent call last):"
_BECAUSE = "\nThe above exception was the direct cause of the following exception:\n"
_WHILE = "\nDuring handling of the above exception, another exception occurred:\n"

SCRIPT_MODULE = "__rhapsody_script__"
"""Name of the module that `rhapsody run` imports a script as."""

_OF_SCRIPT = re.compile(rf"^([ |]*){SCRIPT_MODULE}\.", re.MULTILINE)


class Frame(NamedTuple):
    """A line of code that was running.

    Attributes:
        file: The file's path as Python knows it.
        line: The number of the line.
        function: The function's name.
        source: The line's text, empty if it is not known.
    """

    file: str
    line: int
    function: str
    source: str

    @property
    def location(self) -> str:
        """The file's base name and the line, such as `stats.py:12`."""
        return f"{os.path.basename(self.file)}:{self.line}"


def last_frames(error: BaseException | None) -> list[Frame]:
    """Return the user's own last frames, and the innermost one if it is another library's.

    Returns:
        The outermost first; nothing if the exception has no traceback.
    """
    if error is None:
        return []
    trace = error.__traceback__
    frames = _of_traceback(trace)
    own = [frame for frame in frames if is_users_code(frame.file)]
    if not own and (remote := _of_text(error.__cause__)):
        frames = remote
        own = [frame for frame in frames if is_users_code(frame.file)]
    others = [frame for frame in frames[-1:] if not frame.file.startswith(OURS)]
    return own[-SHOWN:] + (others if others != own[-1:] else [])


def location_of(error: BaseException | None) -> str | None:
    """Return the place in the user's code where an exception was raised, as `stats.py:12`."""
    own = [frame for frame in last_frames(error) if is_users_code(frame.file)]
    return own[-1].location if own else None


def as_lines(frames: Sequence[Frame], directory: str | None = None) -> list[str]:
    """Return frames as Python prints them.

    Args:
        frames: The frames.
        directory: Paths below it are shown relative to it.
    """
    lines = []
    for frame in frames:
        file = frame.file
        if directory is not None and file.startswith(directory + os.sep):
            file = file[len(directory) + 1 :]
        lines.append(f'File "{file}", line {frame.line}, in {frame.function}')
        source = frame.source or linecache.getline(frame.file, frame.line).strip()
        if source:
            lines.append(f"  {source}")
    return lines


class _Stack(traceback.StackSummary):
    """Frames of this process, followed by those of another one as the text that it sent."""

    remote: str = ""

    def __bool__(self) -> bool:
        return len(self) > 0 or bool(self.remote)

    def format(self, **options: Any) -> list[str]:
        """Format the frames, the outermost first."""
        return [*super().format(**options), *self.remote.splitlines(keepends=True)]


class _Earlier(traceback.TracebackException):
    """Exceptions of another process that led to one, as the text that it sent."""

    def __init__(self, text: str) -> None:
        super().__init__(Exception, Exception(), None)
        self._lines = text.splitlines(keepends=True)

    def format_exception_only(self, **_: Any) -> Generator[str]:
        """Return the lines."""
        yield from self._lines


def format_error(error: BaseException, trace: TracebackType | None = None) -> str:
    """Format an exception like Python, with the frames of all processes in one traceback.

    The frame in which Rhapsody raises the exception of a task again is left out, and classes of a
    script are named as if Python ran the script.

    Args:
        error: The exception.
        trace: Its traceback, if it is not the exception's own.
    """
    trace = trace or error.__traceback__
    whole = traceback.TracebackException(type(error), error, trace, compact=True)
    found: list[tuple[BaseException | None, traceback.TracebackException | None]] = [(error, whole)]
    while found:
        each, printed = found.pop()
        if each is None or printed is None:
            continue
        found += [(each.__cause__, printed.__cause__), (each.__context__, printed.__context__)]
        if isinstance(each, BaseExceptionGroup):
            found += zip(each.exceptions, printed.exceptions or (), strict=False)
        _join(printed, each.__cause__)
    return _OF_SCRIPT.sub(r"\1", "".join(whole.format()))


def _join(printed: traceback.TracebackException, cause: BaseException | None) -> None:
    """Replace a cause that is a traceback from another process by its frames."""
    stack = _Stack(each for each in printed.stack or () if each.filename != _AWAITED)
    text = f"\n{text_of(cause)}" if _is_remote(cause) else ""
    before, begin, last = text.rpartition(f"\n{_BEGIN}\n")
    if begin:
        lines = last.splitlines(keepends=True)
        stack.remote = "".join(itertools.takewhile(lambda line: line.startswith("  "), lines))
        printed.__cause__ = None
        because, during = before.rfind(_BECAUSE), before.rfind(_WHILE)
        earlier = _Earlier(before[before.find(_BEGIN) : max(because, during)])
        if because > during:
            printed.__cause__ = earlier
        elif during >= 0:
            printed.__context__, printed.__suppress_context__ = earlier, False
    printed.stack = stack


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from its first frame that is not Rhapsody's own."""
    part = trace
    while part is not None and part.tb_frame.f_code.co_filename.startswith(OURS):
        part = part.tb_next
    return trace if part is None else part


@functools.lru_cache(maxsize=1000)
def is_users_code(file: str) -> bool:
    """Return whether a file is neither Python's own, nor installed, nor part of Rhapsody."""
    try:
        return _origins().own(file)
    except OSError:  # a relative path, and the current directory was removed
        return True


_origins = functools.cache(Origins)


def _of_traceback(trace: TracebackType | None) -> list[Frame]:
    frames: list[Frame] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == _AWAITED:
            frames.clear()
        else:
            frames.append(Frame(code.co_filename, trace.tb_lineno, code.co_name, ""))
        trace = trace.tb_next
    return frames


def _of_text(cause: BaseException | None) -> list[Frame]:
    """Return the frames in the text of a traceback from another process."""
    if not _is_remote(cause):
        return []
    frames: list[Frame] = []
    lines = text_of(cause).splitlines()
    for number, line in enumerate(lines):
        if line.lstrip() == _BEGIN:  # of a chain of exceptions the last one counts
            frames.clear()
        elif found := _FRAME.match(line):
            source = "".join(lines[number + 1 : number + 2])
            source = "" if _FRAME.match(source) or not source.startswith("    ") else source
            frames.append(
                Frame(found["file"], int(found["line"]), found["function"], source.strip())
            )
    return frames


def _is_remote(cause: BaseException | None) -> bool:
    """Return whether an exception is a traceback from another process, ours or a library's."""
    return type(cause).__name__.endswith("RemoteTraceback")
