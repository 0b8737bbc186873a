"""Brings our worker-side code to a cluster that need not have it installed.

A plugin of Dask carries it: by value, so that it can be unpickled anywhere, with
the sources of the core and of this package as a zip file that Python imports
from. Where both are installed, they are used, and must be of the same versions.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

LEFT_OUT = ("rhapsody/cli/", "rhapsody/testing/", "rhapsody/observers/", "rhapsody/wfformat/")
"""Parts of the core that no worker needs."""


@functools.cache
def archive() -> bytes:
    """The sources as a zip file."""
    import rhapsody
    import rhapsody_dask
    import rhapsody_guard

    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for package in (rhapsody, rhapsody_guard, rhapsody_dask):
            assert package.__file__ is not None
            root = Path(package.__file__).parent
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


class _Cargo:
    """What both plugins carry, and how they unpack it. Travels by value."""

    def __init__(self, sources: bytes | None, wanted: dict[str, str]) -> None:
        self.sources = sources
        self.wanted = wanted

    def unpack(self, directory: str) -> None:
        """Makes our code importable here.

        Raises:
            RuntimeError: Other versions are installed here.
        """
        import importlib

        found = look()()
        for name, there in found.items():
            if there != self.wanted[name]:
                raise RuntimeError(
                    f"{name} is {there} on this side and {self.wanted[name]} at the client: "
                    "install the same version on both sides, or none on this one"
                )
        if len(found) == 2 or self.sources is None:
            return
        path = os.path.join(directory, f"rhapsody-{hashlib.sha256(self.sources).hexdigest()}.zip")
        if path in sys.path:
            return
        with open(f"{path}.{os.getpid()}", "wb") as file:
            file.write(self.sources)
        os.replace(f"{path}.{os.getpid()}", path)
        sys.path.append(path)
        importlib.invalidate_caches()


class WorkerSetup(WorkerPlugin):
    """Opens the backend's site on each worker, those that join later, too."""

    def __init__(self, cargo: _Cargo, session: str, grace: float, witnesses: str | None) -> None:
        self.name: str = f"rhapsody-{session}"
        self.client: int = os.getpid()
        self.cargo = cargo
        self.session = session
        self.grace = grace
        self.witnesses = witnesses

    def setup(self, worker: Any) -> None:
        """Called by Dask on the worker."""
        self.cargo.unpack(worker.local_directory)
        from rhapsody_dask.worker.site import leave_ctrl_c, open_site

        if self.witnesses is not None:  # on a cluster of our own
            leave_ctrl_c(self.client)

        site = open_site(worker, self.session, self.grace, self.witnesses)
        self.seceded: Callable[[str], None] = site.seceded

    def transition(self, key: Any, start: str, finish: str, **more: Any) -> None:
        """Called by Dask when a task on the worker changes its state."""
        if finish == "long-running":
            self.seceded(str(key))

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the worker closes or the plugin is taken back."""
        from rhapsody_dask.worker.site import close_site

        close_site(worker, self.session)


class SchedulerSetup(SchedulerPlugin):
    """Lets the scheduler import the function that graphs call, and tells of lost workers."""

    def __init__(self, cargo: _Cargo, session: str) -> None:
        self.name: str = f"rhapsody-{session}"
        self.topic: str = f"rhapsody.{session}"
        self.cargo = cargo

    async def start(self, scheduler: Any) -> None:
        """Called by Dask on the scheduler."""
        import tempfile

        with tempfile.TemporaryDirectory(prefix="rhapsody-") as directory:
            self.cargo.unpack(directory)
            import rhapsody_dask.worker.entry
            import rhapsody_dask.worker.messages  # noqa: F401

    def remove_worker(self, scheduler: Any, worker: str, **options: Any) -> None:
        """Called by Dask when a worker has gone, however that came."""
        scheduler.log_event(self.topic, {"worker": worker, "lost": True})


class Packed:
    """A plugin that has been pickled by value: unpickling it gives the plugin itself."""

    def __init__(self, plugin: Any) -> None:
        module = sys.modules[__name__]
        cloudpickle.register_pickle_by_value(module)
        try:
            self._packed: bytes = cloudpickle.dumps(plugin)
        finally:
            cloudpickle.unregister_pickle_by_value(module)
        self.name: str = plugin.name

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._packed,)


class PackedWorkerSetup(Packed, WorkerPlugin):
    """What is registered for workers."""


class PackedSchedulerSetup(Packed, SchedulerPlugin):
    """What is registered for the scheduler."""


def plugins(
    session: str, grace: float, *, ship: bool, witnesses: str | None
) -> tuple[PackedSchedulerSetup, PackedWorkerSetup]:
    """The plugins for one backend.

    Args:
        session: Its session.
        grace: Seconds between asking a program to end and ending it by force.
        ship: Whether to carry our sources; not needed for processes that we started.
        witnesses: The directory where workers note what they have begun, if they are to.
    """
    cargo = _Cargo(archive() if ship else None, versions())
    return (
        PackedSchedulerSetup(SchedulerSetup(cargo, session)),
        PackedWorkerSetup(WorkerSetup(cargo, session, grace, witnesses)),
    )
