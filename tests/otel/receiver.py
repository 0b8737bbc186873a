"""Receiver of OTLP over HTTP on the loopback interface, which decodes what arrives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Receiver:
    """Data that has arrived.

    Attributes:
        url: The endpoint.
        traces: The endpoint for traces alone.
        spans: The spans, each with its name, by span id.
        metrics: The names of the metrics.
        logs: The log records.
        services: The names of the services in all resources.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.traces = f"{url}/v1/traces"
        self.spans: dict[bytes, Any] = {}
        self.metrics: set[str] = set()
        self.logs: list[Any] = []
        self.services: set[str] = set()

    def take(self, path: str, body: bytes) -> None:
        request: Any
        if path == "/v1/traces":
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                self._resource(resource.resource)
                for scope in resource.scope_spans:
                    self.spans |= {span.span_id: span for span in scope.spans}
        elif path == "/v1/metrics":
            request = ExportMetricsServiceRequest.FromString(body)
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics |= {metric.name for metric in scope.metrics}
        else:
            assert path == "/v1/logs"
            request = ExportLogsServiceRequest.FromString(body)
            for resource in request.resource_logs:
                for scope in resource.scope_logs:
                    self.logs += scope.log_records

    def _resource(self, resource: Any) -> None:
        self.services |= {
            each.value.string_value for each in resource.attributes if each.key == "service.name"
        }

    def named(self, name: str) -> Any:
        """Return the only span with a name."""
        (span,) = [span for span in self.spans.values() if span.name == name]
        return span


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()
