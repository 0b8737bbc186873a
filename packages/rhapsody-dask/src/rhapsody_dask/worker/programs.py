"""Executables and services on a worker, and the sandboxes of tasks.

Core runs, stops and captures programs and checks their readiness. This module adds the reaper,
which kills a program if its worker is killed, and the message to the backend that a service is
ready.

Each start of a task uses a new sandbox. If the workers see the engine's files, the sandbox is the
directory that the engine chose. Otherwise, it is in the worker's local directory: input files are
sent with the order, and output files are returned with the reply.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from rhapsody import TaskDescription
from rhapsody.sdk import (
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
    """Create the sandbox of a task that is starting, and put its input files there.

    Dask reruns the tasks of lost workers. A lost worker may only have lost its connection, and may
    still be writing to the task's sandbox. Each further start of the task therefore uses a
    directory inside the sandbox of the first start.

    Returns:
        The path of the sandbox.
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


def return_files(order: Order, reply: Reply, sandbox: str) -> None:
    """Add the files of a sandbox, except the inputs, to the reply, and remove the sandbox."""
    came = set(order.more.get("came", ()))
    files, left_out = pack_files(
        (name, os.path.join(sandbox, name)) for name in os.listdir(sandbox) if name not in came
    )
    reply.more = {**(reply.more or {}), "files": files}
    if left_out:
        reply.more["left_out"] = left_out
    shutil.rmtree(sandbox, ignore_errors=True)


def pack_files(files: Iterable[tuple[str, str]]) -> tuple[bytes, list[str]]:
    """Pack files and directories, given as pairs of a name and a path.

    Returns:
        The archive, and the names of entries that were left out: dangling links, links that lead
        out of a directory, pipes, sockets and devices.
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
        tarfile.data_filter(information, "/sandbox")  # as during unpacking
    except (FileNotFoundError, tarfile.FilterError, AttributeError):  # no information on a socket
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
    """Extract packed files to a directory.

    Existing files are kept, and nothing is written outside the directory.
    """
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r") as archive:
        for member in archive.getmembers():
            if not os.path.lexists(os.path.join(directory, member.name)):
                archive.extract(member, directory, filter="data")


def run_program(
    site: Site, order: Order, running: Running, values: Sequence[Any], loop: WorkerLoop
) -> Reply:
    """Run a program on this thread and return its reply."""
    sandbox = prepare(site, order, running, values)
    task = cast(
        "TaskDescription",
        {**order.more["program"], "uid": order.uid, "name": order.name, "sandbox": sandbox},
    )
    if sandbox != order.more["sandbox"]:
        _move(task, order.more["sandbox"])
    try:
        code = loop.run(_run(site, order, running, task))
    except Exception as error:  # it could not be started, or did not become ready
        reply = failure(error)
    else:
        reply = Reply(FAILED if code else DONE)
    if running.cancelled:
        reply = Reply(CANCELED)
    kept = ("stdout", "stderr", "exit_code", "sandbox", "usage")
    reply.more = {key: cast("Any", task)[key] for key in kept if key in task}
    if "ship" in order.more:
        return_files(order, reply, sandbox)
    return reply


def _move(task: TaskDescription, former: str) -> None:
    """Replace the paths of sandbox files in a command with their paths on this worker."""
    task["executable"] = moved(str(task["executable"]), former, task["sandbox"])
    if "arguments" in task:
        task["arguments"] = [moved(word, former, task["sandbox"]) for word in task["arguments"]]


async def _run(site: Site, order: Order, running: Running, task: TaskDescription) -> int:
    """Run a program that other threads can stop.

    Returns:
        The exit code; 0 if the task was canceled before the program started.
    """
    loop = asyncio.get_running_loop()
    gpus = running.gpus if site.gate.gpus else None
    environment = task_environment(task, cores=order.more.get("cores", 1), gpus=gpus)
    if running.cancelled:
        return 0
    program: TaskProgram
    if order.more.get("service"):
        ready = partial(_notify_ready, site, task)
        program = TaskService(task, environment, ready=ready, launch=_launch)
    else:
        program = TaskProgram(task, environment, launch=_launch)

    def stop() -> None:
        with suppress(RuntimeError):  # the loop is closed: the program has ended
            loop.call_soon_threadsafe(program.terminate, site.grace)

    running.stop = stop
    if running.cancelled:
        program.terminate(site.grace)
    try:
        return await program.wait(site.grace)
    finally:
        running.stop = None


def _notify_ready(site: Site, task: TaskDescription, value: Any) -> None:
    """Report to the backend that a service is ready, with its address or other readiness value."""
    if str(task.get("ready", "")).partition(":")[0] == "tcp":
        value = site.host, value[1]
    site.notify({"ready": (task["uid"], pack(value)[0])})


def _launch(command: Sequence[str], **options: Any) -> Program:
    """Start a program that ends with the worker, even if the worker is killed.

    Output that is not captured is discarded, because the worker's own streams are not the user's.

    Returns:
        The running program.
    """
    for name in ("stdout", "stderr"):
        if options[name] is None:
            options[name] = subprocess.DEVNULL
    return Program(command, reaper=supervisor, **options)
