"""Functions in containers, virtual and conda environments, and with environment modules."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody import (
    CapabilityError,
    InputFile,
    LocalExecutionBackend,
    OutputFile,
    TaskLostError,
    TaskTimeoutError,
    WorkflowEngine,
    current_task,
    hookimpl,
)
from rhapsody.task import TaskDescription
from rhapsody_testing._tools import python_environment
from tests._support.engine_fixtures import Machine, local_processes, local_threads
from tests._support.environments import (
    Podman,
    cancel_in_container,
    container_with_python,
    make_environment,
    make_module,
    needs_modules,
    running_containers,
    working_podman,
)
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

on_locals = pytest.mark.parametrize(
    "machine",
    [
        pytest.param(local_threads, id="threads"),
        pytest.param(local_processes, id="processes"),
        pytest.param(lambda: LocalExecutionBackend(ThreadPoolExecutor(1)), id="executor"),
    ],
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has a module which this Python lacks."""
    return python_environment(tmp_path_factory.mktemp("envs") / "an env")


@on_locals
async def test_a_function_uses_the_packages_of_its_environment(
    machine: Callable[[], Any], environment: Path, tmp_path: Path
) -> None:
    async with WorkflowEngine.create(machine(), work_dir=tmp_path / "work") as flow:

        @flow.function_task(venv=environment, environment={"GREETING": "a b"})
        def look(number: int, *, text: str) -> tuple[Any, ...]:
            import rhapsody_kit_only_here as only_here  # type: ignore[import-not-found]

            print("printed")
            os.system("echo by a child; echo problem >&2")
            task = current_task()
            found = sys.prefix, only_here.PLACE, os.environ["GREETING"], os.getcwd()
            return *found, task.name, number + 1, text

        @flow.function_task(venv=environment)
        async def look_async() -> str:
            await asyncio.sleep(0)
            return sys.prefix

        called = look(1, text="x")
        prefix, place, *others = await within(called)
        assert prefix == str(environment)
        assert place.startswith(prefix)
        assert others == ["a b", os.getcwd(), "look", 2, "x"]
        assert called.stdout == "printed\nby a child\n"
        assert called.stderr == "problem\n"
        assert (called.usage or {})["cpu_seconds"] >= 0
        assert await within(look_async()) == str(environment)
        assert not [*(tmp_path / "work").rglob(".rhapsody.*")]


async def test_a_function_runs_in_a_conda_environment(tmp_path: Path) -> None:
    path = python_environment(tmp_path / "conda")
    (path / "conda-meta").mkdir()
    async with WorkflowEngine.create() as flow:
        task = flow.function_task(conda=path)(lambda: (sys.prefix, os.environ["CONDA_PREFIX"]))
        assert await within(task()) == (str(path), str(path))


async def test_an_error_of_a_function_has_its_traceback(environment: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task(venv=environment)
        def fail() -> None:
            raise KeyError("the key")

        with pytest.raises(KeyError, match="the key") as caught:
            await within(fail())
    assert 'raise KeyError("the key")' in str(caught.value.__cause__)
    assert "runner.py" not in str(caught.value.__cause__)


async def test_a_function_reads_and_writes_its_files(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("data\n")
    async with WorkflowEngine.create(work_dir=tmp_path / "w", results_dir=tmp_path) as flow:

        @flow.function_task(venv=environment, capture="files")
        def copy(source: InputFile, target: OutputFile) -> str | None:
            Path(target).write_text(Path(source).read_text())
            print("printed")
            return current_task().sandbox

        called = copy(InputFile(tmp_path / "data"), OutputFile("results/copy"))
        assert await within(called) == called.sandbox
        assert (tmp_path / "results/copy").read_text() == "data\n"
        assert Path(called.stdout or "").read_text() == "printed\n"  # noqa: ASYNC240


async def test_cores_gpus_and_the_trace_context_reach_the_function(environment: Path) -> None:
    class Tracer:
        @hookimpl
        def rhapsody_trace_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            for task in tasks:
                task["trace_context"] = {"traceparent": "00-a-b-01"}

    def look() -> tuple[str | None, ...]:
        names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        return *map(os.environ.get, names), current_task().trace_context["traceparent"]

    backend = LocalExecutionBackend(resources={"cores": 4, "gpus": ["a", "b"]})
    async with WorkflowEngine.create(backend, observers=[Tracer()]) as flow:
        task = flow.function_task(venv=environment)(look)
        assert await within(task()) == ("1", "", "00-a-b-01")
        task = task.options(resources={"cores": 3, "gpus": 1})
        assert await within(task()) == ("3", "a", "00-a-b-01")


def stay(path: Path) -> None:
    child = subprocess.Popen(["sleep", "300"])
    path.write_text(f"{os.getpid()} {child.pid}")
    child.wait()


@on_locals
async def test_a_canceled_function_ends_with_its_children(
    machine: Callable[[], Any], environment: Path, tmp_path: Path
) -> None:
    path = tmp_path / "pids"
    os.mkfifo(path)
    async with WorkflowEngine.create(machine()) as flow:
        future = flow.function_task(venv=environment)(stay)(path)
        pids = [int(pid) for pid in (await asyncio.to_thread(path.read_text)).split()]
        future.cancel()
        await within(future.ended())
        assert not [pid for pid in pids if _runs(pid)]


async def test_a_function_that_exceeds_its_timeout_ends(environment: Path, tmp_path: Path) -> None:
    async with WorkflowEngine.create(local_threads()) as flow:
        future = flow.function_task(venv=environment, timeout=3.0)(stay)(tmp_path / "pids")
        with pytest.raises(TaskTimeoutError) as caught:
            await within(future)
        assert "cannot stop it" not in str(caught.value)
        await within(future.ended())
        assert future.uid not in flow.backend.still_running  # type: ignore[attr-defined]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_function_whose_process_ends_is_lost(environment: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task(venv=environment, lost_retries=0)
        def leave() -> None:
            os._exit(3)

        with pytest.raises(TaskLostError, match=r"process in venv='.*an env' ended .* code 3"):
            await within(leave())
        later = flow.function_task(venv=environment)(lambda: 1)
        assert await within(later()) == 1


async def test_a_call_that_cannot_be_pickled_is_refused(environment: Path) -> None:
    async with WorkflowEngine.create() as flow:
        task = flow.function_task(venv=environment)(print)
        with pytest.raises(TypeError, match=r"positional argument 0 .*pickled for venv="):
            await within(task(threading.Lock()))


# Environments that cannot make the call.


async def test_an_environment_without_rhapsody_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = make_environment(tmp_path / "env")
    async with WorkflowEngine.create() as flow:
        task = flow.function_task(venv=path)(lambda: 1)
        said = rf"cannot run in venv='{path}': {path}/bin/python3 cannot import .*`pip install rhap"
        with pytest.raises(CapabilityError, match=said):
            await within(task())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param(
            f"exec {sys.executable} -c "
            "'import sys; sys.version_info = 3, 4; exec(sys.argv[2])' \"$@\"",
            r"is Python 3.4, .* recreate it with Python 3",
            id="version",
        ),
        pytest.param(
            "echo no luck >&2; exit 126", r"did not start \(exit code 126\) no luck", id="other"
        ),
    ],
)
async def test_an_unusable_python_is_named(script: str, said: str, tmp_path: Path) -> None:
    path = make_environment(tmp_path / "env")
    (path / "bin/python3").unlink()
    (path / "bin/python3").write_text(f"#!/bin/sh\n{script}\n")
    (path / "bin/python3").chmod(0o755)
    async with WorkflowEngine.create() as flow:
        task = flow.function_task(venv=path)(lambda: 1)
        with pytest.raises(CapabilityError, match=said):
            await within(task())


