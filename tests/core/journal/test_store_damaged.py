"""A journal that is not as it was written: its own error, or what was damaged runs again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody import JournalError, WorkflowEngine
from rhapsody.builtin.journal.store import opened
from tests._support.nonsense import little_memory

pytestmark = pytest.mark.timeout(120)

EXPECTED = [0, 1, 4]
COLUMNS = {
    "runs": ("id", "lineage", "began", "ended", "how", "active"),
    "recordings": (
        *("lineage", "key", "number", "run", "used", "name", "uid", "parts", "code", "files"),
        *("why", "value", "intact", "made"),
    ),
    "codes": ("digest", "parts"),
    "digests": ("device", "size", "digest"),
}
VALUES = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)


class BrokenOffError(Exception):
    """Ends a run that is to be taken up."""


async def _program(path: Path, *, broken_off: bool) -> list[int]:
    async with WorkflowEngine.create(
        journal=path, work_dir=path.parent / "work", handle_signals=False
    ) as flow:

        @flow.function_task
        def square(number: int) -> int:
            return number * number

        found = [await square(number) for number in range(len(EXPECTED))]
        if broken_off:
            raise BrokenOffError
    return found


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with results that are to be taken up."""
    path: Path = tmp_path_factory.mktemp("good") / "run.sqlite"
    with contextlib.suppress(BrokenOffError):
        asyncio.run(_program(path, broken_off=True))
    return path


@contextlib.contextmanager
def _copy(good: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(shutil.copy(good, directory))


def _execute(path: Path, statement: str, *values: Any) -> None:
    database = sqlite3.connect(path)
    with contextlib.closing(database), contextlib.suppress(sqlite3.IntegrityError), database:
        database.execute(statement, values)


def _check(path: Path) -> None:
    """Check that each reader of the journal returns the right value or raises its error."""
    with little_memory():
        with contextlib.suppress(JournalError), opened(path) as reader:
            reader.runs()
            reader.damage()
        with contextlib.suppress(JournalError), opened(path) as reader:
            reader.explain("square")
        with contextlib.suppress(JournalError):
            assert asyncio.run(_program(path, broken_off=False)) == EXPECTED


@given(data=st.binary(max_size=200), header=st.booleans())
@settings(max_examples=15)
def test_any_bytes(good: Path, data: bytes, header: bool) -> None:
    with _copy(good) as path:
        path.write_bytes((path.read_bytes()[:100] if header else b"") + data)
        _check(path)


@given(data=st.data())
@settings(max_examples=20)
def test_other_bytes_somewhere_in_it(good: Path, data: Any) -> None:
    with _copy(good) as path:
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        other = data.draw(st.binary(min_size=1, max_size=40))
        content[at : at + len(other)] = other
        path.write_bytes(content)
        _check(path)


@given(share=st.floats(0, 1))
@settings(max_examples=20)
def test_one_that_was_cut_off(good: Path, share: float) -> None:
    with _copy(good) as path:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        _check(path)


@given(data=st.data())
@settings(max_examples=25)
def test_other_values_in_its_tables(good: Path, data: Any) -> None:
    table = data.draw(st.sampled_from(sorted(COLUMNS)))
    column = data.draw(st.sampled_from(COLUMNS[table]))
    value = data.draw(VALUES)
    with _copy(good) as path:
        _execute(path, f"UPDATE {table} SET {column} = ?", value)
        _check(path)


@pytest.mark.parametrize(
    "statement",
    [
        *(f"DROP TABLE {table}" for table in COLUMNS),
        *(f"PRAGMA user_version = {version}" for version in (0, 2, -1)),
        "ALTER TABLE recordings RENAME COLUMN value TO other",
        "CREATE TRIGGER no BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'no'); END",
    ],
)
def test_other_tables(good: Path, statement: str) -> None:
    with _copy(good) as path:
        _execute(path, statement)
        _check(path)


@pytest.mark.parametrize("version", [0, 2])
def test_a_database_of_something_else_is_refused_and_left_as_it_is(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "other.sqlite"
    _execute(path, "CREATE TABLE songs (name TEXT)")
    _execute(path, f"PRAGMA user_version = {version}")
    path.chmod(0o600)
    before = path.read_bytes()
    said = "other.sqlite is a database, but not a journal"
    with pytest.raises(JournalError, match=said):
        asyncio.run(_program(path, broken_off=False))
    with pytest.raises(JournalError, match=said), opened(path):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("used", [False, True])
def test_an_empty_database_is_taken(tmp_path: Path, used: bool) -> None:
    path = tmp_path / "run.sqlite"
    path.touch(0o600)
    if used:
        _execute(path, "CREATE TABLE songs (name TEXT)")
        _execute(path, "DROP TABLE songs")
        assert path.read_bytes()
    assert asyncio.run(_program(path, broken_off=False)) == EXPECTED
    with opened(path) as reader:
        assert [run.how for run in reader.runs()] == ["done"]
