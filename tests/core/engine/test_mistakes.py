"""Tests of common first mistakes, and of the messages that say what to write instead."""

from __future__ import annotations

import asyncio
import operator
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from rhapsody import (
    DataError,
    InputFile,
    LocalExecutionBackend,
    OutputDir,
    OutputFile,
    WorkflowEngine,
    get_backend,
)
from rhapsody.backends.discovery import make_backend
from rhapsody.plugins.specs import UsageError
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def test_an_engine_that_is_made_like_any_object() -> None:
    makers: list[Any] = [WorkflowEngine, lambda: WorkflowEngine(backend="local")]
    for make in makers:
        with pytest.raises(
            RuntimeError, match=r"does not start an engine: write `async with WorkflowEngine"
        ):
            make()


async def test_an_engine_that_was_not_awaited() -> None:
    flow: Any = WorkflowEngine.create()
    with pytest.raises(
        AttributeError, match=r"no attribute 'function_task' .*: write `flow = await Workflow"
    ):
        _ = flow.function_task
    assert not hasattr(flow, "cr_frame")
    async with flow:
        pass


@pytest.mark.parametrize(
    ("use", "sign"),
    [
        (lambda future: future + 1, "+"),
        (lambda future: 1 - future, "-"),
        (lambda future: future < 1, "<"),
        (lambda future: future < 3, "<"),
        (lambda future: future[0], "[]"),
        (lambda future: 1 in future, "in"),
        (lambda future: -future, "-"),
        (int, "int()"),
        (lambda future: [1, 2][future], "an index"),
        (lambda future: operator.matmul(future, future), "@"),
        (bool, "a condition"),
        (lambda future: future or 1, "a condition"),
        (operator.not_, "a condition"),
        (len, "len()"),
        (list, "iteration"),
        (lambda future: [*future], "iteration"),
        (lambda future: f"{future}", "an f-string without `!r`"),
        ("{}".format, "an f-string without `!r`"),
    ],
)
async def test_a_future_that_is_taken_for_its_value(
    flow: WorkflowEngine, use: Callable[[Any], Any], sign: str
) -> None:
    @flow.function_task
    def one() -> int:
        return 1

    future = one()
    said = f"{re.escape(sign)} needs a value, got the future of 'one' .task.000001.: `await`"
    with pytest.raises(TypeError, match=said):
        use(future)
    assert future == future
    assert str(future) == repr(future) == f"{future!r}"
    assert await within(future) == 1
    with pytest.raises(TypeError, match=said):
        use(future)


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_a_function_task_that_calls_a_task_is_to_become_a_block(executor: Any) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend(executor)) as flow:

        @flow.function_task
        def square(x: int) -> int:
            return x * x

        def outer() -> Any:
            return square(3)

        async def outer_later() -> Any:
            return await square(3)

        for function, kind in ((outer, RuntimeError), (outer_later, RuntimeError)):
            expected = kind if executor == "thread" else TypeError
            with pytest.raises(expected, match=r"make .* a block with @flow\.block"):
                await within(flow.function_task(function)())
        assert await within(flow.block(outer)()) == 9
        assert await within(flow.block(outer_later)()) == 9


async def test_a_function_task_that_uses_a_future_is_to_become_a_block(
    flow: WorkflowEngine,
) -> None:
    @flow.function_task
    def one() -> int:
        return 1

    future = one()
    held = [future]

    def plus() -> Any:
        return cast("Any", held[0]) + 1

    with pytest.raises(TypeError, match=r"wait for it in a @flow\.block"):
        await within(flow.function_task(plus)())
    assert await within(future) == 1


@pytest.mark.parametrize("kind", ["task", "block"])
async def test_asyncio_never_asks_for_the_truth_of_a_future(
    flow: WorkflowEngine, kind: str
) -> None:
    async def one() -> int:
        return 1

    call: Any = flow.block(one) if kind == "block" else flow.function_task(one)

    async def first_of(*futures: Any) -> int:
        value: int = await next(iter(asyncio.as_completed(futures)))
        return value

    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    done, pending = await within(asyncio.wait([call(), call()]))
    assert (len(done), pending) == (2, set())
    assert [*(await within(asyncio.gather(call(), call())))] == [1, 1]
    assert await within(asyncio.shield(call())) == 1
    assert await within(asyncio.wait_for(call(), 60)) == 1
    assert await within(first_of(call(), call())) == 1
    async with asyncio.TaskGroup() as group:
        members = [group.create_task(first_of(call())) for _ in range(2)]
    assert [member.result() for member in members] == [1, 1]
    assert asyncio.ensure_future(future := call()) is future
    assert await within(future) == 1
    cancelled = asyncio.gather(future := call(), return_exceptions=True)
    future.cancel()
    assert isinstance((await within(cancelled))[0], asyncio.CancelledError)


