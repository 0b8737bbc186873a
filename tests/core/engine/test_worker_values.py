"""Tests of values that each process builds once for the tasks that receive their handles."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    InputFile,
    LocalExecutionBackend,
    OutputFile,
    TaskLostError,
    TaskTimeoutError,
    WorkerValue,
    WorkerValueError,
    WorkflowEngine,
)
from tests._support.scripted import within
from tests._support.word_log import log_in, logged

pytestmark = pytest.mark.asyncio

KINDS = ("thread", "process")


def engine(
    kind: str, workers: int = 2, **options: Any
) -> contextlib.AbstractAsyncContextManager[WorkflowEngine]:
    resources = {"workers": workers} if kind == "process" else {"cores": workers}
    backend = LocalExecutionBackend(kind, resources=resources)
    return WorkflowEngine.create(backend, handle_signals=False, **options)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_value_is_built_once_in_each_process_and_closed_at_the_end(
    kind: str, tmp_path: Path
) -> None:
    log = log_in(tmp_path)
    async with engine(kind) as flow:

        @flow.worker_value
        def model(scale: int, *, offset: int) -> Iterator[dict[str, int]]:
            log("built")
            yield {"scale": scale, "offset": offset}
            log("closed")

        @flow.function_task
        def predict(number: int, net: Any) -> tuple[int, int]:
            return number * net["scale"] + net["offset"], os.getpid()

        @flow.function_task
        async def predict_all(numbers: list[int], more: dict[str, Any]) -> list[int]:
            (net,) = more["nets"]
            return [number * net["scale"] + net["offset"] for number in numbers]

        net = model(3, offset=1)
        results = await within(asyncio.gather(*(predict(number, net) for number in range(20))))
        assert await predict_all([1, 2], {"nets": [model(3, offset=1)]}) == [4, 7]
        assert not logged(tmp_path, "closed")
    assert [value for value, _ in results] == [number * 3 + 1 for number in range(20)]
    built = logged(tmp_path, "built")
    assert len(built) == len(set(built))
    assert {str(pid) for _, pid in results} <= set(built)
    assert sorted(logged(tmp_path, "closed")) == sorted(built)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_context_manager_is_left_and_other_values_are_used_by_factories(
    kind: str, tmp_path: Path
) -> None:
    log = log_in(tmp_path)
    async with engine(kind, workers=1) as flow:

        @flow.worker_value
        @contextlib.contextmanager
        def connection(name: str) -> Iterator[str]:
            log(f"open.{name}")
            try:
                yield name
            finally:
                log(f"close.{name}")

        @flow.worker_value
        def pair(names: list[str]) -> Iterator[str]:
            yield "-".join(names)
            log("close.pair")

        use = flow.function_task(str.upper)
        names: list[Any] = [connection("a"), connection("b")]
        assert await use(pair(names)) == "A-B"
    words = [line.split()[0] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert words == ["open.a", "open.b", "close.pair", "close.b", "close.a"]


async def test_each_thread_may_have_its_own_value() -> None:
    together = threading.Barrier(2)
    async with engine("thread") as flow:

        @flow.worker_value(per="thread")
        def number() -> int:
            return threading.get_ident()

        @flow.function_task
        def same(value: int) -> bool:
            together.wait(10)
            return value == threading.get_ident()

        value = number()
        assert all(await within(asyncio.gather(same(value), same(value))))


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_the_factory_is_the_error_of_each_call(kind: str, tmp_path: Path) -> None:
    async with engine(kind, workers=1) as flow:

        @flow.worker_value
        def model(path: str) -> str:
            return Path(path).read_text()

        use = flow.function_task(str.upper)
        path = tmp_path / "weights.txt"
        for _ in range(2):
            with pytest.raises(FileNotFoundError) as caught:
                await use(model(str(path)))
            assert "while worker value 'model' was built" in caught.value.__notes__
            assert not any("was unpacked" in note for note in caught.value.__notes__)
        path.write_text("here")
        assert await use(model(str(path))) == "HERE"


async def test_a_value_is_built_again_after_its_worker_was_killed(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    async with engine("process", workers=1) as flow:

        @flow.worker_value
        def model() -> int:
            log("built")
            return os.getpid()

        @flow.function_task(lost_retries=0)
        def use(net: int, kill: bool) -> int:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return net

        net = model()
        first = await use(net, False)
        with pytest.raises(TaskLostError):
            await use(net, True)
        second = await use(net, False)
    assert logged(tmp_path, "built") == [str(first), str(second)]


async def test_calls_with_other_gpus_have_their_own_values(monkeypatch: Any) -> None:
    backend = LocalExecutionBackend("process", resources={"workers": 1, "gpus": 2})
    async with WorkflowEngine.create(backend, handle_signals=False) as flow:

        @flow.worker_value
        def device() -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

        def use(found: str) -> bool:
            return found == os.environ["CUDA_VISIBLE_DEVICES"]

        one = flow.function_task(resources={"gpus": 1})(use)
        two = flow.function_task(resources={"gpus": 2})(use)
        value = device()
        assert [await one(value), await two(value), await one(value)] == [True] * 3


@pytest.mark.parametrize("kind", KINDS)
async def test_another_factory_or_argument_makes_a_task_run_again(
    kind: str, tmp_path: Path
) -> None:
    runs = []
    for scale, factor in ((2, 1), (2, 1), (3, 1), (3, 10)):
        options = {"journal": tmp_path / "run.sqlite", "resume": True}
        async with engine(kind, workers=1, **options) as flow:
            text = f"def model(scale):\n    return scale * {factor}\n"
            space: dict[str, Any] = {"__name__": "made"}
            exec(text, space)
            model = flow.worker_value(space["model"])

            @flow.function_task
            def use(net: int) -> int:
                return net + 1

            runs.append((await use(model(scale)), flow.stats.recorded))
    assert runs == [(3, 0), (3, 1), (4, 0), (31, 0)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_that_the_factory_opens_counts_for_all_tasks_with_the_value(
    kind: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, log = tmp_path / "weights.txt", log_in(tmp_path)

    async def run() -> list[int]:
        options = {"journal": tmp_path / "run.sqlite", "resume": True}
        async with engine(kind, workers=1, **options) as flow:

            @flow.worker_value
            def model() -> int:
                return int(Path("weights.txt").read_text())

            @flow.function_task
            def use(number: int, net: int) -> int:
                log("use")
                return number * net

            net = model()
            return [await use(number, net) for number in range(3)]

    for text, result, uses in (("2", [0, 2, 4], 3), ("2", [0, 2, 4], 3), ("5", [0, 5, 10], 6)):
        if not weights.exists() or weights.read_text() != text:
            weights.write_text(text)
        assert await run() == result
        assert len(logged(tmp_path, "use")) == uses


async def test_a_value_in_a_closure_that_would_be_built_otherwise_now_is_not_recorded(
    tmp_path: Path,
) -> None:
    results = []
    for calls in (2, 1):
        config = {"n": 1}
        journal = tmp_path / "run.sqlite"
        async with engine("process", 1, journal=journal, resume=True) as flow:

            @flow.worker_value
            def model(config: dict[str, int]) -> int:
                return config["n"]

            net: Any = model(config)

            @flow.function_task
            def use(number: int) -> int:
                return int(net) * number  # noqa: B023 - called in this iteration

            if calls == 2:
                await use(1)
            config["n"] = 5
            results.append(await use(2))
    assert results == [2, 10]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_counts_even_if_a_task_without_a_key_has_built_the_value(
    kind: str, nested: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights.txt"
    log = log_in(tmp_path)
    results = []
    for content in ("3", "3", "5"):
        weights.write_text(content)
        async with engine(kind, 1, journal="run.sqlite", resume=True) as flow:

            @flow.worker_value
            def model() -> int:
                return int(Path("weights.txt").read_text())

            @flow.worker_value
            def doubled(inner: int) -> int:
                return 2 * inner

            @flow.function_task
            def use(net: int, number: int) -> int:
                if number:
                    log("used")
                return net * number

            net = model()
            await use.options(cache=False)(net, 0)
            results.append(await use(doubled(net) if nested else net, 2))
    assert results == ([12, 12, 20] if nested else [6, 6, 10])
    assert len(logged(tmp_path, "used")) == 2


async def test_blocks_and_commands_receive_the_handle() -> None:
    async with engine("thread") as flow:

        @flow.worker_value
        def model(scale: int) -> int:
            return scale

        use = flow.function_task(lambda net: net + 1)

        @flow.block
        async def part(net: Any) -> int:
            assert isinstance(net, WorkerValue)
            value: int = await use(net)
            return value

        assert await part(model(2)) == 3


async def test_handles_are_equal_if_factory_and_arguments_are() -> None:
    async with engine("thread") as flow:

        @flow.worker_value
        def model(scale: int, shift: int = 0) -> int:
            return scale + shift

        assert model(1) == model(1) != model(2)
        assert len({model(1), model(1), model(1, shift=2)}) == 2
        assert copy.deepcopy([model(1)]) == [model(1)]
        assert repr(model(1, shift=2)) == "<worker value model(1, shift=2)>"
        assert model.__name__ == "model"
        with pytest.raises(ZeroDivisionError) as caught:
            await flow.function_task(name="use")(lambda net: net / 0)(model(1))
        assert "raised in use(<model>)" in caught.value.__notes__[0]


async def test_mistakes_are_refused_at_the_call() -> None:
    async with engine("thread") as flow:

        @flow.worker_value
        def model(scale: int) -> int:
            return scale

        @flow.function_task
        def use(net: Any) -> Any:
            return net

        with pytest.raises(TypeError, match=r"argument 'scale' is .*only tasks write"):
            model(OutputFile("weights.txt"))
        with pytest.raises(TypeError, match=r"call it, as in model\(\)"):
            use([model])
        nested: Any = [OutputFile("weights.txt")]
        with pytest.raises(TypeError, match="only tasks write output files"):
            await use(model(nested))
        with pytest.raises(TypeError, match="missing a required argument: 'scale'"):
            model()
        with pytest.raises(TypeError, match=r"argument 'scale' \(lock\) cannot be pickled"):
            await use(model(threading.Lock()))
        lock = threading.Lock()
        locked = flow.worker_value(lambda: lock)
        with pytest.raises(
            TypeError, match=r"its function cannot be pickled: .*inside the function"
        ):
            await use(locked())
        inner = flow.worker_value(lambda: 3)
        for outer, words in (
            (lambda: inner(), "'inner' used by its function cannot .*call it in the program"),
            (lambda: flow.uid, "'flow' used by its function cannot .*only the program and blo"),
        ):
            with pytest.raises(TypeError, match=words):
                await use(flow.worker_value(outer)())
        with pytest.raises(TypeError, match="asynchronous function"):
            flow.worker_value(asyncio.sleep)
        with pytest.raises(TypeError, match="expects a function, got 3"):
            flow.worker_value(3)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="per must be 'process' or 'thread', got 'worker'"):
            flow.worker_value(per="worker")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
            flow.worker_value(keep=0)
        with pytest.raises(TypeError, match="keep must be a number of values or None, got '2 GB'"):
            flow.worker_value(keep="2 GB")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="timeout must be"):
            flow.worker_value(timeout=-1)

        @flow.worker_value
        def nothing() -> Iterator[int]:
            yield from ()

        with pytest.raises(RuntimeError, match="ended before it yielded"):
            await use(nothing())


async def test_a_value_that_cannot_be_closed_is_reported(capsys: Any) -> None:
    async with engine("thread") as flow:

        @flow.worker_value
        def twice() -> Iterator[int]:
            yield 1
            yield 2

        @flow.worker_value
        def fails() -> Iterator[int]:
            yield 1
            raise OSError("the disk is full")

        use = flow.function_task(lambda net: net)
        assert [await use(twice()), await use(fails())] == [1, 1]
    printed = capsys.readouterr().err
    assert "worker value 'twice' could not be closed" in printed
    assert "yielded more than one value" in printed
    assert "the disk is full" in printed


@pytest.mark.parametrize("kind", KINDS)
async def test_a_factory_receives_results_and_files(kind: str, tmp_path: Path) -> None:
    log = log_in(tmp_path)
    path = tmp_path / "weights.txt"

    async def run() -> list[int]:
        options = {"journal": tmp_path / "run.sqlite", "resume": True}
        async with engine(kind, workers=1, **options) as flow:

            @flow.worker_value
            def model(scale: Any, more: dict[str, Any]) -> int:
                log("built")
                return int(scale) * int(Path(more["file"]).read_text())

            @flow.worker_value
            def pair(one: Any, other: int) -> tuple[int, int]:
                return one, other

            @flow.function_task
            def train(number: int) -> int:
                return number + 1

            @flow.function_task
            def use(number: int, net: Any) -> int:
                log("use")
                return number + int(sum(net))

            @flow.block
            async def part(net: Any) -> int:
                return await use(0, net)

            net: Any = pair(model(train(1), {"file": InputFile(path)}), train(2))
            numbers = await asyncio.gather(*(use(number, net) for number in range(3)))
            return [*numbers, await part(net)]

    for text, total, uses in (("5", 13, 4), ("5", 13, 4), ("6", 15, 8)):
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        assert await within(run()) == [total, total + 1, total + 2, total]
        assert len(logged(tmp_path, "use")) == uses
    assert len(logged(tmp_path, "built")) == 2


async def test_a_factory_receives_a_file_that_a_task_has_written() -> None:
    async with engine("process", workers=1) as flow:

        @flow.worker_value
        def model(file: Any) -> int:
            return int(Path(file).read_text())

        @flow.executable_task
        def train(number: int, out: OutputFile) -> str:
            return f"echo {number} > {out}"

        @flow.function_task
        def use(net: Any) -> int:
            return int(net)

        for number in (3, 4):
            trained = train(number, OutputFile("weights.txt"))
            assert await use(model(trained.file("weights.txt"))) == number


async def test_a_failed_dependency_of_a_factory_fails_the_task() -> None:
    async with engine("thread") as flow:
        model = flow.worker_value(lambda number: number)

        @flow.function_task
        def fail() -> int:
            raise KeyError("no data")

        use = flow.function_task(lambda net: net)
        with pytest.raises(Exception, match="no data"):
            await use(model(fail()))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_value_can_be_closed_before_the_end(kind: str, tmp_path: Path) -> None:
    log = log_in(tmp_path)
    async with engine(kind) as flow:

        @flow.worker_value
        def model(scale: int) -> Iterator[int]:
            log("built")
            yield scale
            log("closed")

        use = flow.function_task(lambda number, net: number * net)
        async with model(3) as net:
            assert await asyncio.gather(*(use(number, net) for number in range(4))) == [0, 3, 6, 9]
        while len(logged(tmp_path, "closed")) < len(logged(tmp_path, "built")):
            await use(1, 1)  # a worker closes it before its next call
        assert await use(2, model(3)) == 6
        before = logged(tmp_path, "built")
        assert await use(3, model(3)) == 9
        assert logged(tmp_path, "built") == before
        await model(5).close()  # it was never built
        await model(use(1, 1)).close()


async def test_workers_have_time_to_close_their_values(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    async with engine("process", workers=1) as flow:

        @flow.worker_value
        def model() -> Iterator[int]:
            yield 3
            time.sleep(1.5)  # longer than workers without values have
            log("closed")

        assert await flow.function_task(lambda net: net)(model()) == 3
    assert len(logged(tmp_path, "closed")) == 1


async def test_a_value_in_use_is_closed_when_the_call_has_ended(tmp_path: Path) -> None:
    log, entered, left = log_in(tmp_path), threading.Event(), threading.Event()
    async with engine("thread") as flow:

        @flow.worker_value
        def model() -> Iterator[int]:
            yield 3
            log("closed")

        @flow.function_task
        def use(net: int) -> int:
            entered.set()
            left.wait(10)
            return net + len(logged(tmp_path, "closed"))

        net = model()
        running = use(net)
        await asyncio.to_thread(entered.wait, 10)
        await net.close()
        left.set()
        assert await running == 3
    assert len(logged(tmp_path, "closed")) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_only_some_values_are_kept(kind: str, tmp_path: Path) -> None:
    async with engine(kind, workers=1) as flow:
        log = log_in(tmp_path)

        @flow.worker_value(keep=2)
        def model(name: str) -> Iterator[str]:
            log(f"open.{name}")
            yield name
            log(f"close.{name}")

        use = flow.function_task(lambda *nets: "".join(nets))
        for names in ("a", "b", "a", "c", "a", "b", "abc"):
            assert await use(*map(model, names)) == names
    words = [line.split()[0] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert words[:8] == [
        "open.a", "open.b", "close.b", "open.c", "close.c", "open.b", "open.c", "close.a"
    ]  # fmt: skip
    assert sorted(words[8:]) == ["close.b", "close.c"]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_time_for_building_does_not_count_toward_the_timeout(
    kind: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with engine(kind, workers=3) as flow:

        @flow.worker_value
        def slow() -> int:
            while not gate.exists():
                time.sleep(0.01)
            return 3

        @flow.worker_value(timeout="0.3 s")
        def stuck() -> int:
            while not gate.exists():
                time.sleep(0.01)
            return 3

        @flow.function_task(timeout=0.2)
        def use(net: int, seconds: float) -> int:
            time.sleep(seconds)
            return net

        waiting = [use(slow(), 0), use(slow(), 0)]
        with pytest.raises(
            TaskTimeoutError, match=r"worker value 'stuck' was not built within 0\.3"
        ):
            await flow.function_task(lambda net: net)(stuck())
        assert not any(each.done() for each in waiting)
        gate.touch()
        assert await within(asyncio.gather(*waiting)) == [3, 3]
        usage: Any = waiting[0].usage
        assert usage["build_seconds"] > 0.2
        with pytest.raises(TaskTimeoutError, match=r"exceeded its timeout of 0\.2 s"):
            await use(slow(), 2)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_factory_that_fails_is_called_twice_in_a_process(kind: str, tmp_path: Path) -> None:
    log = log_in(tmp_path)
    async with engine(kind, workers=1) as flow:

        @flow.worker_value
        def model() -> int:
            log("called")
            raise FileNotFoundError("weights.pt")

        use = flow.function_task(lambda net: net)
        net = model()
        for _ in range(4):
            with pytest.raises(FileNotFoundError, match=r"weights\.pt") as caught:
                await use(net)
            assert "while worker value 'model' was built" in caught.value.__notes__
        assert "has failed 2 times in this process" in "".join(caught.value.__notes__)
        assert len(logged(tmp_path, "called")) == 2
        with pytest.raises(FileNotFoundError):
            await use(model())
        assert len(logged(tmp_path, "called")) == 3


async def test_a_factory_that_fails_on_three_workers_is_given_up(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    async with engine("process", workers=3) as flow:

        @flow.worker_value
        def model() -> int:
            log("called")
            while len(logged(tmp_path, "called")) < 3:
                time.sleep(0.01)
            raise FileNotFoundError("weights.pt")

        use = flow.function_task(lambda net: net)
        net = model()
        await asyncio.gather(use(net), use(net), use(net), return_exceptions=True)
        with pytest.raises(WorkerValueError, match="has failed on 3 workers") as caught:
            await use(net)
        assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("how", ["kills its worker", "takes too long"])
async def test_a_factory_that_ends_three_workers_is_given_up(how: str) -> None:
    async with engine("process", workers=1) as flow:

        @flow.worker_value(timeout="0.2 s")
        def model(works: bool) -> int:
            if works:
                return 1
            if how == "kills its worker":
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait(60)
            return 2

        @flow.function_task(lost_retries=0)
        def use(net: int) -> int:
            return net

        net, other = model(works=False), model(works=True)
        for _ in range(3):
            with pytest.raises((TaskLostError, TaskTimeoutError)):
                await within(use(net))
        with pytest.raises(WorkerValueError, match="has failed on 3 workers"):
            await use(net)
        assert await within(use(other)) == 1


async def test_a_factory_that_succeeds_on_some_workers_is_not_given_up(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.touch()
    async with engine("process", workers=1) as flow:

        @flow.worker_value
        def model() -> int:
            if bad.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return 1

        @flow.function_task(lost_retries=0)
        def use(net: int, ends: bool) -> int:
            if ends:
                os.kill(os.getpid(), signal.SIGKILL)
            return net

        net = model()
        for _ in range(2):
            for _ in range(2):
                with pytest.raises(TaskLostError):
                    await within(use(net, ends=False))
            bad.unlink()
            assert await within(use(net, ends=False)) == 1
            with pytest.raises(TaskLostError):
                await within(use(net, ends=True))  # a new worker has to build the value
            bad.touch()


async def test_calls_wait_for_a_worker_that_has_the_value(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    async with engine("process", workers=2) as flow:

        @flow.worker_value
        def model() -> int:
            log("built")
            time.sleep(1.0)
            return 3

        @flow.function_task
        def use(number: int, net: int) -> int:
            time.sleep(0.01)
            return number * net

        @flow.function_task
        def other() -> int:
            return os.getpid()

        net = model()
        assert await use(1, net) == 3
        assert len({await each for each in [other(), other()]}) <= 2
        assert await asyncio.gather(*(use(number, net) for number in range(4))) == [0, 3, 6, 9]
        assert len(logged(tmp_path, "built")) == 1


async def test_workers_with_gpus_keep_values_until_others_need_the_gpus(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    backend = LocalExecutionBackend("process", resources={"workers": 2, "gpus": 2})
    async with WorkflowEngine.create(backend, handle_signals=False) as flow:

        @flow.worker_value
        def model() -> Iterator[str]:
            log("built")
            yield os.environ["CUDA_VISIBLE_DEVICES"]
            log("closed")

        @flow.function_task(resources={"gpus": 1})
        def use(number: int, net: str) -> tuple[int, bool]:
            return os.getpid(), net == os.environ["CUDA_VISIBLE_DEVICES"]

        @flow.function_task(resources={"gpus": 2})
        def whole() -> int:
            return len(logged(tmp_path, "closed"))

        net = model()
        results = await asyncio.gather(*(use(number, net) for number in range(10)))
        assert all(same for _, same in results)
        built = logged(tmp_path, "built")
        assert len(built) <= 2
        assert {str(pid) for pid, _ in results} == set(built)
        await whole()
        while len(logged(tmp_path, "closed")) < len(built):
            await whole()
        assert (await use(1, net))[1]
        assert len(logged(tmp_path, "built")) == len(built) + 1


MODEL = """
import os
RATE = 1
def load(path):
    return RATE
