"""Keys of tasks of small programs, each loaded from a directory of its own."""

from __future__ import annotations

import ast
import builtins
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rhapsody.builtin.journal.files import FileDigests
from rhapsody.builtin.journal.keys import Key, Keys
from rhapsody.builtin.journal.program import Sources, Surroundings

SOURCES = Sources()
SOURCES.process_start = sys.maxsize  # programs are written while it is there

_numbers = itertools.count()


def keys_in(directory: Path) -> Keys:
    """Makes keys as a run of the program in a directory does, with sources read once for all."""
    program = Surroundings(directory, FileDigests())
    program.sources = SOURCES
    return Keys(program)


def described(function: Any, *args: Any, **more: Any) -> dict[str, Any]:
    """The description of a task that calls a function."""
    task = {
        "uid": "e.task.000001.1",
        "name": "part",
        "function": function,
        "executable": None,
        "args": args,
        "kwargs": {},
        "is_service": False,
        "task_backend_specific_kwargs": {},
        "metadata": {},
    }
    if specific := more.get("task_backend_specific_kwargs"):
        task["result_settings"] = sorted(specific)
    return task | more


def key_of(keys: Keys, function: Any, *args: Any, **more: Any) -> Key:
    """The key of a call without settings and input files."""
    return keys.of(described(function, *args, **more), {}, {})


def write(directory: Path, files: Mapping[str, str]) -> None:
    """Writes a program, which begins in its `main.py`."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@contextmanager
def loaded(directory: Path, module: str = "main") -> Iterator[ModuleType]:
    """Imports a program's module, and forgets it and what it imported."""
    before, environment, names = set(sys.modules), dict(os.environ), set(vars(builtins))
    path, arguments, command = sys.path.copy(), sys.argv, sys.orig_argv
    sys.path[:0] = [str(directory), str(directory / "site-packages")]
    try:
        yield importlib.import_module(module)
    finally:
        sys.path[:], sys.argv, sys.orig_argv = path, arguments, command
        os.environ.clear()
        os.environ.update(environment)
        for name in set(vars(builtins)) - names:
            delattr(builtins, name)
        for name in set(sys.modules) - before:
            found = sys.modules[name]
            places = [getattr(found, "__file__", None) or "", *getattr(found, "__path__", ())]
            if any(place.startswith(str(directory)) for place in places):
                del sys.modules[name]


def key_in(
    directory: Path,
    files: Mapping[str, str],
    call: Callable[[ModuleType], Any] = lambda main: main.f,
) -> tuple[bytes, Mapping[str, str]]:
    """The key of a program's task and what is in it; the program is written anew each time."""
    directory = directory / f"checkout{next(_numbers)}"
    write(directory, files)
    with loaded(directory) as main:
        keys = keys_in(directory)
        key = key_of(keys, call(main), 1)
        return key.digest, {} if key.code is None else ast.literal_eval(keys.codes[key.code])[
            "parts"
        ]


def work(*args: Any, **more: Any) -> Any:
    """Return the arguments; the function of tasks that only inspect them."""
    return args


def twice(keys: Keys, one: Any, other: Any) -> tuple[bytes, bytes]:
    """The digests of the keys of two calls, with one argument each."""
    return key_of(keys, work, one).digest, key_of(keys, work, other).digest
