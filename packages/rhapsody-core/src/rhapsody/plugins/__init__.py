"""Plugins: hooks that declare backends, observe workflows and decide about tasks.

This is a public package for plugin authors. Its names are imported on first use. The hooks
themselves are specified in `rhapsody.plugins.specs`; a plugin implements them with functions marked
by `hookimpl`, or by the decorators of `hooks`, which type checkers check.

Plugins are found in three steps. First, `manager` reads the entry points and imports nothing.
Second, it imports each plugin's small module and checks the hooks, each plugin in isolation. Third,
`rhapsody.backends.discovery` takes the declared `BackendSpec`, checks versions and requirements
against the metadata of the installed distributions, and imports a backend's class only on request.
A plugin that fails in any step is still listed, with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rhapsody._exports import lazy

if TYPE_CHECKING:
    from rhapsody.errors import Failure, Frame, UsageError
    from rhapsody.identity import AttemptId, TaskId, split_label
    from rhapsody.plugins import hooks
    from rhapsody.plugins.options import BackendOption
    from rhapsody.plugins.specs import (
        API_VERSION,
        AttemptFiles,
        BackendSpec,
        CommandLine,
        CommandOption,
        EngineOption,
        LookupTask,
        ObservedEngine,
        Outcome,
        Record,
        Recorded,
        StartedRun,
        Stats,
        Summary,
        TaskCall,
        TaskEvent,
        TaskFiles,
        hookimpl,
    )
    from rhapsody.task import NodeSample

    __all__ = [
        "API_VERSION", "AttemptFiles", "AttemptId", "BackendOption", "BackendSpec", "CommandLine",
        "CommandOption", "EngineOption", "Failure", "Frame", "LookupTask", "NodeSample",
        "ObservedEngine", "Outcome", "Record", "Recorded", "StartedRun", "Stats", "Summary",
        "TaskCall", "TaskEvent", "TaskFiles", "TaskId", "UsageError", "hookimpl", "hooks",
        "split_label",
    ]  # fmt: skip
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "rhapsody.errors": "Failure Frame UsageError",
            "rhapsody.identity": "AttemptId TaskId split_label",
            "rhapsody.plugins.hooks": "hooks",
            "rhapsody.plugins.options": "BackendOption",
            "rhapsody.plugins.specs": (
                "API_VERSION AttemptFiles BackendSpec CommandLine CommandOption EngineOption "
                "LookupTask ObservedEngine Outcome Record Recorded StartedRun Stats Summary "
                "TaskCall TaskEvent TaskFiles hookimpl"
            ),
            "rhapsody.task": "NodeSample",
        },
    )
