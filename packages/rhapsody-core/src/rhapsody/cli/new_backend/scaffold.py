"""The files of a new backend's distribution: filled in from `template/`, and written.

What they must be worth is tested on what comes out of it: that is installed, and its
own tests are run.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from string import Template

from rhapsody.plugins.specs import UsageError

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "noxfile.py": "noxfile.py",
    "gitignore": ".gitignore",
    "ci.yml": ".github/workflows/ci.yml",
    "init.py": "src/{package}/__init__.py",
    "plugin.py": "src/{package}/plugin.py",
    "backend.py": "src/{package}/backend.py",
    "test_conformance.py": "tests/test_conformance.py",
    "test_plugin.py": "tests/test_plugin.py",
}
"""What each file of the template becomes; the licence and an empty `py.typed` come on top."""


def render(name: str, license: str, author: str) -> dict[str, str]:
    """The files of the distribution: each path in it and the text.

    Args:
        name: The backend's name, checked.
        license: Its licence, which is a file of the template.
        author: Who holds the copyright.
    """
    from rhapsody.plugins.specs import API_VERSION

    stem = "".join(word.capitalize() for word in name.split("_"))
    package = f"rhapsody_{name}"
    values = {
        "name": name,
        "stem": stem,
        "cls": f"{stem}Backend",
        "package": package,
        "distribution": package.replace("_", "-"),
        "license": license,
        "author": author,
        "author_toml": json.dumps(author, ensure_ascii=False),  # a TOML string, too
        "year": time.strftime("%Y"),
        "api_version": str(API_VERSION),
        "core_range": core_range(),
    }
    sources = {**_FILES, license: "LICENSE"}
    made = {
        path.format(package=package): Template(_template(source)).substitute(values)
        for source, path in sources.items()
    }
    made[f"src/{package}/py.typed"] = ""
    return dict(sorted(made.items()))


def core_range() -> str:
    """The versions of core that a plugin written today is made for, `>=0.1,<0.2`."""
    from packaging.version import Version

    from rhapsody._version import __version__

    version = Version(__version__)
    lowest = str(version.public) if version.is_prerelease else f"{version.major}.{version.minor}"
    bound = f"0.{version.minor + 1}" if version.major == 0 else f"{version.major + 1}"
    return f">={lowest},<{bound}"


def write(made: dict[str, str], directory: str) -> None:
    """Writes the files into a directory that is new, or empty but for `.git`.

    Raises:
        UsageError: There is something at its place, or it cannot be written.
    """
    target = Path(directory)
    try:
        if os.path.lexists(target):
            if not target.is_dir():
                raise UsageError(f"{target} is in the way; give another place with --dir")
            there = sorted({entry.name for entry in target.iterdir()} - {".git"})
            if there:
                raise UsageError(
                    f"{target} is not empty, {there[0]!r} is in it; give another place with --dir"
                )
        beside = target if target.is_dir() else target.parent
        beside.mkdir(parents=True, exist_ok=True)
        # Written aside first, so that nobody takes half of it for the whole.
        with tempfile.TemporaryDirectory(prefix=".new-backend-", dir=beside) as aside:
            whole = Path(aside, "whole")
            for path, text in made.items():
                file = whole / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            target.mkdir(exist_ok=True)
            for entry in whole.iterdir():
                entry.rename(target / entry.name)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error}") from None


def _template(source: str) -> str:
    return (files(__package__) / "template" / f"{source}.in").read_text(encoding="utf-8")
