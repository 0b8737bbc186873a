"""Helpers that run commands as a user does, without this process's settings."""

from __future__ import annotations

import os
import subprocess
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
CORE = ROOT / "packages" / "rhapsody-core"
DISTRIBUTIONS = sorted(path.name for path in ROOT.glob("packages/*"))
# Building and installing take a package index's time, not ours.
INSTALL_TIMEOUT = 900


def run(*command: str | Path, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs a command as a user does: nothing of this process's Python settings gets in.

    Python compiles what a test imports; pip would compile all that it installs.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PYTEST", "NOX", "RHAPSODY", "VIRTUAL_ENV"))
    }
    environment["PIP_COMPILE"] = "no"
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def check(*command: str | Path, cwd: Path, timeout: float = 120) -> str:
    """Runs a command that must succeed, and gives its standard output."""
    done = run(*command, cwd=cwd, timeout=timeout)
    shown = " ".join(map(str, command))
    assert done.returncode == 0, f"{shown}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def check_wheel(wheel: Path, package: Path) -> None:
    """Check that a wheel contains its package, the project's license, and nothing else."""
    source = package / "src"
    expected = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as opened:
        inside = set(opened.namelist())
    assert {name for name in inside if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def project(name: str) -> dict[str, Any]:
    """Return the metadata of a distribution."""
    text = (ROOT / "packages" / name / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["project"])


class Built(NamedTuple):
    """The files of one distribution."""

    sdist: Path
    wheel: Path


MakeVenv = Callable[..., Path]
"""Makes an environment with some requirements; gives its directory of programs."""

BuildWheels = Callable[..., list[Path]]
"""Builds the wheels of source trees, in their order."""
