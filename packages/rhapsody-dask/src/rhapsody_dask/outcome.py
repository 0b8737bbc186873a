"""From Dask's word that a task is finished to what the engine is told of it.

Replies are fetched in batches: while one is under way, what is finished meanwhile
makes the next, which follows soon even where a worker does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from rhapsody import BackendError, DataError, TaskFailedError, TaskLostError
from rhapsody.backends import ReferenceLostError
from rhapsody.sdk import add_note, in_thread, unpack_error
from rhapsody_dask.calls import Call, named
from rhapsody_dask.losses import Losses
from rhapsody_dask.worker.messages import (
    CANCELED,
    DEPENDENCY,
    DONE,
    Reply,
    TaskRaised,
    unpack,
    writable,
)

log: logging.Logger = logging.getLogger(__name__)

MOST = 2_000
"""Replies that are fetched at once."""

MANY = 4
PAUSE = 0.01
"""After a batch of more than that many replies, seconds in which the next one gathers."""

PATIENCE = 0.5
"""Seconds after which the next batch does not wait for one: its worker may answer no more."""


class Outcomes:
    """Fetches the replies of one backend's tasks.

    Args:
        client: Dask's client.
        calls: The open tasks by their keys.
        settle: Told of each task that has ended, with its state in a word.
        gone: Told of each task that was lost, with the error.
        losses: What is told of tasks whose worker was killed.
        direct: Whether to fetch from the workers instead of through the scheduler.
    """

    def __init__(
        self,
        client: Any,
        calls: dict[str, Call],
        settle: Callable[[Call, str], None],
        gone: Callable[[Call, BaseException], None],
        losses: Losses,
        *,
        direct: bool,
    ) -> None:
        self._client = client
        self._calls = calls
        self._settle = settle
        self._gone = gone
        self._losses = losses
        self._direct = direct
        self._keys: list[str] = []
        self._closed = False
        self._fetching: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()

    def finished(self, key: str) -> None:
        """A reply is in the memory of a worker: fetches it."""
        if self._closed or key not in self._calls:
            return
        self._keys.append(key)
        if self._fetching is None:
            self._fetching = asyncio.ensure_future(self._fetch())

    def close(self) -> None:
        """Fetches nothing more."""
        self._closed = True
        self._keys.clear()
        for task in (self._fetching, *self._beside):
            if task is not None:
                task.cancel()
        self._fetching = None

    async def _fetch(self) -> None:
        try:
            await asyncio.sleep(0)  # what else the scheduler told in this message
            while self._keys:
                keys, self._keys = self._keys[:MOST], self._keys[MOST:]
                batch = self._spawn(self._batch(keys))
                await asyncio.wait([batch], timeout=PATIENCE)
                if len(keys) > MANY and len(self._keys) < MOST:
                    # Results come thick and fast: asking less often serves all of them sooner.
                    await asyncio.sleep(PAUSE)
        finally:
            self._fetching = None

    async def _batch(self, keys: list[str]) -> None:
        try:
            replies, missing = await self._client.fetch(keys, self._direct)
        except Exception as error:  # whatever the connection met
            self._not_fetched([self._calls[key] for key in keys if key in self._calls], error)
            return
        for key, reply in replies.items():
            call = self._calls.get(key)
            if call is not None:
                self.settle(call, reply)
        if missing:
            # Their worker has gone since: Dask runs them again, or gives them up.
            self._client.ask_again([key for key in missing if key in self._calls])

    def _not_fetched(self, calls: list[Call], error: Exception) -> None:
        again = []
        for call in calls:
            if isinstance(error, OSError) and not call.asked_again:
                # The way to the scheduler. Where that is gone, the client tells of it soon.
                call.asked_again = True
                again.append(call.key)
            else:
                self._gone(call, TaskLostError(f"{named(call)}: {error!r}"))
        if again and self._client.status == "running":
            self._client.ask_again(again)

    def settle(self, call: Call, reply: Reply) -> None:
        """Writes a reply into the description, and tells that the task has ended."""
        task: Any = call.task
        if reply.worker is not None:
            task["worker"] = reply.worker
        more = reply.more
        if more:
            if "files" in more:
                self._spawn(self._bring_back(call, reply))
                return
            task.update(more)
        self._settle(call, self._state(call, reply))

    def _state(self, call: Call, reply: Reply) -> str:
        if reply.kind == CANCELED:
            return "canceled"
        if call.cancelled:
            return "canceled"
        if reply.kind == DONE:
            if call.task["function"] is None:
                return "done"
            try:
                call.task["return_value"] = unpack(reply.payload, writable(reply.buffers))
            except BaseException as error:  # loading runs the objects' own code
                add_note(error, f"while unpacking the result of {named(call)}")
                call.error = error
                return "failed"
            return "done"
        if reply.kind == DEPENDENCY:
            call.error = reference_lost(call)
        elif reply.payload:
            call.error = _error(call, reply)
        return "failed"

    async def _bring_back(self, call: Call, reply: Reply) -> None:
        """Makes the sandbox here of what came with a reply."""
        from rhapsody_dask.files import write_back

        task: Any = call.task
        more = dict(reply.more or {})
        files, sandbox = more.pop("files"), task["sandbox"]
        more.pop("sandbox", None)
        left_out = more.pop("left_out", ())
        if left_out:
            log.warning(
                "left out of the files that %s wrote on %s: %s; links that lead nowhere or out of "
                "the sandbox, pipes and sockets do not travel",
                named(call), reply.worker, ", ".join(left_out),
            )  # fmt: skip
        task.update(more)
        missing: list[str] = []
        try:
            missing = await in_thread(partial(write_back, task, sandbox, files, call.links))
        except Exception as error:  # the disk here
            call.error = error
        state = self._state(call, reply)
        if state == "done" and missing and call.error is None:
            state = "failed"
            call.error = DataError(
                f"{named(call)} promised and did not write {', '.join(map(repr, missing))} in its "
                f"sandbox on {reply.worker}"
            )
        self._settle(call, state)

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    @staticmethod
    def _is_anothers(call: Call, error: BaseException | None) -> bool:
        """Whether Dask gave a task up for one that it depends on."""
        if error is None:
            return True
        if isinstance(error, TaskRaised):
            return error.uid != call.uid
        return getattr(error, "task", call.key) != call.key

    def erred(self, call: Call, error: BaseException | None) -> None:
        """Dask gave a task up, for another one that it makes again where it says no reason."""
        from distributed.scheduler import KilledWorker

        if call.references and self._is_anothers(call, error):
            again = error is None or isinstance(error, KilledWorker)
            if not again or not self._losses.makes_again(call, error):
                self._gone(call, reference_lost(call))
            return
        if isinstance(error, TaskRaised):
            self.settle(call, error.reply)
            return
        if isinstance(error, KilledWorker):
            self._losses.killed(call, error)
            return
        if call.given and isinstance(error, Exception):  # what one of Dask's own futures raised
            self._gone(call, error)
            return
        if call.future is not None and not isinstance(error, asyncio.CancelledError):
            problem = BackendError(f"{named(call)}: Dask could not run it: {error!r}")
            problem.__cause__ = error
            self._gone(call, problem)
            return
        self._gone(call, TaskLostError(f"{named(call)}: {error!r}"))


def reference_lost(call: Call) -> ReferenceLostError:
    """The error for a task that was not run, for a dependency left no value."""
    return ReferenceLostError(f"{named(call)} was not run: a task it refers to left no value")


def _error(call: Call, reply: Reply) -> BaseException:
    """What the task raised, with the worker's traceback as its cause."""
    try:
        return unpack_error(reply.payload)
    except BaseException as error:  # loading runs the objects' own code
        return TaskFailedError(f"{named(call)} failed with what cannot be unpacked: {error!r}")
