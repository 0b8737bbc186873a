"""`rhapsody report`: writes an HTML page about a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rhapsody.history import RUN_HELP, new_file, open_run, warnings_of
from rhapsody.sdk import escaped, mask

HELP = "write an HTML report about a run"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = "the file; - for standard output (default: RUN.html)"
    parser.add_argument("-o", "--output", metavar="FILE", help=text)


def run(arguments: argparse.Namespace) -> None:
    """Write the report.

    Raises:
        RhapsodyError: The record cannot be read, or the file cannot be written.
        BrokenPipeError: The reader of standard output has exited.
    """
    history = open_run(arguments.run).history()
    for warning in warnings_of(history):
        note(f"rhapsody: {warning}")
    from rhapsody_report.pages import page

    text = page(history)
    if arguments.output == "-":
        if sys.stdout is not None:  # `None` if the stream was closed before the start
            with open(sys.stdout.fileno(), "wb", closefd=False) as file:  # in any encoding
                file.write(text.encode())
        return
    path = Path(arguments.output or f"{history.run.name}.html")
    with new_file(path) as new:
        new.write_text(text, "utf-8")
    note(f"wrote {path}; open it in a browser")


def note(text: str, *, masked: bool = True) -> None:
    """Write a line to standard error.

    Args:
        text: The line.
        masked: True to mask secrets.
    """
    if sys.stderr is not None:  # `None` if the stream was closed before the start
        print(escaped(mask(text) if masked else text), file=sys.stderr)  # noqa: T201 - the command's output
