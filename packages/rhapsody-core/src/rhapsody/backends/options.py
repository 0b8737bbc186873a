"""Backends made from settings that a user wrote as text, `KEY=VALUE` with a TOML value.

`rhapsody run -b NAME -o KEY=VALUE` and commands of plugins share this.
"""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Iterable
from typing import Any

from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.backends.discovery import BackendRegistry
from rhapsody.errors import RhapsodyError
from rhapsody.plugins.specs import UsageError


def backend_from_options(name: str, options: Iterable[str]) -> BaseExecutionBackend:
    """Make a backend with the settings of a command line.

    Args:
        name: A registered backend's name.
        options: Texts such as `cores=2`. A key that the backend's class has no keyword for goes
            into its `resources`. The last value of a key counts.

    Raises:
        UsageError: There is no such backend, or it does not take a setting.
    """
    return make_backend(name, parse_options(options))


def parse_options(options: Iterable[str], flag: str = "-o") -> dict[str, Any]:
    """Return the values of `KEY=VALUE` texts by key; the last value of a key counts.

    Raises:
        UsageError: A text has another form, or its value is broken TOML.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            such = "cores=2" if flag == "-o" else "retries=2"
            raise UsageError(f"{flag} {option!r}: write KEY=VALUE, such as {flag} {such}")
        parsed[key] = _value(text.strip(), f"{flag} {option!r}")
    return parsed


def _value(text: str, option: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        # A bare word is a string. What begins as something else was meant as that.
        if text and (text[0] in "\"'[{" or "\n" in text):
            raise UsageError(f"{option}: the value is broken TOML: {error}") from None
        return text
    return found["value"] if len(found) == 1 else text


def make_backend(name: str, options: dict[str, Any]) -> BaseExecutionBackend:
    """Make a backend with settings that were parsed, see `backend_from_options`.

    Raises:
        UsageError: There is no such backend, or it does not take a setting.
    """
    try:
        cls = BackendRegistry.get_backend_class(name)
    except (ValueError, ImportError, TypeError) as error:
        raise UsageError(str(error)) from None
    parameters = inspect.signature(cls).parameters.values()
    keywords = [
        one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    resources: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for key, value in options.items():
        if key == "resources" and key in keywords:
            if not isinstance(value, dict):
                raise UsageError(f"-o resources: write resources={{cores = 2}}, got {value!r}")
            resources |= value
        elif key in keywords or any(one.kind is one.VAR_KEYWORD for one in parameters):
            given[key] = value
        elif "resources" in keywords:
            resources[key] = value
        else:
            takes = f"it takes {', '.join(keywords)}" if keywords else "it takes none"
            raise UsageError(f"backend {name!r} has no setting {key!r}; {takes}")
    if resources:
        given["resources"] = resources
    try:
        return cls(**given)
    except (TypeError, ValueError, ImportError, RhapsodyError) as error:
        meant = [difflib.get_close_matches(key, keywords, n=1) for key in resources]
        hint = next((f"; did you mean -o {close[0]}=...?" for close in meant if close), "")
        raise UsageError(f"backend {name!r}: {error}{hint}") from None
