"""Options of the backend, validated before anything is started.

Each option belongs to Dask's client, to the LocalCluster or to the backend itself. The names of
Dask's options are looked up in the signatures of its classes.
"""

from __future__ import annotations

import inspect
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rhapsody.sdk import seconds, suggestion
from rhapsody_dask.launchers import ACCEPTED, LAUNCHERS

OWN = {
    "asynchronous": "the backend always uses an asynchronous client",
    "loop": "the backend chooses the event loops of the client and the cluster",
    "start": "the cluster starts when the backend is awaited",
    "nthreads": "use threads_per_worker",
    "dashboard": "use dashboard_address for the scheduler, worker_dashboard_address for workers",
    "scheduler_ip": "the backend starts the scheduler; use address for an existing one",
    "nanny": "Dask sets it for each worker",
}
"""Keywords of Dask's classes that users cannot set, with the reason or the replacement."""

WAYS = ("client", "cluster", "cluster_class", "address", "scheduler_file")
"""Options that select a cluster other than a LocalCluster."""

FOR_CLASS = ("cluster_kwargs", "adapt_kwargs")
"""Options for `cluster_class`."""

TLS = frozenset({
    "require_encryption", "tls_ca_file", "tls_ciphers", "tls_client_cert", "tls_client_key",
    "tls_max_version", "tls_min_version", "tls_scheduler_cert", "tls_scheduler_key",
    "tls_worker_cert", "tls_worker_key",
})  # fmt: skip
"""Keywords of `distributed.Security`."""

RESERVED = TLS.union(WAYS, FOR_CLASS, ("launcher", "security", "timeout"))
"""Options that the backend handles itself instead of passing them to Dask unchanged."""

OWN_OPTIONS = frozenset({"threads", "gpus"})
"""Options for the LocalCluster that the backend defines in addition to Dask's."""

TIMEOUT = 30.0
"""Default time limit in seconds for connecting."""


@dataclass(frozen=True, slots=True)
class Options:
    """Validated options for connecting to a cluster or starting one.

    Attributes:
        way: One of `WAYS`, or `None` to start a LocalCluster.
        target: The value of the option that `way` names (a client, cluster, class, address or
            path), or `None`.
        security: The `security` option, or a dict of the separate TLS options; `None` selects the
            default.
        timeout: Time limit for connecting, in seconds.
        local: Keywords of the LocalCluster.
        client: Keywords of the client.
        cluster_kwargs: Keywords of the class that `target` names.
        adapt_kwargs: Keywords of the cluster's method `adapt`, or `None` to not call it.
    """

    way: str | None
    target: Any
    security: Any
    timeout: float
    local: Mapping[str, Any]
    client: Mapping[str, Any]
    cluster_kwargs: Mapping[str, Any]
    adapt_kwargs: Mapping[str, Any] | None
    launcher: str | None


def parse(resources: Mapping[str, Any] | None, **arguments: Any) -> Options:
    """Validate the backend's arguments.

    Args:
        resources: The backend's `resources` argument.
        **arguments: The backend's other arguments; `None` counts as not set.

    Returns:
        The options.

    Raises:
        TypeError: `resources` is not a mapping or contains an unknown or reserved key, or a value
            has the wrong type.
        ValueError: Several clusters are selected, options contradict each other, or a value is out
            of range.
    """
    merged = {key: value for key, value in arguments.items() if value is not None}
    for key, value in _mapping(resources).items():
        if key in merged and value is not None:
            raise ValueError(f"{key} is set both in resources and as an argument; set it only once")
        if value is not None or key not in arguments:
            merged[key] = value
    tls = {key: merged.pop(key) for key in sorted(TLS & merged.keys())}
    security = merged.pop("security", None)
    if tls and security is not None:
        raise ValueError(
            f"security cannot be combined with {', '.join(tls)}; put all TLS settings in security: "
            "security={'tls_ca_file': ..., 'tls_client_cert': ..., 'tls_client_key': ...}"
        )
    ways = [way for way in WAYS if way in merged]
    if len(ways) > 1:
        raise ValueError(
            f"{' and '.join(ways)} cannot be combined; set only one of {', '.join(WAYS)}, or none "
            "to start a cluster on this machine"
        )
    way = ways[0] if ways else None
    for_class = {key: merged.pop(key) for key in FOR_CLASS if key in merged}
    for key, value in for_class.items():
        if way != "cluster_class":
            raise ValueError(f"{key} needs cluster_class, the class of the cluster to start")
        if not isinstance(value, Mapping):
            raise TypeError(f"{key} must be a dict of keyword arguments, got {value!r}")
    target: Any = merged.pop(way) if way else None
    launcher: Any = merged.pop("launcher", None)
    timeout = seconds("timeout", merged.pop("timeout", TIMEOUT))
    for_client = _keywords(merged)[0] | ({"name"} if way else set())
    client = {key: merged.pop(key) for key in for_client & merged.keys()}
    if way and merged:
        raise ValueError(
            f"{', '.join(sorted(merged))} cannot be combined with {way}, which selects an "
            f"existing cluster; to start a cluster on this machine, omit {way}"
        )
    if way == "scheduler_file":
        target = os.fspath(target)
    if way == "address" and not isinstance(target, str):
        raise TypeError(f"address must be a string such as 'tcp://host:8786', got {target!r}")
    if way == "cluster_class" and not isinstance(target, str | type):
        raise TypeError(
            f"cluster_class must be a class or its path such as 'dask_jobqueue.SLURMCluster', got "
            f"{target!r}"
        )
    security = {"require_encryption": True, **tls} if tls else security
    kwargs, adapt = for_class.get("cluster_kwargs", {}), for_class.get("adapt_kwargs")
    local = _local(merged)
    if launcher is not None:
        _check_launcher(launcher, way, {**local, **tls}, security)
    return Options(way, target, security, timeout, local, client, kwargs, adapt, launcher)


