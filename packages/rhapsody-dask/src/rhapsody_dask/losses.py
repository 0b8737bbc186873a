"""What became of tasks whose worker went away: lost, or only sent to it.

Dask does not know which of its tasks a worker was running: it runs all again, up to
four times in all, and then the engine would. How often that is done is the engine's
to say, so our own cluster gives up at the first time, the worker's witness tells what
was running, and only the rest is run again. On other clusters Dask's way stays, but
for tasks that were known to run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from rhapsody import TaskLostError
from rhapsody_dask.calls import Call, named
from rhapsody_dask.worker.witness import mark, running

WAITS = 20
"""Killed workers that a task may have waited on; where all die at once, that is no help."""


class Losses:
    """The lost tasks of one backend.

    Args:
        client: Dask's client.
        calls: The open tasks by their keys.
        gone: Told of each task that was lost, with the error.
        stop_rerun: Stops another start of a task, by its uid, that Dask has ordered.
        witnesses: The directory where workers note what they have begun, if they do.
    """

    def __init__(
        self,
        client: Any,
        calls: Mapping[str, Call],
        gone: Callable[[Call, BaseException], None],
        stop_rerun: Callable[[str], None],
        witnesses: str | None = None,
    ) -> None:
        self._client = client
        self._calls = calls
        self._gone = gone
        self._stop_rerun = stop_rerun
        self._witnesses = witnesses
        self._running: dict[str, frozenset[bytes]] = {}
        self._given_up: set[str] = set()
        self._waited: list[Call] = []
        self._asking: asyncio.Task[None] | None = None

    def killed(self, call: Call, error: Any) -> None:
        """A worker has gone without notice, and it had this task.

        Args:
            call: The task.
            error: Dask's `KilledWorker`.
        """
        if call.waiter is not None and self.makes_again(call, error):
            return
        address: str = getattr(error.last_worker, "address", "somewhere")
        call.waits += 1
        if call.cancelled or call.waits > WAITS or self._was_running(call, address):
            if call.referred_to:
                self._given_up.add(call.key)
            self._gone(call, _lost(call, address))
            return
        # It waited, or had ended and its reply was lost: either way it is to begin anew.
        call.begun, call.worker, call.token = False, None, None
        self._run_again(call)

    def makes_again(self, call: Call, error: Any) -> bool:
        """Has a value made again that a task needs, and that had been there before.

        Args:
            call: The task: one that refers to the value, or whose own value was held.
            error: Dask's `KilledWorker`, for the worker that was to make the value again; `None`
                where Dask is at making it again meanwhile.

        Returns:
            `False` where the value had never been there, so that the engine tries again, or
            where it was lost too often.
        """
        key = "" if error is None else str(error.task)
        maker = self._calls.get(key)
        if key in self._given_up or (maker is not None and maker.waiter is None):
            return False
        losses = call.losses[key] = call.losses.get(key, 0) + 1
        if call.cancelled or losses > call.lost_retries:
            return False
        self._run_again(call)
        return True

    def _run_again(self, call: Call) -> None:
        self._waited.append(call)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())

    def left(self, worker: str) -> None:
        """A worker has gone, with or without notice; told after all that `killed` is."""
        self._running.pop(worker, None)
        for call in [c for c in self._calls.values() if c.begun and c.worker == worker]:
            if not call.finished:  # where its reply went with the worker, Dask makes it again
                self._gone(call, _lost(call, worker))
                self._stop_rerun(call.uid)

    def close(self) -> None:
        """Asks Dask for nothing more."""
        self._waited.clear()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def _was_running(self, call: Call, worker: str) -> bool:
        if self._witnesses is None:
            return True  # or not: but Dask has tried often enough
        if worker not in self._running:
            self._running[worker] = running(self._witnesses, worker)
        return mark(call.uid) in self._running[worker]

    async def _ask(self) -> None:
        """Has Dask run again what had not begun, many with one request."""
        try:
            await asyncio.sleep(0)  # what else is told in this turn
            while self._waited:
                calls, self._waited = self._waited, []
                futures = [call.future for call in calls if call.future is not None]
                try:
                    await self._client.retry(futures)
                except Exception as error:  # whatever the connection met
                    for call in calls:
                        self._gone(call, TaskLostError(f"{named(call)}: {error!r}"))
        finally:
            self._asking = None


def _lost(call: Call, worker: str) -> TaskLostError:
    known = call.begun and call.worker == worker
    while_it = f"ran (attempt {call.task.get('attempt', 1)}, start {call.token})"
    if not known:
        while_it = f"had it (attempt {call.task.get('attempt', 1)})"
    return TaskLostError(
        f"{named(call)} was lost: worker {worker} went away while it {while_it}; a worker that is "
        "over its memory limit is killed by Dask, see its log"
    )
