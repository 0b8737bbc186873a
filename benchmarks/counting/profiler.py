"""Notes the calls of our functions in one process, on all threads that begin after it.

Our functions are those whose files lie in one of the directories that `COUNTED` names. What
Python reports as a call is one: for a coroutine or generator each time it is resumed, too. Left
out are comprehensions, which are calls in some versions of Python only, and `__del__`, which
comes when what it belongs to is over.

This file is used in three ways: imported; imported on Dask's workers; and, copied under the
name `sitecustomize`, run by every Python that starts, where it notes the calls of
RADICAL-Pilot's client alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from types import CodeType, FrameType
from typing import Any

COUNTED = "RHAPSODY_COUNTED"
"""The environment variable with the directories of our functions, as in a `PATH`."""

Calls = Counter[tuple[str, str]]
"""How often each function was called, by its file and its name."""

_ours: tuple[str, ...] = ()
_codes: list[CodeType] = []


def _note(frame: FrameType, event: str, _: Any) -> None:
    if event == "call" and frame.f_code.co_filename.startswith(_ours):
        _codes.append(frame.f_code)  # appending is safe among threads


def start() -> None:
    """Notes from now on what this thread and new threads call."""
    global _ours
    _ours = tuple(os.path.join(each, "") for each in os.environ[COUNTED].split(os.pathsep))
    threading.setprofile(_note)
    sys.setprofile(_note)


def take() -> Calls:
    """Returns the calls since the last time."""
    count = len(_codes)
    calls: Calls = Counter(
        (code.co_filename, code.co_qualname)
        for code in _codes[:count]
        if code.co_name[0] != "<" and code.co_name != "__del__"
    )
    del _codes[:count]
    return calls


if __name__ == "sitecustomize" and "rhapsody_radical.client" in sys.orig_argv:
    start()
