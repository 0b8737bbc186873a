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


def run(place: Path, *sources: dict[str, Any], command: str = "ls") -> Any:
    """Run the `pre_exec` commands for some dependencies, and a command, as RADICAL-Pilot does."""
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {"pre_exec": "true"}}
    backend = RadicalExecutionBackend()
    for source in sources:
        backend.link_implicit_data_deps(source, target)
    lines = [f"{line} || exit 1" for line in target["task_backend_specific_kwargs"]["pre_exec"]]
    (place / "b").mkdir(exist_ok=True)
    return subprocess.run(
        ["sh", "-c", "\n".join([*lines, command])],
        cwd=place / "b",
        env={**os.environ, "RP_PILOT_SANDBOX": str(place), "src": "mine", "name": "too"},
        capture_output=True,
        text=True,
    )


def test_implicit_copies_do_not_change_the_tasks_variables(tmp_path: Path) -> None:
    (tmp_path / "a.1").mkdir()
    (tmp_path / "a.1" / "it's made").touch()
    done = run(tmp_path, {"uid": "a.1"}, command='echo "$src $name"; ls')
    assert done.stdout.splitlines() == ["mine too", "it's made"]


def test_a_dependent_changes_only_its_own_copy(tmp_path: Path) -> None:
    source, outside = tmp_path / "a.1", tmp_path / "outside"
    (source / "d").mkdir(parents=True)
    for path in (outside, source / "out.txt", source / "d" / "log", source / "-rf"):
        path.write_text("old\n")
    (source / "input").symlink_to(outside)
    (source / "latest").symlink_to("out.txt")
    (source / "a.1.out").touch()
    (source / ".rhapsody.stdout").touch()
    done = run(
        tmp_path, {"uid": "a.1"}, command="echo new >> latest; echo new > d/log; cat out.txt; ls"
    )
    assert done.stdout.splitlines() == ["old", "new", "-rf", "d", "input", "latest", "out.txt"]
    assert (source / "out.txt").read_text() == (source / "d/log").read_text() == "old\n"
    assert (tmp_path / "b" / "input").samefile(outside)
    assert (tmp_path / "b" / "input").is_symlink()


def test_two_dependencies_that_left_different_files_of_one_name_fail_the_task(
    tmp_path: Path,
) -> None:
    for uid in ("a.1", "a.2", "a.3"):
        (tmp_path / uid).mkdir()
        (tmp_path / uid / "same").write_text("same")
        (tmp_path / uid / "given").write_text(uid)
    (tmp_path / "a.3" / "same").write_text("other")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "given").write_text("declared")
    done = run(tmp_path, {"uid": "a.1"}, {"uid": "a.2"}, command="cat given same")
    assert done.stdout == "declaredsame"
    done = run(tmp_path, {"uid": "a.1"}, {"uid": "a.3"})
    assert done.returncode != 0
    assert "'same'" in done.stderr


def test_the_engine_can_leave_out_names(tmp_path: Path) -> None:
    (tmp_path / "a.1").mkdir()
    for name in ("one", "the other"):
        (tmp_path / "a.1" / name).touch()
    done = run(tmp_path, {"uid": "a.1", "left_out": ["the other"]})
    assert done.stdout == "one\n"
