"""`rhapsody trace`: the lanes do not overlap, and the file follows the Trace Event Format."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.cli import main
from rhapsody.fsutil import FileLock
from tests._support.histories import Records, call, end, finish, first_byte, start

NAME = "20260101T000000-align-00a1"
FILE = f"{NAME}.trace.json"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """An empty directory for records."""
    with Records(tmp_path) as found:
        yield found


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["trace", *arguments]) == code
    said = capsys.readouterr()
    return said.out, said.err


def events(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The events of the trace, after a check of the rules for all traces."""
    found = json.loads(output(capsys, "-o", "-", *arguments)[0])
    assert found["displayTimeUnit"] == "ms"
    given: list[dict[str, Any]] = found["traceEvents"]
    times = [each["ts"] for each in given]
    assert times == sorted(times)
    assert all(type(time) is int and time >= 0 for time in times)
    by_thread = defaultdict(list)
    for each in given:
        if each["ph"] == "X":
            assert type(each["dur"]) is int
            assert each["dur"] > 0
            by_thread[each["tid"]].append(each)
    for thread in by_thread.values():
        for first, second in itertools.pairwise(thread):
            assert first["ts"] + first["dur"] <= second["ts"]
    return given


def lanes(given: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """The names of the events, by the names of process and thread."""
    named = [each for each in given if each["ph"] == "M" and each["name"].endswith("_name")]
    processes = {x["pid"]: x["args"]["name"] for x in named if x["name"] == "process_name"}
    threads = [x for x in named if x["name"] == "thread_name"]
    assert len({x["tid"] for x in threads}) == len(threads), "Perfetto would mix them"
    return {
        (processes[x["pid"]], x["args"]["name"]): [
            each["name"]
            for each in given
            if each["ph"] == "X" and (each["pid"], each["tid"]) == (x["pid"], x["tid"])
        ]
        for x in threads
    }


def test_attempts_are_complete_events_on_the_lane_of_their_worker(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(
        NAME,
        call(1, "fetch"),
        call(2, "align", dependencies=["task.000001"]),
        call(3, "plot"),
        end(1, 0, 1, 2.5, retried=True, state="FAILED", error={"type": "E", "message": "no"}),
        end(1, 3, 3.5, 4, attempt=2, worker="worker-10", usage={"cpu_seconds": 0.25}),
        end(2, 4, 4, 6, worker="worker-2", backend="dask"),
        end(3, 4, None, 4, reused=True),
        *finish(6, tasks=2, done=2),
    )
    given = events(capsys)
    assert list(lanes(given)) == [
        ("dask", "worker-2"), ("local", "worker-1"), ("local", "worker-10")
    ]  # fmt: skip
    first, second, third = [each for each in given if each["ph"] == "X"]
    assert (first["ts"], first["dur"], first["cat"]) == (1_000_000, 1_500_000, "failed")
    assert first["args"]["error"] == "E: no"
    assert second["args"] == {
        "uid": "task.000001", "call": "fetch(1)", "attempt": 2, "state": "DONE",
        "worker": "worker-10", "seconds": 0.5, "waited": 0.5, "cpu_seconds": 0.25,
    }  # fmt: skip
    assert (third["name"], third["ts"], third["dur"]) == ("align", 4_000_000, 2_000_000)


def test_the_time_for_building_worker_values_precedes_the_attempt(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = {"build_seconds": 1.5}
    records.write(
        NAME,
        call(1, "use"),
        call(2, "use"),
        end(1, 0, 2, 3, usage=usage),
        end(2, 3, 4, 5, usage=usage),  # the clock of the worker differs
        *finish(5, tasks=2, done=2),
    )
    found = [each for each in events(capsys) if each["name"] == "build worker values"]
    assert [(each["ts"], each["dur"]) for each in found] == [
        (500_000, 1_500_000),
        (3_000_000, 1_000_000),
    ]
    assert [each["args"]["uid"] for each in found] == ["task.000001", "task.000002"]


def test_simultaneous_attempts_of_a_worker_are_on_several_lanes(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = [(0, 5), (1, 3), (1, 2), (3, 4), (2.5, 6), (5, 5), (5, 7)]
    calls = [call(number, f"t{number}") for number, _ in enumerate(spans)]
    ends = [end(number, 0, *span) for number, span in enumerate(spans)]
    records.write(NAME, *calls, *ends, *finish(7))
    found = lanes(events(capsys))
    assert [name for _, name in found] == ["worker-1", "worker-1 (2)", "worker-1 (3)"]
    assert sorted(itertools.chain(*found.values())) == [f"t{each}" for each in range(7)]


def test_an_end_that_was_noticed_late_takes_no_second_lane(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [call(1, "a"), call(2, "b")]
    records.write(NAME, *calls, end(1, 0, 1, 2.004), end(2, 0, 2, 3), *finish(3))
    given = events(capsys)
    assert list(lanes(given).values()) == [["a", "b"]]
    first = next(each for each in given if each["ph"] == "X")
    assert first["dur"] == 1_000_000
    assert first["args"]["seconds"] == pytest.approx(1.004)


def test_programs_share_lanes_although_each_has_its_own_process(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = [end(each, 0, each, each + 1, worker=f"process {each}") for each in (1, 2, 3)]
    records.write(NAME, *(call(each, "tool") for each in (1, 2, 3)), *ends, *finish(4))
    assert lanes(events(capsys)) == {("local", "process"): ["tool"] * 3}


def test_blocks_and_the_backends_of_several_engines_are_separate_processes(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    other: dict[str, Any] = {"engine": "engine.2"}
    records.write(
        NAME,
        call(1, "a"),
        {"event": "engine", "uid": "engine.2", "time": 1.0, "backends": []},
        call(1, "b", **other),
        call(2, "whole", kind="block", **other),
        end(1, 0, 1, 2),
        end(1, 0, 1, 2, **other),
        end(2, 0, 1, 3, backend=None, worker=None, **other),
        *finish(4),
    )
    assert lanes(events(capsys)) == {
        ("blocks (engine.2)", "block"): ["whole"],
        ("local (engine.1)", "worker-1"): ["a"],
        ("local (engine.2)", "worker-1"): ["b"],
    }


def test_dependencies_are_arrows_from_event_to_event(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(
        NAME,
        call(1, "a"),
        call(2, "b"),
        call(3, "c", dependencies=["task.000001", "task.000002"]),
        end(1, 0, 1, 2, worker="worker-1"),
        end(2, 0, 5, 6, worker="worker-2"),  # its clock is wrong
        end(3, 2, 2, 3, worker="worker-1"),
        *finish(3),
    )
    given = events(capsys, "--dependencies")
    from_a, to_c = [each for each in given if each["ph"] in "sf"]
    a, c, _ = [each for each in given if each["ph"] == "X"]
    assert (from_a["id"], from_a["tid"]) == (to_c["id"], a["tid"])
    assert a["ts"] <= from_a["ts"] < a["ts"] + a["dur"]
    assert (to_c["ts"], to_c["tid"], to_c["bp"]) == (c["ts"], c["tid"], "e")
    assert given.index(to_c) > given.index(c)
    assert not [each for each in events(capsys) if each["ph"] in "sf"]


def test_the_default_file_is_named_after_the_run(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME, call(1, "a"), end(1, 0, 1, 2), *finish(2))
    out, error = output(capsys, "00a1")
    assert out == ""
    assert f"wrote {FILE}" in error
    about = json.loads((records.path / FILE).read_text())["otherData"]
    assert (about["run"], about["program"], about["outcome"]) == (NAME, "align.py", "done")
    output(capsys, "-o", "other.json", "00a1")
    assert (records.path / "other.json").read_text() == (records.path / FILE).read_text()


def test_a_run_in_progress_and_a_killed_run(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = call(1, "a"), call(2, "b"), end(1, 0, 1, 4), start(2, 2)
    path = records.write(NAME, *lines, "{", tail='{"event":"en')
    lock = FileLock(path.parent / ".lock")
    running = json.loads(output(capsys, "-o", "-")[0])
    assert running["otherData"]["outcome"] == "running"
    assert running["traceEvents"][-1]["dur"] > 1_000_000_000  # until now
    lock.release()
    (path.parent / ".lock").touch()  # its process was killed
    text, error = output(capsys, "-o", "-")
    killed = json.loads(text)
    assert killed["otherData"]["outcome"] == "killed"
    last = killed["traceEvents"][-1]
    assert (last["name"], last["cat"], last["dur"]) == ("b", "running", 2_000_000)
    assert "is damaged: line 7 is skipped" in error


def test_a_run_without_tasks_has_a_valid_trace(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME)
    assert events(capsys) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "missing/t.json"], 1, "cannot write missing/t.json: No such file"),
        (["bad.jsonl"], 1, "is not a record of a run"),
        (["future.jsonl"], 1, "upgrade rhapsody-core"),
    ],
)
def test_errors(
    records: Records,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    records.write(NAME, call(1, "a"))
    records.write_unreadable()
    assert message in output(capsys, *arguments, code=code)[1]
    assert not list(records.path.glob("*.trace.json"))


def test_a_closed_pipe_ends_the_command_quietly(records: Records) -> None:
    records.write(NAME, *(call(each, "a") for each in range(2000)),
                  *(end(each, 0, each, each + 1) for each in range(2000)))  # fmt: skip
    assert first_byte("trace", "-o", "-") == ("{", "141\n")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trace", "--help"])
    assert ended.value.code == 0
    assert "ui.perfetto.dev" in capsys.readouterr().out
