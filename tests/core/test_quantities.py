"""Sizes of memory and durations as users write them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.resources import memory_in_bytes, seconds


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (0, 0),
        (2048, 2048),
        ("2048", 2048),
        ("1 kB", 1000),
        ("1k", 1000),
        ("1 KiB", 1024),
        ("1Ki", 1024),
        ("500 MB", 500_000_000),
        ("2 GiB", 2 * 1024**3),
        (" 1.5 gib ", 3 * 1024**3 // 2),
        ("0.1 kB", 100),
        ("1 TB", 10**12),
        ("1 PiB", 1024**5),
        ("7 B", 7),
    ],
)
def test_memory_is_bytes_or_text_with_decimal_and_binary_prefixes(
    memory: int | str, expected: int
) -> None:
    assert memory_in_bytes(memory) == expected


@pytest.mark.parametrize("memory", ["", "GiB", "2 GiBs", "-1 MB", "1 e3", "two", "1,5 GB", -1])
def test_a_memory_that_is_no_size_is_a_value_error_that_shows_it(memory: int | str) -> None:
    with pytest.raises(ValueError, match="memory must") as raised:
        memory_in_bytes(memory)
    assert str(memory) in str(raised.value)


@pytest.mark.parametrize("memory", [None, 1.5, True, b"1"])
def test_a_memory_of_the_wrong_type_is_a_type_error_that_shows_it(memory: Any) -> None:
    with pytest.raises(TypeError, match=f"'2 GiB', got {memory!r}"):
        memory_in_bytes(memory)


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["", "k", "M", "G", "T", "P"]))
def test_a_binary_prefix_is_never_less_than_its_decimal_one(number: int, prefix: str) -> None:
    decimal = memory_in_bytes(f"{number} {prefix}B")
    assert memory_in_bytes(f"{number} {prefix}iB") >= decimal >= number


def test_a_duration_is_a_finite_positive_number_of_seconds() -> None:
    assert seconds("timeout", 2) == 2.0
    assert isinstance(seconds("timeout", 2), float)
    assert seconds("wait", 0, zero=True) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("3 min", 180),
        ("3min", 180),
        ("1h30m", 5400),
        (" 1 hour 30 minutes ", 5400),
        ("2 d 1 s", 172801),
        ("1.5 H", 5400),
        ("250 ms", 0.25),
        ("1s 500ms", 1.5),
    ],
)
def test_a_duration_may_be_text_with_units(text: str, expected: float) -> None:
    assert seconds("timeout", text) == expected


@pytest.mark.parametrize(
    "text", ["", "min", "-3 min", "3 mins ago", "1h30", "30m1h", "1h1h", "1:30", "1e3", "3 months"]
)
def test_text_that_is_no_duration_is_a_value_error_that_shows_it(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"timeout must be a number of seconds or text such as"
    ) as raised:
        seconds("timeout", text)
    assert repr(text) in str(raised.value)


def test_a_duration_of_zero_is_refused_as_text_too() -> None:
    with pytest.raises(ValueError, match="positive number of seconds, got '0 s'"):
        seconds("timeout", "0 s")
    assert seconds("wait", "0 s", zero=True) == 0


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_duration_that_cannot_be_is_a_value_error_that_names_the_argument(value: float) -> None:
    message = f"timeout must be a finite, positive number of seconds, got {value!r}"
    with pytest.raises(ValueError, match=message):
        seconds("timeout", value)


@pytest.mark.parametrize("value", [None, b"3", True, [1]])
def test_a_duration_of_the_wrong_type_is_a_type_error_that_names_the_argument(value: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be a number of seconds or text"):
        seconds("timeout", value)
