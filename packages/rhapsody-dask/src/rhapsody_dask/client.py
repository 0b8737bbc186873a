"""Dask's client, telling of finished tasks in passing instead of by a coroutine for each.

A subclass, because Dask's own ways to hear of a task (`as_completed`, callbacks)
cost a coroutine or a thread for every one. What is overridden are the methods
that Dask calls with the scheduler's messages.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from distributed import Client
from distributed.utils_comm import gather_from_workers


class Listener(Protocol):
    """Who is told. All calls are on the client's loop, and must be quick."""

    def finished(self, key: str) -> None:
        """A task's reply is in the memory of a worker."""

    def erred(self, key: str, error: BaseException) -> None:
        """Dask gave a task up."""

    def dropped(self, keys: Collection[str], reason: str) -> None:
        """Dask forgot tasks that nobody here gave up."""

    def lost(self, reason: str) -> None:
        """The scheduler is gone; nothing more will be told."""


class TellingClient(Client):  # type: ignore[misc]
    """A client that tells a listener what the scheduler says about its tasks."""

    listener: Listener | None = None

    def _handle_key_in_memory(
        self, key: Any = None, type: Any = None, workers: Any = None  # noqa: A002
    ) -> None:
        state = self.futures.get(key)
        if state is not None:
            state.finish(None)
            if self.listener is not None:
                self.listener.finished(key)

    def _handle_task_erred(
        self, key: Any = None, exception: Any = None, traceback: Any = None
    ) -> None:
        state = self.futures.get(key)
        if state is None:
            return
        super()._handle_task_erred(key=key, exception=exception, traceback=traceback)
        if self.listener is not None:
            self.listener.erred(key, state.exception)

    def _handle_cancelled_keys(self, keys: Any, reason: Any = None, msg: Any = None) -> None:
        super()._handle_cancelled_keys(keys, reason=reason, msg=msg)
        if self.listener is not None:
            self.listener.dropped(list(keys), str(reason or msg or "cancelled"))

    def _handle_restart(self) -> None:
        keys = list(self.futures)
        super()._handle_restart()
        if self.listener is not None:
            self.listener.dropped(keys, "the scheduler was told to restart its workers")

    async def _reconnect(self) -> None:
        # The scheduler has given up what this client wanted: there is nothing to go on with.
        if self.listener is not None:
            self.listener.lost("the connection was closed")
        self.status = "closing"
        await self._close(fast=True)

    async def fetch(self, keys: list[str], direct: bool) -> tuple[dict[str, Any], list[str]]:
        """The replies of finished tasks.

        Args:
            keys: The tasks' keys.
            direct: Whether to ask the workers themselves; else the scheduler does.

        Returns:
            The replies, and the keys that could not be had.
        """
        if direct:
            where = await self.scheduler.who_has(keys=keys)
            data, missing, failed, _ = await gather_from_workers(where, rpc=self.rpc)
            known = set(where)
            return data, [*missing, *failed, *(key for key in keys if key not in known)]
        data, lost = {}, []
        while keys:
            response = await self.scheduler.gather(keys=keys)
            if response["status"] == "OK":
                data = response["data"]
                break
            missing = set(response["keys"])
            lost += missing
            keys = [key for key in keys if key not in missing]
        return data, lost

    def ask_again(self, keys: Collection[str]) -> None:
        """Has the scheduler tell again of tasks whose replies could not be had."""
        for key in keys:
            state = self.futures.get(key)
            if state is not None:
                state.reset()
                self._send_to_scheduler({"op": "report-key", "key": key})


__all__ = ["Listener", "TellingClient"]
