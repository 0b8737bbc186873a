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
from typing import Any, cast

from rhapsody.backends.local.executables import Executables, Program
from rhapsody.backends.local.jobs import Job
from rhapsody.backends.local.services import Services
from rhapsody.backends.local.slots import Request
from rhapsody.data import OUTPUT_FILES
from rhapsody.sdk.loops import WorkerLoop
from rhapsody.task import TaskDescription
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
    cores = order.more.get("cores", 1)
    job = Job(task, Request(cores=cores), cast("Any", None))
    job.gpus = running.gpus
    loop.run(_Drive(site, order, running, job).run())
    if job.error is not None and not job.cancelled:
        reply = failure(job.error)
    else:
        reply = Reply(CANCELED if job.cancelled else FAILED if job.failed else DONE)
    kept = ("stdout", "stderr", "exit_code", "sandbox")
    reply.more = {key: cast("Any", task)[key] for key in kept if key in task}
    if "ship" in order.more:
        sandboxes.bring_back(order, reply, sandbox)
    return reply


class _Drive:
    """One program on one thread's loop."""

    def __init__(self, site: Site, order: Order, running: Running, job: Job) -> None:
        self._site = site
        self._running = running
        self._job = job
        self._over: asyncio.Future[None] | None = None
        self._runner: Executables
        gpus, grace = site.gate.gpus, site.grace
        if order.more.get("service"):
            self._runner = _Services(self._ended, self._serving, _no_sandbox, gpus, grace)
        else:
            self._runner = _Executables(self._ended, _no_sandbox, gpus, grace)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()

        def stop() -> None:
            with suppress(RuntimeError):  # the loop is closed: it has ended
                loop.call_soon_threadsafe(self._cancel)

        self._running.stop = stop
        try:
            if self._running.cancelled:
                self._job.cancelled = True
                return
            self._runner.run(self._job)
            if self._running.cancelled:
                self._cancel()
            await self._over
        except Exception as error:  # it could not be started
            self._job.error = error
        finally:
            self._running.stop = None

    def _cancel(self) -> None:
        if not self._job.cancelled:
            self._runner.cancel(self._job)

    def _ended(self, job: Job) -> None:
        assert self._over is not None
        self._over.set_result(None)

    def _serving(self, job: Job, attach: Any = None) -> None:
        if attach is not None:
            attach(self, job.task, None)

    def set_result(self, value: Any) -> None:
        """Called once the service is ready."""
        if str(self._job.task.get("ready", "")).partition(":")[0] == "tcp":
            value = self._site.host, value[1]
        self._site.tell({"ready": (self._job.uid, pack(value)[0])})


class _Guarded:
    """Starts programs so that they end with the worker, however that ends."""

    def launch(self, command: Sequence[str], **options: Any) -> Program:
        cwd, stdout = options["cwd"], options["stdout"]
        _require_program(command[0], cwd, options["environment"])
        errors = os.devnull
        if options["stderr"] is not None:
            errors = os.path.join(cwd, OUTPUT_FILES[1])
        options["stdout"] = subprocess.DEVNULL if stdout is None else stdout
        options["stderr"] = supervisor.pipe()
        return Program(announced(command, errors), guardian=supervisor, **options)


class _Executables(_Guarded, Executables):
    pass


class _Services(_Guarded, Services):
    pass


def _require_program(name: str, cwd: str, environment: Mapping[str, str]) -> None:
    """Raises what starting the program itself would: the shell would only give a code."""
    path = os.path.join(cwd, name) if os.path.dirname(name) else None
    found = shutil.which(path or name, path=environment.get("PATH"))
    if found is not None:
        return
    if path is not None and os.path.exists(path):
        raise PermissionError(13, os.strerror(13), name)
    raise FileNotFoundError(2, os.strerror(2), name)


def _no_sandbox(uid: str) -> str:
    raise AssertionError(f"{uid} has no sandbox")  # `prepare` has made one
