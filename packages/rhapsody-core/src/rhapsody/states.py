"""Canonical states of tasks, and their mapping to the native states of each backend.

A backend registers its table when its module is imported or when the backend is created. `noop` and
`local`, whose native states are the canonical ones, are always registered. The engine defines the
allowed transitions.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from enum import StrEnum
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple


class TasksMainStates(StrEnum):
    """The canonical states of a task. Each member is a string equal to its name."""

    PENDING = "PENDING"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


_TERMINAL = (TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED)
_ALWAYS = (*_TERMINAL, TasksMainStates.RUNNING)


class _Table(NamedTuple):
    """Immutable mapping of one backend's task states in both directions."""

    native: Mapping[Any, TasksMainStates]
    preferred: Mapping[TasksMainStates, Any]
    terminal: tuple[Any, ...]


def _canonical(name: Any) -> TasksMainStates:
    if isinstance(name, str):
        try:
            return TasksMainStates(name.upper())
        except ValueError:
            pass
    known = ", ".join(TasksMainStates)
    raise ValueError(f"unknown canonical state {name!r}; canonical states: {known}")


def _table(key: str, states: Mapping[TasksMainStates, list[Any]]) -> _Table:
    native: dict[Any, TasksMainStates] = {}
    for main, words in states.items():
        for word in words:
            if not isinstance(word, Hashable) or word is None or word == "":
                raise ValueError(
                    f"backend {key!r}: a native state must be a string or an enum member, "
                    f"got {word!r} for {main}"
                )
            if native.setdefault(word, main) is not main:
                raise ValueError(
                    f"backend {key!r}: native state {word!r} cannot stand for both "
                    f"{native[word]} and {main}"
                )
    for main in _ALWAYS:
        if not states.get(main):
            raise ValueError(f"backend {key!r} needs at least one native state for {main}")
    return _Table(
        native=MappingProxyType(native),
        preferred=MappingProxyType({main: words[0] for main, words in states.items() if words}),
        terminal=tuple(word for main in _TERMINAL for word in dict.fromkeys(states[main])),
    )


