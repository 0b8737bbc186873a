"""The recipes of the page about profiles."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "profiles.md"

BLOCKS: tuple[str, ...] = tuple(re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.M | re.S))
"""The files on the page: the introduction, the recipes, and the file of a user."""

PROGRAM: str = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)[0]
"""The program that the recipes run."""


def recipe(name: str) -> str:
    """Return the recipe with the profile of a name."""
    found = [block for block in BLOCKS[1:-1] if f"[profile.{name}]\n" in block]
    assert len(found) == 1, name
    return found[0]
