"""Functions that Dask's graphs call, and functions that run on the scheduler.

The scheduler imports this module to unpickle graphs, but the user's modules and most of Rhapsody's
modules may be missing there. This module therefore imports little, and a task's data is passed as
bytes.
"""

from __future__ import annotations

from typing import Any


def run(order: bytes, values: Any = ()) -> Any:
    """Run one task on this worker.

    Args:
        order: The packed `Order`; see `rhapsody_dask.task`.
        values: Values that Dask holds for the task: large arguments, and replies of tasks that it
            depends on.

    Returns:
        A `Reply`.
    """
    from rhapsody_dask.worker.running import run_order

    return run_order(order, values)


def run_group(order: bytes) -> Any:
    """Run the calls of a group on this worker, one after the other.

    Args:
        order: The packed group; see `rhapsody_dask.groups`.

    Returns:
        `GroupReplies`.
    """
    from rhapsody_dask.worker.running import run_group

    return run_group(order)


def stuck(dask_scheduler: Any) -> tuple[dict[str, str], list[str]]:
    """Return the workers' names by address, and up to 1,000 keys of tasks that no worker can run.

    Called through `Client.run_on_scheduler`.
    """
    tasks = list(dask_scheduler.unrunnable)
    workers = {address: str(worker.name) for address, worker in dask_scheduler.workers.items()}
    return workers, [str(task.key) for task in tasks[:1000]]


def recompute(key: str, dask_scheduler: Any) -> bool:
    """Let Dask compute a value again that was lost with its workers.

    Dask gives a value up if a worker is lost that recomputes it or a value that it depends on.
    Called through `Client.run_on_scheduler`.

    Returns:
        True unless the scheduler has forgotten the task.
    """
    if key not in dask_scheduler.tasks:
        return False
    lost, todo = {}, [dask_scheduler.tasks[key]]
    while todo:
        task = todo.pop()
        if task.state in ("erred", "released", "waiting") and task.key not in lost:
            lost[task.key] = task
            todo += task.dependencies
    dask_scheduler.stimulus_retry([task.key for task in lost.values() if task.state == "erred"])
    # Dask does not continue with tasks that it released when their dependency had failed.
    released = [task.key for task in lost.values() if task.state == "released"]
    dask_scheduler.transitions(dict.fromkeys(released, "waiting"), f"recompute-{key}")
    return True


def has_dashboard(dask_scheduler: Any) -> bool:
    """Return True if a scheduler serves a dashboard.

    The scheduler has a port for a dashboard even if it serves none.
    Called through `Client.run_on_scheduler`.
    """
    applications = getattr(dask_scheduler.http_application, "applications", ())
    return any("Bokeh" in type(application).__name__ for application in applications)


def close_http(server: Any) -> None:
    """Close the port of the HTTP server that Dask opens for each scheduler and worker."""
    server.http_server.stop()
    server.http_server.port = 0  # in Dask's links, the port that another user may open next
