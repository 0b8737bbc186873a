"""RADICAL-Pilot backend: submission of tasks to pilots, and reports of their states.

RADICAL-Pilot runs in a separate process, the client (`connection`). One thread translates tasks and
sends them to the client; another reads the client's messages and processes them. `translate`
translates task descriptions, and `results` translates results.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rhapsody import BackendError, CapabilityError, TaskDescription, TaskLostError
from rhapsody.backends import Capabilities, ManagedBackend, Session
from rhapsody.sdk import in_thread
from rhapsody_radical import descriptions, functions, links, results, services, states, translate
from rhapsody_radical.cleanup import SESSIONS_DIRECTORY
from rhapsody_radical.connection import COMMANDS, PROGRAM, ClientConnection
from rhapsody_radical.descriptions import checked_settings, has_other_workers, total_cores
from rhapsody_radical.links import PilotLinks
from rhapsody_radical.pilot import PilotException
from rhapsody_radical.pilots import Ended, Pilot, Pilots, PilotTask
from rhapsody_radical.plugin import RAPTOR, capabilities_of
from rhapsody_radical.remote import RAPTORS
from rhapsody_radical.states import AGENT_EXECUTING, PMGR_ACTIVE
from rhapsody_radical.wire import CallThread

log: logging.Logger = logging.getLogger("rhapsody.radical")

states.register()

CANCEL_TIMEOUT = 10.0
"""Seconds for which `shutdown` waits for canceled tasks before it ends the pilots."""


PilotCallback = Callable[[str, str], Any]
"""`callback(uid, state)` with a pilot's uid and its native state."""


