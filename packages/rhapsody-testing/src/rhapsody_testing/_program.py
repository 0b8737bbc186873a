"""Program that runs one task on the backend of a test class, in a process that can be killed.

The process imports the module of the test class, and calls `make_backend` of a new object of the
class. Fixtures do not run in the process, so the object receives the attributes that fixtures may
have set on the test object and on its classes.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import io
import os
import pickle
import sys
import types
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from rhapsody import TaskDescription
from rhapsody.sdk import TaskKind, dumps
from rhapsody_testing import _work
from rhapsody_testing._system import killed_programs_directory
from rhapsody_testing._tools import Driver

_SCRIPT = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from rhapsody_testing._program import main
main()
"""


async def start_program(
    suite: Any, base: type, kind: TaskKind, pipe: Path
) -> asyncio.subprocess.Process:
    """Start a program that runs a task, which holds a named pipe open.

    The standard error of the program is written to the file `program.err` next to the pipe.

    Args:
        suite: The test object, whose `make_backend` the program calls.
        base: The base class of the kit, whose attributes need not be sent.
        kind: The kind of the task.
        pipe: The path of the named pipe.

    Returns:
        The process.
    """
    cls = type(suite)
    message = io.BytesIO()
    pickle.dump([os.path.abspath(entry) for entry in sys.path], message)
    where = cls.__module__, getattr(sys.modules[cls.__module__], "__file__", None)
    pickle.dump((*where, cls.__qualname__, kind, pipe), message)
    message.write(_attributes(suite, base))
    with open(pipe.with_name("program.err"), "wb") as errors:  # noqa: ASYNC230 - a local file
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _SCRIPT),
            stdin=asyncio.subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            cwd=pipe.parent,
            env=os.environ | {"TMPDIR": str(killed_programs_directory())},
        )
    assert process.stdin is not None
    process.stdin.write(message.getvalue())
    process.stdin.close()
    return process


def _attributes(suite: Any, base: type) -> bytes:
    """Return the attributes of a test object and its classes, as far as they can be pickled."""
    classes = [cls for cls in reversed(type(suite).__mro__) if not issubclass(base, cls)]
    kept: dict[str, bytes] = {}
    for owner in (*classes, suite):
        for name, value in vars(owner).items():
            if not (name.startswith("_") or callable(value) or hasattr(value, "__get__")):
                with suppress(Exception):  # pickling runs the objects' own code
                    kept[name] = dumps(value)
    return pickle.dumps(kept)


def main() -> None:
    """Run the program that the standard input describes."""
    module, file, name, kind, pipe = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the kit
    suite = attrgetter(name)(_import(module, file))()
    for key, value in pickle.load(sys.stdin.buffer).items():  # noqa: S301
        with suppress(Exception):  # unpickling runs the objects' own code
            setattr(suite, key, pickle.loads(value))  # noqa: S301
    asyncio.run(_run(suite, kind, pipe))


def _import(name: str, file: str | None) -> types.ModuleType:
    """Import a module, from its file if it cannot be imported by its name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if file is None or not name.startswith(error.name or name):
            raise
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def _run(suite: Any, kind: TaskKind, pipe: Path) -> None:
    async with Driver(await suite.make_backend(), work_dir=pipe.parent) as driver:
        end = await driver.run_one(_task(driver, kind, str(pipe)))
        sys.exit(f"{end}")


def _task(driver: Driver, kind: TaskKind, pipe: str) -> TaskDescription:
    if kind == "executable":
        return driver.command(_work.hold_command(pipe))
    return driver.call(_work.hold_async if kind == "async_function" else _work.hold, pipe)
