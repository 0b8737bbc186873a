"""The RADICAL-Pilot backend: tasks to pilots, and what is reported of them.

RADICAL-Pilot blocks and calls back on threads of its own. Here its calls are made on
one thread, ends are worked up on a second, and a third looks once a second for what
nobody calls back about. Descriptions are translated in `translate`, results in `results`.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rhapsody.backends.base import Capabilities, Session
from rhapsody.backends.local.aside import in_thread
from rhapsody.errors import CapabilityError, TaskLostError
from rhapsody.task import TaskDescription
from rhapsody_radical import capabilities, interruption, links, services, states, translate
from rhapsody_radical.descriptions import check_flags, directory, pilot_descriptions
from rhapsody_radical.fleet import Fleet, PilotCallback
from rhapsody_radical.functions import Functions
from rhapsody_radical.jobs import Job
from rhapsody_radical.kept_names import KeptNames
from rhapsody_radical.leftovers import HERE
from rhapsody_radical.links import Links
from rhapsody_radical.raptor import Pair, checked_settings
from rhapsody_radical.session import FINAL, Client, Pilot
from rhapsody_radical.threads import Results, Watch, Worker

states.register()

ENDING = 10.0
"""Seconds that `shutdown` waits for tasks to end before their pilots are ended."""


class RadicalExecutionBackend(KeptNames):
    """Runs tasks on pilots of RADICAL-Pilot.

    Executables are RADICAL-Pilot's own tasks. Functions run on RAPTOR workers, which are
    started when the first function task arrives, or as programs of their own
    (`functions="executable"`), which is slower and keeps them apart. With several
    pilots each task goes to the one with the least to do; the tasks of a pilot that ends
    fail with `TaskLostError`, which the engine answers with another attempt.

    Args:
        resources: The parameters of a pilot's description (`resource`, `cores`,
            `nodes`, `runtime` in minutes, `queue`, `project`, ...), or a list of such for
            several pilots. Default: this machine, `local.localhost`, for an hour.
        raptor_config: RAPTOR masters and their workers, instead of one pair sized to
            the pilot: `{"masters": [{..., "workers": [{..., "worker_type": ...}]}]}` in the
            words of RADICAL-Pilot's task description.
        functions: `"raptor"` or `"executable"`.
        raptor: `False` switches RAPTOR off: function tasks fail.
        function_cores: Cores of each pilot that are RAPTOR's workers'; executables have
            the others. Default: half of them, rounded up, but for RAPTOR's master, and one
            node's at most.
        work_dir: Where the session's directory is made. Default: the engine's directory
            where an engine starts the backend, else `.rhapsody` in the current one.
        keep_session: Whether the session's directory, with RADICAL-Pilot's logs, stays
            after the shutdown. Default: where a pilot failed.
        verbose: RADICAL-Pilot reports on standard error.

    Raises:
        TypeError: A value of the wrong type, or a parameter that RADICAL-Pilot lacks.
        ValueError: A value that cannot be meant.

    Attributes:
        session: RADICAL-Pilot's session once it was started.
        pilot_manager: Its pilot manager.
        task_manager: The task manager of the first pilot.
        resource_pilot: The first pilot.
        raptor_mode: Whether function tasks go to RAPTOR.
        fleet: The pilots, and what is told of them.
        pilots: The pilots, the first one first.
    """

    name = "radical_pilot"
    capabilities: Capabilities = capabilities.RAPTOR
    session: Session

    def __init__(
        self,
        resources: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        raptor_config: Mapping[str, Any] | None = None,
        *,
        functions: str = "raptor",
        raptor: bool = True,
        function_cores: int | None = None,
        work_dir: str | Path | None = None,
        keep_session: bool | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__()
        check_flags(raptor=raptor, verbose=verbose, keep_session=keep_session or False)
        settings = pilot_descriptions(resources)
        self._config = checked_settings(functions, raptor_config, function_cores, raptor)
        self.functions = functions
        self.function_cores = function_cores
        self._keep = keep_session
        self._verbose = verbose
        self._client: Client | None = None
        self.session.uid = f"rhapsody.{uuid.uuid4().hex[:10]}"
        self._work_dir = directory(work_dir)
        self.session.path = self._work_dir or self.session.path
        self.fleet: Fleet = Fleet(settings, self._pilot_ended)
        self.pilots: list[Pilot] = self.fleet.pilots
        self.pilot_manager: Any = None
        self.task_manager: Any = None
        self.resource_pilot: Any = None
        self.raptor_mode: bool = raptor and functions == "raptor"
        self.capabilities = self._able(self._config)
        self._functions = Functions(self)
        self._selector = self.select_master()
        self._stopping = threading.Event()
        self._links = Links()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._commands: Worker | None = None
        self._results: Results | None = None
        self._watch: Watch | None = None

    # Life.

    async def start(self) -> None:
        """Starts the session and its pilots; returns when they are launched.

        On a batch system that means queued: tasks wait for their pilot.

        Raises:
            PilotException: RADICAL-Pilot cannot; the text has its reason.
            SystemExit: Ctrl-C came, and no engine handles it; the text has the session's path.
        """
        self._loop = asyncio.get_running_loop()
        self._commands = Worker("rhapsody-radical-commands")
        self._results = Results(self)
        starting = asyncio.ensure_future(in_thread(self._start))
        with interruption.noticed() as interrupted:
            try:
                await asyncio.shield(starting)
            except asyncio.CancelledError as cancelled:
                self._stopping.set()
                await asyncio.wait([starting])  # what is half open cannot be closed
                starting.exception()
                if interrupted.is_set() and self._client is not None:
                    raise SystemExit(self._client.interrupted()) from cancelled
                raise
        self._watch = Watch(self)

    def _start(self) -> None:
        chosen = self._work_dir or (self.session.path if self.session.chosen else HERE)
        client = Client(
            self.session.uid, chosen, self.pilots, verbose=self._verbose, keep=self._keep
        )
        self._client = client
        client.open(self._on_task, self.fleet.heard, self._stopping)
        if self._stopping.is_set():
            return
        self.session = client.session
        self.pilot_manager = client.manager
        self.task_manager = client.pilots[0].manager
        self.resource_pilot = client.pilots[0].pilot
        client.wait_launched(self._stopping)
        self.capabilities = self._able(self._config)
        if self._config is not None:
            self._functions.configure(self._config)

    async def stop(self) -> None:
        """Ends every task and pilot, and closes the session."""
        self._stopping.set()
        await in_thread(self._stop)

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        jobs = list(self._open.values())
        for job in jobs:
            self._cancel(job)
        if self._commands is not None:
            self._commands.stop()
        if self._results is not None and jobs:
            self._results.wait_for(jobs, ENDING)
        if self._client is not None:
            self._client.close()
        self.fleet.close()
        for job in list(self._open.values()):
            self.end(job, self._canceled(job))
        if self._results is not None:
            self._results.stop()
        self._functions.forget()

    @staticmethod
    def _canceled(job: Job) -> str:
        job.cancelled = True
        return "CANCELED"

    # Tasks in.

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Hands tasks to RADICAL-Pilot in one go; returns when it has them.

        Raises:
            BackendUnavailableError: The backend is not running.
            BackendError: A task of one of the uids is open, or two have the same.
            TypeError: Something in the batch is no description at all.
        """
        self.require_running()
        admitted = self.admit(tasks)
        pilots = self.fleet.spread(admitted, self.open_jobs())
        jobs = [Job(task, pilot) for task, pilot in zip(admitted, pilots, strict=True)]
        self._open.update((job.uid, job) for job in jobs)
        assert self._commands is not None
        await asyncio.wrap_future(self._commands.submit(partial(self._submit, jobs)))

    def _submit(self, jobs: list[Job]) -> None:
        """Translates and submits; on the thread of commands."""
        ready: dict[int, list[tuple[Job, Any]]] = {}
        # Functions first: RAPTOR takes cores that executables then cannot have.
        for job in sorted(jobs, key=lambda job: not job.is_function):
            try:
                self._find_room(job)
                if not job.pilot.usable:
                    raise TaskLostError(f"task {job.task['name']!r}: {job.pilot.reason}")
                described = (job, self._description(job))
                ready.setdefault(job.pilot.number, []).append(described)
            except Exception as error:  # one task's problem
                self.fail(job, error)
        for batch in ready.values():
            manager = batch[0][0].pilot.manager
            try:
                handles = manager.submit_tasks([description for _, description in batch])
            except Exception as error:  # whatever RADICAL-Pilot raises: it has none of them
                for job, _ in batch:
                    self.fail(job, error)
                continue
            for (job, _), handle in zip(batch, handles, strict=True):
                job.handle = handle
                if not job.pilot.usable:  # it ended meanwhile
                    self.end(job, "LOST")
                elif job.cancelled:
                    self._cancel_now(job)

    def _find_room(self, job: Job) -> None:
        """Sends a task to another pilot where its own is too small and it names none."""
        if len(self.pilots) == 1 or job.task["task_backend_specific_kwargs"].get("pilot"):
            return
        others = [pilot for pilot in self.pilots if pilot.usable and pilot is not job.pilot]
        for pilot in (job.pilot, *others):
            with suppress(CapabilityError):
                self._functions.check_room(job.task, pilot)
                job.pilot = pilot
                return

    def _description(self, job: Job) -> Any:
        """RADICAL-Pilot's description of a job, with its sandbox made."""
        task, pilot = job.task, job.pilot
        translate.check_pilot(task, pilot, self.pilots)
        directives = self._links.take(job)
        if job.is_function:
            description = self._functions.describe(job)
        else:
            description = translate.describe_executable(task, pilot)
            taken = self._functions.cores_taken(pilot)
            translate.check_fits(task["name"], description, pilot, taken)
            if task["is_service"]:
                services.check(task, pilot)
            job.own_sandbox = translate.place(task, description, pilot)
        job.timeout = float(description.timeout or 0)
        job.startup_timeout = float(description.startup_timeout or 0)
        job.cores = int(description.ranks or 1) * max(1, int(description.cores_per_rank or 1))
        links.do(directives, task.get("sandbox", ""), pilot.sandbox)
        return description

    # Cancellation.

    async def cancel_task(self, uid: str) -> bool:
        """Cancels a task; `False` for one that is unknown or has ended."""
        job: Job | None = self._open.get(uid)
        if job is None or job.over:
            return False
        self._cancel(job)
        return True

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        if self._commands is not None:
            self._commands.post(partial(self._cancel_now, job))

    def _cancel_now(self, job: Job) -> None:
        """Asks RADICAL-Pilot to cancel; asked again until it has (`Watch`)."""
        if job.handle is not None and not job.over:
            with suppress(Exception):  # the pilot may be gone; its end is seen elsewhere
                job.pilot.manager.cancel_tasks([job.uid])

    # States out.

    def _on_task(self, handle: Any, state: str) -> None:
        """RADICAL-Pilot's callback, on its thread; exceptions would be swallowed."""
        job: Job | None = self._open.get(handle.uid)
        if job is None:
            self._functions.look_at(handle, state)
            return
        if job.handle is None:
            job.handle = handle
        if state in FINAL:
            self.end(job, state)
        else:
            self._progress(job, state)

    def _progress(self, job: Job, state: str) -> None:
        with job.lock:
            if job.over:
                return
            if state != "AGENT_EXECUTING":
                self._tell(job.task, state)
                return
            job.running, job.began = True, time.monotonic()
            job.hear()
            if not job.task["is_service"]:
                self._tell(job.task, state)
                return
            self._tell(job.task, state, partial(_attach, job.handle))
        assert self._loop is not None
        services.watch(job, services.readiness(job.task), self._loop)

    def end(self, job: Job, state: str) -> None:
        """Takes note of a final state; worked up on another thread, reported once."""
        if state == "DONE" or (job.running and state != "LOST"):
            job.hear()  # else others than its pair may have said so
        if job.claim_end() and self._results is not None:
            if job.running:
                job.pilot.core_seconds += job.cores * (time.monotonic() - job.began)
            self._results.put(job, state)

    def fail(self, job: Job, error: BaseException) -> None:
        """Fails a task with an exception, now."""
        if job.claim_end():
            self._links.forget(job.uid)
            job.task["exception"] = error
            self.task_state_cb(job.task, "CANCELED" if job.cancelled else "FAILED")

    # For the threads.

    def later(self, function: Callable[[], Any]) -> None:
        """Has a function called on the thread of commands."""
        if self._commands is not None:
            self._commands.post(function)

    def open_jobs(self) -> list[Job]:
        """The jobs that have not ended."""
        return list(self._open.values())

    def open_uids(self) -> set[str]:
        """Their uids."""
        return set(self._open)

    def function_outcome(self, job: Job, state: str) -> tuple[str, BaseException | None]:
        """What came of a function task; removes what was made for its call."""
        outcome = self._functions.outcome(job, state)
        self._functions.tidy(job, outcome[0])
        return outcome

    def check_functions(self) -> None:
        """Looks whether RAPTOR's masters and workers live."""
        self._functions.check()

    def refuse_too_large(self, pilot: Pilot, taken: int) -> None:
        """Fails executables that wait on a pilot where RAPTOR has just taken too much for them."""
        for job in self.open_jobs():
            if job.pilot is pilot and job.handle is not None and not job.running and not job.pair:
                try:
                    translate.check_total(job.task["name"], job.cores, pilot, taken)
                except CapabilityError as error:
                    self.fail(job, error)
                    with suppress(Exception):  # the pilot may be gone
                        pilot.manager.cancel_tasks([job.uid])

    def pair_lost(self, pair: Pair) -> None:
        """Ends the calls of a RAPTOR pair that is gone."""
        for job in self.open_jobs():
            if job.pair is pair:
                self.end(job, "LOST")

    def call_lost(self, uid: str) -> None:
        """Ends a call that its RAPTOR worker does not know, nor anybody what came of it."""
        job: Job | None = self._open.get(uid)
        if job is not None and job.pair is not None:
            job.lost = f"the call or its result was lost on the way to or from {job.pair.uid}"
            self.end(job, "LOST")

    # Pilots.

    def register_pilot_callback(self, func: PilotCallback) -> None:
        """Adds whom to tell about pilots: `func(uid, state)`, on whatever thread hears of it."""
        self.fleet.callbacks.append(func)

    @classmethod
    def diagnose(cls) -> Iterable[tuple[str, str, str]]:
        """What `rhapsody doctor` says of RADICAL-Pilot's installation."""
        from rhapsody_radical.diagnosis import findings

        return findings()

    def account(self) -> dict[str, Any]:
        """What became of the pilots: states with their times, and utilisation."""
        return {"pilots": self.fleet.account()}

    def give_up(self, pilot: Pilot, how: str) -> None:
        """Ends a pilot that RADICAL-Pilot takes for a living one."""
        if pilot.usable and self._client is not None:
            self.fleet.ended(pilot, how)
            self.later(partial(self._client.give_up, pilot))

    def _pilot_ended(self, pilot: Pilot) -> None:
        """The tasks of a pilot that ended are lost."""
        failed = pilot.state == "FAILED" and not self._stopping.is_set()
        if failed and self._client is not None:
            pilot.reason = f"{pilot.reason}: {self._client.why(pilot)}"
        for job in self.open_jobs():
            if job.pilot is pilot and job.handle is not None:
                self.end(job, "LOST")


def _attach(handle: Any, future: Any, task: Any, state: Any) -> None:
    services.service_ready_callback(future, handle, state)
