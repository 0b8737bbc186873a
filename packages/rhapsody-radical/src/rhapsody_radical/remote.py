"""Remote objects, which represent RADICAL-Pilot's objects in the client process.

Instances of one class, `Remote`, represent all of these objects. Their attributes have the values
that the client sent last. Their methods are executed in the client, and block as RADICAL-Pilot's
do. Everything else is accessible through `run_in_client`.
"""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from rhapsody.sdk import settable
from rhapsody_radical.pilot import PilotException
from rhapsody_radical.wire import FLAT, Worker


def _kind(attributes: str, methods: str) -> tuple[tuple[str, ...], frozenset[str]]:
    return tuple(attributes.split()), frozenset(methods.split())


KINDS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
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
"""For each class, by its name in messages: the attributes that are sent, and the methods."""


CALLBACK, RAPTORS = "callback", "raptors"
"""Further kinds of a `Ref`: one of the program's callbacks, and RAPTOR in the client."""


class Ref(NamedTuple):
    """Reference to an object in a message.

    Attributes:
        kind: One of `KINDS`, `CALLBACK` or `RAPTORS`.
        uid: The uid of the object, or the number of a callback.
        values: The object's attributes; empty in messages to the client.
    """

    kind: str
    uid: Any
    values: dict[str, Any]

    def __hash__(self) -> int:
        return hash(self[:2])


class Record(dict[str, Any]):
    """Dict from RADICAL-Pilot whose values are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"no attribute {name!r}; the attributes are {', '.join(self)}"
            ) from None


class Remote:
    """RADICAL-Pilot session, manager, pilot or task in the client.

    `Remotes` creates one instance for each object.
    """

    def __init__(self, remotes: Remotes, ref: Ref) -> None:
        self._remotes = remotes
        self._ref = ref._replace(values={})
        self._values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        kind, uid, _ = self._ref
        attributes, methods = KINDS[kind]
        if name in attributes:
            return self._values.get(name)
        if name in methods:
            return partial(self._call, name)
        raise AttributeError(
            f"attribute {name!r} of RADICAL-Pilot's {kind.replace('_', ' ')} {uid} is only "
            "available in its client. Use `await backend.run_in_client(function)`"
        )

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._remotes.call(self._ref, method, *args, **kwargs)

    def register_callback(self, cb: Callable[..., Any], cb_data: Any = None, **more: Any) -> None:
        """Register a callback, which is called with remote objects instead of RADICAL-Pilot's own.

        Callbacks are called in order, on a thread of the backend, and may call methods.

        Args:
            cb: Called with the object and its state; a callback registered on a single pilot
                receives a list that contains that pilot.
            cb_data: An additional argument for the callback; passed only if truthy.
            **more: Other parameters of RADICAL-Pilot's method (`metric`, `uid`), as plain values.
        """
        number = next(self._remotes.numbers)
        self._remotes.listeners[number] = self._ref, cb, cb_data
        try:
            self._call("register_callback", cb=Ref(CALLBACK, number, {}), **more)
        except BaseException:
            del self._remotes.listeners[number]
            raise

    def unregister_callback(self, cb: Callable[..., Any] | None = None) -> None:
        """Unregister a callback or, without an argument, all of this object's callbacks."""
        for number, (ref, callback, _) in list(self._remotes.listeners.items()):
            if ref == self._ref and cb in (None, callback):
                del self._remotes.listeners[number]
                with suppress(AttributeError, KeyError, ValueError):  # tasks lack the method
                    self._call("unregister_callback", cb=Ref(CALLBACK, number, {}))

    def __dir__(self) -> list[str]:
        attributes, methods = KINDS[self._ref.kind]
        return sorted({*super().__dir__(), *attributes, *methods})

    def __repr__(self) -> str:
        state = self._values.get("state")
        return f"<RADICAL-Pilot's {self._ref.kind.replace('_', ' ')} {self._ref.uid}, {state}>"


