"""One graph in one process, with misfortunes: how its calls ended, and what was left.

    python -m tests.system.chaos.trial BACKEND MODE SEED TASKS DIRECTORY

Writes `report.json` to the directory. `tests.system.chaos.seeds` starts it, and judges.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from rhapsody import LocalExecutionBackend, WorkflowEngine
from tests.system.chaos.graphs import make_graph
from tests.system.chaos.misfortunes import Misfortunes, distorted
from tests.system.chaos.program import Run

KEEP = ("results", "failed", "none")


def backend_of(name: str, mode: str, seed: int, place: Path) -> Any:
    """A backend that was not started."""
    more: dict[str, Any] = {}
    kind: Any = LocalExecutionBackend
    if name == "threads":
        more = {"resources": {"cores": 4}}
    elif name == "processes":
        more = {"executor": "process", "resources": {"cores": 2 + seed % 2}}
    elif name == "dask":
        from rhapsody_dask import DaskExecutionBackend

        kind = DaskExecutionBackend
        more = {"resources": {"n_workers": 2, "threads": 1 + seed % 2, "memory_limit": "1 GiB"}}
    elif name == "dragon":
        from rhapsody_dragon import DragonExecutionBackend

        kind = DragonExecutionBackend
        more = {"cores": 2 + seed % 2}
    else:
        from rhapsody_radical import RadicalExecutionBackend

        kind = RadicalExecutionBackend
        pilot = {"resource": "local.localhost", "cores": 4, "runtime": 30}
        more = {"resources": pilot, "function_cores": 2, "work_dir": place / "pilot"}
    if "reports" in mode:
        kind = distorted(kind, seed)
    return kind(**more)


@asynccontextmanager
async def backend_for(
    name: str, mode: str, seed: int, place: Path
) -> AsyncIterator[tuple[Any, Callable[[], None]]]:
    """A backend, and what kills its scheduler: with mode `"scheduler"` that is a process."""
    if "scheduler" not in mode:
        yield backend_of(name, mode, seed, place), lambda: None
        return
    from rhapsody_dask import DaskExecutionBackend
    from tests.dask.clusters import foreign

    (place / "cluster").mkdir()
    with foreign(place / "cluster", tls=False) as cluster:
        kill = cluster["processes"][0].kill
        yield DaskExecutionBackend(scheduler_file=cluster["scheduler_file"]), kill


def left() -> dict[str, list[str]]:
    """Return what this process has open, by kind."""
    gc.collect()
    me = psutil.Process()
    opened = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            opened.append(f"{entry.name} {os.readlink(entry)}")
        except FileNotFoundError:  # the listing's own
            continue
    return {
        "processes": [f"{p.pid} {p.name()}" for p in me.children(recursive=True)],
        "threads": [thread.name for thread in threading.enumerate()],
        "descriptors": opened,
    }


class Complaints(logging.Handler):
    """Handler for records that must not be logged: errors in callbacks and unretrieved ones."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)[-2000:]
        # Dask's client forgets all futures if it loses the scheduler. A `gather` that it has just
        # started then raises this for each of them, and retrieves only one.
        if not text.rstrip().endswith("distributed.client.AllExit"):
            self.found.append(text)

    def unraisable(self, info: Any) -> None:
        """Handle an argument of `sys.unraisablehook`."""
        self.found.append(f"unraisable in {info.object!r}: {info.exc_value!r} {info.err_msg}")


async def one_run(name: str, mode: str, seed: int, size: int, place: Path) -> dict[str, Any]:
    """Runs a graph, and says how its calls have ended and what is in its sandboxes."""
    run = Run(make_graph(seed, size, services=0 if name == "pilot" else 2))
    misfortunes = Misfortunes(seed, size, place / "log.txt")
    disk = place
    endings: list[Any] = []
    async with backend_for(name, mode, seed, place) as (backend, kill_scheduler):
        if "workers" in mode:
            misfortunes.plan_for_workers(2 + size // 200)
            misfortunes.plan_for_helpers()
        if "disk" in mode:
            disk = Path(os.environ["CHAOS_DISK"])
            misfortunes.plan_for_disk(disk)
        if "scheduler" in mode:
            misfortunes.plan(kill_scheduler, 0.2, 0.8)
        backend.ends_next = run.cancel_attempt
        keep: Any = KEEP[seed % 3]
        async with WorkflowEngine.create(
            backend,
            work_dir=disk / "work",
            keep_sandboxes=keep,
            lost_retries=50,
            handle_signals=False,
            trace=place / "trace.jsonl",
            max_pending=(None, None, 3, 100)[seed % 4],
            push_down=seed % 5 > 0,
            implicit_data=seed % 7 > 0,
        ) as flow:
            if "shutdown" in mode:
                misfortunes.plan(lambda: endings.append(asyncio.ensure_future(flow.shutdown())))
            ends = await run.to_its_end(flow, place, misfortunes.ended)
            stats = {key: getattr(flow.stats, key) for key in ("late", "failed", "done")}
            uids = [each.uid for each in run.futures]
    await asyncio.gather(*endings)
    kept = {f"{saved.path}" for saved in flow.results}
    sandboxes = [path.name for path in (disk / "work").glob("*") if path.is_dir()]
    return {
        "ends": list(ends.items()),
        "cancelled": sorted(run.cancelled),
        "keep": keep,
        "uids": uids,
        "kept": sorted(kept),
        "sandboxes": sandboxes,
        "misfortunes": misfortunes.count,
        "stats": stats,
    }


async def limited(name: str, mode: str, seed: int, size: int, place: Path, limit: float) -> Any:
    """Run a graph; if nothing happens for so many seconds, print where it hangs and exit."""
    run = asyncio.ensure_future(one_run(name, mode, seed, size, place))
    log, before, now = place / "log.txt", -1, 0
    while not run.done() and now > before:
        await asyncio.wait([run], timeout=limit)
        before, now = now, log.stat().st_size
    if not run.done():
        for task in asyncio.all_tasks():
            task.print_stack(limit=8)
        engines = [each for each in gc.get_objects() if type(each) is WorkflowEngine]
        for engine in engines:
            print("waits:", *list(engine._runtime.scheduler.live)[:20], sep="\n  ")
        faulthandler.dump_traceback()
        sys.stderr.flush()
        os._exit(70)
    return await run


def main() -> None:
    """Runs a small graph for what is there once only, then that of the seed."""
    name, mode, place = sys.argv[1], sys.argv[2], Path(sys.argv[5])
    seed, size = int(sys.argv[3]), int(sys.argv[4])
    (place / "first").mkdir()
    limit = float(os.environ.get("CHAOS_LIMIT", "300"))
    complaints = Complaints()
    sys.unraisablehook = complaints.unraisable
    if name in ("threads", "processes"):
        warnings.simplefilter("always", ResourceWarning)
    logging.getLogger("asyncio").addHandler(complaints)
    logging.getLogger("rhapsody").setLevel(logging.CRITICAL)  # of failures that are meant
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if name != "pilot":
        asyncio.run(limited(name, "plain", 1, 40, place / "first", limit))
    before = left()
    began = time.perf_counter()
    report = asyncio.run(limited(name, mode, seed, size, place, limit))
    report["seconds"] = time.perf_counter() - began
    after = left()
    report["left"] = {
        key: sorted(set(after[key]) - set(before[key])) for key in ("processes", "threads")
    }
    grown = len(after["descriptors"]) - len(before["descriptors"])
    report["left"]["descriptors"] = (
        sorted(set(after["descriptors"]) - set(before["descriptors"])) if grown > 0 else []
    )
    report["complaints"] = complaints.found
    (place / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
