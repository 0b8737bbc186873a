"""`python -m rhapsody_testing NAME FILE`: writes the table of a backend's capabilities into a file.

The table in the file is replaced. `capability_table` returns the same table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rhapsody import BackendRegistry
from rhapsody_testing import capability_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table.

    Args:
        arguments: The arguments of the command; `None` for those of this process.

    Returns:
        The exit code.

    Raises:
        SystemExit: There is no such backend, or the file cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="python -m rhapsody_testing",
        description="Write the table of a backend's capabilities into its README.",
    )
    parser.add_argument("backend", metavar="NAME", help="the backend, as in `rhapsody backends`")
    parser.add_argument("file", metavar="FILE", type=Path, help="the file, such as README.md")
    given = parser.parse_args(arguments)
    try:
        table = capability_table(BackendRegistry.get_backend_class(given.backend)).splitlines()
        lines = given.file.read_text("utf-8").split("\n")
        if table[0] not in lines:
            parser.error(f"{given.file} does not contain the first line of the table: {table[0]}")
        start = end = lines.index(table[0])
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        given.file.write_text("\n".join([*lines[:start], *table, *lines[end:]]), "utf-8")
    except (ValueError, ImportError, TypeError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
