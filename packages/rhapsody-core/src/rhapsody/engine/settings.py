"""Settings of task functions, checked where the user writes them.

A new setting is a field of `TaskSettings` and, with its check, of `Settings`. If backends
need it, it is also a key of `rhapsody.task.TaskDescription` with a row in docs/plugins/backends.md,
and it is set in `task_function` (the same for every call) or `task_builder` (depends on the call or
the attempt). If backends may lack it, it is a field of `Capabilities`, with a check in
`BackendHandle.lacking` and a test of the conformance kit. If the engine must see each end of such
a task, `PushDown` must not push it down.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, cast

from rhapsody.quantities import seconds
from rhapsody.resources import Resources
from rhapsody.retries import RetryPolicy, as_policies
from rhapsody.task import is_async

NO_FALLBACK: Any = object()
"""Stands for no `fallback`, because `None` may be one."""

_LIMIT = re.compile(r"\s*([^:\s][^:]*?)\s*:\s*(\d+)\s*")
_READY = re.compile(r"(stdout|file|tcp):(.+)", re.DOTALL)


class TaskSettings(TypedDict, total=False):
    """Keyword arguments of the decorators and of `task.options`, all optional.

    Attributes:
        service: The task runs until it is cancelled; its future resolves when it is
            ready. Default `False`.
        name: Shown in errors, events and reports. Default: the function's name.
        backend: The attached backend to run on. Default: what a plugin selects, else
            the engine's first one.
        other_backends: Attached backends to go on to, in this order, when the attempts on one
            are used up; on each they are counted anew. One that has gone away is left at once,
            and a failure that `retries` does not cover is not tried elsewhere. Default: none.
        resources: A `Resources`, or a dict of its fields; or a callable that gets the attempt's
            number (from 1), on the loop, and returns one of them. Default: one core.
        retries: How many more attempts a failed task gets, or a `RetryPolicy`, or several,
            of which the first that covers a failure counts it. Default: the engine's.
        lost_retries: How many more attempts it gets after its worker, pilot or
            connection was lost. Default: the engine's.
        timeout: Time that each attempt may run, from the moment it starts: seconds, or text
            such as `"3 min"` or `"1h30m"`. Default: the engine's. Not for services, see
            `ready_timeout`.
        cache: Whether plugins may look its result up and record it. Default `True`.
        version: Stands for the function's code wherever results are recorded.
        environment: Variables added to the task's environment.
        stdin: Text for an executable's standard input.
        cwd: The directory that an executable runs in, in place of its sandbox; relative to the
            current directory when the engine was made. It must be there. The sandbox is where it
            was: files given as arguments stand in the command as whole paths, `f"{file}"`, and
            promised files are looked for there. Not for functions.
        capture: `True` keeps what the task prints, `False` does not, `"files"`
            leaves it in files, whose paths take its place. Default `True`.
        ready: When a service is ready: `"stdout:REGEX"` (the result is the pattern's
            first group, or the whole match), `"file:NAME"` (the path), `"tcp:PORT"`
            (`(host, port)`; nothing else may listen there at the start), `"tcp"` (the
            same with a free port of the service's host, which takes the place of the
            literal `{port}` in the command and is in its variable `PORT`), or a
            callable, plain or asynchronous, that gets the task's description and waits
            by itself (its value). Default: as soon as it runs.
        ready_timeout: Time that a service may take to be ready, as for `timeout`. Default 60.
        restarts: How many times a service is started again that ends by itself after it was
            ready, or is lost; each is another attempt. Tasks that have not begun wait until it
            is ready again, and get what it says then. Default 0.
        after: Futures to wait for without taking their values.
        limit: Named limits such as `"licence:2"`, or a list of them: how many tasks
            under that name run at once in this engine.
        fallback: The result to use when every attempt has failed, or a callable
            that gets the exception, on the loop, and returns it.
        priority: Higher goes first among the tasks that are ready. Default 0.
        task_description: Settings in the backend's own words; a call's
            `task_description` is laid over it.
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
    stdin: str | None
    cwd: str | os.PathLike[str] | None
    capture: bool | Literal["files"]
    ready: str | Callable[..., Any] | None
    ready_timeout: float | str
    restarts: int
    after: Iterable[asyncio.Future[Any]]
    limit: str | Iterable[str] | None
    fallback: Any
    priority: int
    task_description: dict[str, Any]


