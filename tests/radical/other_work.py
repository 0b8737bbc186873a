"""A program that does other work while it uses the backend, and prints its results as JSON.

It uses its own RADICAL-Pilot session, ZeroMQ sockets, a fork, a process pool, threads, programs and
open files. `test_connection_other_work.py` runs it and checks its output.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]
import zmq

from rhapsody_radical import RadicalExecutionBackend, cleanup
from rhapsody_testing import Driver

HERE = Path.cwd()
LOCAL = {"resource": "local.localhost", "cores": 2, "runtime": 15}
SEEN: dict[str, Any] = {}

OWN = {"VIRTUAL_ENV": "/mine", "RADICAL_MINE": "mine", "RADICAL_BASE": str(HERE / "later")}
"""Variables that the program sets while a backend starts; it extends `PATH` as well."""


class Native:
    """RADICAL-Pilot session that the program uses itself; all methods block."""

    def __init__(self) -> None:
        self._session = rp.Session(cfg={"base": str(HERE / "native")})
        manager = rp.PilotManager(self._session)
        self._tasks = rp.TaskManager(self._session)
        more = {"exit_on_error": False, "sandbox": str(HERE / "native")}
        pilot = manager.submit_pilots(rp.PilotDescription({**LOCAL, **more}))
        self._tasks.add_pilots(pilot)
        self.uids: list[str] = []

    def work(self) -> list[str]:
        """Return the output of two tasks."""
        words = {"executable": "/bin/echo", "arguments": ["theirs"]}
        tasks = self._tasks.submit_tasks([rp.TaskDescription(words) for _ in range(2)])
        self.uids += [task.uid for task in tasks]
        self._tasks.wait_tasks([task.uid for task in tasks], timeout=240)
        return [str(task.stdout).strip() for task in tasks]

    def close(self) -> None:
        """Close the session."""
        self._session.close(download=False)


class Messages(threading.Thread):
    """Thread that sends messages between two sockets of the program's own ZeroMQ context."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.error = ""
        self._end = threading.Event()
        self.start()

    def run(self) -> None:
        """Send messages until the end or an error."""
        try:
            with (
                zmq.Context() as context,
                context.socket(zmq.PAIR) as one,
                context.socket(zmq.PAIR) as other,
            ):
                other.connect(f"tcp://127.0.0.1:{one.bind_to_random_port('tcp://127.0.0.1')}")
                while not self._end.wait(0.01):
                    self._exchange(one, other)
        except BaseException as error:
            self.error = repr(error)

    def _exchange(self, one: Any, other: Any) -> None:
        for number in range(20):
            one.send_json(number)
            if not other.poll(20_000) or other.recv_json() != number:
                raise RuntimeError(f"message {number} did not arrive")
            self.count += 1

    def end(self) -> None:
        """Stop the thread."""
        self._end.set()
        self.join(30)


class Fork:
    """Forked child of the program that runs until its output is requested."""

    def __init__(self) -> None:
        self._end, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            theirs.recv(1)
            theirs.sendall(b"well")
            os._exit(0)
        theirs.close()

    def ask(self) -> str:
        """Return its output."""
        self._end.settimeout(20)
        self._end.sendall(b"?")
        answer = self._end.recv(10).decode()
        os.waitpid(self.pid, 0)
        return answer


def state() -> dict[str, Any]:
    """Return the state that no library may change."""
    return {
        "environment": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "counters": repr(ru.ids._BASE),
        "directory": os.getcwd(),
    }


def sleeping() -> subprocess.Popen[bytes]:
    """Start a program that is unrelated to the backend."""
    return subprocess.Popen(["sleep", "600"], start_new_session=True)


def double(number: int) -> int:
    """Work for the pool."""
    return 2 * number


def noted(name: str, starting: asyncio.Task[None]) -> None:
    """Wait until a starting backend has written its session file."""
    while not starting.done() and not list(HERE.glob(f"{name}/radical.*/*")):
        time.sleep(0.005)


