"""Runs with a dashboard, and what a browser receives from it."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from rhapsody.history import RunRecord
from rhapsody_report.dashboard.server import serve
from tests._support.programs import PATIENCE

PROGRAM = """
import asyncio, sys

async def main(flow):
    @flow.function_task
    def part(number):
        if number < 0:
            raise ValueError("negative")
        return number

    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    async for line in lines:
        await asyncio.wait([part(int(line))])
"""
"""Calls a task for each line of its standard input, and ends with it."""


class Browser:
    """Browser that shows the page at an address.

    Args:
        url: The address with the token.

    Attributes:
        url: The argument `url`.
        port: The port.
        query: The query with the token.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port is not None
        self.url = url
        self.port = parts.port
        self.query = parts.query

    @contextmanager
    def response(
        self, target: str, headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, target, headers=dict(headers or {}))
            yield connection.getresponse()
        finally:
            connection.close()

    def page(self) -> str:
        """The page."""
        with self.response(f"/?{self.query}") as response:
            assert response.status == 200
            return response.read().decode()

    @contextmanager
    def without_reading(self) -> Iterator[None]:
        """Request the page several times, and read only one byte."""
        request = f"GET /?{self.query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", self.port))
            connection.sendall(request * 8)
            connection.recv(1)
            yield

    @contextmanager
    def events(self, last: str | None = None) -> Iterator[Iterator[dict[str, Any]]]:
        """The events with their ids, until the server closes the connection.

        Args:
            last: The id of the last event that the browser has received.
        """
        headers = {} if last is None else {"Last-Event-ID": last}
        with self.response(f"/events?{self.query}", headers) as response:
            assert response.status == 200
            yield _events(response)


def _events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    number = ""
    for line in lines:
        field, _, value = line.decode().rstrip().partition(": ")
        if field == "id":
            number = value
        elif field == "data":
            yield {"id": number, **json.loads(value)}


def until(events: Iterator[dict[str, Any]], text: str) -> dict[str, Any]:
    """The first event whose summary contains a text."""
    for event in events:
        if text in event["sections"].get("summary", ""):
            return event
    raise AssertionError(f"no event contains {text!r}")


class LiveRun:
    """Run with a dashboard, whose tasks the test starts.

    Args:
        directory: The directory of the run.
        options: More options of `rhapsody run`.

    Attributes:
        browser: A browser with the address that the command has printed.
        process: The process of the run.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        (directory / "wf.py").write_text(PROGRAM)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rhapsody", "run", "-q", "--dashboard", *options, "wf.py"],
            cwd=directory,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.fullmatch(r"rhapsody: dashboard: (http://127\.0\.0\.1:\d+/\?token=\S+)\n", line)
        assert found, line + self.process.communicate(timeout=PATIENCE)[1]
        self.browser = Browser(found[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)

    def call(self, number: int) -> None:
        """Let the program call a task, which fails if the number is negative."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")

    def close_input(self) -> None:
        """Let the program end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None  # `communicate` would flush it

    def interrupt(self) -> None:
        """Send the signal of Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Let the program end; its exit code, and what it has printed after the address."""
        _, text = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, text


class Server:
    """Server of the dashboard on a thread, for a record that the test writes.

    Attributes:
        browser: A browser with the address of the server.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._messages = asyncio.StreamReader(loop=self._loop)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.browser = Browser(f"http://127.0.0.1:{port}/?token=secret")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        run = RunRecord(Path(), "", "running", program="/p/align.py", started=1e9)
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve(self._listener, "secret", run, self._messages))

    def open(self, record: Path) -> None:
        """Show a record."""
        self._send(json.dumps({"record": str(record)}).encode() + b"\n")

    def end(self) -> None:
        """Send the server the message that the run has ended."""
        if self._thread.is_alive():
            self._send(b'{"ended": true}\n')

    def join(self) -> None:
        """End the server, and wait until it has ended."""
        self.end()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _send(self, message: bytes) -> None:
        self._loop.call_soon_threadsafe(self._messages.feed_data, message)
