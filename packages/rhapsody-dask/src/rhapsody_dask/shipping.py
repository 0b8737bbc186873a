"""Brings our worker-side code to a cluster that need not have it installed.

A plugin of Dask carries it: by value, so that it can be unpickled anywhere, with
the sources of the core and of this package, which Python imports from memory as long as
an engine uses them. Where both are installed, they are used, and must be of the same
versions.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

PACKAGES = ("rhapsody", "rhapsody_guard", "rhapsody_dask")
"""What is carried: named, not imported, as the last of them has this module in it."""

WAITS = 20
"""Killed workers that a task may have waited on before it is given up."""

LEFT_OUT = ("rhapsody/cli/", "rhapsody/testing/", "rhapsody/observers/")
"""Parts of the core that no worker needs."""


@functools.cache
def archive() -> bytes:
    """The sources as a zip file."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for package in PACKAGES:
            spec = find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            root = Path(spec.origin).parent
            for path in sorted(root.rglob("*.py")):
                name = path.relative_to(root.parent).as_posix()
                if not name.startswith(LEFT_OUT):
                    # Without a date, so that the same sources make the same file.
                    packed.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return target.getvalue()


def versions() -> dict[str, str]:
    """What must be the same here and on the workers."""
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "cloudpickle": cloudpickle.__version__,
        "rhapsody-core": version("rhapsody-core"),
        "rhapsody-dask": version("rhapsody-dask"),
    }


