"""Settings of task functions, checked when the user passes them to a decorator or to `options`.

To add a setting, add a field to `TaskSettings` and, with its check, to `Settings`. If backends need
it, also add a key to `rhapsody.task.TaskDescription`, and set the key in `task_function` if it is
the same for every call, or in `task_builder` if it depends on the call or the attempt. If some
backends may not support it, add a field to `Capabilities`, a check to `BackendHandle.lacking` and a
test to the conformance kit. If the engine must handle each attempt of tasks with this setting,
exclude them in `PushDown`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, TypedDict, cast

from rhapsody import environments
from rhapsody.masking import remember
from rhapsody.resources import Resources, builtin_number, changed_fields, seconds
from rhapsody.shells import Shell, shell_setting
from rhapsody.spelling import similar, suggestion
from rhapsody.task import RetryPolicy, as_policies, is_async

NO_FALLBACK: Any = object()
"""Default of `fallback`. It cannot be `None`, because `None` is a valid fallback."""

_LIMIT = re.compile(r"\s*([^:\s][^:]*?)\s*:\s*(\d+)\s*")
_READY = re.compile(r"(stdout|file|tcp):(.+)", re.DOTALL)


class TaskSettings(TypedDict, total=False):
    """Keyword arguments of the decorators and of `task.options`, all optional.

    Attributes:
        service: True for a service: a task that runs until it is canceled, and whose future is
            done as soon as the service is ready. Default `False`.
        name: The name shown in errors, events and summaries. Default: the function's name.
        backend: Name of the attached backend that runs the task. Default: the choice of a plugin,
            otherwise the engine's first backend.
        other_backends: Names of the attached backends that the task moves to, in this order, when
            it has no attempts left on the current one; attempts are counted anew on each backend.
            If a backend becomes unavailable, the task moves on immediately. After a failure that
            `retries` does not match, the task is not tried on another backend. Default: none.
        resources: A `Resources`, or a dict of its fields; or a callable that returns one of these,
            called on the engine's loop with the attempt's number (from 1). Default: one core.
        retries: The number of further attempts after a failure, or a `RetryPolicy`, or a list of
            policies; the first policy that matches a failure applies. Default: the engine's.
        lost_retries: The number of further attempts after the loss of a worker, pilot or
            connection. Default: the engine's.
        timeout: Time limit of each attempt, from its start: seconds, or text such as `"3 min"` or
            `"1h30m"`. Default: the engine's. Not for services; see `ready_timeout`.
        cache: True if plugins may look up and record the result. Default `True`.
        version: A string that replaces the function's code in the key of a recorded result, so
            that the result is reused until the version changes, even if the code changes.
        environment: Variables to add to the task's environment.
        shell: The shell for a command that is a string. `"bash"` stops at the first failed command,
            at a failure in a pipeline and at variables that are not set (`set -euo pipefail`).
            `sh` with `set -eu` is used for `"sh"`, and on a machine or in a container without
            bash. A list such as `["zsh", "-e", "-c"]` contains the words that precede the
            command. Default: the engine's. Not for functions.
        stdin: Text for an executable's standard input.
        cwd: An existing directory in which an executable runs instead of its sandbox. A relative
            path starts at the directory that was current when the engine was created. Input
            files are still linked into the sandbox, and output files are expected there; in the
            command, `f"{file}"` is the absolute path of a file. Not for functions.
        container: The container image in which a task runs: `"docker://python:3.12"`, or the
            path of an image file or directory. Apptainer, Singularity, Podman or Docker runs it,
            whichever is found first. The sandbox, `cwd` and the input files have the same paths
            in the container. This and the next three settings apply to functions on backends
            with the capability `function_environments`.
        conda: The name or path of the conda environment in which a task runs. A relative path must
            contain a slash.
        venv: The path of the virtual environment in which a task runs.
        modules: The environment modules to load, such as `["gcc/12", "openmpi"]`, before a task
            and its `container`, `conda` or `venv` start.
        capture: `True` captures the task's output, `False` does not, and `"files"` stores it in
            files and captures their paths instead. Default `True`.
        ready: The readiness condition of a service, which also determines the service's result:
            `"stdout:REGEX"` (the first group of the match, or the whole match), `"file:NAME"` (the
            file's path), `"tcp:PORT"` (`(host, port)`; no other program may be listening on this
            port when the service starts), `"tcp"` (the same with a free port on the service's host,
            which replaces the literal `{port}` in the command and is passed in the environment
            variable `PORT`), or a synchronous or asynchronous callable that receives the task's
            description, waits until the service is ready and returns the result. Default: the
            service is ready as soon as it runs.
        ready_timeout: Time limit for a service to become ready, in seconds or as text. Default 60.
        restarts: The maximum number of restarts of a service that was ready, and then was lost or
            ended without being canceled; each start is another attempt. Dependents that have not
            started wait until the service is ready again, and receive its new value. Default 0.
        after: Futures to wait for without using their values.
        implicit_data: False if the task needs only the values of the futures in its arguments, and
            no copies of the undeclared files that their tasks left. `True` requires an engine with
            `implicit_data=True`. Default: the engine's.
        limit: A named limit, or a list of these. `"license:2"` allows two of the engine's tasks
            with this limit to run at once.
        fallback: The result to use when every attempt has failed, or a callable that the engine
            calls on its loop with the exception and that returns the result.
        priority: Ready tasks with a higher priority are submitted first. Default 0.
        task_description: Backend-specific settings; the `task_description` of a call takes
            precedence.
    """

    service: bool
    name: str | None
    backend: str | None
    other_backends: str | Iterable[str]
    resources: Resources | Mapping[str, Any] | Callable[[int], Resources | Mapping[str, Any]] | None
    retries: RetryPolicy | int | Sequence[RetryPolicy] | None
    lost_retries: int
    timeout: float | str | None
    cache: bool
    version: str | None
    environment: Mapping[str, str] | None
    shell: str | Sequence[str] | None
    stdin: str | None
    cwd: str | os.PathLike[str] | None
    container: str | os.PathLike[str] | None
    conda: str | os.PathLike[str] | None
    venv: str | os.PathLike[str] | None
    modules: str | Iterable[str] | None
    capture: bool | Literal["files"]
    ready: str | Callable[..., Any] | None
    ready_timeout: float | str
    restarts: int
    after: Iterable[asyncio.Future[Any]]
    implicit_data: bool | None
    limit: str | Iterable[str] | None
    fallback: Any
    priority: int
    task_description: dict[str, Any]


def specific_settings(value: object) -> dict[str, Any]:
    """Check and copy a `task_description` given by the user.

    Returns:
        A copy of the settings.

    Raises:
        TypeError: The value is not a dict.
    """
    if not isinstance(value, dict):
        raise TypeError(
            "task_description must be a dict of the backend's own settings, "
            f"got {type(value).__name__}: {value!r}"
        )
    return dict(value)


def flag(name: str) -> Callable[[object], bool]:
    """Return a function that accepts only `True` and `False`; its error names the setting."""

    def check(value: object) -> bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
        return value

    return check


def _text(name: str) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {value!r}")
        if name == "name" and value is not None and not (value.strip() and value.isprintable()):
            raise ValueError(f"name must be one line of printable text, got {value!r}")
        return value

    return check


def whole_number(name: str, least: int | None) -> Callable[[object], int]:
    """Return a function that accepts only whole numbers.

    Args:
        name: The name of the setting, for errors.
        least: The minimum, or `None` for no minimum.
    """

    def check(value: object) -> int:
        value = builtin_number(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        if least is not None and value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
        return value

    return check


def _other_backends(value: object) -> tuple[str, ...]:
    several = isinstance(value, Iterable) and not isinstance(value, str)
    names: tuple[Any, ...] = tuple(cast("Iterable[Any]", value)) if several else (value,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f'other_backends must be names of attached backends such as ("local",), got {value!r}'
        )
    return tuple(dict.fromkeys(names))


def _resources(value: Any) -> Resources | Callable[[int], Any] | None:
    if not callable(value) or isinstance(value, type):
        return Resources.of(value)
    if is_async(value):
        raise TypeError(
            "resources must be a Resources, a dict or a synchronous function that returns either, "
            f"got {value!r}"
        )
    given: Callable[[int], Any] = value
    return given


def _timeout(value: object) -> float | None:
    return None if value is None else seconds("timeout", value)


def _ready_timeout(value: object) -> float:
    return seconds("ready_timeout", value)


def _environment(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"environment must be a dict of strings, got {type(value).__name__}")
    for key, content in value.items():
        if not (isinstance(key, str) and isinstance(content, str)):
            got = f"{type(content).__name__} for {key!r}"  # no values: they may be secret
            raise TypeError(f"environment must map strings to strings, got {got}")
        if not key or "=" in key or "\0" in key:
            shown = re.sub("=.*", "=...", key, flags=re.S)
            raise ValueError(f"environment: {shown!r} is not a valid variable name")
        if "\0" in content:
            raise ValueError(f"environment: the value of {key!r} contains a null character")
    remember(value)
    return dict(value)


def _shell(value: object) -> Shell | None:
    return None if value is None else shell_setting(value)


def _cwd(value: object) -> str | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise TypeError(f"cwd must be the path of a directory, got {value!r}")
    if not path or "\0" in path:
        raise ValueError(f"cwd must be the path of a directory, such as '.', got {value!r}")
    return path


def _capture(value: object) -> bool | Literal["files"]:
    if isinstance(value, bool) or value == "files":
        return value
    raise TypeError(f'capture must be True, False or "files", got {value!r}')


def _ready(value: object) -> str | Callable[..., Any] | None:
    if value is None or value == "tcp" or callable(value):
        return value
    if isinstance(value, str):
        match = _READY.fullmatch(value)
        if match is None:
            raise ValueError(
                'ready must be "stdout:REGEX", "file:NAME", "tcp", "tcp:PORT" or a callable, '
                f"got {value!r}"
            )
        kind, rest = match.groups()
        if kind == "tcp" and not (rest.isdecimal() and 0 < int(rest) < 65536):
            raise ValueError(f'ready="tcp:PORT" needs a port from 1 to 65535, got {rest!r}')
        if kind == "stdout":
            try:
                re.compile(rest)
            except re.error as error:
                raise ValueError(f"ready: {rest!r} is not a regular expression: {error}") from None
        return value
    raise TypeError(f"ready must be a string or a callable, got {value!r}")


def _implicit_data(value: object) -> bool | None:
    return None if value is None else flag("implicit_data")(value)


def _after(value: object) -> tuple[asyncio.Future[Any], ...]:
    if asyncio.isfuture(value):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise TypeError(f"after must be a list of futures, got {value!r}")
    futures = tuple(value)
    for future in futures:
        if not asyncio.isfuture(future):
            raise TypeError(f"after must contain only futures, got {future!r}")
    return tuple(dict.fromkeys(futures))


def _limit(value: object) -> tuple[tuple[str, int], ...]:
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Iterable):
        raise TypeError(
            f'limit must be a string such as "license:2" or a list of these, got {value!r}'
        )
    limits: dict[str, int] = {}
    for text in texts:
        match = _LIMIT.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[2]) < 1:
            raise ValueError(
                f'limit must look like "license:2", with a size of at least 1, got {text!r}'
            )
        name, size = match[1], int(match[2])
        if limits.setdefault(name, size) != size:
            raise ValueError(
                f"limit {name!r} must have one size, got {name}:{limits[name]} and {name}:{size}"
            )
    return tuple(sorted(limits.items()))


def _fallback(value: Any) -> Any:
    if is_async(value):
        raise TypeError(
            f"fallback must be a value or a synchronous function that returns one, got {value!r}; "
            "for an asynchronous fallback, await the task in a block and catch its exception there"
        )
    return value


def _setting(default: Any, check: Callable[[Any], Any]) -> Any:
    """Return a dataclass field for a setting.

    Args:
        default: The default value, which is not checked.
        check: Function that converts the user's value, or raises an error.
    """
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked settings of a task function; see `TaskSettings`.

    A default of `None` means that the user has not set a value. `specific` is the setting
    `task_description`.
    """

    service: bool = _setting(False, flag("service"))
    name: str | None = _setting(None, _text("name"))
    backend: str | None = _setting(None, _text("backend"))
    other_backends: tuple[str, ...] = _setting((), _other_backends)
    resources: Resources | Callable[[int], Any] | None = _setting(None, _resources)
    retries: tuple[RetryPolicy, ...] | None = _setting(None, as_policies)
    lost_retries: int | None = _setting(None, whole_number("lost_retries", 0))
    timeout: float | None = _setting(None, _timeout)
    cache: bool = _setting(True, flag("cache"))
    version: str | None = _setting(None, _text("version"))
    environment: Mapping[str, str] | None = _setting(None, _environment)
    shell: Shell | None = _setting(None, _shell)
    stdin: str | None = _setting(None, _text("stdin"))
    cwd: str | None = _setting(None, _cwd)
    container: str | None = _setting(None, environments.path_setting("container"))
    conda: str | None = _setting(None, environments.path_setting("conda"))
    venv: str | None = _setting(None, environments.path_setting("venv"))
    modules: tuple[str, ...] = _setting((), environments.modules)
    capture: bool | Literal["files"] = _setting(True, _capture)
    ready: str | Callable[..., Any] | None = _setting(None, _ready)
    ready_timeout: float = _setting(60.0, _ready_timeout)
    restarts: int = _setting(0, whole_number("restarts", 0))
    after: tuple[asyncio.Future[Any], ...] = _setting((), _after)
    implicit_data: bool | None = _setting(None, _implicit_data)
    limit: tuple[tuple[str, int], ...] = _setting((), _limit)
    fallback: Any = _setting(NO_FALLBACK, _fallback)
    priority: int = _setting(0, whole_number("priority", None))
    specific: Mapping[str, Any] = field(default_factory=dict, metadata={"check": specific_settings})

    def changed(self, given: Mapping[str, Any]) -> Settings:
        """Return a copy of these settings with the given changes, which are checked first.

        Raises:
            TypeError: A setting is unknown, or a value is of the wrong type.
            ValueError: A value is out of range.
        """
        changes = {}
        for name, value in given.items():
            check = CHECKS.get(name)
            if check is None:
                hint = suggestion(name, CHECKS)
                if name in Resources.__dataclass_fields__:
                    hint = f"; write resources={{{name!r}: ...}}"
                raise TypeError(
                    f"unknown setting {name!r}; valid settings: {', '.join(sorted(CHECKS))}{hint}"
                )
            changes["specific" if name == "task_description" else name] = check(value)
        return dataclasses.replace(self, **changes)


