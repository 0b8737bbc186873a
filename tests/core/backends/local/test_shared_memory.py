"""Large values between the program and worker processes, through shared memory."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import LocalExecutionBackend, TaskLostError, WorkflowEngine
from rhapsody.backends.local.shared_memory import (
    MAX_WARM_BLOCKS,
    MAX_WARM_SIZE,
    MIN_SHARED_SIZE,
    ProgramMemory,
    WorkerMemory,
)

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

SIZE = 4 << 20


def same(value: Any) -> Any:
    return value


def engine(workers: int = 1, **options: Any) -> Any:
    backend = LocalExecutionBackend("process", resources={"workers": workers}, grace=0.5)
    return WorkflowEngine.create(backend, handle_signals=False, **options)


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def flow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkflowEngine]:
    """One engine and its worker process, for all tests of a class."""
    async with engine(work_dir=tmp_path_factory.mktemp("work")) as flow:
        yield flow


def shared_files() -> list[str]:
    """Return the open files in memory of this process."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    found = [os.readlink(link) for link in links if link.is_symlink()]
    return [each for each in found if "memfd:rhapsody" in each]


def shared_bytes() -> int:
    """Return the shared memory that is allocated for the files of this process."""
    blocks = 0
    for name in os.listdir("/proc/self/fd"):
        link = Path("/proc/self/fd", name)
        if link.is_symlink() and "memfd:rhapsody" in os.readlink(link):
            blocks += link.stat().st_blocks
    return 512 * blocks