class Remotes:
    """Remote objects of one backend, and the calls of their methods.

    There is one remote object for each of RADICAL-Pilot's objects that the program uses.

    Args:
        send: Sends a message to the client.
        ended: Event that is set when the client has ended.
    """

    def __init__(self, send: Callable[..., None], ended: threading.Event) -> None:
        self._send = send
        self._ended = ended
        self._found: WeakValueDictionary[tuple[str, str], Remote] = WeakValueDictionary()
        self._lock = threading.Lock()
        self.numbers: Iterator[int] = itertools.count(1)
        """Numbers of calls and callbacks in messages."""
        self.listeners: dict[int, tuple[Ref, Callable[..., Any], Any]] = {}
        """The object, the callback and the callback's data, by the callback's number."""
        self._waiting: dict[int, Future[Any]] = {}
        self.reader: int = 0
        """Identifier of the thread that reads messages."""
        self.callbacks: Worker = Worker("rhapsody-radical-callbacks")
        """Thread that calls the program's callbacks."""

    def call(self, target: Ref, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method in the client, and wait for its result."""
        packed = pickle.dumps((encoded(args), encoded(kwargs)))
        return self.request(target, method, packed).result()

    def request(self, target: Ref | None, method: str, packed: bytes) -> Future[Any]:
        """Call a method in the client, or a function if `target` is `None`.

        Args:
            target: The object whose method is called.
            method: The name of the method.
            packed: The pickled arguments; for a function, the function is the first argument.

        Returns:
            The future of the result.

        Raises:
            RuntimeError: The current thread reads the replies, so it would wait for itself.
        """
        self.require_another_thread()
        number, future = next(self.numbers), Future[Any]()
        self._waiting[number] = future
        with suppress(PilotException):  # the reader calls `end`, or has called it already
            self._send("call", number, target, method, packed)
        if self._ended.is_set():
            self.end(PilotException("RADICAL-Pilot's client has ended"))
        return future

    def require_another_thread(self) -> None:
        """Check that the current thread may wait for a reply.

        Raises:
            RuntimeError: The current thread reads the replies. This thread also calls the
                callbacks for task states.
        """
        if threading.get_ident() == self.reader:
            raise RuntimeError(
                "methods of RADICAL-Pilot's objects cannot be called on the thread that reads "
                "replies, which runs this callback; call them on another thread"
            )

    def end(self, error: Exception) -> None:
        """Fail all calls that wait for a reply."""
        while self._waiting:
            with suppress(InvalidStateError, KeyError):  # set or removed by another thread
                self._waiting.popitem()[1].set_exception(error)

    def reply(self, number: int, good: bool, packed: bytes) -> None:
        """Deliver the result of a call, or the arguments of a callback."""
        if (listener := self.listeners.get(number)) is not None:
            _, callback, data = listener
            args = self.decoded(pickle.loads(packed))  # noqa: S301 - from our own client
            self.callbacks.post(partial(callback, *args, *([data] if data else ())))
        elif (future := self._waiting.pop(number, None)) is not None:
            with suppress(InvalidStateError):  # the caller no longer waits
                try:
                    value = pickle.loads(packed)  # noqa: S301 - from our own client
                except BaseException as error:  # unpickling runs the objects' own code
                    good, value = False, error
                if good:
                    future.set_result(self.decoded(value))
                else:
                    future.set_exception(settable(value, "the call"))

    def update(self, ref: Ref) -> None:
        """Update the attributes of an object, if the program uses the object."""
        if ref[:2] in self._found:
            self.decoded(ref)

    def decoded(self, value: Any) -> Any:
        """Return a value from a message, with its references replaced by remote objects."""
        if type(value) is Ref:
            values = self.decoded(value.values)
            with self._lock:
                found = self._found.get(value[:2])
                if found is None:
                    found = self._found[value[:2]] = Remote(self, value)
                found._values.update(values)
                return found
        if type(value) in (list, tuple, set):
            return type(value)(map(self.decoded, value))
        if type(value) is dict:
            return Record({key: self.decoded(each) for key, each in value.items()})
        return value


def encoded(value: Any) -> Any:
    """Return an argument of a method in the form in which it is sent to the client.

    Raises:
        TypeError: The argument is neither a plain value, a description, nor a remote object.
    """
    if isinstance(value, Remote):
        return value._ref
    if type(value) in FLAT or type(value) is Ref:
        return value
    if isinstance(value, Mapping):
        return {encoded(key): encoded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(each) for each in value]
    raise TypeError(
        f"arguments of RADICAL-Pilot's methods must be plain values, descriptions or remote "
        f"objects, got {value!r}. Use `await backend.run_in_client(function, ...)`"
    )
