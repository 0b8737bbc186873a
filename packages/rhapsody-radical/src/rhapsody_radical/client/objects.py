"""Calls of methods of RADICAL-Pilot's objects that the program asks for, and its callbacks.

Each call has a thread of its own, since RADICAL-Pilot's methods block.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]

from rhapsody_radical.client.session import Objects
from rhapsody_radical.client.tasks import Say
from rhapsody_radical.remote import KINDS, Ref
from rhapsody_radical.schema import FINAL
from rhapsody_radical.wire import is_plain

CLASSES = {
    rp.Session: "session",
    rp.PilotManager: "pilot_manager",
    rp.TaskManager: "task_manager",
    rp.Pilot: "pilot",
    rp.Task: "task",
}

DESCRIBED = {
    "submit_tasks": rp.TaskDescription,
    "submit_raptors": rp.TaskDescription,
    "submit_workers": rp.TaskDescription,
    "submit_pilots": rp.PilotDescription,
}
"""Methods whose arguments are descriptions, which come here as plain dicts."""


class Calls:
    """What the program reaches of RADICAL-Pilot's objects.

    Args:
        objects: RADICAL-Pilot's own.
        handle_of: Finds RADICAL-Pilot's task for one of the engine's, `None` if it has ended.
        say: Sends a message to the program.

    Attributes:
        shown: The tasks that the program has seen and that have not ended, by uid.
    """

    def __init__(self, objects: Objects, handle_of: Callable[[str], Any], say: Say) -> None:
        self._objects = objects
        self._handle_of = handle_of
        self._say = say
        self.shown: dict[str, Any] = {}
        self._listeners: dict[int, tuple[Any, Any]] = {}

    # Calls.

    def call(self, number: int, target: Ref, method: str, packed: bytes) -> None:
        """Calls a method, and replies with what it returns."""
        args, kwargs = pickle.loads(packed)  # noqa: S301 - plain values, from our own program
        self._aside(number, partial(self._called, target, method, args, kwargs))

    def run(self, number: int, packed: bytes) -> None:
        """Calls a function of the user's with RADICAL-Pilot's objects, and replies."""

        def body() -> Any:
            function, args = pickle.loads(packed)  # noqa: S301 - the user's own, as asked for
            return function(self._objects, *args)

        self._aside(number, body)

    def _called(self, target: Ref, method: str, args: Any, kwargs: Any) -> Any:
        if method not in KINDS[target.kind].methods:
            raise AttributeError(f"{method!r} is not reachable from the program")
        args, kwargs = self._decoded(args), self._decoded(kwargs)
        if (described := DESCRIBED.get(method)) is not None:
            args = [_described(each, described) for each in args]
            kwargs = {
                key: _described(each, described) if key == "descriptions" else each
                for key, each in kwargs.items()
            }
        return getattr(self._find(target), method)(*args, **kwargs)

    def _aside(self, number: int, function: Callable[[], Any]) -> None:
        reply, name = partial(self.reply, number, function), f"rhapsody-radical-call-{number}"
        try:
            threading.Thread(target=reply, name=name, daemon=True).start()
        except RuntimeError as error:  # the system has no more threads to give
            self._say("reply", number, False, _packed_error(error))

    def reply(self, number: int, function: Callable[[], Any]) -> None:
        """Replies to the program's request of this number with what a function returns."""
        try:
            value = self.encoded(function())
        except BaseException as error:  # the user's own, or RADICAL-Pilot's, is the reply
            self._say("reply", number, False, _packed_error(error))
            return
        try:
            packed = cloudpickle.dumps(value)
        except Exception as error:  # pickling runs the object's own code
            said = TypeError(
                f"the result ({type(value).__qualname__}) cannot be pickled back to the program: "
                f"{type(error).__name__}: {error}; return data that can be"
            )
            self._say("reply", number, False, pickle.dumps(said))
        else:
            self._say("reply", number, True, packed)

    # Callbacks.

    def listen(self, number: int, target: Ref, packed: bytes) -> None:
        """Has the program's callback of this number called by RADICAL-Pilot, and replies."""

        def forward(*args: Any) -> None:
            self._say("callback", number, pickle.dumps(self.encoded(args)))

        def register() -> None:
            kwargs = pickle.loads(packed)  # noqa: S301 - plain values, from our own program
            thing = self._find(target)
            self._listeners[number] = (thing, forward)  # RADICAL-Pilot knows it by its id
            thing.register_callback(forward, **kwargs)

        self._aside(number, register)

    def unlisten(self, numbers: list[int]) -> None:
        """Takes `listen` back."""
        for number in numbers:
            thing, forward = self._listeners.pop(number, (None, None))
            with suppress(Exception):  # it may know them no more
                thing.unregister_callback(forward)

    # Objects.

    def changed(self, handle: Any) -> None:
        """Sends the values of one of the tasks in `shown`, after a change."""
        self._say("values", self._ref(handle, "task"))
        if handle.state in FINAL:  # what task managers keep is found there
            self.shown.pop(handle.uid, None)

    def show(self, tasks: Iterable[Any]) -> list[Ref]:
        """References to tasks, whose changes the program is told from now on."""
        return [self._ref(task, "task") for task in tasks]

    def encoded(self, value: Any) -> Any:
        """What is sent in place of a value: references for RADICAL-Pilot's objects."""
        for cls, kind in CLASSES.items():
            if isinstance(value, cls):
                return self._ref(value, kind)
        own = type(value).__module__.startswith("radical.")
        if type(value) is dict or (own and isinstance(value, dict)):
            return {key: self.encoded(each) for key, each in value.items()}
        if isinstance(value, ru.Url):
            return str(value)
        if type(value) in (list, tuple, set):
            return type(value)(map(self.encoded, value))
        return value

    def _ref(self, thing: Any, kind: str) -> Ref:
        uid = str(thing.uid)
        if kind == "task" and thing.state not in FINAL:
            self.shown[uid] = thing
        values = {name: self.encoded(_attribute(thing, name)) for name in KINDS[kind].attributes}
        return Ref(kind, uid, {name: each for name, each in values.items() if is_plain(each)})

    def _find(self, ref: Ref) -> Any:
        objects, (kind, uid, _) = self._objects, ref
        if kind == "session":
            return objects.session
        if kind == "pilot_manager":
            found = [objects.session.get_pilot_managers(uid)]
        elif kind == "task_manager":
            found = [objects.session.get_task_managers(uid)]
        elif kind == "pilot":
            found = [each for each in objects.pilot_manager.get_pilots() if each.uid == uid]
        else:
            found = [self.shown.get(uid) or self._handle_of(uid)]
            found += [each._tasks.get(uid) for each in objects.task_managers]
            found = [each for each in found if each is not None]
        if not found:
            raise ValueError(f"RADICAL-Pilot's session has no {kind.replace('_', ' ')} {uid!r}")
        return found[0]

    def _decoded(self, value: Any) -> Any:
        if type(value) is Ref:
            return self._find(value)
        if type(value) is list:
            return [self._decoded(each) for each in value]
        if type(value) is dict:
            return {key: self._decoded(each) for key, each in value.items()}
        return value


def _attribute(thing: Any, name: str) -> Any:
    try:
        value = getattr(thing, name)
    except Exception:  # RADICAL-Pilot raises for some before their time
        return None
    return value.as_dict() if name == "nodelist" and value is not None else value


def _described(value: Any, described: Any) -> Any:
    """RADICAL-Pilot's descriptions for plain dicts."""
    if isinstance(value, list):
        return [_described(each, described) for each in value]
    return described(value) if isinstance(value, dict) else value


def _packed_error(error: BaseException) -> bytes:
    """An exception for the program, of its own type where that can travel."""
    try:
        packed: bytes = cloudpickle.dumps(error)
        pickle.loads(packed)  # noqa: S301 - made above; some can be packed and not unpacked
    except Exception:  # an exception class may do anything
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return packed
