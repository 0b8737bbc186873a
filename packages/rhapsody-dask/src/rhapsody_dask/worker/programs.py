"""Executables and services on a worker, and the sandboxes of tasks.

How a program is run, stopped as a group, captured and found ready is the core's. Added here: the
reaper that ends it when the worker is killed, and telling the backend of readiness.

A sandbox is made fresh for each start, filled, and brought back. Where the workers see the engine's
files, it is the directory that the engine names. Elsewhere it is one of the worker's own: what the
task reads comes with the order, what it leaves goes back with the reply.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from rhapsody import TaskDescription
from rhapsody.sdk import (
    OUTPUT_FILES,
    RESERVED,
    Program,
    TaskProgram,
    TaskService,
    WorkerLoop,
    link_all,
    link_into,
    make_sandbox,
    moved,
    task_environment,
)
from rhapsody_dask.worker.messages import CANCELED, DONE, FAILED, Order, Reply, failure, pack
from rhapsody_dask.worker.site import Running, Site, supervisor


def prepare(site: Site, order: Order, running: Running, values: Sequence[Any]) -> str:
    """Makes the sandbox of a task that begins, with the files it needs in it.

    Dask runs a task again whose worker went away. The worker may be there all the
    same, cut off from the others, with the first start still writing: each start
    after the first has a directory of its own, in that of the first, and goes with it.

    Returns:
        The directory.
    """
    more = order.more
    path: str = more["sandbox"]
    if "ship" in more:
        path = os.path.join(site.worker.local_directory, "rhapsody", order.uid)
    if os.path.lexists(path):
        path = os.path.join(path, f"{RESERVED}{running.token}")
    path = make_sandbox(path)
    for kind, *words in more.get("links", ()):
        if kind == "link":
            link_into(path, words[0], words[1])
        elif kind == "all":
            link_all(words[0], path)
        else:
            unpack_files(values[words[0]].payload, path)
    return path


def bring_back(order: Order, reply: Reply, sandbox: str) -> None:
    """Puts all that can travel of a sandbox into the reply, and removes the sandbox."""
    came = set(order.more.get("came", ()))
    files, left_out = pack_files(
        (name, os.path.join(sandbox, name)) for name in os.listdir(sandbox) if name not in came
    )
    reply.more = {**(reply.more or {}), "files": files}
    if left_out:
        reply.more["left_out"] = left_out
    shutil.rmtree(sandbox, ignore_errors=True)


def pack_files(files: Iterable[tuple[str, str]]) -> tuple[bytes, list[str]]:
    """Packs files and directories, each under a name of its own.

    Returns:
        The bytes, and the names of what cannot travel and is left out: dangling links,
        links that lead out of a directory, pipes, sockets and devices.
    """
    target = io.BytesIO()
    left_out: list[str] = []
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, path in files:
            _add(archive, name, os.path.realpath(path) if os.path.islink(path) else path, left_out)
    return target.getvalue(), sorted(left_out)


def _add(archive: tarfile.TarFile, name: str, path: str, left_out: list[str]) -> None:
    try:
        information: Any = archive.gettarinfo(path, name)
        tarfile.data_filter(information, "/sandbox")  # as when it is unpacked
    except (FileNotFoundError, tarfile.FilterError, AttributeError):  # a socket has none
        left_out.append(name)
        return
    if not information.isreg():
        archive.addfile(information)
    else:
        with open(path, "rb") as file:
            archive.addfile(information, file)
    if information.isdir():
        for entry in sorted(os.listdir(path)):
            _add(archive, f"{name}/{entry}", os.path.join(path, entry), left_out)


def unpack_files(packed: Any, directory: str) -> None:
    """Writes packed files into a directory; none of them can lead out of it."""
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r") as archive:
        for member in archive.getmembers():
            if not os.path.lexists(os.path.join(directory, member.name)):
                archive.extract(member, directory, filter="data")


ANNOUNCE = 'printf "+%d\\n" $$ >&2; exec "$@" 2>>"$0"'
"""Run by a shell whose standard error is the pipe, with the file for errors as `$0`."""


def announced(command: Sequence[str], errors: str) -> list[str]:
    """The command that announces itself before it becomes `command`.

    Args:
        command: The program and its arguments.
        errors: The file that its standard error is added to.
    """
    return ["/bin/sh", "-c", ANNOUNCE, errors, *command]


def run_program(
    site: Site, order: Order, running: Running, values: Sequence[Any], loop: WorkerLoop
) -> Reply:
    """Runs a program to its end on this thread, and gives what came of it."""
    sandbox = prepare(site, order, running, values)
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
        bring_back(order, reply, sandbox)
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
