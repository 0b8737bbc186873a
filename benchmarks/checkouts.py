"""Checkouts of other revisions, with environments in which our scripts use their packages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def checkout(revision: str | None, distributions: Sequence[str] = ("core",)) -> Iterator[Path]:
    """Yield a directory with the files of a revision; `None` is the working tree.

    For another revision, its packages and their dependencies are installed in a new environment.

    Args:
        revision: The revision.
        distributions: The names of the packages to install, without `rhapsody-`.

    Raises:
        SystemExit: The revision does not exist.
    """
    if revision is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "checkout")
        git = ["git", "-C", str(ROOT), "worktree"]
        command = [*git, "add", "--quiet", "--detach", str(place), revision]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{revision!r} is not a revision of this repository")
        try:
            _install(place, [f"./packages/rhapsody-{each}" for each in distributions])
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def interpreter(place: Path) -> str:
    """Return the interpreter of a checkout's environment; for `ROOT`, that of this process."""
    return sys.executable if place == ROOT else str(place / ".venv/bin/python")


def variables(place: Path) -> dict[str, str]:
    """Return the environment variables with which a checkout's modules are imported."""
    folders = [str(folder) for folder in sorted(place.glob("packages/*/src"))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def _install(place: Path, packages: Sequence[str]) -> None:
    python = interpreter(place)
    uv = shutil.which("uv")
    make = [uv, "venv", "--quiet"] if uv else [sys.executable, "-m", "venv"]
    install = [uv, "pip", "install"] if uv else [python, "-m", "pip", "install"]
    for_uv = ["--python", sys.executable] if uv else []
    subprocess.run([*make, *for_uv, ".venv"], cwd=place, check=True)
    for_uv = ["--python", python] if uv else []
    editable = [word for package in packages for word in ("--editable", package)]
    subprocess.run([*install, "--quiet", *for_uv, *editable, "psutil"], cwd=place, check=True)
    # As pip does. Otherwise, each start compiles all modules if Python writes no byte code.
    compiled = [python, "-m", "compileall", "-q", "packages", ".venv"]
    subprocess.run(compiled, cwd=place, stdout=subprocess.DEVNULL, check=False)


def measured(place: Path, module: str, *arguments: str) -> Any:
    """Run a module of this revision with the packages of a checkout; return the JSON it prints.

    Raises:
        SystemExit: The module failed; its own message was printed.
    """
    command = [interpreter(place), "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=variables(place), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed with the packages of {place}")
    return json.loads(done.stdout.splitlines()[-1])
