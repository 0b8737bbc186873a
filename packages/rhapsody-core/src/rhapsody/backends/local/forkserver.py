"""Starts worker processes from a small server that holds what they need and no more.

Python's own fork server would do, but for three things: it has the workers import
the main program again (which breaks every program without an `if __name__ ==
"__main__"` guard and is not needed where functions travel by value), it stays
until the program ends, and Ctrl-C in the moment it starts makes it print a
traceback. Nothing here knows of tasks.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, popen_forkserver, process, reduction, resource_tracker, util
from multiprocessing.context import ForkServerContext, ForkServerProcess, set_spawning_popen
from typing import Any

PRELOAD = ["rhapsody.backends.local.forked", "cloudpickle", "rhapsody.backends.local.worker"]
"""What the server imports, so that a new worker has it at once."""


DESCRIPTORS = 16
"""More than this process opens while it starts a worker."""

_launching = threading.Lock()


class WorkerContext(ForkServerContext):
    """A multiprocessing context with a fork server of its own.

    Python's interface is `Process`, `Pipe` and the like; `start` and `stop` are ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.server: forkserver.ForkServer = forkserver.ForkServer()
        self.server.set_forkserver_preload(PRELOAD)

    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]  # noqa: N802
        """A process that the server will start."""
        worker = WorkerProcess(*args, **kwargs)
        worker.server = self.server
        return worker

    def start(self) -> None:
        """Starts the server. Not on the main thread: it changes the thread's signal mask.

        Raises:
            TypeError: `sys.path` is not what the server could be told.
            OSError: It could not be started.
        """
        odd = [entry for entry in sys.path if not isinstance(entry, str)]
        if odd:
            raise TypeError(f"sys.path holds {odd[0]!r}, and imports look at strings only")
        unset = multiprocessing.get_start_method(allow_none=True) is None
        # The server inherits the mask; `forked` lifts it once Ctrl-C is ignored. Starting
        # the tracker sets masks of its own, so that comes first.
        resource_tracker.ensure_running()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.server.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            if unset:  # starting a server settles the program's start method for good
                multiprocessing.set_start_method(None, force=True)

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Holds off other starts; what opens descriptors for a worker happens in here.

        Where they run out half way, the server gives up, and all workers end with it.

        Raises:
            OSError: There are too few descriptors.
        """
        with _launching:
            opened: list[int] = []
            try:
                while len(opened) < DESCRIPTORS:
                    opened.append(os.open(os.devnull, os.O_RDONLY))
            finally:
                for each in opened:
                    os.close(each)
            yield

    def stop(self) -> None:
        """Ends the server, once its workers have ended.

        By itself it would wait for whatever they have left behind, such as a daemon.
        """
        server: Any = self.server
        if server._forkserver_pid is None:  # it was never started
            return
        with suppress(ProcessLookupError):  # it has ended
            os.kill(server._forkserver_pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # SIGCHLD is ignored, or its handler took this one
            server._stop()


class WorkerProcess(ForkServerProcess):
    """A process started by the server of its context."""

    server: forkserver.ForkServer | None = None

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _Popen(process_obj)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "server"}


class _Popen(popen_forkserver.Popen):
    """Starts a process as Python's own does, but for the server and the main program."""

    def _launch(self, process_obj: Any) -> None:
        main = process.current_process()
        path = [os.getcwd() if entry == "" else entry for entry in sys.path]
        preparation = {
            "name": process_obj._name,
            "authkey": bytes(main.authkey),
            "log_to_stderr": False,
            "sys_path": path,
            "sys_argv": sys.argv,
            "dir": os.getcwd(),
        }
        message = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(preparation, message)
            reduction.dump(process_obj, message)
        finally:
            set_spawning_popen(None)
        self.sentinel, writer = process_obj.server.connect_to_new_process(
            self._fds  # type: ignore[attr-defined]
        )
        # While this process lives, it holds the other end of what the worker watches.
        held = os.dup(writer)
        close = util.close_fds  # type: ignore[attr-defined]
        self.finalizer = util.Finalize(self, close, (held, self.sentinel))
        with open(writer, "wb") as stream:
            stream.write(message.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)
