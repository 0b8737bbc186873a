"""Futures, files and handles in a call's arguments: found at the call, replaced when the task runs.

Only exact lists, tuples, dicts, sets and defaultdicts, named tuples and the `init` fields of
dataclasses are searched. This module does not depend on tasks or backends.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import pickle
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from inspect import signature
from io import BytesIO, IOBase
from itertools import chain, islice
from pathlib import PurePath
from types import FunctionType, MappingProxyType
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from rhapsody.data import File, InputFile, Output
from rhapsody.sdk.generators import contents
from rhapsody.sdk.introspect import cached_properties
from rhapsody.sdk.value_handles import NOT_SEARCHED, WorkerValue, WorkerValueFactory
from rhapsody.staging.inheritance import FileState
from rhapsody.task import Declaration, TaskFuture

T = TypeVar("T")

MAX_DEPTH = 100
"""Maximum depth of nested containers in arguments."""

PLAIN = frozenset({int, float, bool, str, bytes, type(None), complex, bytearray, range})
"""Types that contain no futures or files."""


IMMUTABLE = PLAIN - {bytearray} | {WorkerValue}
"""Types whose instances cannot change in place."""

SIMPLE = PLAIN | {WorkerValue}
"""Types that contain no futures or files, unless an argument of a handle's factory is one."""

EXACT = frozenset({list, tuple, dict, set})

UNSEARCHED: tuple[type, ...] = (
    list, tuple, dict, set, frozenset, deque, type({}.values()), type({}.items())
)  # fmt: skip
"""Types of containers that are searched only if their exact type is in `EXACT`.

Instances of subclasses are not searched, except `defaultdict`, named tuples and dataclasses. A
future in an unsearched container is an error.
"""

HOLDERS = frozenset({"argparse", "builtins", "functools", "numpy", "pandas", "types"})
"""Modules of classes whose instances refer to objects without being containers; see `_held`."""

MAX_CHECKED_CELLS = 1000
"""Maximum number of objects in an array or a table that are checked for futures."""

MAX_CHECKED_CONTAINERS = 1000
"""Maximum number of containers inside an unsearched container that are checked for futures."""


_NO_PRODUCERS: Mapping[int, Declaration] = MappingProxyType({})
_NO_DESTINATIONS: Mapping[str, str | None] = MappingProxyType({})
_NO_STATES: Mapping[int, FileState] = MappingProxyType({})


