"""Executables in a directory of the user (`cwd`), which have a sandbox as well."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, OutputFile, RetryPolicy, WorkflowEngine, hookimpl
from rhapsody.errors import CapabilityError, DataError, PluginError
from tests._support.engine_fixtures import Machine, on_machines
from tests._support.scripted import Scripted, within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a program and its data, in the current one."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "a place"
    place.mkdir()
    (place / "data.txt").write_text("data\n")
    return place


@on_machines
async def test_a_program_runs_in_its_cwd_and_its_sandbox_stays(
    machine: Callable[[], Any], place: Path
) -> None:
    async with WorkflowEngine.create(machine(), keep_sandboxes="all") as flow:

        @flow.executable_task(cwd="a place")
        def look(command: Any) -> Any:
            return command

        os.chdir("/")
        for command in ("pwd; cat data.txt", ["sh", "-c", "pwd; cat data.txt"]):
            future = look(command)
            assert await within(future) == f"{place}\ndata\n"
            assert future.sandbox is not None
            assert Path(future.sandbox) != place
        assert os.listdir(place) == ["data.txt"]
        assert await within(look.options(cwd=Path("/"))("pwd")) == "/\n"
        assert await within(look.options(cwd=None)("pwd")) != f"{place}\n"


@on_machines
async def test_a_command_finds_its_files_and_those_it_promised(
    machine: Callable[[], Any], place: Path
) -> None:
    async with WorkflowEngine.create(machine(), results_dir="results") as flow:

        @flow.executable_task(cwd=place)
        def join(first: InputFile, out: OutputFile) -> str:
            assert os.fspath(first) == str(first) == f"{first}"
            return f"cat data.txt {first} > {out}"

        @flow.executable_task
        def show(file: InputFile, after: Any) -> str:
            return f"cat {file}"

        (place.parent / "more.txt").write_text("more\n")
        joined = join(InputFile("more.txt"), OutputFile("kept/out.txt"))
        assert await within(show(InputFile("out.txt"), joined)) == "data\nmore\n"
        assert (place.parent / "results/kept/out.txt").read_text() == "data\nmore\n"
        assert os.listdir(place) == ["data.txt"]


async def test_a_promised_file_is_looked_for_in_the_sandbox(place: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task(cwd=place)
        def write(out: OutputFile) -> str:
            return f"echo x > {out.filename}"

        with pytest.raises(DataError, match=r"out\.txt"):
            await within(write(OutputFile("out.txt")))
        assert (place / "out.txt").exists()


@pytest.mark.parametrize("form", [str, os.fspath])
async def test_another_attempt_has_the_files_of_its_own_sandbox(
    form: Callable[[Any], str], place: Path
) -> None:
    async with WorkflowEngine.create(keep_sandboxes="all") as flow:
        built = []

        @flow.executable_task(cwd=place, retries=RetryPolicy(2))
        def second_time(out: OutputFile) -> list[str]:
            built.append(form(out))
            return ["sh", "-c", f"echo x > '{form(out)}'; mkdir first && exit 1; rmdir first"]

        future = second_time(OutputFile("out.txt"))
        await within(future)
        assert len(built) == 1
        assert future.attempt == 2
        assert future.sandbox is not None
        assert "out.txt" in os.listdir(future.sandbox)


async def test_another_attempt_of_a_command_in_its_sandbox_names_its_own_paths() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task(retries=1)
        def second_time(out: OutputFile) -> str:
            return f"case $PWD in *.1) exit 1;; esac; echo x > {out.filepath}"

        future = second_time(OutputFile("out.txt"))
        await within(future)
        assert future.attempt == 2


@on_machines
async def test_a_directory_that_is_not_there_fails_the_task(
    machine: Callable[[], Any], place: Path
) -> None:
    async with WorkflowEngine.create(machine()) as flow:

        @flow.executable_task(cwd="nowhere")
        def look() -> str:
            return "touch ran"

        with pytest.raises(FileNotFoundError, match="nowhere"):
            await within(look())
        with pytest.raises(NotADirectoryError, match=r"data\.txt"):
            await within(look.options(cwd=place / "data.txt")())
    assert not (place.parent / "nowhere").exists()


async def test_the_error_says_what_is_wrong_with_the_directory(place: Path) -> None:
    async with WorkflowEngine.create() as flow:
        look = flow.executable_task(cwd=place / "data.txt")(lambda: "pwd")
        with pytest.raises(OSError, match=r"its cwd '.*/data.txt' is not a directory"):
            await within(look())
        said = r"its cwd '.*/none' does not exist; create it first"
        with pytest.raises(OSError, match=said):
            await within(look.options(cwd="none")())


async def test_a_service_runs_in_its_cwd(place: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task(service=True, cwd=place, ready="stdout:data")
        def serve() -> str:
            return "cat data.txt; exec sleep 600"

        service = serve()
        assert await within(service) == "data"
        service.cancel()
        await within(service.ended())

        @flow.executable_task(service=True, cwd=place, ready="file:up")
        def announce(up: OutputFile) -> str:
            return f"touch {up}; exec sleep 600"

        service = announce(OutputFile("up"))
        assert Path(await within(service)).parent != place
        service.cancel()


def run_again(sandbox: str) -> subprocess.CompletedProcess[str]:
    script = os.path.join(sandbox, ".rhapsody.again")
    return subprocess.run(["sh", script], capture_output=True, text=True, check=False)


async def test_a_failed_command_is_run_again_where_it_ran(place: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task(cwd=place)
        def fail(data: InputFile) -> str:
            return f"pwd; cat data.txt {data}; exit 3"

        (place.parent / "more.txt").write_text("more\n")
        future = fail(InputFile("more.txt"))
        with pytest.raises(RuntimeError) as raised:
            await within(future)
        again = run_again(future.sandbox or "")
        assert (again.returncode, again.stdout) == (3, f"{place}\ndata\nmore\n")
        assert "cannot be seen" not in raised.value.__notes__[0]


async def test_a_function_has_no_directory_of_its_own() -> None:
    async with WorkflowEngine.create() as flow:
        said = r"cwd='data' applies only to executable tasks"
        with pytest.raises(TypeError, match=said):
            flow.function_task(cwd="data")(print)
        with pytest.raises(TypeError, match=said):
            flow.function_task(print).options(cwd="data")
        with pytest.raises(TypeError, match="a block has no setting 'cwd'"):
            flow.block(cwd="data")(print)


@pytest.mark.parametrize(
    ("wrong", "kind"), [(3, TypeError), (b"x", TypeError), ("", ValueError), ("a\0", ValueError)]
)
async def test_what_can_be_no_directory_is_refused(wrong: Any, kind: type[Exception]) -> None:
    async with WorkflowEngine.create() as flow:
        with pytest.raises(kind, match="cwd must be the path of a directory"):
            flow.executable_task(cwd=wrong)(lambda: "pwd")


async def test_a_backend_without_cwd_is_reported_before_submission() -> None:
    backend = Machine()
    backend.capabilities = replace(backend.capabilities, cwd=False)
    async with WorkflowEngine.create(backend) as flow:
        with pytest.raises(CapabilityError, match=r"backend 'machine'.* does not support cwd='/'"):
            await within(flow.executable_task(cwd="/")(lambda: "pwd")())


async def test_the_description_has_an_absolute_path(place: Path) -> None:
    backend = Scripted()
    backend.capabilities = replace(backend.capabilities, cwd=True)
    async with WorkflowEngine.create(backend) as flow:
        look = flow.executable_task(cwd="a place/../a place")(lambda: "pwd")
        future = look()
        task = await within(backend.given("<lambda>"))
        assert task["cwd"] == str(place)
        assert task["sandbox"] != str(place)
        backend.done(task)
        await within(future)
        backend.forget()
        plain = look.options(cwd=None)()
        task = await within(backend.given("<lambda>"))
        assert "cwd" not in task
        backend.done(task)
        await within(plain)


class Sets:
    """A plugin that sets the directory of each task."""

    def __init__(self, cwd: Any) -> None:
        self.cwd = cwd

    @hookimpl
    def rhapsody_prepare_task(self, task: Any) -> None:
        task["cwd"] = self.cwd


async def test_a_hook_may_set_it(place: Path) -> None:
    for cwd in ("a place", 3):
        async with WorkflowEngine.create(observers=[Sets(cwd)]) as flow:
            with pytest.raises(PluginError, match="with a cwd that is not an absolute path: "):
                await within(flow.executable_task(lambda: "pwd")())
    async with WorkflowEngine.create(observers=[Sets(str(place))]) as flow:
        with pytest.raises(PluginError, match="with a cwd, which only executables have: "):
            await within(flow.function_task(lambda: 1)())
        assert await within(flow.executable_task(lambda: "pwd")()) == f"{place}\n"
