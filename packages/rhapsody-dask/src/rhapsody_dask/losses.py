"""What became of tasks whose worker went away: lost, or only sent to it.

Dask itself would run them again, up to four times in all, and then the engine
would; whether and how often that is done is left to the engine alone. Dask does
not know which tasks a worker had begun, so that is concluded here from what the
worker had told, and a task that may have begun is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from rhapsody.errors import TaskLostError
from rhapsody_dask.calls import Call, named


class Losses:
    """The lost tasks of one backend.

    Args:
        client: Dask's client.
        calls: The open tasks by their keys.
        gone: Told of each task that was lost, with the error.
        stop_rerun: Stops another start of a task, by its uid, that Dask has ordered.
    """

    def __init__(
        self,
        client: Any,
        calls: Mapping[str, Call],
        gone: Callable[[Call, BaseException], None],
        stop_rerun: Callable[[str], None],
    ) -> None:
        self._client = client
        self._calls = calls
        self._gone = gone
        self._stop_rerun = stop_rerun
        self._busy: dict[str, int] = {}
        self._waited: list[Call] = []
        self._asking: asyncio.Task[None] | None = None

    def killed(self, call: Call, error: Any) -> None:
        """A worker has gone without notice, and it had this task.

        Args:
            call: The task.
            error: Dask's `KilledWorker`.
        """
        worker = error.last_worker
        address: str = getattr(worker, "address", "")
        if address not in self._busy:  # counted before the first of its tasks is given up
            self._busy[address] = self._count(address)
        if call.cancelled or self._may_have_begun(call, address, getattr(worker, "nthreads", 0)):
            self._gone(call, _lost(call, address or "somewhere"))
            return
        self._waited.append(call)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())

    def left(self, worker: str) -> None:
        """A worker has gone, with or without notice; told after all that `killed` is."""
        self._busy.pop(worker, None)
        for call in self._begun(worker):
            if not call.finished:  # where its reply went with the worker, Dask makes it again
                self._gone(call, _lost(call, worker))
                self._stop_rerun(call.uid)

    def close(self) -> None:
        """Asks Dask for nothing more."""
        self._waited.clear()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def _may_have_begun(self, call: Call, address: str, threads: int) -> bool:
        if call.begun and call.worker == address:
            return True
        if call.task.get("attempt", 1) > 1:
            return False  # the worker would have told before it began
        return self._busy[address] < threads

    def _begun(self, worker: str) -> list[Call]:
        return [call for call in self._calls.values() if call.begun and call.worker == worker]

    def _count(self, worker: str) -> int:
        """How many of a worker's threads were known to be taken."""
        count = 0
        for call in self._begun(worker):
            resources = call.task.get("resources")
            thread = not call.task["is_service"] if resources is None else resources.cores > 0
            count += thread and not call.finished
        return count

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
