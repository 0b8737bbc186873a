"""Command-line interface: finds the command that the arguments name, and runs it.

Each built-in command is a module of this package with `configure` and `run`, which is imported when
the command is used. Plugins add commands through the hook `rhapsody_commands`. They are imported
only for what they may provide: for a command that is not built in, for the options of `rhapsody
run` and the formats of `rhapsody export`, and for `--plugins`. The console script calls
`rhapsody_guard.command`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Container, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from rhapsody import known
from rhapsody._private import actions_of
from rhapsody.cli.output import (
    BROKEN_PIPE,
    DONE,
    ENDED_BY,
    FAILED,
    INTERRUPTED,
    USAGE,
    CommandError,
    HelpParser,
    complain,
    flush,
)
from rhapsody.cli.plugin_options import require_known
from rhapsody.errors import RhapsodyError, UsageError
from rhapsody.plugins.manager import CORE, PluginHook, checked_options, installed
from rhapsody.spelling import similar, suggestion

if TYPE_CHECKING:
    from rhapsody.plugins.specs import CommandOption

__all__ = ["main"]

Configure = Callable[[argparse.ArgumentParser], object]
Run = Callable[[argparse.Namespace], int | None]

COMMANDS = {
    "run": "run a workflow",
    "runs": "list the recorded runs, newest first",
    "status": "show which tasks of a run are running, waiting or have failed",
    "show": "show a task: its call, attempts, times, files, used resources and error",
    "logs": "print the standard output and standard error of a task",
    "stats": "show durations and used resources by task name, or compare two runs",
    "graph": "print the graph of a run, grouped by task name",
    "trace": "write the timeline of a run as a trace for ui.perfetto.dev",
    "export": "write a run in a format for publication or for other tools",
    "backends": "list the backends, and show if they can be used",
    "config": "show the settings of a profile, and the files that set them",
    "doctor": "check the installation and every plugin",
    "clean": "remove the directories of runs that have ended, except their results",
    "new-backend": "create the source files of a package for a new backend",
    "new-plugin": "create the source files of a package for a plugin that observes runs",
    "completion": "print a script that completes commands and options in your shell",
}
"""Built-in commands, each with its help. The module of a command has the same name."""

MIXED = {"status", "show", "logs", "stats", "config"}
"""Commands whose options may be between their arguments."""

EXTENDED = {"run", "export"}
"""Built-in commands to which plugins add options."""

STARTS_SCRIPTS = {"run", "submit"}
"""Commands whose arguments after `--` are for the script. They are in the attribute `arguments`."""


class _Command(NamedTuple):
    help: str
    configure: Configure | None
    run: Run


class ExportFormat(NamedTuple):
    """Export format of a plugin; see `rhapsody.plugins.specs.CommandLine.add_export_format`.

    Attributes:
        suffix: The end of the default file name.
        write: Callable that writes the format.
        options: The options of the format.
    """

    suffix: str
    write: Callable[..., str | None]
    options: tuple[CommandOption, ...] = ()


class Commands:
    """Commands by name. Passed to the hook `rhapsody_commands`, in which plugins add commands.

    Attributes:
        formats: The export formats by name.
        run_options: The options of `rhapsody run` that plugins have declared, by plugin.
    """

    def __init__(self) -> None:
        self.formats: dict[str, ExportFormat] = {}
        self.run_options: dict[str, tuple[CommandOption, ...]] = {}
        self._with_plugins = False
        self._called: list[PluginHook] = []
        self._commands = {
            name: _Command(help, partial(self._configure, name), partial(_run_built_in, name))
            for name, help in COMMANDS.items()
        }

    def add_command(self, name: str, help: str, configure: Configure | None, run: Run) -> None:
        """Add a command; see `rhapsody.plugins.specs.CommandLine`."""
        _check_name("command", name, self._commands)
        self._commands[name] = _Command(help, configure, run)

    def add_export_format(
        self,
        name: str,
        suffix: str,
        write: Callable[..., str | None],
        options: Sequence[CommandOption] = (),
    ) -> None:
        """Add a format; see `rhapsody.plugins.specs.CommandLine`."""
        from rhapsody.plugins.specs import CommandOption

        _check_name("format", name, self.formats)
        self.formats[name] = ExportFormat(suffix, write, checked_options(options, CommandOption))

    def add_from_plugins(self, *, only_core: bool = False) -> None:
        """Import the plugins, and add their commands and options; a second call has no effect.

        Plugins that raise exceptions are reported.

        Args:
            only_core: True to add only the commands of core's own plugins.

        Raises:
            KeyboardInterrupt: The user pressed Ctrl-C.
        """
        from rhapsody.plugins.manager import (
            implementations,
            loaded_plugins,
            report,
        )

        if self._with_plugins:
            return
        self._with_plugins = not only_core
        if not only_core:
            self.add_run_options()
        for hook in implementations("rhapsody_commands", loaded_plugins(only_core=only_core)):
            if hook in self._called:
                continue
            self._called.append(hook)
            try:
                hook.call(cli=self)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a plugin may raise anything
                report(hook, error)

    def add_run_options(self) -> None:
        """Import the plugins, and add their options of `rhapsody run`."""
        from rhapsody.plugins.manager import plugin_options

        self.run_options = plugin_options()

    def run(self, arguments: Sequence[str]) -> int:
        """Run the command that the arguments name.

        Returns:
            The exit code.

        Raises:
            UsageError: The command does not exist, or an argument is invalid.
            CommandError: The command or an option is part of a distribution that is not installed.
            SystemExit: argparse has printed help or an error.
        """
        if not arguments or arguments[0].startswith("-"):
            if "--version" not in arguments:
                self.add_from_plugins(only_core=True)
            parser, _ = self.overview()
            if parser.parse_args(arguments).plugins:
                self.add_from_plugins()
                self.overview()[0].print_help()
                return DONE
            parser.print_help(sys.stderr)
            return USAGE
        name, command = arguments[0], self._find(arguments[0])
        if name == "run":
            self.add_run_options()
        elif name in EXTENDED:
            self.add_from_plugins()
        parser = HelpParser(prog=f"rhapsody {name}", description=command.help, allow_abbrev=False)
        self.configure(name, parser)
        parsed, given = argparse.Namespace(commands=self), list(arguments[1:])
        if name in STARTS_SCRIPTS:
            end = [*given, "--"].index("--")
            parsed.arguments, given = given[end + 1 :], given[:end]
        parse = parser.parse_known_args
        if name in MIXED:
            parse = parser.parse_known_intermixed_args
        parsed, unknown = parse(given, parsed)
        for word in unknown if name == "run" else ():
            flag = word.partition("=")[0]
            require_known(known.RUN_OPTIONS, flag, f"option {flag}")
        if unknown and name in STARTS_SCRIPTS:
            raise UsageError(_misplaced(unknown, parser))
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        _require_directory()
        result = command.run(parsed)
        return DONE if result is None else result

    def overview(self) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
        """Return the top-level parser, and the parsers of the commands by name.

        The parsers of the commands are not configured yet.
        """
        parser = HelpParser(
            prog="rhapsody",
            description="Run workflows, and inspect their backends and results.",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # one version per line
            epilog="" if self._with_plugins else _plugins_text(),
        )
        text = "print the versions of Rhapsody and its plugins"
        parser.add_argument("--version", action="version", version=_versions(), help=text)
        text = "import the plugins, and print this help with their commands"
        parser.add_argument("--plugins", action="store_true", help=text)
        commands = parser.add_subparsers(title="commands", metavar="COMMAND")
        return parser, {
            name: commands.add_parser(name, help=command.help)
            for name, command in self._commands.items()
        }

    def configure(self, name: str, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of a command to its parser."""
        configure = self._commands[name].configure
        if configure is not None:
            configure(parser)

    def _configure(self, name: str, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of a built-in command, and the options of plugins."""
        module = _module(name)
        module.configure(parser)
        if name in EXTENDED:
            module.extend(parser, self)

    def _find(self, name: str) -> _Command:
        if name not in self._commands:
            self.add_from_plugins()
        command = self._commands.get(name)
        if command is not None:
            return command
        require_known(known.COMMANDS, name, f"command {name!r}")
        hint = suggestion(name, self._commands, "commands")
        raise UsageError(f"unknown command {name!r}{hint}")


def _module(name: str) -> Any:
    """Return the module of a built-in command."""
    return import_module(f"rhapsody.cli.{name.replace('-', '_')}")


def _run_built_in(name: str, parsed: argparse.Namespace) -> int | None:
    result: int | None = _module(name).run(parsed)
    return result


def _check_name(kind: str, name: str, taken: Container[str]) -> None:
    if not name or name.startswith("-") or name.split() != [name]:
        raise ValueError(f"{kind} name {name!r} must be one word that does not begin with '-'")
    if name in taken:
        raise ValueError(f"a {kind} named {name!r} already exists")


def _require_directory() -> None:
    """Raise a `UsageError` if the current directory no longer exists."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError(
            "the current directory no longer exists; change to another directory, or run `cd .` "
            "if it was recreated"
        ) from None


