"""Files of one attempt: the order of its transitions, and what is left once they are released."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, RetryPolicy, WorkflowEngine
from rhapsody.backends import programs
from rhapsody.data import Output, link_into
from rhapsody.errors import DataError
from rhapsody.identity import attempt_text
from rhapsody.staging import flow as flow_module
from rhapsody.staging.flow import (
    TABLE,
    FileFlow,
    FilePhase,
    FileTransition,
    IllegalFileTransitionError,
)
from rhapsody.staging.sandboxes import Keep
from rhapsody.task import AttemptInfo, Sandbox, TaskDescription
from tests._support.staging import Linking, Stager, describe

pytestmark = pytest.mark.asyncio


class Copying(Linking):
    """A backend that also copies inputs."""

    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: TaskDescription | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
        *,
        copy: bool = False,
    ) -> None:
        if copy:
            assert dst_task is not None
            path = Path(dst_task["sandbox"], file_name or "")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(Path(file_path or "").read_bytes())
        else:
            super().link_explicit_data_deps(src_task, dst_task, file_name, file_path)


def references(stager: Stager) -> list[Sandbox]:
    """Return the references with which sandboxes are kept on disk."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each) is Sandbox]
    return [each for each in found if each._owner is stager.sandboxes]


class Call:
    """Call with files, of which one attempt runs at a time."""

    def __init__(
        self,
        history: History,
        number: int,
        inputs: Sequence[InputFile],
        outputs: Sequence[Output],
        sources: Sequence[AttemptInfo],
    ) -> None:
        self.history, self.number, self.attempt = history, number, 0
        self.inputs, self.outputs, self.sources = inputs, outputs, sources
        self.ended = False
        self.flow: FileFlow = self.again()

    def again(self) -> FileFlow:
        """Begin another attempt."""
        self.attempt += 1
        self.ended = False
        uid = attempt_text("e", self.number, self.attempt)
        self.task = describe(self.history.stager, uid, f"task{self.number}")
        left = [source for source in self.sources if not source.files.output_files]
        self.flow = FileFlow(
            self.history.stager, self.task, self.inputs, self.outputs, self.sources, left
        )
        return self.flow

    def write(self) -> None:
        """Write the outputs, as the attempt does."""
        sandbox = Path(self.task["sandbox"])
        sandbox.mkdir(parents=True, exist_ok=True)
        for output in self.outputs:
            sandbox.joinpath(output.filename.replace("*", "one")).write_text("x")
        sandbox.joinpath(f"left{self.number}").write_text("left")

    def steps(self) -> list[Callable[[], Any]]:
        """Return the steps that the engine may take next."""
        flow, release = self.flow, self.release
        if self.ended:
            return [self.again]
        steps: dict[FilePhase, list[Callable[[], Any]]] = {
            FilePhase.DECLARED: [self.resolve, self.resolve, self.resolve, release],
            FilePhase.RESOLVED: [self.resolve, self.place, self.place, self.reuse, release],
            FilePhase.PLACED: [self.check, self.check, flow.fail, flow.stop, release],
            FilePhase.CHECKED: [self.save, self.save, release],
            FilePhase.SAVED: [release],
            FilePhase.RELEASED: [self.again, release],
        }
        return steps[flow.phase]

    def resolve(self) -> None:
        assert not self.flow.resolve(self.history.backend)

    async def place(self) -> None:
        if self.flow.place(self.history.backend):
            copying = asyncio.ensure_future(self.flow.copy(self.history.backend))
            await asyncio.sleep(0)
            if self.history.chance.random() < 0.2:
                self.release()  # canceled while files are copied
            await copying

    def check(self) -> None:
        if self.history.chance.random() < 0.8:
            self.write()
        files = self.flow.check(self.task["sandbox"], self.history.backend)
        self.history.outcomes.append(
            AttemptInfo(self.task["uid"], backend="linking", name=self.task["name"], files=files)
        )

    def reuse(self) -> None:
        self.flow.reuse(None, dry=False)
        self.release()

    async def save(self) -> None:
        saving = asyncio.ensure_future(self.flow.save(self.history.backend))
        await asyncio.sleep(0)
        if self.history.chance.random() < 0.2:
            self.release()  # canceled while files are saved
        await saving

    def release(self) -> None:
        self.flow.release()
        self.ended = True

    def refused(self) -> None:
        """Handle an error, as the engine does."""
        if self.flow.phase in (FilePhase.PLACED, FilePhase.CHECKED):
            self.flow.fail()
        else:
            self.release()


