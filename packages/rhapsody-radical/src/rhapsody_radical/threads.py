"""The backend's own threads: commands one after the other, ends, and a watch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rhapsody.errors import TaskLostError
from rhapsody_radical import processes, results, services
from rhapsody_radical.jobs import Job
from rhapsody_radical.session import FINAL, Pilot
from rhapsody_radical.vitals import Vitals, titles

if TYPE_CHECKING:
    from rhapsody_radical.backend import RadicalExecutionBackend

log: logging.Logger = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks of the watch."""


class Worker:
    """A thread that does one thing after the other.

    Args:
        name: The thread's.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any] | None] | None]
        self._queue = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Has a function called; its future has the result."""
        future: Future[Any] = Future()
        self._queue.put((function, future))
        return future

    def post(self, function: Callable[[], Any]) -> None:
        """Has a function called for whose result nobody waits; what it raises is logged."""
        self._queue.put((function, None))

    def stop(self) -> None:
        """Ends the thread after what was submitted."""
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(30)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            function, future = item
            try:
                value = function()
            except BaseException as error:  # handed to whoever waits
                if future is None:
                    log.exception("%r failed", function)
                else:
                    with suppress(InvalidStateError):  # who waited has given up
                        future.set_exception(error)
            else:
                if future is not None:
                    with suppress(InvalidStateError):
                        future.set_result(value)
            del function, future, item


class Results:
    """Works up what ended: reads output, and reports.

    Args:
        backend: The backend.
    """

    def __init__(self, backend: RadicalExecutionBackend) -> None:
        self._backend = backend
        self._progress = threading.Condition()
        self._worker = Worker("rhapsody-radical-results")

    def put(self, job: Job, state: str) -> None:
        """Adds a job with its final state. Any thread."""
        self._worker.post(partial(self._finish, job, state))

    def wait_for(self, jobs: Iterable[Job], limit: float) -> None:
        """Waits until jobs have been reported, for so many seconds at most."""
        uids = {job.uid for job in jobs}
        deadline = time.monotonic() + limit
        with self._progress:
            while uids & self._backend.open_uids() and time.monotonic() < deadline:
                self._progress.wait(min(0.5, max(0.0, deadline - time.monotonic())))

    def stop(self) -> None:
        """Ends the thread after what was put."""
        self._worker.stop()

    def _finish(self, job: Job, state: str) -> None:
        try:
            reported, error = self._outcome(job, state)
        except Exception as problem:  # a file that cannot be read, a reply that is none
            log.exception("task %s could not be worked up", job.uid)
            reported, error = "FAILED", problem
        if reported == "FAILED" and error is not None:
            job.task.setdefault("exception", error)
        if reported != "FAILED":
            job.task.pop("exception", None)
        if job.stopped is not None:
            job.stopped.set()
        self._backend.task_state_cb(job.task, reported)
        if job.task["is_service"]:
            services.ended(job)
        job.pilot.forget(job.uid)
        with self._progress:
            self._progress.notify_all()

    def _outcome(self, job: Job, state: str) -> tuple[str, BaseException | None]:
        backend = self._backend
        if state == "LOST" or job.handle is None:
            if job.cancelled:
                return "CANCELED", None
            of_pair = job.pair.lost if job.pair is not None else None
            reason = job.lost or of_pair or job.pilot.reason
            return "FAILED", TaskLostError(f"task {job.task['name']!r} was lost: {reason}")
        if job.is_function:
            if job.program:
                results.collect_output(job)
                job.task.pop("exit_code", None)
            return backend.function_outcome(job, state)
        if job.cancelled and job.running and job.pilot.shared and job.task.get("sandbox"):
            processes.wait_gone(job.task["sandbox"])
        results.collect_output(job)
        awaited = job.task["is_service"] and services.readiness(job.task) is not None
        if awaited and not job.cancelled and not services.is_ready(job):
            return "FAILED", services.too_early(job.task)
        return results.outcome(job, state)


class Watch:
    """Looks once a second for ends that nobody calls back about.

    Args:
        backend: The backend.

    Attributes:
        vitals: Processes that are looked after, each time with the pilots they serve.
    """

    def __init__(self, backend: RadicalExecutionBackend) -> None:
        self._backend = backend
        self.vitals: list[tuple[Vitals, list[Pilot]]] = [
            (Vitals(backend.session.path), backend.pilots)
        ]
        self.vitals += [(Vitals(each.sandbox), [each]) for each in backend.pilots if each.shared]
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="rhapsody-radical-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(TICK):
            try:
                self._look()
            except Exception:  # the next look may do better
                log.exception("RADICAL-Pilot could not be watched")

    def _look(self) -> None:
        backend = self._backend
        for pilot in backend.pilots:
            backend.fleet.note(pilot, pilot.state)
        found = titles(vitals.directory for vitals, _ in self.vitals)
        for vitals, pilots in self.vitals:
            name = vitals.note(found[vitals.directory])
            for pilot in pilots if name else ():
                backend.give_up(pilot, f"is lost: RADICAL-Pilot's process {name} has ended")
        again: dict[int, list[str]] = {}
        for job in backend.open_jobs():
            if job.over or job.handle is None:
                continue
            state = job.handle.state
            if state in FINAL:
                backend.end(job, state)
            elif job.cancelled or job.unready:
                # RADICAL-Pilot loses cancellations that come while a task is handed on.
                again.setdefault(job.pilot.number, []).append(job.uid)
        for number, uids in again.items():
            pilot = backend.pilots[number]
            if pilot.usable:
                pilot.manager.cancel_tasks(uids)
        backend.check_functions()
