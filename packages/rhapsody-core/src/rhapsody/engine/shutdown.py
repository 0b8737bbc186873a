"""The end of an engine: everything unfinished is cancelled, and all work that can be is stopped."""

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
"""Seconds for work that can be stopped to end, and for coroutines to take a cancellation."""


async def stop_everything(shell: Runtime, *, skip_backends: bool) -> tuple[str, ...]:
    """Stops the work of an engine that is `closing`.

    Futures are settled, unless the engine is `interrupted`: then that is left to
    `settle_everything`.

    Returns:
        What went wrong, in words.
    """
    scheduler, problems = shell.scheduler, list[str]()
    if not scheduler.interrupted:
        await shell.saving.drain(GRACE)
        await shell.recording.drain(GRACE)
        _tell_unfinished(shell)
        scheduler.cancel_all()
        shell.pushdown.close()
    shell.recording.stop_looking()
    await asyncio.gather(*(lane.close(GRACE) for lane in shell.lanes.values()))
    await shell.background.settle(GRACE)
    backends = list(shell.backends.values())
    if skip_backends:
        await _wait_for_stoppable(shell)
    else:
        for problem in await asyncio.gather(*map(_shut_down, backends)):
            problems += [problem] if problem else []
    for attached in backends:
        unregister = getattr(attached.backend, "unregister_callback", None)
        if unregister is not None:
            unregister(shell.updates.receive)
    shell.updates.drain()
    await shell.saving.drain(GRACE)
    await shell.recording.drain(GRACE)
    if not scheduler.interrupted:
        await shell.blocks.drain(GRACE)
    await shell.background.settle(GRACE)
    if scheduler.interrupted:
        for record in scheduler.live:
            shell.results.leave_interrupted(record)
    return tuple(problems)


def _tell_unfinished(shell: Runtime) -> None:
    """Says what is cancelled although nobody asked for it."""
    pending = shell.scheduler.pending()
    if pending:
        log.warning(
            "engine %s: %d unfinished task%s cancelled by the shutdown: %s; `await flow.join()` "
            "waits for them",
            shell.uid, len(pending), " was" if len(pending) == 1 else "s were", _names(pending),
        )  # fmt: skip


def tell_forgotten(shell: Runtime, process: int) -> None:
    """Says what was left undone by an engine that was never shut down.

    Called when the engine goes away, or at the program's end.

    Args:
        shell: The engine's.
        process: The id of the process that it belongs to; one forked from it has the engine, too.
    """
    pending = shell.scheduler.pending()
    if pending and os.getpid() == process:
        what = "was never shut down"
        hint = (
            "; `async with WorkflowEngine.create()` waits for them, `await flow.shutdown()` ends "
            "them"
        )
        if shell.scheduler.closing:  # a second signal, say
            what, hint = "was not shut down to the end", ""
        log.error(
            "engine %s %s, and %d task%s not ended: %s%s", shell.uid, what, len(pending),
            " had" if len(pending) == 1 else "s had", _names(pending), hint,
        )  # fmt: skip


def _names(records: Collection[TaskRecord]) -> str:
    """The first of them, for people."""
    first = sorted(records, key=lambda record: (record.task.prefix, record.number))[:5]
    names = [f"{record.task.name!r} ({record.future.uid})" for record in first]
    return ", ".join(names + ["..."] * (len(records) > len(first)))


def settle_everything(shell: Runtime) -> tuple[str, ...]:
    """Cancels what is still pending and gives up on work that has not ended.

    Returns:
        The uids of tasks and synchronous blocks that nobody could stop.
    """
    scheduler = shell.scheduler
    left = [record for record in scheduler.live if record.uid in scheduler.inflight]
    on_threads = (f"{shell.uid}.{uid}" for uid in shell.blocks.on_threads)
    still_running = tuple(sorted((*(record.uid for record in left), *on_threads)))
    scheduler.abandon()
    shell.pushdown.close()
    shell.timers.close()
    return still_running


async def _shut_down(attached: BackendHandle) -> str | None:
    try:
        result = attached.backend.shutdown()
        if inspect.isawaitable(result):
            await result
    except (Exception, asyncio.CancelledError) as error:  # must not keep the others open
        if is_cancelling():
            raise
        return f"backend {attached.name!r} failed to shut down: {describe_error(error)}"
    return None


async def _wait_for_stoppable(shell: Runtime) -> None:
    records = [record for record in shell.scheduler.live if _stoppable(record)]
    if records:
        waiters = [asyncio.ensure_future(record.wait_ended()) for record in records]
        _, late = await asyncio.wait(waiters, timeout=GRACE)
        for waiter in late:
            waiter.cancel()


def _stoppable(record: TaskRecord) -> bool:
    if record.task.prefix == "block" or record.life.work is not WorkState.CANCELING:
        return False
    if record.life.future is FutureState.PENDING:
        return True
    level = record.backend.capabilities.cancellation(record.task.task_kind)
    return level == "running"
