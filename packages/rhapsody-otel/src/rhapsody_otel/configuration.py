"""Configuration of OpenTelemetry from its environment variables.

OpenTelemetry's SDK reads most variables itself, such as those of samplers, resources, batches and
endpoints. This module selects the exporters and installs the global providers, as
`opentelemetry-instrument` would do. It changes nothing if the program has installed a tracer
provider.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import importlib_metadata
from opentelemetry import _logs, metrics, trace

SIGNALS = ("traces", "metrics", "logs")

QUEUE_SIZE = 65536
"""Number of spans that may wait to be sent, unless `OTEL_BSP_MAX_QUEUE_SIZE` is set. With the SDK's
default of 2048, spans of short tasks would be dropped."""

_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_DISTRIBUTIONS = {
    "otlp_proto_http": "rhapsody-otel[otlp]",
    "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "prometheus": "opentelemetry-exporter-prometheus",
}


def configure() -> bool:
    """Install OpenTelemetry's global providers as its environment variables describe them.

    Called for each new engine of a program in which this plugin is installed. A function that
    creates spans itself, and runs in another process, calls it there. It has no effect if the
    program has already installed a tracer provider, and may be called repeatedly.

    A signal is exported if `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` or `OTEL_LOGS_EXPORTER`
    names an exporter, or by OTLP if `OTEL_EXPORTER_OTLP_ENDPOINT` or the signal's own variable
    (`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) is set. The protocol is `http/protobuf`, unless
    `OTEL_EXPORTER_OTLP_PROTOCOL` is set.

    Returns:
        True if a global tracer provider is installed; False if nothing is configured, or if
        `OTEL_SDK_DISABLED` is `true`.

    Raises:
        ModuleNotFoundError: An exporter is not installed; the message names its distribution.
        ValueError: A variable names an unknown protocol, or an endpoint without `http://`.
    """
    if _variable("OTEL_SDK_DISABLED").lower() == "true":
        return False
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return True
    exporters = {signal: list(_exporters(signal)) for signal in SIGNALS}
    if not any(exporters.values()):
        return False
    _install(exporters)
    return True


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _otlp(signal: str, option: str) -> tuple[str, str]:
    """Return the variable that sets an option of OTLP for a signal, and its value or ""."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{option}"
    variable = own if _variable(own) else f"OTEL_EXPORTER_OTLP_{option}"
    return variable, _variable(variable)


def _exporters(signal: str) -> Iterator[type[Any]]:
    """Yield the classes of the exporters of a signal."""
    endpoint = _otlp(signal, "ENDPOINT")
    names = _variable(f"OTEL_{signal.upper()}_EXPORTER") or ("otlp" if endpoint[1] else "none")
    for name in (each.strip() for each in names.split(",")):
        if name == "otlp":
            variable, protocol = _otlp(signal, "PROTOCOL")
            protocol = protocol or "http/protobuf"
            if protocol not in _PROTOCOLS:
                raise ValueError(
                    f"{variable} must be one of {', '.join(_PROTOCOLS)}, got {protocol!r}"
                )
            variable, url = endpoint
            if url and protocol != "grpc" and not url.lower().startswith(("http://", "https://")):
                raise ValueError(f"{variable} must begin with http:// or https://, got {url!r}")
            name = _PROTOCOLS[protocol]
        if name != "none":
            yield _exporter(name, signal)


def _exporter(name: str, signal: str) -> type[Any]:
    group = f"opentelemetry_{signal}_exporter"
    for point in importlib_metadata.entry_points(group=group, name=name):
        loaded: type[Any] = point.load()
        return loaded
    distribution = _DISTRIBUTIONS.get(name)
    cure = f"run: pip install {distribution!r}" if distribution else "install it"
    raise ModuleNotFoundError(
        f"OpenTelemetry's exporter {name!r} for {signal} is not installed; {cure}"
    )


def _install(exporters: dict[str, list[type[Any]]]) -> None:
    """Create the providers with their exporters, and install them."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "rhapsody"}))
    tracers = TracerProvider(resource=resource)
    size = None if _variable("OTEL_BSP_MAX_QUEUE_SIZE") else QUEUE_SIZE
    for exporter in exporters["traces"]:
        tracers.add_span_processor(BatchSpanProcessor(exporter(), max_queue_size=size))
    trace.set_tracer_provider(tracers)
    if exporters["metrics"]:
        readers = [
            exporter() if issubclass(exporter, MetricReader)
            else PeriodicExportingMetricReader(exporter())
            for exporter in exporters["metrics"]
        ]  # fmt: skip
        metrics.set_meter_provider(MeterProvider(readers, resource=resource))
    if exporters["logs"]:
        loggers = LoggerProvider(resource=resource)
        for exporter in exporters["logs"]:
            loggers.add_log_record_processor(BatchLogRecordProcessor(exporter()))
        _logs.set_logger_provider(loggers)
