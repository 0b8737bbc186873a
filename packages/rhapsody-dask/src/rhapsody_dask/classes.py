"""Keywords for the clusters of a class that the user names with `cluster_class`.

Such a cluster belongs to the backend. Unless the user requests otherwise, it serves no HTTP. Jobs
of dask-jobqueue use TLS, and their credentials and logs are in the directory of the run.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LOOPBACK = "127.0.0.1:0"
"""Address of the HTTP servers that Dask always starts, until the backend closes them."""


class Http(NamedTuple):
    """The HTTP servers that the user requests."""

    scheduler: bool
    workers: bool


def requested(given: Mapping[str, Any]) -> Http:
    """Return the HTTP servers that the keyword arguments for a cluster request."""
    schedulers = [given, given.get("scheduler_options"), given.get("scheduler_kwargs")]
    workers = given.get("worker_options") or {}
    words = map(str, given.get("worker_extra_args") or ())
    return Http(
        any((keywords or {}).get("dashboard_address") is not None for keywords in schedulers),
        given.get("worker_dashboard_address") is not None
        or workers.get("dashboard_address") is not None
        or any(word.startswith("--dashboard") for word in words),
    )


def keywords(
    kind: Any, given: Mapping[str, Any], directory: Callable[[], str | None]
) -> tuple[dict[str, Any], Http]:
    """Return the keyword arguments for a class of clusters, and the HTTP servers to keep.

    Args:
        kind: The class.
        given: The keyword arguments that the user passes.
        directory: Called if the class needs a directory for files; returns `None` for the defaults
            of the class.
    """
    if hasattr(kind, "job_cls"):
        return _jobqueue(kind, given, directory)
    from distributed import LocalCluster

    http = requested(given)
    if isinstance(kind, type) and issubclass(kind, LocalCluster):
        own = scratch_directory(given.get("local_directory"))
        # The default of `dashboard_address` is a port on all interfaces.
        given = {"dashboard_address": None, **given, "local_directory": own}
    return dict(given), http


def _jobqueue(
    kind: Any, given: Mapping[str, Any], directory: Callable[[], str | None]
) -> tuple[dict[str, Any], Http]:
    """Return the keyword arguments for a class of dask-jobqueue, and the HTTP servers to keep."""
    import dask

    section = given.get("config_name") or kind.job_cls.default_config_name()

    def setting(name: str) -> Any:  # a keyword would replace Dask's configuration
        configured = dask.config.get(f"jobqueue.{section}.{name.replace('_', '-')}", None)
        return given[name] if given.get(name) is not None else configured

    scheduler = dict(setting("scheduler_options") or {})
    arguments = list(setting("worker_extra_args") or ())
    made = {**given, "scheduler_options": scheduler, "worker_extra_args": arguments}
    base = setting("local_directory")
    if kind.job_cls.default_config_name() == "local":  # processes on this machine, without a shell
        made["local_directory"] = scratch_directory(base)
    else:
        lines = [line.replace("BASE", str(base or "${TMPDIR:-/tmp}")) for line in SCRATCH]
        prologue = setting("job_script_prologue") or setting("env_extra") or ()
        made["job_script_prologue"] = [*prologue, *lines]
        made["local_directory"] = '"$rhapsody_dask"'
    http = requested(made)
    if not http.scheduler:
        scheduler |= {"dashboard": False, "dashboard_address": LOOPBACK}
    if not http.workers:
        arguments += ["--no-dashboard", "--dashboard-address", LOOPBACK]
    if "protocol" not in {**given, **scheduler} and "security" not in scheduler:
        made.setdefault("security", True)
    if made.get("security") is False:  # dask-jobqueue would use TLS
        del made["security"]
    logs = setting("log_directory")
    own = None if logs and setting("shared_temp_directory") else directory()
    if own is not None:
        made["log_directory"] = logs = logs or own
        if made.get("security") is True and not setting("shared_temp_directory"):
            made["security"] = credentials(own)
    if logs is not None:  # dask-jobqueue would use the default mode
        os.makedirs(logs, 0o700, exist_ok=True)
    return made, http


SCRATCH = (
    'rhapsody_dask="BASE/rhapsody-dask-`id -u`"',
    'mkdir -p "BASE" && mkdir -m 700 "$rhapsody_dask" 2> /dev/null || :',
    'case `stat -c %u-%f "$rhapsody_dask"` in `id -u`-4[15]c0) ;; '
    '*) rhapsody_dask=`mktemp -d "$rhapsody_dask-XXXXXX"` || exit ;; esac',
)
"""Commands of a job that do the same as `scratch_directory`, without `$(...)`, which HTCondor would
replace."""


def scratch_directory(base: str | os.PathLike[str] | None = None) -> str:
    """Return a directory that only the user can access, for the files of schedulers and workers.

    Dask adds the directory of these files to `sys.path`, and its default may belong to another
    user. Dask removes what killed workers have left there, so all clusters use the same directory.

    Args:
        base: The directory in which it is created; `None` for Dask's default.

    Raises:
        OSError: The directory cannot be created.
    """
    import dask

    if base is None:
        base = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
    os.makedirs(base, exist_ok=True)
    path = os.path.join(os.path.abspath(base), f"rhapsody-dask-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if private and found.st_uid == os.getuid():
        return path
    return tempfile.mkdtemp(prefix=f"{os.path.basename(path)}-", dir=base)


FILES = {"cert": "worker-cert.pem", "key": "worker-key.pem"}
"""Names of the files with the credentials of workers that other processes start."""


def credentials(directory: str) -> Any:
    """Return new credentials; the workers read theirs from files in a directory."""
    from distributed import Security

    security: Any = Security.temporary()
    for role, name in FILES.items():
        path = os.path.join(directory, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(getattr(security, f"tls_worker_{role}"))
        setattr(security, f"tls_worker_{role}", path)
    security.tls_ca_file = security.tls_worker_cert  # it is self-signed
    return security


def remove_credentials(directory: str) -> None:
    """Remove the files of `credentials`, and their directory if it contains nothing else."""
    for name in FILES.values():
        Path(directory, name).unlink(missing_ok=True)
    with suppress(OSError):  # it contains the output of jobs
        os.rmdir(directory)
