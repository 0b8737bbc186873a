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

RAPTORS = "raptors"
"""Uid of RAPTOR's masters and workers on all pilots, which are one object in the client."""


class Ref(NamedTuple):
    """Reference to an object in a message.

    Attributes:
        uid: The uid of the object in its session, or the number of one of the program's callbacks.
        values: The object's attributes; empty in messages to the client.
        methods: The names of the object's methods; empty in messages to the client.
    """

    uid: Any
    values: Mapping[str, Any] = {}
    methods: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.uid)


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

    def __init__(self, remotes: Remotes, uid: str) -> None:
        self._remotes = remotes
        self._ref = Ref(uid)
        self._values: dict[str, Any] = {}
        self._methods: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._methods:
            return partial(self._remotes.call, self._ref, name)
        if name in self._values:
            return self._values[name]
        raise AttributeError(
            f"attribute {name!r} of RADICAL-Pilot's object {self._ref.uid} is only available in "
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
        self._remotes.listeners[number] = self._ref, cb, cb_data
        try:
            self._remotes.call(self._ref, "register_callback", cb=Ref(number), **more)
        except BaseException:
            del self._remotes.listeners[number]
            raise

    def unregister_callback(self, cb: Callable[..., Any] | None = None) -> None:
        """Unregister a callback or, without an argument, all of this object's callbacks."""
        for number, (ref, callback, _) in list(self._remotes.listeners.items()):
            if ref == self._ref and cb in (None, callback):
                del self._remotes.listeners[number]
                with suppress(AttributeError, KeyError, ValueError):  # tasks lack the method
                    self._remotes.call(self._ref, "unregister_callback", cb=Ref(number))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values, *self._methods})

    def __repr__(self) -> str:
        return f"<RADICAL-Pilot's {self._ref.uid}, {self._values.get('state')}>"


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
        self.listeners: dict[int, tuple[Ref, Callable[..., Any], Any]] = {}
        """The object, the callback and the callback's data, by the callback's number."""
        self.waiting: dict[int, Future[Any]] = {}
        """The futures of calls, by their numbers; number 0 is the start of the session."""
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
        self.waiting[number] = future
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
        while self.waiting:
            with suppress(InvalidStateError, KeyError):  # set or removed by another thread
                self.waiting.popitem()[1].set_exception(error)

    def reply(self, number: int, good: bool, packed: bytes) -> None:
        """Deliver the result of a call, the arguments of a callback, or an object's attributes."""
        try:
            value = self.decoded(pickle.loads(packed))  # noqa: S301 - from our own client
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

    def decoded(self, value: Any) -> Any:
        """Return a value from a message, with its references replaced by remote objects."""
        if type(value) is Ref:
            values = self.decoded(value.values)
            with self._lock:
                found = self._found.get(value.uid)
                if found is None:
                    found = self._found[value.uid] = Remote(self, value.uid)
                found._values, found._methods = values, value.methods
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
