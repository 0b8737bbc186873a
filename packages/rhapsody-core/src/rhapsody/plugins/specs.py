"""The hooks: what a plugin can declare, observe and decide.

Hooks declare and observe; behaviour lives in backend classes. They are
synchronous and called in batches where many calls would come together. What
calls them, and what happens when one raises, is in `rhapsody.plugins.manager`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from rhapsody.backends.base import Capabilities
    from rhapsody.engine.workflow import WorkflowEngine
    from rhapsody.task import TaskDescription

hookspec = pluggy.HookspecMarker("rhapsody")
hookimpl = pluggy.HookimplMarker("rhapsody")

API_VERSION = 1
"""The version of the plugin interface: these hooks and the backend classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A plugin's declaration of one backend. Cheap to make: it imports no library.

    Attributes:
        name: The backend's name, the same as its entry point's. Compared without
            case, `-` and `_` alike.
        import_path: `"package.module:Class"`, imported when the class is asked for.
        summary: One line for tables.
        api_version: The plugin interface it was written for.
        requires: Distribution requirements (`"distributed>=2024.1"`) that must be
            installed for the backend to be usable; checked by metadata.
        capabilities: What the backend can do; `None` where only an object can say.
        install_hint: The command that installs what is missing.
    """

    name: str
    import_path: str
    summary: str = ""
    api_version: int = API_VERSION
    requires: Sequence[str] = ()
    capabilities: Capabilities | None = None
    install_hint: str = ""


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One change of one task or block. Immutable; shared by all observers.

    Attributes:
        uid: The uid in the engine, `task.000001`.
        name: The task's name.
        attempt: Counted from 1.
        state: The canonical state that was entered.
        native: The backend's word for it, `None` where the engine decided.
        backend: The backend's name, `None` before one was chosen.
        time: Seconds since the epoch.
        monotonic: The engine clock's seconds, for durations.
        worker: The worker or host, where the backend says.
        scope: The scope the task was made in.
        error: The exception of a failed task.
    """

    uid: str
    name: str
    attempt: int
    state: TasksMainStates
    native: str | None
    backend: str | None
    time: float
    monotonic: float
    worker: str | None = None
    scope: str | None = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """A result that a plugin found for a task: the task is not run. `value` may be `None`."""

    value: Any


@dataclass(frozen=True, slots=True)
class Record:
    """A completed task, given to `rhapsody_record_results` before its future is set.

    Attributes:
        uid: The uid in the engine, `task.000001`.
        task: The attempt's description, with what the backend left in it.
        value: What the future will hold.
        settings: The task's `cache` and `version` settings.
    """

    uid: str
    task: TaskDescription
    value: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
