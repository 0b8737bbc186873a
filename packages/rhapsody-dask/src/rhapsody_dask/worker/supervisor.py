"""Ends the programs of a worker that was killed before it could do so itself.

The core's reaper, one for each worker process that runs programs. Here each
program announces itself to it before it becomes what it is to be, so that none is
missed where a worker is killed while it starts one.
"""

from __future__ import annotations

from collections.abc import Sequence

from rhapsody.sdk import Reaper

ANNOUNCE = 'printf "+%d\\n" $$ >&2; exec "$@" 2>>"$0"'
"""Run by a shell whose standard error is the pipe, with the file for errors as `$0`."""


def announced(command: Sequence[str], errors: str) -> list[str]:
    """The command that announces itself before it becomes `command`.

    Args:
        command: The program and its arguments.
        errors: The file that its standard error is added to.
    """
    return ["/bin/sh", "-c", ANNOUNCE, errors, *command]


supervisor: Reaper = Reaper()
"""The reaper of this process's programs."""
