"""What a task asks of Dask: resources, and settings in Dask's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rhapsody import CapabilityError, Resources, TaskDescription


class Demand(NamedTuple):
    """What Dask is told of a task besides the task; tasks with the same go in one graph.

    Attributes:
        resources: Names and amounts of worker resources.
        priority: Dask's priority; higher comes first.
        retries: How often Dask itself tries again.
        workers: The only workers, or those that are preferred.
        allow_other_workers: Whether they are only preferred.
    """

    resources: tuple[tuple[str, float], ...] = ()
    priority: float = 0
    retries: int = 0
    workers: tuple[str | int, ...] = ()
    allow_other_workers: bool = False

    def keywords(self) -> dict[str, Any]:
        """The keywords of `Client.map`."""
        keywords: dict[str, Any] = {}
        if self.resources:
            keywords["resources"] = dict(self.resources)
        if self.priority:
            keywords["priority"] = self.priority
        if self.retries:
            keywords["retries"] = self.retries
        if self.workers:
            keywords["workers"] = list(self.workers)
            keywords["allow_other_workers"] = self.allow_other_workers
        return keywords


NOTHING = Demand()


def demand(task: TaskDescription) -> Demand:
    """What a task asks for.

    Raises:
        TypeError: `task_description` has a value of a type that Dask does not take there.
        CapabilityError: The task asks for several ranks.
    """
    specific, resources = task["task_backend_specific_kwargs"], task.get("resources")
    if not specific and resources is None:
        return NOTHING
    workers = specific.get("workers")
    if isinstance(workers, str | int):
        workers = (workers,)
    _check(task["name"], {**specific, "workers": workers})
    wanted = dict(specific.get("resources") or {})
    if resources is not None:
        wanted = {**_worker_resources(task, resources), **wanted}
    return Demand(
        resources=tuple(sorted(wanted.items())),
        priority=specific.get("priority") or 0,
        retries=specific.get("retries") or 0,
        workers=tuple(workers or ()),
        allow_other_workers=bool(specific.get("allow_other_workers", False)),
    )


def _check(name: str, annotations: Mapping[str, Any]) -> None:
    """Raise if Dask would not take a value; it has no rules for functions of a key here."""
    import dask

    given = {key: value for key, value in annotations.items() if value is not None}
    try:
        if any(map(callable, given.values())):
            raise TypeError("functions are not accepted")
        with dask.annotate(**given):
            pass
    except TypeError as error:
        raise TypeError(f"task {name!r}: task_description: {error}") from None


def _worker_resources(task: TaskDescription, resources: Resources) -> dict[str, float]:
    if resources.ranks > 1:
        raise CapabilityError(
            f"task {task['name']!r} asks for {resources.ranks} ranks: Dask has no launcher for "
            "MPI; use a backend that has one, or call mpirun in an executable"
        )
    wanted: dict[str, float] = {}
    if resources.cores > 1:
        wanted["cores"] = resources.cores
    if resources.gpus:
        wanted["gpus"] = resources.gpus
    if isinstance(resources.memory, int) and resources.memory:
        wanted["memory"] = resources.memory
    return wanted


def problem(
    name: str, demanded: Demand, workers: Mapping[str, Mapping[str, Any]], *, own: bool
) -> str | None:
    """Why no worker there is can run a task, `None` where one can, or where none is there yet.

    Args:
        name: The task's name.
        demanded: What it asks for.
        workers: What Dask's scheduler says of each worker.
        own: Whether the cluster was made by the backend.
    """
    if not workers:  # those of a batch system come later, and may be of any kind
        return None
    declared = [worker.get("resources") or {} for worker in workers.values()]
    wanted = dict(demanded.resources)
    if any(all(have.get(key, 0) >= amount for key, amount in wanted.items()) for have in declared):
        return None
    missing = [key for key in wanted if not any(key in have for have in declared)]
    text = ", ".join(f"{key}={_number(amount)}" for key, amount in wanted.items())
    if missing:
        line = " ".join(f"{key}={_number(amount)}" for key, amount in wanted.items())
        threads = _number(wanted.get("cores", 1))
        cure = f'dask worker ADDRESS --nthreads {threads} --resources "{line}"'
        if own and missing[0] == "gpus":
            cure = "DaskExecutionBackend({'gpus': ...})"
        return (
            f"task {name!r} asks for {text}, but no worker declares {' or '.join(missing)}: it "
            f"would wait for ever. Start workers that say what they have: {cure}"
        )
    most = ", ".join(
        f"{key}={_number(max(have.get(key, 0) for have in declared))}" for key in wanted
    )
    return f"task {name!r} asks for {text}; the most that one worker has is {most}: ask for less"


def unknown(
    name: str, demanded: Demand, workers: Mapping[str, Mapping[str, Any]], names: Sequence[Any]
) -> str | None:
    """Why the workers that a task names are none of a cluster's, `None` where one is.

    Args:
        name: The task's name.
        demanded: What it asks for.
        workers: What Dask's scheduler says of each worker.
        names: The names of all workers, those that are starting, too.
    """
    wanted = [str(worker) for worker in demanded.workers]
    if not wanted or demanded.allow_other_workers:
        return None
    known = {*workers, *map(str, names), *(str(one.get("host")) for one in workers.values())}
    if not known.isdisjoint(wanted):
        return None
    return (
        f"task {name!r} asks for the workers {', '.join(wanted)}, which this cluster does not "
        f"have; it has {', '.join(map(str, names))} at {', '.join(workers) or 'no address yet'}"
    )


def _number(amount: float) -> str:
    return str(int(amount)) if float(amount).is_integer() else str(amount)