@pytest.mark.parametrize(
    ("kind", "given", "instead"),
    [
        (OutputFile, "/tmp/x.csv", "OutputFile('x.csv', save='/tmp/')"),
        (OutputFile, Path("/x.csv"), "OutputFile('x.csv', save='/')"),
        (OutputDir, "/tmp/plots/", "OutputDir('plots', save='/tmp/')"),
    ],
)
async def test_an_absolute_path_for_the_name_of_an_output(
    kind: Any, given: Any, instead: str
) -> None:
    with pytest.raises(
        DataError, match=rf"to save the output under this path, use {re.escape(instead)}"
    ):
        kind(given)
    assert eval(instead).save == f"{Path(given).parent}/".replace("//", "/")


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (lambda: OutputFile("~/c.csv"), 'save=f"{Path.home()}/"'),
        (lambda: OutputFile("c.csv", save="~"), 'save=f"{Path.home()}"'),
        (lambda: OutputFile("c.csv", save=Path("~/d.csv")), 'save=f"{Path.home()}/d.csv"'),
        (lambda: OutputFile("~/out/*.csv", many=True), 'save=f"{Path.home()}/out/"'),
        (lambda: OutputDir("~/out/plots/"), 'save=f"{Path.home()}/out/"'),
    ],
)
async def test_a_home_directory_as_shells_write_it(
    make: Callable[[], object], instead: str
) -> None:
    with pytest.raises(DataError, match=rf"is not expanded; write {re.escape(instead)}"):
        make()
    assert OutputFile("~c.csv", save="~d/").save == "~d/"


async def test_something_else_for_the_future_whose_files_are_saved(flow: WorkflowEngine) -> None:
    for wrong, kind in (("a.csv", "str"), ([], "list")):
        given: Any = wrong
        said = rf"save.. takes the future of a task .*, got an object of type {kind}"
        with pytest.raises(TypeError, match=said):
            await within(flow.save(given, "out/"))


async def test_text_for_a_file(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def join(first: InputFile, *others: InputFile | None, out: OutputFile) -> str:
        return f"cat {first} > {out}"

    @flow.executable_task
    def draw(plots: OutputDir) -> str:
        return f"mkdir {plots}"

    @flow.executable_task
    def either(file: InputFile | str) -> str:
        return f"echo {file}"

    call: Any = join
    there, made = InputFile("b"), OutputFile("b")
    for args, out, kind, name in (
        (["a.txt"], made, "InputFile", "first"),
        ([there, Path("a.txt")], made, "InputFile", "others"),
        ([there], "a.txt", "OutputFile", "out"),
    ):
        said = rf"join\(\) takes an {kind} for '{name}', got .*'a.txt'.*: write {kind}\('a.txt'\)"
        with pytest.raises(TypeError, match=said):
            call(*args, out=out)
    wrong: Any = "plots/"
    with pytest.raises(TypeError, match=r"takes an OutputDir for 'plots', .*OutputDir\('plots/'\)"):
        draw(wrong)
    assert await within(either("a.txt")) == "a.txt\n"
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'out'"):
        call(there)


async def test_a_program_that_expects_a_file_next_to_the_script(
    flow: WorkflowEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tool.py").write_text("")
    (tmp_path / "made").write_text("")

    @flow.executable_task
    def run(command: Any) -> Any:
        return command

    said = "sandbox of the command does not contain 'tool.py': pass InputFile('tool.py')"
    for command in ("touch made; cat tool.py made", ["cat", "tool.py", str(tmp_path / "made")]):
        future = run(command)
        with pytest.raises(RuntimeError) as raised:
            await within(future)
        assert said in str(raised.value)
    with pytest.raises(RuntimeError) as raised:
        await within(run("exit 1 'no end"))
    assert "hint" not in str(raised.value)


@pytest.mark.parametrize("name", ["Thread", "process", "threads"])
async def test_a_backend_by_another_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"Available: .* Did you mean 'local'"):
        get_backend(name)


async def test_a_misspelt_keyword_of_a_backend() -> None:
    with pytest.raises(UsageError, match="no option 'executer'; did you mean 'executor'"):
        make_backend("local", {"executer": "process"})


async def test_a_result_or_exception_that_is_asked_for_too_early_says_to_await_it() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def part() -> int:
            return 1

        future = part()
        with pytest.raises(
            asyncio.InvalidStateError,
            match=r"'part' \(task.000001\) is not done: `await` the future",
        ):
            future.result()
        with pytest.raises(asyncio.InvalidStateError, match="`await` the future"):
            future.exception()
        assert await future == future.result() == 1
        assert future.exception() is None


@pytest.mark.parametrize(
    ("usual", "ours"), [("cpus", "cores"), ("GPU", "gpus"), ("mem", "memory"), ("rank", "ranks")]
)
async def test_a_resource_by_the_name_that_it_has_elsewhere(
    flow: WorkflowEngine, usual: str, ours: str
) -> None:
    with pytest.raises(TypeError, match=f"unknown name '{usual}'; .*; did you mean '{ours}'"):
        flow.function_task(resources={usual: 2})(lambda: None)


async def test_a_variable_that_cannot_travel_is_named() -> None:
    lock = threading.Lock()
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:

        @flow.function_task
        def locked() -> None:
            with lock:
                pass

        with pytest.raises(
            TypeError, match="variable 'lock' used by the function \\(lock\\) cannot"
        ):
            await locked()


async def test_a_promise_that_was_not_kept_says_what_was_written() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def write(out: OutputFile) -> str:
            return "mkdir results; touch results/a.txt; touch b.txt"

        with pytest.raises(
            DataError, match=r"'a.txt' .*; it wrote 'b.txt', 'results/a.txt'. Commands"
        ):
            await write(OutputFile("results/a.txt"))


async def test_a_program_next_to_the_script_is_found_in_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.sh").write_text("")
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def helped() -> list[str]:
            return ["./helper.sh"]

        with pytest.raises(OSError, match=r"helper\.sh") as caught:
            await helped()
    assert "pass InputFile('./helper.sh')" in caught.value.__notes__[0]
