"""The plugins that are installed with core are plugins: what is moved out of core still works."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rhapsody
from tests._support.distributions import install

ROOT = Path(__file__).parents[3]
CORE = Path(rhapsody.__file__).parent
PLUGINS = {
    name: CORE / "builtin" / f"{name}{end}"
    for name, end in {
        "journal": "",
        "log": ".py",
        "progress": "",
        "record": "",
        "trace": ".py",
    }.items()
}


def sources(plugin: str) -> list[Path]:
    path = PLUGINS[plugin]
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_imports_neither_the_engine_nor_commands_nor_another_plugin(plugin: str) -> None:
    own = f"rhapsody.builtin.{plugin}"
    allowed = (own, "rhapsody.builtin.paths")
    found = set()
    for path in sources(plugin):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                found.add(node.module or "")
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
    wrong = [
        module
        for module in sorted(found)
        if re.match(r"rhapsody\.(builtin|engine|cli|staging|backends\.local)\b", module)
        and not module.startswith(allowed)
    ]
    assert wrong == []


def moved(site: Path) -> None:
    """Put core without the journal into a directory, and the journal as another distribution."""
    skip = shutil.ignore_patterns("__pycache__", "journal")
    shutil.copytree(CORE, site / "rhapsody", ignore=skip)
    shutil.copytree(CORE.parent / "rhapsody_guard", site / "rhapsody_guard")
    own = site / "rhapsody_journal"
    shutil.copytree(CORE / "builtin" / "journal", own, ignore=shutil.ignore_patterns("__pycache__"))
    for path in own.rglob("*.py"):
        text = path.read_text().replace("rhapsody.builtin.journal", "rhapsody_journal")
        path.write_text(
            text.replace("from rhapsody.builtin import journal", "import rhapsody_journal")
        )
    points = {name: f"rhapsody.builtin.{name}" for name in PLUGINS if name != "journal"}
    backends = dict.fromkeys(("local", "noop"), "rhapsody.backends.plugin")
    install(site, "rhapsody-core", version=rhapsody.__version__, backends=backends, plugins=points)
    install(site, "rhapsody-journal", plugins={"journal": "rhapsody_journal"})


def environment(*paths: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RHAPSODY_DISABLE_PLUGINS"}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rhapsody", "run", "wf.py", *arguments],
        capture_output=True,
        text=True,
        env=environment(site),
        timeout=120,
        check=False,
        cwd=site,
    )


SCRIPT = """
import os

async def main(flow):
    @flow.function_task
    def step(x):
        if x == 2 and not os.path.exists("good"):
            raise ValueError("not yet")
        return 7 * x

    print(await step(1), await step(2))
"""


def test_the_journal_resumes_as_a_separate_distribution(tmp_path: Path) -> None:
    moved(tmp_path)
    (tmp_path / "wf.py").write_text(SCRIPT)
    failed = run(tmp_path)
    assert failed.returncode == 1
    assert "results are kept; run the same command again to continue" in failed.stderr
    (tmp_path / "good").touch()
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, "7 14\n"), done.stderr
    assert "found 1 recorded result" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_journal_passes_tests_of_resuming_as_a_separate_distribution(tmp_path: Path) -> None:
    moved(tmp_path)
    arguments = (
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "tests/core/cli/test_recording.py",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        capture_output=True,
        text=True,
        env=environment(tmp_path, ROOT),
        timeout=1100,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


def test_without_the_journal_its_options_are_refused_and_others_work(tmp_path: Path) -> None:
    moved(tmp_path)
    shutil.rmtree(tmp_path / "rhapsody_journal")
    (info,) = tmp_path.glob("rhapsody_journal-*.dist-info")
    shutil.rmtree(info)
    (tmp_path / "wf.py").write_text(SCRIPT)
    (tmp_path / "good").touch()
    assert (done := run(tmp_path)).stdout == "7 14\n", done.stderr
    assert "2 done" in done.stderr
    refused = run(tmp_path, "-e", "journal=true")
    assert (refused.returncode, "unknown engine option" in refused.stderr) == (2, True)
    unknown = run(tmp_path, "--resume")
    assert (unknown.returncode, "unrecognized arguments" in unknown.stderr) == (2, True)
