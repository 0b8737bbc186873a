"""Declaration of a conformance check, and its error.

A check names the rule that it proves, in one line, and what a backend must declare
for it to apply. Running a check is in `_running`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from rhapsody.backends.base import CancelLevel, Capabilities
from rhapsody.task import TaskKind

if TYPE_CHECKING:
    from rhapsody.testing._settings import Settings


class ConformanceError(AssertionError):
    """A backend breaks the interface's rules, or does not do what it declares.

    Attributes:
        rule: The rule that was broken, in one line.
        detail: What was seen instead.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


class Skip(Exception):  # noqa: N818 - not an error
    """Ends a check that does not apply, with the reason."""


@dataclass(frozen=True, slots=True)
class Need:
    """Something a check asks of the backend or of the test class.

    Attributes:
        capability: The field of `Capabilities` that a check with this need proves, empty
            where it speaks of none.
        reason: Why the check is skipped where the need is not met.
        met: Says whether it is.
    """

    capability: str
    reason: str
    met: Callable[[Capabilities, Settings], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The declaration of one check.

    Attributes:
        group: The name of the class that has the check, such as `"Functions"`.
        rule: What is proved, in one line.
        needs: What must be there for the check to apply.
        dry: The check also applies to a backend that only pretends to run tasks.
        times: How many of the class's time limits it may take.
    """

    group: str
    rule: str
    needs: tuple[Need, ...] = ()
    dry: bool = False
    times: float = 1.0

    def error(self, detail: str) -> ConformanceError:
        """The error that says the rule is broken."""
        return ConformanceError(self.rule, detail)

    def why_skipped(self, capabilities: Capabilities, settings: Settings) -> str | None:
        """Why the check does not apply, `None` where it does."""
        for need in self.needs:
            if not need.met(capabilities, settings):
                return need.reason
        if settings.dry and not self.dry:
            return "dry = True: the backend runs nothing"
        return None


CANCELS: Mapping[TaskKind, str] = {
    "function": "cancel_functions",
    "async_function": "cancel_async_functions",
    "executable": "cancel_executables",
    "service": "cancel_services",
    "function_service": "cancel_services",
}
"""The field of `Capabilities` that says how far each kind of task can be cancelled."""


def skip(reason: str) -> NoReturn:
    """Ends the running check as one that does not apply."""
    raise Skip(reason)


def declares(field: str) -> Need:
    """The backend's capabilities have this field switched on."""
    return Need(
        field,
        f"the backend does not declare {field}",
        lambda capabilities, _: bool(getattr(capabilities, field)),
    )


def runs(*kinds: TaskKind) -> Need:
    """The backend runs at least one of these kinds of task."""
    return Need(
        "",
        f"the backend runs no {' and no '.join(kinds)}",
        lambda capabilities, _: any(capabilities.runs(kind) for kind in kinds),
    )


def honours(resource: str) -> Need:
    """The backend's capabilities name this resource as one it honours."""
    return Need(
        "resources",
        f"the backend does not declare the resource {resource!r}",
        lambda capabilities, _: resource in capabilities.resources,
    )


def binds(resource: str) -> Need:
    """The backend's capabilities name this resource as one it enforces."""
    return Need(
        "binds",
        f"the backend does not declare that it binds {resource!r}",
        lambda capabilities, _: resource in capabilities.binds,
    )


def cancels(kind: TaskKind, level: CancelLevel) -> Need:
    """Tasks of this kind can be cancelled as far as this level."""
    enough = ("running",) if level == "running" else ("queued", "running")
    return Need(
        CANCELS[kind],
        f"the backend does not declare that it cancels a {level} {kind}",
        lambda capabilities, _: (
            capabilities.runs(kind) and capabilities.cancellation(kind) in enough
        ),
    )


def cannot_stop(kind: TaskKind) -> Need:
    """Tasks of this kind are run, but cannot be cancelled once they run."""
    return Need(
        CANCELS[kind],
        f"the backend runs no {kind} or declares that it cancels a running one",
        lambda capabilities, _: (
            capabilities.runs(kind) and capabilities.cancellation(kind) != "running"
        ),
    )


SYNC = declares("sync_functions")
ASYNC = declares("functions")
EXECUTABLES = declares("executables")
SERVICES = declares("services")
FUNCTION_SERVICES = declares("function_services")
FUNCTIONS = runs("function", "async_function")
SANDBOXES = declares("sandboxes")
CWD = declares("cwd")
FILES = declares("files")
SHARED = declares("shared_file_system")
COPIES_OUT = declares("copies_files_out")
SAVES = Need(
    "",
    "its sandboxes cannot be reached from here",
    lambda capabilities, _: capabilities.shared_file_system or capabilities.copies_files_out,
)
SETTINGS = Need(
    "task_settings",
    "the backend does not declare task_settings",
    lambda capabilities, _: capabilities.task_settings is not None,
)
OUTPUT = declares("captures_output")
RUNNING = declares("reports_running")
COPIES = Need(
    "",
    "tasks share the program's memory (`shares_memory`)",
    lambda _, settings: (
        settings.separate_processes
        if settings.shares_memory is None
        else not settings.shares_memory
    ),
)
ISOLATED = Need(
    "",
    "separate_processes = False: functions share a process",
    lambda _, settings: settings.separate_processes,
)
