"""Log records, with an exporter in memory."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from rhapsody import LocalExecutionBackend, WorkflowEngine
from rhapsody_otel import OpenTelemetryObserver
from rhapsody_otel.logs import SpanLogs
from tests.otel.conftest import Traced


def warn() -> None:
    logging.getLogger("science").warning("too %s", "cold")


async def run(traced: Traced, executor: str) -> list[Any]:
    """Run a function that logs, and return the exported records."""
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    observer = OpenTelemetryObserver(traced.tracers, traced.meters, provider)
    backend = LocalExecutionBackend(executor)
    async with WorkflowEngine.create(backend, observers=[observer]) as flow:
        await flow.function_task(warn)()
        logging.getLogger("science").error("token='XXX'", exc_info=ValueError("password=XXX"))
        logging.getLogger("opentelemetry.sdk").error("an exporter's own")
    logging.getLogger("science").error("after the end")
    provider.shutdown()
    return [each.log_record for each in exporter.get_finished_logs()]


@pytest.mark.asyncio
@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_records_of_functions_belong_to_the_span_of_their_attempt(
    traced: Traced, executor: str
) -> None:
    inside, outside = await run(traced, executor)
    span = traced.named("attempt warn").context
    assert span is not None
    assert (inside.body, inside.severity_text) == ("too cold", "WARNING")
    assert (inside.trace_id, inside.span_id) == (span.trace_id, span.span_id)
    assert inside.severity_number.value == 13
    assert (outside.body, outside.span_id) == ("token='<token>'", 0)
    assert outside.attributes["exception.type"] == "ValueError"
    assert outside.attributes["exception.message"] == "password=<password>"
    assert "XXX" not in outside.attributes["exception.stacktrace"]
    assert not any(isinstance(handler, SpanLogs) for handler in logging.root.handlers)


@pytest.mark.asyncio
async def test_warnings_are_printed_as_without_the_handler(
    traced: Traced, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(sys.stderr))
    await run(traced, "thread")
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in printed if line in ("too cold", "after the end")] == [
        "too cold",
        "after the end",
    ]


@pytest.mark.asyncio
async def test_with_several_engines_records_are_not_assigned_by_uid(traced: Traced) -> None:
    found = await asyncio.gather(run(traced, "process"), run(traced, "process"))
    spans = {
        span.context.span_id
        for span in traced.spans
        if span.name == "attempt warn" and span.context is not None
    }
    for record in (record for records in found for record in records):
        assert record.span_id in {0, *spans}


@pytest.mark.asyncio
async def test_records_are_exported_until_the_last_engine_ends(traced: Traced) -> None:
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    first, second = [
        await WorkflowEngine.create(
            observers=[OpenTelemetryObserver(traced.tracers, traced.meters, provider)]
        )
        for _ in range(2)
    ]
    await first.shutdown()
    logging.getLogger("science").warning("one engine is running")
    await second.shutdown()
    logging.getLogger("science").warning("none is running")
    provider.shutdown()
    bodies = [each.log_record.body for each in exporter.get_finished_logs()]
    assert bodies == ["one engine is running"]
