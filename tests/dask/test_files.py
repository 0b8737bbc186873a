"""Files sent between the engine's machine and the workers."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, LocalExecutionBackend, OutputDir, OutputFile, WorkflowEngine
from rhapsody.data import OUTPUT_FILES
from rhapsody.errors import CapabilityError, DataError, TaskFailedError
from rhapsody_dask import DaskExecutionBackend
from rhapsody_testing import Driver
from tests._support.environments import PREFIX, make_environment, working_podman

pytestmark = pytest.mark.asyncio


async def test_checking_for_a_shared_directory_leaves_no_files(
    cluster: Any, tmp_path: Path
) -> None:
    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend(cluster=cluster)
        async with WorkflowEngine.create(backend=backend) as flow:

            @flow.executable_task
            async def hello() -> str:
                return "echo hello"

            assert await hello() == "hello\n"
    assert os.listdir(tmp_path) == []


async def test_files_are_sent_by_content_without_a_shared_file_system(
    cluster: Any, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("from outside\n")
    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend(cluster=cluster, shared_file_system=False)
        assert not backend.capabilities.shared_file_system
        backends = {"dask": backend, "here": LocalExecutionBackend()}
        async with WorkflowEngine.create(backends=backends) as flow:

            @flow.executable_task
            async def copy(source: InputFile, target: OutputFile) -> str:
                return f"pwd; cat {source.filename} > {target.filename}"

            @flow.function_task
            def read(source: InputFile, after: object) -> str:
                with open(source) as file:
                    return file.read()

            @flow.executable_task(backend="here")
            async def show(source: InputFile, after: object) -> str:
                return f"cat {source.filename}"

            @flow.executable_task
            async def forget(target: OutputFile) -> str:
                return "true"

            first = copy(InputFile(tmp_path / "in.txt"), OutputFile("out.txt"))
            assert await read(InputFile("out.txt"), first) == "from outside\n"
            assert await show(InputFile("out.txt"), first) == "from outside\n"
            assert str(tmp_path / ".rhapsody") not in await first
            with pytest.raises(DataError, match="did not write 'never'"):
                await forget(OutputFile("never"))


@pytest.mark.parametrize("shared", [True, False])
async def test_several_inputs_have_one_name(cluster: Any, tmp_path: Path, shared: bool) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "in.txt").write_text(f"{name}\n")
    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend(cluster=cluster, shared_file_system=shared)
        async with WorkflowEngine.create(backend=backend, results_dir=tmp_path) as flow:

            @flow.executable_task
            def join(one: InputFile, two: InputFile, out: OutputFile) -> str:
                return f"cat {one} {two} > {out}; ls *"

            @flow.function_task
            def read(one: InputFile, two: InputFile) -> list[str]:
                return [Path(one).read_text(), Path(two).read_text()]

            files = [InputFile(tmp_path / name / "in.txt") for name in "ab"]
            listed = await join(*files, OutputFile("kept/out.txt"))
            assert listed == "in.txt\nout.txt\n\n2:\nin.txt\n"
            assert (tmp_path / "kept/out.txt").read_text() == "a\nb\n"
            assert await read(*files) == ["a\n", "b\n"]


@pytest.mark.parametrize("shared", [True, False])
async def test_only_copies_of_inputs_may_change(cluster: Any, tmp_path: Path, shared: bool) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("raw\n")
    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend(cluster=cluster, shared_file_system=shared)
        async with WorkflowEngine.create(backend=backend, results_dir=tmp_path) as flow:

            @flow.executable_task
            def append(file: InputFile, out: OutputFile) -> str:
                return f"echo more >> {file} && cp {file} {out}"

            @flow.function_task
            def change(file: InputFile) -> str:
                with open(file, "a") as opened:
                    opened.write("more\n")
                return Path(file).read_text()

            copied = InputFile(raw, copy=True)
            await append(copied, OutputFile("kept/out.txt"))
            assert (tmp_path / "kept/out.txt").read_text() == "raw\nmore\n"
            assert await change(copied) == "raw\nmore\n"
            assert raw.read_text() == "raw\n"
            if shared:
                for call in (append(InputFile(raw), OutputFile("out.txt")), change(InputFile(raw))):
                    with pytest.raises(DataError, match="copy=True"):
                        await call
            else:  # the workers have their own copies
                await append(InputFile(raw), OutputFile("out.txt"))
                assert raw.read_text() == "raw\n"


@pytest.mark.parametrize("shared", [True, False])
async def test_a_program_with_a_cwd_finds_its_files(
    cluster: Any, tmp_path: Path, shared: bool
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "in.txt").write_text("in\n")
    async with asyncio.timeout(60):
        backend = DaskExecutionBackend(cluster=cluster, shared_file_system=shared)
        async with WorkflowEngine.create(backend=backend, results_dir=tmp_path) as flow:

            @flow.executable_task(cwd=place)
            def copy(source: InputFile, target: OutputFile) -> str:
                return f"pwd; echo said >&2; cat {source} > {target}"

            @flow.executable_task(cwd=place)
            def copy_by_words(source: InputFile, target: OutputFile) -> list[str]:
                return ["cp", f"{source}", f"{target}"]

            one = copy(InputFile(tmp_path / "in.txt"), OutputFile("kept/one.txt"))
            two = copy_by_words(InputFile(tmp_path / "in.txt"), OutputFile("kept/two.txt"))
            assert await one == f"{place}\n"
            assert one.stderr == "said\n"
            await two
            for name in ("one.txt", "two.txt"):
                assert (tmp_path / "kept" / name).read_text() == "in\n"
            with pytest.raises(FileNotFoundError, match="none' does not exist"):
                await copy.options(cwd=tmp_path / "none")(
                    InputFile(tmp_path / "in.txt"), OutputFile("three.txt")
                )
    assert os.listdir(place) == []


async def test_a_second_start_with_a_cwd_uses_its_own_sandbox(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("in\n")
    async with asyncio.timeout(60):
        backend = DaskExecutionBackend(cluster=cluster)
        async with backend, Driver(backend, work_dir=tmp_path) as driver:
            task = driver.command("", cwd="/")
            first = task["sandbox"]
            task["executable"] = f"cat {first}/in.txt > {first}/out.txt"
            os.mkdir(first)  # as by a start on a worker that is cut off
            backend.link_explicit_data_deps(None, task, "in.txt", str(tmp_path / "in.txt"))
            end = await driver.run_one(task)
            assert end.exit_code == 0
            sandbox = Path(end.task["sandbox"])
            assert sandbox.parent == Path(first)
            assert (sandbox / "out.txt").read_text() == "in\n"


async def test_several_files_are_sent_to_another_backend(cluster: Any, tmp_path: Path) -> None:
    async with asyncio.timeout(60):
        far = await DaskExecutionBackend(cluster=cluster, shared_file_system=False)
        backends = {"here": LocalExecutionBackend(), "far": far}
        async with WorkflowEngine.create(backends=backends) as flow:

            @flow.executable_task(backend="here")
            def make(plots: OutputDir, tables: OutputFile) -> str:
                return f"mkdir {plots}; echo 1 > {plots}/a; echo 2 > {plots}/b; echo 3 > c.csv"

            @flow.function_task(backend="far")
            def read(plots: Any, tables: Any, after: object) -> tuple[list[str], list[str]]:
                texts = [path.read_text() for path in [*plots, *tables]]
                return texts, sorted(os.listdir(plots))

            @flow.executable_task(backend="far")
            def never(plots: OutputDir) -> str:
                return f"mkdir {plots}"

            made = make(OutputDir("plots"), OutputFile("*.csv", many=True))
            texts, names = await read(InputFile("plots"), InputFile("*.csv"), made)
            assert (texts, names) == (["1\n", "2\n", "3\n"], ["a", "b"])
            with pytest.raises(CapabilityError, match="only single files can be copied"):
                await never(OutputDir("results/plots"))


async def test_files_that_cannot_be_sent_are_skipped_and_logged(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(60):
        backend = DaskExecutionBackend(cluster=cluster, shared_file_system=False)
        async with WorkflowEngine.create(
            backend=backend, work_dir=tmp_path, keep_sandboxes="all"
        ) as flow:

            @flow.executable_task
            async def leave() -> list[str]:
                program = """