class History:
    """Random history of the files of several calls."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.chance = chance = random.Random(seed)
        self.keep = cast("Keep", chance.choice(["results", "failed", "none"]))
        self.directory = directory
        self.stager = Stager(directory / "work", self.keep, results_dir=directory)
        self.backend = Copying()
        self.outcomes: list[AttemptInfo] = []
        self.calls: list[Call] = []
        (directory / "given").write_text("given")

    def call(self) -> Call:
        """Return a new call."""
        number, chance = len(self.calls) + 1, self.chance
        sources = chance.sample(self.outcomes, min(len(self.outcomes), chance.randrange(3)))
        inputs = [
            InputFile(name, copy=chance.random() < 0.3)
            for source in sources
            for name in source.files.output_files
        ]
        if chance.random() < 0.5:
            inputs.append(InputFile(str(self.directory / "given"), copy=chance.random() < 0.3))
        outputs: list[Output] = []
        if chance.random() < 0.7:
            place = chance.choice(["a", "b", "given", None])
            outputs.append(OutputFile(f"out{number}", save=place))
        if chance.random() < 0.3:
            outputs.append(OutputFile(f"*{number}.t", many=True, save="several/"))
        return Call(self, number, inputs, outputs, sources)

    async def run(self) -> None:
        for _ in range(60):
            if not self.calls or self.chance.random() < 0.2:
                self.calls.append(self.call())
            call = self.chance.choice(self.calls)
            try:
                done = self.chance.choice(call.steps())()
                if inspect.isawaitable(done):
                    await done
            except (DataError, OSError):
                if not call.ended:
                    call.refused()
            if self.chance.random() < 0.1:
                self.outcomes.clear()
            self.check()

    def release(self) -> None:
        """End all calls."""
        for call in self.calls:
            call.release()

    def check(self) -> None:
        """Check the rules that `rhapsody.staging.flow` states."""
        claiming = {call.number for call in self.calls if not call.ended}
        assert {each.number for each in self.stager.results.claims._by_call} <= claiming
        for call in self.calls:
            if call.flow.phase is FilePhase.RELEASED:
                assert call.flow._held == call.flow._needs == ()
                assert call.flow._reference is None


@pytest.mark.parametrize("seed", range(60))
async def test_nothing_is_left_of_attempts_whose_files_are_released(
    tmp_path: Path, seed: int
) -> None:
    async with asyncio.timeout(60):
        history = History(seed, tmp_path)
        await history.run()
        history.release()
        history.check()
        claims = history.stager.results.claims
        left: list[Any] = [claims._claims, claims._below, claims._by_call, claims._began]
        assert not any(left)
        history.outcomes.clear()
        history.calls.clear()
        await history.stager.threads.close()  # a thread drops its last call after it is answered
        assert references(history.stager) == []
        await history.stager.close()
        if history.keep == "none":
            assert not (tmp_path / "work").exists()


def write_output(stager: Stager) -> None:
    sandbox = Path(describe(stager)["sandbox"])
    sandbox.mkdir(parents=True, exist_ok=True)
    (sandbox / "x").touch()


async def in_phase(phase: FilePhase, stager: Stager) -> FileFlow:
    """Return the files of an attempt in a phase."""
    flow = FileFlow(stager, describe(stager), outputs=[OutputFile("x", save="x")])
    backend = Linking()
    write_output(stager)
    ways: dict[FilePhase, Callable[[], Any]] = {
        FilePhase.RESOLVED: lambda: flow.resolve(backend),
        FilePhase.PLACED: lambda: flow.place(backend),
        FilePhase.CHECKED: lambda: flow.check(None, backend),
        FilePhase.SAVED: lambda: flow.save(backend),
        FilePhase.RELEASED: flow.release,
    }
    for way in ways.values():
        if flow.phase is phase:
            return flow
        done = way()
        if inspect.isawaitable(done):
            await done
    assert flow.phase is phase
    return flow


@pytest.mark.parametrize("phase", FilePhase)
@pytest.mark.parametrize("transition", FileTransition)
async def test_each_transition_is_possible_only_from_the_phases_in_the_table(
    tmp_path: Path, phase: FilePhase, transition: FileTransition
) -> None:
    stager, backend = Stager(tmp_path / "work", results_dir=tmp_path), Linking()
    flow = await in_phase(phase, stager)
    rows = {(before, event): after for before, event, after in TABLE}

    async def move() -> None:
        done: Any = {
            FileTransition.RESOLVE: lambda: flow.resolve(backend),
            FileTransition.PLACE: lambda: flow.place(backend),
            FileTransition.CHECK: lambda: flow.check(None, backend),
            FileTransition.REUSE: lambda: flow.reuse(None, dry=False),
            FileTransition.SAVE: lambda: flow.save(backend),
            FileTransition.FAIL: flow.fail,
            FileTransition.STOP: flow.stop,
            FileTransition.RELEASE: flow.release,
        }[transition]()
        if isinstance(done, Awaitable):
            await done

    if (phase, transition) in rows:
        await move()
        assert flow.phase is rows[phase, transition]
    else:
        with pytest.raises(IllegalFileTransitionError, match=f"'?{transition}"):
            await move()
        assert flow.phase is phase


async def test_a_file_that_arrives_after_the_cancellation_claims_no_destination(
    tmp_path: Path,
) -> None:
    stager = Stager(tmp_path / "work", results_dir=tmp_path)
    flow = FileFlow(stager, describe(stager), outputs=[OutputFile("x", save="x")])
    arriving: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    flow.resolve(Linking())
    flow._coming = {"y": cast("Any", arriving)}
    fetching = asyncio.ensure_future(flow.fetch())
    await asyncio.sleep(0)
    flow.release()
    arriving.set_result(os.devnull)
    await fetching
    other = describe(stager, "e.task.000003.1")
    stager.results.claims.claim(other, [OutputFile("x", save="x")])


async def test_a_task_that_is_canceled_before_its_retry_gives_up_its_destination(
    here: Path, flow: WorkflowEngine
) -> None:
    failed = asyncio.Event()

    def wait(_: int) -> float:
        failed.set()
        return 3600.0

    @flow.executable_task(retries=RetryPolicy(1, wait=wait))
    def fails(out: OutputFile) -> list[str]:
        return ["false", str(out)]

    @flow.executable_task
    def writes(out: OutputFile) -> str:
        return f"echo 1 > {out}"

    async with asyncio.timeout(30):
        first = fails(OutputFile("x.txt", save="x.txt"))
        await failed.wait()
        first.cancel()
        await first.ended()
        await writes(OutputFile("x.txt", save="x.txt"))
    assert (here / "x.txt").read_text() == "1\n"


async def test_the_sandbox_of_an_attempt_that_was_not_accepted_is_removed(here: Path) -> None:
    class Refusing(LocalExecutionBackend):
        refused: TaskDescription | None = None
        linked: Sequence[str] = ()

        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            if tasks[0]["name"] == "read" and self.refused is None:
                self.refused = tasks[0]
                self.linked = os.listdir(tasks[0]["sandbox"])
                raise OSError("not now")
            await super().submit_tasks(tasks)

    backend = Refusing()
    async with WorkflowEngine.create(backend, retries=1) as flow:

        @flow.executable_task
        def write(out: OutputFile) -> str:
            return f"echo 1 > {out}"

        @flow.executable_task
        def read(given: InputFile) -> list[str]:
            return ["cat", str(given)]

        made = write(OutputFile("x.txt"))
        assert await read(made.file("x.txt")) == "1\n"
    assert backend.linked == ["x.txt"]
    assert backend.refused is not None
    assert os.path.basename(backend.refused["sandbox"]) not in os.listdir(flow.work_dir)


async def test_links_are_created_on_a_thread_unless_that_is_fast(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[bool] = []

    def put(sandbox: str, name: str, source: str) -> None:
        callers.append(threading.current_thread() is threading.main_thread())
        link_into(sandbox, name, source)

    async def on_loop(count: int, fast: float) -> list[bool]:
        monkeypatch.setattr(flow_module, "FAST_FILES", fast)
        callers.clear()
        for _ in range(count):
            assert await copy_of(InputFile("in.txt"), OutputFile("out.txt", save=False))
        return callers[:]

    def refuse(sandbox: str, name: str, source: str) -> None:
        raise DataError("no links here")

    monkeypatch.setattr(programs, "link_into", put)
    (here / "in.txt").write_text("content")
    async with WorkflowEngine.create(handle_signals=False) as flow:

        @flow.executable_task
        def copy_of(source: InputFile, target: OutputFile) -> str:
            return f"cat {source} | tee {target}"

        assert await on_loop(3, fast=0.0) == [False] * 3
        assert await on_loop(7, fast=100.0) == [False] * 5 + [True] * 2
        assert await on_loop(3, fast=0.0) == [True, False, False]
        monkeypatch.setattr(programs, "link_into", refuse)
        for name in ("in.txt", "b.txt"):
            with pytest.raises(DataError, match="no links here"):
                await copy_of(InputFile("in.txt", name=name), OutputFile("out.txt", save=False))
