"""The end of an engine: everything unfinished is cancelled, and all work that can be is stopped."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Collection

from rhapsody.aio import asked_to_stop
from rhapsody.engine.attach import Attached
from rhapsody.engine.life import Future, Work
from rhapsody.engine.node import Node
from rhapsody.engine.shell import Shell
from rhapsody.errors import describe_error

log: logging.Logger = logging.getLogger("rhapsody.engine")

GRACE = 10.0
"""Seconds for work that can be stopped to end, and for coroutines to take a cancellation."""


async def stop_everything(shell: Shell, *, skip_backends: bool) -> tuple[str, ...]:
    """Stops the work of an engine that is `closing`.

    Futures are settled, unless the engine is `interrupted`: then that is left to
    `settle_everything`.

    Returns:
        What went wrong, in words.
    """
    machine, problems = shell.machine, list[str]()
    if not machine.interrupted:
        await shell.saving.drain(GRACE)
        await shell.recording.drain(GRACE)
        _tell_unfinished(shell)
        machine.cancel_all()
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
    if not machine.interrupted:
        await shell.blocks.drain(GRACE)
    await shell.background.settle(GRACE)
    if machine.interrupted:
        for node in machine.graph.live:
            shell.outcomes.leave_interrupted(node)
    return tuple(problems)


def _tell_unfinished(shell: Shell) -> None:
    """Says what is cancelled although nobody asked for it."""
    pending = shell.machine.graph.pending()
    if pending:
        log.warning(
            "engine %s: %d unfinished task%s cancelled by the shutdown: %s; `await flow.join()` "
            "waits for them",
            shell.uid, len(pending), " was" if len(pending) == 1 else "s were", _names(pending),
        )  # fmt: skip


def tell_forgotten(shell: Shell, process: int) -> None:
    """Says what was left undone by an engine that was never shut down.

    Called when the engine goes away, or at the program's end.

    Args:
        shell: The engine's.
        process: The id of the process that it belongs to; one forked from it has the engine, too.
    """
    pending = shell.machine.graph.pending()
    if pending and os.getpid() == process:
        what = "was never shut down"
        hint = (
            "; `async with WorkflowEngine.create()` waits for them, `await flow.shutdown()` ends "
            "them"
        )
        if shell.machine.closing:  # a second signal, say
            what, hint = "was not shut down to the end", ""
        log.error(
            "engine %s %s, and %d task%s not ended: %s%s", shell.uid, what, len(pending),
            " had" if len(pending) == 1 else "s had", _names(pending), hint,
        )  # fmt: skip


def _names(nodes: Collection[Node]) -> str:
    """The first of them, for people."""
    first = sorted(nodes, key=lambda node: (node.task.prefix, node.number))[:5]
    names = [f"{node.task.name!r} ({node.future.uid})" for node in first]
    return ", ".join(names + ["..."] * (len(nodes) > len(first)))


def settle_everything(shell: Shell) -> tuple[str, ...]:
    """Cancels what is still pending and gives up on work that has not ended.

    Returns:
        The uids of tasks and synchronous blocks that nobody could stop.
    """
    machine = shell.machine
    left = [node for node in machine.graph.live if node.uid in machine.inflight]
    on_threads = (f"{shell.uid}.{uid}" for uid in shell.blocks.on_threads)
    still_running = tuple(sorted((*(node.uid for node in left), *on_threads)))
    machine.abandon()
    shell.pushdown.close()
    shell.timers.close()
    return still_running


async def _shut_down(attached: Attached) -> str | None:
    try:
        result = attached.backend.shutdown()
        if inspect.isawaitable(result):
            await result
    except (Exception, asyncio.CancelledError) as error:  # must not keep the others open
        if asked_to_stop():
            raise
        return f"backend {attached.name!r} failed to shut down: {describe_error(error)}"
    return None


async def _wait_for_stoppable(shell: Shell) -> None:
    nodes = [node for node in shell.machine.graph.live if _stoppable(node)]
    if nodes:
        waiters = [asyncio.ensure_future(node.wait_ended()) for node in nodes]
        _, late = await asyncio.wait(waiters, timeout=GRACE)
        for waiter in late:
            waiter.cancel()


def _stoppable(node: Node) -> bool:
    if node.backend is None or node.life.work is not Work.CANCELING:
        return False
    if node.life.future is Future.PENDING:
        return True
    level = node.backend.capabilities.cancellation(node.task.task_kind)
    return level == "running"
