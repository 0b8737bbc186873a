"""`rhapsody status`: tasks that run, wait or have failed, also in a run that is in progress."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.cli import main
from rhapsody.fsutil import FileLock
from rhapsody.sdk.runs import JOBS
from tests._support.histories import (
    Records,
    call,
    end,
    finish,
    on_terminal,
    start,
    started,
    submit,
)
from tests._support.programs import PATIENCE

NAME = "20260102T000000-align-00b2"
ERROR = {
    "type": "TaskFailedError",
    "message": "ended with exit code 2",
    "stderr": "reading\nunexpected end",
}

LINES: list[dict[str, Any]] = [
    call(1, "fetch"),
    call(2, "fetch"),
    call(3, "align", dependencies=["task.000001"]),
    call(4, "align", dependencies=["task.000002"]),
    call(5, "align", dependencies=["task.000001"]),
    call(6, "align", dependencies=["task.000001"]),
    call(7, "report", dependencies=["task.000002", "task.000004"]),
    call(8, "other"),
    call(9, "skip", dependencies=["task.000003"]),
    end(1, 0, 0, 1),
    start(2, 1),
    end(3, 1, 1, 2, state="FAILED", error=ERROR),
    submit(4, 5, after=2),
    end(6, 1, 1, 2, state="FAILED", retried=True),
    end(9, 2, None, 2, state="FAILED", skipped=True),
]
"""A run in which tasks are in each state; the backend has the dependencies of 4."""


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with Records(tmp_path) as found:
        found.write(NAME, *LINES)
        yield found


@pytest.fixture
def active(records: Records) -> Iterator[FileLock]:
    """The lock of the run, which is active until it is released."""
    lock = FileLock(records.base / NAME / ".lock")
    yield lock
    lock.release()


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["status", *arguments]) == code
    said = capsys.readouterr()
    return said.out, said.err


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_run_in_progress(active: FileLock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = rows(output(capsys)[0])
    assert lines[0] == f"align.py, run {NAME}"
    assert lines[1].startswith("running for ")
    assert lines[1].endswith("1 done, 1 failed, 1 skipped, 1 running, 5 waiting, 1 retried")
    assert "process 1 on" in lines[2]
    assert "NAME WAITING RUNNING DONE FAILED SKIPPED" in lines
    assert "align 3 0 0 1 0" in lines
    at = lines.index("running (1):")
    assert lines[at + 2].startswith("task.000002 2023-11-14 ")
    assert lines[at + 2].endswith(" local, worker-1 fetch(2)")
    at = lines.index("waiting (5):")
    ends = [
        "align(4) task.000002 fetch(2) (running)",
        "align(5) free resources of local",
        "align(6) its next attempt",
        "report(7) 1 fetch, 1 align",
        "other(8) its submission",
    ]
    assert all(line.endswith(end) for line, end in zip(lines[at + 2 :], ends, strict=False))
    at = lines.index("failed (1):")
    error = ["task.000003 align(3)", "ended with exit code 2", "unexpected end", ""]
    assert lines[at + 1 : at + 5] == error
    assert lines[-1] == f"details: rhapsody show {NAME} task.000003"


def test_jobs_of_a_killed_run_that_may_continue(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = records.base / NAME / "engine.1" / "backend" / JOBS
    jobs.parent.mkdir(parents=True)
    lines = [
        {"job": "41", "tasks": {"engine.1.task.000001.1": {}, "engine.1.task.000002.1": {}}},
        {"job": "42", "tasks": {"engine.1.task.000005.1": {}}},
    ]
    jobs.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    said = rows(output(capsys)[0])
    at = said.index("jobs that may continue (2):")  # the first task has ended
    assert said[at + 2 : at + 4] == ["task.000002 41 fetch(2)", "task.000005 42 align(5)"]
    found = json.loads(output(capsys, "--json")[0])["jobs"]
    assert [each["job"] for each in found] == ["41", "42"]


def test_failures_alike_are_one_entry(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    def failed(number: int, message: str, line: int) -> dict[str, Any]:
        frames = [f'  File "align.py", line {line}, in clean', "    return float(text)"]
        error = {"type": "ValueError", "message": message, "traceback": frames}
        error["place"] = f"align.py:{line}"
        return end(number, 0, 0, 1, state="FAILED", error=error)

    alike = [failed(number, f"no number: {number}", 7) for number in range(1, 31)]
    lines = [*(call(number, "clean") for number in range(1, 32)), *alike, failed(31, "empty", 9)]
    records.write(NAME, *lines, *finish(2, "failed", tasks=31, failed=31))
    found = rows(output(capsys)[0])
    assert found[found.index("failed (31):") + 1 : -2] == [
        "task.000001 clean(1)",
        "ValueError: no number: 1",
        "and 29 more like this: task.000002, task.000003, task.000004, ...",
        "task.000031 clean(31)",
        "ValueError: empty",
    ]
    assert "ValueError: no number: 30" in rows(output(capsys, "--all")[0])


def test_a_run_that_was_killed(active: FileLock, capsys: pytest.CaptureFixture[str]) -> None:
    active.let_go()
    lines = rows(output(capsys)[0])
    assert lines[1].startswith("killed: ")
    assert "running at the end (1):" in lines
    assert "not started (5):" in lines


def test_a_run_on_another_host(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    path = records.write(NAME, *LINES, host="node17")
    (path.parent / ".lock").write_text("node17")
    assert "may be running on node17" in output(capsys)[0]
    records.write(NAME, *LINES, host=socket.gethostname())
    assert "ended without a record of its end" in output(capsys)[0]


def test_a_run_that_has_ended(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME, call(1, "fetch"), end(1, 0, 0, 1), *finish(2, tasks=1, done=1))
    lines = rows(output(capsys)[0])
    assert lines[1] == "done in 2.0 s: 1 done"
    assert lines[-2:] == ["NAME DONE FAILED", "fetch 1 0"]
    records.write(NAME)
    assert "no tasks" in output(capsys)[0]


def test_many_waiting_tasks_are_grouped(
    records: Records, active: FileLock, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [call(number, "late", dependencies=["task.000002"]) for number in range(10, 60)]
    records.write(NAME, *LINES, *more)
    text, _ = output(capsys)
    assert "COUNT NAME SINCE WAITS FOR" in rows(text)
    assert any(line.startswith("50 late ") and line.endswith("1 fetch") for line in rows(text))
    assert "task.000059" not in text
    more += [call(60, "end", dependencies=[f"task.{number:06d}" for number in (2, 5, 7, 8, 59)])]
    records.write(NAME, *LINES, *more)
    assert any(
        line.endswith("1 fetch, 1 align, 1 report, 2 more") for line in rows(output(capsys)[0])
    )
    assert "task.000059" in output(capsys, "--all")[0]
    assert len(json.loads(output(capsys, "--json")[0])["waiting"]) == 56


def test_a_narrow_terminal(
    active: FileLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in "rhapsody.cli.output", "rhapsody.cli.status":
        monkeypatch.setattr(f"{module}.terminal_width", lambda: 70)
    lines = output(capsys)[0].splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("running ("))
    assert max(map(len, lines[at:-1])) <= 70


def test_json_has_a_stable_form(active: FileLock, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "--json")[0])
    assert set(found) == {"run", "names", "running", "waiting", "failed", "fallbacks", "jobs"}
    assert found["run"]["outcome"] == "running"
    assert set(found["names"][0]) == {
        "name", "waiting", "running", "done", "failed", "skipped", "canceled"
    }  # fmt: skip
    task = {"task", "name", "call"}
    assert set(found["running"][0]) == task | {"attempt", "backend", "worker", "started"}
    assert set(found["waiting"][0]) == task | {"reason", "tasks", "backend", "since", "detail"}
    assert [each["reason"] for each in found["waiting"]] == [
        "dependencies", "resources", "retry", "dependencies", "engine"
    ]  # fmt: skip
    assert found["waiting"][3]["tasks"] == ["task.000002", "task.000004"]
    assert set(found["failed"][0]) == task | {"error"}
    expected = {"type": ERROR["type"], "message": ERROR["message"]}
    assert found["failed"][0]["error"] == expected


def test_the_exit_code_is_shown(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME, {"event": "run_end", "time": 9.0, "outcome": "failed", "exit_code": 7})
    assert ", exit code 7: " in output(capsys)[0]
    assert json.loads(output(capsys, "--json")[0])["run"]["exit_code"] == 7


def test_watch_prints_a_line_for_each_change_until_the_run_ends(
    records: Records,
    active: FileLock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = records.base / NAME / "run.jsonl"
    later = [
        [],
        [end(2, 1, 1, 3)],
        [],
        [end(4, 3, 3, 4), *finish(5, "failed", tasks=9, done=3)],
    ]

    def sleep(seconds: float) -> None:
        with path.open("a") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in later.pop(0))

    monkeypatch.setattr("rhapsody.cli.status.time.sleep", sleep)
    lines = output(capsys, "--watch")[0].splitlines()
    assert not later
    assert "1 done" in lines[0]
    assert "2 done" in lines[1]
    assert "3 done" in lines[2]
    assert lines[3] == f"align.py, run {NAME}"
    assert lines[4].startswith("failed in 5.0 s")


def test_watch_on_a_terminal_shows_the_status_in_place(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLUMNS", raising=False)
    records.write(NAME, *LINES, *finish(5, "failed", tasks=9, done=1))
    text = on_terminal("status", "--watch")
    screen, _, rest = text.partition("\x1b[?1049l")  # end of the alternate screen
    for each in screen, rest:
        assert f"align.py, run {NAME}" in each
        assert "\x1b[31mfailed\x1b[0m" in each
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", rest)
    assert max(map(len, plain.splitlines())) <= 80


def test_watch_ends_if_the_run_is_killed(
    records: Records,
    active: FileLock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("rhapsody.cli.status.time.sleep", lambda seconds: active.let_go())
    found = [json.loads(line) for line in output(capsys, "-w", "--json")[0].splitlines()]
    assert [each["run"]["outcome"] for each in found] == ["running", "killed"]


def test_interrupting_watch(
    active: FileLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rhapsody.cli.status.time.sleep", sleep)
    assert "interrupted" in output(capsys, "--watch", code=130)[1]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", "--help"])
    assert ended.value.code == 0
    assert "--watch" in capsys.readouterr().out


PROGRAM = """
async def main(flow):
    @flow.executable_task
    def wait(name):
        return f"echo started; touch {name}; cat fifo; echo ended; exit 3"

    @flow.function_task
    def after(value):
        return value

    import os
    await after(wait(os.path.abspath("started")))