VALUES = {
    "bytes": os.urandom(SIZE),
    "bytearray": bytearray(os.urandom(SIZE)),
    "str": "\N{GREEK SMALL LETTER ALPHA}" * SIZE,
    "many small values": list(range(SIZE // 4)),
    "several": {"a": b"1" * SIZE, "b": [b"2" * MIN_SHARED_SIZE, "3" * MIN_SHARED_SIZE]},
    "array": np.arange(SIZE // 8),
    "Fortran array": np.asfortranarray(np.arange(SIZE // 8).reshape(2, -1)),
    "part of an array": np.arange(SIZE // 2).reshape(4, -1)[:, ::2],
    "empty": b"",
    "just small": b"1" * (MIN_SHARED_SIZE - 100),
    "just large": b"1" * MIN_SHARED_SIZE,
}


@pytest.mark.asyncio(loop_scope="class")
class TestValuesArriveAsTheyWere:
    @pytest.mark.parametrize("name", VALUES)
    async def test_values_arrive_as_they_were(self, flow: WorkflowEngine, name: str) -> None:
        value = VALUES[name]
        returned = await flow.function_task(same)(value)
        assert type(returned) is type(value)
        if isinstance(value, np.ndarray):
            assert returned.flags.f_contiguous == value.flags.f_contiguous or not value.flags.forc
            np.testing.assert_array_equal(returned, value)
        else:
            assert returned == value

    async def test_a_data_frame_arrives_as_it_was(self, flow: WorkflowEngine) -> None:
        frame = pd.DataFrame({"a": np.arange(SIZE // 8), "b": np.ones(SIZE // 8)})
        returned = await flow.function_task(same)(frame)
        pd.testing.assert_frame_equal(returned, frame)
        returned.iloc[0, 0] = 7
        assert frame.iloc[0, 0] == 0

    async def test_an_array_can_be_written_to_where_it_arrives(self, flow: WorkflowEngine) -> None:
        def double(array: Any) -> Any:
            array *= 2
            return array

        array = np.ones(SIZE // 8)
        returned = await flow.function_task(double)(array)
        other = await flow.function_task(double)(array)
        returned += 1  # its memory is not shared with a later result
        assert (array == 1).all()
        assert (other == 2).all()
        assert (returned == 3).all()

    async def test_an_array_that_is_read_only_stays_so(self, flow: WorkflowEngine) -> None:
        array = np.ones(SIZE // 8)
        array.setflags(write=False)
        assert not (await flow.function_task(same)(array)).flags.writeable

    async def test_a_large_exception_arrives(self, flow: WorkflowEngine) -> None:
        def fail() -> None:
            raise ValueError(b"1" * SIZE)

        with pytest.raises(ValueError, match=r"1{1000}"):
            await flow.function_task(fail)()


async def test_many_large_values_at_once() -> None:
    values = [bytes([number]) * (MIN_SHARED_SIZE + number) for number in range(60)]
    gc.collect()  # files of engines in earlier tests
    async with engine(workers=2) as flow:
        task = flow.function_task(same)
        assert await asyncio.gather(*map(task, values)) == values
        assert len(shared_files()) == 1
        assert shared_bytes() <= MAX_WARM_BLOCKS * MAX_WARM_SIZE
    assert not shared_files()


async def test_short_calls_sent_ahead_return_large_values() -> None:
    def make(number: int) -> bytes:
        return bytes([number % 256]) * (MIN_SHARED_SIZE if number > 100 else 1)

    async with engine() as flow:
        task = flow.function_task(make)
        results = await asyncio.gather(*map(task, range(400)))
    assert results == [make(number) for number in range(400)]


async def test_an_argument_that_cannot_be_pickled_frees_its_block() -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            raise ValueError("on purpose")

    async with engine() as flow:
        with pytest.raises(TypeError, match="positional argument 1"):
            await flow.function_task(lambda *_: None)(b"1" * 2 * MAX_WARM_SIZE, Hostile())
        assert await flow.function_task(len)(b"1" * SIZE) == SIZE
        assert shared_bytes() <= MAX_WARM_SIZE


async def test_a_killed_worker_leaves_no_descriptor_and_no_memory() -> None:
    def die(value: bytes) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async with engine() as flow:  # what the first engine of a program opens stays open
        assert await flow.function_task(len)(b"") == 0
    before = len(os.listdir("/proc/self/fd"))
    async with engine(lost_retries=0) as flow:
        assert await flow.function_task(len)(b"") == 0
        running = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(TaskLostError):
                await flow.function_task(die)(b"1" * 2 * MAX_WARM_SIZE)
        assert await flow.function_task(len)(b"1" * SIZE) == SIZE
        assert len(os.listdir("/proc/self/fd")) == running
        assert shared_bytes() <= MAX_WARM_BLOCKS * MAX_WARM_SIZE
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_worker_killed_while_it_returns_leaves_no_memory() -> None:
    class Fatal:
        def __reduce__(self) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)
            return int, ()

    fatal = Fatal
    async with engine(lost_retries=0) as flow:
        with pytest.raises(TaskLostError):
            await flow.function_task(lambda: (b"1" * 2 * MAX_WARM_SIZE, fatal()))()
        assert await flow.function_task(same)(b"1" * SIZE) == b"1" * SIZE
        assert shared_bytes() <= MAX_WARM_BLOCKS * MAX_WARM_SIZE


async def test_a_cancelled_call_frees_its_memory(tmp_path: Path) -> None:
    def wait(value: bytes) -> None:
        tmp_path.joinpath("began").touch()
        signal.pause()

    async with engine() as flow:
        future = flow.function_task(wait)(b"1" * 2 * MAX_WARM_SIZE)
        async with asyncio.timeout(60):
            while not tmp_path.joinpath("began").exists():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        assert shared_bytes() >= 2 * MAX_WARM_SIZE
        future.cancel()
        await asyncio.wait([future])
        await future.ended()
        assert await flow.function_task(len)(b"1" * SIZE) == SIZE
        assert shared_bytes() <= MAX_WARM_BLOCKS * MAX_WARM_SIZE


@contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    former = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, former)


async def test_no_free_descriptor_for_a_result() -> None:
    async with engine() as flow:
        task = flow.function_task(same)
        assert await task(b"1" * SIZE) == b"1" * SIZE
        opened = []
        with limit(resource.RLIMIT_NOFILE, 200):
            try:
                while True:
                    opened.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                assert await task(b"2" * SIZE) == b"2" * SIZE
            finally:
                for each in opened:
                    os.close(each)


async def test_where_the_system_has_no_files_in_memory(monkeypatch: Any) -> None:
    monkeypatch.delattr(os, "memfd_create")
    async with engine() as flow:
        assert await flow.function_task(same)(b"1" * SIZE) == b"1" * SIZE
        assert not shared_files()


async def test_a_file_that_may_not_grow_is_not_used() -> None:
    memory, value = ProgramMemory(), b"1" * SIZE
    with limit(resource.RLIMIT_FSIZE, 1 << 20):
        packed = memory.dump((b"2" * MIN_SHARED_SIZE, value))
    assert isinstance(packed, bytearray)
    assert pickle.loads(packed) == (b"2" * MIN_SHARED_SIZE, value)


async def test_a_worker_writes_no_block_twice() -> None:
    program = ProgramMemory()
    block = program.take()
    assert block is not None
    assert program.descriptor is not None
    worker = WorkerMemory(program.descriptor)
    worker.offered = block.number
    first = worker.dump(b"1" * SIZE)
    assert isinstance(worker.dump(b"2" * SIZE), bytearray)
    assert program.load(block.number, len(first)) == b"1" * SIZE


async def test_blocks_are_used_again() -> None:
    memory = ProgramMemory()
    numbers = set()
    for _ in range(100):
        packed = memory.dump(b"1" * SIZE)
        numbers.add(packed.number)  # type: ignore[union-attr]
        del packed
    assert len(numbers) == 1
    assert memory.descriptor is not None
    held = [memory.dump(b"1" * SIZE) for _ in range(2 * MAX_WARM_BLOCKS)]
    assert os.fstat(memory.descriptor).st_blocks * 512 > MAX_WARM_BLOCKS * SIZE
    del held
    assert os.fstat(memory.descriptor).st_blocks * 512 <= MAX_WARM_BLOCKS * (SIZE + (1 << 16))


async def test_a_value_that_was_cut_off_is_an_error() -> None:
    memory = ProgramMemory()
    block = memory.dump(b"1" * SIZE)
    with pytest.raises(EOFError):
        memory.load(block.number, 10 * SIZE)  # type: ignore[union-attr]
