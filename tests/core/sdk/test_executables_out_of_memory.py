"""Tests that a kill by the kernel for memory is reported as such, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rhapsody import OutOfMemoryError, RetryPolicy, TaskFailedError, TaskLostError
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.errors import describe_error
from rhapsody.sdk.executables import V1, V2, CgroupFiles, MemoryGroup
from tests._support.engine_fixtures import engine, local_threads
from tests._support.machine import gone
from tests._support.memory_group import MiB, killed, pretend, write
from tests._support.scripted import outcome


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The counts of the group that this process is said to be in."""
    return pretend(tmp_path, monkeypatch)


# Told, by files that say so.


@pytest.mark.asyncio
@pytest.mark.parametrize("through_a_shell", [False, True])
async def test_a_program_that_the_kernel_killed_for_memory_says_so(
    counts: Path, through_a_shell: bool
) -> None:
    command = killed(counts)
    if through_a_shell:
        command = f'sh -c "{command.replace("$", chr(92) + "$")}"; exit $?'
    async with engine(local_threads()) as flow:
        hog = flow.executable_task(name="hog")(lambda: command)
        error = await outcome(hog())
    assert type(error) is OutOfMemoryError
    assert isinstance(error, MemoryError)
    assert isinstance(error, TaskFailedError)
    assert "task 'hog' was killed by the kernel because memory ran out" in str(error)
    assert "the limit is 500 MiB" in str(error)
    assert "up to 499 MiB were in use" in str(error)
    assert "resources={'memory': ...}" in str(error)
    assert "\nalmost done" in str(error)
    assert error.exit_code == (137 if through_a_shell else -9)
    assert error.command == command
    assert error.stderr.startswith("almost done\n")
    assert error.sandbox


@pytest.mark.asyncio
async def test_a_kill_by_someone_else_is_not_attributed_to_memory(counts: Path) -> None:
    async with engine(local_threads()) as flow:
        error = await outcome(flow.executable_task(lambda: "kill -9 $$")())
        assert type(error) is TaskFailedError
        assert "SIGKILL" in str(error)
        # A kill counts for one task, and an end of another kind is what it is.
        assert type(await outcome(flow.executable_task(lambda: killed(counts))())) is (
            OutOfMemoryError
        )
        error = await outcome(flow.executable_task(lambda: "kill -9 $$")())
        assert type(error) is TaskFailedError
        error = await outcome(flow.executable_task(lambda: f"echo oom_kill 9 > {counts}; exit 3")())
        assert type(error) is TaskFailedError


@pytest.mark.asyncio
@pytest.mark.parametrize(("on", "attempts"), [(MemoryError, 2), (ConnectionError, 1)])
async def test_retries_can_be_for_memory_alone(
    counts: Path, on: type[Exception], attempts: int
) -> None:
    command = f'test $(grep -c "oom_kill 2" {counts}) = 1 || {{ {killed(counts)}; }}; echo enough'
    async with engine(local_threads()) as flow:
        future = flow.executable_task(retries=RetryPolicy(2, on=on))(lambda: command)()
        if attempts == 2:
            assert await future == "enough\n"
        else:
            assert type(await outcome(future)) is OutOfMemoryError
        assert future.attempt == attempts


@pytest.mark.asyncio
async def test_a_service_that_is_killed_for_memory_before_it_is_ready_says_so(
    counts: Path,
) -> None:
    async with engine(local_threads()) as flow:
        service = flow.executable_task(service=True, ready="file:up")(lambda: killed(counts))
        assert type(await outcome(service())) is OutOfMemoryError


@pytest.mark.asyncio
async def test_a_worker_process_that_is_killed_for_memory_is_not_lost_but_failed(
    counts: Path,
) -> None:
    text = str(counts)

    def die(say: bool) -> None:
        if say:
            Path(text).write_text("oom_kill 2\n")
        os.kill(os.getpid(), signal.SIGKILL)

    async with engine(LocalExecutionBackend("process", resources={"cores": 1})) as flow:
        task = flow.function_task(die)
        future = task(True)
        error = await outcome(future)
        assert type(error) is OutOfMemoryError, describe_error(error)
        assert "'die'" in str(error)
        assert future.attempt == 1  # the same again would need as much
        assert isinstance(await outcome(task.options(lost_retries=0)(False)), TaskLostError)


