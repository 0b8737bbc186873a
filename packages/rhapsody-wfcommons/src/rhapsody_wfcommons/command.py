"""Command `rhapsody replay`, which replays a recorded workflow with tasks that sleep.

The result shows how much time a backend adds to a simulated list schedule with the same order and
the same number of slots. `rhapsody_wfcommons.replay` runs the tasks. With `--simulate`, they run on
the simulated backend of rhapsody-simulated, in virtual time.

Rhapsody's engine and the backends are imported when the command runs, not when it is added.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody import RhapsodyError
from rhapsody.plugins import UsageError
from rhapsody_wfcommons.instance import Instance, RecordedTask
from rhapsody_wfcommons.reading import read
from rhapsody_wfcommons.schedules import (
    bottom_levels,
    critical_path,
    list_schedule,
    slots_of,
    work,
)
from rhapsody_wfcommons.values import InstanceError, on_one_line

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine
    from rhapsody.backends import BaseExecutionBackend

HELP = "replay a recorded workflow to measure the overhead of a backend"

DEFAULT_SLOTS: int = 8
"""Default number of slots if the instance does not record the number of cores."""

DURATION_LIMITS: tuple[float, float] = (1e-9, 1e9)
"""Limits in seconds for the duration of the longest task, so that clocks can measure it."""

ORDERS: tuple[str, ...] = ("ready", "critical-path")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("file", metavar="FILE", help="a WfCommons instance")
    time = parser.add_mutually_exclusive_group()
    time.add_argument(
        "--scale",
        type=_positive,
        default=1.0,
        metavar="S",
        help="factor for the recorded durations (default: 1)",
    )
    time.add_argument(
        "--shortest",
        type=_positive,
        metavar="SECONDS",
        help="set the scale so that the shortest task with a nonzero duration takes this long",
    )
    parser.add_argument(
        "-b",
        "--backend",
        default="local",
        metavar="NAME",
        help="the backend (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the backend, as for `rhapsody run`",
    )
    parser.add_argument(
        "--slots",
        type=_whole,
        metavar="N",
        help="number of one-core tasks that run at once (default: the cores of the recorded "
        f"machines, or {DEFAULT_SLOTS} if they are not recorded, but at most the cores of the "
        "backend)",
    )
    parser.add_argument(
        "--copies",
        type=_whole,
        default=1,
        metavar="N",
        help="replay N independent copies of the workflow at the same time (default: 1)",
    )
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="simulate a cluster in virtual time; -o sets options of the simulated backend",
    )
    parser.add_argument(
        "--nodes", type=_whole, metavar="N", help="number of simulated nodes (default: 1)"
    )
    parser.add_argument(
        "--cores", type=_whole, metavar="N", help="number of cores of each node (default: 1)"
    )
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default=ORDERS[0],
        help="the ready task to start first: the one that became ready first, or the one with the "
        "longest remaining path (default: %(default)s)",
    )
    parser.add_argument(
        "--files",
        type=_positive,
        metavar="S",
        help="read and write files of the recorded sizes, multiplied by S (default: no files)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Replay the workflow, and print its makespan and the bounds for it.

    Raises:
        UsageError: The file is not an instance, or lacks durations; a task needs more cores than
            there are slots; or the backend or an option is invalid.
        RhapsodyError: The backend cannot be started, or a task failed.
    """
    _prepare_simulation(arguments)
    instance = _read(arguments.file)
    scale = _scale(instance, arguments)
    tasks = [replace(task, runtime=(task.runtime or 0.0) * scale) for task in instance.tasks]
    instance = replace(instance, tasks=_copies(tasks, arguments.copies))
    report = asyncio.run(_replay(instance, scale, arguments))
    text = json.dumps(report, indent=2) if arguments.json else "\n".join(_lines(report))
    print(text)  # noqa: T201 - the command's output


