"""Making an engine, in all the forms there are."""

# ruff: noqa: ASYNC240 - looking at a file takes no time here

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from rhapsody import BackendRegistry, NoopExecutionBackend, TaskTimeoutError, WorkflowEngine
from rhapsody.backends.base import ManagedBackend
from rhapsody_testing import EventRecorder
from tests._support.engine_fixtures import LIMIT, Machine, create, engine
from tests._support.scripted import ManualClock, Scripted, until, within

pytestmark = pytest.mark.asyncio


class Fragile(ManagedBackend):
    """Fails to start."""

    name = "fragile"

    async def start(self) -> None:
        raise ConnectionError("no such scheduler")


class Hanging(ManagedBackend):
    """Never gets to the end of its start."""

    name = "hanging"

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Event()
        self.stopped = False

    async def start(self) -> None:
        self.entered.set()
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.stopped = True


class AsyncState(Scripted):
    """Backend with an asynchronous `state`, as in existing programs."""

    async def state(self) -> Any:  # type: ignore[override]
        return super().state()


# The forms of create.


async def test_create_is_awaited() -> None:
    flow = await create(NoopExecutionBackend())
    assert isinstance(flow, WorkflowEngine)
    assert flow.loop is asyncio.get_running_loop()
    await flow.shutdown()


async def test_create_is_entered_and_shuts_down_at_the_end() -> None:
    backend = NoopExecutionBackend()
    async with create(backend) as flow:
        assert backend.state() == "running"
        assert flow.summary is None
    assert backend.state() == "shutdown"
    assert flow.summary is not None


async def test_an_engine_that_was_awaited_can_be_entered_too() -> None:
    backend = NoopExecutionBackend()
    async with await create(backend) as flow:
        assert isinstance(flow, WorkflowEngine)
    assert backend.state() == "shutdown"


async def test_create_returns_a_real_coroutine() -> None:
    starting = create(NoopExecutionBackend())
    assert asyncio.iscoroutine(starting)
    flow = await asyncio.create_task(starting)
    await flow.shutdown()


async def test_a_task_group_takes_create() -> None:
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(create(NoopExecutionBackend()))
    await starting.result().shutdown()


async def test_asyncio_run_takes_create() -> None:
    def elsewhere() -> WorkflowEngine:
        return asyncio.run(create(NoopExecutionBackend()))

    async with asyncio.timeout(LIMIT):
        assert isinstance(await asyncio.to_thread(elsewhere), WorkflowEngine)


async def test_asyncio_run_takes_a_main_that_enters_create() -> None:
    async def main() -> str:
        async with create(NoopExecutionBackend()) as flow:

            @flow.function_task
            async def one() -> str:
                return "1"

            return await one()

    async with asyncio.timeout(LIMIT):
        assert await asyncio.to_thread(asyncio.run, main()) == "Dummy Output"


async def test_an_error_inside_the_context_is_not_swallowed() -> None:
    backend = NoopExecutionBackend()
    with pytest.raises(KeyError, match="mine"):
        async with create(backend):
            raise KeyError("mine")
    assert backend.state() == "shutdown"


async def test_outside_a_running_loop_the_error_says_how_to_make_one() -> None:
    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match=r"await WorkflowEngine\.create\(.*asyncio\.run"):
            WorkflowEngine()
        starting = create(NoopExecutionBackend())
        with pytest.raises(RuntimeError, match=r"await WorkflowEngine\.create\(.*asyncio\.run"):
            starting.send(None)

    await asyncio.to_thread(elsewhere)


# The backend.


async def test_without_a_backend_it_is_the_embedded_local_one() -> None:
    from rhapsody.backends.local import LocalExecutionBackend

    async with create() as flow:
        assert isinstance(flow.backend, LocalExecutionBackend)

        @flow.function_task
        async def double(x: int) -> int:
            return 2 * x

        async with asyncio.timeout(LIMIT):
            assert await double(double(1)) == 4


async def test_a_backend_that_was_not_started_is_started() -> None:
    backend = Scripted()
    assert backend.state() == "initialized"
    async with create(backend) as flow:
        assert backend.state() == "running"
        assert flow.backend is backend


