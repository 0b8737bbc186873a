"""Sizes of memory and durations as users write them, checked and converted."""

from __future__ import annotations

import math
import re

_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?\s*", re.IGNORECASE)

_NUMBER = re.compile(r"\s*\d+(?:\.\d+)?\s*")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_DURATION = re.compile(rf"\s*(?:{_PART.pattern}\s*)+", re.IGNORECASE)
_UNITS: dict[str, float] = {
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
}


def memory_in_bytes(memory: int | str, argument: str = "memory") -> int:
    """Return the bytes in a memory size such as `2048`, `"500 MB"` or `"2 GiB"`.

    `kB`, `MB`, ... are powers of 1000, `KiB`, `MiB`, ... of 1024 (IEC 80000-13).

    Args:
        memory: The size.
        argument: The argument's name, for the error.

    Raises:
        ValueError: The text is not a size, or the size is negative.
        TypeError: Neither a number nor a string.
    """
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise TypeError(f"{argument} must be bytes or text such as '2 GiB', not {memory!r}")
    if isinstance(memory, int):
        if memory < 0:
            raise ValueError(f"{argument} must not be negative, got {memory}")
        return memory
    match = _MEMORY.fullmatch(memory)
    if match is None:
        raise ValueError(f"{argument} must look like '500 MB' or '2 GiB', got {memory!r}")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    power: int = " kmgtp".index(prefix.lower() or " ")
    return math.ceil(float(number) * float(base) ** power)


def seconds(argument: str, value: object, *, zero: bool = False) -> float:
    """Return the seconds in a duration such as `90`, `"90"`, `"3 min"` or `"1h30m"`.

    The units are `w`, `d`, `h`, `min` or `m`, `s` and `ms`, also written out, the largest first.

    Args:
        argument: The argument's name, for the error.
        value: What was given.
        zero: Whether 0 is accepted.

    Raises:
        TypeError: Neither a number nor a string.
        ValueError: The text is not a duration, or the number is not finite, negative, or 0 although
            that is not accepted.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(
            f"{argument} must be a number of seconds or text such as '3 min', got {value!r}"
        )
    number = _seconds_in(argument, value) if isinstance(value, str) else value
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{argument} must be {least} seconds, got {value!r}")
    return float(number)


def _seconds_in(argument: str, text: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    total, last = 0.0, math.inf
    if _DURATION.fullmatch(text):
        for number, word in _PART.findall(text):
            unit = _UNITS.get(word.lower(), math.inf)
            if unit >= last:  # unknown, given twice, or not in order
                break
            total, last = total + float(number) * unit, unit
        else:
            return total
    raise ValueError(
        f"{argument} must be seconds or text such as '90 s', '3 min' or '1h30m' (units: w, d, "
        f"h, min, s, ms), got {text!r}"
    )


def size_text(size: float) -> str:
    """Return a size in bytes for people, in powers of 1000."""
    number, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.{0 if units[0] == 'B' else 1}f} {units[0]}"
