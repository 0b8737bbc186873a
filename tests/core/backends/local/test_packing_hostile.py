"""Objects whose methods raise cost no worker and no result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import DependencyFailureError, WorkflowEngine
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.errors import TaskFailedError
from tests._support.engine_fixtures import engine

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]

OF_EXCEPTIONS = ["__str__", "__repr__", "__reduce_ex__", "__setattr__", "__bool__", "__eq__"]
"""Methods of exceptions that users may get wrong, or that refuse, as in frozen dataclasses."""

OF_VALUES = [*OF_EXCEPTIONS, "__getattribute__", "__class__"]
"""Methods of results: the engine does not look at them."""


def hostile(method: str, problem: type[BaseException], base: type[Any]) -> type[Any]:
    """A class whose objects raise when they are dealt with in one way."""

    def refuse(self: Any, *args: Any) -> Any:
        raise problem(method)

    return type("Hostile", (base,), {method: property(refuse) if method == "__class__" else refuse})


@pytest_asyncio.fixture(loop_scope="module", params=["thread", "process", "executor"])
async def flow(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEngine]:
    """An engine with one worker, which is lost for all others where one task takes it."""
    with ThreadPoolExecutor(1) as pool:
        executor = pool if request.param == "executor" else request.param
        backend = LocalExecutionBackend(executor, resources={"workers": 1})
        async with engine(backend) as flow:
            yield flow


def raises(kind: type[BaseException]) -> None:
    raise kind("on purpose")


async def raises_later(kind: type[BaseException]) -> None:
    raise kind("on purpose")


async def raised(future: asyncio.Future[Any]) -> BaseException:
    """Return the exception that awaiting a future raises."""
    try:
        await future
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("base", [Exception, BaseException])
@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
async def test_a_hostile_exception_is_reported_and_the_worker_stays(
    flow: WorkflowEngine, problem: type[BaseException], base: type[BaseException]
) -> None:
    kinds = [hostile(method, problem, base) for method in OF_EXCEPTIONS]
    use = flow.function_task(name="use")(lambda x: x)
    for function in (raises, raises_later):
        for resources in (None, {"cores": 0}):
            task = flow.function_task(name="bad", resources=resources)(function)
            for method, kind in zip(OF_EXCEPTIONS, kinds, strict=True):
                bad = task(kind)
                error = await raised(use(bad))
                assert type(error) is DependencyFailureError, method
                assert type(await raised(bad)).__name__ == "Hostile", method
    assert await use(3) == 3


async def test_the_text_of_an_exception_that_cannot_be_pickled_is_kept(
    process_backend: LocalExecutionBackend,
) -> None:
    async with engine(process_backend) as flow:

        @flow.function_task
        def bad() -> None:
            class Deep(Exception):  # noqa: N818 - its name is looked for
                def __new__(cls, *args: Any) -> Any:
                    if args != ("the reason",):
                        raise KeyboardInterrupt
                    return super().__new__(cls, *args)

                def __reduce_ex__(self, protocol: Any) -> Any:
                    raise SystemExit(3)

            error = Deep("the reason")
            error.args = ()
            raise error

        error = await raised(bad())
        assert type(error) is TaskFailedError
        assert "Deep" in str(error)
        await flow.shutdown(skip_execution_backend=True)


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
async def test_a_block_may_raise_or_return_what_resists(problem: type[BaseException]) -> None:
    async with engine(LocalExecutionBackend()) as flow:
        block, later = flow.block(raises), flow.block(raises_later)
        make = flow.block(lambda kind: kind())
        for method in OF_EXCEPTIONS:
            kind = hostile(method, problem, Exception)
            for bad in (block(kind), later(kind)):
                assert type(await raised(bad)) is kind, method
        for method in OF_VALUES:
            kind = hostile(method, problem, object)
            assert type(await make(kind)) is kind


@pytest.mark.parametrize("later", [False, True])
async def test_a_value_that_resists_arrives_from_a_thread(later: bool) -> None:
    async def make_later(kind: type[Any]) -> Any:
        return kind()

    function: Callable[..., Any] = make_later if later else lambda kind: kind()
    async with engine(LocalExecutionBackend(resources={"workers": 1})) as flow:
        make = flow.function_task(function)
        sandboxed = flow.function_task(capture="files")(function)
        for method in OF_VALUES:
            for task in (make, sandboxed):
                kind = hostile(method, KeyboardInterrupt, object)
                assert type(await task(kind)) is kind


async def test_a_value_that_resists_being_pickled_fails_its_task(
    process_backend: LocalExecutionBackend,
) -> None:
    async with engine(process_backend) as flow:
        make = flow.function_task(lambda kind: kind())
        for method in ("__reduce_ex__", "__getattribute__"):
            error = await raised(make(hostile(method, SystemExit, object)))
            assert isinstance(error, TypeError)
            assert "cannot be pickled by" in str(error)
        given = hostile("__reduce_ex__", SystemExit, object)()
        error = await raised(flow.function_task(lambda x: None)(given))
        assert isinstance(error, TypeError)
        assert "positional argument 0" in str(error)
        assert await make(int) == 0
        await flow.shutdown(skip_execution_backend=True)
