"""Ends the programs of a process that was killed before it could do so itself.

One small process beside the one that runs programs. It reads a pipe on which it is
told of each process group as it begins and ends. When the process that tells it is
gone, however that came, it kills the groups that are left. Who starts programs, and
how they are stopped otherwise, is not seen here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress

# Others may hold the pipe, too: what the process forked without starting a program. So it is told
# of a group that begins (`+`), of one that ends (`-`), and when it is to end (`!`). To be woken for
# each message would take a core's time from the programs: those that come meanwhile are read
# in one go, while the end of the process is seen at once.
WATCH = """
import os, select, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
live, rest, poll, end = set(), b"", select.poll(), select.poll()
poll.register(0, select.POLLIN)
end.register(0, 0)
try:
    process = os.pidfd_open(int(sys.argv[1]))
    poll.register(process, select.POLLIN)
    end.register(process, select.POLLIN)
except (AttributeError, OSError):
    pass
while 0 in dict(poll.poll()):
    data = os.read(0, 65536)
    if not data:
        break
    *lines, rest = (rest + data).split(b"\\n")
    for line in lines:
        (live.add if line[:1] == b"+" else live.discard)(int(line[1:]))
    if rest == b"!":
        break
    end.poll(100)
for pid in live:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
"""


class Guardian:
    """The guardian of this process's programs, started when the first one is.

    All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._owner = 0
        self._live: set[int] = set()
        self._stopped = False

    def pipe(self) -> int:
        """Return the descriptor that it is told on, once it runs.

        Raises:
            OSError: It cannot be started.
        """
        with self._lock:
            self._stopped = False
            return self._opened()

    def began(self, pid: int) -> None:
        """Tell it that a process group has begun."""
        with self._lock:
            if self._stopped:  # it is what is left of a group that ends
                return
            self._live.add(pid)
            with suppress(OSError):  # the next program is not started then: see `pipe`
                self._opened()
            self._tell(b"+", pid)

    def ended(self, pid: int) -> None:
        """Tell it that a process group has ended; to be called before its leader is reaped.

        From then on its number may be anybody's.
        """
        with self._lock:
            self._live.discard(pid)
            self._tell(b"-", pid)

    def stop(self) -> None:
        """End it, and with it what it still watches over; blocks for a moment.

        Only `pipe` starts it again.
        """
        with self._lock:
            self._stopped = True
            self._close()
            self._live.clear()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # at the end of the process the system does it
            self._close()

    def _opened(self) -> int:
        if self._process is not None and self._process.poll() is not None:
            self._close()  # somebody killed it: there must be another
        if self._pipe is None:
            reader, self._pipe = os.pipe()
            self._owner = os.getpid()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", WATCH, str(os.getpid())],
                    stdin=reader,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                )
            except BaseException:
                self._close()
                raise
            finally:
                os.close(reader)
            for pid in self._live:
                self._tell(b"+", pid)
        return self._pipe

    def _tell(self, what: bytes, pid: int) -> None:
        if self._pipe is not None:
            with suppress(BrokenPipeError):  # it was killed; the next is told of all there is
                os.write(self._pipe, b"%b%d\n" % (what, pid))

    def _close(self) -> None:
        if self._pipe is not None:
            if self._owner == os.getpid():  # no fork of the one that started it
                with suppress(BrokenPipeError):  # it was killed
                    os.write(self._pipe, b"!")
            os.close(self._pipe)
            self._pipe = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process = None
