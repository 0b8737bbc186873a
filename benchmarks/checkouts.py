"""Checkouts of other revisions, and a function that runs our scripts with their packages."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def checkout(revision: str | None) -> Iterator[Path]:
    """Yield a directory with the files of a revision; `None` is the working tree.

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
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def measured(place: Path, module: str, *arguments: str) -> Any:
    """Run a module of this revision with the packages of a checkout; return the JSON it prints.

    The dependencies are those of the running interpreter.

    Raises:
        SystemExit: The module failed; its own message was printed.
    """
    folders = [str(folder) for folder in sorted(place.glob("packages/*/src"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed with the packages of {place}")
    return json.loads(done.stdout.splitlines()[-1])
