"""What can go wrong in a workflow, as exceptions a caller can tell apart.

Every class derives from `RhapsodyError` and from the built-in exception a
caller would reach for without knowing this library. All of them survive
pickling with their attributes. This module holds no logic that decides when an
error is raised.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeGuard, TypeVar, cast

E = TypeVar("E", bound=BaseException)


LINKS = 8
"""How many failures of dependencies the causes of an error lead through at most."""


class RhapsodyError(Exception):
    """Base class of every error that Rhapsody raises on purpose.

    Another exception among its attributes that cannot be pickled is replaced by a
    `TaskFailedError` with its text when this one is.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            key: _portable(value) if isinstance(value, BaseException) else value
            for key, value in self.__dict__.items()
        }
        return rebuilt, (type(self), self.args, state)


class FirstFailure(NamedTuple):
    """A task that failed, for which others did not run.

    Attributes:
        name: The task's name.
        uid: Its uid.
        attempt: Which attempt it was, from 1.
        sandbox: The directory that it ran in, `None` if it had none.
        error: Its exception.
    """

    name: str
    uid: str
    attempt: int
    sandbox: str | None
    error: BaseException


class DependencyFailureError(RhapsodyError, RuntimeError):
    """A task did not run because something it depends on failed.

    `__cause__` is the exception of the first failed direct dependency. Of a long chain of
    such failures the causes lead through the last few, then to `root_cause`; a note says
    how many are left out.

    Args:
        message: What happened, for people.
        failed_dependencies: Names of the direct dependencies that failed, in the
            order in which they were passed.
        root_cause: The exception of the task that failed first along the chain
            of the first failed dependency.
    """

    _depth = 1  # how many failed one after the other because of the root
    _first: tuple[FirstFailure, ...] = ()  # every task that it goes back to

    def __init__(
        self,
        message: str,
        failed_dependencies: Sequence[str] = (),
        root_cause: BaseException | None = None,
    ) -> None:
        super().__init__(message)
        self.failed_dependencies: list[str] = list(failed_dependencies)
        self.root_cause = root_cause

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (kind, arguments, state) = super().__reduce__()
        state.pop("_first", None)  # only for the account of this process
        return rebuild, (kind, arguments, state)

    def follows(self, cause: BaseException) -> Self:
        """Set the exception of the direct dependency as the cause, and return this error.

        Printing a chain of causes takes as much of the stack as it has links, so that of a
        hundred thousand ends the interpreter.
        """
        if is_a(cause, DependencyFailureError):
            self._depth = cause._depth + 1
            if cause._links() >= LINKS:
                cause = cause._shortened()
        set_cause(self, cause)
        return self

    def _links(self) -> int:
        """How many failures of dependencies the causes lead through, this one included."""
        links, cause = 1, self.__cause__
        while links < LINKS and is_a(cause, DependencyFailureError):
            links, cause = links + 1, cause.__cause__
        return links

    def _shortened(self) -> DependencyFailureError:
        """The same error, with the root as its cause."""
        short = DependencyFailureError(str(self), self.failed_dependencies, self.root_cause)
        short.__cause__ = self.root_cause
        between = self._depth - 1
        add_note(short, f"not shown: {between} failures between this one and the first one")
        return short


class TaskFailedError(RhapsodyError, RuntimeError):
    """An executable ended with a non-zero exit code, or a task failed without an exception.

    Args:
        message: What happened, for people.
        exit_code: The exit code, `None` where there is none; negative is the
            number of the signal that ended the process.
        stderr: The tail of standard error, empty where nothing was captured.
        command: The command that ran, `None` for a function task.
        stdout: The tail of standard output, empty where nothing was captured and `None` where
            nobody knows.
        sandbox: The directory that the task ran in, `None` where it had none.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        stderr: str = "",
        command: str | None = None,
        stdout: str | None = None,
        sandbox: str | None = None,
    ) -> None:
        super().__init__(message)
        self.exit_code: int | None = exit_code
        self.stderr: str = stderr
        self.command: str | None = command
        self.stdout: str | None = stdout
        self.sandbox: str | None = sandbox


class OutOfMemoryError(TaskFailedError, MemoryError):
    """The kernel killed a task's program or worker process because memory ran out.

    Arguments and attributes are those of `TaskFailedError`. `RetryPolicy(2, on=MemoryError)` tries
    again after it, and after a function's own `MemoryError`.
    """


class TaskTimeoutError(RhapsodyError, TimeoutError):
    """A task ran for longer than its time-out, or a service was not ready in time."""


class TaskLostError(RhapsodyError, RuntimeError):
    """The infrastructure lost a task: its worker, pilot or connection went away."""


class SubmissionError(RhapsodyError, RuntimeError):
    """A backend did not accept a batch of tasks."""


class InsufficientWalltimeError(SubmissionError):
    """A task was not started, as the backend ends before it would.

    Args:
        message: What happened, for people.
        backend: What the backend is called.
        needs: Seconds that the task needs: its hint `walltime`, else its time-out.
        left: Seconds that the backend had left.
    """

    def __init__(
        self, message: str, *, backend: str = "", needs: float = 0.0, left: float = 0.0
    ) -> None:
        super().__init__(message)
        self.backend: str = backend
        self.needs: float = needs
        self.left: float = left


class BackendUnavailableError(RhapsodyError, ConnectionError):
    """A backend cannot be reached, has not been started or has been shut down."""


class BackendError(RhapsodyError, RuntimeError):
    """A backend, or the engine's own machinery, broke its contract."""


