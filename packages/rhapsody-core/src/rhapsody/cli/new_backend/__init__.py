"""`rhapsody new-backend`: creates the source files of a package with a new, working backend.

The files are rendered from `template/`. Rhapsody's tests install the package and run its tests.

`string.Template` suffices, because the files are rendered once, and a choice that affects more than
a name, such as the license, selects a file. copier and cookiecutter would require Jinja, pydantic,
PyYAML and more than ten other distributions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from rhapsody.cli.output import DONE, say
from rhapsody.plugins.specs import API_VERSION, UsageError

LICENSES = ("MIT", "Apache-2.0", "BSD-3-Clause")

COMMON = {
    "pyproject.toml": "pyproject.toml",
    "CHANGELOG.md": "CHANGELOG.md",
    "noxfile.py": "noxfile.py",
    "gitignore": ".gitignore",
    "ci.yml": ".github/workflows/ci.yml",
}
"""Paths of the rendered files of every plugin by template. A license and an empty `py.typed` are
added."""

_FILES = {
    **COMMON,
    "README.md": "README.md",
    "init.py": "src/{package}/__init__.py",
    "plugin.py": "src/{package}/plugin.py",
    "backend.py": "src/{package}/backend.py",
    "test_conformance.py": "tests/test_conformance.py",
    "test_plugin.py": "tests/test_plugin.py",
}
"""Paths of the rendered files of a backend by template."""

_TEST = """\
# The first number is the version of the plugin interface that the kit checks.
test = ["rhapsody-testing~={}.0"]"""

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the backend's name, such as demo")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every plugin."""
    text = "the target directory, new or empty (default: rhapsody-NAME)"
    parser.add_argument("--dir", metavar="DIR", help=text)
    text = "the license (default: MIT)"
    parser.add_argument("--license", choices=LICENSES, default=LICENSES[0], help=text)
    text = "the copyright holder (default: the authors of the package)"
    parser.add_argument("--author", metavar="NAME", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Write the source files of the package, and print the next steps.

    Returns:
        The exit code.

    Raises:
        UsageError: The name or the author is invalid, or the target cannot be written.
    """
    name = checked_name(arguments.name, "new-backend")
    _require_free(name)
    more = {
        "kind": "backend",
        "test_requirements": _TEST.format(API_VERSION),
        "pytest_options": 'asyncio_default_fixture_loop_scope = "function"',
        "entry_point": "The key is the backend's name",
    }
    target = create(arguments, name, _FILES, more)
    steps = [f"cd {shlex.quote(target)}", "pip install -e '.[test]'", "pytest"]
    say(f"Created {target}, which contains a working backend. Next:\n")
    for command in (*steps, "rhapsody backends"):
        say(f"  {command}")
    say(f"\nThen implement your backend in src/rhapsody_{name}/backend.py.")
    return DONE


def create(
    arguments: argparse.Namespace, name: str, sources: Mapping[str, str], more: Mapping[str, str]
) -> str:
    """Write the source files of a plugin.

    Args:
        arguments: The command's arguments.
        name: The plugin's name, as returned by `checked_name`.
        sources: Paths of the rendered files by template.
        more: Further values for the templates.

    Returns:
        The directory.

    Raises:
        UsageError: The author is invalid, or the target cannot be written.
    """
    distribution = f"rhapsody-{name.replace('_', '-')}"
    author = (arguments.author or f"The {distribution} authors").strip()
    if not author.isprintable() or not author:
        raise UsageError(f"--author must be one line of printable text, got {arguments.author!r}")
    target: str = distribution if arguments.dir is None else arguments.dir
    write(render(name, arguments.license, author, sources, more), target)
    return target


def checked_name(given: str, command: str) -> str:
    """Check and normalize a name.

    Args:
        given: The name of a backend or another plugin.
        command: The command that creates it.

    Returns:
        The name in lower case, with `_` between its words.

    Raises:
        UsageError: The name is malformed.
    """
    name = given.strip().lower()
    if not _NAME.fullmatch(name) or not name.isascii():
        raise UsageError(
            f"{given!r} is not a valid name: use letters and digits, with a letter first "
            "and single - or _ between words, such as my-cluster"
        )
    name = name.replace("-", "_")
    if name == "rhapsody" or name.startswith("rhapsody_"):
        alone = name.removeprefix("rhapsody").lstrip("_") or "demo"
        raise UsageError(
            f"omit the prefix 'rhapsody', which the command adds to {alone!r}: "
            f"rhapsody {command} {alone.replace('_', '-')}"
        )
    return name


def _require_free(name: str) -> None:
    """Raise a `UsageError` if a distribution has a backend with this name."""
    from rhapsody.backends.discovery import PUBLISHED, normalize_name
    from rhapsody.plugins.manager import BACKENDS, installed

    claims = installed().group(BACKENDS)
    owners = [one.distribution for one in claims if normalize_name(one.name) == name]
    if name in PUBLISHED:
        owners = [PUBLISHED[name]]
    if owners:
        raise UsageError(f"{owners[0]} already has a backend named {name!r}; choose another name")


def render(
    name: str, license: str, author: str, sources: Mapping[str, str], more: Mapping[str, str]
) -> dict[str, str]:
    """Render the package's source files.

    Args:
        name: The plugin's name, as returned by `checked_name`.
        license: The name of the license, which is also the name of a template.
        author: The copyright holder.
        sources: Paths of the rendered files by template.
        more: Further values for the templates.

    Returns:
        The contents of the files, by path.
    """
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
        "author_toml": json.dumps(author, ensure_ascii=False),  # also a TOML string
        "year": time.strftime("%Y"),
        "api_version": str(API_VERSION),
        "core_range": core_range(),
        **more,
    }
    sources = {**sources, license: "LICENSE"}
    made = {
        path.format(package=package): Template(_template(source)).substitute(values)
        for source, path in sources.items()
    }
    made[f"src/{package}/py.typed"] = ""
    return dict(sorted(made.items()))


def core_range() -> str:
    """Return the range of core versions for a new plugin, such as `>=0.1,<0.2`."""
    from packaging.version import Version

    from rhapsody._version import __version__

    version = Version(__version__)
    lowest = str(version.public) if version.is_prerelease else f"{version.major}.{version.minor}"
    bound = f"0.{version.minor + 1}" if version.major == 0 else f"{version.major + 1}"
    return f">={lowest},<{bound}"


def write(made: dict[str, str], directory: str) -> None:
    """Write the files into a directory that is new, or empty except for `.git`.

    Raises:
        UsageError: The target is not an empty directory, or cannot be written.
    """
    target = Path(directory)
    try:
        if os.path.lexists(target):
            if not target.is_dir():
                raise UsageError(f"{target} is not a directory; choose another one with --dir")
            there = sorted({entry.name for entry in target.iterdir()} - {".git"})
            if there:
                raise UsageError(
                    f"{target} is not empty: it contains {there[0]!r}; choose another directory "
                    "with --dir"
                )
        for path, text in made.items():
            file = target / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error}") from None


def _template(source: str) -> str:
    return (files(__package__) / "template" / f"{source}.in").read_text(encoding="utf-8")
