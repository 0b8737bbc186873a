"""Helpers for tests of the local backend: states, and tasks with requirements."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.backends.local.jobs import ONE_FUNCTION, JobRunner, LocalJob
from rhapsody.resources import Resources
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription
from rhapsody_testing import Driver

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING


def needing(task: TaskDescription, **resources: Any) -> TaskDescription:
    """The task, with these resources."""
    task["resources"] = Resources(**resources)
    return task


def in_each_way(driver: Driver, function: Callable[..., Any], *args: Any) -> list[TaskDescription]:
    """A call on a worker thread, and one on the shared loop."""
    return [driver.call(function, *args), needing(driver.call(function, *args), cores=0)]


class NoRunner(JobRunner):
    """Runner that does nothing."""

    def run(self, job: LocalJob) -> None:
        """Do nothing."""

    def cancel(self, job: LocalJob) -> None:
        """Do nothing."""


def job_of(task: Any, **fields: Any) -> LocalJob:
    """Return a job for a task; it is never run."""
    return LocalJob(task, task["uid"], **{"request": ONE_FUNCTION, "runner": NoRunner(), **fields})


class CannotStart(LocalExecutionBackend):
    """Fails in the last step of its start."""

    async def start(self) -> None:
        await super().start()
        raise ConnectionError("the last step of its start failed")


def exit_at_once(code: int) -> None:
    """End the process by `os._exit`, which coverage.py replaces, and which then cannot be sent."""
    os._exit(code)
