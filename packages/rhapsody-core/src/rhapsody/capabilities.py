"""Capabilities that a backend declares.

Plugins import `Capabilities` from `rhapsody.backends`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rhapsody.resources import Resources
from rhapsody.task import TaskKind

CancelLevel = Literal["none", "queued", "running"]
"""The tasks that a backend can cancel: none, those that have not started, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Features that a backend declares to the engine and the conformance kit.

    A task that requires an undeclared capability fails with `CapabilityError` before it is
    submitted. The conformance kit tests every declared capability.

    Attributes:
        functions: True if the backend runs coroutine functions.
        sync_functions: True if the backend runs ordinary functions.
        mpi_functions: True if the backend runs functions with several ranks: every rank of an MPI
            job makes the call, and the value is the list of their results.
        executables: True if the backend runs shell commands and programs with arguments.
        services: True if the backend runs executables as services.
        function_services: True if the backend runs functions as services.
        function_environments: True if the backend runs functions with `container`, `conda`, `venv`
            or `modules`. Each such call runs in a separate process, which can be canceled while it
            is running, whatever `cancel_functions` and `cancel_async_functions` are.
        cancel_functions: The ordinary functions that can be canceled: `"none"`, `"queued"` (those
            that have not started) or `"running"` (all).
        cancel_async_functions: The coroutine functions that can be canceled; same values.
        cancel_executables: The executables that can be canceled; same values.
        cancel_services: The services that can be canceled; same values.
        sandboxes: True if the backend runs each executable in a separate directory.
        cwd: True if the backend can run executables in a directory that the user names.
        files: True if the backend links files into a task's sandbox, and passes them to functions
            as absolute paths.
        shared_file_system: True if tasks see the engine's file system under the same paths.
        copies_files_out: True if the backend implements `copy_file_out`, which copies a file from
            the sandbox of a task that has ended.
        task_settings: The keys that are accepted in `task_backend_specific_kwargs`, which users
            pass as `task_description`; `None` if the engine does not check them.
        result_settings: The keys among these whose values may change a task's result, such as those
            for the environment of a program: a resumed run reuses the result only if they are
            equal. `None`: all keys.
        resources: The fields of `Resources` that the backend honors, and `fractional_cores` if
            `cores` may be a fraction.
        binds: The resources among `resources` that the backend enforces on each task. The others
            are only counted when the backend decides which tasks to run.
        captures_output: True if the backend captures the output of functions, and stores it in the
            description's `stdout` and `stderr`.
        reports_running: True if the backend reports a running state when a task starts.
        worker_values: True if the backend reports when a function begins and ends to build worker
            values, so that this time does not count toward the timeout; see
            `rhapsody.sdk.TaskValues`.
        unfinished_dependencies: True if the backend accepts tasks whose arguments refer to the
            values of its own unfinished tasks.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A level or the name of a resource is unknown, `binds` contains a resource that
            is not in `resources`, or `mpi_functions` is set without the resource `ranks`.
    """

    functions: bool = True
    sync_functions: bool = True
    mpi_functions: bool = False
    executables: bool = True
    services: bool = False
    function_services: bool = False
    function_environments: bool = False
    cancel_functions: CancelLevel = "none"
    cancel_async_functions: CancelLevel = "none"
    cancel_executables: CancelLevel = "none"
    cancel_services: CancelLevel = "none"
    sandboxes: bool = False
    cwd: bool = False
    files: bool = False
    shared_file_system: bool = False
    copies_files_out: bool = False
    task_settings: frozenset[str] | None = None
    result_settings: frozenset[str] | None = None
    resources: frozenset[str] = frozenset()
    binds: frozenset[str] = frozenset()
    captures_output: bool = False
    reports_running: bool = False
    worker_values: bool = False
    unfinished_dependencies: bool = False

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if isinstance(default, bool):
                if not isinstance(value, bool):
                    raise TypeError(f"Capabilities: {name} must be True or False, got {value!r}")
            elif isinstance(default, str):
                if value not in _LEVELS:
                    levels = ", ".join(map(repr, _LEVELS))
                    raise ValueError(f"Capabilities: {name} must be one of {levels}, got {value!r}")
            elif default is None:
                _check_settings(name, value)
            else:
                _check_resources(name, value)
        if not self.binds <= self.resources:
            raise ValueError(
                f"Capabilities: binds must be a subset of resources ({sorted(self.resources)!r}), "
                f"got {sorted(self.binds)!r}"
            )
        if self.mpi_functions and "ranks" not in self.resources:
            raise ValueError("Capabilities: mpi_functions=True requires 'ranks' in resources")

    def runs(self, kind: TaskKind) -> bool:
        """Return True if the backend runs tasks of this kind."""
        match kind:
            case "function":
                return self.sync_functions
            case "async_function":
                return self.functions
            case "executable":
                return self.executables
            case "service":
                return self.services
            case "function_service":
                return self.function_services

    def cancellation(self, kind: TaskKind) -> CancelLevel:
        """Return the declared cancel level for tasks of this kind."""
        match kind:
            case "function":
                return self.cancel_functions
            case "async_function":
                return self.cancel_async_functions
            case "executable":
                return self.cancel_executables
            case "service" | "function_service":
                return self.cancel_services

    def unknown_settings(self, given: Iterable[Any]) -> list[Any]:
        """Return the keys of a task's `task_backend_specific_kwargs` that are not accepted."""
        known = self.task_settings
        return [] if known is None else [key for key in given if key not in known]

    def as_dict(self) -> dict[str, Any]:
        """Return the declaration as plain values, for tables and JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in values.items()}


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Capabilities)}
_LEVELS = get_args(CancelLevel)
_RESOURCES = frozenset(field.name for field in dataclasses.fields(Resources)) | {"fractional_cores"}


def _check_settings(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, frozenset) or not all(isinstance(key, str) for key in value):
        raise TypeError(
            f"Capabilities: {name} must be None or a frozenset of keys, such as "
            f"frozenset({{'queue'}}), got {value!r}"
        )


def _check_resources(name: str, value: object) -> None:
    if not isinstance(value, frozenset):
        raise TypeError(
            f"Capabilities: {name} must be a frozenset, such as frozenset({{'cores'}}), got "
            f"{value!r}"
        )
    unknown = value - _RESOURCES
    if unknown:
        raise ValueError(
            f"Capabilities: {name} contains the unknown resource {min(unknown, key=repr)!r}; valid "
            f"resources: {', '.join(sorted(_RESOURCES))}"
        )
