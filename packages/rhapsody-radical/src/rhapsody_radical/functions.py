"""Function tasks: through RAPTOR, or as programs of their own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rhapsody.data import make_sandbox
from rhapsody.errors import CapabilityError, TaskFailedError, TaskLostError
from rhapsody.task import TaskDescription
from rhapsody_radical import calls, raptor, translate
from rhapsody_radical.descriptions import as_list, task_settings
from rhapsody_radical.library import rp
from rhapsody_radical.raptor import Pair, Raptor
from rhapsody_radical.results import CANCELED, DONE, FAILED, error_of, not_ours
from rhapsody_radical.session import FINAL, Pilot

if TYPE_CHECKING:
    from rhapsody_radical.backend import RadicalExecutionBackend
    from rhapsody_radical.jobs import Job


class ServiceFunctionError(CapabilityError):
    """A function as a service, which RADICAL-Pilot does not offer. A `ValueError`, too."""


def completed(
    uid: str, task_desc: Mapping[str, Any], specific: Mapping[str, Any] | None
) -> TaskDescription:
    """A description with all required keys, of one that may lack some."""
    task: dict[str, Any] = {
        "name": uid,
        "function": None,
        "executable": None,
        "args": (),
        "kwargs": {},
        "is_service": False,
        "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        **task_desc,
    }
    task["uid"] = uid
    own = task.get("task_backend_specific_kwargs") or {}
    task["task_backend_specific_kwargs"] = dict(own if specific is None else specific)
    return cast("TaskDescription", task)


class Functions:
    """How one backend runs function tasks.

    Args:
        backend: The backend.
    """

    def __init__(self, backend: RadicalExecutionBackend) -> None:
        self._backend = backend
        self._raptors: dict[int, Raptor] = {}
        self._config: dict[str, Any] | None = None

    # RAPTOR.

    def configure(self, config: dict[str, Any]) -> None:
        """Starts RAPTOR on every pilot as a user configured it.

        Raises:
            RuntimeError: It runs with another configuration.
        """
        if self._raptors and config != self._config:
            raise RuntimeError(
                "RAPTOR runs already, with another configuration; give this one to "
                "RadicalExecutionBackend(raptor_config=...), or before the first function task"
            )
        self._config = config
        for pilot in self._backend.pilots:
            self._raptor(pilot).start()

    def pairs(self) -> list[Pair]:
        """All pairs of masters and workers."""
        return [pair for each in list(self._raptors.values()) for pair in each.pairs]

    def cores_taken(self, pilot: Pilot) -> int:
        """Cores of a pilot that RAPTOR has."""
        found = self._raptors.get(pilot.number)
        return 0 if found is None else found.cores

    def look_at(self, handle: Any, state: str) -> None:
        """A task that is none of the engine's: a master or a worker, maybe."""
        for each in list(self._raptors.values()):
            if state in FINAL:
                if any(handle.uid in pair.uids() for pair in list(each.pairs)):
                    self._backend.later(each.check)
            elif state == "AGENT_EXECUTING" and handle.mode == rp.RAPTOR_WORKER:
                each.joined(handle.description, handle.uid)

    def check(self) -> None:
        """Looks whether masters and workers live."""
        calls: dict[Pair, list[str]] = {}
        for job in self._backend.open_jobs():
            if job.pair is not None and job.handle is not None and not job.over:
                calls.setdefault(job.pair, [])
                if not job.staged:
                    calls[job.pair].append(job.uid)
        for each in list(self._raptors.values()):
            for uid in each.check(calls):
                self._backend.call_lost(uid)

    def forget(self) -> None:
        """Lets go of RADICAL-Pilot's objects."""
        self._raptors.clear()

    def _raptor(self, pilot: Pilot) -> Raptor:
        found = self._raptors.get(pilot.number)
        if found is None:
            config = self._config or self._default(pilot)
            found = self._raptors[pilot.number] = Raptor(pilot, config, self._backend.pair_lost)
            self._backend.refuse_too_large(pilot, found.cores)
        return found

    def _cores_per_call(self, pilot: Pilot) -> int:
        found = self._raptors.get(pilot.number)
        config = self._config or self._default(pilot) if found is None else found.config
        return raptor.cores_per_call(config)

    def check_room(self, task: TaskDescription, pilot: Pilot) -> None:
        """Raises where a pilot is too small for a task.

        Raises:
            CapabilityError: It says what there is.
        """
        on_raptor = task["function"] is not None and self._backend.functions == "raptor"
        if on_raptor and not _needs_more(task, self._cores_per_call(pilot)):
            return
        translate.check_fits(task["name"], translate.needs(task), pilot, self.cores_taken(pilot))

    def _default(self, pilot: Pilot) -> dict[str, Any]:
        per_node = pilot.has("cores") or pilot.cores
        cores = self._backend.function_cores
        if cores is None:
            cores = max(1, min(per_node, (pilot.cores + 1) // 2 - (pilot.cores > 2)))
        if cores > per_node or cores + 1 > pilot.cores:
            raise CapabilityError(
                f"pilot {pilot.uid} has {pilot.cores} cores: too few for RAPTOR, whose master "
                f"takes one and whose worker would take {cores}; ask for more cores, or run "
                "functions as programs: RadicalExecutionBackend(functions='executable')"
            )
        return raptor.default(cores)

    # Descriptions.

    def describe(self, job: Job) -> Any:
        """RADICAL-Pilot's description of a function task, with all that it needs in place.

        Raises:
            RuntimeError: RAPTOR is switched off.
            ValueError: It is a service.
            TypeError: The call cannot be pickled.
            CapabilityError: It can never run.
        """
        task = job.task
        self._refuse(task)
        if task.get("capture") == "files" and "sandbox" not in task:
            task["sandbox"] = os.path.join(job.pilot.sandbox, task["uid"])
        if self._backend.functions == "executable":
            return self._as_program(job)
        found = self._raptor(job.pilot)
        if _needs_more(task, raptor.cores_per_call(found.config)):
            return self._as_program(job)
        master = task["task_backend_specific_kwargs"].get("raptor_id")
        job.pair = self._pair_of(master, job.pilot) if master else found.choose()
        if task.get("sandbox") and job.pilot.shared:
            task["sandbox"] = make_sandbox(task["sandbox"])
            below = os.path.join(job.pilot.sandbox, task["uid"])
            if task["sandbox"] != below:
                os.symlink(task["sandbox"], below)
        description = self.translate(task, job.pair)
        description.sandbox = task.get("sandbox") or ""
        return description

    def translate(self, task: TaskDescription, pair: Pair | None = None) -> Any:
        """RADICAL-Pilot's description of a function task for RAPTOR.

        Args:
            task: The task.
            pair: Where it goes to; `None` for the master that it names, or whose turn it is.
        """
        self._refuse(task)
        settings = task_settings(task)
        master = settings.get("raptor_id") or (pair.uid if pair is not None else None)
        if master is None and self.pairs():
            master = next(self._backend.master_selector)
        order = calls.pack(task, settings, capture=task.get("capture", True))
        # Our own workers know what to do with an order; others are told that, too.
        alone = pair is not None and pair.takes_orders
        kind, function = ("call", order) if alone else ("task", calls.python_task(order))
        kept = {
            key: value
            for key, value in settings.items()
            if key not in ("environment", "pre_exec", "named_env")
        }
        description = rp.TaskDescription(
            {
                **kept,
                "metadata": {**(kept.get("metadata") or {}), raptor.MARK: kind},
                "mode": rp.TASK_FUNCTION,
                "uid": task["uid"],
                "function": function,
                "raptor_id": master or "",
            }
        )
        resources = task.get("resources")
        if resources is not None:
            if resources.ranks > 1:
                raise CapabilityError(
                    f"task {task['name']!r} asks for {resources.ranks} ranks: functions have one; "
                    "use an executable for MPI"
                )
            description.cores_per_rank = resources.cores
        if settings:
            translate.verify(task, description)
        return description

    def _pair_of(self, master: str, pilot: Pilot) -> Pair | None:
        """The pair of a master that a task names; `None` for one that the program started itself.

        Raises:
            ValueError: There is none, its pair is lost, or it is on another pilot: RADICAL-Pilot
                would wait for ever.
        """
        for number, each in list(self._raptors.items()):
            there = self._backend.pilots[number].uid
            if master in each.lost:
                raise ValueError(
                    f"raptor_id: RAPTOR master {master!r} is lost; leave raptor_id out"
                )
            for pair in each.pairs:
                if pair.uid == master and number == pilot.number:
                    return pair
                if pair.uid == master:
                    raise ValueError(
                        f"raptor_id: RAPTOR master {master!r} is on pilot {there}, the task goes "
                        f"to {pilot.uid}; say pilot={there!r} in its task_description, too"
                    )
        if not any(master in each.manager.list_tasks() for each in self._backend.pilots):
            known = ", ".join(pair.uid for pair in self.pairs()) or "none yet"
            raise ValueError(f"raptor_id: there is no RAPTOR master {master!r}; there are: {known}")
        return None

    def _refuse(self, task: TaskDescription) -> None:
        if task["is_service"]:
            raise ServiceFunctionError(
                f"task {task['name']!r}: RADICAL-Pilot runs executables as services, not "
                "functions; return a command from an executable task with service=True"
            )
        if not self._backend.raptor_mode and self._backend.functions == "raptor":
            raise RuntimeError(
                f"task {task['name']!r}: RAPTOR is switched off, and functions need it; leave "
                "raptor=False out, or run functions as programs: "
                "RadicalExecutionBackend(functions='executable')"
            )

    def _as_program(self, job: Job) -> Any:
        """A program of its own: what RAPTOR cannot schedule, RADICAL-Pilot's agent can."""
        task = job.task
        job.program = True
        if not job.pilot.shared:
            raise CapabilityError(
                f"task {task['name']!r} would run as a program of its own, for which pilot "
                f"{job.pilot.uid} ({job.pilot.settings['resource']}) would have to see this "
                "machine's files; let it run on RAPTOR, without GPUs, memory or settings that are "
                "a program's"
            )
        resources = task.get("resources")
        if resources is not None and resources.ranks > 1:
            raise CapabilityError(
                f"task {task['name']!r} asks for {resources.ranks} ranks: functions have one"
            )
        settings = task_settings(task)
        program = cast("TaskDescription", dict(task))
        order, reply = f"{task['uid']}.call", f"{task['uid']}.reply"
        program["executable"] = sys.executable
        program["arguments"] = ["-m", "rhapsody_radical.call", order, reply]
        program.pop("stdin", None)
        description = translate.describe_executable(program, job.pilot)
        translate.check_fits(task["name"], description, job.pilot, self.cores_taken(job.pilot))
        job.own_sandbox = translate.place(task, description, job.pilot)
        text = calls.pack(task, {**settings, "pre_exec": ()}, capture=False)
        Path(task["sandbox"], order).write_text(text)
        return description

    # Results.

    def outcome(self, job: Job, state: str) -> tuple[str, BaseException | None]:
        """The state to report for a function's final one, and its error."""
        if job.cancelled:
            return CANCELED, None
        handle = job.handle
        text = _reply(job) if job.program else handle.return_value
        if text and state != CANCELED:
            error = calls.unpack(text, job.task)
            return (DONE, None) if error is None else (FAILED, error)
        name = job.task["name"]
        if state == CANCELED or not handle.exception:
            code = f", exit code {handle.exit_code}" if handle.exit_code else ""
            tail = (job.task.get("stderr") or "").strip()[-1500:]
            if state == CANCELED:
                return FAILED, not_ours(job)
            return FAILED, TaskFailedError(
                f"task {name!r} ended without a result ({state}{code}) {tail}".rstrip()
            )
        if handle.exit_code and job.program:
            tail = (job.task.get("stderr") or "").strip()[-1500:]
            status = int(handle.exit_code)
            said = (
                f"task {name!r}: its process ended with exit code {status} before it had a "
                f"result. {tail}".rstrip()
            )
            if status > 128:  # a signal
                return FAILED, TaskLostError(said)
            return FAILED, TaskFailedError(said, exit_code=status)
        return FAILED, error_of(job.task, handle.exception, handle.exception_detail)

    def tidy(self, job: Job, state: str) -> None:
        """Removes what was only made for the call."""
        sandbox = job.task.get("sandbox")
        if not sandbox or not job.program or not job.pilot.shared:
            return
        if job.own_sandbox and state == DONE:
            shutil.rmtree(sandbox, ignore_errors=True)
            del job.task["sandbox"]
            return
        for kind in ("call", "reply"):
            with suppress(OSError):
                os.unlink(os.path.join(sandbox, f"{job.uid}.{kind}"))


ON_RAPTOR = {
    *("environment", "pre_exec", "timeout", "cores_per_rank", "input_staging", "output_staging"),
    *("stage_on_error", "metadata", "tags", "name", "pilot", "priority", "raptor_id", "cleanup"),
    *("mode", "pre_exec_sync", "restartable"),
}
"""What RAPTOR, or we for it, honours of a task's settings in RADICAL-Pilot's own words."""


def _needs_more(task: TaskDescription, cores: int) -> bool:
    """Whether a call needs what RAPTOR does not offer.

    Such as GPUs, memory, more cores than it has, or settings that are a program's.
    """
    specific = task["task_backend_specific_kwargs"]
    if any(value is not None for key, value in specific.items() if key not in ON_RAPTOR):
        return True
    if not all(isinstance(each, str) for each in as_list(specific.get("pre_exec"))):
        return True  # commands for single ranks
    resources = task.get("resources")
    return int(specific.get("cores_per_rank") or 1) > cores or (
        resources is not None
        and bool(resources.gpus or resources.memory or resources.cores > cores)
    )


def _reply(job: Job) -> str | None:
    path = os.path.join(job.task.get("sandbox", ""), f"{job.uid}.reply")
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None
