"""Programs that are configured by environment variables, or install a provider themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.otel.receiver import receiving

PROGRAM = """
import logging
from opentelemetry import trace
from rhapsody_otel import configure

def simulate(x):
    configure()
    with trace.get_tracer("science").start_as_current_span("inner"):
        logging.getLogger("science").warning("simulating")
    trace.get_tracer_provider().force_flush()
    return x

async def main(flow):
    print(await flow.function_task(simulate)(1))
    print(await flow.executable_task(name="show")(lambda: ["printenv", "TRACEPARENT"])())
"""

INSTALLS = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from rhapsody import WorkflowEngine

provider = TracerProvider()
exporter = ConsoleSpanExporter(formatter=lambda span: f"{span.name}\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

async def main():
    async with WorkflowEngine.create() as flow:
        await flow.function_task(name="f")(lambda: None)()

asyncio.run(main())
"""


UNTRACED = """
import asyncio, sys
from rhapsody import WorkflowEngine

async def main():
    async with WorkflowEngine.create() as flow:
        print(await flow.executable_task(lambda: "echo trace:${TRACEPARENT:-}")())

asyncio.run(main())
print("opentelemetry.sdk.trace.export" in sys.modules)
"""


def run(
    folder: Path, *command: str, program: str = PROGRAM, **variables: str
) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


RHAPSODY = ("-m", "rhapsody", "run", "-q", "-b", "local", "-o", "executor=process", "program.py")


def test_traces_metrics_and_logs_of_a_run_arrive_by_otlp(tmp_path: Path) -> None:
    with receiving() as received:
        done = run(tmp_path, *RHAPSODY, OTEL_EXPORTER_OTLP_ENDPOINT=received.url)
    attempt, inner = received.named("attempt simulate"), received.named("inner")
    assert inner.parent_span_id == attempt.span_id
    assert attempt.parent_span_id == received.named("task simulate").span_id
    assert {span.trace_id for span in received.spans.values()} == {attempt.trace_id}
    assert received.named("attempt show").span_id.hex() in done.stdout
    assert received.services == {"rhapsody"}
    assert {"rhapsody.task.count", "rhapsody.attempt.duration"} <= received.metrics
    (record,) = [each for each in received.logs if each.body.string_value == "simulating"]
    assert record.trace_id == attempt.trace_id
    assert record.span_id == attempt.span_id


def test_all_spans_of_a_wide_fan_of_short_tasks_arrive(tmp_path: Path) -> None:
    text = (
        "import asyncio\n"
        "async def main(flow):\n"
        "    await asyncio.gather(*flow.map(flow.function_task(abs), range(3000)))\n"
    )
    with receiving() as received:
        run(tmp_path, *RHAPSODY, program=text, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=received.traces)
    assert len(received.spans) == 2 * 3000 + 1


def test_standard_variables_select_the_signals_and_the_service(tmp_path: Path) -> None:
    with receiving() as received:
        run(
            tmp_path,
            *RHAPSODY,
            OTEL_EXPORTER_OTLP_ENDPOINT=received.url,
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
            OTEL_SERVICE_NAME="study",
        )
    assert received.services == {"study"}
    assert received.spans
    assert (received.metrics, received.logs) == (set(), [])


def test_a_provider_of_the_program_is_used(tmp_path: Path) -> None:
    done = run(tmp_path, "program.py", program=INSTALLS)
    assert done.stdout.splitlines() == ["attempt f", "task f", "workflow program.py"]


@pytest.mark.parametrize(
    "variables",
    [{}, {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"}],
    ids=["none", "disabled"],
)
def test_nothing_is_traced_unless_it_is_configured(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    done = run(tmp_path, "program.py", program=UNTRACED, **variables)
    assert done.stdout == "trace:\n\nFalse\n"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "nowhere"}, "'nowhere' for traces is not installed"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL must be one of grpc, http/protobuf, got 'http/json'",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT must begin with http:// or https://, got '127.0.0.1:4318'",
        ),
        (
            {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "collector/v1/logs"},
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT must begin with http:// or https://, got 'collector/",
        ),
    ],
    ids=["exporter", "protocol", "endpoint", "endpoint-of-logs"],
)
def test_a_mistake_is_reported_and_the_workflow_runs(
    tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    text = "async def main(flow):\n    print(await flow.function_task(pow)(2, 3))\n"
    done = run(tmp_path, *RHAPSODY, program=text, **variables)
    assert done.stdout == "8\n"
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
