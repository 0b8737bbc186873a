"""The one function that Dask's graphs call. Light, because the scheduler imports it, too.

The scheduler unpickles what it is given, and it may know neither the user's
modules nor much of ours: all that is particular to a task is bytes to it.
"""

from __future__ import annotations

from typing import Any


def run(order: bytes, values: Any = ()) -> Any:
    """Runs one task on the worker that this is called on.

    Args:
        order: What to run, as packed by `rhapsody_dask.packing`.
        values: What Dask holds on its workers for the task: big arguments, and the
            replies of tasks that it depends on.

    Returns:
        A `Reply`.
    """
    from rhapsody_dask.worker.running import run_order

    return run_order(order, values)


def knows(key: Any, dask_scheduler: Any) -> bool:
    """Whether a scheduler has a task. Called through `Client.run_on_scheduler`."""
    return key in dask_scheduler.tasks


def retry(keys: Any, client: str, dask_scheduler: Any) -> Any:
    """Has tasks run again that were given up, and all that was given up with them.

    Dask's own takes up what depends on a task that runs again as well, and leaves it waiting
    for ever for another one that was given up, or for a released one that needs such a one.
    Called through `Client.run_on_scheduler`.

    Returns:
        The keys of all that is to run again.
    """
    found: list[Any] = []
    seen: set[Any] = set()
    tasks = [dask_scheduler.tasks[key] for key in keys if key in dask_scheduler.tasks]
    while tasks:
        task = tasks.pop()
        if task.key in seen or task.state not in ("erred", "released"):
            continue
        seen.add(task.key)
        tasks += task.dependencies
        if task.state == "erred":
            found.append(task.key)
            tasks += [each for each in task.dependents if each.state == "erred"]
    return dask_scheduler.stimulus_retry(keys=found, client=client)


def stuck(dask_scheduler: Any) -> tuple[list[str], list[str]]:
    """Which workers there are, at most ten, and which tasks none of them can take.

    Called through `Client.run_on_scheduler`.
    """
    tasks = list(dask_scheduler.unrunnable)
    return list(dask_scheduler.workers)[:10], [str(task.key) for task in tasks[:1000]]


def has_dashboard(dask_scheduler: Any) -> bool:
    """Whether a scheduler shows a dashboard; it has a port for one in any case.

    Called through `Client.run_on_scheduler`.
    """
    applications = getattr(dask_scheduler.http_application, "applications", ())
    return any("Bokeh" in type(application).__name__ for application in applications)
