"""Process that starts all commands of a RAPTOR worker.

The worker (`_raptor.py`) runs this module with the Python of the program that submitted the
commands, in the program's environment. Commands are therefore started by the same code as on the
local backend. Messages are lines of JSON on a socket. The worker sends `[uid, order]` to start a
command, and `[uid, null]` to cancel one. This process sends an empty line when it is ready, and
`[uid, reply, error]` when a command has ended; either the reply or the error is null.

If the worker ends, the socket is closed, and all commands are terminated. If this process is killed
as well, its reaper kills them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rhapsody import OutOfMemoryError
from rhapsody.sdk import OUTPUT_FILES, Program, Reaper, TaskProgram

GRACE = 0.1
"""Seconds between SIGTERM and SIGKILL, as for commands that RADICAL-Pilot starts."""

MAX_LINE = 1 << 27
"""Maximum length of a message in bytes; Linux's limit for arguments and variables is lower."""

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes of a shell for commands that it cannot start."""


async def serve(connection: socket.socket) -> None:
    """Start and cancel commands on request until the connection ends, then end all commands."""
    reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_LINE)
    launch = partial(_launch, Reaper())
    running: dict[str, asyncio.Task[dict[str, Any]]] = {}

    def report(uid: str, ended: asyncio.Task[dict[str, Any]]) -> None:
        del running[uid]
        reply = error = None
        if ended.cancelled():
            reply = "{}"
        elif (raised := ended.exception()) is not None:
            error = f"{type(raised).__name__}: {raised}"
        else:
            reply = json.dumps(ended.result())
        writer.write(json.dumps([uid, reply, error]).encode() + b"\n")

    writer.write(b"\n")
    while line := await reader.readline():
        uid, order = json.loads(line)
        if order is not None:
            running[uid] = asyncio.create_task(run(order, launch))
            running[uid].add_done_callback(partial(report, uid))
        elif uid in running:
            running[uid].cancel()
    left = list(running.values())
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def run(order: str, launch: Any) -> dict[str, Any]:
    """Run a command to its end.

    Args:
        order: The command, from `rhapsody_radical.functions.as_text`.
        launch: See `rhapsody.sdk.TaskProgram`.

    Returns:
        The name of this machine, the resources that the command has used, and the exit code, as a
        shell reports it. If the command cannot be started, its standard error contains the reason.

    Raises:
        asyncio.CancelledError: The command was canceled, and has ended.
    """
    task: Any = pickle.loads(base64.b64decode(order))  # noqa: S301 - from the program
    error: Exception | None = None
    try:
        task["stdin"] = _read(task["stdin"])
        code = await TaskProgram(task, task["environment"], launch=launch).wait(GRACE)
    except OutOfMemoryError as raised:
        code, error = 128 + signal.SIGKILL, raised
    except Exception as raised:
        missing = isinstance(raised, FileNotFoundError)
        code, error = NOT_FOUND if missing else NOT_EXECUTABLE, raised
    if error is not None and task["capture"]:
        _append(os.path.join(task["sandbox"], OUTPUT_FILES[1]), f"{error}\n")
    exit_code = 128 - code if code < 0 else code
    return {"exit_code": exit_code, "host": socket.gethostname(), "usage": task.get("usage")}


def _read(path: str | None) -> str | None:
    return None if path is None else Path(path).read_text(encoding="utf-8")


def _append(path: str, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def _launch(reaper: Reaper, command: Sequence[str], **options: Any) -> Program:
    """Start a program that ends with this process; discard output that is not captured.

    Returns:
        The running program.
    """
    for name in ("stdout", "stderr"):
        if options[name] is None:
            options[name] = subprocess.DEVNULL
    return Program(command, reaper=reaper, **options)


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
