"""Functions and executables in environments, on PSI/J's local executor."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import CapabilityError, InputFile, OutputFile, TaskLostError, WorkflowEngine
from rhapsody_psij import PsijExecutionBackend
from rhapsody_testing._tools import python_environment
from tests._support.environments import (
    PREFIX,
    Podman,
    cancel_in_container,
    container_with_python,
    make_environment,
    make_module,
    needs_modules,
    running_containers,
    working_podman,
)
from tests._support.machine import until_gone
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has a module which this Python lacks."""
    return python_environment(tmp_path_factory.mktemp("envs") / "env")


async def test_functions_and_commands_run_in_a_virtual_environment(
    environment: Path, tmp_path: Path
) -> None:
    backend = PsijExecutionBackend(tasks_per_job=4)
    async with WorkflowEngine.create(backend, work_dir=tmp_path / "work") as flow:

        @flow.function_task(venv=environment, environment={"GREETING": "a b"})
        def look(number: int) -> tuple[Any, ...]:
            import rhapsody_kit_only_here as only_here  # type: ignore[import-not-found]

            os.system("echo printed")
            return os.environ["GREETING"], only_here.PLACE, number + 1

        @flow.function_task(venv=environment, lost_retries=0)
        def leave() -> None:
            os._exit(3)

        show = flow.executable_task(venv=environment)(lambda: PREFIX)
        called, shown, lost = look(1), show(), leave()
        greeting, place, number = await within(called)
        assert (greeting, number, called.stdout) == ("a b", 2, "printed\n")
        assert place.startswith(str(environment))
        assert await within(shown) == f"{environment}\n"
        with pytest.raises(TaskLostError, match="ended with exit code 3"):
            await within(lost)
        empty = make_environment(tmp_path / "empty")
        with pytest.raises(CapabilityError, match=r"/empty/bin/python3 cannot import Rhapsody"):
            await within(look.options(venv=empty)(1))
        assert not [*(tmp_path / "work").rglob(".rhapsody.call")]


@pytest.mark.parametrize("tasks_per_job", [1, 2])
async def test_a_canceled_function_ends_with_its_children(
    tasks_per_job: int, environment: Path, tmp_path: Path
) -> None:
    backend = PsijExecutionBackend(max_jobs=1, tasks_per_job=tasks_per_job)
    async with WorkflowEngine.create(backend) as flow:

        @flow.function_task(venv=environment)
        def stay(path: Path) -> None:
            child = subprocess.Popen(["sleep", "300"])
            path.write_text(f"{os.getpid()} {child.pid}")
            child.wait()

        path = tmp_path / "pids"
        os.mkfifo(path)
        future, other = stay(path), flow.function_task(venv=environment)(lambda: sys.prefix)()
        pids = [int(pid) for pid in (await asyncio.to_thread(path.read_text)).split()]
        future.cancel()
        await within(future.ended())
        await until_gone(*pids)
        assert await within(other) == str(environment)


@needs_modules
async def test_functions_and_commands_run_with_modules(tmp_path: Path) -> None:
    make_module(tmp_path, "tool")
    settings: Any = {"modules": ["tool"], "environment": {"MODULEPATH": str(tmp_path)}}
    async with WorkflowEngine.create(PsijExecutionBackend()) as flow:
        look = flow.function_task(**settings)(lambda: (os.environ["TOOL"], sys.executable))
        show = flow.executable_task(**settings)(lambda: "echo $TOOL")
        assert await within(look()) == ("tool/1.0", sys.executable)
        assert await within(show()) == "tool/1.0\n"


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[Podman]:
    with working_podman() as working:
        podman = container_with_python(working)
        for name, value in podman.environment.items():
            monkeypatch.setenv(name, value)
        yield podman


async def test_functions_and_commands_run_in_a_container(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("data\n")
    settings: Any = {"work_dir": tmp_path / "work", "results_dir": tmp_path}
    async with WorkflowEngine.create(PsijExecutionBackend(), **settings) as flow:

        @flow.function_task(container=podman.root)
        def join(source: InputFile, target: OutputFile) -> str:
            inside = Path("/etc/inside").read_text()
            Path(target).write_text(Path(source).read_text() + inside)
            return os.environ["OMP_NUM_THREADS"]

        @flow.executable_task(container=podman.root)
        def show(source: InputFile) -> list[Any]:
            return ["cat", "/etc/inside", source]

        assert await within(join(InputFile(tmp_path / "data"), OutputFile("results/end"))) == "1"
        assert (tmp_path / "results/end").read_text() == "data\ninside\n"
        assert await within(show(InputFile(tmp_path / "data"))) == "inside\ndata\n"


@pytest.mark.parametrize("executor", ["local", "slurm"])
async def test_canceling_a_task_ends_its_container(
    executor: str, podman: Podman, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if executor == "slurm":
        request.getfixturevalue("cluster")
    backend = PsijExecutionBackend(executor)
    async with WorkflowEngine.create(backend, work_dir=tmp_path / "work") as flow:

        @flow.executable_task(container=podman.root)
        def wait(started: OutputFile) -> str:
            return f"echo >{started}; sleep 300"

        await cancel_in_container(wait(OutputFile("started")))
        await asyncio.to_thread(until_no_container)


def until_no_container() -> None:
    """Wait until no container runs: Slurm reports the end of a job while its processes end."""
    until = time.monotonic() + 30
    while names := running_containers():
        assert time.monotonic() < until, names
        time.sleep(0.1)
