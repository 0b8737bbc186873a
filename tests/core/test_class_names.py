"""The names of classes: each exists once, so that a search finds the class that is meant."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGES = Path(__file__).parents[2] / "packages"


def test_each_name_of_a_class_is_unique() -> None:
    found: Counter[str] = Counter()
    for path in PACKAGES.glob("*/src/**/*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        found.update(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert found
    assert [name for name, count in found.items() if count > 1] == []
