"""Executables in containers, conda and virtual environments, and with environment modules.

The tests of containers run Podman with a root file system that contains only busybox. The command
lines of Apptainer and Docker are tested with programs of these names that print their arguments.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, WorkflowEngine, hookimpl
from rhapsody.errors import CapabilityError, TaskFailedError
from rhapsody.task import TaskDescription
from tests._support.engine_fixtures import Machine, on_machines
from tests._support.environments import (
    PREFIX,
    Podman,
    make_conda_environment,
    make_environment,
    make_module,
    needs_modules,
    working_podman,
)
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


async def run(*command: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def make_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# Virtual and conda environments.


@on_machines
async def test_a_command_runs_in_its_virtual_environment(
    machine: Callable[[], Any], tmp_path: Path
) -> None:
    path = make_environment(tmp_path / "an env")
    async with WorkflowEngine.create(machine()) as flow:

        @flow.executable_task(venv=path)
        def show(command: Any) -> Any:
            return command

        assert await within(show([*PREFIX, "$HOME", "a b"])) == f"{path} $HOME a b\n"
        text = f"{shlex.join(PREFIX)} $((1 + 1)) | cat && echo $VIRTUAL_ENV"
        assert await within(show(text)) == f"{path} 2\n{path}\n"
        assert await within(show.options(stdin="text")("cat; exit 0")) == "text"
        with pytest.raises(TaskFailedError, match="ended with exit code 3: exit 3") as caught:
            await within(show("exit 3"))
        assert caught.value.command == "exit 3"


async def test_relative_paths_start_at_the_directory_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_environment(tmp_path / "env")
    async with WorkflowEngine.create() as flow:
        os.chdir("/")
        show = flow.executable_task(venv="env")(lambda: PREFIX)
        assert await within(show()) == f"{path}\n"


@on_machines
async def test_a_command_runs_in_its_conda_environment(
    machine: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONDA_EXE", "CONDA_ENVS_PATH", "CONDA_ENVS_DIRS", "MAMBA_ROOT_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    named = make_conda_environment(tmp_path / ".conda/envs/plots")
    other = make_conda_environment(tmp_path / "elsewhere/genomes")
    (tmp_path / ".conda/environments.txt").write_text(f"{tmp_path}/removed\n{other}\n")
    async with WorkflowEngine.create(machine()) as flow:

        @flow.executable_task(conda="plots")
        def show() -> str:
            return f"{shlex.join(PREFIX)} $ACTIVATED $CONDA_PREFIX"

        assert await within(show()) == f"{named} bash {named}\n"
        assert await within(show.options(conda="genomes")()) == f"{other} bash {other}\n"
        assert await within(show.options(conda=other)()) == f"{other} bash {other}\n"
        with pytest.raises(CapabilityError, match=r"'plot' was not found; .*: plots, genomes"):
            await within(show.options(conda="plot")())


async def test_a_service_runs_in_its_environment(tmp_path: Path) -> None:
    path = make_environment(tmp_path / "env")
    async with WorkflowEngine.create() as flow:

        @flow.executable_task(service=True, venv=path, ready="tcp")
        def serve() -> list[str]:
            return ["python", "-m", "http.server", "--bind", "127.0.0.1", "{port}"]

        address: Any = await within(serve())
        _, writer = await asyncio.open_connection(*address)
        writer.close()


# Modules.


@needs_modules
@on_machines
async def test_modules_are_loaded_before_the_command(
    machine: Callable[[], Any], tmp_path: Path
) -> None:
    for name in ("tool", "other"):
        make_module(tmp_path, name)
    environment = {"MODULEPATH": str(tmp_path)}
    async with WorkflowEngine.create(machine()) as flow:

        @flow.executable_task(modules=["tool/1.0", "other"], environment=environment)
        def show(end: str = "") -> str:
            return f"echo $TOOL ${{OTHER:-}} {end}"

        assert await within(show("| cat")) == "tool/1.0 other/1.0\n"
        path = make_environment(tmp_path / "env")
        both = show.options(venv=path, modules=iter(["tool"])).options(priority=1)
        assert await within(both("$VIRTUAL_ENV")) == f"tool/1.0 {path}\n"
        said = "rhapsody: cannot load the modules tool/2.0"
        with pytest.raises(TaskFailedError, match=said) as caught:
            await within(show.options(modules=["tool/2.0"])())
        assert caught.value.exit_code == 125


# Containers.


@pytest.fixture(scope="module")
def working() -> Iterator[Podman]:
    with working_podman() as podman:
        yield podman


class Tracer:
    """A plugin that gives each task a trace context."""

    @hookimpl
    def rhapsody_trace_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        for task in tasks:
            task["trace_context"] = {"traceparent": "00-a-b-01"}


@pytest.fixture
def podman(working: Podman, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root file system of a container that Podman can run."""
    for name, value in working.environment.items():
        monkeypatch.setenv(name, value)
    return working.root


