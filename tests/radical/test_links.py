"""Links to input files, in the documented form."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rhapsody import DataError
from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
from rhapsody_radical.pilot import rp


def test_an_external_file_is_transferred() -> None:
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {}}
    backend = RadicalExecutionBackend()
    given = backend.link_explicit_data_deps(dst_task=target, file_path="/data/in.txt")
    expected = {"source": "/data/in.txt", "target": "task:///in.txt", "action": rp.TRANSFER}
    assert given == expected
    assert target["task_backend_specific_kwargs"]["input_staging"] == [expected]


def test_a_file_of_another_task_is_linked() -> None:
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {}}
    backend = RadicalExecutionBackend()
    given = backend.link_explicit_data_deps({"uid": "a"}, target, file_name="out")
    assert given == {"source": "pilot:///a/out", "target": "task:///out", "action": rp.LINK}
    directory = backend.link_explicit_data_deps(None, target, file_path="/data/set/")
    assert directory["target"] == "task:///set"
    second = backend.link_explicit_data_deps(None, target, "2/in.txt", "/data/b/in.txt")
    assert second["target"] == "task:///2/in.txt"
    copied = backend.link_explicit_data_deps(None, target, "in", "/data/in.txt", copy=True)
    assert copied == {"source": "/data/in.txt", "target": "task:///in", "action": rp.COPY}
    for name in ("../in.txt", "2/../../in.txt", "/in.txt"):
        with pytest.raises(DataError):
            backend.link_explicit_data_deps(None, target, name, "/data/in.txt")


def test_a_link_without_a_name_or_source_is_rejected() -> None:
    backend, target = RadicalExecutionBackend(), {"uid": "b", "task_backend_specific_kwargs": {}}
    with pytest.raises(ValueError, match="either file_path, or both"):
        backend.link_explicit_data_deps({"uid": "a"}, target)
    with pytest.raises(ValueError, match="src_task"):
        backend.link_explicit_data_deps(None, target, file_name="out")


def test_an_implicit_link_names_its_source() -> None:
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {"pre_exec": ["date"]}}
    RadicalExecutionBackend().link_implicit_data_deps({"uid": "a.1"}, target)
    first, *commands = target["task_backend_specific_kwargs"]["pre_exec"]
    assert first == "date"
    assert commands[0] == "export SRC_TASK_ID=a.1"
    assert commands[1].startswith("export SRC_TASK_SANDBOX=")


def test_an_implicit_link_does_not_change_the_tasks_variables(tmp_path: Path) -> None:
    (tmp_path / "a.1").mkdir()
    (tmp_path / "a.1" / "it's made").touch()
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {"pre_exec": "true"}}
    RadicalExecutionBackend().link_implicit_data_deps({"uid": "a.1"}, target)
    lines = [*target["task_backend_specific_kwargs"]["pre_exec"], 'echo "$src $name"', "ls"]
    done = subprocess.run(
        ["sh", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**os.environ, "RP_PILOT_SANDBOX": str(tmp_path), "src": "mine", "name": "too"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["mine too", "a.1", "it's made"]
