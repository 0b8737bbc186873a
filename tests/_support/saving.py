"""Helpers for tests of saved files: tasks that write and read some."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsody import OutputFile, TaskFuture, WorkflowEngine
from rhapsody.sdk.runs import LIST
from tests._support.scripted import within


def files(directory: Path) -> set[str]:
    """Return the relative paths of all files in a directory, without manifests."""
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.name != LIST
    }


def shell(flow: WorkflowEngine) -> Any:
    """A task that runs a command, with the files it names."""

    @flow.executable_task
    def run(command: str, *files: Any) -> str:
        return command

    return run


def listing(flow: WorkflowEngine) -> Any:
    """A task that returns what it gets for a file, and what can be read there."""

    @flow.function_task
    def look(files: Any, *after: Any) -> tuple[Any, list[str], str | None]:
        inside = all(Path(path).is_absolute() and ".task." in str(path) for path in files)
        assert inside
        where = os.fspath(files) if files.directory else None
        return files, [path.read_text() for path in files], where

    return look


PLOTS = "mkdir -p plots/deep && echo 2 > plots/b.png && echo 1 > plots/a.png && "
PLOTS += "echo 3 > plots/deep/c.png"


async def held_open(
    here: Path, flow: WorkflowEngine, output: Any, command: str
) -> tuple[TaskFuture[Any], Path]:
    """A task that runs until something is written to the pipe."""
    started, gate = here / "started", here / "gate"
    os.mkfifo(started)
    os.mkfifo(gate)

    @flow.executable_task
    def slow(out: Any) -> str:
        return f"echo > {started}; cat {gate} > /dev/null; {command}"

    future = slow(output)
    await within(asyncio.to_thread(started.read_text))
    return future, gate


def writer(flow: WorkflowEngine) -> Callable[..., Any]:
    """A task that writes a word into its output file, and reads what else it gets."""

    @flow.executable_task
    def write(word: str, out: OutputFile, *others: Any) -> str:
        return f"echo {word} > {out}; echo scratch > scratch"

    return write
