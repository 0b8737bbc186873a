"""The commands there are, ours and those of plugins, and the way from arguments to one."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rhapsody.cli import backends, clean, doctor, journal, new_backend, run
from rhapsody.cli.output import (
    DONE,
    FAILED,
    INTERRUPTED,
    READER_GONE,
    USAGE,
    CommandError,
    complain,
    say,
)
from rhapsody.errors import RhapsodyError
from rhapsody.plugins.specs import UsageError

Configure = Callable[[argparse.ArgumentParser], object]
Run = Callable[[argparse.Namespace], int | None]


HANDS_ON = ("run",)
"""Commands that hand on what follows `--`, as `arguments`."""

PUBLISHED = {"replay": "rhapsody-wfcommons"}
"""Commands of published plugins, with the distributions that they come with."""

ENDED: dict[object, str] = {128 + each: each.name for each in (signal.SIGTERM, signal.SIGHUP)}
"""What the exit codes of a run that an engine has ended for a signal mean."""


class _Command(NamedTuple):
    help: str
    configure: Configure | None
    run: Run


class Commands:
    """The command line that is being put together; what `rhapsody_commands` gets."""

    def __init__(self) -> None:
        self._commands: dict[str, _Command] = {}

    def add_command(self, name: str, help: str, configure: Configure | None, run: Run) -> None:
        """Adds a command, see `rhapsody.plugins.specs.CommandLine`."""
        if not name or name.startswith("-") or name.split() != [name]:
            raise ValueError(f"{name!r} cannot be the name of a command")
        if name in self._commands:
            raise ValueError(f"there is a command {name!r} already")
        self._commands[name] = _Command(help, configure, run)

    def add_from_plugins(self) -> None:
        """Adds the commands of plugins; one that raises is reported."""
        from rhapsody.plugins.manager import implementations, loaded_plugins, report

        for hook in implementations("rhapsody_commands", loaded_plugins()):
            try:
                hook.call(cli=self)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a plugin's error of any kind stays its own
                report(hook, error)

    def run(self, arguments: Sequence[str]) -> int:
        """Runs the command that the arguments name.

        Raises:
            UsageError: There is no such command.
            SystemExit: argparse has written help, or an error.
        """
        name = next((one for one in arguments if not one.startswith("-")), None)
        if name in PUBLISHED and name not in self._commands:
            from rhapsody.plugins.entry_points import install_command

            raise UsageError(
                f"the command {name!r} comes with {PUBLISHED[name]}. To install it: "
                f"{install_command(PUBLISHED[name])}"
            )
        if name is not None and name not in self._commands:
            close = difflib.get_close_matches(name, self._commands, n=1)
            hint = f"did you mean {close[0]!r}?" if close else ""
            hint = hint or f"there are: {', '.join(self._commands)}"
            raise UsageError(f"there is no command {name!r}; {hint}")
        parser, parsed = self._parser(name), argparse.Namespace()
        if name in HANDS_ON:
            end = [*arguments, "--"].index("--")
            parsed.arguments, arguments = list(arguments[end + 1 :]), arguments[:end]
        parsed, unknown = parser.parse_known_args(arguments, parsed)
        if unknown and name in HANDS_ON:
            meant = self._meant(name, unknown)
            raise UsageError(_misplaced(arguments, unknown, parsed.arguments, meant))
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        if name is None:
            parser.print_help(sys.stderr)
            return USAGE
        _require_directory()
        result = self._commands[name].run(parsed)
        return DONE if result is None else result

    def _parser(self, chosen: str | None) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog="rhapsody", description="Runs workflows and says what they can run on."
        )
        parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
        commands = parser.add_subparsers(title="commands", metavar="COMMAND")
        for name, command in self._commands.items():
            own = commands.add_parser(
                name, help=command.help, description=command.help, allow_abbrev=False
            )
            if name == chosen and command.configure is not None:
                command.configure(own)
        return parser

    def _meant(self, name: str, unknown: Sequence[str]) -> str:
        """Asks for the option that is close to one that a command does not have."""
        own, configure = argparse.ArgumentParser(), self._commands[name].configure
        if configure is not None:
            configure(own)
        there = own._option_string_actions  # argparse tells its options nowhere else
        options = [one.removeprefix("--") for one in there if one.startswith("--")]
        for word in unknown:
            said = word.partition("=")[0].removeprefix("--")
            close = difflib.get_close_matches(said, options, 1, 0.75)
            begin = [each for each in options if each.startswith(said)]
            if len(said) > 2 and len(begin) == 1:
                close = begin
            if close and word.startswith("--"):
                return f"did you mean --{close[0]}? or "
        return ""


def _require_directory() -> None:
    """Raise a UsageError if the current directory was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError(
            "the current directory was removed; change to another directory, or enter it again "
            "if it was recreated: cd ."
        ) from None


def _misplaced(
    given: Sequence[str], unknown: Sequence[str], after: Sequence[str], meant: str
) -> str:
    """Says of arguments that a command does not take where those of the script stand."""
    known = list(given)
    for one in reversed(unknown):
        if one in known:  # all but a part of several options in one word
            del known[len(known) - 1 - known[::-1].index(one)]
    command = shlex.join(["rhapsody", *known, "--", *unknown, *after])
    return (
        f"unrecognized arguments: {shlex.join(unknown)}; {meant}write -- before the script's own "
        f"arguments: {command}"
    )


class _Version(argparse.Action):
    """Reads the version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from rhapsody._version import __version__

        say(f"rhapsody-core {__version__}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Without the program's name; those of the process where `None`.

    Returns:
        The exit code.

    Raises:
        SystemExit: argparse has written help or an error, or a signal or the
            user's program ended this one with an exit code of its own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = Commands()
    commands.add_command("run", run.HELP, run.configure, run.run)
    commands.add_command("backends", backends.HELP, backends.configure, backends.run)
    commands.add_command("doctor", doctor.HELP, doctor.configure, doctor.run)
    commands.add_command("clean", clean.HELP, clean.configure, clean.run)
    commands.add_command("journal", journal.HELP, journal.configure, journal.run)
    commands.add_command("new-backend", new_backend.HELP, new_backend.configure, new_backend.run)
    try:
        if arguments[:1] != ["doctor"]:  # the doctor loads plugins in other processes only
            commands.add_from_plugins()
        code = commands.run(arguments)
        if sys.stdout is not None:  # as it is where it was closed before the start
            sys.stdout.flush()
        return code
    except UsageError as error:
        complain(str(error))
        return USAGE
    except (CommandError, RhapsodyError) as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except SystemExit as end:
        if end.code in ENDED:
            complain(f"ended by {ENDED[end.code]}")
        raise
    except BrokenPipeError:
        # Nothing reads standard output any more. Python must not complain at exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
