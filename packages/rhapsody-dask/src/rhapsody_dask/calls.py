"""One task in the hands of the Dask backend, and what of it is told to the worker."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from rhapsody import CapabilityError, TaskDescription
from rhapsody_dask.demand import NOTHING, Demand
from rhapsody_dask.files import Link
from rhapsody_dask.shared import Entry
from rhapsody_dask.worker.messages import key_of


class Call:
    """A task, and how it stands.

    Attributes:
        task: The description, which results are written into.
        uid: Its uid.
        key: Its key in Dask.
        demand: What Dask is told beside it.
        future: Dask's future, `None` before it was sent.
        entries: The big arguments that it uses.
        references: The keys of the tasks whose values it gets where it runs.
        sources: Dask's futures of those, so that Dask keeps them until it has run.
        referred_to: Other tasks get its value there.
        links: The files that it was given, where they go by content.
        asked_again: Its reply could not be fetched once, and was asked for again.
        cancelled: Somebody asked for its end.
        begun: It was seen to run, so that its end has to be waited for.
        finished: Dask has its reply.
        announced: The running state was reported.
        ready: For a service, what to wait for; `None` where that is nothing.
        readiness: The engine's and the worker's sides of it, brought together.
        error: Why it is being stopped, where that is not a cancellation.
        worker: The worker that runs it.
        token: Which start of the attempt that is.
        refusal: Notices that the scheduler does not accept it.
        watch: What waits for a callable `ready`.
        waiter: What waits for its value, once that was held and somebody has asked.
    """

    __slots__ = (
        "announced",
        "asked_again",
        "begun",
        "cancelled",
        "demand",
        "entries",
        "error",
        "finished",
        "future",
        "key",
        "links",
        "readiness",
        "ready",
        "references",
        "referred_to",
        "refusal",
        "sources",
        "task",
        "token",
        "uid",
        "waiter",
        "watch",
        "worker",
    )

    def __init__(self, task: TaskDescription, session: str) -> None:
        self.task: TaskDescription = task
        self.uid: str = task["uid"]
        self.key: str = key_of(task["name"], session, self.uid)
        self.demand: Demand = NOTHING
        self.future: Any = None
        self.entries: list[Entry] = []
        self.references: list[str] = []
        self.sources: list[Any] = []
        self.referred_to: bool = False
        self.links: list[Link] = []
        self.cancelled: bool = False
        self.asked_again: bool = False
        self.begun: bool = False
        self.finished: bool = False
        self.announced: bool = False
        self.ready: Any = None
        self.readiness: Any = None
        self.error: BaseException | None = None
        self.worker: str | None = None
        self.token: str | None = None
        self.refusal: Any = None
        self.watch: Any = None
        self.waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Call {self.uid}>"


def named(call: Call) -> str:
    """A task in messages."""
    return f"task {call.task['name']!r} ({call.uid})"


def details(task: TaskDescription, demand: Demand, own: str) -> dict[str, Any]:
    """What a worker has to know of a task besides the call; empty for a plain function.

    Args:
        task: The description. Its sandbox is set where it needs one.
        demand: What Dask is told of it.
        own: The directory for the sandboxes of tasks that name none.

    Raises:
        CapabilityError: The backend cannot run it.
        ValueError: It has neither a function nor an executable.
    """
    more: dict[str, Any] = {}
    if task["function"] is None:
        _program(task, more)
    elif task["is_service"]:
        raise CapabilityError(
            f"task {task['name']!r}: the Dask backend runs executables as services, not functions; "
            "return a command from an executable task with service=True"
        )
    resources = task.get("resources")
    if resources is not None:
        if resources.cores != 1:
            more["cores"] = resources.cores
        if resources.gpus:
            more["gpus"] = resources.gpus
    elif task["is_service"]:
        more["cores"] = 0  # it mostly waits
    if task["function"] is None or "sandbox" in task or task.get("capture") == "files":
        task["sandbox"] = os.path.abspath(task.get("sandbox") or os.path.join(own, task["uid"]))
        more["sandbox"] = task["sandbox"]
    if "timeout" in task:
        more["timeout"] = task["timeout"]
    if task["function"] is not None:
        if task.get("environment"):
            more["environment"] = task["environment"]
        if "capture" in task:
            more["capture"] = task["capture"]
    if demand.retries:
        more["raises"] = True
    return more


def _program(task: TaskDescription, more: dict[str, Any]) -> None:
    executable = task["executable"]
    if not isinstance(executable, str) or not executable:
        raise ValueError(f"task {task['name']!r} has neither a function nor an executable")
    keys = ("executable", "arguments", "stdin", "cwd", "environment", "capture", "ready")
    program = {key: task[key] for key in keys if key in task}  # type: ignore[literal-required]
    if callable(program.get("ready")):
        del program["ready"]  # it is called here
    elif "ready" in program:
        from rhapsody.sdk import parse_ready

        parse_ready(program["ready"])
    more["program"] = program
    if task["is_service"]:
        more["service"] = True
