"""The measures. Each has a table in the report, with its contestants, its floor and its cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.suite import cases, floors, graphs, options, ours, pairs, peers, whole
from benchmarks.suite.cases import Case, fans, graph, programs, schedule
from benchmarks.suite.contestant import Contestant
from benchmarks.suite.graphs import Task

RECIPES = ("montage", "epigenomics", "seismology")
"""Names of wfcommons recipes."""

LARGE = 10_000_000
"""Bytes of a large argument or result."""


MIXED = "10 of 1 s among 1,000 of 1 ms"


class Budget(NamedTuple):
    """Upper limit for the cost of one contestant.

    Attributes:
        column: The case.
        ours: The contestant.
        reference: The contestant to compare with; empty if the limit is absolute.
        limit: The limit, as a multiple of the reference's cost.
        since: A smaller case; if given, the limit applies to the growth of the cost since then.
        more: True if the limit applies to the difference between the two contestants.
    """

    column: str
    ours: str
    reference: str
    limit: float
    since: str = ""
    more: bool = False


@dataclass(frozen=True)
class Measure:
    """One table of the report.

    Attributes:
        title: The title.
        unit: The unit of the figures.
        meaning: A sentence that explains the figures.
        contestants: The contestants; empty if `whole` measures all of them in one process.
        floor: The contestant whose cost is the unit of the ratios.
        cases: Function that returns the cases. Its arguments are True for a smoke run, and a
            directory with graphs.
        budgets: The limits for Rhapsody.
        whole: Function that measures all contestants. Its argument is True for a smoke run.
        needs: The required module, if any.
        slow: True if it runs only on request.
    """

    title: str
    unit: str
    meaning: str
    contestants: Sequence[type[Contestant]] = ()
    floor: str = ""
    cases: Callable[[bool, Path], Sequence[Case]] = lambda smoke, directory: ()
    budgets: Sequence[Budget] = field(default=())
    whole: Callable[[bool], whole.Found] | None = None
    needs: str = ""
    slow: bool = False


def shapes(smoke: bool) -> list[Case]:
    """Return the cases of graphs with many dependencies."""
    if smoke:
        return [
            graph("chain", 10, graphs.chain),
            graph("mesh", 9, graphs.mesh),
            graph("tree", 4, graphs.tree),
            graph("tangle", 10, partial(graphs.tangle, parents=5)),
        ]
    return [
        graph("chain", 1_000, graphs.chain),
        graph("mesh", 10_000, graphs.mesh),
        graph("tree", 4_096, graphs.tree),
        graph("tangle", 1_000, partial(graphs.tangle, parents=100)),
    ]


def functions(smoke: bool, directory: Path) -> list[Case]:
    """Return fans of up to 100,000 no-ops, and the other graphs.

    The largest fan is last, because it can slow down later cases.
    """
    if smoke:
        return [*fans(10, 100), *shapes(smoke)]
    return [*fans(10, 100, 1_000, 10_000), *shapes(smoke), *fans(100_000)]


def engine(smoke: bool, directory: Path) -> list[Case]:
    """Return the cases of `functions`, and a fan of a million no-ops."""
    return functions(smoke, directory) + ([] if smoke else fans(1_000_000))


def large(smoke: bool, directory: Path) -> list[Case]:
    """Return the cases with large arguments and large results."""
    size, count = (100_000, 4) if smoke else (LARGE, 20)
    take, make = Task(graphs.length, (bytes(size),)), Task(graphs.zeros, (size,))
    return [
        graph("arguments", count, partial(graphs.fan, task=take), 1e-3),
        graph("results", count, partial(graphs.fan, task=make), 1e-3),
    ]


def mixed(smoke: bool, directory: Path) -> list[Case]:
    """Return the case of long calls among short ones."""
    if smoke:
        return [schedule("2 of 0.05 s", graphs.mixed(2, 0.05, 20), even=False)]
    return [schedule(MIXED, graphs.mixed(10, 1.0, 1000), even=False)]


def commands(smoke: bool, directory: Path) -> list[Case]:
    """Return the cases of programs that exit immediately."""
    size = 4 if smoke else 500
    return [programs("list", size, ["/bin/true"]), programs("shell", size, "true; true")]


def workflows(smoke: bool, directory: Path) -> list[Case]:
    """Return a case for each graph in the directory, generated from a recipe."""
    made = [schedule(path.stem, graphs.load(path)) for path in directory.glob("*.json")]
    return sorted(made, key=lambda case: case[:2])


THREADS: list[type[Contestant]] = [
    ours.Threads,
    floors.ThreadPool,
    floors.InExecutor,
    peers.AsyncflowThreads,
]
THREADS += [peers.ParslThreads, peers.Prefect]
PROCESSES: list[type[Contestant]] = [
    ours.Processes,
    floors.ProcessPool,
    peers.AsyncflowProcesses,
    peers.ParslProcesses,
]
PROCESSES += [peers.Executorlib, peers.Ray, peers.Dask, ours.OnDask]

MEASURES: Mapping[str, Measure] = {
    "engine": Measure(
        "The engine alone",
        "µs per task",
        "Cost of accepting a task, scheduling it and delivering its result. No work is run.",
        [ours.Noop, floors.Tasks, floors.Futures, peers.AsyncflowNoop, peers.ParslThreads],
        floors.Tasks.title,
        engine,
        [
            Budget("fan 10,000", ours.Noop.title, floors.Tasks.title, 2.5),
            Budget("fan 10,000", ours.Noop.title, peers.AsyncflowNoop.title, 1 / 5),
            Budget("fan 10,000", ours.Noop.title, peers.ParslThreads.title, 1 / 4),
            *(
                Budget(column, ours.Noop.title, floors.Futures.title, 1.25, since="fan 10,000")
                for column in ("fan 100,000", "fan 1,000,000")
            ),
        ],
    ),
    "threads": Measure(
        "Functions in threads",
        "µs per task",
        "Cost of calling a function that does nothing.",
        [*THREADS, ours.Async],
        floors.ThreadPool.title,
        functions,
        [
            Budget("fan 10,000", ours.Threads.title, floors.ThreadPool.title, 2.5),
            Budget("chain 1,000", ours.Threads.title, floors.InExecutor.title, 1.5),
            Budget("chain 1,000", ours.Threads.title, peers.AsyncflowThreads.title, 1 / 200),
            Budget("chain 1,000", ours.Async.title, ours.Threads.title, 1.3),
        ],
    ),
    "processes": Measure(
        "Functions in worker processes",
        "µs per task",
        "Cost of calling a function that does nothing in another process.",
        PROCESSES,
        floors.ProcessPool.title,
        functions,
        [
            Budget("fan 10,000", ours.Processes.title, floors.ProcessPool.title, 0.5),
            Budget("chain 1,000", ours.Processes.title, floors.ProcessPool.title, 1.0),
        ],
    ),
    "large": Measure(
        "Calls with 10 MB, in worker processes",
        "ms per call",
        "Time to send 10 MB to a function, or to receive 10 MB from it.",
        PROCESSES,
        floors.ProcessPool.title,
        large,
    ),
    "mixed": Measure(
        "Long calls among short ones, in worker processes",
        "times a list schedule",
        "1.0 is a schedule that starts the next call as soon as a worker is free, at no cost.",
        PROCESSES,
        floors.ProcessPool.title,
        mixed,
        [Budget(MIXED, ours.Processes.title, "", 1.1)],
        needs="rhapsody_wfcommons",
    ),
    "programs": Measure(
        "Programs",
        "µs per program",
        "Cost of running a program that exits immediately, given as a list or as a shell command.",
        [ours.Threads, floors.ThreadPool, peers.AsyncflowThreads, peers.ParslThreads],
        floors.ThreadPool.title,
        commands,
        [
            Budget("list 500", ours.Threads.title, floors.ThreadPool.title, 1.1),
            Budget("shell 500", ours.Threads.title, floors.ThreadPool.title, 1.2),
        ],
    ),
    "workflows": Measure(
        "Recorded kinds of workflows",
        "times a list schedule",
        "Graphs of 1,000 and 10,000 tasks from WfCommons recipes, with their durations.",
        [*THREADS, *PROCESSES],
        floors.ThreadPool.title,
        workflows,
        needs="rhapsody_wfcommons",
    ),
    "dask": Measure(
        "On Dask",
        "ms",
        "Total time of a fan, a chain, a tree, and calls that share an argument of 50 MB.",
        floor=whole.DASK,
        whole=whole.dask,
        needs="rhapsody_dask",
        budgets=[
            Budget("fan of 5000 no-ops", whole.OURS, whole.DASK, 1.1),
            Budget("fan of 5000 no-ops", whole.OURS, whole.DASK_GATHER, 1.5),
            Budget("chain of 200", whole.OURS, whole.DASK, 1.1),
        ],
    ),
    "radical": Measure(
        "On RADICAL-Pilot",
        "ms per task",
        "500 programs and 500 functions, on a pilot on this machine.",
        floor=whole.BY_HAND,
        whole=whole.radical,
        needs="rhapsody_radical",
        budgets=[
            Budget("500 executables", whole.OURS, whole.BY_HAND, 1.05),
            Budget("500 functions", whole.OURS, whole.BY_HAND, 1.0),
        ],
        slow=True,
    ),
    "first": Measure(
        "The first result",
        "s",
        "Time from the start of a new interpreter to the first result of a function.",
        [floors.Tasks, *THREADS, *PROCESSES],
        floors.Tasks.title,
    ),
    "memory": Measure(
        "Memory",
        "bytes per task",
        "Growth of the program's process per task, for waiting tasks and for kept futures.",
        [
            *(each for each in THREADS if each is not peers.Prefect),
            peers.Ray,
            peers.Dask,
            ours.OnDask,
        ],
        floors.ThreadPool.title,
        lambda smoke, directory: [
            Case("memory", 200 if smoke else 10_000, cases.memory, linear=False)
        ],
    ),
    "latency": Measure(
        "One more task while 10,000 run",
        "",
        "Time from the call to the result, and the longest time that the event loop is blocked.",
        [ours.Coroutines, floors.Tasks],
        floors.Tasks.title,
        lambda smoke, directory: [
            Case("more", 100 if smoke else 10_000, cases.one_more, linear=False),
            Case("held", 100 if smoke else 10_000, cases.held, linear=False),
        ],
    ),
    "options": Measure(
        "The cost of options",
        "µs per task",
        "A fan on the noop backend with one option, compared with a fan without options.",
        options.OPTIONS,
        options.Plain.title,
        lambda smoke, directory: [graph("fan", 20 if smoke else 10_000, graphs.numbers)],
        [Budget("fan 10,000", options.Journalled.title, options.Plain.title, 40.0, more=True)],
    ),
    "files": Measure(
        "The cost of files",
        "µs per task",
        "A function that writes a small file, on a thread, with and without declaring the file.",
        options.FILES,
        options.ByItself.title,
        lambda smoke, directory: [
            graph("files", 10 if smoke else 1_000, partial(graphs.fan, task=options.WRITING))
        ],
    ),
    "pairs": Measure(
        "A program that writes a file and a function that reads it",
        "ms per pair",
        "`cp` into a declared output, and a function that reads this file, with a journal.",
        pairs.PAIRS,
        pairs.ByHand.title,
        lambda smoke, directory: [
            graph("pairs", count, pairs.pairs, 1e-3)
            for count in ((4,) if smoke else (1_000, 20_000))
        ],
        [
            Budget("pairs 1,000", pairs.Journaled.title, pairs.ByHand.title, 1.5),
            Budget("pairs 1,000", pairs.Journaled.title, pairs.ParslFiles.title, 0.7),
            Budget(
                "pairs 20,000", pairs.Journaled.title, pairs.ByHand.title, 1.1, since="pairs 1,000"
            ),
        ],
    ),
}
