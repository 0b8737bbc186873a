"""Server of the dashboard: the report of a run in progress, for browsers on this machine.

The page contains the report at the time of the request. After that, server-sent events contain the
sections that have changed. They are built only while a browser waits for an event, at most once per
second, and only if the record has grown, or if ten seconds have passed, because the durations of
running tasks grow. A slow browser skips states, so that no queue grows: each event contains
everything that has changed since the previous event of this browser.

Anyone who has the token can read the report. Requests without the token are refused. So are
requests with a foreign name in the header `Host`: otherwise, a web page could use its own name for
the address 127.0.0.1 and read the answers (DNS rebinding).

All users of the machine can connect. The number of connections that have not sent the token is
limited, and a new one replaces the oldest, so that idle connections of others do not keep the
user's browser out. Thousands of new connections per second still do. There is no limit for each
address, because every user may connect from any address of the loopback network.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rhapsody import RhapsodyError
from rhapsody.history import RecordReader, RunHistory, RunRecord
from rhapsody_report import pages

INTERVAL = 1.0
"""Minimum number of seconds between two updates."""

IDLE = 10.0
"""Seconds after which the report is built again although the record has not grown."""

REST = 3.0
"""Minimum time between two updates as a multiple of the processor time that the first of them took.
Tasks on the same machine are more important."""

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
"""Accepted names of this machine. Any port is accepted, for `ssh -L`."""

GRACE = 2
"""Maximum number of seconds in which browsers receive the final state, and in which the lock of a
killed run is released."""

MAX_WAITING = 64
"""Maximum number of connections that have not sent the token."""

HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of all responses."""

_BOKEH_ID = re.compile(r'"p\d+"')
"""Ids in the data of charts, which differ each time."""


class LiveReport:
    """Report of a run that is in progress.

    Args:
        run: The run, as far as it is known without its record.

    Attributes:
        version: The number of times that the report has changed.
        ended: True if the run has ended, and the report no longer changes.
    """

    def __init__(self, run: RunRecord) -> None:
        self.version: int = 0
        self.ended: bool = False
        self._ending = False
        self._history = RunHistory(run, {}, {})
        self._reader: RecordReader | None = None
        self._sections: dict[str, str] = {}
        self._versions: dict[str, int] = {}  # of sections: when they changed
        self._built = -math.inf
        self._browsers = self._waiting = 0
        self._building = asyncio.Lock()
        self._changed = asyncio.Condition()

    def open(self, record: Path) -> None:
        """Follow a record. Only the first call has an effect."""
        self._reader = self._reader or RecordReader(record)

    async def follow(self) -> None:
        """Update the report while browsers wait for changes."""
        while True:
            began = time.process_time()
            if self._waiting:
                await self._update()
            took = time.process_time() - began
            await asyncio.sleep(max(INTERVAL, REST * took))

    async def end(self, *, killed: bool) -> None:
        """Show the final state in all browsers.

        Args:
            killed: True if the process of the run was killed. Its workers may keep the lock of the
                run for a moment.
        """
        self._ending = True
        deadline = time.monotonic() + (GRACE if killed and self._reader is not None else 0.0)
        while self._browsers:
            await self._update(final=True)
            if self._history.run.outcome != "running":
                break
            if time.monotonic() > deadline:
                run = replace(self._history.run, outcome="unknown")
                self._history = replace(self._history, run=run)
                self._reader = None
                deadline = math.inf
            await asyncio.sleep(0.1)
        async with self._changed:
            self.ended = True
            self._changed.notify_all()

    async def page(self) -> str:
        """Return the page with the present report."""
        if time.monotonic() - self._built > INTERVAL:
            await self._update()
        async with self._building:
            return pages.page(self._history, live=True, version=self.version, built=self._sections)

    async def events(self, seen: int) -> AsyncIterator[str]:
        """Yield an event after each change, the last one after the end of the run.

        Args:
            seen: The version of the report that the browser shows.
        """
        if seen > self.version:  # of another server
            seen = 0
        self._browsers += 1
        try:
            while True:
                async with self._changed:
                    self._waiting += 1
                    try:
                        while self.version <= seen and not self.ended:
                            await self._changed.wait()
                    finally:
                        self._waiting -= 1
                ended = self.ended
                yield self._event(seen)
                seen = self.version
                if ended:
                    return
        finally:
            self._browsers -= 1

    def _event(self, seen: int) -> str:
        """Return an event with everything that has changed since a version."""
        changed = {
            name: html for name, html in self._sections.items() if self._versions[name] > seen
        }
        run = self._history.run
        data = {
            "sections": changed,
            "run": run.name,
            "title": pages.title(run),
            "outcome": run.outcome,
            "ended": self.ended,
        }
        return f"id: {self.version}\ndata: {json.dumps(data)}\n\n"

    async def _update(self, *, final: bool = False) -> None:
        """Read the record, and build the sections if it has grown or some time has passed."""
        async with self._building:
            if self._ending and not final:
                return
            changed = await asyncio.to_thread(self._build, final)
        if changed:
            async with self._changed:
                self._changed.notify_all()

    def _build(self, final: bool) -> bool:
        """Build the sections, and return True if one of them has changed."""
        grown = self._reader is not None and self._read(self._reader)
        now = time.monotonic()
        if not (grown or final or now - self._built > IDLE):
            return False
        self._built = now
        built = pages.sections(self._history)
        changed = {
            name
            for name, html in built.items()
            if _BOKEH_ID.sub("", self._sections.get(name, "")) != _BOKEH_ID.sub("", html)
        }
        if changed:
            self.version += 1
            self._sections = built
            self._versions |= dict.fromkeys(changed, self.version)
        return bool(changed)

    def _read(self, reader: RecordReader) -> bool:
        try:
            grown = reader.update()
            self._history = reader.history()
        except (OSError, RhapsodyError):  # there may be no complete line yet
            return False
        return grown


