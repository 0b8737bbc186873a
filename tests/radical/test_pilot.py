"""Names of RADICAL-Pilot's current and former API, and built descriptions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody.errors import BackendError, BackendUnavailableError
from rhapsody_radical import pilot
from rhapsody_radical.pilot import rp

FORMER = [
    "Session",
    "Context",
    "PilotManager",
    "ComputePilotDescription",
    "ComputePilot",
    "UnitManager",
    "ComputeUnitDescription",
    "ComputeUnit",
    "PilotException",
    "DatabaseError",
]


def test_every_former_name_is_exported() -> None:
    for name in FORMER:
        assert hasattr(pilot, name)
        assert name in pilot.__all__
        assert name in dir(pilot)


@pytest.mark.parametrize(("former", "current"), pilot.FORMER.items())
def test_former_names_refer_to_current_classes(former: str, current: str) -> None:
    assert getattr(pilot, former) is getattr(rp, current)


@pytest.mark.parametrize("name", pilot.CURRENT)
def test_current_names_refer_to_radical_pilots_classes(name: str) -> None:
    assert getattr(pilot, name) is getattr(rp, name)


def test_radical_pilot_is_imported_on_first_use_without_output(
    tmp_path: Path,
) -> None:
    lines = [
        "import logging, os, sys",
        "logging.basicConfig()  # RADICAL-Pilot warns where this came first",
        "before = dict(os.environ)",
        "from rhapsody_radical import pilot",
        "assert 'radical.pilot' not in sys.modules",
        "assert pilot.Session.__module__.startswith('radical.pilot')",
        "assert dict(os.environ) == before",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "RADICAL_BASE": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_context_raises_with_an_explanation_of_its_replacement() -> None:
    with pytest.raises(NotImplementedError, match=r"~/\.ssh/config"):
        pilot.Context("ssh")


def test_exceptions_are_backend_errors() -> None:
    assert issubclass(pilot.PilotException, BackendUnavailableError)
    assert issubclass(pilot.DatabaseError, BackendError)


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = pilot.Nonsense


def test_modules_of_the_program_do_not_import_radical(tmp_path: Path) -> None:
    names = ["descriptions", "translate", "links", "functions", "diagnosis", "pilot", "states"]
    lines = [f"import rhapsody_radical.{name}" for name in names]
    lines += ["import sys", "print([x for x in sys.modules if x.split('.')[0] == 'radical'])"]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")
