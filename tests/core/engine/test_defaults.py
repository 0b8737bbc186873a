"""Engines and their tasks with the options of a profile."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, ProfileError, Resources, WorkflowEngine
from rhapsody.backends import NoopExecutionBackend
from rhapsody.engine.functions.task_function import TaskFunction

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

GIB = 2**30


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], None]:
    """Writes the file with profiles."""

    def write_file(text: str) -> None:
        (tmp_path / "rhapsody.toml").write_text(textwrap.dedent(text))

    return write_file


Write = Callable[[str], None]


def requested(task: TaskFunction[Any, Any]) -> dict[str, Any]:
    """The fields of the resources that are not the defaults."""
    found = task.settings.resources
    if found is None:
        return {}
    assert isinstance(found, Resources)
    default = Resources()
    return {
        name: getattr(found, name)
        for name in Resources.__dataclass_fields__
        if getattr(found, name) != getattr(default, name)
    }


# The engine and its backend.


async def test_a_profile_sets_the_backend_and_options_of_the_engine(write: Write) -> None:
    write(
        """
        [profile.laptop]
        backend = "local"
        [profile.laptop.options]
        executor = "process"
        cores = 3
        [profile.laptop.engine]
        max_pending = 5
        [profile.laptop.defaults]
        retries = 2
        """
    )
    async with WorkflowEngine.create(profile="laptop") as flow:
        assert isinstance(flow.backend, LocalExecutionBackend)
        assert flow.backend.machine.cores == 3
        assert not flow.backend.shares_memory
        assert flow._options.max_pending == 5
        assert flow._options.retries is not None
        assert flow.options["profile"] == "laptop"


async def test_code_takes_precedence_over_the_profile(write: Write) -> None:
    write(
        """
        [profile.a]
        backend = "noop"
        [profile.a.engine]
        max_pending = 5
        fail_fast = true
        [profile.a.defaults]
        retries = 2
        """
    )
    async with WorkflowEngine.create(
        LocalExecutionBackend(), profile="a", retries=None, keep_going=True
    ) as flow:
        assert isinstance(flow.backend, LocalExecutionBackend)
        options = flow._options
        assert (options.max_pending, options.retries) == (5, None)
        assert (options.keep_going, options.fail_fast, options.max_failures) == (True, False, None)


async def test_a_backend_that_the_code_names_gets_the_options_of_its_profile(write: Write) -> None:
    write("[profile.a]\nbackend = 'local'\noptions.cores = 1234\n")
    async with (
        WorkflowEngine.create("Local", profile="a") as first,
        WorkflowEngine.create("noop", profile="a") as second,
        WorkflowEngine.create("local") as third,
    ):
        assert isinstance(first.backend, LocalExecutionBackend)
        assert first.backend.machine.cores == 1234
        assert isinstance(second.backend, NoopExecutionBackend)
        assert isinstance(third.backend, LocalExecutionBackend)
        assert third.backend.machine.cores != 1234


async def test_the_default_profile_and_the_top_of_the_file_apply_to_every_engine(
    write: Write,
) -> None:
    write(
        "default_profile = 'a'\nengine.max_pending = 5\n"
        "[profile.a]\nbackend = 'noop'\n[profile.b.engine]\nmax_pending = 6\n"
    )
    async with (
        WorkflowEngine.create() as first,
        WorkflowEngine.create(profile="b") as second,
        WorkflowEngine.create(profile=False) as third,
    ):
        assert isinstance(first.backend, NoopExecutionBackend)
        assert isinstance(second.backend, LocalExecutionBackend)
        assert [each._options.max_pending for each in (first, second, third)] == [5, 6, None]


async def test_the_environment_variable_selects_the_profile(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("[profile.a]\nbackend = 'noop'\n")
    monkeypatch.setenv("RHAPSODY_PROFILE", "a")
    async with WorkflowEngine.create() as flow:
        assert isinstance(flow.backend, NoopExecutionBackend)


async def test_a_dry_run_does_not_use_the_backend_of_the_profile(write: Write) -> None:
    write("default_profile = 'a'\n[profile.a]\nbackend = 'local'\n")
    async with WorkflowEngine.create(dry_run=True) as flow:
        assert isinstance(flow.backend, NoopExecutionBackend)


async def test_a_backend_that_cannot_be_created_is_reported_with_the_line(write: Write) -> None:
    write("[profile.a]\nbackend = 'elsewhere'\n[profile.b.options]\ncores = -1\n")
    with pytest.raises(ProfileError, match=r"^rhapsody\.toml:2: Backend 'elsewhere' not found"):
        WorkflowEngine.create(profile="a")
    said = r"^rhapsody\.toml:4: backend 'local': resources: cores must be at least 1, got -1$"
    with pytest.raises(ProfileError, match=said):
        WorkflowEngine.create(profile="b")


@pytest.mark.parametrize("value", [True, 3, "", Path("a")])
async def test_a_profile_is_selected_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match="profile must be the name of a profile, or False, got"):
        WorkflowEngine.create(profile=value)


# Tasks.


async def test_defaults_complete_the_settings_in_the_code(write: Write) -> None:
    write(
        """
        [defaults]
        cores = 2
        memory = "1 GiB"
        priority = 3
        environment = { A = "profile", B = "profile" }
        """
    )
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:
        plain = flow.function_task(lambda: 1)
        assert requested(plain) == {"cores": 2, "memory": GIB}
        assert plain.settings.priority == 3
        one = plain.options(resources={"cores": 1}, priority=0, environment={"A": "code"})
        assert requested(one) == {"memory": GIB}
        assert one.settings.priority == 0
        assert one.settings.environment == {"A": "code", "B": "profile"}
        wide = flow.executable_task(resources=Resources(gpus=1))(lambda: "true")
        assert requested(wide) == {"cores": 2, "gpus": 1, "memory": GIB}
        assert requested(wide.options(resources=None)) == {"cores": 2, "memory": GIB}


async def test_overrides_replace_the_settings_in_the_code(write: Write) -> None:
    write(
        """
        [tasks.align]
        cores = 8
        retries = 2
        [tasks."other*"]
        cores = 4
        """
    )
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:

        @flow.function_task(resources={"cores": 2, "memory": "1 GiB"})
        def align() -> None: ...

        assert requested(align) == {"cores": 8, "memory": GIB}
        assert align.settings.retries is not None
        other = align.options(name="other_1")
        assert requested(other) == {"cores": 4, "memory": GIB}
        assert other.settings.retries is None
        assert requested(other.options(name="third")) == {"cores": 2, "memory": GIB}


async def test_resources_that_depend_on_the_attempt_are_completed(write: Write) -> None:
    write("[defaults]\ngpus = 1\n[tasks.grow]\ncores = 8\n")
    seen = []
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:

        @flow.function_task(resources=lambda attempt: {"cores": 1, "memory": attempt * GIB})
        def grow() -> None: ...

        await grow()
        resources: Any = grow.settings.resources
        seen = [resources(attempt) for attempt in (1, 2)]
        with pytest.raises(TypeError, match="expected a Resources or a dict"):
            await grow.options(resources=lambda attempt: None)()  # type: ignore[arg-type, return-value]
    assert seen == [{"gpus": 1, "cores": 8, "memory": attempt * GIB} for attempt in (1, 2)]


async def test_services_receive_no_default_resources(write: Write) -> None:
    write("[defaults]\ncores = 2\nlimit = 'x:1'\ntimeout = 5\npriority = 1\n[tasks.b]\ncores = 4\n")
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:
        first = flow.executable_task(service=True, name="a")(lambda: "true")
        assert (requested(first), first.settings.limit, first.settings.priority) == ({}, (), 1)
        assert requested(first.options(name="b")) == {"cores": 4}


async def test_blocks_receive_no_settings(write: Write) -> None:
    write("[defaults]\ncores = 2\npriority = 1\n[tasks.part]\nretries = 4\n")
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:

        @flow.block
        async def part() -> int:
            return 1

        assert part.settings.priority == 0
        assert await part() == 1


async def test_an_override_that_does_not_suit_its_task_is_reported_with_the_line(
    write: Write,
) -> None:
    write("[tasks.server]\ntimeout = 5\n[tasks.far]\nbackend = 'far'\n")
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:
        with pytest.raises(ValueError, match="does not apply to services") as caught:
            flow.executable_task(service=True, name="server")(lambda: "true")
        assert caught.value.__notes__ == ["task 'server' has settings from rhapsody.toml:2"]
        with pytest.raises(ValueError, match="no backend 'far' is attached") as caught:
            flow.function_task(name="far")(lambda: 1)
        assert caught.value.__notes__ == ["task 'far' has settings from rhapsody.toml:4"]


async def test_iterators_in_settings_are_used_again_by_options() -> None:
    async with WorkflowEngine.create(NoopExecutionBackend()) as flow:
        first: asyncio.Future[Any] = flow.function_task(lambda: 1)()
        task = flow.function_task(after=iter([first]), limit=iter(["x:1"]))(lambda: 1)
        other = task.options(priority=1)
        assert other.settings.after == (first,)
        assert other.settings.limit == (("x", 1),)
