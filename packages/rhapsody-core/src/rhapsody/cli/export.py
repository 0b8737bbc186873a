"""`rhapsody export`: writes a run in a format for publication."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rhapsody.cli.lookup import RUN_HELP, read_record
from rhapsody.cli.output import CommandError, note

HELP = "write a run as an RO-Crate"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = "the format (default: %(default)s)"
    parser.add_argument("--format", choices=["ro-crate"], default="ro-crate", help=text)
    text = "the directory, or a file whose name ends with .zip (default: RUN-crate)"
    parser.add_argument("-o", "--output", metavar="PATH", help=text)
    text = "the license of the crate, as URL or text"
    parser.add_argument("--license", metavar="LICENSE", help=text)
    parser.add_argument(
        "--files",
        choices=["reference", "digest", "copy"],
        default="digest",
        help="reference data files, also compute their digests, or also copy them into the crate "
        "(default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the crate.

    Raises:
        CommandError: The record cannot be read, a library is missing, or the crate cannot be
            written.
    """
    history = read_record(arguments.run)
    try:
        from rhapsody.provenance import ro_crate
    except ImportError as error:
        raise CommandError(str(error)) from None
    path = Path(arguments.output or f"{history.run.name}-crate")
    if os.path.lexists(path):
        raise CommandError(f"{path} already exists; remove it, or choose another path with -o")
    try:
        crate = ro_crate(history, license=arguments.license, files=arguments.files)
        if path.suffix == ".zip":
            crate.write_zip(path)
        else:
            crate.write(path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
    if crate.mainEntity is not None:
        note(f"wrote {path}, a Provenance Run Crate")
    else:
        note(f"wrote {path}, a Process Run Crate without the program, which is not available")
