"""The client's side of `rhapsody_radical.remote`: calls of methods and functions for the program.

Each call runs on a separate thread, because RADICAL-Pilot's methods block.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]

from rhapsody.sdk import copied_classes, start_thread
from rhapsody_radical.client.raptor import Raptors
from rhapsody_radical.client.session import Objects
from rhapsody_radical.client.tasks import Send
from rhapsody_radical.remote import RAPTORS, Ref
from rhapsody_radical.wire import AttributeDict, dumps, is_plain, loads

OBJECTS = (rp.Session, rp.PilotManager, rp.TaskManager, rp.Pilot, rp.Task)
"""The classes whose objects the program receives as remote objects."""

DESCRIBED: dict[str, Any] = {
    **dict.fromkeys(("submit_tasks", "submit_raptors", "submit_workers"), rp.TaskDescription),
    "submit_pilots": rp.PilotDescription,
}
"""The class of the descriptions that each method takes; descriptions are sent as plain dicts."""


class Calls:
    """RADICAL-Pilot's objects that the program has received, and calls of their methods.

    Args:
        objects: The objects that `run_in_client` passes to the program's functions.
        raptors: RAPTOR on the pilots.
        send: Sends a message to the program.
    """

    def __init__(self, objects: Objects, raptors: Raptors, send: Send) -> None:
        self._objects = objects
        self._send = send
        self._seen: WeakValueDictionary[str, Any] = WeakValueDictionary({RAPTORS: raptors})
        self._forwards: dict[int, Callable[..., None]] = {}

    def call(self, number: int, uid: str | None, packed: bytes) -> None:
        """Call a method of an object or a function of the program, and reply with the result.

        Args:
            number: The number of the call.
            uid: The uid of the object; `None` to call a function.
            packed: The pickled method name or function, and its arguments.
        """

        def answer() -> None:
            with copied_classes():
                try:
                    self.reply(number, self._called(uid, packed))
                except BaseException as error:  # sent to the program
                    self.reply(number, error, good=False)

        try:
            start_thread(answer, f"rhapsody-radical-call-{number}")
        except RuntimeError as error:  # the system has no more threads
            self.reply(number, error, good=False)

    def reply(self, number: int, value: Any, *, good: bool = True) -> None:
        """Send the result or the exception of a call; an exception with its own type if possible.

        Args:
            number: The number of the call. 0 for the start of the session, and later for objects
                whose attributes have changed.
            value: The result or the exception.
            good: True for a result.
        """
        try:
            packed = dumps(value, self._name)
            if not good:
                loads(packed, self._found)  # some can be pickled, but not unpickled
        except Exception as error:  # pickling runs the object's own code
            problem: Exception = RuntimeError(f"{type(value).__name__}: {value}")
            if good:
                problem = TypeError(
                    f"the result ({type(value).__qualname__}) cannot be pickled for the program: "
                    f"{type(error).__name__}: {error}. Return data that can be pickled"
                )
            good, packed = False, pickle.dumps(problem)
        self._send("reply", number, good, packed)

    def _called(self, uid: str | None, packed: bytes) -> Any:
        method, args, kwargs = loads(packed, self._found)
        if uid is None:
            return method(self._objects, *args)
        if (make := DESCRIBED.get(method)) is not None:
            args = [_described(each, make) for each in args]
            kwargs = {key: _described(each, make) for key, each in kwargs.items()}
        return getattr(self._found(uid), method)(*args, **kwargs)

    def changed(self, handle: Any) -> None:
        """Send the attributes of a task that has changed, if the program has received the task."""
        if handle.uid in self._seen:
            self.reply(0, handle)

    def ref(self, thing: Any) -> Ref:
        """Return a reference to an object, with its public attributes that are plain data.

        `close` is omitted, because the backend closes the session and its managers.
        """
        values: dict[str, Any] = {}
        methods = []
        for name in dir(thing):
            if name.startswith("_") or name == "close":
                continue
            value = None
            with suppress(Exception):  # RADICAL-Pilot raises if some attributes are read too early
                value = getattr(thing, name)
            if callable(value):
                methods.append(name)
            elif is_plain(value := _plain(value)):
                values[name] = value
        self._seen[str(thing.uid)] = thing
        return Ref(str(thing.uid), values, tuple(methods))

    def _name(self, thing: Any) -> Any:
        if isinstance(thing, OBJECTS):
            return self.ref(thing)
        return _plain(thing) if isinstance(thing, ru.Url | ru.TypedDict) else None

    def _found(self, name: Any) -> Any:
        """Return the object with a uid, or a function that calls the callback with a number.

        Raises:
            ValueError: There is no such object.
        """
        if type(name) is int:  # RADICAL-Pilot identifies callbacks by their ids
            return self._forwards.setdefault(name, partial(self._forward, name))
        if type(name) is str:
            if (found := self._seen.get(name)) is None:
                raise ValueError(f"RADICAL-Pilot's session has no {name!r}")
            return found
        return name

    def _forward(self, number: int, *args: Any) -> None:
        self.reply(number, args)


def _described(value: Any, make: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_described(each, make) for each in value]
    return make(value) if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """Return a value with text instead of URLs, and records instead of dicts."""
    if isinstance(value, ru.Url):
        return str(value)
    if isinstance(value, ru.TypedDict):
        value = value.as_dict()
    if isinstance(value, dict):
        return AttributeDict({key: _plain(each) for key, each in value.items()})
    return list(map(_plain, value)) if isinstance(value, list) else value
