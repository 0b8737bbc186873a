"""The one place where RADICAL-Pilot is imported. It is untyped: from here on it is `Any`."""

from __future__ import annotations

import os
import tempfile
import warnings
from importlib import import_module
from typing import Any

BASE = "RADICAL_BASE"
"""The variable that says where RADICAL-Pilot keeps its counters."""


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        # It warns where `logging` came first: its repair for `fork` is not needed, as
        # nothing here forks and goes on to log.
        warnings.filterwarnings("ignore", message="Import `radical` modules before `logging`")
        return import_module(name)


def _import_all() -> tuple[Any, Any]:
    """Imports it; it makes a directory at its import, which goes to a temporary one."""
    former = os.environ.get(BASE)
    with tempfile.TemporaryDirectory() as directory:
        os.environ[BASE] = directory
        try:
            found = _imported("radical.pilot"), _imported("radical.utils")
        finally:
            if former is None:
                del os.environ[BASE]
            else:
                os.environ[BASE] = former
    keep_counters_in(None)
    return found


def keep_counters_in(directory: str | None) -> None:
    """Has RADICAL-Pilot keep its counters in a directory, as `RADICAL_BASE` does at its import.

    Args:
        directory: The directory; `None` for where it would keep them by itself. It is
            made when it is needed.
    """
    base = directory or os.environ.get(BASE) or os.path.expanduser("~")
    ids: Any = import_module("radical.utils.ids")
    ids._BASE = os.path.join(base, ".radical", "utils", "")


rp: Any
ru: Any
rp, ru = _import_all()
