"""Function tasks: packing of calls for RAPTOR or separate programs, and unpacking of results.

A call is pickled once, in this module. RADICAL-Pilot's messages are JSON or msgpack, so the client
encodes calls as text (`as_text`) before it submits them.
"""

from __future__ import annotations

import base64
import os
import pickle
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import cloudpickle  # type: ignore[import-untyped]

from rhapsody import BackendError, CapabilityError, TaskDescription
from rhapsody.sdk import (
    REFERENCE,
    ProtocolVersionError,
    Runner,
    call_spec,
    cannot_pack,
    dumps,
    finish,
    make_sandbox,
    own_modules,
    require_mpi4py,
    task_environment,
)
from rhapsody.sdk import unpack as unpack_result
from rhapsody_radical import call, descriptions, translate
from rhapsody_radical.descriptions import as_list, number, task_settings
from rhapsody_radical.pilots import Pilot, PilotTask
from rhapsody_radical.translate import plain, requested_cores


def pack(
    task: TaskDescription,
    settings: Mapping[str, Any],
    *,
    capture: Any,
    directory: str | None = None,
    batch: Batch | None = None,
) -> tuple[Any, ...]:
    """Pack a call for `rhapsody_radical.call`, as a tuple of plain values.

    Args:
        task: The task.
        settings: The task's settings with RADICAL-Pilot's keys.
        capture: The `capture` setting for the call's output.
        directory: A directory that both sides see, for large values of the call and its reply;
            `None` to pack all values into the call. `forget` removes the files.
        batch: The data shared by calls that are packed together; `None` if there is none.

    Returns:
        The values of the `rhapsody.sdk.CallSpec`, followed by the packed function and arguments.

    Raises:
        TypeError: A part of the call cannot be pickled; the message names it.
    """
    # The worker's own PYTHONPATH contains RADICAL-Pilot's directories.
    variables = task_environment(task, cores=requested_cores(task, settings))
    environment = {
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        **{name: plain(value) for name, value in variables.items()},
        **(settings.get("environment") or {}),
        "RP_TASK_ID": task["uid"],
    }
    modules = own_modules()
    more = {
        "path": own_path() if batch is None else batch.path,
        "pre_exec": as_list(settings.get("pre_exec")),
        "values": directory,
        "modules": None,
    }
    if modules is not None and directory is not None and batch is not None:
        more["modules"] = _kept(modules, directory)
        modules = modules[:REFERENCE]
    order = call_spec(task, environment=environment, more=more, modules=modules)
    order = order._replace(capture=capture)
    return (*order, _packed_call(task, directory, batch))


def as_text(order: tuple[Any, ...]) -> str:
    """Return a packed call as text, for `rhapsody_radical.call.run`."""
    return base64.b64encode(pickle.dumps(order, 5)).decode("ascii")


def own_path() -> list[str]:
    """Return the directories in `sys.path` except those of the Python installation.

    Modules in these directories are pickled by name, and a worker on the same file system imports
    them from the same directories.
    """
    installed = tuple({os.path.join(prefix, "") for prefix in (sys.prefix, sys.base_prefix)})
    here, paths = os.getcwd(), [entry for entry in sys.path if isinstance(entry, str)]
    found = [os.path.normpath(os.path.join(here, path)) for path in paths]
    return [path for path in found if not path.startswith(installed)]


def _kept(modules: bytes, directory: str) -> str:
    """Return the path of the file with the main program's modules; create the file if necessary."""
    path = os.path.join(directory, f"modules.{modules[:REFERENCE].hex()}")
    if not os.path.exists(path):
        with tempfile.TemporaryDirectory(dir=directory) as private:
            part = os.path.join(private, "modules")
            with open(part, "wb") as file:
                file.write(modules)
            os.replace(part, path)
    return path


def forget(directory: str, uid: str) -> None:
    """Remove the remaining files of a call."""
    for kind in ("call", "arguments", "reply", "result"):
        with suppress(OSError):
            os.unlink(os.path.join(directory, f"{uid}.{kind}"))


class Batch:
    """Data shared by calls that are submitted together: each function is pickled once.

    Calls are packed after all calls of the batch have been made. If the data of a function changes
    between two of its calls, both calls may therefore use the newer data.
    """

    def __init__(self) -> None:
        # The function is stored as well, so that its id is not reused.
        self._found: dict[int, tuple[Any, bytes | None]] = {}

    @cached_property
    def path(self) -> list[str]:
        """The main program's own directories; see `own_path`."""
        return own_path()

    def pickled(self, function: Any) -> bytes | None:
        """Return a function's pickle, or `None` if the function must be packed with its arguments.

        That is the case if the pickle is large, or if the function is not a plain function and may
        therefore share data with the arguments.

        Raises:
            Exception: Raised by user code that runs when the function's data is pickled.
        """
        if type(function) is not FunctionType:
            return None
        found = self._found.get(id(function))
        if found is None:
            data = dumps(function)
            kept = None if len(data) > call.LARGE else data
            found = self._found[id(function)] = (function, kept)
        return found[1]


