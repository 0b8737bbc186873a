"""No module imports one that needs it, and what counts such things counts right."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.counting import checkouts, imports

ROOT = Path(__file__).parents[2]


def written(root: Path, **files: str) -> dict[str, imports.Source]:
    """Modules of a package `p` with these texts."""
    (root / "p").mkdir()
    (root / "p/__init__.py").touch()
    for name, text in files.items():
        (root / f"p/{name}.py").write_text(text)
    return imports.sources(root)


def test_no_module_imports_one_that_needs_it() -> None:
    knots = imports.knots(imports.graph(imports.packages(ROOT)))
    assert knots == [], "modules that import each other, in functions and for types as well"


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
def test_every_way_to_import_a_module_ties_a_knot(tmp_path: Path, text: str) -> None:
    modules = written(tmp_path, a=text, b="from p import c", c="import p.a", d="import p.a")
    assert imports.knots(imports.graph(modules)) == [["p.a", "p.b", "p.c"]]


def test_a_name_that_a_package_exports_counts_as_an_import_of_its_module(tmp_path: Path) -> None:
    modules = written(tmp_path, a="from p import x", b="import p.a")
    (tmp_path / "p/__init__.py").write_text("from p.b import x")
    assert imports.knots(imports.graph(modules)) == []
    imports.sources.cache_clear()
    modules = imports.sources(tmp_path)
    assert imports.knots(imports.graph(modules)) == [["p.a", "p.b"]]


def test_two_knots_that_share_no_module_are_two(tmp_path: Path) -> None:
    modules = written(tmp_path, a="import p.b", b="import p.a, p.c", c="import p.d", d="import p.c")
    assert imports.knots(imports.graph(modules)) == [["p.a", "p.b"], ["p.c", "p.d"]]


def test_what_a_backend_uses_of_core_beyond_the_interface_is_found(tmp_path: Path) -> None:
    text = """
from rhapsody.backends.base import ManagedBackend, _hidden
from rhapsody.backends.local.worker import pack_error
from rhapsody import WorkflowEngine
class Backend(ManagedBackend):
    def run(self):
        return self._own, self._open
class Other:
    def run(self):
        return self._open
"""
    texts = {
        "backend.py": text,
        "docs/plugins/versions.md": "| `rhapsody` | all |\n| `rhapsody.backends.base` | all |\n",
        "packages/rhapsody-core/src/rhapsody/backends/base.py": "def _open(): ...",
    }
    for name, each in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(each)
    files = {"backend": imports.sources(tmp_path)["backend"]}
    assert imports.private_imports(tmp_path, files) == [
        "backend.py:2 rhapsody.backends.base",
        "backend.py:3 rhapsody.backends.local.worker",
    ]
    assert imports.private_attributes(tmp_path, files) == ["backend.py:7 _open"]


def test_calls_and_files_of_one_task_are_counted() -> None:
    routes = ("benchmarks.counting.routes", "threads", "--tasks", "5")
    found = checkouts.measured(ROOT, *routes, counted=True)["user"]
    calls = {name.rpartition(":")[2]: times for name, times in found["functions"].items()}
    assert calls["TaskFunction.__call__"] == 1
    assert any(file.endswith("rhapsody/engine/task_function.py") for file in found["files"])
