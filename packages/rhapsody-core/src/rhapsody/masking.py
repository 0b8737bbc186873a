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
    names = filter(looks_secret, os.environ)
    process = values_of({name: os.environ.get(name, "") for name in names})
    return merged(values_of(environment or {}), process)


def values_of(variables: Mapping[str, str]) -> Secrets:
    """Return the values of variables that are long enough to be masked."""
    pairs = [(value, name) for name, value in variables.items() if len(value) >= MIN_SECRET_LENGTH]
    return tuple(sorted(pairs, key=_by_length))


def _by_length(pair: tuple[str, str]) -> int:
    return -len(pair[0])


def merged(task: Secrets, process: Secrets) -> Secrets:
    """Return the values of a task's variables and those of this process, the longest first.

    A value may begin with another one. If the shorter one were replaced first, the rest of the
    longer one would remain in the text.
    """
    return tuple(sorted((*task, *process), key=_by_length)) if task else process


def mask(text: str, secrets: Iterable[tuple[str, str]]) -> str:
    """Return text in which each secret value is replaced with the `<NAME>` of its variable."""
    for value, name in secrets:
        text = text.replace(value, f"<{name}>")
    return text
