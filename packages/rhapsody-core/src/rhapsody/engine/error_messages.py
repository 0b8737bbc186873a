"""The exceptions that tell users what became of their tasks, and the words in them."""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody.data import STDERR_TAIL, File, stderr_tail, stdout_tail
from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.error_notes import hidden, printed_last
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.settings import TaskSettings
from rhapsody.errors import (
    CALL,
    CapabilityError,
    DependencyFailureError,
    FirstFailure,
    OutOfMemoryError,
    TaskFailedError,
    TaskTimeoutError,
    describe_error,
    first_call,
    is_a,
    set_traceback,
    vars_of,
)
from rhapsody.resources import Resources
from rhapsody.staging.space import full_disk
from rhapsody.task import TaskFuture

_MEANINGS = {126: "the command cannot be executed", 127: "command not found"}
_SIGNALS = {int(each): each for each in signal.Signals}

_SHELL_SPLITS = re.compile(r"[\s'\"`;|&<>()=,]+")
_LIST_SPLITS = re.compile(r"[\n=]")

WORDS_LOOKED_AT = 500
"""Number of words of a failed command that are checked for missing files."""

COMMAND_SHOWN = 500
"""Characters of a command that the message of a `TaskFailedError` shows."""


def future_name(future: asyncio.Future[Any]) -> str:
    """What a future is called in messages."""
    if isinstance(future, TaskFuture):
        return future.name
    name = getattr(future, "get_name", None)  # of asyncio's tasks
    return repr(future) if name is None else str(name())


def of_dependencies(
    record: TaskRecord, failed: Sequence[asyncio.Future[Any]]
) -> DependencyFailureError:
    """The error of a task that does not run because dependencies failed."""
    names = [future_name(future) for future in failed]
    cause = failed[0].exception()
    assert cause is not None
    root, what = _root_of(failed[0])
    roots = {call or id(error) for error, call in map(_root_of, failed)}
    others = f" (and {len(roots) - 1} more)" if len(roots) > 1 else ""
    why = next(iter(describe_error(root).splitlines()), "")  # the cause has all of it
    error = DependencyFailureError(
        f"{record.task.prefix} {record.task.name!r} ({record.future.uid}) did not run because "
        f"{what or repr(names[0])} failed{others}: {why}",
        names,
        root,
    )
    vars_of(error)[CALL] = what
    error._first = _first_failures(failed)
    return error.follows(cause)


def _first_failures(failed: Sequence[asyncio.Future[Any]]) -> tuple[FirstFailure, ...]:
    """The tasks that failed futures go back to, each once."""
    found: dict[str, FirstFailure] = {}
    for future in failed:
        error = future.exception()
        if is_a(error, DependencyFailureError):
            if len(failed) == 1:
                return error._first
            found.update((each.uid, each) for each in error._first)
        elif isinstance(future, TaskFuture) and error is not None:
            found[future.uid] = FirstFailure(
                future.name, future.uid, future.attempt, future.sandbox, error
            )
    return tuple(found.values())


def _root_of(future: asyncio.Future[Any]) -> tuple[BaseException | None, str | None]:
    """What a failed future failed of first, and the call that this was."""
    error = future.exception()
    root = error.root_cause if is_a(error, DependencyFailureError) else error
    # The exception may be one object that others have raised meanwhile.
    return root, getattr(future, "_call", None) or first_call(root)


