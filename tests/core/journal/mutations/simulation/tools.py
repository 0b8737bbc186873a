"""Tools: decorators, context managers and functions that choose other functions."""

import contextlib  # seen by: managed
import functools  # seen by: dispatched registered counted
from collections.abc import Callable, Iterator  # seen by: managed registered counted generated
from string import Template  # seen by: text
from typing import Any  # seen by: registered dispatched

FUNCTIONS: dict[str, Callable[[int], int]] = {}  # seen by: registered
TEXT = Template("$name is $value")  # seen by: text


def register(
    name: str,
) -> Callable[[Callable[[int], int]], Callable[[int], int]]:  # seen by: registered
    """Return a decorator that registers a function."""

    def add(function: Callable[[int], int]) -> Callable[[int], int]:
        FUNCTIONS[name] = function
        return function

    return add


@register("double")
def double(number: int) -> int:  # seen by: registered
    """Return a number twice."""
    return number * 2


@register("next")
def following(number: int) -> int:  # seen by: registered
    """Return the next number."""
    return number + 1


@functools.singledispatch
def described(value: Any) -> str:  # seen by: dispatched
    """Return a description of a value."""
    return f"object {value}"


@described.register
def _(value: int) -> str:  # seen by: dispatched
    return f"number {value + 1}"


@described.register
def _(value: list) -> str:  # type: ignore[type-arg]  # seen by: dispatched
    return "list of " + ", ".join(described(part) for part in value)


@contextlib.contextmanager
def managed(values: list[int], extra: int = 4) -> Iterator[list[int]]:  # seen by: managed
    """Add a value while a block runs."""
    values.append(extra)
    try:
        yield values
    finally:
        values.clear()


def counter(start: int) -> Callable[[], int]:  # seen by: counted
    """Return a function that counts."""
    count = start

    def step() -> int:
        nonlocal count
        count += 2
        return count

    return step


def inner(limit: int) -> Iterator[int]:  # seen by: generated
    """Yield some numbers."""
    for number in range(limit):
        if number == 2:
            continue
        yield number


def generated(limit: int) -> Iterator[int]:  # seen by: generated
    """Yield numbers before and after others."""
    yield -1
    yield from inner(limit)
    yield from (number**2 for number in inner(3))


def text(name: str, value: float) -> str:  # seen by: text
    """Return a text by a template."""
    return TEXT.substitute(name=name, value=f"{value:.1f}")