async def test_other_backends_refuse_before_submission(environment: Path) -> None:
    async with WorkflowEngine.create([Machine(), LocalExecutionBackend()]) as flow:
        task = flow.function_task(venv=environment)(lambda: sys.prefix)
        said = r"does not support venv=.* for functions, .*; attached backends that do: local"
        with pytest.raises(CapabilityError, match=said):
            await within(task())
        assert await within(task.options(backend="local")()) == str(environment)


# Modules and containers.


@needs_modules
@on_locals
async def test_a_function_runs_with_modules(machine: Callable[[], Any], tmp_path: Path) -> None:
    make_module(tmp_path, "tool")
    async with WorkflowEngine.create(machine()) as flow:

        @flow.function_task(modules=["tool"], environment={"MODULEPATH": str(tmp_path)})
        def look() -> tuple[str, str]:
            return os.environ["TOOL"], sys.executable

        assert await within(look()) == ("tool/1.0", sys.executable)
        with pytest.raises(CapabilityError, match=r"modules=\('none',\): cannot load the modules"):
            await within(look.options(modules=["none"])())


@pytest.fixture(scope="module")
def working() -> Iterator[Podman]:
    with working_podman() as podman:
        yield container_with_python(podman)


@pytest.fixture
def podman(working: Podman, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in working.environment.items():
        monkeypatch.setenv(name, value)
    return working.root


@on_locals
async def test_a_function_runs_in_a_container(
    machine: Callable[[], Any], podman: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("data\n")
    async with WorkflowEngine.create(
        machine(), work_dir=tmp_path / "work", results_dir=tmp_path
    ) as flow:

        @flow.function_task(container=podman, environment={"SECRET": "x y"})
        def join(source: InputFile, target: OutputFile, number: int) -> tuple[Any, ...]:
            inside = Path("/etc/inside").read_text()
            Path(target).write_text(Path(source).read_text() + inside)
            print("printed")
            found = os.environ["SECRET"], os.environ["OMP_NUM_THREADS"], os.getcwd()
            return *found, current_task().sandbox, number + 1

        called = join(InputFile(tmp_path / "data"), OutputFile("results/joined"), 1)
        assert await within(called) == ("x y", "1", called.sandbox, called.sandbox, 2)
        assert called.stdout == "printed\n"
        assert (tmp_path / "results/joined").read_text() == "data\ninside\n"
        assert (tmp_path / "results/joined").stat().st_uid == os.getuid()

        def fail() -> None:
            raise KeyError("inside")

        with pytest.raises(KeyError, match="inside"):
            await within(flow.function_task(container=podman)(fail)())


async def test_canceling_a_function_ends_its_container(podman: Path, tmp_path: Path) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:

        @flow.function_task(container=podman)
        def wait(started: OutputFile) -> None:
            Path(started).write_text("")
            threading.Event().wait()

        await cancel_in_container(wait(OutputFile("started")))
        assert await asyncio.to_thread(running_containers) == ""