import os, socket
os.makedirs("sub/deeper")
os.symlink("nowhere", "dangling")
os.symlink("/etc/passwd", "sub/absolute")
os.symlink("../../out", "sub/out")
os.symlink("kept", "sub/link")
os.mkfifo("sub/pipe")
socket.socket(socket.AF_UNIX).bind("socket")
open("sub/kept", "w").write("fine")
"""
                return [sys.executable, "-c", program]

            future = leave()
            assert await future == ""
            assert future.sandbox is not None
            sandbox = Path(future.sandbox)
            assert (sandbox / "sub/link").read_text() == "fine"
            assert (sandbox / "sub/deeper").is_dir()
            assert set(os.listdir(sandbox)) - {*OUTPUT_FILES} == {"sub"}
            assert set(os.listdir(sandbox / "sub")) == {"kept", "link", "deeper"}
    (record,) = [one for one in caplog.records if one.name == "rhapsody.dask"]
    assert "dangling, sub/absolute, sub/out, sub/pipe;" in record.getMessage()


async def test_commands_run_in_environments_of_the_workers(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("from outside\n")
    path = make_environment(tmp_path / "env")
    with working_podman() as podman:
        async with asyncio.timeout(60):
            backend = await DaskExecutionBackend(cluster=cluster, shared_file_system=False)
            async with WorkflowEngine.create(backend=backend) as flow:

                @flow.executable_task(container=podman.root, environment=podman.environment)
                def copy(source: InputFile, target: OutputFile) -> list[Any]:
                    return ["cp", source, target]

                show = flow.executable_task(venv=path)(lambda: PREFIX)
                assert await show() == f"{path}\n"
                await copy(
                    InputFile(tmp_path / "in.txt"), OutputFile("out.txt", save=f"{tmp_path}/")
                )
                with pytest.raises(TaskFailedError, match="no virtual environment in /none"):
                    await show.options(venv="/none")()
    assert (tmp_path / "out.txt").read_text() == "from outside\n"


@pytest.mark.parametrize("shared", [True, False])
async def test_each_dependent_changes_its_own_copy_of_undeclared_files(
    cluster: Any, tmp_path: Path, shared: bool
) -> None:
    (tmp_path / "in.txt").write_text("in\n")
    async with asyncio.timeout(60):
        backend = DaskExecutionBackend(cluster=cluster, shared_file_system=shared)
        async with WorkflowEngine.create(backend=backend) as flow:

            @flow.executable_task
            async def start(source: InputFile) -> str:
                return "echo start > out.txt; mkdir d; echo 0 > d/log; ln -s out.txt latest"

            @flow.executable_task
            async def step(name: str, former: object) -> str:
                return f"echo {name} >> out.txt; echo {name} > d/log; touch {name}"

            @flow.executable_task
            async def look(*former: object) -> str:
                return "cat out.txt d/log latest in.txt"

            first = start(InputFile(tmp_path / "in.txt"))
            one, two = step("one", first), step("two", first)
            assert (await look(one)).split() == ["start", "one", "one", "start", "one", "in"]
            assert (await look(two)).split() == ["start", "two", "two", "start", "two", "in"]
            assert (await look(first)).split() == ["start", "0", "start", "in"]
            with pytest.raises(DataError, match=r"d|out\.txt|latest"):
                await look(one, two)
