"""Entry point of the client: `python -P -m rhapsody_radical.client SOCKET PIDFD PROGRAM`.

The arguments are two inherited descriptors, of the socket and of the program's process (-1
if the system has none for processes), and the program's process id. The program starts the client
as the leader of a session of its own, so that a terminal's Ctrl-C does not reach it.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import warnings
from typing import Any

from rhapsody_radical.wire import Channel, Outbox, Records

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TICK = 1000
"""Milliseconds between two looks whether the program lives, where nothing tells."""


def main(end: int, program: int, parent: int) -> None:
    """Serve the program until it requests the end, or has ended.

    Args:
        end: The descriptor of the socket.
        program: That of the program's process, -1 for none.
        parent: Its process id.
    """
    # Handlers that do nothing: what is ignored would be ignored by all tasks, too.
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    channel = Channel(socket.socket(fileno=end))
    os.set_inheritable(end, False)
    if program >= 0:
        os.set_inheritable(program, False)

    def forked() -> None:
        """Close the socket and reset the signals in processes that RADICAL-Pilot forks."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        channel.close()
        if program >= 0:
            os.close(program)

    os.register_at_fork(after_in_child=forked)

    def watch() -> None:
        """End the connection to the program, even if other processes hold its end of the socket."""
        _wait_for_the_end_of(program, parent)
        channel.shut()

    threading.Thread(target=watch, name="rhapsody-radical-program", daemon=True).start()
    outbox = Outbox(channel)
    logger = logging.getLogger("rhapsody_radical")
    logger.addHandler(Records(outbox))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    client = keep = None
    alone = True
    while alone and (messages := channel.receive()) is not None:
        for name, *parts in messages:
            if name == "open":
                client = _made(outbox, *parts)
            elif name == "close":
                alone, keep = False, parts[0]
            elif client is not None:
                client.do((name, *parts))
    if client is not None:
        client.close(client.keep if alone else keep)
    outbox.put("closed")
    outbox.end()


def _made(outbox: Outbox, settings: dict[str, Any]) -> Any:
    """Return the client; imports RADICAL-Pilot."""
    with warnings.catch_warnings():
        # It warns where `logging` came first: its repair for `fork` is not needed, as nothing
        # that it forks here logs.
        warnings.filterwarnings("ignore", message="Import `radical` modules before `logging`")
        from rhapsody_radical.client.main import Client
    return Client(outbox, settings)


def _wait_for_the_end_of(program: int, parent: int) -> None:
    """Wait until the program has ended.

    Args:
        program: The descriptor of its process, -1 for none.
        parent: Its process id.
    """
    poll = select.poll()
    if program >= 0:
        poll.register(program, select.POLLIN)
    while not poll.poll(None if program >= 0 else TICK) and os.getppid() == parent:
        continue


if __name__ == "__main__":
    try:
        main(*map(int, sys.argv[1:]))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    # RADICAL-Pilot's forks would be waited for at an ordinary exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
