"""The recipes of the pages about profiles and about Slurm."""

from __future__ import annotations

import re
from pathlib import Path

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
PAGE = HOW_TO / "profiles.md"


def _blocks(page: Path, language: str) -> tuple[str, ...]:
    return tuple(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S))


BLOCKS: tuple[str, ...] = _blocks(PAGE, "toml")
"""The files on the page about profiles: the introduction, the recipes, and the file of a user."""

PROGRAM: str = _blocks(PAGE, "python")[0]
"""The program that the recipes run."""

SLURM: tuple[str, ...] = tuple(
    _blocks(HOW_TO / f"{name}.md", "toml")[0] for name in ("dask", "slurm")
)
"""The profiles on the pages about Slurm."""


def recipe(name: str) -> str:
    """Return the recipe with the profile of a name."""
    found = [block for block in (*BLOCKS[1:-1], *SLURM) if f"[profile.{name}]\n" in block]
    assert len(found) == 1, name
    return found[0]
