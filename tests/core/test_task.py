"""Kinds of tasks, and what is left of one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody.task import AttemptInfo, is_async, task_kind


async def coroutine(x: int = 0) -> int:
    return x


def plain(x: int = 0) -> int:
    return x


class Callables:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...

    def plain(self) -> None: ...

    @staticmethod
    async def static() -> None: ...


class PlainCallable:
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        coroutine,
        functools.partial(coroutine, 1),
        functools.partial(functools.partial(coroutine), x=1),
        Callables(),
        functools.partial(Callables()),
        Callables().method,
        Callables.static,
    ],
)
def test_what_gives_a_coroutine_is_seen_as_asynchronous(function: Callable[..., Any]) -> None:
    assert is_async(function)
    assert task_kind({"function": function, "is_service": False}) == "async_function"


@pytest.mark.parametrize(
    "function",
    [plain, functools.partial(plain, 1), lambda: 1, PlainCallable(), Callables().plain, len, int],
)
def test_what_gives_a_value_is_seen_as_synchronous(function: Callable[..., Any]) -> None:
    assert not is_async(function)
    assert task_kind({"function": function, "is_service": False}) == "function"


def test_services_and_executables_differ() -> None:
    assert task_kind({"function": None, "executable": "true"}) == "executable"
    assert task_kind({"function": None, "executable": "x", "is_service": True}) == "service"
    assert task_kind({"function": plain, "is_service": True}) == "function_service"
    assert task_kind({"function": coroutine, "is_service": True}) == "function_service"


def test_an_outcome_holds_nothing_but_what_it_was_given() -> None:
    outcome = AttemptInfo(uid="u")
    assert (outcome.stdout, outcome.exit_code, outcome.files.sandbox) == (None,) * 3
    assert outcome.files.output_files == ()
