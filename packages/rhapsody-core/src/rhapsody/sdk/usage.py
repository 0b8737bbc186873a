"""Resources that programs have used, from the kernel's counters.

When a process ends, the kernel reports what the process has used, including the processes that it
has started and waited for. A process that a signal ends usually does not wait for its children. So
before a program is terminated, its counters and those of its descendants are read from `/proc`; see
`counters_before`. The kernel may still count a child that ends before its parent, so the two
measurements are not added: the larger one is used.

A peak that may be that of the program's parent is left out (see `program_usage`). The alternatives
are worse: a small process that starts programs would not inherit changes of limits, umask and
priority that the program makes later, reading `/proc` periodically misses the peaks of short
programs, and control groups need privileges or systemd.
"""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from typing import NamedTuple, cast

from rhapsody.sdk.runner import MARGIN, MAXRSS_UNIT, STORAGE_BLOCK, cpu_seconds, usage
from rhapsody.task import Usage

PROCESSES = "/proc"


class Counters(NamedTuple):
    """Resources that several processes have used.

    Attributes:
        cpu: CPU time in seconds.
        peak: The peak of the memory of the largest process, as in `ru_maxrss`.
        read: Blocks read from storage, as in `ru_inblock`.
        written: Blocks written to storage, as in `ru_oublock`.
    """

    cpu: float = 0.0
    peak: int = 0
    read: int = 0
    written: int = 0


NO_COUNTERS = Counters()


def program_usage(ended: resource.struct_rusage, floor: int, before: Counters) -> Usage:
    """Return the resources that a program has used.

    A program begins in the memory of the process that started it. The kernel's figure for its peak
    memory is therefore never less than that process's, and is left out if it is not higher.

    Args:
        ended: The counters of the program's process, which has ended.
        floor: The `ru_maxrss` of the process that has started the program.
        before: The counters from `counters_before` if a signal has ended the program, otherwise
            `NO_COUNTERS`.
    """
    peak = max(ended.ru_maxrss, before.peak)
    used = usage(
        max(cpu_seconds(ended), before.cpu),
        max(ended.ru_inblock, before.read),
        max(ended.ru_oublock, before.written),
        peak if (peak - floor) * MAXRSS_UNIT > MARGIN else None,
    )
    return cast("Usage", used)


def counters_before(pid: int, number: int) -> Counters | None:
    """Read the counters of a process and its descendants before the process receives a signal.

    Args:
        pid: The id of the process.
        number: The number of the signal.

    Returns:
        The counters of all these processes together. `NO_COUNTERS` if the process handles the
        signal, because it can then still wait for its children. `None` if the system does not
        report the counters.
    """
    try:
        if _handles(pid, number):
            return NO_COUNTERS
        found, total = _children(pid), _counters(pid)
    except (OSError, ValueError):  # not Linux, or a kernel without these files
        return None
    while found:
        child = found.pop()
        with suppress(OSError, ValueError):  # it has just ended
            found += _children(child)
            one = _counters(child)
            total = Counters(
                total.cpu + one.cpu,
                max(total.peak, one.peak),
                total.read + one.read,
                total.written + one.written,
            )
    return total


def _handles(pid: int, number: int) -> bool:
    """Return True if a process ignores a signal or has a handler for it."""
    if number == signal.SIGKILL:
        return False
    status = _fields(f"{PROCESSES}/{pid}/status")
    return bool((int(status["SigIgn"], 16) | int(status["SigCgt"], 16)) >> (number - 1) & 1)


def _children(pid: int) -> list[int]:
    threads, found = f"{PROCESSES}/{pid}/task", list[int]()
    for thread in os.listdir(threads):
        with open(f"{threads}/{thread}/children", "rb") as file:
            found += map(int, file.read().split())
    return found


def _counters(pid: int) -> Counters:
    """Return the counters of a process, including the processes that it has waited for."""
    with open(f"{PROCESSES}/{pid}/stat", "rb") as file:
        ticks = file.read().rpartition(b")")[2].split()[11:15]  # `utime` to `cstime` in proc(5)
    cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    peak = int(_fields(f"{PROCESSES}/{pid}/status").get("VmHWM", "0 kB").split()[0])
    storage: dict[str, str] = {}
    with suppress(OSError):  # not permitted
        storage = _fields(f"{PROCESSES}/{pid}/io")
    read, written = (int(storage.get(key, 0)) for key in ("read_bytes", "write_bytes"))
    return Counters(cpu, peak, read // STORAGE_BLOCK, written // STORAGE_BLOCK)


def _fields(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in lines}
