"""Network link that tests can cut, freeze and heal: a TCP proxy on the loopback interface."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

CHUNK = 1 << 16


class Link:
    """TCP proxy between programs that connect to `address` and a server.

    The proxy runs on a thread. The methods return when they have taken effect.

    Args:
        target: The server's address, such as `tcp://127.0.0.1:8786`.

    Attributes:
        address: The proxy's address, to use instead of the server's.
    """

    def __init__(self, target: str) -> None:
        self._scheme, _, place = target.rpartition("://")
        host, _, port = place.rpartition(":")
        self._target = host, int(port)
        # Reserves the port while the link is cut: connections to a bound port are refused.
        self._reserved = _bound(0)
        self._port: int = self._reserved.getsockname()[1]
        self.address: str = f"{self._scheme}://127.0.0.1:{self._port}"
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        self.heal()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._writers) // 2

    def heal(self) -> None:
        """Accept connections, and forward what was held back."""
        self._call(self._heal)

    def freeze(self) -> None:
        """Keep all connections and accept new ones, but forward nothing."""
        self._call(self._freeze)

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._call(self._cut)

    def close(self) -> None:
        """Cut the link for good."""
        self._call(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
        self._reserved.close()

    def _call(self, action: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(action(), self._loop).result(60)

    # On the thread.

    async def _heal(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=_bound(self._port))
        self._flowing.set()

    async def _freeze(self) -> None:
        self._flowing.clear()

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._pumps:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()

    async def _end(self) -> None:
        await self._cut()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=30)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._server is None:  # cut since
            writer.transport.abort()
            return
        self._pumps.add(task)
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            answers, other = await asyncio.open_connection(*self._target)
            self._writers.add(other)
            pumps = [self._pump(reader, other), self._pump(answers, writer)]
            both = [asyncio.ensure_future(pump) for pump in pumps]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in both:
                    pump.cancel()
        except (OSError, asyncio.CancelledError):  # the server refuses, or the link is cut
            pass
        finally:
            for one in (writer, other):
                if one is not None:
                    one.transport.abort()
                    self._writers.discard(one)
            self._pumps.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            await self._flowing.wait()
            writer.close()  # sends what it still has
            await writer.wait_closed()


def _bound(port: int) -> socket.socket:
    """Return a socket that is bound to a port, which a second socket may share."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


@contextmanager
def link(target: str) -> Iterator[Link]:
    """Run a link to a server."""
    made = Link(target)
    try:
        yield made
    finally:
        made.close()
