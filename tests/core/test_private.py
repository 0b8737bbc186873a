"""Private interfaces of the standard library still do what core expects of them."""

from __future__ import annotations

import abc
import argparse
import asyncio
import copyreg
import os

import pytest

from rhapsody import _private
from rhapsody.sdk.introspect import slots_of


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_TEST", "é")
    assert _private.environment[b"RHAPSODY_TEST"] == os.fsencode("é")
    monkeypatch.delenv("RHAPSODY_TEST")
    assert _private.environment == dict(os.environb)


def test_registered_classes() -> None:
    class Base(abc.ABC):
        @abc.abstractmethod
        def value(self) -> int: ...

    assert _private.registered_with(Base) == []
    Base.register(int)
    assert _private.registered_with(Base) == [int]


def test_arguments_of_a_parser() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    added = parser.add_argument("--name")
    assert _private.actions_of(parser) == [added]


@pytest.mark.asyncio
async def test_exceptions_that_nothing_has_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
    assert not any(map(_private.is_unseen, futures))
    for future in futures:
        future.set_exception(ValueError())
    assert all(map(_private.is_unseen, futures))
    _private.mark_seen(futures[0])
    futures[1].exception()
    assert [_private.is_unseen(each) for each in futures] == [False, False, True]
    _private.mark_seen(futures[2])
    futures.clear()
    assert not caplog.records


class Slotted:
    __slots__ = ("__dict__", "__hidden", "__weakref__", "one")


class _Inner(Slotted):
    __slots__ = "two"


class Plain(_Inner): ...


@pytest.mark.parametrize("kind", [Slotted, _Inner, Plain, int])
def test_slots_are_those_that_pickle_stores(kind: type) -> None:
    assert sorted(slots_of(kind)) == sorted(copyreg._slotnames(kind))  # type: ignore[attr-defined]
