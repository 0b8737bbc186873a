"""Large arguments, results and errors of calls: in files where there is a place for them."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import pickle
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest

from rhapsody.testing import Driver
from rhapsody_radical import call, functions
from rhapsody_radical.client.raptor import OWN_CALL, OWN_WORKER, PROTOCOL
from rhapsody_radical.functions import completed
from rhapsody_radical.wire import is_plain
from tests.radical.pilots import backend

MIB = 1 << 20


class Block(bytearray):
    """Pickles like NumPy's arrays: with its bytes out of band if protocol 5 allows it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _block, (pickle.PickleBuffer(self),)


class Frozen(Block):
    """The same of data that must not be written to."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _frozen, (pickle.PickleBuffer(bytes(self)),)


def _block(data: Any) -> Block:
    assert not memoryview(data).readonly
    return Block(data)


def _frozen(data: Any) -> Frozen:
    assert memoryview(data).readonly
    return Frozen(data)


class Heavy(Exception):  # noqa: N818 - a name
    def __init__(self, block: Any) -> None:
        super().__init__("heavy")
        self.block = block


class Mute(Exception):  # noqa: N818 - a name
    def __str__(self) -> str:
        raise LookupError


def same(value: Any) -> Any:
    return value


def fail(error: BaseException) -> None:
    raise error


def packed(directory: Path | None, function: Any, *args: Any, **kwargs: Any) -> tuple[Any, str]:
    task = completed("task.1", {"function": function, "args": args, "kwargs": kwargs}, None)
    where = None if directory is None else str(directory)
    return task, functions.as_text(functions.pack(task, {}, capture=True, directory=where))


def calls_of(function: Any, count: int) -> list[Any]:
    """Return the results of calls of one function that are packed together."""
    batch, values = functions.Batch(), []
    for number in range(count):
        words = {"function": function, "args": (number,), "kwargs": {}}
        task = completed(f"task.{number}", words, None)
        order = functions.pack(task, {}, capture=True, batch=batch)
        assert functions.unpack(call.run(functions.as_text(order)), task) is None
        values.append(task["return_value"])
    return values


def made(directory: Path | None, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the result of a call, or raise its exception, after a round trip."""
    task, order = packed(directory, function, *args, **kwargs)
    error = functions.unpack(call.run(order), task)
    return task["return_value"] if error is None else error


@pytest.mark.parametrize("size", [0, 100, call.LARGE - 1, call.LARGE, 5 * MIB])
@pytest.mark.parametrize("kind", [bytes, bytearray, Block])
@pytest.mark.parametrize("shared", [True, False])
def test_values_come_back_as_they_went(tmp_path: Path, kind: Any, size: int, shared: bool) -> None:
    value = [kind(os.urandom(size)), {"size": size}]
    assert made(tmp_path if shared else None, same, value) == value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 2 * call.LARGE])
def test_calls_that_are_packed_together_have_a_state_of_their_own(size: int) -> None:
    seen: list[Any] = [bytes(size)]

    def note(number: int) -> list[int]:
        seen.append(number)
        return seen[1:]

    assert calls_of(note, 3) == [[0], [1], [2]]


def test_a_function_is_pickled_once_for_the_calls_that_are_packed_together() -> None:
    class Counted:
        pickled = 0

        def __reduce__(self) -> Any:
            Counted.pickled += 1
            return int, ()

    counted = Counted()

    def add(number: int) -> int:
        return number + int(cast("int", counted))

    assert calls_of(add, 3) == [0, 1, 2]
    assert Counted.pickled == 1


def test_a_function_is_sent_once_for_the_calls_that_are_packed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(functions, "own_modules", lambda: None)
    constant, batch = os.urandom(20_000), functions.Batch()

    def measure(number: int) -> int:
        return len(constant) + number

    orders = []
    for number in range(100):
        words = {"function": measure, "args": (number,), "kwargs": {}}
        task = completed(f"task.{number}", words, None)
        orders.append(functions.pack(task, {}, capture=True, batch=batch))
    assert is_plain(orders)
    assert len(pickle.dumps(orders)) < 100_000


