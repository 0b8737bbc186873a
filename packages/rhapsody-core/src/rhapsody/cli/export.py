"""`rhapsody export`: writes a run in a format for publication."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rhapsody.cli.lookup import RUN_HELP, read_record
from rhapsody.cli.output import CommandError, new_file, note
from rhapsody.history.values import counts_of
from rhapsody.known import FORMATS
from rhapsody.plugins.manager import install_command
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.history.reader import RunHistory


RO_CRATE = "ro-crate"
FILES = ("reference", "digest", "copy")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = f"{RO_CRATE} (default), or a format of a plugin"
    parser.add_argument("--format", default=RO_CRATE, metavar="FORMAT", help=text)
    text = "the file to write, or the directory (default: named after the run)"
    parser.add_argument("-o", "--output", metavar="PATH", help=text)
    crates = parser.add_argument_group("RO-Crates", "The output is a directory, or a .zip file.")
    text = "the license of the crate, as URL or text"
    crates.add_argument("--license", metavar="LICENSE", help=text)
    text = (
        "reference data files, also compute their digests, or also copy them into the crate "
        "(default: digest)"
    )
    crates.add_argument("--files", choices=FILES, help=text)


def run(arguments: argparse.Namespace) -> None:
    """Write the run.

    Raises:
        UsageError: There is no such format, or it has no such option.
        CommandError: The record cannot be read, a library is missing, or the output cannot be
            written.
    """
    formats = arguments.commands.formats
    name = arguments.format
    if name != RO_CRATE:
        arguments.commands.add_from_plugins()
        _check(arguments, formats)
    history = read_record(arguments.run)
    suffix, write = ("-crate", None) if name == RO_CRATE else formats[name]
    path = Path(arguments.output or f"{history.run.name}{suffix}")
    if os.path.lexists(path):
        raise CommandError(f"{path} already exists; remove it, or choose another path with -o")
    with new_file(path) as new:
        if write is None:
            wrote = _write_crate(history, new, arguments)
        else:
            write(history.run.path, new)
            wrote = f"in the format {name}"
    note(f"wrote {path}, {wrote}")
    reused = counts_of(history)["reused"]
    if reused:
        how = (
            "have no times in this format" if name == RO_CRATE else "may be missing in this format"
        )
        note(
            f"tasks whose results were reused from earlier runs: {reused}; they {how}. Export "
            "those runs as well"
        )


def _check(arguments: argparse.Namespace, formats: Mapping[str, object]) -> None:
    """Raise a `UsageError` if no plugin has the format, or an option is only for RO-Crates."""
    name = arguments.format
    if name not in formats:
        if owner := FORMATS.get(name):
            found = f"it is part of {owner}. To install it: {install_command(owner)}"
        else:
            found = f"the formats are {', '.join((RO_CRATE, *formats))}"
        raise UsageError(f"format {name!r} not found: {found}")
    for option in ("license", "files"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option} can only be used with --format {RO_CRATE}")


def _write_crate(history: RunHistory, path: Path, arguments: argparse.Namespace) -> str:
    """Write an RO-Crate, and return a description of it."""
    try:
        from rhapsody.provenance import ro_crate
    except ImportError as error:
        raise CommandError(str(error)) from None
    crate = ro_crate(history, license=arguments.license, files=arguments.files or "digest")
    if path.suffix == ".zip":
        crate.write_zip(path)
    else:
        crate.write(path)
    if crate.mainEntity is not None:
        return "a Provenance Run Crate"
    return "a Process Run Crate without the program, which is not available"
