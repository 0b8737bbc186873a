"""The pytest option of the conformance kit, for `-p rhapsody.testing.plugin`.

Not an entry point: it would load this package into every pytest run on a machine.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--rhapsody-table`."""
    parser.getgroup("rhapsody").addoption(
        "--rhapsody-table",
        dest="rhapsody_table",
        choices=("plain", "markdown"),
        default="plain",
        help="how the conformance kit writes its tables at the end of the run",
    )
