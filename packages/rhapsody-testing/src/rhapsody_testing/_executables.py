"""Checks of executables and services: commands, output, directories, files, readiness."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import stat
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    DataError,
    InputFile,
    OutputDir,
    OutputFile,
    TaskDescription,
    WorkflowEngine,
)
from rhapsody.sdk import in_thread
from rhapsody_testing._suite import (
    DONE,
    FAILED,
    RUNNING,
    NewEngine,
    Suite,
    Ticking,
    cancel,
    cancels,
    check,
    text_of,
)
from rhapsody_testing._tools import Driver, Finished
from rhapsody_testing._work import read

_FAILING = "echo out; echo err >&2; echo more; exit 3"


class ExecutableChecks(Suite):
    """Checks of shell commands, programs with arguments, and the directories in which they run."""

    @check("executables", "executables")
    async def test_a_string_is_run_by_a_shell(self, driver: Driver) -> None:
        cases = {
            "printf 'b\\na\\n' | sort | tr '\\n' ,": "a,b,",
            "echo 'one  two' \"three   four\"": "one  two three   four\n",
            'x=\'a b\'; echo "$x" && false || echo "it\'s"': "a b\nit's\n",
            "echo $((6 * 7)) > out.txt; cat out.txt": "42\n",
            "printf '%s' 'no newline'": "no newline",
            "echo one\necho two": "one\ntwo\n",
            "echo 'grüße ☃ 日本語' > 'ü.txt'; cat ü.txt": "grüße ☃ 日本語\n",
        }
        ends = await driver.run(*map(driver.command, cases))
        for (command, expected), end in zip(cases.items(), ends, strict=True):
            assert end.stdout == expected, f"{command!r} printed {end.stdout!r}, not {expected!r}"
        assert all(end.state is DONE and end.exit_code == 0 for end in ends)

    @check("executables", "executables")
    async def test_a_list_is_run_without_a_shell(self, driver: Driver) -> None:
        words = ["a b", "$HOME", "*", "it's", '"', "", "a;echo no", "`id`", "\\n", "--", "ü☃"]
        end, bare = await driver.run(
            driver.command(["printf", "<%s>", *words]), driver.command(["echo"])
        )
        assert end.stdout == "".join(f"<{word}>" for word in words)
        assert bare.stdout == "\n"

    @check("executables", "executables")
    @pytest.mark.parametrize(
        "command",
        [_FAILING, ["sh", "-c", _FAILING], "kill -9 $$"],
        ids=["a string", "a list", "a signal"],
    )
    async def test_an_exit_code_fails_the_task(self, driver: Driver, command: Any) -> None:
        end = await driver.run_one(driver.command(command))
        assert end.state is FAILED, str(end)
        if command == "kill -9 $$":
            assert end.exit_code != 0
        else:
            assert (end.exit_code, end.stdout, end.stderr) == (3, "out\nmore\n", "err\n")

    @check("executables", "executables")
    async def test_the_environment_is_added(self, driver: Driver) -> None:
        environment = {"KIT_PLAIN": "value", "KIT_ODD": "a 'b' \"c\" $d ü=\\", "KIT_EMPTY": ""}
        command = 'printf "%s|" "$KIT_PLAIN" "$KIT_ODD" "${KIT_EMPTY-unset}"; test -n "$PATH"'
        traced = {"traceparent": "00-1-2-01"}
        printed, header = await driver.run(
            driver.command(command, environment=environment),
            driver.command("echo $TRACEPARENT", trace_context=traced),
        )
        values = "".join(f"{value}|" for value in environment.values())
        assert printed.state is DONE and printed.stdout == values
        assert header.stdout == "00-1-2-01\n", "the trace context must be in the environment"
        assert "KIT_PLAIN" not in os.environ, "the variable was left in the program's environment"

    @check("executables", "executables")
    async def test_standard_input_is_the_text_given(self, driver: Driver) -> None:
        text = "first\nsecond ☃\n" + "x" * 200_000
        full, empty, unread = await driver.run(
            driver.command(["cat"], stdin=text),
            driver.command("cat; echo end"),
            driver.command(["true"], stdin="x" * 1_000_000),
        )
        assert full.stdout == text
        assert empty.stdout == "end\n", "without text, standard input must be empty"
        assert unread.state is DONE, (
            f"a program that does not read its input must not fail: {unread}"
        )

    @check("executables", "executables", times=2)
    async def test_output_is_whole(self, driver: Driver) -> None:
        size = self.output_bytes
        big = (
            f"head -c {size} /dev/zero | tr '\\0' x & "
            f"head -c {size // 10} /dev/zero | tr '\\0' e >&2 & wait; printf end"
        )
        end, odd = await driver.run(driver.command(big), driver.command("printf 'a\\377\\376b'"))
        assert end.state is DONE, str(end)
        out, err = end.stdout or "", end.stderr or ""
        assert (len(out), out[-4:], len(err)) == (size + 3, "xend", size // 10)
        assert odd.state is DONE, f"output that is not UTF-8 must not fail the task: {odd}"
        assert isinstance(odd.stdout, str) and odd.stdout[:1] == "a"

    @check("executables", "executables")
    async def test_a_missing_program_fails(self, driver: Driver) -> None:
        name = "no-such-program-4711"
        *ends, good = await driver.run(
            driver.command([name, "x"]), driver.command(f"{name} x"), driver.command("echo fine")
        )
        for end in ends:
            assert end.state is FAILED, str(end)
            assert name in f"{end.error} {end.stderr or ''}", (
                f"neither the error nor `stderr` names the program: {end}"
            )
        assert good.stdout == "fine\n"

    @check("sandboxes", "executables", "sandboxes")
    async def test_each_executable_has_its_own_directory(self, driver: Driver) -> None:
        tasks = [driver.command("") for _ in range(5)]
        for task in tasks:
            # The names of the backend's own files in the directory begin with the task's uid.
            task["executable"] = f"ls -A | grep -cv '^{task['uid']}'; pwd; echo mine > file.txt"
        places = set()
        for end in await driver.run(*tasks):
            count, _, place = (end.stdout or "").strip().partition("\n")
            assert count.strip() in ("0", "1", "2"), (
                f"the directory is not empty at the start: {end}"
            )
            places.add(place)
        assert len(places) == 5 and "" not in places, (
            f"five tasks must run in five directories, but ran in {places}"
        )

    @check("sandboxes", "executables", "sandboxes", "shared_file_system")
    async def test_a_sandbox_is_private(self, driver: Driver) -> None:
        before = os.umask(0o022)
        try:
            end = await driver.run_one(driver.command("pwd; echo made > file.txt"))
        finally:
            os.umask(before)
        assert end.task.get("sandbox"), f"`sandbox` is {end.task.get('sandbox')!r}"
        sandbox = Path(end.task["sandbox"])
        assert Path((end.stdout or "").strip()).resolve() == sandbox.resolve()
        assert text_of(sandbox / "file.txt") == "made\n"
        mode = stat.S_IMODE(sandbox.stat().st_mode)
        assert mode == 0o700, f"the mode of {sandbox} is {mode:o}, not 700"

    @check("sandboxes", "executables", "sandboxes", "shared_file_system")
    async def test_output_need_not_be_kept(self, driver: Driver) -> None:
        command = "echo out; echo err >&2"
        dropped = await driver.run_one(driver.command(command, capture=False))
        assert dropped.state is DONE and not dropped.stdout, str(dropped)
        end = await driver.run_one(driver.command(command, capture="files"))
        assert end.state is DONE, str(end)
        for path, text in ((end.stdout, "out\n"), (end.stderr, "err\n")):
            assert path and os.path.isabs(path), f"{path!r} is not an absolute path"
            assert text_of(Path(path)) == text

    @check("sandboxes", "executables", "cwd")
    async def test_it_runs_in_the_given_directory(self, driver: Driver) -> None:
        directory = Path("/")  # exists on every machine
        if self.capabilities.shared_file_system:
            directory = self.place / "the user's own"
            directory.mkdir()
            (directory / "here").touch()
        for command, rest in (("pwd", ""), (["sh", "-c", "pwd; cat; echo err >&2"], "in\n")):
            task = driver.command(command, cwd=str(directory), stdin="in\n")
            sandbox = task.get("sandbox")
            end = await driver.run_one(task)
            where, _, more = (end.stdout or "").partition("\n")
            assert end.state is DONE and more == rest, str(end)
            assert Path(where).resolve() == directory.resolve()
            if self.capabilities.shared_file_system:
                assert os.listdir(directory) == ["here"], (
                    "the backend must not write files into the user's directory"
                )
                assert end.task.get("sandbox") == sandbox
        assert end.stderr == "err\n"

    @check("sandboxes", "executables", "cwd")
    async def test_a_missing_directory_fails(self, driver: Driver) -> None:
        missing = str(self.place / "no-such-directory")
        for command in ("pwd", ["pwd"]):
            end = await driver.run_one(driver.command(command, cwd=missing))
            assert end.state is FAILED, f"{command!r} with cwd={missing!r}: {end}"
            assert missing in f"{end.error} {end.stderr or ''}", (
                f"the error must name the directory: {end}"
            )


class FileChecks(Suite):
    """Checks of files that the backend's methods link, and of files that tasks declare."""

    @check("files", "executables", "files", "shared_file_system")
    async def test_files_from_outside_are_linked(self, driver: Driver) -> None:
        outside = str(self.place / "its name.txt")
        Path(outside).write_text("content")
        link = driver.backend.link_explicit_data_deps
        names = ["plain.txt", "with space & 'quote'.txt", "ünicode.txt"]
        tasks = [driver.command(["cat", name]) for name in names]
        for task, name in zip(tasks, names, strict=True):
            link(dst_task=task, file_name=name, file_path=outside)
        for end in await driver.run(*tasks):
            assert end.stdout == "content", str(end)
        escaped = self.place / "escaped.txt"
        for name in ("../escaped.txt", "a/../../escaped.txt", str(escaped)):
            task = driver.command("true")
            with suppress(
                ValueError
            ):  # the backend may reject the name here; a DataError is a ValueError
                link(dst_task=task, file_name=name, file_path=outside)
                await driver.run_one(task)
            assert not escaped.exists(), f"linking a file as {name!r} created {escaped}"

    @check("files", "executables", "files", "shared_file_system")
    async def test_files_are_linked_into_directories(self, driver: Driver) -> None:
        outside = str(self.place / "in.txt")
        Path(outside).write_text("content")
        task = driver.command(["cat", "2/in.txt"])
        try:
            driver.backend.link_explicit_data_deps(
                dst_task=task, file_name="2/in.txt", file_path=outside
            )
        except (ValueError, OSError):
            pytest.skip("the backend links files only directly into the sandbox")
        end = await driver.run_one(task)
        assert end.stdout == "content", str(end)

    @check("files", "executables", "files", "shared_file_system")
    async def test_only_copies_of_inputs_may_change(self, flow: WorkflowEngine) -> None:
        outside = self.place / "in.txt"
        outside.write_text("content\n")

        @flow.executable_task
        async def append(file: InputFile) -> str:
            return f"echo more >> {file}; cat {file}"

        try:
            assert await append(InputFile(outside, copy=True)) == "content\nmore\n"
        except CapabilityError:
            pytest.skip("link_explicit_data_deps has no parameter copy")
        assert outside.read_text() == "content\n"
        with pytest.raises(DataError):
            await append(InputFile(outside))

    @check("files", "executables", "files")
    async def test_files_of_another_task_are_linked(self, driver: Driver) -> None:
        first = await driver.run_one(driver.command("echo 1 > one; echo 2 > 'and two'"))
        assert first.state is DONE, str(first)
        task, link = driver.command("cat one 'and two'"), driver.backend.link_explicit_data_deps
        for name in ("one", "and two"):
            link(src_task=first.task, dst_task=task, file_name=name)
        end = await driver.run_one(task)
        assert end.stdout == "1\n2\n", str(end)

    @check("files", "executables", "files")
    async def test_undeclared_files_of_another_task_are_copied(self, driver: Driver) -> None:
        leave = "mkdir d; echo 1 > one; echo 2 > 'd/and two'; echo 3 > unwanted"
        first, empty = await driver.run(driver.command(leave), driver.command("true"))
        assert first.state is DONE, str(first)
        change = "echo {} >> one; echo {} >> 'd/and two'; cat one 'd/and two'; cat unwanted || true"
        tasks = [driver.command(change.format(name, name)) for name in "ab"]
        source: Any = {**first.task, "left_out": ["unwanted"]}
        for task in tasks:
            await in_thread(partial(driver.backend.link_implicit_data_deps, source, task))
            await in_thread(partial(driver.backend.link_implicit_data_deps, empty.task, task))
        ends = await driver.run(*tasks)
        for end, name in zip(ends, "ab", strict=True):
            assert (end.stdout or "").split() == ["1", name, "2", name], (
                f"each task must receive its own copies, which it can change: {end}"
            )

    @check("files", "executables", "files")
    async def test_dependents_do_not_share_undeclared_files(self, flow: WorkflowEngine) -> None:
        @flow.executable_task
        async def start() -> str:
            return "echo start > out.txt"

        @flow.executable_task
        async def step(name: str, former: object) -> str:
            return f"echo {name} >> out.txt; cat out.txt"

        @flow.executable_task
        async def merge(*former: object) -> str:
            return "cat out.txt"

        first = start()
        both = step("a", first), step("b", first)
        for future, name in zip(both, "ab", strict=True):
            assert (await future).split() == ["start", name]
        again = await step("c", both[0])
        assert again.split() == ["start", "a", "c"]
        with pytest.raises(Exception, match=r"out\.txt"):
            await merge(*both)

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
            pytest.skip("the backend does not declare the capability cwd")
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

        for _ in range(2):  # the second replaces what the first saved
            made = make(OutputDir("in/plots/"), OutputFile("in/*.csv", many=True))
            await made
            names = sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file())
            assert names == ["c.csv", "d.csv", "plots/a", "plots/deep/b"]
        assert await show(InputFile("plots"), InputFile("*.csv"), after=made) == "1\n2\n3\n4\n"
        if self.capabilities.sync_functions:

            @flow.function_task
            def open_them(files: list[Path], after: object) -> list[tuple[bool, str]]:
                return [(Path(path).is_absolute(), read(path)) for path in files]

            assert await open_them(InputFile("*.csv"), made) == [(True, "3\n"), (True, "4\n")]

            @flow.function_task
            def fill(plots: OutputDir, tables: OutputFile) -> tuple[bool, str, bool]:
                os.mkdir(plots)
                Path(plots, "e").write_text("5\n")
                Path(tables).with_name("f.tsv").write_text("6\n")
                return plots.many, plots.filename, tables.many

            kinds = await fill(OutputDir("in/filled/"), OutputFile("in/*.tsv", many=True))
            assert kinds == (False, "filled", True)
            assert (saved / "filled" / "e").read_text() == "5\n"
            assert (saved / "f.tsv").read_text() == "6\n"


