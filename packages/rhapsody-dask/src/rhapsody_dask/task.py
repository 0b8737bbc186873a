"""Tasks on their way to Dask: what each asks for, its packed call, and the graphs that are sent.

Functions are pickled once for each batch. One that is big, and an argument that is, is packed by
itself, once for each batch as well, and goes to the cluster as data that all tasks share; see
`values`. What comes of the tasks is in `results`.
"""

from __future__ import annotations

import asyncio
import io
import os
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from rhapsody_dask.worker.messages import BIG, Order, Value, file_here, key_of, pack, value_here


class Demand(NamedTuple):
    """What Dask is told of a task besides the task; tasks with the same go in one graph.

    Attributes:
        resources: Names and amounts of worker resources.
        priority: Dask's priority; higher comes first.
        retries: How often Dask itself tries again.
        workers: The only workers, or those that are preferred.
        allow_other_workers: Whether they are only preferred.
    """

    resources: tuple[tuple[str, float], ...] = ()
    priority: float = 0
    retries: int = 0
    workers: tuple[str | int, ...] = ()
    allow_other_workers: bool = False

    def keywords(self) -> dict[str, Any]:
        """The keywords of `Client.map`."""
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
    """What a task asks for.

    Raises:
        TypeError: `task_description` has a value of a type that Dask does not take there.
        CapabilityError: The task asks for several ranks.
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
    """Raise if Dask would not take a value; it has no rules for functions of a key here."""
    from dask.base import annotate

    given = {key: value for key, value in annotations.items() if value is not None}
    try:
        if any(map(callable, given.values())):
            raise TypeError("functions are not accepted")
        with annotate(**given):
            pass
    except TypeError as error:
        raise TypeError(f"task {name!r}: task_description: {error}") from None


def _worker_resources(task: TaskDescription, resources: Resources) -> dict[str, float]:
    if resources.ranks > 1:
        raise CapabilityError(
            f"task {task['name']!r} asks for {resources.ranks} ranks: Dask has no launcher for "
            "MPI; use a backend that has one, or call mpirun in an executable"
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
    """Why no worker there is can run a task, `None` where one can, or where none is there yet.

    Args:
        name: The task's name.
        demanded: What it asks for.
        workers: What Dask's scheduler says of each worker.
        own: Whether the cluster was made by the backend.
    """
    if not workers:  # those of a batch system come later, and may be of any kind
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
            f"task {name!r} asks for {text}, but no worker declares {' or '.join(missing)}: it "
            f"would wait for ever. Start workers that say what they have: {cure}"
        )
    most = ", ".join(
        f"{key}={_number(max(have.get(key, 0) for have in declared))}" for key in wanted
    )
    return f"task {name!r} asks for {text}; the most that one worker has is {most}: ask for less"


def unknown(
    name: str, demanded: Demand, workers: Mapping[str, Mapping[str, Any]], names: Sequence[Any]
) -> str | None:
    """Why the workers that a task names are none of a cluster's, `None` where one is.

    Args:
        name: The task's name.
        demanded: What it asks for.
        workers: What Dask's scheduler says of each worker.
        names: The names of all workers, those that are starting, too.
    """
    wanted = [str(worker) for worker in demanded.workers]
    if not wanted or demanded.allow_other_workers:
        return None
    known = {*workers, *map(str, names), *(str(one.get("host")) for one in workers.values())}
    if not known.isdisjoint(wanted):
        return None
    return (
        f"task {name!r} asks for the workers {', '.join(wanted)}, which this cluster does not "
        f"have; it has {', '.join(map(str, names))} at {', '.join(workers) or 'no address yet'}"
    )


def _number(amount: float) -> str:
    return str(int(amount)) if float(amount).is_integer() else str(amount)


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


PLAIN = frozenset({int, float, bool, type(None), complex})
"""Types whose values are never big."""

FLAT = (bytes, str, bytearray)
"""Types whose length tells how big they are, packed."""

CURE = "pass data that can be, or run the task on the local backend's threads"

FILES = (InputFile, OutputFile, OutputDir)
"""Types that are bound to the sandbox that a task has on its worker."""

STAND_INS: frozenset[object] = PLAIN | {Value, Reference, InputFiles, *FILES}
"""Types that are never packed by themselves."""


class Packer:
    """Packs the tasks of one batch. What user code can change is packed anew for the next.

    Args:
        session: The backend's session.
        threshold: Bytes from which a function or an argument is shared; `None` shares none.

    Attributes:
        modules: The program's own modules that the functions of the batch use.
    """

    def __init__(self, session: str, threshold: int | None = BIG) -> None:
        self.modules: bytes | None = own_modules()
        self._session = session
        self._threshold = threshold
        self._functions: dict[int, Big] = {}
        self._bigs: dict[int, Big] = {}

    def pack(
        self, task: TaskDescription, more: Mapping[str, Any], held: int = 0
    ) -> tuple[bytes, list[Big]]:
        """Packs one task.

        Args:
            task: The description.
            more: What the worker has to know besides.
            held: How many values come with the task before what is big of it; the
                last of them are those of its references.

        Returns:
            The packed order, and what Dask has to hold for it, in the order of their places.

        Raises:
            TypeError: Something cannot be pickled; it names the argument.
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
                if self._threshold is None or buffer.raw().nbytes < BIG:
                    return True
            except BufferError:  # not contiguous
                return True
            buffers.append(buffer)
            return False

        packed = self._dumps(task, (args, kwargs), dumps, buffer_callback=small)
        whole = {id(value) for value in (*args, *kwargs.values())}
        if self._threshold is None or (not buffers and len(packed) < self._threshold):
            return packed
        # Rare: once for each batch and big argument.
        for value in (*args, *kwargs.values()):  # those with stand-ins in them stay
            if type(value) in STAND_INS or id(value) in self._bigs or id(value) not in whole:
                continue
            payload, own = pack(value)
            if (own or len(payload) >= self._threshold) and not places:
                self._bigs[id(value)] = Big(value, payload, own)
        args, kwargs = self._known_apart(args, kwargs, bigs, held)
        return self._dumps(task, (args, kwargs), dumps)

    def _big(self, value: Any) -> None:
        """Packs an argument by itself, once, that is seen to be big before it is packed."""
        if id(value) not in self._bigs:
            self._bigs[id(value)] = Big(value, pack(value)[0], [])

    def _known_apart(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], bigs: list[Big], held: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with placeholders for those that are known to be big."""
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
            raise cannot_pack(task, error, worker="a Dask worker", cure=CURE) from error


def _refuse_futures(task: TaskDescription) -> None:
    """Raise if an argument, or a list of them, has one of Dask's own futures."""
    from distributed import Future

    for value in (*task["args"], *task["kwargs"].values()):
        for one in value if type(value) in (list, tuple) else (value,):
            if type(one) is Future:
                raise TypeError(
                    f"task {task['name']!r}: an argument is Dask's {one!r}: await it, and pass "
                    "the value"
                )


