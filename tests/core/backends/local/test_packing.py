"""Tests of values that cannot be pickled for or in a worker process."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from typing import Any

import pytest

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.errors import TaskFailedError
from rhapsody.sdk.calls import RemoteTraceback
from rhapsody_testing import Driver
from tests._support.engine_fixtures import engine
from tests._support.local import DONE, FAILED

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]


@pytest.fixture
def driver(process_driver: Driver) -> Driver:
    return process_driver


class CustomError(Exception):
    """Cannot be unpickled the usual way: its `__init__` wants more."""

    def __init__(self, code: int, *, more: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.more = more


class StubbornError(Exception):
    """Cannot be pickled at all."""

    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


class HostileError(Exception):
    """Refuses every way."""

    def __new__(cls, *args: Any) -> HostileError:
        if args != ("one", "two"):
            raise ValueError("not like this")
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__(threading.Lock())

    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((1, threading.Lock()), {}, "positional argument 1 (lock)"),
        ((1,), {"handle": socket.socket}, None),
        ((1,), {"handle": io.StringIO, "lock": threading.Lock()}, "argument 'lock' (lock)"),
    ],
)
async def test_an_argument_that_cannot_be_pickled_is_named(
    driver: Driver, args: tuple[Any, ...], kwargs: dict[str, Any], said: str | None
) -> None:
    bad = driver.call(lambda *args, **kwargs: None, *args, **kwargs)
    bad["name"] = "bad one"
    end, other = await driver.run(bad, driver.call(int))
    assert other.state is DONE
    if said is None:
        assert end.state is DONE
        return
    assert end.state is FAILED
    assert isinstance(end.error, TypeError)
    assert said in str(end.error)
    assert "'bad one'" in str(end.error)
    assert "LocalExecutionBackend('thread')" in str(end.error)
    assert end.error.__cause__ is not None


async def test_a_function_that_cannot_be_pickled_is_named(driver: Driver) -> None:
    lock = threading.Lock()
    end = await driver.run_one(driver.call(lambda: lock))
    assert isinstance(end.error, TypeError)
    assert "variable 'lock' used by the function (lock)" in str(end.error)


async def test_an_argument_that_cannot_be_unpickled_fails_its_task(driver: Driver) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    end = await driver.run_one(driver.call(lambda bad: None, Bad()))
    assert isinstance(end.error, ValueError)
    assert "unpacked in a worker process" in end.error.__notes__[0]


async def test_a_result_that_cannot_be_pickled_says_so(driver: Driver) -> None:
    end, other = await driver.run(driver.call(lambda: threading.Lock()), driver.call(int))
    assert other.state is DONE
    assert isinstance(end.error, TypeError)
    assert "its result (lock) cannot be pickled by" in str(end.error)


async def test_a_result_that_cannot_be_unpickled_says_so(driver: Driver) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    end = await driver.run_one(driver.call(lambda: Bad()))
    assert isinstance(end.error, ValueError)
    assert "the reply of worker process" in end.error.__notes__[0]


inside, released = threading.Event(), threading.Event()


def _take_for_ever() -> None:
    inside.set()
    released.wait(30)


async def test_a_result_that_never_unpickles_delays_no_other_task() -> None:
    class Endless:
        def __reduce__(self) -> Any:
            return _take_for_ever, ()

    async with engine(LocalExecutionBackend("process", resources={"cores": 1})) as flow:
        for first in (True, False):  # the second time the engine ends meanwhile
            endless = flow.function_task(lambda: Endless())()
            assert await asyncio.to_thread(inside.wait, 30)
            inside.clear()
            if first:
                endless.cancel()
                assert await flow.function_task(list)("ab") == ["a", "b"]
    released.set()


async def test_an_exception_keeps_type_attributes_and_traceback(driver: Driver) -> None:
    class LocalError(Exception):
        pass

    def inner() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            local = LocalError("second")
            local.add_note("a note")
            raise local from error

    async def later() -> None:
        await asyncio.sleep(0)
        inner()

    for function in (inner, later):
        error = (await driver.run_one(driver.call(function))).error
        assert isinstance(error, LocalError)
        assert error.args == ("second",)
        assert error.__notes__ == ["a note"]
        assert isinstance(error.__cause__, RemoteTraceback)
        text = str(error.__cause__)
        assert "in inner" in text
        assert "KeyError: 'first'" in text
        assert "rhapsody/backends/local" not in text


async def test_an_exception_with_an_odd_init_keeps_its_type(driver: Driver) -> None:
    def fails() -> None:
        raise CustomError(7, more="more")

    error = (await driver.run_one(driver.call(fails))).error
    assert isinstance(error, CustomError)
    assert (error.args, error.code, error.more) == (("code 7",), 7, "more")


async def test_an_exception_that_cannot_be_pickled_keeps_its_type(driver: Driver) -> None:
    def fails() -> None:
        error = StubbornError("text")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        error.kept = 1  # type: ignore[attr-defined]
        raise error

    error = (await driver.run_one(driver.call(fails))).error
    assert isinstance(error, StubbornError)
    assert (error.args, error.kept) == (("text",), 1)  # type: ignore[attr-defined]
    assert isinstance(error.__cause__, RemoteTraceback)


async def test_an_exception_that_refuses_everything_is_described(driver: Driver) -> None:
    def fails() -> None:
        raise HostileError("one", "two")

    error = (await driver.run_one(driver.call(fails))).error
    assert isinstance(error, TaskFailedError)
    assert "HostileError" in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_exceptions_that_end_programs_only_fail_their_task(
    driver: Driver, kind: type[BaseException]
) -> None:
    def fails() -> None:
        raise kind(3)

    end = await driver.run_one(driver.call(fails))
    assert end.state is FAILED
    assert isinstance(end.error, kind)


async def test_a_broken_pool_of_the_function_is_its_own_failure(driver: Driver) -> None:
    from concurrent.futures.process import BrokenProcessPool

    calls = 0

    def fails() -> None:
        nonlocal calls
        calls += 1
        raise BrokenProcessPool(f"mine {calls}")

    end = await driver.run_one(driver.call(fails))
    assert isinstance(end.error, BrokenProcessPool)
    assert str(end.error) == "mine 1"
