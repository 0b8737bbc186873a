"""What asyncio leaves to be written: questions and waits that several modules need."""

from __future__ import annotations

import asyncio


def asked_to_stop() -> bool:
    """Whether the running asyncio task has been cancelled itself.

    If not, a `CancelledError` came out of what it awaited, and is an error like others.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_of(future: asyncio.Future[None]) -> None:
    """Waits for a future that others wait for too.

    Unlike `asyncio.shield` it lets a signal's exception take the place of the wait.
    """
    waiter = future.get_loop().create_future()

    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)
    future.result()


def settable(error: BaseException, who: str) -> BaseException:
    """The exception, or one that holds it where a future cannot: `StopIteration`."""
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{who} raised StopIteration")
    wrapped.__cause__ = error
    return wrapped
