"""Compare ways to run 200 short commands or calls on Slurm, on a private Slurm of this machine.

Starts Slurm with three nodes of eight declared cores, which takes root and Slurm's programs, and
measures the seconds for `/bin/true` and for `sleep 0.05`, or for functions that do the same. All
ways take turns, each in a new process; start-up and a few first tasks are excluded. Prints the
medians of all rounds, and their ratios to a baseline: a job array for jobs, and Parsl's
HighThroughputExecutor for ways with permanent workers in one job. Except for the jobs, each way has
four slots.

    python benchmarks/slurm.py [--size 200] [--rounds 3] [--only array psij dask ...] [--smoke]

The declared cores may be more than this machine has: the jobs then share its processors. Ways whose
programs or packages are missing are skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).absolute().parents[1]
FOLDER = ROOT / "benchmarks"
if __name__ == "__main__":  # dask.py in this folder would hide Dask itself
    sys.path[:] = [str(ROOT), *(each for each in sys.path if Path(each).absolute() != FOLDER)]

from tests._support import slurm  # noqa: E402
from tests.radical import cluster  # noqa: E402

NODES, CORES, MEMORY = 3, 8, 8000
SLOTS = 4
FIRST = 2 * SLOTS
"""Number of tasks that each way runs before it is measured."""

LIMIT = 300.0
"""Longest time in seconds for one way in one round, start-up included."""


def nothing() -> None:
    """Do nothing."""


def nap() -> None:
    """Sleep for 50 ms."""
    import time  # Parsl sends functions of this script without the script's imports

    time.sleep(0.05)


class Work(NamedTuple):
    """Work of a task, as a command and as a function."""

    command: list[str]
    function: Callable[[], None]


WORKS = {"/bin/true": Work(["/bin/true"], nothing), "50 ms": Work(["sleep", "0.05"], nap)}

Run = Callable[[Work, int], Awaitable[float | None]]
"""Function that runs a number of tasks; returns the seconds if the caller must not measure them."""


# The ways. Each starts a system, registers its end on the stack, and returns a function.


async def array(stack: AsyncExitStack) -> Run:
    """Submit an array, whose jobs write a line to a pipe when they end."""

    async def run(work: Work, size: int) -> None:
        pipe = Path.cwd() / "ended"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        wrap = f"{shlex.join(work.command)} && echo >> {shlex.quote(str(pipe))}"
        options = ["--quiet", f"--array=1-{size}", "--output=/dev/null", f"--wrap={wrap}"]
        ended, lines = 0, os.open(pipe, os.O_RDWR)
        await asyncio.to_thread(subprocess.run, ["sbatch", *options], check=True)
        while ended < size:
            ended += len(await asyncio.to_thread(os.read, lines, 1 << 16))
        os.close(lines)

    return run


async def parallel(stack: AsyncExitStack) -> Run:
    """Run GNU parallel in a job. It is started for each measurement, and so measured with it."""

    async def run(work: Work, size: int) -> float:
        script = f"seq {size} | parallel --will-cite -j{SLOTS} -N0 {shlex.join(work.command)}"
        script = f"a=$(date +%s%N); {script} || exit; echo $(($(date +%s%N) - a))"
        words = ["srun", "--quiet", f"-c{SLOTS}", "bash", "-c", script]
        done = await asyncio.to_thread(partial(subprocess.run, words, check=True, stdout=-1))
        return int(done.stdout) / 1e9

    return run


async def engine(stack: AsyncExitStack, backend: Any, *, calls: bool = False) -> Run:
    """Run commands or calls on a backend of Rhapsody."""
    from rhapsody import WorkflowEngine

    made = WorkflowEngine.create(backend, work_dir="work", handle_signals=False)
    flow: Any = await stack.enter_async_context(made)
    tasks: dict[int, Any] = {}

    async def run(work: Work, size: int) -> None:
        if id(work) not in tasks:
            name = work.function.__name__
            command = partial(flow.executable_task, name=name)
            made = flow.function_task(work.function) if calls else command(lambda: work.command)
            tasks[id(work)] = made
        await asyncio.gather(*(tasks[id(work)]() for _ in range(size)))

    return run


async def local(stack: AsyncExitStack) -> Run:
    from rhapsody import LocalExecutionBackend

    return await engine(stack, LocalExecutionBackend(resources={"cores": SLOTS}))


async def psij(stack: AsyncExitStack, **options: Any) -> Run:
    from rhapsody_psij import PsijExecutionBackend

    return await engine(stack, PsijExecutionBackend("slurm", **options))


async def dask(stack: AsyncExitStack, *, calls: bool = False, **options: Any) -> Run:
    from rhapsody_dask import DaskExecutionBackend

    warnings.simplefilter("ignore")
    job = {"queue": "debug", "cores": SLOTS, "memory": "4GB", "walltime": "00:10:00"}
    place = {"interface": "lo", "local_directory": os.getcwd()}
    backend = DaskExecutionBackend(
        cluster_class="dask_jobqueue.SLURMCluster",
        cluster_kwargs={**job, **place, "processes": 1, "n_workers": 1},
        **options,
    )
    return await engine(stack, backend, calls=calls)


async def pilot(stack: AsyncExitStack, *, calls: bool = False, commands: str = "task") -> Run:
    from rhapsody_radical import RadicalExecutionBackend

    os.environ["RADICAL_CONFIG_USER_DIR"] = cluster.configured(
        Path.cwd(), cores_per_node=CORES, mem_per_node=MEMORY
    )
    backend = RadicalExecutionBackend(
        cluster.settings(cores=CORES), function_cores=SLOTS, commands=commands
    )
    return await engine(stack, backend, calls=calls)


async def parsl(stack: AsyncExitStack, *, calls: bool = False) -> Run:
    """Start Parsl's workers in a job."""
    peer, executors, providers, launchers = (
        importlib.import_module(name)
        for name in ("parsl", "parsl.executors", "parsl.providers", "parsl.launchers")
    )
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # its programs
    provider = providers.SlurmProvider(
        partition="debug", cores_per_node=SLOTS, init_blocks=1, max_blocks=1, exclusive=False,
        walltime="00:10:00", launcher=launchers.SimpleLauncher(),
    )  # fmt: skip
    executor = executors.HighThroughputExecutor(
        address="127.0.0.1", max_workers_per_node=SLOTS, cores_per_worker=1, provider=provider
    )
    configuration = peer.Config(
        executors=[executor], strategy="none", usage_tracking=0, initialize_logging=False
    )
    kernel = await asyncio.to_thread(peer.load, configuration)
    stack.push_async_callback(asyncio.to_thread, kernel.cleanup)

    async def run(work: Work, size: int) -> None:
        app = peer.python_app(work.function) if calls else peer.bash_app(_command)
        words = () if calls else (shlex.join(work.command),)
        futures = [app(*words) for _ in range(size)]
        await asyncio.gather(*map(asyncio.wrap_future, futures))

    return run


