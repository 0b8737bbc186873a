"""Leaving an engine's context: what was called is done, or said."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rhapsody import DependencyFailureError, WorkflowEngine
from tests._support.engine_fixtures import Machine
from tests._support.scripted import Scripted, turns, until, within

pytestmark = pytest.mark.asyncio


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level]


async def test_tasks_that_are_not_awaited_finish_before_the_engine() -> None:
    done = []
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        async def part(x: int) -> None:
            await asyncio.sleep(0)
            done.append(x)

        @flow.block
        async def whole() -> None:
            await part(3)
            part(4)

        for number in range(3):
            part(number)
        whole()
    assert sorted(done) == list(range(5))
    assert flow.summary is not None
    assert flow.summary.stats.done == 6


async def test_coroutines_that_were_started_but_not_awaited_make_their_calls() -> None:
    ended = []
    async with WorkflowEngine.create("noop") as flow:

        @flow.function_task
        def part(x: Any) -> Any: ...

        async def study(number: int) -> None:
            await asyncio.gather(part(number), part(number))
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.wait_for(part(number), 60))
            await asyncio.wait([asyncio.gather(part(number))])
            await part(number)
            ended.append(number)

        studies = [asyncio.create_task(study(number)) for number in range(3)]
    await within(asyncio.gather(*studies))
    assert sorted(ended) == [0, 1, 2]
    assert flow.summary is not None
    assert flow.summary.stats.done == 15


async def test_a_call_of_a_coroutine_that_outlives_the_engine_names_the_cure() -> None:
    opened = asyncio.Event()
    async with WorkflowEngine.create("noop") as flow:

        @flow.function_task
        def part() -> Any: ...

        async def study() -> None:
            await part()
            await opened.wait()
            await part()

        late = asyncio.create_task(study())
    opened.set()
    with pytest.raises(RuntimeError, match="TaskGroup"):
        await within(late)


async def test_failures_that_are_not_awaited_are_one_line_and_no_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def bad(x: int) -> int:
            raise ValueError(f"bad {x}")

        for number in range(8):
            bad(number)
    (line,) = lines(caplog, logging.ERROR)
    assert "8 failed tasks not awaited" in line
    assert flow.summary is not None
    assert flow.summary.unawaited == 8


async def test_services_are_waited_for_until_they_are_ready_and_then_stopped() -> None:
    backend = Scripted()
    async with WorkflowEngine.create(backend) as flow:

        @flow.executable_task(service=True)
        def server() -> str:
            return "serve"

        service = server()
        task = await backend.next()
        flow.loop.call_soon(backend.ready, task, "address")
    assert await service == "address"
    assert backend.stops == [task["uid"]]


async def test_join_waits_for_all_that_was_called_and_for_what_is_called_meanwhile() -> None:
    backend = Scripted()
    async with WorkflowEngine.create(backend) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        await within(flow.join())  # nothing was called
        first, second = part(), part()
        joins = [asyncio.create_task(flow.join()) for _ in range(3)]
        joins.pop().cancel()
        tasks = [await backend.next() for _ in range(2)]
        backend.done(tasks[0], 1)
        await within(first)
        third = part()
        backend.failed(tasks[1], LookupError("bad"))
        backend.done(await backend.next(), 3)
        await within(asyncio.gather(*joins))
        assert await third == 3
        with pytest.raises(LookupError):
            await second
    await within(flow.join())


async def test_join_does_not_wait_for_work_that_goes_on_without_its_future() -> None:
    backend = Scripted()
    backend.stopping = None
    flow = await WorkflowEngine.create(backend)

    @flow.function_task
    def part() -> Any: ...

    future = part()
    task = await backend.next()
    future.cancel()
    await within(flow.join())
    await until(lambda: backend.stops)
    backend.stopped(task)
    await within(flow.shutdown())


async def test_join_where_it_would_wait_for_itself_is_refused() -> None:
    async with WorkflowEngine.create(Machine()) as flow:

        @flow.block
        async def block() -> None:
            await flow.join()

        @flow.function_task
        async def task() -> None:
            await flow.join()

        for job in (block, task):
            with pytest.raises(RuntimeError, match="would wait for the block or task that calls"):
                await within(job())


async def test_an_engine_inside_a_task_or_block_of_another_is_left_as_any() -> None:
    async with WorkflowEngine.create() as flow:

        async def inner() -> int:
            async with WorkflowEngine.create() as own:
                future = own.function_task(lambda: 1)()
            return await future

        assert await within(flow.block(inner)()) == 1
        assert await within(flow.function_task(inner)()) == 1


async def test_a_wait_at_the_end_that_is_cancelled_cancels_what_is_unfinished() -> None:
    backend = Scripted()
    futures = []

    async def main() -> None:
        async with WorkflowEngine.create(backend) as flow:
            futures.append(flow.function_task(lambda: None)())

    running = asyncio.create_task(main())
    await backend.next()
    await turns()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(running)
    assert futures[0].cancelled()
    assert str(backend.state()) == "shutdown"


async def test_shutdown_lists_the_tasks_that_it_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flow = await WorkflowEngine.create(Scripted())

    @flow.function_task
    def part(x: Any = None) -> Any: ...

    futures = [part() for _ in range(8)]
    futures[0].cancel()
    part(futures[1])
    await within(flow.shutdown())
    (line,) = lines(caplog, logging.WARNING)
    assert "8 unfinished tasks were canceled" in line
    assert "'part' (task.000002)" in line
    assert "task.000001" not in line


async def test_a_shutdown_with_nothing_unfinished_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flow = await WorkflowEngine.create()
    assert await flow.function_task(lambda: 1)() == 1
    await within(flow.shutdown())
    assert not caplog.records


def graph(flow: WorkflowEngine) -> tuple[Any, Any]:
    """A task that fails with a dependent, and an independent one that is done later."""

    @flow.function_task
    async def bad(gate: Any = None) -> None:
        raise ValueError("bad sample")

    @flow.function_task
    async def good(x: Any = None) -> int:
        await asyncio.sleep(0)
        return 7

    good.options(name="dependent")(first := bad())
    independent = good(good())
    return first, independent


async def test_with_keep_going_the_failure_of_a_task_waits_for_the_independent_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    futures: list[Any] = []

    async def main() -> None:
        async with WorkflowEngine.create(keep_going=True) as flow:
            futures.extend(graph(flow))
            await futures[0]

    with pytest.raises(ValueError, match="bad sample"):
        await within(main())
    assert await futures[1] == 7
    (line,) = lines(caplog, logging.ERROR)
    assert "1 task failed; 1 did not run because of them: 'dependent' (task.000002)\n" in line
    assert "\n  bad() (task.000001): ValueError: bad sample\n    File " in line
    assert "'dependent' (task.000002)" in line


async def test_it_does_so_for_failed_dependencies_and_groups_of_failures() -> None:
    async def main(wait: Any, found: list[Any]) -> None:
        async with WorkflowEngine.create(keep_going=True) as flow:
            first, independent = graph(flow)
            found.append(independent)
            await wait(flow, first)

    for wait in (wait_for_dependent, wait_in_group):
        found: list[Any] = []
        with pytest.raises((DependencyFailureError, BaseExceptionGroup)):
            await within(main(wait, found))
        assert await found[0] == 7


async def wait_for_dependent(flow: WorkflowEngine, future: Any) -> None:
    await flow.function_task(str)(future)


async def wait_in_group(flow: WorkflowEngine, future: Any) -> None:
    async def one() -> None:
        await future

    async with asyncio.TaskGroup() as group:
        group.create_task(one())


@pytest.mark.parametrize(
    ("keep_going", "error"),
    [(False, None), (True, LookupError("own")), (True, KeyboardInterrupt())],
    ids=["off", "of-the-program", "interrupted"],
)
async def test_any_other_exception_cancels(keep_going: bool, error: BaseException | None) -> None:
    backend = Scripted()
    futures = []

    async def main() -> None:
        async with WorkflowEngine.create(backend, keep_going=keep_going) as flow:
            part = flow.function_task(lambda: None)
            futures.extend([part(), part()])
            backend.failed(await backend.next(), LookupError("of the task"))
            if error is not None:
                raise error
            await futures[0]

    with pytest.raises((LookupError, KeyboardInterrupt)):
        await within(main())
    assert futures[1].cancelled()


async def test_keep_going_and_fail_fast_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="keep_going=True contradict"):
        await WorkflowEngine.create(keep_going=True, fail_fast=True)


async def test_an_exception_that_refuses_attributes_is_known_as_a_tasks() -> None:
    class OddError(Exception):
        def __setattr__(self, name: str, value: Any) -> None:
            raise LookupError(name)

    backend, futures = Scripted(), []

    async def main() -> None:
        async with WorkflowEngine.create(backend, keep_going=True) as flow:
            part: Any = flow.function_task(lambda: None)
            futures.extend([part(), part()])
            backend.failed(await backend.next(), OddError())
            flow.loop.call_soon(backend.done, await backend.next(), 1)
            await futures[0]

    with pytest.raises(OddError):
        await within(main())
    result: Any = await futures[1]
    assert result == 1


async def test_join_in_a_function_that_builds_a_command_is_refused() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:

        @flow.executable_task
        async def part() -> str:
            await flow.join()
            return "true"

        with pytest.raises(RuntimeError, match="await the futures that you need"):
            await within(part())


async def test_join_in_an_asyncio_task_with_a_name_like_a_tasks() -> None:
    async with WorkflowEngine.create() as flow:
        name = f"{flow.uid}.task.000001.1"
        await within(asyncio.create_task(flow.join(), name=name))


async def test_join_of_an_engine_whose_uid_begins_another_ones() -> None:
    async with (
        WorkflowEngine.create(uid="outer") as outer,
        WorkflowEngine.create(Machine(), uid="outer.inner") as inner,
    ):

        @inner.function_task
        async def task() -> None:
            await outer.join()

        await within(task())


async def test_join_after_the_command_that_started_the_coroutine_was_built() -> None:
    built, joins = asyncio.Event(), list[asyncio.Task[None]]()
    async with WorkflowEngine.create() as flow:

        async def later() -> None:
            await built.wait()
            await flow.join()

        @flow.executable_task
        async def part() -> str:
            joins.append(asyncio.create_task(later()))
            return "true"

        await within(part())
        built.set()
        await within(joins[0])


# A uid that the program chose.


async def test_a_uid_of_a_live_engine_is_refused(tmp_path: Path) -> None:
    flow = await WorkflowEngine.create(uid="mine", work_dir=tmp_path / "one")
    with pytest.raises(ValueError, match="'mine' is in use by another engine of this process"):
        await WorkflowEngine.create(uid="mine", work_dir=tmp_path / "two")
    await flow.shutdown()
    async with WorkflowEngine.create(uid="mine", work_dir=tmp_path / "two") as again:
        assert again.uid == "mine"
    assert not os.listdir(tmp_path)


async def test_a_uid_can_be_given_where_the_work_dir_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to("scratch")
    async with WorkflowEngine.create(uid="mine", work_dir=tmp_path / "runs") as flow:
        assert flow.work_dir == tmp_path / "runs"


async def test_an_engine_of_a_closed_loop_keeps_no_uid(tmp_path: Path) -> None:
    async def leave() -> WorkflowEngine:
        backend = Scripted()  # which keeps nothing of the process
        return await WorkflowEngine.create(
            backend, uid="left", work_dir=tmp_path, handle_signals=False
        )

    left = await asyncio.to_thread(asyncio.run, leave())
    async with WorkflowEngine.create(uid="left", work_dir=tmp_path):
        pass
    assert left.uid == "left"


async def test_a_start_that_fails_gives_the_uid_back(tmp_path: Path) -> None:
    class Broken(Scripted):
        async def start(self) -> None:
            raise LookupError("no license")

    with pytest.raises(LookupError):
        await WorkflowEngine.create(Broken(), uid="again", work_dir=tmp_path)
    async with WorkflowEngine.create(uid="again", work_dir=tmp_path):
        pass


HOLDS = """
import asyncio, subprocess, sys
from rhapsody import WorkflowEngine

