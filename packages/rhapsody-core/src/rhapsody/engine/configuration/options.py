"""Options of a workflow engine, each described once: name, type, default, check and help.

`WorkflowEngine.create` repeats the names, types and defaults in its signature, for editors and type
checkers; a test compares the two. `create` passes its arguments to `EngineOptions.of`, and the rest
of the engine receives the resulting object. The docstring of `create` and the page
`docs/reference/engine-options.md` are generated from the descriptions here.
`rhapsody.engine.configuration.defaults` completes the arguments of `create` with the options of the
command line and of a profile.

To add an option, add a field to `EngineOptions`, add an argument to `WorkflowEngine.create` and its
type to `EngineSettings`, and use it in the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from rhapsody.aio import Clock
from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.engine.configuration.settings import TaskDefaults, flag, whole_number
from rhapsody.errors import DataError
from rhapsody.journal import JournalOption, checked_journal
from rhapsody.observers.progress import Progress
from rhapsody.resources import seconds
from rhapsody.shells import DEFAULT as SHELL
from rhapsody.shells import Shell, shell_setting
from rhapsody.staging.sandboxes import check_keep
from rhapsody.task import RetryPolicy, as_policies

if TYPE_CHECKING:
    from rhapsody.journal.plugin import Journal

BackendLike = BaseExecutionBackend | str
KeepSandboxes = Literal["results", "failed", "all", "none"]

LONGEST_UID = 200
"""Maximum length of an engine's uid in bytes.

File systems allow 255 bytes for a name. The names of sandboxes begin with the engine's uid.
"""


def directory(argument: str, value: object) -> Path:
    """Return the absolute path of a directory that the engine will use or create.

    Args:
        argument: The name of the option, for errors.
        value: The path that the user passed.

    Raises:
        TypeError: The value is not a path.
        ValueError: The path is a file, or contains a null character.
        FileNotFoundError: The path is relative and the current directory was removed.
    """
    text = _text(argument, value)
    if "\0" in text:
        raise ValueError(f"{argument} must not contain a null character, got {value!r}")
    path = Path(os.path.abspath(text))
    if path.exists() and not path.is_dir():
        raise ValueError(f"{argument} must be a directory, but {str(path)!r} is a file")
    return path


def runs_directory(path: str) -> Path:
    """Return the absolute path of the directory for runs, used if `work_dir` is not set.

    Raises:
        DataError: The path is a file, or another user could replace the runs.
        FileNotFoundError: The current directory was removed.
    """
    from rhapsody.staging.runs import require_trusted

    try:
        found = directory("work_dir", path)
    except ValueError:
        raise DataError(
            f"cannot store runs in {os.path.abspath(path)!r}: it is a file, not a directory; move "
            "it, or pass work_dir=..."
        ) from None
    if os.access(found, os.W_OK):  # otherwise, only runs without files can work
        require_trusted(found)
    return found


def _trace(value: object) -> Path:
    return _file("trace", value)


def _record(value: object) -> bool | Path:
    return value if isinstance(value, bool) else _file("record", value, "True, False or a path")


def _file(argument: str, value: object, accepted: str = "a path") -> Path:
    """Return the path of a file that the engine will write.

    Raises:
        TypeError: The value is not a path.
        ValueError: The path is a directory or is not writable.
    """
    path = Path(_text(argument, value, accepted))
    if not path.name or path.is_dir():
        raise ValueError(f"{argument} must be the path of a file, got {str(value)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{argument}: the directory of {str(path)!r} does not exist")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{argument}: no permission to write {str(path)!r}")
    from rhapsody.history.outputs import outputs_path
    from rhapsody.staging.fsutil import require_own

    for file in (path, *([Path(outputs_path(path))] if argument == "record" else ())):
        try:
            require_own(os.lstat(file), file)
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise ValueError(f"{argument}={str(file)!r} is not used: {error.strerror}") from None
    return path


def _text(argument: str, value: object, accepted: str = "a path") -> str:
    """Return a path as text.

    Raises:
        TypeError: The value is not a path, or is a `bytes` path.
        ValueError: The path begins with `~`.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be {accepted}, got {value!r}")
    if text.split("/")[0] == "~":
        raise ValueError(
            f"{argument}: '~' in {text!r} is not expanded; write os.path.expanduser({text!r})"
        )
    return text


def _uid(value: object) -> str:
    if not isinstance(value, str) or not value or value.startswith(".") or set(value) & {"/", "\0"}:
        raise ValueError(
            "uid must be a non-empty string that does not contain '/' or a null character and does "
            f"not start with '.', got {value!r}"
        )
    try:
        size = len(os.fsencode(value))
    except UnicodeEncodeError as error:
        raise ValueError(f"uid must be a valid file name, got {value!r}") from error
    if size > LONGEST_UID:
        raise ValueError(
            f"uid must have at most {LONGEST_UID} bytes because file names begin with it, got "
            f"{size}: {value!r}"
        )
    return value


def _progress(value: object) -> bool | Literal["lines"] | Progress:
    if isinstance(value, bool | Progress) or value == "lines":
        return value
    raise TypeError(f'progress must be True, False or "lines", got {value!r}')


