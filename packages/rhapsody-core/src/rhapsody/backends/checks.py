"""Checks of what plugins hand in: declarations of backends, and backend classes.

Nothing here is called per task. typeguard is imported when the first plugin that
is not ours is looked at.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from rhapsody.backends.base import BaseExecutionBackend, Capabilities
from rhapsody.plugins.specs import BackendSpec


def check_spec(spec: object) -> BackendSpec:
    """What a plugin's `rhapsody_backends` gave; it has checked itself when it was made.

    Raises:
        TypeError: It is no `BackendSpec`, or has no `Capabilities`.
    """
    if not isinstance(spec, BackendSpec):
        raise TypeError(f"rhapsody_backends gave {spec!r}, which is no BackendSpec")
    if not isinstance(spec.capabilities, Capabilities | None):
        raise TypeError(
            f"BackendSpec(capabilities={spec.capabilities!r}): a Capabilities or None is needed"
        )
    return spec


class _Shape(Protocol):
    """How the engine calls a backend; names matter only where it passes them."""

    def submit_tasks(self, tasks: Any, /) -> Any: ...
    def cancel_task(self, uid: Any, /) -> Any: ...
    def link_explicit_data_deps(
        self, src_task: Any, dst_task: Any, file_name: Any, file_path: Any
    ) -> Any: ...
    def link_implicit_data_deps(self, src_task: Any, dst_task: Any, /) -> Any: ...
    def get_task_states_map(self) -> Any: ...
    def register_callback(self, func: Any, /) -> Any: ...
    def state(self) -> Any: ...
    def task_state_cb(self, task: Any, state: Any, /) -> Any: ...
    def shutdown(self) -> Any: ...


def check_backend_class(cls: object, source: str) -> type[BaseExecutionBackend]:
    """A backend class that can be instantiated and called the way the engine does.

    Args:
        cls: What was given.
        source: Where it comes from, for the error.

    Raises:
        TypeError: It is no subclass of `BaseExecutionBackend`, is abstract, or has
            a method with other parameters than those that are passed.
    """
    if not (isinstance(cls, type) and issubclass(cls, BaseExecutionBackend)):
        raise TypeError(
            f"{source}: {cls!r} is no backend class; "
            "subclass rhapsody.backends.base.BaseExecutionBackend"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise TypeError(f"{source}: {cls.__qualname__} is abstract; it does not define {missing}")
    if cls.__module__.partition(".")[0] != "rhapsody":
        import typeguard

        try:
            typeguard.check_type(cls, type[_Shape])
        except typeguard.TypeCheckError as error:
            raise TypeError(f"{source}: {error}") from None
    return cls
