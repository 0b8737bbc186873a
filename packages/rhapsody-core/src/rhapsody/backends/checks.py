"""Checks of what plugins hand in: declarations of backends, and backend classes.

Nothing here is called per task. typeguard is imported when the first plugin that
is not ours is looked at.
"""

from __future__ import annotations

import inspect
import keyword
from typing import Any, Protocol, get_type_hints

from rhapsody.backends.base import BaseExecutionBackend, Capabilities
from rhapsody.plugins.specs import BackendSpec

_SPEC_TYPES = get_type_hints(BackendSpec, localns={"Capabilities": Capabilities})


def split_import_path(path: str) -> tuple[str, str]:
    """The module and the qualified class name of `"package.module:Class"`.

    Args:
        path: With a colon, or with dots only, where the last part is the class.

    Raises:
        ValueError: Malformed.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    parts = [*module.split("."), *name.split(".")]
    if all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        return module, name
    raise ValueError(
        f"import path {path!r} is malformed: write 'package.module:Class' or 'package.module.Class'"
    )


def check_spec(spec: object) -> BackendSpec:
    """What a plugin's `rhapsody_backends` gave, checked field by field.

    Raises:
        TypeError: It is no `BackendSpec`, or a field is of the wrong type.
        ValueError: The name is empty or the import path malformed.
    """
    import typeguard

    if not isinstance(spec, BackendSpec):
        raise TypeError(f"rhapsody_backends gave {spec!r}, which is no BackendSpec")
    for field, expected in _SPEC_TYPES.items():
        value = getattr(spec, field)
        try:
            typeguard.check_type(value, expected)
        except typeguard.TypeCheckError as error:
            raise TypeError(f"BackendSpec({field}={value!r}): {error}") from None
    if isinstance(spec.requires, str):
        raise TypeError(f"BackendSpec(requires={spec.requires!r}): a list of strings is needed")
    if not spec.name.strip():
        raise ValueError("BackendSpec(name=''): a name is needed")
    split_import_path(spec.import_path)
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
