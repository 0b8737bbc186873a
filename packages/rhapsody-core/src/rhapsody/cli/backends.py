"""`rhapsody backends`: which backends there are and whether they can be used."""

from __future__ import annotations

import argparse

from rhapsody.cli.output import DONE, say, say_json, table

HELP = "list the backends and whether they can be used here"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table."""
    from rhapsody.backends.discovery import BackendRegistry

    described = list(BackendRegistry.describe().values())
    if arguments.json:
        say_json([one.as_dict() for one in described])
        return DONE
    rows = [
        (
            one.name,
            "yes" if one.usable else "no",
            f"{one.distribution} {one.version}" if one.distribution else "-",
            one.summary or "-",
        )
        for one in described
    ]
    for line in table(("NAME", "USABLE", "FROM", "SUMMARY"), rows):
        say(line)
    for one in described:
        if not one.usable:
            say(f"\n{one.name} cannot be used: {one.reason}")
            say(f"  to mend it: {one.remedy}")
        for conflict in one.conflicts:
            say(f"\n{one.name}: {conflict}")
    return DONE
