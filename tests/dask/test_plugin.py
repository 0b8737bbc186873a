"""The README's table of capabilities, compared with the backend's declaration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rhapsody_dask.plugin import CLUSTER

README = Path(__file__).parents[2] / "packages" / "rhapsody-dask" / "README.md"


def test_the_readme_lists_the_declared_capabilities() -> None:
    text = README.read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    assert rows == {name: _in_words(value) for name, value in CLUSTER.as_dict().items()}


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else ", ".join(value) or "none"