@pytest.mark.parametrize("size", [100, 5 * MIB])
@pytest.mark.parametrize("shared", [True, False])
def test_values_are_writable_where_they_were(tmp_path: Path, size: int, shared: bool) -> None:
    directory = tmp_path if shared else None
    for kind in (Block, Frozen):
        assert type(made(directory, same, kind(size))) is kind


def test_large_values_are_in_private_files_and_the_text_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "own_modules", lambda: None)  # those of all tests are many
    task, order = packed(tmp_path, same, Block(5 * MIB))
    (sent,) = tmp_path.iterdir()
    assert stat.S_IMODE(sent.stat().st_mode) == 0o600
    assert sent.stat().st_size < 5.1 * MIB
    reply = call.run(order)
    (back,) = tmp_path.iterdir()
    assert back != sent
    assert stat.S_IMODE(back.stat().st_mode) == 0o600
    assert max(len(order), len(reply)) < 2000
    assert functions.unpack(reply, task) is None
    assert list(tmp_path.iterdir()) == []


def test_large_buffers_are_not_copied_into_the_pickle(tmp_path: Path) -> None:
    block = Block(5 * MIB)
    data, (buffer,) = call.dump([block], str(tmp_path))
    assert len(data) < 1000
    assert buffer.obj is block


def test_a_call_that_is_dropped_leaves_no_file(tmp_path: Path) -> None:
    packed(tmp_path, same, bytes(MIB))
    task, order = packed(tmp_path, same, bytes(MIB))  # over one that is still there
    call.run(order)
    assert len(list(tmp_path.iterdir())) == 1
    functions.forget(str(tmp_path), task["uid"])
    assert list(tmp_path.iterdir()) == []
    functions.forget(str(tmp_path), task["uid"])


def test_a_call_whose_file_is_missing_fails_alone(tmp_path: Path) -> None:
    task, order = packed(tmp_path, same, bytes(MIB))
    functions.forget(str(tmp_path), task["uid"])
    assert type(functions.unpack(call.run(order), task)) is FileNotFoundError
    task, order = packed(tmp_path, same, bytes(MIB))
    reply = call.run(order)
    functions.forget(str(tmp_path), task["uid"])
    error = functions.unpack(reply, task)
    assert type(error) is FileNotFoundError
    assert "task.1" in error.__notes__[0]


def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'task.1': argument 'rest' \(lock\) cannot be pickled"):
        packed(tmp_path, same, bytes(MIB), rest=threading.Lock())
    error = made(tmp_path, threading.Lock)
    assert type(error) is TypeError
    assert "its result (lock) cannot be pickled back" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_may_contain_a_large_array(tmp_path: Path) -> None:
    error = made(tmp_path, fail, Heavy(Block(5 * MIB)))
    assert type(error) is Heavy
    assert error.args == ("heavy",)
    assert type(error.block) is Block
    assert len(error.block) == 5 * MIB
    assert "in fail" in str(error.__cause__)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_without_a_text_is_a_result_too() -> None:
    assert type(made(None, fail, Mute())) is Mute


def test_a_full_disk_fails_the_call_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, order = packed(tmp_path, bytes, MIB)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pickle, "dump", full)
    error = functions.unpack(call.run(order), task)
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOSPC, str(tmp_path / "task.1.result"))
    with pytest.raises(OSError, match="No space left"):
        packed(tmp_path, len, bytes(MIB))
    assert list(tmp_path.iterdir()) == []


def test_workers_of_others_run_a_call_with_files(tmp_path: Path) -> None:
    task = completed("task.1", {"function": len, "args": (bytes(MIB),), "kwargs": {}}, None)
    order = functions.pack(task, {}, capture=True, directory=str(tmp_path))
    encoded = pickle.loads(base64.b64decode(functions.python_task(order)))
    assert functions.unpack(pickle.loads(encoded["func"])(*encoded["args"]), task) is None
    assert task["return_value"] == MIB