def _packed_call(
    task: TaskDescription, directory: str | None, batch: Batch | None
) -> tuple[bytes | None, bytes | str]:
    """Pickle a call in the form that `rhapsody_radical.call.RaptorRunner.load` takes."""
    function = task["function"]
    try:
        pickled = None if batch is None else batch.pickled(function)
        shared = () if pickled is not None else (function,)
        data, buffers = call.dump((*shared, task["args"], task["kwargs"]), directory)
    except Exception as error:  # pickling runs the objects' own code
        raise cannot_pack(task, error) from error
    return pickled, call.store(data, buffers, directory, f"{task['uid']}.arguments")


def _runner() -> bytes:
    """Return `call.run` pickled by value, because workers may lack this package."""
    with _packing:  # cloudpickle's registration is global, and other backends may use it
        return _packed_runner()


@cache
def _packed_runner() -> bytes:
    shipped = (call, sys.modules[Runner.__module__])
    for module in shipped:
        cloudpickle.register_pickle_by_value(module)
    try:
        packed: bytes = cloudpickle.dumps(call.run)
    finally:
        for module in shipped:
            cloudpickle.unregister_pickle_by_value(module)
    return packed


_packing = threading.Lock()


def python_task(order: tuple[Any, ...]) -> str:
    """Return a packed call as a function task of RADICAL-Pilot (`PythonTask`)."""
    encoded = {"func": _runner(), "args": (as_text(order),), "kwargs": {}}
    return base64.b64encode(pickle.dumps(encoded)).decode("ascii")


def unpack(reply: str | bytes, task: TaskDescription) -> BaseException | None:
    """Write the result of a call into a task's description.

    Returns:
        `None` if the call succeeded. Otherwise the exception that it raised, with its remote
        traceback as the cause, or an error for an invalid reply.
    """
    try:
        packed = base64.b64decode(reply) if isinstance(reply, str) else reply
        outcome = unpack_result(packed)
    except (ProtocolVersionError, BackendError) as error:
        return error
    except ValueError as error:
        return BackendError(f"task {task['name']!r}: invalid result from a worker: {error}")
    task["directory"] = task.get("sandbox") or f"that of the worker on {outcome.host}"
    return finish(task, outcome, call.load)


class ServiceFunctionError(CapabilityError):
    """A function was submitted as a service, which RADICAL-Pilot does not support."""


def completed(
    uid: str, task_desc: Mapping[str, Any], specific: Mapping[str, Any] | None
) -> TaskDescription:
    """Return a copy of a description with defaults for all missing required keys.

    The `args` of a command without `arguments` are its arguments, as in related projects.
    """
    if task_desc.get("executable") and task_desc.get("args") and "arguments" not in task_desc:
        task_desc = {**task_desc, "arguments": [*map(str, task_desc["args"])], "args": ()}
    own = task_desc.get("task_backend_specific_kwargs") if specific is None else specific
    task: dict[str, Any] = {
        "name": uid, "function": None, "executable": None, "args": (), "kwargs": {},
        "is_service": False, "metadata": {}, **task_desc,
        "uid": uid, "task_backend_specific_kwargs": dict(own or {}),
    }  # fmt: skip
    return cast("TaskDescription", task)


