"""Readiness of services, and the transfer of their readiness information.

RADICAL-Pilot's own service tasks block all other work of the agent while one
starts, and permanently if one fails to start. So a service is an ordinary task here.
Its readiness information is found in its sandbox and passed to RADICAL-Pilot, whose
`Task.wait_info` and `RP_INFO_<UID>` return it as for its own service tasks.
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
from types import SimpleNamespace
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
    wait_until,
)
from rhapsody_radical.pilots import Job, Pilot
from rhapsody_radical.results import output_paths
from rhapsody_radical.wire import is_plain

UP = "service is up"
"""RADICAL-Pilot's readiness information of a service that prints none."""

PORT_LINK = ".rhapsody.port"
"""The link in a service's sandbox whose target is the number of the free port it was given."""

ON_FREE_PORT = (
    "import os, socket, sys; free = socket.socket(); free.bind(('', 0)); "
    "port = str(free.getsockname()[1]); free.close(); "
    f"os.environ['PORT'] = port; os.symlink(port, '{PORT_LINK}'); "
    "words = [word.replace('{port}', port) for word in sys.argv[1:]]; os.execvp(words[0], words)"
)
"""Python, in one line for RADICAL-Pilot's script, which becomes the command that follows it."""


def service_ready_callback(future: Any, task: Any, state: Any) -> None:
    """Set a future once a service is ready, on a daemon thread.

    Args:
        future: Its `set_result` and `set_exception` may be called from any thread.
        task: RADICAL-Pilot's task, or anything with `wait_info()`.
        state: The state that was reported; not used.
    """

    def wait() -> None:
        try:
            info = task.wait_info()
        except Exception as error:  # whatever RADICAL-Pilot raises is the answer
            with suppress(InvalidStateError, asyncio.InvalidStateError):
                future.set_exception(error)
        else:
            with suppress(InvalidStateError, asyncio.InvalidStateError):  # cancelled meanwhile
                future.set_result(info)

    threading.Thread(target=wait, name="rhapsody-radical-service", daemon=True).start()


def attach(job: Job, future: Any, task: Any, state: Any) -> None:
    """Set a future once a job's service is ready, as `service_ready_callback` does."""
    assert job.ready is not None
    service_ready_callback(future, SimpleNamespace(wait_info=job.ready.result), state)


def readiness(task: TaskDescription) -> Ready | None:
    """Return a service's readiness condition, `None` if it has none.

    Without `ready`, the `info_pattern` of RADICAL-Pilot's description is used.

    Raises:
        ValueError: Either is malformed.
    """
    if "ready" in task:
        return parse_ready(task["ready"])
    pattern = task["task_backend_specific_kwargs"].get("info_pattern")
    return parse_ready(pattern) if pattern else None


def prepare(task: TaskDescription, words: dict[str, Any], pilot: Pilot) -> bool:
    """Check a service's readiness condition, and let its node choose the port that it requests.

    Args:
        task: The service.
        words: RADICAL-Pilot's words for it.
        pilot: The pilot it goes to.

    Returns:
        True if it has a readiness condition.

    Raises:
        ValueError: What says how is not well-formed.
        OSError: It is to run on this machine, where something listens on its port already.
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
    job: Job,
    loop: asyncio.AbstractEventLoop,
    tell: Callable[[str, Any], None],
    fail: Callable[[Job], None],
) -> None:
    """Wait on a thread until a service is ready, and inform RADICAL-Pilot's task.

    Args:
        job: The service, which runs.
        loop: The engine's loop, for a callable that is a coroutine function.
        tell: Tells RADICAL-Pilot's task, by its uid, what the service said.
        fail: Ends a service whose readiness could not be found out.
    """
    ready, stopped = readiness(job.task), job.stopped
    assert stopped is not None

    def look() -> None:
        try:
            info = UP if ready is None else _wait(job, ready, stopped, loop)
        except Exception as error:  # the user's callable, or the file system
            job.task["exception"] = error  # its end tells it
            fail(job)
            return
        if ready is None or not stopped.is_set():
            job.info = UP if info is None else info
            assert job.ready is not None
            with suppress(InvalidStateError):  # it has ended meanwhile
                job.ready.set_result(job.info)
            # What is not plain could not be loaded where RADICAL-Pilot is.
            tell(job.uid, job.info if is_plain(job.info) else str(job.info))

    threading.Thread(target=look, name="rhapsody-radical-ready", daemon=True).start()


def _wait(job: Job, ready: Ready, stopped: threading.Event, loop: asyncio.AbstractEventLoop) -> Any:
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


def _picked(job: Job, stopped: threading.Event) -> int:
    link = os.path.join(job.task["sandbox"], PORT_LINK)
    wait_until(lambda: os.path.islink(link), stopped)
    return FREE if stopped.is_set() else int(os.readlink(link))


def _host(job: Job) -> str:
    """Return the node that a service runs on."""
    return "127.0.0.1" if job.host in ("", "localhost", socket.gethostname()) else job.host
