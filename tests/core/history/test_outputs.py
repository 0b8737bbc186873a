"""Whole output of tasks: what is kept next to a record, and what `rhapsody logs` prints."""

# ruff: noqa: ASYNC240 - the tests look at files when nothing else is to run on the loop
from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, TaskFailedError, WorkflowEngine
from rhapsody.builtin.record import outputs
from rhapsody.builtin.record.outputs import OutputStore
from rhapsody.cli import main
from rhapsody.history.outputs import PRINTED, outputs_path, read_output
from rhapsody.history.reader import read_run
from rhapsody.sdk.capture import MAX_CAPTURED
from tests._support.scripted import within

pytestmark = pytest.mark.timeout(60)


def logs(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Return what `rhapsody logs` prints."""
    capsys.readouterr()
    assert main(["logs", *arguments]) == 0
    said = capsys.readouterr()
    return said.out, said.err


def text_of(size: int) -> str:
    """Lines of a text that compresses well."""
    return "".join(f"line {number}: ä\n" for number in range(size // 10))


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [PRINTED * 2, MAX_CAPTURED * 2])
@pytest.mark.parametrize("kind", ["command", "thread", "process"])
async def test_whole_output_is_printed_after_the_sandboxes_were_removed(
    here: Path, capsys: pytest.CaptureFixture[str], kind: Any, size: int
) -> None:
    backend = LocalExecutionBackend("thread" if kind == "command" else kind)
    async with WorkflowEngine.create(backend, record=True) as flow:

        @flow.executable_task(name="part")
        def command() -> list[str]:
            code = "import sys; sys.stdout.write(%s); sys.stderr.write('warning')"
            text = "''.join(f'line {number}: \\xe4\\n' for number in range(SIZE // 10))"
            return [sys.executable, "-c", code.replace("%s", text).replace("SIZE", str(size))]

        @flow.function_task(name="part")
        def function() -> None:
            sys.stdout.write("".join(f"line {number}: ä\n" for number in range(size // 10)))
            sys.stderr.write("warning")

        await within(command() if kind == "command" else function())
    (attempt,) = read_run(here / ".rhapsody/latest").tasks["task.000001"].attempts
    assert not os.path.exists(attempt.sandbox or "nowhere")
    assert attempt.stdout == text_of(size)[-PRINTED:]
    assert logs(capsys, "part", "--stdout") == (text_of(size), "")
    assert logs(capsys, "part")[0] == f"{text_of(size)}==> standard error <==\nwarning"
    found = json.loads(logs(capsys, "part", "--stdout", "--json")[0])["stdout"]
    assert found == {"text": text_of(size), "path": None, "complete": True}
    path = here / ".rhapsody/latest/run.output.gz"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    printed, complaint = logs(capsys, "part", "--stdout")
    assert printed == text_of(size)[-PRINTED:]
    assert f"only the last {PRINTED} characters" in complaint


@pytest.mark.asyncio
async def test_each_attempt_has_its_whole_output_in_one_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with WorkflowEngine.create(record=True, retries=1, keep_sandboxes="none") as flow:

        @flow.executable_task
        def part(number: int) -> str:
            return f"printf 'x%.0s' $(seq {PRINTED + number}); printf {number}; exit {number}"

        await within(part(0))
        with pytest.raises(TaskFailedError):
            await within(part(3))
    assert logs(capsys, "1") == ("x" * PRINTED + "0", "")
    for attempt in ("1", "2"):
        assert logs(capsys, "2", "--attempt", attempt)[0] == "x" * (PRINTED + 3) + "3"
    assert sorted(path.suffix for path in (here / ".rhapsody/latest/").iterdir())[-1] == ".jsonl"


@pytest.mark.asyncio
async def test_short_output_needs_no_file(here: Path) -> None:
    async with WorkflowEngine.create(record="a.jsonl") as flow:
        await within(flow.executable_task(lambda: f"printf 'x%.0s' $(seq {PRINTED})")())
    assert not os.path.exists(outputs_path("a.jsonl"))
    async with WorkflowEngine.create(record="b.jsonl") as flow:
        await within(flow.executable_task(lambda: f"printf 'x%.0s' $(seq {PRINTED + 1})")())
    assert (here / "b.output.gz").exists()


@pytest.mark.asyncio
async def test_secrets_are_masked_in_whole_output(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_API_TOKEN", "0123456789abcdef")
    async with WorkflowEngine.create(record="a.jsonl") as flow:
        await within(flow.function_task(lambda: print("0123456789abcdef" * PRINTED))())
    (attempt,) = read_run("a.jsonl").tasks["task.000001"].attempts
    assert attempt.stdout_at is not None
    assert read_output("a.jsonl", attempt.stdout_at) == "<OUR_API_TOKEN>" * PRINTED + "\n"


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [PRINTED + 10, MAX_CAPTURED + 10])
async def test_the_limit_of_a_run_is_reported_and_the_end_is_kept(
    here: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    monkeypatch.setattr(outputs, "LIMIT", size + 100)
    async with WorkflowEngine.create(record=True) as flow:

        @flow.function_task
        def part(number: int) -> None:
            print("x" * size + str(number))

        for number in range(3):
            await within(part(number))
    (record,) = caplog.records
    assert "limit" in record.getMessage()
    tasks = read_run(here / ".rhapsody/latest").tasks.values()
    for number, task in enumerate(tasks):
        (attempt,) = task.attempts
        assert attempt.stdout == "x" * (PRINTED - 2) + f"{number}\n"
        assert (attempt.stdout_at is None) is (number > 0)


def test_a_store_continues_or_replaces_its_file(tmp_path: Path) -> None:
    record = str(tmp_path / "run.jsonl")
    places = []
    for text in ("one", "two \udcff", ""):
        store = OutputStore(record, fresh=False)
        places.append(store.add(text))
        store.close()
    assert None not in places
    texts = [read_output(record, place) for place in places if place is not None]
    assert texts == ["one", "two \\udcff", ""]
    assert read_output(record, (1, 10)) is None
    assert read_output(record, (1 << 70, 10)) is None
    OutputStore(record, fresh=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_full_disk_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = OutputStore(str(tmp_path / "run.jsonl"), fresh=False)
    store._file = os.open("/dev/full", os.O_WRONLY)
    assert [store.add("text"), store.add("text")] == [None, None]
    assert not store.reserve(1)
    assert len(caplog.records) == 1
    store.close()
