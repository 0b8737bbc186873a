"""Fixtures of what users have: distributions from this tree, and clean environments."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.support import CORE, INSTALL_TIMEOUT, ROOT, BuildWheels, Built, MakeVenv, check


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree without what is not kept in it, as a fresh clone has it."""
    target = tmp_path_factory.mktemp("checkout") / "rhapsody"
    kept = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(kept, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # it may be deleted and not yet committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a directory that the first of pytest-xdist's processes makes, for all of them."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ  # each process has a directory below the shared
    directory = factory.getbasetemp().parent / name if parallel else factory.getbasetemp() / name
    done = directory.with_suffix(".done")
    with open(directory.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)  # what failed in another process
            make(directory)
            done.touch()
    return directory


@pytest.fixture(scope="session")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Core's sdist, and the wheel that is built from that sdist."""

    def build(out: Path) -> None:
        core = checkout / CORE.relative_to(ROOT)
        # The README's first command has pip build it in an environment of its own.
        command = (sys.executable, "-m", "build", "--no-isolation", core, "--outdir", out)
        check(*command, cwd=checkout, timeout=INSTALL_TIMEOUT)

    out = made_once(tmp_path_factory, "dist", build)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return Built(sdist, wheel)


def install(venv: Path, *requirements: str | Path) -> Path:
    """Make a clean environment with requirements, and return its directory of programs."""
    # virtualenv, a dependency of nox, copies its pip; venv would install pip each time.
    check(sys.executable, "-m", "virtualenv", venv, cwd=venv.parent, timeout=INSTALL_TIMEOUT)
    python = venv / "bin" / "python"
    # pip is what users have, and what the README's and the scaffold's commands run here.
    quick = (sys.executable, "-m", "uv", "pip", "install", "--python", python)
    usual = (python, "-m", "pip", "install")
    command = quick if importlib.util.find_spec("uv") else usual
    check(*command, "--quiet", *requirements, cwd=venv, timeout=INSTALL_TIMEOUT)
    return venv / "bin"


@pytest.fixture(scope="session")
def make_venv(tmp_path_factory: pytest.TempPathFactory) -> MakeVenv:
    """Makes a clean environment with the given requirements; gives its directory of programs."""
    return lambda *requirements: install(tmp_path_factory.mktemp("venv"), *requirements)


@pytest.fixture(scope="session")
def core_alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds core's wheel and what it needs."""
    venv = made_once(tmp_path_factory, "core-alone", lambda venv: install(venv, built.wheel))
    return venv / "bin"


@pytest.fixture(scope="session")
def build_wheels(tmp_path_factory: pytest.TempPathFactory) -> BuildWheels:
    """Builds wheels with hatchling, all in one process: it is quick."""

    def build(*sources: Path) -> list[Path]:
        out = tmp_path_factory.mktemp("wheels")
        build_all = (sys.executable, "-c", BUILD_ALL)
        names = check(*build_all, out, *sources, cwd=out, timeout=INSTALL_TIMEOUT).split()
        return [out / name for name in names]

    return build


@pytest.fixture(scope="session")
def kit(build_wheels: BuildWheels) -> Path:
    """The wheel of rhapsody-testing."""
    (wheel,) = build_wheels(ROOT / "packages" / "rhapsody-testing")
    return wheel


# The hook that every build tool calls (PEP 517). What hatchling prints goes elsewhere.
BUILD_ALL = """
import contextlib, os, sys
from hatchling.build import build_wheel
for source in sys.argv[2:]:
    os.chdir(source)
    with contextlib.redirect_stdout(sys.stderr):
        name = build_wheel(sys.argv[1])
    print(name)
"""
