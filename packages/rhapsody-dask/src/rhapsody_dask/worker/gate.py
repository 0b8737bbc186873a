"""Counts a worker's cores, and hands out its GPUs, among the tasks on its threads.

Dask's own slots are threads, one for each task; a task of several cores takes
those of others here. First come, first served, so that a big task is not passed
by small ones for ever.
"""

from __future__ import annotations

import threading
from collections import deque


class Waiting:
    """A task that waits for its cores."""

    __slots__ = ("cores", "given", "turn")

    def __init__(self, cores: float) -> None:
        self.cores: float = cores
        self.given: bool = False
        self.turn: threading.Event = threading.Event()


class Gate:
    """The cores and GPUs of one worker.

    Args:
        cores: How many cores there are.
        gpus: The names of the GPUs, as in `CUDA_VISIBLE_DEVICES`.
    """

    def __init__(self, cores: int, gpus: tuple[str, ...] = ()) -> None:
        self.cores = cores
        self.gpus = gpus
        self._lock = threading.Lock()
        self._free: float = cores
        self._free_gpus = list(gpus)
        self._queue: deque[Waiting] = deque()

    def enter(self, cores: float) -> Waiting | None:
        """Takes cores; where they are not free now, gives what to wait for with `wait`."""
        with self._lock:
            if not self._queue and self._free >= cores:
                self._take(cores)
                return None
            waiting = Waiting(min(cores, self.cores))
            self._queue.append(waiting)
            self._serve()
            return waiting

    def wait(self, waiting: Waiting) -> bool:
        """Waits for the turn; `False` where it was given up meanwhile. Blocks the thread."""
        waiting.turn.wait()
        return waiting.given

    def give_up(self, waiting: Waiting) -> None:
        """Takes a task out of the queue that need not run any more."""
        with self._lock:
            if not waiting.given and waiting in self._queue:
                self._queue.remove(waiting)
                self._serve()
        waiting.turn.set()

    def leave(self, cores: float) -> None:
        """Gives cores back, as many as the same number took."""
        with self._lock:
            self._take(-min(cores, self.cores))
            self._serve()

    def take_gpus(self, count: int) -> tuple[str, ...]:
        """Takes GPUs; fewer where Dask hands out more than this worker has names for."""
        with self._lock:
            taken, self._free_gpus = self._free_gpus[:count], self._free_gpus[count:]
            return tuple(taken)

    def return_gpus(self, gpus: tuple[str, ...]) -> None:
        """Gives GPUs back."""
        with self._lock:
            self._free_gpus.extend(gpus)

    def _take(self, cores: float) -> None:
        self._free = round(self._free - cores, 3)  # fractions are multiples of 0.001

    def _serve(self) -> None:
        while self._queue and self._free >= self._queue[0].cores:
            waiting = self._queue.popleft()
            self._take(waiting.cores)
            waiting.given = True
            waiting.turn.set()
