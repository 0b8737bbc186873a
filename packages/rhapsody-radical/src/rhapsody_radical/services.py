"""Detection of service readiness, and transfer of readiness information to RADICAL-Pilot.

While one of RADICAL-Pilot's own service tasks starts, the agent does no other work; if the service
fails to start, the agent is blocked permanently. Services are therefore submitted as ordinary
tasks. This module detects their readiness and passes the information to RADICAL-Pilot, so that
`Task.wait_info` and `RP_INFO_<UID>` provide it as they do for RADICAL-Pilot's own service tasks.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any

from rhapsody import TaskDescription
from rhapsody.sdk import (
    FREE,
    Ready,
    accepts,
    call_ready,
    parse_ready,
    require_unused,
    search_output,
    start_thread,
    wait_until,
)
from rhapsody_radical.pilots import Pilot, PilotTask
from rhapsody_radical.results import output_paths
from rhapsody_radical.wire import is_plain

UP = "service is up"
"""RADICAL-Pilot's readiness information for a service without a readiness condition."""

PORT_LINK = ".rhapsody.port"
"""Name of a link in a service's sandbox; the link's target is the number of the service's port."""

ON_FREE_PORT = (
    "import os, socket, sys; free = socket.socket(); free.bind(('', 0)); "
    "port = str(free.getsockname()[1]); free.close(); "
    f"os.environ['PORT'] = port; os.symlink(port, '{PORT_LINK}'); "
    "words = [word.replace('{port}', port) for word in sys.argv[1:]]; os.execvp(words[0], words)"
)
"""Python program that finds a free port, then executes the command in its arguments.

It is one line, because RADICAL-Pilot puts it into a script.
"""


def service_ready_callback(future: Any, task: Any, state: Any) -> None:
    """Start a daemon thread that sets a future when a service is ready.

    Args:
        future: The future, whose `set_result` and `set_exception` may be called on any thread.
        task: RADICAL-Pilot's task, or another object with a method `wait_info()`.
        state: The reported state, which is not used.
    """

    def wait() -> None:
        try:
            info = task.wait_info()
        except Exception as error:  # raised by RADICAL-Pilot; passed to the future
            with suppress(InvalidStateError, asyncio.InvalidStateError):
                future.set_exception(error)
        else:
            with suppress(InvalidStateError, asyncio.InvalidStateError):  # canceled meanwhile
                future.set_result(info)

    start_thread(wait, "rhapsody-radical-service")


def readiness(task: TaskDescription) -> Ready | None:
    """Return a service's readiness condition, or `None` if the service has none.

    The condition is `ready`, or else the `info_pattern` of RADICAL-Pilot's description.

    Raises:
        ValueError: The condition is malformed.
    """
    if "ready" in task:
        return parse_ready(task["ready"])
    pattern = task["task_backend_specific_kwargs"].get("info_pattern")
    return parse_ready(pattern) if pattern else None


def prepare(task: TaskDescription, words: dict[str, Any], pilot: Pilot) -> bool:
    """Check a service's readiness condition, and add a launcher if the service needs a free port.

    The launcher finds a free port on the service's node and then executes the service.

    Args:
        task: The service.
        words: The service's RADICAL-Pilot description, which is changed.
        pilot: The service's pilot.

    Returns:
        True if the service has a readiness condition, otherwise False.

    Raises:
        ValueError: The readiness condition is malformed.
        OSError: The service will run on this machine, and its port is in use.
    """
    ready = readiness(task)
    if ready is None:
        return False
    free = ready == ("tcp", FREE)
    if ready.kind == "tcp" and not free and pilot.here:
        require_unused(task, ready.value)
    if free:
        launcher = shlex.join([sys.executable, "-P", "-c", ON_FREE_PORT])
        words["executable"] = f"{launcher} {words['executable']}"
    return True


def watch(
    job: PilotTask,
    loop: asyncio.AbstractEventLoop,
    report: Callable[[str, Any], None],
    fail: Callable[[PilotTask], None],
) -> None:
    """Start a thread that reports to RADICAL-Pilot when a service is ready.

    Args:
        job: The service, which is running.
        loop: The engine's loop, for a condition that is a coroutine function.
        report: Called with the service's uid and its readiness information.
        fail: Ends a service whose condition raised an exception.
    """
    ready, stopped = readiness(job.task), job.stopped
    assert stopped is not None

    def look() -> None:
        try:
            info = UP if ready is None else _wait(job, ready, stopped, loop)
        except Exception as error:  # the user's callable, or the file system
            job.task["exception"] = error  # reported when the service has ended
            fail(job)
            return
        if ready is None or not stopped.is_set():
            job.info = UP if info is None else info
            job.ready.set(job.info)
            # The client may lack the classes of values that are not plain.
            report(job.uid, job.info if is_plain(job.info) else str(job.info))

    start_thread(look, "rhapsody-radical-ready")


def _wait(
    job: PilotTask, ready: Ready, stopped: threading.Event, loop: asyncio.AbstractEventLoop
) -> Any:
    if ready.kind == "call":
        return asyncio.run_coroutine_threadsafe(call_ready(ready.value, job.task), loop).result()
    if ready.kind == "file":
        path = os.path.join(job.task["sandbox"], ready.value)
        wait_until(lambda: os.path.exists(path), stopped)
        return path
    if ready.kind == "tcp":
        host = _host(job)
        port = _picked(job, stopped) if ready.value == FREE else ready.value
        wait_until(lambda: accepts(host, port), stopped)
        return host, port
    return search_output(output_paths(job)[0], ready.value, stopped)


def _picked(job: PilotTask, stopped: threading.Event) -> int:
    link = os.path.join(job.task["sandbox"], PORT_LINK)
    wait_until(lambda: os.path.islink(link), stopped)
    return FREE if stopped.is_set() else int(os.readlink(link))


def _host(job: PilotTask) -> str:
    """Return the node that a service runs on, or the loopback address for this machine."""
    return "127.0.0.1" if job.host in ("", "localhost", socket.gethostname()) else job.host