async def main():
    async with WorkflowEngine.create(uid="shared", work_dir="w"):
        child = subprocess.Popen(
            ["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False, start_new_session=True
        )
        print("holds, with child", child.pid, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


async def test_a_uid_that_another_program_uses_there_is_refused_until_that_is_killed(
    tmp_path: Path,
) -> None:
    program = subprocess.Popen(  # noqa: ASYNC220 - as it is waited for
        [sys.executable, "-c", textwrap.dedent(HOLDS)],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child = 0
    try:
        assert program.stdout is not None
        child = int(program.stdout.readline().removeprefix(b"holds, with child "))
        with pytest.raises(ValueError, match="'shared' is in use by another program"):
            await WorkflowEngine.create(uid="shared", work_dir=tmp_path / "w")
        async with WorkflowEngine.create(uid="shared", work_dir=tmp_path / "v"):
            pass
        program.kill()
        program.communicate()
        async with WorkflowEngine.create(uid="shared", work_dir=tmp_path / "w"):
            os.kill(child, 0)  # it holds nothing of the program that started it
    finally:
        program.kill()
        program.communicate()
        if child:
            os.kill(child, signal.SIGKILL)
    assert not (tmp_path / "v").exists()


async def test_where_files_cannot_be_locked_a_line_says_what_that_means(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", without_locks)
    async with WorkflowEngine.create(uid="shared", work_dir=tmp_path / "w"):
        pass
    (line,) = lines(caplog, logging.WARNING)
    assert "locking failed" in line
    assert "other programs that use uid 'shared' there at the same time" in line


FORGETS = """
import asyncio
from rhapsody import WorkflowEngine

async def main():
    flow = await WorkflowEngine.create()

    @flow.function_task
    async def part(x):
        await asyncio.sleep(3600)

    for number in range(7):
        part(number)
    if {ends}:
        await flow.shutdown()

asyncio.run(main())
"""


@pytest.mark.parametrize("ends", [False, True])
async def test_an_engine_that_is_never_shut_down_says_what_it_left_undone(
    ends: bool, tmp_path: Path
) -> None:
    code = FORGETS.format(ends=ends)
    program = [sys.executable, "-c", code]
    end = await asyncio.to_thread(
        subprocess.run, program, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert end.returncode == 0
    lines = [line for line in end.stderr.splitlines() if "never shut down" in line]
    if ends:
        assert lines == []
    else:
        (line,) = lines
        assert "has 7 unfinished tasks: 'part' (task.000001), " in line
        assert "`async with WorkflowEngine.create()` waits for them" in line


async def test_a_second_run_of_a_uid_reads_nothing_that_the_first_one_wrote(tmp_path: Path) -> None:
    for _ in range(3):
        async with WorkflowEngine.create(
            uid="run", work_dir=tmp_path, keep_sandboxes="all"
        ) as flow:
            command = flow.executable_task(lambda: "cat o.txt 2> /dev/null || echo text > o.txt")
            assert await command() == ""
    assert len(os.listdir(tmp_path)) == 3


async def test_a_future_that_a_signal_has_settled_does_not_hang_the_end() -> None:
    """The exception of a signal is set on the future that the main coroutine awaits."""
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        task = await backend.next()
        waiting = asyncio.ensure_future(flow.join())
        await turns()
        future.set_exception(KeyError("of a signal"))
        backend.done(task, 1)
        await within(waiting)
        with pytest.raises(KeyError):
            await future
