"""Descriptions of calls for observers: creates the `TaskCall` of each call.

Most calls have a few short arguments of plain types, which take a fast path. The part that depends
only on settings is computed once per task function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from rhapsody.engine.error_messages import MAX_CALL_LENGTH, Brief, call_text
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.settings import Settings
from rhapsody.engine.task_function import TaskFunction
from rhapsody.masking import (
    MIN_SECRET_LENGTH,
    Secrets,
    looks_secret,
    mask,
    merged,
    secrets_of,
    values_of,
)
from rhapsody.plugins.specs import TaskCall
from rhapsody.resources import Resources, changed_fields
from rhapsody.task import RetryPolicy, TaskFuture

_OTHERWISE = frozenset({"name", "resources", "after", "environment", "stdin", "specific"})
"""Settings that other fields of a `TaskCall` contain, or that are shown in another form."""

_EXACT = frozenset({int, float, bool, type(None)})
"""Types whose values `repr` shows like `Brief`, except very long integers."""

_BIG = 10**38


@dataclass(frozen=True, slots=True)
class DescribedSettings:
    """The part of a `TaskCall` that all calls of a task function share.

    Attributes:
        resources: See `TaskCall`.
        settings: See `TaskCall`.
        secrets: See `TaskCall`.
    """

    resources: Mapping[str, Any]
    settings: Mapping[str, Any]
    secrets: Secrets


class CallRows:
    """Calls that have not been passed to the hooks yet, as rows of values in a flat list."""

    def __init__(self) -> None:
        self._rows: list[Any] = []
        self._process: Secrets | None = None

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, record: TaskRecord, monotonic: float) -> None:
        """Add a call that is made now. Its arguments may change or be released soon."""
        task, parent = record.task, record.parent
        shared = task.described
        if shared is None:
            shared = task.described = describe_settings(task)
        label = record.label = record.future.uid
        text = None if record.kwargs else _plain(record.args)
        call = self._call(record, shared) if text is None else f"{task.name}({text})"
        self._rows += (
            label, task, call, monotonic,
            None if parent is None else parent.future.uid,
            record.scope,
            _uids(record.dependencies) if record.dependencies else (),
            record.specific,
        )  # fmt: skip

    def _call(self, record: TaskRecord, shared: DescribedSettings) -> str:
        if self._process is None:
            self._process = secrets_of()  # once per batch, because it reads all variables
        secrets = merged(shared.secrets, self._process)
        return call_text(record.task.name, record.args, record.kwargs, secrets)

    def take(self, epoch: float, size: int) -> Iterator[tuple[TaskCall, ...]]:
        """Yield the descriptions of the calls in batches, and remove them from this object.

        Args:
            epoch: The difference between the times of day and the monotonic times.
            size: Maximum number of calls in a batch. The next batch is created only on request,
                because many new objects would trigger the garbage collector.
        """
        rows, self._rows, self._process = self._rows, [], None
        for first in range(0, len(rows), _COLUMNS * size):
            batch = iter(rows[first : first + _COLUMNS * size])
            yield tuple(
                _described(
                    label, task, call, epoch + time, block, scope, dependencies, specific,
                )
                for label, task, call, time, block, scope, dependencies, specific in zip(
                    *[batch] * _COLUMNS, strict=True
                )
            )  # fmt: skip


def _described(
    label: str,
    task: TaskFunction[Any, Any],
    call: str,
    time: float,
    block: str | None,
    scope: str | None,
    dependencies: tuple[str, ...],
    specific: Mapping[str, Any] | None,
) -> TaskCall:
    shared: DescribedSettings = task.described
    settings = shared.settings
    if specific:
        settings = {**settings, "task_description": _specific(specific)}
    described: TaskCall = _task_call(
        (
            label, task.name, task.kind, call, time, block, scope, dependencies,
            shared.resources, settings, shared.secrets,
        )
    )  # fmt: skip
    return described


_COLUMNS = 8
_task_call: Any = partial(tuple.__new__, TaskCall)  # without the frame of `TaskCall.__new__`


def _uids(dependencies: tuple[asyncio.Future[Any], ...]) -> tuple[str, ...]:
    return tuple(future.uid for future in dependencies if isinstance(future, TaskFuture))


def _plain(args: tuple[Any, ...]) -> str | None:
    """Return short arguments that contain no secrets as text, otherwise `None`."""
    texts = []
    for value in args:
        kind = type(value)
        if kind in _EXACT:
            if kind is int and not -_BIG < value < _BIG:
                return None
            texts.append(repr(value))
        elif kind is str and len(value) < MIN_SECRET_LENGTH:
            texts.append(repr(value))
        elif isinstance(value, TaskFuture):
            texts.append(f"<{value.uid}>")
        else:
            return None
    text = ", ".join(texts)
    return text if len(text) <= MAX_CALL_LENGTH else None


def describe_settings(task: TaskFunction[Any, Any]) -> DescribedSettings:
    """Return the part of a `TaskCall` that all calls of a task function share."""
    settings, environment = task.settings, task.settings.environment
    found = {
        each.name: _shown(value)
        for each in fields(Settings)
        if each.name not in _OTHERWISE
        and (value := getattr(settings, each.name)) is not each.default
        and value != each.default
    }
    if settings.retries is not None:
        found["retries"] = _retries(settings.retries)
    if settings.limit:
        found["limit"] = [f"{name}:{size}" for name, size in settings.limit]
    if callable(settings.resources):
        found["resources"] = _shown(settings.resources)
    if settings.stdin is not None:
        found["stdin"] = f"<{len(settings.stdin)} characters>"  # it may be secret
    if environment:
        found["environment"] = list(environment)
    if settings.specific:
        found["task_description"] = _specific(settings.specific)
    secrets = values_of(environment or {})
    return DescribedSettings(described_resources(settings.resources), found, secrets)


def described_resources(given: Resources | Callable[[int], Any] | None) -> dict[str, Any]:
    """Return the resources that differ from the defaults; empty if a function chooses them."""
    return changed_fields(given) if isinstance(given, Resources) else {}


def _shown(value: Any) -> Any:
    """Return the value of a setting as JSON represents it, a function as its name."""
    if type(value) in (str, *_EXACT):
        return value
    if isinstance(value, tuple):
        return [_shown(each) for each in value]
    if callable(value):
        name = getattr(value, "__qualname__", None)
        return f"<function {name}>" if isinstance(name, str) else f"<{type(value).__name__}>"
    return _brief(value)


def _brief(value: Any) -> str:
    secrets = secrets_of()
    return mask(Brief(secrets).repr(value), secrets)


def _retries(policies: tuple[RetryPolicy, ...]) -> Any:
    if len(policies) == 1 and policies[0] == RetryPolicy(policies[0].attempts):
        return policies[0].attempts
    return [
        {
            "attempts": policy.attempts,
            "wait": _shown(policy.wait),
            "on": [each.__name__ for each in _types(policy.on)],
        }
        for policy in policies
    ]


def _types(on: Any) -> tuple[type[BaseException], ...]:
    return (on,) if isinstance(on, type) else tuple(on)


def _specific(given: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(key): f"<{key}>" if looks_secret(str(key)) else _brief(value)
        for key, value in given.items()
    }
