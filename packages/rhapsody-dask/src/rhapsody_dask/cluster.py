"""Connection to a Dask cluster, either an existing one or a LocalCluster started for the backend.

Blocking work (importing Dask, starting and stopping processes) runs on threads. A cluster or client
that the user passes is never closed. A cluster of a class that the user names is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pkgutil
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rhapsody import BackendUnavailableError
from rhapsody.sdk import in_thread, suggestion
from rhapsody_dask.classes import (
    LOOPBACK,
    Http,
    keywords,
    remove_credentials,
    requested,
    scratch_directory,
)
from rhapsody_dask.jobs import WorkerJobs
from rhapsody_dask.launchers import Workers
from rhapsody_dask.options import TLS, Options
from rhapsody_dask.worker.entry import has_dashboard

log: logging.Logger = logging.getLogger("rhapsody.dask")


GUARD = re.compile(r"^\s*if .*(__name__|parent_process)", re.MULTILINE)
"""Pattern of an `if` statement that guards the start of a workflow in the main program."""

REGISTRATIONS = 3
"""Number of attempts to register a plugin; an attempt fails if a worker is lost meanwhile."""

NANNY = ("PYTHONHASHSEED", "__DASK_PARENT_PID")
"""Environment variables that Dask sets for workers in addition to those in its configuration."""

CLOSE = 30.0
"""Time limit in seconds for closing the client, and for closing the LocalCluster."""


class NotStartedError(BackendUnavailableError, RuntimeError):
    """The backend was used before it was started or after it was shut down."""


class ClusterConnection:
    """Client of a cluster, and the LocalCluster if the backend started one.

    Args:
        options: The options that select the cluster.
        jobs: The jobs of the workers, if the cluster is one of dask-jobqueue.
        directory: A function that creates a directory for the files of batch jobs. It returns
            `None` for the defaults of dask-jobqueue.

    Attributes:
        client: Dask's client, on the engine's loop.
        cluster: The LocalCluster that the backend started, or `None` for an existing cluster.
        address: The scheduler's address.
        in_processes: True if the backend started a LocalCluster whose workers are processes.
        dashboard: The address of the dashboard, or `None` if the scheduler serves none.
    """

    def __init__(
        self, options: Options, jobs: WorkerJobs, directory: Callable[[], str | None]
    ) -> None:
        self.options: Options = options
        self._jobs, self._directory = jobs, directory
        self._http = Http(scheduler=True, workers=True)
        self.client: Any = None
        self.cluster: Any = None
        self.address: str = ""
        self.in_processes: bool = False
        self.dashboard: str | None = None
        self._plugins: tuple[Any, ...] = ()
        self._names: list[str] = []
        self._sending = asyncio.Lock()
        self._settings = ExitStack()
        self._workers: Workers | None = None
        self._started: Any = None  # a cluster of the class that the user named

    async def open(self) -> Any:
        """Start a LocalCluster if no existing cluster is selected, and connect to the scheduler.

        Returns:
            The client.

        Raises:
            BackendUnavailableError: The LocalCluster cannot be started, the scheduler does not
                answer, or the installed version of Dask is not supported.
        """
        try:
            await in_thread(_import_dask)
        except ImportError as error:
            raise BackendUnavailableError(
                f"rhapsody-dask does not support dask {version('dask')}: {error}. Install a "
                "supported version: pip install 'distributed>=2026.3.0,<2026.9'"
            ) from error
        options = self.options
        target, security = await self._target()
        from distributed import Client

        where = "scheduler_file" if options.way == "scheduler_file" else "address"
        if where == "scheduler_file":
            await in_thread(_check_scheduler_file, target, options.timeout)
        make: Any = Client  # untyped in Dask
        given = {where: target, "security": security, "set_as_default": False, **options.client}
        self.client = client = make(asynchronous=True, timeout=options.timeout, **given)
        try:
            with warnings.catch_warnings():
                # Versions are checked below, with a message that contains the fix.
                warnings.filterwarnings("ignore", message="(?s)Mismatched versions")
                async with asyncio.timeout(options.timeout + 1.0):
                    await client
        except Exception as error:  # raised by whatever listens at the address
            if where == "scheduler_file" and not await in_thread(os.path.exists, target):
                raise BackendUnavailableError(
                    f"scheduler_file {target!r} was not created within {options.timeout:g} s; "
                    "check the path, or start `dask scheduler --scheduler-file "
                    f"{shlex.quote(target)}`"
                ) from error
            raise BackendUnavailableError(
                f"cannot connect to a Dask scheduler at {target!r} within {options.timeout:g} s: "
                f"{str(error) or type(error).__name__}. Check that `dask scheduler` is "
                "running there, and check the address (tls:// with TLS, tcp:// without) and "
                "the TLS settings"
            ) from error
        self.address = client.scheduler.address
        if self._workers is not None:
            self._workers.watch()
        return client

    async def in_time(self, requests: Coroutine[Any, Any, None]) -> None:
        """Await requests to the cluster, for at most the option `timeout`.

        Raises:
            BackendUnavailableError: The cluster does not answer in time.
        """
        try:
            async with asyncio.timeout(self.options.timeout):
                await requests
        except TimeoutError:
            raise BackendUnavailableError(
                f"the Dask cluster at {self.address} did not answer within "
                f"{self.options.timeout:g} s; one of its workers may be unresponsive"
            ) from None

    async def prepare(self, session: str, grace: float) -> None:
        """Check versions, and register the plugins.

        Args:
            session: The backend's session.
            grace: Seconds between SIGTERM and SIGKILL.

        Raises:
            BackendUnavailableError: A version does not match, or the cluster rejects a plugin.
            OSError: The connection was lost.
        """
        from rhapsody_dask import shipping

        client = self.client
        pairs = skew(await client.get_versions())
        if pairs:
            raise BackendUnavailableError(
                f"the Dask cluster at {self.address} has incompatible versions: "
                f"{'; '.join(pairs)}. Install the same versions here and on the cluster"
            )
        foreign = client.id if self.cluster is None else None
        notes = self.cluster.scheduler.local_directory if self.in_processes else None
        self._plugins = await in_thread(
            lambda: shipping.plugins(session, grace, self._http, client=foreign, notes=notes)
        )
        try:
            for plugin in self._plugins:
                await client.register_plugin(plugin, name=plugin.name)
        except OSError:  # raised by the connection
            raise
        except Exception as error:  # raised by the plugin on the other side
            raise BackendUnavailableError(
                f"the Dask cluster at {self.address} rejected Rhapsody's plugin: {error}"
            ) from error
        if await client.run_on_scheduler(has_dashboard):
            self.dashboard = str(client.dashboard_link)
        elif self.options.local.get("dashboard_address") is not None:
            log.warning(
                "Dask dashboard not started: bokeh is not installed; run "
                "pip install 'rhapsody-dask[dashboard]'"
            )

    async def send_modules(self, session: str, modules: bytes | None) -> None:
        """Send the main program's own modules to all workers, unless they were already sent."""
        if modules is None:
            return
        from rhapsody_dask import shipping

        plugin = shipping.ModulesSetup(session, modules)
        async with self._sending:
            left = 0 if plugin.name in self._names else REGISTRATIONS
            while left:
                left -= 1
                packed = shipping.PackedWorkerSetup(plugin)
                try:
                    await self.client.register_plugin(packed, name=plugin.name)
                    self._names.append(plugin.name)
                    break
                except OSError:  # a worker was lost meanwhile
                    if not left:
                        raise

    async def watch_nodes(self, session: str) -> None:
        """Let the workers report the load of their nodes."""
        from rhapsody_dask import shipping

        plugin = shipping.NodesSetup(session)
        if plugin.name not in self._names:
            self._names.append(plugin.name)
            with suppress(OSError):  # the connection was lost
                await self.client.register_plugin(
                    shipping.PackedWorkerSetup(plugin), name=plugin.name
                )

    async def _target(self) -> tuple[Any, Any]:
        """Return the address or scheduler file to connect to, and the credentials."""
        from distributed import SpecCluster

        way, target = self.options.way, self.options.target
        if self.options.launcher is not None:
            return await self._launch(self.options.launcher)
        if way is None:
            self.cluster = await self._make_cluster()
            return self.cluster.scheduler_address, self.cluster.security
        security = _credentials(self.options.security)
        if way == "client":
            status = getattr(target, "status", None)
            if status != "running":
                raise BackendUnavailableError(
                    "client must be a connected distributed.Client, got "
                    f"{target!r} with status {status!r}"
                )
            return target.scheduler.address, security or target.security
        if way == "cluster":
            address = getattr(target, "scheduler_address", None)
            if not isinstance(address, str) or "://" not in address:
                raise BackendUnavailableError(
                    "cluster must be a running Dask cluster with a scheduler_address, got "
                    f"{target!r}"
                )
            self._jobs.watch(target)
            return address, security or getattr(target, "security", None)
        if way == "cluster_class":
            kind = self._jobs.watched_class(_class(target))
            try:
                given = partial(keywords, kind, self.options.cluster_kwargs, self._job_directory)
                kwargs, http = await in_thread(given)
            except Exception as error:  # the class may accept other keywords
                raise _class_error(target, error) from error
            self._started = cluster = await self._start(partial(_make, kind, self.options, kwargs))
            self._jobs.watch(cluster)
            if isinstance(cluster, SpecCluster):  # other clusters may need HTTP, as Kubernetes does
                self._http = http
            return cluster.scheduler_address, security or cluster.security
        return target, security

    async def _launch(self, launcher: str) -> tuple[Any, Any]:
        """Start the scheduler here and a worker on each node of this batch job."""
        directory = self._job_directory()
        if directory is None:
            raise BackendUnavailableError(
                f"launcher={launcher!r} needs a directory that all nodes share, which the engine "
                "provides: pass the backend to WorkflowEngine.create without awaiting it before"
            )
        self._workers = Workers(launcher, self.options.local, self._jobs.give_up)
        self._http = requested(self.options.local)
        start = partial(self._workers.cluster, directory)
        self._started = cluster = await self._start(start)
        await self._workers.start(cluster.scheduler_address, cluster.security, directory)
        return cluster.scheduler_address, cluster.security

    def _job_directory(self) -> str | None:
        path = self._directory()
        if path is not None:
            self._settings.callback(remove_credentials, path)
        return path

    async def _make_cluster(self) -> Any:
        import dask

        if _in_processes(self.options.local):
            _require_guard()
        # By default, Dask permanently removes a worker whose replacement takes more than 15 s to
        # start. On a busy machine the cluster would be left without workers.
        self._settings.enter_context(
            dask.config.set({"distributed.deploy.lost-worker-timeout": "365 days"})
        )
        try:
            cluster = await self._start(lambda: _local_cluster(self.options))
        except ImportError as error:
            raise BackendUnavailableError(str(error)) from error
        self.in_processes = bool(cluster.processes)
        self._http = requested(self.options.local)
        return cluster

    async def _start(self, make: Callable[[], Any]) -> Any:
        """Create a cluster in a separate thread."""
        start = asyncio.ensure_future(in_thread(_in_scratch, make))
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            await asyncio.wait([start])  # a cluster cannot be closed while it starts
            if start.exception() is None:
                self._started = start.result()
            raise

    async def close(self) -> None:
        """Unregister the plugins, and close the client and the LocalCluster.

        A second call does nothing. The scheduler plugin removes itself when the client disconnects.
        """
        client, self.client = self.client, None
        self._jobs.close()
        if client is not None:
            if self.cluster is None and client.status == "running":
                with suppress(Exception):  # the scheduler or a worker may have ended
                    async with asyncio.timeout(CLOSE / 3):
                        for name in (*self._names, self._plugins[-1].name):
                            await client.unregister_worker_plugin(name)
            with suppress(Exception):  # of several kinds if the client is connecting again
                async with asyncio.timeout(CLOSE):
                    await client.close()
        clusters = (self.cluster, self._started)
        self.cluster = self._started = None
        for cluster in clusters:
            if cluster is not None:
                await in_thread(_close_cluster, cluster)
        if self._workers is not None:
            await self._workers.close()
        self._settings.close()


