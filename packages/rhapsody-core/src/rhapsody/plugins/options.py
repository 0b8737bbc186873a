"""Options of backends as data: name, type, default and help.

With these descriptions, options can be documented and checked without importing the backend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from rhapsody.spelling import suggestion

_WORDS: Mapping[Any, tuple[str, str]] = {
    Any: ("any", "any value"),
    str: ("str", "a string"),
    int: ("int", "a whole number"),
    float: ("float", "a number"),
    bool: ("bool", "true or false"),
    list: ("list", "a list"),
    dict: ("table", "a table"),
    Path: ("path", "a path"),
}
"""The short name and the description of each type."""


@dataclass(frozen=True, slots=True)
class BackendOption:
    """Option of a backend.

    Attributes:
        name: The name of the option: an argument of the backend's class, or a key of its argument
            `resources`.
        type: The type of the value: `str`, `int`, `float`, `bool`, `list`, `dict`,
            `pathlib.Path`, a `Literal`, a list such as `list[str]`, or a union of these; `Any` for
            no check. In a profile, a relative path starts at the directory of the file.
        default: The value if the option is not set; `None` if there is none.
        help: A description. Options without one are listed by name only.
        instead: The alternative, for a name that users may expect but that is not an option.

    Raises:
        TypeError: The name is not an identifier, or the type is none of the types above.
    """

    name: str
    type: Any = Any
    default: Any = None
    help: str = ""
    instead: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise TypeError(f"BackendOption: name must be an identifier, got {self.name!r}")
        if not all(_known(each) for each in _choices(self.type)):
            raise TypeError(f"BackendOption {self.name!r}: unsupported type {self.type!r}")

    def accepts(self, value: object) -> bool:
        """Return True if a value has the type of the option."""
        return any(_fits(value, each) for each in _choices(self.type))

    @property
    def type_name(self) -> str:
        """The type as a short text, such as `int | str`."""
        return " | ".join(_short(each) for each in _choices(self.type))

    @property
    def expected(self) -> str:
        """A description of the accepted values, such as `a whole number or a string`."""
        choices = [
            json.dumps(value)
            for each in _choices(self.type)
            for value in (get_args(each) if get_origin(each) is Literal else ())
        ]
        others = [_long(each) for each in _choices(self.type) if get_origin(each) is not Literal]
        return " or ".join([*choices, *others])

    def as_dict(self) -> dict[str, Any]:
        """Return the option as plain values, for JSON."""
        default = str(self.default) if isinstance(self.default, Path) else self.default
        return {
            "name": self.name,
            "type": self.type_name,
            "default": default,
            "help": self.help,
        }


def option_hint(name: str, options: Mapping[str, BackendOption]) -> str | None:
    """Return the hint for the name of an option that a backend does not have, or `None`."""
    option = options.get(name)
    if option is None:
        real = [each.name for each in options.values() if not each.instead]
        return suggestion(name, real, "options")
    return f"; {option.instead}" if option.instead else None


def _choices(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself; `None` is not a value in TOML."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(each for each in get_args(kind) if each is not NoneType)
    return (kind,)


def _known(kind: Any) -> bool:
    if get_origin(kind) is list:
        return all(_known(each) for each in _choices(get_args(kind)[0]))
    return get_origin(kind) is Literal or kind in _WORDS


def _fits(value: object, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return value in get_args(kind) and not isinstance(value, bool)
    if get_origin(kind) is list:
        items = value if isinstance(value, list | tuple) else None
        return items is not None and all(
            any(_fits(item, each) for each in _choices(get_args(kind)[0])) for item in items
        )
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    if kind is Path:
        return isinstance(value, str | os.PathLike)
    if kind is dict:
        return isinstance(value, Mapping)
    return isinstance(value, (list, tuple) if kind is list else kind)


def _short(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(json.dumps(each) for each in get_args(kind))
    if get_origin(kind) is list:
        return f"list[{' | '.join(_short(each) for each in _choices(get_args(kind)[0]))}]"
    return _WORDS[kind][0]


def _long(kind: Any) -> str:
    return f"a {_short(kind)}" if get_origin(kind) is list else _WORDS[kind][1]
