"""Tests of values that each process builds once for the tasks that receive their handles."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, LocalExecutionBackend, TaskLostError, WorkerValue, WorkflowEngine
from tests._support.scripted import within

pytestmark = pytest.mark.asyncio

KINDS = ("thread", "process")


def engine(
    kind: str, workers: int = 2, **options: Any
) -> contextlib.AbstractAsyncContextManager[WorkflowEngine]:
    resources = {"workers": workers} if kind == "process" else {"cores": workers}
    backend = LocalExecutionBackend(kind, resources=resources)
    return WorkflowEngine.create(backend, handle_signals=False, **options)


def log_in(directory: Path) -> Any:
    """Return a function that appends a word and the process id to a log."""

    def log(word: str) -> None:
        with open(directory / "log.txt", "a") as file:
            file.write(f"{word} {os.getpid()}\n")

    return log


def logged(directory: Path, word: str) -> list[str]:
    """Return the ids of the processes that have logged a word."""
    path = directory / "log.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1] for line in lines if line.split()[0] == word]


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


async def test_mistakes_are_refused_at_the_call() -> None:
    async with engine("thread") as flow:

        @flow.worker_value
        def model(scale: int) -> int:
            return scale

        @flow.function_task
        def use(net: Any) -> Any:
            return net

        with pytest.raises(TypeError, match="argument 'scale' is a future; await it"):
            model(use(1))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"argument .scale. is .*pass the absolute path"):
            model(InputFile("weights.txt"))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="missing a required argument: 'scale'"):
            model()  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"argument 'scale' \(lock\) cannot be pickled"):
            await use(model(threading.Lock()))  # type: ignore[arg-type]
        lock = threading.Lock()
        locked = flow.worker_value(lambda: lock)
        with pytest.raises(
            TypeError, match=r"its function cannot be pickled: .*inside the function"
        ):
            await use(locked())
        with pytest.raises(TypeError, match="asynchronous function"):
            flow.worker_value(asyncio.sleep)
        with pytest.raises(TypeError, match="expects a function, got 3"):
            flow.worker_value(3)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="per must be 'process' or 'thread', got 'worker'"):
            flow.worker_value(per="worker")  # type: ignore[call-overload]

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