class Connections:
    """Open connections that have not sent the token, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[object, asyncio.Transport] = {}

    def add(self, transport: asyncio.Transport) -> None:
        """Add a new connection, and close the oldest one if there are too many."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.pop(next(iter(self._waiting))).abort()
        self._waiting[transport.get_extra_info("peername")] = transport

    def discard(self, client: object) -> None:
        """Forget a connection that has sent the token or was closed."""
        self._waiting.pop(client, None)

    def protocol(self) -> type[H11Protocol]:
        """Return the protocol class of a server that limits its connections."""
        connections = self

        class LimitedProtocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                connections.add(transport)
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                connections.discard(self.client)
                super().connection_lost(exc)

        return LimitedProtocol


class Guard:
    """Middleware that refuses requests without the token, and adds headers to all responses.

    Args:
        app: The application.
        token: The token.
        connections: The connections of the server.
    """

    def __init__(self, app: ASGIApp, token: str, connections: Connections) -> None:
        self._app = app
        self._connections = connections
        self._token = token.encode()
        policy = f"{pages.content_security_policy(live=True)}; frame-ancestors 'none'"
        self._headers = {**HEADERS, "content-security-policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or refuse it."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        why = self._refusal(scope)
        if why is None:
            self._connections.discard(scope["client"])
        app = self._app if why is None else PlainTextResponse(f"{why}\n", status_code=403)
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> str | None:
        given = QueryParams(scope["query_string"]).get("token", "")
        if not secrets.compare_digest(given.encode(), self._token):
            return "forbidden: open the address that rhapsody run has printed, with its token"
        if _host_name(Headers(scope=scope).get("host", "")) not in LOOPBACK:
            return f"forbidden: use one of the host names {', '.join(sorted(LOOPBACK))}"
        return None


def _host_name(host: str) -> str | None:
    """Return the name in a `Host` header without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def application(live: LiveReport, token: str, connections: Connections) -> Guard:
    """Return the application: the page, and its events."""

    async def page(request: Request) -> Response:
        return HTMLResponse(await live.page())

    async def events(request: Request) -> Response:
        seen = request.headers.get("last-event-id") or request.query_params.get("version", "")
        stream = live.events(int(seen) if seen.isdecimal() and len(seen) < 10 else 0)
        return StreamingResponse(stream, media_type="text/event-stream")

    return Guard(Starlette(routes=[Route("/", page), Route("/events", events)]), token, connections)


async def serve(
    listener: socket.socket, token: str, run: RunRecord, messages: asyncio.StreamReader
) -> None:
    """Serve the report until the run ends.

    Args:
        listener: The listening socket.
        token: The token.
        run: The run, as far as it is known without its record.
        messages: The messages of the process that runs the workflow.
    """
    live = LiveReport(run)
    connections = Connections()
    config = uvicorn.Config(
        application(live, token, connections),
        http=connections.protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # it would contain the token
        server_header=False,
        timeout_graceful_shutdown=GRACE,  # of browsers that do not read
    )
    server = uvicorn.Server(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        following = tasks.create_task(live.follow())
        while (message := await _message(messages)) is not None and "record" in message:
            live.open(Path(message["record"]))
        await live.end(killed=message is None)
        following.cancel()
        server.should_exit = True


async def _message(messages: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the next message, or `None` after the last one."""
    line = await messages.readline()
    found: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return found


async def _main(listener: socket.socket) -> None:
    messages = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(messages)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    hello = await _message(messages)
    if hello is None:  # the run has ended already
        return
    run = RunRecord(
        Path(),
        "",
        "running",
        program=hello["program"],
        pid=os.getppid(),
        host=socket.gethostname(),
        started=hello["started"],
    )
    print(flush=True)  # noqa: T201 - ready: requests that have arrived will be answered
    await serve(listener, hello["token"], run, messages)


if __name__ == "__main__":
    asyncio.run(_main(socket.socket(fileno=int(sys.argv[1]))))
