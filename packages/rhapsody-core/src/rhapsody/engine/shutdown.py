"""Shutdown of an engine: cancel what is unfinished and stop the work that can be stopped."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Collection

from rhapsody.aio import is_cancelling
from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.runtime import Runtime
from rhapsody.engine.states import FutureState, WorkState
from rhapsody.errors import describe_error

log: logging.Logger = logging.getLogger("rhapsody.engine")

GRACE = 10.0
"""Seconds for stopped work and cancelled coroutines to end."""


async def stop_everything(runtime: Runtime, *, skip_backends: bool) -> tuple[str, ...]:
    """Stop the work of an engine that is `closing`.

    Futures are settled, unless the engine is `interrupted`: then `settle_everything` does that
    later.

    Returns:
        Descriptions of problems.
    """
    scheduler, problems = runtime.scheduler, list[str]()
    if not scheduler.interrupted:
        await runtime.stage_out.drain(GRACE)
        await runtime.memoization.drain(GRACE)
        _warn_of_unfinished(runtime)
        scheduler.cancel_all()
        runtime.pushdown.close()
    runtime.memoization.stop_looking()
    await asyncio.gather(*(dispatcher.close(GRACE) for dispatcher in runtime.dispatchers.values()))
    await runtime.background.settle(GRACE)
    backends = list(runtime.backends.values())
    if skip_backends:
        await _wait_for_stoppable(runtime)
    else:
        for problem in await asyncio.gather(*map(_shut_down, backends)):
            problems += [problem] if problem else []
    for attached in backends:
        unregister = getattr(attached.backend, "unregister_callback", None)
        if unregister is not None:
            unregister(runtime.callbacks.receive)
    runtime.callbacks.drain()
    await runtime.stage_out.drain(GRACE)
    await runtime.memoization.drain(GRACE)
    if not scheduler.interrupted:
        await runtime.blocks.drain(GRACE)
    await runtime.background.settle(GRACE)
    if scheduler.interrupted:
        for record in scheduler.live:
            runtime.results.leave_interrupted(record)
    return tuple(problems)


def _warn_of_unfinished(runtime: Runtime) -> None:
    """Log the tasks that the shutdown cancels."""
    pending = runtime.scheduler.pending()
    if pending:
        log.warning(
            "engine %s: %d unfinished task%s cancelled by the shutdown: %s; `await flow.join()` "
            "waits for them",
            runtime.uid, len(pending), " was" if len(pending) == 1 else "s were", _names(pending),
        )  # fmt: skip


def warn_of_forgotten(runtime: Runtime, process: int) -> None:
    """Log the unfinished tasks of an engine that was never shut down.

    Called when the engine is collected, or at the end of the program.

    Args:
        runtime: The engine's.
        process: Id of the engine's process. A forked process calls this, too.
    """
    pending = runtime.scheduler.pending()
    if pending and os.getpid() == process:
        what = "was never shut down"
        hint = (
            "; `async with WorkflowEngine.create()` waits for them, `await flow.shutdown()` ends "
            "them"
        )
        if runtime.scheduler.closing:  # a second signal, say
            what, hint = "was not shut down to the end", ""
        log.error(
            "engine %s %s, and %d task%s not ended: %s%s", runtime.uid, what, len(pending),
            " had" if len(pending) == 1 else "s had", _names(pending), hint,
        )  # fmt: skip


def _names(records: Collection[TaskRecord]) -> str:
    """Return the names of the first five."""
    first = sorted(records, key=lambda record: (record.task.prefix, record.number))[:5]
    names = [f"{record.task.name!r} ({record.future.uid})" for record in first]
    return ", ".join(names + ["..."] * (len(records) > len(first)))


def settle_everything(runtime: Runtime) -> tuple[str, ...]:
    """Cancel pending futures and give up on work that has not ended.

    Returns:
        The uids of tasks and synchronous blocks that could not be stopped.
    """
    scheduler = runtime.scheduler
    left = [record for record in scheduler.live if record.uid in scheduler.inflight]
    on_threads = (f"{runtime.uid}.{uid}" for uid in runtime.blocks.on_threads)
    still_running = tuple(sorted((*(record.uid for record in left), *on_threads)))
    scheduler.abandon()
    runtime.pushdown.close()
    return still_running


async def _shut_down(attached: BackendHandle) -> str | None:
    try:
        result = attached.backend.shutdown()
        if inspect.isawaitable(result):
            await result
    except (Exception, asyncio.CancelledError) as error:  # the others must still be shut down
        if is_cancelling():
            raise
        return f"backend {attached.name!r} failed to shut down: {describe_error(error)}"
    return None


async def _wait_for_stoppable(runtime: Runtime) -> None:
    records = [record for record in runtime.scheduler.live if _stoppable(record)]
    if records:
        waiters = [asyncio.ensure_future(record.wait_ended()) for record in records]
        _, late = await asyncio.wait(waiters, timeout=GRACE)
        for waiter in late:
            waiter.cancel()


def _stoppable(record: TaskRecord) -> bool:
    if record.task.prefix == "block" or record.state.work is not WorkState.CANCELING:
        return False
    if record.state.future is FutureState.PENDING:
        return True
    level = record.backend.capabilities.cancellation(record.task.task_kind)
    return level == "running"
