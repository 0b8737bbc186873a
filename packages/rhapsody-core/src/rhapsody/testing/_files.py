"""Checks of files: links into sandboxes, and declared files through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rhapsody.data import InputFile, OutputDir, OutputFile
from rhapsody.errors import DataError
from rhapsody.testing._suite import REACHABLE, NewEngine, Suite, check
from rhapsody.testing._tasks import DONE
from rhapsody.testing._work import read

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine
    from rhapsody.testing._driver import Driver


class Files(Suite):
    """Linking by the backend's two methods, and declared files through the engine."""

    @check("files", "executables", "files", "shared_file_system")
    @pytest.mark.parametrize("name", ["plain.txt", "with space & 'quote'.txt", "ünicode.txt"])
    async def test_a_file_from_outside_is_linked(self, driver: Driver, name: str) -> None:
        outside = self.place / "its name.txt"
        outside.write_text("content")
        task = driver.command(["cat", name])
        driver.backend.link_explicit_data_deps(
            dst_task=task, file_name=name, file_path=str(outside)
        )
        end = await driver.run_one(task)
        assert end.stdout == "content", str(end)

    @check("files", "executables", "files")
    @pytest.mark.parametrize("how", ["explicit", "implicit"])
    async def test_files_of_another_task_are_linked(self, driver: Driver, how: str) -> None:
        first, empty = await driver.run(
            driver.command("echo 1 > one; echo 2 > 'and two'"), driver.command("true")
        )
        assert first.state is DONE, str(first)
        task, backend = driver.command("cat one 'and two'"), driver.backend
        if how == "implicit":
            backend.link_implicit_data_deps(first.task, task)
            backend.link_implicit_data_deps(empty.task, task)
        else:
            for name in ("one", "and two"):
                backend.link_explicit_data_deps(src_task=first.task, dst_task=task, file_name=name)
        end = await driver.run_one(task)
        assert end.stdout == "1\n2\n", str(end)

    @check("files", "executables", "files", "shared_file_system")
    @pytest.mark.parametrize(
        "name", ["../escaped.txt", "a/../../escaped.txt", "{place}/escaped.txt"]
    )
    async def test_no_name_leaves_the_sandbox(self, driver: Driver, name: str) -> None:
        outside, escaped = self.place / "outside.txt", self.place / "escaped.txt"
        outside.write_text("content")
        task = driver.command("true")
        try:
            driver.backend.link_explicit_data_deps(
                dst_task=task, file_name=name.format(place=self.place), file_path=str(outside)
            )
        except ValueError:  # a DataError is one
            return
        await driver.run_one(task)
        assert not escaped.exists(), f"the name {name!r} made {escaped}"

    @check("files", "executables", "copies_files_out")
    async def test_a_file_is_copied_out(self, driver: Driver) -> None:
        end = await driver.run_one(driver.command("echo made > 'out file.txt'"))
        assert end.state is DONE, str(end)
        target = self.place / "copied"
        await driver.backend.copy_file_out(end.task, "out file.txt", target)
        assert target.read_text() == "made\n"
        for name in ("never", "../never", str(target)):  # none is a file of the sandbox
            with pytest.raises(DataError):
                await driver.backend.copy_file_out(end.task, name, self.place / "refused")

    @check("files", "executables", "files")
    @pytest.mark.parametrize("cwd", [None, "/"])
    async def test_declared_files_go_from_task_to_task(
        self, flow: WorkflowEngine, cwd: str | None
    ) -> None:
        if cwd is not None and not self.capabilities.cwd:
            pytest.skip("the backend does not declare cwd")
        outside = self.place / "input.txt"
        outside.write_text("from outside\n")
        settings: Any = {} if cwd is None else {"cwd": cwd}

        @flow.executable_task(**settings)
        async def copy(source: InputFile, target: OutputFile) -> list[str]:
            return ["cp", f"{source}", str(target)]

        @flow.executable_task(**settings)
        async def show(source: InputFile, *, after: object) -> str:
            return f"cat '{source}'"

        first = copy(InputFile(str(outside)), OutputFile("copied.txt"))
        assert await show(InputFile("copied.txt"), after=first) == "from outside\n"

    @check("files", "executables", "files", REACHABLE)
    async def test_a_file_is_saved_before_its_result_is_seen(self, new_engine: NewEngine) -> None:
        results = self.place / "results"
        flow = await new_engine(results_dir=results)

        @flow.executable_task
        async def make(target: OutputFile) -> str:
            return f"echo made > {target.filename}"

        for _ in range(2):  # the second replaces the first
            await make(OutputFile("in/made.txt"))
            assert (results / "in/made.txt").read_text() == "made\n"
        assert [path.name for path in (results / "in").iterdir()] == ["made.txt"]

    @check("files", "executables", "files", REACHABLE)
    async def test_files_of_an_earlier_run_are_read(self, new_engine: NewEngine) -> None:
        options = {"journal": self.place / "run.sqlite", "results_dir": self.place, "resume": True}
        for words, recorded in (["one"], 0), (["one", "two"], 2):
            flow = await new_engine(**options)

            @flow.executable_task
            async def make(target: OutputFile) -> str:
                return f"echo made > {target.filename}"

            @flow.executable_task
            async def show(word: str, source: InputFile, *, after: object) -> str:
                return f"echo {word}; cat {source.filename}"

            first = make(OutputFile("in/made.txt"))
            for word in words:
                shown = await show(word, InputFile("made.txt"), after=first)
                assert shown == f"{word}\nmade\n"
            assert flow.stats.recorded == recorded, "tasks that did not run again"
            await flow.shutdown(skip_execution_backend=True)

    @check("files", "executables", "files", "shared_file_system")
    async def test_directories_and_matches_go_from_task_to_task(
        self, new_engine: NewEngine
    ) -> None:
        saved = self.place / "results" / "in"
        flow = await new_engine(results_dir=self.place / "results")

        @flow.executable_task
        async def make(plots: OutputDir, tables: OutputFile) -> str:
            return (
                f"mkdir -p {plots}/deep && echo 1 > {plots}/a && echo 2 > {plots}/deep/b && "
                "echo 3 > c.csv && echo 4 > d.csv"
            )

        @flow.executable_task
        async def show(plots: InputFile, tables: InputFile, *, after: object) -> str:
            return f"cat {plots}/a {plots}/deep/b {tables}"

        made = make(OutputDir("in/plots/"), OutputFile("in/*.csv", many=True))
        assert await show(InputFile("plots"), InputFile("*.csv"), after=made) == "1\n2\n3\n4\n"
        names = sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file())
        assert names == ["c.csv", "d.csv", "plots/a", "plots/deep/b"]
        if self.capabilities.sync_functions:

            @flow.function_task
            def open_them(files: list[Path], after: object) -> list[str]:
                return [read(path) for path in files]

            assert await open_them(InputFile("*.csv"), made) == ["3\n", "4\n"]

    @check("files", "sync_functions", "files", "shared_file_system")
    async def test_a_function_gets_its_files_as_paths(self, flow: WorkflowEngine) -> None:
        outside = self.place / "input.txt"
        outside.write_text("from outside\n")

        @flow.function_task
        def open_it(source: InputFile) -> tuple[bool, str]:
            return Path(source).is_absolute(), read(source)

        assert await open_it(InputFile(str(outside))) == (True, "from outside\n")

    @check("files", "executables", "files")
    async def test_undeclared_files_of_a_dependency_are_linked(self, new_engine: NewEngine) -> None:
        flow = await new_engine(implicit_data=True)

        @flow.executable_task
        async def write() -> str:
            return "echo left > 'left over.txt'"

        @flow.executable_task
        async def show(before: object) -> str:
            return "cat 'left over.txt'"

        assert await show(write()) == "left\n"

    @check("files", "executables", "files")
    async def test_a_missing_output_fails_its_task(self, flow: WorkflowEngine) -> None:
        @flow.executable_task
        async def forget(target: OutputFile) -> str:
            return "true"

        with pytest.raises(DataError, match=r"promised\.txt"):
            await forget(OutputFile("promised.txt"))
