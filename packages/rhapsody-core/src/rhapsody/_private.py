"""The private interfaces of Python's standard library that core uses.

Each is here because no public interface does the same, and has a test in `tests/core`.
"""

from __future__ import annotations

import abc
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    import asyncio
    from collections.abc import Sequence

environment: dict[bytes, bytes] = os.environb._data  # type: ignore[attr-defined]
"""The variables of `os.environ`.

Comparing this with another dict takes a hundredth of the time that comparing `os.environ` takes.
"""


def registered_with(cls: abc.ABCMeta) -> list[type]:
    """Return the classes that were registered as subclasses of an abstract class."""
    registry = abc._get_dump(cls)[0]  # type: ignore[attr-defined]
    return [each for each in (made() for made in registry) if isinstance(each, type)]


def actions_of(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """Return the arguments of a parser."""
    return parser._actions


def is_unseen(future: asyncio.Future[Any]) -> bool:
    """Return True if a future has failed, and nothing has asked for its exception."""
    return bool(future._log_traceback)


def mark_seen(future: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging the exception of a future that nothing has asked for."""
    future._log_traceback = False
