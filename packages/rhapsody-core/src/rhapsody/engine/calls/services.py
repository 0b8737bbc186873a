"""Restarts of services that end after becoming ready, and the values that dependents receive.

A service's future is done once the service is ready, and stays done. If the service is restarted, a
new record with the same call and the same future replaces the previous record. The future keeps
its first result, so this module stores the new readiness information for dependents. Until
the service is ready again, the module also holds back dependents that have not started.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from rhapsody.engine.core import error_messages
from rhapsody.engine.core.pushdown import PushDown
from rhapsody.engine.core.record import BlockRecord, TaskRecord, Tries, is_service
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.core.states import FutureState, WorkState
from rhapsody.engine.functions.arguments import ArgumentScan
from rhapsody.errors import DependencyFailureError, add_note
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskFuture

log: logging.Logger = logging.getLogger("rhapsody.engine")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


class ServiceStatus:
    """Status of a service that has ended without being stopped.

    Attributes:
        error: The error with which the service last ended.
        ended_at: Time at which the service last ended, in seconds since the epoch.
        restarted: True if the service was restarted afterwards, and has neither failed nor been
            canceled since.
        ready: True if the service is ready again.
        value: The readiness information, if the service is ready again.
        waiting: The tasks that wait until the service is ready.
    """

    def __init__(self, error: BaseException, restarted: bool) -> None:
        self.error: BaseException = error
        self.ended_at: float = time.time()
        self.restarted: bool = restarted
        self.ready: bool = False
        self.value: Any = None
        self.waiting: list[TaskRecord] = []


class Services:
    """Tracker of one engine's services that ended without being stopped.

    Args:
        scheduler: The scheduler, which restarts services, and resumes, cancels or fails the tasks
            that wait for them.

    Attributes:
        any: True once a service has ended without being stopped. While it is False, only `ended`
            needs to be called.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._ended: WeakKeyDictionary[TaskFuture[Any], ServiceStatus] = WeakKeyDictionary()
        self.any: bool = False

    # Services.

    def ended(
        self, record: TaskRecord, main: TasksMainStates, report: Mapping[str, Any]
    ) -> tuple[TasksMainStates, BaseException | None]:
        """Handle the end of a service that was ready, and restart it if it has restarts left.

        Returns:
            The state and the error to publish.
        """
        restarts = record.tries.restarts if record.tries is not None else 0
        restarted = restarts < record.call.task.settings.restarts and not self._scheduler.closing
        error = error_messages.of_service(record, report, ready=True)
        log.warning(
            "service %r (%s) ended unexpectedly%s: %s", record.call.task.name, record.future.uid,
            " and will be restarted" if restarted else "", error_messages.ending(report),
        )  # fmt: skip
        if main is TasksMainStates.DONE and not record.call.task.settings.restarts:
            return main, report.get("exception")  # it may have fulfilled its purpose
        self.any = True
        self._ended[record.future] = ServiceStatus(error, restarted)
        if not restarted:
            return main, error if main is TasksMainStates.FAILED else report.get("exception")
        again = partial(self._start_again, record, restarts + 1, record.parent, record.waiters)
        record.waiters = [again]
        return TasksMainStates.FAILED, error

    def _start_again(
        self,
        former: TaskRecord,
        restarts: int,
        parent: BlockRecord | None,
        waiters: list[Callable[[], object]] | None,
    ) -> None:
        """Replace the record of a service that has ended, and start the service again.

        Args:
            former: The record.
            restarts: The number of restarts, including this one.
            parent: The block in which the service was called.
            waiters: Functions to call when the service has ended for good.
        """
        record = TaskRecord(former.scheduler, former.call, former.future)
        record.attempt, record.tries = former.attempt.ended(), Tries(restarts=restarts)
        record.outcome, record.submitted_to = former.outcome, former.submitted_to
        record.waiters = waiters
        if parent is not None and parent.state.future is FutureState.PENDING:
            record.parent = parent
            parent.children[record] = None
        self._scheduler.start_again(record)

    def settled(self, record: TaskRecord, value: Any, error: BaseException | None) -> None:
        """Resume, fail or cancel the tasks that wait for a restarted service.

        Without `error`, the service is ready and `value` is its readiness information. Otherwise
        the service has failed or was canceled.
        """
        status = self._ended.get(record.future)
        if status is None:
            return  # no service: a signal's exception was set on the future
        waiting, status.waiting = status.waiting, []
        if error is None:
            status.ready, status.value = True, value
        elif isinstance(error, asyncio.CancelledError):
            status.restarted = False
        else:
            status.restarted, status.error = False, error
        for each in waiting:
            if each.state.work is not WorkState.READY:
                continue  # canceled while it waited
            if error is None:
                self._scheduler.resume(each)
            elif isinstance(error, asyncio.CancelledError):
                why = f"its dependency {record.call.task.name!r} was canceled"
                self._scheduler.cancel(each, why)
            else:
                failure = error_messages.of_ended_dependency(each, record.future, error)
                self._scheduler.refuse(each, failure)

    # Dependents of services.

    def hold_back(self, record: TaskRecord) -> bool:
        """Return True if a ready task cannot start now because one of its services has ended.

        If the service was restarted, the task continues once the service is ready again; otherwise
        the task fails.
        """
        for future in record.call.dependencies:
            status = self._status_of(future)
            if status is None:
                continue
            if not (status.ready or status.restarted):
                failure = error_messages.of_ended_dependency(record, future, status.error)
                self._scheduler.refuse(record, failure)
                return True
            if not status.ready:
                status.waiting.append(record)
                for other in self._scheduler.limits.give_back(record):
                    self._scheduler.resume(other)
                return True
            if record.attempt.command is not None:  # that of an earlier attempt has another value
                record.attempt.command = None
        return False

    def value(self, future: Any) -> Any:
        """Return a future's value for dependents; for a restarted service, the new value."""
        status = self._status_of(future)
        return future.result() if status is None else status.value

    def explain(self, record: TaskRecord, error: BaseException) -> None:
        """Add a note to an error if a service that its task depends on ended while the task ran."""
        if isinstance(error, DependencyFailureError):
            return
        for future in record.call.dependencies:
            status = self._status_of(future)
            if status is not None and (
                record.attempt.started is None or record.attempt.started <= status.ended_at
            ):
                note = error_messages.service_ended(
                    future, status.ended_at, status.error, status.restarted
                )
                if note not in (vars(error).get("__notes__") or ()):
                    add_note(error, note)

    def _status_of(self, future: Any) -> ServiceStatus | None:
        return self._ended.get(future) if isinstance(future, TaskFuture) else None


