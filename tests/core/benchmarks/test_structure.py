"""Import cycles, and the script that measures the structure of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import checkouts, structure

ROOT = Path(__file__).parents[3]


def written(root: Path, **files: str) -> dict[str, Path]:
    """Write modules of a package `p` with these texts."""
    (root / "p").mkdir()
    (root / "p/__init__.py").touch()
    for name, text in files.items():
        (root / f"p/{name}.py").write_text(text)
    return structure.modules_below(root)


def test_no_modules_import_each_other() -> None:
    graph = structure.import_graph(structure.all_modules(ROOT))
    assert structure.cycles(graph) == [], "imports in functions and for type checkers count"


@pytest.mark.parametrize(
    "text",
    [
        "import p.b",
        "from p import b",
        "from . import b",
        "from .b import x",
        "def f():\n    from p.b import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.b",
    ],
)
def test_every_form_of_import_can_close_a_cycle(tmp_path: Path, text: str) -> None:
    modules = written(tmp_path, a=text, b="from p import c", c="import p.a", d="import p.a")
    assert structure.cycles(structure.import_graph(modules)) == [["p.a", "p.b", "p.c"]]


def test_a_name_that_a_package_exports_counts_as_an_import_of_its_module(tmp_path: Path) -> None:
    modules = written(tmp_path, a="from p import x", b="import p.a")
    assert structure.cycles(structure.import_graph(modules)) == []
    (tmp_path / "p/__init__.py").write_text("from p.b import x")
    assert structure.cycles(structure.import_graph(modules)) == [["p.a", "p.b"]]


def test_two_cycles_that_share_no_module_are_two(tmp_path: Path) -> None:
    modules = written(tmp_path, a="import p.b", b="import p.a, p.c", c="import p.d", d="import p.c")
    found = structure.cycles(structure.import_graph(modules))
    assert found == [["p.a", "p.b"], ["p.c", "p.d"]]


def test_comments_docstrings_and_blank_lines_are_no_code() -> None:
    text = '''"""Module."""

# A comment.
def f(
    x,
):
    """Docstring
    of two lines."""

    return (  # code
        x
    )
'''
    assert structure.code_lines(text) == {4, 5, 6, 10, 11, 12}
    assert structure.function_lengths(text) == [6]


def test_calls_and_modules_of_one_task_are_counted() -> None:
    found = checkouts.measured(ROOT, "benchmarks.structure", "--count-calls", "5")
    assert (
        found["functions"]["rhapsody/engine/functions/task_function.py:TaskFunction.__call__"] == 5
    )
    assert found["modules"] > 1
