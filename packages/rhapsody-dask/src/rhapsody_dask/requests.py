"""Requests to the whole cluster: to stop tasks, and to find tasks that no worker can run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from rhapsody_dask.results import Results
from rhapsody_dask.task import Call, named

log: logging.Logger = logging.getLogger(__name__)

ANSWER_TIMEOUT = 5.0
"""Time limit in seconds for the workers' answers; a worker that cannot be reached never answers."""


class StopRequests:
    """Requests to stop tasks of one backend, sent to all workers in batches.

    Args:
        client: Dask's client.
        session: The backend's session.
        results: The backend's results; used to end tasks that no worker has started.
    """

    def __init__(self, client: Any, session: str, results: Results) -> None:
        self._client = client
        self._session = session
        self._results = results
        self._calls: list[Call] = []
        self._reruns: list[str] = []
        self._asking: asyncio.Task[None] | None = None

    def stop(self, call: Call) -> None:
        """Request that a task be stopped; the request is sent with the next batch."""
        self._calls.append(call)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())

    def stop_rerun(self, uid: str) -> None:
        """Request a stop of Dask's rerun of a task whose end was already reported to the engine."""
        self._reruns.append(uid)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())

    def close(self) -> None:
        """Drop the requests that have not been sent, and stop waiting for answers."""
        self._calls.clear()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    async def _ask(self) -> None:
        try:
            await asyncio.sleep(0)  # collect the other cancellations of this loop iteration
            while self._calls or self._reruns:
                calls, self._calls = self._calls, []
                reruns, self._reruns = self._reruns, []
                started = await self._answers([*(call.uid for call in calls), *reruns])
                for call in calls:
                    # Without answers, a task counts as started if it was reported as running.
                    if started is not None:
                        call.started = call.uid in started
                    if not call.started:
                        self._results.end_unstarted(call)
        finally:
            self._asking = None

    async def _answers(self, uids: list[str]) -> set[str] | None:
        """Ask all workers to stop tasks.

        Returns:
            The uids of the tasks that have started, or `None` if the connection fails or the
            answers do not arrive in time.
        """
        from rhapsody_dask.worker.site import cancel

        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                answers = await self._client.run(cancel, self._session, uids, on_error="ignore")
        except (OSError, TimeoutError):
            return None
        return {uid for started in answers.values() for uid in started or ()}


FIRST_CHECK = 5.0
"""Seconds until the first check for tasks that no worker can run."""

WARNING_INTERVAL = 60.0
"""Seconds between two warnings."""


class WaitWarnings:
    """Repeated check that warns about tasks of one backend that no worker can run.

    Args:
        client: Dask's client.
        session: The backend's session.
        calls: The open tasks by uid.
        address: The scheduler's address.
    """

    def __init__(self, client: Any, session: str, calls: Mapping[str, Call], address: str) -> None:
        self._client = client
        self._session = session
        self._calls = calls
        self._address = address
        self._timer: asyncio.TimerHandle | None = None
        self._checking: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Schedule a check if none is scheduled.

        Called when tasks have been sent or a worker has been lost.
        """
        if self._timer is None:
            self._check_in(FIRST_CHECK)

    def close(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()
        if self._checking is not None:
            self._checking.cancel()

    def _check_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._start_check)

    def _start_check(self) -> None:
        self._timer = None
        if self._calls:
            self._checking = asyncio.ensure_future(self._check())

    async def _check(self) -> None:
        from rhapsody_dask.worker.entry import stuck

        try:
            workers, keys = await self._client.run_on_scheduler(stuck)
        except OSError:  # the client reports the loss of the connection
            return
        # The uid of a group begins with that of its first call.
        uids = [key.rpartition(f"-{self._session}-")[2].partition("+")[0] for key in keys]
        text = self._text(workers, [self._calls[uid] for uid in uids if uid in self._calls])
        if text is not None:
            log.warning(text)
            self._check_in(WARNING_INTERVAL)

    def _text(self, workers: list[str], calls: list[Call]) -> str | None:
        if not workers and self._calls:
            return (
                f"tasks waiting: {len(self._calls)}; the Dask scheduler at {self._address} has no "
                "workers"
            )
        if not calls:
            return None
        demand = calls[0].demand
        wanted = [*map(str, demand.workers)]
        wanted += [f"{name}={amount:g}" for name, amount in demand.resources]
        others = f" (other tasks without a worker: {len(calls) - 1})" if len(calls) > 1 else ""
        return (
            f"{named(calls[0])}: waiting for a worker that matches {', '.join(wanted)}{others}; "
            f"workers of the Dask scheduler at {self._address}: {', '.join(workers)}"
        )
