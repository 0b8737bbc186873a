"""Calls of function tasks in containers, conda and virtual environments, and with modules.

Functions normally run in the Python of the program or of a worker. A function with one of the
settings of `rhapsody.environments` needs another Python, so its call becomes an executable task:
the script that enters the environment starts Python, which reads the call from one file in the
sandbox and writes its outcome to another, in the call protocol of `rhapsody.sdk`.

That Python must be able to unpickle code of this one, so it must have the same minor version, and
Rhapsody must be installed for it. `_START` checks both before it runs the call. With `modules`
alone, the call runs in this program's Python, because many modules bring none.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from rhapsody.data import OUTPUT_FILES, RESERVED, make_sandbox, output_of
from rhapsody.environments import SETTINGS, wrap_command
from rhapsody.errors import CapabilityError, TaskLostError
from rhapsody.sdk.calls import call_spec, pack, unpack
from rhapsody.sdk.runner import PROTOCOL_VERSION, CallResult
from rhapsody.task import TaskDescription

__all__ = ["EnvironmentCall"]

CALL, OUTCOME = f"{RESERVED}call", f"{RESERVED}outcome"

CANNOT_ENTER = (125, 126, 127)
"""Exit codes of the script and of shells and container programs that could not start Python."""

MAX_ERROR = 2000
"""Number of bytes of the standard error in a message."""

# Code for any version of Python 3, so that the message reaches the user.
_START = """\
import os, sys
if sys.path and not sys.path[0]:
    del sys.path[0]
def stop(text):
    sys.stderr.write("rhapsody: " + sys.executable + text + chr(10))
    sys.exit(125)
wanted, cure, protocol, call, outcome = sys.argv[-5:]
found = "%d.%d" % sys.version_info[:2]
if found != wanted:
    stop(" is Python " + found + ", but the program runs Python " + wanted +
         ", and functions need the same minor version: recreate it with Python " + wanted)
try:
    from rhapsody.sdk import runner
    import cloudpickle
except ImportError as error:
    stop(" cannot import Rhapsody (" + str(error) + "): install it there with `" + cure + "`")
if str(runner.PROTOCOL_VERSION) != protocol:
    stop(" has another version of Rhapsody: install the same one there with `" + cure + "`")
runner.main(call, outcome)
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # without waiting for threads that the call has started
"""


class EnvironmentCall:
    """Call of a function task in its environment. Creating the object writes the call to a file.

    For backends that declare `function_environments`. The backend runs `program` as it runs
    executable tasks, then calls `result`, and finally, in any case, `close`.

    Args:
        task: The description of a function task with `container`, `conda`, `venv` or `modules`.
        directory: The directory for the call's files, if the description has no sandbox. It is
            created.
        cores: Number of cores that numeric libraries may use. They start one thread per whole
            core, but at least one. 0 means no limit.

    Attributes:
        program: The description of the executable task that makes the call.

    Raises:
        TypeError: A part of the call cannot be pickled; the message names it.
        OSError: The file cannot be written.
        DataError: The directory cannot be used as a sandbox.
    """

    program: TaskDescription

    def __init__(self, task: TaskDescription, directory: str, *, cores: float = 0) -> None:
        self._task = task
        self._directory = make_sandbox(task.get("sandbox") or directory)
        self._where = ", ".join(f"{name}={task[name]!r}" for name in SETTINGS if name in task)  # type: ignore[literal-required]
        order = call_spec(task, cores=cores, environment={}, directory=self._directory)
        packed = pack(task, order, worker=self._where)
        with open(self._path(CALL), "wb", opener=partial(os.open, mode=0o600)) as file:
            file.write(packed)
        self.program = _program(task, self._directory)

    def result(self, code: int) -> CallResult:
        """Return the outcome of the call, for `rhapsody.sdk.finish`. May be called on any thread.

        Args:
            code: The exit code of `program`.

        Raises:
            CapabilityError: The environment cannot be entered, or its Python cannot make the call.
            TaskLostError: The process ended before it had written an outcome.
            BackendError: The outcome cannot be unpickled.
        """
        printed = [output_of(self._path(name)) for name in OUTPUT_FILES]
        try:
            outcome = unpack(Path(self._path(OUTCOME)).read_bytes())
        except FileNotFoundError:
            name, error = self._task["name"], printed[1][-MAX_ERROR:].strip()
            if code in CANNOT_ENTER:
                _, ours, reason = error.rpartition("rhapsody: ")
                reason = reason if ours else f"Python did not start (exit code {code}) {error}"
                raise CapabilityError(
                    f"task {name!r} cannot run in {self._where}: {reason.strip()}"
                ) from None
            ended = f"its process in {self._where} ended with exit code {code}"
            raise TaskLostError(
                f"task {name!r} was lost: {ended}{f': {error}' if error else ''}"
            ) from None
        if self._task.get("capture", True) in (True, "quiet"):  # what modules and Python print
            out, err = (text or "" for text in (outcome.stdout, outcome.stderr))
            outcome = outcome._replace(stdout=printed[0] + out, stderr=printed[1] + err)
        return outcome

    def close(self) -> None:
        """Remove the files of the call, and the directory if it is not the task's and is empty."""
        printed = () if self._task.get("capture") == "files" else OUTPUT_FILES
        for name in (CALL, OUTCOME, f"{OUTCOME}.part", *printed):
            with suppress(OSError):
                os.unlink(self._path(name))
        if "sandbox" not in self._task:
            with suppress(OSError):  # the call has left files there
                os.rmdir(self._directory)

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


@cache
def _wanted() -> tuple[str, str, str]:
    """Return Python's version, the command that installs Rhapsody, and the protocol's version."""
    from rhapsody._version import __version__  # reads metadata

    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return python, f"pip install rhapsody-core=={__version__}", str(PROTOCOL_VERSION)


def _program(task: TaskDescription, directory: str) -> TaskDescription:
    """Return the description of the executable task that makes a call."""
    here = not {"container", "conda", "venv"} & task.keys()
    files = [os.path.join(directory, name) for name in (CALL, OUTCOME)]
    program: TaskDescription = {
        "uid": task["uid"],
        "name": task["name"],
        "function": None,
        "executable": sys.executable if here else "python3",
        "args": (),
        "kwargs": {},
        "is_service": False,
        "task_backend_specific_kwargs": {},
        "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        "arguments": ["-c", _START, *_wanted(), *files],
        "sandbox": directory,
        "capture": task.get("capture", True) is not False,
    }
    for key in ("resources", "environment", *SETTINGS):
        if key in task:
            program[key] = task[key]  # type: ignore[literal-required]
    if "container" not in task:  # as for other functions; a container may not have it
        program["cwd"] = os.getcwd()
    wrap_command(program, here=True)  # a list, which needs no shell
    return program