def marked(program: subprocess.Popen[bytes]) -> bool:
    """Return whether a program has a backend's mark in its environment."""
    return cleanup.MARK in Path(f"/proc/{program.pid}/environ").read_text()


async def start(name: str, while_it_starts: Any) -> RadicalExecutionBackend:
    """Start a backend, and call a function during the start."""
    backend = RadicalExecutionBackend(LOCAL, work_dir=HERE / name)

    async def body() -> None:
        await backend

    starting = asyncio.create_task(body())
    await asyncio.to_thread(noted, name, starting)
    SEEN[f"{name} is starting"] = not starting.done()
    while_it_starts()
    await starting
    return backend


async def work(backend: RadicalExecutionBackend, *, function: bool = False) -> list[str]:
    """Return the output of a program, and the value of a function."""
    async with Driver(backend) as driver:
        tasks = [driver.command("echo ours"), *([driver.call(double, 21)] if function else [])]
        ends = await driver.run(*tasks)
        return [str(each.stdout).strip() or str(each.value or each) for each in ends]


async def main() -> None:
    messages, bystanders = Messages(), [sleeping()]
    native = await asyncio.to_thread(Native)
    SEEN["native alone"] = await asyncio.to_thread(native.work)

    before = state()

    def own_things() -> None:
        bystanders.append(sleeping())
        os.environ.update(OWN, PATH=os.environ["PATH"] + ":/mine")

    first = await start("first", own_things)
    after = state()
    changed = {**before["environment"], **OWN, "PATH": before["environment"]["PATH"] + ":/mine"}
    expected = {**before, "environment": changed}
    SEEN["changed by the start"] = [key for key in expected if after[key] != expected[key]]

    fork, pool = Fork(), multiprocessing.get_context("fork").Pool(2)
    count = messages.count
    both = await asyncio.gather(work(first, function=True), asyncio.to_thread(native.work))
    SEEN["both"] = list(both)
    file = open(f"{first.session.path}/mine.json", "w+")  # noqa: ASYNC230, SIM115 - it stays open
    uids = [first.session.uid]
    await first.shutdown()
    file.write("still open")
    file.seek(0)
    SEEN["written"] = file.read()
    SEEN["left of the first"] = [repr(each) for each in cleanup.find(uids[0])]
    SEEN["native after our close"] = await asyncio.to_thread(native.work)
    SEEN["pool"] = pool.map(double, range(3))

    # Work goes on while the second one starts; then the other one is the first to close.
    working: list[Any] = []

    def go_on() -> None:
        bystanders.append(sleeping())
        working.append(asyncio.create_task(asyncio.to_thread(native.work)))

    second = await start("second", go_on)
    SEEN["native during our start"] = await working[0]
    await asyncio.to_thread(native.close)
    SEEN["ours after their close"] = await work(second)
    uids.append(second.session.uid)
    await second.shutdown()
    SEEN["left of the second"] = [repr(each) for each in cleanup.find(uids[1])]
    SEEN["threads"] = [each.name for each in threading.enumerate() if "rhapsody" in each.name]
    SEEN["sessions"] = [*uids, native._session.uid]
    SEEN["native uids"] = native.uids
    SEEN["own variables"] = {name: os.environ.get(name) for name in OWN}
    SEEN["path"] = os.environ["PATH"].split(":")[-1]
    SEEN["bystanders"] = [each.poll() for each in bystanders]
    SEEN["marked"] = [each.pid for each in bystanders if marked(each)]
    SEEN["fork"] = fork.ask()
    SEEN["messages"] = messages.count - count
    messages.end()
    SEEN["messages' error"] = messages.error
    SEEN["pool at the end"] = pool.map(double, range(3))
    pool.terminate()
    for each in bystanders:
        each.kill()
        each.wait()


if __name__ == "__main__":
    asyncio.run(main())
    json.dump(SEEN, sys.stdout)
