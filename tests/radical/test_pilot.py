"""Names of RADICAL-Pilot's current and former API, and built descriptions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import BackendError, BackendUnavailableError
from rhapsody_radical import pilot
from rhapsody_radical.pilot import described, rp
from rhapsody_radical.translate import describe_executable
from tests.radical.stand_ins import task

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


def test_radical_pilot_accepts_the_description_of_an_executable() -> None:
    settings = {"input_staging": ["a > b"], "cpu_processes": 2, "timeout": 5, "pre_exec": "date"}
    words = describe_executable(task(settings), None)
    description = described("TaskDescription", words, "it")
    assert isinstance(description, rp.TaskDescription)
    assert (description.ranks, description.timeout, description.pre_exec) == (2, 5.0, ["date"])
    assert description.input_staging[0]["target"] == "b"


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"rank": 2}, TypeError, "it has no 'rank'; did you mean 'ranks'"),
        ({"sauce": 2}, TypeError, "it has no 'sauce'; it has uid, name,"),
        ({"flavour": 2}, TypeError, "did you mean 'flavours'"),
        ({"ranks": "many"}, TypeError, 'it: .*"ranks".* expected type'),
        ({"tags": {"a": "\udcff"}}, ValueError, "it: tags: .* surrogates"),
        ({"metadata": {"a": 1 << 70}}, ValueError, "it: metadata: Integer"),
        ({"input_staging": [{"sauce": "a"}]}, ValueError, 'it: .*"sauce" is invalid'),
        ({"executable": ""}, ValueError, "it: "),
    ],
)
def test_a_rejected_description_names_the_key(
    settings: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        described("TaskDescription", {"executable": "true", **settings}, "it", ["flavours"])
    with pytest.raises(TypeError, match="it has no 'resorce'; did you mean 'resource'"):
        described("PilotDescription", {"resorce": "local.localhost"}, "it")
