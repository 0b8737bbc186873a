"""Values in a JSON file, each with its place in it, checked as they are taken out."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from rhapsody.errors import RhapsodyError

_LONGEST = 60


class InstanceError(RhapsodyError, ValueError):
    """The file of an instance is malformed: its message has the place in it."""


def on_one_line(text: str) -> str:
    """The text with what cannot be printed, such as line breaks, written as in Python."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class Value:
    """A value in a JSON file.

    Args:
        file: The file, for errors.
        place: Where it stands in it, such as `workflow.tasks[3].parents[0]`.
        value: The value as `json` gives it.
    """

    def __init__(self, file: str, place: str, value: Any) -> None:
        self._file = file
        self.place: str = place
        self.value: Any = value

    @classmethod
    def of_json(cls, file: str, content: str | bytes) -> Value:
        """The whole of a file with this content.

        Raises:
            InstanceError: It is not JSON, or more than can be read.
        """
        try:
            return cls(file, "", json.loads(content))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            problem = f"this is not JSON: {error}; a WfCommons instance is a JSON file"
        except RecursionError:
            problem = "its lists and objects are nested too deep to be read"
        except ValueError:  # what `int` says of thousands of digits
            problem = "a number in it has too many digits to be read"
        raise InstanceError(f"{file}: {problem}")

    def __str__(self) -> str:
        """The value as it stands in the file, cut where it is long."""
        shown = json.dumps(self.value, ensure_ascii=False)
        shown = shown.encode("utf-8", "backslashreplace").decode()  # "\\ud800" is JSON
        return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."

    def fail(self, problem: str) -> NoReturn:
        """Raises for this value.

        Raises:
            InstanceError: With its file and place, and the problem.
        """
        raise InstanceError(f"{self._file}: {self.place or 'top level'}: {on_one_line(problem)}")

    def refuse(self, accepted: str) -> NoReturn:
        """Raises for a value in place of which something else is accepted.

        Raises:
            InstanceError: With its place, what it is, and what would be accepted.
        """
        self.fail(f"{accepted} is needed, got {self}")

    def get(self, *names: str) -> Value | None:
        """The first of these members that is there; `null` is as if it were not."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        for name in names:
            if self.value.get(name) is not None:
                place = f"{self.place}.{name}" if self.place else name
                return Value(self._file, place, self.value[name])
        return None

    def need(self, *names: str) -> Value:
        """The first of these members that is there.

        Raises:
            InstanceError: None is.
        """
        found = self.get(*names)
        if found is None:
            for name in names:
                if name in self.value:
                    self.fail(f"the member {name!r} is null")
            given = ", ".join(map(repr, self.value)) or "no members"
            wanted = " or ".join(map(repr, names))
            self.fail(f"the member {wanted} is missing; it has {given}")
        return found

    def items(self, *names: str, empty: bool = True) -> Iterator[Value]:
        """What is in a list, that of the first of these members where any are named.

        A member that is not there is an empty list.
        """
        found = self.get(*names) if names else self
        if found is None:
            return
        if not isinstance(found.value, list) or not (found.value or empty):
            found.refuse("a list" if empty else "a non-empty list")
        for index, value in enumerate(found.value):
            yield Value(self._file, f"{found.place}[{index}]", value)

    def text(self) -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            self.refuse("a non-empty string")
        if self.value.encode("utf-8", "replace").decode() != self.value:
            self.refuse("a string of valid Unicode")
        return str(self.value)

    def number(self, least: float = 0) -> float:
        """A finite number that is not smaller than the least one."""
        value, number = self.value, math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # a whole number of hundreds of digits
                number = float(value)
        if not math.isfinite(number) or number < least:
            self.refuse(f"a number of {least} or more")
        return number

    def whole(self, least: int = 0) -> int:
        """The same, without a fraction."""
        number = self.number(least)
        if not number.is_integer():
            self.refuse(f"a whole number of {least} or more")
        return int(self.value)

    def one_of(self, *accepted: str) -> str:
        """One of these strings."""
        if self.value not in accepted:
            self.refuse(f"one of the strings {json.dumps(accepted)[1:-1]}")
        return str(self.value)
