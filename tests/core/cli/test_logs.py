"""`rhapsody logs`: the output of an attempt, from files or from the record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.cli import main
from rhapsody.fsutil import FileLock
from rhapsody.history.outputs import PRINTED
from tests._support.histories import Records, call, end, finish, start, started
from tests._support.programs import PATIENCE

NAME = "20260102T000000-align-00b2"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with Records(tmp_path) as found:
        yield found


@pytest.fixture
def sandbox(records: Records) -> Path:
    """The sandbox of an attempt, with output in files."""
    path = records.base / NAME / "engine.1" / "box"
    path.mkdir(parents=True)
    (path / ".rhapsody.stdout").write_bytes(b"all of \xe2\x82\xac it\xff\n")
    (path / ".rhapsody.stderr").write_text("warning\n")
    return path


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["logs", *arguments]) == code
    said = capsys.readouterr()
    return said.out, said.err


def test_recorded_output(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME, call(1, "part"), end(1, 0, 0, 1, stdout="one\n", stderr="two\n"))
    assert output(capsys, "part") == ("one\n==> standard error <==\ntwo\n", "")
    assert output(capsys, "part", "--stdout") == ("one\n", "")
    assert output(capsys, "part", "--stderr") == ("two\n", "")


def test_control_characters_are_escaped_unless_raw_output_is_requested(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a\x1b[2J\u202eb\r\n"
    records.write(NAME, call(1, "part"), end(1, 0, 0, 1, stdout=text))
    assert output(capsys, "part")[0] == "a\\x1b[2J\\u202eb\n"
    assert output(capsys, "part", "--raw")[0] == text


def test_a_title_begins_a_line(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME, call(1, "part"), end(1, 0, 0, 1, stdout="one", stderr="two"))
    assert output(capsys, "1")[0] == "one\n==> standard error <==\ntwo"


def test_the_files_in_the_sandbox_are_preferred(
    records: Records, sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = end(1, 0, 0, 1, sandbox=str(sandbox), stdout="end only", stderr="end only")
    records.write(NAME, call(1, "part", kind="executable"), last)
    expected = "all of \u20ac it\ufffd\n==> standard error <==\nwarning\n"
    assert output(capsys, "part")[0] == expected
    (sandbox / ".rhapsody.stderr").unlink()
    assert output(capsys, "part", "--stderr")[0] == "end only"


def test_shortened_output_is_reported(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME, call(1, "part"), end(1, 0, 0, 1, stdout="x" * PRINTED))
    text, error = output(capsys, "part")
    assert text == "x" * PRINTED
    assert f"only the last {PRINTED} characters of the standard output are available" in error
    assert 'capture="files"' in error


def test_an_attempt_is_selected(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    first = end(1, 0, 0, 1, state="FAILED", retried=True, stdout="first\n")
    records.write(NAME, call(1, "part"), first, end(1, 1, 1, 2, attempt=2, stdout="second\n"))
    assert output(capsys, "part")[0] == "second\n"
    assert output(capsys, "part", "--attempt", "1")[0] == "first\n"
    error = output(capsys, "part", "--attempt", "3", code=2)[1]
    assert "task.000001 has no attempt 3; its attempts are: 1, 2" in error


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        ([], 1, "has not started; to wait for its output, pass -f"),
        ([start(1, 0)], 1, "the output of a function is recorded when it ends"),
        ([end(1, 0, 0, 1)], 1, "no standard output or standard error of task.000001 is recorded"),
        ([end(1, None, None, 1, state="FAILED", skipped=True)], 1, "because a dependency failed"),
        ([end(1, None, None, 1, reused=True)], 1, "the result of an earlier run was used"),
        ([end(1, 0, 0, 1, exit_code=0)], 0, "wrote nothing to standard output and standard error"),
        ([end(1, 0, 0, 1, stdout_path="/none/out")], 1, "/none/out, which was removed or is on"),
    ],
)
def test_the_reason_for_missing_output(
    records: Records,
    capsys: pytest.CaptureFixture[str],
    lines: list[dict[str, Any]],
    code: int,
    message: str,
) -> None:
    records.write(NAME, call(1, "part"), *lines)
    text, error = output(capsys, "part", code=code)
    assert text == ""
    assert message in error


def test_output_that_was_not_kept(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"capture": False}
    records.write(NAME, call(1, "part", settings=settings), end(1, 0, 0, 1, exit_code=0))
    error = output(capsys, "part", code=1)[1]
    assert "because the task has capture=False; capture=True keeps it" in error


def test_json_has_a_stable_form(
    records: Records, sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = call(1, "part"), end(1, 0, 0, 1, stdout="x" * PRINTED), call(2, "whole")
    records.write(NAME, *lines, end(2, 0, 0, 1, sandbox=str(sandbox)))
    found = json.loads(output(capsys, "part", "--json")[0])
    assert found == {
        "task": "task.000001",
        "attempt": 1,
        "stdout": {"text": "x" * PRINTED, "path": None, "complete": False},
        "stderr": {"text": None, "path": None, "complete": False},
    }
    records.write(
        NAME,
        call(1, "part"),
        end(1, 0, 0, 1, exit_code=0),
        call(2, "whole"),
        end(2, 0, 0, 1, sandbox=str(sandbox)),
    )
    found = json.loads(output(capsys, "part", "--json", "--stdout")[0])
    assert found["stdout"] == {"text": "", "path": None, "complete": True}
    found = json.loads(output(capsys, "whole", "--json", "--stderr")[0])
    path = str(sandbox / ".rhapsody.stderr")
    assert set(found) == {"task", "attempt", "stderr"}
    assert found["stderr"] == {"text": "warning\n", "path": path, "complete": True}


def scripted_sleep(*steps: Callable[[], object]) -> Callable[[float], None]:
    """A replacement for `time.sleep` that performs the next step."""
    left = list(steps)

    def sleep(seconds: float) -> None:
        left.pop(0)()

    return sleep


def test_following_a_task_through_its_attempts(
    records: Records,
    sandbox: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = records.write(NAME, call(1, "part", kind="executable"))
    lock = FileLock(path.parent / ".lock")

    def add(*lines: dict[str, Any]) -> Callable[[], object]:
        def write() -> None:
            with path.open("a") as file:
                file.writelines(f"{json.dumps(line)}\n" for line in lines)

        return write

    def more() -> None:
        with (sandbox / ".rhapsody.stdout").open("ab") as file:
            file.write("later \u20ac\n".encode()[:-2])

    def ended() -> None:
        with (sandbox / ".rhapsody.stdout").open("ab") as file:
            file.write("\u20ac\n".encode()[-2:])
        (sandbox / ".rhapsody.stdout").unlink()
        again = {"retried": True, "state": "FAILED", "stdout": "not again"}
        add(end(1, 0, 0, 1, sandbox=str(sandbox), **again))()

    steps = (
        add(start(1, 0, sandbox=str(sandbox))),
        more,
        ended,
        add(start(1, 2, attempt=2, sandbox="/none")),
        add(end(1, 2, 2, 3, attempt=2, stdout="second\n")),
    )
    monkeypatch.setattr("rhapsody.cli.logs.time.sleep", scripted_sleep(*steps))
    text, error = output(capsys, "-f", "--stdout", "part")
    lock.release()
    assert text == "all of \u20ac it\ufffd\nlater \u20ac\n==> attempt 2 <==\nsecond\n"
    assert error == ""


def test_following_ends_with_a_killed_run(
    records: Records, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = records.write(NAME, call(1, "part", kind="executable"), start(1, 0, sandbox="/none"))
    lock = FileLock(path.parent / ".lock")
    monkeypatch.setattr("rhapsody.cli.logs.time.sleep", scripted_sleep(lock.let_go))
    assert "no standard output or standard error was found" in output(capsys, "-f", "part")[1]


def test_following_a_task_that_never_starts(
    records: Records, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME, call(1, "part"), *finish(1))
    assert "task.000001 has not started" in output(capsys, "-f", "part", code=1)[1]


def test_interrupting(
    records: Records, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    path = records.write(NAME, call(1, "part"), start(1, 0))
    lock = FileLock(path.parent / ".lock")
    monkeypatch.setattr("rhapsody.cli.logs.time.sleep", scripted_sleep(interrupt))
    assert "interrupted" in output(capsys, "-f", "part", code=130)[1]
    lock.release()


def test_a_damaged_record(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME, "{", call(1, "part"), end(1, 0, 0, 1, stdout="one\n"), tail="{")
    text, error = output(capsys, "part")
    assert text == "one\n"
    assert "is damaged: line 3 is skipped" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "no task 'none'"),
        (["part", "-f", "--json"], "cannot be combined with -f"),
        (["p"], "selects 2 tasks"),
        ([NAME, "none"], "no task 'none'"),
    ],
)
def test_errors(
    records: Records, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    records.write(NAME, call(1, "part"), call(2, "part_b"), call(3, "pa"))
    if arguments == ["p"]:
        records.write(NAME, call(1, "part"), call(2, "part_b"))
    text, error = output(capsys, *arguments, code=2)
    assert text == ""
    assert message in error


def test_help_and_contradicting_options(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (["--help"], 0), (["a", "--stdout", "--stderr"], 2):
        with pytest.raises(SystemExit) as ended:
            main(["logs", *arguments])
        assert ended.value.code == code
    assert "--follow" in capsys.readouterr().out


PROGRAM = """
import os

async def main(flow):
    @flow.executable_task
    def wait(place):
        return f"echo first; echo warning >&2; cat {place}/fifo; echo last"

    await wait(os.getcwd())
"""


def test_the_output_of_a_task_that_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    run = started(PROGRAM, tmp_path)
    command = [sys.executable, "-u", "-m", "rhapsody", "logs", "-f", "wait", "--stdout"]
    following = subprocess.Popen(
        ["sh", "-c", f"until {' '.join(command)} 2>errors.txt; do :; done"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert following.stdout is not None
        assert following.stdout.readline() == "first\n"
        assert run.poll() is None
        (tmp_path / "fifo").write_text("middle\n")
        text, _ = following.communicate(timeout=PATIENCE)
        assert text == "middle\nlast\n"
        run.communicate(timeout=PATIENCE)
        assert run.returncode == 0
    finally:
        for process in run, following:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate(timeout=PATIENCE)
