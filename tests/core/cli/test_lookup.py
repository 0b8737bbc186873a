"""Selection of a run and damaged records, in all commands that read one record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.cli import main
from tests._support.histories import Records, call, end

FIRST, SECOND = "20260101T000000-align-00a1", "20260102T000000-align-00b2"
EMPTY = "20260104T000000-empty-00d4"

COMMANDS = {
    "status": (),
    "show": ("part",),
    "logs": ("part",),
    "stats": (),
    "graph": (),
    "trace": ("-o", "-"),
}
"""Arguments of each command after the name of the run."""

commands = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Two runs with the same task."""
    with Records(tmp_path) as found:
        for name in FIRST, SECOND:
            found.write(name, call(1, "part"), end(1, 0, 0, 1))
        yield found


def output(
    capsys: pytest.CaptureFixture[str], command: str, *run: str, code: int = 0
) -> tuple[str, str]:
    assert main([command, *run, *COMMANDS[command]]) == code
    said = capsys.readouterr()
    return said.out, said.err


@commands
@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        ("none", 2, "no recorded run 'none'"),
        ("00ff", 2, "no recorded run '00ff'"),
        ("2026", 2, "selects 2 runs"),
        ("bad.jsonl", 1, "is not a record of a run"),
        ("future.jsonl", 1, "upgrade rhapsody-core"),
        (EMPTY, 1, "is empty"),
    ],
)
def test_errors(
    records: Records,
    capsys: pytest.CaptureFixture[str],
    command: str,
    run: str,
    code: int,
    message: str,
) -> None:
    records.write_unreadable()
    if run == EMPTY:
        (records.base / EMPTY).mkdir()
        (records.base / EMPTY / "run.jsonl").touch()
    text, error = output(capsys, command, run, code=code)
    assert text == ""
    assert message in error
    assert error.startswith("rhapsody: ")


@commands
def test_a_damaged_record(
    records: Records, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    last = end(1, 0, 0, 1, stdout="part of it\n")
    records.write(SECOND, call(1, "part"), "{", "[]", last, tail='{"event":"e')
    text, error = output(capsys, command)
    assert "part" in text
    assert "run.jsonl is damaged: line 4 is skipped" in error
    assert "and 1 more" in error


@pytest.mark.parametrize(
    "damage",
    [
        {"name": 5},
        {"time": "x"},
        {"time": 1e300},
        {"dependencies": [3]},
        {"uid": "task.000001", "event": "end", "state": "DONE", "ended": "x"},
        {"uid": "task.000001", "event": "start", "started": 1.0, "worker": 4.5},
        {"uid": "task.000001", "event": "end", "state": "DONE", "usage": {"cpu_seconds": "x"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["status", "stats"])
def test_a_task_with_malformed_values_is_left_out(
    records: Records, capsys: pytest.CaptureFixture[str], command: str, damage: dict[str, Any]
) -> None:
    part = call(1, "part")
    lines = [part, damage] if "event" in damage else [part | damage]
    records.write(SECOND, "{", *lines, call(2, "sound"))
    text, error = output(capsys, command)
    assert "is damaged: " in error
    assert "sound" in text
