"""Tracebacks of failed tasks as text: in full, or only the last frames for summaries and logs.

The functions accept tracebacks of this process and those that arrive as text from a worker process.
Frames of the user's code are preferred: for an error inside a library, the line that called the
library is shown.
"""

from __future__ import annotations

import functools
import linecache
import os
import re
import traceback
from collections.abc import Sequence
from functools import partial
from types import TracebackType

from rhapsody.errors import Frame, describe_error, made_in_time, text_of
from rhapsody.masking import mask
from rhapsody.sdk.modules import Origins

MAX_FRAMES = 3
"""Maximum number of the user's own frames that are shown."""

PACKAGE_DIRECTORY: str = os.path.dirname(__file__) + os.sep

_AWAITED = f"{PACKAGE_DIRECTORY}task.py"
"""File that defines `TaskFuture`.

In the traceback of a task's exception, the last frame in this file separates the code that awaited
the future from the code of the task.
"""

_FRAME = re.compile(r'^ *File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<function>.+)$')
_BEGIN = "Traceback (most recent call last):"

SCRIPT_MODULE = "__rhapsody_script__"
"""Module name under which `rhapsody run` imports a script."""

_OF_SCRIPT = re.compile(rf"^([ |]*){SCRIPT_MODULE}\.", re.MULTILINE)


def last_frames(error: BaseException | None) -> list[Frame]:
    """Return the last frames in the user's code, and the innermost frame if it is in a library.

    Returns:
        The frames, the outermost first; none if the exception has no traceback.
    """
    if error is None:
        return []
    trace = error.__traceback__
    frames = _of_traceback(trace)
    own = [frame for frame in frames if is_users_code(frame.file)]
    if not own and (remote := _of_text(error.__cause__)):
        frames = remote
        own = [frame for frame in frames if is_users_code(frame.file)]
    others = [frame for frame in frames[-1:] if not frame.file.startswith(PACKAGE_DIRECTORY)]
    return own[-MAX_FRAMES:] + (others if others != own[-1:] else [])


def location_of(error: BaseException | None) -> str | None:
    """Return the last line of the user's code in an exception's traceback, as `stats.py:12`.

    Returns:
        The file and line; `None` if the traceback contains none of the user's code.
    """
    own = [frame for frame in last_frames(error) if is_users_code(frame.file)]
    return own[-1].location if own else None


def as_lines(frames: Sequence[Frame], directory: str | None = None) -> list[str]:
    """Return frames as Python prints them.

    Args:
        frames: The frames.
        directory: The directory below which paths are shown as relative paths; `None` to show all
            paths unchanged.
    """
    lines = []
    for frame in frames:
        file = frame.file
        if directory is not None and file.startswith(directory + os.sep):
            file = file[len(directory) + 1 :]
        lines.append(f'File "{file}", line {frame.line}, in {frame.function}')
        source = frame.source or linecache.getline(frame.file, frame.line).strip()
        if source:
            lines.append(f"  {mask(source, ())}")
    return lines


def format_error(error: BaseException, trace: TracebackType | None = None) -> str:
    """Format an exception and its causes as Python does.

    Secrets are masked. Frames in which Rhapsody re-raises a task's exception are omitted, and
    classes of a script that `rhapsody run` imported are named as if Python had run the script.

    Args:
        error: The exception.
        trace: The traceback to use instead of the exception's own.

    Returns:
        The text, which has several lines.
    """
    trace = trace or error.__traceback__
    try:
        text = made_in_time(partial(_formatted, error, trace), type(error))
    except TimeoutError:
        lines = traceback.format_tb(trace)
        text = "".join([f"{_BEGIN}\n", *lines, f"{describe_error(error, with_module=True)}\n"])
    return mask(_OF_SCRIPT.sub(r"\1", text))


def _formatted(error: BaseException, trace: TracebackType | None) -> str:
    whole = traceback.TracebackException(type(error), error, trace, compact=True)
    todo: list[traceback.TracebackException | None] = [whole]
    while todo:
        if (each := todo.pop()) is not None:
            each.stack[:] = [frame for frame in each.stack if frame.filename != _AWAITED]
            todo += [each.__cause__, each.__context__, *(each.exceptions or ())]
    return "".join(whole.format())


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of Rhapsody at its beginning.

    If all frames are Rhapsody's, the traceback is returned unchanged.
    """
    part = trace
    while part is not None and part.tb_frame.f_code.co_filename.startswith(PACKAGE_DIRECTORY):
        part = part.tb_next
    return trace if part is None else part


@functools.lru_cache(maxsize=1000)
def is_users_code(file: str) -> bool:
    """Return True if a file is neither Python's own, nor installed, nor part of Rhapsody."""
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
        if line.lstrip() == _BEGIN:  # only the last exception of a chain is used
            frames.clear()
        elif found := _FRAME.match(line):
            source = "".join(lines[number + 1 : number + 2])
            source = "" if _FRAME.match(source) or not source.startswith("    ") else source
            frames.append(
                Frame(found["file"], int(found["line"]), found["function"], source.strip())
            )
    return frames


def _is_remote(cause: BaseException | None) -> bool:
    """Return True if an exception contains a traceback from another process as its text."""
    return type(cause).__name__.endswith("RemoteTraceback")
