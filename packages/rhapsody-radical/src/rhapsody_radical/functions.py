"""Function tasks: through RAPTOR, or as programs of their own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from rhapsody import CapabilityError, TaskDescription, TaskFailedError, TaskLostError
from rhapsody.sdk import make_sandbox
from rhapsody_radical import calls, raptor_config, schema, translate
from rhapsody_radical.descriptions import as_list, task_settings
from rhapsody_radical.fleet import Pilot
from rhapsody_radical.jobs import Job
from rhapsody_radical.results import CANCELED, DONE, FAILED, error_of, not_ours


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


class Host(Protocol):
    """What functions need of their backend, `RadicalExecutionBackend`.

    Attributes:
        functions: `"raptor"` or `"executable"`.
        function_cores: Cores of each pilot for functions, `None` for the default.
        pilots: Its pilots.
        raptor_mode: Whether function tasks go to RAPTOR.
    """

    functions: str
    function_cores: int | None
    pilots: list[Pilot]
    raptor_mode: bool

    def send(self, name: str, *parts: Any) -> None:
        """Send a message to the client."""

    def start_raptor(self, pilot: Pilot, config: dict[str, Any]) -> None:
        """Start RAPTOR's masters and workers on a pilot; blocks until they are submitted."""

    def open_jobs(self) -> Iterable[Job]:
        """Return the jobs that have not ended."""

    def ask_to_end(self, job: Job) -> None:
        """Have the client cancel a job."""

    def fail(self, job: Job, error: BaseException) -> None:
        """Fail a task with an exception, now."""


