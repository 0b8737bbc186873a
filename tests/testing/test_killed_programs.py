"""The conformance kit notices workers that execute tasks of a program that was killed."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from rhapsody.backends import Capabilities, ManagedBackend
from rhapsody.sdk import Reaper, finish, in_thread, pack, unpack
from rhapsody.task import TaskDescription
from tests._support.kits import Patient, run
from tests._support.pools import execute

pytestmark = pytest.mark.long

CHECK = "test_a_task_ends_with_a_killed_program[function]"


class OnAPool(ManagedBackend):
    """Backend whose library starts processes that go on with their tasks."""

    name = "pool"
    capabilities = Capabilities(executables=False, shared_file_system=True)

    async def start(self) -> None:
        self.pool = ProcessPoolExecutor(1)
        await asyncio.wrap_future(self.pool.submit(int))  # starts the process

    async def run_task(self, task: TaskDescription) -> Any:
        outcome = await asyncio.wrap_future(self.pool.submit(execute, pack(task)))
        if error := finish(task, unpack(outcome)):
            raise error
        return task["return_value"]

    async def stop(self) -> None:
        await in_thread(self.pool.shutdown)


class OnAPoolWithReaper(OnAPool):
    async def start(self) -> None:
        await super().start()
        self.reaper = Reaper()
        self.reaper.adopt(*self.pool._processes)

    async def stop(self) -> None:
        await super().stop()
        await in_thread(self.reaper.stop)


class Forgetful(Patient):
    separate_processes = True

    async def make_backend(self) -> Any:
        return OnAPool()


class Tidy(Forgetful):
    async def make_backend(self) -> Any:
        return OnAPoolWithReaper()


class Elsewhere(Forgetful):
    ends_with_program = False


class WithFixture(Tidy):
    @pytest.fixture(autouse=True)
    def _set_process(self) -> None:
        self.process = os.getpid()

    async def make_backend(self) -> Any:
        assert self.process  # also in the new process
        return OnAPoolWithReaper()


class Broken(WithFixture):
    async def make_backend(self) -> Any:
        if self.process != os.getpid():
            raise ConnectionError("no such scheduler")
        return OnAPool()


def test_a_worker_that_goes_on_is_found() -> None:
    outcome = run(Forgetful, CHECK)
    assert outcome.word == "failed"
    assert "the function continued for 1 s after its program was killed by SIGKILL" in outcome.text
    assert "processes that are still running: process" in outcome.text


@pytest.mark.parametrize("kit", [Tidy, WithFixture])
def test_processes_of_a_library_end_when_the_reaper_knows_them(kit: type[Patient]) -> None:
    outcome = run(kit, CHECK)
    assert outcome.word == "passed", outcome.text


def test_tasks_that_something_else_ends_are_not_checked() -> None:
    outcome = run(Elsewhere, CHECK)
    assert outcome.word == "skipped"
    assert "ends_with_program = False" in outcome.text


def test_a_program_that_cannot_start_is_not_mistaken_for_one_that_ended() -> None:
    outcome = run(Broken, CHECK)
    assert outcome.word == "failed"
    assert "could not create the backend" in outcome.text
    assert "ConnectionError: no such scheduler" in outcome.text
