"""The command line: reads arguments, calls the library, prints, and gives exit codes.

Each command has a module of its own here; plugins add theirs through the hook
`rhapsody_commands`. It is started by `rhapsody_guard.command`.
"""

from rhapsody.cli.commands import main

__all__ = ["main"]