def _words(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _key(backend: Any) -> str:
    """Return the key under which a backend, given as name, object or class, is registered."""
    name = backend if isinstance(backend, str) else _own_name(backend)
    if not name.strip():
        raise ValueError("backend must be a name, a backend object or a class, got an empty name")
    return name.strip().lower().replace("-", "_")


def _own_name(backend: Any) -> str:
    cls = backend if isinstance(backend, type) else type(backend)
    given = getattr(backend, "name_is_given", False) is True
    name = getattr(cls if given else backend, "name", None)
    return name if isinstance(name, str) and name else cls.__name__


def _none_registered(key: str) -> str:
    with _lock:
        known = ", ".join(sorted(_tables))
    return (
        f"no states are registered for backend {key!r} (registered: {known}); call "
        "StateMapper.register_backend_tasks_states"
    )


def _registered_class(key: str) -> Any:
    """Return the backend class that is registered under a name; import it if necessary.

    Raises:
        ValueError: No class is registered under the name, or it cannot be imported.
    """
    try:
        return import_module(_REGISTRY).BackendRegistry.get_backend_class(key)
    except ValueError as error:
        raise ValueError(_none_registered(key)) from error
    except ImportError as error:
        raise ValueError(
            f"cannot read the states of backend {key!r}: importing its class failed: {error}"
        ) from error


_REGISTRY = "rhapsody.backends.discovery"
"""Module of the backend registry; imported when needed, because it depends on this module."""

_CANONICAL_TABLE = _table("canonical", {main: [main] for main in TasksMainStates})
_OWN_STATES = ("initialized_state", "running_state", "shutdown_state")

_lock = threading.Lock()
_tables: dict[str, _Table] = {
    "noop": _CANONICAL_TABLE,
    "local": _CANONICAL_TABLE,
}
_own: dict[str, Mapping[str, Any]] = {}


class StateMapper:
    """Mapping between the native task states of one backend and the canonical ones.

    A backend is given by name, object or class. Case is ignored in names, and `-` and `_` are
    equivalent. The name of an object or class is its `name` attribute if that is a non-empty
    string, otherwise the name of the class. If the user chose the object's name
    (`ManagedBackend.name_is_given`), the `name` of its class is used. If no states are registered
    under the name and the backend's `canonical_states` attribute is `True`, the backend's native
    states are the canonical ones.

    If a backend's name is given and its class has not been imported, the mapper imports the class,
    because classes register their states when they are imported.

    A mapper is not affected by later registrations, and may be used from any thread.

    Args:
        backend: A registered name, a backend object or a backend class.

    Raises:
        ValueError: No states are registered for the backend, or the class of a registered name
            cannot be imported.

    Attributes:
        backend: The name that the states are registered under.
        DONE: The preferred native state for a task that succeeded.
        FAILED: The preferred native state for a task that failed.
        CANCELED: The preferred native state for a task that was canceled.
        RUNNING: The preferred native state for a task that is running.
        terminal_states: The native states that end a task, in the order done, failed, canceled.
        native: Read-only mapping from every native state to its canonical state.
        backend_states: The backend's own native states (`initialized`, `running`, `shutdown`) if
            it registered them, otherwise empty.
    """

    __slots__ = (
        "CANCELED",
        "DONE",
        "FAILED",
        "RUNNING",
        "_preferred",
        "backend",
        "backend_states",
        "native",
        "terminal_states",
    )

    def __init__(self, backend: Any) -> None:
        key = _key(backend)
        table = _tables.get(key)
        if table is None and isinstance(backend, str):
            # Classes register their states when they are imported.
            backend = _registered_class(key)
            table = _tables.get(key)
            if table is None:
                key = _key(backend)
                table = _tables.get(key)
        if table is None:
            if getattr(backend, "canonical_states", False) is not True:
                raise ValueError(_none_registered(key))
            table = _CANONICAL_TABLE
        own = _own.get(key)
        self.backend: str = key
        self.native: Mapping[Any, TasksMainStates] = table.native
        self.terminal_states: tuple[Any, ...] = table.terminal
        self.backend_states: Mapping[str, Any] = MappingProxyType({}) if own is None else own
        self._preferred = table.preferred
        self.DONE: Any = table.preferred[TasksMainStates.DONE]
        self.FAILED: Any = table.preferred[TasksMainStates.FAILED]
        self.CANCELED: Any = table.preferred[TasksMainStates.CANCELED]
        self.RUNNING: Any = table.preferred[TasksMainStates.RUNNING]

    def to_main_state(self, native: Any) -> TasksMainStates:
        """Return the canonical state for a native state.

        Details may follow the name of a native state after a colon, such as the reason for which a
        job waits in `"SUBMITTED: PartitionDown"`.

        Raises:
            ValueError: The native state is unknown.
        """
        try:
            if isinstance(native, str) and native not in self.native:
                native = native.partition(": ")[0]
            return self.native[native]
        except (KeyError, TypeError):  # TypeError: not hashable
            known = ", ".join(str(word) for word in self.native)
            raise ValueError(
                f"backend {self.backend!r} has no native state {native!r}; native states: {known}"
            ) from None

    def get_backend_state(self, main: TasksMainStates | str) -> Any:
        """Return the preferred native state for a canonical state.

        Args:
            main: A member of `TasksMainStates` or its name, in any case.

        Raises:
            ValueError: There is no such canonical state, or the backend has no
                native state for it.
        """
        state = _canonical(main)
        try:
            return self._preferred[state]
        except KeyError:
            known = ", ".join(self._preferred)
            raise ValueError(
                f"backend {self.backend!r} registered no native state for {state}, only for {known}"
            ) from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.backend!r}>"

    @classmethod
    def register_backend_tasks_states(
        cls,
        backend: Any,
        done_state: Any,
        failed_state: Any,
        canceled_state: Any,
        running_state: Any,
        **additional: Any,
    ) -> None:
        """Register a backend's native task states, replacing an earlier registration.

        A native state is a string or an enum member. Each argument is one native state or a list of
        them, the preferred one first. Example of a full table::

            StateMapper.register_backend_tasks_states(
                "queueing",
                done_state="FINISHED",
                failed_state=["ERROR", "NODE_FAIL"],
                canceled_state="REMOVED",
                running_state=["ACTIVE", "STAGING_OUT"],
                submitted=["QUEUED", "HELD"],
            )

        Args:
            backend: The backend's name, object or class.
            done_state: States of tasks that succeeded.
            failed_state: States of tasks that failed.
            canceled_state: States of tasks that were canceled.
            running_state: States of tasks that are running.
            **additional: Native states for other canonical states. Each keyword is the name of a
                canonical state, in any case. The keywords `done`, `failed`, `canceled` and
                `running` add native states to those above.

        Raises:
            ValueError: A name is not a canonical state, a native state is unhashable, `None` or
                empty, a native state has two meanings, or one of the four states above has no
                native state.
        """
        key = _key(backend)
        states = {
            TasksMainStates.DONE: _words(done_state),
            TasksMainStates.FAILED: _words(failed_state),
            TasksMainStates.CANCELED: _words(canceled_state),
            TasksMainStates.RUNNING: _words(running_state),
        }
        for name, value in additional.items():
            states.setdefault(_canonical(name), []).extend(_words(value))
        table = _table(key, states)
        with _lock:
            _tables[key] = table

    @classmethod
    def register_backend_tasks_states_with_defaults(cls, backend: Any) -> None:
        """Register the canonical states as a backend's native task states."""
        key = _key(backend)
        with _lock:
            _tables[key] = _CANONICAL_TABLE

    @classmethod
    def register_backend_states(cls, backend: Any, *task_states: Any, **states: Any) -> None:
        """Register task states or, with three keywords, the backend's own states.

        This is the former name of `register_backend_tasks_states`, with the same arguments. If it
        is called with `initialized_state`, `running_state` and `shutdown_state`, it registers the
        states of the backend itself; see `backend_states`.

        Raises:
            TypeError: Arguments are missing or unknown, or task states are mixed with the backend's
                own states.
            ValueError: See `register_backend_tasks_states`.
        """
        if "initialized_state" not in states and "shutdown_state" not in states:
            cls.register_backend_tasks_states(backend, *task_states, **states)
            return
        if task_states or set(states) != set(_OWN_STATES):
            raise TypeError(
                "register_backend_states: to register the backend's own states, pass exactly the "
                f"keywords {', '.join(_OWN_STATES)}; got "
                f"{', '.join([*map(repr, task_states), *states])}"
            )
        key = _key(backend)
        own = {name.removesuffix("_state"): states[name] for name in _OWN_STATES}
        with _lock:
            _own[key] = MappingProxyType(own)

    @classmethod
    def register_backend_states_with_defaults(cls, backend: Any) -> None:
        """Register `initialized`, `running` and `shutdown` as the backend's own states.

        If no task states are registered for the backend, the canonical ones are registered as well.
        In earlier projects, the method only registered the canonical task states.
        """
        key = _key(backend)
        own = {name.removesuffix("_state"): name.removesuffix("_state") for name in _OWN_STATES}
        with _lock:
            _own[key] = MappingProxyType(own)
            _tables.setdefault(key, _CANONICAL_TABLE)
