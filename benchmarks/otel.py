"""Measure the cost of OpenTelemetry with functions that take a millisecond.

Runs fans of functions in turns: without `rhapsody-otel`, with spans and metrics that are dropped
after they have been batched, and with traces, metrics and logs that are sent by OTLP over HTTP to a
receiver in another process, which drops them. The functions run on two threads, or in two worker
processes. Prints the median of the paired ratios.

    python benchmarks/otel.py [--size 10000] [--rounds 7] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from rhapsody import LocalExecutionBackend, WorkflowEngine
from rhapsody_otel import OpenTelemetryObserver

BUDGET = 1.1
"""Budget as a multiple of the time without `rhapsody-otel`."""

RECEIVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Dropping(SpanExporter):
    """Exporter that drops all spans."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def dropping() -> OpenTelemetryObserver:
    """Return an observer whose spans are batched and dropped."""
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(Dropping()))
    return OpenTelemetryObserver(tracers, MeterProvider())


def sending(port: int) -> tuple[OpenTelemetryObserver, Callable[[], None]]:
    """Return an observer that sends everything by OTLP to a local port, and what ends it."""
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    base = f"http://127.0.0.1:{port}/v1"
    tracers, loggers = TracerProvider(), LoggerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{base}/metrics"))
    logs = OTLPLogExporter(f"{base}/logs")
    loggers.add_log_record_processor(BatchLogRecordProcessor(logs))
    meters = MeterProvider([reader])

    def close() -> None:
        for provider in (tracers, meters, loggers):
            provider.shutdown()

    return OpenTelemetryObserver(tracers, meters, loggers), close


async def fan(size: int, kind: str, observers: list[OpenTelemetryObserver]) -> tuple[float, float]:
    """Return the wall-clock seconds and this process's processor seconds for a fan of functions."""
    backend = LocalExecutionBackend(kind, resources={"cores": 2})
    async with WorkflowEngine.create(backend, handle_signals=False, observers=observers) as flow:
        wait = flow.function_task(name="wait")(lambda _: time.sleep(0.001))
        await asyncio.gather(*flow.map(wait, range(8)))  # starts the threads or processes
        gc.collect()
        start, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*flow.map(wait, range(size)))
        return time.perf_counter() - start, time.process_time() - used


def main() -> None:
    """Run the measurements and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="check with tiny sizes that it runs")
    options = parser.parse_args()
    size, rounds = (200, 2) if options.smoke else (options.size, options.rounds)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    command = [sys.executable, "-c", RECEIVER]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, fan of {size}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        own, close = sending(int(receiver.stdout.readline()))
        try:
            for kind in ("thread", "process"):
                compare(kind, size, rounds, {"dropped": dropping(), "sent by OTLP": own})
        finally:
            close()
            receiver.kill()


def compare(kind: str, size: int, rounds: int, observers: dict[str, OpenTelemetryObserver]) -> None:
    """Run the fans of one kind in turns, and print the figures."""
    asyncio.run(fan(size, kind, []))  # a warm-up
    plain: list[float] = []
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in observers}
    for _ in range(rounds):
        wall, used = asyncio.run(fan(size, kind, []))
        plain.append(wall)
        for name, observer in observers.items():
            longer, more = asyncio.run(fan(size, kind, [observer]))
            ratios[name].append((longer / wall, (more - used) / size * 1e6))
    alone = statistics.median(plain) / size * 1e6
    print(f"{kind}: {alone:.0f} µs per task without rhapsody-otel")
    for name, each in ratios.items():
        ratio = statistics.median(ratio for ratio, _ in each)
        spent = statistics.median(more for _, more in each)
        print(
            f"  {name:12} ratio {ratio:.3f} (budget {BUDGET}), {min(each)[0]:.2f} to "
            f"{max(each)[0]:.2f}; {spent:+.0f} µs of processor time per task"
        )


if __name__ == "__main__":
    main()
