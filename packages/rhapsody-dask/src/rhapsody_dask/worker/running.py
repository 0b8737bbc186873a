"""Execution of one task on a worker's thread, from the order to the reply.

Functions are called here; `programs` runs executables and services. The failure of a task is
returned as its reply and not raised, so that Dask neither logs the failure nor retries the task. An
exception is raised only for tasks that Dask itself should retry.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from sys import getsizeof
from time import perf_counter
from typing import Any, cast

from distributed import get_worker, secede

from rhapsody import BackendUnavailableError, CapabilityError
from rhapsody.sdk import (
    CapturedOutput,
    Environment,
    Meter,
    Runner,
    WorkerLoop,
    describe_error,
    sent_modules,
    task_context,
    unpack_error,
)
from rhapsody_dask.worker.messages import (
    CANCELED,
    DEPENDENCY,
    DONE,
    FAILED,
    OWN_FILES,
    GroupReplies,
    Order,
    Reply,
    Returned,
    TaskRaised,
    failure,
    pack,
    packed_error,
    unpack,
    unpacked,
)
from rhapsody_dask.worker.site import Running, Site, site_of

_own = threading.local()
_meter = Meter(shared=True)


def run_order(packed: bytes, values: Sequence[Any]) -> Reply:
    """Run one task; see `rhapsody_dask.worker.entry.run`."""
    order: Order = pickle.loads(packed)  # noqa: S301 - from our own backend
    site = site_of(get_worker(), order.session)
    if site is None:
        return failure(
            BackendUnavailableError(
                f"task {order.name!r}: Rhapsody's plugin is not active on worker "
                f"{get_worker().address}; the worker's log contains the reason"
            )
        )
    for value in values:
        if isinstance(value, Reply) and value.kind != DONE:
            return Reply(DEPENDENCY)
    running = Running(order)
    if not site.begin(running):
        return Reply(CANCELED)
    try:
        if not _enter(site, running, order.more.get("cores", 1)):
            return Reply(CANCELED)
        reply = _run(site, order, running, values)
    finally:
        site.leave(running)
        site.end(running)
    if reply.kind == FAILED and "raises" in order.more and not running.cancelled:
        raise TaskRaised(reply, order.uid, describe_error(unpack_error(reply.payload)))
    return reply


MAX_GROUP_SECONDS = 0.1
"""Seconds after which a group starts no further calls."""

MAX_GROUP_SIZE = 10 << 20
"""Total size of replies in bytes above which a group starts no further calls."""


def run_group(packed: bytes) -> GroupReplies:
    """Run the calls of a group; see `rhapsody_dask.worker.entry.run_group`.

    Returns:
        The replies. Calls without a reply have not run.
    """
    order, calls = pickle.loads(packed)  # noqa: S301 - from our own backend
    site = site_of(get_worker(), order.session)
    replies: GroupReplies = {}
    if site is None:
        return replies
    group = Running(order, replies)
    site.begin(group)
    try:
        if _enter(site, group, 1):
            site.note(group)
            size, end = 0, perf_counter() + MAX_GROUP_SECONDS
            for call in calls:
                begin = perf_counter()
                if begin > end or size > MAX_GROUP_SIZE:
                    break
                one: Order = pickle.loads(call)  # noqa: S301 - from our own backend
                running = Running(one)
                if site.begin(running, group):
                    try:
                        reply = _run(site, one, running, ())
                    finally:
                        site.end(running)
                elif group.cancelled:
                    break
                else:
                    reply = Reply(CANCELED)
                replies[one.uid] = reply, perf_counter() - begin
                size += getsizeof(reply)
    finally:
        site.leave(group)
        site.end(group)
    return replies


def _enter(site: Site, running: Running, cores: float) -> bool:
    """Take the cores of a task; return False if the task was canceled while it waited for cores."""
    if cores == 0:
        secede()
        return True
    waiting = site.gate.enter(cores)
    if waiting is not None:
        running.waiting = waiting
        if running.cancelled:
            site.gate.cancel(waiting)
        if not site.gate.wait(waiting):
            return False
    running.cores = cores
    return True


def _run(site: Site, order: Order, running: Running, values: Sequence[Any]) -> Reply:
    """Run a task that has its cores, and return its reply."""
    site.started(running)
    reply = _outcome(site, order, running, values)
    reply.worker = site.address
    return reply


def _outcome(site: Site, order: Order, running: Running, values: Sequence[Any]) -> Reply:
    gpus = order.more.get("gpus", 0)
    if gpus:
        running.gpus = site.gate.take_gpus(gpus)
    try:
        if order.function is None:
            from rhapsody_dask.worker.programs import run_program

            return run_program(site, order, running, values, worker_loop())
        return _call(site, order, running, values)
    except BaseException as error:  # fails only this task
        return failure(error)
    finally:
        if running.gpus:
            site.gate.return_gpus(running.gpus)


def worker_loop() -> WorkerLoop:
    """Return this thread's event loop; the first call creates it."""
    loop = getattr(_own, "loop", None)
    if loop is None:
        loop = _own.loop = WorkerLoop()
    return cast("WorkerLoop", loop)


