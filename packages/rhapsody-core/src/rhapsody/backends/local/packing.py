"""Pickling of calls for worker processes.

Pickling an object may run code of its class and take arbitrarily long, so calls are pickled on a
separate thread. Small values of built-in types run no such code and are pickled on the loop, as are
functions that refer only to such values, to modules and to other such functions. The pickle of such
a function is reused as long as everything that the function refers to is unchanged.
"""

from __future__ import annotations

import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rhapsody.backends.local.shared_memory import Block, SharedMemory
from rhapsody.backends.local.worker import BLOCK, CALL, SCALARS, SHARED, THREADS, PickledCall
from rhapsody.sdk import calls
from rhapsody.sdk.introspect import MISSING, content_of, names_stored, with_inner
from rhapsody.sdk.modules import REFERENCE
from rhapsody.sdk.runner import PLAIN, dumps
from rhapsody.sdk.value_handles import WorkerValue
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from rhapsody.backends.local.jobs import LocalJob

MAX_INLINE_SIZE: int = 1 << 16
"""Maximum size in bytes of values that are pickled and unpickled on the loop."""

MAX_INLINE_DEPTH = 8
"""Maximum nesting of containers in values that are pickled and unpickled on the loop."""

MAX_CACHED_FUNCTIONS = 128
"""Maximum number of pickled functions in the cache."""

MAX_CACHED_SPECS = 128
"""Maximum number of pickles that `Specs` keeps."""

CONTAINERS = frozenset({tuple, list, set, frozenset, dict})
NAMED = (type, types.FunctionType, types.BuiltinFunctionType)
GENERIC = (types.GenericAlias, types.UnionType)
NO_MEMORY = SharedMemory()

REFLECTION = {"getattr", "setattr", "delattr", "attrgetter", "globals", "vars", "exec", "eval"}
"""Names of functions that can change a function or an object to which it refers."""


def pack_call(
    task: TaskDescription, memory: SharedMemory = NO_MEMORY
) -> tuple[PickledCall, Block | None]:
    """Pack a function and its arguments.

    Args:
        task: The task's description.
        memory: The shared memory for a large call. By default, calls are not put in shared memory.

    Returns:
        The call and, if it is in shared memory, the block that contains it. Otherwise the second
        value is `None`.

    Raises:
        TypeError: The function or an argument cannot be pickled; the message names it.
    """  # noqa: DOC501 - a TypeError
    try:
        packed = memory.dump((task["function"], task["args"], task["kwargs"]))
    except BaseException as error:  # pickling runs the objects' own code
        cure = f"pass data that can be pickled, {THREADS}"
        raise calls.cannot_pack(task, error, worker="a worker process", cure=cure) from error
    if isinstance(packed, Block):
        return PickledCall(b"", BLOCK.pack(packed.number, packed.size), SHARED), packed
    return PickledCall(b"", packed), None


class Specs:
    """Encoder of calls. Fields that the specs of many calls share are pickled only once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], bytes] = {}

    def frame(self, job: LocalJob) -> bytearray:
        """Return a packed call, encoded for a worker.

        `Worker.send` sets the call's number and the block for its result.
        """
        assert job.call is not None
        task, modules = job.task, job.modules
        function, arguments, kind = job.call
        common = self._common(job, modules and modules[:REFERENCE])
        own = pickle.dumps(
            (
                task["uid"], task.get("attempt", 1), task.get("sandbox"), job.spill,
                task.get("trace_context", {}),
            ), 5,
        )  # fmt: skip
        head = CALL.pack(0, 0, kind, len(common), len(own), len(function), len(arguments))
        return bytearray().join((head, common, own, function, arguments))

    def _common(self, job: LocalJob, modules: bytes | None) -> bytes:
        """Return the pickle of the fields of a call's spec that `frame` does not pickle."""
        task, cores = job.task, job.request.cores
        key = (
            task["name"], task.get("timeout"), cores, task.get("capture", True), modules, job.gpus,
            task.get("watch"),
        )  # fmt: skip
        more = calls.program_settings(task)
        is_usual = not more and not task.get("environment")
        packed = self._known.get(key) if is_usual else None
        if packed is None:
            order = calls.call_spec(
                task, cores=cores, environment=job.environment(), more=more, modules=modules
            )
            packed = pickle.dumps(
                (
                    order.version, order.name, order.timeout, order.cores, order.environment,
                    order.capture, order.more, order.modules, order.watch,
                ), 5,
            )  # fmt: skip
            if is_usual:
                if len(self._known) >= MAX_CACHED_SPECS:
                    self._known.clear()
                self._known[key] = packed
        return packed


def is_small(
    values: Iterable[Any], left: int = MAX_INLINE_SIZE, depth: int = MAX_INLINE_DEPTH
) -> int:
    """Check that values are small, and consist only of built-in types and handles.

    Returns:
        The number of bytes that remain of `left` after subtracting the size of the values. 0 if
        the values are too large, are nested more deeply than `depth`, or are not of built-in types.
    """
    for value in values:
        kind = type(value)
        if kind is int:
            left -= 8 + (value.bit_length() >> 3)
        elif kind in SCALARS:
            left -= 8
        elif kind is str or kind is bytes:
            left -= len(value)
        elif kind is WorkerValue:
            left -= value.size
        elif kind not in CONTAINERS or not depth or 8 * len(value) > left:
            return 0
        elif kind is dict:
            left = is_small((*value, *value.values()), left - 8, depth - 1)
        else:
            left = is_small(tuple(value), left - 8, depth - 1)
        if left <= 0:
            return 0
    return left


