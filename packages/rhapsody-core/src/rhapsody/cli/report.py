"""`rhapsody report`: writes an HTML page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from rhapsody.cli.lookup import RUN_HELP, read_record
from rhapsody.cli.output import CommandError, new_file, note, write_bytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = "the file; - for standard output (default: RUN.html)"
    parser.add_argument("-o", "--output", metavar="FILE", help=text)


def run(arguments: argparse.Namespace) -> None:
    """Write the report.

    Raises:
        CommandError: The record cannot be read, a library is missing, or the file cannot be
            written.
    """
    history = read_record(arguments.run)
    try:
        from rhapsody.report import page
    except ImportError as error:
        raise CommandError(str(error)) from None
    text = page(history)
    if arguments.output == "-":
        write_bytes(text.encode())
        return
    path = Path(arguments.output or f"{history.run.name}.html")
    with new_file(path) as new:
        new.write_text(text, "utf-8")
    note(f"wrote {path}; open it in a browser")
