"""Installed distributions for tests: what pip leaves behind, written by hand."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

_numbers = itertools.count(1)

BACKEND = """
from rhapsody.backends.base import ManagedBackend

class Backend(ManagedBackend):
    name = {name!r}

    def __init__(self, resources=None, *, speed=1):
        super().__init__()
        self.resources = resources
        self.speed = speed

    async def run_task(self, task):
        return "ran"
"""


def unique(stem: str) -> str:
    """A module name that no other test has imported."""
    return f"{stem}_{next(_numbers)}"


def install(
    site: Path,
    name: str,
    *,
    version: str = "1.0",
    backends: Mapping[str, str] | None = None,
    plugins: Mapping[str, str] | None = None,
    modules: Mapping[str, str] | None = None,
) -> Path:
    """Writes a distribution's metadata and modules into a directory of `sys.path`."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in (("rhapsody.backends", backends), ("rhapsody.plugins", plugins)):
        if points:
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, source in (modules or {}).items():
        (site / f"{module}.py").write_text(textwrap.dedent(source))
    return info


def declaration(*specs: str, before: str = "") -> str:
    """The source of a light module whose hook gives `BackendSpec(...)` with these arguments."""
    given = ", ".join(f"BackendSpec({spec})" for spec in specs)
    return (
        f"{before}\n"
        "from rhapsody.backends import BackendOption\n"
        "from rhapsody.plugins.specs import BackendSpec, hookimpl\n"
        "@hookimpl\n"
        "def rhapsody_backends():\n"
        f"    return [{given}]\n"
    )


def install_backend(site: Path, distribution: str, name: str, extra: str = "") -> tuple[str, str]:
    """Installs a working plugin with one backend; gives its light and its backend module."""
    light, heavy = unique("light"), unique("heavy")
    spec = f"name={name!r}, import_path='{heavy}:Backend', summary='from {distribution}'{extra}"
    install(
        site,
        distribution,
        backends={name: light},
        modules={light: declaration(spec), heavy: BACKEND.format(name=name)},
    )
    return light, heavy


def python(
    code: str, *paths: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs code in another process, with directories put before `sys.path`."""
    setup = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    return subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environment or {})},
    )