def _prepare_simulation(arguments: argparse.Namespace) -> None:
    """Select the simulated backend and its options, if a simulation is requested."""
    if not arguments.simulate:
        if arguments.nodes or arguments.cores or _is(arguments, "simulated"):
            raise UsageError("to simulate the replay, add --simulate")
        return
    if not (_is(arguments, "local") or _is(arguments, "simulated")):
        raise UsageError(f"--simulate uses the backend simulated: omit -b {arguments.backend}")
    if arguments.slots is not None:
        raise UsageError("--simulate: use --nodes and --cores instead of --slots")
    if arguments.files is not None:
        raise UsageError("--simulate reads and writes no files: omit --files")
    for option in arguments.option:
        if match := re.match(r"\s*(nodes|cores|duration)\s*=", option):
            raise UsageError(
                f"-o {match[1]}: use --nodes and --cores; durations are those of the file"
            )
    nodes, cores = arguments.nodes or 1, arguments.cores or 1
    arguments.backend, arguments.slots = "simulated", nodes * cores
    arguments.option = [*arguments.option, f"nodes={nodes}", f"cores={cores}"]


def _is(arguments: argparse.Namespace, backend: str) -> bool:
    return str(arguments.backend).strip().lower() == backend


def _copies(tasks: Sequence[RecordedTask], number: int) -> tuple[RecordedTask, ...]:
    """Return copies of a workflow with different ids."""
    if number == 1:
        return tuple(tasks)
    return tuple(
        replace(
            task, id=f"{task.id} {copy}", parents=tuple(f"{name} {copy}" for name in task.parents)
        )
        for copy in range(number)
        for task in tasks
    )


def _read(file: str) -> Instance:
    try:
        instance = read(file)
    except InstanceError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    for task in instance.tasks:
        if task.runtime is None:
            raise UsageError(
                f"{file}: task {task.id!r} has no recorded duration, so it cannot be replayed; add "
                "`runtimeInSeconds` in `workflow.execution.tasks`"
            )
    return instance


def _scale(instance: Instance, arguments: argparse.Namespace) -> float:
    times = [task.runtime for task in instance.tasks if task.runtime]
    scale: float = arguments.scale
    if arguments.shortest is not None:
        if not times:
            raise UsageError(f"{arguments.file}: no task has a duration above 0; omit --shortest")
        scale = arguments.shortest / min(times)
    if times and not DURATION_LIMITS[0] <= max(times) * scale <= DURATION_LIMITS[1]:
        raise UsageError(
            f"the longest task would take {max(times) * scale:.3g} s: choose --scale or --shortest "
            f"so that it takes {DURATION_LIMITS[0]:g} to {DURATION_LIMITS[1]:g} s"
        )
    return scale