# Functions.


def _call(site: Site, order: Order, running: Running, values: Sequence[Any]) -> Reply:
    more = order.more
    sandbox = _prepare(site, order, running, values) if more else None
    runner = _Runner(site, order, running, values, sandbox)
    with (
        nullcontext() if order.modules is None else sent_modules().using(order.modules),
        _environment(site, order),
        CapturedOutput(sandbox, more.get("capture", True)) as output,
        task_context(running.context),
    ):
        begin = _meter.begin(order.name)
        done, outcome, _ = runner.answer(order.name, order)
        usage = _meter.end(order.name, begin)
    reply = Returned(DONE, *outcome) if done else Reply(FAILED, outcome)
    if running.cancelled:
        reply = Reply(CANCELED)
    if output.stdout or output.stderr:
        reply.more = {"stdout": output.stdout, "stderr": output.stderr}
    if usage is not None and more.get("cores") != 0:  # such a coroutine runs on a shared thread
        reply.more = {**(reply.more or {}), "usage": usage}
    if sandbox is not None:
        reply.more = {**(reply.more or {}), "sandbox": sandbox}
        if "ship" in more:
            from rhapsody_dask.worker.programs import return_files

            return_files(order, reply, sandbox)
    return reply


def _prepare(site: Site, order: Order, running: Running, values: Sequence[Any]) -> str | None:
    if "sandbox" not in order.more:
        return None
    from rhapsody_dask.worker.programs import prepare

    sandbox = prepare(site, order, running, values)
    running.context.sandbox = sandbox
    return sandbox


class _Runner(Runner):
    """Runner of one call, whose arguments may contain values that Dask holds."""

    worker = "the worker"
    own_files = OWN_FILES

    def __init__(
        self,
        site: Site,
        order: Order,
        running: Running,
        values: Sequence[Any],
        sandbox: str | None,
    ) -> None:
        self.place = f"on worker {site.address}"
        self._site = site
        self._order = order
        self._running = running
        self._values = values
        self._sandbox = sandbox

    def load(self, call: Order) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        try:
            unpacked = _unpacked(call, self._values, self._sandbox)
        except ModuleNotFoundError as error:
            raise _missing(error, call, self._site) from None
        if self._running.cancelled:
            raise asyncio.CancelledError
        return unpacked

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        loop = self._site.waiting if self._order.more.get("cores") == 0 else worker_loop()
        try:
            return loop.run(coroutine, partial(_stoppable, self._running))
        finally:
            self._running.stop = None

    def pack(self, value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
        return pack(value)

    def pack_error(self, error: BaseException) -> bytes:
        return packed_error(error)


def _stoppable(running: Running, loop: Any, task: Any) -> None:
    """Make a coroutine cancellable from any thread."""

    def stop() -> None:
        try:
            # Cancel in the next iteration, because the coroutine must have started.
            loop.call_soon_threadsafe(partial(loop.call_soon, task.cancel))
        except RuntimeError:  # the loop is closed: the coroutine has ended
            return

    running.stop = stop
    if running.cancelled:
        stop()


def _unpacked(
    order: Order, values: Sequence[Any], sandbox: str | None
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    packed = order.function
    assert packed is not None
    # Unpickled for each task, so that calls do not share the function's data.
    function = unpack(packed if isinstance(packed, bytes) else values[packed].payload)
    if values or sandbox:
        args, kwargs = unpacked(order.arguments, values, sandbox)
    else:
        args, kwargs = pickle.loads(order.arguments)  # noqa: S301 - from our own backend
    return function, args, kwargs


def _missing(error: ModuleNotFoundError, order: Order, site: Site) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"task {order.name!r} needs the module {error.name!r}, which worker {site.address} does "
        "not have. Install it there, or upload a single file with `await "
        f"backend.client.upload_file('{error.name}.py')`",
        name=error.name,
    )


def _environment(site: Site, order: Order) -> AbstractContextManager[None]:
    variables: Mapping[str, str] | None = order.more.get("environment")
    if not variables:
        return nullcontext()
    if site.threads > 1:
        raise CapabilityError(
            f"task {order.name!r} sets environment variables, which the {site.threads} threads of "
            f"worker {site.address} share. Start workers with one thread each: "
            "DaskExecutionBackend({'threads': 1}) or `dask worker --nthreads 1`"
        )
    if order.more.get("cores", 1) == 0:
        raise CapabilityError(
            f"task {order.name!r} sets environment variables, but with cores=0 it shares worker "
            f"{site.address} with other tasks. Request at least one core"
        )
    return Environment(variables)
