"""Dask plugins that send Rhapsody's code to a cluster and publish task transitions there.

The plugins are pickled by value, so they can be unpickled without Rhapsody. For an existing
cluster, they contain the source code of `rhapsody` and of this package in a zip file. Python
imports from this file while an engine uses the cluster. If both packages are installed on the
cluster, the installed packages are used instead; their versions must be the same as on this
machine.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import os
import pickle
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle  # type: ignore[import-untyped]
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

from rhapsody_dask.classes import Http

PACKAGES = ("rhapsody", "rhapsody_guard", "rhapsody_dask")
"""Names of the packages that are sent."""

ALLOWED_LOSSES = 20
"""Number of killed workers to which a task may have been assigned without starting.

If one more such worker is killed, the task fails.
"""

LATE = 5.0
"""Seconds after a client has disconnected within which its last requests may reach the scheduler:
a registration uses another connection.
"""

EXCLUDED = ("rhapsody/cli/", "rhapsody/history/", "rhapsody/observers/")
"""Parts of `rhapsody` that no worker needs."""


@functools.cache
def archive() -> bytes:
    """Return the sources of `PACKAGES` as the content of a zip file."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for package in PACKAGES:
            spec = find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            root = Path(spec.origin).parent
            for path in sorted(root.rglob("*.py")):
                name = path.relative_to(root.parent).as_posix()
                if not name.startswith(EXCLUDED):
                    # Without a date, so that the same sources produce the same file.
                    packed.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return target.getvalue()


def installed() -> dict[str, str]:
    """Return the versions of Rhapsody's distributions that are installed in this environment."""
    found = {}
    for name in ("rhapsody-core", "rhapsody-dask"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


DIRECTORY_PREFIX = "rhapsody-shipped-"
"""Prefix of the names of the directories that contain the zip file."""


class _Cargo:
    """Source code that both plugins contain, as a zip file from which Python can import.

    All plugins in a process import from one file, whose path is in `sys.path` once for each plugin.

    Args:
        sources: The content of the zip file, or `None` to send no sources.
        wanted: The versions that installed packages must have, by distribution.
    """

    def __init__(self, sources: bytes | None, wanted: dict[str, str]) -> None:
        self.sources = sources
        self.wanted = wanted
        self.path: str | None = None

    def unpack(self, where: str) -> None:
        """Make Rhapsody's code importable in this process.

        Args:
            where: The name of this process for messages.

        Raises:
            RuntimeError: Another version is installed here or was sent by another program.
        """
        found = installed()
        for name, there in found.items():
            if there != self.wanted[name]:
                command = " ".join(f"{name}=={version}" for name, version in self.wanted.items())
                raise RuntimeError(
                    f"{name} {self.wanted[name]} here, {there} on {where}. Run "
                    f"`pip install {command}` there, or uninstall both packages there; the backend "
                    "then sends the code that workers need"
                )
        if len(found) == 2 or self.sources is None:
            return
        file = f"{hashlib.sha256(self.sources).hexdigest()[:32]}.zip"
        path = next((entry for entry in sys.path if DIRECTORY_PREFIX in entry), None)
        if path is None:
            path = os.path.join(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX), file)
            Path(path).write_bytes(self.sources)
        elif os.path.basename(path) != file:
            raise RuntimeError(
                f"another program is using {where} with a different version of Rhapsody. Wait "
                "until that program has ended, or run both programs with the same version"
            )
        self.path = path
        sys.path.append(path)

    def discard(self) -> None:
        """Remove the code if no other plugin uses it, so that a client can send another version.

        Code that is running is not affected.
        """
        path, self.path = self.path, None
        if path is None:
            return
        sys.path.remove(path)
        if path in sys.path:
            return
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(path):
                del sys.modules[name]
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)


class WorkerSetup(WorkerPlugin):
    """Worker plugin that prepares all present and future workers to run the backend's tasks."""

    def __init__(
        self, cargo: _Cargo, session: str, grace: float, notes: str | None, *, own: bool, http: bool
    ) -> None:
        from rhapsody_dask.worker.site import current_directory

        self.name: str = f"rhapsody-{session}"
        self.client: int | None = os.getpid() if own else None
        self.cargo = cargo
        self.session = session
        self.grace = grace
        self.notes = notes
        self.http = http
        self.directory: str = current_directory()

    def setup(self, worker: Any) -> None:
        """Prepare the worker to run the backend's tasks; called by Dask on the worker."""
        self.cargo.unpack(f"worker {worker.address}")
        import rhapsody_dask.worker.running  # noqa: F401 - the first task need not import it
        from rhapsody_dask.worker.entry import close_http
        from rhapsody_dask.worker.site import leave_ctrl_c, open_site

        if not self.http:
            close_http(worker)

        if self.client is not None:
            leave_ctrl_c(self.client)

        site = open_site(
            worker, self.session, self.grace, self.notes, self.directory, client=self.client
        )
        self.seceded: Callable[[str], None] = site.seceded

    def transition(self, key: Any, start: str, finish: str, **more: Any) -> None:
        """Release the cores of a task that secedes; called by Dask on each transition of a task."""
        if finish == "long-running":
            self.seceded(str(key))

    def teardown(self, worker: Any) -> None:
        """Stop the backend's tasks.

        Called by Dask when the worker closes or the plugin is removed.
        """
        try:
            from rhapsody_dask.worker.site import close_site

            close_site(worker, self.session)
        finally:
            self.cargo.discard()


