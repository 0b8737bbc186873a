"""Tests of the reader: damaged, incomplete, replaced and newer records, and lists of runs."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody.builtin.record.recorder import RecordFile
from rhapsody.fsutil import FileLock
from rhapsody.history.reader import RecordError, RecordReader, describe_run, list_runs, read_run
from rhapsody.states import TasksMainStates

RUN: dict[str, Any] = {
    "event": "run", "format": 1, "program": "/p.py", "pid": 1, "host": socket.gethostname(),
    "started": 10.0,
}  # fmt: skip
ENGINE: dict[str, Any] = {"event": "engine", "uid": "engine.1", "time": 11.0}
CALL: dict[str, Any] = {
    "event": "call", "uid": "task.000001", "name": "part", "call": "part(1)", "time": 12.0,
}  # fmt: skip
END: dict[str, Any] = {
    "event": "end", "uid": "task.000001", "state": "DONE", "started": 13.0, "ended": 15.0,
}  # fmt: skip
RUN_END: dict[str, Any] = {
    "event": "run_end",
    "time": 16.0,
    "outcome": "done",
    "stats": {"tasks": 1},
}


def text(*lines: Any) -> str:
    """Lines of a record; text is taken as it is."""
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


def write(path: Path, *lines: Any) -> Path:
    """Write a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(*lines))
    return path


def test_a_complete_record(tmp_path: Path) -> None:
    history = read_run(write(tmp_path / "r.jsonl", RUN, ENGINE, CALL, END, RUN_END))
    assert history.run.outcome == "done"
    assert history.run.seconds == 6.0
    assert history.run.stats == {"tasks": 1}
    task = history.tasks["task.000001"]
    assert (task.call, task.engine, task.number) == ("part(1)", "engine.1", "000001")
    assert task.attempts[0].seconds == 2.0
    assert task.attempts[0].waited is None


def test_a_damaged_line_is_reported_and_skipped(tmp_path: Path) -> None:
    lines = [RUN, ENGINE, '{"event": "call", "ui', CALL, "[1]", '{"event": "end"}', END, RUN_END]
    history = read_run(write(tmp_path / "r.jsonl", *lines))
    assert history.tasks["task.000001"].state is TasksMainStates.DONE
    assert [problem.split(" is skipped")[0] for problem in history.problems] == [
        "line 3",
        "line 5",
        "line 6",
    ]


DEEP = "[" * 100_000
"""A line that the parser cannot read, because its recursion is limited."""


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_line_that_is_nested_too_deeply_is_damaged(tmp_path: Path, place: str) -> None:
    lines: list[Any] = [RUN, ENGINE, CALL, END]
    lines.insert({"first": 0, "middle": 2, "last": 4}[place], DEEP)
    path = write(tmp_path / "20260101T000000-p-0001" / "run.jsonl", *lines)
    (found,) = list_runs(tmp_path)
    assert (found.problem is not None) == (place == "first")
    if place == "first":
        with pytest.raises(RecordError):
            read_run(path)
    else:
        assert len(read_run(path).problems) == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"uid": 7},
        {"uid": ["task.000001"]},
        {"state": "ODD"},
        {"error": "text"},
        {"inputs": [3]},
        {"attempt": None, "error": [1]},
        {"started": "x"},
        {"worker": 7},
        {"usage": {"cpu_seconds": "x"}},
        {"resources": {"cores": None}},
    ],
    ids=str,
)
def test_a_line_with_values_of_wrong_types_is_not_fatal(tmp_path: Path, damage: Any) -> None:
    path = write(tmp_path / "r.jsonl", RUN, ENGINE, CALL, END | damage, RUN_END)
    assert read_run(path).problems


MALFORMED: dict[str, Any] = {
    "run": {"pid": "x", "started": "x", "arguments": 3, "packages": [1]},
    "engine": {"backends": 3, "stats": [1], "problems": [1], "time": "x"},
    "run_end": {"stats": {"tasks": "x"}, "time": "x", "backends": 3, "outcome": 5},
}


@pytest.mark.parametrize(
    ("event", "name"), [(event, name) for event, names in MALFORMED.items() for name in names]
)
def test_lines_of_the_run_with_malformed_values(tmp_path: Path, event: str, name: str) -> None:
    damage = {name: MALFORMED[event][name]}
    lines = [line | damage if line["event"] == event else line for line in (RUN, ENGINE, RUN_END)]
    path = write(tmp_path / "20260101T000000-p-0001" / "run.jsonl", *lines[:2], CALL, lines[2])
    if event == "run":
        with pytest.raises(RecordError, match=f"its first line is malformed .{name} is "):
            read_run(path)
    else:
        (problem,) = read_run(path).problems
        assert f"{name} is {damage[name]!r}" in problem
    (found,) = list_runs(tmp_path)
    assert (found.problem is None) == (event == "engine")


def test_a_task_whose_call_is_damaged_is_still_listed(tmp_path: Path) -> None:
    history = read_run(write(tmp_path / "r.jsonl", RUN, ENGINE, "{", END))
    assert history.tasks["task.000001"].name == ""
    assert history.tasks["task.000001"].state is TasksMainStates.DONE


def test_an_incomplete_last_line_is_read_once_it_is_complete(tmp_path: Path) -> None:
    path, whole = tmp_path / "r.jsonl", text(RUN, ENGINE, CALL, END)
    path.write_text(whole[:-20])
    reader = RecordReader(path)
    assert reader.update()
    assert not reader.history().tasks["task.000001"].attempts
    assert not reader.update()
    path.write_text(whole)
    assert reader.update()
    assert reader.history().tasks["task.000001"].ended
    assert reader.history() == read_run(path)