class literal(Generic[T]):  # noqa: N801 - reads as a function: f(literal(x))
    """Wrapper for an argument that is not searched for futures and files.

    The task receives `value` itself. This is useful for large data structures, and for futures that
    are passed as objects.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value: T = value


class ArgumentScan:
    """Result of searching a call's arguments: the futures and files, and methods to replace them.

    Attributes:
        futures: Each future once, in the order of the arguments; the values are unused.
        inputs: The declared input files.
        outputs: The declared output files and directories.
        inexact: True if a future, file or `literal` is in a named tuple or in a dataclass instance.
        producers: The declared outputs that inputs stand for, by the `id` of each input.
        handles: The handles of worker values. The futures and files in the arguments of their
            factories are among `futures` and `inputs`.
        states: For a call without dependencies, the states of input files at the call, by the `id`
            of each input.
        destinations: The destinations of the outputs by name; `None` for those without. Empty for a
            call that repeats a recorded one.
    """

    __slots__ = (
        "_literals", "_touched", "destinations", "futures", "handles", "inexact", "inputs",
        "outputs", "producers", "states",
    )  # fmt: skip

    def __init__(self) -> None:
        self.futures: dict[asyncio.Future[Any], None] = {}
        self.inputs: list[InputFile] = []
        self.outputs: list[Output] = []
        self.handles: list[WorkerValue[Any]] = []
        self.inexact: bool = False
        self.producers: Mapping[int, Declaration] = _NO_PRODUCERS
        self.states: Mapping[int, FileState] = _NO_STATES
        self.destinations: Mapping[str, str | None] = _NO_DESTINATIONS
        self._literals: list[literal[Any]] = []
        self._touched: set[int] = set()  # ids of the containers around futures and files

    def __bool__(self) -> bool:
        return bool(self.handles) or self.replaces

    def copy(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """Copy the containers in the arguments that contain futures or files, at any depth.

        Returns:
            The arguments with the copies. Later calls of `fill` must pass these instead of the
            original arguments.
        """
        if not self._touched:
            return args, kwargs
        made: dict[int, Any] = {}
        copied = _Rebuild(self._touched, made, {}, _changed)
        args = tuple(map(copied, args))
        kwargs = {key: copied(value) for key, value in kwargs.items()}
        self._touched = set(map(id, made.values()))
        return args, kwargs

    def fill(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: dict[int, Any],
        replaced: Mapping[int, Any] | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with futures and files replaced and `literal` marks removed.

        Containers that contain none of these are returned unchanged, others as copies.

        Args:
            args: The positional arguments.
            kwargs: The keyword arguments.
            values: The replacement of each future and file, by its `id`. This method adds the
                values of `literal` marks.
            replaced: The replacement of other objects, by their `id`. See `KeptArguments`.
        """
        if self._literals:
            values.update((id(mark), mark.value) for mark in self._literals)
        if replaced:
            values = {key: replaced.get(id(value), value) for key, value in values.items()}
            values |= replaced
        if self._touched:
            filled = _Rebuild(self._touched, {}, values, _replaced)
            return tuple(map(filled, args)), {key: filled(each) for key, each in kwargs.items()}
        return (
            tuple(map(values.get, map(id, args), args)),
            {key: values.get(id(value), value) for key, value in kwargs.items()},
        )

    @property
    def replaces(self) -> bool:
        """True if the engine replaces arguments; handles are replaced where functions run."""
        return bool(self.futures or self.inputs or self.outputs or self._literals)

    @property
    def has_open_handles(self) -> bool:
        """True if there are handles whose factories may receive futures or files."""
        return bool(self.handles and (self.futures or self.inputs))

    def completed_handles(self, values: Mapping[int, Any]) -> dict[int, WorkerValue[Any]]:
        """Return the handles with values and paths instead of futures and files, by `id`.

        Args:
            values: The replacement of each future and file, by its `id`. If one is missing, the
                handles with it are returned unchanged.
        """
        return {id(handle): _completed(handle, values) for handle in self.handles}

    @property
    def is_open(self) -> bool:
        """True if the engine replaces arguments or containers in which there are handles."""
        return bool(self._touched) or self.has_open_handles

    @property
    def is_flat(self) -> bool:
        """True if futures, files and handles are arguments themselves, not items of containers."""
        return not self._touched

    def leaves(self, value: Any) -> Iterator[Any]:
        """Yield the objects that the task receives in an argument, without files.

        Containers of futures and files are left out, because each attempt receives copies of them.
        """
        if id(value) in self._touched:
            for child in _children(value) or ():
                yield from self.leaves(child)
        elif asyncio.isfuture(value):
            yield value.result()
        elif type(value) is literal:
            yield value.value
        elif not isinstance(value, File):
            yield value


class KeptArguments:
    """Copies of a call's arguments, for attempts after one that has changed them in place.

    Only objects that can be pickled are copied. The task receives the copies only if an earlier
    attempt has changed the originals, which the program and other tasks may share. An object that
    other unfinished calls have received as well is not replaced: the changes may be theirs, and
    what the next attempt writes into a copy would be lost.

    Args:
        values: The arguments that can change in place, each with its position or name.

    Attributes:
        replaced: The copies of changed arguments for the next attempt, by the `id` of the original.
        consumed: Position or name of an iterator that cannot be copied, or `None`.
    """

    __slots__ = ("_pickles", "_receipts", "_values", "consumed", "replaced")

    def __init__(self, values: list[tuple[int | str, Any]]) -> None:
        self._values = values
        self._receipts = [_receipt(value) for _, value in values]
        self._pickles: list[bytes | None] | None = None
        self.replaced: dict[int, Any] = {}
        self.consumed: int | str | None = None

    def keep(self) -> None:
        """Copy the arguments. Called right before the first attempt, by the backend."""
        if self._pickles is None:
            self._pickles = [_pickled(value) for _, value in self._values]
            for (name, value), packed in zip(self._values, self._pickles, strict=True):
                if packed is None and any(map(may_be_consumed, (value, *_items_of(value)))):
                    self.consumed = name

    def restore(self) -> tuple[list[int | str], list[int | str]]:
        """Make copies of the arguments that have changed, for the next attempt.

        Returns:
            The positions and names of these arguments, and those of arguments that have changed and
            are not replaced, because other calls share them.
        """
        changed: dict[int | str, None] = {}
        shared: dict[int | str, None] = {}
        kept = zip(self._values, self._pickles or (), self._receipts, strict=False)
        for (name, value), packed, receipt in kept:
            if packed is None or _is_unchanged(value, packed):
                continue
            if receipt.shared:
                shared[name] = None
            else:
                self.replaced[id(value)] = pickle.loads(packed)  # noqa: S301 - pickled by `keep`
                changed[name] = None
        return list(changed), list(shared)

    def release(self) -> None:
        """Stop sharing the arguments with other calls. Called when the task has ended."""
        self._receipts = []


