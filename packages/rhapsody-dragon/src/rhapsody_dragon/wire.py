"""Messages between the program, an agent and the agent's workers.

A message is a tuple of its name and values. Messages are pickled in batches, and sent through
sockets in a private directory. Only the user's own processes can connect, so pickles can be
trusted.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

Message = tuple[Any, ...]

LIFE = ".life"
"""Ending of the path of the socket whose connections only show that the agent lives."""

_LENGTH = struct.Struct("=Q")


def encode(messages: Sequence[Message]) -> bytes:
    """Return a batch of messages as bytes: their length, and their pickle."""
    data = pickle.dumps(messages, 5)
    return _LENGTH.pack(len(data)) + data


class Link:
    """One end of a connection. All methods are called on the loop.

    Messages are sent in batches: those of one iteration of the loop together.

    Args:
        reader: The stream of incoming data.
        writer: The stream of outgoing data.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Message] = []

    def put(self, *message: Any) -> None:
        """Send a message. Does nothing if the other side has ended."""
        self._waiting.append(message)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and not self._writer.is_closing():
            self._writer.write(encode(waiting))

    async def batches(self) -> AsyncIterator[list[Message]]:
        """Yield the batches of messages from the other side until it has ended."""
        while True:
            try:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                data = await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, OSError):  # also reset
                return
            yield pickle.loads(data)  # noqa: S301 - from our own process

    def close(self) -> None:
        """Send what is waiting, and end the connection."""
        self._flush()
        self._writer.close()


class BlockingLink:
    """The end of a worker, which makes one call at a time. `put` may be called on any thread.

    Args:
        end: The socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._stream = end.makefile("rb")
        self._sending = threading.Lock()

    def put(self, *message: Any) -> None:
        """Send a message.

        Raises:
            OSError: The other side has ended.
        """
        data = encode([message])
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> list[Message]:
        """Return the next batch of messages; an empty list if the other side has ended."""
        try:
            head = self._stream.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            data = self._stream.read(length)
        except OSError:
            return []
        if not length or len(data) < length:
            return []
        batch: list[Message] = pickle.loads(data)  # noqa: S301 - from our own process
        return batch
