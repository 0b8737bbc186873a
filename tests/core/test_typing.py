"""Tests of type checkers on programs: overloads of calls, and the mistakes that they find.

The programs are in `typing/`: `accepted.py` says which types must be found, and every
ignored error in `refused.py` must be one.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("typing")

pytestmark = pytest.mark.timeout(600)  # a first run reads every stub there is


def needs(tool: str) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed here; `nox -s types` has it")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The programs where nothing but the installed package can be found."""
    place = tmp_path / "programs"
    shutil.copytree(PROGRAMS, place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


def test_mypy_finds_the_types_and_the_mistakes(programs: Path) -> None:
    needs("mypy")
    done = run("mypy", "--strict", "--config-file=", "accepted.py", "refused.py", cwd=programs)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_refuses_the_mistakes_where_they_are_not_ignored(programs: Path) -> None:
    needs("mypy")
    program = programs / "refused.py"
    text = program.read_text()
    expected = [n for n, line in enumerate(text.splitlines(), 1) if "# type: ignore" in line]
    program.write_text(text.replace("# type: ignore", "#"))
    done = run("mypy", "--strict", "--config-file=", "refused.py", cwd=programs)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert sorted(found) == expected


def test_pyright_finds_the_types_and_the_mistakes(programs: Path) -> None:
    needs("pyright")
    settings = {
        "include": ["."],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "reportUnusedVariable": "none",
        "reportUnusedFunction": "none",
        "reportUnusedCoroutine": "none",
    }
    (programs / "pyrightconfig.json").write_text(json.dumps(settings))
    done = run("pyright", "--pythonpath", sys.executable, "-p", ".", cwd=programs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors" in done.stdout


def test_pyright_refuses_the_mistakes_where_they_are_not_ignored(programs: Path) -> None:
    needs("pyright")
    program = programs / "refused.py"
    text = program.read_text()
    expected = [n for n, line in enumerate(text.splitlines(), 1) if "# type: ignore" in line]
    program.write_text(text.replace("# type: ignore", "#"))
    done = run(
        "pyright", "--outputjson", "--pythonpath", sys.executable, "refused.py", cwd=programs
    )
    report = json.loads(done.stdout)["generalDiagnostics"]
    found = {one["range"]["start"]["line"] + 1 for one in report if one["severity"] == "error"}
    assert sorted(found) == expected
