"""RADICAL-Pilot itself, for programs that ask for it: nothing else imports it in their process.

Its names are imported when they are first used (`rp` for `radical.pilot`, `ru` for
`radical.utils`), as the program's own `import radical.pilot` would do it: that makes an empty
directory, `.radical/utils` in `RADICAL_BASE` or the home directory, and lets RADICAL-Pilot adjust
`logging` and `os.fork`. It is untyped: from here on it is `Any`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any

MODULES = {"rp": "radical.pilot", "ru": "radical.utils"}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        # It warns where `logging` came first: its repair for `fork` is not needed, as
        # nothing here forks and goes on to log.
        warnings.filterwarnings("ignore", message="Import `radical` modules before `logging`")
        return import_module(MODULES[name])


def build(words: Mapping[str, Any], name: str) -> Any:
    """Return RADICAL-Pilot's description of a task, verified by RADICAL-Pilot.

    Args:
        words: The description as plain data, see `translate`.
        name: The task's name, for the error.

    Raises:
        ValueError: RADICAL-Pilot does not take it; the text has the reason.
    """
    rp = __getattr__("rp")
    try:
        description = rp.TaskDescription(dict(words))
        description.verify()
        rp.staging_directives.expand_description(description)
    except Exception as error:  # whatever RADICAL-Pilot raises
        raise ValueError(f"task {name!r}: task_description: {error}") from error
    return description