def test_our_own_worker_makes_a_call_where_nothing_of_ours_is_but_what_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "own_modules", lambda: None)  # those of all tests are many
    for file in (OWN_WORKER, OWN_CALL, PROTOCOL):
        (tmp_path / file.name).symlink_to(file)  # as RADICAL-Pilot puts them into a sandbox

    def missing() -> Any:
        found = []
        for name in ("rhapsody", "rhapsody_radical"):
            try:
                import_module(name)
            except ImportError as error:
                found.append(str(error.name))
        raise LookupError(*found)

    task, order = packed(None, missing)
    program = (
        "import sys\n"
        "sys.modules['rhapsody'] = sys.modules['rhapsody_radical'] = None\n"
        "from _raptor_worker import Server\n"
        "task = {'description': {'metadata': {'rhapsody': 'call'}, 'function': sys.argv[1]}}\n"
        "server = Server()\n"
        "process = server.start(1)\n"
        "process.send([task])\n"
        "print(process.receive())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, order],
        cwd=tmp_path,
        env={**os.environ, "RADICAL_BASE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    error = functions.unpack(said.split()[-1], task)
    assert type(error) is LookupError
    assert error.args == ("rhapsody", "rhapsody_radical")


def test_processes_of_a_call_are_marked_with_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def uid() -> str:
        return subprocess.check_output("echo $RP_TASK_ID", shell=True, text=True).strip()

    monkeypatch.setenv("RP_TASK_ID", "the.worker")
    assert made(None, uid) == "task.1"
    assert os.environ["RP_TASK_ID"] == "the.worker"


def test_a_call_may_close_what_it_prints_to() -> None:
    def body() -> str:
        print("said")
        sys.stdout.close()
        sys.stderr = None
        return "value"

    task, order = packed(None, body)
    assert functions.unpack(call.run(order), task) is None
    assert (task["return_value"], task["stdout"], task["stderr"]) == ("value", "said\n", "")


def test_a_call_whose_output_has_no_place_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    task = completed("task.1", {"function": same, "args": (1,)}, None)
    task["sandbox"] = str(tmp_path / "file" / "sandbox")
    order = functions.as_text(functions.pack(task, {}, capture="files"))
    before = os.getcwd(), dict(os.environ), sys.stdout
    assert type(functions.unpack(call.run(order), task)) is NotADirectoryError
    assert before == (os.getcwd(), dict(os.environ), sys.stdout)


# A worker's processes.


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RADICAL_BASE", str(tmp_path / "radical"))
    from rhapsody_radical.pilot import rp  # noqa: F401 - else its import warns

    worker = import_module("rhapsody_radical._raptor_worker")
    server = worker.Server()
    made = server.start(1)
    yield made
    made.kill()
    made.close()
    server.close()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    """A pipe, `pipe` in the directory, that ends when its other side is closed."""
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def call_of(directory: Path, function: Any, *args: Any) -> dict[str, Any]:
    _, order = packed(directory, function, *args)
    return {"description": {"metadata": {"rhapsody": "call"}, "function": order}}


def asked(process: Any, directory: Path, function: Any, *args: Any) -> Any:
    process.send([call_of(directory, function, *args)])
    if (text := process.receive()) is not None:
        process.calls.popleft()
        assert process.receive() is None
    return text


def leave(how: str, path: str, ends: bool) -> None:
    """Let a process of the call's group hold a pipe."""
    descriptor = os.open(path, os.O_WRONLY)
    if how == "spawned":
        os.set_inheritable(descriptor, True)
        os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ)
    elif os.fork() == 0:
        time.sleep(600)
    os.close(descriptor)
    if ends:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["spawned", "forked"])
def test_a_call_whose_process_dies_ends_with_all_that_it_started(
    process: Any, held: int, tmp_path: Path, how: str
) -> None:
    assert asked(process, tmp_path, leave, how, str(tmp_path / "pipe"), True) is None
    process.kill()
    assert _ended(held)


