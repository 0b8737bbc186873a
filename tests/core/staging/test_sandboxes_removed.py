"""Tests of the lifetime of sandboxes."""

# ruff: noqa: ASYNC240 - these tests are about files, and have the loop for themselves

from __future__ import annotations

import asyncio
import gc
import logging
import os
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio

from rhapsody.data import InputFile
from rhapsody.fsutil import remove_directory
from rhapsody.staging import sandboxes
from rhapsody.staging.sandboxes import Disposition, Keep
from rhapsody.task import Sandbox
from tests._support.staging import Linking, Stager, describe, ended, link

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio]


@pytest_asyncio.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    await Stager.close_all()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / ".rhapsody" / "engine"


@pytest.fixture
def backend() -> Linking:
    return Linking()


async def gone(path: str | None) -> None:
    """Waits until the thread has removed a sandbox, without taking the loop."""
    assert path is not None

    def wait() -> None:
        tick = threading.Event()
        for _ in range(2000):
            if not os.path.exists(path):
                return
            tick.wait(0.005)
        raise AssertionError(f"{path} is still there")

    await asyncio.to_thread(wait)


def removers() -> int:
    return sum(thread.name == "rhapsody-files" for thread in threading.enumerate())


@pytest.mark.parametrize("keep", ["failed", "none"])
async def test_a_sandbox_is_removed_with_the_last_reference_to_its_task(
    work: Path, keep: Literal["failed", "none"]
) -> None:
    stager = Stager(work, keep)
    held = ended(stager, "held.1", writes={"a": "1"}, declares=False)
    dropped = ended(stager, "dropped.1", writes={"a": "1"}, declares=False)
    path = dropped.files.sandbox
    del dropped
    gc.collect()
    await gone(path)
    assert os.path.exists(held.files.sandbox or "")
    await stager.close()


@pytest.mark.parametrize("keep", ["results", "failed", "none"])
async def test_declared_outputs_outlive_what_is_left_of_their_task_until_the_end(
    work: Path, keep: Keep
) -> None:
    stager = Stager(work, keep)
    source = ended(stager, writes={"x.txt": "1"})
    file = Path(source.files.sandbox or "", "x.txt")
    (file.parent / "scratch").touch()
    del source
    gc.collect()
    await gone(str(file.parent / "scratch"))
    assert file.exists()
    await stager.close()
    assert file.exists() is (keep == "results")


async def test_what_a_running_task_reads_stays_until_it_has_ended(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work, "failed")
    source = ended(stager, writes={"x.txt": "1"})
    scratch = Path(source.files.sandbox or "", "scratch")
    scratch.touch()
    task = describe(stager)
    sandbox = await link(stager, task, backend, [InputFile("x.txt")], [source])
    del source
    gc.collect()
    # The thread removes in order, so the marker's removal shows that it has seen both.
    await gone(ended(stager, "marker.1").files.sandbox)
    assert (sandbox / "x.txt").read_text() == "1"
    assert scratch.exists()
    reference = stager.end(task, True)
    await gone(str(scratch))
    del reference
    await gone(str(sandbox))
    await stager.close()
    assert not work.exists()


async def test_a_sandbox_stays_while_one_that_was_linked_from_it_implicitly_is_held(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work)
    first = ended(stager, "first.1", writes={"x.txt": "1"}, declares=False)
    path = first.files.sandbox
    task = describe(stager)
    sandbox = await link(stager, task, backend, sources=[first], implicit=True)
    reference = stager.end(task, True)
    del first
    gc.collect()
    await gone(ended(stager, "marker.1").files.sandbox)
    assert (sandbox / "x.txt").read_text() == "1"
    del reference
    await gone(path)
    await stager.close()


async def test_failed_tasks_keep_their_sandboxes_and_what_they_read(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work, "failed")
    source = ended(stager, writes={"x.txt": "1"})
    path = source.files.sandbox
    task = describe(stager)
    sandbox = await link(stager, task, backend, [InputFile("x.txt")], [source])
    assert stager.end(task, False) is None
    del source
    gc.collect()
    await stager.close()
    assert (sandbox / "x.txt").read_text() == "1"
    assert os.path.exists(path or "")


async def test_at_close_held_sandboxes_go_but_those_with_products_stay(work: Path) -> None:
    stager = Stager(work, "failed")
    plain = ended(stager, "plain.1", writes={"a": "1"}, declares=False)
    product = ended(stager, "product.task.000001.1", writes={"a": "1"})
    path = ended(stager, "path.1", writes={"a": "1"}, declares=False, result_is_path=True)
    assert path.files.reference is None
    del path
    gc.collect()
    await stager.close()
    assert sorted(os.listdir(work)) == ["path.1", "product.task.000001.1"]
    del product, plain
    gc.collect()
    assert sorted(os.listdir(work)) == ["path.1", "product.task.000001.1"]


async def test_keeping_none_leaves_nothing_at_close_not_even_the_directories(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work, "none")
    product = ended(stager, "product.task.000001.1", writes={"a": "1"})
    failed = ended(stager, "failed.task.000001.1", writes={"a": "1"}, succeeded=False)
    path = ended(stager, "path.task.000001.1", writes={"a": "1"}, result_is_path=True)
    await stager.close()
    await stager.close()
    assert not work.parent.exists()
    assert product.files.reference is not None
    assert failed.files.reference is not None
    assert path.files.reference is None


async def test_the_sandbox_of_an_earlier_start_is_removed_at_close(
    work: Path,
) -> None:
    stager = Stager(work)
    task = describe(stager)
    first = Path(task["sandbox"])
    for again in ("second", "third"):
        (first / f".rhapsody.{again}").mkdir(parents=True)
    task["sandbox"] = str(first / ".rhapsody.second")
    stager.end(task, succeeded=True)
    await stager.close()
    assert not first.exists()