def read(path):
    with open(path) as file:
        return int(file.read())
def variable(path):
    return int(os.environ["RATE8"])
"""


@pytest.mark.parametrize("what", ["load", "read", "variable"])
async def test_a_value_that_would_be_built_otherwise_now_is_not_recorded(
    what: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """The value was built from the former variable or file, and later tasks receive it, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RATE8", "0")
    (tmp_path / "model.py").write_text(MODEL)
    model: Any = importlib.import_module("model")

    async def run(*rates: int) -> list[int]:
        options = {"journal": tmp_path / "run.sqlite", "resume": True}
        async with engine("thread", workers=1, **options) as flow:
            value = flow.worker_value(getattr(model, what))
            use = flow.function_task(lambda number, net: number * net)
            results = []
            for model.RATE in rates:
                (tmp_path / "rate.txt").write_text(str(model.RATE))
                os.environ["RATE8"] = str(model.RATE)
                results.append(await use(2, value("rate.txt")))
            return results

    try:
        assert (await run(1, 5))[0] == 2
        assert await run(5) == [10]
    finally:
        del sys.modules["model"]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_variables_of_a_factory_have_their_values_at_its_call(kind: str) -> None:
    async with engine(kind, workers=1) as flow:
        use = flow.function_task(lambda net: net)
        futures = []
        for scale in (1, 2, 3):

            @flow.worker_value
            def model() -> int:
                return scale  # noqa: B023 - this is tested

            futures.append(use(model()))
        assert await asyncio.gather(*futures) == [1, 2, 3]
        handles, rate = [], 0

        @flow.worker_value
        def later() -> int:
            return rate

        for rate in (5, 5, 6):  # noqa: B007 - the factory reads it
            handles.append(later())
        assert handles[0] == handles[1] != handles[2]
        assert [await use(handle) for handle in handles] == [5, 5, 6]
        kept = flow.worker_value(keep=2)  # one decorator for two functions
        double, triple = kept(lambda: rate * 2), kept(lambda: rate * 3)
        assert [await use(double()), await use(triple()), await use(double())] == [12, 18, 12]