def _command(command: str) -> str:
    return command


class Way(NamedTuple):
    """A way to run tasks.

    Attributes:
        title: The name in the table.
        start: Function that starts the way.
        base: The baseline, by key; empty for none.
        goal: The highest ratio to the baseline that is acceptable; 0 for none.
        needs: The required module or program.
    """

    title: str
    start: Callable[[AsyncExitStack], Awaitable[Run]]
    base: str = ""
    goal: float = 0.0
    needs: str = "rhapsody"


PSIJ, DASK, PILOT = "rhapsody_psij", "rhapsody_dask", "rhapsody_radical"
WAYS = {
    "array": Way("job array", array),
    "psij": Way("PSI/J, a job per task", partial(psij, tasks_per_job=1), "array", 1.1, PSIJ),
    "psij-20": Way("PSI/J, 20 per job", partial(psij, tasks_per_job=20), "array", 0, PSIJ),
    "psij-default": Way("PSI/J, default", psij, "array", 1.1, PSIJ),
    "parsl": Way("Parsl", parsl, needs="parsl"),
    "parallel": Way("GNU parallel", parallel, "parsl", needs="parallel"),
    "local": Way("local backend", local, "parsl"),
    "dask": Way("Dask", dask, "parsl", 1.0, DASK),
    "pilot": Way("pilot", pilot, "parsl", 0, PILOT),
    "pilot-raptor": Way("pilot, RAPTOR", partial(pilot, commands="raptor"), "parsl", 2.0, PILOT),
    "parsl-calls": Way("Parsl, calls", partial(parsl, calls=True), needs="parsl"),
    "dask-calls": Way("Dask, calls", partial(dask, calls=True), "parsl-calls", 1.0, DASK),
    "dask-batch-calls": Way(
        "Dask, batch_calls, calls",
        partial(dask, calls=True, batch_calls=True),
        "parsl-calls",
        0,
        DASK,
    ),
    "pilot-calls": Way("pilot, calls", partial(pilot, calls=True), "parsl-calls", 2.0, PILOT),
}

