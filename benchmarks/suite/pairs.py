"""Contestants that run pairs: a program that writes a file, and a function that reads it."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.suite.contestant import SLOTS, Contestant
from benchmarks.suite.graphs import Graph, Task
from benchmarks.suite.ours import Threads
from benchmarks.suite.peers import ParslThreads


def size_of(file: Any) -> int:
    """Read a file and return its length."""
    return len(Path(file).read_text())


def pairs(count: int) -> Graph:
    """Return a graph of pairs, each of which counts as one task."""
    return [Task(size_of)] * count


def directory_of(contestant: Contestant) -> str:
    """Make a directory for a contestant, with the file `source.txt` that all programs copy."""
    directory = contestant.stack.enter_context(tempfile.TemporaryDirectory())
    Path(directory, "source.txt").write_text("text")
    return directory


class Journaled(Threads):
    """Files with a journal, as in `rhapsody run`."""

    title = "Rhapsody"
    options: ClassVar[dict[str, Any]] = {"journal": "pairs.sqlite", "resume": False}
    name = "copy-{}.txt"

    async def start(self) -> None:
        """Start an engine with two tasks."""
        await super().start()
        self.source = f"{directory_of(self)}/source.txt"
        self.numbers = itertools.count()
        self.read = self.flow.function_task(size_of)
        self.copy = self.flow.executable_task(copied)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call both tasks of a pair."""
        from rhapsody import InputFile, OutputFile

        output = OutputFile(self.name.format(next(self.numbers)))
        return self.read(self.copy(InputFile(self.source), output).file(output.filename))


class Saved(Journaled):
    """Files that are also saved outside the sandboxes."""

    title = "Rhapsody, saved"
    name = "saved/copy-{}.txt"


def copied(source: Any, target: Any) -> list[Any]:
    """Return the command that copies a file."""
    return ["/bin/cp", source, target]


class ByHand(Contestant):
    """A directory, a process and a rename for each pair, on threads."""

    title = "by hand"

    async def start(self) -> None:
        """Start the threads."""
        self.directory = directory_of(self)
        self.pool = self.stack.enter_context(ThreadPoolExecutor(SLOTS))
        self.numbers = itertools.count()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[int]:
        """Submit a pair to the threads."""
        return self.pool.submit(self.pair, next(self.numbers))

    def pair(self, number: int) -> int:
        """Copy a file in a new directory, rename the copy and read it."""
        sandbox, saved = f"{self.directory}/{number}", f"{self.directory}/{number}.txt"
        os.mkdir(sandbox)
        command = ["/bin/cp", f"{self.directory}/source.txt", "copy.txt"]
        subprocess.Popen(command, cwd=sandbox, stdin=subprocess.DEVNULL).wait()
        os.rename(f"{sandbox}/copy.txt", saved)
        return size_of(saved)

    async def wait(self, futures: Sequence[Any]) -> None:
        """Await all futures."""
        await asyncio.gather(*map(asyncio.wrap_future, futures))


class ParslFiles(ParslThreads):
    """Parsl's apps with files."""

    title = "Parsl"

    async def start(self) -> None:
        """Load a configuration with two apps."""
        await super().start()
        self.file: Any = importlib.import_module("parsl.data_provider.files").File
        self.directory = directory_of(self)
        self.numbers = itertools.count()
        self.copy = self.parsl.bash_app(parsl_copy)
        self.read = self.parsl.python_app(parsl_read)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call both apps of a pair."""
        source = self.file(f"{self.directory}/source.txt")
        target = self.file(f"{self.directory}/{next(self.numbers)}.txt")
        return self.read(inputs=[self.copy(inputs=[source], outputs=[target]).outputs[0]])


def parsl_copy(inputs: Sequence[Any] = (), outputs: Sequence[Any] = ()) -> str:
    """Return the command that copies a file."""
    return f"/bin/cp {inputs[0]} {outputs[0]}"


def parsl_read(inputs: Sequence[Any] = ()) -> int:
    """Read a file and return its length."""
    return size_of(inputs[0].filepath)


PAIRS: list[type[Contestant]] = [Journaled, Saved, ParslFiles, ByHand]