async def test_a_backend_that_was_started_is_taken_as_it_is() -> None:
    backend = await Scripted()
    async with create(backend) as flow:
        assert flow.backend is backend


async def test_a_backend_may_be_named() -> None:
    async with create("noop") as flow:
        assert isinstance(flow.backend, NoopExecutionBackend)
    async with create("NoOp") as flow:
        assert isinstance(flow.backend, NoopExecutionBackend)


async def test_an_unknown_name_leads_to_the_closest_one() -> None:
    with pytest.raises(ValueError, match=r"nop.*noop"):
        await create("nop")


@pytest.mark.parametrize("wrong", [42, object(), {"threads": 4}, len, [42], b"noop"])
async def test_a_backend_of_a_wrong_type_is_a_type_error_that_names_it(wrong: Any) -> None:
    shown = wrong[0] if isinstance(wrong, list) else wrong
    with pytest.raises(TypeError) as caught:
        await create(wrong)
    assert "backend" in str(caught.value)
    assert repr(shown) in str(caught.value) or type(shown).__name__ in str(caught.value)


async def test_a_class_instead_of_an_object_leads_to_a_hint() -> None:
    with pytest.raises(TypeError, match=r"NoopExecutionBackend\("):
        await create(NoopExecutionBackend)


async def test_the_first_of_a_list_is_the_default() -> None:
    first, second = Scripted("first"), Scripted("second")
    async with create([first, second]) as flow:
        assert flow.backend is first
        assert list(flow.backends) == ["first", "second"]
        assert flow.backends["second"] is second


async def test_a_list_may_mix_objects_and_names() -> None:
    async with create([Scripted("mine"), "noop"]) as flow:
        assert list(flow.backends) == ["mine", "noop"]


async def test_timeouts_and_times_are_on_the_clock_of_the_backend() -> None:
    backend, recorder = Scripted(), EventRecorder()
    backend.clock = clock = ManualClock()
    async with create(backend, observers=[recorder]) as flow:
        assert flow.clock is clock
        future = flow.function_task(timeout=60)(lambda: None)()
        backend.runs(await backend.next())
        await clock.advance(60)
        with pytest.raises(TaskTimeoutError):
            await within(future)
    assert recorder.events[-1].time - recorder.events[0].time == 60
    assert flow.summary is not None
    assert flow.summary.seconds == 60


async def test_a_clock_that_is_passed_to_the_engine_comes_first() -> None:
    backend, clock = Scripted(), ManualClock()
    backend.clock = ManualClock()
    async with create(backend, clock=clock) as flow:
        assert flow.clock is clock


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize("own", ["", "another"])
async def test_a_registered_name_is_what_tasks_call_the_backend(own: str) -> None:
    class Unnamed(NoopExecutionBackend):
        name = own

    BackendRegistry.register_backend("Mine", Unnamed)
    async with create(["noop", "mine"]) as flow:
        assert list(flow.backends) == ["noop", "mine"]

        @flow.function_task(backend="MINE")
        def job() -> Any: ...

        future = job()
        await future
        assert future.backend == "mine"


async def test_further_backends_have_the_names_they_are_given() -> None:
    plain, fast = Scripted("plain"), Scripted("plain")
    async with create(plain, backends={"fast": fast}) as flow:
        assert flow.backend is plain
        assert dict(flow.backends) == {"plain": plain, "fast": fast}

        @flow.function_task(backend="fast")
        async def job() -> Any: ...

        future = job()
        async with asyncio.timeout(LIMIT):
            fast.done(await fast.given("job"), 1)
            assert await future == 1
        assert future.backend == "fast"


async def test_the_backends_alone_are_enough_and_the_first_is_the_default() -> None:
    first, second = Scripted("x"), Scripted("x")
    async with create(backends={"one": first, "two": second}) as flow:
        assert flow.backend is first
    async with create(backends=[Scripted("a"), Scripted("b")]) as flow:
        assert list(flow.backends) == ["a", "b"]


