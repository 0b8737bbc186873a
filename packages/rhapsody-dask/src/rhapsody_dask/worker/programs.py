"""Runs executables and services on a worker, as the local backend does on its machine.

How a program is run, stopped as a group, captured and found ready is the core's.
Added here: the supervisor that ends it when the worker is killed, and telling the
backend of readiness.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from rhapsody import TaskDescription
from rhapsody.sdk import (
    OUTPUT_FILES,
    Program,
    TaskProgram,
    TaskService,
    WorkerLoop,
    moved,
    task_environment,
)
from rhapsody_dask.worker import sandboxes
from rhapsody_dask.worker.messages import CANCELED, DONE, FAILED, Order, Reply, failure, pack
from rhapsody_dask.worker.site import Running, Site
from rhapsody_dask.worker.supervisor import announced, supervisor


def run_program(
    site: Site, order: Order, running: Running, values: Sequence[Any], loop: WorkerLoop
) -> Reply:
    """Runs a program to its end on this thread, and gives what came of it."""
    sandbox = sandboxes.prepare(site, order, running, values)
    task = cast(
        "TaskDescription",
        {**order.more["program"], "uid": order.uid, "name": order.name, "sandbox": sandbox},
    )
    if sandbox != order.more["sandbox"]:
        _move(task, order.more["sandbox"])
    try:
        code = loop.run(_run(site, order, running, task))
    except Exception as error:  # it could not be started, or was not ready
        reply = failure(error)
    else:
        reply = Reply(FAILED if code else DONE)
    if running.cancelled:
        reply = Reply(CANCELED)
    kept = ("stdout", "stderr", "exit_code", "sandbox")
    reply.more = {key: cast("Any", task)[key] for key in kept if key in task}
    if "ship" in order.more:
        sandboxes.bring_back(order, reply, sandbox)
    return reply


def _move(task: TaskDescription, former: str) -> None:
    """Has a command that names files in its sandbox name those that it has here."""
    task["executable"] = moved(str(task["executable"]), former, task["sandbox"])
    if "arguments" in task:
        task["arguments"] = [moved(word, former, task["sandbox"]) for word in task["arguments"]]


async def _run(site: Site, order: Order, running: Running, task: TaskDescription) -> int:
    """The exit code of a program, which another thread may stop."""
    loop = asyncio.get_running_loop()
    gpus = running.gpus if site.gate.gpus else None
    environment = task_environment(task, cores=order.more.get("cores", 1), gpus=gpus)
    if running.cancelled:
        return 0
    program: TaskProgram
    launch = partial(_launch, os.path.join(task["sandbox"], OUTPUT_FILES[1]))
    if order.more.get("service"):
        ready = partial(_tell_ready, site, task)
        program = TaskService(task, environment, ready=ready, launch=launch)
    else:
        program = TaskProgram(task, environment, launch=launch)

    def stop() -> None:
        with suppress(RuntimeError):  # the loop is closed: it has ended
            loop.call_soon_threadsafe(program.terminate, site.grace)

    running.stop = stop
    if running.cancelled:
        program.terminate(site.grace)
    try:
        return await program.wait(site.grace)
    finally:
        running.stop = None


def _tell_ready(site: Site, task: TaskDescription, value: Any) -> None:
    """Tells the backend that a service is ready, and where it can be reached."""
    if str(task.get("ready", "")).partition(":")[0] == "tcp":
        value = site.host, value[1]
    site.tell({"ready": (task["uid"], pack(value)[0])})


def _launch(errors: str, command: Sequence[str], **options: Any) -> Program:
    """Starts a program so that it ends with the worker, however that ends.

    Args:
        errors: The file for its standard error, where that is kept.
        command: As for `Program`.
        **options: The same.
    """
    stdout = options["stdout"]
    _require_program(command[0], options["cwd"], options["environment"])
    if options["stderr"] is None:
        errors = os.devnull
    options["stdout"] = subprocess.DEVNULL if stdout is None else stdout
    options["stderr"] = supervisor.pipe()
    return Program(announced(command, errors), reaper=supervisor, **options)


def _require_program(name: str, cwd: str, environment: Mapping[str, str]) -> None:
    """Raises what starting the program itself would: the shell would only give a code."""
    path = os.path.join(cwd, name) if os.path.dirname(name) else None
    found = shutil.which(path or name, path=environment.get("PATH"))
    if found is not None:
        return
    if path is not None and os.path.exists(path):
        raise PermissionError(13, os.strerror(13), name)
    raise FileNotFoundError(2, os.strerror(2), name)
