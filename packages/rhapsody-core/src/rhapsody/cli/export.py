"""`rhapsody export`: writes a run in a format of a plugin."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.cli.lookup import read_record
from rhapsody.cli.output import CommandError, note
from rhapsody.cli.plugin_options import add_options, given_options, require_known
from rhapsody.history.files import new_file
from rhapsody.history.values import RUN_HELP, counts_of
from rhapsody.known import FORMATS
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.cli import Commands

DEFAULT = "ro-crate"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = f"{DEFAULT} (default), or a format of another plugin"
    parser.add_argument("--format", default=DEFAULT, metavar="FORMAT", help=text)
    text = "the file to write, or the directory (default: named after the run)"
    parser.add_argument("-o", "--output", metavar="PATH", help=text)


def extend(parser: argparse.ArgumentParser, commands: Commands) -> None:
    """Add the options of the formats."""
    owners: dict[str, str] = {}
    for name, format in commands.formats.items():
        add_options(parser, f"format {name}", format.options, owners)


def run(arguments: argparse.Namespace) -> None:
    """Write the run.

    Raises:
        UsageError: There is no such format, or it has no such option.
        CommandError: The format is part of a distribution that is not installed, or the output
            exists.
        RhapsodyError: The record cannot be read, or the output cannot be written.
    """
    formats, name = arguments.commands.formats, arguments.format
    if name not in formats:
        require_known(FORMATS, name, f"format {name!r}")
        raise UsageError(f"format {name!r} not found: the formats are {', '.join(formats)}")
    format, values = formats[name], _values(arguments)
    history = read_record(arguments.run)
    path = Path(arguments.output or f"{history.run.name}{format.suffix}")
    if os.path.lexists(path):
        raise CommandError(f"{path} already exists; remove it, or choose another path with -o")
    with new_file(path) as new:
        wrote = format.write(history.run.path, new, **values) or f"in the format {name}"
    note(f"wrote {path}, {wrote}")
    reused = counts_of(history)["reused"]
    if reused:
        note(
            f"tasks whose results were reused from earlier runs: {reused}; they have no times in "
            "this format, or are missing. Export those runs as well"
        )


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the format's options.

    Raises:
        UsageError: An option of another format was given.
    """
    found = {}
    for name, format in arguments.commands.formats.items():
        given = given_options(arguments, f"format {name}", format.options)
        if name == arguments.format:
            found = {option.name: option.default for option in format.options} | given
            continue
        for option in format.options:
            if option.name in given:
                raise UsageError(f"{option.flag} can only be used with --format {name}")
    return found
