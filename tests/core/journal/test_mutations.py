"""Every change of three programs: what could differ runs again, and what could not is reused.

Each statement, literal, input file and environment variable of the programs in `mutations/` is
changed in turn. A run without a journal shows what each call of the changed program returns; a run
that resumes the unchanged program must return the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rhapsody.history import list_runs, read_run
from tests._support.forked import rhapsody
from tests._support.mutations import (
    NEUTRAL,
    MutatedSource,
    Mutation,
    line_mutations,
    variable_mutations,
)

PROGRAMS = Path(__file__).parent / "mutations"
NEEDLESS = 0.05
"""The share of calls that cannot see a change, and may run again."""


@dataclass(frozen=True)
class ExampleProgram:
    """A program in `mutations/`.

    Attributes:
        name: The name of its directory, whose `workflow.py` runs.
        reads: For calls that receive results of other calls, directly or through others: the names
            of these calls.
        files: For other files than modules: the names of the calls that read them.
        environment: The variables that are set.
        variables: The names of the calls that read them.
        options: Options of `rhapsody run`.
    """

    name: str
    reads: Mapping[str, Set[str]] = field(default_factory=dict)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, Sequence[str]] = field(default_factory=dict)
    options: Sequence[str] = ()

    def mutations(self) -> Iterator[Mutation]:
        """Yield all mutations."""
        directory = PROGRAMS / self.name
        for path in sorted(directory.rglob("*")):
            name = path.relative_to(directory).as_posix()
            if path.suffix == ".py":
                source = MutatedSource(name, path.read_text(), frozenset(self.files.get(name, "*")))
                yield from source.mutations()
                if name not in self.files:  # of a script in a command, the whole file is compared
                    yield from source.neutral()
            elif name in self.files:
                yield from line_mutations(name, path.read_text(), frozenset(self.files[name]))
        seen_by = {name: frozenset(calls) for name, calls in self.variables.items()}
        yield from variable_mutations(self.environment, seen_by)


EXAMPLES = [
    ExampleProgram("scan", reads={"total": {"fall"}}),
    ExampleProgram("simulation"),
    ExampleProgram(
        "pipeline",
        reads={"sorted": {"clean"}, "summary": {"clean", "sorted", "cut"}},
        files={
            "data/samples.csv": ["count", "clean", "stats", "first"],
            "data/constants.txt": ["constant"],
            "data/parameters.py": ["loaded"],
            "parts/left.part": ["listed", "parts"],
            "parts/right.part": ["listed", "parts"],
            "settings.ini": ["cut", "title"],
            "tools/clean.sh": ["clean"],
            "tools/functions.sh": ["clean"],
            "tools/shift.sh": ["shifted"],
            "tools/stats.py": ["stats"],
            "tools/units.py": ["stats"],
        },
        environment={
            "PIPELINE_SCALE": "3",
            "PIPELINE_OFFSET": "100",
            "PIPELINE_MODE": "fast",
            "PIPELINE_OTHER": "none",
        },
        variables={
            "PIPELINE_SCALE": ["scale"],
            "PIPELINE_OFFSET": ["offset"],
            "PIPELINE_MODE": ["mode"],
            "PIPELINE_OTHER": [],
        },
    ),
]


@dataclass
class PrintedResults:
    """What a run printed.

    Attributes:
        results: The results by the names of the calls.
        reused: The names of the calls whose results were reused.
        rest: The other lines.
        errors: What was written to standard error.
    """

    results: dict[str, str]
    reused: set[str]
    rest: list[str]
    errors: str


LINE = re.compile(r"(task\.\d+) (\S+) (.*)")


class ExampleRuns:
    """A directory in which an example runs again and again."""

    def __init__(self, example: ExampleProgram, path: Path) -> None:
        self.example, self.path = example, path / "program"
        self._original, self._recorded = path / "original", path / "recorded"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROGRAMS / example.name, self._original, ignore=ignored)
        shutil.copy(PROGRAMS / "results.py", self._original)
        self._fill(self._original)
        self.first = self._run("--fresh")
        assert self.first.results, self.first.errors
        shutil.copytree(self._original, self._recorded)
        journals = ".rhapsody/journals"
        shutil.copytree(self.path / journals, self._recorded / journals)

    def _fill(self, source: Path, mutation: Mutation | None = None) -> None:
        if self.path.exists():
            shutil.rmtree(self.path)
        shutil.copytree(source, self.path)
        if mutation is not None and mutation.file is not None:
            name, text = mutation.file
            (self.path / name).write_text(text)

    def _run(self, option: str, mutation: Mutation | None = None) -> PrintedResults:
        environment = {"PATH": os.environ["PATH"]}
        environment |= self.example.environment
        if mutation is not None and mutation.variable is not None:
            name, value = mutation.variable
            environment.pop(name)
            if value is not None:
                environment[name] = value
        time.sleep(0.02)  # files that are written while a program starts count as changed
        done = rhapsody(
            "run", "workflow.py", option, *self.example.options,
            cwd=self.path, environment=environment, timeout=60,
        )  # fmt: skip
        matches = {line: LINE.fullmatch(line) for line in done.stdout.splitlines()}
        found = [match for match in matches.values() if match]
        rest = [line for line, match in matches.items() if not match]
        results = {match[2]: re.sub("0x[0-9a-f]+", "0x", match[3]) for match in found}
        reused = set[str]()
        if option == "--resume" and found:
            (record,) = list_runs(self.path / ".rhapsody")
            tasks = read_run(record.path).tasks
            reused = {match[2] for match in found if tasks[match[1]].reused}
        return PrintedResults(results, reused, rest, done.stderr)

    def anew(self, mutation: Mutation) -> PrintedResults:
        """Run the changed program without a journal."""
        self._fill(self._original, mutation)
        return self._run("--no-journal", mutation)

    def is_overwritten(self, mutation: Mutation) -> bool:
        """Return True if the last run has changed a file of the program."""
        files = {name: (self._original / name).read_text() for name in self.example.files}
        files |= dict([mutation.file] if mutation.file else [])
        return any((self.path / name).read_text() != text for name, text in files.items())

    def resumed(self, mutation: Mutation | None = None) -> PrintedResults:
        """Run the changed program with the results of the unchanged one."""
        self._fill(self._recorded, mutation)
        return self._run("--resume", mutation)


@dataclass
class MutationReport:
    """Counts of mutations and calls.

    Attributes:
        mutations: The number of mutations.
        excluded: The number of mutations that are not counted: they do not end, or overwrite the
            files that other calls read.
        demanded: The number of calls that must run again, since their results differ.
        seen: The number of these calls that ran again.
        unable: The number of calls that cannot see the change.
        wrong: Descriptions of wrong results.
        missed: Descriptions of calls that did not run although they were to.
        needless: Descriptions of calls that ran although they cannot see the change.
        unmarked: Descriptions of calls with another result that were not said to see the change.
    """

    mutations: int = 0
    excluded: int = 0
    demanded: int = 0
    seen: int = 0
    unable: int = 0
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)

    def add(self, runs: ExampleRuns, mutation: Mutation) -> None:
        """Run a mutation, and count its calls."""
        try:
            expected = runs.anew(mutation)
        except subprocess.TimeoutExpired:
            self.excluded += 1
            return
        if runs.is_overwritten(mutation):
            self.excluded += 1
            return
        self.mutations += 1
        found = runs.resumed(mutation)
        if found.rest != expected.rest:
            self.wrong.append(f"{mutation}: {expected.rest} became {found.rest}")
        differ = [
            call
            for call in sorted(expected.results.keys() | found.results.keys())
            if found.results.get(call) != expected.results.get(call)
        ]
        if differ:  # without a seed, each run draws other numbers
            second = runs.anew(mutation).results
            for call in differ:
                new, old = found.results.get(call), expected.results.get(call)
                if second.get(call) == old or call in found.reused:
                    self.wrong.append(f"{mutation}: {call}: {old} became {new}")
        self._count(runs, mutation, expected, found)

    def _count(
        self, runs: ExampleRuns, mutation: Mutation, expected: PrintedResults, found: PrintedResults
    ) -> None:
        first = runs.first.results
        changed = {call for call, value in first.items() if expected.results.get(call) != value}
        for call in first.keys() & expected.results.keys():
            ran, text = call not in found.reused, f"{mutation}: {call}"
            if call in changed and not _has_equal(call, expected.results[call], first):
                self.demanded += 1
                self.seen += ran
                if not ran:
                    self.missed.append(text)
            reads = runs.example.reads.get(_name(call), frozenset())
            if not mutation.can_be_seen_by(call) and reads.isdisjoint(map(_name, changed)):
                self.unable += 1
                if call in changed:
                    self.unmarked.append(f"{text}: {first[call]}, {expected.results[call]}")
                if ran:
                    self.needless.append(text)

    def __str__(self) -> str:
        share = len(self.needless) / self.unable if self.unable else 0
        excluded = f", {self.excluded} excluded" if self.excluded else ""
        return (
            f"{self.mutations} mutations{excluded}: {self.demanded} reruns demanded, {self.seen} "
            f"seen; {len(self.wrong)} wrong results; {len(self.needless)} needless reruns of "
            f"{self.unable} calls that cannot see the change ({share:.1%})"
        )

    def check(self) -> None:
        """Hold that no result was wrong, and that few calls ran needlessly."""
        assert self.wrong == []
        assert self.missed == []
        assert self.unmarked == [], "a comment in the program names too few calls"
        assert len(self.needless) <= NEEDLESS * self.unable, self.needless


def _name(call: str) -> str:
    return call.split("/")[0]


def _has_equal(call: str, result: str, first: Mapping[str, str]) -> bool:
    """Return True if another call of the same task had the same result, which may be reused."""
    return any(_name(other) == _name(call) and first[other] == result for other in first)


Recorder = Callable[[str, object], None]


def run_mutations(
    example: ExampleProgram, chosen: Iterable[Mutation], path: Path, record_property: Recorder
) -> None:
    """Run mutations of a program; `tests/core/conftest.py` prints the report."""
    runs, report = ExampleRuns(example, path), MutationReport()
    unchanged = runs.resumed()
    assert unchanged.results == runs.first.results
    assert unchanged.reused == set(unchanged.results), unchanged.errors
    for mutation in chosen:
        report.add(runs, mutation)
    record_property("mutations", f"{example.name}: {report}")
    report.check()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_what_a_mutation_can_change_runs_again_and_the_rest_is_reused(
    example: ExampleProgram, tmp_path: Path, record_property: Recorder
) -> None:
    run_mutations(example, example.mutations(), tmp_path, record_property)


def test_one_mutation_of_each_kind(tmp_path: Path, record_property: Recorder) -> None:
    example = EXAMPLES[-1]
    by_kind: dict[str, list[Mutation]] = {}
    for mutation in example.mutations():
        kind = "neutral" if mutation.kind in NEUTRAL else mutation.kind
        by_kind.setdefault(kind, []).append(mutation)
    chosen = [mutations[len(mutations) // 3] for mutations in by_kind.values()]
    assert len(chosen) == 11
    run_mutations(example, chosen, tmp_path, record_property)