INSIDE = ("local",)
"""Ways whose process runs in a job."""


async def measured(way: Way, size: int) -> list[float]:
    """Return the seconds for each kind of work, in the current directory."""
    took = []
    async with AsyncExitStack() as stack:
        run = await way.start(stack)
        for work in WORKS.values():
            if way.base != "array" or size > FIRST:
                await run(work, min(FIRST, size))
            begin = time.perf_counter()
            own = await run(work, size)
            took.append(time.perf_counter() - begin if own is None else own)
    return took


def turn(name: str, size: int, directory: Path) -> list[float] | str:
    """Measure a way in a new process; return the reason if it fails."""
    command = [sys.executable, __file__, "--way", name, "--size", str(size)]
    if name in INSIDE:
        command = ["srun", "--quiet", f"-c{SLOTS}", *command]
    with tempfile.TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as place:
        process = subprocess.Popen(command, cwd=place, stdout=-1, stderr=-1, text=True)
        try:
            output, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            output, errors = "", f"not done after {LIMIT:.0f} s"
        finally:
            process.kill()
            process.wait()
        subprocess.run(["scancel", "--me"], check=True)
        slurm.until_no_jobs(60)
        if process.returncode == 0:
            took: list[float] = json.loads(output.splitlines()[-1])
            return took
        return [line for line in errors.splitlines() if line.strip()][-1]


def table(found: dict[str, list[list[float]]]) -> list[str]:
    """Return the lines of the table: seconds, ratios to the baseline, and goals."""
    lines = [" " * 24 + "".join(f"{work:>20}" for work in WORKS) + "  baseline, goal"]
    for name, rounds in found.items():
        title, _, base, goal, _ = WAYS[name]
        cells, fails = "", False
        for number in range(len(WORKS)):
            median = statistics.median(took[number] for took in rounds)
            cell = f"{median:.2f} s"
            if base in found:
                ratio = median / statistics.median(took[number] for took in found[base])
                fails |= ratio > goal > 0
                cell += f"{ratio:8.2f}"
            cells += f"{cell:<20}"
        aim = f"{WAYS[base].title}, {goal or 'none'}" if base in found else ""
        lines.append(f"{title:<28}{cells}{aim}{'  MISSED' if fails else ''}".rstrip())
    return lines


def missing(way: Way) -> bool:
    """Return True if the module or program that a way needs is not installed."""
    return importlib.util.find_spec(way.needs) is None and shutil.which(way.needs) is None


def main() -> None:
    """Run the measurements and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=200, help="tasks per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--smoke", action="store_true", help="8 tasks, one round")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(asyncio.run(measured(WAYS[options.way], options.size))))
        return
    size, rounds = (FIRST, 1) if options.smoke else (options.size, options.rounds)
    if reason := slurm.why_not():
        sys.exit(reason)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # stop Slurm
    skipped = {name: "not installed" for name in options.only if missing(WAYS[name])}
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        (place := Path(directory, "slurm")).mkdir()
        with slurm.slurm(place, nodes=NODES, cores=CORES, memory=MEMORY):
            shown = subprocess.run(["sinfo", "--version"], stdout=-1, text=True, check=True)
            for _ in range(rounds):
                for name in [name for name in options.only if name not in skipped]:
                    took = turn(name, size, Path(directory))
                    print(f"{WAYS[name].title}: {took}", file=sys.stderr, flush=True)
                    if isinstance(took, str):
                        skipped[name] = took
                    else:
                        found.setdefault(name, []).append(took)
    slurm_version = shown.stdout.strip()
    print(f"# {size} tasks, {rounds} rounds; {slurm_version}, Python {platform.python_version()},")
    print(f"# {os.cpu_count()} processors, {NODES} nodes of {CORES} declared cores")
    print("\n".join(table(found)))
    for name, reason in skipped.items():
        print(f"skipped: {WAYS[name].title}: {reason}")


if __name__ == "__main__":
    main()
