"""Submission of tasks: their annotations, their packed calls, and the graphs sent to Dask.

Functions are pickled once per batch. Large functions and arguments are packed separately, also once
per batch, and sent to the cluster as data that tasks share; see `values`. `results` fetches the
results.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from functools import partial
from itertools import groupby
from numbers import Integral, Real
from typing import Any, NamedTuple

from rhapsody import CapabilityError, InputFile, InputFiles, OutputDir, OutputFile, TaskDescription
from rhapsody.sdk import (
    REFERENCE,
    Reference,
    cannot_pack,
    dumps,
    in_thread,
    own_modules,
    parse_ready,
    pickler,
)
from rhapsody_dask.files import ClusterLinks, Link, View, content_of
from rhapsody_dask.values import Big, LargeArgument, LargeArguments
from rhapsody_dask.worker.entry import run
from rhapsody_dask.worker.messages import (
    MIN_BUFFER_SIZE,
    ClusterValue,
    Order,
    file_here,
    key_of,
    pack,
    value_here,
)


class Demand(NamedTuple):
    """Annotations of a task for Dask.

    Consecutive tasks with equal annotations are sent in one graph.

    Attributes:
        resources: Names and amounts of worker resources.
        priority: Dask's priority; higher values run first.
        retries: Number of retries by Dask itself.
        workers: The workers that may run the task; empty if all workers may run it.
        allow_other_workers: True if `workers` is only a preference: other workers may run the task
            as well.
    """

    resources: tuple[tuple[str, float], ...] = ()
    priority: float = 0
    retries: int = 0
    workers: tuple[str | int, ...] = ()
    allow_other_workers: bool = False

    def keywords(self) -> dict[str, Any]:
        """Return the annotations other than the defaults, as keyword arguments of `Client.map`."""
        used = {key: value for key, value in self._asdict().items() if value}
        if self.resources:
            used["resources"] = dict(self.resources)
        if self.workers:
            used["workers"] = list(self.workers)
        else:
            used.pop("allow_other_workers", None)
        return used


NOTHING = Demand()


def demand(task: TaskDescription) -> Demand:
    """Return the annotations of a task.

    Raises:
        TypeError: `task_description` contains a value that Dask does not accept, or a function.
        ValueError: A number in `task_description` is negative or not finite.
        CapabilityError: The task requests several ranks.
    """
    specific, resources = task["task_backend_specific_kwargs"], task.get("resources")
    priority = task.get("priority", 0)
    if not (specific or priority) and resources is None:
        return NOTHING
    given = {k: v for k, v in specific.items() if k in Demand._fields and v is not None}
    if isinstance(given.get("workers"), str | int):
        given["workers"] = (given["workers"],)
    _check(task["name"], given)
    wanted: dict[str, float] = {}
    if resources is not None:
        if resources.ranks > 1:
            raise CapabilityError(
                f"task {task['name']!r} requests {resources.ranks} ranks, but Dask cannot start "
                "MPI programs. Use another backend, or call mpirun in an executable task"
            )
        if resources.cores > 1:
            wanted["cores"] = resources.cores
        if resources.gpus:
            wanted["gpus"] = resources.gpus
        if isinstance(resources.memory, int) and resources.memory:
            wanted["memory"] = resources.memory
    wanted |= given.pop("resources", {})
    given["workers"] = tuple(given.get("workers", ()))
    given.setdefault("priority", priority)
    return Demand(tuple(sorted(wanted.items())), **given)


def _check(name: str, annotations: Mapping[str, Any]) -> None:
    """Check that Dask accepts the annotations, and that none is a function.

    Dask would call a function with the task's key, which the user does not know. Its scheduler does
    not check numbers: with a wrong one, it fails later without a reason, or ignores the number.

    Raises:
        TypeError: Dask would reject an annotation, or its value is a function or of a wrong type.
        ValueError: A number is negative or not finite.
    """
    from dask.base import annotate

    try:
        for key, value in annotations.items():
            if callable(value):
                raise TypeError(f"{key} must not be a function, got {value!r}")
        with annotate(**annotations):
            pass
        retries = annotations.get("retries", 0)
        if isinstance(retries, bool) or not isinstance(retries, Integral):
            raise TypeError(f"'retries' annotation must be a whole number, got {retries!r}")
        numbers: dict[str, Any] = {"retries": retries}
        for key, amount in annotations.get("resources", {}).items():
            if not isinstance(key, str) or isinstance(amount, bool) or not isinstance(amount, Real):
                raise TypeError(
                    "'resources' annotation must map names to numbers such as {'FPGA': 1}, got "
                    f"{key!r}: {amount!r}"
                )
            numbers[f"resources: {key}"] = amount
        for key, number in numbers.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{key} must be 0 or more, got {number!r}")
    except (TypeError, ValueError) as error:
        raise type(error)(f"task {name!r}: task_description: {error}") from None


def problem(
    demand: Demand, workers: Mapping[str, Mapping[str, Any]], cluster: Any, *, jobs: bool
) -> str | None:
    """Describe the part of a task's request that the cluster cannot meet, for an error message.

    Args:
        demand: The task's annotations for Dask.
        workers: The scheduler's description of each worker.
        cluster: The LocalCluster that the backend started, or `None` for an existing cluster.
        jobs: True if the workers are jobs of a cluster that the backend started.

    Returns:
        The text, or `None` if the task can run, or may be able to run later.
    """
    wanted = dict(demand.resources)
    declared = [worker.get("resources") or {} for worker in workers.values()]
    fits = (all(have.get(key, 0) >= amount for key, amount in wanted.items()) for have in declared)
    if declared and not any(fits):  # workers of a batch system start later, and may be of any kind
        most = (f"{key}={max(have.get(key, 0) for have in declared):.12g}" for key in wanted)
        asked = " ".join(f"{key}={amount:.12g}" for key, amount in wanted.items())
        cure = f'dask worker ADDRESS --nthreads {wanted.get("cores", 1):g} --resources "{asked}"'
        if cluster is not None and "gpus" in wanted:
            cure = "DaskExecutionBackend({'gpus': ...})"
        cure = f"Start workers that declare their resources: {cure}"
        if jobs:
            cure = (
                "Lower the task's resources, or let jobs that have as much declare it: set "
                f"worker_extra_args in cluster_kwargs to {['--resources', asked]}"
            )
        return (
            f"{asked}, but no worker declares that much; the largest amounts on any worker are "
            f"{' '.join(most)}. {cure}"
        )
    if cluster is not None and demand.workers and not demand.allow_other_workers:
        names = [*map(str, cluster.workers)]  # including those that are starting
        known = {*workers, *names, *(str(one.get("host")) for one in workers.values())}
        if known.isdisjoint(map(str, demand.workers)):
            return (
                f"unknown workers: {', '.join(map(str, demand.workers))}. The cluster has the "
                f"workers {', '.join(names)} at {', '.join(workers) or 'no address yet'}"
            )
    return None


@dataclass(slots=True, eq=False, repr=False)
class ClusterTask:
    """Task of the backend, and its state on the cluster.

    Args:
        session: The backend's session, which makes the task's key unique.

    Attributes:
        task: The task's description, into which its result is written.
        uid: The task's uid.
        key: The task's key in Dask.
        demand: The task's annotations for Dask.
        future: Dask's future; `None` until the task is sent.
        entries: The large arguments that the task uses.
        references: The futures of the tasks whose values the task uses on the worker, by key. Dask
            keeps the values while these futures exist.
        referred_to: True if other tasks use the task's value on the workers.
        grouped: True if the task is in a group or may be added to one. Other tasks cannot use its
            value on the workers.
        links: The links to the task's input files, if the files are sent to the worker by content.
        refetched: True if fetching the task's reply has failed once.
        cancelled: True if the task's cancellation was requested.
        started: True if the task is known to have started. A cancellation is then reported only
            when the task has ended.
        finished: True if the task has ended in Dask, with a reply or with an error.
        announced: True if the task has been reported as running.
        readiness: Notifies the engine that the service is ready; `None` for other tasks.
        error: The error with which the task fails, or `None`.
        worker: The address of the worker that runs the task; `None` until a worker reports the task
            as running.
        token: The id of the start that the worker reported. If Dask reruns the task, the new start
            has another id.
        watchers: The asyncio tasks that detect a rejection of the task by the scheduler, or wait
            for a callable `ready`.
        waiter: The future that is set when the task's held value has arrived or was lost; `None`
            unless the value is being fetched.
        lost_retries: Number of times that the task's held value may be computed again after Dask
            has failed to do so.
        loss: The last error of Dask after which the held value was computed again.
    """

    task: TaskDescription
    session: InitVar[str]
    uid: str = field(init=False)
    key: str = field(init=False)
    demand: Demand = NOTHING
    future: Any = None
    entries: list[LargeArgument] = field(default_factory=list)
    references: dict[str, Any] = field(default_factory=dict)
    referred_to: bool = False
    grouped: bool = False
    links: list[Link] = field(default_factory=list)
    refetched: bool = False
    cancelled: bool = False
    started: bool = False
    finished: bool = False
    announced: bool = False
    readiness: Any = None
    error: BaseException | None = None
    worker: str | None = None
    token: str | None = None
    watchers: list[asyncio.Task[None]] = field(default_factory=list)
    waiter: asyncio.Future[None] | None = None
    lost_retries: int = 0
    loss: BaseException | None = None

    def __post_init__(self, session: str) -> None:
        self.uid = self.task["uid"]
        self.key = key_of(self.task["name"], session, self.uid)

    def __str__(self) -> str:
        return f"task {self.task['name']!r} ({self.uid})"


def details(task: TaskDescription, demand: Demand, own: str) -> dict[str, Any]:
    """Return the settings that the worker needs in addition to the call.

    The dict is empty for the call of a plain function.

    Args:
        task: The task's description. If the task needs a sandbox, this function sets its path.
        demand: The task's annotations for Dask.
        own: The parent directory of sandboxes for which the engine has not chosen a path.

    Raises:
        CapabilityError: The task is a service that runs a function.
        ValueError: The task has neither a function nor an executable.
    """
    is_program, resources = task["function"] is None, task.get("resources")
    passed = ("timeout",) if is_program else FUNCTION_KEYS
    more: dict[str, Any] = {key: task.get(key) for key in passed if task.get(key, {}) != {}}
    if is_program:
        if not isinstance(task["executable"], str) or not task["executable"]:
            raise ValueError(f"task {task['name']!r} has neither a function nor an executable")
        keys = ("executable", "arguments", "stdin", "cwd", "environment", "capture")
        more_keys = ("ready", "trace_context")
        program = {key: task.get(key) for key in (*keys, *more_keys) if key in task}
        if callable(program.get("ready")):
            del program["ready"]  # called in this process, not on the worker
        elif "ready" in program:
            parse_ready(program["ready"])
        more["program"] = program
        if task["is_service"]:
            more |= {"service": True, "cores": 0}  # a service mostly waits
    elif task["is_service"]:
        raise CapabilityError(
            f"task {task['name']!r}: the Dask backend cannot run a function as a service. Use an "
            "executable task with service=True"
        )
    if resources is not None:
        if resources.cores != 1 or "cores" in more:
            more["cores"] = resources.cores
        if resources.gpus:
            more["gpus"] = resources.gpus
    if is_program or "sandbox" in task or task.get("capture") == "files":
        task["sandbox"] = os.path.abspath(task.get("sandbox") or os.path.join(own, task["uid"]))
        more["sandbox"] = task["sandbox"]
    if demand.retries:
        more["raises"] = True
    return more


FUNCTION_KEYS = ("timeout", "environment", "capture", "trace_context", "watch")
"""Keys of a function's description that workers receive."""

