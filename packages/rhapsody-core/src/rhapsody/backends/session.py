"""What a backend object is known by; plugins import it from `rhapsody.backends.base`."""

from __future__ import annotations

import os
import tempfile
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
        path: Where the program's files are: the current directory, unless the backend
            says otherwise, or an engine starts the backend: then the engine's `work_dir`.
            Not made here. What the backend writes goes where `directory` says.
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

    @property
    def temporary(self) -> str:
        """Where `directory` is while nobody has chosen `path`; goes when the backend ends."""
        return os.path.join(tempfile.gettempdir(), self.uid)

    def directory(self, name: str) -> str:
        """Where a file or directory of this name goes that the backend makes; not made here.

        In `path` where an engine or the backend has chosen it, else in a directory of
        this session's own in the system's place for temporary files, which
        `ManagedBackend.shutdown` removes: never in the current directory.
        """
        chosen = self.path != self._made_in
        return os.path.join(self.path if chosen else self.temporary, name)


class BackendState(str):
    """The state of a backend: a string that may be awaited as well."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, BackendState]:
        return self
        yield  # makes this a generator, which never suspends
