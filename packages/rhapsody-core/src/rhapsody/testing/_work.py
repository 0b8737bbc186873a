"""What the checks have a backend run: small functions that can be imported by name.

Workers import this module, so it imports nothing heavy and nothing that tests need.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any


def add(left: Any, right: Any = 1, *, more: Any = 0) -> Any:
    """The sum."""
    return left + right + more


async def add_async(left: Any, right: Any = 1, *, more: Any = 0) -> Any:
    """The sum, after giving way once."""
    await asyncio.sleep(0)
    return left + right + more


class Adder:
    """Has methods and can be called."""

    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, number: int) -> int:
        """The sum."""
        return self.base + number

    async def add_async(self, number: int) -> int:
        """The sum."""
        return self.base + number

    def __call__(self, number: int) -> int:
        return self.base + number


class KitError(ValueError):
    """An error with an attribute of its own."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message, code)
        self.code = code


class OddError(Exception):
    """An error that `pickle` cannot put together again: it needs an argument more."""

    def __init__(self, message: str, needed: object) -> None:
        super().__init__(message)
        self.needed = needed


def collect(number: int, held: list[Any]) -> list[Any]:
    """Adds a number to a list, and gives a copy of the list."""
    held.append(number)
    return list(held)


class Collector:
    """Adds the numbers it is called with to a list of its own."""

    def __init__(self, held: list[Any]) -> None:
        self.held = held

    def __call__(self, number: int) -> list[Any]:
        return collect(number, self.held)


def put_first(data: bytearray) -> int:
    """Gives the first byte, and adds one to it."""
    before = data[0]
    data[0] += 1
    return before


def process_and_memory() -> tuple[int, int]:
    """The process it runs in, and the bytes of memory that process holds."""
    import resource

    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return os.getpid(), pages * resource.getpagesize()
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def fail(message: str) -> None:
    """Raises a `KitError`."""
    raise KitError(message, 7)


async def fail_async(message: str) -> None:
    """Raises a `KitError`, after giving way once."""
    await asyncio.sleep(0)
    raise KitError(message, 7)


def fail_oddly(message: str) -> None:
    """Raises an error that cannot be unpickled."""
    raise OddError(message, threading.Lock())


def leave(code: int) -> None:
    """Raises `SystemExit`."""
    raise SystemExit(code)


async def leave_async(code: int) -> None:
    """Raises `SystemExit`."""
    raise SystemExit(code)


def kill_own_process() -> None:
    """Ends the process it runs in, as the kernel does when memory is short."""
    os.kill(os.getpid(), 9)


def digest(data: bytes) -> str:
    """The SHA-256 of the data."""
    return hashlib.sha256(data).hexdigest()


def pattern(size: int) -> bytes:
    """So many bytes that differ from place to place."""
    block = bytes(range(256)) * 256
    return (block * (size // len(block) + 1))[:size]


def echo(value: Any) -> Any:
    """Gives back what it gets."""
    return value


def make_lock() -> Any:
    """A result that cannot be pickled."""
    return threading.Lock()


def say(text: str) -> str:
    """Prints to both streams."""
    import sys

    print(text)  # noqa: T201 - what a backend must keep
    print(f"{text} aside", file=sys.stderr)  # noqa: T201
    return text


async def say_async(text: str) -> str:
    """Prints to both streams, before and after giving way."""
    import sys

    print(text[:2], end="")  # noqa: T201 - what a backend must keep
    await asyncio.sleep(0.01)
    print(text[2:])  # noqa: T201
    print(f"{text} aside", file=sys.stderr)  # noqa: T201
    return text


def interval(seconds: float) -> tuple[float, float]:
    """Sleeps and gives the times when it began and ended."""
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


async def interval_async(seconds: float) -> tuple[float, float]:
    """Sleeps and gives the times when it began and ended."""
    began = time.time()
    await asyncio.sleep(seconds)
    return began, time.time()


def tick(path: str, gate: str, seconds: float) -> str:
    """Appends to a file over and over, until another file is gone or time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.path.exists(gate):
        with open(path, "a") as file:
            file.write(".")
        time.sleep(0.01)
    return "ended by itself"


async def tick_async(path: str, gate: str, seconds: float) -> str:
    """Appends to a file over and over, until another file is gone or time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.path.exists(gate):  # noqa: ASYNC240
        with open(path, "a") as file:  # noqa: ASYNC230 - a few bytes
            file.write(".")
        await asyncio.sleep(0.01)
    return "ended by itself"


def tick_command(path: str, gate: str, seconds: float) -> list[str]:
    """A command that does the same in a child of its own shell."""
    times = int(seconds * 20)
    loop = (
        'i=0; while [ -e "$2" ] && [ $i -lt "$3" ]; do printf . >> "$1"; sleep 0.05; '
        "i=$((i+1)); done; echo ended by itself"
    )
    return ["sh", "-c", f"({loop}) & wait", "tick", path, gate, str(times)]


def touch(path: str) -> str:
    """Makes a file, as a trace of having run."""
    Path(path).touch()
    return path


async def touch_async(path: str) -> str:
    """Makes a file, as a trace of having run."""
    return touch(path)


def variable(name: str) -> str | None:
    """An environment variable as the function sees it."""
    return os.environ.get(name)


def whereabouts() -> tuple[int, str]:
    """The process and the directory it runs in."""
    return os.getpid(), os.getcwd()


def read(path: Any) -> str:
    """The text in a file given as anything `open` takes."""
    with open(path) as file:
        return file.read()


class Holder:
    """Call a function as a bound method, or as a callable object."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    async def call_async(self, *args: Any, **kwargs: Any) -> Any:
        """Call the coroutine function."""
        return await self.function(*args, **kwargs)

    __call__ = call


def words(left: str, *, right: str = "") -> list[str]:
    """Return the arguments."""
    return [left, right]


async def words_async(left: str, *, right: str = "") -> list[str]:
    """Return the arguments, after yielding to the loop once."""
    await asyncio.sleep(0)
    return [left, right]


async def variable_async(name: str) -> str | None:
    """Return an environment variable as the coroutine sees it after yielding to the loop."""
    await asyncio.sleep(0.01)
    return variable(name)


def say_both(text: str) -> None:
    """Print to both streams."""
    say(text)


async def say_both_async(text: str) -> None:
    """Print to both streams."""
    await say_async(text)


def fail_because(message: str) -> None:
    """Raise a `KitError` with a cause."""
    try:
        raise LookupError("the reason for failure")
    except LookupError as error:
        raise KitError(message, 7) from error


async def fail_because_async(message: str) -> None:
    """Raise a `KitError` with a cause, after yielding to the loop once."""
    await asyncio.sleep(0.01)
    try:
        raise LookupError("the reason for failure")
    except LookupError as error:
        raise KitError(message, 7) from error


def note_run(path: str) -> None:
    """Add one byte to a file, as a count of executions."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, b"x")
    finally:
        os.close(file)


async def note_run_async(path: str) -> None:
    """Add one byte to a file, as a count of executions."""
    note_run(path)
    await asyncio.sleep(0)


def process_memory_and_data(size: int) -> tuple[int, int, bytes]:
    """Return the id and the memory of its process, and the given number of bytes."""
    return *process_and_memory(), b"x" * size


async def process_memory_and_data_async(size: int) -> tuple[int, int, bytes]:
    """Return the same from a coroutine."""
    return process_memory_and_data(size)
