"""Entry point of the plugin: adds `rhapsody replay` and an export format to the command line.

Every engine imports this module, so it imports the others only for the command line.
"""

from __future__ import annotations

from rhapsody import hookimpl
from rhapsody.plugins import CommandLine


@hookimpl
def rhapsody_commands(cli: CommandLine) -> None:
    """Add the command `replay` and the format `wfcommons`."""
    from rhapsody_wfcommons import command
    from rhapsody_wfcommons.export import export

    cli.add_command("replay", command.HELP, command.configure, command.run)
    cli.add_export_format("wfcommons", ".json", export)
