"""Settings in a backend's own words: what a backend does not know is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine, hookimpl
from rhapsody.errors import CapabilityError
from tests._support.scripted import Inline, within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


def knowing(name: str, *keys: str) -> Inline:
    """A backend that knows some settings."""
    backend = Inline(name)
    backend.capabilities = replace(backend.capabilities, task_settings=frozenset(keys))
    return backend


def nothing() -> None: ...


async def test_a_setting_that_the_backend_does_not_know_is_refused_before_submission() -> None:
    backend = knowing("cluster", "queue", "account")
    async with WorkflowEngine.create(backend) as flow:
        task = flow.function_task(nothing)
        await within(task(task_description={"queue": "long"}))
        said = (
            r"backend 'cluster' does not support the key 'qeue' in task_description; "
            r"did you mean 'queue'\? \(supported keys: account, queue\)"
        )
        for wrong in (task.options(task_description={"qeue": 1}), task):
            with pytest.raises(CapabilityError, match=said):
                await within(wrong(task_description={"queue": "long", "qeue": 1}))
        await within(task())
    assert len(backend.ran) == 2


async def test_a_backend_that_takes_no_settings_says_so() -> None:
    async with WorkflowEngine.create(knowing("plain")) as flow:
        task = flow.function_task(task_description={"queue": 1})(nothing)
        said = r"backend 'plain' does not support the key 'queue' .* \(supported keys: none\)"
        with pytest.raises(CapabilityError, match=said):
            await within(task())


async def test_a_backend_that_declares_nothing_gets_what_there_is() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        await within(flow.function_task(task_description={"queue": 1})(nothing)())


async def test_a_dry_run_takes_the_settings_of_any_backend() -> None:
    async with WorkflowEngine.create(dry_run=True) as flow:
        await within(flow.function_task(task_description={"ranks": 4})(nothing)())


class Selects:
    """Takes the last candidate."""

    def __init__(self) -> None:
        self.offered: list[tuple[str, ...]] = []

    @hookimpl
    def rhapsody_select_backend(self, candidates: tuple[str, ...]) -> str:
        self.offered.append(candidates)
        return candidates[-1]


async def test_only_backends_that_know_a_tasks_settings_are_candidates() -> None:
    backends = [knowing("a", "queue"), knowing("b", "queue", "ranks"), knowing("c", "queue")]
    selects = Selects()
    async with WorkflowEngine.create(backends, observers=[selects]) as flow:
        task = flow.function_task(nothing)
        for key, where in (("queue", "c"), ("ranks", "b")):
            future = task(task_description={key: 1})
            await within(future)
            assert future.backend == where
        with pytest.raises(CapabilityError, match=r"backend 'a' does not support the key 'speed'"):
            await within(task(task_description={"speed": 1}))
    assert selects.offered == [("a", "b", "c"), ("b",)]


async def test_without_a_choice_the_default_backend_says_which_one_knows_the_setting() -> None:
    async with WorkflowEngine.create([knowing("a", "queue"), knowing("b", "ranks")]) as flow:
        task = flow.function_task(task_description={"ranks": 2})(nothing)
        with pytest.raises(CapabilityError, match=r"supported keys: queue; .* that support it: b"):
            await within(task())
        await within(task.options(backend="b")())


class Sets:
    """A plugin that changes a setting of each task."""

    @hookimpl
    def rhapsody_prepare_task(self, task: Any) -> None:
        task["task_backend_specific_kwargs"]["speed"] = 1


async def test_a_setting_of_a_hook_is_checked_as_well() -> None:
    async with WorkflowEngine.create(knowing("a", "queue"), observers=[Sets()]) as flow:
        task = flow.function_task(nothing)
        with pytest.raises(CapabilityError, match="does not support the key 'speed'"):
            await within(task())


async def test_the_local_backend_knows_how_commands_are_run() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def run(command: Any) -> Any:
            return command

        assert await within(run("echo a", task_description={"shell": True})) == "a\n"
        assert await within(run(["echo", "a"], task_description={"shell": False})) == "a\n"
        for command, shell, said in (
            ("echo a", False, "sets shell=False, .* a string, .*; return a list of words instead"),
            (["echo", "a"], True, "sets shell=True, .* a list, .*; return a string instead"),
        ):
            with pytest.raises(ValueError, match=said):
                await within(run(command, task_description={"shell": shell}))
        with pytest.raises(
            CapabilityError, match=r"'local' does not support the key 'shel' .*mean 'shell'\?"
        ):
            await within(run("echo a", task_description={"shel": True}))
        for key, instead in (("cwd", "cwd=..."), ("cores", "resources={'cores': ...}")):
            said = f"pass {instead} as a setting of the task instead (supported keys: shell)"
            with pytest.raises(CapabilityError, match=re.escape(said)):
                await within(run("echo a", task_description={key: 1}))


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_every_kind_of_local_backend_checks_settings(executor: str) -> None:
    backend = LocalExecutionBackend(executor, resources={"workers": 1})
    async with WorkflowEngine.create(backend) as flow:
        with pytest.raises(CapabilityError, match="does not support the key 'ranks'"):
            await within(flow.function_task(nothing)(task_description={"ranks": 2}))


async def test_a_resource_as_a_setting_gets_the_hint_to_write_resources() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        for name in ("cores", "gpus", "memory", "ranks", "walltime"):
            given: Any = {name: 1}
            wrong = rf"setting '{name}'; .*; write resources={{'{name}'"
            with pytest.raises(TypeError, match=wrong):
                flow.function_task(**given)(nothing)