def test_what_a_call_left_running_stays_when_its_process_is_let_go(
    process: Any, held: int, tmp_path: Path
) -> None:
    assert asked(process, tmp_path, leave, "spawned", str(tmp_path / "pipe"), False)
    assert asked(process, tmp_path, os.getpid)
    process.close()
    assert not _ended(held, 1.0)
    process.kill()
    assert _ended(held)


def test_a_server_that_cannot_fork_once_loses_one_call_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = import_module("rhapsody_radical._raptor_worker")
    forks, fork = [0], os.fork

    def failing() -> int:
        forks[0] += 1
        if forks[0] == 2:  # the first one makes the server, which makes the second
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        return fork()

    monkeypatch.setattr(os, "fork", failing)
    server = worker.Server()
    try:
        with pytest.raises(ChildProcessError):
            server.start(1)
        made = server.start(1)
        assert asked(made, tmp_path, os.getpid) is not None
        made.close()
    finally:
        server.close()


def hold(gate: str, mark: str) -> str:
    """In a process: wait for a file, and say so by another."""
    Path(mark).touch()
    until = time.monotonic() + 20
    while not os.path.exists(gate) and time.monotonic() < until:
        time.sleep(0.01)
    return "held"


def test_calls_that_a_process_has_not_started_can_be_taken_back(
    process: Any, tmp_path: Path
) -> None:
    gate, mark = tmp_path / "gate", tmp_path / "mark"
    first, *others = (
        call_of(tmp_path, hold, str(gate), str(mark)),
        *(call_of(tmp_path, same, number) for number in range(3)),
    )
    process.send([first, *others])
    until = time.monotonic() + 20
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert process.take_back() == others
    assert list(process.calls) == [first]
    gate.touch()
    assert process.receive()
    process.calls.clear()
    assert process.receive() is None
    assert process.alive
    assert process.take_back() == []
    assert asked(process, tmp_path, same, 4)


def test_a_process_that_dies_loses_only_the_call_that_it_made(process: Any, tmp_path: Path) -> None:
    calls = [call_of(tmp_path, same, 1), call_of(tmp_path, os._exit, 3), call_of(tmp_path, same, 2)]
    process.send(calls)
    assert process.receive()
    process.calls.popleft()
    assert process.receive() is None
    assert process.take_back() == calls[2:]
    assert list(process.calls) == calls[1:2]
    assert not process.alive


def _ended(held: int, patience: float = 20.0) -> bool:
    """Return whether a pipe, into which nothing is written, ends."""
    return bool(select.select([held], [], [], patience)[0])


# A pilot.


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.asyncio
@pytest.mark.parametrize("functions", ["raptor", "executable"])
async def test_ten_times_the_bytes_take_at_most_twenty_times_as_long(
    tmp_path: Path, functions: Any
) -> None:
    size = 50_000_000
    made = backend(work_dir=tmp_path / "work", functions=functions)
    try:
        async with Driver(made, work_dir=tmp_path / "here") as driver:
            await _seconds(driver, len, b"", 0)  # RAPTOR is there
            for kind in (Block, bytes):
                times = []
                for some in (size // 10, size):
                    there = await _seconds(driver, len, kind(some), some)
                    back = await _seconds(driver, kind, some, kind(some))
                    times.append((there, back))
                (small_there, small_back), (large_there, large_back) = times
                assert large_there < 20 * small_there, times
                assert large_back < 20 * small_back, times
            assert await asyncio.to_thread(_left, tmp_path) == []
    finally:
        await made.shutdown()


def _left(directory: Path) -> list[Path]:
    return [path for kind in ("arguments", "result") for path in directory.rglob(f"*.{kind}")]


async def _seconds(driver: Driver, function: Any, argument: Any, expected: Any) -> float:
    began = time.monotonic()
    end = await driver.run_one(driver.call(function, argument))
    taken = time.monotonic() - began
    assert end.error is None, str(end)
    assert end.value == expected
    return taken
