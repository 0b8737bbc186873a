"""Methods of the engine that older programs call. None of them is needed, and none polls."""

from __future__ import annotations

import asyncio
import re
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, cast

from rhapsody.aio import end_of, settable
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.runtime import Runtime
from rhapsody.engine.settings import Settings
from rhapsody.engine.task_function import TaskFunction
from rhapsody.errors import TaskFailedError
from rhapsody.task import TaskFuture


class KeptNames:
    """The part of `WorkflowEngine` that is there for the sake of its names."""

    _shell: Runtime
    _closed: asyncio.Future[None]

    async def run(self) -> None:
        """Returns when the engine has been shut down. The engine runs without it."""
        await end_of(self._closed)

    async def submit(self) -> None:
        """Returns when the backends have had all that is ready. The engine does so without it."""
        await asyncio.sleep(0)  # what ended in this turn makes others ready
        await asyncio.gather(*(lane.flushed() for lane in self._shell.lanes.values()))

    async def execute_block(
        self,
        block_fut: asyncio.Future[Any],
        func: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Runs a function as a block and settles `block_fut` as it ends.

        Args:
            block_fut: A future of the engine's loop. Cancelling it cancels the block, as
                does cancelling this call, which cancels `block_fut` too.
            func: The function, synchronous or a coroutine function.
            *args: Its arguments.
            **kwargs: Its keyword arguments.
        """

        def settle(block: asyncio.Future[Any]) -> None:
            if block_fut.done():
                return
            if block.cancelled():
                block_fut.cancel()
            elif (error := block.exception()) is not None:
                block_fut.set_exception(error)
            else:
                block_fut.set_result(block.result())

        task = TaskFunction[Any, Any](self._shell.calls, "block", func, Settings())
        block = self._shell.calls.call(task, args, kwargs, None)
        block.add_done_callback(settle)
        block_fut.add_done_callback(lambda f: block.cancel() if f.cancelled() else None)
        try:
            await asyncio.wait([block])
        except asyncio.CancelledError:
            block.cancel()
            raise

    def task_callbacks(
        self, task: Any, state: Any, service_callback: Callable[..., Any] | None = None
    ) -> None:
        """Report a state of a task to the engine, as its backend does. Any thread.

        Args:
            task: The task's description, an object with `as_dict`, or the uid alone. The uid is
                that of the attempt, as backends get it, or that of the task in `components`.
            state: The backend's name of the state, or a canonical state.
            service_callback: Called with `(future, task, state)` for a service that runs; it
                sets the future when the service is ready.

        Raises:
            TypeError: `task` has no uid, or `state` is neither a string nor an enum member.
            ValueError: No backend has a task of this uid, or its backend knows no such state.
        """
        uid = task if isinstance(task, str) else _as_mapping(task).get("uid")
        if not isinstance(uid, str):
            raise TypeError(f"task_callbacks: the task's uid must be a string, got {uid!r}")
        if not isinstance(state, str | Enum):
            raise TypeError(
                "task_callbacks: state must be a member of TasksMainStates or the backend's name "
                f"of a state, got {state!r}"
            )
        record = self._in_flight(uid)
        if record is not None:
            assert record.backend is not None
            if state not in record.backend.native:
                record.backend.states.to_main_state(state)  # raises where it is unknown
            uid = record.uid
        report = {} if isinstance(task, str) else _as_mapping(task)
        self._shell.updates.receive({**report, "uid": uid}, state, service_callback)

    def _in_flight(self, uid: str) -> TaskRecord | None:
        """Return the task of either uid, or `None` for an attempt that has ended.

        Raises:
            ValueError: There is no such task.
        """
        inflight = self._shell.scheduler.inflight
        if (record := inflight.get(uid)) is not None:
            return record
        for record in list(inflight.values()):
            if record.future.uid == uid:
                return record
        attempt = re.fullmatch(rf"{re.escape(self._shell.uid)}\.task\.(\d+)\.\d+", uid)
        if attempt is None or int(attempt[1]) > self._shell.calls.tasks_called:
            raise ValueError(
                f"task_callbacks: no backend has a task {uid!r}; flow.running and flow.components "
                "show the uids of tasks that have not ended"
            )
        return None

    def handle_task_success(self, task: Any, task_fut: asyncio.Future[Any]) -> None:
        """Settles a future with a finished task's result: its return value or output."""
        report = _as_mapping(task)
        if not self._reported(report, "DONE", task_fut):
            command = report.get("executable") or "return_value" not in report
            task_fut.set_result(report.get("stdout") if command else report["return_value"])

    def handle_task_failure(
        self,
        task: Any,
        task_fut: asyncio.Future[Any],
        override_error_message: str | BaseException | None = None,
    ) -> None:
        """Settles a future with a failed task's exception.

        Args:
            task: The description, with `exception` or `stderr` in it.
            task_fut: The task's future.
            override_error_message: Used instead: an exception as it is, text as a
                `RuntimeError`.
        """
        report, error = _as_mapping(task), cast("Any", override_error_message)
        if isinstance(error, str):
            error = RuntimeError(error)
        if error is None:
            error = report.get("exception")
        if not isinstance(error, BaseException):
            text = str(error or report.get("stderr") or "the task failed")
            error = TaskFailedError(text, exit_code=report.get("exit_code"))
        if not self._reported({**report, "exception": error}, "FAILED", task_fut):
            task_fut.set_exception(settable(error, "the task"))

    def handle_task_cancellation(self, task: Any, task_fut: asyncio.Future[Any]) -> bool:
        """Settles a future as cancelled; `False` for one that was settled before."""
        if task_fut.done():
            return False
        return self._reported(_as_mapping(task), "CANCELED", task_fut) or task_fut.cancel()

    handle_component_success = handle_task_success
    handle_component_failure = handle_task_failure
    handle_component_cancellation = handle_task_cancellation

    def _reported(self, report: Mapping[str, Any], main: str, future: asyncio.Future[Any]) -> bool:
        """Whether the future is settled, or the engine has taken the report and will settle it."""
        if future.done():
            return True
        record = future._node if isinstance(future, TaskFuture) else None
        if (
            isinstance(record, TaskRecord)
            and self._shell.scheduler.inflight.get(record.uid) is record
        ):
            assert record.backend is not None
            if report.get("uid") in (record.uid, record.future.uid):
                state = record.backend.states.get_backend_state(main)
                updates = self._shell.updates
                updates.receive({**report, "uid": record.uid}, state)
                if running_loop() is self._shell.background.loop:
                    updates.apply()  # at once, though a backend is being given tasks
                return True
        return False


def _as_mapping(task: Any) -> Mapping[str, Any]:
    if not isinstance(task, Mapping) and not hasattr(task, "as_dict"):
        raise TypeError(f"a task must be its description or have `as_dict`, got {task!r}")
    report = task if isinstance(task, Mapping) else task.as_dict()
    return cast("Mapping[str, Any]", report)
