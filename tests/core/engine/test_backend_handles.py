"""Tests of the name of a backend in an engine: that of its class, or its own."""

from __future__ import annotations

from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, StateMapper, WorkflowEngine
from rhapsody import states as states_of
from rhapsody.backends.commands import CommandBackend
from rhapsody.backends.discovery import make_backend
from rhapsody.backends.noop import NoopExecutionBackend
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

CLASSES: list[Any] = [LocalExecutionBackend, NoopExecutionBackend]


@pytest.fixture
def other_states(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name whose states are none that our backends report."""
    monkeypatch.setattr(states_of, "_tables", dict(states_of._tables))
    StateMapper.register_backend_tasks_states("queueing", "OK", "BAD", "GONE", "ACTIVE")
    return "queueing"


@pytest.mark.parametrize("cls", CLASSES)
async def test_two_backends_of_a_class_have_different_names(cls: Any) -> None:
    backends = [cls(), cls(name="big")]
    async with WorkflowEngine.create(backends) as flow:
        assert list(flow.backends) == [cls.name, "big"]

        @flow.function_task
        def where() -> None: ...

        here, there = where(), where.options(backend="BIG")()
        await within(here)
        await within(there)
        assert (here.backend, there.backend) == (cls.name, "big")


@pytest.mark.parametrize("cls", CLASSES)
async def test_a_name_changes_no_states(cls: Any, other_states: str) -> None:
    backend = cls(name=other_states)
    assert StateMapper(backend).DONE == "DONE"
    async with WorkflowEngine.create(backend) as flow:

        @flow.executable_task
        def hello() -> str:
            return "echo hello"

        assert await within(hello())


async def test_two_of_one_name_are_refused_with_what_to_write() -> None:
    backends = [LocalExecutionBackend(), LocalExecutionBackend()]
    said = r"two backends are named 'local'; .* LocalExecutionBackend\(\.\.\., name='second'\)"
    with pytest.raises(ValueError, match=said):
        await WorkflowEngine.create(backends)


async def test_a_dry_run_takes_a_noop_backend_whatever_it_is_called() -> None:
    async with WorkflowEngine.create(NoopExecutionBackend(name="plan"), dry_run=True) as flow:
        assert list(flow.backends) == ["plan"]
    with pytest.raises(RuntimeError, match="cannot use backend 'noop'"):
        await WorkflowEngine.create(LocalExecutionBackend(name="noop"), dry_run=True)


async def test_the_command_line_gives_a_name() -> None:
    assert make_backend("local", {"name": "big"}).name == "big"


class Jobs(CommandBackend):
    """As much of a backend as its name takes."""

    name = "jobs"

    async def submit_job(self, task: Any, script: str) -> str:
        raise NotImplementedError

    async def ask_jobs(self, jobs: Any) -> dict[str, bool]:
        return {}

    async def cancel_jobs(self, jobs: Any) -> None: ...


@pytest.mark.parametrize("cls", [*CLASSES, Jobs])
async def test_what_cannot_be_a_name_is_refused(cls: Any) -> None:
    assert cls(name=" big ").name == "big"
    assert cls().name == cls.name
    with pytest.raises(TypeError, match=r"name must be a string, got 3"):
        cls(name=3)
    for name in (" ", "two\nlines"):
        with pytest.raises(ValueError, match="name must be one line"):
            cls(name=name)