def specific_settings(value: object) -> dict[str, Any]:
    """Check and copy a `task_description` given by the user.

    Raises:
        TypeError: Not a dict.
    """
    if not isinstance(value, dict):
        raise TypeError(
            "task_description must be a dict of the backend's own settings, "
            f"got {type(value).__name__}: {value!r}"
        )
    return dict(value)


def flag(name: str) -> Callable[[object], bool]:
    """Return a check for `True` or `False`; `name` appears in its error."""

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
            raise ValueError(f"name must be text on one line that can be read, got {value!r}")
        return value

    return check


def whole_number(name: str, least: int | None) -> Callable[[object], int]:
    """Return a check for a whole number of at least `least`; `name` appears in its errors."""

    def check(value: object) -> int:
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
            "resources must be a Resources, a dict or an ordinary function that returns one, "
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
            raise ValueError(f"environment: {shown!r} cannot name a variable")
        if "\0" in content:
            raise ValueError(f"environment: the value of {key!r} has a null character in it")
    return dict(value)


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


def _after(value: object) -> tuple[asyncio.Future[Any], ...]:
    if asyncio.isfuture(value):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise TypeError(f"after must be a list of futures, got {value!r}")
    futures = tuple(value)
    for future in futures:
        if not asyncio.isfuture(future):
            raise TypeError(f"after must hold futures only, got {future!r}")
    return tuple(dict.fromkeys(futures))


def _limit(value: object) -> tuple[tuple[str, int], ...]:
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Iterable):
        raise TypeError(f'limit must be like "licence:2" or a list of such, got {value!r}')
    limits: dict[str, int] = {}
    for text in texts:
        match = _LIMIT.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[2]) < 1:
            raise ValueError(f'limit must be like "licence:2" (at least 1), got {text!r}')
        name, size = match[1], int(match[2])
        if limits.setdefault(name, size) != size:
            raise ValueError(
                f"limit must give each name one size, got {name}:{limits[name]} and {name}:{size}"
            )
    return tuple(sorted(limits.items()))


def _fallback(value: Any) -> Any:
    if is_async(value):
        raise TypeError(
            f"fallback must be a value or an ordinary function that returns one, got {value!r}: "
            "for something asynchronous, await the task in a block and catch its error there"
        )
    return value


def _setting(default: Any, check: Callable[[Any], Any]) -> Any:
    """Describe a setting; `check` returns its value as the engine uses it, or raises."""
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked settings of a task function. `None` means the engine's default.

    Attributes named differently: `specific` is `task_description`.
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
    stdin: str | None = _setting(None, _text("stdin"))
    cwd: str | None = _setting(None, _cwd)
    capture: bool | Literal["files"] = _setting(True, _capture)
    ready: str | Callable[..., Any] | None = _setting(None, _ready)
    ready_timeout: float = _setting(60.0, _ready_timeout)
    restarts: int = _setting(0, whole_number("restarts", 0))
    after: tuple[asyncio.Future[Any], ...] = _setting((), _after)
    limit: tuple[tuple[str, int], ...] = _setting((), _limit)
    fallback: Any = _setting(NO_FALLBACK, _fallback)
    priority: int = _setting(0, whole_number("priority", None))
    specific: Mapping[str, Any] = field(default_factory=dict, metadata={"check": specific_settings})

    def changed(self, given: Mapping[str, Any]) -> Settings:
        """Return these settings with some of them replaced and checked.

        Raises:
            TypeError: An unknown setting, or a value of the wrong type.
            ValueError: A value out of range.
        """
        changes = {}
        for name, value in given.items():
            check = _CHECKS.get(name)
            if check is None:
                near = difflib.get_close_matches(name, _CHECKS, 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                if name in Resources.__dataclass_fields__:
                    hint = f" (write resources={{{name!r}: ...}})"
                raise TypeError(
                    f"unknown setting {name!r}{hint}; there are {', '.join(sorted(_CHECKS))}"
                )
            changes["specific" if name == "task_description" else name] = check(value)
        return dataclasses.replace(self, **changes)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "task_description" if each.name == "specific" else each.name: each.metadata["check"]
    for each in dataclasses.fields(Settings)
}