CHECKS: dict[str, Callable[[Any], Any]] = {
    "task_description" if each.name == "specific" else each.name: each.metadata["check"]
    for each in dataclasses.fields(Settings)
}
"""Check of each setting, by the name that users write."""

NOT_FOR_SERVICES = frozenset({"resources", "limit"})
"""Settings whose defaults do not apply to services, which mostly wait."""


class Override(NamedTuple):
    """Settings of a profile that replace those in the code of some tasks.

    Attributes:
        pattern: A pattern of `fnmatch` for the names of the tasks.
        settings: The settings.
        source: The file and the line.
    """

    pattern: str
    settings: Mapping[str, Any]
    source: str


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """Settings of tasks from a profile; see `rhapsody.engine.configuration.profiles`.

    They are applied once, when a function is decorated.

    Attributes:
        profile: The name of the profile, or `None`.
        defaults: Settings for all tasks that do not set them in the code.
        overrides: Settings for tasks with certain names; later ones take precedence.
        plugins: The values of the options of plugins, by the plugin's distribution.
        option_sources: Where the values of engine options come from; see `rhapsody_observers`.
    """

    profile: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    option_sources: Mapping[str, str] = field(default_factory=dict)

    def complete(
        self, name: str, given: Mapping[str, Any], *, function: bool = False
    ) -> dict[str, Any]:
        """Return the settings of a task, completed with those of the profile.

        Args:
            name: The name of the task.
            given: The settings in the code, not checked yet.
            function: True if the task runs a function, for which defaults of environments do not
                apply.
        """
        skipped = NOT_FOR_SERVICES if given.get("service") else frozenset[str]()
        if function:
            skipped = skipped.union(environments.SETTINGS)
        merged = {key: value for key, value in self.defaults.items() if key not in skipped}
        for layer in (given, *(each.settings for each in self._overrides(name))):
            for key, value in layer.items():
                merged[key] = _merged(key, merged.get(key), value)
        return merged

    def sources(self, name: str) -> list[str]:
        """Return the files and lines of the overrides for a task."""
        return [each.source for each in self._overrides(name)]

    def misspelled(self, names: Iterable[str]) -> list[tuple[Override, str]]:
        """Return overrides that match no task, each with the task name that it resembles."""
        names = set(names)
        found = []
        for each in self.overrides:
            close = similar(each.pattern, names, cutoff=0.75)
            if close and not any(fnmatchcase(name, each.pattern) for name in names):
                found.append((each, close[0]))
        return found

    def _overrides(self, name: str) -> list[Override]:
        return [each for each in self.overrides if fnmatchcase(name, each.pattern)]


