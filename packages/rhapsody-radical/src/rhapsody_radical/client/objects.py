"""The client's side of `rhapsody_radical.remote`: calls of methods and functions for the program.

Each call runs on a separate thread, because RADICAL-Pilot's methods block.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import cloudpickle  # type: ignore[import-untyped]
import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]

from rhapsody.sdk import start_thread
from rhapsody_radical.client.raptor import Raptors
from rhapsody_radical.client.session import Objects
from rhapsody_radical.client.tasks import Send
from rhapsody_radical.remote import RAPTORS, Ref
from rhapsody_radical.wire import is_plain

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

    def call(self, number: int, target: Ref | None, method: str, packed: bytes) -> None:
        """Call a method, or a function of the program, and reply with its result."""

        def answer() -> None:
            try:
                self.reply(number, self._called(target, method, packed))
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
            packed: bytes = cloudpickle.dumps(self.encoded(value))
            if not good:
                pickle.loads(packed)  # noqa: S301 - made above; not all can be unpickled
        except Exception as error:  # pickling runs the object's own code
            problem: Exception = RuntimeError(f"{type(value).__name__}: {value}")
            if good:
                problem = TypeError(
                    f"the result ({type(value).__qualname__}) cannot be pickled for the program: "
                    f"{type(error).__name__}: {error}. Return data that can be pickled"
                )
            good, packed = False, pickle.dumps(problem)
        self._send("reply", number, good, packed)

    def _called(self, target: Ref | None, method: str, packed: bytes) -> Any:
        args, kwargs = pickle.loads(packed)  # noqa: S301 - from our own program
        if target is None:
            function, *args = args
            return function(self._objects, *args)
        make = DESCRIBED.get(method)
        args = [self._decoded(each, make) for each in args]
        kwargs = {key: self._decoded(each, make) for key, each in kwargs.items()}
        return getattr(self._decoded(target, None), method)(*args, **kwargs)

    def changed(self, handle: Any) -> None:
        """Send the attributes of a task that has changed, if the program has received the task."""
        if handle.uid in self._seen:
            self.reply(0, handle)

    def encoded(self, value: Any) -> Any:
        """Return the form in which a value is sent: references replace RADICAL-Pilot's objects."""
        if isinstance(value, OBJECTS):
            uid = str(value.uid)
            self._seen[uid] = value
            return Ref(uid, *self._attributes(value))
        if isinstance(value, ru.TypedDict):
            value = value.as_dict()
        if type(value) is dict:
            return {key: self.encoded(each) for key, each in value.items()}
        if isinstance(value, ru.Url):
            return str(value)
        if type(value) in (list, tuple, set):
            return type(value)(map(self.encoded, value))
        return value

    def _attributes(self, thing: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the public attributes of an object that can be sent, and its methods' names.

        `close` is omitted, because the backend closes the session and its managers.
        """
        values, methods = {}, []
        for name in dir(thing):
            if name.startswith("_") or name == "close":
                continue
            try:
                value = getattr(thing, name)
            except Exception:  # RADICAL-Pilot raises if some attributes are read too early
                value = None
            if callable(value):
                methods.append(name)
            elif not isinstance(value, OBJECTS) and is_plain(value := self.encoded(value)):
                values[name] = value
        return values, tuple(methods)

    def _decoded(self, value: Any, make: Any) -> Any:
        """Return an argument with its references replaced by RADICAL-Pilot's objects.

        Args:
            value: The value from the message.
            make: The class of descriptions to create from dicts, if any.

        Returns:
            The argument for RADICAL-Pilot.

        Raises:
            ValueError: A reference has the uid of an unknown object.
        """
        if type(value) is Ref and type(value.uid) is int:
            # RADICAL-Pilot identifies callbacks by their ids.
            return self._forwards.setdefault(value.uid, partial(self._forward, value.uid))
        if type(value) is Ref:
            if (found := self._seen.get(value.uid)) is None:
                raise ValueError(f"RADICAL-Pilot's session has no {value.uid!r}")
            return found
        if type(value) is list:
            return [self._decoded(each, make) for each in value]
        if type(value) is dict:
            if make is not None:
                return make(value)
            return {key: self._decoded(each, None) for key, each in value.items()}
        return value

    def _forward(self, number: int, *args: Any) -> None:
        self.reply(number, args)
