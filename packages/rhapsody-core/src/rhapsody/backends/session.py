"""What a backend object is known by; plugins import it from `rhapsody.backends.base`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any


def _current() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed, which matters where nobody chooses another
        return os.curdir


@dataclass(slots=True)
class Session:
    """What one backend object's life is known by.

    Attributes:
        uid: Unique over backends and processes.
        path: Where the backend keeps files of its own. Not created here. The current
            directory, unless the backend says otherwise, or an engine starts the
            backend: then the engine's `work_dir`.
    """

    uid: str = field(default_factory=lambda: f"rhapsody.session.{uuid.uuid4().hex[:12]}")
    path: str = field(default_factory=_current)
    _made_in: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._made_in = self.path

    @property
    def chosen(self) -> bool:
        """Whether somebody has changed `path` since this was made."""
        return self.path != self._made_in

    def directory(self, name: str) -> str:
        """Where something of this name goes: in `path`, below the uid where nobody chose it."""
        if self.chosen:
            return f"{self.path}{os.sep}{name}"
        return f"{self.path}{os.sep}{self.uid}{os.sep}{name}"


class BackendState(str):
    """The state of a backend: a string that may be awaited as well."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, BackendState]:
        return self
        yield  # makes this a generator, which never suspends
