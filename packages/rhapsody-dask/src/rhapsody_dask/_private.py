"""Access to the only private name of Dask that this package uses.

`TaskRef` represents the value of another task among the arguments in a graph. The public
alternative is a future, but tasks that refer to each other are often sent in one graph, and a task
has no future before its graph is sent.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rhapsody import BackendUnavailableError


def task_reference() -> Any:
    """Return Dask's class for references between the tasks of a graph.

    Raises:
        BackendUnavailableError: This version of Dask has no such class.
    """
    try:
        from dask._task_spec import TaskRef
    except ImportError as error:
        raise BackendUnavailableError(
            f"rhapsody-dask does not support dask {version('dask')}, which has no "
            "`dask._task_spec.TaskRef`. Install a supported version: "
            "pip install 'distributed>=2026.3.0,<2026.9'"
        ) from error
    return TaskRef
