"""`rhapsody run --dry-run`: prints the graph of a program without running the tasks.

Tasks return placeholders. If the program inspects a placeholder, the dry run stops at that line.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from rhapsody.backends.noop import DUMMY_OUTPUT, NoopExecutionBackend
from rhapsody.cli.graph import drawn
from rhapsody.cli.output import CommandError, complain, note, say, table
from rhapsody.cli.scripts import Script
from rhapsody.engine.core.backend_handles import WouldRunError
from rhapsody.environments import environment_fault
from rhapsody.errors import origin
from rhapsody.identity import AttemptId
from rhapsody.plugins.manager import PluginHook
from rhapsody.plugins.specs import LookupTask, Recorded, TaskCall, UsageError, hookimpl
from rhapsody.tracebacks import is_users_code

if TYPE_CHECKING:
    from rhapsody.engine import WorkflowEngine


FORMATS = {".mmd": "mermaid", ".dot": "dot", ".svg": "svg"}
"""The formats of graphs, by the suffix of the file."""


class NoValueError(Exception):
    """The program inspects the value of a task during a dry run."""


class NoValue(str):
    """Placeholder for the value of a task. It can be passed on, printed and formatted.

    Any other operation raises an error, because the program could branch on the real value.
    """

    __slots__ = ()


def _refuse(*_: object, **__: object) -> NoReturn:
    raise NoValueError("the program inspects the value of a task, which a dry run does not compute")


OPERATIONS: tuple[str, ...] = (
    *("lt", "le", "eq", "ne", "ge", "gt", "hash", "bool", "len", "iter", "contains", "getitem"),
    *("int", "float", "index", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"),
    "mod",  # not `rmod`, which formats the value
)
"""Special methods that inspect a value. They and the public methods of `str` raise an error."""

for _name in (*(f"__{name}__" for name in OPERATIONS), *(n for n in dir(str) if n[0] != "_")):
    setattr(NoValue, _name, _refuse)


class DryRunBackend(NoopExecutionBackend):
    """Backend that runs nothing and returns placeholders."""

    output: str = NoValue(DUMMY_OUTPUT)

    def __init__(self) -> None:
        super().__init__()


class DryRun:
    """Observer that prints the task graph of each engine in a dry run.

    If a plugin offers previews of recorded results, it also prints which results would be reused.

    Args:
        previews: The implementations of `rhapsody_preview_results`, of which the first is used.
    """

    def __init__(self, previews: Sequence[PluginHook]) -> None:
        self._preview = next(iter(previews), None)
        self._engines: list[WorkflowEngine] = []
        self._verdicts: dict[str, dict[str, str]] = {}
        """The reason why a task would run or be reused, by the uids of its engine and of the
        task."""
        self._missing: dict[str, tuple[str, Collection[str | None]]] = {}
        """The uid and inputs of the reused task that wrote each missing file, by path."""
        self._faults: dict[str, str] = {}
        """The name of the first task with each fault of an environment."""

    @hookimpl
    def rhapsody_workflow_started(self, engine: WorkflowEngine) -> None:
        """Record the engine."""
        self._engines.append(engine)

    @hookimpl
    def rhapsody_task_calls(self, calls: Sequence[TaskCall]) -> None:
        """Record which containers and environments are missing on this machine."""
        for call in calls:
            fault = environment_fault(call.settings, shared=True, here=False)
            if fault is not None:
                self._faults.setdefault(fault, call.name)

    @hookimpl
    async def rhapsody_lookup_results(
        self, engine: WorkflowEngine, tasks: Sequence[LookupTask]
    ) -> Sequence[Recorded | None] | None:
        """Look up the results of tasks, and record why each task would run or be reused."""
        if self._preview is None:
            return None
        verdicts = self._verdicts.setdefault(engine.uid, {})
        needs = {uid: given for uid, _, given in engine.graph}
        asked: dict[int, LookupTask] = {}
        for number, task in enumerate(tasks):
            uid = AttemptId.of(task["uid"]).task.label
            running = [
                each for each in needs.get(uid, ()) if verdicts.get(each, "").startswith("runs")
            ]
            if running:
                verdicts[uid] = f"runs: depends on {running[0]}, which runs"
            elif _holds_no_value((task["args"], task["kwargs"])):
                verdicts[uid] = "runs: depends on the value of a task that runs"
            else:
                asked[number] = task
        results: list[Recorded | None] = [None] * len(tasks)
        preview = self._preview.call(tasks=list(asked.values()))
        found = None if preview is None else await preview
        for (number, task), (result, verdict) in zip(asked.items(), found or (), strict=False):
            if task["is_service"]:  # it always runs, but the tasks that use it need not
                continue
            uid = AttemptId.of(task["uid"]).task.label
            verdicts[uid], results[number] = verdict, result
            if result is not None and result.files is not None:
                for name in result.files.missing:
                    self._missing[result.files.paths[name]] = uid, task["inputs"].values()
        for task in tasks:
            uid = AttemptId.of(task["uid"]).task.label
            if verdicts.get(uid, "runs").startswith("runs"):
                self._regenerate(verdicts, uid, task["inputs"].values())
        return results

    def _regenerate(
        self, verdicts: dict[str, str], uid: str, inputs: Collection[str | None]
    ) -> None:
        """Record the reused tasks that would run again because a task reads their missing files."""
        readers = [(uid, inputs)]
        while readers:
            reader, inputs = readers.pop()
            for path in inputs:
                producer = self._missing.pop(path or "", None)
                if producer is not None:
                    name = os.path.basename(path or "")
                    verdict = (
                        f"result reused, but the task runs again to recreate {name}, which "
                        f"{reader} reads"
                    )
                    verdicts[producer[0]] = verdict
                    readers.append(producer)

    def show(self) -> None:
        """Print the calls of each engine and their dependencies."""
        for engine in self._engines:
            if len(self._engines) > 1:
                say(f"engine {engine.uid}")
            rows = [[uid, name, _few(needs)] for uid, name, needs in engine.graph]
            header = ["TASK", "NAME", "DEPENDS ON"]
            verdicts = self._verdicts.get(engine.uid)
            if verdicts is not None:
                header.append("WITH --resume")
                rows = [[*row, verdicts.get(row[0], "runs")] for row in rows]
            for line in table(header, rows) if rows else ["no task was called"]:
                say(line)
            called = Counter(name for _, name, _ in engine.graph)
            if len(rows) > 1:
                counts = ", ".join(f"{count} {name}" for name, count in called.items())
                runs = sum(not _is_reused(row[-1]) for row in rows)
                more = "" if verdicts is None else f"; {runs or 'none'} would run"
                say(f"{len(rows)} tasks: {counts}{more}")
            for override, similar in engine.task_defaults.misspelled(called):
                complain(
                    f"{override.source}: no task named {override.pattern!r} was called; did you "
                    f"mean {similar!r}?"
                )

        for fault, name in self._faults.items():
            complain(f"task {name!r}, on this machine: {fault}")

    def draw(self, path: Path) -> None:
        """Write the graph of all engines, grouped by the names of the tasks, to a file.

        Args:
            path: The file, with a suffix of `FORMATS`.

        Raises:
            CommandError: The file cannot be written, or Graphviz is missing or fails.
            UsageError: The graph is too large.
        """
        from rhapsody.history.graph import Graph, Node

        graph, nodes, counts = Graph(), dict[str, int](), dict[str, Counter[str]]()
        for engine in self._engines:
            verdicts, node_of = self._verdicts.get(engine.uid, {}), dict[str, int]()
            for uid, name, needs in engine.graph:
                node = node_of[uid] = nodes.setdefault(name, len(nodes))
                outcome = "reused" if _is_reused(verdicts.get(uid, "runs")) else "waiting"
                counts.setdefault(name, Counter())[outcome] += 1
                graph.arrows.update((node_of[each], node) for each in needs if each in node_of)
        for name, found in counts.items():
            graph.nodes.append(Node(name, None, False, dict(sorted(found.items(), reverse=True))))
        try:
            path.write_text(drawn(graph, FORMATS[path.suffix]) + "\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"--graph: {path} cannot be written: {error.strerror}") from None

    def explains(self, error: BaseException, program: Script) -> bool:
        """Print the line of the user's code at which an error stopped the dry run, and the error.

        Returns:
            `True` if the error was printed. `False` if no engine had been created: the dry run
            cannot have caused the error, and nothing is printed.

        Raises:
            UsageError: The program passes a backend to an engine.
        """
        error = origin(error)
        if isinstance(error, WouldRunError):
            raise UsageError(
                f"{program.name} passes a backend to WorkflowEngine.create(...), which --dry-run "
                "does not allow: name the backend on the command line instead, with -b NAME"
            ) from None
        if not self._engines:
            return False
        frames = traceback.extract_tb(error.__traceback__)
        own = [each for each in frames if program.path == each.filename or _is_users(each.filename)]
        place = (own or frames)[-1]
        what = str(error)
        if not isinstance(error, NoValueError):
            what = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
            what += f" (in a dry run, tasks return {DUMMY_OUTPUT!r})"
        note(
            f"the dry run stopped at {os.path.relpath(place.filename)}, line {place.lineno}: "
            f"{what}. The graph up to this line:"
        )
        return True


def _holds_no_value(value: object) -> bool:
    if type(value) is dict:
        return any(map(_holds_no_value, value.values()))
    if type(value) in (list, tuple, set, frozenset):
        return any(map(_holds_no_value, cast("Iterable[object]", value)))
    return type(value) is NoValue


def _is_reused(verdict: str) -> bool:
    """Return True if a task would not run, according to its verdict."""
    return verdict.startswith("reused")


def _is_users(file: str) -> bool:
    return not file.startswith("<") and is_users_code(file)


def _few(uids: Sequence[str]) -> str:
    """Return the first uids as text: the longest text determines the width of a column."""
    more = f" and {len(uids) - LISTED} more" if len(uids) > LISTED else ""
    return f"{', '.join(uids[:LISTED])}{more}" or "-"


LISTED = 3
"""Maximum number of dependencies that are listed."""
