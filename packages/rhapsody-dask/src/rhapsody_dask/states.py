"""Dask's words for the states of a task, and what they mean.

The first word for each meaning is the one this backend reports. The others are
those of Dask's client, scheduler and workers, so that whatever a tool of Dask
shows can be looked up.
"""

from __future__ import annotations

from rhapsody import StateMapper

DONE = "finished"
FAILED = "error"
CANCELED = "cancelled"
RUNNING = "executing"


def register() -> None:
    """Registers Dask's states under the name `dask`; again is harmless."""
    StateMapper.register_backend_tasks_states(
        "dask",
        done_state=[DONE, "memory"],
        failed_state=[FAILED, "erred", "lost"],
        canceled_state=[CANCELED, "released", "forgotten"],
        running_state=[RUNNING, "long-running"],
        pending=["waiting", "no-worker"],
        submitted=["pending", "queued", "processing"],
    )
