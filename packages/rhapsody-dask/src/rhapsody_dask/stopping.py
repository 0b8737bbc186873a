"""Asks workers to stop tasks, many with one question.

Every worker is asked, because a task may have begun anywhere since it was last
heard of; one that has not begun is noted there, so that it will not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rhapsody_dask.calls import Call

PATIENCE = 5.0
"""Seconds to wait for the workers' answers; one that is cut off never gives one."""


class Stopping:
    """The tasks of one backend that are to be stopped.

    Args:
        client: Dask's client.
        session: The backend's session.
        not_begun: Told of each task that no worker has begun with.
        begun: Told of each task that one has; its reply will come.
    """

    def __init__(
        self,
        client: Any,
        session: str,
        not_begun: Callable[[Call], None],
        begun: Callable[[Call], None],
    ) -> None:
        self._client = client
        self._session = session
        self._not_begun = not_begun
        self._begun = begun
        self._calls: list[Call] = []
        self._reruns: list[str] = []
        self._asking: asyncio.Task[None] | None = None

    def stop(self, call: Call) -> None:
        """Has a task stopped soon."""
        self._calls.append(call)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())

    def stop_rerun(self, uid: str) -> None:
        """Has another start of a task stopped, about which nobody wants to know any more."""
        self._reruns.append(uid)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())

    def close(self) -> None:
        """Asks nobody any more."""
        self._calls.clear()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    async def _ask(self) -> None:
        try:
            await asyncio.sleep(0)  # what else is cancelled in this turn
            while self._calls or self._reruns:
                calls, self._calls = self._calls, []
                reruns, self._reruns = self._reruns, []
                begun = await self._answers([*(call.uid for call in calls), *reruns])
                for call in calls:
                    # Without answers, what was seen to run goes on for all that is known.
                    runs = call.begun if begun is None else call.uid in begun
                    (self._begun if runs else self._not_begun)(call)
        finally:
            self._asking = None

    async def _answers(self, uids: list[str]) -> set[str] | None:
        """Which tasks have begun; `None` where one worker that hangs keeps all answers away."""
        from rhapsody_dask.worker.site import cancel

        try:
            async with asyncio.timeout(PATIENCE):
                answers = await self._client.run(cancel, self._session, uids, on_error="ignore")
        except (OSError, TimeoutError):
            return None
        return {uid for begun in answers.values() for uid in begun or ()}
