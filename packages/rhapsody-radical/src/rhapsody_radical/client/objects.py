"""The client's side of `rhapsody_radical.remote`: calls of methods and functions for the program.

Each call runs on a separate thread, because RADICAL-Pilot's methods block.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import cloudpickle  # type: ignore[import-untyped]
import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]

from rhapsody_radical.client.raptor import Raptors
from rhapsody_radical.client.session import Objects
from rhapsody_radical.client.tasks import Send
from rhapsody_radical.remote import CALLBACK, KINDS, RAPTORS, Ref
from rhapsody_radical.wire import is_plain

CLASSES: dict[Any, str] = {getattr(rp, kind.title().replace("_", "")): kind for kind in KINDS}
"""The kind of each of RADICAL-Pilot's classes, as in `rhapsody_radical.remote.KINDS`."""

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
        self._seen: WeakValueDictionary[tuple[str, Any], Any] = WeakValueDictionary()
        self._seen[RAPTORS, ""] = raptors
        self._forwards: dict[int, Callable[..., None]] = {}

    def call(self, number: int, target: Ref | None, method: str, packed: bytes) -> None:
        """Call a method, or a function of the program, and reply with its result."""
        reply = partial(self._reply, number, target, method, packed)
        name = f"rhapsody-radical-call-{number}"
        try:
            threading.Thread(target=reply, name=name, daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            self._send("reply", number, False, _packed_error(error))

    def _reply(self, number: int, target: Ref | None, method: str, packed: bytes) -> None:
        try:
            value = self.encoded(self._called(target, method, packed))
        except BaseException as error:  # sent to the program
            self._send("reply", number, False, _packed_error(error))
            return
        try:
            self._send("reply", number, True, cloudpickle.dumps(value))
        except Exception as error:  # pickling runs the object's own code
            problem = TypeError(
                f"the result ({type(value).__qualname__}) cannot be pickled for the program: "
                f"{type(error).__name__}: {error}. Return data that can be pickled"
            )
            self._send("reply", number, False, pickle.dumps(problem))

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
        if ("task", handle.uid) in self._seen:
            self._send("values", self.encoded(handle))

    def encoded(self, value: Any) -> Any:
        """Return the form in which a value is sent: references replace RADICAL-Pilot's objects."""
        kind = next((kind for cls, kind in CLASSES.items() if isinstance(value, cls)), None)
        if kind is not None:
            uid = str(value.uid)
            self._seen[kind, uid] = value
            values = {name: self.encoded(_attribute(value, name)) for name in KINDS[kind][0]}
            return Ref(kind, uid, {name: each for name, each in values.items() if is_plain(each)})
        own = type(value).__module__.startswith("radical.")
        if type(value) is dict or (own and isinstance(value, dict)):
            return {key: self.encoded(each) for key, each in value.items()}
        if isinstance(value, ru.Url):
            return str(value)
        if type(value) in (list, tuple, set):
            return type(value)(map(self.encoded, value))
        return value

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
        if type(value) is Ref and value.kind == CALLBACK:
            # RADICAL-Pilot identifies callbacks by their ids.
            return self._forwards.setdefault(value.uid, partial(self._forward, value.uid))
        if type(value) is Ref:
            if (found := self._seen.get(value[:2])) is None:
                raise ValueError(
                    f"RADICAL-Pilot's session has no {value.kind.replace('_', ' ')} {value.uid!r}"
                )
            return found
        if type(value) is list:
            return [self._decoded(each, make) for each in value]
        if type(value) is dict:
            if make is not None:
                return make(value)
            return {key: self._decoded(each, None) for key, each in value.items()}
        return value

    def _forward(self, number: int, *args: Any) -> None:
        self._send("reply", number, True, pickle.dumps(self.encoded(args)))


def _attribute(thing: Any, name: str) -> Any:
    try:
        value = getattr(thing, name)
    except Exception:  # RADICAL-Pilot raises if some attributes are read too early
        return None
    return value.as_dict() if name == "nodelist" and value is not None else value


def _packed_error(error: BaseException) -> bytes:
    """Pickle an exception for the program, with its own type if possible."""
    try:
        packed: bytes = cloudpickle.dumps(error)
        pickle.loads(packed)  # noqa: S301 - made above; some can be pickled but not unpickled
    except Exception:  # pickling runs the exception's own code
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return packed