@on_machines
async def test_a_command_runs_in_a_container_with_its_files(
    machine: Callable[[], Any], podman: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a b.txt").write_text("data\n")
    async with WorkflowEngine.create(
        machine(), work_dir=tmp_path / "work", results_dir=tmp_path
    ) as flow:

        @flow.executable_task(container=podman, environment={"SECRET": "x y"})
        def first(file: InputFile, out: OutputFile) -> str:
            return f"cat /etc/inside {shlex.quote(str(file))} >{out}; echo $SECRET; pwd"

        @flow.executable_task(container=podman)
        def second(file: InputFile, out: OutputFile, after: Any) -> list[Any]:
            return ["cp", file, out]

        called = first(InputFile(tmp_path / "data/a b.txt"), OutputFile("middle"))
        await within(second(InputFile("middle"), OutputFile("results/end"), called))
        assert await called == f"x y\n{called.sandbox}\n"
        end = tmp_path / "results/end"
        assert end.read_text() == "inside\ndata\n"
        assert end.stat().st_uid == os.getuid()
        with pytest.raises(TaskFailedError, match="ended with exit code 4"):
            await within(flow.executable_task(container=podman)(lambda: "cat; exit 4")())
        with pytest.raises(TaskFailedError, match="ended with exit code 127"):
            await within(flow.executable_task(container=podman)(lambda: ["missing"])())
        here = flow.executable_task(container=podman, cwd=tmp_path / "data")(lambda: ["pwd"])
        assert await within(here()) == f"{tmp_path}/data\n"
        read = flow.executable_task(container=podman, stdin="text")(lambda: ["cat"])
        assert await within(read()) == "text"


@on_machines
async def test_the_trace_context_reaches_a_command_in_a_container(
    machine: Callable[[], Any], podman: Path
) -> None:
    async with WorkflowEngine.create(machine(), observers=[Tracer()]) as flow:
        show = flow.executable_task(container=podman)(lambda: "echo $TRACEPARENT")
        assert await within(show()) == "00-a-b-01\n"


async def test_an_image_of_a_registry_is_found(podman: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "image"), "tar", podman)
    command = ["podman", "import", "--change", 'ENTRYPOINT ["/none"]', archive]
    await run(*command, "localhost/tested:1")
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:
        image = "docker://localhost/tested:1"
        show = flow.executable_task(container=image)(lambda: ["cat", "/etc/inside"])
        assert await within(show()) == "inside\n"


async def test_canceling_a_task_ends_its_container(podman: Path, tmp_path: Path) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:

        @flow.executable_task(container=podman, service=True, ready="stdout:up")
        def stay() -> list[str]:
            return ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"]

        future = stay()
        await within(future)
        assert await run("podman", "ps", "--quiet") != ""
        future.cancel()
        await within(future.ended())
        assert await run("podman", "ps", "--quiet") == ""
    words = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [each for each in words if str(podman) in each]