def _misplaced(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Return the error message for unknown arguments: misspelled, or not placed after `--`."""
    names = [name for action in actions_of(parser) for name in action.option_strings]
    options = [name.removeprefix("--") for name in names]
    words = [each[2:].partition("=")[0] for each in unknown if each.startswith("--")]
    close = [each for word in words for each in similar(word, options, cutoff=0.75)]
    meant = f"did you mean --{close[0]}? " if close else ""
    return (
        f"unrecognized arguments: {shlex.join(unknown)}; {meant}put the script's own arguments "
        f"after --: {parser.prog} SCRIPT -- {shlex.join(unknown)}"
    )


def _plugins_text() -> str:
    """Return a hint to the commands of plugins, whose names are known only after an import."""
    names = sorted({entry.distribution for entry in installed().entries} - {CORE})
    if not names:
        return ""
    added = [f"{command} ({owner})" for command, owner in known.COMMANDS.items() if owner in names]
    text = f"Commands of installed plugins: {', '.join(added)}\n" if added else ""
    return (
        f"{text}Installed plugins may add commands (list them with --plugins): {', '.join(names)}"
    )


def _versions() -> str:
    """Return the versions of core and of the plugins' distributions, one per line."""
    versions = {CORE: "", **{entry.distribution: entry.version for entry in installed().entries}}
    if not versions[CORE]:  # its entry points were not found
        from rhapsody._version import __version__

        versions[CORE] = __version__
    return "\n".join(f"{name} {version}" for name, version in versions.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Arguments without the program's name; `sys.argv[1:]` if `None`.

    Returns:
        The exit code.

    Raises:
        SystemExit: argparse has printed help or an error, the user's program exited,
            or a signal ended the run.
    """
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        if not flush() and not end.code:
            return BROKEN_PIPE
        if end.code in ENDED_BY:
            complain(f"ended by {ENDED_BY[end.code]}")
        raise
    return code if flush() or code else BROKEN_PIPE


def _run(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name, report its errors, and return the exit code."""
    commands = Commands()
    try:
        return commands.run(arguments)
    except UsageError as error:
        complain(str(error))
        return USAGE
    except (CommandError, RhapsodyError) as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
