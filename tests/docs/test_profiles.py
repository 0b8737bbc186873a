"""The recipes of the page about profiles: all are checked, and those for one machine run.

The recipes for Slurm run in tests/dask/test_slurm.py and tests/radical/test_slurm.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rhapsody.engine.configuration.profiles import Value, active_profile
from tests._support.recipes import BLOCKS, PAGE, PROGRAM, SLURM, recipe


def rhapsody(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rhapsody", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("block", [*BLOCKS, *SLURM])
def test_every_file_on_the_pages_is_valid(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "rhapsody.toml").write_text(block)
    if block == BLOCKS[-1]:  # the user's file
        (tmp_path / "rhapsody").mkdir()
        (tmp_path / "rhapsody" / "rhapsody.toml").write_text(block)
        (tmp_path / "rhapsody.toml").write_text(recipe("hydra"))
    names = list(tomllib.loads(block)["profile"])
    assert names
    for name in names:
        assert active_profile(Value(name, place="the test")).name is not None


@pytest.mark.parametrize("name", ["laptop", "processes", "dask"])
def test_the_recipes_for_one_machine_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "rhapsody.toml").write_text(recipe(name))
    (tmp_path / "analysis.py").write_text(PROGRAM)
    done = rhapsody("run", "analysis.py", "--profile", name)
    assert (done.returncode, done.stdout) == (0, "285\n"), done.stderr


def test_the_outputs_on_the_page_are_those_of_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "me")
    page = PAGE.read_text()
    (tmp_path / "rhapsody.toml").write_text(BLOCKS[0])
    (shown,) = re.findall(r"^\$ rhapsody (config --profile .*)\n((?:.*\n)*?)```", page, re.M)
    printed = rhapsody(*shown[0].split()).stdout
    rows = {" ".join(line.split()) for line in printed.splitlines()}
    expected = {" ".join(line.split()) for line in shown[1].splitlines()} - {"..."}
    assert expected - rows == set()
    (mistake,) = re.findall(r"^rhapsody: rhapsody\.toml.*\n", page, re.M)
    (tmp_path / "rhapsody.toml").write_text(BLOCKS[0].replace("max_pending", "max_pendign"))
    (tmp_path / "analysis.py").write_text(PROGRAM)
    assert rhapsody("run", "analysis.py").stderr == mistake