PRINTS = 'echo "$0"; printf "%s\\n" "$@"'


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for stand-ins of container programs, the only ones that are found."""
    place = tmp_path / "programs"
    place.mkdir()
    for name in ("bash", "cat", "id", "mktemp", "readlink", "rm", "uname"):
        (place / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(place))
    return place


async def test_apptainer_binds_the_sandbox_and_the_inputs(programs: Path, tmp_path: Path) -> None:
    make_program(programs / "apptainer", PRINTS)
    make_program(programs / "docker", PRINTS)
    image = tmp_path / "image.sif"
    image.write_bytes(b"")
    (tmp_path / "data.txt").write_text("")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/data.txt").write_text("")
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:

        @flow.executable_task(container=image)
        def show(*files: InputFile) -> list[Any]:
            return ["wc", *files]

        data, more = tmp_path / "data.txt", tmp_path / "more/data.txt"
        called = show(InputFile(data), InputFile(more))
        words = (await within(called)).splitlines()
        sandbox = called.sandbox
        assert words == [
            str(programs / "apptainer"), "exec", "--pwd", sandbox, "--bind", f"{more}:{more}",
            "--bind", f"{data}:{data}", "--bind", f"{sandbox}:{sandbox}", str(image), "wc",
            "data.txt", "2/data.txt",
        ]  # fmt: skip


async def test_apptainer_uses_gpus_only_if_they_are_requested(
    programs: Path, tmp_path: Path
) -> None:
    make_program(programs / "singularity", PRINTS)
    image = tmp_path / "image.sif"
    image.write_bytes(b"")
    backend = LocalExecutionBackend(resources={"gpus": 1})
    async with WorkflowEngine.create(backend, work_dir=tmp_path / "work") as flow:
        task = flow.executable_task(container=image, cwd=tmp_path, resources={"gpus": 1})
        words = (await within(task(lambda: "echo *")())).splitlines()
        assert words[:5] == [
            str(programs / "singularity"), "exec", "--pwd", str(tmp_path), "--nv",
        ]  # fmt: skip
        assert words[-7:-4] == [str(image), "/bin/sh", "-c"]
        assert words[-1].endswith("echo *")
        registry = flow.executable_task(container="docker://ubuntu:24.04")
        words = (await within(registry(lambda: ["true"])())).splitlines()
        assert words[-2:] == ["docker://ubuntu:24.04", "true"]
        assert "--nv" not in words


async def test_docker_runs_as_the_user(programs: Path, tmp_path: Path) -> None:
    make_program(programs / "docker", PRINTS)
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:

        @flow.executable_task(container="docker://python:3.12", environment={"TOKEN": "secret"})
        def show() -> str:
            return "echo *"

        words = (await within(show())).splitlines()
        assert words[:3] == [str(programs / "docker"), "run", "--rm"]
        assert words[-7:-4] == ["python:3.12", "/bin/sh", "-c"]
        assert words[-1].endswith("echo *")
        assert {f"{os.getuid()}:{os.getgid()}", "--env=TOKEN", "--env=PORT"} <= {*words}
        assert "secret" not in " ".join(words)


async def test_a_missing_container_program_is_reported(programs: Path, tmp_path: Path) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:
        show = flow.executable_task(container="docker://python:3.12")(lambda: "echo")
        with pytest.raises(CapabilityError, match=r"needs apptainer, .* or docker, and none of"):
            await within(show())


# Errors before submission.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param({"venv": "nowhere"}, "create it with `python -m venv ", id="venv"),
        pytest.param({"conda": "./nowhere"}, "it has no directory conda-meta", id="conda"),
        pytest.param({"container": "none.sif"}, "does not exist; for an image of", id="image"),
    ],
)
async def test_a_missing_environment_is_reported_before_submission(
    settings: Any, said: str, tmp_path: Path
) -> None:
    async with WorkflowEngine.create(work_dir=tmp_path / "work") as flow:
        future = flow.executable_task(**settings)(lambda: "touch started")()
        with pytest.raises(CapabilityError, match=said):
            await within(future)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        pytest.param({"venv": 1}, TypeError, "venv must be the path of a virtual", id="type"),
        pytest.param({"venv": ""}, ValueError, "venv must be the path", id="empty"),
        pytest.param({"container": "oras://a"}, ValueError, 'such as "docker://', id="scheme"),
        pytest.param({"modules": ["a b"]}, ValueError, 'names such as "gcc/12"', id="name"),
        pytest.param({"modules": 1}, TypeError, "modules must be a list", id="modules"),
        pytest.param({"venv": "a", "conda": "b"}, ValueError, "set conda=None or venv=", id="two"),
    ],
)
async def test_wrong_settings_are_refused(settings: Any, error: Any, said: str) -> None:
    async with WorkflowEngine.create() as flow:
        with pytest.raises(error, match=said):
            flow.executable_task(**settings)(lambda: "echo")


async def test_another_backend_may_have_the_environment(tmp_path: Path) -> None:
    class Elsewhere(Machine):
        name = "elsewhere"
        capabilities = replace(Machine.capabilities, shared_file_system=False)

        async def run_task(self, task: TaskDescription) -> Any:
            make_environment(tmp_path / "later")
            return await super().run_task(task)

    class Selecting:
        @hookimpl
        def rhapsody_select_backend(self, candidates: Sequence[str]) -> str:
            assert candidates == ("elsewhere",)
            return candidates[0]

    backends = [LocalExecutionBackend(), Elsewhere()]
    async with WorkflowEngine.create(backends, observers=[Selecting()]) as flow:
        show = flow.executable_task(venv=tmp_path / "later")(lambda: PREFIX)
        assert await within(show()) == f"{tmp_path}/later\n"


async def test_blocks_have_no_environment() -> None:
    async with WorkflowEngine.create() as flow:
        with pytest.raises(TypeError, match="a block has no setting 'conda'"):
            flow.block(conda="env")(print)


async def test_a_dry_run_needs_no_environment() -> None:
    async with WorkflowEngine.create(dry_run=True) as flow:
        in_venv = flow.executable_task(venv="nowhere")
        in_container = flow.executable_task(container="docker://python:3.12")
        in_function: Any = flow.function_task(venv="nowhere")(lambda: 1)
        assert await in_function() == "Dummy Output"
        for task in (in_venv, in_container):
            assert await task(lambda: "x")() == "Dummy Output"


# Profiles and resume.


async def test_a_profile_selects_environments_of_executables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVIRONMENTS", "envs")
    path = make_environment(tmp_path / "envs/main")
    other = make_environment(tmp_path / "other")
    (tmp_path / "rhapsody.toml").write_text(
        '[defaults]\nvenv = "$ENVIRONMENTS/main"\n[tasks.plot]\nvenv = "other"\n'
    )
    monkeypatch.chdir(tmp_path)
    async with WorkflowEngine.create() as flow:
        os.chdir("/")

        @flow.executable_task
        def show() -> list[str]:
            return PREFIX

        @flow.function_task
        def add(x: int) -> int:
            return x + 1

        assert await within(show()) == f"{path}\n"
        assert await within(show.options(name="plot")()) == f"{other}\n"
        assert await within(show.options(venv=None)()) != f"{path}\n"
        assert await within(add(1)) == 2


async def test_a_result_is_reused_in_the_same_environment_only(tmp_path: Path) -> None:
    first, second = (make_environment(tmp_path / name) for name in ("first", "second"))
    settings: Any = {"journal": tmp_path / "journal", "resume": True}
    log = tmp_path / "log"

    async def run(path: Path) -> str:
        async with WorkflowEngine.create(**settings) as flow:
            task = flow.executable_task(venv=path)
            return await within(task(lambda: f"echo x >>{log}; echo $VIRTUAL_ENV")())

    for path in (first, first, second):
        assert await run(path) == f"{path}\n"
    assert log.read_text() == "x\nx\n"