def _clock(value: object) -> Clock:
    if not all(hasattr(value, name) for name in ("time", "monotonic", "call_at")):
        raise TypeError(f"clock must have the methods time, monotonic and call_at, got {value!r}")
    return cast("Clock", value)


def _profile(value: object) -> TaskDefaults:
    if not isinstance(value, TaskDefaults):
        raise TypeError(f"profile must be resolved by WorkflowEngine.create, got {value!r}")
    return value


def _option(default: Any, description: str, check: Callable[[Any], Any] | None = None) -> Any:
    """Return a dataclass field for an option.

    Args:
        default: The default value, which is not checked.
        description: The help text.
        check: Function that converts the user's value, or raises an error; `None` to accept all
            values.
    """
    return field(default=default, metadata={"help": description, "check": check})


class EngineSettings(TypedDict, total=False):
    """Types of the arguments of `WorkflowEngine.create`, for functions that pass them on.

    `EngineOptions` describes them.
    """

    backend: BackendLike | Sequence[BackendLike] | None
    dry_run: bool
    implicit_data: bool
    backends: Mapping[str, BackendLike] | Iterable[BackendLike] | None
    work_dir: str | os.PathLike[str] | None
    trace: str | os.PathLike[str] | None
    record: bool | str | os.PathLike[str]
    progress: bool | Literal["lines"] | Progress
    retries: RetryPolicy | int | Sequence[RetryPolicy] | None
    lost_retries: int
    timeout: float | str | None
    shell: str | Sequence[str]
    observers: Iterable[object]
    max_pending: int | None
    push_down: bool
    submit_timeout: float | str | None
    handle_signals: bool
    fail_fast: bool
    max_failures: int | None
    keep_going: bool
    keep_sandboxes: KeepSandboxes
    results_dir: str | os.PathLike[str] | None
    journal: bool | str | os.PathLike[str] | Journal
    resume: bool | Literal["auto"]
    journal_max_value: int | str | None
    uid: str | None
    clock: Clock | None
    profile: str | Literal[False] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of one engine, created by `of`. Each field's metadata contains its description."""

    backend: BackendLike | Sequence[BackendLike] | None = _option(
        None,
        "A backend object (started or not), a registered name, or a list of these. Tasks run on "
        "the first backend unless they name another or a plugin chooses one. Default: the local "
        "backend; for a dry run, the noop backend.",
    )
    dry_run: bool = _option(
        False,
        'Run nothing: every task completes immediately with "Dummy Output", and the summary '
        "contains the graph.",
        flag("dry_run"),
    )
    implicit_data: bool = _option(
        True,
        "If a task declares no output files, copy all files in its sandbox into the sandboxes of "
        "the tasks that receive its future as an argument.",
        flag("implicit_data"),
    )
    backends: Mapping[str, BackendLike] | Iterable[BackendLike] | None = _option(
        None, "Additional backends: a list, or a dict by names of your choice."
    )
    work_dir: Path | None = _option(
        None,
        "Directory of the sandboxes. Default: `.rhapsody/<UTC time>-<program>-<4 "
        "digits>/<engine uid>`. Its parent is the directory of this process's run, which also "
        "contains the log, and is created when it is first needed.",
        lambda value: directory("work_dir", value),
    )
    trace: Path | None = _option(
        None,
        "File for the events of all tasks, and for those that the program passes to `prof`, as "
        "JSON lines. Only its owner can read it; an existing file is replaced.",
        _trace,
    )
    record: bool | Path = _option(
        False,
        "Record the run: `True` for the file `run.jsonl` in the run's directory, or the path of "
        "another file, which is replaced. The record lists calls, attempts, times, errors and "
        "used resources as JSON lines, and can be read during the run. Only its owner can read it. "
        "`rhapsody run` records every run.",
        _record,
    )
    progress: bool | Literal["lines"] | Progress = _option(
        False,
        "Show progress on standard error, and a summary at the end. Progress is a live table on a "
        'terminal or in a notebook, and a line every ten seconds elsewhere or with `"lines"`. The '
        "output of a task appears above the table when the task ends; with lines, functions "
        "print immediately.",
        _progress,
    )
    retries: tuple[RetryPolicy, ...] | None = _option(
        None,
        "Number of further attempts after a failure, or a `RetryPolicy`, or a list of policies; "
        "the first policy in the list that matches a failure applies.",
        as_policies,
    )
    lost_retries: int = _option(
        3,
        "Number of further attempts after the loss of a worker, pilot or connection.",
        whole_number("lost_retries", 0),
    )
    timeout: float | None = _option(
        None,
        'Time limit of each attempt of a task: seconds, or text such as `"3 min"` or '
        '`"1h30m"`. Services run until they are canceled.',
        lambda value: seconds("timeout", value),
    )
    shell: Shell = _option(
        SHELL,
        'Shell for commands that are strings. `"bash"` stops at the first failed command, at a '
        "failure in a pipeline and at variables that are not set (`set -euo pipefail`). `sh` with "
        '`set -eu` is used for `"sh"`, and on a machine or in a container without bash. A list '
        'such as `["zsh", "-e", "-c"]` contains the words that precede the command.',
        shell_setting,
    )
    observers: Iterable[object] = _option(
        (), "Objects or modules whose functions are marked with `rhapsody.hookimpl`."
    )
    max_pending: int | None = _option(
        None,
        "Maximum number of unfinished tasks submitted to a backend at a time. Services and "
        "blocks do not count.",
        whole_number("max_pending", 1),
    )
    push_down: bool = _option(
        True,
        "On backends that can wait for dependencies, submit tasks before their dependencies have "
        "finished, and leave results on the backend until they are needed.",
        flag("push_down"),
    )
    submit_timeout: float | None = _option(
        300.0,
        "Time limit for a backend to accept a batch of tasks: seconds, or text such as "
        '`"3 min"`; `None` for no limit.',
        lambda value: None if value is None else seconds("submit_timeout", value),
    )
    handle_signals: bool = _option(
        True,
        "Shut down gracefully on SIGINT, SIGTERM and SIGHUP if this is the main thread.",
        flag("handle_signals"),
    )
    fail_fast: bool = _option(
        False, "Cancel all unfinished tasks at the first failure.", flag("fail_fast")
    )
    max_failures: int | None = _option(
        None,
        "Cancel all unfinished tasks after this number of failed tasks. Tasks that did not run "
        "because a dependency failed or walltime was insufficient do not count. Default: no limit.",
        whole_number("max_failures", 1),
    )
    keep_going: bool = _option(
        False,
        "If the exception of a task ends the `async with` block of the engine, finish the tasks "
        "that do not depend on the failed task, and then list all failures.",
        flag("keep_going"),
    )
    keep_sandboxes: KeepSandboxes = _option(
        "results",
        'Sandboxes to keep on disk: `"results"` (those of failed tasks, and the declared '
        'outputs of others), `"failed"` (those of failed tasks), `"all"` or `"none"`.',
        check_keep,
    )
    results_dir: Path | None = _option(
        None,
        "Base directory for relative destinations of output files, see `OutputFile`. "
        "Default: the current directory.",
        lambda value: directory("results_dir", value),
    )
    journal: JournalOption = _option(
        None,
        "File that stores results for `resume`, or `True` for the default file of this program and "
        "its arguments, `.rhapsody/journals/<program>-<digits>.sqlite`. Only the user can access "
        "the file. On a local file system, several engines can use it at the same time.",
    )
    resume: bool | Literal["auto"] = _option(
        "auto",
        "Reuse the results in the journal instead of running the same tasks again; with "
        '`"auto"`, only if the last run with this journal did not succeed.',
    )
    journal_max_value: int | str | None = _option(
        None,
        'Size limit of a result in the journal, in bytes or as text such as `"16 MiB"`. It applies '
        "to the pickled result and to the object in memory, as measured by `sys.getsizeof`. Larger "
        "results are not recorded. Default: no limit.",
    )
    uid: str | None = _option(
        None,
        "Uid of the engine. No other engine in this process or in `work_dir` may use it at the "
        "same time. Sandboxes of an earlier run with the same uid are not reused. Default: a "
        "random uid.",
        _uid,
    )
    clock: Clock | None = _option(
        None, "Clock for the engine to use, for tests and simulations.", _clock
    )
    profile: TaskDefaults | None = _option(
        None,
        "Name of a profile in `rhapsody.toml`, see the page about profiles, or `False` to ignore "
        "these files. Default: `RHAPSODY_PROFILE`, or the `default_profile` of a file.",
        _profile,
    )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EngineOptions:
        """Check options and fill in defaults.

        Returns:
            The checked options.

        Raises:
            TypeError: A value is of the wrong type.
            ValueError: A value is out of range, or two options contradict each other.
            FileNotFoundError: A path is relative and the current directory was removed.
        """
        values = {}
        for option in fields(cls):
            value = given.get(option.name, option.default)
            check = None if value is option.default else option.metadata["check"]
            values[option.name] = value if check is None else check(value)
        if values["fail_fast"]:
            if values["keep_going"]:
                raise ValueError(
                    "fail_fast=True and keep_going=True contradict each other; pass only one of "
                    "them"
                )
            if values["max_failures"] not in (None, 1):
                raise ValueError(
                    f"fail_fast=True and max_failures={values['max_failures']} contradict each "
                    "other; pass only one of them"
                )
            values["max_failures"] = 1
        values["journal"] = checked_journal(
            values["journal"], values["resume"], values["journal_max_value"]
        )
        return cls(**values)

    def changed(self) -> Mapping[str, Any]:
        """Return the options that differ from their defaults, with the name of the profile."""
        changed = {
            option.name: value
            for option in fields(self)
            if (value := getattr(self, option.name)) is not option.default
            and value != option.default
        }
        if self.profile is not None:
            changed["profile"] = self.profile.profile
        if changed.get("profile") is None:
            changed.pop("profile", None)
        return MappingProxyType(changed)


OPTIONS: Mapping[str, Field[Any]] = {option.name: option for option in fields(EngineOptions)}
"""Fields of `EngineOptions` by name, in the order of the signature of `WorkflowEngine.create`."""
