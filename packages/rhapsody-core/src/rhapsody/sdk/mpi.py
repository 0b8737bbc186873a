"""Functions on several MPI ranks: one call on every rank, with the list of their results.

A backend with an MPI launcher packs the call once, into a file, and lets the launcher start one
Python process per rank. Each process calls `run_rank`. Rank 0 gathers the outcomes and writes one
outcome, which `rhapsody.sdk.unpack` and `rhapsody.sdk.finish` read like that of any other call.

A rank whose call raises an exception cannot take part in gathering, because the other ranks may
wait for it inside the function. So it writes the outcome itself and aborts the MPI job. The first
outcome is kept.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from rhapsody.errors import CapabilityError
from rhapsody.sdk.runner import WRITTEN, CallResult, Runner, loads, worker_values
from rhapsody.task import TaskDescription

__all__ = ["require_mpi4py", "run_rank"]

CURE = "install it next to Rhapsody: pip install mpi4py"


def require_mpi4py(task: TaskDescription) -> None:
    """Check that this Python environment can run a function on several ranks.

    Raises:
        CapabilityError: mpi4py is not installed.
    """
    if importlib.util.find_spec("mpi4py") is None:
        raise CapabilityError(
            f"task {task['name']!r} is a function with several ranks, which needs mpi4py: {CURE}"
        )


def run_rank(call: str, result: str, ranks: int, runner: Runner | None = None) -> NoReturn:
    """Make a call on this rank, and end the process.

    Args:
        call: The file with the packed call. The call's `capture` should be False, because the
            launcher collects the output of all ranks.
        result: The file for the outcome, which appears with its complete content.
        ranks: The number of ranks that the task has requested.
        runner: The runner of the call; it must pack values as bytes. Default: `Runner()`.
    """
    runner, result = runner or Runner(), os.path.abspath(result)
    for stream in (sys.stdout, sys.stderr):  # the lines of different ranks must not mix
        stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
    try:
        from mpi4py import MPI

        _require_size(MPI, ranks)
    except BaseException as error:  # such as an ImportError because of a missing library
        if isinstance(error, ImportError):
            error = CapabilityError(f"mpi4py cannot be imported ({error}): {CURE}")
        _publish(result, runner.failed(error))
        _exit(1)
    world, rank = MPI.COMM_WORLD, MPI.COMM_WORLD.rank
    own = world.Dup()  # the messages of the function cannot be mixed up with these
    runner.note = f"raised on rank {rank} of {ranks}"
    outcome = CallResult(*loads(runner.run(Path(call).read_bytes())))
    if not outcome.done:
        _publish(result, outcome)
        _flush()
        world.Abort(1)
    outcomes = own.gather(tuple(outcome))
    if outcomes is not None:  # on rank 0
        _publish(result, _joined([CallResult(*fields) for fields in outcomes]))
    worker_values().close()
    if not MPI.Is_finalized():
        MPI.Finalize()
    _exit(0)


def unpack_values(payloads: list[bytes]) -> list[Any]:
    """Unpickle the values of all ranks. Pickles of results refer to this function."""
    return [loads(payload) for payload in payloads]


class _Values:
    """Values of all ranks, which are unpickled as a list."""

    def __init__(self, payloads: list[bytes]) -> None:
        self._payloads = payloads

    def __reduce__(self) -> Any:
        return unpack_values, (self._payloads,)


def _require_size(mpi: Any, ranks: int) -> None:
    size = mpi.COMM_WORLD.size
    if size != ranks:
        library = mpi.Get_library_version().strip("\0\n ").splitlines()[0]
        raise CapabilityError(
            f"MPI.COMM_WORLD has {size} ranks instead of {ranks}: the launcher and the MPI library "
            f"of mpi4py ({library}) do not match; use the launcher of that library, or "
            "install mpi4py for the MPI of the launcher"
        )


def _joined(outcomes: list[CallResult]) -> CallResult:
    """Return the outcome of all ranks: that of rank 0 with the list of values and all usage."""
    payload = pickle.dumps(_Values([each.payload for each in outcomes]), 5)
    usage: dict[str, Any] = {}
    for key in outcomes[0].usage or ():
        with suppress(KeyError):  # unknown on one of the ranks
            usage[key] = sum((each.usage or {})[key] for each in outcomes)
    opened: dict[str, str] = {}
    for each in outcomes:
        written = {path: use for path, use in opened.items() if use == WRITTEN}
        opened |= {**each.opened, **written}
    times = [each.interval for each in outcomes if each.interval is not None]
    interval = (min(t[0] for t in times), max(t[1] for t in times)) if times else None
    return outcomes[0]._replace(
        payload=payload, plain=False, usage=usage or None, interval=interval, opened=opened
    )


def _publish(result: str, outcome: CallResult) -> None:
    """Write the outcome, unless another rank has written one."""
    part = Path(f"{result}.{os.uname().nodename}.{os.getpid()}")
    part.write_bytes(pickle.dumps(tuple(outcome), 5))
    with suppress(FileExistsError):
        os.link(part, result)
    part.unlink()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the call may have closed or replaced the stream
            stream.flush()


def _exit(code: int) -> NoReturn:
    """End the process without waiting for threads that the call has started."""
    _flush()
    # Unlike `os._exit`, C's `exit` flushes the output of libraries in C, and lets MPICH log out of
    # its launcher, which otherwise kills the ranks that have not ended yet.
    import ctypes

    ctypes.CDLL(None).exit(code)
    raise AssertionError