class Functions:
    """How one backend runs function tasks.

    Args:
        backend: The backend.
    """

    def __init__(self, backend: Host) -> None:
        self._backend = backend
        self._configs: dict[int, dict[str, Any]] = {}
        self._config: dict[str, Any] | None = None

    # RAPTOR.

    def configure(self, config: dict[str, Any]) -> None:
        """Starts RAPTOR on every pilot as a user configured it; blocks until it is submitted.

        Raises:
            RuntimeError: It runs with another configuration.
        """
        if self._configs and config != self._config:
            raise RuntimeError(
                "RAPTOR runs already, with another configuration; give this one to "
                "RadicalExecutionBackend(raptor_config=...), or before the first function task"
            )
        self._config = config
        for pilot in self._backend.pilots:
            self._configs[pilot.number] = config
            self._backend.start_raptor(pilot, config)

    def cores_taken(self, pilot: Pilot) -> int:
        """Cores of a pilot that RAPTOR has."""
        found = self._configs.get(pilot.number)
        return 0 if found is None else raptor_config.total_cores(found)

    def _raptor(self, pilot: Pilot) -> dict[str, Any]:
        """RAPTOR's configuration on a pilot, where it is started by the first call."""
        found = self._configs.get(pilot.number)
        if found is None:
            found = self._configs[pilot.number] = self._config or self._default(pilot)
            self._backend.send("raptor", None, pilot.number, found)
            self._refuse_too_large(pilot, raptor_config.total_cores(found))
        return found

    def _refuse_too_large(self, pilot: Pilot, taken: int) -> None:
        """Fails executables that wait on a pilot where RAPTOR has just taken too much for them."""
        for job in self._backend.open_jobs():
            if job.pilot is pilot and job.sent and not job.running and not job.on_raptor:
                try:
                    translate.check_total(job.task["name"], job.cores, pilot, taken)
                except CapabilityError as error:
                    self._backend.ask_to_end(job)
                    self._backend.fail(job, error)

    def _cores_per_call(self, pilot: Pilot) -> int:
        config = self._configs.get(pilot.number) or self._config or self._default(pilot)
        return raptor_config.cores_per_call(config)

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
        return raptor_config.default(cores)

    # Descriptions.

    def describe(self, job: Job, batch: calls.Batch) -> tuple[dict[str, Any], str | None]:
        """RADICAL-Pilot's words for a function task, with all that it needs in place.

        Args:
            job: The task.
            batch: What those that are submitted with it share.

        Returns:
            The words, and its order where RAPTOR makes the call.

        Raises:
            RuntimeError: RAPTOR is switched off.
            ValueError: It is a service.
            TypeError: The call cannot be pickled.
            CapabilityError: It can never run.
        """
        task = job.task
        self.check(task)
        if task.get("capture") == "files" and "sandbox" not in task:
            task["sandbox"] = os.path.join(job.pilot.sandbox, task["uid"])
        if self._backend.functions == "executable":
            return self._as_program(job), None
        if _needs_more(task, raptor_config.cores_per_call(self._raptor(job.pilot))):
            return self._as_program(job), None
        job.on_raptor = True
        if task.get("sandbox") and job.pilot.shared:
            task["sandbox"] = make_sandbox(task["sandbox"])
            below = os.path.join(job.pilot.sandbox, task["uid"])
            if task["sandbox"] != below:
                os.symlink(task["sandbox"], below)
        directory = job.pilot.sandbox if job.pilot.shared else None
        words, order = self.translate(task, directory, batch)
        if task.get("sandbox"):
            words["sandbox"] = task["sandbox"]
        return words, order

    def translate(
        self,
        task: TaskDescription,
        directory: str | None = None,
        batch: calls.Batch | None = None,
    ) -> tuple[dict[str, Any], str]:
        """RADICAL-Pilot's words for a function task on RAPTOR, and its order.

        Args:
            task: The task.
            directory: Where large values go; `None` where both sides see no such place.
            batch: What those that are submitted with it share.
        """
        settings = task_settings(task)
        capture = task.get("capture", True)
        order = calls.pack(task, settings, capture=capture, directory=directory, batch=batch)
        left_out = ("environment", "pre_exec", "named_env")
        words = {key: value for key, value in settings.items() if key not in left_out}
        words |= {"mode": schema.TASK_FUNCTION, "uid": task["uid"]}
        resources = task.get("resources")
        if resources is not None:
            if resources.ranks > 1:
                raise CapabilityError(
                    f"task {task['name']!r} asks for {resources.ranks} ranks: functions have one; "
                    "use an executable for MPI"
                )
            words["cores_per_rank"] = resources.cores
        return words, order

    def check(self, task: TaskDescription) -> None:
        """Raises for a function task that cannot run, whatever there is.

        Raises:
            RuntimeError: RAPTOR is switched off.
            ValueError: It is a service.
        """
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

    def _as_program(self, job: Job) -> dict[str, Any]:
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
        words = translate.describe_executable(program, job.pilot)
        translate.check_fits(task["name"], words, job.pilot, self.cores_taken(job.pilot))
        job.own_sandbox = translate.place(task, words, job.pilot)
        settings = {**settings, "pre_exec": ()}
        text = calls.pack(task, settings, capture=False, directory=task["sandbox"])
        Path(task["sandbox"], order).write_text(text)
        return words

    # Results.

    def outcome(self, job: Job, state: str) -> tuple[str, BaseException | None]:
        """The state to report for a function's final one, and its error."""
        if job.cancelled:
            return CANCELED, None
        ended = job.ended
        text = _reply(job) if job.program else ended.value
        if text and state != CANCELED:
            error = calls.unpack(text, job.task)
            return (DONE, None) if error is None else (FAILED, error)
        name = job.task["name"]
        if state == CANCELED or not ended.exception:
            code = f", exit code {ended.exit_code}" if ended.exit_code else ""
            tail = (job.task.get("stderr") or "").strip()[-1500:]
            if state == CANCELED:
                return FAILED, not_ours(job)
            return FAILED, TaskFailedError(
                f"task {name!r} ended without a result ({state}{code}) {tail}".rstrip()
            )
        if ended.exit_code and job.program:
            tail = (job.task.get("stderr") or "").strip()[-1500:]
            status = int(ended.exit_code)
            said = (
                f"task {name!r}: its process ended with exit code {status} before it had a "
                f"result. {tail}".rstrip()
            )
            if status > 128:  # a signal
                return FAILED, TaskLostError(said)
            return FAILED, TaskFailedError(said, exit_code=status)
        return FAILED, error_of(job.task, ended.exception, ended.detail)

    def tidy(self, job: Job, state: str) -> None:
        """Removes what was only made for the call."""
        sandbox = job.task.get("sandbox")
        if not job.pilot.shared:
            return
        if not job.program:
            if state != DONE:  # else who read them has removed them
                calls.forget(job.pilot.sandbox, job.uid)
        elif sandbox and job.own_sandbox and state == DONE:
            shutil.rmtree(sandbox, ignore_errors=True)
            del job.task["sandbox"]
        elif sandbox:
            calls.forget(sandbox, job.uid)


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
