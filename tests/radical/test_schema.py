"""RADICAL-Pilot's schema, compared with the installed library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody_radical import schema
from rhapsody_radical.descriptions import with_current_keys
from rhapsody_radical.pilot import rp

VALUES: dict[type, Any] = {int: 3, float: 3.0, str: "mine"}


def kinds(description: Any) -> dict[str, type]:
    """The keys of one of RADICAL-Pilot's descriptions, each with its type."""
    return {
        key: kind if isinstance(kind, type) else type(kind)
        for key, kind in description._schema.items()
    }


def test_keys_of_pilot_descriptions_match_the_library() -> None:
    assert dict(schema.PILOT) == kinds(rp.PilotDescription)


def test_keys_of_task_descriptions_match_the_library() -> None:
    assert dict(schema.TASK) == kinds(rp.TaskDescription)


@pytest.mark.parametrize("former", schema.FORMER)
def test_former_keys_are_converted_as_in_the_library(former: str) -> None:
    """Except for `worker_class`, which RADICAL-Pilot empties instead of copying it."""
    today, value = schema.FORMER[former], VALUES[schema.TASK[former]]
    given = {former: value, today: VALUES[schema.TASK[today]] * 2}
    verified = rp.TaskDescription({"executable": "true", **given}).verify()
    ours = with_current_keys(given)
    assert list(ours) == [today]
    assert ours[today] == (value if former == "worker_class" else verified[today])
    assert type(ours[today]) is schema.TASK[today]
    assert with_current_keys({former: type(value)(), today: value}) == {today: value}


def test_all_former_keys_of_the_library_are_known() -> None:
    """Check that the new key is known wherever RADICAL-Pilot moves the value of a key."""
    moved = {}
    for key, kind in schema.TASK.items():
        if kind in VALUES and key not in ("mode", "executable", "use_mpi"):
            words = {"executable": "true", key: VALUES[kind]}
            verified = rp.TaskDescription(words).verify()
            if verified[key] != VALUES[kind]:
                moved[key] = True
    assert set(moved) == set(schema.FORMER) - {"worker_class"}


CONSTANTS = [
    name for name, value in vars(schema).items() if name.isupper() and isinstance(value, str)
]


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_match_the_library(name: str) -> None:
    assert getattr(schema, name) == getattr(rp, name)


def test_final_states_match_the_library() -> None:
    assert set(schema.FINAL) == set(rp.FINAL)


def test_modules_of_the_program_do_not_import_radical(tmp_path: Path) -> None:
    names = ["schema", "descriptions", "translate", "links", "functions", "diagnosis"]
    names += ["pilot", "states"]
    lines = [f"import rhapsody_radical.{name}" for name in names]
    lines += ["import sys", "print([x for x in sys.modules if x.split('.')[0] == 'radical'])"]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")
