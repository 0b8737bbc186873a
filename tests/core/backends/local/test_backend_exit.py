"""Tests of the end of programs that use the local backend."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests._support.machine import alive, not_under_coverage

pytestmark = pytest.mark.timeout(90)

START = """
import asyncio, os, pathlib, signal, subprocess, sys, threading, time
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody_testing import Driver

def note(name, text=""):
    part = pathlib.Path(name + ".part")
    part.write_text(str(text))
    part.rename(name)

async def there(*names):
    async with asyncio.timeout(30):
        while not all(map(os.path.exists, names)):
            await asyncio.sleep(0.01)
"""

Start = Callable[[str], "subprocess.Popen[bytes]"]
Run = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program in a process group of its own, as a terminal does.

    What programs that are killed leave of temporary files is removed, too. Sockets are
    among them, whose paths must be short.
    """
    started: list[subprocess.Popen[bytes]] = []
    temporary = tempfile.TemporaryDirectory(prefix="exit-", ignore_cleanup_errors=True)

    def start(body: str) -> subprocess.Popen[bytes]:
        program = tmp_path / "program.py"
        program.write_text(START + textwrap.dedent(body))
        # Files, not pipes: a process that is left would keep a pipe open.
        with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
            process = subprocess.Popen(
                [sys.executable, str(program)],
                cwd=tmp_path,
                env={**os.environ, "TMPDIR": temporary.name},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        started.append(process)
        return process

    with temporary:
        yield start
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def run(start: Start, tmp_path: Path) -> Run:
    """Runs a program to its end."""

    def run(body: str) -> subprocess.CompletedProcess[str]:
        return ended(start(body), tmp_path)

    return run


def ended(process: subprocess.Popen[bytes], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    code = process.wait(60)
    out, err = ((tmp_path / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(process.args, code, out, err)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def pids(tmp_path: Path, *names: str) -> list[int]:
    return [int((tmp_path / name).read_text()) for name in names]


def test_a_function_that_cannot_be_stopped_does_not_hold_up_the_end(
    run: Run, tmp_path: Path
) -> None:
    began = time.monotonic()
    end = run(
        """
        def forever():
            while True:
                print("x" * 100, flush=True)
                note("entered")

        def blocked():
            note("blocked")
            time.sleep(3600)

        async def main():
            async with LocalExecutionBackend(resources={"cores": 2}) as backend:
                async with Driver(backend) as driver:
                    await driver.submit(driver.call(forever), driver.call(blocked))
                    await there("entered", "blocked")
                await backend.shutdown()
                note("still", len(backend.still_running))

        asyncio.run(main())
        """
    )
    assert (end.returncode, end.stderr) == (0, "")
    assert (tmp_path / "still").read_text() == "2"
    assert time.monotonic() - began < 30


def test_a_function_may_print_while_the_streams_are_put_back(run: Run) -> None:
    """CPython's `print` does not hold `sys.stdout`: the process crashed."""
    end = run(
        """
        inside, gate, printed = threading.Event(), threading.Event(), threading.Event()

        class Slow:
            def __init__(self, stream):
                self.stream = stream

            def write(self, text):
                if text == "slowly":
                    inside.set()
                    gate.wait(30)
                return self.stream.write(text)

            def flush(self):
                self.stream.flush()

        def slow():
            print("slowly")
            printed.set()

        async def main():
            backend = await LocalExecutionBackend()
            backend.thread_grace = 0.01
            async with Driver(backend) as driver:
                await driver.submit(driver.call(slow))
                await asyncio.to_thread(inside.wait, 30)
                await backend.shutdown()
                gate.set()
                await asyncio.to_thread(printed.wait, 30)

        sys.stdout = Slow(sys.stdout)
        asyncio.run(main())
        """
    )
    assert (end.returncode, end.stdout, end.stderr) == (0, "slowly\n", "")


def test_a_program_that_ends_without_shutdown_leaves_nothing(run: Run, tmp_path: Path) -> None:
    end = run(
        """
        def forever(name):
            child = subprocess.Popen(["sleep", "600"])
            note(name + ".child", child.pid)
            note(name, os.getpid())
            while True:
                pass

        async def main():
            threads = await LocalExecutionBackend(resources={"cores": 2})
            processes = await LocalExecutionBackend("process", resources={"cores": 1})
            one, two = Driver(threads, work_dir="."), Driver(processes, work_dir=".")
            await one.__aenter__(); await two.__aenter__()
            await one.submit(
                one.call(time.sleep, 600),
                one.command("sleep 600 & echo $! > ../group.part; mv ../group.part ../group; wait"),
            )
            await two.submit(two.call(forever, "worker"))
            await there("group", "worker")

        asyncio.run(main())
        print("the end")
        """
    )
    assert (end.returncode, end.stdout) == (0, "the end\n")
    assert "Traceback" not in end.stderr
    group, worker, child = pids(tmp_path, "group", "worker", "worker.child")
    wait_for(lambda: not (alive(group) or alive(worker) or alive(child)))


def test_a_child_that_the_program_forks_ends_none_of_its_workers(run: Run) -> None:
    end = run(
        """
        entered = threading.Event()

        def wait_until_the_child_has_ended():
            note("entered")
            while not os.path.exists("over"):
                time.sleep(0.01)

        async def main():
            async with LocalExecutionBackend("process", resources={"cores": 1}) as backend:
                async with Driver(backend) as driver:
                    running = asyncio.ensure_future(
                        driver.run_one(driver.call(wait_until_the_child_has_ended))
                    )
                    await there("entered")
                    entered.set()
                    print((await running).state)

        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        entered.wait(30)
        child = os.fork()
        if child == 0:
            sys.exit()
        os.waitpid(child, 0)
        note("over")
        thread.join()
        """
    )
    assert (end.returncode, end.stdout) == (0, "DONE\n")


def test_a_program_may_ignore_what_becomes_of_its_children(run: Run) -> None:
    end = run(
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

        async def main():
            async with LocalExecutionBackend("process", resources={"cores": 1}) as backend:
                async with Driver(backend) as driver:
                    print((await driver.run_one(driver.call(int))).state)

        asyncio.run(main())
        """
    )
    assert (end.returncode, end.stdout, end.stderr) == (0, "DONE\n", "")


def test_an_import_path_that_is_not_a_string_is_reported(run: Run) -> None:
    end = run(
        """
        sys.path.append(pathlib.Path("/somewhere"))
        asyncio.run(LocalExecutionBackend("process").__aenter__())
        """
    )
    assert "sys.path must contain only strings, but contains PosixPath('/somewhere')" in end.stderr


def test_with_few_descriptors_there_are_fewer_workers_and_no_failures(run: Run) -> None:
    end = run(
        """
        import logging, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))

        class Gate(logging.Handler):
            def emit(self, record):
                print(record.getMessage(), file=sys.stderr)
                os.makedirs(gate, exist_ok=True)  # a file would need a descriptor

        logging.getLogger("rhapsody").addHandler(Gate())

        def wait(gate):
            while not os.path.exists(gate):
                time.sleep(0.01)
            return os.getpid()

        async def main():
            async with LocalExecutionBackend("process", resources={"cores": 20}) as backend:
                async with Driver(backend) as driver:
                    ends = await driver.run(*(driver.call(wait, gate) for _ in range(40)))
                    print({str(end.state) for end in ends}, {str(end.error) for end in ends})

        counts = []
        for gate in ("first", "second"):
            asyncio.run(main())
            counts.append(len(os.listdir("/dev/fd")))
        print(counts[1] - counts[0])
        """
    )
    assert (end.returncode, end.stdout) == (0, "{'DONE'} {'None'}\n" * 2 + "0\n")
    assert (
        "start more worker processes; calls wait for the existing ones: OSError: [Errno 24]"
        in end.stderr
    )
    assert "Traceback" not in end.stderr


def test_a_program_without_a_main_guard_may_use_processes(run: Run) -> None:
    end = run(
        """
        print("main", flush=True)

        class OwnError(Exception):
            pass

        factor = 3

        def triple(x):
            if x < 0:
                raise OwnError(x)
            return factor * x

        async def main():
            async with LocalExecutionBackend("process", resources={"cores": 2}) as backend:
                async with Driver(backend) as driver:
                    good, bad = await driver.run(driver.call(triple, 2), driver.call(triple, -1))
                    print(good.value, isinstance(bad.error, OwnError), bad.error.args)

        asyncio.run(main())
        """
    )
    assert (end.returncode, end.stderr) == (0, "")
    assert end.stdout == "main\n6 True (-1,)\n"


def test_workers_end_when_the_program_is_killed(start: Start, tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux kills them for us; elsewhere they end after their call")
    process = start(
        """
        def busy(name):
            child = subprocess.Popen(["sleep", "600"])
            note(name + ".child", child.pid)
            note(name, os.getpid())
            while True:
                pass

        async def main():
            async with LocalExecutionBackend("process", resources={"cores": 3}) as backend:
                async with Driver(backend) as driver:
                    await driver.submit(driver.call(busy, "a"), driver.call(busy, "b"))
                    await there("a", "b")
                    note("ready")
                    await asyncio.sleep(3600)

        asyncio.run(main())
        """
    )
    wait_for((tmp_path / "ready").exists)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    workers = pids(tmp_path, "a", "b", "a.child", "b.child")
    wait_for(lambda: not any(map(alive, [*workers, *(child.pid for child in children)])))


@pytest.mark.parametrize("moment", ["busy", "starting"])
def test_ctrl_c_makes_no_worker_print_a_traceback(
    start: Start, tmp_path: Path, moment: str
) -> None:
    process = start(
        """
        def busy():
            note("busy")
            while True:
                pass

        async def main():
            asyncio.get_running_loop().call_soon(note, "starting")
            async with LocalExecutionBackend("process", resources={"cores": 2}) as backend:
                async with Driver(backend) as driver:
                    await driver.submit(*(driver.call(busy) for _ in range(4)))
                    await asyncio.sleep(3600)

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    wait_for((tmp_path / moment).exists)
    if moment == "starting":
        time.sleep(0.05)  # anywhere in the start will do
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    end = ended(process, tmp_path)
    assert (end.returncode, end.stdout, end.stderr) == (0, "interrupted\n", "")
    wait_for(lambda: not any(alive(child.pid) for child in children))


def test_the_programs_own_start_method_is_left_alone(run: Run) -> None:
    end = run(
        """
        import multiprocessing

        async def main():
            async with LocalExecutionBackend("process", resources={"cores": 1}) as backend:
                async with Driver(backend) as driver:
                    await driver.run(driver.call(int))

        asyncio.run(main())
        multiprocessing.set_start_method("spawn")
        print("mine")
        """
    )
    assert (end.returncode, end.stdout, end.stderr) == (0, "mine\n", "")


@not_under_coverage
def test_threads_import_neither_multiprocessing_nor_cloudpickle(run: Run) -> None:
    end = run(
        """
        async def main():
            async with LocalExecutionBackend() as backend, Driver(backend) as driver:
                await driver.run(driver.call(int), driver.command("true"))

        asyncio.run(main())
        print([name for name in ("multiprocessing", "cloudpickle") if name in sys.modules])
        """
    )
    assert (end.returncode, end.stdout) == (0, "[]\n")


def test_the_loop_may_close_while_a_function_runs(run: Run) -> None:
    end = run(
        """
        entered, gate, threads = threading.Event(), threading.Event(), []

        def wait():
            threads.append(threading.current_thread())
            entered.set()
            gate.wait()
            return "too late"

        async def main():
            backend = await LocalExecutionBackend()
            backend.thread_grace = 0.01
            async with Driver(backend) as driver:
                await driver.submit(driver.call(wait))
                await asyncio.to_thread(entered.wait, 10)
                await backend.shutdown()

        asyncio.run(main())
        gate.set()
        threads[0].join(30)
        print("ended", not threads[0].is_alive())
        """
    )
    assert (end.returncode, end.stdout, end.stderr) == (0, "ended True\n", "")


def test_semaphores_of_workers_are_removed_without_a_warning(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import asyncio
        from rhapsody import LocalExecutionBackend, WorkflowEngine

        def work():
            import builtins, multiprocessing
            builtins.kept = multiprocessing.get_context("spawn").RLock()

        async def main():
            async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:
                await flow.function_task(work)()

        if __name__ == "__main__":
            asyncio.run(main())
        """)
    )
    done = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "semaphore" not in done.stderr
