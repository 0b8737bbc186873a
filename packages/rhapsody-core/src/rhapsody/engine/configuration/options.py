"""Options of a workflow engine, each described once: name, type, default, check and help.

`WorkflowEngine.create` repeats the names, types and defaults in its signature, for editors and type
checkers; a test compares the two. `create` passes its arguments to `EngineOptions.of`, and the rest
of the engine receives the resulting object. The docstring of `create` and the page
`docs/reference/engine-options.md` are generated from the descriptions here.
`rhapsody.engine.configuration.defaults` completes the arguments of `create` with the options of the
command line and of a profile.

To add an option, add a field to `EngineOptions`, add an argument to `WorkflowEngine.create` and its
type to `EngineSettings`, and use it in the engine. Options that plugins implement, such as
`journal`, are declared by these plugins and have no field; see `rhapsody_engine_options`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypedDict, cast

from rhapsody.aio import Clock
from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.engine.configuration.settings import TaskDefaults, flag, whole_number
from rhapsody.errors import DataError
from rhapsody.fsutil import path_text
from rhapsody.plugins.manager import engine_options
from rhapsody.plugins.specs import EngineOption
from rhapsody.resources import seconds
from rhapsody.shells import DEFAULT as SHELL
from rhapsody.shells import Shell, shell_setting
from rhapsody.staging.sandboxes import check_keep
from rhapsody.task import RetryPolicy, as_policies

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
    text = path_text(argument, value)
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
    from rhapsody.sdk.runs import require_trusted

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


def _clock(value: object) -> Clock:
    if not all(hasattr(value, name) for name in ("time", "monotonic", "call_at")):
        raise TypeError(f"clock must have the methods time, monotonic and call_at, got {value!r}")
    return cast("Clock", value)


def _profile(value: object) -> TaskDefaults:
    if not isinstance(value, TaskDefaults):
        raise TypeError(f"profile must be resolved by WorkflowEngine.create, got {value!r}")
    return value


def _option(
    default: Any,
    description: str,
    check: Callable[[Any], Any] | None = None,
    *,
    is_path: bool = False,
) -> Any:
    """Return a dataclass field for an option; see `EngineOption`.

    Args:
        default: The default value, which is not checked.
        description: The help text.
        check: Function that converts the user's value, or raises an error; `None` to accept all
            values.
        is_path: True if the value is a path.
    """
    described = {"help": description, "check": check, "is_path": is_path}
    return field(default=default, metadata=described)


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
    progress: bool | Literal["lines"]
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
    journal: bool | str | os.PathLike[str]
    resume: bool | Literal["auto"]
    journal_max_value: int | str | None
    uid: str | None
    clock: Clock | None
    profile: str | Literal[False] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of one engine, created by `of`. Each field's metadata contains its description.

    The options that plugins implement are in `of_plugins`, by name.
    """

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
        is_path=True,
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
        is_path=True,
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
    of_plugins: Mapping[str, Any] = field(default_factory=dict)

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
        values: dict[str, Any] = {name: _value(each, given) for name, each in OPTIONS.items()}
        of_plugins = {name: _value(each, given) for name, each in engine_options().items()}
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
        _require_different_files(of_plugins)
        return cls(**values, of_plugins=of_plugins)

    def values(self) -> dict[str, Any]:
        """Return the values of all options by name."""
        return {**{name: getattr(self, name) for name in OPTIONS}, **self.of_plugins}

    def changed(self) -> Mapping[str, Any]:
        """Return the options that differ from their defaults, with the name of the profile."""
        options = all_options()
        changed = {
            name: value
            for name, value in self.values().items()
            if value is not options[name].default and value != options[name].default
        }
        if self.profile is not None:
            changed["profile"] = self.profile.profile
        if changed.get("profile") is None:
            changed.pop("profile", None)
        return MappingProxyType(changed)


OPTIONS: Mapping[str, EngineOption] = {
    option.name: EngineOption(name=option.name, default=option.default, **option.metadata)
    for option in fields(EngineOptions)
    if option.metadata
}
"""The options that the engine itself implements, by name."""


def all_options() -> Mapping[str, EngineOption]:
    """Return all options by name: those of the engine, then those that plugins implement."""
    return {**OPTIONS, **engine_options()}


def _require_different_files(values: Mapping[str, Any]) -> None:
    """Check that no two options of plugins name the same file.

    Raises:
        ValueError: Each of two plugins would replace what the other one writes.
    """
    names: dict[str, str] = {}
    for name, option in engine_options().items():
        if option.is_path and isinstance(value := values[name], str | os.PathLike):
            other = names.setdefault(os.path.realpath(value), name)
            if other != name:
                raise ValueError(
                    f"{other} and {name} must be different files, got {os.fspath(value)!r} for both"
                )


def _value(option: EngineOption, given: Mapping[str, Any]) -> Any:
    """Return the checked value of an option."""
    value = given.get(option.name, option.default)
    check = None if value is option.default else option.check
    return value if check is None else check(value)
