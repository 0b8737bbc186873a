"""Metrics of tasks. The names are documented in the reference of this distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from opentelemetry.metrics import Meter

from rhapsody import Usage
from rhapsody.plugins import NodeSample, TaskEvent

SECONDS = (0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 14400, 43200)
"""Limits of the buckets of durations."""


class Metrics:
    """Instruments of one engine. All engines of a program add to the same metrics.

    Args:
        meter: The meter that creates the instruments.
    """

    def __init__(self, meter: Meter) -> None:
        self._tasks = meter.create_up_down_counter(
            "rhapsody.task.count", "{task}", "Number of tasks and blocks, by state."
        )
        self._retries = meter.create_counter(
            "rhapsody.task.retries", "{attempt}", "Number of failed attempts that were retried."
        )
        self._duration = meter.create_histogram(
            "rhapsody.attempt.duration", "s", "Run time of attempts.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )  # fmt: skip
        self._queued = meter.create_histogram(
            "rhapsody.attempt.queue_time", "s", "Time from submission to start.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )  # fmt: skip
        self._cpu = meter.create_counter(
            "rhapsody.attempt.cpu.time", "s", "Processor time that attempts have used."
        )
        self._memory = meter.create_histogram(
            "rhapsody.attempt.memory.peak", "By", "Peak of the resident memory of attempts."
        )
        self._io = meter.create_counter(
            "rhapsody.attempt.disk.io",
            "By",
            "Bytes read from and written to storage.",
        )
        self._node_cpu = meter.create_gauge(
            "system.cpu.utilization", "1", "Fraction of time in which processors were busy."
        )
        self._node_memory = meter.create_gauge(
            "system.memory.utilization", "1", "Fraction of a node's memory that was in use."
        )
        self._node_disk = meter.create_counter(
            "system.disk.io", "By", "Bytes read from and written to a node's disks."
        )
        self._node_network = meter.create_counter(
            "system.network.io", "By", "Bytes that a node has received and sent."
        )
        self._node_gpu = meter.create_gauge(
            "hw.gpu.utilization", "1", "Fraction of time in which a GPU was busy."
        )

    def load(self, samples: Sequence[NodeSample]) -> None:
        """Record the load of nodes."""
        for sample in samples:
            node = {"host.name": sample.node}
            self._node_cpu.set(sample.cpu, node)
            self._node_memory.set(sample.memory, node)
            for direction, rate in (("read", sample.read), ("write", sample.written)):
                size = round(rate * sample.seconds)
                self._node_disk.add(size, {**node, "disk.io.direction": direction})
            for direction, rate in (("receive", sample.received), ("transmit", sample.sent)):
                size = round(rate * sample.seconds)
                self._node_network.add(size, {**node, "network.io.direction": direction})
            for number, busy in enumerate(sample.gpus):
                self._node_gpu.set(busy, {**node, "hw.id": str(number)})

    def count(self, changes: Counter[str]) -> None:
        """Add changes of the numbers of tasks, by state."""
        for state, change in changes.items():
            if change:
                self._tasks.add(change, {"rhapsody.task.state": state})

    def end_attempt(
        self, event: TaskEvent, began: float | None, ended: float, submitted: float
    ) -> None:
        """Record the end of an attempt.

        Args:
            event: The event of the end.
            began: The time at which the attempt began to run; `None` if it did not run, or its
                backend does not report it. All times are in seconds since the epoch.
            ended: The time at which it ended.
            submitted: The time at which it was submitted.
        """
        attributes = {"rhapsody.task.name": event.name, "rhapsody.backend": event.backend or ""}
        if event.retried:
            self._retries.add(1, attributes)
        if event.usage is not None:
            self._use(event.usage, attributes)
        if began is None:
            return
        self._queued.record(max(0.0, began - submitted), attributes)
        attributes["rhapsody.task.state"] = event.state.lower()
        if event.error is not None:
            attributes["error.type"] = type(event.error).__qualname__
        self._duration.record(max(0.0, ended - began), attributes)

    def _use(self, usage: Usage, attributes: dict[str, str]) -> None:
        if (seconds := usage.get("cpu_seconds")) is not None:
            self._cpu.add(seconds, attributes)
        if (peak := usage.get("peak_memory")) is not None:
            self._memory.record(peak, attributes)
        moved = {"read": usage.get("read_bytes"), "write": usage.get("written_bytes")}
        for direction, size in moved.items():
            if size is not None:
                self._io.add(size, {**attributes, "disk.io.direction": direction})
