"""`rhapsody new-backend`: writes the distribution of a new backend, which works as it stands.

Here is the command and what may be a backend's name; the writing is in `scaffold`.
"""

from __future__ import annotations

import argparse
import re
import shlex

from rhapsody.cli.output import DONE, say
from rhapsody.plugins.specs import UsageError

HELP = "write the distribution of a new backend"
LICENSES = ("MIT", "Apache-2.0", "BSD-3-Clause")

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the backend's name, such as demo")
    parser.add_argument(
        "--dir", metavar="DIR", help="where to write it, new or empty (default: rhapsody-NAME)"
    )
    parser.add_argument(
        "--license", choices=LICENSES, default=LICENSES[0], help="its licence (default: MIT)"
    )
    parser.add_argument(
        "--author", metavar="WHO", help="who holds the copyright (default: its authors)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the distribution and says what to do next.

    Raises:
        UsageError: The name cannot be used, or there is something at its place.
    """
    from rhapsody.cli.new_backend.scaffold import render, write

    name = checked_name(arguments.name)
    distribution = f"rhapsody-{name.replace('_', '-')}"
    author = (arguments.author or f"The {distribution} authors").strip()
    if not author.isprintable() or not author:
        raise UsageError(f"--author {arguments.author!r} is no name: write it on one line")
    target = distribution if arguments.dir is None else arguments.dir
    write(render(name, arguments.license, author), target)
    say(f"Wrote {target}, a backend that works as it stands. Next:\n")
    steps = [f"cd {shlex.quote(target)}", "pip install -e '.[test]'", "pytest"]
    for command in (*steps, "rhapsody backends"):
        say(f"  {command}")
    say(f"\nThen write what is new about it into src/rhapsody_{name}/backend.py.")
    return DONE


def checked_name(given: str) -> str:
    """The backend's name with `_` between its words.

    Raises:
        UsageError: It is malformed, or belongs to a backend that there is.
    """
    from rhapsody.backends.discovery import PUBLISHED, normalize_name
    from rhapsody.plugins.entry_points import BACKENDS, installed

    name = given.strip().lower()
    if not _NAME.fullmatch(name) or not name.isascii():
        raise UsageError(
            f"{given!r} cannot be a backend's name: write a letter first, then letters and "
            "digits, with single - or _ between words, such as my-cluster"
        )
    name = name.replace("-", "_")
    if name == "rhapsody" or name.startswith("rhapsody_"):
        alone = name.removeprefix("rhapsody").lstrip("_") or "demo"
        raise UsageError(
            f"leave out 'rhapsody', which the distribution's name begins with: "
            f"rhapsody new-backend {alone.replace('_', '-')}"
        )
    claims = installed().group(BACKENDS)
    owners = [one.distribution for one in claims if normalize_name(one.name) == name]
    if name in PUBLISHED:
        owners = [PUBLISHED[name]]
    if owners:
        raise UsageError(
            f"there is a backend {name!r} already, of {owners[0]}; choose another name"
        )
    return name