async def test_two_backends_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="twin"):
        await create([Scripted("twin"), Scripted("twin")])


@pytest.mark.parametrize("given", [{"backend": []}, {"backends": {}}])
async def test_an_empty_list_of_backends_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"backend.*empty"):
        await create(**given)


async def test_a_backend_that_fails_to_start_leaves_none_running() -> None:
    good = Scripted("good")
    with pytest.raises(ConnectionError, match="no such scheduler"):
        await create([good, Fragile()])
    assert good.state() == "shutdown"


async def test_a_backend_may_be_given_as_the_coroutine_that_makes_it() -> None:
    async with create(Scripted.create("made")) as flow:
        assert list(flow.backends) == ["made"]
    good = Scripted.create("good")
    with pytest.raises(ConnectionError):
        await create([good, Fragile()])


async def test_a_backend_whose_state_is_a_coroutine_function_is_taken() -> None:
    backend = AsyncState()
    async with create(backend) as flow:
        assert flow.backend is backend


async def test_giving_up_while_a_backend_starts_leaves_nothing_running() -> None:
    good, hanging = Scripted("good"), Hanging()
    starting = asyncio.ensure_future(create([good, hanging]))
    await hanging.entered.wait()
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert good.state() == "shutdown"
    assert hanging.stopped


async def test_engines_one_after_the_other_may_share_a_backend() -> None:
    backend = await Scripted()
    async with asyncio.timeout(LIMIT):
        for number in range(2):
            flow = await create(backend)

            @flow.function_task
            async def job() -> Any: ...

            future = job()
            await until(lambda: len(backend.tasks) > number)  # noqa: B023
            backend.done(backend.tasks[-1], number)
            assert await future == number
            await flow.shutdown(skip_execution_backend=True)
            assert backend.state() == "running"
        await backend.shutdown()
    assert len({task["uid"] for task in backend.tasks}) == 2


# The other arguments.


async def test_an_engine_has_a_uid_of_its_own_unless_one_is_given() -> None:
    async with engine() as one, engine() as two, engine(uid="mine") as mine:
        assert one.uid != two.uid
        assert mine.uid == "mine"
        run = mine.work_dir.parent
        assert run.parent == Path.cwd() / ".rhapsody"
        assert mine.work_dir == run / "mine"
        assert one.work_dir == run / one.uid
    assert not os.path.exists(".rhapsody")  # nothing needed a directory


async def test_the_backend_gets_uids_that_begin_with_the_engines() -> None:
    backend = Scripted()
    async with engine(backend, uid="mine") as flow:

        @flow.function_task
        async def job() -> Any: ...

        job()
        assert (await backend.given("job"))["uid"] == "mine.task.000001.1"


async def test_sandboxes_are_under_the_work_dir(tmp_path: Path) -> None:
    work = tmp_path / "deep" / "work"
    async with engine(Machine(), work_dir=work, keep_sandboxes="all") as flow:

        @flow.executable_task
        def where() -> str:
            return "pwd"

        place = (await where()).rstrip("\n")
    assert Path(place).parent == work.resolve()
    assert Path(place).is_dir()


async def test_engine_wide_retries_and_timeouts_hold_for_each_task() -> None:
    backend = Scripted()
    async with engine(backend, retries=1, timeout=1000) as flow:

        @flow.function_task
        async def job() -> Any: ...

        future = job()
        first = await backend.given("job")
        assert first["timeout"] == 1000
        backend.failed(first, OSError("once"))
        backend.done(await backend.given("job", attempt=2), "twice")
        assert await future == "twice"


async def test_a_task_names_its_backend_as_the_registry_compares_names() -> None:
    mine = {"first": NoopExecutionBackend(), "other-one": NoopExecutionBackend()}
    async with create(backends=mine) as flow:

        @flow.function_task
        def job() -> Any: ...

        future = job.options(backend="Other_One")()
        await future
        assert future.backend == "other-one"
        with pytest.raises(ValueError, match="no backend 'another' is attached"):
            job.options(backend="another")
