"""Exceptions of Rhapsody, records of failures, and functions for exceptions of any class.

Every class derives from `RhapsodyError` and from the built-in exception that callers would catch
without knowing this library. All of them can be pickled with their attributes. A new class must
also be exported by `rhapsody/__init__.py`.
"""

from __future__ import annotations

import contextvars
import os
import pickle
import pwd
import queue
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import WrapperDescriptorType
from typing import Any, NamedTuple, Self
from weakref import WeakSet

from rhapsody.masking import mask

MAX_CAUSES = 8
"""Maximum number of failed dependencies in the chain of causes of an error."""


MAX_LINES = 10
"""Maximum number of last lines of an error, or of the output, that are shown.

The output is shown only if the error is a single line.
"""


class Frame(NamedTuple):
    """One entry of a traceback.

    Attributes:
        file: The file's path as Python knows it.
        line: The line number.
        function: The function's name.
        source: The text of the line; empty if it is unknown.
    """

    file: str
    line: int
    function: str
    source: str

    @property
    def location(self) -> str:
        """The file's base name, a colon, and the line number."""
        return f"{os.path.basename(self.file)}:{self.line}"


FailureKey = tuple[str, str, int | None, str | None]
"""Key of a group of failures: the tasks' name, the kind, the exit code and the place."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Failure of an attempt of a task, or the reason why a task did not run. Texts have no secrets.

    Attributes:
        task: The name of the task or block.
        uid: Its uid in the engine.
        attempt: The number of the attempt that failed, starting at 1; 0 if there was none.
        call: The call that raised the exception, with shortened arguments and the uid of its task.
            A block, and a task that did not run, can fail because of the call of another task.
        kind: The name of the exception's type.
        message: The text of the exception, without the task's name at its beginning, the output and
            the hints.
        exit_code: The exit code of a command that failed.
        backend: The name of the backend, or `None` if the task was not submitted.
        worker: The worker or host, if the backend has reported it.
        attempts: The backends with their numbers of failed attempts, if the task was moved.
        place: The last line of the user's code in the traceback, such as `stats.py:12`.
        frames: The last frames of the traceback.
        sandbox: The directory in which the attempt ran, or `None` if it had none.
        rerun: The path of a script that runs the command again, if there is one.
        stdout: The end of the standard output.
        stderr: The end of the standard error.
        hints: What may have caused the failure, and what helps.
        causes: For a task that did not run, the uids of the tasks that failed first.
    """

    task: str
    uid: str
    attempt: int
    call: str
    kind: str
    message: str
    exit_code: int | None = None
    backend: str | None = None
    worker: str | None = None
    attempts: tuple[tuple[str, int], ...] = ()
    place: str | None = None
    frames: tuple[Frame, ...] = ()
    sandbox: str | None = None
    rerun: str | None = None
    stdout: str = ""
    stderr: str = ""
    hints: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()

    @property
    def key(self) -> FailureKey:
        """The key of the group of similar failures."""
        return self.task, self.kind, self.exit_code, self.place

    @property
    def text(self) -> str:
        """The kind and the message of the failure. The exit code of a command needs no kind."""
        return in_words(self.kind, self.message)

    @property
    def summary(self) -> str:
        """One line with the call and the first line of the error."""
        attempt = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.call}{attempt}: {first_line(self.text)}"

    def details(self) -> list[str]:
        """Return the further lines of the error, and the hints."""
        more = self.text.strip().splitlines()[1:]
        if self.of_command:
            more += self.stderr.strip().splitlines()
        return [*more[-MAX_LINES:], *(f"hint: {hint}" for hint in self.hints)]

    @property
    def of_command(self) -> bool:
        """True if a command has failed, whose standard error belongs to the failure."""
        return self.kind == TaskFailedError.__name__ or self.exit_code is not None


def first_line(text: str) -> str:
    """Return the first line of a text that is not empty, or an empty string."""
    return next(iter(text.strip().splitlines()), "")