class _Receipt:
    """Mark of an object that unfinished calls have received, which may be retried.

    Attributes:
        shared: True if several of these calls have received the object at the same time.
    """

    __slots__ = ("__weakref__", "shared")

    def __init__(self) -> None:
        self.shared = False


_receipts: WeakValueDictionary[int, _Receipt] = WeakValueDictionary()
"""The receipts by the `id` of the object. The `KeptArguments` of the calls keep both alive."""


def _receipt(value: object) -> _Receipt:
    receipt = _receipts.get(id(value))
    if receipt is None:
        receipt = _receipts[id(value)] = _Receipt()
    else:
        receipt.shared = True
    return receipt


def _items_of(value: object) -> Iterator[object]:
    return (item for _, item in contents(value))


def may_be_consumed(value: object) -> bool:
    """Return True for iterators, which include open files, unless a file is only for writing."""
    if isinstance(value, IOBase) and (value.closed or not value.readable()):
        return False
    return isinstance(value, Iterator)


def _pickled(value: object) -> bytes | None:
    try:
        return pickle.dumps(value, 5)
    except Exception:  # pickling runs the objects' own code
        return None


def _is_unchanged(value: object, packed: bytes) -> bool:
    """Return True if an object has the state of its pickle, except for cached properties."""
    now = _pickled(value)
    if now is None or now == packed:
        return now is not None
    kind = type(value)
    if kind not in EXACT and not kind.__dictoffset__:  # such as an array, which may be large
        return False
    try:
        # Both have been unpickled, because that changes which parts are the same object.
        former, present = (_without_caches(pickle.loads(each)) for each in (packed, now))  # noqa: S301
    except Exception:  # pickling runs the objects' own code
        return False
    return former == present


class _ArgumentPickler(pickle.Pickler):
    """Pickler that leaves out the values of cached properties."""

    def reducer_override(self, value: Any) -> Any:
        cached = cached_properties(type(value))  # type: ignore[arg-type]
        reduced = value.__reduce_ex__(5) if cached else None
        if type(reduced) is not tuple or len(reduced) < 3 or type(reduced[2]) is not dict:
            return NotImplemented
        state = {name: each for name, each in reduced[2].items() if name not in cached}
        return (*reduced[:2], state or None, *reduced[3:])


def _without_caches(value: object) -> bytes:
    stream = BytesIO()
    _ArgumentPickler(stream, 5).dump(value)
    return stream.getvalue()


def kept_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], found: ArgumentScan | None
) -> KeptArguments | None:
    """Return an object that can restore a call's arguments, or `None` if none of them can change.

    Args:
        args: The positional arguments.
        kwargs: The keyword arguments.
        found: The futures and files in the arguments, or `None`. The futures must be done.
    """
    if found is None and not kwargs and IMMUTABLE.issuperset(map(type, args)):
        return None
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    values = [
        (name, leaf)
        for name, value in named
        for leaf in ((value,) if found is None else found.leaves(value))
        if type(leaf) not in IMMUTABLE and not isinstance(leaf, type | FunctionType | PurePath)
    ]
    return KeptArguments(values) if values else None


