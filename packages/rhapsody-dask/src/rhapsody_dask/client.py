"""Dask's client, telling of finished tasks in passing instead of by a coroutine for each.

A subclass, because Dask's own ways to hear of a task (`as_completed`, callbacks)
cost a coroutine or a thread for every one. What is overridden are the methods
that Dask calls with the scheduler's messages.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol, cast

from distributed import Client
from distributed.utils_comm import gather_from_workers

from rhapsody_dask.worker.entry import retry


class Listener(Protocol):
    """Who is told. All calls are on the client's loop, and must be quick."""

    def finished(self, key: str, returned: bool) -> None:
        """A task's reply is in the memory of a worker, and known to be a `Returned` or not."""

    def erred(self, key: str, error: BaseException | None) -> None:
        """Dask gave a task up."""

    def dropped(self, keys: Collection[str], reason: str) -> None:
        """Dask forgot tasks that nobody here gave up."""

    def lost(self, reason: str) -> None:
        """The connection to the scheduler is gone; nothing more will be told."""

    def told(self, event: tuple[Any, Any]) -> None:
        """Somebody logged an event in a topic that is listened to: when, and what."""


class TellingClient(Client):
    """A client that tells a listener what the scheduler says about its tasks."""

    listener: Listener | None = None

    def listen(self, topic: str) -> None:
        """Has the listener told of a topic's events.

        By way of this client, which may live on: on Python 3.13 the cache of
        `functools.singledispatchmethod`, which Dask's client uses, keeps it.
        """
        self.subscribe_topic(topic, self._tell)  # type: ignore[no-untyped-call]

    def _tell(self, event: tuple[Any, Any]) -> None:
        if self.listener is not None:
            self.listener.told(event)

    def _handle_key_in_memory(
        self,
        key: Any = None,
        type: Any = None,
        workers: Any = None,
    ) -> None:
        state = self.futures.get(key)
        if state is not None:
            state.finish(None)
            if self.listener is not None:
                self.listener.finished(key, _is_returned(type))

    def _handle_task_erred(
        self, key: Any = None, exception: Any = None, traceback: Any = None
    ) -> None:
        state = self.futures.get(key)
        if state is None:
            return
        state.set_error(exception, traceback)
        if self.listener is not None:
            self.listener.erred(key, state.exception)

    def _handle_cancelled_keys(self, keys: Any, reason: Any = None, msg: Any = None) -> None:
        super()._handle_cancelled_keys(keys, reason=reason, msg=msg)  # type: ignore[no-untyped-call]
        if self.listener is not None:
            self.listener.dropped(list(keys), str(reason or msg or "cancelled"))

    def _handle_restart(self) -> None:
        keys = list(self.futures)
        super()._handle_restart()  # type: ignore[no-untyped-call]
        if self.listener is not None:
            self.listener.dropped(keys, "the scheduler was told to restart its workers")

    async def _reconnect(self) -> None:
        # The scheduler has given up what this client wanted: there is nothing to go on with.
        if self.listener is not None:
            self.listener.lost("the connection was closed")
        self.status = "closing"
        await self._close(fast=True)

    async def _retry(self, futures: Any) -> None:
        # Dask's own fails where something has to be made again that this client let go of.
        keys = [future.key for future in futures]
        for key in await cast("Any", self).run_on_scheduler(retry, keys, self.id):
            state = self.futures.get(key)
            if state is not None:
                state.retry()

    async def _close(self, fast: bool = False) -> None:
        try:
            await super()._close(fast=fast)
        finally:
            if self.listener is not None:  # not by the backend
                self.listener.lost("backend.client was closed")

    async def fetch(self, keys: list[str], direct: bool) -> tuple[dict[str, Any], list[str]]:
        """The replies of finished tasks.

        Args:
            keys: The tasks' keys.
            direct: Whether to ask the workers themselves; else the scheduler does.

        Returns:
            The replies, and the keys that could not be had.
        """
        scheduler: Any = self.scheduler
        lost: list[Any] = []
        if direct:
            where = await scheduler.who_has(keys=keys)
            found, missing, failed, _ = await gather_from_workers(where, rpc=self.rpc)
            lost = [*missing, *failed, *(key for key in keys if key not in where)]
            return cast("dict[str, Any]", found), lost
        while keys:
            response = await scheduler.gather(keys=keys)
            if response["status"] == "OK":
                return response["data"], lost
            gone = set(response["keys"])
            lost += gone
            keys = [key for key in keys if key not in gone]
        return {}, lost

    def ask_again(self, keys: Collection[str]) -> None:
        """Has the scheduler tell again of tasks whose replies could not be had."""
        for key in keys:
            state = self.futures.get(key)
            if state is not None:
                state.reset()
                message = {"op": "report-key", "key": key}
                self._send_to_scheduler(message)  # type: ignore[no-untyped-call]
            elif self.listener is not None:
                self.listener.dropped([key], "somebody has cancelled it with this client")


def _is_returned(packed: Any) -> bool:
    """Whether a type, as workers tell it, is `rhapsody_dask.worker.messages.Returned`."""
    # A pickle of the class or of its name, by the version of Dask. Only our replies are asked of.
    return isinstance(packed, bytes) and b"Returned" in packed and b"rhapsody_dask" in packed


__all__ = ["Listener", "TellingClient"]
