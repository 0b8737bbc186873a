"""Which backends an engine works with, from what its user gave, started."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rhapsody.backends.base import BaseExecutionBackend, Session
from rhapsody.backends.discovery import get_backend

DRY_RUN = "noop"
EMBEDDED = "local"


async def attach(
    backend: Any, backends: Any, *, dry_run: bool, work_dir: Path
) -> dict[str, BaseExecutionBackend]:
    """Starts the backends of an engine; the first one is the default.

    What a backend that is started here keeps in files goes into `work_dir`.

    If one cannot be started, those that this call started are shut down again.

    Raises:
        TypeError: Something is not a backend.
        ValueError: Nobody registered a name, or two backends have the same.
        RuntimeError: A dry run with a backend that does work.
    """
    given = _given(backend, backends)
    if not given:
        if backend is not None or backends is not None:
            raise ValueError(
                "backend: the list that was given is empty; leave it out for the embedded "
                f"{EMBEDDED!r} backend"
            )
        given = [(None, DRY_RUN if dry_run else EMBEDDED)]
    started: dict[str, BaseExecutionBackend] = {}
    ours: list[BaseExecutionBackend] = []
    try:
        for name, one in given:
            made = get_backend(one) if isinstance(one, str) else one
            if not isinstance(made, BaseExecutionBackend) and inspect.isawaitable(made):
                made = await made  # `Backend.create(...)`, not awaited
                ours += [made] if isinstance(made, BaseExecutionBackend) else []
            if not isinstance(made, BaseExecutionBackend):
                raise _not_a_backend(made)
            label = name or made.name or type(made).__name__
            if dry_run and made.name != DRY_RUN:
                raise RuntimeError(
                    f"dry_run=True runs nothing, and backend {label!r} would: leave `backend` "
                    "out, or give a NoopExecutionBackend"
                )
            if label in started:
                raise ValueError(
                    f"two backends are called {label!r}; give them names of your own: "
                    "backends={'one': ..., 'two': ...}"
                )
            state = made.state()
            if inspect.isawaitable(state):
                state = await state
            if str(state) != "running":
                _settle_in(made, work_dir)
                ours.append(made)
            if inspect.isawaitable(made):
                made = await made
            started[label] = made
    except BaseException:
        for one in ours:
            await one.shutdown()
        raise
    return started


def _given(backend: Any, backends: Any) -> list[tuple[str | None, Any]]:
    given: list[tuple[str | None, Any]] = []
    if isinstance(backend, list | tuple):
        given += [(None, one) for one in backend]
    elif backend is not None:
        given.append((None, backend))
    if isinstance(backends, Mapping):
        given += list(backends.items())
    elif isinstance(backends, Iterable) and not isinstance(backends, str):
        given += [(None, one) for one in backends]
    elif backends is not None:
        raise TypeError(f"backends must be a list or a dict of names to backends, got {backends!r}")
    return given


def _settle_in(backend: BaseExecutionBackend, work_dir: Path) -> None:
    """Gives a backend that has chosen no place for its files the engine's."""
    session = getattr(backend, "session", None)
    if isinstance(session, Session) and session.path == os.getcwd():
        session.path = os.path.abspath(work_dir)


def _not_a_backend(value: object) -> TypeError:
    what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    hint = f"; make one: {value.__name__}()" if isinstance(value, type) else ""
    return TypeError(
        f"backend must be a backend object or a name such as 'local', got {what}{hint}. "
        "`rhapsody backends` lists the names"
    )