async def _replay(
    instance: Instance, scale: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    from rhapsody_wfcommons.replay import Replay

    tasks, urgency = instance.tasks, None
    if arguments.order == "critical-path":
        urgency = bottom_levels(tasks)
    recorded = sum(machine.cores or 0 for machine in instance.machines)
    slots = arguments.slots or recorded or DEFAULT_SLOTS
    local, simulated = _is(arguments, "local"), arguments.simulate
    held = urgency is not None or (arguments.slots and not (local or simulated))
    with tempfile.TemporaryDirectory(prefix="rhapsody-replay-") as made:
        directory = None if arguments.files is None else Path(made)  # also for sandboxes
        if directory is not None:
            _check_room(instance, arguments.files, directory)
        async with _engine(
            _backend(arguments, slots if local else None),
            max_pending=slots if held else None,  # the engine holds other tasks back, in order
            work_dir=directory,
        ) as flow:
            backend = flow.backend
            slots = _offered(backend, slots)
            _check_fit(instance, slots, arguments.cores or 1 if simulated else None)
            bound = list_schedule(tasks, slots, urgency)
            if sys.stderr is not None:  # `None` if the stream was closed before the start
                virtual = " of virtual time" if simulated else ""
                text = f"rhapsody: {_extent(len(tasks), slots)}: about {bound:.3f} s{virtual}"
                print(text, file=sys.stderr)  # noqa: T201 - the command's output
            replay = Replay(tasks, urgency, arguments.files, directory)
            makespan = await replay.run(flow, 0 if simulated else slots)
    return {
        "name": instance.name,
        "tasks": len(tasks),
        "backend": backend.name,
        "slots": slots,
        "order": arguments.order,
        "scale": scale,
        "files": arguments.files,
        "makespan": makespan,
        "critical_path": critical_path(tasks),
        "work_per_slot": work(tasks) / slots,
        "list_schedule": bound,
        "ratio": makespan / bound if bound else None,
    }


def _backend(arguments: argparse.Namespace, workers: int | None) -> BaseExecutionBackend:
    """Create the backend. If `workers` is not `None`, it has that many cores and workers."""
    from rhapsody.backends import backend_from_options
    from rhapsody_wfcommons.replay import recorded_duration

    options: list[str] = arguments.option
    if workers is not None:
        for option in options:
            if match := re.match(r"\s*(cores|workers|resources)\s*=", option):
                raise UsageError(
                    f"-o {match[1]}: use --slots N, which sets the cores and workers of the local "
                    "backend"
                )
        options = [*options, f"cores={workers}", f"workers={workers}"]
    backend = backend_from_options(arguments.backend, options)
    if arguments.simulate:
        simulated: Any = backend  # its class is in a distribution that may not be installed
        simulated.duration = recorded_duration
    elif getattr(backend, "dry", False):
        raise UsageError(
            f"backend {backend.name!r} does not run tasks, so there is nothing to measure; "
            "`rhapsody backends` lists other backends"
        )
    return backend


@asynccontextmanager
async def _engine(backend: BaseExecutionBackend, **settings: Any) -> AsyncIterator[WorkflowEngine]:
    """Start an engine. Errors during the start are reported as errors of the backend."""
    from rhapsody import WorkflowEngine

    try:
        flow = await WorkflowEngine.create(backend, **settings)
    except (RhapsodyError, OSError, ImportError, ValueError) as error:
        raise RhapsodyError(
            f"backend {backend.name!r} cannot be started: {type(error).__name__}: {error}"
        ) from error
    async with flow:
        yield flow


def _offered(backend: BaseExecutionBackend, slots: int) -> int:
    """Return the number of slots, limited to the backend's cores if the backend reports them."""
    from rhapsody.backends import ManagedBackend

    cores = backend.cores_in_use() if isinstance(backend, ManagedBackend) else None
    return min(slots, cores[1]) if cores is not None and cores[1] else slots


def _check_room(instance: Instance, scale: float, directory: Path) -> None:
    made = [file for task in instance.tasks for file in task.outputs]
    written = {file.id for file in made}
    read = {file.id: file for task in instance.tasks for file in task.inputs}
    made += [file for file in read.values() if file.id not in written]
    needed = sum(scale * (file.size or 0) for file in made)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UsageError(
            f"--files {scale:g} needs {needed:.3g} bytes, but {directory.parent} has only "
            f"{free:.3g}: use a smaller number, or set TMPDIR to a directory with more space"
        )


def _check_fit(instance: Instance, slots: int, cores: int | None) -> None:
    """Check that each task fits into the slots or, in a simulation, on a node with `cores`."""
    for task in instance.tasks:
        needed = slots_of(task)
        if cores is not None and needed > cores:
            raise UsageError(
                f"task {task.id!r} needs {needed} cores, but each node has {cores}: use --cores "
                f"{needed} or more"
            )
        if needed > slots:
            raise UsageError(
                f"task {task.id!r} needs {needed} cores, but there are {slots} slots: use "
                f"--slots {needed} or more, on a backend with at least that many cores"
            )


def _lines(report: Mapping[str, Any]) -> Sequence[str]:
    """Return the lines of the report as text."""
    extent = _extent(report["tasks"], report["slots"])
    rows = {
        "makespan": report["makespan"],
        "critical path": report["critical_path"],
        "work / slots": report["work_per_slot"],
        "list schedule": report["list_schedule"],
    }
    lines = [
        f"{on_one_line(report['name'])}: {extent} of {report['backend']}, "
        f"recorded times x {report['scale']:.6g}",
        *(f"  {name:<14} {seconds:10.3f} s" for name, seconds in rows.items()),
    ]
    if report["ratio"] is not None:
        lines.append(f"  {'ratio':<14} {report['ratio']:10.3f}    makespan / list schedule")
    return lines


def _extent(tasks: int, slots: int) -> str:
    return f"{tasks} task{'s' * (tasks != 1)} on {slots} slot{'s' * (slots != 1)}"


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")


def _whole(text: str) -> int:
    with suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
