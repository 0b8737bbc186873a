"""The canonical states of a task, and how each backend's own words map to them.

The registry here holds tables, filled by backends when they are imported or made;
`noop` and `local`, whose words are the canonical ones, are in it from the start.
Which state may follow which is the engine's business.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from enum import StrEnum
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple


class TasksMainStates(StrEnum):
    """The canonical states of a task. Each member is its own name as a string."""

    PENDING = "PENDING"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


_TERMINAL = (TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED)
_ALWAYS = (*_TERMINAL, TasksMainStates.RUNNING)


class _Table(NamedTuple):
    """One backend's task states, in both directions; never changed once made."""

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
    raise ValueError(f"no canonical state is called {name!r}; there are {known}")


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
                    f"backend {key!r}: native state {word!r} cannot mean both "
                    f"{native[word]} and {main}"
                )
    for main in _ALWAYS:
        if not states.get(main):
            raise ValueError(f"backend {key!r} needs a native state for {main}")
    return _Table(
        native=MappingProxyType(native),
        preferred=MappingProxyType({main: words[0] for main, words in states.items() if words}),
        terminal=tuple(word for main in _TERMINAL for word in dict.fromkeys(states[main])),
    )


def _words(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _key(backend: Any) -> str:
    """What a backend is registered under, from its name, object or class."""
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
        f"no states are registered for backend {key!r}; there are some for {known}. "
        "Register them with StateMapper.register_backend_tasks_states"
    )


def _registered_class(key: str) -> Any:
    """The class that is registered under a name, imported if it was not yet.

    Raises:
        ValueError: There is none, or it cannot be imported.
    """
    try:
        return import_module(_REGISTRY).BackendRegistry.get_backend_class(key)
    except ValueError as error:
        raise ValueError(_none_registered(key)) from error
    except ImportError as error:
        raise ValueError(
            f"the states of backend {key!r} come with its class, which cannot be imported: {error}"
        ) from error


_REGISTRY = "rhapsody.backends.discovery"
"""Asked by its name, when it is needed: this module imports nothing of ours."""

_CANONICAL_TABLE = _table("canonical", {main: [main] for main in TasksMainStates})
_OWN_STATES = ("initialized_state", "running_state", "shutdown_state")

_lock = threading.Lock()
_tables: dict[str, _Table] = {"noop": _CANONICAL_TABLE, "local": _CANONICAL_TABLE}
_own: dict[str, Mapping[str, Any]] = {}


class StateMapper:
    """Translates between one backend's native task states and the canonical ones.

    A backend is meant by its name, an object of it or its class. Names are
    compared without case, and `-` and `_` are the same. An object or class goes
    by its `name` attribute where that is a non-empty string, else by the name of
    its class; an object that was given its name (`ManagedBackend.name_is_given`) goes by
    its class. Where nothing is registered under that and its `canonical_states`
    attribute is `True`, its native states are the canonical ones.

    A registered name whose class nobody has imported yet imports it, since classes
    register their states then.

    A mapper keeps the states that were registered when it was made, and may be
    used from any thread.

    Args:
        backend: A registered name, a backend object or a backend class.

    Raises:
        ValueError: No states are registered for it; says for which there are. Or
            a registered name's class cannot be imported; says why.

    Attributes:
        backend: The name that the states are registered under.
        DONE: The preferred native state for a task that succeeded.
        FAILED: The same for one that failed.
        CANCELED: The same for one that was cancelled.
        RUNNING: The same for one that runs.
        terminal_states: The native states that end a task, in the order done,
            failed, canceled.
        native: Every native state and its canonical one, read-only. For those who
            translate often: an unknown state is a `KeyError` here.
        backend_states: The backend's own native states (`initialized`, `running`,
            `shutdown`) where it registered them, else empty.
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
        """The canonical state that a native one means.

        Raises:
            ValueError: The native state is unknown.
        """
        try:
            return self.native[native]
        except (KeyError, TypeError):  # TypeError: something that cannot be a key
            known = ", ".join(str(word) for word in self.native)
            raise ValueError(
                f"backend {self.backend!r} has no native state {native!r}; there are {known}"
            ) from None

    def get_backend_state(self, main: TasksMainStates | str) -> Any:
        """The preferred native state for a canonical one.

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
        """Registers a backend's native task states; an earlier registration is replaced.

        Every state is given as one native state, a string or an enum member, or as
        a list of them, the preferred one for the way back first. A full native
        table is written so:

            StateMapper.register_backend_tasks_states(
                "queueing",
                done_state="FINISHED",
                failed_state=["ERROR", "NODE_FAIL"],
                canceled_state="REMOVED",
                running_state=["ACTIVE", "STAGING_OUT"],
                submitted=["QUEUED", "HELD"],
            )

        Args:
            backend: The backend's name, an object of it or its class.
            done_state: For tasks that succeeded.
            failed_state: For tasks that failed.
            canceled_state: For tasks that were cancelled.
            running_state: For tasks that run.
            **additional: For further canonical states by their names, in any case;
                a name of the four above adds less preferred native states to it.

        Raises:
            ValueError: A name that is no canonical state, a native state with two
                meanings, or none at all for one of the four.
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
        """Registers the canonical states as a backend's native ones."""
        key = _key(backend)
        with _lock:
            _tables[key] = _CANONICAL_TABLE

    @classmethod
    def register_backend_states(cls, backend: Any, *task_states: Any, **states: Any) -> None:
        """Registers task states, or the backend's own states by their keywords.

        The older spelling of `register_backend_tasks_states`, with the same
        arguments. With `initialized_state`, `running_state` and `shutdown_state`
        it registers the states of the backend itself, see `backend_states`.

        Raises:
            TypeError: Arguments are missing, or belong to neither or to both.
            ValueError: As `register_backend_tasks_states`.
        """
        if "initialized_state" not in states and "shutdown_state" not in states:
            cls.register_backend_tasks_states(backend, *task_states, **states)
            return
        if task_states or set(states) != set(_OWN_STATES):
            raise TypeError(
                f"a backend's own states are {', '.join(_OWN_STATES)}, by keyword; "
                f"got {', '.join([*map(repr, task_states), *states])}"
            )
        key = _key(backend)
        own = {name.removesuffix("_state"): states[name] for name in _OWN_STATES}
        with _lock:
            _own[key] = MappingProxyType(own)

    @classmethod
    def register_backend_states_with_defaults(cls, backend: Any) -> None:
        """Registers `initialized`, `running` and `shutdown` as the backend's own states.

        Its task states become the canonical ones where none are registered, which
        is what this name did when it was the only one.
        """
        key = _key(backend)
        own = {name.removesuffix("_state"): name.removesuffix("_state") for name in _OWN_STATES}
        with _lock:
            _own[key] = MappingProxyType(own)
            _tables.setdefault(key, _CANONICAL_TABLE)
