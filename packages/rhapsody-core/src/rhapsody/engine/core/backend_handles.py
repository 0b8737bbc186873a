"""Backends of an engine: their start, lookup by name, and the engine's data about each."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from rhapsody.aio import is_cancelling
from rhapsody.backends.base import BaseExecutionBackend, Session
from rhapsody.backends.discovery import check_attributes, get_backend, normalize_name
from rhapsody.capabilities import Capabilities
from rhapsody.engine.configuration.options import EngineOptions
from rhapsody.environments import SETTINGS, environment_fault, in_environment
from rhapsody.errors import describe_error
from rhapsody.known import RANKS
from rhapsody.resources import Resources
from rhapsody.staging.stager import Stager
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription, TaskKind

logger: logging.Logger = logging.getLogger("rhapsody.engine")

DRY_RUN = "noop"
EMBEDDED = "local"


_KINDS: dict[TaskKind, str] = {
    "function": "ordinary functions",
    "async_function": "coroutine functions",
    "executable": "executables",
    "service": "executables as services",
    "function_service": "functions as services",
}
_DEFAULTS = Resources()


class WouldRunError(RuntimeError):
    """A dry run was given a backend that runs tasks."""


class BackendHandle:
    """Backend attached to an engine, with the data that the engine keeps about it.

    Args:
        backend: The backend, which has been started.
        name: The backend's name in the engine.

    Attributes:
        capabilities: The backend's declared capabilities.
        dry: True if the backend completes tasks without running them.
        here: True if the backend runs commands on this machine.
        shares_memory: True if the backend runs functions in the process of the engine.
        may_end: True if the backend has a limited walltime; see the backend's `seconds_left`.
        states: The backend's `StateMapper`.
        native: The canonical states by native state, from `states.native`; empty if `states` has no
            such attribute.
        occupied: Number of the backend's tasks that count toward `max_pending`.
    """

    __slots__ = (
        "backend",
        "capabilities",
        "dry",
        "here",
        "may_end",
        "name",
        "native",
        "occupied",
        "shares_memory",
        "states",
    )

    def __init__(self, backend: BaseExecutionBackend, name: str) -> None:
        self.backend: BaseExecutionBackend = backend
        self.name: str = name
        self.capabilities: Capabilities = getattr(backend, "capabilities", Capabilities())
        self.dry: bool = getattr(backend, "dry", False) is True
        self.here: bool = type(backend).name == EMBEDDED
        self.shares_memory: bool = getattr(backend, "shares_memory", False) is True
        self.may_end: bool = not self.dry and backend.seconds_left() is not None
        self.states: Any = backend.get_task_states_map()
        self.native: Mapping[Any, TasksMainStates] = getattr(self.states, "native", {})
        self.occupied: int = 0

    def lacking(self, kind: TaskKind, description: TaskDescription) -> str | None:
        """Describe a feature that a task needs and the backend lacks; `None` if there is none."""
        capabilities, resources = self.capabilities, description.get("resources")
        if not capabilities.runs(kind):
            return _KINDS[kind]
        if "cwd" in description and not capabilities.cwd:
            return f"cwd={description['cwd']!r}"
        if _inside(description) and not capabilities.function_environments:
            name = next(name for name in SETTINGS if name in description)
            return (
                f"{name}={description[name]!r} for functions, as the backend {EMBEDDED!r} does (or "  # type: ignore[literal-required]
                "write a script, and run it as an executable task)"
            )
        if resources is None:
            return None
        if resources.ranks > 1 and "function" in kind and not capabilities.mpi_functions:
            others = " and ".join(map(repr, RANKS))
            return f"functions with ranks={resources.ranks}, as {others} do"
        for name in ("cores", "gpus", "memory", "ranks"):
            value = getattr(resources, name)
            if value != getattr(_DEFAULTS, name) and name not in capabilities.resources:
                return f"{name}={value!r}"
        if isinstance(resources.cores, float) and "fractional_cores" not in capabilities.resources:
            return f"fractional cores (cores={resources.cores!r})"
        return None

    def stops(self, kind: TaskKind, description: TaskDescription) -> bool:
        """Return True if the backend can cancel a task of this kind while it is running."""
        return _inside(description) or self.capabilities.cancellation(kind) == "running"

    def environment_fault(self, description: TaskDescription) -> str | None:
        """Return why the environment of a task cannot be used; `None` if no reason is known."""
        if self.dry:
            return None
        if "container" in description and not self.capabilities.sandboxes:
            return f"container={description['container']!r} needs a backend with sandboxes"
        resources = description.get("resources")
        if resources is not None and resources.ranks > 1 and _inside(description):
            return (
                "functions with several ranks run in the program's own Python environment: omit "
                "container, conda, venv and modules, or use an executable"
            )
        shared = self.capabilities.shared_file_system
        return environment_fault(description, shared=shared, here=self.here)

    def unknown_settings(self, description: TaskDescription) -> list[Any]:
        """Return the keys of `task_backend_specific_kwargs` that the backend does not know."""
        given = description["task_backend_specific_kwargs"]
        return self.capabilities.unknown_settings(given) if given else []

    async def shut_down(self) -> str | None:
        """Shut down the backend; return a description of its error, or `None` on success."""
        try:
            result = self.backend.shutdown()
            if inspect.isawaitable(result):
                await result
        except (Exception, asyncio.CancelledError) as error:  # the others must be shut down, too
            if is_cancelling():
                raise
            return f"backend {self.name!r} failed to shut down: {describe_error(error)}"
        return None

    def main_state(self, native: Any) -> TasksMainStates | None:
        """Return the canonical state for a native state, or `None` for an unknown native state."""
        try:
            main = self.states.to_main_state(native)
        except (ValueError, TypeError):
            return None
        return TasksMainStates(main)


def find(backends: Mapping[str, BackendHandle], name: str) -> BackendHandle:
    """Return the attached backend with a name; names are compared as in the backend registry.

    Raises:
        ValueError: No backend with this name is attached.
    """
    found = backends.get(name)
    if found is None:
        key = normalize_name(name)
        found = next((one for own, one in backends.items() if normalize_name(own) == key), None)
    if found is None:
        raise ValueError(
            f"no backend {name!r} is attached to this engine (attached: "
            f"{', '.join(map(repr, backends))}); attach it with "
            "WorkflowEngine.create(backends=[...])"
        )
    return found


async def attach(
    options: EngineOptions, *, stager: Stager, journal: str, owned: list[BaseExecutionBackend]
) -> dict[str, BaseExecutionBackend]:
    """Start the backends of an engine; the first one is the default.

    If a backend cannot be started, the backends that this call has started are shut down again.

    Args:
        options: The engine's options.
        stager: The engine's stager; backends that this call starts use its directory.
        journal: The path of the engine's journal, or an empty string.
        owned: List to which this call adds the backends that it starts, for a later `shut_down`.

    Returns:
        The backends by their names in the engine.

    Raises:
        TypeError: A value is not a backend.
        ValueError: A name is not registered or is used twice, or the list of backends is empty.
        WouldRunError: A dry run was given a backend that runs tasks.
    """  # noqa: DOC501 - a TypeError
    dry_run, given = options.dry_run, _given(options.backend, options.backends)
    if not given:
        if options.backend is not None or options.backends is not None:
            raise ValueError(
                f"the list of backends is empty; omit it to use the {EMBEDDED!r} backend"
            )
        given = [(None, DRY_RUN if dry_run else EMBEDDED)]
    started: dict[str, BaseExecutionBackend] = {}
    try:
        for name, one in given:
            made = get_backend(one) if isinstance(one, str) else one
            if not isinstance(made, BaseExecutionBackend) and inspect.isawaitable(made):
                made = await made  # `Backend.create(...)`, not awaited
                owned += [made] if isinstance(made, BaseExecutionBackend) else []
            if not isinstance(made, BaseExecutionBackend):
                raise _not_a_backend(made)
            label = name or _label(one, made)
            check_attributes(made, f"backend {label!r}")
            if dry_run and type(made).name != DRY_RUN:
                raise WouldRunError(
                    f"dry_run=True cannot use backend {label!r}, which runs tasks; omit `backend` "
                    "or pass a NoopExecutionBackend"
                )
            if label in started:
                raise ValueError(
                    f"two backends are named {label!r}; rename one of them with "
                    f"{type(made).__name__}(..., name='second'), or name both with "
                    "backends={'first': ..., 'second': ...}"
                )
            state = made.state()
            if inspect.isawaitable(state):
                state = await state
            if str(state) != "running":
                _settle_in(made, stager, journal)
                owned.append(made)
            if inspect.isawaitable(made):
                made = await made
            started[label] = made
    except BaseException:
        await shut_down(owned)
        raise
    return started


async def shut_down(owned: list[BaseExecutionBackend]) -> None:
    """Shut down the backends that were started for an engine whose start failed."""
    while owned:
        one = owned.pop()
        try:
            await one.shutdown()
        except (
            Exception
        ) as error:  # the others must still be shut down, and the cause of the failed start raised
            logger.error(
                "backend %r failed to shut down: %s", _label(None, one), describe_error(error)
            )


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
        raise TypeError(
            f"backends must be a list of backends or a dict of backends by name, got {backends!r}"
        )
    return given


def _label(given: Any, made: BaseExecutionBackend) -> str:
    """Return the label under which an engine lists a backend, if the user has set none.

    Args:
        given: The name or object that the user passed, or `None`.
        made: The backend.
    """
    if isinstance(given, str) and normalize_name(given) != normalize_name(made.name):
        return given.strip()
    return made.name or type(made).__name__


def _settle_in(backend: BaseExecutionBackend, stager: Stager, journal: str) -> None:
    """Set the session's journal, and its directory unless the user chose one."""
    session = getattr(backend, "session", None)
    if isinstance(session, Session):
        session.journal = journal
    if isinstance(session, Session) and not session.chosen:
        alone = backend.name in (EMBEDDED, DRY_RUN)  # these keep no files except sandboxes
        session.path = os.path.abspath(stager.work_dir if alone else stager.settle())
        session.earlier = stager.earlier


def _not_a_backend(value: object) -> TypeError:
    what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    hint = f"; create an instance: {value.__name__}()" if isinstance(value, type) else ""
    return TypeError(
        f"backend must be a backend object or a name such as 'local', got {what}{hint}. "
        "`rhapsody backends` lists the names"
    )


def _inside(description: TaskDescription) -> bool:
    """Return True if the task is a function that runs in an environment."""
    return description.get("function") is not None and in_environment(description)