def _reduce_file(file: Any) -> tuple[Any, ...]:
    state = {name: getattr(file, name) for name in type(file).__dataclass_fields__}
    return file_here, (type(file), state)


class _StandInPickler(pickler()):  # type: ignore[misc]
    """Packs references as the values they stand for, and files as the worker's own."""

    def __init__(self, target: Any, places: Mapping[str, int], **options: Any) -> None:
        stand_ins: dict[type, Callable[[Any], tuple[Any, ...]]] = {
            **dict.fromkeys(FILES, _reduce_file),
            Reference: lambda reference: (value_here, (places[reference.uid],)),
        }
        # Read once, when the pickler is made.
        self.dispatch_table = ChainMap(stand_ins, pickler().dispatch_table)
        super().__init__(target, **options)


def _dumps_with_stand_ins(value: Any, places: Mapping[str, int], **options: Any) -> bytes:
    target = io.BytesIO()
    _StandInPickler(target, places, **options).dump(value)
    return target.getvalue()


class Ready(NamedTuple):
    """A task that can be sent.

    Attributes:
        call: The task.
        order: The packed order.
        bigs: What Dask has to hold for it, besides the values that it refers to.
    """

    call: Call
    order: bytes
    bigs: list[Big]


@dataclass(slots=True)
class Batch:
    """What is the same for all tasks of one submission.

    Attributes:
        packer: Packs them.
        workers: What Dask's scheduler says of each worker; asked for by the first task that
            names resources or workers.
    """

    packer: Packer
    workers: dict[str, Any] | None = None


class Submission:
    """Sends the tasks of one backend.

    Args:
        client: Dask's client.
        session: The backend's session.
        own: The directory for the sandboxes of tasks that name none.
        links: The files that tasks were given.
        view: Which directories the workers see.
        shared: The big arguments on the cluster.
        share_over: Bytes from which an argument is shared; `None` shares none.
        cluster: The cluster that was made by the backend, `None` where one was given.
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
        """Start a batch."""
        return Batch(Packer(self._session, self._share_over))

    async def pack(self, call: Call, batch: Batch) -> Ready:
        """Packs one task.

        Raises:
            Exception: The task cannot be run here, or cannot be pickled.
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
        return Ready(call, order, [*content, *bigs])

    async def share(self, ready: Sequence[Ready]) -> None:
        """Brings big arguments to the cluster, and notes them with the tasks."""
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
            self._shared.release(entry)  # held by the tasks from now on

    def send(self, ready: Sequence[Ready]) -> None:
        """Hands tasks to Dask, in as few graphs as their demands allow."""
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
        """What Dask holds for a task: content of files, values of tasks, big arguments."""
        call = one.call
        entries = [entry.future for entry in call.entries]
        files = sum(big.value is big.payload for big in one.bigs[:1])  # at most one, the first
        references = [self._reference(key) for key in call.references]
        return [*entries[:files], *references, *entries[files:]]

    async def _files(self, call: Call, more: dict[str, Any]) -> list[Big]:
        """Tells the worker of the files that a task needs; gives those that go by content."""
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
        if why is None and cluster is not None:  # elsewhere workers may come
            why = unknown(name, call.demand, workers, [*cluster.workers])
        if why is not None:
            raise CapabilityError(why)