def search(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> ArgumentScan | None:
    """Find the futures, files and handles of worker values in a call's arguments.

    Returns:
        What was found, or `None` if there is nothing.

    Raises:
        TypeError: A future is a key of a dict, or in a container that is not searched.
        ValueError: A container contains itself, or containers are nested too deeply.
    """
    values = (*args, *kwargs.values()) if kwargs else args
    if SIMPLE.issuperset(map(type, values)):
        handles = [value for value in values if type(value) is WorkerValue]
        if not handles:
            return None
        if len(handles) == 1 and _found_in(handles[0]) is None:
            return _with_handle(handles[0])
    search = _ArgumentSearch()
    return search.found if search.visit_all(values) or search.found else None


class _ArgumentSearch:
    """Search of one call's arguments."""

    def __init__(self) -> None:
        self.found = ArgumentScan()
        self._files: set[int] = set()  # ids of the files found
        self._path: list[int] = []  # ids of the containers around the current value
        self._done: dict[int, bool] = {}  # ids of searched containers; True if touched

    def visit_all(self, values: Collection[Any]) -> bool:
        """Search values; return True if a future, file or `literal` is in one of them."""
        kinds = set(map(type, values))
        if len(kinds) == 1 and issubclass(kinds.pop(), TaskFuture):
            self.found.futures.update(dict.fromkeys(values))
            return True
        touched = [self._visit(value) for value in values if type(value) not in PLAIN]
        return True in touched

    def _visit(self, value: Any) -> bool:
        kind, found = type(value), self.found
        if kind in EXACT:
            return self._visit_container(value)
        if isinstance(value, TaskFuture) or asyncio.isfuture(value):
            found.futures[value] = None
        elif isinstance(value, File):
            if id(value) not in self._files:
                self._files.add(id(value))
                into: list[Any] = found.inputs if isinstance(value, InputFile) else found.outputs
                into.append(value)
        elif kind is literal:
            found._literals.append(value)
        elif kind is WorkerValue:
            found.handles.append(value)
            if (inner := _found_in(value)) is not None:
                found.futures.update(inner.futures)
                for file in inner.inputs:
                    self._visit(file)
        elif kind is WorkerValueFactory:
            raise TypeError(
                f"an argument is the function of worker value {value.__name__!r}, not a handle of "
                f"the value: call it, as in {value.__name__}()"
            )
        else:
            return self._visit_container(value)
        return True

    def _visit_container(self, value: Any) -> bool:
        children = _children(value)
        if children is None:
            return False
        key, path = id(value), self._path
        if key in path or len(path) >= MAX_DEPTH:
            raise ValueError(
                f"an argument of type {type(value).__name__} contains itself or is nested "
                f"more than {MAX_DEPTH} levels deep; wrap it in rhapsody.literal(...) "
                "to pass it without a search for futures and files"
            )
        touched = self._done.get(key)
        if touched is None:
            path.append(key)
            touched = self._done[key] = self.visit_all(children)
            path.pop()
        if touched:
            self.found._touched.add(key)
            if type(value) not in EXACT:
                self.found.inexact = True
        return touched


def _with_handle(handle: WorkerValue[Any]) -> ArgumentScan:
    """Return what was found in arguments that contain only a handle and plain data.

    All calls with the handle share this object.
    """
    found: ArgumentScan | None = handle.alone
    if found is None:
        found = handle.alone = ArgumentScan()
        found.handles.append(handle)
    return found


def _found_in(handle: WorkerValue[Any]) -> ArgumentScan | None:
    """Return what the arguments of a worker value's factory contain; they are searched once."""
    if handle.found is NOT_SEARCHED:
        handle.found = search(handle.args, dict(handle.kwargs))
        if handle.found is not None and handle.found.outputs:
            raise TypeError(
                f"worker value {handle.name!r}: an argument contains {handle.found.outputs[0]!r}; "
                "only tasks write output files"
            )
    found: ArgumentScan | None = handle.found
    return found


def _completed(handle: WorkerValue[Any], values: Mapping[int, Any]) -> WorkerValue[Any]:
    """Return a handle with values and paths instead of futures and files; see `fill`.

    A handle stays as it is as long as its files have not been found.
    """
    found = _found_in(handle)
    if found is None or not all(id(each) in values for each in (*found.futures, *found.inputs)):
        return handle
    own = {id(each): values[id(each)] for each in (*found.futures, *found.inputs)}
    for inner in found.handles:
        own[id(inner)] = _completed(inner, values)
    files = [own[id(each)] for each in found.inputs]
    args, kwargs = found.fill(handle.args, dict(handle.kwargs), dict(own))
    return handle.with_arguments(args, kwargs, list(own.values()), files)


def _children(value: Any) -> Any:
    """Return the values to search in a container, or `None` if there is nothing to search."""
    kind = type(value)
    if kind is list or kind is tuple or kind is set:
        children = value
    elif kind is dict:
        if not PLAIN.issuperset(map(type, value)):
            _check_keys(value)
        children = value.values()
    elif isinstance(value, tuple) and hasattr(kind, "_fields"):
        children = value
    elif kind is defaultdict:
        _check_keys(value)
        children = value.values()
    elif hasattr(kind, "__dataclass_fields__") and not isinstance(value, type):
        children = [getattr(value, f.name) for f in dataclasses.fields(value) if f.init]
    else:
        if isinstance(value, UNSEARCHED):
            _require_no_future(value, value)
        elif kind.__module__ in HOLDERS and (held := _held(value)):
            _require_no_future(held, value, nested=True)
        return None
    # Big plain data is skipped at the speed of C.
    return None if PLAIN.issuperset(map(type, children)) else children


def _held(value: Any) -> tuple[Any, ...]:
    """Return the objects that an array, table, namespace, partial or iterator refers to.

    Only the first objects of arrays and tables are returned. Iterators are not advanced.
    """
    kind = type(value)
    if kind.__module__ == "builtins":
        if hasattr(kind, "__next__"):
            with suppress(TypeError):  # it cannot be copied, like a generator
                return _iterated(value)
    elif hasattr(kind, "dtype"):
        if getattr(value.dtype, "hasobject", False):
            return tuple(islice(getattr(value, "flat", value), MAX_CHECKED_CELLS))
    elif hasattr(kind, "dtypes") and hasattr(kind, "iloc"):
        columns = [n for n, dtype in enumerate(value.dtypes) if getattr(dtype, "hasobject", False)]
        rows = max(1, MAX_CHECKED_CELLS // max(1, len(columns)))
        return tuple(chain.from_iterable(value.iloc[:rows, n] for n in columns))
    elif isinstance(value, partial):
        return *value.args, *value.keywords.values()
    elif kind.__module__ in ("argparse", "types"):
        return tuple(getattr(value, "__dict__", {}).values())
    return ()


def _iterated(value: Any) -> tuple[Any, ...]:
    """Return the containers that one of Python's own iterators reads, without advancing it."""
    found: list[Any] = []
    for part in value.__reduce__()[1]:
        if isinstance(part, Iterator) and type(part).__module__ == "builtins":
            found += _iterated(part)
        else:
            found.append(part)
    return tuple(found)


def _require_no_future(value: Any, outer: Any, *, nested: bool = False) -> None:
    """Check that no future is in an unsearched container, or in a container directly inside it.

    Types are checked first, which is fast; objects are checked only if one may be a future.

    Raises:
        TypeError: A future was found; the message names the outer container.
    """
    kinds = set(map(type, _items(value)))
    if PLAIN.issuperset(kinds):
        return
    if any(hasattr(kind, "_asyncio_future_blocking") for kind in kinds):
        for item in _items(value):
            if asyncio.isfuture(item):
                name = type(outer).__name__
                raise TypeError(
                    f"an argument contains a future in a container of type {name}: {item!r}. Only "
                    "lists, tuples, dicts, sets (not their subclasses), defaultdicts, named "
                    "tuples and dataclasses are searched for futures; use one of these, or wrap "
                    "the container in rhapsody.literal(...) to pass the future itself"
                )
    if (nested or value is outer) and any(issubclass(kind, UNSEARCHED) for kind in kinds):
        inner = (item for item in _items(value) if isinstance(item, UNSEARCHED))
        for item in islice(inner, MAX_CHECKED_CONTAINERS):
            _require_no_future(item, outer)


def _items(value: Any) -> Iterator[Any]:
    """Iterate over the items of a container; ignore methods that its class overrides."""
    if isinstance(value, dict):
        return iter(dict.values(value))
    kind: Any = next(kind for kind in UNSEARCHED if isinstance(value, kind))
    items: Iterator[Any] = kind.__iter__(value)
    return items


def _check_keys(value: dict[Any, Any]) -> None:
    """Raise `TypeError` if a future is a key of a dict, or in a tuple that is a key."""
    for key in value:
        for part in key if type(key) is tuple else (key,):
            if asyncio.isfuture(part):
                raise TypeError(
                    f"an argument contains a dict with a future in a key: {part!r}. Only the "
                    "values of dicts are searched for futures; wrap the dict in "
                    "rhapsody.literal(...) to pass the future itself"
                )


_anew: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
"""Cached results of `_made_anew`, the slowest function of this module."""


def _made_anew(kind: type) -> bool:
    """Return True if a dataclass has `__post_init__` and its `__init__` takes only its fields."""
    if not hasattr(kind, "__post_init__"):
        return False
    answer = _anew.get(kind)
    if answer is None:
        fields = {field.name for field in dataclasses.fields(kind) if field.init}
        answer = _anew[kind] = signature(kind).parameters.keys() <= fields
    return answer


def _replaced(value: Any, changes: dict[str, Any]) -> Any:
    """Return a copy of a dataclass instance with some `init` fields replaced.

    `__init__` is called only if the class has a `__post_init__`, which may compute other fields.
    """
    if _made_anew(type(value)):
        return dataclasses.replace(value, **changes)
    return _changed(value, changes)


def _changed(value: Any, changes: dict[str, Any]) -> Any:
    """Return a copy of a dataclass instance with some values replaced; `__init__` is not called."""
    new = copy.copy(value)  # with attributes that `__init__` does not set
    for name, change in changes.items():
        object.__setattr__(new, name, change)  # also works for frozen dataclasses
    return new


class _Rebuild:
    """Callable that copies a value and replaces the futures and files in it.

    Only the containers of futures and files are copied.

    Args:
        touched: The ids of the containers to copy.
        made: The copies by the ids of the originals, so that each container is copied once.
        values: The replacements of futures and files, by the ids of the originals.
        dataclass: Function that returns a copy of a dataclass instance with other values in its
            `init` fields.
    """

    def __init__(
        self,
        touched: set[int],
        made: dict[int, Any],
        values: Mapping[int, Any],
        dataclass: Callable[[Any, dict[str, Any]], Any],
    ) -> None:
        self._touched = touched
        self._made = made
        self._values = values
        self._dataclass = dataclass

    def __call__(self, value: Any) -> Any:
        key = id(value)
        if key not in self._touched:
            return self._values.get(key, value)
        if key in self._made:
            return self._made[key]
        kind = type(value)
        new: Any
        if kind is dict:
            new = {k: self(v) for k, v in value.items()}
        elif kind is list or kind is set or kind is tuple:
            new = kind(map(self, value))
        elif isinstance(value, tuple):
            new = kind._make(map(self, value))
        elif kind is defaultdict:
            new = defaultdict(value.default_factory, {k: self(v) for k, v in value.items()})
        else:
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            new = self._dataclass(value, {name: self(getattr(value, name)) for name in fields})
        self._made[key] = new
        return new


def texts_in(value: object, *, numbers: bool = False) -> tuple[str, ...]:
    """Return the strings and paths in a value, as text.

    Lists, tuples, sets and the values of dicts are searched, at any depth.

    Args:
        value: The value.
        numbers: True to include integers, as text.
    """
    found: dict[str, None] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str | PurePath) or (numbers and type(one) is int):
            found[str(one)] = None
        elif type(one) in (list, tuple, set, frozenset):
            waiting.extend(cast("Iterable[object]", one))
        elif type(one) is dict:
            waiting.extend(one.values())
    return tuple(found)
