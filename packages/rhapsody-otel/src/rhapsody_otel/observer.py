"""Observer that reports one engine to OpenTelemetry.

The spans form a tree: the workflow contains blocks and tasks, a block contains the tasks that it
has called, and a task contains its attempts. A task's span has links to the spans of its
dependencies.

Only the span of the workflow is created with `Tracer.start_span`. The other spans are created when
they have ended, as the objects that exporters receive, and passed to the provider's processors.
Their ids are chosen before, because the context of an attempt is sent along with it. There are two
reasons. A span of `start_span` would begin when the attempt is submitted, so it would contain the
time in the backend's queue. And such a span takes three times as long to create. The sampler
decides once, for the whole trace.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry import _logs, metrics, propagate, trace
from opentelemetry.context import Context, get_current
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode

from rhapsody import TaskDescription, TasksMainStates, hookimpl
from rhapsody.plugins import (
    AttemptId,
    NodeSample,
    ObservedEngine,
    Summary,
    TaskCall,
    TaskEvent,
    split_label,
)
from rhapsody_otel._version import __version__
from rhapsody_otel.logs import SpanLogs, described
from rhapsody_otel.metrics import Metrics

SCOPE = InstrumentationScope("rhapsody", __version__)

_RUNNING = TasksMainStates.RUNNING
_COUNTERS = ("tasks", "done", "failed", "cancelled", "recorded", "retried", "lost", "fallbacks")
_ENDED = {TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED}
_ENVIRONMENTS = {
    "container": "container.image.name",
    **{name: f"rhapsody.{name}" for name in ("conda", "venv", "modules")},
}
"""Attributes for the settings that select the software of a task."""
_STATES = {state: state.lower() for state in TasksMainStates}

_active: list[OpenTelemetryObserver] = []
"""The observers of running engines."""


class _Resource(Resource):
    """Resource that computes its hash once. Exporters request it for each span."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


@dataclass(slots=True)
class _Task:
    """Unfinished task or block. A wide fan-out creates many, so it contains few other objects.

    Attributes:
        call: The call.
        parent: The id of the span of the block or workflow.
        span: The id of its span.
        state: The current state, for the number of tasks by state.
        attempt: The id of the span of the current attempt; 0 if there is none.
        submitted: The time at which the current attempt was submitted, in seconds since the epoch.
        began: The time at which it began to run.
    """

    call: TaskCall
    parent: int
    span: int
    state: str = "pending"
    attempt: int = 0
    submitted: float = 0.0
    began: float | None = None


