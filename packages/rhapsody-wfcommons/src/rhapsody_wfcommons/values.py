"""Values of a JSON file with their positions, checked when they are read."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from rhapsody import RhapsodyError

_LONGEST = 60


class InstanceError(RhapsodyError, ValueError):
    """Error for a malformed instance. The message names the file and the position in it."""


def on_one_line(text: str) -> str:
    """Return the text with line breaks and other unprintable characters escaped."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class JsonValue:
    """Value in a JSON file.

    Args:
        file: Name of the file, for error messages.
        place: Position in the file, such as `workflow.tasks[3].parents[0]`.
        value: Value as `json` returns it.
    """

    def __init__(self, file: str, place: str, value: Any) -> None:
        self._file = file
        self.place: str = place
        self.value: Any = value

    @classmethod
    def of_json(cls, file: str, content: str | bytes) -> JsonValue:
        """Parse the content of a JSON file.

        Returns:
            The content as a `JsonValue`, whose `place` is empty.

        Raises:
            InstanceError: The content is not JSON, or exceeds the limits of the parser.
        """
        try:
            return cls(file, "", json.loads(content))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            problem = f"not valid JSON: {error}; a WfCommons instance is a JSON file"
        except RecursionError:
            problem = "lists and objects are nested too deeply"
        except ValueError:  # `int` accepts only a few thousand digits
            problem = "a number has too many digits"
        raise InstanceError(f"{file}: {problem}")

    def __str__(self) -> str:
        """Return the value as JSON, shortened if it is long."""
        shown = json.dumps(self.value, ensure_ascii=False)
        shown = shown.encode("utf-8", "backslashreplace").decode()  # "\\ud800" is JSON
        return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."

    def fail(self, problem: str) -> NoReturn:
        """Raise an error about this value.

        Raises:
            InstanceError: Always; its message contains the file, the position and the problem.
        """
        raise InstanceError(f"{self._file}: {self.place or 'top level'}: {on_one_line(problem)}")

    def refuse(self, accepted: str) -> NoReturn:
        """Raise an error about a value of the wrong kind.

        Raises:
            InstanceError: Always; its message contains the position, the value, and the accepted
                values.
        """
        self.fail(f"must be {accepted}, got {self}")

    def get(self, *names: str) -> JsonValue | None:
        """Return the first member with one of these names that is not `null`, otherwise `None`."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        for name in names:
            if self.value.get(name) is not None:
                place = f"{self.place}.{name}" if self.place else name
                return JsonValue(self._file, place, self.value[name])
        return None

    def need(self, *names: str) -> JsonValue:
        """Return the first member with one of these names that is not `null`.

        Raises:
            InstanceError: There is no such member.
        """
        found = self.get(*names)
        if found is None:
            for name in names:
                if name in self.value:
                    self.fail(f"the member {name!r} is null")
            given = ", ".join(map(repr, self.value)) or "no members"
            wanted = " or ".join(map(repr, names))
            self.fail(f"the member {wanted} is missing; the object has {given}")
        return found

    def items(self, *names: str, empty: bool = True) -> Iterator[JsonValue]:
        """Iterate over a list: this value or, if names are given, one of its members.

        Args:
            *names: Accepted names of the member. The first member with one of these names is used;
                a missing member is treated as an empty list.
            empty: False if an empty list is an error.

        Yields:
            The elements of the list.
        """
        found = self.get(*names) if names else self
        if found is None:
            return
        if not isinstance(found.value, list) or not (found.value or empty):
            found.refuse("a list" if empty else "a non-empty list")
        for index, value in enumerate(found.value):
            yield JsonValue(self._file, f"{found.place}[{index}]", value)

    def text(self) -> str:
        """Return the value, which must be a non-empty string."""
        if not isinstance(self.value, str) or not self.value:
            self.refuse("a non-empty string")
        if self.value.encode("utf-8", "replace").decode() != self.value:
            self.refuse("a string of valid Unicode")
        return str(self.value)

    def number(self, least: float = 0) -> float:
        """Return the value, which must be a finite number of `least` or more."""
        value, number = self.value, math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
                number = float(value)
        if not math.isfinite(number) or number < least:
            self.refuse(f"a number of {least} or more")
        return number

    def whole(self, least: int = 0) -> int:
        """Return the value as an integer. It must be a whole number of `least` or more."""
        number = self.number(least)
        if not number.is_integer():
            self.refuse(f"a whole number of {least} or more")
        return int(self.value)

    def one_of(self, *accepted: str) -> str:
        """Return the value, which must be one of these strings."""
        if self.value not in accepted:
            self.refuse(f"one of the strings {json.dumps(accepted)[1:-1]}")
        return str(self.value)