class RadicalExecutionBackend(ManagedBackend):
    """Backend that runs tasks on pilots of RADICAL-Pilot.

    Executables are submitted as tasks of RADICAL-Pilot. Functions run on RAPTOR workers or, with
    `functions="executable"`, as separate programs. Separate programs are slower but isolate the
    calls. RAPTOR workers are started with the backend if `raptor_config` is set, otherwise when the
    first function task is submitted. With several pilots, each task runs on the active pilot whose
    open tasks need the fewest cores in proportion to the pilot's size. If a pilot ends, its tasks
    fail with `TaskLostError`, and the engine starts another attempt.

    Args:
        resources: A dict of the parameters of a pilot's description (`resource`, `cores`,
            `nodes`, `runtime` in minutes, `queue`, `project`, ...). For several pilots, its
            key `pilots` contains a list of dicts with the parameters in which the pilots differ;
            alternatively, pass a list of complete dicts. Default: this machine, `local.localhost`,
            for an hour.
        raptor_config: RAPTOR masters and their workers, with RADICAL-Pilot's keys:
            `{"masters": [{..., "workers": [{..., "worker_type": ...}]}]}`. Default: one master
            and one worker, whose size depends on the pilot.
        functions: `"raptor"` to run function tasks on RAPTOR workers, `"executable"` to run each
            one as a separate program.
        commands: `"task"` to run each executable task as a task of RADICAL-Pilot, `"raptor"` to
            start commands with RAPTOR's workers, which is many times faster. Tasks that need ranks,
            GPUs, memory or other settings of RADICAL-Pilot, and services, always run as tasks.
        raptor: False to disable RAPTOR. With `functions="raptor"`, function tasks then fail.
        function_cores: Number of cores of each pilot for RAPTOR's workers; executables use the
            other cores. Default: half of the pilot's cores, rounded up, minus the core of RAPTOR's
            master, but at most the cores of one node; with `commands="raptor"`, one worker on each
            node, with all cores of the node except one.
        pre_exec: Shell commands that each task runs first, such as `module load gromacs`. For
            functions on RAPTOR, the worker runs the commands once, when it starts; workers
            from `raptor_config` do not run them. For `commands="raptor"`, each worker runs them
            once, when it receives the first command.
        work_dir: The directory that contains the session's directory. Default: the engine's
            directory if an engine starts the backend, otherwise `.rhapsody` in the current
            directory.
        keep_session: True to keep the session's directory, which contains RADICAL-Pilot's logs,
            after the shutdown; False to remove it. Default: keep it only if a pilot failed.
        verbose: True to print RADICAL-Pilot's reports on standard error.
        name: The name of the backend in an engine (default: `"radical_pilot"`).

    Raises:
        TypeError: A value has the wrong type; `start` checks RADICAL-Pilot's own parameters.
        ValueError: A value is invalid.

    Attributes:
        session: RADICAL-Pilot's session, once the backend has started. This attribute and the
            next three contain remote objects (`rhapsody_radical.remote`).
        pilot_manager: The session's pilot manager.
        task_manager: The task manager of the first pilot.
        resource_pilot: The first pilot.
        resources: The argument `resources`.
        raptor_config: The argument `raptor_config`, an empty dict by default.
        raptor_mode: True if function tasks run on RAPTOR.
        pilots: The pilots, in the order of their numbers.
    """

    name = "radical_pilot"
    capabilities: Capabilities = RAPTOR
    session: Session

    def __init__(
        self,
        resources: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        raptor_config: Mapping[str, Any] | None = None,
        *,
        functions: str = "raptor",
        commands: str = "task",
        raptor: bool = True,
        function_cores: int | None = None,
        pre_exec: Sequence[str] = (),
        work_dir: str | Path | None = None,
        keep_session: bool | None = None,
        verbose: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        descriptions.check_flags(raptor=raptor, verbose=verbose, keep_session=keep_session or False)
        settings = descriptions.pilot_descriptions(resources)
        self._config = checked_settings(functions, commands, raptor_config, function_cores, raptor)
        self.resources = resources
        self.raptor_config: Mapping[str, Any] = raptor_config or {}
        self.functions = functions
        self.commands = commands
        self.function_cores = function_cores
        self.pre_exec: list[str] = descriptions.check_commands(pre_exec)
        self._keep = keep_session
        self._verbose = verbose
        self._connection: ClientConnection | None = None
        self.session.uid = f"rhapsody.{uuid.uuid4().hex[:10]}"
        self._work_dir = descriptions.directory(work_dir)
        self.session.path = self._work_dir or self.session.path
        self._pilots: Pilots = Pilots(settings, self._pilot_ended)
        self.pilots: list[Pilot] = self._pilots.pilots
        self.pilot_manager: Any = None
        self.task_manager: Any = None
        self.resource_pilot: Any = None
        self.raptor_mode: bool = raptor and functions == "raptor"
        self.capabilities = self._able(self._config)
        self._selector = self.select_master()
        self._links = PilotLinks()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._commands = CallThread("rhapsody-radical-commands")
        self._waiting: list[PilotTask] = []
        self._sending = False
        self._cancelling: deque[PilotTask] = deque()
        self._none_open = threading.Event()
        self._pilot_callbacks: list[PilotCallback] = []
        self._built: dict[str, Any] = {}

    # Start and shutdown.

    async def start(self) -> None:
        """Start the client, its session and its pilots; return when the pilots have been launched.

        On a batch system, launched pilots are queued, and tasks wait for them. If the start is
        canceled, for example by Ctrl-C under `asyncio.run`, everything that was started is shut
        down, and a warning with the path of the session is logged.

        Raises:
            TypeError: RADICAL-Pilot has no such parameter of a pilot, master or worker, or a value
                has the wrong type; the message names the parameter.
            PilotException: RADICAL-Pilot cannot start; the message contains its reason.
            SystemExit: `KeyboardInterrupt` or `SystemExit` was raised during the start; the message
                contains the session's path.
            asyncio.CancelledError: The start was canceled.
        """
        self._loop = asyncio.get_running_loop()
        place = self._place()
        interrupted = (
            f"interrupted while RADICAL-Pilot was starting; the session's directory was {place}"
        )
        self._connection = ClientConnection(
            self.session.uid, place, self._receive, self._client_lost
        )
        try:
            await in_thread(self._start, self._connection, place)
        except asyncio.CancelledError:
            log.warning("%s", interrupted)
            raise
        except (KeyboardInterrupt, SystemExit) as error:
            raise SystemExit(interrupted) from error

    def _place(self) -> Path:
        """Return the session's directory."""
        work_dir = self._work_dir or (
            self.session.path if self.session.chosen else SESSIONS_DIRECTORY
        )
        return Path(os.path.abspath(work_dir)) / self.session.uid

    def _start(self, connection: ClientConnection, place: Path) -> None:
        if not descriptions.can_work_in(place):
            raise PilotException(
                f"RADICAL-Pilot cannot work in {str(place.parent)!r}, because its scripts do not "
                "quote paths with spaces, quotes or wildcards. Use another directory: "
                "RadicalExecutionBackend(..., work_dir=...), or `rhapsody run -o work_dir=...`"
            )
        settings = {
            "work_dir": str(place.parent),
            "pilots": [pilot.settings for pilot in self.pilots],
            "keep": self._keep,
        }
        *objects, pilots = connection.open(settings, verbose=self._verbose)
        self.session, self.pilot_manager, self.task_manager = objects
        for pilot, (handle, config, sandbox) in zip(self.pilots, pilots, strict=True):
            pilot.handle, pilot.sandbox = handle, sandbox
            pilot.configure(config)
        self.resource_pilot = self.pilots[0].handle
        self.capabilities = self._able(self._config)
        restore = str(connection.directory / PROGRAM)
        script = translate.commands_script(restore, self.pre_exec)
        (connection.directory / COMMANDS).write_text(script, errors="surrogateescape")
        if self._config is not None:
            self._configure_raptor(self._config)

    async def stop(self) -> None:
        """End every task and pilot, and close the session."""
        await in_thread(self._stop)

    def _stop(self) -> None:
        jobs = self.open_jobs()
        for job in jobs:
            self._cancel(job)
        self._commands.stop()
        if self._connection is not None:
            self._none_open.clear()
            if self.open_tasks:
                self._none_open.wait(CANCEL_TIMEOUT)
            self._connection.close(keep=self._keep)
        self._pilots.close()
        for job in self.open_jobs():
            job.cancelled = True
            self.end(job, "CANCELED")

    async def run_in_client(self, f: Callable[..., Any], *args: Any) -> Any:
        """Call `f(objects, *args)` in the client, with RADICAL-Pilot's own objects.

        The function runs on a thread of the client's process. `objects` has the attributes
        `session` and `pilot_manager`, `task_manager` and `resource_pilot` (of the first pilot), and
        `task_managers` and `resource_pilots` (of all pilots). RADICAL-Pilot's sessions, managers,
        pilots and tasks are returned as remote objects, everything else as a copy. If the call is
        canceled, the function continues in the client.

        Args:
            f: The function, which is pickled by cloudpickle.
            args: Further arguments for the function.

        Returns:
            The function's result.

        Raises:
            TypeError: The call or its result cannot be pickled.
            BackendUnavailableError: The backend is not running, or its client has ended.
            Exception: The function's exception.
        """
        self.require_running()
        assert self._connection is not None
        return await asyncio.wrap_future(self._connection.remotes.request(None, f, *args))

    # Submission.

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Send tasks to RADICAL-Pilot's client, except those that have to wait for a pilot.

        Raises:
            BackendUnavailableError: The backend is not running.
            BackendError: A uid is used by an open task, or twice in the batch.
            TypeError: An object in the batch is not a task description.
        """
        self.require_running()
        jobs = [PilotTask(task, self.pilots[0]) for task in self.admit(tasks)]
        self.open_tasks.update((job.uid, job) for job in jobs)
        await asyncio.wrap_future(self._commands.submit(partial(self._submit, jobs)))

    def _submit(self, jobs: list[PilotTask]) -> None:
        """Send tasks, or make them wait for a pilot. Called on the command thread."""
        # If the user has set RAPTOR's size, RAPTOR has to start before executables are checked;
        # otherwise, executables decide whether RAPTOR may start.
        self._waiting += sorted(
            jobs, key=lambda job: self._may_use_raptor(job.task) == self._gives_way
        )
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Send waiting tasks to pilots that need work. Called on the command thread."""
        self._sending = False
        waiting, self._waiting = self._waiting, []
        work: Counter[int] = Counter()
        for job in self.open_jobs() if len(self.pilots) > 1 else ():
            work[job.pilot.number] += job.cores * job.sent
        ready: dict[int, list[tuple[PilotTask, Any, Any]]] = {}
        batch = functions.Batch()
        for job in waiting:
            if job.has_ended:
                continue
            if job.cancelled:
                self.end(job, "CANCELED")
                continue
            try:
                pilot = self._pilots.choose(job.task, partial(self._fits, job.task), work)
                if pilot is None:
                    self._waiting.append(job)
                    continue
                job.pilot = pilot
                if not pilot.usable:
                    raise TaskLostError(f"task {job.task['name']!r}: {pilot.reason}")
                words, order = self._described(job, batch)
                descriptions.require_plain("task_description", {**words, "function": order})
                ready.setdefault(pilot.number, []).append((job, words, order))
                work[pilot.number] += job.cores
            except Exception as error:  # fails only this task
                self.fail(job, error)
        for pilot_number, part in ready.items():
            self._send_tasks(pilot_number, part)

    def _send_tasks(self, number: int, part: list[tuple[PilotTask, Any, Any]]) -> None:
        """Send translated tasks to one pilot."""
        jobs = [job for job, _, _ in part]
        for job in jobs:
            job.sent = True
        with suppress(PilotException):  # reported with the end of the pilots
            self.send("submit", number, [(job.uid, words, order) for job, words, order in part])
            if cancelled := [job.uid for job in jobs if job.cancelled]:
                self.send("cancel", cancelled)
        for job in jobs:
            if not job.pilot.usable:  # the pilot ended while the tasks were being sent
                self.end(job, "LOST")

    def _reconsider_waiting(self) -> None:
        """Make the command thread try again to send the waiting tasks.

        Called on any thread when the state or the work of a pilot has changed.
        """
        if self._waiting and not self._sending:
            self._sending = True
            self._commands.post(self._send_waiting)

    def _fits(self, task: TaskDescription, pilot: Pilot) -> bool:
        """Return True if a pilot is large enough for a task."""
        try:
            if not self._goes_to_raptor(task, pilot):
                translate.check_fits(task["name"], translate.needs(task, pilot), pilot)
        except CapabilityError:
            return False
        return True

    def _described(self, job: PilotTask, batch: functions.Batch) -> tuple[dict[str, Any], Any]:
        """Create a job's sandbox, and describe the job for RADICAL-Pilot.

        Returns:
            The description, and the packed call or `None` if the job does not run on RAPTOR.
        """
        task, pilot, order = job.task, job.pilot, None
        translate.check_pilot(task, pilot, self.pilots)
        directives = self._links.take(job)
        if job.is_function:
            words, order = self._described_function(job, batch)
        elif self._uses_raptor(task, pilot):
            assert self._connection is not None
            job.on_raptor = True
            script = str(self._connection.directory / COMMANDS)
            words, order = translate.describe_command(task, pilot, script)
        else:
            words = translate.describe_executable(task, pilot)
            self._make_room(job, words)
            translate.check_fits(task["name"], words, pilot)
            if task["is_service"]:
                job.awaited = services.prepare(task, words, pilot)
            job.own_sandbox = translate.place(task, words, pilot)
        job.timeout = descriptions.number(words, "timeout")
        job.startup_timeout = descriptions.number(words, "startup_timeout")
        job.cores = descriptions.cores_taken(words)
        if order is None:
            assert self._connection is not None
            script = str(self._connection.directory / PROGRAM)
            translate.add_environment(words, script, self.pre_exec)
        if directives:
            links.do(directives, task.get("sandbox", ""), pilot.sandbox)
        return words, order

    def _described_function(
        self, job: PilotTask, batch: functions.Batch
    ) -> tuple[dict[str, Any], Any]:
        """Return the description of a function task, and its packed call if it runs on RAPTOR."""
        task, pilot = job.task, job.pilot
        self._check_function(task)
        if task.get("capture") == "files" and "sandbox" not in task:
            task["sandbox"] = os.path.join(pilot.sandbox, task["uid"])
        if self._uses_raptor(task, pilot):
            return functions.describe_call(job, batch)
        self._make_room(job, translate.needs(task, pilot))
        return functions.describe_program(job), None

    def _check_function(self, task: TaskDescription) -> None:
        """Raise if a function task cannot run on any pilot.

        Raises:
            RuntimeError: RAPTOR is disabled.
            ServiceFunctionError: The task is a service.
        """
        if task["is_service"]:
            raise functions.ServiceFunctionError(
                f"task {task['name']!r}: RADICAL-Pilot cannot run a function as a service. Use an "
                "executable task with service=True"
            )
        if not self.raptor_mode and self.functions == "raptor":
            raise RuntimeError(
                f"task {task['name']!r}: functions need RAPTOR, which is disabled. Omit "
                "raptor=False, or run functions as programs: "
                "RadicalExecutionBackend(functions='executable')"
            )

    # RAPTOR.

    def _may_use_raptor(self, task: TaskDescription) -> bool:
        """Return True if a task can run on RAPTOR, provided that a pilot has enough cores."""
        if task["function"] is None:
            return (
                self.commands == "raptor"
                and not task["is_service"]
                and functions.may_use_raptor(task)
            )
        return self.functions == "raptor" and functions.may_use_raptor(task)

    def _goes_to_raptor(self, task: TaskDescription, pilot: Pilot) -> bool:
        """Return True if a task runs on RAPTOR, False if it runs as a separate program."""
        if pilot.only_programs or not self._may_use_raptor(task):
            return False
        cores = descriptions.cores_per_call(self._raptor_for(pilot))
        return not functions.needs_more_cores(task, cores)

    def _uses_raptor(self, task: TaskDescription, pilot: Pilot) -> bool:
        """Return True if a task runs on RAPTOR, which is started if necessary."""
        if not self._goes_to_raptor(task, pilot):
            return False
        if pilot.raptor is None:
            config = self._raptor_for(pilot)
            if self._gives_way and (other := self._too_large(pilot, total_cores(config))):
                self._do_without_raptor(other)
                return False
            self._start_raptor(pilot, config)
            self._refuse_too_large(pilot)
        return True

    def _raptor_for(self, pilot: Pilot) -> dict[str, Any]:
        """Return the configuration of RAPTOR for a pilot, even if RAPTOR has not started there."""
        if config := pilot.raptor or self._config:
            return config
        whole = self.commands == "raptor"
        default = functions.default_raptor(pilot, self.function_cores, whole=whole)
        for worker in default["masters"][0]["workers"]:
            worker["pre_exec"] = list(self.pre_exec)
        return default

    def _configure_raptor(self, config: dict[str, Any]) -> None:
        """Start RAPTOR on every pilot with the user's configuration.

        Blocks until RAPTOR's masters and workers have been submitted.

        Raises:
            RuntimeError: RAPTOR is running with another configuration.
        """
        if any(pilot.raptor not in (None, config) for pilot in self.pilots):
            raise RuntimeError(
                "RAPTOR is already running with another configuration. Configure it with "
                "RadicalExecutionBackend(raptor_config=...), or call setup_raptor_mode before the "
                "first function task"
            )
        self._config = config
        for pilot in self.pilots:
            self._start_raptor(pilot, config)

    def _start_raptor(self, pilot: Pilot, config: dict[str, Any]) -> None:
        """Start RAPTOR on a pilot; block until its masters and workers have been submitted."""
        assert self._connection is not None
        self._connection.remotes.call(RAPTORS, "start", pilot.number, config)
        pilot.raptor = config

    @property
    def _gives_way(self) -> bool:
        """True if RAPTOR ends when a task needs its cores: the user has not set RAPTOR's size."""
        return self._config is None and self.function_cores is None

    def _too_large(self, pilot: Pilot, taken: int) -> PilotTask | None:
        """Return an open program that needs more cores than RAPTOR would leave, or `None`."""
        for job in self.open_jobs():
            program = job.program or not (
                job.is_function or job.on_raptor or self._goes_to_raptor(job.task, pilot)
            )
            if job.pilot is pilot and program and job.cores > pilot.cores - taken:
                return job
        return None

    def _make_room(self, job: PilotTask, words: Mapping[str, Any]) -> None:
        """Stop using RAPTOR on a pilot if RAPTOR leaves too few cores for a program."""
        pilot, cores = job.pilot, descriptions.cores_taken(words)
        if self._gives_way and pilot.cores - pilot.raptor_cores < cores <= pilot.cores:
            self._do_without_raptor(job)

    def _do_without_raptor(self, job: PilotTask) -> None:
        """Run functions as programs on a pilot from now on, because a task needs RAPTOR's cores."""
        pilot = job.pilot
        pilot.raptor, pilot.only_programs = None, True
        log.warning(
            "pilot %s: running functions as separate programs, because it has too few cores for "
            "RAPTOR and task %r; request more cores, or set function_cores or "
            "functions='executable'",
            pilot.uid, job.task["name"], extra={"pilot": pilot.uid},
        )  # fmt: skip
        self._commands.post(partial(self._end_raptor, pilot))

    def _end_raptor(self, pilot: Pilot) -> None:
        """End RAPTOR on a pilot, unless it has open calls there."""
        calls = any(job.on_raptor and job.pilot is pilot for job in self.open_jobs())
        if pilot.pairs and not calls:
            pilot.pairs = []
            assert self._connection is not None
            with suppress(PilotException):  # reported with the end of the pilots
                self._connection.remotes.call(RAPTORS, "release", pilot.number)

    def _refuse_too_large(self, pilot: Pilot) -> None:
        """Fail executables that wait on a pilot for cores that RAPTOR now uses."""
        for job in self.open_jobs():
            if job.pilot is pilot and job.sent and not job.running and not job.on_raptor:
                try:
                    translate.check_total(job.task["name"], job.cores, pilot)
                except CapabilityError as error:
                    self.request_end(job)
                    self.fail(job, error)

    # Messages to the client.

    def send(self, name: str, *parts: Any) -> None:
        """Send a message to the client.

        Raises:
            PilotException: The client has ended.
        """
        assert self._connection is not None
        self._connection.send(name, *parts)

    async def cancel_task(self, uid: str) -> bool:
        """Cancel a task.

        Returns:
            True if the task is open, False if it is unknown or has ended.
        """
        job: PilotTask | None = self.open_tasks.get(uid)
        if job is None or job.has_ended:
            return False
        self._cancel(job)
        return True

    def _cancel(self, job: PilotTask) -> None:
        job.cancelled = True
        self.request_end(job)

    def request_end(self, job: PilotTask) -> None:
        """Make the client cancel a job; several requests are sent in one message."""
        self._cancelling.append(job)
        self._commands.post(self._send_cancellations)

    def _send_cancellations(self) -> None:
        jobs = []
        while self._cancelling:
            jobs.append(self._cancelling.popleft())
        uids = [job.uid for job in jobs if job.sent]
        if uids:
            with suppress(PilotException):  # reported with the end of the pilots
                self.send("cancel", uids)
        if len(uids) < len(jobs):
            self._send_waiting()

    # Messages from the client; on the reading thread.

    def _receive(self, name: str, *parts: Any) -> None:
        """Process a message of the client with the method `_on_NAME`."""
        getattr(self, f"_on_{name}")(*parts)

    def _client_lost(self, reason: str) -> None:
        """End all tasks, because the client has ended unexpectedly."""
        for pilot in self.pilots:
            self._pilots.ended(pilot, f"was lost: {reason}")

    def _on_running(self, uid: str, state: str, host: str) -> None:
        job: PilotTask | None = self.open_tasks.get(uid)
        if job is None or job.running or job.has_ended:
            return
        attach = None
        if state == AGENT_EXECUTING:
            job.begin(host)
            attach = job.ready.attach if job.task["is_service"] else None
        self.report_state(job.task, state, attach)
        if attach is not None:
            assert self._loop is not None
            services.watch(job, self._loop, self._service_ready, self.request_end)

    def _service_ready(self, uid: str, info: Any) -> None:
        with suppress(PilotException):  # reported with the end of the pilots
            self.send("ready", uid, info)

    def _on_end(self, uid: str, state: str, reason: str, found: Any) -> None:
        job: PilotTask | None = self.open_tasks.get(uid)
        if job is None:
            return
        if state == "REFUSED":
            kind = {"TypeError": TypeError, "ValueError": ValueError}.get(found, BackendError)
            text = f"{found}: {reason}" if kind is BackendError else reason
            self.fail(job, kind(f"task {job.task['name']!r}: {text}"))
            return
        if found is not None:
            job.ended = Ended(*found)
        job.lost = reason
        self.end(job, state)

    def _on_pilot(self, number: int, changes: dict[str, Any]) -> None:
        assert self._connection is not None
        pilot, remotes = self.pilots[number], self._connection.remotes
        if "pairs" in changes:
            pairs = changes["pairs"]
            pilot.pairs = [
                (remotes.found(one), list(map(remotes.found, more))) for one, more in pairs
            ]
        if "state" in changes:
            remotes.found(changes["pilot"])
            state, when = changes["state"]
            self._pilots.note(pilot, state, when)
            for callback in tuple(self._pilot_callbacks):
                remotes.callbacks.post(partial(callback, pilot.uid, state))
            self._reconsider_waiting()
        if "ended" in changes:
            self._pilots.ended(pilot, changes["ended"])

    # Ends.

    def end(self, job: PilotTask, state: str) -> None:
        """Process a task's terminal state, and report it; later calls for the task do nothing.

        May be called on any thread.
        """
        if not job.claim_end():
            return
        if job.running:
            job.pilot.core_seconds += job.cores * (time.monotonic() - job.began)
            job.pilot.cores_done += job.cores
        try:
            reported, error = results.of(job, state)
        except Exception as problem:  # an unreadable file, or an invalid reply
            log.exception("task %s: cannot process its result", job.uid)
            reported, error = "FAILED", problem
        if reported == "FAILED" and error is not None:
            job.task.setdefault("exception", error)
        if reported != "FAILED":
            job.task.pop("exception", None)
        self._report(job, reported)

    def fail(self, job: PilotTask, error: BaseException) -> None:
        """End a task immediately; may be called on any thread.

        The task is reported as canceled if its cancellation was requested; otherwise, it fails with
        the exception.
        """
        if job.claim_end():
            self._links.forget(job.uid)
            job.task["exception"] = error
            self._report(job, "CANCELED" if job.cancelled else "FAILED")

    def _report(self, job: PilotTask, state: str) -> None:
        if job.is_function:
            functions.tidy(job, state)
        if state == "CANCELED" and job.sent and not job.running:
            translate.remove_place(job.task, job.pilot)
        if job.stopped is not None:
            job.stopped.set()
        self.task_state_cb(job.task, state)
        if job.on_raptor and job.pilot.only_programs:
            self._commands.post(partial(self._end_raptor, job.pilot))
        if not self.open_tasks:
            self._none_open.set()
        self._reconsider_waiting()

    def open_jobs(self) -> list[PilotTask]:
        """Return the jobs that have not ended."""
        return list(self.open_tasks.values())

    # Pilots.

    @classmethod
    def diagnose(cls) -> Iterable[tuple[str, str, str]]:
        """Return the findings of `rhapsody doctor` about RADICAL-Pilot's installation."""
        from rhapsody_radical.diagnosis import findings

        return findings()

    def account(self) -> dict[str, Any]:
        """Return each pilot's utilization, and the times at which the pilot entered its states."""
        return {"pilots": self._pilots.account()}

    def seconds_left(self, task: TaskDescription | None = None) -> float:
        """Return the seconds until the task's pilot or this program's batch job ends.

        The earlier end counts. If no task is passed, or the task names no pilot, the pilot that
        ends last is used.
        """
        job, pilots = super().seconds_left(), self._pilots.seconds_left(task)
        return pilots if job is None else min(job, pilots)

    def cores_in_use(self) -> tuple[int, int]:
        """Return the number of cores that running tasks use, and the cores of all usable pilots."""
        used = sum(job.cores for job in self.open_jobs() if job.running)
        return used, sum(pilot.cores for pilot in self.pilots if pilot.usable)

    def _pilot_ended(self, pilot: Pilot) -> None:
        """Report the tasks of an ended pilot as lost."""
        lost = [job for job in self.open_jobs() if job.pilot is pilot and job.sent]
        closing = self._connection is not None and self._connection.closing
        if self.state() == "running" and not closing:
            log.warning("%s; tasks lost: %d", pilot.reason, len(lost), extra={"pilot": pilot.uid})
        for job in lost:
            self.end(job, "LOST")
        self._reconsider_waiting()

    def _able(self, config: dict[str, Any] | None) -> Capabilities:
        """Return the backend's capabilities with this configuration of RAPTOR."""
        return capabilities_of(
            self.functions,
            enabled=self.raptor_mode,
            other_workers=has_other_workers(config),
        )

    # Names that programs for RADICAL-Pilot and older programs use.

    @property
    def tasks(self) -> dict[str, Any]:
        """The descriptions of open tasks, and those that `build_task` has returned, by uid."""
        return {**self._built, **{job.uid: job.task for job in self.open_jobs()}}

    @property
    def pilot_state(self) -> str:
        """The native state of the first pilot; `NEW` before the start."""
        return self.pilots[0].state

    def register_pilot_callback(self, func: PilotCallback) -> None:
        """Register a pilot callback, which is called as `func(uid, state)` on a separate thread."""
        self._pilot_callbacks.append(func)

    def get_nodelist(self) -> Any:
        """Return the nodes of the first pilot, or `None` if that pilot is not active."""
        if self.resource_pilot is None or self.pilot_state != PMGR_ACTIVE:
            return None
        return self.resource_pilot.nodelist

    # RAPTOR.

    @property
    def masters(self) -> list[Any]:
        """The remote RADICAL-Pilot tasks of the RAPTOR masters."""
        return [master for pilot in self.pilots for master, _ in pilot.pairs]

    @property
    def workers(self) -> list[Any]:
        """The remote RADICAL-Pilot tasks of the RAPTOR workers."""
        return [each for pilot in self.pilots for _, workers in pilot.pairs for each in workers]

    def setup_raptor_mode(self, raptor_config: Mapping[str, Any]) -> None:
        """Start RAPTOR masters and workers; block until they have been submitted.

        Args:
            raptor_config: See `RadicalExecutionBackend`.

        Raises:
            BackendUnavailableError: The backend is not running.
            RuntimeError: RAPTOR is running with another configuration.
            TypeError: The configuration is malformed.
            ValueError: There is no master, a master has no workers, or the backend was created with
                `functions="executable"`.
        """
        if self.functions == "executable":
            raise ValueError(
                "setup_raptor_mode: functions='executable' does not use RAPTOR; use "
                "RadicalExecutionBackend(functions='raptor')"
            )
        self.require_running()
        assert self._connection is not None
        self._connection.remotes.require_another_thread()  # the reader would wait for itself
        config = descriptions.checked_raptor(raptor_config)
        descriptions.require_own_workers(self.commands, config)
        self._commands.submit(partial(self._configure_raptor, config)).result()
        self.raptor_mode = True
        self.capabilities = self._able(config)

    def select_master(self) -> Generator[str, None, None]:
        """Yield the uids of the masters in turn, forever.

        Raises:
            RuntimeError: RAPTOR is disabled, or there is no master.
        """
        for turn in itertools.count():
            masters = [str(master.uid) for master in self.masters]
            if not self.raptor_mode or not masters:
                raise RuntimeError(
                    "RAPTOR is disabled or has no masters. Use "
                    "RadicalExecutionBackend(raptor_config={'masters': [...]})"
                )
            yield masters[turn % len(masters)]

    @property
    def master_selector(self) -> Generator[str, None, None]:
        """A generator from `select_master` that all callers share; renewed after an error."""
        if inspect.getgeneratorstate(self._selector) == inspect.GEN_CLOSED:
            self._selector = self.select_master()
        return self._selector

    # The description.

    _callback_func = ManagedBackend.report_state
    """The method that reports a state, under the name that programs of related projects use."""

    def build_task(
        self,
        uid: str,
        task_desc: Mapping[str, Any],
        task_backend_specific_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return RADICAL-Pilot's description of a task. This imports RADICAL-Pilot.

        Args:
            uid: The task's uid.
            task_desc: The task's description.
            task_backend_specific_kwargs: Settings with RADICAL-Pilot's keys.

        Returns:
            An `rp.TaskDescription`, which is also stored in `tasks`. If the task cannot be
            described, it is reported as failed, and `None` is returned.
        """
        task = functions.completed(uid, task_desc, task_backend_specific_kwargs)
        try:
            if task["function"] is None:
                words = translate.describe_executable(task, None)
            else:
                self._check_function(task)
                words, order = functions.call_words(task)
                words["function"] = functions.python_task(order)
                if self.masters:
                    words.setdefault("raptor_id", next(self.master_selector))
            what = f"task {task['name']!r}: task_description"
            self._built[uid] = descriptions.described("TaskDescription", words, what)
        except Exception as error:  # reported, as for a task that is submitted
            task["exception"] = error
            self.report_state(task, "FAILED")
            return None
        return self._built[uid]

    # Files.

    def link_explicit_data_deps(
        self,
        src_task: Mapping[str, Any] | None = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
        *,
        copy: bool = False,
    ) -> dict[str, Any]:
        """Add a RADICAL-Pilot staging directive for one file to a task.

        The file is copied if `copy` is true; otherwise it is linked.

        Returns:
            The staging directive.

        Raises:
            ValueError: Neither `file_path` nor both `src_task` and `file_name` are given.
            DataError: The name refers to a place outside the sandbox.
        """
        return self._links.add_file(src_task, dst_task, file_name, file_path, copy=copy)

    def link_implicit_data_deps(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        """Make a task start with copies of all files in another task's sandbox."""
        self._links.add_all(src_task, dst_task)