"""


def test_another_process_follows_a_run_until_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = PROGRAM.replace("cat fifo", f"cat {tmp_path}/fifo")
    os.mkfifo(tmp_path / "fifo")
    run = started(program, tmp_path)
    watching = subprocess.Popen(
        [sys.executable, "-c", WATCH],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    try:
        found = [json.loads(watching.stdout.readline())]
        while not found[-1]["running"]:
            found.append(json.loads(watching.stdout.readline()))
        assert found[-1]["running"][0]["name"] == "wait"
        assert found[-1]["waiting"][0]["reason"] == "dependencies"
        os.kill(run.pid, signal.SIGKILL)
        rest, _ = watching.communicate(timeout=PATIENCE)
        last = json.loads(rest.splitlines()[-1])
        assert last["run"]["outcome"] == "killed"
        assert watching.returncode == 0
    finally:
        for process in run, watching:
            process.kill()
            process.communicate(timeout=PATIENCE)
    monkeypatch.chdir(tmp_path)
    for arguments, expected in (
        (["runs"], "killed"),
        (["show", "wait"], "running when the run ended"),
        (["logs", "wait"], "started\n"),
        (["stats"], "wait"),
        (["status"], "running at the end (1):"),
    ):
        assert main(arguments) == 0
        assert expected in capsys.readouterr().out


WATCH = """
import sys, time
from pathlib import Path
from rhapsody.cli import main

deadline = time.monotonic() + 60
while not list(Path(".rhapsody").glob("*/run.jsonl")) and time.monotonic() < deadline:
    time.sleep(0.02)
while not next(Path(".rhapsody").glob("*/run.jsonl")).stat().st_size:
    time.sleep(0.02)
sys.exit(main(["status", "--watch", "--json"]))
"""
"""Program that waits for a run to be recorded, and then follows it."""


def test_tasks_that_are_done_by_fallback_are_listed_with_their_errors(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"type": "TaskTimeoutError", "message": "exceeded"}
    replaced = end(1, 0, 0, 1, fallback=True, error=error)
    records.write(NAME, call(1, "fit"), replaced, *finish(1, tasks=1, done=1, fallbacks=1))
    found = json.loads(output(capsys, "--json")[0])
    assert found["run"]["counts"]["fallback"] == 1
    assert [each["error"] for each in found["fallbacks"]] == [error]
    text, _ = output(capsys)
    assert "1 done (1 by fallback)" in text
    assert "TaskTimeoutError: exceeded" in text
