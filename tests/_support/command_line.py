"""Helpers for tests of `rhapsody run`: a working script, and a backend to run it on."""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests._support.distributions import BACKEND, declaration, install, unique
from tests._support.forked import rhapsody

Run = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs a script, with options of `rhapsody run`; `function=":name"` is what follows its path."""

SIMPLE = """
async def main(flow):
    @flow.function_task
    async def double(x):
        return 2 * x

    print("result", await double(await double(1)))
"""


def environment(site: Path) -> dict[str, str]:
    """Variables for a process that sees what is installed in a directory, and all of it."""
    drop = {"RHAPSODY_DISABLE_PLUGINS"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return {**kept, "PYTHONPATH": str(site)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script's text by `rhapsody run`, as `script.py` in the test's directory."""
    site = tmp_path / "site"
    site.mkdir()

    def start(script: str, *arguments: str, function: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        command = ("run", f"script.py{function}", *arguments)
        return rhapsody(*command, cwd=tmp_path, environment=environment(site))

    return start


def install_toy(tmp_path: Path, source: str = "") -> None:
    """Installs the backend `toy` where the fixture `run` finds it."""
    light, heavy = unique("light"), unique("heavy")
    spec = f"name='toy', import_path='{heavy}:Backend'"
    modules = {light: declaration(spec), heavy: source or BACKEND.format(name="toy")}
    install(tmp_path / "site", "toys", backends={"toy": light}, modules=modules)


def check_mistake(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    """Holds that a run ended with a message to the user that has these texts."""
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("rhapsody: ")
    for text in expected:
        assert text in done.stderr
