"""`rhapsody report`: where the page is written, and errors. `test_pages.py` tests the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody.cli import main
from tests._support.histories import Records, call, end, finish, first_byte

NAME = "20260101T000000-align-00a1"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """An empty directory for records."""
    with Records(tmp_path) as found:
        yield found


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["report", *arguments]) == code
    said = capsys.readouterr()
    return said.out, said.err


def test_the_default_file_is_named_after_the_run(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME, call(1, "a"), end(1, 0, 1, 2), *finish(2, tasks=1, done=1))
    out, error = output(capsys, "00a1")
    assert out == ""
    assert f"wrote {NAME}.html" in error
    text = (records.path / f"{NAME}.html").read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert f"<title>align.py: done - run {NAME}</title>" in text
    output(capsys, "-o", "other.html")
    assert (records.path / "other.html").stat().st_size > 100_000


def test_the_report_can_be_written_to_standard_output(
    records: Records, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    records.write(NAME, call(1, "\N{GREEK SMALL LETTER ALPHA}"), end(1, 0, 1, 2), *finish(2))
    assert main(["report", "-o", "-"]) == 0
    found = capfdbinary.readouterr().out.decode()
    assert found.startswith("<!DOCTYPE html>")
    assert "\N{GREEK SMALL LETTER ALPHA}" in found
    assert not list(records.path.glob("*.html"))


def test_a_damaged_record_has_a_report_and_a_warning(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME, call(1, "a"), "{", end(1, 0, 1, 2), tail='{"event":"en')
    _, error = output(capsys)
    assert "is damaged: line 4 is skipped" in error
    assert "The record is damaged" in (records.path / f"{NAME}.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "missing/r.html"], 1, "cannot write missing/r.html: No such file"),
        (["-o", "."], 1, "cannot write .: Is a directory"),
        (["bad.jsonl"], 1, "is not a record of a run"),
        (["future.jsonl"], 1, "upgrade rhapsody-core"),
        (["nonsense"], 2, "no recorded run 'nonsense'"),
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
    assert not list(records.path.glob("*.html"))


def test_a_closed_pipe_ends_the_command_quietly(records: Records) -> None:
    records.write(NAME, call(1, "a"), end(1, 0, 1, 2), *finish(2))
    assert first_byte("report", "-o", "-") == ("<", "141\n")