def _merged(key: str, low: Any, high: Any) -> Any:
    """Merge two values of a setting; the second takes precedence."""
    if key == "resources":
        return _merged_resources(low, high)
    if key in ("environment", "task_description"):
        if low is None or high is None:
            return low if high is None else high
        if isinstance(low, Mapping) and isinstance(high, Mapping):
            return {**low, **high}
    return high


def _merged_resources(low: Any, high: Any) -> Any:
    """Return resources with the fields of two values of the setting `resources`.

    In a `Resources`, fields with the default value count as not set.
    """
    if low is None or high is None:
        return low if high is None else high
    if _is_function(low):
        return lambda attempt: _unless_none(low(attempt), lambda one: _merged_resources(one, high))
    if _is_function(high):
        return lambda attempt: _unless_none(high(attempt), lambda one: _merged_resources(low, one))
    lower, higher = _fields(low), _fields(high)
    return high if lower is None or higher is None else {**lower, **higher}


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type) and not is_async(value)


def _unless_none(value: Any, call: Callable[[Any], Any]) -> Any:
    return None if value is None else call(value)


def _fields(value: object) -> dict[str, Any] | None:
    """Return the fields of a value of `resources`, or `None` if the value is invalid."""
    if isinstance(value, Resources):
        return changed_fields(value)
    return dict(value) if isinstance(value, Mapping) else None
