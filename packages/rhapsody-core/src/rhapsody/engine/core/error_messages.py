"""Errors of failed tasks: their messages, and the record and the note of each failure (PEP 678).

The note shows the call, where it ran, and the end of its output. An argument of a user-defined
class is shown only as the name of its class. The values of variables in `environment=`, and of
variables of this process whose names look secret, are replaced with the variables' names.
"""

from __future__ import annotations

import asyncio
import os
import re
import reprlib
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeVar

from rhapsody.backends.programs import RERUN_SCRIPT
from rhapsody.data import RESERVED, STDERR_TAIL, File, end_of_file, stderr_tail, stdout_tail
from rhapsody.engine.configuration.settings import TaskSettings
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.record import TaskRecord
from rhapsody.errors import (
    NOTE_PREFIX,
    CapabilityError,
    DataError,
    DependencyFailureError,
    Failure,
    InputChangedError,
    MessageParts,
    OutOfMemoryError,
    TaskFailedError,
    TaskTimeoutError,
    describe_error,
    hints_in,
    last_failure,
    parts_of,
    set_failure,
    set_parts,
    text_of,
)
from rhapsody.failures import failure_from
from rhapsody.fsutil import full_disk, used_up
from rhapsody.masking import MIN_SECRET_LENGTH, Hidden, Secrets, hides, mask, secrets_of
from rhapsody.resources import Resources
from rhapsody.sdk.calls import argument_name
from rhapsody.sdk.executables import interpreter_fault
from rhapsody.sdk.value_handles import WorkerValue
from rhapsody.shells import MAX_ARGUMENT, SHELLS
from rhapsody.spelling import suggestion
from rhapsody.task import TaskFuture, failure_of
from rhapsody.tracebacks import format_error, users_part

_MEANINGS = {126: "the command cannot be executed", 127: "command not found"}
_SIGNALS = {int(each): each for each in signal.Signals}

# Compiled when an error is described.
_STARTS = r"(?:^|[;|&({\n]|\b(?:then|do|else)\s)\s*"
_GREP = (  # outside of conditions
    _STARTS + r"(?:\w+=\S*\s+)*(?:[\w./-]*/)?(?:[efz]|bz|xz|zst)?grep\s(?![^;\n]{0,500}(?:&&|\|\|))"
)
_EXIT = _STARTS + r"exit\s+[1-9$]"
_SEVERAL = r"[;|\n]|(?<!>)&(?!>)|\(\(|^\s*(?:let|read)\s"
"""Commands with several parts, and those that fail without a fault."""
_BROKEN = r"BrokenPipeError|Broken pipe"
_NO_LINK = r"(?i)Too many levels of symbolic links|is not a normal file|is a symbolic link"
"""Messages of gzip, bzip2 and zstd."""
_UNSET = r"(?m): (unbound variable|parameter not set)$"
"""Messages of bash and other shells in English."""

_SHELL_SPLITS = r"[\s'\"`;|&<>()=,]+"
_LIST_SPLITS = r"[\n=]"

MAX_CHECKED_WORDS = 500
"""Maximum number of words of a failed command that are checked for missing files."""

MAX_COMMAND_LENGTH = 500
"""Maximum number of characters of a command in the message of a `TaskFailedError`."""

ERROR = f"{RESERVED}error"
"""Name of the file, in a failed task's sandbox, that contains the traceback of the failure."""

MAX_CALL_LENGTH = 200
"""Maximum number of characters of a call in a note."""

MAX_OUTPUT_LENGTH, MAX_OUTPUT_LINES = 1000, 10
"""Maximum numbers of characters and lines of a task's output in a note."""


_Error = TypeVar("_Error", TaskFailedError, TaskTimeoutError)


# Messages.


def future_name(future: asyncio.Future[Any]) -> str:
    """Return the name of a future for messages."""
    if isinstance(future, TaskFuture):
        return future.name
    name = getattr(future, "get_name", None)  # of asyncio's tasks
    return repr(future) if name is None else str(name())


