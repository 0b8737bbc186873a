"""Python programs that a test starts, talks to and sends signals."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE = 60.0
HEAD = """
import asyncio, os, signal, sys, threading, time
import rhapsody
from rhapsody import WorkflowEngine
from rhapsody.backends.base import ManagedBackend

def say(*words):
    print(*words, flush=True)

class Inline(ManagedBackend):
    canonical_states = True
    def __init__(self, name="inline"):
        super().__init__()
        self.name = name
    async def run_task(self, task):
        result = task["function"](*task["args"], **task["kwargs"])
        return await result if asyncio.iscoroutine(result) else result
    async def stop(self):
        say("stopped", self.name)

def hold_loop():
    from rhapsody.engine.core.signals import registry
    while registry._received is None:
        time.sleep(0.01)
    say("received")
    time.sleep(1000)

"""


class Program:
    """A Python program that runs.

    Args:
        path: Where it is put.
        text: What comes after `HEAD`.
        command: What stands after `python` and before its path, such as `-m rhapsody run`.
        arguments: What stands after its path.
    """

    def __init__(
        self, path: Path, text: str, command: Sequence[str] = (), arguments: Sequence[str] = ()
    ) -> None:
        path.write_text(HEAD + textwrap.dedent(text))
        self.errors = path.with_suffix(".err").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, *command, str(path), *arguments],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=path.parent,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._coming: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._coming.put(line.strip())
        self._coming.put(None)

    def line(self) -> str:
        """The next line that the program prints."""
        try:
            got = self._coming.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"nothing more came; there were {self.lines}") from None
        assert got is not None, f"it has ended: {self.end()}"
        self.lines.append(got)
        return got

    def until(self, line: str) -> None:
        """Reads until the program prints a line."""
        while self.line() != line:
            pass

    def goes_on(self) -> None:
        """Holds that it does not end for as long as signals count as one."""
        with suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"it has ended with {self.process.wait(0.4)}")

    def send(self, number: signal.Signals) -> None:
        """Sends the program, and no child of it, a signal."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Its exit code, all its lines and its standard error."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        while not self._coming.empty():
            got = self._coming.get()
            self.lines += [] if got is None else [got]
        self.errors.seek(0)
        return code, self.lines, self.errors.read()

    def close(self) -> None:
        """Ends it, whatever it does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
