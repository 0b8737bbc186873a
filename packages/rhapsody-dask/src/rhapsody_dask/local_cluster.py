"""Nanny that restores the program's environment variables.

Imported on first use, because it imports `distributed`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Nanny


class TidyNanny(Nanny):
    """Nanny that restores the program's environment variables.

    Dask's nanny sets variables for its worker, such as `OMP_NUM_THREADS=1`, in its own process and
    does not unset them. In a LocalCluster that process is the user's program, and all programs that
    it starts would inherit the variables. This class restores them once the worker has started.
    """

    async def instantiate(self) -> Any:
        """Start the worker, or its replacement if it was lost."""
        parent = {"__DASK_PARENT_PID": str(os.getpid())}
        with _variables.lent({**getattr(self, "pre_spawn_env", {}), **parent}):
            return await super().instantiate()


class _Variables:
    """Environment variables that several nannies may set at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._former: dict[str, str | None] = {}
        self._lent: dict[str, str] = {}

    @contextmanager
    def lent(self, variables: Mapping[str, str]) -> Iterator[None]:
        """Restore variables that the body sets, once no other body is active.

        A variable whose value is not the one that the body set is left unchanged.
        """
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