def default_raptor(pilot: Pilot, cores: int | None, *, whole: bool = False) -> dict[str, Any]:
    """Return the default configuration of RAPTOR for a pilot.

    Args:
        pilot: The pilot.
        cores: The number of cores for the worker; `None` for the default.
        whole: True to use the whole pilot by default, with a worker on each node, and False to use
            half of it. One core of each node is left free, because the master needs one of them.

    Raises:
        CapabilityError: The pilot has too few cores.
    """
    per_node = pilot.has("cores") or pilot.cores
    workers = 1
    if cores is None and whole:
        cores = max(1, per_node - 1)
        workers = max(1, min(pilot.nodes, (pilot.cores - 1) // cores))
    elif cores is None:
        cores = max(1, min(per_node, (pilot.cores + 1) // 2 - (pilot.cores > 2)))
    if cores > per_node or cores + 1 > pilot.cores:
        cure = (
            "run commands as tasks: RadicalExecutionBackend(commands='task')"
            if whole
            else "run functions as programs: RadicalExecutionBackend(functions='executable')"
        )
        raise CapabilityError(
            f"pilot {pilot.uid} has {pilot.cores} cores, too few for RAPTOR's master (1) and "
            f"worker ({cores}). Request more cores, or {cure}"
        )
    return {
        "masters": [{"workers": [{"ranks": 1, "cores_per_rank": cores} for _ in range(workers)]}]
    }


def describe_call(job: PilotTask, batch: Batch) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Create a function task's sandbox, and describe the task for RAPTOR.

    Args:
        job: The task.
        batch: The data shared by tasks that are submitted together.

    Returns:
        The description, and the packed call.

    Raises:
        TypeError: The call cannot be pickled.
    """
    task = job.task
    job.on_raptor = True
    if task.get("sandbox"):
        task["sandbox"] = make_sandbox(task["sandbox"])
        below = os.path.join(job.pilot.sandbox, task["uid"])
        if task["sandbox"] != below:
            os.symlink(task["sandbox"], below)
    words, order = call_words(task, job.pilot.sandbox, batch)
    if task.get("sandbox"):
        words["sandbox"] = task["sandbox"]
    return words, order


def call_words(
    task: TaskDescription,
    directory: str | None = None,
    batch: Batch | None = None,
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return RADICAL-Pilot's description of a function task on RAPTOR, and its packed call.

    Args:
        task: The task.
        directory: A directory that both sides see, for large values; `None` if there is none.
        batch: The data shared by tasks that are submitted together.
    """
    settings = task_settings(task)
    capture = task.get("capture", True)
    order = pack(task, settings, capture=capture, directory=directory, batch=batch)
    left_out = ("environment", "pre_exec", "named_env")
    words = {key: value for key, value in settings.items() if key not in left_out}
    words |= {"mode": descriptions.FUNCTION, "uid": task["uid"]}
    if "resources" in task:
        words["cores_per_rank"] = task["resources"].cores
    return words, order


def describe_program(job: PilotTask) -> dict[str, Any]:
    """Return the RADICAL-Pilot description of a function task that runs as a separate program.

    Creates the task's sandbox, and writes the packed call to a file in it. All ranks read this
    file, so it also contains large values, which a call on one rank removes when it reads them.

    Raises:
        CapabilityError: The task requests several ranks, and mpi4py is not installed.
    """  # noqa: DOC502 - raised by `require_mpi4py`
    task = job.task
    job.program = True
    settings = task_settings(task)
    ranks = int(number(translate.needs(task, job.pilot), "ranks") or 1)
    program = cast("TaskDescription", dict(task))
    order, reply = f"{task['uid']}.call", f"{task['uid']}.reply"
    program["executable"] = sys.executable
    program["arguments"] = ["-m", "rhapsody_radical.call", order, reply]
    if ranks > 1:
        require_mpi4py(task)
        program["arguments"] = ["-m", "rhapsody_radical.rank", order, reply, str(ranks)]
    program.pop("stdin", None)
    words = translate.describe_executable(program, job.pilot)
    translate.check_fits(task["name"], words, job.pilot)
    job.own_sandbox = translate.place(task, words, job.pilot)
    settings = {**settings, "pre_exec": ()}
    directory = task["sandbox"] if ranks == 1 else None
    packed = pack(task, settings, capture=False, directory=directory)
    Path(task["sandbox"], order).write_bytes(pickle.dumps(packed, 5))
    return words


def tidy(job: PilotTask, state: str) -> None:
    """Remove the files of a call that has ended.

    The sandbox of a separate program is removed as well if the backend created the sandbox and the
    call succeeded.
    """
    sandbox = job.task.get("sandbox")
    if not job.program:
        if state != "DONE":  # otherwise they were removed when they were read
            forget(job.pilot.sandbox, job.uid)
    elif sandbox and job.own_sandbox and state == "DONE":
        shutil.rmtree(sandbox, ignore_errors=True)
        del job.task["sandbox"]
    elif sandbox:
        forget(sandbox, job.uid)


ON_RAPTOR = {
    *("environment", "pre_exec", "timeout", "cores_per_rank", "input_staging", "output_staging"),
    *("stage_on_error", "metadata", "tags", "name", "pilot", "priority", "raptor_id", "cleanup"),
    *("mode", "pre_exec_sync", "restartable"),
}
"""Keys of a task's settings that RAPTOR or this backend supports for calls on RAPTOR."""


COMMANDS_ON_RAPTOR = {"cores_per_rank", "mode", "name", "pilot"}
"""Keys of a task's settings that this backend supports for commands on RAPTOR."""


def may_use_raptor(task: TaskDescription) -> bool:
    """Return True if RAPTOR supports the needs of a call or command, apart from its cores.

    It does not support several ranks, GPUs, memory, and settings for executables, for example.
    """
    specific = task["task_backend_specific_kwargs"]
    supported = COMMANDS_ON_RAPTOR if task["function"] is None else ON_RAPTOR
    if any(value is not None for key, value in specific.items() if key not in supported):
        return False
    if not all(isinstance(each, str) for each in as_list(specific.get("pre_exec"))):
        return False  # commands for single ranks
    resources = task.get("resources")
    return resources is None or not (resources.ranks > 1 or resources.gpus or resources.memory)


def needs_more_cores(task: TaskDescription, cores: int) -> bool:
    """Return True if a call or command needs more than `cores` cores, which every worker has."""
    resources = task.get("resources")
    wanted = 0 if resources is None else resources.cores
    return max(number(task["task_backend_specific_kwargs"], "cores_per_rank"), wanted) > cores