def look() -> Callable[..., dict[str, str]]:
    """What tells which versions are installed where it is called; it travels by value."""

    def installed(**_: Any) -> dict[str, str]:
        from importlib.metadata import PackageNotFoundError, version

        found = {}
        for name in ("rhapsody-core", "rhapsody-dask"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found

    return installed


class _Shipped:
    """Finds and loads modules from sources in memory (`importlib.abc`). Travels by value.

    Attributes:
        shipped_by_rhapsody: Tells it from other finders, those of other plugins' pickles, too.
        digest: Which sources these are.
        users: The plugins that use them.
    """

    shipped_by_rhapsody = True

    def __init__(self, sources: bytes, digest: str) -> None:
        with zipfile.ZipFile(io.BytesIO(sources)) as packed:
            self._sources = {name: packed.read(name).decode() for name in packed.namelist()}
        self.digest = digest
        self.users: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        base = name.replace(".", "/")
        for file, is_package in ((f"{base}/__init__.py", True), (f"{base}.py", False)):
            if file in self._sources:
                origin = f"rhapsody-{self.digest[:8]}/{file}"
                spec = ModuleSpec(name, self, origin=origin, is_package=is_package)  # type: ignore[arg-type]
                spec.has_location = True
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves that to Python."""

    def exec_module(self, module: Any) -> None:
        spec = module.__spec__
        code = compile(self.get_source(spec.name), spec.origin, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - our own sources

    def get_source(self, name: str) -> str:
        """The source of a module, for tracebacks, too."""
        spec = self.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        return self._sources[spec.origin.partition("/")[2]]

    def remove(self) -> None:
        """Has the next import look elsewhere; what runs goes on."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        for name, module in list(sys.modules.items()):
            if getattr(getattr(module, "__spec__", None), "loader", None) is self:
                del sys.modules[name]


class _Cargo:
    """What both plugins carry, and how they unpack it. Travels by value."""

    def __init__(self, sources: bytes | None, wanted: dict[str, str]) -> None:
        self.sources = sources
        self.wanted = wanted

    def unpack(self, user: str) -> None:
        """Makes our code importable here.

        Args:
            user: Who uses it, until `discard`.

        Raises:
            RuntimeError: Other versions are installed or used here.
        """
        found = look()()
        for name, there in found.items():
            if there != self.wanted[name]:
                raise RuntimeError(
                    f"{name} is {there} on this side and {self.wanted[name]} at the client: "
                    "install the same version on both sides, or none on this one"
                )
        if len(found) == 2 or self.sources is None:
            return
        digest = hashlib.sha256(self.sources).hexdigest()
        shipped = self._shipped()
        if shipped is None:
            shipped = _Shipped(self.sources, digest)
            sys.meta_path.append(shipped)
        elif shipped.digest != digest:
            raise RuntimeError(
                "another program uses this side with another version of Rhapsody, and there can be "
                "one at a time: wait until it has ended, or install the same version on both sides"
            )
        shipped.users.add(user)

    def discard(self, user: str) -> None:
        """Takes the code away where nobody else uses it, so that the next client brings its own."""
        shipped = self._shipped()
        if shipped is not None and user in shipped.users:
            shipped.users.remove(user)
            if not shipped.users:
                shipped.remove()

    @staticmethod
    def _shipped() -> Any:
        ours = (one for one in sys.meta_path if hasattr(one, "shipped_by_rhapsody"))
        return next(ours, None)


class WorkerSetup(WorkerPlugin):
    """Opens the backend's site on each worker, those that join later, too."""

    def __init__(
        self, cargo: _Cargo, session: str, grace: float, notes: str | None, *, own: bool
    ) -> None:
        self.name: str = f"rhapsody-{session}"
        self.client: int = os.getpid()
        self.cargo = cargo
        self.session = session
        self.grace = grace
        self.notes = notes
        self.own = own

    def setup(self, worker: Any) -> None:
        """Called by Dask on the worker."""
        self.cargo.unpack(f"{self.name} {worker.address}")
        from rhapsody_dask.worker.site import leave_ctrl_c, open_site

        if self.own:
            leave_ctrl_c(self.client)

        site = open_site(worker, self.session, self.grace, self.notes)
        self.seceded: Callable[[str], None] = site.seceded

    def transition(self, key: Any, start: str, finish: str, **more: Any) -> None:
        """Called by Dask when a task on the worker changes its state."""
        if finish == "long-running":
            self.seceded(str(key))

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the worker closes or the plugin is removed."""
        try:
            from rhapsody_dask.worker.site import close_site

            close_site(worker, self.session)
        finally:
            self.cargo.discard(f"{self.name} {worker.address}")


class ModulesSetup(WorkerPlugin):
    """Sends the program's own modules to each worker, including later ones."""

    def __init__(self, session: str, modules: bytes, reference: bytes) -> None:
        self.name: str = f"rhapsody-{session}-modules-{reference.hex()}"
        self.modules = modules
        self.reference = reference

    def setup(self, worker: Any) -> None:
        """Called by Dask on the worker."""
        from rhapsody.sdk import sent_modules

        sent_modules().receive(self.modules)

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the worker closes or the plugin is removed."""
        from rhapsody.sdk import sent_modules

        sent_modules().discard(self.reference)


class SchedulerSetup(SchedulerPlugin):
    """Publishes what becomes of the backend's tasks, and of the workers, in the session's topic.

    It lets the scheduler import the function that graphs call. On a cluster that is not our own
    it takes back both plugins when their client has gone, however that came.

    On our own cluster Dask gives up every task of a killed worker (`allowed-failures` is 0). The
    plugin has it run those again that had not started, according to the worker's notes.
    """

    def __init__(
        self, cargo: _Cargo, session: str, client: str | None, notes: str | None = None
    ) -> None:
        self.client = client
        self.notes = notes
        self.session = session
        self.name: str = f"rhapsody-{session}"
        self.topic: str = f"rhapsody.{session}"
        self.cargo = cargo
        self.news: list[tuple[str, str]] = []

    async def start(self, scheduler: Any) -> None:
        """Called by Dask on the scheduler."""
        self.cargo.unpack(f"{self.name} scheduler")
        import rhapsody_dask.worker.entry
        import rhapsody_dask.worker.messages  # noqa: F401

        self.scheduler = scheduler

    def transition(
        self, key: Any, start: str, finish: str, *args: Any, typename: str = "", **more: Any
    ) -> None:
        """Called by Dask when a task changes its state."""
        if type(key) is not str or f"-{self.session}-" not in key:
            return
        if finish == "memory":
            word = "returned" if typename.endswith(".Returned") else "replied"
        elif finish == "erred":
            word = "erred"
        elif finish == "released" and start == "memory":
            word = "lost"
        elif finish == "forgotten" and start not in ("memory", "erred"):
            word = "dropped"  # what had ended is forgotten when the client lets go of it
        else:
            return
        if not self.news:  # published after Dask's own messages to the client
            asyncio.get_running_loop().call_soon(self._publish)
        self.news.append((key, word))

    def _publish(self) -> None:
        if self.news:
            news, self.news = self.news, []
            self.scheduler.log_event(self.topic, {"tasks": news})

    def _retry(self, worker: str) -> None:
        """Run the tasks of a killed worker again that it had not started."""
        from rhapsody_dask.worker.site import mark, started_on

        assert self.notes is not None
        started = started_on(self.notes, worker)
        tasks = self.scheduler.tasks
        erred = {key for key, word in self.news if word == "erred" and key in tasks}
        retried = [
            key
            for key in erred
            if 0 < tasks[key].suspicious <= WAITS
            and tasks[key].exception_blame is tasks[key]
            and mark(key.rpartition(f"{self.session}-")[2]) not in started
        ]
        if retried:
            self.scheduler.stimulus_retry(retried)
            again = {key for key in erred if tasks[key].state != "erred"}
            self.news = [(key, word) for key, word in self.news if key not in again]

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Called by Dask when a client has gone."""
        if client == self.client:
            self._taking_back = asyncio.ensure_future(self._take_back(scheduler))

    async def _take_back(self, scheduler: Any) -> None:
        names = [name for name in scheduler.worker_plugins if name.startswith(self.name)]
        for name in reversed(names):  # that of the site, with our code, is the first
            await scheduler.unregister_worker_plugin(comm=None, name=name)
        await scheduler.unregister_scheduler_plugin(name=self.name)
        await self.close()

    async def close(self) -> None:
        """Called by Dask when the scheduler closes."""
        self.cargo.discard(f"{self.name} scheduler")

    def remove_worker(self, scheduler: Any, worker: str, **options: Any) -> None:
        """Called by Dask when a worker has gone, however that came."""
        if self.notes is not None:
            self._retry(worker)
        self.news += [(key, "stuck") for key in _stuck(scheduler)]
        self._publish()
        scheduler.log_event(self.topic, {"gone": worker})


def _stuck(scheduler: Any) -> list[str]:
    """Return the tasks that Dask would leave waiting for one that it gave up.

    It fails those that wait when it gives a task up, but not those whose values are lost with a
    worker then or later.
    """
    seen: dict[str, None] = {}
    todo = [task for task in scheduler.tasks.values() if task.state == "erred"]
    while todo:
        for task in todo.pop().dependents:
            if task.state in ("released", "waiting") and task.key not in seen:
                seen[task.key] = None
                todo.append(task)
    return [key for key in seen if isinstance(key, str)]


class Packed:
    """A plugin that has been pickled by value: unpickling it gives the plugin itself."""

    def __init__(self, plugin: Any) -> None:
        # For good: other backends may be starting at the same time.
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        self._packed: bytes = cloudpickle.dumps(plugin)
        self.name: str = plugin.name

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._packed,)


class PackedWorkerSetup(Packed, WorkerPlugin):
    """What is registered for workers."""


class PackedSchedulerSetup(Packed, SchedulerPlugin):
    """What is registered for the scheduler."""


def modules_plugin(session: str, modules: bytes) -> PackedWorkerSetup:
    """The plugin that sends the program's own modules to the workers."""
    from rhapsody.sdk import REFERENCE

    return PackedWorkerSetup(ModulesSetup(session, modules, modules[:REFERENCE]))


def plugins(
    session: str, grace: float, *, client: str | None, notes: str | None = None
) -> tuple[PackedSchedulerSetup, PackedWorkerSetup]:
    """The plugins for one backend.

    Args:
        session: Its session.
        grace: Seconds between asking a program to end and ending it by force.
        client: The id of the client on a cluster that is not our own, where our sources are
            carried and taken back when the client has gone.
        notes: The directory where the workers of our own cluster note which attempts run.
    """
    cargo = _Cargo(archive() if client is not None else None, versions())
    return (
        PackedSchedulerSetup(SchedulerSetup(cargo, session, client, notes)),
        PackedWorkerSetup(WorkerSetup(cargo, session, grace, notes, own=client is None)),
    )
