"""`rhapsody export`: where the crate is written, and errors. `test_provenance.py` tests crates."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody.cli import main
from tests._support.histories import Records, call, end, finish

NAME = "20260101T000000-align-00a1"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """A directory with one recorded run."""
    with Records(tmp_path) as found:
        found.write(NAME, call(1, "a"), end(1, 0, 1, 2), *finish(2, tasks=1, done=1))
        found.write_unreadable()
        yield found


@pytest.mark.usefixtures("records")
def test_the_default_directory_is_named_after_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--format", "ro-crate"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"wrote {NAME}-crate, a Process Run Crate without the program" in said.err
    text = Path(f"{NAME}-crate", "ro-crate-metadata.json").read_text()
    assert "task.000001" in text
    assert Path(f"{NAME}-crate", "ro-crate-preview.html").is_file()


@pytest.mark.usefixtures("records")
def test_a_zip_file_can_be_written() -> None:
    assert main(["export", "00a1", "-o", "crate.zip", "--license", "CC0"]) == 0
    with zipfile.ZipFile("crate.zip") as found:
        graph = json.loads(found.read("ro-crate-metadata.json"))["@graph"]
    assert next(each for each in graph if each["@id"] == "./")["license"] == "CC0"


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize(
    ("command", "written"),
    {
        "report": f"{NAME}.html",
        "export": f"{NAME}-crate",
        "export -o crate.zip": "crate.zip",
    }.items(),
)
def test_only_the_user_can_read_what_is_written(command: str, written: str) -> None:
    former = os.umask(0)
    try:
        assert main(command.split()) == 0
        assert os.umask(0) == 0  # the command has restored it
    finally:
        os.umask(former)
    assert Path(written).stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "bad.jsonl"], 1, "bad.jsonl already exists; remove it, or choose another path"),
        (["-o", "missing/crate.zip"], 1, "cannot write missing/crate.zip: No such file"),
        (["bad.jsonl"], 1, "is not a record of a run"),
        (["nonsense"], 2, "no recorded run 'nonsense'"),
        (["--format", "zip"], 2, "format 'zip' not found: the formats are ro-crate"),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["export", *arguments]) == code
    assert message in capsys.readouterr().err
