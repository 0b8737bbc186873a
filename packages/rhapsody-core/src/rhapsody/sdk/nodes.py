"""Load of nodes over time: processors, memory, disks, network and GPUs.

A `NodeSampler` runs in a process on the node, as a thread that reads the counters of the system
every few seconds with psutil, and those of NVIDIA's GPUs with pynvml. Without psutil there are no
samples; without pynvml, samples contain no GPUs.

Each sample is an average since the one before, so that nothing between two samples is missed. While
an engine is idle, its sampler waits without a timer, and the next sample covers the whole time.
Therefore the interval can grow with the age of the sampler, and the number of samples of a long run
remains small: about 200 in the first 17 minutes, and 1,100 in a day.
"""

from __future__ import annotations

import importlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from rhapsody.errors import describe_error
from rhapsody.sdk.threads import start_thread
from rhapsody.task import NodeSample

log: logging.Logger = logging.getLogger("rhapsody.engine")

INTERVAL: Final = 5.0
"""Minimum number of seconds between two samples of a node."""

GROWTH: Final = 1 / 200
"""The interval is at least the sampler's age, multiplied by this number."""

DELAY: Final = 1.0
"""Seconds until psutil is imported and the counters are read first, so that short runs need not."""


class _Counters(NamedTuple):
    """Counters of the system since it was started, and the time at which they were read."""

    time: float
    busy: float
    total: float
    read: int
    written: int
    received: int
    sent: int


class NodeSampler:
    """Thread that samples the load of this node until it is stopped.

    Args:
        report: Function that receives each sample, on the sampler's thread.
        interval: Minimum number of seconds between two samples.
        delay: Seconds until the counters are read first.
        is_busy: Function that returns False if no samples are needed until the next call of `wake`.
            It is called on the sampler's thread. Default: samples are always needed.
    """

    def __init__(
        self,
        report: Callable[[NodeSample], object],
        *,
        interval: float = INTERVAL,
        delay: float = DELAY,
        is_busy: Callable[[], bool] = lambda: True,
    ) -> None:
        self._report = report
        self._is_busy = is_busy
        self._interval = interval
        self._delay = delay
        self._node = socket.gethostname()
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._psutil: Any = None
        self._nvml: Any = None
        self._gpus: list[Any] = []
        self._began = 0.0
        self._before: _Counters | None = None

    def start(self) -> None:
        """Start the thread. Python does not join it at exit."""
        self._thread = start_thread(self._work, "rhapsody node samples")

    def wake(self) -> None:
        """Say that samples are needed again; see `is_busy`. Starts the thread if necessary."""
        if self._thread is None:
            self.start()
        self._woken.set()

    def stop(self) -> NodeSample | None:
        """Stop the thread. May be called from any thread, also without `start`.

        Returns:
            A last sample, which is not reported; `None` if nothing is known.
        """
        self._stopped.set()
        self._woken.set()
        with self._lock:
            last = self._take()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)  # it ends at once, unless it is just reading the counters
        return last

    def _work(self) -> None:
        if self._stopped.wait(self._delay):
            return
        try:
            self._psutil = importlib.import_module("psutil")
        except ImportError:
            return
        self._find_gpus()
        with self._lock:
            self._take()
        self._began = time.monotonic()
        while self._before is not None:
            age = time.monotonic() - self._began
            if self._stopped.wait(max(self._interval, age * GROWTH)):
                return
            with self._lock:
                sample = None if self._stopped.is_set() else self._take()
            if sample is not None:
                self._report(sample)
            self._woken.clear()
            if not self._is_busy():
                self._woken.wait()

    def _take(self) -> NodeSample | None:
        """Return the load since the last call; `None` if it is not known.

        If the counters cannot be read, as in some containers, nothing is sampled from then on.
        """
        if self._psutil is None:
            return None
        try:
            return self._load()
        except Exception as error:  # whatever psutil raises for unusual contents of `/proc`
            log.info("the load of this node is not sampled (%s)", describe_error(error))
            self._psutil = self._before = None
            return None

    def _load(self) -> NodeSample | None:
        before = self._before
        now = self._before = self._counters()
        if before is None:
            return None
        seconds, total = now.time - before.time, now.total - before.total
        if seconds <= 0:
            return None
        memory = self._psutil.virtual_memory()
        pairs = zip(now[3:], before[3:], strict=True)
        read, written, received, sent = (max(0, one - other) / seconds for one, other in pairs)
        return NodeSample(
            self._node,
            seconds,
            min(1.0, max(0.0, (now.busy - before.busy) / total)) if total > 0 else 0.0,
            1 - memory.available / memory.total,
            memory.total,
            read,
            written,
            received,
            sent,
            self._gpu_loads(),
        )

    def _counters(self) -> _Counters:
        psutil = self._psutil
        times = psutil.cpu_times()
        # Guests are part of `user` and `nice`, see proc(5).
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        read = written = received = sent = 0
        with suppress(OSError, RuntimeError):  # not permitted, as in some containers
            if (disks := psutil.disk_io_counters()) is not None:
                read, written = disks.read_bytes, disks.write_bytes
        with suppress(OSError):
            for name, card in psutil.net_io_counters(pernic=True).items():
                if not name.startswith("lo"):
                    received, sent = received + card.bytes_recv, sent + card.bytes_sent
        return _Counters(time.monotonic(), total - idle, total, read, written, received, sent)

    def _find_gpus(self) -> None:
        try:
            nvml: Any = importlib.import_module("pynvml")
            nvml.nvmlInit()
            count = nvml.nvmlDeviceGetCount()
            self._gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            self._nvml = nvml
        except Exception:  # noqa: S110 - it is not installed, or there is no driver or GPU
            pass

    def _gpu_loads(self) -> tuple[float, ...]:
        try:
            rates = [self._nvml.nvmlDeviceGetUtilizationRates(gpu) for gpu in self._gpus]
        except self._nvml.NVMLError:  # the GPU does not report it
            self._gpus = []
            return ()
        return tuple(each.gpu / 100 for each in rates)
