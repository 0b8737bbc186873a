"""The trace of a run, and what is logged of its tasks."""

from __future__ import annotations

import json
import logging
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from rhapsody.plugins import UsageError
from tests._support.scripted import Inline

pytestmark = pytest.mark.asyncio


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_trace_has_each_state_of_each_task(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text("of an earlier run")
    async with WorkflowEngine.create(LocalExecutionBackend(), trace=file) as flow:

        @flow.function_task(fallback="well")
        def broken() -> str:
            raise LookupError("own")

        @flow.function_task
        def part(x: str) -> str:
            return x

        async with flow.scope("here"):
            await part(await broken())
        records = read(file)  # as it happens, not only at the end
        assert records[0] == {"time": records[0]["time"], "event": "workflow_started"} | {
            "uid": flow.uid
        }
    records = read(file)
    mine = [record for record in records if record.get("name") == "part"]
    assert [record["event"] for record in mine] == ["PENDING", "SUBMITTED", "RUNNING", "DONE"]
    assert {record["uid"] for record in mine} == {"task.000002"}
    assert {record["scope"] for record in mine} == {"here"}
    assert {record["attempt"] for record in mine} == {1}
    assert mine[-1]["backend"] == "local"
    times = [record["time"] for record in mine]
    assert times == sorted(times)
    assert records[-1]["event"] == "workflow_finished"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 or file.stat().st_uid == 0


async def test_a_trace_that_another_engine_is_writing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with WorkflowEngine.create(Inline(), trace=file):
        with pytest.raises(UsageError, match=r"another engine is writing .*run\.jsonl"):
            await WorkflowEngine.create(Inline(), trace=file)
    async with WorkflowEngine.create(Inline(), trace=file):
        pass


async def test_a_trace_has_the_error_of_a_failed_task(tmp_path: Path) -> None:
    async with WorkflowEngine.create(Inline(), trace=tmp_path / "run.jsonl") as flow:

        @flow.function_task
        def broken() -> None:
            raise LookupError("own")

        with pytest.raises(LookupError):
            await broken()
    (failed,) = [one for one in read(tmp_path / "run.jsonl") if one["event"] == "FAILED"]
    assert failed["error"] == "LookupError: own"


async def test_events_of_the_program_go_into_the_trace(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with WorkflowEngine.create(Inline(), trace=file) as flow:
        assert flow.prof.enabled
        flow.prof.event("mine", "task.000001", size=3, where=tmp_path)
        flow.prof.prof("start", "task.000001", msg="begins", ts=17.5)  # as of radical.utils
    mine, start = read(file)[1:3]
    expected = {"event": "mine", "uid": "task.000001", "size": 3, "where": str(tmp_path)}
    assert mine == expected | {"time": mine["time"]}
    assert start == {"time": 17.5, "event": "start", "uid": "task.000001", "msg": "begins"}


async def test_without_a_trace_events_of_the_program_go_nowhere() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        assert not flow.prof.enabled
        flow.prof.event("mine")


async def test_a_trace_on_a_full_disk_harms_no_run(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkflowEngine.create(Inline(), trace="/dev/full") as flow:

        @flow.function_task
        def part() -> int:
            return 1

        assert await part() == 1
        assert await part() == 1
    assert flow.summary is not None
    assert caplog.text.count("/dev/full: disabled, later events are lost (OSError: ") == 1


async def test_tasks_are_logged_at_info_with_their_uid_and_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "rhapsody.task")
    async with WorkflowEngine.create(LocalExecutionBackend()) as flow:

        @flow.function_task(retries=1)
        def broken() -> None:
            raise LookupError("own")

        with pytest.raises(LookupError):
            await broken()
    records = [record for record in caplog.records if record.name == "rhapsody.task"]
    first_lines = [record.getMessage().partition("\n")[0] for record in records]
    assert [re.sub(r" \(.*?\)| after \d+ ms", "", line) for line in first_lines] == [
        "task.000001 broken(): begins on local",
        "task.000001 broken(): failed on local: LookupError: own",
        "task.000001 broken(): begins on local, attempt 2",
        "task.000001 broken(): failed on local, attempt 2: LookupError: own",
    ]
    for record in records:
        assert (vars(record)["task_uid"], vars(record)["task_name"]) == ("task.000001", "broken")
        assert record.levelno == logging.INFO


async def test_tasks_are_not_logged_without_a_handler(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rhapsody.task")
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def part() -> None: ...

        await part()
    assert not caplog.records
