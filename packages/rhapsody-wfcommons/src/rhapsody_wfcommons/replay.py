"""Replay of a recorded workflow: each task takes its recorded time, multiplied by a scale.

The tasks sleep, so that a hundred of them can run on one core; in a simulation they do not run.
Values are passed from parents to children as in any workflow, so the measured time includes the
backend's handling of dependencies.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rhapsody import (
    InputFile,
    OutputFile,
    RhapsodyError,
    TaskDescription,
    TaskFuture,
    TaskSettings,
    WorkflowEngine,
)
from rhapsody_wfcommons.instance import RecordedFile, RecordedTask, parents_first
from rhapsody_wfcommons.schedules import slots_of

WARM_UP: float = 0.001
"""Duration in seconds of the tasks that start the workers before the measurement."""

_BLOCK = 1 << 20


def task_function() -> Callable[..., None]:
    """Return the function that all tasks run; nested so that it is pickled by value."""
    import time

    early = 0.00015  # seconds by which a sleep usually ends too late

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


def recorded_duration(task: TaskDescription) -> float:
    """Return the duration of a task in seconds, for simulations."""
    return float(task["args"][0])


class Replay:
    """Recorded workflow that can be run on an engine.

    Args:
        tasks: The tasks. Their `runtime` is the duration in seconds of each task in the replay.
        urgency: Priority by task id; see `list_schedule`.
        files: Factor for the sizes of files, or `None` for no files.
        directory: Directory for input files that no task writes; required with `files`.
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
        """Run the tasks and measure the time.

        Args:
            flow: The engine.
            slots: Number of tasks with one core that can run at once. As many short tasks run
                before the measurement; 0 for none.

        Returns:
            The time in seconds, on the engine's clock, from the first call to the end of the last
            task.

        Raises:
            RhapsodyError: A file cannot be created, read or written.
        """
        task = flow.function_task(cache=False)(task_function())
        # One variant of the task for each combination of settings is cheaper than one per call.
        variants = {
            needs: task.options(**_settings(*needs)) if needs != (1, 0) else task
            for needs in map(self._needs, self._tasks)
        }
        try:
            calls = [
                (each, variants[self._needs(each)], *self._files_of(each)) for each in self._tasks
            ]
        except OSError as error:
            raise RhapsodyError(f"cannot create an input file: {_describe(error)}") from error
        gc.collect()  # collect garbage now, not during the measurement
        workers = [task(WARM_UP, (), ()) for _ in range(min(slots, len(self._tasks)))]
        await asyncio.gather(*(task(WARM_UP, (), (), each) for each in workers))
        futures: dict[str, TaskFuture[None]] = {}
        begin = flow.clock.monotonic()
        first = sum(not each.parents for each in self._tasks)
        for number, (each, call, inputs, outputs) in enumerate(calls):
            if number == first:
                await asyncio.sleep(0)  # let the first tasks start, as in any program
            parents = [futures[parent] for parent in each.parents]
            futures[each.id] = call(each.runtime, inputs, outputs, *parents)
        try:
            await asyncio.gather(*futures.values())
        except OSError as error:  # tasks read and write files
            raise RhapsodyError(f"a task failed: {_describe(error)}") from error
        return flow.clock.monotonic() - begin

    def _needs(self, task: RecordedTask) -> tuple[int, int]:
        """Return a task's number of slots and its priority."""
        return slots_of(task), self._priorities.get(task.id, 0)

    def _files_of(
        self, task: RecordedTask
    ) -> tuple[tuple[InputFile, ...], tuple[tuple[OutputFile, int], ...]]:
        """Return the files of a task, and create inputs that no parent writes.

        The outputs of each task have separate names, because several tasks may write files with
        the same recorded name.
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
        """Return the name of a file in the replay. Unlike recorded names, it has no directories."""
        return self._names.setdefault((writer, file.id), f"replayed-{len(self._names):06}")

    def _size(self, file: RecordedFile) -> int:
        return round((file.size or 0) * (self._files or 0))

    def _made(self, file: RecordedFile) -> str:
        """Return the path of an input that no parent writes; create the file if it is missing."""
        assert self._directory is not None
        path = self._directory / self._name(file)
        if not path.exists():
            with path.open("wb") as made:
                for begin in range(0, self._size(file), _BLOCK):
                    made.write(bytes(min(_BLOCK, self._size(file) - begin)))
        return str(path)


def _settings(cores: int, priority: int) -> TaskSettings:
    settings: TaskSettings = {}
    if cores > 1:
        settings["resources"] = {"cores": cores}
    if priority:
        settings["priority"] = priority
    return settings


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
