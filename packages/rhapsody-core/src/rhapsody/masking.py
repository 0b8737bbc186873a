"""Masking of secret values in texts that are shown or stored.

The values of the variables in a task's `environment=` are secret, and so are those of variables of
this process whose names look secret. In texts, each value is replaced with the variable's `<NAME>`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping

Secrets = tuple[tuple[str, str], ...]
"""Pairs of a secret value and the name of its variable, the longest value first."""

MIN_SECRET_LENGTH = 8
"""Minimum number of characters of a variable's value for the value to be masked."""

_SECRET = re.compile(
    r"SECRET|CREDENTIAL|PASSWORD|PASSWD|PASSPHRASE|(^|_)PASS(_|$)|TOKENS?(_|$)|KEYS?(_|$)", re.I
)


@functools.lru_cache(maxsize=1000)
def looks_secret(name: str) -> bool:
    """Return True if a variable's name, such as `API_TOKEN`, suggests that its value is secret."""
    return _SECRET.search(name) is not None


def secrets_of(environment: Mapping[str, str] | None = None) -> Secrets:
    """Return the values to mask: those of a task's variables and of this process.

    Args:
        environment: The task's variables; `None` for those of the process alone.
    """
    variables = dict(environment or {})
    for name in filter(looks_secret, os.environ):
        variables.setdefault(name, os.environ.get(name, ""))
    return values_of(variables)


def values_of(variables: Mapping[str, str]) -> Secrets:
    """Return the values of variables that are long enough to be masked."""
    pairs = [(value, name) for name, value in variables.items() if len(value) >= MIN_SECRET_LENGTH]
    return tuple(sorted(pairs, key=lambda pair: -len(pair[0])))


def mask(text: str, secrets: Iterable[tuple[str, str]]) -> str:
    """Return a text in which each secret value is replaced with its variable's `<NAME>`."""
    for value, name in secrets:
        text = text.replace(value, f"<{name}>")
    return text
