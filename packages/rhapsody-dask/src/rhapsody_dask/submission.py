"""From descriptions to Dask's graphs: packing a batch, sharing what is big, sending it.

What comes of the tasks is not seen here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from rhapsody import CapabilityError
from rhapsody.sdk import in_thread
from rhapsody_dask._private import task_reference
from rhapsody_dask.calls import Call, details
from rhapsody_dask.demand import demand, problem, unknown
from rhapsody_dask.files import Links, View, content_of
from rhapsody_dask.packing import Big, Packer
from rhapsody_dask.shared import Shared


class Ready(NamedTuple):
    """A task that can be sent.

    Attributes:
        call: The task.
        order: The packed order.
        bigs: What Dask has to hold for it, besides the values that it refers to.
    """

    call: Call
    order: bytes
    bigs: list[Big]


@dataclass(slots=True)
class Batch:
    """Data shared by all tasks of one submission.

    Attributes:
        packer: Packs the tasks.
        workers: The scheduler's description of each worker, requested for the first task that
            names resources or workers.
    """

    packer: Packer
    workers: dict[str, Any] | None = None


class Submission:
    """Sends the tasks of one backend.

    Args:
        client: Dask's client.
        session: The backend's session.
        own: The directory for the sandboxes of tasks that name none.
        links: The files that tasks were given.
        view: Which directories the workers see.
        shared: The big arguments on the cluster.
        share_over: Bytes from which an argument is shared; `None` shares none.
        cluster: The cluster that was made by the backend, `None` where one was given.
    """

    def __init__(
        self,
        client: Any,
        session: str,
        own: str,
        links: Links,
        view: View,
        shared: Shared,
        share_over: int | None,
        *,
        cluster: Any,
    ) -> None:
        from rhapsody_dask.worker.entry import run

        self._client = client
        self._session = session
        self._own = own
        self._links = links
        self._view = view
        self._shared = shared
        self._share_over = share_over
        self._cluster = cluster
        self._entry = run
        self._reference = task_reference()

    def batch(self) -> Batch:
        """Start a batch."""
        return Batch(Packer(self._session, self._share_over))

    async def pack(self, call: Call, batch: Batch) -> Ready:
        """Packs one task.

        Raises:
            Exception: The task cannot be run here, or cannot be pickled.
        """
        task = call.task
        call.demand = demanded = demand(task)
        more = details(task, demanded, self._own)
        if demanded.resources or (demanded.workers and self._cluster is not None):
            await self._require_fit(call, batch)
        content: list[Big] = []
        if "sandbox" in more:
            content = await self._files(call, more)
        held = len(content) + len(call.references)
        order, bigs = batch.packer.pack(task, more, held=held)
        return Ready(call, order, [*content, *bigs])

    async def share(self, ready: Sequence[Ready]) -> None:
        """Brings big arguments to the cluster, and notes them with the tasks."""
        bigs = [big for one in ready for big in one.bigs]
        if not bigs:
            return
        entries = await self._shared.put(bigs)
        for one in ready:
            for big in one.bigs:
                entry = entries[id(big.value)]
                self._shared.use(entry)
                one.call.entries.append(entry)
        for entry in entries.values():
            self._shared.release(entry)  # held by the tasks from now on

    def send(self, ready: Sequence[Ready]) -> None:
        """Hands tasks to Dask, in as few graphs as their demands allow."""
        for demanded, group in groupby(ready, key=lambda one: one.call.demand):
            self._send(list(group), demanded.keywords())

    def _send(self, group: Sequence[Ready], keywords: Mapping[str, Any]) -> None:
        columns: list[list[Any]] = [[one.order for one in group]]
        if any(one.call.entries or one.call.references for one in group):
            columns.append([self._values(one) for one in group])
        keys = [one.call.key for one in group]
        futures = self._client.map(self._entry, *columns, key=keys, pure=False, **keywords)
        for one, future in zip(group, futures, strict=True):
            one.call.future = future

    def _values(self, one: Ready) -> list[Any]:
        """What Dask holds for a task: content of files, values of tasks, big arguments."""
        call = one.call
        entries = [entry.future for entry in call.entries]
        files = sum(big.value is big.payload for big in one.bigs[:1])  # at most one, the first
        references = [self._reference(key) for key in call.references]
        return [*entries[:files], *references, *entries[files:]]

    async def _files(self, call: Call, more: dict[str, Any]) -> list[Big]:
        """Tells the worker of the files that a task needs; gives those that go by content."""
        links = self._links.take(call.uid)
        if await self._view.sees(os.path.dirname(more["sandbox"])):
            if links:
                more["links"] = links
            return []
        more["ship"] = True
        call.links = links
        if not links:
            return []
        content, names = await in_thread(lambda: content_of(links))
        more["came"] = names
        more["links"] = [("content", 0)]
        return [Big(content, content, [])]

    async def _require_fit(self, call: Call, batch: Batch) -> None:
        if batch.workers is None:
            batch.workers = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        name, workers, cluster = call.task["name"], batch.workers, self._cluster
        why = problem(name, call.demand, workers, own=cluster is not None)
        if why is None and cluster is not None:  # elsewhere workers may come
            why = unknown(name, call.demand, workers, [*cluster.workers])
        if why is not None:
            raise CapabilityError(why)