def test_a_record_that_another_run_has_replaced_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", RUN, ENGINE, CALL, END, RUN_END)
    reader = RecordReader(path)
    reader.update()
    write(path, RUN | {"program": "/q.py"}, ENGINE)
    reader.update()
    assert reader.history().run.program == "/q.py"
    assert not reader.history().tasks


def test_attempts_that_were_read_earlier_are_kept(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl", RUN, ENGINE, CALL, END | {"state": "FAILED", "retried": True}
    )
    reader = RecordReader(path)
    reader.update()
    assert reader.history().tasks["task.000001"].state is TasksMainStates.PENDING
    start = {"event": "start", "uid": "task.000001", "attempt": 2, "started": 20.0}
    for line, state in (start, "RUNNING"), (END | {"attempt": 2}, "DONE"):
        with path.open("a") as file:
            file.write(text(line))
        reader.update()
        task = reader.history().tasks["task.000001"]
        assert task.state == state
        assert [each.number for each in task.attempts] == [1, 2]
        assert task.name == "part"


def test_unknown_events_and_keys_are_ignored(tmp_path: Path) -> None:
    more = {"event": "weather", "uid": 3}
    path = write(tmp_path / "r.jsonl", RUN | {"mood": 1}, ENGINE, more, CALL, END | {"x": []})
    assert read_run(path).problems == ()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", RUN | {"format": 2})
    with pytest.raises(RecordError, match="upgrade rhapsody-core"):
        read_run(path)


@pytest.mark.parametrize("first", ["", "{", "[]", "3", '{"event": "call"}', '{"event": "run"}'])
def test_other_files_are_refused(tmp_path: Path, first: str) -> None:
    with pytest.raises(RecordError):
        read_run(write(tmp_path / "r.jsonl", first))


def test_an_empty_file_has_no_run_yet(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.touch()
    with pytest.raises(RecordError, match="empty"):
        read_run(path)


def test_the_outcome_of_a_run_without_an_end_depends_on_its_lock(tmp_path: Path) -> None:
    path = write(tmp_path / "20260101T000000-p-0001" / "run.jsonl", RUN, ENGINE)
    assert read_run(path).run.outcome == "unknown"
    lock = FileLock(path.parent / ".lock")
    assert read_run(path.parent).run.outcome == "running"
    lock.let_go()
    assert read_run(path).run.outcome == "killed"
    (path.parent / ".lock").write_text("elsewhere")
    assert read_run(path).run.outcome == "unknown"


def test_the_outcome_of_a_record_elsewhere_depends_on_its_own_lock(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    file = RecordFile(str(path), fresh=True)
    assert read_run(path).run.outcome == "running"
    file.close()
    assert read_run(path).run.outcome == "killed"
    write(path, RUN | {"host": "elsewhere"})
    assert read_run(path).run.outcome == "unknown"


def test_an_engine_after_the_end_continues_the_run(tmp_path: Path) -> None:
    path = tmp_path / "20260101T000000-p-0001" / "run.jsonl"
    write(path, RUN, ENGINE, RUN_END, ENGINE | {"uid": "engine.2"})
    lock = FileLock(path.parent / ".lock")
    assert read_run(path).run.outcome == describe_run(path).outcome == "running"
    lock.release()


def test_runs_are_listed_newest_first_without_reading_them(tmp_path: Path) -> None:
    names = [f"2026010{day}T000000-p-000{day}" for day in range(1, 5)]
    for name in names[:3]:
        write(tmp_path / name / "run.jsonl", RUN, ENGINE, *[CALL] * 1000, RUN_END)
    (tmp_path / names[3]).mkdir()  # not recorded
    (tmp_path / names[1] / "run.jsonl").write_text("damaged\n")
    runs = list_runs(tmp_path)
    assert [run.name for run in runs] == [names[2], names[1], names[0]]
    assert [run.outcome for run in runs] == ["done", "unknown", "done"]
    assert [run.problem is None for run in runs] == [True, False, True]
    assert list_runs(tmp_path / "none") == []


def test_records_that_are_pipes_or_devices_are_listed_with_the_reason(tmp_path: Path) -> None:
    names = [f"2026010{day}T000000-p-000{day}" for day in range(1, 4)]
    for name in names:
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / names[0] / "run.jsonl")
    (tmp_path / names[1] / "run.jsonl").symlink_to("/dev/zero")
    write(tmp_path / names[2] / "run.jsonl", RUN, ENGINE, RUN_END)
    problems = [run.problem or "" for run in list_runs(tmp_path)]
    assert [problem.partition("] ")[2] for problem in problems] == [
        "", f"it is a device, not a file: '{tmp_path / names[1] / 'run.jsonl'}'",
        f"it is a named pipe, not a file: '{tmp_path / names[0] / 'run.jsonl'}'",
    ]  # fmt: skip
    for name in names[:2]:
        with pytest.raises(OSError, match="not a file"):
            read_run(tmp_path / name)


@pytest.mark.long
def test_a_hundred_thousand_tasks_are_read_quickly(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with path.open("w") as file:
        file.write(text(RUN, ENGINE))
        for number in range(1, 100_001):
            uid = {"uid": f"task.{number:06d}"}
            file.write(text(CALL | uid, END | uid))
    began = time.process_time()
    assert len(read_run(path).tasks) == 100_000
    assert time.process_time() - began < 10  # measured: 1.1 s


def test_a_record_that_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "none")
    assert not os.listdir(tmp_path)
