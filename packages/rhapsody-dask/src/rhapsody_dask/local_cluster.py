"""Dask's nanny, but for what it does to the program's environment.

Imported on first use: it needs `distributed`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Nanny


class TidyNanny(Nanny):
    """Leaves the program's environment as it was.

    A nanny of Dask sets variables for its worker, such as `OMP_NUM_THREADS=1`, in the process
    it runs in, which is the user's program here, and leaves them there: everything else that
    the program starts would get them. This one takes them back once its worker has started.
    """

    async def instantiate(self) -> Any:
        """Starts the worker, the first one or another after a loss."""
        parent = {"__DASK_PARENT_PID": str(os.getpid())}
        with _variables.lent({**getattr(self, "pre_spawn_env", {}), **parent}):
            return await super().instantiate()


class _Variables:
    """The variables of the environment that nannies set, several of them at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._former: dict[str, str | None] = {}
        self._lent: dict[str, str] = {}

    @contextmanager
    def lent(self, variables: Mapping[str, str]) -> Iterator[None]:
        """Restores these variables after the last block, but for those set to something else."""
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
