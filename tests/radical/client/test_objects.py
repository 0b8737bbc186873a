"""Attributes and methods of RADICAL-Pilot's objects, compared with the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rhapsody_radical.pilot import rp

CLASSES = {
    "session": rp.Session,
    "pilot manager": rp.PilotManager,
    "task manager": rp.TaskManager,
    "pilot": rp.Pilot,
    "task": rp.raptor_tasks.Raptor,
}
PAGE = Path(__file__).parents[3] / "docs/reference/radical-pilot.md"


@pytest.mark.parametrize("name", CLASSES)
def test_documented_attributes_and_methods_exist(name: str) -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    (row,) = (row for row in rows if row[0].strip("`") == name)
    attributes, methods = (re.findall(r"`(\w+)`", cell) for cell in row[1:])
    assert attributes
    assert methods
    for attribute in attributes:
        assert not callable(getattr(CLASSES[name], attribute)), attribute
    for method in methods:
        assert callable(getattr(CLASSES[name], method)), method
