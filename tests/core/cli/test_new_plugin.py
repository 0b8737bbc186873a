"""`rhapsody new-plugin`: what is written, and that the plugin works."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rhapsody.cli import main
from rhapsody.plugins.specs import API_VERSION
from tests._support.distributions import install


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", "my-table"]) == 0
    return tmp_path / "rhapsody-my-table"


def test_it_writes_a_whole_distribution(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == [
        ".github/workflows/ci.yml",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "noxfile.py",
        "pyproject.toml",
        "src/rhapsody_my_table/__init__.py",
        "src/rhapsody_my_table/plugin.py",
        "src/rhapsody_my_table/py.typed",
        "tests/test_plugin.py",
    ]
    for name in files:
        text = (root / name).read_text()
        assert "$" not in text.replace("${{ matrix.python }}", ""), name
        if name.endswith(".py"):
            ast.parse(text)
            assert max(map(len, text.splitlines())) <= 100
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"rhapsody.plugins": {"my_table": "rhapsody_my_table.plugin"}}
    assert project["optional-dependencies"] == {"test": ["pytest>=8.4"]}
    plugin = (root / "src/rhapsody_my_table/plugin.py").read_text()
    assert f"rhapsody_api_version = {API_VERSION}  #" in plugin
    assert "--my-table-file tasks.csv" in (root / "README.md").read_text()


def test_its_tests_pass_when_it_is_installed(root: Path) -> None:
    plugins = {"my_table": "rhapsody_my_table.plugin"}
    install(root / "src", "rhapsody-my-table", plugins=plugins)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a b", "'a b' is not a valid name"),
        ("rhapsody-x", "rhapsody new-plugin x"),
        ("dask", "the distribution rhapsody-dask exists"),
        ("core", "the distribution rhapsody-core exists"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(
    capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert main(["new-plugin", name]) == 2
    assert said in capsys.readouterr().err
