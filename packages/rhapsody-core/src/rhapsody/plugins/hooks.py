"""Decorators, one for each hook, whose functions a type checker compares with the hook.

A type checker does not know which hook a function implements that is marked with `hookimpl`. A
decorator of this module names the hook::

    @hooks.task_events
    def rhapsody_task_events(engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
        ...

The function or method has all parameters of the hook, in their order. Its name may be another one.
`rhapsody.plugins.specs` specifies the hooks.

All parameters are required, because a `ParamSpec` cannot describe a part of them; with `hookimpl`,
a function names only those that it needs. The alternatives are worse. Overloads for each selection
of parameters would need about a hundred protocols, and those of `hookimpl` cannot depend on the
name of the function. A base class with a method for each hook does not apply to modules, and
ignores a misspelled method. A plugin for mypy would not help users of pyright.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

from rhapsody.plugins import specs

__all__ = [
    "Hook",
    "backends",
    "commands",
    "engine_options",
    "lookup_results",
    "observers",
    "prepare_task",
    "preview_results",
    "program_event",
    "record_results",
    "run_ended",
    "run_options",
    "run_started",
    "select_backend",
    "task_calls",
    "task_events",
    "trace_tasks",
    "workflow_finished",
    "workflow_not_started",
    "workflow_started",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Object = TypeVar("Object")


class Hook(Generic[Parameters, Result]):
    """Decorator that marks a function or method as an implementation of one hook.

    The decorator has the same effect as `hookimpl`. For a type checker, it accepts only a function
    with the parameters and the result of the hook, or a method that has these in addition to
    `self`.

    Args:
        specification: The function that specifies the hook.
    """

    def __init__(self, specification: Callable[Parameters, Result]) -> None:
        self._name = specification.__name__

    @overload
    def __call__(self, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Object, Parameters], Result]
    ) -> Callable[Concatenate[Object, Parameters], Result]: ...

    @overload
    def __call__(
        self, *, tryfirst: bool = False, trylast: bool = False
    ) -> Hook[Parameters, Result]: ...

    def __call__(
        self, function: Any = None, *, tryfirst: bool = False, trylast: bool = False
    ) -> Any:
        """Mark a function, or return a decorator that marks it as the first or last to be called.

        Args:
            function: The function or method.
            tryfirst: True if it is called before other implementations, as for `hookimpl`.
            trylast: True if it is called after other implementations.

        Returns:
            The function, or a decorator.
        """
        mark = specs.hookimpl(specname=self._name, tryfirst=tryfirst, trylast=trylast)
        return mark if function is None else mark(function)

    def __repr__(self) -> str:
        return f"<decorator of implementations of {self._name}>"


backends: Final = Hook(specs.rhapsody_backends)
engine_options: Final = Hook(specs.rhapsody_engine_options)
observers: Final = Hook(specs.rhapsody_observers)
workflow_started: Final = Hook(specs.rhapsody_workflow_started)
workflow_finished: Final = Hook(specs.rhapsody_workflow_finished)
workflow_not_started: Final = Hook(specs.rhapsody_workflow_not_started)
program_event: Final = Hook(specs.rhapsody_program_event)
task_calls: Final = Hook(specs.rhapsody_task_calls)
task_events: Final = Hook(specs.rhapsody_task_events)
node_samples: Final = Hook(specs.rhapsody_node_samples)
trace_tasks: Final = Hook(specs.rhapsody_trace_tasks)
prepare_task: Final = Hook(specs.rhapsody_prepare_task)
select_backend: Final = Hook(specs.rhapsody_select_backend)
lookup_results: Final = Hook(specs.rhapsody_lookup_results)
preview_results: Final = Hook(specs.rhapsody_preview_results)
record_results: Final = Hook(specs.rhapsody_record_results)
commands: Final = Hook(specs.rhapsody_commands)
run_options: Final = Hook(specs.rhapsody_run_options)
run_started: Final = Hook(specs.rhapsody_run_started)
run_ended: Final = Hook(specs.rhapsody_run_ended)
