"""Nanny that leaves the program's environment as it was.

Imported on first use, because it needs `distributed`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Nanny


class TidyNanny(Nanny):
    """Nanny that leaves the program's environment as it was.

    Dask's nanny sets variables for its worker, such as `OMP_NUM_THREADS=1`, in its own process and
    leaves them there. Here that is the user's program, and everything else that it starts would
    inherit them. This class restores them once the worker has started.
    """

    async def instantiate(self) -> Any:
        """Start the worker, also after a loss."""
        parent = {"__DASK_PARENT_PID": str(os.getpid())}
        with _variables.lent({**getattr(self, "pre_spawn_env", {}), **parent}):
            return await super().instantiate()


class _Variables:
    """Variables of the environment that several nannies may set at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._former: dict[str, str | None] = {}
        self._lent: dict[str, str] = {}

    @contextmanager
    def lent(self, variables: Mapping[str, str]) -> Iterator[None]:
        """Restore these variables after the last block, unless they were changed meanwhile."""
        with self._lock:
            self._users += 1
            for name, value in variables.items():
                self._former.setdefault(name, os.environ.get(name))
                self._lent[name] = value
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._restore()

    def _restore(self) -> None:
        for name, former in self._former.items():
            if os.environ.get(name) != self._lent[name]:
                continue
            if former is None:
                del os.environ[name]
            else:
                os.environ[name] = former
        self._former.clear()
        self._lent.clear()


_variables = _Variables()
