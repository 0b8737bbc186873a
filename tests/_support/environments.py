"""Environments for tasks: virtual and conda environments, modules, and a tiny container."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rhapsody import TaskFuture
from tests._support.machine import exists
from tests._support.scripted import within

PREFIX = ["python", "-c", "import sys; print(sys.prefix, *sys.argv[1:])"]
"""A command that prints the environment of its Python, and its arguments."""

needs_modules = pytest.mark.skipif(
    not Path("/usr/share/modules/init/bash").exists(), reason="needs environment-modules"
)


def make_environment(path: Path) -> Path:
    venv.create(path, symlinks=True)
    return path


def make_conda_environment(path: Path) -> Path:
    """A directory with what conda environments have in common."""
    make_environment(path)
    (path / "conda-meta").mkdir()
    scripts = path / "etc/conda/activate.d"
    scripts.mkdir(parents=True)
    (scripts / "a.sh").write_text("words=(from bash); export ACTIVATED=${words[1]}\n")
    return path


def make_module(path: Path, name: str) -> None:
    """A module that sets the variable of its name, below `path`, which belongs in MODULEPATH."""
    (path / name).mkdir()
    (path / name / "1.0").write_text(f"#%Module1.0\nsetenv {name.upper()} {name}/1.0\n")


class Podman(NamedTuple):
    """A root file system that contains only busybox, and variables with which Podman runs it."""

    root: Path
    environment: dict[str, str]


@contextmanager
def working_podman() -> Iterator[Podman]:
    """A Podman that works on this machine, with its own storage; else the test is skipped."""
    busybox = shutil.which("busybox")
    if shutil.which("podman") is None or busybox is None:
        pytest.skip("needs podman and busybox-static")
    for name in ("apptainer", "singularity"):
        if (found := shutil.which(name)) is not None:
            pytest.skip(f"{found} would be used instead of Podman")
    # Podman hangs if the paths of its sockets are too long.
    with tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp") as place:
        podman = _working_podman(Path(place), busybox)
        try:
            yield podman
        finally:  # containers that have ended may still be mounted
            environment = os.environ | podman.environment
            command = ["podman", "rm", "--all", "--force"]
            subprocess.run(command, env=environment, check=True, timeout=60)


def container_with_python(podman: Podman) -> Podman:
    """The container with this Python and its packages, which Podman mounts from this machine."""
    settings = podman.root.with_name("python.conf")
    roots = ("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, *sys.path)
    places = {os.path.abspath(root) for root in roots if os.path.isdir(root)}
    inner = {place for place in places for other in places if place.startswith(f"{other}/")}
    volumes = ", ".join(f'"{place}:{place}:ro"' for place in sorted(places - inner))
    text = Path(podman.environment["CONTAINERS_CONF"]).read_text().removeprefix("[containers]\n")
    lines = f'[containers]\nenv = ["PATH=/bin"]\nvolumes = [{volumes}]\n'
    settings.write_text(lines + text)
    python = podman.root / "bin/python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return podman._replace(environment=podman.environment | {"CONTAINERS_CONF": str(settings)})


def _working_podman(place: Path, busybox: str) -> Podman:
    root, storage, settings = place / "root", place / "storage.conf", place / "containers.conf"
    for name in ("bin", "etc", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "cat", "cp", "echo", "id", "pwd", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/inside").write_text("inside\n")
    storage.write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{place}/run"\ngraphroot = "{place}/storage"\n'
    )
    variables = {"CONTAINERS_CONF": str(settings), "CONTAINERS_STORAGE_CONF": str(storage)}
    # Some virtual machines allow neither higher limits nor the control groups of crun.
    limits = '[containers]\ndefault_ulimits = ["nofile=512:512", "nproc=512:512"]\n'
    command = ["podman", "run", "--rm", "--network=host", "--rootfs", str(root), "id"]
    for text in ("", limits, f'{limits}[engine]\nruntime = "runc"\n'):
        settings.write_text(text)
        environment = os.environ | variables
        tried = subprocess.run(command, env=environment, capture_output=True, timeout=60)
        if tried.returncode == 0:
            return Podman(root, variables)
    pytest.skip(f"podman does not run: {tried.stderr.decode()}")


async def cancel_in_container(future: TaskFuture[Any]) -> None:
    """Cancel a task when it has written its output file `started`, and wait for its end."""
    async with asyncio.timeout(60):
        while future.sandbox is None:  # noqa: ASYNC110 - it is not submitted yet
            await asyncio.sleep(0.01)
        await exists(Path(future.sandbox) / "started")
    future.cancel()
    await within(future.ended())


def running_containers() -> str:
    """Return the ids of the containers that run."""
    return subprocess.check_output(["podman", "ps", "--quiet"], text=True, timeout=60)