GROUPED = {"timeout", "capture", "trace_context", "watch"}
"""Settings with which calls can be sent in groups."""

PLAIN = frozenset({int, float, bool, type(None), complex})
"""Types whose values are assumed to be small."""

SMALL = 1 << 10
"""Size in bytes below which values of the types in `FLAT` are pickled without further checks."""

FLAT = (bytes, str, bytearray)
"""Types whose length is approximately the size of their pickle in bytes."""

PICKLE_ADVICE = "pass data that can be pickled, or run the task on the local backend's threads"

FILES = (InputFile, OutputFile, OutputDir)
"""Types of declared files, which are bound to the task's sandbox on the worker."""

STAND_INS: frozenset[object] = PLAIN | {ClusterValue, Reference, InputFiles, *FILES}
"""Types whose values are never packed separately."""


class Packer:
    """Packer for the tasks of one batch.

    Packed objects are reused only within the batch, because user code may change them later.

    Args:
        session: The backend's session.
        threshold: Size in bytes from which a function or an argument is shared, or `None` to share
            none.

    Attributes:
        modules: The main program's own modules, packed by `rhapsody.sdk.own_modules`.
        workers: The scheduler's description of each worker; `None` until it is requested for the
            first task that names resources or workers.
    """

    def __init__(self, session: str, threshold: int | None) -> None:
        self.modules: bytes | None = own_modules()
        self.workers: dict[str, Any] | None = None
        self._session = session
        self._threshold = math.inf if threshold is None else threshold
        self._functions: dict[int, Big] = {}
        self._bigs: dict[int, Big] = {}

    def pack(
        self, task: TaskDescription, more: Mapping[str, Any], held: int = 0
    ) -> tuple[bytes, list[Big]]:
        """Pack one task.

        Args:
            task: The description.
            more: Further settings for the worker.
            held: Number of values before the large arguments: the references, and the archive of
                input files if there is one.

        Returns:
            The pickled `Order`, and the task's large values in the order in which it refers to
            them.

        Raises:
            TypeError: The function or an argument cannot be pickled, or an argument is a Dask
                future. The message names the argument.
        """
        function, arguments = task["function"], b""
        packed: bytes | int | None = None
        modules: bytes | None = None
        bigs: list[Big] = []
        if function is not None:
            modules = self.modules and self.modules[:REFERENCE]
            known = self._functions.get(id(function))
            if known is None:
                known = Big(function, self._dumps(task, function)[0], [])
                self._functions[id(function)] = known
            packed = known.payload
            if len(packed) >= self._threshold:
                packed = held
                bigs.append(known)
            arguments = self._arguments(task, bigs, held)
        uid, name, attempt = task["uid"], task["name"], task.get("attempt", 1)
        order = Order(self._session, uid, name, attempt, packed, arguments, more, modules)
        return pickle.dumps(order, 5), bigs

    def _arguments(self, task: TaskDescription, bigs: list[Big], held: int) -> bytes:
        args, kwargs = task["args"], task["kwargs"]
        values = (*args, *kwargs.values())
        limit = min(SMALL, self._threshold)
        if all(_is_small(value, limit) for value in values):
            return pickle.dumps((args, kwargs), 5)
        _refuse_futures(task)
        places = {uid: place for place, uid in enumerate(task.get("references", ()))}
        dump = partial(_dumps_with_stand_ins, places=places)
        apart = self._apart(args, kwargs, bigs, held)
        size = MIN_BUFFER_SIZE if self._threshold < math.inf else math.inf
        packed, buffers = self._dumps(task, apart, dump, size)
        if not buffers and len(packed) < self._threshold:
            return packed
        for value in values:  # rare: once per batch and large argument
            if type(value) not in STAND_INS and id(value) not in self._bigs and not places:
                payload, buffers = pack(value)
                if buffers or len(payload) >= self._threshold:
                    self._bigs[id(value)] = Big(value, payload, buffers)
        return self._dumps(task, self._apart(args, kwargs, bigs, held), dump)[0]

    def _apart(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], bigs: list[Big], held: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with a placeholder for each separately packed argument.

        The packed arguments are appended to `bigs`, each of them once.
        """

        def apart(value: Any) -> Any:
            big = self._bigs.get(id(value))
            if big is None:
                return value
            if id(big) not in map(id, bigs):
                bigs.append(big)
            return ClusterValue(held + [*map(id, bigs)].index(id(big)))

        return tuple(map(apart, args)), {key: apart(value) for key, value in kwargs.items()}

    def _dumps(
        self, task: TaskDescription, value: Any, dump: Any = dumps, size: float = math.inf
    ) -> tuple[bytes, list[pickle.PickleBuffer]]:
        try:
            return pack(value, dump, size)
        except Exception as error:  # pickling runs the objects' own code
            raise cannot_pack(task, error, worker="a Dask worker", cure=PICKLE_ADVICE) from error


def _is_small(value: Any, limit: float) -> bool:
    """Return True if a value needs no placeholder, and pickling it runs no user code."""
    return type(value) in PLAIN or (type(value) in FLAT and len(value) < limit)


def _refuse_futures(task: TaskDescription) -> None:
    """Raise if an argument, or an element of a list or tuple, is a Dask future."""
    from distributed import Future

    for value in (*task["args"], *task["kwargs"].values()):
        for one in value if type(value) in (list, tuple) else (value,):
            if type(one) is Future:
                raise TypeError(
                    f"task {task['name']!r}: an argument is a Dask future, {one!r}. Await it, and "
                    "pass its value"
                )


def _reduce_file(file: Any) -> tuple[Any, ...]:
    state = {each.name: getattr(file, each.name) for each in fields(file)}
    return file_here, (type(file), state)


class _StandInPickler(pickler()):  # type: ignore[misc]
    """Pickler that stores each reference and declared file as a call of a function on the worker.

    Unpickling calls `value_here` for each reference and `file_here` for each declared file.
    """

    def __init__(self, target: Any, places: Mapping[str, int], **options: Any) -> None:
        stand_ins: dict[type, Callable[[Any], tuple[Any, ...]]] = {
            **dict.fromkeys(FILES, _reduce_file),
            Reference: lambda reference: (value_here, (places[reference.uid],)),
        }
        # Read once, by the pickler's constructor.
        self.dispatch_table = ChainMap(stand_ins, pickler().dispatch_table)
        super().__init__(target, **options)


def _dumps_with_stand_ins(value: Any, places: Mapping[str, int], **options: Any) -> bytes:
    target = io.BytesIO()
    _StandInPickler(target, places, **options).dump(value)
    return target.getvalue()


class SendableTask(NamedTuple):
    """Task that can be sent.

    Attributes:
        call: The task.
        order: The pickled `Order`.
        bigs: The large values that Dask must hold for the task, in addition to the values of its
            references.
        plain: True if the task is a function call without files, references, large values or
            special settings for the worker, so that it can be grouped.
    """

    call: ClusterTask
    order: bytes
    bigs: list[Big]
    plain: bool


@dataclass(eq=False)
class TaskSender:
    """Sender that packs the tasks of one backend and sends them to Dask.

    Attributes:
        client: Dask's client.
        session: The backend's session.
        own: The parent directory of sandboxes for which the engine has not chosen a path.
        links: The registered input files of tasks.
        view: The checks of whether the workers see a directory.
        shared: The large arguments on the cluster.
        cluster: The LocalCluster that the backend started, or `None` for an existing cluster.
        jobs: True if the workers are jobs of a cluster that the backend started.
    """

    client: Any
    session: str
    own: str
    links: ClusterLinks
    view: View
    shared: LargeArguments
    cluster: Any
    jobs: bool

    async def pack(self, call: ClusterTask, packer: Packer) -> SendableTask:
        """Pack one task.

        Returns:
            The packed task.

        Raises:
            Exception: The task cannot run on this backend or cannot be pickled.
        """  # noqa: DOC501 - a CapabilityError
        task = call.task
        call.demand = demanded = demand(task)
        more = details(task, demanded, self.own)
        if demanded.resources or (demanded.workers and self.cluster is not None):
            if packer.workers is None:
                identity = await self.client.scheduler.identity(n_workers=-1)
                packer.workers = identity["workers"]
            why = problem(demanded, packer.workers, self.cluster, jobs=self.jobs)
            if why is not None:
                raise CapabilityError(f"task {task['name']!r} requests {why}")
        content = await self._files(call, more) if "sandbox" in more else []
        held = len(call.references) + len(content)
        order, bigs = packer.pack(task, more, held)
        plain = task["function"] is not None and more.keys() <= GROUPED
        return SendableTask(call, order, [*content, *bigs], plain and not (held or bigs))

    async def _files(self, call: ClusterTask, more: dict[str, Any]) -> list[Big]:
        """Add a task's input files to its settings.

        Returns:
            A list with the archive of the files, or an empty list if the workers see the sandbox's
            parent directory or there are no files.
        """
        links = self.links.take(call.uid)
        if await self.view.sees(os.path.dirname(more["sandbox"])):
            if links:
                more["links"] = links
            return []
        more["ship"] = True
        call.links = links
        if not links:
            return []
        content, more["came"] = await in_thread(lambda: content_of(links))
        more["links"] = [("content", len(call.references))]
        return [Big(content, content, [])]

    async def share(self, ready: Sequence[SendableTask]) -> None:
        """Send the tasks' large values to the cluster, and record which tasks use them."""
        bigs = [big for one in ready for big in one.bigs]
        if not bigs:
            return
        entries = await self.shared.put(bigs)
        for one in ready:
            one.call.entries = [entries[id(big.value)] for big in one.bigs]
            for entry in one.call.entries:
                self.shared.use(entry)
        for entry in entries.values():
            self.shared.release(entry)  # now the tasks are the users

    def send(self, ready: Sequence[SendableTask]) -> None:
        """Send tasks to Dask; consecutive tasks with equal annotations are sent in one graph."""
        for demanded, alike in groupby(ready, key=lambda one: one.call.demand):
            group = list(alike)
            calls = [one.call for one in group]
            columns: list[list[Any]] = [[one.order for one in group]]
            if any(call.entries or call.references for call in calls):
                columns.append([_values(call) for call in calls])
            keys = [call.key for call in calls]
            keywords = demanded.keywords()
            futures = self.client.map(run, *columns, key=keys, pure=False, **keywords)
            for call, future in zip(calls, futures, strict=True):
                call.future = future


def _values(call: ClusterTask) -> list[Any]:
    """Return the values that Dask holds for a task: references, files, large arguments."""
    # Private, but a future, the public alternative, exists only after its task's graph is sent.
    from dask._task_spec import TaskRef

    return [*map(TaskRef, call.references), *(entry.future for entry in call.entries)]
