"""`rhapsody runs`: the table of recorded runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.cli import main
from tests._support.histories import BEGIN, Records, call, end, finish, on_terminal, start

NAMES = ["20260101T000000-align-00a1", "20260102T000000-screen-00b2", "20260103T000000-align-00c3"]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Three runs: one that succeeded, one that failed, and one that was killed."""
    with Records(tmp_path) as found:
        found.write(NAMES[0], *finish(61, tasks=3, done=3, recorded=1))
        found.write(
            NAMES[1],
            *finish(5, "failed", tasks=4, done=1, failed=3, skipped=2),
            program="screen.py",
        )
        lines = call(1, "part"), end(1, 0, 1, 2), call(2, "part"), start(2, 3)
        path = found.write(NAMES[2], *lines, tail='{"event":"en')
        (path.parent / ".lock").touch()  # not locked: its process was killed
        yield found


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["runs", *arguments]) == code
    said = capsys.readouterr()
    return said.out, said.err


def test_runs_are_listed_newest_first(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    text, error = output(capsys)
    header, *rows = [line.split() for line in text.splitlines()]
    assert header == ["RUN", "STARTED", "PROGRAM", "OUTCOME", "DONE", "FAILED", "TIME", "BACKEND"]
    assert [row[0] for row in rows] == ["00c3", "00b2", "00a1"]
    assert rows[0][2:] == ["align.py", "killed", "1/2", "0", "-", "local"]
    assert rows[1][2:] == ["screen.py", "failed", "1/4", "1", "5.0", "s", "local"]
    assert rows[2][2:] == ["align.py", "done", "3/3", "0", "0:01:01", "local"]
    assert error == ""
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_number_of_runs_can_be_limited(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _ = output(capsys, "-n", "1")
    assert text.splitlines()[1].startswith("00c3")
    assert text.splitlines()[2:] == ["2 more; -n 0 lists all"]
    assert len(output(capsys, "-n0")[0].splitlines()) == 4
    assert "invalid number of runs -1" in output(capsys, "-n-1", code=2)[1]


def test_runs_with_the_same_digits_are_listed_by_their_whole_name(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "20260104T000000-align-00b2"
    records.write(name)
    text, _ = output(capsys)
    assert [line.split()[0] for line in text.splitlines()[1:]] == [name, "00c3", NAMES[1], "00a1"]


def test_a_run_in_progress_is_listed_with_its_counts(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    from rhapsody.fsutil import FileLock

    lock = FileLock(records.base / NAMES[2] / ".lock")
    assert "  running  " in output(capsys)[0].splitlines()[1]
    (found, *_) = json.loads(output(capsys, "--json")[0])
    assert found["outcome"] == "running"
    assert found["counts"]["running"] == 1
    lock.release()


def test_the_list_as_json_has_a_stable_form(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(output(capsys, "--json")[0])
    assert [each["name"] for each in found] == NAMES[::-1]
    assert set(found[0]) == {
        "name", "path", "outcome", "program", "arguments", "profile", "host", "user", "owner",
        "pid", "exit_code",
        "started", "ended", "seconds", "backends", "counts", "problem",
    }  # fmt: skip
    assert found[1]["counts"] == {
        "tasks": 4, "waiting": 0, "running": 0, "done": 1, "failed": 1, "skipped": 2,
        "canceled": 0, "reused": 0, "retried": 0, "fallback": 0,
    }  # fmt: skip
    assert found[2]["started"] == BEGIN
    assert found[2]["seconds"] == 61


def test_a_damaged_record_is_listed_and_reported(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    (records.base / NAMES[1] / "run.jsonl").write_text("damaged\n")
    text, error = output(capsys)
    assert "unreadable" in text.splitlines()[2]
    assert f"{NAMES[1]}: " in error
    assert json.loads(output(capsys, "--json")[0])[1]["problem"]


@pytest.mark.parametrize(
    ("damage", "tasks"),
    [
        ([end(2, 0, 1, 2, retried="x")], 1),
        (["{", end(2, 0, 1, 2, retried="x")], 1),
        (["{", end(2, 0, 1, 2, reused=[1])], 1),
        (["{", start(2, 3) | {"attempt": "x"}], 1),
        ([{"event": "engine", "uid": "engine.2", "backends": 3}], 2),
    ],
    ids=str,
)
def test_malformed_values_in_a_run_without_an_end(
    records: Records, capsys: pytest.CaptureFixture[str], damage: list[Any], tasks: int
) -> None:
    records.write(NAMES[2], call(1, "part"), end(1, 0, 1, 2), call(2, "part"), *damage)
    counts = json.loads(output(capsys, "--json")[0])[0]["counts"]
    assert counts["tasks"] == tasks
    assert "align.py" in output(capsys)[0].splitlines()[1]


def test_malformed_values_at_the_end_of_a_run(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAMES[2], {"event": "run_end", "time": 5.0, "stats": {"tasks": "x"}})
    text, error = output(capsys)
    assert "unreadable" in text.splitlines()[1]
    assert f"{NAMES[2]}: its last line is malformed (stats is {{'tasks': 'x'}})" in error


def test_a_directory_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no recorded runs in" in output(capsys, str(tmp_path))[0]
    assert json.loads(output(capsys, "--json", str(tmp_path))[0]) == []
    assert "does not exist" in output(capsys, str(tmp_path / "none"), code=2)[1]


def test_the_table_fits_on_a_narrow_terminal(
    records: Records, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write("20260105T000000-x-00d4", program="/p/a_program_with_a_very_long_name_indeed.py")
    monkeypatch.setattr("rhapsody.cli.output.terminal_width", lambda: 70)
    text, _ = output(capsys)
    assert max(map(len, text.splitlines())) <= 70
    assert "a_pro" in text
    assert "..." in text


def test_a_terminal_shows_colors_unless_they_are_turned_off(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31mfailed\x1b[0m" in on_terminal("runs")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in on_terminal("runs")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--help"])
    assert ended.value.code == 0
    assert "newest first" in capsys.readouterr().out
