"""Dask backend: the methods that the engine calls, and the handling of events from Dask.

`cluster` connects to the cluster, `task`, `values` and `files` prepare tasks for it, `results`
fetches their results, and `worker` runs on the workers. The engine is responsible for dependencies,
retries and timeouts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from rhapsody import BackendUnavailableError, CapabilityError, StateMapper, TaskDescription
from rhapsody.backends import BackendState, Capabilities, ManagedBackend
from rhapsody.plugins import NodeSample
from rhapsody.sdk import in_thread, is_cancelling, own_modules, seconds, task_kind
from rhapsody_dask import options
from rhapsody_dask.cluster import ClusterConnection, NotStartedError
from rhapsody_dask.files import ClusterLinks, View, copy_out
from rhapsody_dask.groups import Groups
from rhapsody_dask.jobs import WorkerJobs
from rhapsody_dask.plugin import CLUSTER
from rhapsody_dask.results import BackgroundTasks, ClusterResults, reference_lost, worker_lost
from rhapsody_dask.task import ClusterTask, Packer, SendableTask, TaskSender, problem
from rhapsody_dask.values import LargeArguments
from rhapsody_dask.worker.entry import stuck
from rhapsody_dask.worker.messages import MIN_BUFFER_SIZE, uid_in, unpack
from rhapsody_dask.worker.site import cancel, close_value, mark, topic

log: logging.Logger = logging.getLogger("rhapsody.dask")

ANSWER_TIMEOUT = 5.0
"""Time limit in seconds for the workers' answers to a request to stop tasks; a worker that cannot
be reached never answers.
"""

FIRST_CHECK = 5.0
"""Seconds until the first check for tasks that no worker can run."""

WARNING_INTERVAL = 60.0
"""Seconds between two warnings about such tasks."""

MOMENT = 1.0
"""Seconds within which Dask's client notices a lost connection after a request has failed."""

# The backend reports the first name of each state. The other names are those that Dask's client,
# scheduler and workers use; they can be looked up as well.
StateMapper.register_backend_tasks_states(
    "dask",
    done_state=["finished", "memory"],
    failed_state=["error", "erred", "lost"],
    canceled_state=["cancelled", "released", "forgotten"],
    running_state=["executing", "long-running"],
    pending=["waiting", "no-worker"],
    submitted=["pending", "queued", "processing"],
)


