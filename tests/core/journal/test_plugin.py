"""Results that are kept from one run to the next, and what of them is used."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rhapsody import (
    JournalError,
    LocalExecutionBackend,
    NoopExecutionBackend,
    OutputFile,
    WorkflowEngine,
)
from rhapsody.backends import Capabilities, ManagedBackend
from rhapsody.builtin.journal import store
from tests._support.recorded import LOG, broken_off, chain, engine, note, ran, tasks

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def nothing_ran(here: Path) -> None:
    (here / LOG).touch()


async def test_a_run_that_broke_off_is_taken_up() -> None:
    await broken_off(chain)
    assert ran()["double"] == 3
    async with engine() as flow:
        assert await chain(flow) == 8
        assert flow.stats.recorded == 3
    assert ran()["double"] == 3


async def test_after_a_run_that_ended_well_all_runs_again() -> None:
    for run in (1, 2):
        async with engine() as flow:
            assert await chain(flow) == 8
        assert ran()["double"] == 3 * run


async def test_placeholders_of_a_dry_backend_are_not_recorded() -> None:
    async with engine(backend=NoopExecutionBackend()) as flow:
        assert await tasks(flow)[0](1) == "Dummy Output"
    async with engine(resume=True) as flow:
        assert await tasks(flow)[0](1) == 2


@pytest.mark.parametrize(("resume", "times"), [(True, 3), (False, 6)])
async def test_resume_is_said(resume: bool, times: int) -> None:
    async with engine() as flow:
        await chain(flow)
    async with engine(resume=resume) as flow:
        assert await chain(flow) == 8
    assert ran()["double"] == times


async def test_resume_false_starts_over_after_a_run_that_broke_off() -> None:
    await broken_off(chain)
    async with engine(resume=False) as flow:
        assert await chain(flow) == 8
    assert ran()["double"] == 6


async def test_calls_with_one_key_stay_as_many_samples() -> None:
    async def draw(flow: WorkflowEngine) -> list[int]:
        _, sample = tasks(flow)
        return [await sample() for _ in range(3)]

    await broken_off(draw)
    async with engine() as flow:
        assert await draw(flow) == [1, 2, 3]
        _, sample = tasks(flow)
        assert await sample() == 4


async def test_of_one_bad_sample_of_a_hundred_the_branch_alone_runs_again() -> None:
    os.mkdir("bad")

    async def program(flow: WorkflowEngine) -> list[Any]:
        @flow.function_task
        def step(number: int) -> int:
            note(f"step {number}")
            if number == 37 and os.path.exists("bad"):
                raise ValueError("a bad sample")
            return number

        double, _ = tasks(flow)
        return [double(step(number)) for number in range(100)]

    async with engine() as flow:
        await program(flow)
    assert ran()["double"] == 99
    os.rmdir("bad")
    async with engine() as flow:
        assert await asyncio.gather(*await program(flow)) == [*range(0, 200, 2)]
    assert ran() == {**{f"step {n}": 1 for n in range(100)}, "step 37": 2, "double": 100}


async def test_what_asks_a_service_is_taken_up_wherever_that_listens(here: Path) -> None:
    async def program(flow: WorkflowEngine, greeting: str) -> list[Any]:
        @flow.executable_task(service=True, ready="stdout:([0-9]+)")
        def serve(greeting: str) -> str:
            # Numbers of three digits, as processes of a new machine have, are not recognized.
            return f"echo $((20000 + $$)); : {greeting}; exec sleep 60"

        @flow.function_task
        def ask(number: int, service: str) -> int:
            note(f"ask {number}")
            return number

        @flow.executable_task
        def call(service: str, other: str) -> list[str]:
            return ["sh", "-c", f"echo call >> {here / LOG}; : {service}:80; echo {other}"]

        service = serve(greeting)
        found: list[Any] = [ask(1, service), ask(2, service), call(service, "who")]
        found = [await each for each in found]
        service.cancel()
        return found

    found: list[list[Any]] = []

    async def keep(flow: WorkflowEngine) -> None:
        found.append(await program(flow, "hello"))

    await broken_off(keep)
    await broken_off(keep)
    assert found[0] == found[1]
    assert ran() == {"ask 1": 1, "ask 2": 1, "call": 1}
    async with engine() as flow:
        await program(flow, "good evening")
    assert ran() == {"ask 1": 2, "ask 2": 2, "call": 2}


async def test_a_task_opts_out() -> None:
    async def program(flow: WorkflowEngine) -> None:
        double, sample = tasks(flow)
        await double(1)
        await sample.options(cache=False)()

    await broken_off(program)
    async with engine() as flow:
        await program(flow)
    assert ran() == {"double": 1, "sample": 2}


SAID: dict[str, str] = {}


async def test_a_version_stands_for_the_code_and_what_it_uses() -> None:
    async def program(flow: WorkflowEngine, text: str, version: str) -> str:
        SAID["text"] = text

        @flow.function_task(version=version)
        def say() -> str:
            note("say")
            return SAID["text"]

        found: str = await say()
        return found

    await broken_off(lambda flow: program(flow, "one", "1"))
    await broken_off(lambda flow: program(flow, "two", "1"))
    assert ran()["say"] == 1
    async with engine() as flow:
        assert await program(flow, "two", "2") == "two"


async def test_a_variable_around_a_function_with_a_version_counts_unless_it_is_a_cache() -> None:
    async def program(flow: WorkflowEngine, rate: int) -> tuple[int, int]:
        rates, cache = [rate], dict[int, int]()

        @flow.function_task(version="1")
        def scale(number: int) -> int:
            note("scale")
            rates.append(number)
            return rates[0] * number

        @flow.function_task(version="1")
        def cached(number: int) -> int:
            note("cached")
            if number not in cache:
                cache[number] = number
            return cache[number]

        return await scale(5), await cached(1)

    for rate in (1, 2):
        found = await broken_off(partial(program, rate=rate))
        assert found == (5 * rate, 1)
    assert ran() == {"scale": 2, "cached": 1}


async def test_commands_and_blocks_are_taken_up(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> str:
        @flow.executable_task
        def note(word: str) -> str:
            return f"echo {word} >> {here / 'log'}; echo {word}"

        @flow.block
        async def both() -> str:
            first: str = await note("one")
            return first + await note("two")

        found: str = await both()
        return found

    await broken_off(program)
    async with engine() as flow:
        assert await program(flow) == "one\ntwo\n"
    assert (here / "log").read_text() == "one\ntwo\n"


async def test_the_environment_and_standard_input_count(here: Path) -> None:
    async def program(flow: WorkflowEngine, number: str, text: str) -> str:
        @flow.executable_task(environment={"NUMBER": number}, stdin=text)
        def show() -> str:
            return "echo $NUMBER; cat"

        found: str = await show()
        return found

    for number, text in (("1", "a"), ("2", "a"), ("2", "b")):
        await broken_off(partial(program, number=number, text=text))
        async with engine() as flow:
            assert await program(flow, number, text) == f"{number}\n{text}"
            assert flow.stats.recorded == 1


async def test_a_file_that_a_function_writes_on_request_is_no_change(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> None:
        @flow.function_task
        def write(text: str, place: str) -> None:
            note("write")
            Path(place).write_text(text)

        await write("text", str(here / "out.txt"))

    await broken_off(program)
    await broken_off(program)
    assert ran()["write"] == 1
    (here / "out.txt").unlink()
    await broken_off(program)
    assert ran()["write"] == 2


async def test_calls_whose_key_changes_as_they_make_a_file_stay_as_many_samples() -> None:
    async def draw(flow: WorkflowEngine) -> list[int]:
        one_at_a_time = threading.Lock()

        @flow.function_task
        def sample(place: str) -> int:
            Path(place).touch()
            with one_at_a_time:
                note("sample")
                return ran()["sample"]

        found = [await sample("out.txt"), await sample("out.txt")]
        return [*found, *await asyncio.gather(sample("other.txt"), sample("other.txt"))]

    seen: list[list[int]] = []

    async def program(flow: WorkflowEngine) -> None:
        seen.append(await draw(flow))

    for _ in range(3):
        await broken_off(program)
    assert ran() == {"sample": 4}
    assert seen[0][:2] == [1, 2]
    for later in seen[1:]:
        assert later[:2] == [1, 2]
        assert sorted(later[2:]) == [3, 4]


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_an_argument_that_changes_while_its_call_waits_is_not_recorded(executor: str) -> None:
    async def program(flow: WorkflowEngine, run: int) -> int:
        numbers = [1]

        @flow.function_task
        def wait(run: int) -> None:
            Path("running").write_text("")
            Path("go").read_text()

        @flow.function_task
        def total(numbers: list[int]) -> int:
            note("total")
            return sum(numbers)

        waiting, answer = wait(run), total(numbers)  # both are looked up before one starts
        await asyncio.to_thread(Path("running").read_text)
        numbers.append(5)
        await asyncio.to_thread(Path("go").write_text, "")
        await waiting
        found: int = await answer
        return found

    for pipe in ("running", "go"):
        os.mkfifo(pipe)
    for run in range(2):
        resources = {"workers": 1} if executor == "process" else {"cores": 1}
        backend = LocalExecutionBackend(executor, resources=resources)
        assert await broken_off(partial(program, run=run), backends=[backend]) == 6
    assert ran() == {"total": 2}


async def test_results_that_tasks_collect_in_a_list_are_complete_in_a_resumed_run() -> None:
    async def program(flow: WorkflowEngine) -> list[int]:
        results: list[int] = []

        @flow.function_task
        def work(number: int) -> None:
            results.append(number**2)

        await asyncio.gather(*map(work, range(3)))
        return sorted(results)

    assert await broken_off(program) == [0, 1, 4]
    assert await broken_off(program) == [0, 1, 4]


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_a_function_in_this_process_that_changes_an_argument_is_not_recorded(
    executor: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def program(flow: WorkflowEngine) -> list[int]:
        @flow.function_task
        def load() -> list[int]:
            return [1]

        @flow.function_task
        def add(numbers: list[int], number: int) -> int:
            numbers.append(number)
            note("add")
            return sum(numbers)

        @flow.function_task
        def total(numbers: list[int]) -> int:
            note("total")
            return sum(numbers)

        loaded = load()
        return [await add(loaded, 2), await add(loaded, number=3), await total([4])]

    def backend() -> LocalExecutionBackend:
        return LocalExecutionBackend(executor, resources={"workers": 1})

    first = await broken_off(program, backends=[backend()])
    assert await broken_off(program, backends=[backend()]) == first
    named: list[Any] = [each.args for each in caplog.records if "is not recorded" in each.msg]
    if executor == "thread":
        assert first == [3, 6, 4]
        assert ran() == {"add": 4, "total": 1}
        assert [name for name, _ in named] == ["add", "add"]  # one line in each run
        assert all("'numbers'" in reason for _, reason in named)
    else:
        assert first == [3, 4, 4]
        assert ran() == {"add": 2, "total": 1}
        assert not named


class Simulation:
    def __init__(self) -> None:
        self.time = 0

    def step(self) -> int:
        self.time += 2
        note("step")
        return self.time


def stepped_method(simulation: Simulation) -> Any:
    return simulation.step


def stepped_partial(simulation: Simulation) -> Any:
    return partial(Simulation.step, simulation)


def stepped_closure(simulation: Simulation) -> Any:
    def step() -> int:
        return simulation.step()

    return step


def stepped_default(simulation: Simulation) -> Any:
    def step(simulation: Simulation = simulation) -> int:
        return simulation.step()

    return step


def stepped_coroutine(simulation: Simulation) -> Any:
    async def step() -> int:
        return simulation.step()

    return step


def stepped_callable(simulation: Simulation) -> Any:
    class Step:
        def __init__(self) -> None:
            self.simulation = simulation

        def __call__(self) -> int:
            return self.simulation.step()

    return Step()


def stepped_global(simulation: Simulation) -> Any:
    globals()["SIMULATION"] = simulation
    return step_global


def step_global() -> int:
    return SIMULATION.step()


SIMULATION = Simulation()


@pytest.mark.parametrize(
    ("stepped", "version"),
    [
        *((stepped, None) for stepped in (stepped_callable, stepped_global)),
        *itertools.product(
            (stepped_method, stepped_partial, stepped_closure, stepped_default, stepped_coroutine),
            (None, "1"),
        ),
    ],
)
async def test_a_function_that_changes_an_object_that_it_captures_is_not_recorded(
    stepped: Any, version: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def program(flow: WorkflowEngine) -> list[int]:
        step = flow.function_task(version=version)(stepped(Simulation()))
        return [await step() for _ in range(3)]

    assert await broken_off(program) == [2, 4, 6]
    assert await broken_off(program) == [2, 4, 6]
    assert ran() == {"step": 6}
    named: list[Any] = [each.args for each in caplog.records if "is not recorded" in each.msg]
    assert len(named) == 2  # one line in each run


async def test_a_global_that_a_function_assigns_is_not_recorded() -> None:
    async def program(flow: WorkflowEngine) -> list[int]:
        globals()["COUNT"] = 1
        count = flow.function_task(count_up)
        return [await count() for _ in range(3)]

    assert await broken_off(program) == [2, 3, 4]
    assert await broken_off(program) == [2, 3, 4]


async def test_a_global_that_a_function_only_assigns_is_not_recorded() -> None:
    async def program(flow: WorkflowEngine) -> int:
        globals()["LAST"] = 5
        await flow.function_task(assign_last)(8)
        return await flow.function_task(read_last)()

    assert await broken_off(program) == 8
    assert await broken_off(program) == 8


LAST = 5


def assign_last(number: int) -> None:
    global LAST
    LAST = number


def read_last() -> int:
    return LAST


COUNT = 1


def count_up() -> int:
    global COUNT
    COUNT += 1
    return COUNT


async def test_a_function_that_reads_what_another_one_changes_meanwhile_is_not_recorded() -> None:
    numbers = [0, 0]
    reading, changed = threading.Event(), threading.Event()

    async def program(flow: WorkflowEngine) -> int:
        @flow.function_task
        def change() -> None:
            assert reading.wait(60)
            numbers[0] = 1
            changed.set()

        @flow.function_task
        def total() -> int:
            reading.set()
            assert changed.wait(60)
            note("total")
            return sum(numbers)

        return (await asyncio.gather(total(), change()))[0]

    assert await broken_off(program) == 1
    numbers[0] = 0
    await broken_off(program)
    assert ran() == {"total": 2}


class Cached:
    def __init__(self) -> None:
        self._cache: dict[int, int] = {}

    def get(self, number: int) -> int:
        if number not in self._cache:
            self._cache[number] = number * number
        return self._cache[number]


class Visited(Cached):
    def visited(self) -> int:
        return sum(self._cache.values())


class Counting:
    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def get(self, number: int) -> int:
        if "calls" not in self._count:
            self._count["calls"] = 0
        self._count["calls"] += 1
        return number * number


class Named:
    def __init__(self) -> None:
        self.squares: dict[int, int] = {}

    def get(self, number: int) -> int:
        if number not in self.squares:
            self.squares[number] = number * number
        return self.squares[number]


class Lazy:
    def __init__(self) -> None:
        self._power: int | None = None

    def get(self, number: int) -> int:
        if self._power is None:
            self._power = 2
        power: int = number**self._power
        return power


@pytest.mark.parametrize(
    ("kind", "reused"), [(Cached, 4), (Visited, 0), (Counting, 0), (Named, 0), (Lazy, 3)]
)
@pytest.mark.parametrize("passed", [True, False])
async def test_an_object_with_a_cache_is_compared_without_it(
    kind: type[Any], reused: int, passed: bool
) -> None:
    async def program(flow: WorkflowEngine) -> list[int]:
        model = kind()

        @flow.function_task
        def square(number: int, given: Any = None) -> int:
            found: int = (given or model).get(number)
            return found

        return [await square(number, model if passed else None) for number in range(4)]

    async with engine() as flow:
        assert await program(flow) == [0, 1, 4, 9]
    async with engine(resume=True) as flow:
        assert await program(flow) == [0, 1, 4, 9]
        assert flow.stats.recorded == reused


MISSING = object()


class Sentinel:
    pass


ABSENT = Sentinel()


async def test_sentinels_of_a_module_come_back_as_themselves() -> None:
    async def program(flow: WorkflowEngine) -> list[Any]:
        @flow.function_task
        def search(number: int) -> Any:
            note("search")
            return MISSING if number else {"found": [ABSENT, Sentinel()]}

        return [await search(number) for number in range(2)]

    for _ in range(2):
        found, missing = await broken_off(program)
        assert missing is MISSING
        assert found["found"][0] is ABSENT
        assert found["found"][1] is not ABSENT
    assert ran() == {"search": 2}


async def test_an_object_without_a_name_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    missing = object()

    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task
        def search() -> Any:
            note("search")
            return [missing]

        return await search()

    for _ in range(2):
        assert (await broken_off(program))[0] is missing
    assert ran() == {"search": 2}
    assert "object()" in caplog.text


async def test_a_cache_that_is_filled_before_the_first_call_counts() -> None:
    async def program(flow: WorkflowEngine, known: int) -> int:
        model = Cached()
        model._cache[3] = known
        return await flow.function_task(model.get)(3)

    async with engine() as flow:
        assert await program(flow, 9) == 9
    async with engine(resume=True) as flow:
        assert await program(flow, 10) == 10


def python_generator() -> random.Random:
    return random.Random(1)


def numpy_generator() -> Any:
    return np.random.default_rng(1)


def numpy_state() -> Any:
    return np.random.RandomState(1)


@pytest.mark.parametrize("make", [python_generator, numpy_generator, numpy_state])
async def test_a_reused_call_advances_its_generator(make: Any) -> None:
    async def program(flow: WorkflowEngine, calls: int) -> list[float]:
        rng = make()

        @flow.function_task
        def draw(rng: Any) -> float:
            return float(rng.uniform(0, 1))

        return [await (draw(rng=rng) if number % 2 else draw(rng)) for number in range(calls)]

    async with engine() as flow:
        first = await program(flow, 2)
    async with engine(resume=True) as flow:
        again = await program(flow, 4)
        assert flow.stats.recorded == 2
    assert again[:2] == first
    assert len(set(again)) == 4
    async with engine() as flow:
        assert await program(flow, 4) == again


async def test_calls_that_share_a_generator_at_the_same_time_are_not_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    together = threading.Barrier(2)

    async def program(flow: WorkflowEngine) -> None:
        rng = random.Random(1)

        @flow.function_task
        def draw(rng: random.Random) -> float:
            together.wait(60)
            note("draw")
            return rng.random()

        await asyncio.gather(draw(rng), draw(rng))

    await broken_off(program)
    await broken_off(program)
    assert ran() == {"draw": 4}
    assert "random number generator" in caplog.text


class Tally:
    count = 0
    log: ClassVar = [0]

    def add(self) -> int:
        type(self).count += 1
        return self.count

    def append(self) -> int:
        self.log.append(0)
        return len(self.log)

    def __call__(self) -> int:
        return self.add()


class SubTally(Tally):
    pass


def count_in(tally: Any) -> int:
    tally.count += 1
    count: int = tally.count
    return count


def append_in(tallies: list[Tally]) -> int:
    return tallies[0].append()


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (SubTally().add, None),
        (SubTally().append, None),
        (SubTally(), None),
        (count_in, Tally),
        (append_in, [SubTally()]),
        (partial(append_in, [Tally()]), None),
    ],
)
async def test_attributes_of_classes_of_arguments_that_change_are_noticed(
    function: Any, argument: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program(flow: WorkflowEngine) -> list[int]:
        monkeypatch.setattr(Tally, "count", 0)
        monkeypatch.setattr(Tally, "log", [0])
        monkeypatch.setattr(SubTally, "count", 0)
        task: Any = flow.function_task(name="count")(function)
        given = () if argument is None else (argument,)
        return [await task(*given) for _ in range(3)]

    first = await broken_off(program)
    assert first in ([1, 2, 3], [2, 3, 4])
    assert "of class Tally" in caplog.text or "of class SubTally" in caplog.text
    assert await broken_off(program) == first


class CountedRandom(random.Random):
    drawn = 0

    def random(self) -> float:
        self.drawn += 1
        return super().random()


async def test_a_generator_of_a_subclass_is_not_advanced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def program(flow: WorkflowEngine) -> int:
        rng = CountedRandom(1)

        @flow.function_task
        def draw(rng: random.Random) -> float:
            return rng.random()

        await draw(rng)
        await draw(rng)
        return rng.drawn

    assert await broken_off(program) == 2
    assert await broken_off(program) == 2
    assert "its argument 'rng' changed in place" in caplog.text


async def test_a_generator_that_a_call_receives_twice_is_advanced_once() -> None:
    async def program(flow: WorkflowEngine) -> list[float]:
        rng = random.Random(1)

        @flow.function_task
        def draw(rng: random.Random, same: random.Random) -> float:
            note("draw")
            return rng.random() + same.random()

        return [await draw(rng, rng), await draw(rng, same=rng)]

    first = await broken_off(program)
    assert await broken_off(program) == first
    assert ran() == {"draw": 2}


async def test_a_generator_with_more_state_than_can_be_set_is_not_reused() -> None:
    async def program(flow: WorkflowEngine) -> list[int]:
        rng = np.random.default_rng(1)

        @flow.function_task
        def spawn(rng: Any) -> int:
            note("spawn")
            return int(rng.spawn(1)[0].integers(10**9))

        return [await spawn(rng), await spawn(rng)]

    first = await broken_off(program)
    assert await broken_off(program) == first
    assert ran() == {"spawn": 4}


async def test_files_that_arguments_name_may_appear_while_a_function_runs() -> None:
    async def program(flow: WorkflowEngine) -> int:
        @flow.function_task
        def touch(places: list[str]) -> int:
            Path(places[0]).touch()
            note("touch")
            return 1

        found: int = await touch(["out.txt"])
        return found

    await broken_off(program)
    assert await broken_off(program) == 1
    assert ran() == {"touch": 1}


async def test_a_variable_around_a_function_counts_with_its_value_at_each_call() -> None:
    async def program(flow: WorkflowEngine, factors: list[int]) -> list[int]:
        factor = 0

        @flow.function_task
        def scale(number: int) -> int:
            return number * factor

        found = []
        for factor in factors:  # noqa: B007 - the task reads it
            found.append(await scale(10))
        return found

    async with engine() as flow:
        assert await program(flow, [1, 2, 3]) == [10, 20, 30]
    async with engine(resume=True) as flow:
        assert await program(flow, [1, 7, 3]) == [10, 70, 30]
        assert flow.stats.recorded == 2


async def test_a_file_that_an_argument_names_counts(here: Path) -> None:
    async def program(flow: WorkflowEngine) -> str:
        @flow.function_task
        def read(place: Path) -> str:
            return place.read_text()

        found: str = await read(here / "in.txt")
        return found

    (here / "in.txt").write_text("one")
    await broken_off(program)
    (here / "in.txt").write_text("two")
    async with engine() as flow:
        assert await program(flow) == "two"


# A declared input that changes fails its task: see `tests/core/staging/test_files_changed.py`.
@pytest.mark.parametrize("kind", [str, Path])
async def test_a_file_that_changes_before_its_task_has_ended_is_not_recorded(
    here: Path, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate, go = here / "gate", here / "go"
    os.mkfifo(gate)
    os.mkfifo(go)

    async def program(flow: WorkflowEngine) -> str:
        @flow.function_task
        def read(data: Any) -> str:
            note("read")
            text = Path(data).read_text()
            if "first" in text:
                gate.write_text("it was read")
                go.read_text()
            return text

        future = read(kind(here / "in.txt"))
        if not broken:
            await asyncio.to_thread(gate.read_text)
            (here / "in.txt").write_text("second")
            await asyncio.to_thread(go.write_text, "go on")
        found: str = await future
        return found

    (here / "in.txt").write_text("first")
    broken = False
    assert await broken_off(program) == "first"
    assert "changed while the task waited or ran" in caplog.text
    assert "in.txt" in caplog.text
    broken = True
    assert await broken_off(program) == "second"
    assert await broken_off(program) == "second"
    assert ran() == {"read": 2}


async def test_a_command_is_not_recorded_whose_variables_change_while_it_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = here / "gate"
    os.mkfifo(gate)

    async def program(flow: WorkflowEngine) -> None:
        monkeypatch.setenv("MODE", "1")

        @flow.executable_task
        def show() -> str:
            return f"echo went > {gate}; cat < {gate}; echo $MODE"

        future = show()
        await asyncio.to_thread(gate.read_text)
        monkeypatch.setenv("MODE", "2")
        await asyncio.to_thread(gate.write_text, "on")
        await future

    await broken_off(program)
    assert "the program changed os.environ" in caplog.text


async def test_a_file_that_its_task_writes_over_is_recorded_when_it_is_declared(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def program(flow: WorkflowEngine, text: str) -> None:
        @flow.function_task
        def write(text: str, place: Any) -> None:
            note("write")
            Path(place).write_text(text)

        await write(text, str(here / "plain.txt"))
        await write(text, OutputFile("results/declared.txt"))

    await broken_off(lambda flow: program(flow, "one"))
    assert not caplog.text
    await broken_off(lambda flow: program(flow, "two"))  # both are there
    assert caplog.text.count("plain.txt' in its arguments changed") == 1
    assert "declared.txt" not in caplog.text
    await broken_off(lambda flow: program(flow, "two"))
    assert ran() == {"write": 5}
    await broken_off(lambda flow: program(flow, "two"))  # written over with the same content
    assert ran() == {"write": 5}
    assert (here / "results/declared.txt").read_text() == "two"


@pytest.mark.parametrize("kind", [str, Path])
async def test_a_file_that_an_argument_of_a_command_names_counts(here: Path, kind: Any) -> None:
    async def program(flow: WorkflowEngine) -> str:
        @flow.executable_task
        def show(places: list[Any]) -> str:
            return f"cat {' '.join(map(str, places))}"

        found: str = await show([kind(here / "in.txt")])
        return found

    for text in ("one", "two"):
        (here / "in.txt").write_text(text)
        await broken_off(program)
        async with engine() as flow:
            assert await program(flow) == text
            assert flow.stats.recorded == 1


async def test_what_a_task_printed_and_its_exit_code_are_there_again() -> None:
    async def program(flow: WorkflowEngine) -> list[Any]:
        @flow.executable_task
        def command() -> str:
            return "echo out; echo err >&2"

        @flow.function_task
        def function() -> None:
            print("printed")

        futures: list[Any] = [command(), function()]
        await asyncio.gather(*futures)
        return [(each.stdout, each.stderr, each.exit_code) for each in futures]

    await broken_off(program)
    async with engine() as flow:
        assert await program(flow) == [("out\n", "err\n", 0), ("printed\n", "", None)]
        assert flow.stats.recorded == 2


async def test_what_is_not_kept_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def program(flow: WorkflowEngine) -> None:
        @flow.function_task
        def lock(_: int) -> Any:
            return threading.Lock()

        @flow.function_task
        def take(_: Any) -> bytes:
            return bytes(5000)

        @flow.function_task
        def large() -> bytes:
            return bytes(5000)

        first, second = await lock(1), await lock(2)
        await asyncio.gather(take(first), take(second), large(), large())

    with caplog.at_level(logging.WARNING):
        await broken_off(program, journal_max_value="4 kB")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "task 'lock' is not recorded and will run again on resume: its result" in said[0]
    assert "cannot pickle" in said[0]
    assert any("task 'take' is not recorded" in line and "lock" in line for line in said)
    assert any("has 5" in line and "journal_max_value" in line for line in said)
    async with engine() as flow:
        await program(flow)
        assert flow.stats.recorded == 0


async def test_engines_may_use_one_journal_at_a_time() -> None:
    await broken_off(chain)
    async with engine() as first, engine() as second:
        assert await chain(first) == 8
        assert await chain(second) == 8
        assert first.stats.recorded == 3
    assert ran()["double"] == 6  # a run that lives has not broken off


async def test_on_a_network_file_system_one_engine_may_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "on_network", lambda _: True)
    await broken_off(chain)
    async with engine() as first:
        with pytest.raises(JournalError, match=r"in use by another run.*network"):
            await WorkflowEngine.create(journal="run.sqlite")
        assert await chain(first) == 8
    assert ran()["double"] == 3


async def test_a_dry_run_keeps_nothing(here: Path) -> None:
    async with engine(dry_run=True) as flow:
        await chain(flow)
    assert os.listdir(here) == [LOG]


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_the_loop_goes_on_while_a_large_argument_is_hashed(kind: Any) -> None:
    turns = 0
    async with engine(backend=NoopExecutionBackend()) as flow:

        @flow.function_task
        def size(data: bytes) -> int:
            return len(data)

        future = size(kind(100 << 20))
        while not future.done():
            await asyncio.sleep(0)
            turns += 1
    assert turns > 100  # it takes long enough for thousands


class Seeing(ManagedBackend):
    """A backend that fails tasks with an argument above 1, and keeps their identities."""

    name = "seeing"
    canonical_states = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    async def run_task(self, task: Any) -> object:
        self.seen.append(task.get("identity"))
        if task["args"][0] > 1:
            raise ValueError
        return task["args"][0]


async def test_the_identity_of_a_call_is_the_same_in_a_run_that_resumes() -> None:
    async def calls(flow: WorkflowEngine) -> None:
        double, _ = tasks(flow)
        again = double.options(retries=1)
        waiting = [double(1), again(2), double(3), double(3)]
        await asyncio.gather(*waiting, return_exceptions=True)

    found = []
    for resume in ("auto", "auto", False):
        backend = Seeing()
        await broken_off(calls, backend=backend, resume=resume)
        found.append(sorted(backend.seen))
    first, resumed, fresh = found
    assert len(first) == 5
    assert len(set(first_calls(first))) == 4  # the retry has that of the first attempt
    assert len(resumed) == 4
    assert set(first_calls(resumed)) < set(first_calls(first))
    assert set(first_calls(fresh)).isdisjoint(first_calls(first))


@pytest.mark.parametrize(
    ("declared", "repeated"),
    [(None, ["queue", "flags"]), (frozenset({"flags"}), ["flags"]), (frozenset(), [])],
)
async def test_settings_of_a_backend_count_if_they_may_change_results(
    declared: frozenset[str] | None, repeated: list[str]
) -> None:
    async def calls(flow: WorkflowEngine) -> None:
        double, _ = tasks(flow)
        await double.options(task_description=settings)(1)

    found, settings = [], {"queue": "short", "flags": "-O2"}
    for changed in (None, "queue", "flags"):
        if changed is not None:
            settings = settings | {changed: "other"}
        backend = Seeing()
        backend.capabilities = Capabilities(result_settings=declared)
        await broken_off(calls, backend=backend, resume="auto")
        if backend.seen:
            found.append(changed)
    assert found == [None, *repeated]


@dataclass
class Holder:
    """An object of the program that refers to a backend."""

    backend: Seeing
    factor: int


async def test_a_backend_does_not_count_as_a_value() -> None:
    async def calls(flow: WorkflowEngine) -> None:
        @flow.function_task
        def double(held: Holder) -> int:
            note("double")
            return 2 * held.factor

        backend = Seeing()
        backend.seen.append(object())  # cannot be compared
        await double(Holder(backend, 1))

    for _ in range(2):
        await broken_off(calls, resume="auto")
    assert ran()["double"] == 1


def first_calls(identities: list[tuple[str, object]]) -> list[str]:
    """The identities without the files that arguments name."""
    assert all(files == {} for _, files in identities)
    return [call for call, _ in identities]


async def test_a_run_that_was_killed_without_results_is_continued(tmp_path: Path) -> None:
    origins = []
    for resume in (None, None, True, False):
        journal = store.Store(tmp_path / "journal.sqlite", shared=False)
        journal.begin(resume)
        origins.append(journal.origin)
        journal._wait(journal._database.close)  # as if the program was killed
        journal._release()
    assert len(set(origins[:3])) == 1
    assert origins[3] not in origins[:3]


@pytest.mark.parametrize("keyword", [False, True])
async def test_a_reused_result_that_is_an_argument_is_this_argument(
    here: Path, keyword: bool
) -> None:
    """So that changes in place by the program or by other tasks have the same effect."""
    seen = []
    for _ in range(3):
        async with engine(resume=True) as flow:

            @flow.function_task
            def check(table: dict[str, int], ok: bool = True) -> dict[str, int]:
                note("check")
                return table

            @flow.function_task
            def add(table: dict[str, int]) -> int:
                table["b"] = 2
                return len(table)

            @flow.function_task
            def columns(table: dict[str, int]) -> list[str]:
                return list(table)

            table = {"a": 1}
            checked = check(table=table) if keyword else check(table)
            assert await checked is table
            assert await check(checked, False) is table
            await add(checked)
            seen.append(await columns(table))
    assert seen == [["a", "b"]] * 3
    assert ran()["check"] == 2


async def test_a_random_generator_that_a_reused_task_returns_is_its_argument(here: Path) -> None:
    seen = []
    for _ in range(2):
        async with engine(resume=True) as flow:

            @flow.function_task
            def warm_up(rng: random.Random) -> random.Random:
                note("warm_up")
                rng.random()
                return rng

            rng = random.Random(1)
            warm = await warm_up(rng)
            assert warm is rng
            seen.append((warm.random(), rng.random()))
    assert seen[0] == seen[1]
    assert ran()["warm_up"] == 1


@pytest.mark.parametrize("name", ["mean", "sqrt", "abs"])
async def test_a_function_of_numpy_that_the_program_replaces_between_two_calls_counts(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    factors = (3, 3, 5)
    seen = []
    for factor in factors:
        async with engine(resume=True) as flow:

            @flow.function_task
            def use(values: list[int]) -> float:
                note("use")
                return float(np.sum(np.mean(values) + np.sqrt(values) + np.abs(values)))

            plain = await use([1, 4])
            with monkeypatch.context() as patch:
                patch.setattr(np, name, lambda values, k=factor: np.multiply(values, k))
                seen.append(await use([1, 4]) - plain)
            assert await use([1, 4]) == plain
    assert seen[0] == seen[1] != seen[2]
    assert ran()["use"] == 4