class RhapsodyError(Exception):
    """Base class of all exceptions that Rhapsody defines.

    If an attribute of an instance is an exception that cannot be pickled, the attribute is pickled
    as a `TaskFailedError` with the type and text of that exception.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            key: _portable(value) if isinstance(value, BaseException) else value
            for key, value in self.__dict__.items()
        }
        return rebuilt, (type(self), self.args, state)


class UsageError(RhapsodyError, ValueError):
    """Invalid argument of a command. It is shown without a traceback, and the exit code is 2.

    Args:
        message: The message.
        option: The name of the option that is invalid, or `None` if it is another argument.
    """

    def __init__(self, message: str = "", *, option: str | None = None) -> None:
        super().__init__(message)
        self.option: str | None = option


class DependencyFailureError(RhapsodyError, RuntimeError):
    """A task did not run because one of its dependencies failed.

    `__cause__` is the exception of the first failed direct dependency. A long chain of causes is
    shortened: the exceptions directly before `root_cause` are omitted, and a note states their
    number.

    Args:
        message: The message.
        failed_dependencies: Names of the direct dependencies that failed, in the order in which
            they were passed.
        root_cause: The exception at the end of the chain of causes, raised by the task that failed
            first.
    """

    _depth = 1  # length of the chain from the root cause
    _first: tuple[Failure, ...] = ()  # of the tasks that failed first, one per chain of causes

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
        state.pop("_first", None)  # used only by the final report of this process
        return rebuild, (kind, arguments, state)

    def follows(self, cause: BaseException) -> Self:
        """Set the direct dependency's exception as the cause, and shorten a long chain of causes.

        Python prints chains recursively, so a chain of 100,000 causes would overflow the stack.

        Returns:
            This error.
        """
        if isinstance(cause, DependencyFailureError):
            self._depth = cause._depth + 1
            if cause._links() >= MAX_CAUSES:
                cause = cause._shortened()
        self.__cause__: BaseException | None = cause
        return self

    def _links(self) -> int:
        """Return the number of `DependencyFailureError`s in the chain, at most `MAX_CAUSES`."""
        links, cause = 1, self.__cause__
        while links < MAX_CAUSES and isinstance(cause, DependencyFailureError):
            links, cause = links + 1, cause.__cause__
        return links

    def _shortened(self) -> DependencyFailureError:
        """Return a copy whose direct cause is the root cause, with a note about omitted causes."""
        short = DependencyFailureError(str(self), self.failed_dependencies, self.root_cause)
        short.__cause__ = self.root_cause
        between = self._depth - 1
        add_note(short, f"not shown: {between} failures between this one and the first one")
        return short


class TaskFailedError(RhapsodyError, RuntimeError):
    """An executable ended with a non-zero exit code, or a task failed without an exception.

    Args:
        message: The message.
        exit_code: The exit code, or `None` if there is none. A negative value -N means that signal
            N killed the process.
        stderr: The end of standard error; empty if nothing was captured.
        command: The command, or `None` for a function task.
        stdout: The end of standard output; empty if nothing was captured, `None` if it is unknown.
        sandbox: The directory that the task ran in, or `None` if it had none.
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

    Arguments and attributes are those of `TaskFailedError`. `RetryPolicy(2, on=MemoryError)` covers
    this error and any `MemoryError` that a function raises.
    """


class TaskTimeoutError(RhapsodyError, TimeoutError):
    """A task exceeded its timeout, or a service was not ready in time."""


class WorkerValueError(RhapsodyError, RuntimeError):
    """The function that builds a worker value has failed on several workers; see the cause."""


class TaskLostError(RhapsodyError, RuntimeError):
    """A task was lost: its worker, its pilot or the connection to one of them failed."""


class SubmissionError(RhapsodyError, RuntimeError):
    """A backend did not accept a batch of tasks."""


class InsufficientWalltimeError(SubmissionError):
    """A task was not started because its backend may end before the task does.

    Args:
        message: The message.
        backend: The backend's name.
        needs: Seconds that the task may need: its `walltime`, otherwise its timeout.
        left: Seconds until the backend ends.
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
    """A backend broke its contract, or the engine has an internal error."""


class CapabilityError(RhapsodyError, ValueError):
    """The backend does not support a feature that the task requires."""


class PluginError(RhapsodyError, RuntimeError):
    """A plugin cannot be used, or one of its hooks failed."""


class ProfileError(RhapsodyError, ValueError):
    """A profile does not exist, or a file with profiles contains a mistake.

    The message begins with the file and, if known, the line.
    """


class DataError(RhapsodyError, ValueError):
    """A declared file is missing, ambiguous or outside its sandbox, or would be overwritten."""