class DaskExecutionBackend(ManagedBackend):
    """Backend that runs tasks on a Dask cluster.

    Without arguments, the backend starts a LocalCluster on this machine. This cluster listens only
    on the loopback address and uses temporary TLS credentials. An existing cluster that the
    arguments select is not shut down.

    Functions run on the threads of Dask's workers. A running function cannot be stopped, unless it
    checks `current_task().cancelled`. Coroutines, executables and services can be stopped.
    Arguments of 1 MiB and more are sent once and shared by the tasks that use them. Arrays in such
    arguments are read-only in the task, and so are large arrays in results that a task receives
    directly from another task, not through the engine.

    Args:
        resources: A dict of keywords of `distributed.Client`, `distributed.LocalCluster` and its
            workers (`threads` is an alias of `threads_per_worker`). It may also contain `gpus` (the
            number of GPUs of each worker), TLS settings, and the arguments `cluster` to `timeout`
            below.
        cluster: A cluster object: LocalCluster, dask-jobqueue, dask-kubernetes, ...
        cluster_class: The class of a cluster, or its path such as `"dask_jobqueue.SLURMCluster"`.
            The backend starts and closes such a cluster.
        cluster_kwargs: A dict of keyword arguments of that class.
        adapt_kwargs: A dict of keyword arguments of the cluster's method `adapt`. Default: the
            method is not called.
        launcher: `"srun"`, `"mpirun"` or `"ssh"` to start one worker on each node of the batch job
            in which this program runs. The workers end with the backend.
        address: The address of a scheduler.
        scheduler_file: The file that `dask scheduler --scheduler-file` writes.
        security: A `distributed.Security` object, a dict of its keywords, or `False` for a
            LocalCluster without TLS. Default: temporary credentials for a LocalCluster; for an
            existing cluster, those of `client` or `cluster`.
        client: A Dask client, whose scheduler and credentials the backend uses.
        timeout: Time limit for connecting, in seconds (default: 30).
        grace: Seconds between SIGTERM and SIGKILL when a program is stopped.
        share_over: Size in bytes from which an argument is sent separately and shared, or `None` to
            share none.
        shared_file_system: True if the workers see this machine's files under the same paths, False
            if they do not. Default: True for a LocalCluster; detected for an existing cluster.
        batch_calls: True to send several short calls as one Dask task. This is faster for many
            independent calls of the same function.
        name: Name of the backend in an engine (default: `"dask"`).

    Attributes:
        thread_grace: Seconds that `shutdown` waits for functions that cannot be stopped.

    Raises:
        TypeError: A key is unknown or reserved, or a value has the wrong type.
        ValueError: Several clusters are selected, or a value is out of range.
    """

    name = "dask"
    capabilities: Capabilities = CLUSTER
    thread_grace: float = 1.0

    def __init__(
        self,
        resources: Mapping[str, Any] | None = None,
        *,
        cluster: Any = None,
        cluster_class: str | type | None = None,
        cluster_kwargs: Mapping[str, Any] | None = None,
        adapt_kwargs: Mapping[str, Any] | None = None,
        launcher: str | None = None,
        address: str | None = None,
        scheduler_file: str | os.PathLike[str] | None = None,
        security: Any = None,
        client: Any = None,
        timeout: float | str | None = None,
        grace: float | str = 5.0,
        share_over: int | None = MIN_BUFFER_SIZE,
        shared_file_system: bool | None = None,
        batch_calls: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        parsed = options.parse(
            resources, cluster=cluster, cluster_class=cluster_class, cluster_kwargs=cluster_kwargs,
            adapt_kwargs=adapt_kwargs, launcher=launcher, address=address,
            scheduler_file=scheduler_file, security=security, client=client, timeout=timeout,
        )  # fmt: skip
        self.grace: float = seconds("grace", grace, zero=True)
        self._share_over = share_over
        self._shared_files = shared_file_system
        self._batch_calls = batch_calls
        self._jobs = WorkerJobs(self._give_up, self._check_jobs_soon)
        self._connection = ClusterConnection(parsed, self._jobs, self._job_directory)
        self._links = ClusterLinks()
        self._loss: str | None = None
        self._remedy = ""
        self._watching: asyncio.Task[None] | None = None
        self._watching_nodes: asyncio.Task[None] | None = None
        self._report_load: Callable[[NodeSample], object] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._started_up = False
        self._background = BackgroundTasks()
        self._to_stop: list[ClusterTask] = []
        self._stopping = self._check_scheduled = False

    # Start and shutdown.

    async def start(self) -> None:
        """Connect to the cluster, and prepare the scheduler and the workers."""
        client = await self._connection.open()
        self._watching = asyncio.ensure_future(self._watch(client))
        try:
            await self._connection.in_time(self._set_up(client))
        except Exception as error:
            await self._explain(error)
            raise
        if self._jobs.refusal:
            await self._check_jobs()
        if self._loss is not None:
            raise self._lost()
        self._started_up = True
        if self.dashboard_link is not None:
            log.info("Dask dashboard: %s", self.dashboard_link)

    async def _set_up(self, client: Any) -> None:
        """Prepare the cluster, and create the objects that use the client."""
        await self._connection.prepare(self.session.uid, self.grace)
        await self._connection.send_modules(self.session.uid, await in_thread(own_modules))
        cluster, session = self._connection.cluster, self.session.uid
        direct = None if cluster is None else True
        view = View(
            client, self._shared_files if cluster is None else self._shared_files is not False
        )
        self._shared = LargeArguments(client, f"rhapsody-data-{session}-")
        self._submission = TaskSender(
            client, session, self._own(), self._links, view, self._shared, cluster,
            self._jobs.uniform,
        )  # fmt: skip
        self._results = ClusterResults(
            client,
            self.open_tasks,
            self._shared,
            self.report_state,
            self._cancel,
            self.require_running,
            direct,
        )
        self._groups = Groups(client, session, self.open_tasks, self._results, self._send)
        self._subscribe(client)
        if await view.sees(self.session.path) is False:
            self.capabilities = replace(self.capabilities, shared_file_system=False)

    @property
    def client(self) -> Any:
        """Dask's asynchronous client, for example for `upload_file` or `performance_report`.

        Raises:
            BackendUnavailableError: The backend is not running.
        """
        self.require_running()
        return self._connection.client

    @property
    def dashboard_link(self) -> str | None:
        """The address of Dask's dashboard, or `None` if the scheduler serves none."""
        return self._connection.dashboard

    async def close_worker_value(self, key: bytes) -> None:
        """Close a worker value on all workers."""
        if self._loss is None:
            with suppress(OSError):  # the connection has just been lost
                await self._connection.client.run(
                    close_value, self.session.uid, key, on_error="ignore"
                )

    @property
    def still_running(self) -> list[str]:
        """The uids of the open tasks; after `shutdown`, of the tasks that could not be stopped."""
        return [*self.open_tasks]

    def watch_nodes(self, report: Callable[[NodeSample], object] | None) -> None:
        """Report the load of the nodes of the workers; see the base class."""
        self._report_load = report
        if report is not None and self._watching_nodes is None:
            watch = self._connection.watch_nodes(self.session.uid)
            self._watching_nodes = asyncio.ensure_future(watch)

    async def stop(self) -> None:
        """Stop all tasks, wait for those that can be stopped, and close the connection."""
        if self._started_up and self._loss is None:
            for call in list(self.open_tasks.values()):
                self._cancel(call)
            await self._wait_for_ends()
            self._stop_background_work()
            self._shared.close()
        for each in (self._watching, self._watching_nodes):
            if each is not None:
                each.cancel()
        in_processes = self._connection.in_processes
        if self._closing is not None:
            await asyncio.shield(self._closing)
        await self._connection.close()
        if in_processes:  # the processes of the tasks have ended
            for call in list(self.open_tasks.values()):
                self._results.end_unstarted(call)

    async def _wait_for_ends(self) -> None:
        """Wait until the canceled tasks have ended, or the time for stopping them has passed."""
        begin = monotonic()
        level = self.capabilities.cancellation
        while self.open_tasks:
            stoppable = any(
                not call.started or level(task_kind(call.task)) == "running"
                for call in self.open_tasks.values()
            )
            limit = self.grace + 6.0 if stoppable else self.thread_grace
            self._results.ended.clear()
            try:
                async with asyncio.timeout(begin + limit - monotonic()):
                    await self._results.ended.wait()
            except TimeoutError:
                return

    def state(self) -> BackendState:
        """Return the backend's state: `"error"` once the connection to the scheduler has been lost.

        The result may be awaited.
        """
        return super().state() if self._loss is None else BackendState("error")

    def require_running(self) -> None:
        """Raise unless the backend is running and connected.

        Raises:
            BackendUnavailableError: The connection to the scheduler was lost.
            NotStartedError: The backend has not been started or was shut down.
        """
        if self._loss is not None:
            raise self._lost()
        try:
            super().require_running()
        except BackendUnavailableError as error:
            raise NotStartedError(str(error)) from None

    def _lost(self) -> BackendUnavailableError:
        """Return the error for calls after the connection to the scheduler was lost."""
        return BackendUnavailableError(f"{self._loss}{self._remedy}")

    async def _explain(self, error: BaseException) -> None:
        """Raise a more specific error if a request failed because of the connection."""
        if isinstance(error, OSError) and self._watching is not None:
            # The client may notice the loss a moment after the request has failed.
            await asyncio.wait([self._watching], timeout=MOMENT)
        if self._loss is not None:
            raise self._lost() from error
        if isinstance(error, OSError):
            raise BackendUnavailableError(
                f"a request to the Dask scheduler at {self._connection.address} failed: {error!r}"
            ) from error

    # Submission.

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Pack tasks and send them to the cluster.

        A task that cannot be packed fails. With `batch_calls`, some calls may wait until
        the first calls of their function have been measured.

        Raises:
            BackendUnavailableError: The backend is not running, or has lost its connection.
            BackendError: A uid is used by an open task, or twice in the batch.
            TypeError: An object in the batch is not a task description.
        """
        self.require_running()
        calls = [ClusterTask(task, self.session.uid) for task in self.admit(tasks)]
        for call in calls:
            self.open_tasks[call.uid] = call
        try:
            ready = await self._prepare(calls)
            self.require_running()
        except BaseException as error:
            if not is_cancelling():  # if the submission is canceled, so are its tasks
                for call in calls:
                    self._results.withdraw(call)
                await self._explain(error)
            raise
        live = [one for one in ready if one.call.uid in self.open_tasks]
        for one in ready:
            if one.call.uid not in self.open_tasks:  # canceled while its values were sent
                self._results.release(one.call)
        self._send(self._groups.take(live) if self._batch_calls else live)

    def _send(self, ready: Sequence[SendableTask]) -> None:
        """Send packed tasks to Dask, each as a separate Dask task."""
        for one in ready:
            self._results.calls[one.call.key] = one.call
        self._submission.send(ready)
        self._results.watch([one.call for one in ready])
        self._watch_waiting()

    async def _prepare(self, calls: Sequence[ClusterTask]) -> list[SendableTask]:
        """Pack tasks, fail those that cannot be packed, and send large values to the cluster."""
        from distributed.comm.core import CommClosedError

        packer = Packer(self.session.uid, self._share_over)
        await self._connection.send_modules(self.session.uid, packer.modules)
        ready = []
        for call in calls:
            try:
                self._resolve(call)
                ready.append(await self._submission.pack(call, packer))
            except CommClosedError:  # the connection, not the task, has failed
                raise
            except Exception as error:  # fails only this task
                self._results.fail(call, error)
        await self._submission.share(ready)
        return ready

    def _resolve(self, call: ClusterTask) -> None:
        """Record the keys and futures of the tasks whose values a task uses.

        Raises:
            ReferenceLostError: The value of one of them is no longer available.
        """  # noqa: DOC501 - a ReferenceLostError
        for uid in call.task.get("references", ()):
            other = self.open_tasks.get(uid) or self._results.held(uid)
            if other is None or other.cancelled or other.grouped or other.error is not None:
                raise reference_lost(call)
            other.referred_to = True
            call.references[other.key] = other.future

    # Events.

    def _subscribe(self, client: Any) -> None:
        """Subscribe to the events of the plugins on the scheduler and the workers."""
        # The client may outlive the backend: on Python 3.13, the cache of
        # `functools.singledispatchmethod` keeps a reference to the client.
        reference = weakref.ref(self)

        def receive(event: tuple[Any, Any]) -> None:
            backend = reference()
            if backend is not None:
                backend._receive(event[1])

        client.subscribe_topic(topic(self.session.uid), receive)

    async def _watch(self, client: Any) -> None:
        """Wait until the connection ends, then fail all tasks.

        A client cancels its futures when it loses the scheduler, is closed, or restarts the
        workers. This method therefore waits for a future that belongs to no task. Call it before
        the plugins are registered, so that no loss is missed: the scheduler then removes the
        plugins, and does not restore them if the client connects again.
        """
        from distributed import Future

        while client.status == "running":
            await Future(f"rhapsody-lifeline-{self.session.uid}", client).exception()
        self.disconnected(
            "the scheduler has ended or cannot be reached"
            if client.status == "connecting"
            else "backend.client was closed"
        )

    def _receive(self, message: Mapping[str, Any]) -> None:
        """Handle an event of a plugin."""
        for key, change, *measured in message.get("tasks", ()):
            self._task_changed(key, change, *measured)
        if "removed" in message:
            self._worker_removed(message["removed"], message["started"])
        for uid, token in message.get("running", ()):
            if (call := self.open_tasks.get(uid)) is not None:
                self._runs(call, message["worker"], token)
        if "load" in message and self._report_load is not None:
            load = message["load"]
            self._report_load(NodeSample(**{**load, "gpus": tuple(load["gpus"])}))
        if "building" in message:
            uid, token, begins = message["building"]
            call = self.open_tasks.get(uid)
            values = None if call is None else call.task.get("worker_values")
            if call is not None and values is not None and call.token in (None, token):
                values.building(begins)
        if "ready" in message:
            uid, payload = message["ready"]
            if (call := self.open_tasks.get(uid)) is not None:
                call.task["worker"] = message["worker"]
                self._results.announce(call)
                if call.readiness is not None:
                    call.readiness.set(unpack(payload))

    def _task_changed(
        self,
        key: str,
        change: str,
        size: int | None = None,
        interval: tuple[float, float] | None = None,
        reply: bytes | None = None,
    ) -> None:
        """Handle a task's transition on the scheduler; see `SchedulerSetup.transition`."""
        results = self._results
        self._jobs.done += change in ("returned", "replied", "erred")
        if change == "stuck":
            results.stuck(key)
        call = results.calls.get(key)
        if call is None:
            return
        match change:
            case "returned" | "replied":
                call.finished = True
                is_open = call.uid in self.open_tasks and not call.cancelled
                if change == "returned" and call.referred_to and is_open:
                    results.hold(call, size, interval)
                elif reply is not None:
                    results.receive(call, unpack(reply))
                else:
                    results.fetch(key)
            case "erred":
                call.finished = True
                results.erred(call)
            case "lost":
                results.refetch_others(key)
            case "repeated":  # the task may have run briefly without being reported
                call.started, call.worker, call.token = False, None, None
            case "dropped":
                results.dropped(call)

    def _worker_removed(self, worker: str, marks: Sequence[bytes] | None) -> None:
        """Fail the tasks that were running on a worker when the worker left the cluster.

        Args:
            worker: The worker's address.
            marks: The marks (see `worker.site.mark`) of the attempts that were running, or `None`
                if they are unknown.
        """
        for call in list(self.open_tasks.values()):
            ran = reported = call.started and call.worker == worker
            if call.grouped and marks is not None:
                ran = mark(call.uid) in marks
                if reported and not ran:  # it had ended, but its reply is lost: it is sent again
                    call.started, call.worker, call.token = False, None, None
            if ran and not call.finished:  # otherwise Dask reruns it if its reply was lost
                self._results.fail(call, worker_lost(call, worker))
                self._request_stop(call)  # of a rerun by Dask
        self._watch_waiting()

    def _runs(self, call: ClusterTask, worker: str, token: str) -> None:
        """Handle the report that a task is running on a worker."""
        if call.token not in (None, token):
            log.warning(
                "%s: Dask is rerunning the task on %s because worker %s was lost",
                call, worker, call.worker,
            )  # fmt: skip
        call.worker, call.token, call.started = worker, token, True
        call.task["worker"] = worker
        self._results.announce(call)
        if call.grouped:
            self._groups.runs(call)

    def disconnected(self, reason: str) -> None:
        """Fail all tasks because the connection to the scheduler was lost."""
        address = self._connection.address
        self._end(
            f"the connection to the Dask scheduler at {address} was lost: {reason}",
            ". Create a new DaskExecutionBackend once the scheduler can be reached",
        )

    def _give_up(self, reason: str) -> None:
        """Fail all tasks because the cluster has no workers and will not have any."""
        self._end(f"the Dask cluster at {self._connection.address} has no workers: {reason}")

    def _end(self, lost: str, remedy: str = "") -> None:
        """Fail all tasks, and close the connection."""
        if self._loss is not None:
            return
        self._loss, self._remedy = lost, remedy
        self._closing = asyncio.ensure_future(self._connection.close())
        if not self._started_up:
            return
        fetching = [call for call in self._results.calls.values() if call.waiter]
        for call in list(self.open_tasks.values()):
            self._results.fail(call, BackendUnavailableError(f"{call} failed: {lost}"))
        for call in fetching:  # the tasks are done, but their values are lost
            self._results.fail(call, BackendUnavailableError(lost))
        self._stop_background_work()

    def _stop_background_work(self) -> None:
        """Stop fetching results, following groups, sending requests and looking for stuck tasks."""
        self._results.close()
        self._groups.close()
        self._to_stop.clear()
        self._background.close()

    # Methods that older programs await.

    def build_task(self, task: Mapping[str, Any] | None = None, **keys: Any) -> Any:
        """Return the description, which needs no translation. The result may be awaited."""
        return _Answer({**(task or {}), **keys})

    def task_state_cb(
        self,
        task: Any = None,
        state: Any = None,
        service_callback: Callable[..., Any] | None = None,
    ) -> Any:
        """Report a task's state immediately, if a task is passed. The result may be awaited."""
        if task is not None:
            super().task_state_cb(task, state, service_callback)
        return _Answer()

    # Cancellation.

    async def cancel_task(self, uid: str) -> bool:
        """Cancel a task.

        The terminal state is reported when Dask or the worker has answered. A running function
        continues, and its result is dropped.

        Returns:
            True if the task is open, False if it is unknown or has ended.

        Raises:
            BackendUnavailableError: The backend has not been started.
        """
        self._require_started()
        call: ClusterTask | None = self.open_tasks.get(uid)
        if call is None:
            return False
        self._cancel(call)
        return True

    async def cancel_all_tasks(self) -> int:
        """Cancel all open tasks.

        Returns:
            The number of tasks whose cancellation was requested.

        Raises:
            BackendUnavailableError: The backend has not been started.
        """
        self._require_started()
        calls = [call for call in self.open_tasks.values() if not call.cancelled]
        for call in calls:
            self._cancel(call)
        return len(calls)

    def _require_started(self) -> None:
        if self.state() == "initialized":
            self.require_running()

    def _cancel(self, call: ClusterTask) -> None:
        if not call.cancelled:
            call.cancelled = True
            self._request_stop(call)

    def _request_stop(self, call: ClusterTask) -> None:
        """Request that workers stop a task; the request is sent with the next batch."""
        self._to_stop.append(call)
        if not self._stopping:
            self._stopping = True
            self._background.start(self._send_stop_requests())

    async def _send_stop_requests(self) -> None:
        try:
            await asyncio.sleep(0)  # collect the other cancellations of this loop iteration
            while self._to_stop:
                calls, self._to_stop = self._to_stop, []
                run = self._connection.client.run
                uids = [call.uid for call in calls]
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        answers = await run(cancel, self.session.uid, uids, on_error="ignore")
                    started = {uid for found in answers.values() for uid in found or ()}
                    for call in calls:
                        call.started = call.uid in started
                # Without answers, a task counts as started if it was reported as running.
                for call in calls:
                    if not call.started:
                        self._results.end_unstarted(call)
        finally:
            self._stopping = False

    # Tasks that no worker can run.

    def _watch_waiting(self, *, again: bool = False) -> None:
        """Check later for tasks that no worker can run, unless a check is already scheduled."""
        if not self._check_scheduled:
            self._check_scheduled = True
            self._background.start(self._check_waiting(WARNING_INTERVAL if again else FIRST_CHECK))

    def _check_jobs_soon(self) -> None:
        """Check the worker jobs, because one was refused."""
        if self._started_up:
            self._background.start(self._check_jobs())

    async def _check_jobs(self) -> None:
        with suppress(OSError):  # the client reports the loss of the connection
            workers, _ = await self._connection.client.run_on_scheduler(stuck)
            await self._jobs.check(set(workers.values()))

    async def _check_waiting(self, pause: float) -> None:
        await asyncio.sleep(pause)
        self._check_scheduled = False
        if not self.open_tasks:
            return
        try:
            workers, keys = await self._connection.client.run_on_scheduler(stuck)
            identity = await self._connection.client.scheduler.identity(n_workers=-1)
        except OSError:  # the client reports the loss of the connection
            return
        waiting, missing = await self._jobs.check(set(workers.values()))
        if self._loss is not None:
            return
        uids = [uid_in(key, self.session.uid) for key in keys]
        calls = [self.open_tasks[uid] for uid in uids if uid in self.open_tasks]
        if self._jobs.uniform:
            calls = [call for call in calls if not self._fail_hopeless(call, identity["workers"])]
        where = f"the Dask scheduler at {self._connection.address}"
        if not workers and self.open_tasks:
            log.warning(
                "tasks waiting: %d; %s has no workers%s%s",
                len(self.open_tasks), where, "; " if waiting else "", waiting,
            )  # fmt: skip
        elif calls:
            demand = calls[0].demand
            wanted = [*map(str, demand.workers)]
            wanted += [f"{name}={amount:g}" for name, amount in demand.resources]
            others = f" (other tasks without a worker: {len(calls) - 1})" if calls[1:] else ""
            log.warning(
                "%s: waiting for a worker that matches %s%s; workers of %s: %s%s",
                calls[0], ", ".join(wanted), others, where, ", ".join([*workers][:10]),
                "; workers declare resources with --resources" if demand.resources else "",
            )  # fmt: skip
        elif not missing:
            return
        self._watch_waiting(again=True)

    def _fail_hopeless(self, call: ClusterTask, workers: Mapping[str, Any]) -> bool:
        """Fail a task that no worker can run if all have equal options, and return True."""
        why = problem(call.demand, workers, None, jobs=True)
        if why is None or call.grouped:
            return False
        error = CapabilityError(f"task {call.task['name']!r} requests {why}")
        self._results.fail(call, error)
        return True

    # Files.

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
        *,
        copy: bool = False,
    ) -> None:
        """Register an input file for a task; the worker links or copies it when the task starts.

        Raises:
            ValueError: Neither `file_path` nor both `src_task` and `file_name` are given.
            DataError: The file does not exist, or the name refers to a place outside the sandbox.
        """
        self._links.explicit(self._own(), src_task, dst_task, file_name, file_path, copy=copy)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        """Register all files that another task left in its sandbox, except its output streams."""
        self._links.implicit(self._own(), src_task, dst_task)

    async def copy_file_out(self, task: Mapping[str, Any], name: str, path: Path) -> None:
        """Copy a file from the sandbox of a task that has run.

        Raises:
            DataError: The file does not exist, or its name refers to a place outside the sandbox.
        """
        await in_thread(copy_out, task, self._own(), name, path)

    def _job_directory(self) -> str | None:
        """Create a directory for the files of batch jobs, if the nodes can read the engine's."""
        if not self.session.chosen:
            return None
        os.makedirs(self.session.path, exist_ok=True)
        return tempfile.mkdtemp(prefix="dask-jobs.", dir=self.session.path)

    def _own(self) -> str:
        session = self.session
        return os.path.join(session.path, session.uid) if session.chosen else session.temporary


class _Answer(dict[str, Any]):
    """Dict that older programs can await; awaiting an empty dict returns `None`."""

    def __await__(self) -> Generator[Any, None, dict[str, Any] | None]:
        return self or None
        yield  # make this a generator, which never suspends
