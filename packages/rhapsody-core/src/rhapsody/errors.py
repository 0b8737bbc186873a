"""What can go wrong in a workflow, as exceptions a caller can tell apart.

Every class derives from `RhapsodyError` and from the built-in exception a
caller would reach for without knowing this library. All of them survive
pickling with their attributes. This module holds no logic that decides when an
error is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def _restore(
    cls: type[RhapsodyError], args: tuple[Any, ...], state: dict[str, Any]
) -> RhapsodyError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class RhapsodyError(Exception):
    """Base class of every error that Rhapsody raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__.copy())


class DependencyFailureError(RhapsodyError, RuntimeError):
    """A task did not run because something it depends on failed.

    `__cause__` is the exception of the first failed direct dependency.

    Args:
        message: What happened, for people.
        failed_dependencies: Names of the direct dependencies that failed, in the
            order in which they were passed.
        root_cause: The exception of the task that failed first along the chain
            of the first failed dependency.
    """

    def __init__(
        self,
        message: str,
        failed_dependencies: Sequence[str] = (),
        root_cause: BaseException | None = None,
    ) -> None:
        super().__init__(message)
        self.failed_dependencies: list[str] = list(failed_dependencies)
        self.root_cause = root_cause


class TaskFailedError(RhapsodyError, RuntimeError):
    """An executable ended with a non-zero exit code, or a task failed without an exception.

    Args:
        message: What happened, for people.
        exit_code: The exit code, `None` where there is none; negative is the
            number of the signal that ended the process.
        stderr: The tail of standard error, empty where nothing was captured.
        command: The command that ran, `None` for a function task.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        stderr: str = "",
        command: str | None = None,
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.stderr = stderr
        self.command = command


class TaskTimeoutError(RhapsodyError, TimeoutError):
    """A task ran for longer than its time-out, or a service was not ready in time."""


class TaskLostError(RhapsodyError, RuntimeError):
    """The infrastructure lost a task: its worker, pilot or connection went away."""


class SubmissionError(RhapsodyError, RuntimeError):
    """A backend did not accept a batch of tasks."""


class BackendUnavailableError(RhapsodyError, ConnectionError):
    """A backend cannot be reached, has not been started or has been shut down."""


class BackendError(RhapsodyError, RuntimeError):
    """A backend, or the engine's own machinery, broke its contract."""


class CapabilityError(RhapsodyError, ValueError):
    """The backend cannot do what the task asks for."""


class PluginError(RhapsodyError, RuntimeError):
    """A plugin cannot be used, or one of its hooks failed."""


class DataError(RhapsodyError, ValueError):
    """A declared file is missing, ambiguous or outside its sandbox."""


class JournalError(RhapsodyError, RuntimeError):
    """The record of finished tasks cannot be read or written."""


def describe_error(error: BaseException | None) -> str:
    """`Type: text` of an exception, also of one whose text cannot be made."""
    try:
        text = str(error)
    except Exception as mistake:  # a user's `__str__` must not hide the user's exception
        text = f"(its text cannot be made: {type(mistake).__name__})"
    return f"{type(error).__name__}: {text}"
