"""RADICAL-Pilot's objects as a program sees them: they live in its client, a process of its own.

Attributes are the last values that the client sent; methods are called there, and block as
RADICAL-Pilot's do. What is not reachable this way is reached by `run_in_client`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from rhapsody_radical.wire import FLAT


class Kind(NamedTuple):
    """What of a class of RADICAL-Pilot's is reachable.

    Attributes:
        attributes: Sent by the client with each change.
        methods: Called there.
    """

    attributes: tuple[str, ...]
    methods: frozenset[str]


def _kind(attributes: str, methods: str) -> Kind:
    return Kind(tuple(attributes.split()), frozenset(methods.split()))


KINDS = {
    "session": _kind(
        "uid path base",
        "list_resources get_resource_config list_pilot_managers list_task_managers "
        "get_pilot_managers get_task_managers inject_metadata",
    ),
    "pilot_manager": _kind(
        "uid", "list_pilots get_pilots submit_pilots wait_pilots cancel_pilots kill_pilots"
    ),
    "task_manager": _kind(
        "uid scheduler",
        "list_pilots get_pilots add_pilots remove_pilots list_tasks get_tasks submit_tasks "
        "submit_raptors submit_workers wait_tasks cancel_tasks pilot_rpc",
    ),
    "pilot": _kind(
        "uid state resource resource_details nodelist description stdout stderr rest_url "
        "pilot_sandbox resource_sandbox session_sandbox client_sandbox",
        "wait cancel submit_tasks submit_raptors register_service prepare_env stage_in stage_out "
        "rpc as_dict",
    ),
    "task": _kind(
        "uid name mode origin state exit_code stdout stderr return_value exception "
        "exception_detail pilot sandbox task_sandbox pilot_sandbox client_sandbox description "
        "slots partition metadata info",
        "wait cancel wait_info submit_workers submit_tasks rpc as_dict",
    ),
}
"""The classes, by the word for them in our messages."""


class Ref(NamedTuple):
    """An object of RADICAL-Pilot's in a message.

    Attributes:
        kind: Which of `KINDS`.
        uid: Its uid.
        values: Its attributes, where the client sends it.
    """

    kind: str
    uid: str
    values: dict[str, Any]

    def __hash__(self) -> int:
        return hash(self[:2])


class Record(dict[str, Any]):
    """One of RADICAL-Pilot's dicts whose values are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}; there are {', '.join(self)}") from None


class Link(Protocol):
    """What remote objects need of the connection to their client."""

    def call(self, target: Ref, method: str, args: Any, kwargs: Any) -> Any:
        """Calls a method in the client; blocks until it returns there."""

    def listen(self, target: Ref, cb: Callable[..., Any], data: Any, kwargs: Any) -> None:
        """Has a callback called with what RADICAL-Pilot gives it."""

    def unlisten(self, target: Ref, cb: Callable[..., Any] | None) -> None:
        """Takes `listen` back, for all callbacks where none is given."""


class Remote:
    """A session, manager, pilot or task of RADICAL-Pilot's that lives in the client.

    Made by the backend. Equal where it is the same object there.
    """

    def __init__(self, link: Link, ref: Ref) -> None:
        self._link = link
        self._ref = ref._replace(values={})
        self._values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        kind, uid, _ = self._ref
        if name in self._values:
            return self._values[name]
        if name in KINDS[kind].attributes:
            return None  # nothing was sent of it yet
        if name in KINDS[kind].methods:
            return partial(self._call, name)
        raise AttributeError(
            f"{name!r} of RADICAL-Pilot's {kind.replace('_', ' ')} {uid} is not reachable from "
            "the program; `await backend.run_in_client(function)` calls a function with "
            "RADICAL-Pilot's own objects where they are"
        )

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._link.call(self._ref, method, args, kwargs)

    def register_callback(self, cb: Callable[..., Any], cb_data: Any = None, **more: Any) -> None:
        """Has `cb` called as RADICAL-Pilot would, with remote objects in place of its own.

        Callbacks are called one after the other on a thread of the backend, and may call methods.

        Args:
            cb: Called with the object and its state; a pilot's own with a list of it.
            cb_data: Given to it as well, if it is true.
            more: What RADICAL-Pilot's method takes beside (`metric`, `uid`), as plain values.
        """
        self._link.listen(self._ref, cb, cb_data, more)

    def unregister_callback(self, cb: Callable[..., Any] | None = None) -> None:
        """Ends the calls of a callback, or of all of this object's."""
        self._link.unlisten(self._ref, cb)

    def __dir__(self) -> list[str]:
        kind = KINDS[self._ref.kind]
        return sorted({*super().__dir__(), *kind.attributes, *kind.methods})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._ref[:2] == other._ref[:2]

    def __hash__(self) -> int:
        return hash(self._ref[:2])

    def __repr__(self) -> str:
        state = self._values.get("state")
        return f"<RADICAL-Pilot's {self._ref.kind.replace('_', ' ')} {self._ref.uid}, {state}>"


class Remotes:
    """The remote objects of one backend, each there once while somebody holds it.

    Args:
        link: The connection to their client.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._found: WeakValueDictionary[tuple[str, str], Remote] = WeakValueDictionary()
        self._lock = threading.Lock()

    def of(self, ref: Ref) -> Remote:
        """The object of a reference, with its values brought up to date."""
        values = self.decoded(ref.values)
        with self._lock:
            found = self._found.get(ref[:2])
            if found is None:
                found = self._found[ref[:2]] = Remote(self._link, ref)
            found._values.update(values)
            return found

    def update(self, ref: Ref) -> None:
        """Takes note of new values of an object, if somebody holds it."""
        if ref[:2] in self._found:
            self.of(ref)

    def decoded(self, value: Any) -> Any:
        """What a message holds, with objects in place of references."""
        if type(value) is Ref:
            return self.of(value)
        if type(value) in (list, tuple, set):
            return type(value)(map(self.decoded, value))
        if type(value) is dict:
            return Record({key: self.decoded(each) for key, each in value.items()})
        return value


def encoded(value: Any) -> Any:
    """What is sent to the client in place of an argument of a method.

    Raises:
        TypeError: It is neither plain, nor a remote object or a description of RADICAL-Pilot's.
    """
    if isinstance(value, Remote):
        return value._ref
    if type(value) in FLAT:
        return value
    if isinstance(value, Mapping):
        return {encoded(key): encoded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(each) for each in value]
    raise TypeError(
        f"methods of RADICAL-Pilot's objects take plain values, its descriptions and remote "
        f"objects from a program, got {value!r}; use `await backend.run_in_client(function, ...)`"
    )
