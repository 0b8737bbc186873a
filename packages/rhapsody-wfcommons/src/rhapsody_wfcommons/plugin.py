"""Entry point of the plugin: adds `rhapsody replay` to the command line."""

from __future__ import annotations

from rhapsody import hookimpl
from rhapsody.plugins import CommandLine
from rhapsody_wfcommons import command


@hookimpl
def rhapsody_commands(cli: CommandLine) -> None:
    """Add the command `replay`."""
    cli.add_command("replay", command.HELP, command.configure, command.run)
