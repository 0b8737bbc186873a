"""Entry point of the client: `python -P -m rhapsody_radical.client SOCKET PROGRAM`.

The arguments are the inherited file descriptor of the socket, and the process id of the program.
The program starts the client in a new POSIX session, so that Ctrl-C in a terminal does not reach
it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import warnings
from typing import Any

from rhapsody.sdk import start_thread
from rhapsody_radical import __version__
from rhapsody_radical.wire import Channel, Outbox, Records

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHECK_INTERVAL = 0.5
"""Seconds between two checks of whether the program is running."""


def main(end: int, program: int) -> None:
    """Serve the program until it closes the session or ends.

    Args:
        end: The descriptor of the socket.
        program: The program's process id.
    """
    # Handlers that do nothing, because tasks would inherit ignored signals.
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    channel = Channel(socket.socket(fileno=end))
    os.set_inheritable(end, False)

    def forked() -> None:
        """Close the socket and reset the signals in a process that RADICAL-Pilot has forked."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        channel.close()

    os.register_at_fork(after_in_child=forked)

    def watch() -> None:
        """Shut down the socket when the program ends; other processes may hold copies of it."""
        while os.getppid() == program:
            time.sleep(CHECK_INTERVAL)
        channel.shut()

    start_thread(watch, "rhapsody-radical-program")
    outbox = Outbox(channel)
    logger = logging.getLogger("rhapsody.radical")
    logger.addHandler(Records(outbox))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    client = keep = None
    alone = True
    while alone and (messages := channel.receive()) is not None:
        for name, *parts in messages:
            if name == "open":
                client = _client(outbox, *parts)
            elif name == "close":
                alone, keep = False, parts[0]
            elif client is not None:
                client.do((name, *parts))
    if client is not None:
        client.close(client.keep if alone else keep)
    outbox.end()


def _client(outbox: Outbox, settings: dict[str, Any]) -> Any:
    """Return a new client. This imports RADICAL-Pilot.

    Raises:
        RuntimeError: The program uses another version of this package.
    """
    if settings["version"] != __version__:
        raise RuntimeError(
            f"rhapsody-radical {__version__} was installed after the program had imported version "
            f"{settings['version']}. Restart the program"
        )
    with warnings.catch_warnings():
        # RADICAL-Pilot warns if `logging` was imported first. Its fix for `fork` is not needed,
        # because the processes that it forks here do not log.
        warnings.filterwarnings("ignore", message="Import `radical` modules before `logging`")
        from rhapsody_radical.client.main import PilotClient
    return PilotClient(outbox, settings)


if __name__ == "__main__":
    try:
        main(*map(int, sys.argv[1:]))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    # A normal exit would wait for RADICAL-Pilot's forks.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
