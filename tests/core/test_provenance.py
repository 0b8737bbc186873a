"""RO-Crates of runs: they are valid, and contain what the record contains."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rocrate.vocabs import RO_CRATE
from rocrate_validator import models, services
from rocrate_validator.utils.http import HttpRequester

from rhapsody import InputFile, OutputFile, WorkflowEngine
from rhapsody.history.reader import RunHistory, read_run
from rhapsody.provenance import Files, ro_crate
from tests._support.histories import BEGIN, Records, call, end, finish, start
from tests._support.programs import PATIENCE

NAME = "20260101T000000-align-00a1"
# of rdflib, in the validator
pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
CONTEXT = "https://w3id.org/ro/crate/1.1/context"
FAILED = "http://schema.org/FailedActionStatus"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer the validator's request for the terms of RO-Crate 1.1 from those of the library.

    The library may contain those of a later version, in which the terms of Bioschemas have moved.
    """
    terms = json.dumps(RO_CRATE).replace("bioschemas.org/terms/", "bioschemas.org/")

    def get(_: object, url: str, **__: object) -> SimpleNamespace:
        assert url == CONTEXT
        headers = {"Content-Type": "application/ld+json"}
        return SimpleNamespace(status_code=200, headers=headers, json=lambda: json.loads(terms))

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)


def written(
    history: RunHistory, path: Path, *, profile: str, files: Files = "digest", **more: Any
) -> dict[str, dict[str, Any]]:
    """The entities of the crate by id, after a check with the validator of the profile."""
    ro_crate(history, files=files, **more).write(path)
    settings = services.ValidationSettings(
        rocrate_uri=str(path),
        profile_identifier=f"{profile}-run-crate-0.5",
        requirement_severity=models.Severity.REQUIRED,
        offline=True,
    )
    result = services.validate(settings)
    assert not [(each.message, each.violatingEntity) for each in result.get_issues()]
    assert result.passed()
    document = json.loads((path / "ro-crate-metadata.json").read_text())
    return {each["@id"]: each for each in document["@graph"]}


def ids(value: Any) -> list[str]:
    """The ids of one entity or several."""
    return [each["@id"] for each in (value if isinstance(value, list) else [value])]


def test_a_run_without_its_program_is_a_process_run_crate(records: Records, tmp_path: Path) -> None:
    record = records.write(
        NAME,
        call(1, "fetch"),
        end(1, 0, 0.5, 1, state="FAILED", retried=True, error={"type": "OSError", "message": "no"}),
        end(1, 1, 1.5, 2, attempt=2),
        call(2, "a name/with signs", kind="executable", dependencies=["task.000001"]),
        end(2, 2, 2, 3, inputs=[{"name": "known by name"}]),
        call(3, "again"),
        end(3, None, None, 3, reused=True),
        call(4, "stage", kind="block"),
        end(4, 3, 3, 4),
        call(5, "long"),
        end(5, 3, 3, 4, state="CANCELED"),
        *finish(4, tasks=5, done=3, cancelled=1),
        user="ada",
        python="3.12.1",
        packages={"rhapsody-core": "0.1.0"},
    )
    found = written(read_run(record), tmp_path / "crate", profile="process")
    root = found["./"]
    assert ids(root["conformsTo"]) == ["https://w3id.org/ro/wfrun/process/0.5"]
    assert root["license"] == "No license is specified."
    first, second, third, canceled = (f"#task.00000{x}" for x in ("1.1", "1.2", "2.1", "5.1"))
    assert ids(root["mentions"]) == ["#run", first, second, third, canceled]
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
    found = written(history, crate, profile="provenance", files="copy", license=license)
    assert (crate / "data/reads.txt").read_bytes() == text
    assert (crate / "my program.py").read_text() == "# the program"
    assert ids(found["./"]["license"]) == [license]
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
    found = written(history, tmp_path / "second", profile="workflow")
    (lines,) = (each for each in found if each.endswith("lines.txt"))
    (reads,) = (each for each in found if each.endswith("reads.txt"))
    assert lines.startswith(f"file://{history.run.host}/")
    assert "sha256" not in found[lines]
    assert "sha256" in found[reads]
    found = written(history, tmp_path / "third", profile="process", files="reference")
    assert "sha256" not in found[reads]

    os.utime(program, (2 * BEGIN, 2 * BEGIN))
    found = written(history, tmp_path / "fourth", profile="process")
    assert ids(found["#run"]["instrument"]) == ["#program"]


def test_an_unfinished_run_has_actions_without_an_end(records: Records, tmp_path: Path) -> None:
    record = records.write(NAME, call(1, "a"), start(1, 1), call(2, "b"))
    found = written(read_run(record), tmp_path / "crate", profile="process")
    assert "endTime" not in found["#task.000001.1"]
    assert "actionStatus" not in found["#task.000001.1"]
    assert "#task.000002.1" not in found


def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    program = "import sys; sys.modules['rocrate'] = None; import rhapsody.provenance"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "pip install 'rhapsody-core[provenance]'" in done.stderr
