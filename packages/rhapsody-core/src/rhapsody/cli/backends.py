"""`rhapsody backends`: lists the backends, and shows if each of them can be used.

The list is made without importing a backend's class. For one backend, the class is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING

from rhapsody.cli.output import DONE, say, say_json, say_lines, table
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.backends.discovery import BackendDescription
    from rhapsody.capabilities import Capabilities
    from rhapsody.plugins.options import BackendOption


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "backend",
        nargs="?",
        metavar="NAME",
        help="show the capabilities and options of one backend",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table of backends, or one backend with its capabilities and options.

    Returns:
        The exit code.

    Raises:
        UsageError: There is no backend of that name.
    """
    from rhapsody.backends.discovery import BackendRegistry

    if arguments.backend is None:
        described = list(BackendRegistry.describe().values())
    else:
        try:
            described = [_checked(BackendRegistry.describe(arguments.backend))]
        except ValueError as error:
            raise UsageError(str(error)) from None
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
    header = ("NAME", "USABLE", "FROM", "SUMMARY")
    say_lines(table(header, rows, flexible=("SUMMARY",), optional=("FROM",)))
    for one in described:
        if not one.usable:
            say(f"\n{one.name} cannot be used: {one.reason}")
            if one.remedy:
                say(f"  to fix it: {one.remedy}")
        for conflict in one.conflicts:
            say(f"\n{one.name}: {conflict}")
        if arguments.backend is not None and one.capabilities is not None:
            say()
            for line in _capabilities(one.capabilities):
                say(line)
        if arguments.backend is not None and one.options:
            say("\nOPTIONS, for -o and for profiles")
            for line in _options(one.options):
                say(line)
    if arguments.backend is None:
        say("\nNo backend was imported for this list; `rhapsody doctor` imports all of them.")
    return DONE


def _checked(described: BackendDescription) -> BackendDescription:
    """Import the backend's class, and return the description with the error if there is one."""
    from rhapsody.backends.discovery import BackendRegistry

    if not described.usable:
        return described
    try:
        with redirect_stdout(sys.stderr):  # a library may print
            BackendRegistry.get_backend_class(described.name)
    except (ImportError, TypeError) as error:
        return replace(described, usable=False, reason=str(error))
    return described


def _capabilities(capabilities: Capabilities) -> list[str]:
    """Return a table of capabilities, which explains `binds`."""
    texts = {name: _text(value) for name, value in capabilities.as_dict().items()}
    counted = capabilities.resources - capabilities.binds - {"fractional_cores", "walltime"}
    notes = ["enforced"] if capabilities.binds else []
    if counted:
        notes.append(f"only counted: {', '.join(sorted(counted))}")
    if notes:
        texts["binds"] += f" ({'; '.join(notes)})"
    return table(("CAPABILITY", "DECLARED"), texts.items())


def _options(options: Sequence[BackendOption]) -> list[str]:
    """Return the lines that describe options; those without help are listed together."""
    lines: list[str] = []
    for option in options:
        if option.help and not option.instead:
            default = "" if option.default is None else f", default {json.dumps(option.default)}"
            lines.append(f"  {option.name} ({option.type_name}{default})")
            lines += textwrap.wrap(
                option.help, 76, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    others = [option.name for option in options if not (option.help or option.instead)]
    if others:
        lines += textwrap.wrap(f"  and {', '.join(others)}", 76, subsequent_indent="  ")
    return lines


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "any" if value is None else str(value)  # None: settings are not checked
