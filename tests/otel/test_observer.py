"""Spans of workflows, blocks, tasks and attempts, with exporters in memory."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import ProxyTracerProvider, StatusCode

from rhapsody import LocalExecutionBackend, WorkflowEngine, current_task
from rhapsody.backends import BaseExecutionBackend
from rhapsody_otel import OpenTelemetryObserver
from tests.otel.conftest import Traced

PARENT = "00-11111111111111111111111111111111-2222222222222222-01"


def current_span() -> tuple[int, int]:
    context = trace.get_current_span().get_span_context()
    return context.trace_id, context.span_id


async def current_span_of_a_coroutine() -> tuple[int, int]:
    await asyncio.sleep(0)
    return current_span()


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


@pytest.mark.asyncio
async def test_building_worker_values_has_a_separate_span(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        model = flow.worker_value(lambda: 3)
        use = flow.function_task(name="use")(lambda net: net)
        assert await use(model()) == 3
    assert traced.children(traced.named("task use")) == ["attempt use", "build values use"]
    build, attempt = traced.named("build values use"), traced.named("attempt use")
    assert build.end_time == attempt.start_time
    assert attempt.attributes is not None
    assert "rhapsody.usage.build_seconds" in attempt.attributes


@pytest.mark.asyncio
async def test_the_spans_form_a_tree_of_workflow_blocks_tasks_and_attempts(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        double = flow.function_task(name="double")(lambda x: 2 * x)

        @flow.block
        async def phase(x: int) -> int:
            inner: int = await double.options(name="inner")(x)
            return inner

        assert await phase(await double(1)) == 4
    (workflow,) = [span for span in traced.spans if span.parent is None]
    assert traced.children(workflow) == ["block phase", "task double"]
    assert traced.children(traced.named("block phase")) == ["task inner"]
    assert traced.children(traced.named("task inner")) == ["attempt inner"]
    assert traced.children(traced.named("attempt inner")) == []
    assert workflow.attributes is not None
    assert workflow.attributes["rhapsody.workflow.outcome"] == "done"
    assert workflow.attributes["rhapsody.workflow.tasks"] == 3
    assert {span.status.status_code for span in traced.spans} == {StatusCode.UNSET}


@pytest.mark.asyncio
async def test_the_span_of_an_attempt_covers_the_run_of_its_function(traced: Traced) -> None:
    backend = LocalExecutionBackend(resources={"cores": 1})
    async with WorkflowEngine.create(backend, observers=[traced.observer()]) as flow:
        task = flow.function_task(name="f", resources={"cores": 1})(lambda *_: None)
        first = task.options(name="first")()
        await task.options(name="second")(first)
    first_task, first_attempt = traced.named("task first"), traced.named("attempt first")
    second = traced.named("attempt second")
    times = [first_task.start_time, first_attempt.start_time, first_attempt.end_time]
    assert times == sorted(times, key=lambda time: time or 0)
    assert (first_attempt.end_time or 0) <= (second.start_time or 0)


@pytest.mark.asyncio
async def test_tasks_have_links_to_the_tasks_on_which_they_depend(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        add = flow.function_task(name="add")(lambda *_: None)
        first, second = add.options(name="first")(1), add.options(name="second")(2)
        await first  # a link also leads to a task that ended long before the call
        await add.options(name="third")(first, [second])
    found = {link.context.span_id for link in traced.named("task third").links}
    assert found == {ids(traced.named(f"task {name}"))[1] for name in ("first", "second")}
    assert traced.named("task first").links == ()


@pytest.mark.asyncio
async def test_each_attempt_has_a_span_with_its_exception(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:

        @flow.function_task(retries=1)
        def fails() -> None:
            if current_task().attempt == 1:
                raise KeyError("not yet")

        await fails()
    first, second = sorted(
        (span for span in traced.spans if span.name == "attempt fails"),
        key=lambda span: span.start_time or 0,
    )
    assert first.status.status_code is StatusCode.ERROR
    assert first.attributes is not None
    assert first.attributes["error.type"] == "KeyError"
    (event,) = first.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert "in fails" in str(event.attributes["exception.stacktrace"])
    assert second.status.status_code is StatusCode.UNSET
    assert traced.named("task fails").status.status_code is StatusCode.UNSET


@pytest.mark.asyncio
async def test_attempts_name_the_environment_in_which_they_ran(
    traced: Traced, tmp_path: Path
) -> None:
    (tmp_path / "conda-meta").mkdir()
    (tmp_path / "image").mkdir()
    environments: dict[str, dict[str, Any]] = {
        "virtual": {"venv": str(Path(sys.executable).parent.parent)},
        "conda": {"conda": str(tmp_path)},
        "contained": {"container": str(tmp_path / "image"), "modules": ["missing/1"]},
        "plain": {"priority": 1},
    }
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        for name, settings in environments.items():
            task = flow.executable_task(name=name, **settings)(lambda: "true")
            await asyncio.gather(task(), return_exceptions=True)  # there are no such modules
    found = {
        name: {
            key: value
            for key, value in (traced.named(f"attempt {name}").attributes or {}).items()
            if key.startswith("container.")
            or key in ("rhapsody.conda", "rhapsody.venv", "rhapsody.modules")
        }
        for name in environments
    }
    assert found == {
        "virtual": {"rhapsody.venv": environments["virtual"]["venv"]},
        "conda": {"rhapsody.conda": str(tmp_path)},
        "contained": {
            "container.image.name": str(tmp_path / "image"),
            "rhapsody.modules": ["missing/1"],
        },
        "plain": {},
    }


@pytest.mark.asyncio
async def test_a_skipped_task_has_a_span_without_attempts(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:

        @flow.function_task
        def fails() -> None:
            raise ValueError("no")

        after = flow.function_task(name="after")(lambda _: None)
        with pytest.raises(Exception, match="no"):
            await after(fails())
    skipped = traced.named("task after")
    assert traced.children(skipped) == []
    assert skipped.attributes is not None
    assert skipped.attributes["error.type"] == "rhapsody.errors.DependencyFailureError"


@pytest.mark.asyncio
async def test_secrets_are_not_in_spans(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:

        @flow.executable_task(environment={"API_TOKEN": "correct-horse"})
        def show() -> str:
            return "echo $API_TOKEN >&2; exit 3"

        with pytest.raises(Exception, match="3"):
            await show()
    attempt = traced.named("attempt show")
    assert attempt.attributes is not None
    assert attempt.attributes["process.exit.code"] == 3
    assert "correct-horse" not in "".join(span.to_json() for span in traced.spans)


@pytest.mark.asyncio
@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_functions_run_in_the_context_of_their_attempt(traced: Traced, executor: str) -> None:
    backend = LocalExecutionBackend(executor)
    async with WorkflowEngine.create(backend, observers=[traced.observer()]) as flow:
        seen = {
            "attempt sync": await flow.function_task(name="sync")(current_span)(),
            "attempt coroutine": await flow.function_task(name="coroutine")(
                current_span_of_a_coroutine
            )(),
            "attempt shared": await flow.function_task(name="shared", resources={"cores": 0})(
                current_span_of_a_coroutine
            )(),
        }
    assert seen == {name: ids(traced.named(name)) for name in seen}
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.asyncio
async def test_executables_receive_the_context_in_the_environment(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        show = flow.executable_task(name="show")(lambda: ["printenv", "TRACEPARENT"])
        output = await show()
        own = flow.executable_task(name="own", environment={"TRACEPARENT": PARENT})
        assert await own(lambda: ["printenv", "TRACEPARENT"])() == f"{PARENT}\n"
    trace_id, span_id = ids(traced.named("attempt show"))
    assert output.startswith(f"00-{trace_id:032x}-{span_id:016x}-")


@pytest.mark.asyncio
async def test_the_script_that_repeats_a_failed_command_is_not_traced(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        failing = flow.executable_task(name="fails", environment={"MODE": "x"})(lambda: "exit 3")()
        with pytest.raises(Exception, match="3"):
            await failing
    script = await asyncio.to_thread(Path(str(failing.sandbox), ".rhapsody.again").read_text)
    assert "MODE" in script
    assert "TRACEPARENT" not in script


@pytest.mark.asyncio
async def test_functions_and_executables_on_dask_run_in_the_context_of_their_attempt(
    traced: Traced,
) -> None:
    dask = pytest.importorskip("rhapsody_dask", reason="rhapsody-dask is not installed")
    backend: BaseExecutionBackend = dask.DaskExecutionBackend({"n_workers": 1, "threads": 1})
    async with WorkflowEngine.create(backend, observers=[traced.observer()]) as flow:
        many = flow.function_task(name="many")(lambda _: current_span())
        found = await asyncio.gather(*flow.map(many, range(50)))  # short calls are grouped
        output = await flow.executable_task(name="show")(lambda: ["printenv", "TRACEPARENT"])()
    assert set(found) == {ids(span) for span in traced.spans if span.name == "attempt many"}
    assert f"-{ids(traced.named('attempt show'))[1]:016x}-" in output


@pytest.mark.asyncio
async def test_the_workflow_is_below_the_span_of_the_program(traced: Traced) -> None:
    tracer = traced.tracers.get_tracer("program")
    with tracer.start_as_current_span("study") as study:
        async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
            await flow.function_task(name="f")(lambda: None)()
    (name,) = traced.children(traced.named("study"))
    assert name.startswith("workflow ")
    assert ids(traced.named("attempt f"))[0] == study.get_span_context().trace_id


@pytest.mark.asyncio
async def test_the_workflow_is_below_the_span_in_the_environment(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", PARENT)
    monkeypatch.setenv("BAGGAGE", "user=ada")
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        show = flow.executable_task(name="show")(lambda: "echo $TRACEPARENT $BAGGAGE")
        output = await show()
    assert output.startswith(f"00-{'1' * 32}-")
    assert output.endswith("user=ada\n")
    (workflow,) = [span for span in traced.spans if span.name.startswith("workflow")]
    assert workflow.parent is not None
    assert f"{workflow.parent.span_id:x}" == "2" * 16


@pytest.mark.asyncio
async def test_results_are_reused_although_their_trace_differs(
    traced: Traced, tmp_path: Path
) -> None:
    async def run() -> str:
        journal = tmp_path / "journal"
        async with WorkflowEngine.create(
            journal=journal, resume=True, observers=[traced.observer()]
        ) as flow:
            return await flow.executable_task(name="show")(lambda: "echo $TRACEPARENT")()

    assert await run() == await run()
    attributes = [span.attributes or {} for span in traced.spans if span.name == "task show"]
    assert [each.get("rhapsody.task.reused") for each in attributes] == [None, True]
    assert len([span for span in traced.spans if span.name == "attempt show"]) == 1


@pytest.mark.asyncio
async def test_traces_that_are_not_sampled_are_passed_on_as_such(traced: Traced) -> None:
    traced.tracers.sampler = ALWAYS_OFF
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        header = await flow.executable_task(name="show")(lambda: "echo $TRACEPARENT")()
    assert int(header.strip().rpartition("-")[2], 16) & 1 == 0
    assert traced.spans == ()


@pytest.mark.asyncio
async def test_finished_tasks_leave_no_spans_in_memory(traced: Traced) -> None:
    traced.tracers.shutdown()
    observer = OpenTelemetryObserver(TracerProvider(), traced.meters)
    async with WorkflowEngine.create(observers=[observer]) as flow:
        task = flow.function_task(lambda x: x)
        await asyncio.gather(*flow.map(task, range(300)))
        gc.collect()
        left = sum(isinstance(each, ReadableSpan) for each in gc.get_objects())
    assert left < 50


def test_a_provider_that_is_not_of_the_sdk_is_refused() -> None:
    with pytest.raises(TypeError, match="set_tracer_provider first"):
        OpenTelemetryObserver(ProxyTracerProvider())


@pytest.mark.asyncio
async def test_a_failure_that_the_fallback_replaced_fails_the_attempt_only(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        assert await flow.function_task(name="fit", fallback=0)(int)("x") == 0
    task, attempt = traced.named("task fit"), traced.named("attempt fit")
    assert (task.attributes or {})["rhapsody.task.fallback"] is True
    assert (task.status.status_code, attempt.status.status_code) == (
        StatusCode.UNSET,
        StatusCode.ERROR,
    )