class OpenTelemetryObserver:
    """Observer that reports one engine to OpenTelemetry as spans, metrics and logs.

    The plugin adds such an observer to each engine if OpenTelemetry is configured. Pass one only to
    use providers other than the global ones:

        async with WorkflowEngine.create(observers=[OpenTelemetryObserver(provider)]) as flow:

    Args:
        tracer_provider: The provider of tracers, which must be one of OpenTelemetry's SDK. Default:
            the global one.
        meter_provider: The provider of meters. Default: the global one.
        logger_provider: The provider of loggers. Log records are exported only if it is one of
            OpenTelemetry's SDK. Default: the global one.

    Raises:
        TypeError: The provider of tracers is not one of OpenTelemetry's SDK.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        logger_provider: _logs.LoggerProvider | None = None,
    ) -> None:
        provider = tracer_provider or trace.get_tracer_provider()
        tracer = provider.get_tracer(SCOPE.name, SCOPE.version)
        if not isinstance(tracer, sdk.Tracer):
            raise TypeError(
                "tracer_provider must be an opentelemetry.sdk.trace.TracerProvider, got "
                f"{provider!r}; pass one, or call opentelemetry.trace.set_tracer_provider first"
            )
        self._tracer = tracer
        self._resource = _Resource(tracer.resource)
        self._metrics = Metrics(metrics.get_meter(SCOPE.name, __version__, meter_provider))
        loggers = logger_provider or _logs.get_logger_provider()
        self._handler: logging.Handler | None = None
        if isinstance(loggers, LoggerProvider):
            self._handler = SpanLogs(loggers, self._context_of)
        self._workflow: trace.Span = trace.INVALID_SPAN
        self._parent = trace.INVALID_SPAN_CONTEXT
        self._inherited = Context()
        self._trace = ""
        self._headers: dict[str, str] = {}  # the same for all attempts
        self._tasks: dict[str, _Task] = {}
        # The span ids of all tasks and blocks by number, for links: eight bytes each.
        self._ids = {"task": array("Q"), "block": array("Q")}

    @hookimpl
    def rhapsody_workflow_started(self, engine: ObservedEngine) -> None:
        """Start the span of the workflow, in the current context or that of the environment."""
        inside = trace.get_current_span().get_span_context().is_valid
        self._inherited = get_current() if inside else _from_environment()
        self._workflow = self._tracer.start_span(
            f"workflow {Path(sys.argv[0]).name or 'python'}",
            self._inherited,
            attributes={
                "rhapsody.engine.uid": engine.uid,
                "rhapsody.backends": list(engine.backends),
                "rhapsody.work_dir": str(engine.work_dir),
            },
        )
        self._parent = self._workflow.get_span_context()
        self._trace = f"00-{self._parent.trace_id:032x}-"
        carrier: dict[str, str] = {}
        propagate.inject(carrier, self._with_span(self._parent))
        for name in carrier.keys() & {"tracestate", "baggage"}:
            self._headers[name] = carrier[name]
        _active.append(self)
        if self._handler is not None:
            handlers = logging.root.handlers
            if not any(isinstance(each, SpanLogs) for each in handlers):
                logging.root.addHandler(self._handler)

    @hookimpl
    def rhapsody_task_calls(self, calls: Sequence[TaskCall]) -> None:
        """Choose the ids of the spans of tasks and blocks."""
        for call in calls:
            block = self._tasks.get(call.block) if call.block else None
            span = self._tracer.id_generator.generate_span_id()
            parent = self._parent.span_id if block is None else block.span
            self._tasks[call.uid] = _Task(call, parent, span)
            kind, number = split_label(call.uid)
            ids, position = self._ids[kind], int(number)
            if len(ids) <= position:
                ids.extend([0] * (position + 1 - len(ids)))
            ids[position] = span
        self._metrics.count(Counter(pending=len(calls)))

    @hookimpl
    def rhapsody_trace_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Choose the ids of the spans of attempts, and send their contexts along."""
        now = time.time()
        for task in tasks:
            known = self._tasks.get(AttemptId.of(task["uid"]).task.label)
            if known is None:  # a finished task runs again because its result was lost
                continue
            known.attempt = span = self._tracer.id_generator.generate_span_id()
            known.submitted, known.began = now, None
            header = f"{self._trace}{span:016x}-{self._parent.trace_flags:02x}"
            task["trace_context"] = {"traceparent": header, **self._headers}

    @hookimpl
    def rhapsody_task_events(self, events: Sequence[TaskEvent]) -> None:
        """End the spans of attempts, tasks and blocks, and record their metrics."""
        changes: Counter[str] = Counter()
        for event in events:
            known = self._tasks.get(event.uid)
            if known is None:  # a finished task runs again because its result was lost
                continue
            state = _STATES[event.state]
            changes[known.state] -= 1
            changes[state] += 1
            known.state = state
            if event.state is _RUNNING:
                known.began = event.time
            elif event.state in _ENDED:
                if known.attempt:
                    self._end_attempt(known, known.attempt, event)
                if not event.retried:
                    self._end_task(known, event)
        self._metrics.count(changes)

    @hookimpl
    def rhapsody_node_samples(self, samples: Sequence[NodeSample]) -> None:
        """Record the load of nodes."""
        self._metrics.load(samples)

    @hookimpl
    def rhapsody_workflow_finished(self, summary: Summary) -> None:
        """End the span of the workflow."""
        span, stats = self._workflow, summary.stats
        self._tasks.clear()  # of tasks that could not be stopped
        span.set_attribute("rhapsody.workflow.outcome", summary.outcome)
        for name in _COUNTERS:
            span.set_attribute(f"rhapsody.workflow.{name}", getattr(stats, name))
        if summary.outcome != "done":
            span.set_status(StatusCode.ERROR, f"{summary.outcome}: {stats}")
        span.end()
        if self in _active:
            _active.remove(self)
        if self._handler is not None:
            logging.root.removeHandler(self._handler)
            if _active and _active[0]._handler is not None:  # another engine is still running
                logging.root.addHandler(_active[0]._handler)

    def _span_context(self, span: int) -> SpanContext:
        """Return the context of a span of the workflow, given its id."""
        own = self._parent
        return SpanContext(own.trace_id, span, False, own.trace_flags, own.trace_state)

    def _with_span(self, context: SpanContext) -> Context:
        """Return OpenTelemetry's context with a span, and with what the program has inherited."""
        return trace.set_span_in_context(NonRecordingSpan(context), self._inherited)

    def _end_attempt(self, task: _Task, span: int, event: TaskEvent) -> None:
        task.attempt = 0
        began, ended = event.interval or (task.began, event.time)
        self._metrics.end_attempt(event, began, ended, task.submitted)
        if self._workflow.is_recording():
            attributes = {
                "rhapsody.task.uid": event.uid,
                "rhapsody.attempt.number": event.attempt,
                "rhapsody.backend": event.backend or "",
            }
            if event.worker is not None:
                attributes["rhapsody.worker"] = event.worker
            if event.sandbox is not None:
                attributes["rhapsody.sandbox"] = event.sandbox
            if event.exit_code is not None:
                attributes["process.exit.code"] = event.exit_code
            for name, value in task.call.settings.items():
                if name in _ENVIRONMENTS:
                    attributes[_ENVIRONMENTS[name]] = value
            usage: Mapping[str, Any] = event.usage or {}
            for name, value in usage.items():
                attributes[f"rhapsody.usage.{name}"] = value
            begin = task.submitted if began is None else began
            if (built := usage.get("build_seconds")) is not None:
                self._emit(
                    f"build values {event.name}", self._tracer.id_generator.generate_span_id(),
                    task.span, begin - built, begin, {"rhapsody.task.uid": event.uid}, None,
                    task.call,
                )  # fmt: skip
            self._emit(
                f"attempt {event.name}", span, task.span, begin, ended, attributes,
                event.error, task.call,
            )  # fmt: skip

    def _end_task(self, task: _Task, event: TaskEvent) -> None:
        del self._tasks[event.uid]
        if not self._workflow.is_recording():
            return
        call = task.call
        attributes: dict[str, Any] = {
            "rhapsody.task.uid": call.uid,
            "rhapsody.task.call": call.call,
        }
        if call.scope is not None:
            attributes["rhapsody.scope"] = call.scope
        for name, value in call.resources.items():
            attributes[f"rhapsody.resources.{name}"] = value
        if task.state == "canceled":
            attributes["rhapsody.task.canceled"] = True
        if event.native == "reused":
            attributes["rhapsody.task.reused"] = True
        error = event.error
        if event.native == "fallback":  # only the attempt has failed
            attributes["rhapsody.task.fallback"], error = True, None
        links = [Link(self._span_context(self._id_of(uid))) for uid in call.dependencies]
        name = f"{'block' if call.kind == 'block' else 'task'} {call.name}"
        self._emit(
            name, task.span, task.parent, call.time, event.time, attributes, error, call, links,
        )  # fmt: skip

    def _emit(
        self,
        name: str,
        own: int,
        parent: int,
        begin: float,
        end: float,
        attributes: Mapping[str, Any],
        error: BaseException | None,
        call: TaskCall,
        links: Sequence[Link] = (),
    ) -> None:
        """Pass a span that has ended to the processors; times are in seconds since the epoch."""
        events: Sequence[sdk.Event] = ()
        status, end_time = Status(), int(max(begin, end) * 1e9)
        if error is not None:
            found = described(error, call.masked)
            attributes = {**attributes, "error.type": found["exception.type"]}
            events = (sdk.Event("exception", found, end_time),)
            status = Status(StatusCode.ERROR, found["exception.message"])
        span = sdk.ReadableSpan(
            name, self._span_context(own), self._span_context(parent), self._resource,
            attributes, events, links,
            status=status, start_time=int(begin * 1e9), end_time=end_time,
            instrumentation_scope=SCOPE,
        )  # fmt: skip
        self._tracer.span_processor.on_end(span)

    def _id_of(self, uid: str) -> int:
        """Return the id of the span of a task or block, which may have ended long ago."""
        kind, number = split_label(uid)
        return self._ids[kind][int(number)]

    def _context_of(self, uid: str) -> Context | None:
        """Return the context of a task's current attempt. Called on any thread."""
        task = self._tasks.get(uid)
        if task is None or len(_active) > 1:  # several engines use the same uids
            return None
        return self._with_span(self._span_context(task.attempt or task.span))


def _from_environment() -> Context:
    """Return the context in the environment variables, such as `TRACEPARENT`."""
    names = {name: name.upper().replace("-", "_") for name in propagate.get_global_textmap().fields}
    carrier = {name: os.environ[key] for name, key in names.items() if key in os.environ}
    return propagate.extract(carrier)
