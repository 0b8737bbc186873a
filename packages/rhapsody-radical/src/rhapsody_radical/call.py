"""Worker side of a function task: execution of one call, on a RAPTOR worker or as a program.

RAPTOR's channels accept little other than text, so a call and its result are sent as text. Large
values are sent in files, if both sides share a file system. Everything else is core's call protocol
(`rhapsody.sdk`). RAPTOR workers do not need an installation of Rhapsody: Rhapsody's own workers
receive copies of this file and of core's `runner.py`; other workers receive `run`, pickled by
value.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rhapsody.sdk import CallResult, CallSpec, Runner, dumps, sent_modules, worker_values

LARGE = 1 << 16
"""Size in bytes above which a value is sent in a file, if there is a directory for it."""


def run(text: str) -> str:
    """Execute a call.

    Args:
        text: The call, packed by `rhapsody_radical.functions.as_text`.

    Returns:
        The result, for `rhapsody_radical.functions.unpack`.
    """
    return RaptorRunner().run_text(text)


class RaptorRunner(Runner):
    """Runner of calls, each in its sandbox and after its `pre_exec` commands.

    After each call, the environment is restored to its state when the runner was created.
    """

    own_files: tuple[str, ...] = (*Runner.own_files, __file__)

    def __init__(self) -> None:
        self._directory: str | None = None
        self._name = ""
        self._variables = dict(os.environ)

    def run_text(self, text: str) -> str:
        """Execute a call that is encoded as text; see `run`."""
        return base64.b64encode(self.run(base64.b64decode(text))).decode("ascii")

    def make(self, order: CallSpec, call: Any) -> CallResult:
        """Execute the call, after choosing the file for a large result."""
        self._directory, self._name = order.more["values"], f"{order.uid}.result"
        return super().make(order, call)

    def answer(self, name: str, call: Any) -> tuple[bool, Any, bool]:
        """Run the function, and write its value to a file if it is large."""
        done, packed, plain = super().answer(name, call)
        return done, self._stored(packed) if done else packed, plain

    def load(self, call: tuple[bytes | None, bytes | str]) -> Any:
        """Unpack the function and the arguments, which were packed together or separately."""
        function, rest = call
        return load(rest) if function is None else (pickle.loads(function), *load(rest))  # noqa: S301 - from the program

    def pack(self, value: Any) -> tuple[bytes, list[memoryview]]:
        """Pack a value without copying its large buffers."""
        return dump(value, self._directory)

    def unpack(self, payload: tuple[bytes, list[memoryview]]) -> Any:
        """Unpack a value that `pack` has packed."""
        data, buffers = payload
        return pickle.loads(data, buffers=buffers)  # noqa: S301 - made above

    def pack_error(self, error: BaseException) -> Any:
        """Pack the exception that a call raised."""
        return self._stored(super().pack_error(error))

    def _stored(self, packed: Any) -> bytes | str:
        data, buffers = packed
        return store(data, buffers, self._directory, self._name)

    def modules(self, order: CallSpec) -> contextlib.AbstractContextManager[Any]:
        """Make the main program's modules importable; read them from their file if necessary."""
        path = order.more["modules"]
        if path is not None and not sent_modules().knows(order.modules or b""):
            sent_modules().receive(Path(path).read_bytes())
        return super().modules(order)

    @contextlib.contextmanager
    def environment(self, order: CallSpec) -> Iterator[None]:
        """Set the call's variables, and restore the environment afterwards."""
        try:
            with super().environment(order):
                yield
        finally:
            if dict(os.environ) != self._variables:
                os.environ.clear()
                os.environ.update(self._variables)

    @contextlib.contextmanager
    def context(self, order: CallSpec) -> Iterator[None]:
        """Change to the sandbox and run `pre_exec`; restore the working directory afterwards."""
        directory = os.getcwd()
        try:
            if order.sandbox:
                os.makedirs(order.sandbox, mode=0o700, exist_ok=True)
                os.chdir(order.sandbox)
            _prepare(order.more["pre_exec"])
            sys.path += [path for path in order.more["path"] if path not in sys.path]
            with super().context(order):
                yield
        finally:
            os.chdir(directory)


def _prepare(commands: list[str]) -> None:
    """Run a task's `pre_exec` commands in its sandbox, and set the variables that they export."""
    if not commands:
        return
    shell = shutil.which("bash") or "/bin/sh"  # RADICAL-Pilot's scripts use bash as well
    with tempfile.NamedTemporaryFile() as file:
        script = "\n".join(["set -e", *commands, f"env -0 > '{file.name}'"])
        subprocess.run([shell, "-c", script], check=True)
        pairs = file.read().decode(errors="surrogateescape").split("\0")
    for name, found, value in (pair.partition("=") for pair in pairs):
        if found:
            os.environ[name] = value


# Values.


def dump(value: Any, directory: str | None) -> tuple[bytes, list[memoryview]]:
    """Pickle a value.

    Args:
        value: The value.
        directory: The directory for large values, or `None` if there is none.

    Returns:
        The pickle, and the large buffers that it does not contain; without a directory, the pickle
        contains all data.
    """
    buffers: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < LARGE:
            return True
        buffers.append(view)
        return False

    callback = None if directory is None else stays
    return dumps(value, protocol=5, buffer_callback=callback), buffers


def store(data: bytes, buffers: list[memoryview], directory: str | None, name: str) -> bytes | str:
    """Write the output of `dump` to a private file if it is large.

    Returns:
        The file's path, or the pickle itself; `load` takes either.

    Raises:
        OSError: The file cannot be written.
    """
    if directory is None or (not buffers and len(data) <= LARGE):
        return data
    path = os.path.join(directory, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by a former session with the same directory
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            pickle.dump([buffer.nbytes for buffer in buffers], file)
            file.writelines(buffers)
            file.write(data)
    except OSError as error:
        os.unlink(path)
        raise OSError(error.errno, error.strerror, path) from None
    return path


def load(stored: bytes | str) -> Any:
    """Unpickle the result of `store`, and remove its file."""
    if isinstance(stored, bytes):
        return pickle.loads(stored)  # noqa: S301 - from the other side of the call
    with open(stored, "rb") as file:
        os.unlink(stored)
        buffers = [bytearray(size) for size in pickle.load(file)]  # noqa: S301 - as above
        for buffer in buffers:
            file.readinto(buffer)
        return pickle.load(file, buffers=buffers)  # noqa: S301 - as above


def main(order: str, reply: str) -> int:
    """Read a call from one file, execute it, and write the reply to another file.

    Returns:
        The exit code 0; the reply states whether the call succeeded.
    """
    part = Path(f"{reply}.part")
    part.write_bytes(RaptorRunner().run(Path(order).read_bytes()))
    part.replace(reply)
    worker_values().close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
