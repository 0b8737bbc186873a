"""Count the calls to the file system per task at several commits, using strace.

Prints two figures for each kind of task: the calls that change a directory (creating, linking,
renaming and removing files and directories), and the other calls that name or list files (`stat`,
`open`, `getdents` and the like). Reading and writing are not counted. On network file systems, and
on some disks after many removals, each of these calls takes longer than the engine needs for a
task.

    python benchmarks/metadata.py [COMMIT ...] [--only program pair] [--size 200] [--smoke]

Only calls below the directory of the project count, and only those of the process that calls the
tasks and of its helpers, not those of the commands. Each figure is the difference between a run
with some tasks and one with none, both after a warm-up and including the end of the engine, divided
by the number of tasks.

The part `left` runs tasks with one output each, and counts the files that remain in the directory
of the run.

Without a commit, the working tree is measured. Requires `strace`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine

ROOT = Path(__file__).absolute().parents[1]
FOLDER = ROOT / "benchmarks"
if __name__ == "__main__":  # dask.py in this folder would hide Dask itself
    sys.path[:] = [str(ROOT), *(each for each in sys.path if Path(each).absolute() != FOLDER)]

from benchmarks.checkouts import checkout  # noqa: E402

BEGIN, END = "/rhapsody-metadata-begin", "/rhapsody-metadata-end"
"""Paths with which a measured program marks the start and the end of its tasks in the trace."""

STARTS = ("clone", "clone3", "fork", "vfork")
CHANGES = frozenset({
    "mkdir", "mkdirat", "creat", "link", "linkat", "symlink", "symlinkat", "rename", "renameat",
    "renameat2", "unlink", "unlinkat", "rmdir", "mknod", "mknodat",
})  # fmt: skip
NOT_COUNTED = frozenset(("execve", "execveat", *STARTS))
TRACED = "%file,getdents,getdents64,fstat,fstatfs,fchdir,fchmod,futimesat,utimensat,%process"
STRACE = ("strace", "-f", "-y", "-qq", "--seccomp-bpf", "-e", f"trace={TRACED}")

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")
_RETURNED = re.compile(r"\) += (\d+)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"(?:\b\d+|AT_FDCWD)<([^<>]*)>")


class Counts(NamedTuple):
    """Calls to the file system.

    Attributes:
        changes: The number of calls that change a directory.
        others: The number of other calls.
    """

    changes: float
    others: float


def count(lines: Iterable[str], directory: str) -> Counts:
    """Count the calls below a directory between the marks of a trace.

    Processes that start between the marks and execute a program, and their children, are commands,
    whose calls are not counted.

    Args:
        lines: The lines of `strace -f -y`.
        directory: The directory.
    """
    changes = others = 0
    measuring = False
    commands: set[str] = set()
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        process, resumed, name, rest = match.groups()
        name = name or resumed
        if name in STARTS and process in commands and (child := _RETURNED.search(rest)):
            commands.add(child[1])
        if resumed:
            continue
        if f'"{BEGIN}"' in rest or f'"{END}"' in rest:
            measuring = f'"{BEGIN}"' in rest
        elif measuring and name in ("execve", "execveat"):
            commands.add(process)
        elif (
            measuring
            and process not in commands
            and name not in NOT_COUNTED
            and _is_below(directory, rest)
        ):
            changed = name in CHANGES or "O_CREAT" in rest
            changes, others = changes + changed, others + (not changed)
    return Counts(changes, others)


def _is_below(directory: str, arguments: str) -> bool:
    """Return True if the arguments of a call name a file in a directory, or the directory."""
    parts = arguments.partition(") = ")[0]
    places = [place.removesuffix(" (deleted)") for place in _DESCRIPTOR.findall(parts)]
    names = [name for name in _STRING.findall(parts) if name]
    # A relative path without a descriptor begins in the current directory, the project's.
    start = places[0] if places else directory
    paths = [os.path.join(start, name) for name in names] or places
    return any(path == directory or path.startswith(directory + os.sep) for path in paths)


# The measured programs.


async def _program(flow: WorkflowEngine, size: int) -> None:
    @flow.executable_task
    async def program() -> list[str]:
        return ["/bin/true"]

    await asyncio.gather(*(program() for _ in range(size)))


async def _pair(flow: WorkflowEngine, size: int) -> None:
    from rhapsody import InputFile, OutputFile

    @flow.executable_task
    async def write(_: OutputFile) -> str:
        return "echo 1 > out.txt"

    @flow.executable_task
    async def read(_: InputFile) -> list[str]:
        return ["cat", "out.txt"]

    written = [write(OutputFile("out.txt")) for _ in range(size)]
    await asyncio.gather(*(read(future.file("out.txt")) for future in written))


async def _function_with_input(flow: WorkflowEngine, size: int) -> None:
    from rhapsody import InputFile

    given = f"{os.getcwd()}/given.txt"

    @flow.function_task
    def length(file: InputFile) -> int:
        return len(os.fspath(file))

    await asyncio.gather(*(length(InputFile(given)) for _ in range(size)))


async def _function(flow: WorkflowEngine, size: int) -> None:
    @flow.function_task
    def nothing() -> None: ...

    await asyncio.gather(*(nothing() for _ in range(size)))


async def _writers(flow: WorkflowEngine, size: int) -> None:
    from rhapsody import OutputFile

    @flow.function_task
    def write(file: OutputFile) -> None:
        Path(file).write_text("1")

    await asyncio.gather(*(write(OutputFile("out.txt")) for _ in range(size)))


class Part(NamedTuple):
    """Part of the benchmark.

    Attributes:
        title: The description of the tasks.
        run: The function that runs a number of them in an engine.
    """

    title: str
    run: Callable[[WorkflowEngine, int], Awaitable[None]]


PARTS = {
    "program": Part("program without files", _program),
    "pair": Part("program with one output, and a program that reads it", _pair),
    "input": Part("function with one input file", _function_with_input),
    "function": Part("function without files", _function),
}
LEFT = Part("files left by functions with one output each", _writers)

WARM_UP = 4


async def work(name: str, size: int) -> None:
    """Run tasks in the current directory, with marks for the trace after the warm-up."""
    from rhapsody import LocalExecutionBackend, WorkflowEngine

    run = (PARTS | {"left": LEFT})[name].run
    backend = LocalExecutionBackend(resources={"cores": 2})
    async with WorkflowEngine.create(backend, handle_signals=False) as flow:
        await run(flow, WARM_UP)
        os.access(BEGIN, os.F_OK)
        if size:
            await run(flow, size)
    os.access(END, os.F_OK)


# The measurement.


def _run(place: Path, name: str, size: int, directory: str, *prefix: str) -> None:
    """Run `work` with the packages of a checkout in a directory.

    Raises:
        SystemExit: It failed; its message was printed.
    """
    folders = [str(folder) for folder in sorted(place.glob("packages/*/src"))]
    command = [*prefix, sys.executable, str(FOLDER / "metadata.py"), "--work", name, str(size)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    if subprocess.run(command, cwd=directory, env=environment, check=False).returncode:
        raise SystemExit(f"{name} failed with the packages of {place}")


def calls(place: Path, name: str, size: int) -> Counts:
    """Return the calls per task, with the packages of a checkout."""
    found = []
    for tasks in (0, size):
        with tempfile.TemporaryDirectory() as top:
            directory, trace = os.path.realpath(f"{top}/project"), f"{top}/trace"
            os.mkdir(directory)
            _run(place, name, tasks, directory, *STRACE, "-o", trace)
            with open(trace, encoding="utf-8", errors="replace") as lines:
                found.append(count(lines, directory))
    none, all_ = found
    return Counts((all_.changes - none.changes) / size, (all_.others - none.others) / size)


def files_left(place: Path, size: int) -> tuple[int, int, int]:
    """Return the numbers of outputs, other files and directories that tasks leave."""
    with tempfile.TemporaryDirectory() as directory:
        _run(place, "left", size, directory)
        run = Path(directory, ".rhapsody")
        paths = [path for path in run.rglob("*") if path.is_symlink() or not path.is_dir()]
        outputs = sum(path.name == "out.txt" for path in paths)
        # The warm-up leaves outputs, too.
        return outputs - WARM_UP, len(paths) - outputs, sum(map(Path.is_dir, run.rglob("*")))


def main() -> None:
    """Measure each part at each commit, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "left"], default=[*PARTS, "left"])
    parser.add_argument("--size", type=int, default=200, help="number of traced tasks")
    parser.add_argument("--left", type=int, default=10_000, help="number of tasks of `left`")
    parser.add_argument("--smoke", action="store_true", help="check with tiny sizes that it runs")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--work", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        Path("given.txt").write_text("1")
        asyncio.run(work(options.work[0], int(options.work[1])))
        return
    size, left = (5, 20) if options.smoke else (options.size, options.left)
    figures: dict[str, dict[str, Any]] = {}
    for commit in options.commits or [None]:
        shown = figures[commit or "working tree"] = {}
        print(f"\n{commit or 'working tree'}: {size} tasks")
        print(f"  {'task':54}{'changes':>8}{'others':>8}")
        with checkout(commit) as place:
            for name in options.only:
                if name != "left":
                    shown[name] = found = calls(place, name, size)
                    print(f"  {PARTS[name].title:54}{found.changes:8.2f}{found.others:8.2f}")
                    continue
                shown[name] = outputs, others, directories = files_left(place, left)
                text = f"{outputs:,} outputs, {others:,} others, {directories:,} directories"
                print(f"  {LEFT.title}, {left:,} tasks: {text}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