STOPPABLE = cancels("running", "service")


def _wait(task: Any) -> tuple[str, bool]:
    return "up", threading.Event().wait(0.1) is False


async def _wait_async(task: Any) -> tuple[str, bool]:
    await asyncio.sleep(0)
    return "up", True


class ServiceChecks(Suite):
    """Checks of services: executables and functions that run until they are canceled."""

    @check("services", "services", STOPPABLE)
    @pytest.mark.parametrize(
        ("ready", "expected"),
        [
            (r"stdout:port (\d+)", "4711"),
            ("stdout:po.t 4", "port 4"),
            ("file:the file", "the file"),
            (_wait, ("up", True)),
            (_wait_async, ("up", True)),
        ],
        ids=["a group", "a match", "a file", "a function", "a coroutine function"],
    )
    async def test_it_becomes_ready_on_its_signal(
        self, driver: Driver, ready: Any, expected: Any
    ) -> None:
        command = "echo starting; echo port 4711; : > part; mv part 'the file'; sleep 600"
        service = driver.service(command, ready=ready)
        await driver.submit(service)
        value = await driver.ready(service)
        assert RUNNING in driver.history(service), "the service was not reported as RUNNING"
        if expected == "the file":
            assert isinstance(value, str) and os.path.isabs(value), (
                f"the readiness value must be an absolute path, got {value!r}"
            )
            assert not self.capabilities.shared_file_system or os.path.exists(value)
            value = os.path.basename(value)
        assert value == expected
        await cancel(driver, service)

    @check("services", "services", "shared_file_system", STOPPABLE)
    @pytest.mark.parametrize("ready", ["tcp:PORT", "tcp"])
    async def test_it_is_ready_when_it_listens(self, driver: Driver, ready: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        server = f"exec {shlex.quote(sys.executable)} -m http.server"
        if ready == "tcp":
            command = f'test "$PORT" = "{{port}}" && {server} {{port}} --bind 127.0.0.1'
            service = driver.service(command, ready="tcp")
        else:
            service = driver.service(f"{server} {port} --bind 127.0.0.1", ready=f"tcp:{port}")
        await driver.submit(service)
        address, end = await _ready_or_ended(driver, service)
        if end is not None:
            refused = ready == "tcp" and isinstance(end.error, CapabilityError)
            assert refused, f"`ready={ready!r}`: {end}"
            return
        assert isinstance(address, tuple) and len(address) == 2, (
            f"the readiness value must be (host, port), got {address!r}"
        )
        _, writer = await asyncio.open_connection(*address)
        writer.close()
        await writer.wait_closed()
        await cancel(driver, service)

    @check("services", "services", "shared_file_system")
    async def test_a_port_in_use_is_refused(self, driver: Driver) -> None:
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            service = driver.service("sleep 600", ready=f"tcp:{stranger.getsockname()[1]}")
            await driver.submit(service)
            value, end = await _ready_or_ended(driver, service)
        assert end is not None, (
            f"the service became ready with {value!r}, but it does not listen on the port"
        )
        assert end.state is FAILED
        assert "ready='tcp'" in str(end.error), "the error must suggest ready='tcp'"

    @check("services", "services", "shared_file_system")
    async def test_it_is_not_ready_too_early(self, driver: Driver) -> None:
        begin, finish = self.place / "begin", self.place / "finish"
        wait = "while [ ! -e '{}' ]; do sleep 0.05; done"
        command = f"{wait.format(begin)}; echo ready; {wait.format(finish)}; exit 3"
        service = driver.service(command, ready="stdout:ready")
        await driver.submit(service)
        ready = asyncio.ensure_future(driver.ready(service))
        await asyncio.sleep(self.settle)
        assert not ready.done(), "the service was ready before it had printed 'ready'"
        begin.touch()
        await ready
        finish.touch()
        end = await driver.finished(service)
        assert end.state is FAILED and end.exit_code == 3, (
            f"a failure after readiness must be reported: {end}"
        )

    @check("services", "services")
    async def test_a_service_that_ends_too_early_fails(self, driver: Driver) -> None:
        service = driver.service("echo broken >&2; exit 3", ready="stdout:never")
        await driver.submit(service)
        value, end = await _ready_or_ended(driver, service)
        assert end is not None, (
            f"the service became ready with {value!r}, but it ended without printing 'never'"
        )
        assert end.state is FAILED, str(end)

    @check("services", "shared_file_system")
    @pytest.mark.parametrize("kind", ["service", "function_service"])
    async def test_a_stopped_service_does_nothing_more(self, driver: Driver, kind: Any) -> None:
        service = Ticking(driver, kind)
        await service.start()
        assert await driver.running(service.task), "the service was not reported as RUNNING"
        if self.capabilities.cancellation(kind) == "running":
            await cancel(driver, service.task)
            assert await service.is_still(), "the service still runs after its terminal state"
        else:
            await service.finish()


async def _ready_or_ended(driver: Driver, service: TaskDescription) -> tuple[Any, Finished | None]:
    """Wait until a service is ready or has ended.

    Returns:
        If the service became ready, its readiness value and `None`; otherwise `None` and the ended
        task.
    """
    try:
        return await driver.ready(service), None
    except Exception:  # any error means that it is not ready
        return None, await driver.finished(service)
