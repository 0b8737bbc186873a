"""The pytest options of the conformance kit, for `-p rhapsody.testing.plugin`.

Not an entry point: that would load this package into every pytest run on a machine.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--rhapsody-table` and `--rhapsody-repeat`."""
    group = parser.getgroup("rhapsody")
    group.addoption(
        "--rhapsody-table",
        dest="rhapsody_table",
        choices=("plain", "markdown"),
        default="plain",
        help="how the conformance kit writes its tables at the end of the run",
    )
    group.addoption(
        "--rhapsody-repeat",
        dest="rhapsody_repeat",
        type=_count,
        default=1,
        metavar="N",
        help="run each check of the conformance kit N times, to expose races",
    )


def _count(text: str) -> int:
    """Return the value of `--rhapsody-repeat`.

    Raises:
        ValueError: It is not a number from 1.
    """
    number = int(text)
    if number < 1:
        raise ValueError(f"--rhapsody-repeat must be a number from 1, got {text!r}")
    return number


@pytest.fixture
def _rhapsody_round(request: pytest.FixtureRequest) -> int:
    """Return the number of the round, see `--rhapsody-repeat`."""
    return int(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat the checks of conformance classes."""
    count = metafunc.config.getoption("rhapsody_repeat")
    if count > 1 and hasattr(metafunc.function, "check"):
        rounds = range(1, count + 1)
        metafunc.fixturenames.append("_rhapsody_round")
        metafunc.parametrize("_rhapsody_round", rounds, indirect=True, ids=map(_id, rounds))


def _id(number: int) -> str:
    return f"round {number}"
