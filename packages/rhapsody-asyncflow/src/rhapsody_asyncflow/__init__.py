"""Programs of radical.asyncflow and rhapsody-py on Rhapsody.

Such programs import `radical.asyncflow` and `rhapsody.api`, which this distribution provides. Both
are thin layers over `rhapsody.WorkflowEngine`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution


def _require_only_this() -> None:
    """Raise an error if a distribution with the same import names is installed.

    Raises:
        ImportError: It is installed.
    """
    for name in ("radical.asyncflow", "rhapsody-py"):
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        raise ImportError(
            f"{name} and Rhapsody install the same modules, so only one of them can be installed: "
            f"run `pip uninstall -y {name}`, then `pip install --force-reinstall --no-deps "
            "rhapsody-core rhapsody-asyncflow`",
            name=__name__,
        )


_require_only_this()

from rhapsody_asyncflow.engine import WorkflowEngine  # noqa: E402 - after the check
from rhapsody_asyncflow.logs import enable_logging, init_default_logger  # noqa: E402
from rhapsody_asyncflow.prompts import InferenceBackend  # noqa: E402
from rhapsody_asyncflow.tasks import (  # noqa: E402
    AITask,
    BaseTask,
    ComputeTask,
    ResourceError,
    Session,
    SessionError,
    TaskExecutionError,
    TaskValidationError,
)

__all__ = [
    "AITask",
    "BaseTask",
    "ComputeTask",
    "InferenceBackend",
    "ResourceError",
    "Session",
    "SessionError",
    "TaskExecutionError",
    "TaskValidationError",
    "WorkflowEngine",
    "enable_logging",
    "init_default_logger",
]
