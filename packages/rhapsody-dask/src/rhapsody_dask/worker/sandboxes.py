"""A task's directory on a worker: made fresh for each start, filled, and brought back.

Where the workers see the engine's files, it is the directory that the engine
names. Elsewhere it is one of the worker's own: what the task reads comes with
the order, what it leaves goes back with the reply.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any

from rhapsody.sdk import RESERVED, link_all, link_into, make_sandbox
from rhapsody_dask.worker.messages import Order, Reply
from rhapsody_dask.worker.site import Running, Site


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
