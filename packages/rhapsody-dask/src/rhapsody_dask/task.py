"""Submission of tasks: their annotations, their packed calls, and the graphs sent to Dask.

Functions are pickled once per batch. Large functions and arguments are packed separately, also once
per batch, and sent to the cluster as data that tasks share; see `values`. `results` fetches the
results.
"""

from __future__ import annotations

import asyncio
import io
import os
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from rhapsody import (
    CapabilityError,
    InputFile,
    InputFiles,
    OutputDir,
    OutputFile,
    Resources,
    TaskDescription,
)
from rhapsody.sdk import REFERENCE, Reference, cannot_pack, dumps, in_thread, own_modules, pickler
from rhapsody_dask._private import task_reference
from rhapsody_dask.files import Link, Links, View, content_of
from rhapsody_dask.values import Big, Entry, Shared
from rhapsody_dask.worker.messages import (
    MIN_BUFFER_SIZE,
    Order,
    Value,
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
        """Return the annotations that differ from their defaults, as keywords of `Client.map`."""
        keywords: dict[str, Any] = {}
        if self.resources:
            keywords["resources"] = dict(self.resources)
        if self.priority:
            keywords["priority"] = self.priority
        if self.retries:
            keywords["retries"] = self.retries
        if self.workers:
            keywords["workers"] = list(self.workers)
            keywords["allow_other_workers"] = self.allow_other_workers
        return keywords


NOTHING = Demand()


def demand(task: TaskDescription) -> Demand:
    """Return the annotations of a task.

    Raises:
        TypeError: `task_description` contains a value that Dask does not accept, or a function.
        CapabilityError: The task requests several ranks.
    """
    specific, resources = task["task_backend_specific_kwargs"], task.get("resources")
    if not specific and resources is None:
        return NOTHING
    workers = specific.get("workers")
    if isinstance(workers, str | int):
        workers = (workers,)
    _check(task["name"], {**specific, "workers": workers})
    wanted = dict(specific.get("resources") or {})
    if resources is not None:
        wanted = {**_worker_resources(task, resources), **wanted}
    return Demand(
        resources=tuple(sorted(wanted.items())),
        priority=specific.get("priority") or 0,
        retries=specific.get("retries") or 0,
        workers=tuple(workers or ()),
        allow_other_workers=bool(specific.get("allow_other_workers", False)),
    )


def _check(name: str, annotations: Mapping[str, Any]) -> None:
    """Check that Dask accepts the annotations, and that none is a function.

    Dask would call a function with the task's key, which the user does not know.

    Raises:
        TypeError: Dask would reject an annotation, or its value is a function.
    """
    from dask.base import annotate

    used = {key: value for key, value in annotations.items() if value is not None}
    try:
        for key, value in used.items():
            if callable(value):
                raise TypeError(f"{key} must not be a function, got {value!r}")
        with annotate(**used):
            pass
    except TypeError as error:
        raise TypeError(f"task {name!r}: task_description: {error}") from None


def _worker_resources(task: TaskDescription, resources: Resources) -> dict[str, float]:
    if resources.ranks > 1:
        raise CapabilityError(
            f"task {task['name']!r} requests {resources.ranks} ranks, but Dask cannot start MPI "
            "programs. Use another backend, or call mpirun in an executable task"
        )
    wanted: dict[str, float] = {}
    if resources.cores > 1:
        wanted["cores"] = resources.cores
    if resources.gpus:
        wanted["gpus"] = resources.gpus
    if isinstance(resources.memory, int) and resources.memory:
        wanted["memory"] = resources.memory
    return wanted


def problem(
    name: str, demanded: Demand, workers: Mapping[str, Mapping[str, Any]], *, own: bool
) -> str | None:
    """Return an error message if no worker has the resources that a task requests.

    Args:
        name: The task's name.
        demanded: The task's annotations for Dask.
        workers: The scheduler's description of each worker.
        own: True if the backend started the cluster.

    Returns:
        The message, or `None` if a worker has the resources or the cluster has no workers yet.
    """
    if not workers:  # workers of a batch system start later, and may be of any kind
        return None
    declared = [worker.get("resources") or {} for worker in workers.values()]
    wanted = dict(demanded.resources)
    if any(all(have.get(key, 0) >= amount for key, amount in wanted.items()) for have in declared):
        return None
    missing = [key for key in wanted if not any(key in have for have in declared)]
    text = ", ".join(f"{key}={_number(amount)}" for key, amount in wanted.items())
    if missing:
        line = " ".join(f"{key}={_number(amount)}" for key, amount in wanted.items())
        threads = _number(wanted.get("cores", 1))
        cure = f'dask worker ADDRESS --nthreads {threads} --resources "{line}"'
        if own and missing[0] == "gpus":
            cure = "DaskExecutionBackend({'gpus': ...})"
        return (
            f"task {name!r} requests {text}, but no worker declares {' or '.join(missing)}. "
            f"Start workers that declare their resources: {cure}"
        )
    most = ", ".join(
        f"{key}={_number(max(have.get(key, 0) for have in declared))}" for key in wanted
    )
    return (
        f"task {name!r} requests {text}, but no worker has that much; the largest amounts on any "
        f"worker are {most}"
    )


def unknown(
    name: str, demanded: Demand, workers: Mapping[str, Mapping[str, Any]], names: Sequence[Any]
) -> str | None:
    """Return an error message if none of the workers that may run a task is in the cluster.

    Args:
        name: The task's name.
        demanded: The task's annotations for Dask.
        workers: The scheduler's description of each worker.
        names: The names of all workers, including those that are starting.

    Returns:
        The message, or `None` if one of these workers is in the cluster or any worker may run the
        task.
    """
    wanted = [str(worker) for worker in demanded.workers]
    if not wanted or demanded.allow_other_workers:
        return None
    known = {*workers, *map(str, names), *(str(one.get("host")) for one in workers.values())}
    if not known.isdisjoint(wanted):
        return None
    return (
        f"task {name!r} requests unknown workers: {', '.join(wanted)}. The cluster has the "
        f"workers {', '.join(map(str, names))} at {', '.join(workers) or 'no address yet'}"
    )


def _number(amount: float) -> str:
    return str(int(amount)) if float(amount).is_integer() else str(amount)


@dataclass(slots=True, eq=False, repr=False)
class Call:
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
        references: The keys of the tasks whose values the task uses on the worker.
        sources: The futures of those tasks. Dask keeps the values while these futures exist.
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
        ready: The `ready` setting of a service; `None` for other tasks.
        readiness: Notifies the engine that the service is ready; `None` for other tasks.
        error: The error with which the task fails, or `None`.
        worker: The address of the worker that runs the task; `None` until a worker reports the task
            as running.
        token: The id of the start that the worker reported. If Dask reruns the task, the new start
            has another id.
        refusal: The asyncio task that detects a rejection of the task by the scheduler.
        watch: The asyncio task that waits for a callable `ready`.
        waiter: The future that is set when the task's held value has arrived or was lost; `None`
            unless the value is being fetched.
    """

    task: TaskDescription
    session: InitVar[str]
    uid: str = field(init=False)
    key: str = field(init=False)
    demand: Demand = NOTHING
    future: Any = None
    entries: list[Entry] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    referred_to: bool = False
    grouped: bool = False
    links: list[Link] = field(default_factory=list)
    refetched: bool = False
    cancelled: bool = False
    started: bool = False
    finished: bool = False
    announced: bool = False
    ready: Any = None
    readiness: Any = None
    error: BaseException | None = None
    worker: str | None = None
    token: str | None = None
    refusal: Any = None
    watch: Any = None
    waiter: asyncio.Future[None] | None = None

    def __post_init__(self, session: str) -> None:
        self.uid = self.task["uid"]
        self.key = key_of(self.task["name"], session, self.uid)


def named(call: Call) -> str:
    """Return a task's name and uid, for messages."""
    return f"task {call.task['name']!r} ({call.uid})"


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
    more: dict[str, Any] = {}
    if task["function"] is None:
        _program(task, more)
    elif task["is_service"]:
        raise CapabilityError(
            f"task {task['name']!r}: the Dask backend cannot run a function as a service. Use an "
            "executable task with service=True"
        )
    resources = task.get("resources")
    if resources is not None:
        if resources.cores != 1:
            more["cores"] = resources.cores
        if resources.gpus:
            more["gpus"] = resources.gpus
    elif task["is_service"]:
        more["cores"] = 0  # a service mostly waits
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
        del program["ready"]  # called in this process, not on the worker
    elif "ready" in program:
        from rhapsody.sdk import parse_ready

        parse_ready(program["ready"])
    more["program"] = program
    if task["is_service"]:
        more["service"] = True


PLAIN = frozenset({int, float, bool, type(None), complex})
"""Types whose values are assumed to be small."""

SMALL = 1 << 10
"""Size in bytes below which values of the types in `FLAT` are pickled without further checks."""

FLAT = (bytes, str, bytearray)
"""Types whose length is approximately the size of their pickle in bytes."""

PICKLE_ADVICE = "pass data that can be pickled, or run the task on the local backend's threads"

FILES = (InputFile, OutputFile, OutputDir)
"""Types of declared files, which are bound to the task's sandbox on the worker."""

STAND_INS: frozenset[object] = PLAIN | {Value, Reference, InputFiles, *FILES}
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
    """

    def __init__(self, session: str, threshold: int | None = MIN_BUFFER_SIZE) -> None:
        self.modules: bytes | None = own_modules()
        self._session = session
        self._threshold = threshold
        self._functions: dict[int, Big] = {}
        self._bigs: dict[int, Big] = {}

    def pack(
        self, task: TaskDescription, more: Mapping[str, Any], held: int = 0
    ) -> tuple[bytes, list[Big]]:
        """Pack one task.

        Args:
            task: The description.
            more: Further settings for the worker.
            held: Number of values that precede the large arguments: first the archive of input
                files, if there is one, then one value for each reference.

        Returns:
            The packed order, and the task's large values in the order in which Dask must hold them.

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
                known = Big(function, self._dumps(task, function), [])
                self._functions[id(function)] = known
            packed = known.payload
            if self._threshold is not None and len(packed) >= self._threshold:
                packed = held
                bigs.append(known)
            first = held - len(task.get("references", ()))
            places = {uid: first + n for n, uid in enumerate(task.get("references", ()))}
            arguments = self._arguments(task, bigs, held, places)
        order = Order(
            self._session,
            task["uid"],
            task["name"],
            task.get("attempt", 1),
            packed,
            arguments,
            more,
            modules,
        )
        return pickle.dumps(order, 5), bigs

    def _arguments(
        self,
        task: TaskDescription,
        bigs: list[Big],
        held: int,
        places: Mapping[str, int],
    ) -> bytes:
        args, kwargs = task["args"], task["kwargs"]
        limit = SMALL if self._threshold is None else min(SMALL, self._threshold)
        if all(_is_small(value, limit) for value in (*args, *kwargs.values())):
            return pickle.dumps((args, kwargs), 5)
        _refuse_futures(task)
        if self._threshold is not None:
            for value in (*args, *kwargs.values()):
                if type(value) in FLAT and len(value) >= self._threshold:
                    self._big(value)
        if self._bigs:
            args, kwargs = self._known_apart(args, kwargs, bigs, held)
        dumps = partial(_dumps_with_stand_ins, places=places)
        buffers: list[pickle.PickleBuffer] = []

        def small(buffer: pickle.PickleBuffer) -> bool:
            try:
                if self._threshold is None or buffer.raw().nbytes < MIN_BUFFER_SIZE:
                    return True
            except BufferError:  # not contiguous
                return True
            buffers.append(buffer)
            return False

        packed = self._dumps(task, (args, kwargs), dumps, buffer_callback=small)
        whole = {id(value) for value in (*args, *kwargs.values())}
        if self._threshold is None or (not buffers and len(packed) < self._threshold):
            return packed
        # Rare: once per batch and large argument.
        for value in (*args, *kwargs.values()):  # except those that contain placeholders
            if type(value) in STAND_INS or id(value) in self._bigs or id(value) not in whole:
                continue
            payload, own = pack(value)
            if (own or len(payload) >= self._threshold) and not places:
                self._bigs[id(value)] = Big(value, payload, own)
        args, kwargs = self._known_apart(args, kwargs, bigs, held)
        return self._dumps(task, (args, kwargs), dumps)

    def _big(self, value: Any) -> None:
        """Pack a large argument separately; its type is in `FLAT`, so its length is its size."""
        if id(value) not in self._bigs:
            self._bigs[id(value)] = Big(value, pack(value)[0], [])

    def _known_apart(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], bigs: list[Big], held: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace each separately packed argument with a placeholder.

        The packed arguments are appended to `bigs`, each of them once.

        Returns:
            The arguments and the keyword arguments with placeholders.
        """
        places: dict[int, Value] = {}

        def apart(value: Any) -> Any:
            big = self._bigs.get(id(value))
            if big is None:
                return value
            if id(value) not in places:
                places[id(value)] = Value(held + len(bigs))
                bigs.append(big)
            return places[id(value)]

        return tuple(map(apart, args)), {key: apart(value) for key, value in kwargs.items()}

    def _dumps(
        self,
        task: TaskDescription,
        value: Any,
        dumps: Callable[..., bytes] = dumps,
        **options: Any,
    ) -> bytes:
        try:
            return dumps(value, protocol=5, **options)
        except Exception as error:  # pickling runs the objects' own code
            raise cannot_pack(task, error, worker="a Dask worker", cure=PICKLE_ADVICE) from error


def _is_small(value: Any, limit: int) -> bool:
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
    state = {name: getattr(file, name) for name in type(file).__dataclass_fields__}
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


class Ready(NamedTuple):
    """Task that can be sent.

    Attributes:
        call: The task.
        order: The packed order.
        bigs: The large values that Dask must hold for the task, in addition to the values of its
            references.
        plain: True if the task is a function call without files, references, large values or
            special settings for the worker, so that it can be grouped.
    """

    call: Call
    order: bytes
    bigs: list[Big]
    plain: bool


@dataclass(slots=True)
class Batch:
    """Data shared by all tasks of one submission.

    Attributes:
        packer: Packs the tasks.
        workers: The scheduler's description of each worker; `None` until it is requested for the
            first task that names resources or workers.
    """

    packer: Packer
    workers: dict[str, Any] | None = None


class Submission:
    """Sender that packs the tasks of one backend and sends them to Dask.

    Args:
        client: Dask's client.
        session: The backend's session.
        own: The parent directory of sandboxes for which the engine has not chosen a path.
        links: The registered input files of tasks.
        view: The checks of whether the workers see a directory.
        shared: The large arguments on the cluster.
        share_over: Size in bytes from which an argument is shared, or `None` to share none.
        cluster: The LocalCluster that the backend started, or `None` for an existing cluster.
    """

    def __init__(
        self,
        client: Any,
        session: str,
        own: str,
        links: Links,
        view: View,
        shared: Shared,
        share_over: int | None,
        *,
        cluster: Any,
    ) -> None:
        from rhapsody_dask.worker.entry import run

        self._client = client
        self._session = session
        self._own = own
        self._links = links
        self._view = view
        self._shared = shared
        self._share_over = share_over
        self._cluster = cluster
        self._entry = run
        self._reference = task_reference()

    def batch(self) -> Batch:
        """Return the data for a new batch of tasks."""
        return Batch(Packer(self._session, self._share_over))

    async def pack(self, call: Call, batch: Batch) -> Ready:
        """Pack one task.

        Returns:
            The packed task.

        Raises:
            Exception: The task cannot run on this backend or cannot be pickled.
        """
        task = call.task
        call.demand = demanded = demand(task)
        more = details(task, demanded, self._own)
        if demanded.resources or (demanded.workers and self._cluster is not None):
            await self._require_fit(call, batch)
        content: list[Big] = []
        if "sandbox" in more:
            content = await self._files(call, more)
        held = len(content) + len(call.references)
        order, bigs = batch.packer.pack(task, more, held=held)
        plain = task["function"] is not None and more.keys() <= {"timeout", "capture"}
        return Ready(call, order, [*content, *bigs], plain and not (held or bigs))

    async def share(self, ready: Sequence[Ready]) -> None:
        """Send the tasks' large values to the cluster, and record which tasks use them."""
        bigs = [big for one in ready for big in one.bigs]
        if not bigs:
            return
        entries = await self._shared.put(bigs)
        for one in ready:
            for big in one.bigs:
                entry = entries[id(big.value)]
                self._shared.use(entry)
                one.call.entries.append(entry)
        for entry in entries.values():
            self._shared.release(entry)  # now the tasks are the users

    def send(self, ready: Sequence[Ready]) -> None:
        """Send tasks to Dask; consecutive tasks with equal annotations are sent in one graph."""
        for demanded, group in groupby(ready, key=lambda one: one.call.demand):
            self._send(list(group), demanded.keywords())

    def _send(self, group: Sequence[Ready], keywords: Mapping[str, Any]) -> None:
        columns: list[list[Any]] = [[one.order for one in group]]
        if any(one.call.entries or one.call.references for one in group):
            columns.append([self._values(one) for one in group])
        keys = [one.call.key for one in group]
        futures = self._client.map(self._entry, *columns, key=keys, pure=False, **keywords)
        for one, future in zip(group, futures, strict=True):
            one.call.future = future

    def _values(self, one: Ready) -> list[Any]:
        """Return the values that Dask holds for a task: files, references, large arguments."""
        call = one.call
        entries = [entry.future for entry in call.entries]
        files = sum(big.value is big.payload for big in one.bigs[:1])  # at most one, the first
        references = [self._reference(key) for key in call.references]
        return [*entries[:files], *references, *entries[files:]]

    async def _files(self, call: Call, more: dict[str, Any]) -> list[Big]:
        """Add a task's input files to its settings.

        Returns:
            A list with the archive of the files, or an empty list if the workers see the sandbox's
            parent directory or there are no files.
        """
        links = self._links.take(call.uid)
        if await self._view.sees(os.path.dirname(more["sandbox"])):
            if links:
                more["links"] = links
            return []
        more["ship"] = True
        call.links = links
        if not links:
            return []
        content, names = await in_thread(lambda: content_of(links))
        more["came"] = names
        more["links"] = [("content", 0)]
        return [Big(content, content, [])]

    async def _require_fit(self, call: Call, batch: Batch) -> None:
        if batch.workers is None:
            batch.workers = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        name, workers, cluster = call.task["name"], batch.workers, self._cluster
        why = problem(name, call.demand, workers, own=cluster is not None)
        if why is None and cluster is not None:  # an existing cluster may start workers later
            why = unknown(name, call.demand, workers, [*cluster.workers])
        if why is not None:
            raise CapabilityError(why)
