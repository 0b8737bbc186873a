"""`rhapsody completion`: prints a script with which a shell completes command lines of Rhapsody.

The script is static: completing a word does not start Python. It takes 3 ms; with argcomplete,
which starts the program for each word, it took 0.2 s of processor time, mostly for imports, and
more on the network file systems of clusters. With `--plugins`, it contains the commands and options
of the plugins that are installed when it is printed.
"""

from __future__ import annotations

import argparse
from typing import Any

from rhapsody._private import actions_of
from rhapsody.cli.output import DONE, CommandError, complain, say
from rhapsody.errors import describe_error

SHELLS = ("bash", "zsh", "fish")

PATHS = {"SCRIPT[:FUNC]": "file", "FILE": "file", "DIR": "directory", "DIRECTORY": "directory"}
"""Names of shtab's completions by metavars of arguments."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
    text = "import the plugins, and complete their commands as well"
    parser.add_argument("--plugins", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Print the script.

    Returns:
        The exit code.

    Raises:
        CommandError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        command = "pip install 'rhapsody-core[completion]'"
        raise CommandError(f"shell completion needs shtab; to install it: {command}") from None
    arguments.commands.add_from_plugins(only_core=not arguments.plugins)
    say(shtab.complete(_parser(arguments.commands), arguments.shell).rstrip("\n"))
    return DONE


def _parser(commands: Any) -> argparse.ArgumentParser:
    """Return a parser with the arguments of all commands and the values that the shell offers."""
    from rhapsody.backends.discovery import BackendRegistry

    backends = BackendRegistry.list_backends()
    parser: argparse.ArgumentParser
    parsers: dict[str, argparse.ArgumentParser]
    parser, parsers = commands.overview()
    for name, each in parsers.items():
        try:
            commands.configure(name, each)
        except Exception as error:  # a plugin may raise anything
            complain(f"cannot complete the arguments of {name!r}: {describe_error(error)}")
        for action in actions_of(each):
            if action.dest == "backend":
                action.choices = backends
            elif action.metavar in PATHS and not hasattr(action, "complete"):
                action.complete = PATHS[action.metavar]  # type: ignore[attr-defined]
    return parser