async def test_the_sandbox_of_an_earlier_start_stays_after_a_failure(work: Path) -> None:
    stager = Stager(work, "failed")
    task = describe(stager)
    task["sandbox"] += "/.rhapsody.second"
    Path(task["sandbox"]).mkdir(parents=True)
    stager.end(task, succeeded=False)
    await stager.close()
    assert Path(task["sandbox"]).exists()


async def test_keeping_all_removes_nothing(work: Path) -> None:
    stager = Stager(work, "all")
    for number, succeeded in enumerate((True, False)):
        assert ended(stager, f"u.{number}", succeeded=succeeded).files.reference is None
    gc.collect()
    await stager.close()
    assert sorted(os.listdir(work)) == ["u.0", "u.1"]


async def test_a_sandbox_that_is_not_in_the_work_dir_is_never_touched(
    work: Path, tmp_path: Path
) -> None:
    stager = Stager(work, "none")
    task = describe(stager)
    task["sandbox"] = str(tmp_path / "here")
    assert stager.end(task, True) is None
    await stager.close()
    assert (tmp_path / "here").is_dir()


async def test_a_work_dir_that_was_there_before_stays(tmp_path: Path) -> None:
    work = tmp_path / "runs"
    work.mkdir()
    stager = Stager(work, "none")
    ended(stager)
    await stager.close()
    assert list(work.iterdir()) == []


async def test_a_work_dir_with_other_things_in_it_stays(work: Path) -> None:
    stager = Stager(work, "none")
    ended(stager)
    (work / "notes.txt").write_text("mine")
    await stager.close()
    assert os.listdir(work) == ["notes.txt"]


async def test_removal_follows_no_links_and_removes_read_only_directories(
    work: Path, here: Path
) -> None:
    (here / "precious").write_text("1")
    stager = Stager(work, "none")
    outcome = ended(stager)
    sandbox = Path(outcome.files.sandbox or "")
    (sandbox / "link").symlink_to(here)
    (sandbox / "locked" / "inner").mkdir(parents=True)
    (sandbox / "locked" / "inner" / "file").write_text("")
    (sandbox / "locked" / "link").symlink_to(here)
    (sandbox / "locked" / "inner").chmod(0o500)
    (sandbox / "locked").chmod(0o500)
    mode = stat.S_IMODE(here.stat().st_mode)
    await stager.close()
    assert not sandbox.exists()
    assert (here / "precious").read_text() == "1"
    assert stat.S_IMODE(here.stat().st_mode) == mode


async def test_failed_removals_are_logged_once_and_raise_nothing(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str, names: Any) -> None:
        raise OSError(f"no, not {path}")

    stager = Stager(work, "none")
    outcomes = [ended(stager, f"u.{n}") for n in range(3)]
    monkeypatch.setattr(sandboxes, "remove_directory", refuse)
    with caplog.at_level(logging.WARNING):
        await stager.close()
    assert len(outcomes) == 3
    (record,) = caplog.records
    assert record.getMessage().startswith(f"sandbox {work}/u.")
    assert "no, not" in record.getMessage()


async def test_the_loop_goes_on_while_a_sandbox_is_removed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    real = remove_directory

    def slow(path: str, names: Any) -> None:
        began.set()
        assert go_on.wait(timeout=10)
        real(path, names)

    stager = Stager(work, "none")
    outcome = ended(stager)
    monkeypatch.setattr(sandboxes, "remove_directory", slow)
    closing = asyncio.create_task(stager.close())
    async with asyncio.timeout(10):
        assert await asyncio.to_thread(began.wait, 10)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not closing.done()
        go_on.set()
        await closing
    assert not os.path.exists(outcome.files.sandbox or "")


async def test_no_thread_is_started_and_none_is_left_where_nothing_is_removed(
    work: Path,
) -> None:
    keeping, removing = Stager(work, "all"), Stager(work, "failed")
    ended(keeping, "u.1")
    ended(removing, "u.2", succeeded=False)
    assert removers() == 0
    ended(removing, "u.3")
    assert removers() == 1
    await removing.close()
    await keeping.close()
    assert removers() == 0


async def test_a_work_that_ends_after_the_close_removes_nothing_and_starts_nothing(
    work: Path,
) -> None:
    stager = Stager(work, "failed")
    await stager.close()
    outcome = ended(stager)
    path = outcome.files.sandbox or ""
    del outcome
    gc.collect()
    assert os.path.isdir(path)
    assert removers() == 0


async def test_nothing_is_remembered_of_tasks_whose_outcome_was_dropped(
    work: Path, backend: Linking
) -> None:
    stager = Stager(work, "failed")
    for number in range(50):
        source = ended(stager, f"s.task.{number:06d}.1", writes={"x.txt": "1"})
        task = describe(stager, f"t.{number}")
        await link(stager, task, backend, [InputFile("x.txt")], [source])
        stager.end(task, True)
    scratch = Path(source.files.sandbox or "", "scratch")
    scratch.touch()
    del source
    gc.collect()
    await gone(str(scratch))
    assert stager.sandboxes._fates == {}
    await stager.close()


async def test_a_long_chain_of_sandboxes_is_let_go_without_deep_recursion(work: Path) -> None:
    stager = Stager(work, "failed")
    keepers: tuple[Sandbox, ...] = ()
    for number in range(50_000):
        keepers = (stager.sandboxes.hold(f"{work}/u.{number}", Disposition.REMOVE, keepers),)
    keepers[0].spare()
    del keepers
    gc.collect()
    await stager.close()
