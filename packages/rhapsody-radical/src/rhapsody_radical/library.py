"""The one place where RADICAL-Pilot is imported. It is untyped: from here on it is `Any`."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        # It warns where `logging` came first: its repair for `fork` is not needed, as
        # nothing here forks and goes on to log.
        warnings.filterwarnings("ignore", message="Import `radical` modules before `logging`")
        return import_module(name)


rp: Any = _imported("radical.pilot")
ru: Any = _imported("radical.utils")