class NodesSetup(WorkerPlugin):
    """Worker plugin that reports the load of the workers' nodes."""

    interval: ClassVar[float] = 5.0  # seconds

    def __init__(self, session: str) -> None:
        from rhapsody_dask.worker.site import topic

        self.name: str = f"rhapsody-{session}-nodes"
        self.topic: str = topic(session)

    def setup(self, worker: Any) -> None:
        """Begin to sample the load of the node; called by Dask on the worker."""
        from rhapsody.sdk import NodeSampler

        def report(sample: Any) -> None:
            worker.log_event(self.topic, {"load": sample._asdict()})

        self.sampler: Any = NodeSampler(report, interval=self.interval)
        self.sampler.start()

    def teardown(self, worker: Any) -> None:
        """Stop sampling; called by Dask when the worker closes or the plugin is removed."""
        self.sampler.stop()


class ModulesSetup(WorkerPlugin):
    """Worker plugin that sends the main program's modules to all present and future workers."""

    def __init__(self, session: str, modules: bytes) -> None:
        from rhapsody.sdk import REFERENCE

        self.reference: bytes = modules[:REFERENCE]
        self.name: str = f"rhapsody-{session}-modules-{self.reference.hex()}"
        self.modules = modules

    def setup(self, worker: Any) -> None:
        """Make the modules importable; called by Dask on the worker."""
        from rhapsody.sdk import sent_modules

        sent_modules().receive(self.modules)

    def teardown(self, worker: Any) -> None:
        """Remove the modules; called by Dask when the worker closes or the plugin is removed."""
        from rhapsody.sdk import sent_modules

        sent_modules().discard(self.reference)


class SchedulerSetup(SchedulerPlugin):
    """Scheduler plugin that publishes task transitions and lost workers as events.

    The plugin also makes the functions that graphs call importable on the scheduler. On an existing
    cluster, it removes itself and the backend's worker plugins when the backend's client has
    disconnected.

    On a cluster that the backend started, Dask fails every task of a killed worker
    (`allowed-failures` is 0). The plugin lets Dask retry the tasks that had not started, according
    to the worker's notes.
    """

    def __init__(
        self,
        cargo: _Cargo,
        session: str,
        client: str | None,
        notes: str | None = None,
        *,
        http: bool = True,
    ) -> None:
        from rhapsody_dask.worker.messages import ATTACHED
        from rhapsody_dask.worker.site import topic

        self.attached: str = ATTACHED
        self.client = client
        self.notes = notes
        self.session = session
        self.name: str = f"rhapsody-{session}"
        self.topic: str = topic(session)
        self.cargo = cargo
        self.http = http
        self.changes: list[tuple[Any, ...]] = []

    async def start(self, scheduler: Any) -> None:
        """Make Rhapsody's code importable; called by Dask on the scheduler.

        Raises:
            RuntimeError: The backend's client has disconnected meanwhile.
        """
        if self.client is not None and self.client not in scheduler.clients:
            raise RuntimeError("the client has disconnected")
        self.cargo.unpack("the scheduler")
        import rhapsody_dask.worker.messages  # noqa: F401
        from rhapsody_dask.worker.entry import close_http

        if not self.http:
            close_http(scheduler)
        self.scheduler = scheduler

    def transition(
        self, key: Any, start: str, finish: str, *args: Any, typename: str = "", **more: Any
    ) -> None:
        """Store a transition for publication; called by Dask when a task changes its state."""
        if type(key) is not str or f"-{self.session}-" not in key:
            return
        if finish == "memory":
            change = "returned" if typename.endswith(".Returned") else "replied"
            reply = (more.get("metadata") or {}).get(self.attached)
            interval = _interval(more.get("startstops"))
            self._change(key, change, more.get("nbytes"), interval, reply)
            return
        elif finish == "erred":
            change = "erred"
        elif finish == "released" and start == "memory":
            change = "lost"
        elif finish == "forgotten" and start not in ("memory", "erred"):
            change = "dropped"  # ended tasks are forgotten when the client releases them
        else:
            return
        self._change(key, change)

    def _change(self, *change: Any) -> None:
        """Add a change to the next event: a key, a word and, for a result, further values.

        These are the size and the times of the result, and the packed reply if the worker has sent
        it.
        """
        if not self.changes:  # publish after Dask's own messages to the client
            asyncio.get_running_loop().call_soon(self._publish)
        self.changes.append(change)

    def _publish(self) -> None:
        if self.changes:
            changes, self.changes = self.changes, []
            self.scheduler.log_event(self.topic, {"tasks": changes})

    def _retry(self, worker: str) -> list[bytes]:
        """Let Dask retry the tasks that a killed worker had not started.

        Returns:
            The marks of the attempts that were running on the worker.
        """
        from rhapsody_dask.worker.site import mark, started_on

        assert self.notes is not None
        started = started_on(self.notes, worker)
        tasks = self.scheduler.tasks
        erred = {key for key, change, *_ in self.changes if change == "erred" and key in tasks}
        retried = [
            key
            for key in erred
            if 0 < tasks[key].suspicious <= ALLOWED_LOSSES
            and tasks[key].exception_blame is tasks[key]
            and mark(key.rpartition(f"{self.session}-")[2]) not in started
        ]
        if retried:
            self.scheduler.stimulus_retry(retried)
            again = {key for key in erred if tasks[key].state != "erred"}
            self.changes = [change for change in self.changes if change[0] not in again]
            self.changes += [(key, "repeated") for key in retried]
        return [*started]

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Remove the plugins if the backend's client has disconnected; called by Dask."""
        if client == self.client:
            self._unregistering = asyncio.ensure_future(self._unregister(scheduler))

    async def _unregister(self, scheduler: Any) -> None:
        await self._unregister_worker_plugins(scheduler)
        await scheduler.unregister_scheduler_plugin(name=self.name)
        await self.close()
        await asyncio.sleep(LATE)
        await self._unregister_worker_plugins(scheduler)

    async def _unregister_worker_plugins(self, scheduler: Any) -> None:
        names = [name for name in scheduler.worker_plugins if name.startswith(self.name)]
        for name in reversed(names):  # the first is the site's plugin, which holds our code
            with suppress(Exception):  # a worker was lost; the plugin has been removed
                await scheduler.unregister_worker_plugin(comm=None, name=name)

    async def close(self) -> None:
        """Remove Rhapsody's code from the scheduler.

        Called by Dask when the scheduler closes, and by `remove_client`.
        """
        self.cargo.discard()

    def remove_worker(self, scheduler: Any, worker: str, **options: Any) -> None:
        """Publish the loss of a worker.

        Called by Dask after the worker's tasks have changed their states.
        """
        started = None if self.notes is None else self._retry(worker)
        self.changes += [(key, "stuck") for key in _stuck(scheduler)]
        self._publish()
        scheduler.log_event(self.topic, {"removed": worker, "started": started})


