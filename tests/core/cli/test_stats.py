"""`rhapsody stats`: the table by task name, the critical path, and two runs side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.cli import main
from tests._support.histories import Records, call, end, finish, first_byte, start

FIRST, SECOND = "20260101T000000-align-00a1", "20260102T000000-align-00b2"
ASKED: dict[str, Any] = {"resources": {"memory": 400_000_000}}


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Two runs of the same program; the first took twice as long."""
    with Records(tmp_path) as found:
        for name, scale in ((FIRST, 2.0), (SECOND, 1.0)):
            usage = {"usage": {"cpu_seconds": 3 * scale, "peak_memory": int(50_000_000 * scale)}}
            found.write(
                name,
                call(1, "fetch"),
                call(2, "align", dependencies=["task.000001"], **ASKED),
                call(3, "align", dependencies=["task.000001"], **ASKED),
                end(1, 0, 1 * scale, 2 * scale),
                end(2, 2 * scale, 2 * scale, 8 * scale, **usage),
                end(3, 2 * scale, 8 * scale, 10 * scale, state="FAILED", **usage),
                *finish(10 * scale, "failed", tasks=3, done=2, failed=1),
            )
        yield found


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["stats", *arguments]) == code
    said = capsys.readouterr()
    return said.out, said.err


def test_the_time_for_building_worker_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Records(tmp_path) as records:
        for name, built in ((FIRST, 2.0), (SECOND, 1.0)):
            usage = {"usage": {"build_seconds": built}}
            tasks = [call(1, "use"), call(2, "use"), end(1, 0, 3, 4, **usage), end(2, 0, 4, 5)]
            records.write(name, *tasks, *finish(5, tasks=2, done=2))
        assert "time for building worker values: use 1.0 s" in output(capsys)[0].splitlines()
        assert json.loads(output(capsys, "--json")[0])["names"][0]["build_seconds"] == 1.0
        rows = [line.split() for line in output(capsys, FIRST, SECOND)[0].splitlines()]
        assert ["build", "2.0", "s", "1.0", "s"] in [row[:5] for row in rows]


def test_the_table_by_name(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys)[0].splitlines()
    assert lines[:2] == [
        f"align.py, run {SECOND}",
        "failed in 10.0 s: 2 done, 1 failed",
    ]
    header, align, fetch = [line.split("  ") for line in lines[3:6]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (header, align, fetch)]
    assert cells[0] == [
        "NAME", "COUNT", "FAILED", "MEDIAN", "P95", "MAX", "TOTAL", "CPU", "MEMORY", "ASKED"
    ]  # fmt: skip
    assert cells[1] == [
        "align", "2", "1", "4.0 s", "5.8 s", "6.0 s", "8.0 s", "75 %", "50 MB", "400 MB"
    ]  # fmt: skip
    assert cells[2] == ["fetch", "1", "0", *["1.0 s"] * 4, "-", "-", "-"]
    assert "most unused memory: align, 350 MB of the 400 MB that were requested" in lines
    assert all(len(line) <= 80 for line in lines)


def test_the_critical_path(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "00a1")[0].splitlines()
    at = lines.index("critical path: 2 tasks, 20.0 s of 20.0 s, 14.0 s of it waiting")
    assert [line.split() for line in lines[at + 1 :]] == [
        ["TASK", "WAITED", "RAN", "CALL"],
        ["task.000001", "2.0", "s", "2.0", "s", "fetch(1)"],
        ["task.000003", "12.0", "s", "4.0", "s", "align(3)"],
    ]


