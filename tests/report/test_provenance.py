"""RO-Crates of runs contain what the record contains. `tests/system` validates them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, OutputFile, WorkflowEngine
from rhapsody.history import RunHistory, read_run
from rhapsody_report.provenance import Files, ro_crate
from tests._support.histories import BEGIN, Records, call, end, finish, start

NAME = "20260101T000000-align-00a1"
FAILED = "http://schema.org/FailedActionStatus"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def written(
    history: RunHistory, path: Path, *, files: Files = "digest", license: str | None = None
) -> dict[str, dict[str, Any]]:
    """The entities of the crate by id. Each entity that they refer to exists or is elsewhere."""
    ro_crate(history, files=files, license=license).write(path)
    document = json.loads((path / "ro-crate-metadata.json").read_text())
    found = {each["@id"]: each for each in document["@graph"]}
    assert len(found) == len(document["@graph"])
    for each in found.values():
        for value in each.values():
            for referred in ids(value):
                assert referred in found or referred.startswith("https://w3id.org/ro/crate/")
    return found


def ids(value: Any) -> list[str]:
    """The ids of one entity or several; empty for another value."""
    values = value if isinstance(value, list) else [value]
    return [each["@id"] for each in values if isinstance(each, dict)]


PROFILES = "https://w3id.org/ro/wfrun/"


def profiles(found: dict[str, dict[str, Any]]) -> list[str]:
    """The names of the profiles of a crate."""
    return [each[len(PROFILES) :] for each in ids(found["./"]["conformsTo"]) if PROFILES in each]


def test_a_run_without_its_program_is_a_process_run_crate(records: Records, tmp_path: Path) -> None:
    record = records.write(
        NAME,
        call(1, "fetch"),
        end(1, 0, 0.5, 1, state="FAILED", retried=True, error={"type": "OSError", "message": "no"}),
        end(1, 1, 1.5, 2, attempt=2),
        call(2, "a name/with signs", kind="executable", dependencies=["task.000001"]),
        end(2, 2, 2, 3, inputs=[{"name": "known by name"}]),
        call(3, "again"),
        end(3, None, None, 3, reused=True, outputs=[{"name": "out.csv"}]),
        call(4, "stage", kind="block"),
        end(4, 3, 3, 4),
        call(5, "long"),
        end(5, 3, 3, 4, state="CANCELED"),
        *finish(4, tasks=5, done=3, cancelled=1),
        user="ada",
        python="3.12.1",
        packages={"rhapsody-core": "0.1.0"},
    )
    found = written(read_run(record), tmp_path / "crate")
    root = found["./"]
    assert profiles(found) == ["process/0.5"]
    assert root["license"] == "No license is specified."
    numbers = ("1.1", "1.2", "2.1", "3.1", "5.1")
    first, second, third, reused, canceled = (f"#task.00000{x}" for x in numbers)
    assert ids(root["mentions"]) == ["#run", first, second, third, reused, canceled]
    assert found[reused]["name"] == "again 000003 (reused from an earlier run)"
    assert not {"startTime", "endTime"} & found[reused].keys()
    assert found[ids(found[reused]["result"])[0]]["value"] == "out.csv"
    assert "earlier runs" in root["description"]
    assert found[first]["actionStatus"] == FAILED
    assert found[first]["error"] == "OSError: no"
    assert found[second]["name"] == "fetch 000001 (attempt 2)"
    assert found[second]["startTime"] == "2023-11-14T22:13:21.500+00:00"
    assert found[second]["endTime"] == "2023-11-14T22:13:22.000+00:00"
    assert ids(found[second]["instrument"]) == ["#function-fetch"]
    assert found[ids(found[third]["object"])[0]]["value"] == "known by name"
    assert found[canceled]["error"] == "The task was canceled."
    run = found["#run"]
    assert found[ids(run["agent"])[0]]["name"] == "ada"
    assert run["description"] == "python bin/rhapsody run align.py"
    needs = [found[each] for each in ids(found["#program"]["softwareRequirements"])]
    assert {each["name"]: each["softwareVersion"] for each in needs} == {
        "Python": "3.12.1",
        "rhapsody-core": "0.1.0",
    }


@pytest.mark.asyncio
async def test_a_run_with_files_is_a_provenance_run_crate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, text = tmp_path / "my program.py", b"b\na\n"
    program.write_text("# the program")
    (tmp_path / "reads.txt").write_bytes(text)
    os.utime(program, (BEGIN, BEGIN))
    monkeypatch.setattr(sys, "argv", [str(program)])
    flow = await WorkflowEngine.create("local", work_dir=tmp_path / "w", record="run.jsonl")

    @flow.executable_task
    def order(source: InputFile, result: OutputFile) -> str:
        return f"sort {source} > {result}"

    @flow.executable_task
    def count(source: InputFile, result: OutputFile) -> str:
        return f"wc -l < {source} > {result}"

    async with flow:
        order(InputFile("reads.txt"), OutputFile("out/sorted.txt"))
        await count(InputFile("out/sorted.txt"), OutputFile("out/lines.txt"))
    history = read_run(tmp_path / "run.jsonl")

    crate = tmp_path / "crate"
    license = "https://spdx.org/licenses/CC-BY-4.0"
    found = written(history, crate, files="copy", license=license)
    assert (crate / "data/reads.txt").read_bytes() == text
    assert (crate / "my program.py").read_text() == "# the program"
    assert ids(found["./"]["license"]) == [license]
    assert profiles(found) == ["process/0.5", "workflow/0.5", "provenance/0.5"]
    (main,) = ids(found["./"]["mainEntity"])
    assert ids(found[main]["hasPart"]) == ["#executable-order", "#executable-count"]
    run, second = found["#run"], found["#task.000002.1"]
    assert ids(run["instrument"]) == [main]
    assert ids(run["object"]) == ["data/reads.txt"]
    assert ids(run["result"]) == ["data/out/sorted.txt", "data/out/lines.txt"]
    assert ids(second["object"]) == ["data/out/sorted.txt"]
    assert found["data/reads.txt"]["sha256"] == hashlib.sha256(text).hexdigest()
    assert found["data/reads.txt"]["contentSize"] == "4"

    changed = tmp_path / "out" / "lines.txt"
    changed.write_text("9\n")
    os.utime(changed, (2 * BEGIN, 2 * BEGIN))
    found = written(history, tmp_path / "second")
    (lines,) = (each for each in found if each.endswith("lines.txt"))
    (reads,) = (each for each in found if each.endswith("reads.txt"))
    assert lines.startswith(f"file://{history.run.host}/")
    assert "sha256" not in found[lines]
    assert "sha256" in found[reads]
    found = written(history, tmp_path / "third", files="reference")
    assert "sha256" not in found[reads]

    os.utime(program, (2 * BEGIN, 2 * BEGIN))
    found = written(history, tmp_path / "fourth")
    assert profiles(found) == ["process/0.5"]
    assert ids(found["#run"]["instrument"]) == ["#program"]


def test_an_unfinished_run_has_actions_without_an_end(records: Records, tmp_path: Path) -> None:
    record = records.write(NAME, call(1, "a"), start(1, 1), call(2, "b"))
    found = written(read_run(record), tmp_path / "crate")
    assert "endTime" not in found["#task.000001.1"]
    assert "actionStatus" not in found["#task.000001.1"]
    assert "#task.000002.1" not in found


def test_an_attempt_that_the_fallback_replaced_is_a_failed_action(
    records: Records, tmp_path: Path
) -> None:
    error = {"type": "OSError", "message": "no"}
    lines = [call(1, "fetch"), end(1, 0, 0.5, 1, fallback=True, error=error)]
    found = written(read_run(records.write(NAME, *lines)), tmp_path / "crate")
    (action,) = [each for each in found.values() if each.get("startTime") and each["@id"] != "#run"]
    assert (action["actionStatus"], action["error"]) == (FAILED, "OSError: no")


def test_the_page_of_a_crate_contains_recorded_text_as_text(
    records: Records, tmp_path: Path
) -> None:
    markup = '<script src="//evil">'
    outputs = [{"name": "a", "path": "/tmp/<b>", "size": 1}]
    lines = [call(1, markup), end(1, 0, 0.5, 1, outputs=outputs)]
    record = records.write(NAME, *lines, program=f"/{markup}", host=markup, user=markup)
    written(read_run(record), tmp_path / "crate", license=markup)
    page = (tmp_path / "crate" / "ro-crate-preview.html").read_text()
    assert "&lt;script" in page
    assert "<script" not in page
    assert "<b>" not in page
