"""Which results of earlier runs a run may reuse, and which ones a run that succeeds removes."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.builtin.journal.store import Store, journal_of_program
from tests._support.recorded import LOG, broken_off, engine, note, ran

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("nothing_ran")]


@pytest.fixture
def nothing_ran(here: Path) -> None:
    (here / LOG).touch()


async def points(flow: WorkflowEngine, *numbers: int) -> None:
    @flow.function_task
    def point(number: int) -> int:
        note(str(number))
        return number

    await asyncio.gather(*map(point, numbers))


def some(*numbers: int) -> Any:
    return lambda flow: points(flow, *numbers)


async def done(*numbers: int, resume: Any = "auto") -> int:
    """Run points to the end; return the number of those that were reused."""
    async with engine(resume=resume) as flow:
        await points(flow, *numbers)
        return flow.stats.recorded


@pytest.mark.parametrize("resume", [True, "auto"])
async def test_runs_with_fewer_tasks_keep_the_results_of_others(resume: Any) -> None:
    await done(1, 2, 3)
    for _ in range(3):
        await done(1, resume=resume)
    assert await done(1, 2, 3, resume=True) == 3


async def test_a_run_that_started_over_by_mistake_hides_no_results() -> None:
    await done(1, 2, 3)
    await broken_off(some(1))  # without `resume`
    assert await done(1, 2, 3, resume=True) == 3


async def test_after_a_run_that_started_over_and_broke_off_the_next_one_continues_it() -> None:
    await done(1, 2, 3)
    await broken_off(some(1))
    assert await done(1, 2, 3) == 1


@pytest.mark.parametrize("ends_well", [True, False])
async def test_results_from_before_a_fresh_run_are_not_reused(ends_well: bool) -> None:
    await done(1, 2, 3)
    if ends_well:
        await done(1, resume=False)
    else:
        await broken_off(some(1), resume=False)
    assert await done(1, 2, 3, resume=True) == 1
    assert ran() == {"1": 2, "2": 2, "3": 2}


async def test_a_resumed_run_that_breaks_off_keeps_what_it_took_over() -> None:
    await done(1, 2)
    await broken_off(some(3))
    await broken_off(some(1, 2, 3, 4), resume=True)
    assert await done(1, 2, 3, 4) == 4


async def test_a_run_that_broke_off_is_resumed_although_another_one_succeeded_meanwhile() -> None:
    async with engine() as other:
        await broken_off(some(1, 2))
        await points(other, 3)
    assert await done(1, 2) == 2
    assert await done(1, 2, 3) == 0


async def test_a_resumed_run_that_is_killed_after_another_one_succeeded_is_resumed() -> None:
    await broken_off(some(1, 2))
    killed = Store(Path("run.sqlite"), shared=True)
    killed.begin(None)
    await done(3)
    killed._wait(killed._database.close)
    killed._release()
    assert await done(1, 2) == 2


async def test_a_run_is_resumed_after_an_error_that_a_prompt_has_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with engine() as flow:
        await points(flow, 1, 2)
        monkeypatch.setattr(sys, "last_value", ValueError(), raising=False)  # set by IPython
    assert await done(1, 2) == 2
    assert await done(1, 2) == 0


async def test_an_empty_file_and_a_removed_one_are_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await asyncio.to_thread(Path("run.sqlite").touch, 0o600)
    async with engine() as flow:
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        await points(flow, 1)
        await asyncio.to_thread(Path("run.sqlite").unlink)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


async def test_a_run_is_resumed_although_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    correct = time.time
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: correct() + 3600)
        await done(1)
    await broken_off(some(1, 2))
    assert await done(1, 2) == 2


async def test_results_from_before_a_fresh_run_are_not_reused_after_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    correct = time.time
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: correct() + 3600)
        await done(1, 2)
    await done(1, resume=False)
    assert await done(1, 2, resume=True) == 1


@pytest.mark.parametrize("resume", [True, "auto"])
async def test_what_other_runs_recorded_before_a_fresh_run_is_not_reused(resume: Any) -> None:
    await broken_off(some(1, 2))

    async def older(flow: WorkflowEngine) -> None:
        await points(flow, 1, 3)
        await broken_off(some(1), resume=False)
        await points(flow, 4)

    await broken_off(older)
    assert await done(1, 2, 3, 4, resume=resume) == 2
    assert ran() == {"1": 2, "2": 2, "3": 2, "4": 1}


async def test_results_that_were_recorded_again_are_removed() -> None:
    for _ in range(3):
        await done(1, 2)
    with closing(sqlite3.connect("run.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM recordings").fetchone() == (2,)
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (1,)


async def test_results_that_no_run_has_used_for_long_are_removed() -> None:
    await done(1, 2)
    await done(2, 3, resume=True)
    with closing(sqlite3.connect("run.sqlite")) as database, database:
        database.execute("UPDATE runs SET began = 1, ended = 2 WHERE id = 1")
    await done(4, resume=True)
    assert await done(1, 2, 3, 4, resume=True) == 3


async def test_a_run_that_succeeds_leaves_the_results_of_running_ones() -> None:
    async def program(flow: WorkflowEngine) -> None:
        await points(flow, 1, 2)
        await done(1)

    await broken_off(program)
    assert await done(1, 2) == 2


async def test_a_notebook_has_one_journal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def journal(kernel: str, notebook: str) -> Path:
        started = ["/lib/ipykernel_launcher.py", "-f", f"/run/kernel-{kernel}.json"]
        monkeypatch.setattr(sys, "argv", started)
        monkeypatch.setenv("JPY_SESSION_NAME", notebook)
        return journal_of_program()

    assert journal("1", "/a.ipynb") == journal("2", "/a.ipynb")
    assert journal("1", "/a.ipynb") != journal("1", "/b.ipynb")
    monkeypatch.setattr(sys.modules["__main__"], "__vsc_ipynb_file__", "/b.ipynb", raising=False)
    assert journal("1", "") == journal("2", "/b.ipynb")
