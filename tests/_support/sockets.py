"""Listening sockets of processes, and what they answer."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

import psutil


def listening(processes: Iterable[psutil.Process]) -> set[tuple[str, int]]:
    """Return the addresses and ports on which processes listen."""
    found = set()
    for process in processes:
        look: Any = getattr(process, "net_connections", None) or process.connections
        found |= {tuple(each.laddr) for each in look("tcp") if each.status == psutil.CONN_LISTEN}
    return found


def answers_http(address: tuple[str, int]) -> bool:
    """Return True if a server answers a request of HTTP without TLS, whatever the answer is."""
    with socket.create_connection(address, timeout=30) as connection:
        try:
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return connection.recv(5) == b"HTTP/"
        except ConnectionError:  # a server of TLS resets the connection
            return False