def of_dependencies(
    record: TaskRecord, failed: Sequence[asyncio.Future[Any]]
) -> DependencyFailureError:
    """Return the error for a task that does not run because dependencies failed."""
    names = [future_name(future) for future in failed]
    causes = [error for future in failed if (error := future.exception()) is not None]
    root, what = _root_of(failed[0])
    roots = {call or id(error) for error, call in map(_root_of, failed)}
    others = f" (and {len(roots) - 1} more)" if len(roots) > 1 else ""
    why = next(iter(describe_error(root).splitlines()), "")  # the cause has the other lines
    reason = f"did not run because {what or repr(names[0])} failed{others}: {why}"
    error = DependencyFailureError(f"{record.named()} {reason}", names, root)
    set_parts(error, MessageParts(reason))
    error._first = _first_failures(failed)
    return error.follows(causes[0])


def _first_failures(failed: Sequence[asyncio.Future[Any]]) -> tuple[Failure, ...]:
    """Return the original failures that caused the given futures to fail, each task once."""
    found: dict[str, Failure] = {}
    for future in failed:
        error = future.exception()
        if isinstance(error, DependencyFailureError):
            if len(failed) == 1:
                return error._first
            found.update((each.uid, each) for each in error._first)
        elif isinstance(future, TaskFuture) and error is not None:
            found[future.uid] = failure_of_future(future, error)
    return tuple(found.values())


def _root_of(future: asyncio.Future[Any]) -> tuple[BaseException | None, str | None]:
    """Return the root cause of a future's failure, and the text of the call that raised it."""
    error = future.exception()
    if isinstance(error, DependencyFailureError):
        return error.root_cause, error._first[0].call if error._first else None
    failure = failure_of(future) or (None if error is None else last_failure(error))
    return error, None if failure is None else failure.call


def unknown_setting(
    record: TaskRecord, backend: BackendHandle, key: object, able: Sequence[str]
) -> CapabilityError:
    """Return the error for a task with a setting that its backend does not know.

    Args:
        record: The task.
        backend: The backend that was chosen for the task.
        key: The setting, a key of `task_description`.
        able: The attached backends that support the setting.
    """
    known = sorted(backend.capabilities.task_settings or ())
    hint = suggestion(key, known)
    own = f"{key}=..." if key in TaskSettings.__annotations__ else ""
    own = f"resources={{{key!r}: ...}}" if key in Resources.__dataclass_fields__ else own
    if own:
        hint = f"; pass {own} as a setting of the task instead"
    there = f"supported keys: {', '.join(known) or 'none'}"
    where = f"; attached backends that support it: {', '.join(able)}" if able else ""
    return CapabilityError(
        f"task {record.call.task.name!r}: backend {backend.name!r} does not support the key "
        f"{key!r} in task_description{hint} ({there}{where})"
    )


def of_attempt(record: TaskRecord, report: Mapping[str, Any]) -> BaseException:
    """Return the error for an attempt that its backend reported as failed."""
    error = report.get("exception")
    command = None if record.attempt.command is None else str(record.attempt.command)
    if isinstance(error, BaseException):
        if (
            isinstance(error, OSError) and record.call.task.kind == "executable"
        ):  # names the command
            error.with_traceback(None).__cause__ = None
        if type(error) is TaskFailedError or type(error) is OutOfMemoryError:
            text, hints = hidden(record, str(error)), _hints(record, report)
            error.args = (text + _as_lines(hints),)
            set_parts(error, MessageParts(text, "", hints))
            error.command = error.command or command
            return _complete(error, report) if record.call.task.kind == "executable" else error
        if isinstance(error, FileNotFoundError) and (hint := _missing_files(record, report)):
            set_parts(error, MessageParts(text_of(error), "", (hint,)))
            error.add_note(f"hint: {hint}")
        return error
    reason = "failed"
    if error:
        reason += f": {hidden(record, str(error))}"
    elif report.get("exit_code") is not None:
        reason = f"ended with exit code {exit_code(report['exit_code'])}"
        if full := full_disk(report.get("sandbox")):
            reason += f" ({full})"
        if command:
            reason += f": {_shown(hidden(record, command))}"
    stderr = printed_last(record, report.get("stderr"), STDERR_TAIL).rstrip()
    parts = MessageParts(reason, stderr, _hints(record, report))
    made = _of_parts(TaskFailedError, record, "task", parts)
    made.command = command
    return _complete(made, report)


