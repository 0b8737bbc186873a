"""Descriptions of calls for observers: creates the `TaskCall` of each call.

Most calls have a few short arguments of plain types, which take a fast path. The part that depends
only on settings is computed once per task function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rhapsody.engine.configuration.settings import Settings
from rhapsody.engine.core.error_messages import MAX_CALL_LENGTH, Brief, call_text
from rhapsody.engine.core.record import TaskRecord
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.masking import (
    MIN_SECRET_LENGTH,
    Secrets,
    looks_secret,
    mask,
    merged,
    secrets_of,
    values_of,
)
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
    """Calls that have not been passed to the hooks yet, as rows of the fields of `TaskCall`."""

    def __init__(self) -> None:
        self._rows: list[Any] = []
        self._process: Secrets | None = None

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, record: TaskRecord, time: float) -> None:
        """Add a call that is made now. Its arguments may change or be released soon."""
        task, parent = record.call.task, record.parent
        shared: DescribedSettings | None = task.described
        if shared is None:
            shared = task.described = describe_settings(task)
        label = record.future_uid()
        text = None if record.call.kwargs else _plain(record.call.args)
        settings = shared.settings
        if record.call.specific:
            settings = {**settings, "task_description": _specific(record.call.specific)}
        self._rows += (
            label, task.name, task.kind,
            self._call(record, shared) if text is None else f"{task.name}({text})",
            time,
            None if parent is None else parent.future.uid,
            record.call.scope,
            _uids(record.call.dependencies) if record.call.dependencies else (),
            shared.resources, settings, shared.secrets,
        )  # fmt: skip

    def _call(self, record: TaskRecord, shared: DescribedSettings) -> str:
        if self._process is None:
            self._process = secrets_of()  # once per batch, because it reads all variables
        secrets = merged(shared.secrets, self._process)
        return call_text(record.call.task.name, record.call.args, record.call.kwargs, secrets)

    def take(self) -> list[Any]:
        """Return the values of all rows, one after another, and remove them from this object."""
        rows, self._rows, self._process = self._rows, [], None
        return rows


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
