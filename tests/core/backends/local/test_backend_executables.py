"""Programs of the local backend."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend, backend
from rhapsody.data import make_sandbox
from rhapsody.sdk import processes, threads
from rhapsody_testing import Driver
from tests._support.local import CANCELED, DONE, FAILED, RUNNING, needing
from tests._support.machine import alive, exists, until_gone

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest_asyncio.fixture(params=["pidfd", "thread"])
async def driver(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Driver]:
    if request.param == "thread":  # as on a system that cannot tell the loop
        monkeypatch.setattr(processes, "_watch", lambda pid: None)
    resources = {"cores": 2, "gpus": ["4", "5"]}
    backend = LocalExecutionBackend(resources=resources, grace=0.3)
    async with backend, Driver(backend) as driver:
        yield driver
        assert driver.faults == []


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# Commands.


async def test_a_shell_command_keeps_its_quoting(driver: Driver) -> None:
    command = (
        """printf '%s|' "a  b" 'c"d' e\\ f $((1+2)) '$HOME' "$(echo 'x  y')" \\* | tr '|' '\\n'"""
    )
    end = await driver.run_one(driver.command(command))
    assert end.stdout == 'a  b\nc"d\ne f\n3\n$HOME\nx  y\n*\n'


async def test_a_missing_sandbox_is_not_created_again(driver: Driver) -> None:
    task = driver.command('rm -r "$PWD"')
    end = await driver.run_one(task)
    assert end.state is DONE
    assert task["uid"] not in os.listdir(driver.work_dir)


async def test_an_argument_list_is_run_without_a_shell(driver: Driver) -> None:
    arguments = ["a  b", "$HOME", "*", "", 'q"uote', "new\nline", "; exit 3"]
    program = "import sys; print(sys.argv[1:])"
    end = await driver.run_one(driver.command([*python(program), *arguments]))
    assert end.stdout == f"{arguments}\n"


async def test_output_and_exit_code_are_kept(driver: Driver) -> None:
    end = await driver.run_one(driver.command("echo out; echo err >&2; exit 3"))
    assert end.state is FAILED
    assert (end.stdout, end.stderr, end.exit_code) == ("out\n", "err\n", 3)
    assert "exception" not in end.task


async def test_a_program_that_a_signal_ended_has_a_negative_code(driver: Driver) -> None:
    assert (await driver.run_one(driver.command("kill -9 $$"))).exit_code == -9


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["no-such-program", "x"], FileNotFoundError),
        (["./missing"], FileNotFoundError),
        (["/etc/passwd"], PermissionError),
        (["nul\0"], ValueError),
    ],
)
async def test_a_program_that_cannot_be_started_is_named(
    driver: Driver, command: list[str], kind: type[Exception]
) -> None:
    end, other = await driver.run(driver.command(command), driver.command("true"))
    assert other.state is DONE
    assert end.state is FAILED
    assert isinstance(end.error, kind)
    if isinstance(end.error, OSError):
        assert end.error.filename == command[0]
    assert end.exit_code is None


async def test_standard_input_is_the_text_given_else_empty(driver: Driver) -> None:
    given = driver.command("cat", stdin="line\nno newline é")
    long = driver.command("wc -c", stdin="x" * 1_000_000)
    ends = await driver.run(given, driver.command("cat"), long)
    assert [(end.stdout or "").strip() for end in ends] == ["line\nno newline é", "", "1000000"]


async def test_the_environment_is_added_to(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "ours")
    task = driver.command("echo $OURS $THEIRS", environment={"THEIRS": "the irs"})
    assert (await driver.run_one(task)).stdout == "ours the irs\n"


async def test_cores_and_gpus_set_variables(driver: Driver) -> None:
    echo = (
        "echo $OMP_NUM_THREADS $OPENBLAS_NUM_THREADS $MKL_NUM_THREADS [$CUDA_VISIBLE_DEVICES]; "
        "sleep 0.1"
    )
    ends = await driver.run(
        driver.command(echo),
        needing(driver.command(echo), cores=2),
        needing(driver.command(echo), cores=1, gpus=1),
        needing(driver.command(echo), cores=1, gpus=1),
        needing(driver.command(echo), gpus=2),
        needing(driver.command(echo, environment={"OMP_NUM_THREADS": "9"}), cores=2),
    )
    assert [end.stdout for end in ends] == [
        "1 1 1 []\n",
        "2 2 2 []\n",
        "1 1 1 [4]\n",
        "1 1 1 [5]\n",
        "1 1 1 [4,5]\n",
        "9 2 2 []\n",
    ]


async def test_gpus_are_left_alone_where_there_are_none_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    async with LocalExecutionBackend() as backend, Driver(backend) as driver:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        assert (await driver.run_one(driver.command("echo $CUDA_VISIBLE_DEVICES"))).stdout == "7\n"


# Sandboxes and output.


async def test_the_sandbox_is_private_and_the_working_directory(driver: Driver) -> None:
    task = driver.command("pwd; stat -c %a .; touch made")
    end = await driver.run_one(task)
    assert end.stdout == f"{task['sandbox']}\n700\n"
    assert stat.S_IMODE(os.stat(task["sandbox"]).st_mode) == 0o700
    assert set(os.listdir(task["sandbox"])) == {"made", ".rhapsody.stdout", ".rhapsody.stderr"}


async def test_without_a_sandbox_it_gets_one_of_the_session(driver: Driver, tmp_path: Path) -> None:
    driver.backend.session.path = str(tmp_path / "chosen")
    task = driver.describe("pwd", executable="pwd")
    end = await driver.run_one(task)
    expected = tmp_path / "chosen" / task["uid"]
    assert end.stdout == f"{expected}\n"
    assert end.task["sandbox"] == str(expected)


async def test_much_output_is_kept_whole(driver: Driver) -> None:
    size = 10_000_000
    code = f"import sys; sys.stdout.write('é' * {size}); sys.stderr.write('e' * {size})"
    end = await driver.run_one(driver.command(python(code)))
    assert end.stdout == "é" * size
    assert end.stderr == "e" * size


async def test_bytes_that_are_no_text_are_replaced(driver: Driver) -> None:
    end = await driver.run_one(driver.command("printf 'a\\377b\\r\\nc'"))
    assert end.stdout == "a\ufffdb\r\nc"


async def test_output_may_stay_in_files(driver: Driver) -> None:
    task = driver.command("echo out; echo err >&2", capture="files")
    end = await driver.run_one(task)
    assert end.stdout == os.path.join(task["sandbox"], ".rhapsody.stdout")
    assert end.stderr == os.path.join(task["sandbox"], ".rhapsody.stderr")
    text = [Path(path).read_text() for path in (end.stdout, end.stderr)]  # noqa: ASYNC240
    assert text == ["out\n", "err\n"]


async def test_output_that_is_not_captured_goes_where_the_programs_goes(
    driver: Driver, capfd: pytest.CaptureFixture[str]
) -> None:
    end = await driver.run_one(driver.command("echo seen", capture=False))
    assert (end.state, end.stdout, end.stderr) == (DONE, "", "")
    assert capfd.readouterr().out == "seen\n"


# Ending.


async def test_the_whole_group_is_stopped(driver: Driver) -> None:
    task = driver.command(
        "sleep 60 & echo $! > c; mv c child; (sleep 60 & echo $! > d; mv d deep; wait) & wait"
    )
    await driver.submit(task)
    sandbox = Path(task["sandbox"])
    await exists(sandbox / "child")
    await exists(sandbox / "deep")
    pids = [int((sandbox / name).read_text()) for name in ("child", "deep")]
    assert all(alive(pid) for pid in pids)
    assert await driver.cancel(task) is True
    assert await driver.cancel(task) is True
    end = await driver.finished(task)
    assert end.state is CANCELED
    await until_gone(*pids)
    assert driver.history(task) == [RUNNING, CANCELED]


async def test_a_program_may_clean_up_after_sigterm(driver: Driver) -> None:
    driver.backend._executables._grace = 30.0  # a busy machine takes long
    code = (  # waits for the signal: a handler can miss it during time.sleep
        "import signal, time, pathlib\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "pathlib.Path('started').touch()\n"
        "signal.sigwait([signal.SIGTERM])\n"
        "time.sleep(0.1); pathlib.Path('cleaned').touch()\n"
    )
    # The shell ends at once, the program below it takes its time.
    task = driver.command(f'{sys.executable} -c "{code}"; true')
    await driver.submit(task)
    await exists(Path(task["sandbox"], "started"))
    await driver.cancel(task)
    assert (await driver.finished(task)).state is CANCELED
    assert "cleaned" in os.listdir(task["sandbox"])


@pytest.mark.parametrize("leader", [True, False])
async def test_a_program_that_does_not_listen_is_killed_after_the_grace_period(
    driver: Driver, leader: bool
) -> None:
    deaf = (
        "trap '' TERM; echo $$ > started.part; mv started.part started; while :; do sleep 60; done"
    )
    task = driver.command(deaf if leader else f"({deaf.replace('$$', '$BASHPID')}) & wait")
    if not leader:
        task["executable"], task["arguments"] = "bash", ["-c", str(task["executable"])]
    await driver.submit(task)
    await exists(Path(task["sandbox"], "started"))
    pid = int(Path(task["sandbox"], "started").read_text())  # noqa: ASYNC240
    began = time.monotonic()
    await driver.cancel(task)
    end = await driver.finished(task)
    assert time.monotonic() - began >= 0.25
    assert end.state is CANCELED
    await until_gone(pid)


async def test_what_a_program_leaves_running_is_ended_with_it(driver: Driver) -> None:
    task = driver.command("sleep 60 & echo $!")
    end = await driver.run_one(task)
    assert end.state is DONE
    await until_gone(int(end.stdout or ""))


async def test_cancelling_at_any_moment_ends_it_once(driver: Driver) -> None:
    tasks = []
    for number in range(30):
        task = driver.command("sleep 0.01")
        tasks.append(task)
        await driver.submit(task)
        await asyncio.sleep(0.003 * (number % 8))
        await driver.cancel(task)
    for task in tasks:
        await driver.finished(task)
    assert driver.backend.still_running == []


async def test_programs_start_side_by_side_while_the_loop_goes_on(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system on which creating a directory takes long."""
    both, go_on = threading.Barrier(3), threading.Event()

    def make(sandbox: str) -> str:
        both.wait(20)
        assert go_on.wait(20)
        return make_sandbox(sandbox)

    monkeypatch.setattr("rhapsody.backends.local.backend.make_sandbox", make)
    first, second = driver.command("echo first"), driver.command("echo second")
    await driver.submit(first, second)
    await asyncio.to_thread(both.wait, 20)
    await driver.cancel(first)
    go_on.set()
    ends = [await driver.finished(task) for task in (first, second)]
    assert [end.state for end in ends] == [CANCELED, DONE]
    assert driver.backend.still_running == []


