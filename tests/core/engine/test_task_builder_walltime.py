"""Tasks for which their backend ends too soon go elsewhere, or are held back for the next run."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DependencyFailureError,
    InsufficientWalltimeError,
    LocalExecutionBackend,
    NoopExecutionBackend,
    WorkflowEngine,
    hookimpl,
)
from rhapsody.backends.local import backend as local
from rhapsody.builtin.progress.account import Counts
from rhapsody.plugins.specs import TaskEvent
from rhapsody.resources import seconds_of_job
from tests._support.scripted import Scripted, within

pytestmark = pytest.mark.asyncio


class Ending(Scripted):
    """Ends in so many seconds."""

    def __init__(self, left: float | None, name: str = "ending") -> None:
        super().__init__(name)
        self.left = left
        self.asked: list[str] = []

    def seconds_left(self, task: Any = None) -> float | None:
        """Notes the names of the tasks."""
        self.asked.append("" if task is None else task["name"])
        return self.left


def ending(left: float = 60, **settings: Any) -> LocalExecutionBackend:
    """The local backend, which ends in so many seconds."""
    return LocalExecutionBackend(resources={"walltime": left, "cores": 1}, **settings)


async def test_a_task_that_does_not_fit_is_held_back_and_others_run(tmp_path: Path) -> None:
    async with WorkflowEngine.create(ending(), work_dir=tmp_path) as flow:

        @flow.function_task
        def simulate(n: int) -> int:
            return n

        long = simulate.options(resources={"walltime": 600})(1)
        late = simulate.options(timeout=3600)(2)
        fits = simulate.options(resources={"walltime": 5}, timeout=3600)(3)
        with pytest.raises(InsufficientWalltimeError) as caught:
            await within(long)
        error = caught.value
        assert "task 'simulate' (task.000001) was held back: its walltime is 600 s" in str(error)
        assert (error.backend, error.needs) == ("local", 600)
        assert 0 < error.left <= 60
        with pytest.raises(InsufficientWalltimeError, match="its timeout is 3600 s, but backend"):
            await within(late)
        assert await within(fits) == 3
        assert await within(simulate(4)) == 4
        assert long.attempt == 1


async def test_a_thousand_that_are_held_back_are_one_line(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "rhapsody.engine")
    async with WorkflowEngine.create(ending(), work_dir=tmp_path) as flow:

        @flow.function_task(timeout=600)
        def simulate(n: int) -> int:
            return n

        await within(asyncio.gather(*flow.map(simulate, range(1000)), return_exceptions=True))
        assert flow.stats.failed == 1000
    (line,) = (each.getMessage() for each in caplog.records if "held back" in each.getMessage())
    assert "backend 'local' ends in " in line
    assert "task 'simulate' (task.000001), which needs 600 s" in line


async def test_it_goes_to_another_backend_unless_it_names_its_own(tmp_path: Path) -> None:
    backends = {"ending": ending(), "staying": LocalExecutionBackend(resources={"cores": 1})}
    async with WorkflowEngine.create(backends=backends, work_dir=tmp_path) as flow:

        @flow.function_task(resources={"walltime": 600})
        def moves() -> str:
            return "ran"

        @flow.executable_task(timeout=600)
        def program() -> str:
            return "echo ran"

        future = moves()
        assert await within(future) == "ran"
        assert future.backend == "staying"
        assert await within(program()) == "ran\n"
        with pytest.raises(InsufficientWalltimeError, match="backend 'ending' ends in"):
            await within(moves.options(backend="ending")())
        named = moves.options(backend="ending", other_backends=["staying"])()
        assert (await within(named), named.backend) == ("ran", "staying")


async def test_a_plugin_selects_among_the_backends_that_have_time(tmp_path: Path) -> None:
    seen: list[Sequence[str]] = []

    class Plugin:
        @hookimpl
        def rhapsody_select_backend(self, task: Any, candidates: Sequence[str]) -> str:
            seen.append(candidates)
            return candidates[-1]

    backends = [LocalExecutionBackend(resources={"cores": 1}), ending(name="ending")]
    async with WorkflowEngine.create(backends, observers=[Plugin()], work_dir=tmp_path) as flow:

        @flow.function_task
        def simulate() -> None:
            """Does nothing."""

        short, long = simulate(), simulate.options(resources={"walltime": 600})()
        await within(asyncio.gather(short, long))
        assert (short.backend, long.backend) == ("ending", "local")
    assert seen == [("local", "ending"), ("local",)]


async def test_a_backend_without_an_end_is_asked_once(tmp_path: Path) -> None:
    backend, other = Ending(None), Ending(float("inf"), "other")
    async with WorkflowEngine.create([backend, other], work_dir=tmp_path) as flow:

        @flow.function_task
        def simulate(n: int) -> int:
            return n

        tasks = [simulate.options(timeout=60), simulate.options(timeout=60, backend="other")]
        futures = [task(1) for task in (simulate, *tasks, simulate.options(backend="other"))]
        for one in (backend, backend, other, other):
            one.done(await within(one.next()), 1)
        await within(asyncio.gather(*futures))
        assert backend.asked == [""]
        assert other.asked == ["", "simulate"]  # of the one with a timeout


async def test_a_queued_task_that_does_not_fit_any_more_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = 0.0
    monkeypatch.setattr(local, "monotonic", lambda: time.monotonic() + passed)
    begun, go, counts = threading.Event(), threading.Event(), Counts()

    class Watch:
        @hookimpl
        def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
            counts.add(events)

    backends = [ending(), LocalExecutionBackend(resources={"cores": 1}, name="staying")]
    async with WorkflowEngine.create(backends, observers=[Watch()], work_dir=tmp_path) as flow:

        @flow.function_task
        def first() -> None:
            begun.set()
            assert go.wait(20)

        @flow.function_task(resources={"walltime": 30})
        def second() -> str:
            return "ran"

        running = first()
        queued, named = second(), second.options(backend="local")()
        last = second.options(backend="local", lost_retries=0)()
        await within(asyncio.to_thread(begun.wait, 20))
        await within(flow.submit())
        passed = 40.0
        go.set()
        await within(running)
        assert await within(queued) == "ran"
        assert (queued.backend, queued.attempt) == ("staying", 2)
        with pytest.raises(InsufficientWalltimeError, match="its walltime is 30 s, but backend"):
            await within(named)
        with pytest.raises(InsufficientWalltimeError, match="needs 30 s, but the walltime ends in"):
            await within(last)
        assert (flow.stats.retried, flow.stats.lost) == (0, 0)
    row = counts.all
    assert (row.done, row.held, row.failed, row.ended) == (2, 2, 0, 4)
    assert counts.held.keys() == {named.uid, last.uid}


async def test_nothing_stands_in_for_it_and_it_does_not_count_as_a_failure(tmp_path: Path) -> None:
    async with WorkflowEngine.create(ending(), fail_fast=True, work_dir=tmp_path) as flow:

        @flow.function_task(timeout=600, fallback=0, retries=3)
        def simulate() -> int:
            return 1

        @flow.function_task
        def quick() -> int:
            return 2

        held, runs = simulate(), quick()
        with pytest.raises(InsufficientWalltimeError):
            await within(held)
        assert await within(runs) == 2
        assert not flow.stats.retried


async def test_a_result_of_an_earlier_run_is_reused_however_little_time_is_left(
    tmp_path: Path,
) -> None:
    async def run(left: float) -> int:
        async with WorkflowEngine.create(
            ending(left), journal=tmp_path / "run.sqlite", resume=True, work_dir=tmp_path / "work"
        ) as flow:

            @flow.function_task(resources={"walltime": 600})
            def simulate(n: int) -> int:
                return n

            return await within(simulate(3))

    with pytest.raises(InsufficientWalltimeError):
        await run(60)
    assert await run(3600) == 3
    assert await run(60) == 3


async def test_a_run_with_held_back_tasks_resumes_even_if_errors_were_seen(
    tmp_path: Path,
) -> None:
    ran = tmp_path / "ran"

    async def run(left: float) -> bool:
        async with WorkflowEngine.create(
            ending(left), journal=tmp_path / "run.sqlite", work_dir=tmp_path / "work"
        ) as flow:

            @flow.function_task(version="1")
            def simulate(n: int) -> None:
                with open(ran, "a") as file:
                    file.write(f"{n}\n")

            long = simulate.options(resources={"walltime": 600})
            await within(asyncio.gather(simulate(1), long(2), return_exceptions=True))
        assert flow.summary is not None
        return flow.summary.held_back

    assert [await run(left) for left in (60, 3600, 3600)] == [True, False, False]
    assert sorted(ran.read_text().split()) == ["1", "1", "2", "2"]


async def test_a_dependent_of_one_that_is_held_back_says_so(tmp_path: Path) -> None:
    async with WorkflowEngine.create(ending(), work_dir=tmp_path) as flow:

        @flow.function_task
        def step(n: int) -> int:
            return n

        failed = step(step.options(timeout=600)(1))
        with pytest.raises(DependencyFailureError, match="was held back") as caught:
            await within(failed)
        assert isinstance(caught.value.root_cause, InsufficientWalltimeError)


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "1600"}, 600),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "900"}, None),  # it was extended
        ({"SLURM_JOB_ID": "1"}, None),  # before 23.02
        ({"SLURM_JOB_END_TIME": "1600"}, None),
        ({"PBS_JOBID": "1", "PBS_WALLTIME": "3600"}, 3600),
        ({"PBS_JOBID": "1", "PBS_WALLTIME": "01:00:00"}, None),  # a variable of the user's
    ],
)
async def test_a_batch_job_says_when_it_ends(
    variables: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME", "PBS_JOBID", "PBS_WALLTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert seconds_of_job() == seconds
    for backend in (LocalExecutionBackend(), Scripted()):
        async with backend:
            left = backend.seconds_left()
        assert left is None if seconds is None else left is not None and 0 < left <= seconds
    async with LocalExecutionBackend(resources={"walltime": 50}) as backend:
        assert (backend.seconds_left() or 0) <= 50


async def test_a_dry_run_in_a_batch_job_needs_no_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(round(time.time()) + 60))
    for how in ({"dry_run": True}, {"backend": NoopExecutionBackend()}):
        async with WorkflowEngine.create(work_dir=tmp_path, **how) as flow:

            @flow.function_task(timeout=600)
            def simulate() -> None:
                """Does nothing."""

            await within(simulate())


RUN = """
import os
async def main(flow):
    @flow.executable_task(timeout=600)
    def simulate(n):
        return f"echo simulated {n}"

    @flow.executable_task
    def quick():
        return "echo quick"

    for n in range(3):
        simulate(n)
    quick()
"""


async def test_a_run_says_what_it_held_back_and_the_next_one_takes_it_up(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    first = await asyncio.to_thread(run, RUN, "-o", "resources={walltime=60}")
    assert first.returncode == 1, first
    assert "3 tasks were held back: 'local' had " in first.stderr
    assert " left, but the first of them, simulate (task.000001), needs 0:10:00" in first.stderr
    assert "1 done, 3 held back in " in first.stderr
    assert "failed" not in first.stderr
    assert "run the same command again to continue" in first.stderr
    again = await asyncio.to_thread(run, RUN)
    assert again.returncode == 0, again
    assert "the last run failed; found 1 recorded result" in again.stderr
    assert "4 done (1 of them reused) in " in again.stderr
