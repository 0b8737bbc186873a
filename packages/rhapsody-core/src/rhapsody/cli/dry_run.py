"""`rhapsody run --dry-run`: the values that its tasks give, where it stops, and its graphs."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, cast

from rhapsody.backends.noop import DUMMY_OUTPUT, NoopExecutionBackend
from rhapsody.cli.engines import Engines
from rhapsody.cli.output import table
from rhapsody.errors import DependencyFailureError
from rhapsody.plugins.specs import LookupTask, Recorded, hookimpl
from rhapsody.staging.outputs import future_uid

if TYPE_CHECKING:
    from rhapsody.cli.recording import Recording
    from rhapsody.engine import WorkflowEngine

OURS: str = os.path.dirname(os.path.dirname(__file__))


class NoValueError(Exception):
    """A program looks at the value of a task that was not run."""


class NoValue(str):
    """The value of a task that was not run: it can be handed on, printed and formatted.

    Whatever else a program does with it would go another way with the real one.
    """

    __slots__ = ()


def _refuse(*_: object, **__: object) -> NoReturn:
    raise NoValueError("the program looks at the value of a task, and a dry run has none")


LOOKS: tuple[str, ...] = (
    *("lt", "le", "eq", "ne", "ge", "gt", "hash", "bool", "len", "iter", "contains", "getitem"),
    *("int", "float", "index", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"),
    "mod",  # not `rmod`, which formats it
)
"""Operations that look at a value, beside all methods of a text."""

for _name in (*(f"__{name}__" for name in LOOKS), *(n for n in dir(str) if n[0] != "_")):
    setattr(NoValue, _name, _refuse)


class DryRunBackend(NoopExecutionBackend):
    """Runs nothing, and gives values that cannot be looked at."""

    output: str = NoValue(DUMMY_OUTPUT)

    def __init__(self) -> None:
        super().__init__()


class Preview(Engines):
    """Looks up in a copy of the journal what `--resume` would reuse, for the engines of a dry run.

    Args:
        recorded: Opens the copy for the first engine.
    """

    def __init__(self, recorded: Recording) -> None:
        super().__init__(dry_run=True)
        self._recorded = recorded
        self._missing: dict[str, tuple[str, Collection[str | None]]] = {}
        """By the path of a missing file: the reused task that wrote it, and that task's inputs."""

    @hookimpl
    async def rhapsody_lookup_results(
        self, engine: WorkflowEngine, tasks: Sequence[LookupTask]
    ) -> Sequence[Recorded | None]:
        """Find results, and note for each task whether it would run."""
        verdicts = self.verdicts.setdefault(engine.uid, {})
        needs = {uid: given for uid, _, given in engine.graph}
        asked: dict[int, LookupTask] = {}
        for number, task in enumerate(tasks):
            uid = future_uid(task)
            running = [
                each for each in needs.get(uid, ()) if verdicts.get(each, "").startswith("runs")
            ]
            if running:
                verdicts[uid] = f"runs: it needs {running[0]}, which runs"
            elif _holds_no_value((task["args"], task["kwargs"])):
                verdicts[uid] = "runs: it needs the value of a task that runs"
            else:
                asked[number] = task
        results: list[Recorded | None] = [None] * len(tasks)
        journal = self._recorded.preview
        found = None if journal is None else await journal.preview(list(asked.values()))
        for (number, task), (result, verdict) in zip(asked.items(), found or (), strict=False):
            uid = future_uid(task)
            verdicts[uid], results[number] = verdict, result
            if result is not None and result.files is not None:
                for name in result.files.gone:
                    self._missing[result.files.paths[name]] = uid, task["inputs"].values()
        for task in tasks:
            uid = future_uid(task)
            if verdicts.get(uid, "").startswith("runs"):
                self._regenerate(verdicts, uid, task["inputs"].values())
        return results

    def _regenerate(
        self, verdicts: dict[str, str], uid: str, inputs: Collection[str | None]
    ) -> None:
        """Note which reused tasks run again because a task that runs reads their missing files."""
        readers = [(uid, inputs)]
        while readers:
            reader, inputs = readers.pop()
            for path in inputs:
                producer = self._missing.pop(path or "", None)
                if producer is not None:
                    name = os.path.basename(path or "")
                    verdict = f"reused, but runs again for {name}, which {reader} reads"
                    verdicts[producer[0]] = verdict
                    readers.append(producer)


def _holds_no_value(value: object) -> bool:
    if type(value) is dict:
        return any(map(_holds_no_value, value.values()))
    if type(value) in (list, tuple, set, frozenset):
        return any(map(_holds_no_value, cast("Iterable[object]", value)))
    return type(value) is NoValue


def graph(engine: WorkflowEngine, verdicts: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines that show the calls of a dry run and their dependencies.

    Args:
        engine: The engine.
        verdicts: Whether each task would run with `--resume`, and why.
    """
    rows = [[uid, name, ", ".join(needs) or "-"] for uid, name, needs in engine.graph]
    if not rows:
        return ["no task was called"]
    header = ["TASK", "NAME", "DEPENDS ON"]
    if verdicts is not None:
        header.append("WITH --resume")
        rows = [[*row, verdicts.get(row[0], "runs")] for row in rows]
    return table(header, rows)


def stop(error: BaseException, path: str) -> str:
    """Says in a line where in the user's code a dry run has stopped, and by what."""
    error = origin(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = next((one for one in reversed(frames) if _is_users(one.filename, path)), frames[-1])
    what = str(error)
    if not isinstance(error, NoValueError):
        what = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
        what += f" (tasks give {DUMMY_OUTPUT!r} in a dry run)"
    return (
        f"the dry run stopped at {os.path.relpath(place.filename)}, line {place.lineno}: {what}; "
        "this is the graph up to there"
    )


def origin(error: BaseException) -> BaseException:
    """What failed first, where an error tells of others."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, DependencyFailureError) and error.root_cause is not None:
            error = error.root_cause
        else:
            return error


def _is_users(file: str, path: str) -> bool:
    """Whether a file is the program's, or another of the user's own."""
    paths = sysconfig.get_paths()
    others = {paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")} | {OURS}
    return file == path or not (
        file.startswith("<") or any(file.startswith(f"{other}{os.sep}") for other in others)
    )
