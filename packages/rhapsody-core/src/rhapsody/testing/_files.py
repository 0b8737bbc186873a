"""Checks of files and links: what a task finds in its sandbox."""

from __future__ import annotations

from pathlib import Path

from rhapsody.errors import DataError
from rhapsody.testing._rules import COPIES_OUT, CWD, EXECUTABLES, FILES, SAVES, SHARED, SYNC
from rhapsody.testing._running import check
from rhapsody.testing._tasks import DONE
from rhapsody.testing._trial import Trial
from rhapsody.testing._work import read


class Files:
    """Linking by the backend's two hooks, and declared files through the engine."""

    @check("an input file from disk is in the sandbox under its name", EXECUTABLES, FILES, SHARED)
    async def test_a_file_from_outside_is_linked(self, trial: Trial) -> None:
        driver = await trial.driver()
        for name in ("plain.txt", "with space & 'quote'.txt", "ünicode.txt"):
            outside = trial.work_dir / "outside" / name
            outside.parent.mkdir(exist_ok=True)
            outside.write_text(f"in {name}")
            task = driver.command(["cat", name])
            driver.backend.link_explicit_data_deps(
                dst_task=task, file_name=name, file_path=str(outside)
            )
            end = await driver.run_one(task)
            trial.require(end.stdout == f"in {name}", f"cat of {name!r}: {end}")

    @check(
        "an input file from disk can have another name in the sandbox", EXECUTABLES, FILES, SHARED
    )
    async def test_a_linked_file_can_be_renamed(self, trial: Trial) -> None:
        driver = await trial.driver()
        outside = trial.work_dir / "long name.txt"
        outside.write_text("content")
        task = driver.command("cat short")
        driver.backend.link_explicit_data_deps(
            dst_task=task, file_name="short", file_path=str(outside)
        )
        end = await driver.run_one(task)
        trial.require(end.stdout == "content", f"{end}")

    @check("a file of another task is in the sandbox under its name", EXECUTABLES, FILES)
    async def test_a_file_of_another_task_is_linked(self, trial: Trial) -> None:
        driver = await trial.driver()
        source = driver.command("echo made > 'out file.txt'")
        first = await driver.run_one(source)
        trial.require(first.state is DONE, f"the source: {first}")
        task = driver.command("cat 'out file.txt'")
        driver.backend.link_explicit_data_deps(
            src_task=first.task, dst_task=task, file_name="out file.txt"
        )
        end = await driver.run_one(task)
        trial.require(end.stdout == "made\n", f"{end}")

    @check("no name leaves the sandbox", EXECUTABLES, FILES, SHARED)
    async def test_no_name_leaves_the_sandbox(self, trial: Trial) -> None:
        driver = await trial.driver()
        outside = trial.work_dir / "outside.txt"
        outside.write_text("content")
        escaped = trial.work_dir / "escaped.txt"
        for name in ("../escaped.txt", "a/../../escaped.txt", str(escaped)):
            task = driver.command("true")
            try:
                driver.backend.link_explicit_data_deps(
                    dst_task=task, file_name=name, file_path=str(outside)
                )
            except ValueError:  # a DataError is one
                continue
            await driver.run_one(task)
            trial.require(not escaped.exists(), f"the name {name!r} made {escaped}")

    @check("a file that a task left can be copied out", EXECUTABLES, COPIES_OUT)
    async def test_a_file_is_copied_out(self, trial: Trial) -> None:
        driver = await trial.driver()
        end = await driver.run_one(driver.command("echo made > 'out file.txt'"))
        trial.require(end.state is DONE, f"the source: {end}")
        target = trial.work_dir / "copied"
        await driver.backend.copy_file_out(end.task, "out file.txt", target)
        trial.require(target.read_text() == "made\n", f"the copy holds {target.read_text()!r}")
        for name in ("never", "../never", str(target)):
            refused = trial.work_dir / "refused"
            try:
                await driver.backend.copy_file_out(end.task, name, refused)
            except DataError:
                continue
            except Exception as error:  # what a caller does not expect
                trial.require(False, f"for {name!r} it raised {error!r}, not DataError")
            trial.require(False, f"it gave {name!r}, which is no file of the sandbox")

    @check("all files of a task can be linked into another sandbox", EXECUTABLES, FILES)
    async def test_all_that_a_task_left_is_linked(self, trial: Trial) -> None:
        driver = await trial.driver()
        first = await driver.run_one(driver.command("echo 1 > one; echo 2 > 'and two'"))
        empty = await driver.run_one(driver.command("true"))
        task = driver.command("cat one 'and two'")
        driver.backend.link_implicit_data_deps(first.task, task)
        driver.backend.link_implicit_data_deps(empty.task, task)
        end = await driver.run_one(task)
        trial.require(end.stdout == "1\n2\n", f"{end}")

    @check("declared files go from task to task through the engine", EXECUTABLES, FILES)
    async def test_declared_files_go_from_task_to_task(self, trial: Trial) -> None:
        from rhapsody.data import InputFile, OutputFile

        outside = trial.work_dir / "input.txt"
        outside.write_text("from outside\n")
        flow = await trial.engine()

        @flow.executable_task
        async def copy(source: InputFile, target: OutputFile) -> str:
            return f"cat {source.filename} > {target.filename}"

        @flow.executable_task
        async def show(source: InputFile, *, after: object) -> str:
            return f"cat {source.filename}"

        first = copy(InputFile(str(outside)), OutputFile("copied.txt"))
        shown = await show(InputFile("copied.txt"), after=first)
        trial.require(shown == "from outside\n", f"the second task read {shown!r}")

    @check("an executable with `cwd` finds its files", EXECUTABLES, FILES, CWD)
    async def test_a_program_elsewhere_finds_its_files(self, trial: Trial) -> None:
        from rhapsody.data import InputFile, OutputFile

        outside = trial.work_dir / "input.txt"
        outside.write_text("from outside\n")
        flow = await trial.engine()

        @flow.executable_task(cwd="/")
        async def copy(source: InputFile, target: OutputFile) -> list[str]:
            return ["cp", f"{source}", str(target)]

        @flow.executable_task(cwd="/")
        async def show(source: InputFile, *, after: object) -> str:
            return f"pwd; cat '{source}'"

        first = copy(InputFile(str(outside)), OutputFile("copied.txt"))
        shown = await show(InputFile("copied.txt"), after=first)
        trial.require(shown == "/\nfrom outside\n", f"the second task gave {shown!r}")

    @check("a file is saved where its task says, before its result is seen",
        EXECUTABLES, FILES, SAVES,
    )  # fmt: skip
    async def test_a_file_is_saved_where_its_task_says(self, trial: Trial) -> None:
        from rhapsody.data import OutputFile

        results = trial.work_dir / "results"
        flow = await trial.engine(results_dir=results)

        @flow.executable_task
        async def make(target: OutputFile) -> str:
            return f"echo made > {target.filename}"

        for place in ("in/made.txt", "in/made.txt"):  # the second in place of the first
            await make(OutputFile(place))
            text = (results / place).read_text()
            trial.require(text == "made\n", f"the file holds {text!r}")
        names = sorted(path.name for path in (results / "in").iterdir())
        trial.require(names == ["made.txt"], f"beside the file there is {names}")

    @check("recorded tasks are not run again, and their files are read",
        EXECUTABLES, FILES, SAVES,
    )  # fmt: skip
    async def test_what_an_earlier_run_recorded_is_read(self, trial: Trial) -> None:
        from rhapsody.data import InputFile, OutputFile

        options = {"journal": trial.work_dir / "run.sqlite", "results_dir": trial.work_dir}
        for words, recorded in (["one"], 0), (["one", "two"], 2):
            flow = await trial.engine(**options, resume=True)

            @flow.executable_task
            async def make(target: OutputFile) -> str:
                return f"echo made > {target.filename}"

            @flow.executable_task
            async def show(word: str, source: InputFile, *, after: object) -> str:
                return f"echo {word}; cat {source.filename}"

            first = make(OutputFile("in/made.txt"))
            for word in words:
                shown = await show(word, InputFile("made.txt"), after=first)
                trial.require(shown == f"{word}\nmade\n", f"the task of {word!r} read {shown!r}")
            count = flow.stats.recorded
            trial.require(count == recorded, f"{count} tasks did not run again, not {recorded}")
            await flow.shutdown(skip_execution_backend=True)

    @check("directories, and files that match a pattern, go from task to task and are saved",
        EXECUTABLES, FILES, SHARED,
    )  # fmt: skip
    async def test_directories_and_matches_go_from_task_to_task(self, trial: Trial) -> None:
        from rhapsody.data import InputFile, OutputDir, OutputFile

        results = trial.work_dir / "results"
        flow = await trial.engine(results_dir=results)

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
        shown = await show(InputFile("plots"), InputFile("*.csv"), after=made)
        trial.require(shown == "1\n2\n3\n4\n", f"the second task read {shown!r}")
        saved = results / "in"
        names = sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file())
        wanted = ["c.csv", "d.csv", "plots/a", "plots/deep/b"]
        trial.require(names == wanted, f"saved are {names}, not {wanted}")

    @check("a function gets the files of a directory as a list", SYNC, EXECUTABLES, FILES, SHARED)
    async def test_a_function_gets_a_directory_as_a_list(self, trial: Trial) -> None:
        from rhapsody.data import InputFile, OutputDir

        flow = await trial.engine()

        @flow.executable_task
        async def make(plots: OutputDir) -> str:
            return f"mkdir {plots} && echo 1 > {plots}/a && echo 2 > {plots}/b"

        @flow.function_task
        def open_them(plots: list[Path], after: object) -> list[str]:
            return [read(path) for path in plots]

        value = await open_them(InputFile("plots"), make(OutputDir("plots")))
        trial.require(value == ["1\n", "2\n"], f"the function gave {value!r}")

    @check("a function gets its files as absolute paths", SYNC, FILES, SHARED)
    async def test_a_function_gets_its_files_as_paths(self, trial: Trial) -> None:
        from rhapsody.data import InputFile

        outside = trial.work_dir / "input.txt"
        outside.write_text("from outside\n")
        flow = await trial.engine()

        @flow.function_task
        def open_it(source: InputFile) -> tuple[bool, str]:
            return Path(source).is_absolute(), read(source)

        value = await open_it(InputFile(str(outside)))
        trial.require(value == (True, "from outside\n"), f"the function gave {value!r}")

    @check("undeclared files of a dependency are in the sandbox", EXECUTABLES, FILES)
    async def test_what_a_dependency_left_is_there(self, trial: Trial) -> None:
        flow = await trial.engine(implicit_data=True)

        @flow.executable_task
        async def write() -> str:
            return "echo left > 'left over.txt'"

        @flow.executable_task
        async def show(before: object) -> str:
            return "cat 'left over.txt'"

        shown = await show(write())
        trial.require(shown == "left\n", f"the dependent read {shown!r}")

    @check("a promised output that was not written fails the task", EXECUTABLES, FILES)
    async def test_a_missing_output_fails_its_task(self, trial: Trial) -> None:
        from rhapsody.data import OutputFile

        flow = await trial.engine()

        @flow.executable_task
        async def forget(target: OutputFile) -> str:
            return "true"

        try:
            value = await forget(OutputFile("promised.txt"))
        except DataError as error:
            trial.require("promised.txt" in str(error), f"the error does not name it: {error}")
        else:
            raise trial.check.error(f"it gave {value!r}")