# What is read.


@pytest.mark.parametrize(
    ("files", "own", "place"),
    [
        (V1, "9:name=systemd:/\n4:memory:/job/step\n0::/other\n", "memory/job/step"),
        (V2, "0::/job/step\n", "job/step"),
        (V1, "3:cpu,memory:/docker/4711\n", "memory"),  # as a container sees it
        (V2, "0::/../../job\n", "."),
    ],
)
def test_the_group_of_this_process_is_found(
    tmp_path: Path, files: CgroupFiles, own: str, place: str
) -> None:
    named, mount = tmp_path / "own", tmp_path / "mount"
    named.write_text(own)
    write(mount / place, files, 7, 64 * MiB, 60 * MiB)
    group = MemoryGroup(named, mount)
    assert not group.has_killed()
    write(mount / place, files, 8, 64 * MiB, 60 * MiB)
    assert group.has_killed()
    assert not group.has_killed()
    assert "64 MiB" in group.usage()


@pytest.mark.parametrize("none", ["max", 9223372036854771712])
def test_the_limit_may_be_that_of_a_group_around_it(tmp_path: Path, none: int | str) -> None:
    named, mount = tmp_path / "own", tmp_path / "mount"
    named.write_text("0::/job/step/task\n")
    write(mount / "job" / "step" / "task", V2, 0, none, 10 * MiB)
    assert "no limit is known" in MemoryGroup(named, mount).usage()
    write(mount / "job", V2, 0, 128 * MiB, "")
    said = MemoryGroup(named, mount).usage()
    assert "128 MiB" in said
    assert str(mount / "job") in said
    assert "in use" not in said


def test_where_the_system_says_nothing_nothing_is_taken_for_a_matter_of_memory(
    tmp_path: Path,
) -> None:
    group = MemoryGroup(tmp_path / "none", tmp_path / "nowhere")
    assert not group.has_killed()
    assert "no limit is known" in group.usage()


# For real, where a group can be made.


@contextmanager
def small_group(limit: int) -> Iterator[Path]:
    """A control group inside that of this process, which may use so much memory."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    paths = {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines)}
    kind = "memory" if "memory" in paths else ""
    group = Path("/sys/fs/cgroup") / kind / paths.get(kind, "").lstrip("/")
    group /= f"rhapsody-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (group / (V1 if kind else V2).limit).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"control groups have no limit of memory here: {error}")
        yield group
    finally:
        assert gone(map(int, (group / "cgroup.procs").read_text().split()))
        group.rmdir()


@pytest.mark.timeout(120)
@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="there are no control groups")
def test_a_kill_by_the_kernel_is_reported(tmp_path: Path) -> None:
    text = """
    import asyncio, os, sys
    with open(os.path.join(sys.argv[1], "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
    import rhapsody
    from rhapsody import LocalExecutionBackend, WorkflowEngine

    async def main():
        backend = LocalExecutionBackend("process", resources={"cores": 1})
        async with WorkflowEngine.create(backend) as flow:
            @flow.executable_task
            def program():
                return [sys.executable, "-c", "x = b'x' * (1 << 30)"]

            @flow.function_task
            def function():
                return len(b"x" * (1 << 30))

            for task in (program, function):
                try:
                    await task()
                except MemoryError as error:
                    print(type(error).__name__, error)

    asyncio.run(main())
    """
    script = tmp_path / "flow.py"
    script.write_text("\n".join(line[4:] for line in text.splitlines()))
    with small_group(400 * MiB) as group:
        run = subprocess.run(
            [sys.executable, str(script), str(group)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [line.partition(" was ")[0] for line in lines] == [
        "OutOfMemoryError task 'program'",
        "OutOfMemoryError task 'function'",
    ], run.stdout + run.stderr
    assert all("400 MiB" in line for line in lines)