class InputChangedError(DataError):
    """An input file of a task changed or disappeared while the task waited or ran.

    The task is not retried, and its fallback is not used, because another attempt would read the
    changed file. If the attempt also failed, `__cause__` is its exception.

    Args:
        message: The message.
        paths: The paths of the files.
    """

    def __init__(self, message: str, paths: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.paths: list[str] = list(paths)


class JournalError(RhapsodyError, RuntimeError):
    """The journal, which records the results of tasks, cannot be read or written."""


TEXT_TIMEOUT = 2.0
"""Maximum number of seconds that the code of an exception's class may take to make a text."""

_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
_stuck: WeakSet[type] = WeakSet()
"""Classes whose code did not return in time. It is not called again."""


def runs_own_code(error: BaseException) -> bool:
    """Return True if the text of an exception is made by code of its class or its arguments."""
    return type(type(error).__str__) is not WrapperDescriptorType or not _PLAIN.issuperset(
        map(type, error.args)
    )


def made_in_time(make: Callable[[], str], kind: type) -> str:
    """Call a function in a thread, and return its text.

    A thread cannot be stopped from outside, except that an exception can be raised in Python code
    that it runs, which ends endless loops. A call that blocks forever keeps its thread, and C code
    that does not release the interpreter lock cannot be limited. A timer signal would belong to the
    program, and functions on threads have no worker process that could make the text instead.

    Args:
        make: The function.
        kind: The class whose code it runs.

    Returns:
        The text.

    Raises:
        TimeoutError: The function did not return within `TEXT_TIMEOUT` seconds, now or earlier.
    """
    made: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            made.put(make())
        except BaseException as mistake:  # the code may raise anything
            made.put(mistake)

    if kind in _stuck:
        raise TimeoutError
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work,), name="rhapsody text", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # the process ends, or has too many threads
        return make()
    try:
        found = made.get(timeout=TEXT_TIMEOUT)
    except queue.Empty:
        _stuck.add(kind)
        import ctypes

        stop = ctypes.pythonapi.PyThreadState_SetAsyncExc
        stop(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise TimeoutError from None
    if isinstance(found, BaseException):
        raise found
    return found


def text_of(error: BaseException | None) -> str:
    """Return `str()` of an exception without secrets.

    If it raises or does not return in time, a replacement is returned.
    """
    try:
        if error is None or not runs_own_code(error):
            return mask(str(error))
        return mask(made_in_time(partial(str, error), type(error)))
    except TimeoutError:
        return f"(str() of the exception did not return within {TEXT_TIMEOUT:g} s)"
    except BaseException as mistake:  # a user's `__str__` must not hide the user's exception
        return f"(str() of the exception raised {type(mistake).__name__})"


class MessageParts(NamedTuple):
    """Parts of the message of an exception that Rhapsody has made or extended for a task.

    Attributes:
        reason: What happened, without the task's name.
        stderr: The end of standard error, if the message contains it.
        hints: Advice.
    """

    reason: str
    stderr: str = ""
    hints: tuple[str, ...] = ()


_PARTS = "_rhapsody_parts"
"""Name of the exception attribute with the `MessageParts`, as a tuple that others can unpickle."""


def set_parts(error: BaseException, parts: MessageParts) -> None:
    """Store the parts of which the message of an exception consists."""
    vars(error)[_PARTS] = tuple(parts)


def hints_in(error: BaseException) -> tuple[str, ...]:
    """Return the hints that an exception's message contains."""
    found = vars(error).get(_PARTS)
    return () if found is None else MessageParts(*found).hints


def parts_of(error: BaseException) -> MessageParts:
    """Return the parts of an exception's message without secrets. By default, it is the reason."""
    found = vars(error).get(_PARTS)
    if found is None:
        return MessageParts(text_of(error))
    reason, *others = found
    return MessageParts(mask(reason), *others)


_FAILURE = "_rhapsody_failure"
"""Name of the exception attribute with the `Failure`."""


def set_failure(error: BaseException, failure: Failure) -> None:
    """Store what is known about the last failure that an exception has caused."""
    vars(error)[_FAILURE] = failure


def last_failure(error: BaseException) -> Failure | None:
    """Return what is known about the last failure that an exception has caused, if anything."""
    found: Failure | None = vars(error).get(_FAILURE)
    return found


NOTE_PREFIX = "rhapsody: "
"""Beginning of the note about a failure. A new note replaces an earlier one on an exception."""


def without_ours(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of an exception without those and the note that a failure adds."""
    kept = {name: each for name, each in attributes.items() if not name.startswith("_rhapsody_")}
    notes = kept.pop("__notes__", None)
    if type(notes) is list:
        others = [each for each in notes if not str(each).startswith(NOTE_PREFIX)]
        kept |= {"__notes__": others} if others else {}
    return kept


def in_words(kind: str, message: str) -> str:
    """Return the kind and the message of a failure as text.

    The kind is omitted for a command, because its exit code says more.
    """
    return message if kind == TaskFailedError.__name__ and message else f"{kind}: {message}"


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if the name is unknown."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def describe_error(error: BaseException | None, *, with_module: bool = False) -> str:
    """Return `Type: text` for an exception; `with_module` adds the module to the type."""
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}" if with_module else kind.__name__
    return f"{name}: {text_of(error)}"


# Ordinary attribute assignment fails for exceptions that are frozen dataclasses.


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Set the `__cause__` of an exception of any class."""
    BaseException.__setattr__(error, "__cause__", cause)


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of any class."""
    vars(error)["__notes__"] = [*vars(error).get("__notes__", ()), note]


def blame(mistake: BaseException, error: BaseException, whose: str) -> None:
    """Mark an exception as raised while `error` was handled.

    `error` becomes the cause of `mistake`, and a note names the code that raised `mistake`.

    Args:
        mistake: The exception that was raised; unchanged if it is `error` itself.
        error: The exception that was being handled.
        whose: The code that raised `mistake`.
    """
    if mistake is not error:
        set_cause(mistake, error)
        add_note(mistake, f"raised by {whose}")


def origin(error: BaseException) -> BaseException:
    """Return the error that caused a dependency failure, or the first error of a group.

    Nested groups and dependency failures are followed. Any other error is returned unchanged.
    """
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, DependencyFailureError) and error.root_cause is not None:
            error = error.root_cause
        else:
            return error


def is_closed_pipe(error: BaseException) -> bool:
    """Return True if an error occurred because the reader of standard output has exited.

    The program, or a command that it ran, has then written to a closed pipe.
    """
    error = origin(error)
    codes = (-signal.SIGPIPE, 128 + signal.SIGPIPE)  # of the command, or of a shell that ran it
    command = isinstance(error, TaskFailedError) and error.exit_code in codes
    return (command or isinstance(error, BrokenPipeError)) and _reader_has_exited()


def _reader_has_exited() -> bool:
    """Return True if standard output is a pipe whose read end is closed."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (OSError, ValueError, TypeError):  # closed, or not a file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def rebuilt(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    """Create an exception from its pickled parts, without calling its `__init__`."""
    error = cls.__new__(cls, *args)
    BaseException.__setattr__(error, "args", args)
    vars(error).update(state)
    return error


class _Pickled:
    """Object that is unpickled as the result of a call.

    Args:
        *call: The function and its arguments.
    """

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call[0], self._call[1:]


_trying = threading.local()


def _portable(error: BaseException) -> Any:
    """Return the object to pickle for an exception.

    This is the first of the following that can be pickled: the exception itself; an object that is
    unpickled without calling `__init__`, for classes whose arguments differ from `args`; an object
    that uses cloudpickle, for classes that cannot be imported; a `TaskFailedError` with the
    exception's type and text. The first one whose copy has the same text and `args` is preferred,
    because a class that composes its message does so again when it is called.
    """
    if getattr(_trying, "active", False):
        return error  # an attribute of an exception that an outer call is trying to pickle
    _trying.active = True
    try:
        for exact in (True, False):
            for way in (_itself, _without_init, _by_value):
                try:
                    candidate = way(error)
                    copy = pickle.loads(pickle.dumps(candidate))  # noqa: S301 - ours
                    texts = text_of(copy) == text_of(error)
                    equal = not exact or (texts and copy.args == error.args)
                    if type(copy) is type(error) and equal:
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
    # It keeps the identity of the program's classes. It is loaded wherever calls are pickled.
    runner: Any = sys.modules.get("rhapsody.sdk.runner")
    if runner is None:
        import cloudpickle  # type: ignore[import-untyped]

        return _Pickled(pickle.loads, cloudpickle.dumps(error))
    return _Pickled(pickle.loads, runner.dumps(error))
