"""Core names no plugin and no library of a plugin, except where it says what to install."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[3] / "packages/rhapsody-core/src/rhapsody"
NAMES = re.compile("dask|radical|raptor|psij|otel|wfcommons|dragon|bokeh|rocrate", re.IGNORECASE)
DATA = "known.py"
FORMER_PATHS = (
    "__init__.py",  # names for type checkers
    "backends/__init__.py",
    "backends/execution/dask_parallel.py",
    "backends/execution/dragon.py",
    "backends/execution/radical_pilot.py",
)
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)


def named(source: str) -> Iterator[str]:
    """Yield the tokens that contain one of the names, except in comments and docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_code = token.type not in _NO_CODE and token.start[0] not in docstrings
        if is_code and NAMES.search(token.string):
            yield f"line {token.start[0]}: {token.string}"


@pytest.mark.parametrize("path", sorted(str(each.relative_to(CORE)) for each in CORE.rglob("*.py")))
def test_only_one_module_of_core_names_plugins(path: str) -> None:
    found = list(named((CORE / path).read_text()))
    if path == DATA:
        assert found
    elif path not in FORMER_PATHS:
        assert not found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import dask", 1),
        ('x = "rhapsody-radical"', 1),
        ("def f():\n    '''Text about Dask.'''", 0),
        ("x = 1  # as in RAPTOR", 0),
        ("x = 1\n'''Text about\nDask.'''\nclass PsijError: pass", 1),
    ],
)
def test_the_check_itself_finds_names_in_code(source: str, count: int) -> None:
    assert len(list(named(source))) == count