def test_a_long_path_shows_its_longest_tasks(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for number in range(1, 31):
        lines.append(call(number, "step", dependencies=[f"task.{number - 1:06d}"]))
        lines.append(end(number, number * number, number * number, (number + 1) ** 2))
    records.write("20260103T000000-chain-00c3", *lines)
    text, _ = output(capsys)
    assert "and 10 shorter ones" in text
    assert "step(10)" not in text
    assert "step(10)" in output(capsys, "--all")[0]
    assert len(json.loads(output(capsys, "--json")[0])["critical_path"]["tasks"]) == 30


def test_two_runs_are_compared(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "00a1", "00b2")[0].splitlines()
    assert lines[0] == f"1: align.py, run {FIRST}, failed"
    rows = [" ".join(line.split()) for line in lines[3:]]
    assert rows[0] == "NAME VALUE RUN 1 RUN 2 RATIO"
    assert "run time 20.0 s 10.0 s 0.50" in rows
    assert "critical path 20.0 s 10.0 s 0.50" in rows
    at = rows.index("align count 2 2 1.00")
    assert rows[at + 1 : at + 3] == ["failed 1 1 1.00", "median 8.0 s 4.0 s 0.50"]
    assert "memory 100 MB 50 MB 0.50" in rows
    assert at < rows.index("fetch count 1 1 1.00")  # its total changed more
    assert all(len(line) <= 80 for line in lines)


def test_reused_results_are_compared(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [call(1, "align"), end(1, None, None, 1, reused=True)]
    records.write("20260103T000000-again-00c3", *lines)
    rows = [" ".join(line.split()) for line in output(capsys, "00b2", "00c3")[0].splitlines()]
    assert "failed 1 0 0.00" in rows
    assert "reused 0 1 -" in rows
    assert not any(row.startswith("skipped") for row in rows)


def test_many_names_are_compared_on_demand(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("20260103T000000-many-00c3", "20260104T000000-many-00d4"):
        lines = [call(number, f"step_{number:02}") for number in range(1, 31)]
        records.write(run, *lines, *[end(number, 0, 0, number) for number in range(1, 31)])
    text, _ = output(capsys, "00c3", "00d4")
    assert text.splitlines()[-1] == "and 10 more names; --all lists them"
    assert text.count("count") == 20
    assert "median" not in text  # of one task, only the total is shown
    assert output(capsys, "00c3", "00d4", "--all")[0].count("count") == 30


def test_names_whose_memory_is_unknown_are_listed(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [call(number, f"step_{number}", resources={"memory": 10**9}) for number in range(1, 8)]
    records.write("20260103T000000-many-00c3", *lines, *[end(n, 0, 0, 1) for n in range(1, 8)])
    text, _ = output(capsys)
    assert "used memory unknown: step_1, step_2, step_3, step_4, step_5, ...\n" in text
    assert "most unused" not in text
    assert "unknown" not in output(capsys, "00b2")[0]


def test_a_run_without_tasks(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write("20260103T000000-empty-00c3", *finish(1.0))
    assert output(capsys)[0].splitlines()[1:] == [
        "done in 1.0 s: no tasks",
        "",
        "critical path: no task has ended",
    ]


def test_a_name_of_only_one_run_is_compared_as_well(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write("20260103T000000-new-00c3", call(1, "new"), end(1, 0, 0, 1))
    rows = [" ".join(line.split()) for line in output(capsys, "00b2", "00c3")[0].splitlines()]
    assert "new count - 1 -" in rows
    assert "align count 2 - -" in rows


def test_json_has_a_stable_form(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "--json")[0])
    assert set(found) == {"run", "names", "critical_path"}
    align = found["names"][0]
    assert set(align) == {
        "name", "kind", "count", "done", "failed", "skipped", "canceled", "reused", "retried",
        "durations", "cpu_seconds", "cpu_efficiency", "peak_memory", "requested_memory",
        "build_seconds",
    }  # fmt: skip
    assert align["durations"] == {
        "count": 2, "median": 4.0, "p95": pytest.approx(5.8), "max": 6.0, "total": 8.0
    }  # fmt: skip
    assert set(found["critical_path"]) == {"seconds", "waited", "ran", "tasks"}
    assert found["critical_path"]["tasks"][0] == {
        "task": "task.000001", "name": "fetch", "call": "fetch(1)", "waited": 1.0, "ran": 1.0
    }  # fmt: skip
    assert found["run"]["counts"]["failed"] == 1
    both = json.loads(output(capsys, "--json", "00a1", "00b2")[0])
    assert both["runs"][1] == found
    assert both["runs"][0]["run"]["name"] == FIRST


def test_a_run_in_progress(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    from rhapsody.fsutil import FileLock

    path = records.write("20260103T000000-live-00c3", call(1, "part"), start(1, 0))
    lock = FileLock(path.parent / ".lock")
    text, _ = output(capsys)
    assert text.splitlines()[1].startswith("running for ")
    assert text.splitlines()[1].endswith(": 0 done, 1 running")
    assert "critical path: 1 task" in text
    lock.release()


def test_a_record_without_tasks(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write("20260103T000000-x-00c3", *finish(1))
    assert "no task has ended" in output(capsys)[0]


def test_three_runs_cannot_be_compared(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    text, error = output(capsys, "00a1", "00b2", "00a1", code=2)
    assert text == ""
    assert "cannot compare 3 runs" in error
    assert error.startswith("rhapsody: ")


def test_a_record_that_cannot_be_read(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    path = records.base / SECOND / "run.jsonl"
    path.unlink()
    path.mkdir()
    text, error = output(capsys, str(path.parent), code=2)
    assert text == ""
    assert "no recorded run" in error


def test_a_closed_pipe_ends_the_command_quietly(records: Records) -> None:
    out, error = first_byte("stats", "--json")
    assert out == "{"
    assert error in ("0\n", "141\n")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["stats", "--help"])
    assert ended.value.code == 0
    assert "compare two runs" in capsys.readouterr().out


@pytest.mark.long
def test_a_hundred_thousand_tasks_take_little_time(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for number in range(1, 100_001):
        lines += [call(number, f"step{number % 20}"), end(number, 0, number, number + 1)]
    records.write("20260103T000000-big-00c3", *lines)
    began = time.process_time()
    assert "step19" in output(capsys)[0]
    assert time.process_time() - began < 10  # measured: 2 s
