"""Which variables of the environment hold secrets, as far as their names say so."""

from __future__ import annotations

import functools
import re

_SECRET = re.compile(
    r"SECRET|CREDENTIAL|PASSWORD|PASSWD|PASSPHRASE|(^|_)PASS(_|$)|TOKENS?(_|$)|KEYS?(_|$)", re.I
)


@functools.lru_cache(4096)
def looks_secret(name: str) -> bool:
    """Whether a variable's value is not to be shown or kept, such as that of `API_TOKEN`."""
    return _SECRET.search(name) is not None
