"""Process of the dashboard, which `rhapsody run --dashboard` starts and ends.

The server does not run in a thread of the workflow's process. Parsing the record and building the
report of ten thousand tasks takes a second of processor time, during which the event loop of the
engine would compete for the global interpreter lock. In its own process, the server delays nothing,
cannot fail the run, and can still show that the process of the run was killed.

This module binds the port, so that an error about it appears before the run starts, and passes the
listening socket on. Messages to the server are lines of JSON on its standard input. The first one
contains the token, which must not be an argument because other users can see the arguments of a
process. The last one reports the end of the run; if the input ends without it, the run was killed.
The server writes to its standard output when it is ready.
"""

from __future__ import annotations

import errno
import json
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rhapsody import RhapsodyError, hookimpl
from rhapsody.history import open_records
from rhapsody_report.command import note

HOST = "127.0.0.1"

GRACE = 15.0
"""Maximum number of seconds that the end of the run waits for the server to end."""


class DashboardError(RhapsodyError):
    """The dashboard cannot be started."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the dashboard cannot be started: {why}")


class Dashboard:
    """Server of the dashboard, running until `close`.

    Args:
        program: The program of the run, shown until the record is available.
        port: The port; `None` for a free one.

    Attributes:
        url: The address to open, with the token.

    Raises:
        DashboardError: The port cannot be used, or the process cannot be started.
    """

    def __init__(self, program: str, port: int | None = None) -> None:
        token = secrets.token_urlsafe(32)
        with _listener(port) as listener:
            self.url: str = f"http://{HOST}:{listener.getsockname()[1]}/?token={token}"
            try:
                self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", f"{__package__}.server", str(listener.fileno())],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,  # without the terminal's signals
                )
            except OSError as error:
                raise DashboardError(f"its process cannot be started: {error}") from None
        self._send({"token": token, "program": program, "started": time.time()})

    @hookimpl
    def rhapsody_workflow_started(self) -> None:
        """Show the record of the first engine."""
        for record in open_records():
            self.follow(record)

    def follow(self, record: Path) -> None:
        """Show a record. Only the first call has an effect."""
        self._send({"record": str(record)})

    def close(self) -> str | None:
        """Let open pages show the final state, and end the process.

        Returns:
            The reason if the process ended too early; otherwise `None`.
        """
        process, stdout = self._process, self._process.stdout
        assert stdout is not None
        early = process.poll() is not None
        self._send({"ended": True})
        with self._errors, process:
            try:
                if select.select([stdout], [], [], 0)[0]:  # it was ready, or has ended
                    process.wait(GRACE)
            except subprocess.TimeoutExpired:  # a browser reads too slowly
                pass
            finally:
                process.kill()
            if not (early or process.returncode):
                return None
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").splitlines()
            return lines[-1] if lines else f"its process ended with exit code {process.returncode}"

    def _send(self, message: dict[str, Any]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(BrokenPipeError):  # reported by `close`
            stdin.write(json.dumps(message).encode() + b"\n")


@contextmanager
def shown(program: str, port: int | None) -> Iterator[Dashboard]:
    """Show a run in the dashboard, and print the address at the start and an error at the end.

    Args:
        program: The program of the run.
        port: The port; `None` for a free one.

    Yields:
        The dashboard, which observes the engines of the run.

    Raises:
        DashboardError: The dashboard cannot be started.
    """
    dashboard = Dashboard(program, port)
    try:
        note(f"rhapsody: dashboard: {dashboard.url}", masked=False)  # it contains the token
        yield dashboard
    finally:
        problem = dashboard.close()
        if problem is not None:
            note(f"rhapsody: the dashboard ended before the run: {problem}")


def _listener(port: int | None) -> socket.socket:
    """Return a listening socket.

    Raises:
        DashboardError: The port is in use or reserved.
    """
    try:
        return socket.create_server((HOST, port or 0))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} is in use"
        elif error.errno == errno.EACCES:
            why = f"port {port} is reserved for the system"
        else:
            raise DashboardError(f"cannot listen on port {port} of {HOST}: {error}") from None
        raise DashboardError(
            f"{why}; choose another one, or omit --dashboard-port to use a free one"
        ) from None