def unknown_setting(
    record: TaskRecord, backend: BackendHandle, key: object, able: Sequence[str]
) -> CapabilityError:
    """The error of a task with a setting that its backend does not know.

    Args:
        record: The task.
        backend: The backend it was to go to.
        key: The setting, a key of `task_description`.
        able: The attached backends that know it.
    """
    known = sorted(backend.capabilities.task_settings or ())
    close = difflib.get_close_matches(str(key), known, 1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    own = f"{key}=..." if key in TaskSettings.__annotations__ else ""
    own = f"resources={{{key!r}: ...}}" if key in Resources.__dataclass_fields__ else own
    if own:
        hint = f", which is a setting of its own: write {own} beside task_description"
    there = f"it knows: {', '.join(known)}" if known else "it takes none"
    where = f"; attached backends that know it: {', '.join(able)}" if able else ""
    return CapabilityError(
        f"task {record.task.name!r}: backend {backend.name!r} knows no {key!r} in "
        f"task_description{hint} ({there}{where})"
    )


def of_attempt(record: TaskRecord, report: Mapping[str, Any]) -> BaseException:
    """The error of an attempt that a backend says has failed."""
    error = report.get("exception")
    command = None
    if record.extra is not None and record.extra.command is not None:
        given = record.extra.command
        command = given if isinstance(given, str) else shlex.join(given)
    if isinstance(error, BaseException):
        if is_a(error, OSError) and record.task.kind == "executable":  # it names the command
            set_traceback(error, None).__cause__ = None
        if type(error) is TaskFailedError or type(error) is OutOfMemoryError:
            error.args = (hidden(record, str(error)) + _hints(record, report),)
            error.command = error.command or command
            return _complete(error, report) if record.task.kind == "executable" else error
        if is_a(error, FileNotFoundError) and (hint := _missing_files(record, report)):
            error.add_note(hint.lstrip())
        return error
    name = f"task {record.task.name!r} ({record.future.uid})"
    message = f"{name} failed"
    if error:
        message += f": {hidden(record, str(error))}"
    elif report.get("exit_code") is not None:
        message = f"{name} ended with exit code {exit_code(report['exit_code'])}"
        if full := full_disk(report.get("sandbox")):
            message += f" ({full})"
        if command:
            message += f": {_shown(hidden(record, command))}"
    tail = printed_last(record, report.get("stderr"), STDERR_TAIL)
    if tail:
        message += f"\n{tail.rstrip()}"
    message += _hints(record, report)
    return _complete(TaskFailedError(message, command=command), report)


def _hints(record: TaskRecord, report: Mapping[str, Any]) -> str:
    """Return the hints about a failed command, each on a line of its own."""
    return unquoted_files(record) or _missing_files(record, report)


def unquoted_files(record: TaskRecord) -> str:
    """Return a hint about the first file that a shell command names without the quotes it needs."""
    command = record.extra.command if record.extra is not None else None
    if not isinstance(command, str):
        return ""
    words = _shell_words(command)
    for file in (*record.args, *(record.kwargs or {}).values()):
        name = file.filename if isinstance(file, File) else file
        if not (isinstance(name, str) and (isinstance(file, File) or os.path.exists(name))):
            continue
        if shlex.quote(name) != name and name in command and not any(name in w for w in words):
            return (
                f"\nhint: the shell does not read {name!r} as one word: write "
                "{shlex.quote(str(file))} in the command, or return a list of arguments"
            )
    return ""


def _missing_files(record: TaskRecord, report: Mapping[str, Any]) -> str:
    """Return a hint about files that a command names and that only the current directory has."""
    command = record.extra.command if record.extra is not None else None
    described = record.description.get("sandbox")
    sandbox: str = report.get("sandbox") or described or ""
    if not command or record.task.settings.cwd is not None or not os.path.isdir(sandbox):
        return ""
    if isinstance(command, str):
        found = [*_shell_words(command), *_SHELL_SPLITS.split(command)]
    else:
        found = _LIST_SPLITS.split("\n".join(command))
    words = dict.fromkeys(found[:WORDS_LOOKED_AT])
    missing = [word for word in words if word and _is_missing(word, sandbox)][:3]
    if not missing:
        return ""
    names = " and ".join(map(repr, missing))
    return (
        f"\nhint: the command names {names}, missing from its sandbox: pass "
        f"InputFile({missing[0]!r}) to the task, and use that argument in the command"
    )


def _shell_words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # quotes that do not match
        return []


def _is_missing(word: str, sandbox: str) -> bool:
    if os.path.isabs(word) or os.path.lexists(os.path.join(sandbox, word)):
        return False
    return os.path.isfile(word) or ("/" in word and os.path.isdir(word))


def _complete(error: TaskFailedError, report: Mapping[str, Any]) -> TaskFailedError:
    """The same error, with what it does not hold yet of the report."""
    if error.exit_code is None:
        error.exit_code = report.get("exit_code")
    error.stderr = error.stderr or stderr_tail(report)
    error.stdout = error.stdout or stdout_tail(report)
    error.sandbox = error.sandbox or report.get("sandbox")
    return error


def of_service(record: TaskRecord, report: Mapping[str, Any]) -> TaskFailedError:
    """The error of a service that has ended before it was ready."""
    message = (
        f"service {record.task.name!r} ({record.future.uid}) ended before it was ready: "
        f"{ending(report)}"
    )
    return _complete(TaskFailedError(message), report)


def of_ended_service(record: TaskRecord, report: Mapping[str, Any]) -> BaseException:
    """The error of a service that has ended by itself after it was ready."""
    error = report.get("exception")
    if isinstance(error, BaseException):
        return error
    message = (
        f"service {record.task.name!r} ({record.future.uid}) ended by itself: {ending(report)}"
    )
    return _complete(TaskFailedError(message), report)


def of_gone_service(
    record: TaskRecord, service: asyncio.Future[Any], cause: BaseException
) -> DependencyFailureError:
    """The error of a task that does not run because a service has ended for good."""
    name = future_name(service)
    why = next(iter(describe_error(cause).splitlines()), "")
    return DependencyFailureError(
        f"{record.named()} did not run because service {name!r} is no longer running: {why}",
        [name],
        cause,
    ).follows(cause)


def service_ended(
    service: asyncio.Future[Any], at: float, error: BaseException, again: bool
) -> str:
    """The note on the error of a task that ran when a service that it depends on ended."""
    why = next(iter(describe_error(error).splitlines()), "")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    further = "started again" if again else "not started again"
    return f"its service {future_name(service)!r} ended at {when} and was {further}: {why}"


def over_time(record: TaskRecord, limit: float) -> TaskTimeoutError:
    """The error of an attempt that has run, or a service that has started, for too long."""
    what = f"{record.task.name!r} ({record.future.uid})"
    if record.task.settings.service:
        missing = _missing_sign(record.task.settings.ready)
        return TaskTimeoutError(f"service {what} was not ready within {limit:g} s{missing}")
    return TaskTimeoutError(f"task {what} ran for longer than its time-out of {limit:g} s")


def _missing_sign(ready: object) -> str:
    """What was not there of a service that says with `ready` when it is ready."""
    kind, _, sign = ready.partition(":") if isinstance(ready, str) else ("", "", "")
    if kind == "tcp":
        return f": nothing listened on {f'port {sign}' if sign else 'its port'}"
    if kind == "file":
        return f": there was no file {sign!r}"
    return f": nothing matched {ready!r}" if kind else ""


def goes_on(record: TaskRecord, error: BaseException) -> BaseException:
    """The error of a task whose work cannot be stopped, so that it says so of a time-out."""
    if not is_a(error, TaskTimeoutError):
        return error
    return TaskTimeoutError(
        f"{error}; backend {record.backend.name!r} cannot stop it, so the work goes on and "
        "keeps its slot until it ends. Run such functions in processes, which can be "
        'stopped: LocalExecutionBackend("process")'
    )


def cancelled_elsewhere(record: TaskRecord) -> str:
    """Why a future is cancelled although nobody here asked for it."""
    return (
        f"backend {record.backend.name!r} ended task {record.task.name!r} ({record.future.uid}) as "
        "cancelled, which its engine had not asked for: the task itself raised CancelledError, or "
        "somebody else shut the backend down, such as another engine that uses it "
        "(shutdown(skip_execution_backend=True) leaves it running)"
    )


def ending(report: Mapping[str, Any]) -> str:
    """How a task ended, in a few words."""
    error = report.get("exception")
    if error is not None:
        return describe_error(error) if is_a(error, BaseException) else str(error)
    if report.get("exit_code") is not None:
        return f"exit code {exit_code(report['exit_code'])}"
    return "no exit code"


def exit_code(code: Any) -> str:
    """An exit code with what it means, where that is agreed upon.

    A shell gives 127 and 126 for what it cannot start, and 128 and the signal's number for what a
    signal ended (POSIX.1-2017, XCU 2.8.2).
    """
    if type(code) is not int:
        return str(code)
    meaning = _MEANINGS.get(code)
    number = -code if code < 0 else code - 128
    if meaning is None and number in _SIGNALS:
        meaning = _SIGNALS[number].name
        if number == signal.SIGKILL:
            meaning += ", which the system sends where memory runs out"
    elif code < 0:  # of those for a program's own use most have no name
        meaning = f"signal {number}"
    return str(code) if meaning is None else f"{code} ({meaning})"


def _shown(command: str) -> str:
    """As much of a command as a message may hold; the error's `command` has all of it."""
    more = len(command) - COMMAND_SHOWN
    return command if more <= 0 else f"{command[:COMMAND_SHOWN]} [and {more} characters more]"
