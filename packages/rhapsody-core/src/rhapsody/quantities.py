"""Sizes of memory and durations as users write them, checked.

What they are for is said where they are used; these only know what a number must be.
"""

from __future__ import annotations

import math
import re

_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?\s*", re.IGNORECASE)


def memory_in_bytes(memory: int | str, argument: str = "memory") -> int:
    """Bytes in a memory size such as `2048`, `"500 MB"` or `"2 GiB"`.

    `kB`, `MB`, ... are powers of 1000, `KiB`, `MiB`, ... of 1024 (IEC 80000-13).
    `argument` is what errors call it.

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
    """A duration given by a user, checked.

    Args:
        argument: The argument's name, for the error.
        value: What was given.
        zero: Whether 0 is accepted.

    Raises:
        TypeError: Not a number.
        ValueError: Not finite, negative, or 0 where that is not accepted.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{argument} must be a number of seconds, got {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{argument} must be {least} seconds, got {value!r}")
    return float(value)
