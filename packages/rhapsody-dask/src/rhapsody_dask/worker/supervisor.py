"""Ends the programs of a worker that was killed before it could do so itself.

One small process for each worker process that runs programs. It reads a pipe
that only the worker holds for long: each program writes its own process id into
it before it becomes what it is to be, the worker writes when one has ended, and
when the worker is gone, however that came, the pipe closes and the groups of
what is left are killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

WATCH = """
import os, signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
live, rest = set(), b""
while True:
    data = os.read(0, 65536)
    if not data:
        break
    *lines, rest = (rest + data).split(b"\\n")
    for line in lines:
        (live.add if line[:1] == b"+" else live.discard)(int(line[1:]))
for pid in live:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
"""

ANNOUNCE = 'printf "+%d\\n" $$ >&2; exec "$@" 2>>"$0"'
"""Run by a shell whose standard error is the pipe, with the file for errors as `$0`."""


class Supervisor:
    """The supervisor of this process, started when the first program needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None

    def pipe(self) -> int:
        """The descriptor that programs announce themselves on."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._close()  # somebody killed it: the next programs get another
            if self._pipe is None:
                reader, self._pipe = os.pipe()
                try:
                    self._process = subprocess.Popen(  # noqa: S603 - our own program
                        [sys.executable, "-I", "-S", "-c", WATCH],
                        stdin=reader,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                        cwd="/",
                    )
                finally:
                    os.close(reader)
            return self._pipe

    def announced(self, command: Sequence[str], errors: str) -> list[str]:
        """The command that announces itself before it becomes `command`.

        Args:
            command: The program and its arguments.
            errors: The file that its standard error is added to.
        """
        return ["/bin/sh", "-c", ANNOUNCE, errors, *command]

    def ended(self, pid: int) -> None:
        """A program has ended, so that its number may be anybody's."""
        with self._lock:
            if self._pipe is not None:
                with suppress(OSError):  # the supervisor is gone
                    os.write(self._pipe, b"-%d\n" % pid)

    def stop(self) -> None:
        """Ends the supervisor, and with it what it still watches over."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process = None


supervisor: Supervisor = Supervisor()