async def test_the_loop_starts_programs_as_long_as_that_is_fast(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[threading.Thread] = []

    def make(sandbox: str) -> str:
        callers.append(threading.current_thread())
        return make_sandbox(sandbox)

    async def starts_on_the_loop(count: int, limits: tuple[float, float]) -> list[bool]:
        for name, limit in zip(("FAST_FILES", "FAST_START"), limits, strict=True):
            monkeypatch.setattr(backend, name, limit)
        callers.clear()
        for _ in range(count):
            assert (await driver.run_one(driver.command("true"))).state is DONE
        return [thread is threading.main_thread() for thread in callers]

    monkeypatch.setattr(backend, "make_sandbox", make)
    fast, slow = (100.0, 100.0), 0.0
    assert await starts_on_the_loop(3, (slow, 100.0)) == [False] * 3
    assert await starts_on_the_loop(7, fast) == [False] * 5 + [True] * 2
    assert await starts_on_the_loop(3, (slow, 100.0)) == [True, False, False]
    assert await starts_on_the_loop(6, fast) == [False] * 5 + [True]
    assert await starts_on_the_loop(2, (100.0, slow)) == [True, False]


async def test_errors_of_programs_that_the_loop_starts(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "FAST_CALLS", 0)
    before = psutil.Process().num_fds()
    missing, ended = await driver.run(
        driver.command(["no-such"], name="mine"), driver.command("exit 3")
    )
    assert missing.state is ended.state is FAILED
    assert isinstance(missing.error, FileNotFoundError)
    assert "task 'mine'" in str(missing.error)
    running = driver.command("sleep 60")
    await driver.submit(running)
    assert await driver.running(running)
    await driver.cancel(running)
    assert (await driver.finished(running)).state is CANCELED
    assert psutil.Process().num_fds() <= before + 1  # the pipe to the reaper


async def test_no_descriptor_is_lost(driver: Driver) -> None:
    process = psutil.Process()
    await driver.run(driver.command("true", stdin="x"), driver.command(["no-such"]))
    before = process.num_fds()
    await driver.run(
        *(driver.command("true", stdin="x") for _ in range(20)),
        *(driver.command(["no-such"]) for _ in range(20)),
        *(driver.command("kill $$") for _ in range(5)),
    )
    assert process.num_fds() == before
    assert not processes._groups.get()


async def test_executables_take_no_worker() -> None:
    backend = LocalExecutionBackend(resources={"cores": 3, "workers": 1})
    async with backend, Driver(backend) as driver:
        tasks = [driver.command("sleep 60") for _ in range(3)]
        await driver.submit(*tasks)
        for task in tasks:
            assert await driver.running(task)


@pytest.mark.parametrize(
    ("command", "kind", "program"),
    [
        (["no-such-program", "x"], FileNotFoundError, "no-such-program"),
        (["/"], PermissionError, "'/'"),
        ("echo a\0b", ValueError, "echo a"),
        (["echo", "a\0b"], ValueError, "echo"),
    ],
)
async def test_a_program_that_cannot_be_started_is_named_with_its_task(
    driver: Driver, command: Any, kind: type[Exception], program: str
) -> None:
    (end,) = await driver.run(driver.command(command, name="mine"))
    assert end.state is FAILED
    assert type(end.error) is kind
    assert "task 'mine'" in str(end.error)
    assert program in str(end.error)


async def test_a_program_whose_exit_code_is_lost_is_not_taken_for_done(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    former = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as some batch systems hand it down
    try:
        end = await driver.run_one(driver.command("exit 3"))
    finally:
        signal.signal(signal.SIGCHLD, former)
    assert end.state == FAILED
    assert "SIGCHLD" in caplog.text


# Where no more threads can be started.


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_a_process_group_is_killed_if_no_thread_can_wait_for_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = driver.command("(trap '' TERM; touch started; while :; do sleep 600; done) & wait")
    await driver.submit(task)
    await exists(os.path.join(task["sandbox"], "started"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        await driver.cancel(task)
        assert (await driver.finished(task)).state is CANCELED


async def test_a_program_whose_end_cannot_be_observed_is_ended(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_watch", lambda pid: None)
    before = set(processes._groups.get())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        end = await driver.run_one(driver.command("sleep 600"))
    assert end.state is FAILED
    assert "new thread" in str(end.task["exception"])
    assert processes._groups.get() == before
