"""The end of an engine: everything unfinished is cancelled, and all work that can be is stopped."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from rhapsody.aio import asked_to_stop
from rhapsody.engine.life import Future, Work
from rhapsody.errors import describe_error

if TYPE_CHECKING:
    from rhapsody.engine.dispatch import Lane
    from rhapsody.engine.node import Node
    from rhapsody.engine.runtime import Runtime

GRACE = 10.0
"""Seconds for work that can be stopped to end, and for coroutines to take a cancellation."""


async def stop_everything(runtime: Runtime, *, skip_backends: bool) -> tuple[str, ...]:
    """Stops the work of an engine that is `closing`.

    Futures are settled, unless the engine is `interrupted`: then that is left to
    `settle_everything`.

    Returns:
        What went wrong, in words.
    """
    problems: list[str] = []
    if not runtime.interrupted:
        await runtime.gate.drain(GRACE)
        _tell_unfinished(runtime)
        runtime.cancel_all()
        runtime.pushdown.close()
    runtime.preparation.close()
    lanes = list(runtime.lanes.values())
    await asyncio.gather(*(lane.close(GRACE) for lane in lanes))
    await runtime.settle_background(GRACE)
    if skip_backends:
        await _wait_for_stoppable(runtime)
    else:
        for problem in await asyncio.gather(*(_shut_down(lane) for lane in lanes)):
            problems += [problem] if problem else []
    for lane in lanes:
        unregister = getattr(lane.backend, "unregister_callback", None)
        if unregister is not None:
            unregister(runtime.updates.receive)
    runtime.updates.drain()
    await runtime.gate.drain(GRACE)
    if not runtime.interrupted:
        await runtime.blocks.drain(GRACE)
    await runtime.settle_background(GRACE)
    if runtime.interrupted:
        _leave_sandboxes(runtime)
    return tuple(problems)


def _tell_unfinished(runtime: Runtime) -> None:
    """Says what is cancelled although nobody asked for it."""
    pending = runtime.graph.pending()
    if pending:
        runtime.log.warning(
            "engine %s: %d unfinished task%s cancelled by the shutdown: %s; `await flow.join()` "
            "waits for them",
            runtime.uid, len(pending), " was" if len(pending) == 1 else "s were", _names(pending),
        )  # fmt: skip


def tell_forgotten(runtime: Runtime, process: int) -> None:
    """Says what was left undone by an engine that was never shut down.

    Called when the engine goes away, or at the program's end.

    Args:
        runtime: The engine's.
        process: The id of the process that it belongs to; one forked from it has the engine, too.
    """
    pending = runtime.graph.pending()
    if pending and os.getpid() == process:
        runtime.log.error(
            "engine %s was never shut down, and %d task%s not ended: %s; `async with "
            "WorkflowEngine.create()` waits for them, `await flow.shutdown()` ends them",
            runtime.uid, len(pending), " had" if len(pending) == 1 else "s had", _names(pending),
        )  # fmt: skip


def _names(nodes: Collection[Node]) -> str:
    """The first of them, for people."""
    first = sorted(nodes, key=lambda node: (node.task.prefix, node.number))[:5]
    names = [f"{node.task.name!r} ({node.future.uid})" for node in first]
    return ", ".join(names + ["..."] * (len(nodes) > len(first)))


def settle_everything(runtime: Runtime) -> tuple[str, ...]:
    """Cancels what is still pending and gives up on work that has not ended.

    Returns:
        The uids of tasks and synchronous blocks that nobody could stop.
    """
    left = [node for node in runtime.graph.live if node.uid in runtime.updates.inflight]
    on_threads = (f"{runtime.uid}.{uid}" for uid in runtime.blocks.on_threads)
    still_running = tuple(sorted((*(node.uid for node in left), *on_threads)))
    runtime.abandon(runtime.graph.live)
    runtime.pushdown.close()
    runtime.timers.close()
    return still_running


def _leave_sandboxes(runtime: Runtime) -> None:
    """Says of the attempts that a signal interrupted what becomes of their sandboxes.

    They are as those of failed ones. When the futures are settled it is too late: by then
    what does not stay has been removed.
    """
    for node in runtime.graph.live:
        if node.description is not None and "sandbox" in node.description:
            runtime.stager.keep(node.description, succeeded=False)


async def _shut_down(lane: Lane) -> str | None:
    try:
        result = lane.backend.shutdown()
        if inspect.isawaitable(result):
            await result
    except (Exception, asyncio.CancelledError) as error:  # must not keep the others open
        if asked_to_stop():
            raise
        return f"backend {lane.name!r} failed to shut down: {describe_error(error)}"
    return None


async def _wait_for_stoppable(runtime: Runtime) -> None:
    nodes = [node for node in runtime.graph.live if _stoppable(node)]
    if nodes:
        waiters = [asyncio.ensure_future(node.wait_ended()) for node in nodes]
        _, late = await asyncio.wait(waiters, timeout=GRACE)
        for waiter in late:
            waiter.cancel()


def _stoppable(node: Node) -> bool:
    if node.lane is None or node.life.work is not Work.CANCELING:
        return False
    if node.life.future is Future.PENDING:
        return True
    level = node.lane.capabilities.cancellation(node.task.task_kind)
    return level == "running"
