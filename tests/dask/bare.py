"""Environments for workers that contain Dask but not Rhapsody."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def bare_python(directory: Path, **fakes: str) -> str:
    """Create an environment of links to the packages installed here, without a network.

    Args:
        directory: The directory to create it in.
        fakes: Distributions that appear to be installed, with their versions.

    Returns:
        The path of its Python.
    """
    packages = directory / "packages"
    packages.mkdir(parents=True)
    for name in _needed("distributed"):
        for path in distribution(name).files or ():
            top = path.parts[0]
            if top != ".." and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    for name, version in fakes.items():
        information = packages / f"{name}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
    venv = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "bare.pth").write_text(f"{packages}\n")
    return str(venv / "bin" / "python")


def _needed(name: str) -> set[str]:
    """Return the names of a distribution and of everything that it requires here."""
    found: set[str] = set()
    names = [name]
    while names:
        one = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if one in found:
            continue
        try:
            requires = distribution(one).requires or ()
        except PackageNotFoundError:  # built in here
            continue
        found.add(one)
        for text in requires:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
    return found