class ArgumentValues:
    """Provider of task arguments, with values and paths instead of futures and files.

    Args:
        services: The source of the values of restarted services.
        pushdown: The source of references to values that stay with a backend.
    """

    def __init__(self, services: Services, pushdown: PushDown) -> None:
        self._services = services
        self._pushdown = pushdown

    def of(self, record: TaskRecord, stands_in: Callable[[Any], Any] | None = None) -> Arguments:
        """Return the arguments of a task, with values and paths instead of futures and files.

        Args:
            record: The task.
            stands_in: Function that returns the replacement for a service's future. Default: the
                future is replaced with its value.
        """
        found, kept = record.call.found, record.kept
        replaced = None if kept is None else kept.replaced
        if found is None:
            if not replaced:
                return record.call.args, record.call.kwargs or {}
            return ArgumentScan().fill(record.call.args, record.call.kwargs or {}, {}, replaced)
        if record.pushed or stands_in is not None or self._services.any:
            values = {id(each): self._value(record, each, stands_in) for each in found.futures}
        else:
            values = {
                id(each): each._result if isinstance(each, TaskFuture) else each.result()
                for each in found.futures
            }
        if record.files is not None:
            task = record.call.task
            by_path = task.kind != "executable" or task.settings.cwd is not None
            values |= record.files.arguments(by_path=by_path)
        if found.has_open_handles:
            located = {} if record.files is None else record.files.located(found.inputs)
            values |= found.completed_handles(values | located)
        return found.fill(record.call.args, record.call.kwargs or {}, values, replaced)

    def of_service(self, service: TaskFuture[Any]) -> tuple[Any, ...]:
        """Return a tuple with the readiness information of a service, or `()` if there is none."""
        if not service.done() or service.cancelled() or service._exception is not None:
            return ()
        return (self._services.value(service),)

    def _value(
        self,
        record: TaskRecord,
        future: asyncio.Future[Any],
        stands_in: Callable[[Any], Any] | None,
    ) -> Any:
        if record.pushed and (reference := self._pushdown.reference(future)) is not None:
            return reference
        if stands_in is not None and is_service(future):
            return stands_in(future)
        return self._services.value(future)
