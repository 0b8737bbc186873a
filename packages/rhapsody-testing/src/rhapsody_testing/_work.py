"""Functions that the checks run in tasks.

Worker processes import the functions by name, so this module imports only modules that are
available in worker processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any


def _coroutine_function(function: Any) -> Any:
    """Return a coroutine function that calls `function` and has its name plus `_async`."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    call.__module__ = __name__
    call.__name__ = call.__qualname__ = f"{function.__name__}_async"
    return call


class KitError(ValueError):
    """Error with an additional attribute."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message, code)
        self.code = code


class OddError(Exception):
    """Error that cannot be unpickled, because its constructor requires another argument."""

    def __init__(self, message: str, needed: object) -> None:
        super().__init__(message)
        self.needed = needed


class Holder:
    """Callable object that calls a function. Its methods call the same function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    async def call_async(self, *args: Any, **kwargs: Any) -> Any:
        """Call the coroutine function."""
        return await self.function(*args, **kwargs)

    __call__ = call


def add(left: Any, right: Any = 1, *, more: Any = 0) -> Any:
    """Return the sum of the arguments."""
    return left + right + more


def echo(value: Any) -> Any:
    """Return the argument."""
    return value


def words(left: str, *, right: str = "") -> list[str]:
    """Return the arguments as a list."""
    return [left, right]


def fail(message: str) -> None:
    """Raise a `KitError` with a cause."""
    try:
        raise LookupError("the reason for failure")
    except LookupError as error:
        raise KitError(message, 7) from error


def fail_oddly(message: str) -> None:
    """Raise an error that cannot be unpickled."""
    raise OddError(message, threading.Lock())


def leave(code: int) -> None:
    """Raise `SystemExit`."""
    raise SystemExit(code)


def kill_own_process(log: str) -> None:
    """Kill the current process with SIGKILL, as the kernel does when memory runs out.

    Args:
        log: The path of a file that grows by one byte at each call, if the worker can write it.
    """
    with suppress(OSError), open(log, "a") as file:
        file.write("x")
    os.kill(os.getpid(), 9)


def collect(number: int, held: list[Any]) -> list[Any]:
    """Append a number to a list, and return a copy of the list."""
    held.append(number)
    return list(held)


def put_first(data: bytearray) -> int:
    """Increment the first byte of the data, and return its previous value."""
    before = data[0]
    data[0] += 1
    return before


def rank_size_and_sum(number: int) -> tuple[int, int, int]:
    """Return this process's rank, the number of ranks, and a sum over all ranks."""
    world = _world()
    return world.rank, world.size, world.allreduce(number + world.rank)


def fail_on_last_rank() -> None:
    """Raise an error on the last rank, while the others wait for it."""
    world = _world()
    if world.rank == world.size - 1:
        raise KitError("wrong", 7)
    world.Barrier()


def _world() -> Any:
    from mpi4py import MPI

    return MPI.COMM_WORLD


def process_and_memory() -> tuple[int, int]:
    """Return the id of the current process, and its memory in bytes."""
    import resource

    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return os.getpid(), pages * resource.getpagesize()
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def process_memory_and_data(size: int) -> tuple[int, int, bytes]:
    """Return the id and memory of the current process, and data of the given size."""
    return *process_and_memory(), b"x" * size


def digest(data: bytes) -> str:
    """Return the SHA-256 of the data."""
    return hashlib.sha256(data).hexdigest()


def pattern(size: int) -> bytes:
    """Return `size` bytes whose values depend on their positions."""
    block = bytes(range(256)) * 256
    return (block * (size // len(block) + 1))[:size]


def make_lock() -> Any:
    """Return an object that cannot be pickled."""
    return threading.Lock()


def name_of_type(value: Any) -> str:
    """Return the name of the argument's type."""
    return type(value).__name__


def say(text: str) -> None:
    """Print to standard output and standard error."""
    print(text)  # noqa: T201 - the backend must capture it
    print(f"{text} aside", file=sys.stderr)  # noqa: T201


async def say_async(text: str) -> None:
    """Print to standard output and standard error, before and after yielding to the loop."""
    print(text[:2], end="")  # noqa: T201 - the backend must capture it
    await asyncio.sleep(0.01)
    print(text[2:])  # noqa: T201
    print(f"{text} aside", file=sys.stderr)  # noqa: T201


def interval(seconds: float) -> tuple[float, float]:
    """Sleep, and return the times of the start and the end."""
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


async def interval_async(seconds: float) -> tuple[float, float]:
    """Sleep, and return the times of the start and the end."""
    began = time.time()
    await asyncio.sleep(seconds)
    return began, time.time()


def tick(path: str, gate: str, seconds: float) -> str:
    """Append to the file `path` until the file `gate` is removed or `seconds` have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.path.exists(gate):
        note_run(path)
        time.sleep(0.01)
    return "not stopped"


async def tick_async(path: str, gate: str, seconds: float) -> str:
    """Append to the file `path` until the file `gate` is removed or `seconds` have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.path.exists(gate):
        note_run(path)
        await asyncio.sleep(0.01)
    return "not stopped"


def tick_command(path: str, gate: str, seconds: float, command: str) -> list[str]:
    """Return a command that runs the shell code `command`, and then does the same as `tick`.

    A child process of the shell writes the file.
    """
    loop = (
        'i=0; while [ -e "$2" ] && [ $i -lt "$3" ]; do printf . >> "$1"; sleep 0.05; '
        "i=$((i+1)); done; echo not stopped"
    )
    arguments = ("tick", path, gate, str(int(seconds * 20)))
    return ["sh", "-c", f"{command}({loop}) & wait", *arguments]


def hold(pipe: str) -> None:
    """Hold a named pipe open for writing, until its reader closes it."""
    with open(pipe, "wb", buffering=0) as file:
        while True:
            file.write(b".")
            time.sleep(0.01)


async def hold_async(pipe: str) -> None:
    """Hold a named pipe open for writing, until its reader closes it."""
    with open(pipe, "wb", buffering=0) as file:  # noqa: ASYNC230 - does not block: it has a reader
        while True:
            file.write(b".")
            await asyncio.sleep(0.01)


def hold_command(pipe: str) -> list[str]:
    """Return a command that does the same as `hold`."""
    return ["sh", "-c", 'exec 3>"$1"; while printf . >&3; do sleep 0.05; done', "hold", pipe]


def note_run(path: str) -> None:
    """Append one byte to a file, so that its size is the number of executions."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, b"x")
    finally:
        os.close(file)


def variable(name: str) -> str | None:
    """Return the value of an environment variable in the current process."""
    return os.environ.get(name)


def trace_header() -> str | None:
    """Return the header of the trace context of the running attempt."""
    from rhapsody import current_task

    return current_task().trace_context.get("traceparent")


def read(path: Any) -> str:
    """Return the text of a file; `path` is anything that `open` accepts."""
    with open(path) as file:
        return file.read()


add_async = _coroutine_function(add)
echo_async = _coroutine_function(echo)
words_async = _coroutine_function(words)
fail_async = _coroutine_function(fail)
leave_async = _coroutine_function(leave)
fail_oddly_async = _coroutine_function(fail_oddly)
make_lock_async = _coroutine_function(make_lock)
name_of_type_async = _coroutine_function(name_of_type)
note_run_async = _coroutine_function(note_run)
variable_async = _coroutine_function(variable)
trace_header_async = _coroutine_function(trace_header)
process_memory_and_data_async = _coroutine_function(process_memory_and_data)
