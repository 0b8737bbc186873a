"""Backend `mpi`, which runs one task at a time in each worker process of `mpi4py.futures`."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rhapsody import BackendUnavailableError, TaskDescription, TaskLostError
from rhapsody.backends import ManagedBackend, SharedSandboxes
from rhapsody.sdk import call_spec, finish, make_sandbox, pack, unpack
from rhapsody_mpi.plugin import CAPABILITIES
from rhapsody_mpi.worker import run_program, work


class MPIBackend(SharedSandboxes, ManagedBackend):
    """Backend that runs tasks in the worker processes of an MPI job.

    Under `mpiexec -n N python -m mpi4py.futures ...`, one process runs the program and the other
    N - 1 are the workers. Otherwise the backend starts workers with `MPI_Comm_spawn`.

    Args:
        resources: `workers`, the number of processes to start. By default, mpi4py uses the
            environment variable `MPI4PY_FUTURES_MAX_WORKERS`, or starts one.
        name: The backend's name in an engine; default `"mpi"`.

    Raises:
        ValueError: An unknown resource, or a number of workers that is not a positive integer.
    """

    name = "mpi"
    capabilities = CAPABILITIES

    def __init__(
        self, resources: Mapping[str, Any] | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        settings = dict(resources or {})
        self._workers: int | None = settings.pop("workers", None)
        if settings:
            unknown = next(iter(settings))
            raise ValueError(f"resources: unknown name {unknown!r}; valid names: 'workers'")
        if self._workers is not None and (type(self._workers) is not int or self._workers < 1):
            raise ValueError(f"workers must be a positive integer, got {self._workers!r}")
        self._pool: Any = None
        self._free = 0
        self._waiting: OrderedDict[str, TaskDescription] = OrderedDict()
        self._running: dict[str, TaskDescription] = {}

    async def start(self) -> None:
        """Open the pool and wait for its workers."""
        try:
            import mpi4py.MPI  # noqa: F401 - starts MPI, on the thread that must finalize it
            from mpi4py.futures import MPIPoolExecutor
        except (ImportError, RuntimeError) as error:
            raise BackendUnavailableError(
                f"MPI cannot be loaded ({error}); load your cluster's MPI module, or run "
                "`pip install mpich`"
            ) from error
        self._loop = asyncio.get_running_loop()
        self._pool = MPIPoolExecutor(self._workers, main=False, path=list(sys.path))
        await asyncio.to_thread(self._pool.bootup)
        self._free = self._pool.num_workers

    async def stop(self) -> None:
        """Drop waiting tasks, ask running ones to stop, and wait for them."""
        canceled = self.get_task_states_map().CANCELED
        while self._waiting:
            self.task_state_cb(self._waiting.popitem()[1], canceled)
        for task in self._running.values():
            self._request_stop(task)
        pool, self._pool = self._pool, None
        if pool is not None:
            # The callbacks of the last results are scheduled before `shutdown` returns.
            await asyncio.to_thread(pool.shutdown)
        shutil.rmtree(self._stop_files, ignore_errors=True)

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Queue the tasks, and start as many as workers are free."""
        self.require_running()
        for task in tasks:
            self.accept(task)
            self._waiting[task["uid"]] = task
        self._fill()

    async def cancel_task(self, uid: str) -> bool:
        """Cancel a waiting task, and ask a running one to stop."""
        if uid in self._waiting:
            self.task_state_cb(self._waiting.pop(uid), self.get_task_states_map().CANCELED)
            return True
        if uid not in self._running:
            return False
        self._request_stop(self._running[uid])
        return True

    def _request_stop(self, task: TaskDescription) -> None:
        self._stop_files.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(self._stop_files, task["uid"]).touch()

    @property
    def _stop_files(self) -> Path:
        """Directory of stop files. A busy worker receives no messages, but can see a file."""
        return Path(self.session.directory("stop")).absolute()

    def _fill(self) -> None:
        states = self.get_task_states_map()
        while self._free and self._waiting:
            uid, task = self._waiting.popitem(last=False)
            try:
                future = self._pool.submit(work, self._packed(task))
            except Exception as error:  # such as an argument that cannot be pickled
                task["exception"] = error
                self.task_state_cb(task, states.FAILED)
                continue
            self._free -= 1
            self._running[uid] = task
            self.task_state_cb(task, states.RUNNING)
            future.add_done_callback(
                lambda done, uid=uid: self._loop.call_soon_threadsafe(self._on_done, uid, done)
            )

    def _packed(self, task: TaskDescription) -> bytes:
        """Return the packed call for a worker. For an executable, the call runs the program."""
        if "sandbox" in task or task["function"] is None:
            task["sandbox"] = make_sandbox(self.sandbox_of(task))
        order = call_spec(task, more={"stop": str(self._stop_files / task["uid"])})
        if task["function"] is None:
            call = {"function": run_program, "args": (task,), "kwargs": {}}
            task = cast("TaskDescription", {**task, **call})
            order = order._replace(capture=False)  # `run_program` captures the output
        return pack(task, order, worker="an MPI worker")

    def _on_done(self, uid: str, future: Any) -> None:
        states, task = self.get_task_states_map(), self._running.pop(uid)
        try:
            error = finish(task, unpack(future.result()))
        except Exception as problem:  # a broken pool, or a worker with another version
            error = task["exception"] = TaskLostError(f"task {task['name']!r}: {problem}")
            error.__cause__ = problem
        state = states.DONE if error is None else states.FAILED
        if isinstance(error, asyncio.CancelledError):
            del task["exception"]
            state = states.CANCELED
        elif error is None and task["function"] is None:
            completed = task.pop("return_value")
            task["exit_code"], task["stdout"], task["stderr"] = completed
            state = states.FAILED if completed.exit_code else states.DONE
        self._free += 1
        self.task_state_cb(task, state)
        if self._pool is not None:
            self._fill()
