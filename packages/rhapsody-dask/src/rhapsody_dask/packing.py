"""From a task's description to the bytes that a worker gets.

Functions are pickled once for each batch. One that is big, and an argument that is, is
packed by itself, once for each batch as well, and goes to the cluster as data that all
tasks share; see `shared`.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from rhapsody import InputFile, InputFiles, OutputDir, OutputFile, TaskDescription
from rhapsody.sdk import REFERENCE, Reference, cannot_pack, dumps, own_modules, pickler
from rhapsody_dask.worker.arguments import Value, file_here, value_here
from rhapsody_dask.worker.messages import BIG, Order, pack

PLAIN = frozenset({int, float, bool, type(None), complex})
"""Types whose values are never big."""

FLAT = (bytes, str, bytearray)
"""Types whose length tells how big they are, packed."""

CURE = "pass data that can be, or run the task on the local backend's threads"

FILES = (InputFile, OutputFile, OutputDir)
"""Types that are bound to the sandbox that a task has on its worker."""

STAND_INS: frozenset[object] = PLAIN | {Value, Reference, InputFiles, *FILES}
"""Types that are never packed by themselves."""


class Big(NamedTuple):
    """A function or an argument that travels by itself: packed, with its buffers.

    Attributes:
        value: The object, held so that its identity stays its own.
        payload: What it is packed into.
        buffers: Its big buffers, which are still the user's own memory.
    """

    value: Any
    payload: bytes
    buffers: list[pickle.PickleBuffer]


class Packer:
    """Packs the tasks of one batch. What user code can change is packed anew for the next.

    Args:
        session: The backend's session.
        threshold: Bytes from which a function or an argument is shared; `None` shares none.

    Attributes:
        modules: The program's own modules that the functions of the batch use.
    """

    def __init__(self, session: str, threshold: int | None = BIG) -> None:
        self.modules: bytes | None = own_modules()
        self._session = session
        self._threshold = threshold
        self._functions: dict[int, Big] = {}
        self._bigs: dict[int, Big] = {}

    def pack(
        self, task: TaskDescription, more: Mapping[str, Any], held: int = 0
    ) -> tuple[bytes, list[Big]]:
        """Packs one task.

        Args:
            task: The description.
            more: What the worker has to know besides.
            held: How many values come with the task before what is big of it; the
                last of them are those of its references.

        Returns:
            The packed order, and what Dask has to hold for it, in the order of their places.

        Raises:
            TypeError: Something cannot be pickled; it names the argument.
        """
        function, arguments = task["function"], b""
        packed: bytes | int | None = None
        modules: bytes | None = None
        bigs: list[Big] = []
        if function is not None:
            modules = self.modules and self.modules[:REFERENCE]
            known = self._functions.get(id(function))
            if known is None:
                known = Big(function, self._dumps(task, function), [])
                self._functions[id(function)] = known
            packed = known.payload
            if self._threshold is not None and len(packed) >= self._threshold:
                packed = held
                bigs.append(known)
            first = held - len(task.get("references", ()))
            places = {uid: first + n for n, uid in enumerate(task.get("references", ()))}
            arguments = self._arguments(task, bigs, held, places)
        order = Order(
            self._session,
            task["uid"],
            task["name"],
            task.get("attempt", 1),
            packed,
            arguments,
            more,
            modules,
        )
        return pickle.dumps(order, 5), bigs

    def _arguments(
        self,
        task: TaskDescription,
        bigs: list[Big],
        held: int,
        places: Mapping[str, int],
    ) -> bytes:
        args, kwargs = task["args"], task["kwargs"]
        _refuse_futures(task)
        if self._threshold is not None:
            for value in (*args, *kwargs.values()):
                if type(value) in FLAT and len(value) >= self._threshold:
                    self._big(value)
        if self._bigs:
            args, kwargs = self._known_apart(args, kwargs, bigs, held)
        dumps = partial(_dumps_with_stand_ins, places=places)
        buffers: list[pickle.PickleBuffer] = []

        def small(buffer: pickle.PickleBuffer) -> bool:
            try:
                if self._threshold is None or buffer.raw().nbytes < BIG:
                    return True
            except BufferError:  # not contiguous
                return True
            buffers.append(buffer)
            return False

        packed = self._dumps(task, (args, kwargs), dumps, buffer_callback=small)
        whole = {id(value) for value in (*args, *kwargs.values())}
        if self._threshold is None or (not buffers and len(packed) < self._threshold):
            return packed
        # Rare: once for each batch and big argument.
        for value in (*args, *kwargs.values()):  # those with stand-ins in them stay
            if type(value) in STAND_INS or id(value) in self._bigs or id(value) not in whole:
                continue
            payload, own = pack(value)
            if (own or len(payload) >= self._threshold) and not places:
                self._bigs[id(value)] = Big(value, payload, own)
        args, kwargs = self._known_apart(args, kwargs, bigs, held)
        return self._dumps(task, (args, kwargs), dumps)

    def _big(self, value: Any) -> None:
        """Packs an argument by itself, once, that is seen to be big before it is packed."""
        if id(value) not in self._bigs:
            self._bigs[id(value)] = Big(value, pack(value)[0], [])

    def _known_apart(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], bigs: list[Big], held: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with placeholders for those that are known to be big."""
        places: dict[int, Value] = {}

        def apart(value: Any) -> Any:
            big = self._bigs.get(id(value))
            if big is None:
                return value
            if id(value) not in places:
                places[id(value)] = Value(held + len(bigs))
                bigs.append(big)
            return places[id(value)]

        return tuple(map(apart, args)), {key: apart(value) for key, value in kwargs.items()}

    def _dumps(
        self,
        task: TaskDescription,
        value: Any,
        dumps: Callable[..., bytes] = dumps,
        **options: Any,
    ) -> bytes:
        try:
            return dumps(value, protocol=5, **options)
        except Exception as error:  # pickling runs the objects' own code
            raise cannot_pack(task, error, worker="a Dask worker", cure=CURE) from error


def _refuse_futures(task: TaskDescription) -> None:
    """Raise if an argument, or a list of them, has one of Dask's own futures."""
    from distributed import Future

    for value in (*task["args"], *task["kwargs"].values()):
        for one in value if type(value) in (list, tuple) else (value,):
            if type(one) is Future:
                raise TypeError(
                    f"task {task['name']!r}: an argument is Dask's {one!r}: await it, and pass "
                    "the value"
                )


def _reduce_file(file: Any) -> tuple[Any, ...]:
    state = {name: getattr(file, name) for name in type(file).__dataclass_fields__}
    return file_here, (type(file), state)


class _StandInPickler(pickler()):  # type: ignore[misc]
    """Packs references as the values they stand for, and files as the worker's own."""

    def __init__(self, target: Any, places: Mapping[str, int], **options: Any) -> None:
        stand_ins: dict[type, Callable[[Any], tuple[Any, ...]]] = {
            **dict.fromkeys(FILES, _reduce_file),
            Reference: lambda reference: (value_here, (places[reference.uid],)),
        }
        # Read once, when the pickler is made.
        self.dispatch_table = ChainMap(stand_ins, pickler().dispatch_table)
        super().__init__(target, **options)


def _dumps_with_stand_ins(value: Any, places: Mapping[str, int], **options: Any) -> bytes:
    target = io.BytesIO()
    _StandInPickler(target, places, **options).dump(value)
    return target.getvalue()
