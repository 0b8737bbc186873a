"""The tasks of a recorded workflow, run once more: each lasts as long as it did, times a scale.

A task sleeps, so that a hundred fit on one core. Values go from parents to children as in any
workflow, so that whatever a backend does about dependencies is part of what is measured.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rhapsody.cli.output import CommandError
from rhapsody.data import InputFile, OutputFile
from rhapsody.errors import describe_error
from rhapsody.wfformat.instance import RecordedFile, RecordedTask, parents_first
from rhapsody.wfformat.schedules import slots_of

if TYPE_CHECKING:
    from rhapsody.engine import WorkflowEngine
    from rhapsody.engine.tasks import Task
    from rhapsody.task import TaskFuture

WARM_UP: float = 0.001
"""Seconds that tasks last which start the workers, before the time is taken."""

_BLOCK = 1 << 20


def task_function() -> Callable[..., None]:
    """The function of every task: made here, so that it goes to other machines by value."""
    import time

    early = 0.00015  # a sleep ends about so much too late

    def replayed(
        seconds: float, inputs: Sequence[Any], outputs: Sequence[tuple[Any, int]], *_: Any
    ) -> None:
        end = time.perf_counter() + seconds
        for path in inputs:
            with open(path, "rb") as file:
                while file.read(1 << 20):
                    pass
        for path, size in outputs:
            with open(path, "wb") as file:
                for begin in range(0, size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - begin)))
        rest = end - time.perf_counter()
        if rest > early:
            time.sleep(rest - early)
        while time.perf_counter() < end:
            pass

    return replayed


class Replay:
    """A recorded workflow that is to be run.

    Args:
        tasks: Its tasks, with the seconds that each is to last.
        urgency: Which of the ready tasks go first, see `wfformat.schedules.list_schedule`.
        files: What sizes of files are multiplied by; `None` for no files.
        directory: Where files are made that no task writes; needed where there are files.
    """

    def __init__(
        self,
        tasks: Sequence[RecordedTask],
        urgency: Mapping[str, float] | None = None,
        files: float | None = None,
        directory: Path | None = None,
    ) -> None:
        self._tasks = sorted(parents_first(tasks), key=lambda task: bool(task.parents))
        self._by_id = {task.id: task for task in self._tasks}
        self._files = files
        self._directory = directory
        levels = sorted(set(urgency.values())) if urgency else []
        ranks = {level: rank for rank, level in enumerate(levels, 1)}
        self._priorities = {task: ranks[level] for task, level in (urgency or {}).items()}
        self._names: dict[tuple[str, str], str] = {}

    async def run(self, flow: WorkflowEngine, slots: int) -> float:
        """Runs the tasks.

        Args:
            flow: The engine.
            slots: How many tasks of one core run at once.

        Returns:
            The seconds from the first call to the end of the last task.

        Raises:
            CommandError: A file cannot be made, read or written.
        """
        task = flow.function_task(cache=False)(task_function())
        variants = {each: _variant(task, *each) for each in map(self._needs, self._tasks)}
        try:
            calls = [
                (each, variants[self._needs(each)], *self._files_of(each)) for each in self._tasks
            ]
        except OSError as error:
            raise CommandError(f"an input file cannot be made: {describe_error(error)}") from error
        gc.collect()  # not while the time is taken, and before the workers start: it empties caches
        workers = [task(WARM_UP, (), ()) for _ in range(min(slots, len(self._tasks)))]
        await asyncio.gather(*(task(WARM_UP, (), (), each) for each in workers))
        futures: dict[str, TaskFuture[None]] = {}
        begin = perf_counter()
        first = sum(not each.parents for each in self._tasks)
        for number, (each, call, inputs, outputs) in enumerate(calls):
            if number == first:
                await asyncio.sleep(0)  # what waits for nothing begins, as in any program
            parents = [futures[parent] for parent in each.parents]
            futures[each.id] = call(each.runtime, inputs, outputs, *parents)
        try:
            await asyncio.gather(*futures.values())
        except OSError as error:  # tasks read and write files
            raise CommandError(f"a task has failed: {describe_error(error)}") from error
        return perf_counter() - begin

    def _needs(self, task: RecordedTask) -> tuple[int, int]:
        return slots_of(task), self._priorities.get(task.id, 0)

    def _files_of(
        self, task: RecordedTask
    ) -> tuple[tuple[InputFile, ...], tuple[tuple[OutputFile, int], ...]]:
        """What a task reads and writes; what no parent writes is made now.

        A task that writes a file makes its own: others may write one of the same name.
        """
        if self._files is None:
            return (), ()
        written = {
            file.id: self._name(file, parent)
            for parent in task.parents
            for file in self._by_id[parent].outputs
        }
        inputs = tuple(InputFile(written.get(file.id) or self._made(file)) for file in task.inputs)
        outputs = tuple(
            (OutputFile(self._name(file, task.id)), self._size(file)) for file in task.outputs
        )
        return inputs, outputs

    def _name(self, file: RecordedFile, writer: str = "") -> str:
        """What a task's file is called here: recorded names may have directories in them."""
        return self._names.setdefault((writer, file.id), f"replayed-{len(self._names):06}")

    def _size(self, file: RecordedFile) -> int:
        return round((file.size or 0) * (self._files or 0))

    def _made(self, file: RecordedFile) -> str:
        """The path of a file that is there before the workflow begins."""
        assert self._directory is not None
        path = self._directory / self._name(file)
        if not path.exists():
            with path.open("wb") as made:
                for begin in range(0, self._size(file), _BLOCK):
                    made.write(bytes(min(_BLOCK, self._size(file) - begin)))
        return str(path)


def _variant(task: Task[..., None], cores: int, priority: int) -> Task[..., None]:
    """The task with these settings; the same one where it has them."""
    if cores > 1:
        task = task.options(resources={"cores": cores})
    return task.options(priority=priority) if priority else task
