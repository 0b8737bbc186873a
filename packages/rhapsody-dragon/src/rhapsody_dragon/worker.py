"""Worker: a process of Dragon that makes one call at a time. Its agent is on the same node.

A worker is a process that Dragon manages, so functions can use Dragon's interface.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from rhapsody.sdk import OWN_FILES, Runner, WorkerLoop, sent_modules, worker_values
from rhapsody_dragon.wire import LIFE, BlockingLink


class _DragonRunner(Runner):
    """Runner of the calls in a worker. All coroutines run on one event loop."""

    worker = "a worker of Dragon"
    place = "in a worker of Dragon"
    own_files = OWN_FILES

    def __init__(self, link: BlockingLink) -> None:
        self._loop = WorkerLoop()
        self._link = link
        self.uid = ""

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run(coroutine)

    def building(self, begins: bool) -> None:
        self._link.put("building", self.uid, begins)


def _end_with_agent(life: socket.socket) -> None:
    """Request that the kernel kill this process and its group when the agent ends."""
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    life.setblocking(False)
    with suppress(BlockingIOError):
        if not life.recv(1):  # it has already ended
            os._exit(1)


def _connect(path: str) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.connect(path)
    return end


def main(path: str, number: str) -> None:
    """Make calls until the agent closes the connection.

    Args:
        path: The path of the agent's socket.
        number: The number with which the agent recognizes this worker.
    """
    # In a separate group, so that processes that a function leaves running are killed with it.
    with suppress(OSError):
        os.setsid()
    # The default action also stops code that does not return to the interpreter.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    life = _connect(f"{path}{LIFE}")
    link = BlockingLink(_connect(path))
    runner = _DragonRunner(link)
    pid = os.getpid()
    link.put("worker", pid, int(number))
    _end_with_agent(life)
    modules = b""
    with suppress(BrokenPipeError):
        while batch := link.receive():
            for name, *parts in batch:
                if name == "call":
                    runner.uid, packed = parts
                    outcome = runner.run(packed)
                    if os.getpid() != pid:
                        os._exit(0)  # this is a child that the call has forked
                    link.put("result", runner.uid, outcome)
                    del outcome
                    del packed, parts  # release the values before waiting
                elif name == "path":
                    sys.path[:] = parts[0]
                elif name == "modules":
                    sent_modules().receive(parts[0])
                    if modules:
                        sent_modules().discard(modules)
                    modules = parts[0][: parts[1]]
                else:  # "close"
                    worker_values().close_value(parts[0])
    worker_values().close()
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads that calls have started


if __name__ == "__main__":
    main(*sys.argv[1:])
