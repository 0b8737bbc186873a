"""Declaration of the Dask backend for Rhapsody's registry.

This module imports neither Dask nor the class of the backend.
"""

from __future__ import annotations

from pathlib import Path

from rhapsody import hookimpl
from rhapsody.backends import BackendOption, BackendSpec, Capabilities
from rhapsody_dask.options import OWN, TIMEOUT, TLS

ANNOTATIONS = frozenset({"priority", "retries", "workers", "allow_other_workers", "resources"})
"""Keys of `task_description` that are passed to Dask."""

CLUSTER = Capabilities(
    services=True,
    cancel_functions="queued",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    copies_files_out=True,
    task_settings=ANNOTATIONS,
    result_settings=frozenset(),  # they choose the worker
    resources=frozenset({"cores", "fractional_cores", "gpus", "memory", "walltime"}),
    captures_output=True,
    reports_running=True,
    worker_values=True,
    unfinished_dependencies=True,
)
"""Capabilities of a cluster whose workers see the engine's files. Functions run on threads of
Dask's workers, so a running function cannot be stopped. Coroutines, executables and services can be
stopped.
"""

FURTHER = """
    connection_limit deserializers direct_to_workers extensions heartbeat_interval serializers
    set_as_default
    blocked_handlers config contact_address data death_timeout env executor http_prefix ip lifetime
    lifetime_restart lifetime_stagger listen_address low_level_profiler metrics plugins port preload
    preload_argv preload_nanny preload_nanny_argv profile_cycle_interval protocol quiet reconnect
    resources scheduler_kwargs scheduler_port scheduler_sni scheduler_sync_interval service_kwargs
    services silence_logs startup_information transition_counter_max validate
    worker_dashboard_address worker_port worker_services
"""
"""Keywords of Dask's Client, LocalCluster, Nanny and Worker that Dask describes.

Keywords whose values are not plain data are missing.
"""

OPTIONS = (
    BackendOption("address", str, help='Address of a scheduler, such as "tcp://host:8786".'),
    BackendOption("scheduler_file", Path, help="File of `dask scheduler --scheduler-file`."),
    BackendOption(
        "cluster_class",
        str,
        help="Class of a cluster to start and to close with the backend, such as "
        '"dask_jobqueue.SLURMCluster".',
    ),
    BackendOption("cluster_kwargs", dict, help="Keyword arguments of that class."),
    BackendOption("adapt_kwargs", dict, help="Keyword arguments of the method `adapt`, if any."),
    BackendOption(
        "launcher",
        str,
        help="Start one worker on each node of the batch job in which the program runs, with "
        "`srun`, `mpirun` or `ssh`.",
    ),
    BackendOption(
        "n_workers", int, help="Number of workers of a cluster that is started on this machine."
    ),
    BackendOption("threads", int, help="Number of threads of each worker."),
    BackendOption("threads_per_worker", int, help="The same as `threads`."),
    BackendOption("processes", bool, True, "False runs the workers as threads of this process."),
    BackendOption("memory_limit", str | int | float, "auto", "Memory of each worker."),
    BackendOption("gpus", int, 0, "Number of GPUs of each worker."),
    BackendOption(
        "local_directory",
        Path,
        help="Directory in which the workers create a private directory for their files.",
    ),
    BackendOption("host", str, "127.0.0.1", "Address on which the scheduler and workers listen."),
    BackendOption("interface", str, help='Network interface to use instead, such as "ib0".'),
    BackendOption(
        "dashboard_address", str | int, help='Address of the dashboard, such as ":8787".'
    ),
    BackendOption(
        "security",
        bool | dict,
        help="Keywords of `distributed.Security`, or false for a local cluster without TLS. "
        "Default: temporary credentials for a cluster on this machine.",
    ),
    BackendOption("timeout", float | str, TIMEOUT, "Time limit for connecting."),
    BackendOption(
        "grace", float | str, 5.0, "Time between SIGTERM and SIGKILL when a program is stopped."
    ),
    BackendOption("share_over", int, 2**20, "Size in bytes from which arguments are shared."),
    BackendOption(
        "shared_file_system",
        bool,
        help="True if the workers see this machine's files under the same paths. Default: "
        "detected.",
    ),
    BackendOption("batch_calls", bool, False, "True sends several short calls as one Dask task."),
    BackendOption("name", str, "dask", "Name of the backend in an engine."),
    *(BackendOption(name) for name in (*sorted(TLS), *FURTHER.split())),
    *(BackendOption(name, instead=reason) for name, reason in OWN.items()),
    BackendOption("worker_class", instead="pass the class to DaskExecutionBackend in the program"),
    *(
        BackendOption(name, instead="use cluster_class, address or scheduler_file")
        for name in ("cluster", "client")
    ),
)
"""The options that can be set in files and on the command line."""


@hookimpl
def rhapsody_backends() -> BackendSpec:
    """Return the declaration of the backend `dask`, with its capabilities on a LocalCluster."""
    return BackendSpec(
        name="dask",
        import_path="rhapsody_dask.backend:DaskExecutionBackend",
        summary="a Dask cluster: an existing one, or one that the backend starts on this machine",
        requires=("distributed>=2026.3.0,<2026.9", "cryptography>=42.0", "cloudpickle>=3.0"),
        capabilities=CLUSTER,
        install_hint="pip install rhapsody-dask",
        options=OPTIONS,
    )
