"""Futures of Dask's own as arguments, beside the same with Dask alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio


def _twice(x: int) -> int:
    return 2 * x


def _add(x: Any, *more: Any, **named: Any) -> Any:
    numbers = [x, *more, *named.values()]
    return sum(_add(*n) if isinstance(n, list) else n["of"] if isinstance(n, dict) else n
               for n in numbers)  # fmt: skip


def _kind(held: Any) -> tuple[str, str]:
    one, other = held if isinstance(held, list) else (held, None)
    return type(one.future).__name__, type(other).__name__


@pytest.fixture
def blocking(cluster: Any) -> Iterator[Any]:
    """A client that is not asynchronous, as most programs have."""
    from distributed import Client

    with Client(cluster.scheduler_address, set_as_default=False) as client:
        yield client


async def test_their_values_go_to_the_task(
    backend: DaskExecutionBackend, flow: WorkflowEngine, raw: Any, blocking: Any
) -> None:
    add = flow.function_task(_add)
    for client in (raw, blocking, backend.client):
        future = client.submit(_twice, 4, pure=False)
        args, named = (future, [1, future], {"of": future}), {"last": future}
        assert await add(*args, **named) == 33
        if client is not blocking:
            assert await client.submit(_add, *args, **named, pure=False) == 33
    first = flow.function_task(_twice)(2)
    future = raw.submit(_twice, 4, pure=False)
    big = [0] * 400_000
    results = await asyncio.gather(add(first, future), add(future, [future, *big]))
    assert [*results] == [12, 16]


async def test_those_in_other_objects_stay_futures_and_their_values_where_they_are(
    flow: WorkflowEngine, raw: Any
) -> None:
    """As those of a persisted collection, whose parts together may not fit into one worker."""
    await raw.wait_for_workers(2)
    there, here = sorted(raw.scheduler_info()["workers"])
    future = raw.submit(_twice, 4, pure=False, workers=[there])
    await future
    held = SimpleNamespace(future=future)
    kind = flow.function_task(_kind)
    assert await kind(held, task_description={"workers": [here]}) == ("Future", "NoneType")
    assert await kind([held, future], task_description={"workers": [there]}) == ("Future", "int")
    assert (await raw.who_has([future]))[future.key] == (there,)


async def test_one_that_fails_gives_its_error(flow: WorkflowEngine, raw: Any) -> None:
    bad = raw.submit(int, "no number", pure=False)
    with pytest.raises(ValueError, match="no number"):
        await raw.submit(_add, bad, pure=False)
    with pytest.raises(ValueError, match="no number"):
        await flow.function_task(_add)(bad)


async def test_one_without_a_value_is_refused(flow: WorkflowEngine, raw: Any) -> None:
    future = raw.submit(_twice, 4, pure=False)
    await future.cancel()
    with pytest.raises(ValueError, match="has no value to come: await it"):
        await flow.function_task(_add)(future)