def skew(found: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each Python or cloudpickle version that does not match the client's."""
    mine = _versions(found["client"])
    others = {f"worker {address}": info for address, info in found.get("workers", {}).items()}
    pairs = []
    for who, info in {"the scheduler": found.get("scheduler"), **others}.items():
        for package, there in _versions(info).items():
            here = mine.get(package)
            # The scheduler runs no user code.
            if here != there and (who, package) != ("the scheduler", "python"):
                pairs.append(f"{package} {here} here, {there} on {who}")
    return pairs


def _versions(info: Mapping[str, Any] | None) -> dict[str, str]:
    packages = (info or {}).get("packages") or {}
    found = {name: str(packages[name]) for name in ("python", "cloudpickle") if packages.get(name)}
    if "python" in found:  # such as 3.12.1.final.0; pickles are compatible within 3.12
        found["python"] = ".".join(found["python"].split(".")[:2])
    return found


def _import_dask() -> None:
    import distributed  # noqa: F401
    from dask._task_spec import TaskRef  # noqa: F401

    import rhapsody_dask.results
    import rhapsody_dask.shipping  # noqa: F401


def _require_guard() -> None:
    """Raise if worker processes cannot import the main program without starting its workflow."""
    main = sys.modules.get("__main__")
    path, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if path == "<stdin>":
        raise BackendUnavailableError(
            "Dask's worker processes cannot import a main program that comes from standard input. "
            "Save it to a file, or run the workers as threads of this process: "
            'DaskExecutionBackend({"processes": False})'
        )
    # Workers do not import a notebook, a prompt, `python -c`, or the main module of a package.
    if not isinstance(path, str) or f".{getattr(spec, 'name', '')}".endswith(".__main__"):
        return
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # missing, or not Python source
        return
    if not GUARD.search(text):
        raise BackendUnavailableError(
            f"Dask's worker processes import the main program {path}, and would start its workflow "
            'again. Put the start of the workflow under `if __name__ == "__main__":`, or write the '
            "workflow as a function `main(flow)` and start it with `rhapsody run "
            f"{os.path.basename(path)} -b dask`"
        )


def _credentials(option: Any) -> Any:
    """Return a `distributed.Security` for the option `security`, or `None` if it contains none.

    Raises:
        ValueError: The option requests new credentials, which only a new cluster accepts.
        BackendUnavailableError: A file that the option names does not exist.
    """
    from distributed import Security

    if option is None or option is False:
        return None
    if option is True:
        raise ValueError(
            "security=True creates new credentials, which an existing cluster would reject. Pass "
            "the cluster's credentials: security={'tls_ca_file': ..., 'tls_client_cert': ..., "
            "'tls_client_key': ...}"
        )
    security = Security(**option) if isinstance(option, Mapping) else option
    for name in sorted(TLS):
        path: Any = getattr(security, name, None)
        is_file = isinstance(path, str) and name.endswith(("_file", "_cert", "_key"))
        # A text of several lines is the certificate itself.
        if is_file and "\n" not in path and not os.path.isfile(path):
            raise BackendUnavailableError(f"security: {name}: no such file: {path!r}")
    return security


def _local_cluster(options: Options) -> Any:
    """Create a LocalCluster; called in a separate thread."""
    import dask
    from dask.system import CPU_COUNT
    from distributed import LocalCluster, Security
    from distributed.deploy.utils import nprocesses_nthreads
    from distributed.system import MEMORY_LIMIT

    local: dict[str, Any] = {"dashboard_address": None, "host": "127.0.0.1", **options.local}
    quiet = {}
    if local["dashboard_address"] is None:  # otherwise Dask uses its default port
        quiet = {"dashboard": False, "dashboard_address": LOOPBACK}
    if "interface" in local and "host" not in options.local:
        del local["host"]
    processes = local["processes"] = _in_processes(local)
    n_workers: Any = local.get("n_workers")
    threads: Any = local.get("threads_per_worker")
    if processes and n_workers is None and threads is None:
        n_workers, threads = nprocesses_nthreads()
    if n_workers is None:
        n_workers = max(1, CPU_COUNT // threads) if processes else 1
    if threads is None:
        threads = max(1, -(-CPU_COUNT // n_workers))
    local["n_workers"], local["threads_per_worker"] = n_workers, threads
    given = local.get("local_directory")
    default = dask.config.get("temporary-directory")  # set by `_in_scratch`
    local["local_directory"] = scratch_directory(given) if given else default
    own = options.security in (None, True)
    local["security"] = security = Security.temporary() if own else _credentials(options.security)
    if not security and not processes and "protocol" not in options.local:
        local.pop("host", None)  # inproc does not listen
    if security and security.require_encryption:
        local.setdefault("protocol", "tls://")
    gpus = local.pop("gpus", 0)
    resources = {"cores": threads, "memory": _memory(local, n_workers, MEMORY_LIMIT)}
    if gpus:
        resources["gpus"] = gpus
    resources |= local.pop("resources", None) or {}
    # Only the engine retries lost tasks; see `lost_retries`.
    scheduler = {"allowed_failures": 0, **quiet, **local.pop("scheduler_kwargs", {})}
    cluster_class: Any = LocalCluster  # untyped in Dask
    with _restored_environment():
        return cluster_class(resources=resources, scheduler_kwargs=scheduler, **local)


def _class(target: Any) -> Any:
    """Return the class that the user named.

    Called on the loop's thread: dask-jobqueue sets a handler of SIGINT when it is imported, which
    is possible only on the main thread. The handler would end the program without a shutdown of the
    engine, so the former handler is restored.

    Returns:
        The class.

    Raises:
        BackendUnavailableError: The class cannot be imported.
    """  # noqa: DOC501 - the BackendUnavailableError
    former = signal.getsignal(signal.SIGINT)
    try:
        return pkgutil.resolve_name(target) if isinstance(target, str) else target
    except Exception as error:  # the import may raise anything
        raise _class_error(target, error) from error
    finally:
        if signal.getsignal(signal.SIGINT) is not former:
            signal.signal(signal.SIGINT, former)


def _make(kind: Any, options: Options, kwargs: Mapping[str, Any]) -> Any:
    """Create a cluster of the class that the user named; called in a separate thread.

    Returns:
        The cluster.

    Raises:
        BackendUnavailableError: The class raised an exception.
    """  # noqa: DOC501 - the BackendUnavailableError
    try:
        cluster = kind(**kwargs)
        try:
            if options.adapt_kwargs is not None:
                cluster.adapt(**options.adapt_kwargs)
        except BaseException:
            _close_cluster(cluster)
            raise
    except Exception as error:  # the class may raise anything
        raise _class_error(options.target, error) from error
    return cluster


def _class_error(target: Any, error: Exception) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"cannot start a cluster of the class {target!r}: {type(error).__name__}: {error}"
    )


_starting = threading.RLock()


def _in_scratch(make: Callable[[], Any]) -> Any:
    """Create a cluster whose scheduler keeps its files in a private directory."""
    import dask

    with _starting, dask.config.set({"temporary-directory": scratch_directory()}):
        return make()


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Restore the environment variables that Dask sets in this process to start its workers."""
    import dask

    names = dask.config.get("distributed.nanny.pre-spawn-environ")
    with _starting:  # otherwise, the variables of another cluster would be saved and restored
        former = {name: os.environ.get(name) for name in (*names, *NANNY)}
        try:
            yield
        finally:
            for name, value in former.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _in_processes(local: Mapping[str, Any]) -> bool:
    """Return True if the workers of a LocalCluster with these keywords are processes."""
    worker_class = local.get("worker_class")
    if worker_class is not None:
        from distributed import Nanny

        return issubclass(worker_class, Nanny)
    processes = local.get("processes")
    return processes is None or bool(processes)


def _memory(local: Mapping[str, Any], n_workers: int, total: int) -> int:
    from distributed.worker_memory import parse_memory_limit

    limit = parse_memory_limit(local.get("memory_limit", "auto"), 1, n_workers, logger=log)
    return int(limit if limit else total / n_workers)


def _check_scheduler_file(path: str, timeout: float) -> None:
    """Log a warning about a scheduler file that does not exist yet, with the closest name.

    Raises:
        BackendUnavailableError: The directory does not exist, so that no scheduler can create it.
    """
    directory, name = os.path.split(os.path.abspath(path))
    if os.path.exists(path):
        return
    if not os.path.isdir(directory):
        raise BackendUnavailableError(
            f"scheduler_file {path!r} does not exist, nor does its directory; check the path"
        )
    log.warning(
        "dask: waiting up to %g s for the scheduler file %r, which does not exist%s",
        timeout, path, suggestion(name, os.listdir(directory)),
    )  # fmt: skip


def _close_cluster(cluster: Any) -> None:
    with suppress(TimeoutError, OSError):
        cluster.close(timeout=CLOSE)
