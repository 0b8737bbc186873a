"""The command `rhapsody`, which checks the installation before it imports the command line.

Nothing in `rhapsody` may be imported before the check, because the package's files may belong to
another distribution.
"""

from __future__ import annotations

import sys

from rhapsody_guard import check

__all__ = ["main"]


def main() -> int:
    """Check the installation, and run the command line.

    Returns:
        The exit code; 1 if the check fails, with an explanation on standard error.
    """
    try:
        check()
    except ImportError as error:
        sys.stderr.write(f"rhapsody: {error}\n")
        return 1
    from rhapsody.cli import main as command_line

    return command_line()