def _check_launcher(launcher: Any, way: str | None, given: Mapping[str, Any], tls: Any) -> None:
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher must be one of {', '.join(LAUNCHERS)}, got {launcher!r}")
    refused = [*([way] if way else ()), *sorted(given.keys() - ACCEPTED)]
    refused += ["security"] if tls not in (None, True) else []
    if refused:
        raise ValueError(
            f"{', '.join(refused)} cannot be combined with launcher, which starts one worker on "
            f"each node of this job, with TLS; accepted: {', '.join(sorted(ACCEPTED))}"
        )


def _mapping(resources: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if resources is None:
        return {}
    if not isinstance(resources, Mapping):
        raise TypeError(
            f"resources must be a dict such as {{'n_workers': 2, 'threads': 1}}, got {resources!r}"
        )
    for key in resources:
        if key in OWN:
            raise TypeError(f"resources: {key!r} cannot be set: {OWN[key]}")
    known = RESERVED.union(*_keywords(resources))
    for key in resources:
        if key not in known:
            raise TypeError(
                f"resources: unknown key {key!r}; accepted: "
                f"{', '.join(sorted(RESERVED | OWN_OPTIONS))}, and the keywords of distributed's "
                f"Client, LocalCluster, Nanny and Worker{suggestion(key, known)}"
            )
    return resources


def _keywords(used: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the keywords that the client accepts, and those for the LocalCluster and its workers.

    Both sets are empty if only `RESERVED` options are used.
    """
    if used.keys() <= RESERVED:  # Dask need not be imported yet
        return frozenset(), frozenset()
    from distributed import Client, LocalCluster, Nanny, Worker

    classes = (LocalCluster, Nanny, Worker, used.get("worker_class"))
    local = OWN_OPTIONS.union(*(_parameters(each) for each in classes if isinstance(each, type)))
    client = _parameters(Client) - RESERVED - OWN.keys() - {"name"}
    return client, local - RESERVED - OWN.keys() - client


def _parameters(kind: type) -> frozenset[str]:
    return frozenset(
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )


def _local(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the keywords for the LocalCluster, and replace aliases with Dask's names."""
    local = dict(keywords)
    for alias, key in (("threads", "threads_per_worker"), ("ip", "host")):
        if alias in local:
            if key in local:
                raise ValueError(f"{alias} is an alias of {key}; set only one of them")
            local[key] = local.pop(alias)
    worker_class = local.get("worker_class")
    if worker_class is not None and not isinstance(worker_class, type):
        raise TypeError(
            f"worker_class must be a class such as distributed.Nanny, got {worker_class!r}"
        )
    for key, least in (("n_workers", 1), ("threads_per_worker", 1), ("gpus", 0)):
        value = local.get(key)
        if isinstance(value, numbers.Integral):  # also of numpy
            value = local[key] = value if isinstance(value, bool) else int(value)
        if value is not None and (type(value) is not int or value < least):
            raise ValueError(f"{key} must be an integer of at least {least}, got {value!r}")
    return local
