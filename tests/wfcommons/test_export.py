"""`rhapsody export --format wfcommons`: records of runs as instances."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rhapsody.cli import main
from rhapsody_wfcommons import Instance, RecordedFile, read
from tests._support.command_line import Run
from tests._support.histories import Records, call, end
from tests.wfcommons.instances import check

NAME = "20260101T000000-align-00a1"


def exported(path: Path) -> Instance:
    """Read an instance, and check that it is valid."""
    check(json.loads(path.read_text()))
    return read(path)


def export(records: Records, *lines: dict[str, Any]) -> Instance:
    """Write a record, and return its export."""
    records.write(NAME, *lines)
    assert main(["export", "--format", "wfcommons", "-o", "out.json"]) == 0
    return exported(Path("out.json"))


@pytest.fixture
def records(tmp_path: Path) -> Any:
    with Records(tmp_path) as found:
        yield found


def test_an_export_equals_the_recording_of_the_same_run(run: Run, tmp_path: Path) -> None:
    done = run(
        """
        import asyncio

        from rhapsody import InputFile, OutputFile, WorkflowEngine
        from rhapsody_wfcommons import WfCommonsRecorder

        async def main():
            async with WorkflowEngine.create(
                record=True, observers=[WfCommonsRecorder("recorded.json")]
            ) as flow:

                @flow.executable_task(service=True, ready="stdout:up")
                def server():
                    return "echo up; sleep 1000"

                @flow.executable_task
                def cut(out, *_):
                    return f"seq 20 >{out}"

                @flow.executable_task(resources={"cores": 2})
                def count(source, out):
                    return f"wc -l <{source} >{out}"

                @flow.function_task
                def fail(*_):
                    raise LookupError

                @flow.block
                async def both(*_):
                    await asyncio.gather(*(
                        count(InputFile(f"part_{number}"), OutputFile(f"counts/{number}"))
                        for number in (1, 2)
                    ))

                service = server()
                parts = [cut(OutputFile(f"part_{number}"), service) for number in (1, 2)]
                failed = fail(parts)
                cut(OutputFile("never"), failed)
                await both(parts)
                await asyncio.wait([failed])
                service.cancel()

        asyncio.run(main())
        """
    )
    assert "6 done, 1 failed, 1 skipped" in done.stderr
    assert main(["export", "--format", "wfcommons", "-o", str(tmp_path / "exported.json")]) == 0
    recorded, found = (exported(tmp_path / f"{how}.json") for how in ("recorded", "exported"))
    assert len(recorded.tasks) == 5
    untimed = [
        [replace(task, started=None, runtime=None) for task in instance.tasks]
        for instance in (recorded, found)
    ]
    assert untimed[0] == untimed[1]
    assert found.makespan == pytest.approx(recorded.makespan, abs=0.5)
    assert (found.name, found.made_by) == (recorded.name, recorded.made_by)
    names = [(each.name, each.system, each.cores) for each in (*recorded.machines, *found.machines)]
    assert names[0] == names[1]


def test_the_last_attempt_that_ended_counts(records: Records) -> None:
    instance = export(
        records,
        call(1, "retried"),
        end(1, 0, 1, 2, state="FAILED", retried=True),
        end(1, 3, 4, 9, attempt=2, resources={"cores": 4, "ranks": 2}),
        call(2, "unreported"),
        end(2, 2, None, 5),
        call(3, "canceled", dependencies=["task.000001"]),
        end(3, 2, 3, 5, state="CANCELED"),
        call(4, "after", dependencies=["task.000003"]),
        end(4, 10, 11, 12, backend="other"),
    )
    found = [(task.name, task.runtime, task.cores, task.parents) for task in instance.tasks]
    assert found == [
        ("retried", 5, 8, ()),
        ("unreported", 3, 1, ()),
        ("after", 1, 1, ("task.000001",)),
    ]
    assert instance.makespan == 10


def test_tasks_of_several_engines_have_different_ids(records: Records) -> None:
    instance = export(
        records,
        call(1, "a"),
        end(1, 0, 1, 2),
        {"event": "engine", "uid": "engine.2", "time": 3, "backends": []},
        call(1, "a", engine="engine.2"),
        end(1, 2, 3, 4, engine="engine.2"),
        call(2, "b", engine="engine.2", dependencies=["task.000001"]),
        end(2, 4, 5, 6, engine="engine.2"),
    )
    assert [(task.id, task.parents) for task in instance.tasks] == [
        ("task.000001", ()),
        ("engine.2.task.000001", ()),
        ("engine.2.task.000002", ("engine.2.task.000001",)),
    ]


def test_a_saved_file_has_one_id(records: Records) -> None:
    saved = {"name": "a.csv", "path": "/data/a.csv", "size": 5}
    link = {"name": "a.csv", "path": "/runs/task.1/a.csv", "size": 5}
    instance = export(
        records,
        call(1, "write"),
        end(1, 0, 1, 2, sandbox="/runs/task.1", outputs=[saved]),
        call(2, "read"),
        end(2, 2, 3, 4, sandbox="/runs/task.2", inputs=[link, {"name": "unknown"}]),
    )
    assert instance.tasks[0].outputs == (RecordedFile("a.csv", 5),)
    assert instance.tasks[1].inputs == (RecordedFile("a.csv", 5), RecordedFile("unknown"))


def test_an_incomplete_line_is_left_out(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME, call(1, "a"), end(1, 0, 1, 2), tail='{"event":"call","uid":"task.0000')
    assert main(["export", "--format", "wfcommons"]) == 0
    assert f"wrote {NAME}.json, in the format wfcommons" in capsys.readouterr().err
    assert len(exported(Path(f"{NAME}.json")).tasks) == 1


@pytest.mark.parametrize("damage", [{"resources": {"cores": {"a": 1}}}, {"dependencies": 1}])
def test_a_damaged_record_is_refused(
    damage: dict[str, object], records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME, call(1, "a") | damage, end(1, 0, 1, 2))
    assert main(["export", "--format", "wfcommons"]) == 1
    assert "run.jsonl: the record is damaged: " in capsys.readouterr().err


def test_a_run_without_tasks_is_refused(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME, call(1, "a"))
    assert main(["export", "--format", "wfcommons"]) == 1
    assert "run.jsonl: no task has run" in capsys.readouterr().err
    assert not Path(f"{NAME}.json").exists()