class CapabilityError(RhapsodyError, ValueError):
    """The backend cannot do what the task asks for."""


class PluginError(RhapsodyError, RuntimeError):
    """A plugin cannot be used, or one of its hooks failed."""


class DataError(RhapsodyError, ValueError):
    """A declared file is missing, ambiguous or outside its sandbox, or one is in a run's way."""


class JournalError(RhapsodyError, RuntimeError):
    """The record of finished tasks cannot be read or written."""


def text_of(error: BaseException | None) -> str:
    """The text of an exception, also of one whose text cannot be made."""
    try:
        return str(error)
    except BaseException as mistake:  # a user's `__str__` must not hide the user's exception
        return f"(its text cannot be made: {type(mistake).__name__})"


CALL: str = "_rhapsody_call"
"""The attribute of an exception that holds the call that it was raised in."""


def first_call(error: BaseException | None) -> str | None:
    """The call that an exception was raised in, where that is known."""
    found = None if error is None else vars_of(error).get(CALL)
    return found if isinstance(found, str) else None


def describe_error(error: BaseException | None, *, with_module: bool = False) -> str:
    """`Type: text` of an exception; with its module where the type itself is not at hand."""
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}" if with_module else kind.__name__
    return f"{name}: {text_of(error)}"


# Exceptions may be of a class that forbids setting attributes, a frozen dataclass say, or that
# raises when it is looked at in any other way. These ask nothing of the object itself.


def is_a(error: BaseException | None, kinds: type[E] | tuple[type[E], ...]) -> TypeGuard[E]:
    """Whether an exception is of a type; `isinstance` reads its `__class__`."""
    return issubclass(type(error), kinds)


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return the traceback of whatever exception."""
    slot: Any = BaseException.__traceback__
    return cast("TracebackType | None", slot.__get__(error))


def set_traceback(error: BaseException, trace: TracebackType | None) -> BaseException:
    """Set the traceback of whatever exception, which is returned."""
    return BaseException.with_traceback(error, trace)


def vars_of(error: BaseException) -> dict[str, Any]:
    """Return the attributes of whatever exception."""
    return cast("dict[str, Any]", BaseException.__getattribute__(error, "__dict__"))


def cause_of(error: BaseException) -> BaseException | None:
    """Return the `__cause__` of whatever exception."""
    slot: Any = BaseException.__cause__
    return cast("BaseException | None", slot.__get__(error))


def context_of(error: BaseException) -> BaseException | None:
    """Return the `__context__` of whatever exception."""
    slot: Any = BaseException.__context__
    return cast("BaseException | None", slot.__get__(error))


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Sets `__cause__` of whatever exception."""
    BaseException.__setattr__(error, "__cause__", cause)


def add_note(error: BaseException, note: str) -> None:
    """Adds a note to whatever exception."""
    notes = vars_of(error).get("__notes__")
    vars_of(error)["__notes__"] = [*notes, note] if type(notes) is list else [note]


def blame(mistake: BaseException, error: BaseException, whose: str) -> None:
    """Says in an exception whose it is, and which one was being dealt with."""
    if mistake is not error:  # else that one was passed on
        set_cause(mistake, error)
        add_note(mistake, f"raised by {whose}")


def rebuilt(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    """An exception made without calling its `__init__`."""
    error = cls.__new__(cls, *args)
    BaseException.__setattr__(error, "args", args)
    vars_of(error).update(state)
    return error


class _Pickled:
    """Pickles as what a call gives."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call[0], self._call[1:]


_trying = threading.local()


def _portable(error: BaseException) -> Any:
    """What pickles as this exception, or as one that says what it was.

    As it is; made without its `__init__`, whose arguments need not be its `args`; by
    value, where its class is in no module.
    """
    if getattr(_trying, "active", False):
        return error  # it is part of one that is being tried as a whole
    _trying.active = True
    try:
        for way in (_itself, _without_init, _by_value):
            try:
                candidate = way(error)
                if type(pickle.loads(pickle.dumps(candidate))) is type(error):  # noqa: S301 - ours
                    return candidate
            except Exception:  # noqa: S112 - it runs the class's own code; try the next way
                continue
        return TaskFailedError(describe_error(error, with_module=True))
    finally:
        _trying.active = False


def _itself(error: BaseException) -> BaseException:
    return error


def _without_init(error: BaseException) -> _Pickled:
    return _Pickled(rebuilt, type(error), error.args, vars(error))


def _by_value(error: BaseException) -> _Pickled:
    import cloudpickle  # type: ignore[import-untyped]

    return _Pickled(pickle.loads, cloudpickle.dumps(error))
