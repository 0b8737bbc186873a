"""Turning functions into tasks: the decorators, their settings, `options`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from typing import Any

import pytest

from rhapsody import Resources, RetryPolicy, TaskSettings, WorkflowEngine
from tests._support.engine_fixtures import engine
from tests._support.scripted import Scripted, outcome, until

pytestmark = pytest.mark.asyncio

KINDS = ["function_task", "executable_task", "block"]
SETTINGS: dict[str, Any] = {
    "name": "mine",
    "backend": "scripted",
    "resources": {"cores": 2},
    "retries": 2,
    "lost_retries": 1,
    "timeout": 1000,
    "cache": False,
    "version": "1",
    "environment": {"A": "b"},
    "stdin": "text",
    "capture": False,
    "ready": "stdout:up",
    "ready_timeout": 5,
    "after": [],
    "implicit_data": False,
    "limit": "license:2",
    "fallback": None,
    "service": False,
}


async def test_a_setting_that_is_passed_as_an_argument_is_explained() -> None:
    async with engine() as flow:

        @flow.function_task
        def work(number: int) -> int:
            return number

        with pytest.raises(TypeError) as caught:
            work(1, after=[])
        assert "work.options(after=...)" in "".join(caught.value.__notes__)
        with pytest.raises(TypeError) as caught:
            work(1, other=[])
        assert not hasattr(caught.value, "__notes__")


def decorate(flow: WorkflowEngine, kind: str, *args: Any, **settings: Any) -> Any:
    return getattr(flow, kind)(*args, **settings)


# Bare, and with arguments.


@pytest.mark.parametrize("kind", KINDS)
async def test_bare(kind: str) -> None:
    async with engine(dry_run=True) as flow:
        task = decorate(flow, kind, lambda: "x")
        assert await task() in ("Dummy Output", "x")


@pytest.mark.parametrize("kind", KINDS)
async def test_with_arguments(kind: str) -> None:
    async with engine(dry_run=True) as flow:
        task = decorate(flow, kind, name="other")(lambda: "x")
        future = task()
        assert future.name == "other"
        assert await future in ("Dummy Output", "x")


@pytest.mark.parametrize("kind", KINDS)
async def test_with_empty_parentheses(kind: str) -> None:
    async with engine(dry_run=True) as flow:
        task = decorate(flow, kind)(lambda: "x")
        assert await task() in ("Dummy Output", "x")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_function_and_settings_may_be_given_together(kind: str) -> None:
    async with engine(dry_run=True) as flow:
        assert decorate(flow, kind, lambda: "x", name="other")().name == "other"


async def test_every_setting_of_the_contract_is_accepted() -> None:
    async with engine(Scripted()) as flow:
        for kind in ("function_task", "executable_task"):
            decorate(flow, kind, **SETTINGS)(lambda: "x")
            for name, value in SETTINGS.items():
                decorate(flow, kind, **{name: value})(lambda: "x")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("service", [1, 0, "yes", None, "", [True]])
async def test_service_takes_nothing_but_a_bool(kind: str, service: Any) -> None:
    async with engine() as flow:
        with pytest.raises(TypeError, match="service") as caught:
            decorate(flow, kind, service=service)(lambda: "x")
        assert repr(service) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thing", [42, "echo hello", None, {"a": 1}, ["ls"]])
async def test_what_is_not_callable_is_a_type_error(kind: str, thing: Any) -> None:
    async with engine() as flow:
        with pytest.raises(TypeError, match=r"callable|function") as caught:
            decorate(flow, kind, thing)
        assert repr(thing) in str(caught.value)
        with pytest.raises(TypeError):
            decorate(flow, kind, name="x")(thing)


@pytest.mark.parametrize("kind", ["function_task", "executable_task"])
async def test_an_unknown_setting_leads_to_the_closest_one(kind: str) -> None:
    async with engine() as flow:
        with pytest.raises(TypeError, match=r"retires.*retries"):
            decorate(flow, kind, retires=2)(lambda: "x")


async def test_the_settings_that_there_are_are_those_that_type_checkers_know() -> None:
    async with engine() as flow:
        with pytest.raises(TypeError) as told:
            decorate(flow, "function_task", nothing_of_ours=2)(lambda: "x")
    listed = str(told.value).partition("valid settings: ")[2]
    assert set(listed.split(", ")) == TaskSettings.__annotations__.keys()


@pytest.mark.parametrize("setting", ["retries", "timeout", "backend", "retires"])
async def test_a_block_has_no_settings_for_work_it_does_not_do(setting: str) -> None:
    async with engine() as flow:
        with pytest.raises(TypeError, match=f"block.*{setting}"):
            decorate(flow, "block", **{setting: 2})(lambda: "x")
        with pytest.raises(TypeError, match="service"):
            decorate(flow, "block", service=True)(lambda: "x")


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("name", 3, TypeError),
        ("backend", 3, TypeError),
        ("resources", "two cores", TypeError),
        ("resources", {"coers": 2}, TypeError),
        ("resources", {"cores": -1}, ValueError),
        ("retries", -1, ValueError),
        ("retries", "two", TypeError),
        ("retries", 1.5, TypeError),
        ("retries", True, TypeError),
        ("lost_retries", -1, ValueError),
        ("timeout", 0, ValueError),
        ("timeout", -2.5, ValueError),
        ("timeout", math.nan, ValueError),
        ("timeout", [10], TypeError),
        ("timeout", True, TypeError),
        ("cache", "no", TypeError),
        ("version", 1.0, TypeError),
        ("environment", ["A=b"], TypeError),
        ("environment", {"A": 1}, TypeError),
        ("environment", {"A": "b\0"}, ValueError),
        ("stdin", b"bytes", TypeError),
        ("capture", "file", ValueError),
        ("capture", 3, TypeError),
        ("ready", "listening", ValueError),
        ("ready", "stdout:(", ValueError),
        ("ready", "tcp:http", ValueError),
        ("ready", "tcp:", ValueError),
        ("ready", "tcp:70000", ValueError),
        ("ready", 8080, TypeError),
        ("ready_timeout", 0, ValueError),
        ("ready_timeout", "long", ValueError),
        ("after", [1], TypeError),
        ("implicit_data", "no", TypeError),
        ("limit", "license", ValueError),
        ("limit", "license:0", ValueError),
        ("limit", "license:two", ValueError),
        ("limit", 2, TypeError),
        ("task_description", "nodes=2", TypeError),
    ],
)
async def test_a_wrong_setting_is_an_error_where_it_is_written(
    name: str, value: Any, kind: type[Exception]
) -> None:
    async with engine() as flow:

        @flow.function_task
        async def task() -> None: ...

        for write in (flow.function_task, flow.executable_task, task.options):
            with pytest.raises((TypeError, ValueError)) as caught:
                write(**{name: value})(lambda: "x")
            if name not in ("capture", "limit"):  # a wrong value or a wrong type: both are fair
                assert isinstance(caught.value, kind)
            assert name in str(caught.value)


@pytest.mark.parametrize(
    "value", [{"A": "s3cr3t\0"}, {"A=s3cr3t": ""}, {"A": b"s3cr3t"}, ["s3cr3t"]]
)
async def test_no_value_of_a_wrong_environment_is_shown(value: Any) -> None:
    async with engine() as flow:
        with pytest.raises((TypeError, ValueError)) as caught:
            flow.function_task(environment=value)(abs)
        assert "s3cr3t" not in str(caught.value)


async def test_an_unknown_backend_is_an_error_that_names_those_there_are() -> None:
    async with engine([Scripted("slow"), Scripted("fast")]) as flow:  # type: ignore[arg-type]

        async def run() -> None:
            @flow.function_task(backend="fsat")
            async def task() -> None: ...

            await task()

        error = await outcome(run())
        assert isinstance(error, ValueError)
        assert "fsat" in str(error)
        assert "fast" in str(error)
        assert "slow" in str(error)


# What the backend gets of the settings.


async def test_the_backend_gets_the_settings_that_concern_it() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task(
            name="mine",
            resources={"cores": 2, "memory": "1 GiB"},
            timeout=1000,
            environment={"A": "b"},
        )
        async def job() -> Any: ...

        job()
        task = await backend.given("mine")
        assert task["resources"] == Resources(cores=2, memory=2**30)
        assert task["timeout"] == 1000
        assert task["environment"] == {"A": "b"}
        assert task["is_service"] is False
        assert task["executable"] is None
        assert task["task_backend_specific_kwargs"] == {}


async def test_a_retry_policy_is_a_setting() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=1, on=OSError))
        async def job() -> Any: ...

        future = job()
        backend.failed(await backend.given("job"), OSError("again"))
        backend.failed(await backend.given("job", attempt=2), OSError("still"))
        assert "still" in str(await outcome(future))


async def test_after_is_a_setting_of_the_definition_too() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def before() -> Any: ...

        first = before()

        @flow.function_task(after=[first])
        async def later() -> Any: ...

        second = later()
        task = await backend.given("before")
        assert backend.names() == ["before"]
        backend.done(task)
        backend.done(await backend.given("later"), "end")
        assert await second == "end"


# options.


async def test_options_are_for_one_call_and_leave_the_task_as_it_was() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task(timeout=100)
        async def job(x: int) -> Any: ...

        special = job.options(name="special", timeout=7, resources={"cores": 2})
        assert special(1).name == "special"
        assert job(2).name == "job"
        task, plain = await backend.given("special"), await backend.given("job")
        assert (task["timeout"], plain["timeout"]) == (7, 100)
        assert "resources" not in plain
        assert task["args"] == (1,)


async def test_options_can_be_laid_over_options() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def job() -> Any: ...

        assert job.options(name="a", timeout=5).options(name="b")().name == "b"
        assert (await backend.given("b"))["timeout"] == 5


async def test_options_refuse_what_they_do_not_know() -> None:
    async with engine() as flow:

        @flow.function_task
        async def job() -> None: ...

        with pytest.raises(TypeError, match=r"retires.*retries"):
            job.options(retires=2)  # type: ignore[call-arg]


async def test_options_keep_name_doc_and_signature() -> None:
    async with engine() as flow:

        @flow.function_task
        async def job(x: int) -> None:
            """Does it."""

        special = job.options(retries=2)
        assert special.__name__ == "job"
        assert special.__doc__ == "Does it."
        assert inspect.signature(special) == inspect.signature(job)


async def test_the_settings_of_a_call_are_the_functions_own_parameters() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        def job(retries: int, *, name: str, timeout: str, backend: Any = None) -> Any: ...

        future = job(retries=3, name="x", timeout="soon", backend=1)
        task = await backend.given("job")
        assert task["kwargs"] == {"retries": 3, "name": "x", "timeout": "soon", "backend": 1}
        assert future.name == "job"
        assert "timeout" not in task


# task_description.


async def test_backend_settings_of_a_call_are_laid_over_those_of_the_definition() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def job(x: int, task_description: Any = {"ranks": 2, "queue": "a"}) -> Any: ...  # noqa: B006

        job(1)
        job(2, task_description={"queue": "b", "more": True})
        await until(lambda: len(backend.tasks) == 2)
        first, second = backend.tasks
        assert first["task_backend_specific_kwargs"] == {"ranks": 2, "queue": "a"}
        assert second["task_backend_specific_kwargs"] == {"ranks": 2, "queue": "b", "more": True}
        assert "task_description" not in second["kwargs"]
        assert second["args"] == (2,)


async def test_a_function_without_the_parameter_takes_them_at_the_call_too() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def function() -> Any: ...

        @flow.executable_task
        def executable() -> str:
            return "true"

        function(task_description={"ranks": 2})
        executable(task_description={"ranks": 3})
        assert (await backend.given("function"))["task_backend_specific_kwargs"] == {"ranks": 2}
        assert (await backend.given("executable"))["task_backend_specific_kwargs"] == {"ranks": 3}


async def test_the_parameter_keeps_its_default_inside_the_body() -> None:
    seen = []
    async with engine(Scripted()) as flow:

        @flow.executable_task
        def command(task_description: Any = {"ranks": 2}) -> str:  # noqa: B006
            seen.append(task_description)
            return "true"

        command(task_description={"ranks": 5})
        command()
        await asyncio.sleep(0)
        assert isinstance(flow.backend, Scripted)
        await until(lambda: len(seen) == 2)
    assert seen == [{"ranks": 2}, {"ranks": 2}]


async def test_one_calls_settings_do_not_leak_into_the_next() -> None:
    backend = Scripted()
    given = {"ranks": 5}
    async with engine(backend) as flow:

        @flow.function_task
        async def job(task_description: Any = {"queue": "a"}) -> Any: ...  # noqa: B006

        job(task_description=given)
        (await backend.given("job"))["task_backend_specific_kwargs"]["mine"] = True
        job()
        await until(lambda: len(backend.tasks) == 2)
        assert backend.tasks[1]["task_backend_specific_kwargs"] == {"queue": "a"}
        assert given == {"ranks": 5}


@pytest.mark.parametrize("wrong", ["ranks=2", 5, [("ranks", 2)], ("a",), None])
async def test_backend_settings_that_are_no_dict_are_a_type_error(wrong: Any) -> None:
    async with engine() as flow:

        def job(task_description: Any = wrong) -> str:
            return "true"

        for kind in ("function_task", "executable_task"):
            with pytest.raises(TypeError, match="task_description must be a dict"):
                decorate(flow, kind, job)
            task = decorate(flow, kind, lambda: "true")
            with pytest.raises(TypeError, match="task_description must be a dict"):
                task(task_description=wrong)


# Name, docstring, signature.


@pytest.mark.parametrize("kind", KINDS)
async def test_the_decorated_function_keeps_name_docstring_and_signature(kind: str) -> None:
    async def original(left: int, /, right: str = "x", *rest: int, key: bool, **more: Any) -> str:
        """Says what it does."""
        return "x"

    async with engine() as flow:
        for task in (decorate(flow, kind, original), decorate(flow, kind, name="n")(original)):
            assert task.__name__ == "original"
            assert task.__qualname__ == original.__qualname__
            assert task.__doc__ == "Says what it does."
            assert task.__module__ == __name__
            assert task.__wrapped__ is original
            assert inspect.signature(task) == inspect.signature(original)
            assert callable(task)


async def test_a_callable_without_a_name_can_be_decorated() -> None:
    class Called:
        async def __call__(self, x: int) -> int:
            return x

    def add(left: int, right: int) -> int:
        return left + right

    async with engine(dry_run=True) as flow:
        for function in (functools.partial(add, 1), Called(), functools.partial(Called())):
            future = flow.function_task(function)(2)
            assert isinstance(future.name, str)
            assert future.name
            assert await future == "Dummy Output"
        assert flow.function_task(functools.partial(add, 1))(2).name == "add"
