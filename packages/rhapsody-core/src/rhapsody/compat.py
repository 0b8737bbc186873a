"""Methods of `WorkflowEngine` for programs that were written for related engines.

New programs do not need these methods. None of them polls.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, cast

from rhapsody.aio import settable
from rhapsody.errors import TaskFailedError
from rhapsody.states import TasksMainStates

log: logging.Logger = logging.getLogger("rhapsody.engine")


class OlderNames(ABC):
    """Base class of `WorkflowEngine` that defines the older methods.

    It is a base class because type checkers and `help()` find only methods that are defined in
    a class body. It calls only the abstract methods below, which the engine implements.
    """

    @abstractmethod
    async def run(self) -> None:
        """Wait until the engine has been shut down. Calling this is optional."""

    @abstractmethod
    async def submit(self) -> None:
        """Wait until the backends have accepted all ready tasks. Calling this is optional."""

    @abstractmethod
    def _call_block(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> asyncio.Future[Any]:
        """Run a function as a block, without a decorator."""

    @abstractmethod
    def _report(
        self,
        uid: str,
        report: Mapping[str, Any],
        state: str | Enum,
        service_callback: Callable[..., Any] | None,
    ) -> None:
        """Process a state that was reported for a task or one of its attempts.

        The arguments are those of `task_callbacks`. May be called from any thread.

        Raises:
            ValueError: No backend has a task with this uid, or the backend has no such state.
        """

    @abstractmethod
    def _report_end(
        self, future: asyncio.Future[Any], report: Mapping[str, Any], state: TasksMainStates
    ) -> bool:
        """Process the reported final state of a future's task.

        Returns:
            True if the engine settles the future; False if no backend of this engine has the task.
        """

    async def execute_block(
        self,
        block_fut: asyncio.Future[Any],
        func: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Run a function as a block, and set the block's result or exception on `block_fut`.

        Args:
            block_fut: A future of the engine's loop. Canceling it cancels the block. Canceling
                this call cancels the block and `block_fut`.
            func: The function, synchronous or a coroutine function.
            *args: The function's positional arguments.
            **kwargs: The function's keyword arguments.

        Raises:
            asyncio.CancelledError: This call was canceled.
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

        block = self._call_block(func, args, kwargs)
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
        """Report a state of a task to the engine, as the task's backend does.

        May be called from any thread.

        Args:
            task: The task's description, an object with `as_dict`, or the uid alone. The uid is
                that of the attempt, as backends receive it, or that of the task, as in
                `WorkflowEngine.components`.
            state: The backend's name for the state, or a canonical state.
            service_callback: Callable that the engine calls with `(future, task, state)` when it
                processes the running state of a service. The callable must set the future when the
                service is ready.

        Raises:
            TypeError: `task` has no uid, or `state` is neither a string nor an enum member.
            ValueError: No backend has a task with this uid, or the backend has no such state.
        """
        uid = task if isinstance(task, str) else _as_mapping(task).get("uid")
        if not isinstance(uid, str):
            raise TypeError(f"task_callbacks: the task's uid must be a string, got {uid!r}")
        if not isinstance(state, str | Enum):
            raise TypeError(
                "task_callbacks: state must be a member of TasksMainStates or the backend's name "
                f"for a state, got {state!r}"
            )
        report = {} if isinstance(task, str) else _as_mapping(task)
        self._report(uid, report, state, service_callback)

    def handle_task_success(self, task: Any, task_fut: asyncio.Future[Any]) -> None:
        """Settle a future with a finished task's return value or output."""
        report = _as_mapping(task)
        if not self._settles(task_fut, report, TasksMainStates.DONE):
            command = report.get("executable") or "return_value" not in report
            task_fut.set_result(report.get("stdout") if command else report["return_value"])

    def handle_task_failure(
        self,
        task: Any,
        task_fut: asyncio.Future[Any],
        override_error_message: str | BaseException | None = None,
    ) -> None:
        """Settle a future with a failed task's exception.

        Args:
            task: The task's description, which contains `exception` or `stderr`.
            task_fut: The task's future.
            override_error_message: An exception to set instead of the task's own, or the text of a
                `RuntimeError`; `None` to use the task's own exception.
        """
        report, error = _as_mapping(task), cast("Any", override_error_message)
        if isinstance(error, str):
            error = RuntimeError(error)
        if error is None:
            error = report.get("exception")
        if not isinstance(error, BaseException):
            text = str(error or report.get("stderr") or "the task failed")
            error = TaskFailedError(text, exit_code=report.get("exit_code"))
        if not self._settles(task_fut, {**report, "exception": error}, TasksMainStates.FAILED):
            task_fut.set_exception(settable(error, "the task"))

    def handle_task_cancellation(self, task: Any, task_fut: asyncio.Future[Any]) -> bool:
        """Settle a future as canceled; return False if it was already settled."""
        if task_fut.done():
            self._ignored(task, TasksMainStates.CANCELED)
            return False
        return (
            self._settles(task_fut, _as_mapping(task), TasksMainStates.CANCELED)
            or task_fut.cancel()
        )

    handle_component_success = handle_task_success
    handle_component_failure = handle_task_failure
    handle_component_cancellation = handle_task_cancellation

    def _settles(
        self, future: asyncio.Future[Any], report: Mapping[str, Any], state: TasksMainStates
    ) -> bool:
        """Return True if the future is settled or the engine will settle it."""
        if future.done():
            self._ignored(report, state)
            return True
        return self._report_end(future, report, state)

    def _ignored(self, task: Any, state: TasksMainStates) -> None:
        """Log that a final state was reported for a future that is already done."""
        uid = _as_mapping(task).get("uid")
        log.warning("task %s was reported as %s, but its future is already done", uid, state.value)


def _as_mapping(task: Any) -> Mapping[str, Any]:
    if not isinstance(task, Mapping) and not hasattr(task, "as_dict"):
        raise TypeError(f"task must be a description or an object with `as_dict`, got {task!r}")
    report = task if isinstance(task, Mapping) else task.as_dict()
    return cast("Mapping[str, Any]", report)