def _of_parts(kind: type[_Error], record: TaskRecord, prefix: str, parts: MessageParts) -> _Error:
    """Return an error of a task with the given parts of its message."""
    name = f"{prefix} {record.call.task.name!r} ({record.future.uid})"
    printed = f"\n{parts.stderr}" if parts.stderr else ""
    error = kind(f"{name} {parts.reason}{printed}{_as_lines(parts.hints)}")
    set_parts(error, parts)
    return error


def _as_lines(hints: Sequence[str]) -> str:
    """Return hints as further lines of a message."""
    return "".join(f"\nhint: {hint}" for hint in hints)


def with_hint(record: TaskRecord, error: DataError) -> DataError:
    """Return an error of declared files with a hint about the task's command, if there is one."""
    hint = unquoted_files(record)
    if not hint:
        return error
    text = str(error)
    extended = DataError(text + _as_lines([hint]))
    set_parts(extended, MessageParts(text, "", (hint,)))
    return extended


def _hints(record: TaskRecord, report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a hint about a failed command, if there is one."""
    hint = (
        unquoted_files(record)
        or _missing_files(record, report)
        or _start_hint(record, report)
        or _link_hint(record, report)
        or _shell_hint(record, report)
    )
    return (hint,) if hint else ()


def _start_hint(record: TaskRecord, report: Mapping[str, Any]) -> str:
    """Return a hint about a program of a command that a shell could not start.

    Returns:
        The hint, or an empty string if there is none.
    """
    command = record.attempt.command.words if record.attempt.command is not None else None
    if not command or report.get("exit_code") not in _MEANINGS:
        return ""
    if sum(map(len, command)) > MAX_ARGUMENT:
        return (
            "Linux accepts about 2 MB for all arguments of a program; use a loop, or pass "
            "the names on standard input, as in `printf '%s\\n' {files} | xargs wc`"
        )
    sandbox: str = report.get("sandbox") or record.attempt.description.get("sandbox") or ""
    place = record.attempt.description.get("cwd") or sandbox
    for word in dict.fromkeys(_pieces(command)[:MAX_CHECKED_WORDS]):
        path = os.path.join(place, word) if "/" in word else shutil.which(word)
        fault = None if path is None else interpreter_fault(path)
        if fault is not None:
            return fault
    return ""


def _shell_hint(record: TaskRecord, report: Mapping[str, Any]) -> str:
    """Return a hint about a command that a strict shell ended, although no program had an error.

    Returns:
        The hint, or an empty string if there is none.
    """
    command = record.attempt.command.words if record.attempt.command is not None else None
    if not isinstance(command, str) or record.attempt.description.get("shell") not in SHELLS:
        return ""
    code = report.get("exit_code")
    printed = printed_last(record, report.get("stderr"), STDERR_TAIL)
    if "|" in command and (code == 128 + signal.SIGPIPE or re.search(_BROKEN, printed)):
        return (
            "a program in the pipeline was still writing after its reader, such as head, "
            "had ended; if this is intended, write `set +o pipefail` before the pipeline"
        )
    if code == 1 and not printed and re.search(_GREP, command[:MAX_ARGUMENT]):
        return (
            "if grep matched no line, and this is not an error, write "
            "`{ grep ... || [ $? = 1 ]; }` (with doubled braces in an f-string)"
        )
    if re.search(_UNSET, printed):
        return (
            "the shell stops at variables that are not set; write ${NAME:-} where a "
            "variable may be missing, or set it with environment={...}"
        )
    silent = not printed and type(code) is int and 0 < code < min(_MEANINGS)
    several = silent and re.search(_SEVERAL, command.strip())
    if several and not re.search(_EXIT, command[:MAX_ARGUMENT]):
        options = (
            "set -eu" if record.attempt.description.get("shell") == "sh" else "set -euo pipefail"
        )
        return (
            "the shell stops at the first command or pipeline that fails, even if it "
            f"prints no error (`{options}`); `shell=` chooses another shell"
        )
    return ""


def _link_hint(record: TaskRecord, report: Mapping[str, Any]) -> str:
    """Return a hint about a program that refuses to read the links to its input files.

    Returns:
        The hint, or an empty string if there is none.
    """
    printed = printed_last(record, report.get("stderr"), STDERR_TAIL)
    found = record.call.found
    if found is None or not found.inputs or not re.search(_NO_LINK, printed):
        return ""
    return (
        "input files are links in the sandbox, which some programs refuse; to pass a "
        "copy, write InputFile(..., copy=True)"
    )


def unquoted_files(record: TaskRecord) -> str:
    """Return a hint about the first file whose name lacks necessary quotes in a shell command.

    Returns:
        The hint, or an empty string if there is no such file.
    """
    command = record.attempt.command.words if record.attempt.command is not None else None
    if not isinstance(command, str):
        return ""
    words = _shell_words(command)
    for file in (*record.call.args, *(record.call.kwargs or {}).values()):
        name = (getattr(file, "name", None) or file.filename) if isinstance(file, File) else file
        if not (isinstance(name, str) and (isinstance(file, File) or os.path.exists(name))):
            continue
        if shlex.quote(name) != name and name in command and not any(name in w for w in words):
            return (
                f"the shell does not treat {name!r} as one word: write "
                "{shlex.quote(str(file))} in the command, or return a list of arguments"
            )
    return ""


def _missing_files(record: TaskRecord, report: Mapping[str, Any]) -> str:
    """Return a hint about files that occur in a command but are missing from its sandbox.

    Only names that exist relative to the current directory are reported.

    Returns:
        The hint, or an empty string if there are no such files.
    """
    command = record.attempt.command.words if record.attempt.command is not None else None
    described = record.attempt.description.get("sandbox")
    sandbox: str = report.get("sandbox") or described or ""
    if not command or record.call.task.settings.cwd is not None or not os.path.isdir(sandbox):
        return ""
    words = dict.fromkeys(_pieces(command)[:MAX_CHECKED_WORDS])
    missing = [word for word in words if word and _is_missing(word, sandbox)][:3]
    if not missing:
        return ""
    names = " and ".join(map(repr, missing))
    return (
        f"the sandbox of the command does not contain {names}: pass "
        f"InputFile({missing[0]!r}) to the task, and use that argument in the command"
    )


def _pieces(command: str | list[str]) -> list[str]:
    """Return the parts of a command that may be names of files."""
    if isinstance(command, str):
        return [*_shell_words(command), *re.split(_SHELL_SPLITS, command[:MAX_ARGUMENT])]
    return re.split(_LIST_SPLITS, "\n".join(command))


def _shell_words(command: str) -> list[str]:
    try:
        return shlex.split(command[:MAX_ARGUMENT])  # slow for long commands
    except ValueError:  # unbalanced quotes
        return []


def _is_missing(word: str, sandbox: str) -> bool:
    if os.path.isabs(word) or os.path.lexists(os.path.join(sandbox, word)):
        return False
    return os.path.isfile(word) or ("/" in word and os.path.isdir(word))


def _complete(error: TaskFailedError, report: Mapping[str, Any]) -> TaskFailedError:
    """Fill in the missing attributes of an error from a report, and return the error."""
    if error.exit_code is None:
        error.exit_code = report.get("exit_code")
    error.stderr = error.stderr or stderr_tail(report)
    error.stdout = error.stdout or stdout_tail(report)
    error.sandbox = error.sandbox or report.get("sandbox")
    return error


def input_changed(
    record: TaskRecord, changed: Mapping[str, str], error: BaseException | None
) -> InputChangedError:
    """Return the error for a task whose input files have changed while it waited or ran.

    Args:
        record: The task.
        changed: The paths of the files, by their paths in the sandbox.
        error: The error of the attempt, which becomes the cause; `None` if the attempt succeeded.
    """
    path = next(iter(changed.values()))
    state = "changed" if os.path.exists(path) else "disappeared"
    others = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    what = "its function"
    if record.attempt.command is not None:
        what = f"its command {_shown(hidden(record, str(record.attempt.command)))!r}"
    also = "" if error is None else f" The attempt also failed: {describe_error(error)}"
    cure = "To let a task change its input, pass it a copy: InputFile(..., copy=True)."
    if record.files is not None and path in record.files.linked:
        cure = (
            "The task received a link to the file, not a copy: pass the file as InputFile(..., "
            "copy=True). If another task wrote it, declare it as an OutputFile of that task."
        )
    when = "while the task waited or ran"
    if record.files is not None and not record.files.at_call.isdisjoint(changed):
        when = "after the call"
        cure = (
            "If the program rewrites the file for each call, write different files, or await the "
            f"task before the file is rewritten. {cure}"
        )
    changing = InputChangedError(
        f"the input file {path!r}{others} of {record.named()} {state} {when}: {what}, another task "
        f"or another program may have written to it. Check the file. {cure}{also}",
        list(changed.values()),
    )
    changing.__cause__ = error
    return changing


def of_service(record: TaskRecord, report: Mapping[str, Any], *, ready: bool) -> BaseException:
    """Return the error for a service that ended before it was stopped.

    Args:
        record: The service.
        report: The backend's report of the service's end.
        ready: True if the service had been ready.
    """
    error = report.get("exception")
    if isinstance(error, BaseException):
        return error
    how = "unexpectedly" if ready else "before it was ready"
    parts = MessageParts(f"ended {how}: {ending(report)}")
    return _complete(_of_parts(TaskFailedError, record, "service", parts), report)


def of_ended_dependency(
    record: TaskRecord, service: asyncio.Future[Any], cause: BaseException
) -> DependencyFailureError:
    """Return the error for a task that cannot run because a service is no longer running."""
    name = future_name(service)
    why = next(iter(describe_error(cause).splitlines()), "")
    reason = f"did not run because service {name!r} is no longer running: {why}"
    error = DependencyFailureError(f"{record.named()} {reason}", [name], cause)
    set_parts(error, MessageParts(reason))
    return error.follows(cause)


def service_ended(
    service: asyncio.Future[Any], at: float, error: BaseException, again: bool
) -> str:
    """Return the note for the error of a task that was running when one of its services ended.

    Args:
        service: The future of the service.
        at: The time at which the service ended, in seconds since the epoch.
        error: The error with which the service ended.
        again: True if the service was restarted.
    """
    why = next(iter(describe_error(error).splitlines()), "")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    further = "restarted" if again else "not restarted"
    return f"the task's service {future_name(service)!r} ended at {when} and was {further}: {why}"


def over_time(record: TaskRecord, limit: float) -> TaskTimeoutError:
    """Return the error for a task that timed out, or for a service that was not ready in time.

    Args:
        record: The task or service.
        limit: The time limit in seconds.
    """
    prefix, reason = "task", f"exceeded its timeout of {limit:g} s"
    if record.call.task.settings.service:
        missing = _missing_sign(record.call.task.settings.ready)
        prefix, reason = "service", f"was not ready within {limit:g} s{missing}"
    return _of_parts(TaskTimeoutError, record, prefix, MessageParts(reason))


def not_built(record: TaskRecord, limit: float) -> TaskTimeoutError:
    """Return the error for a task whose worker values were not built in time.

    Args:
        record: The task.
        limit: The time limit in seconds.
    """
    names = record.attempt.description["worker_values"].names
    reason = f"failed because worker value {names} was not built within {limit:g} s"
    return _of_parts(TaskTimeoutError, record, "task", MessageParts(reason))


def _missing_sign(ready: object) -> str:
    """Return the end of a message that names the missing readiness signal."""
    kind, _, sign = ready.partition(":") if isinstance(ready, str) else ("", "", "")
    if kind == "tcp":
        return f": nothing listened on {f'port {sign}' if sign else 'its port'}"
    if kind == "file":
        return f": the file {sign!r} did not appear"
    return f": no output matched {ready!r}" if kind else ""


def of_unstoppable_work(record: TaskRecord, error: BaseException) -> BaseException:
    """Return the error for work that cannot be stopped.

    The message of a timeout error is extended to say that the work continues. Other errors are
    returned unchanged.
    """
    if not isinstance(error, TaskTimeoutError):
        return error
    more = (
        f"; backend {record.attempt.backend.name!r} cannot stop it, so it continues to run and "
        "occupies its slot. Run such functions in processes, which can be stopped: "
        'LocalExecutionBackend("process")'
    )
    extended = TaskTimeoutError(f"{error}{more}")
    set_parts(extended, MessageParts(parts_of(error).reason + more))
    return extended


def not_retried(record: TaskRecord, argument: int | str) -> str:
    """Return the note for an error after which a task is not retried, because of an iterator."""
    return (
        f"not retried, because the attempt may have consumed its "
        f"{argument_name(record.call.task.function, argument)}, an iterator that cannot be copied; "
        "pass a list instead"
    )


def generator_sent_again(
    record: TaskRecord, backend: BackendHandle, what: str, generator: object
) -> ValueError:
    """Return the error for a generator in the state in which another call has received it.

    Args:
        record: The task.
        backend: The task's backend.
        what: Where the generator is, and a verb: `argument 'rng' is`.
        generator: The generator.
    """
    cure = "pass each call a seed as an argument, and create the generator in the function"
    if hasattr(generator, "spawn"):
        cure = "pass each call its own generator (rng.spawn(n) makes n of them) or a seed"
    return ValueError(
        f"task {record.call.task.name!r}: {what} a random number generator "
        f"({type(generator).__name__}) that another call on backend {backend.name!r} has received "
        f"in the same state, so both would draw the same numbers; {cure}, or pass a copy if this "
        "is intended"
    )


def read_twice(record: TaskRecord, future: TaskFuture[Any], reader: str) -> TypeError:
    """Return the error for an iterator that a dependency returned and another task has received.

    Args:
        record: The task.
        future: The future of the dependency.
        reader: The uid of the other task.
    """
    return TypeError(
        f"task {record.call.task.name!r}: task {future.name!r} ({future.uid}) returned an iterator "
        f"({type(future._result).__name__}), which {reader} has received as well; only one "
        "of them can read its items: let the function return a list"
    )


def cancelled_elsewhere(record: TaskRecord) -> str:
    """Return the message for the cancellation of a task by something other than its engine."""
    return (
        f"task {record.call.task.name!r} ({record.future.uid}) was canceled by backend "
        f"{record.attempt.backend.name!r}, not by its engine: it raised CancelledError, or another "
        "engine shut down the backend (shutdown(skip_execution_backend=True) leaves it running)"
    )


def ending(report: Mapping[str, Any]) -> str:
    """Describe in a few words how a task ended."""
    error = report.get("exception")
    if error is not None:
        return describe_error(error) if isinstance(error, BaseException) else str(error)
    if report.get("exit_code") is not None:
        return f"exit code {exit_code(report['exit_code'])}"
    return "no exit code"


def exit_code(code: Any) -> str:
    """Return an exit code as text, with its meaning if it is a common one.

    A shell returns 127 and 126 for commands that it cannot start, and 128 plus the signal's number
    for commands that a signal killed (POSIX.1-2017, XCU 2.8.2).
    """
    if type(code) is not int:
        return str(code)
    meaning = _MEANINGS.get(code)
    number = -code if code < 0 else code - 128
    if meaning is None and number in _SIGNALS:
        meaning = _SIGNALS[number].name
        if number == signal.SIGKILL:
            meaning += ", which the system also sends when memory runs out"
    elif code < 0:  # most real-time signals have no name
        meaning = f"signal {number}"
    return str(code) if meaning is None else f"{code} ({meaning})"


def _shown(command: str) -> str:
    """Return the part of a command that fits a message; the error's `command` is complete."""
    more = len(command) - MAX_COMMAND_LENGTH
    return command if more <= 0 else f"{command[:MAX_COMMAND_LENGTH]} [and {more} more characters]"


# Notes.


def _environment(record: TaskRecord) -> Mapping[str, str] | None:
    """Return the environment variables that a task sets."""
    if record.attempt.description:
        return record.attempt.description.get("environment")
    return record.call.task.settings.environment


def _secrets(record: TaskRecord) -> Secrets:
    """Return the values to mask in texts about a task."""
    return secrets_of(_environment(record))


def hidden(record: TaskRecord, text: str) -> str:
    """Return the text with each secret value replaced by the `<NAME>` of its variable."""
    return text if len(text) < MIN_SECRET_LENGTH else mask(text, _secrets(record))


def printed_last(record: TaskRecord, text: object, count: int) -> str:
    """Return about the last `count` characters of a task's output, without secrets.

    If output is captured in files, `text` is the path of the file.
    """
    if not isinstance(text, str) or not text:
        return ""
    values = [value for value, _ in _secrets(record)]
    if record.call.task.settings.capture == "files":
        text = end_of_file(text, count + max(map(len, values), default=0))
    start = max(0, len(text) - count)
    for value in values:  # do not cut a value in two
        at = text.find(value, max(0, start - len(value) + 1), start + len(value) - 1)
        start = at if 0 <= at < start else start
    return hidden(record, text[start:])


class Brief(reprlib.Repr):
    """Formatter that shortens values without running code of their classes.

    Args:
        secrets: The values to mask.
    """

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = 40
        self._secrets = secrets

    def repr_str(self, x: str, level: int) -> str:
        """Shorten text after masking secret values."""
        return super().repr_str(mask(x, self._secrets), level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Shorten a dictionary after masking the values of keys that look secret."""
        hidden = {key: Hidden(key) for key, value in x.items() if hides(key, value)}
        return super().repr_dict({**x, **hidden} if hidden else x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        """Show a value for which `reprlib` has no method, in most cases only as its type."""
        kind = type(x)
        if issubclass(kind, TaskFuture):
            return f"<{x.uid}>"
        if kind is WorkerValue:
            return f"<{x.name}>"
        if issubclass(kind, PurePath | File):
            return repr(x)
        if kind in (float, bool, type(None), complex, Hidden):
            return repr(x)
        return f"<{kind.__name__}>"


def call_of(record: TaskRecord) -> str:
    """Return the shortened call of a task as Python code, such as `task(1, x=2)`."""
    return call_text(record.call.task.name, record.call.args, record.call.kwargs, _secrets(record))


def call_text(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, secrets: Secrets
) -> str:
    """Return a shortened call as Python code, such as `task(1, x=2)`."""
    brief = Brief(secrets)
    try:
        given = [brief.repr(value) for value in args]
        given += [
            f"{key}=<{key}>" if hides(key, value) else f"{key}={brief.repr(value)}"
            for key, value in (kwargs or {}).items()
        ]
        text = mask(", ".join(given), secrets)
    except Exception:  # an object that cannot be inspected must not hide the failure
        text = "..."
    text = text if len(text) <= MAX_CALL_LENGTH else f"{text[:MAX_CALL_LENGTH]}..."
    return f"{name}({text})"


def describe_failure(record: TaskRecord, error: BaseException, text: str | None = None) -> Failure:
    """Return the record of a failed attempt, or of the reason why a task did not run.

    Args:
        record: The task or block.
        error: The exception.
        text: The result of `call_of`, if the caller has it.
    """
    task, uid, description = record.call.task, record.future_uid(), record.attempt.description
    failure = failure_from(error, task.name, uid, record.attempt.number)
    if isinstance(error, DependencyFailureError):
        causes = tuple(each.uid for each in error._first)
        call = error._first[0].call if causes else failure.call
        return replace(failure, call=call, causes=causes)
    call = f"{text or call_of(record)} ({uid})"
    if task.prefix == "block" and (inner := last_failure(error)) is not None:
        call = inner.call  # the block has raised the exception of a task
    sandbox, tries = description.get("sandbox"), record.tries
    program = task.kind == "executable"
    rerun = None if sandbox is None or not program else os.path.join(sandbox, RERUN_SCRIPT)
    # An executable reports a full disk itself.
    full = None if isinstance(error, TaskFailedError) else full_disk(sandbox, error)
    short = full or used_up(error, program=program)
    hints = [*failure.hints] if short is None else [*failure.hints, short]
    hints += [
        f"{place!r} is the destination of the finished file: write {name!r} in the command"
        for place, name in _places(record).items()
    ]
    stdout, stderr = _printed(record, error)
    return replace(
        failure,
        call=call,
        message=hidden(record, failure.message) if _environment(record) else failure.message,
        backend=record.elsewhere() or record.submitted_to,
        worker=description.get("worker"),
        attempts=(
            () if tries is None or tries.elsewhere is None else tuple(tries.by_backend.items())
        ),
        sandbox=sandbox,
        rerun=rerun if rerun is not None and os.path.isfile(rerun) else None,
        stdout=stdout,
        stderr=failure.stderr or stderr,
        hints=tuple(hints),
    )


def failure_in_event(record: TaskRecord, error: BaseException) -> Failure:
    """Return the failure of an attempt for the event of its end."""
    return failure_of(record.future) or describe_failure(record, error)


def failure_of_future(future: TaskFuture[Any], error: BaseException) -> Failure:
    """Return the failure of a future, which may not have been a task's, as of a lost value."""
    known = failure_of(future)
    if known is not None:
        return known
    failure = failure_from(error, future.name, future.uid, future.attempt)
    return replace(failure, sandbox=future.sandbox)


def annotate(record: TaskRecord, error: BaseException) -> None:
    """Add the record and the note of a failed task or block to its exception.

    They replace those of an earlier attempt. If a block raises the exception of a task, the task's
    note is kept.
    """
    attributes = vars(error)
    inner = last_failure(error)
    call = call_of(record)
    failure = describe_failure(record, error, call)
    set_failure(error, failure)
    if record.call.task.prefix == "block" and inner is not None:
        return
    notes = attributes.get("__notes__")
    notes = list(notes) if type(notes) is list else []
    others = [each for each in notes if not (type(each) is str and each.startswith(NOTE_PREFIX))]
    attributes["__notes__"] = [*others, _note(record, call, failure, hints_in(error))]


def leave_error(record: TaskRecord, error: BaseException) -> None:
    """Write the traceback of a failed task into its sandbox. Do nothing if there is no sandbox."""
    sandbox = record.attempt.description.get("sandbox")
    if sandbox is None or not os.path.isdir(sandbox):
        return
    with suppress(Exception):  # a full disk, or an exception whose own code cannot be run
        text = format_error(error, users_part(error.__traceback__))
        with open(os.path.join(sandbox, ERROR), "w", encoding="utf-8", errors="replace") as file:
            file.write(hidden(record, text))


def _note(record: TaskRecord, call: str, failure: Failure, in_message: Sequence[str]) -> str:
    """Return a failure as text, without the hints and the output that the message contains."""
    lines = [f"{NOTE_PREFIX}raised in {call}"]
    where = failure.uid
    if failure.backend is not None:
        where += f", attempt {failure.attempt}, on {failure.backend!r}"
        where += "" if failure.worker is None else f" ({failure.worker})"
    elif record.call.task.prefix == "task":
        where += ", not submitted"
    lines.append(f"  {where}")
    if failure.attempts:
        counts = (f"{number} on {name!r}" for name, number in failure.attempts)
        lines.append(f"  attempts: {', '.join(counts)}")
    if failure.backend is not None and failure.sandbox is not None:
        lines.append(f"  sandbox: {failure.sandbox}")
        if failure.rerun is not None:
            lines.append(f"  to run it again: sh {shlex.quote(failure.rerun)}")
    lines += [f"  {hint}" for hint in failure.hints if hint not in in_message]
    outputs = {"standard output": failure.stdout}
    if not failure.of_command:
        outputs["standard error"] = failure.stderr
    for name, text in outputs.items():
        if text:
            lines += [f"  {name} ended with:", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines)


def _places(record: TaskRecord) -> dict[str, str]:
    """Return the destinations that the command contains, with the names of their outputs."""
    command, found = record.attempt.command, record.call.found
    if command is None or found is None:
        return {}
    text = command.words if isinstance(command.words, str) else " ".join(command.words)
    placed = {f"{out.save}{out.filename}": out.filename for out in found.outputs if out.save}
    return {place: name for place, name in placed.items() if place in text}


def _printed(record: TaskRecord, error: BaseException) -> tuple[str, str]:
    """Return the ends of standard output and, unless the message contains it, of standard error."""
    outcome = record.outcome
    if outcome is None:
        return "", ""
    ends = []
    for text in (outcome.stdout, None if isinstance(error, TaskFailedError) else outcome.stderr):
        last = printed_last(record, text, MAX_OUTPUT_LENGTH)
        ends.append("\n".join(last.rstrip().splitlines()[-MAX_OUTPUT_LINES:]))
    return ends[0], ends[1]
