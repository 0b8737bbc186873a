"""Addresses of services in results and arguments.

The readiness information of a service, such as `("localhost", 43211)`, is not part of the keys of
tasks that receive the service, because it differs from run to run. Therefore, its parts (the texts
and numbers in it) are searched for in two places: in the results of these tasks, which are reused
only while the address is the same, and in the arguments of other tasks, which use the service if
they receive its address.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import stat
import types
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import PurePath
from typing import Any

from rhapsody.reading import pieces
from rhapsody.sdk.introspect import content_of
from rhapsody.sdk.value_handles import WorkerValue

PLAIN = (
    str, int, bytes, PurePath, list, tuple, dict, set, frozenset, types.MappingProxyType,
    types.FunctionType, types.MethodType, partial, WorkerValue,
)  # fmt: skip
"""Types of the variables of code in which addresses of services are found."""

MAX_FILE_SIZE = 1 << 16
"""Maximum size of files that are searched, in bytes."""

MAX_NUMBERS = 50
"""Number of numbers in a value from which a number is regarded as data, not as a port, unless a
colon or an equals sign precedes it, or the value also contains another part of the address."""

_SHORTEST = 4  # shorter texts occur with other meanings

_PORT = re.compile(r"(?:^|:)([0-9]{4,5})(?![0-9])")

_NUMBER = re.compile(r"(?<![\w.])[0-9]{4,5}(?!\w|\.[0-9])", re.ASCII)

_MARKED = re.compile(r"[:=]([0-9]{4,5})(?!\w|\.[0-9])", re.ASCII)


def texts_of(
    values: Iterable[object], factories: list[Callable[..., object]] | None = None
) -> set[str]:
    """Return the strings, bytes, paths and integers in values, as text.

    Containers and the attributes of objects are searched at any depth, as far as objects can be
    pickled, and so are the defaults and closures of functions, where they are of one of the types
    in `PLAIN`, and the arguments of worker values.

    Args:
        values: The values.
        factories: List to which the factories of worker values among the values are added.
    """
    texts = _Texts(values)
    while texts.left:
        with contextlib.suppress(Exception):  # any error raised by a user's class
            texts.dump(texts.left.pop())
    if factories is not None:
        factories += texts.factories
    return texts.found


def parts_of(addresses: Iterable[object]) -> set[str]:
    """Return the parts of addresses: the texts in them, and the ports in these texts."""
    texts = {text for text in texts_of(addresses) if len(text) >= _SHORTEST}
    return texts.union(*map(_PORT.findall, texts))


def contained(parts: Iterable[str], texts: Collection[str]) -> list[str]:
    """Return the parts of the addresses of one service that texts contain."""
    found = [part for part in parts if any(part in text for text in texts)]
    ports = [part for part in found if _is_port(part)]
    if not ports:
        return found
    found = [part for part in found if part not in ports]
    numbers = {number for text in texts for number in _NUMBER.findall(text)}
    if len(numbers) > MAX_NUMBERS and not found:
        numbers = {number for text in texts for number in _MARKED.findall(text)}
    return [*found, *numbers.intersection(ports)]


def identifies(parts: Iterable[str], some: Iterable[str]) -> bool:
    """Return True if some parts of an address distinguish its service from others.

    If an address has a port, the port does, because several services may have the same host.
    """
    return any(map(_is_port, some)) or (any(some) and not any(map(_is_port, parts)))


def texts_in_files(paths: Iterable[str | None]) -> set[str]:
    """Return the contents of those files that are small, as text."""
    texts = set()
    for path in filter(None, paths):
        with contextlib.suppress(OSError):
            about = os.stat(path)
            if stat.S_ISREG(about.st_mode) and about.st_size <= MAX_FILE_SIZE:
                texts.add(b"".join(pieces(path)).decode(errors="replace"))
    return texts


def _is_port(part: str) -> bool:
    return _PORT.fullmatch(part) is not None


class _Sink:
    """File that discards what is written to it."""

    def write(self, data: Any) -> int:
        return len(data)


class _Texts(pickle.Pickler):
    """Collector of the texts and integers in values, which pickle visits."""

    def __init__(self, values: Iterable[object]) -> None:
        # Large buffers, as of arrays, are not copied.
        super().__init__(_Sink(), pickle.HIGHEST_PROTOCOL, buffer_callback=lambda _: False)
        self.found: set[str] = set()
        self.left: list[object] = [*values]
        self.factories: list[Callable[..., object]] = []
        self._functions: set[int] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, WorkerValue):
            self.factories.append(value.definition.factory)
            self.left += [value.definition.factory, value.args, dict(value.kwargs)]
            return tuple, ()
        # The parts are searched one after the other, because pickle ends at an object that it does
        # not support, such as a module or an object of a class that is defined in a function.
        if isinstance(value, types.MappingProxyType):
            self.left.append(dict(value))
        elif isinstance(value, types.FunctionType):
            if id(value) not in self._functions:
                self._functions.add(id(value))
                inside = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
                inside += map(content_of, value.__closure__ or ())
                self.left += [each for each in inside if isinstance(each, PLAIN)]
        elif value is tuple:
            return NotImplemented  # what this method returns
        elif not isinstance(value, type):
            with contextlib.suppress(Exception):  # any error raised by a user's class
                made = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
                self.left += () if isinstance(made, str) else made[1:]
        return tuple, ()

    def persistent_id(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, str):
            self.found.add(str.__str__(value))
        elif kind is int or isinstance(value, PurePath):
            self.found.add(str(value))
        elif kind is bytes or kind is bytearray:
            self.found.add(value.decode(errors="replace"))
