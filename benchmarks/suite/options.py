"""The cost of options: contestants that differ in one option from an engine without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from benchmarks.suite.contestant import Contestant
from benchmarks.suite.graphs import Task
from benchmarks.suite.ours import Noop, Threads


class Plain(Noop):
    """No options."""

    title = "plain"


class Journalled(Noop):
    """A journal that records results."""

    title = "journal"
    options: ClassVar[dict[str, Any]] = {"journal": "journal.sqlite", "resume": False}


class Retries(Noop):
    """Two retries, which no task needs."""

    title = "retries"
    options: ClassVar[dict[str, Any]] = {"retries": 2}


class Timeout(Noop):
    """A timeout that no task reaches."""

    title = "timeout"
    options: ClassVar[dict[str, Any]] = {"timeout": 600}


class Progress(Noop):
    """Lines of progress."""

    title = "progress"
    options: ClassVar[dict[str, Any]] = {"progress": "lines"}


class Trace(Noop):
    """A trace file with all events."""

    title = "trace"
    options: ClassVar[dict[str, Any]] = {"trace": "trace.jsonl"}


OPTIONS: list[type[Contestant]] = [Plain, Journalled, Retries, Timeout, Progress, Trace]


def write(path: Any) -> None:
    """Write a small file."""
    Path(path).write_text("text")


WRITING = Task(write, ("file.txt",))


class ByItself(Threads):
    """Functions that each write an undeclared file to a directory."""

    title = "written directly"
    number = 0

    def submit(self, function: Any, *arguments: Any) -> Any:
        """Call a task; each writing task receives a different path."""
        if function is not write:
            return super().submit(function, *arguments)
        self.number += 1
        return super().submit(function, self.place(f"files/{self.number}.txt"))

    def place(self, path: str) -> Any:
        """Return the argument of the function."""
        Path("files").mkdir(exist_ok=True)
        return Path(path).absolute()


class Declared(ByItself):
    """Functions that declare a file, which stays in the sandbox."""

    title = "declared"

    def place(self, path: str) -> Any:
        """Return a declared file."""
        from rhapsody import OutputFile

        return OutputFile(Path(path).name)


class Saved(ByItself):
    """Functions that declare a file, which is saved outside the sandbox."""

    title = "declared and saved"

    def place(self, path: str) -> Any:
        """Return a declared file with a destination."""
        from rhapsody import OutputFile

        return OutputFile(f"saved/{Path(path).name}")


FILES: list[type[Contestant]] = [ByItself, Declared, Saved]