class FunctionCache:
    """Cache of pickled functions.

    A pickle is reused as long as pickling the function again would not change it.
    """

    def __init__(self) -> None:
        import cloudpickle  # type: ignore[import-untyped,unused-ignore]

        self._by_value: Callable[[], set[str]] = cloudpickle.list_registry_pickle_by_value
        self._known: dict[int, tuple[weakref.ref[Any], PackedFunction | None]] = {}

    def pack(self, task: TaskDescription) -> PickledCall | None:
        """Pack a task's call; `None` if it is large or if pickling it may run other code."""
        args, kwargs = task["args"], task["kwargs"]
        if not is_small(args) or (kwargs and not is_small((kwargs,))):
            return None
        function = self._packed(task["function"])
        if function is None:
            return None
        return PickledCall(function.data, pickle.dumps((args, kwargs), 5), function.reusable)

    def _packed(self, function: Any) -> PackedFunction | None:
        if type(function) not in NAMED or self._by_value():
            return None
        of, known = self._known.pop(id(function), (None, None))
        if of is None or of() is not function or not (known is None or known.is_current()):
            of, known = weakref.ref(function), PackedFunction.of(function)
        self._known[id(function)] = of, known
        if len(self._known) > MAX_CACHED_FUNCTIONS:
            del self._known[next(iter(self._known))]
        return known


class PackedFunction:
    """Pickled function, with everything that the function refers to.

    Attributes:
        data: The pickled function.
        reusable: True if calls cannot change the function, so that a worker can keep it.
    """

    def __init__(self) -> None:
        self.data: bytes = b""
        self.reusable: bool = False
        self._named: list[tuple[Mapping[str, Any], str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, types.CodeType, Any]] = []
        self._left = MAX_INLINE_SIZE  # remaining bytes for values to which the function refers
        self._modules = len(sys.modules)  # a pickle may name imported submodules of packages

    @classmethod
    def of(cls, function: Any) -> PackedFunction | None:
        """Pickle a function.

        Returns:
            The pickled function, or `None` if the function refers to objects that can change in
            place or are large, or if it cannot be pickled.
        """
        packed = cls()
        try:
            if not packed._refer(function):
                return None
            packed.data = dumps(function)
        except Exception:  # reported when the whole call is packed
            return None
        codes = [code for _, code, _ in packed._functions]  # pickled by value
        packed.reusable = bool(codes) and not any(map(_can_change, codes))
        return packed

    def is_current(self) -> bool:
        """Return True if everything that the function refers to is unchanged."""
        if self._functions and len(sys.modules) != self._modules:
            return False
        for names, name, value in self._named:
            if names.get(name, MISSING) is not value:
                return False
        for cell, value in self._cells:
            if content_of(cell) is not value:
                return False
        for each, code, defaults in self._functions:
            if each.__code__ is not code or each.__defaults__ is not defaults or not _is_bare(each):
                return False
        return True

    def _refer(self, value: Any) -> bool:
        """Record the objects that a value refers to.

        Returns:
            True if all of them are small and none can change in place, otherwise False.
        """
        kind = type(value)
        self._left -= 8
        if kind in PLAIN:
            self._left = is_small((value,), self._left)
        if self._left <= 0 or kind in PLAIN:
            return self._left > 0
        if kind is tuple or kind is frozenset:
            return all(map(self._refer, value))
        if kind is types.ModuleType:
            return sys.modules.get(value.__name__) is value
        if issubclass(kind, type):
            return self._by_reference(value)
        return kind in NAMED and (self._by_reference(value) or self._by_value(value))

    def _by_reference(self, value: Any) -> bool:
        module, name = value.__module__, value.__qualname__
        if type(module) is not str or module == "__main__":
            return False
        names = getattr(sys.modules.get(module), "__dict__", {})
        if names.get(name) is not value:
            return False
        self._named.append((names, name, value))
        return True

    def _by_value(self, function: Any) -> bool:
        if type(function) is not types.FunctionType or not _is_bare(function):
            return False
        if any(function is each for each, _, _ in self._functions):
            return True
        code, names = function.__code__, function.__globals__
        self._functions.append((function, code, function.__defaults__))
        cells = [(cell, content_of(cell)) for cell in function.__closure__ or ()]
        named = [(names, name, names.get(name, MISSING)) for name in _names(code)]
        self._cells += cells
        self._named += named
        values = [*(value for _, value in cells), *(value for _, _, value in named)]
        return (
            all(value is MISSING or self._refer(value) for value in values)
            and self._refer(function.__defaults__ or ())
            and all(map(self._is_type, function.__annotations__.values()))
        )

    def _is_type(self, annotation: Any) -> bool:
        """Return True if pickling an annotation runs no other code."""
        if type(annotation) in GENERIC or type(annotation).__module__ == "typing":
            origin = getattr(annotation, "__origin__", None)
            parts = [*getattr(annotation, "__args__", [MISSING])]
            parts += [origin] if isinstance(origin, type) else []
            return annotation is Any or (
                all(map(self._is_type, parts)) and not hasattr(annotation, "__metadata__")
            )
        return annotation in (..., types.NoneType) or self._refer(annotation)


def _is_bare(function: types.FunctionType) -> bool:
    return not function.__dict__ and not function.__kwdefaults__


@lru_cache(256)
def _names(code: types.CodeType) -> frozenset[str]:
    """Return the names of the globals and attributes that code may use."""
    return frozenset(name for each in with_inner(code) for name in each.co_names)


@lru_cache(256)
def _can_change(code: types.CodeType) -> bool:
    """Return True if code may change its own function or an object to which the function refers."""
    if any(name in REFLECTION or name.startswith(("__", "f_")) for name in _names(code)):
        return True
    return bool(names_stored(code, "GLOBAL", "ATTR", "DEREF"))
