"""The one function that Dask's graphs call. Light, because the scheduler imports it, too.

The scheduler unpickles what it is given, and it may know neither the user's
modules nor much of ours: all that is particular to a task is bytes to it.
"""

from __future__ import annotations

from typing import Any


def run(order: bytes, values: Any = ()) -> Any:
    """Runs one task on the worker that this is called on.

    Args:
        order: What to run, as packed by `rhapsody_dask.task`.
        values: What Dask holds on its workers for the task: big arguments, and the
            replies of tasks that it depends on.

    Returns:
        A `Reply`.
    """
    from rhapsody_dask.worker.running import run_order

    return run_order(order, values)


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
