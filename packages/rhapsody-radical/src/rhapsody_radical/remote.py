"""Remote objects, which represent RADICAL-Pilot's objects in the client process.

Instances of one class, `Remote`, represent all of these objects. Their attributes have the values
that the client sent last. Their methods are executed in the client, and block as RADICAL-Pilot's
do. Everything else is accessible through `run_in_client`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from rhapsody.sdk import settable
from rhapsody_radical.pilot import PilotException
from rhapsody_radical.wire import CallThread, dumps, loads

RAPTORS = "raptors"
"""Uid of RAPTOR's masters and workers on all pilots, which are one object in the client."""


class Ref(NamedTuple):
    """Reference to one of RADICAL-Pilot's objects in a message to the program.

    Attributes:
        uid: The object's uid in its session.
        values: The object's attributes.
        methods: The names of the object's methods.
    """

    uid: str
    values: Mapping[str, Any]
    methods: tuple[str, ...]


class Callback(NamedTuple):
    """Reference to one of the program's callbacks, by its number."""

    number: int


class Remote:
    """RADICAL-Pilot session, manager, pilot or task in the client.

    `Remotes` creates one instance for each object.
    """

    def __init__(self, remotes: Remotes, uid: str) -> None:
        self._remotes = remotes
        self._uid = uid
        self._values: Mapping[str, Any] = {}
        self._methods: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._methods:
            return partial(self._remotes.call, self._uid, name)
        if name in self._values:
            return self._values[name]
        raise AttributeError(
            f"attribute {name!r} of RADICAL-Pilot's object {self._uid} is only available in "
            "its client. Use `await backend.run_in_client(function)`"
        )

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
        self._remotes.listeners[number] = self._uid, cb, cb_data
        try:
            self._remotes.call(self._uid, "register_callback", cb=Callback(number), **more)
        except BaseException:
            del self._remotes.listeners[number]
            raise

    def unregister_callback(self, cb: Callable[..., Any] | None = None) -> None:
        """Unregister a callback or, without an argument, all of this object's callbacks."""
        for number, (uid, callback, _) in list(self._remotes.listeners.items()):
            if uid == self._uid and cb in (None, callback):
                del self._remotes.listeners[number]
                with suppress(AttributeError, KeyError, ValueError):  # tasks lack the method
                    self._remotes.call(self._uid, "unregister_callback", cb=Callback(number))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values, *self._methods})

    def __repr__(self) -> str:
        return f"<RADICAL-Pilot's {self._uid}, {self._values.get('state')}>"


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
        self._found: WeakValueDictionary[str, Remote] = WeakValueDictionary()
        self._lock = threading.Lock()
        self.numbers: Iterator[int] = itertools.count(1)
        """Numbers of calls and callbacks in messages."""
        self.listeners: dict[int, tuple[str, Callable[..., Any], Any]] = {}
        """The object's uid, the callback and the callback's data, by the callback's number."""
        self.waiting: dict[int, Future[Any]] = {}
        """The futures of calls, by their numbers; number 0 is the start of the session."""
        self.reader: int = 0
        """Identifier of the thread that reads messages."""
        self.callbacks: CallThread = CallThread("rhapsody-radical-callbacks")
        """Thread that calls the program's callbacks."""

    def call(self, uid: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of an object in the client, and wait for its result."""
        return self.request(uid, method, *args, **kwargs).result()

    def request(self, uid: str | None, method: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a method or function in the client.

        Args:
            uid: The uid of the object whose method is called, or `None` for a function.
            method: The name of the method, or the function.
            args: The positional arguments.
            kwargs: The keyword arguments.

        Returns:
            The future of the result.

        Raises:
            RuntimeError: The current thread reads the replies, so it would wait for itself.
            TypeError: The function or an argument cannot be pickled.
        """
        self.require_another_thread()
        try:
            packed = dumps((method, args, kwargs), _name)
        except Exception as error:  # pickling runs the objects' own code
            raise TypeError(
                f"the call of {method!r} cannot be pickled for RADICAL-Pilot's client: "
                f"{type(error).__name__}: {error}. Pass data that can be pickled, or create it in "
                "the client with `await backend.run_in_client(function, ...)`"
            ) from error
        number, future = next(self.numbers), Future[Any]()
        self.waiting[number] = future
        with suppress(PilotException):  # the reader calls `end`, or has called it already
            self._send("call", number, uid, packed)
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
        while self.waiting:
            with suppress(InvalidStateError, KeyError):  # set or removed by another thread
                self.waiting.popitem()[1].set_exception(error)

    def reply(self, number: int, good: bool, packed: bytes) -> None:
        """Deliver the result of a call, the arguments of a callback, or an object's attributes."""
        try:
            value = loads(packed, self.found)
        except BaseException as error:  # unpickling runs the objects' own code
            good, value = False, error
        if (listener := self.listeners.get(number)) is not None:
            _, callback, data = listener
            self.callbacks.post(partial(callback, *value, *([data] if data else ())))
        elif (future := self.waiting.pop(number, None)) is not None:
            with suppress(InvalidStateError):  # the caller no longer waits
                if good:
                    future.set_result(value)
                else:
                    future.set_exception(settable(value, "the call"))

    def found(self, value: Any) -> Any:
        """Return the updated remote object for a reference, or any other value unchanged."""
        if type(value) is not Ref:
            return value
        with self._lock:
            remote = self._found.get(value.uid)
            if remote is None:
                remote = self._found[value.uid] = Remote(self, value.uid)
            remote._values, remote._methods = value.values, value.methods
            return remote


def _name(value: Any) -> Any:
    if isinstance(value, Remote):
        return value._uid
    return value.number if isinstance(value, Callback) else None
