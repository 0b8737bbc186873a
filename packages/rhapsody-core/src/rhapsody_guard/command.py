"""The command `rhapsody`: the check first, and the command line only after it.

Nothing of `rhapsody` may be imported before, as its files may be another distribution's.
"""

from __future__ import annotations

import sys

from rhapsody_guard import check

__all__ = ["main"]


def main() -> int:
    """Check the installation, and run the command line.

    Returns:
        The exit code; 1 where the check fails, which standard error then explains.
    """
    try:
        check()
    except ImportError as error:
        sys.stderr.write(f"rhapsody: {error}\n")
        return 1
    from rhapsody.cli import main as command_line

    return command_line()
