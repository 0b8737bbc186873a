"""Description of where the code of a backend stands, for the message of a check that hangs.

A task that waits is a chain of coroutines, each of which awaits the next. A description names the
last places of a chain or of a thread's stack that belong neither to the standard library nor to the
kit, because these are the places that the author of a backend can change.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterable
from itertools import dropwhile
from types import FrameType
from typing import Any

_PLACES = 3  # of one task or thread
_GROUPS = 10
_WRAPPERS = {f"{__package__}._suite", f"{__package__}._tools"}  # the body of a check is in others


def describe_wait(check: asyncio.Task[Any]) -> str:
    """Return lines that describe for which call a check waits, and where other code stands.

    Call this on the loop's thread.

    Args:
        check: The asyncio task of the check.
    """
    frames = dropwhile(lambda frame: not _is_of_kit(frame), _chain(check))
    own: list[FrameType] = []
    called: list[FrameType] = []
    for frame in frames:
        (called if called or not _is_of_kit(frame) else own).append(frame)
    if called and not _is_of_library(called[0]):
        lines = [f"`{called[0].f_code.co_qualname}` had not returned; it waited in"]
    else:  # the line of the check, which may wait for reports or for other tasks
        called = [f for f in own if f.f_globals["__name__"] not in _WRAPPERS][-1:]
        lines = ["The check waited in"]
    lines += [f"  {text}" for text in _texts(f for f in called if not _is_of_library(f))]
    others = Counter(
        tuple(texts)
        for task in asyncio.all_tasks()
        if task is not check and (texts := _own(_chain(task)))
    )
    lines += _listed("tasks", others)
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads = Counter(
        (f"thread {names.get(identity, identity)}", *texts)
        for identity, frame in sys._current_frames().items()
        if identity != threading.get_ident() and (texts := _own(_stack(frame)))
    )
    lines += _listed("threads", threads)
    return "\n".join(lines)


def _listed(what: str, groups: Counter[tuple[str, ...]]) -> list[str]:
    lines = [f"Other {what}:"] if groups else []
    for texts, count in groups.most_common(_GROUPS):
        first, *rest = texts
        lines += [f"  {f'{count} times ' if count > 1 else ''}{first}", *(f"    {t}" for t in rest)]
    if len(groups) > _GROUPS:
        lines.append(f"  and {len(groups) - _GROUPS} others")
    return lines


def _chain(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames of a waiting task's coroutines, the outermost first."""
    frames: list[FrameType] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        for prefix in ("cr", "gi", "ag"):
            frame = getattr(waiting, f"{prefix}_frame", None)
            if frame is not None:
                frames.append(frame)
                following = "gi_yieldfrom" if prefix == "gi" else f"{prefix}_await"
                waiting = getattr(waiting, following)
                break
        else:  # a future, or the iterator of one
            break
    return frames


def _stack(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of a thread, the outermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def _own(frames: Iterable[FrameType]) -> list[str]:
    """Return descriptions of the last places outside the standard library, the kit and pytest."""
    return _texts(f for f in frames if not (_is_of_library(f) or _is_of_kit(f) or _is_of_pytest(f)))


def _texts(frames: Iterable[FrameType]) -> list[str]:
    places = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return [f"{p.filename}:{p.lineno} in {p.name}: {p.line}" for p in places][-_PLACES:]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_of_kit(frame: FrameType) -> bool:
    return _package(frame) == __package__


def _is_of_library(frame: FrameType) -> bool:
    return _package(frame) in sys.stdlib_module_names


def _is_of_pytest(frame: FrameType) -> bool:
    return _package(frame).startswith(("pytest", "_pytest", "execnet"))
