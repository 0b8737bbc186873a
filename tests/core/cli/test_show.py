"""`rhapsody show`: what a run has recorded about one task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody.cli import main
from rhapsody.fsutil import FileLock
from tests._support.histories import Records, call, end, finish, start

OLD, NAME = "20260101T000000-align-00a1", "20260102T000000-align-00b2"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """A run with a task that failed twice and kept its sandbox, and an older one with one task."""
    with Records(tmp_path) as found:
        found.write(OLD, call(1, "fetch"), end(1, 0, 0, 1), *finish(1, tasks=1, done=1))
        sandbox = found.base / NAME / "engine.1" / "engine.1.task.000002.2"
        sandbox.mkdir(parents=True)
        (sandbox / ".rhapsody.again").touch()
        failed = {
            "state": "FAILED",
            "exit_code": 2,
            "error": {
                "type": "TaskFailedError",
                "message": "ended with exit code 2",
                "stderr": "unexpected",
                "hints": ["look at it"],
            },
        }
        found.write(
            NAME,
            call(1, "fetch"),
            call(
                2, "align", kind="executable", dependencies=["task.000001"],
                resources={"memory": 200_000_000, "cores": 2}, settings={"retries": 1},
            ),
            call(3, "align_all", dependencies=["task.000001", "task.000002"]),
            call(4, "align_all", kind="function"),
            end(1, 0, 1, 2, outputs=[{"name": "a.fq", "path": "/data/a.fq", "size": 4200}]),
            end(2, 2, 3, 4, **failed, retried=True, sandbox="/none"),
            end(
                2, 4, 4, 8, attempt=2, **failed, sandbox=str(sandbox), stdout="read 3\n",
                usage={"cpu_seconds": 2.0, "peak_memory": 120_000_000, "read_bytes": 3000,
                       "build_seconds": 2.0},
            ),
            end(
                3, None, None, 8, state="FAILED", skipped=True,
                error={"type": "DependencyFailureError", "caused_by": ["task.000002"]},
            ),
            *finish(9, "failed", tasks=4, done=1, failed=2),
        )  # fmt: skip
        yield found


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["show", *arguments]) == code
    said = capsys.readouterr()
    return said.out, said.err


def rows(text: str) -> list[str]:
    """The lines with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_failed_executable(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    lines = rows(output(capsys, "align")[0])
    assert lines[0] == "align(2)"
    assert "task task.000002, executable align" in lines
    assert f"run {NAME}, align.py" in lines
    assert "state failed after 2 attempts" in lines
    assert "depends on task.000001 fetch(1) done" in lines
    assert "resources memory 200 MB, cores 2" in lines
    assert "settings retries=1" in lines
    first, second = lines.index("attempt 1: failed, retried"), lines.index("attempt 2: failed")
    assert "sandbox /none (removed)" in lines[first:second]
    assert "on local, worker-1" in lines[second:]
    used = "used CPU 2.0 s (25 % of 2 cores), memory 120 MB of 200 MB, read 3.0 kB, "
    assert f"{used}worker values built in 2.0 s, before it ran" in lines
    assert "exit code 2" in lines[second:]
    assert lines[second:].count("unexpected") == 1
    assert "hint: look at it" in lines[second:]
    assert "read 3" in lines[second:]
    assert any(" waited 1.0 s" in line for line in lines[first:second])
    assert any(" ran 4.0 s" in line for line in lines[second:])


def test_the_script_that_runs_it_again(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    last = output(capsys, "align")[0].splitlines()[-1]
    assert last == (
        f"to run it again: sh .rhapsody/{NAME}/engine.1/engine.1.task.000002.2/.rhapsody.again"
    )


def test_the_command_that_runs_a_function_again(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    last = output(capsys, "fetch")[0].splitlines()[-1]
    assert last == "to run it again: rhapsody run --rerun fetch align.py"
    records.write(NAME, call(1, "fetch"), end(1, 0, 0, 1), cwd="/there")
    last = output(capsys, "fetch")[0].splitlines()[-1]
    assert last == "to run it again: cd /there && rhapsody run --rerun fetch align.py"
    command = ["rhapsody", "run", "--fresh", "align.py", "--", "--fresh"]
    records.write(NAME, call(1, "fetch"), end(1, 0, 0, 1), command=command)
    last = output(capsys, "fetch")[0].splitlines()[-1]
    assert last == "to run it again: rhapsody run --rerun fetch align.py -- --fresh"
    records.write(NAME, call(1, "fetch"), end(1, 0, 0, 1), command=["python", "align.py"])
    assert "to run it again" not in output(capsys, "fetch")[0]


def test_files_and_skipped_tasks(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a.fq /data/a.fq 4.2 kB" in rows(output(capsys, "1")[0])
    lines = rows(output(capsys, "3")[0])
    assert "state skipped, because a dependency failed" in lines
    assert lines[lines.index("caused by:") + 1] == "task.000002"
    assert "attempt 1: failed, not submitted" in lines
    assert lines[lines.index("depends on:") + 2] == "task.000002 align(2) failed"


def test_a_task_that_was_not_submitted(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _ = output(capsys, "4")
    assert "state       pending" in text
    assert "attempt" not in text


def test_the_task_of_another_run(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"run {OLD}, align.py" in rows(output(capsys, "00a1", "fetch")[0])
    path = str(records.base / OLD)
    found = json.loads(output(capsys, path, "--json", "fetch")[0])
    assert found["run"]["name"] == OLD


def test_a_task_that_runs(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    path = records.write(NAME, call(1, "fetch"), start(1, 1))
    lock = FileLock(path.parent / ".lock")
    assert "attempt 1: running\n" in output(capsys, "fetch")[0]
    lock.let_go()
    assert "attempt 1: running when the run ended" in output(capsys, "fetch")[0]


def test_json_has_a_stable_form(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "align", "--json")[0])
    assert set(found) == {
        "run", "task", "name", "kind", "call", "state", "skipped", "reused", "fallback",
        "called", "block", "scope", "dependencies", "resources", "settings", "attempts", "rerun",
    }  # fmt: skip
    last = found["attempts"][-1]
    assert set(last) == {
        "number", "state", "backend", "worker", "submitted", "started", "ended", "reused",
        "retried", "skipped", "exit_code", "error", "sandbox", "stdout", "stderr", "stdout_path",
        "stderr_path", "usage", "resources", "inputs", "outputs", "fallback", "waits_for",
    }  # fmt: skip
    assert last["error"]["type"] == "TaskFailedError"
    assert set(last["error"]) == {
        "type", "message", "traceback", "caused_by", "place", "stderr", "hints",
    }  # fmt: skip
    assert last["usage"]["peak_memory"] == 120_000_000
    assert found["rerun"].startswith("sh ")


def test_text_that_could_control_the_terminal_is_escaped(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"type": "ValueError", "message": "bad\x1b[2J\tvalue\nline"}
    records.write(NAME, call(1, "fetch"), end(1, 0, 0, 1, state="FAILED", error=error))
    text, _ = output(capsys, "fetch")
    assert "\x1b" not in text
    assert "bad\\x1b[2J" in text
    assert "    line\n" in text


def test_a_damaged_record(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME, "{", end(1, 0, 0, 1), tail='{"event":"end","uid":"task.00')
    text, error = output(capsys, "1")
    assert "task.000001" in text
    assert "is damaged: line 3 is skipped" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "no task 'none'"),
        (["fech"], "did you mean fetch?"),
        (["align_all"], "selects 2 tasks"),
        (["00a1"], f"'00a1' is the run {OLD}; name a task of it as well"),
    ],
)
def test_errors(
    records: Records, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    text, error = output(capsys, *arguments, code=2)
    assert text == ""
    assert message in error


def test_help_and_missing_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (["--help"], 0), ([], 2), (["a", "b", "c"], 2):
        with pytest.raises(SystemExit) as ended:
            main(["show", *arguments])
        assert ended.value.code == code
    assert "usage: rhapsody show" in capsys.readouterr().out


def test_a_task_that_is_done_by_fallback(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"type": "TaskTimeoutError", "message": "exceeded"}
    replaced = end(1, 0, 0, 1, fallback=True, error=error)
    records.write(NAME, call(1, "fit"), replaced, *finish(1, tasks=1, done=1, fallbacks=1))
    text, _ = output(capsys, "fit")
    assert "done by fallback after TaskTimeoutError" in text
    assert "attempt 1: failed" in text
    found = json.loads(output(capsys, "fit", "--json")[0])
    assert (found["state"], found["fallback"]) == ("DONE", True)
    assert found["attempts"][0]["error"]["type"] == "TaskTimeoutError"