def _interval(times: Any) -> tuple[float, float] | None:
    """Return the start and the end of a task's function, from the times that a worker reports."""
    found = [each for each in times or () if each["action"] == "compute"]
    return (found[-1]["start"], found[-1]["stop"]) if found else None


def _stuck(scheduler: Any) -> list[str]:
    """Return the keys of tasks that Dask will never run because a dependency has failed.

    Dask fails the dependents of a task when the task fails, but not dependents whose values are
    lost with a worker at the same time or later.
    """
    seen: dict[str, None] = {}
    todo = [task for task in scheduler.tasks.values() if task.state == "erred"]
    while todo:
        for task in todo.pop().dependents:
            if task.state in ("released", "waiting") and task.key not in seen:
                seen[task.key] = None
                todo.append(task)
    return [key for key in seen if isinstance(key, str)]


class PackedPlugin:
    """Plugin pickled by value; unpickling this object returns the plugin."""

    def __init__(self, plugin: Any) -> None:
        # Not unregistered, because other backends may be starting at the same time.
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        self._packed: bytes = cloudpickle.dumps(plugin)
        self.name: str = plugin.name

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._packed,)


class PackedWorkerSetup(PackedPlugin, WorkerPlugin):
    """Packed worker plugin."""


class PackedSchedulerSetup(PackedPlugin, SchedulerPlugin):
    """Packed scheduler plugin."""


def plugins(
    session: str, grace: float, http: Http, *, client: str | None, notes: str | None = None
) -> tuple[PackedSchedulerSetup, PackedWorkerSetup]:
    """Return the scheduler plugin and the worker plugin of one backend.

    Args:
        session: The backend's session.
        grace: Seconds between SIGTERM and SIGKILL.
        http: The HTTP servers to keep; the plugins close the others.
        client: On an existing cluster, the client's id: the plugins contain the sources, and are
            removed when this client has disconnected. `None` for a cluster that the backend
            started.
        notes: The directory in which workers record their running attempts, or `None` to record
            none.
    """
    cargo = _Cargo(archive() if client is not None else None, installed())
    return (
        PackedSchedulerSetup(SchedulerSetup(cargo, session, client, notes, http=http.scheduler)),
        PackedWorkerSetup(
            WorkerSetup(cargo, session, grace, notes, own=client is None, http=http.workers)
        ),
    )
