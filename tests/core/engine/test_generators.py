"""Random number generators of the program, of which calls on workers would receive copies."""

from __future__ import annotations

import asyncio
import copy
import functools
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from tests._support.engine_fixtures import engine, local_processes, local_threads

pytestmark = pytest.mark.asyncio

MODULE_WIDE = random.Random(0)


def numpy_generator() -> Any:
    numpy = pytest.importorskip("numpy")
    return numpy.random.default_rng(0)


def numpy_state() -> Any:
    numpy = pytest.importorskip("numpy")
    return numpy.random.RandomState(0)


def numpy_unseeded() -> Any:
    numpy = pytest.importorskip("numpy")
    return numpy.random.default_rng()


def python_generator() -> Any:
    return random.Random(0)


generators = pytest.mark.parametrize(
    "make", [numpy_generator, numpy_state, numpy_unseeded, python_generator]
)


def sample(rng: Any) -> float:
    """Draw a number."""
    return float(rng.random() if hasattr(rng, "random") else rng.random_sample())


def of_closures(rng: Any) -> Any:
    def helper() -> float:
        return sample(rng)

    def draw() -> float:
        return helper()

    return draw


def of_defaults(rng: Any) -> Any:
    def draw(generator: Any = rng) -> float:
        return sample(generator)

    return draw


def of_globals(rng: Any) -> Any:
    program: dict[str, Any] = {"__name__": "__main__", "rng": rng, "sample": sample}
    exec("def draw():\n    return sample(rng)", program)
    return program["draw"]


def of_partials(rng: Any) -> Any:
    return functools.partial(sample, rng)


def of_objects(rng: Any) -> Any:
    program: dict[str, Any] = {"__name__": "__main__", "sample": sample}
    exec(
        "class Model:\n    def draw(self):\n        return sample(self.rng)\n\nmodel = Model()",
        program,
    )
    program["model"].rng = rng
    return program["model"].draw


captured = pytest.mark.parametrize(
    "function", [of_closures, of_defaults, of_globals, of_partials, of_objects]
)


@captured
@generators
async def test_a_function_that_would_be_sent_with_a_generator_is_refused(
    function: Any, make: Any
) -> None:
    async with engine(local_processes()) as flow:
        draw = flow.function_task(function(make()))
        with pytest.raises(ValueError, match=r"spawn|seed"):
            await draw()


@captured
async def test_functions_in_this_process_share_their_generators(function: Any) -> None:
    async with engine(local_threads()) as flow:
        draw = flow.function_task(function(random.Random(0)))
        assert len({await draw(), await draw()}) == 2


async def test_the_message_names_the_variable() -> None:
    async with engine(local_processes()) as flow:
        with pytest.raises(ValueError, match="'rng'"):
            await flow.function_task(of_globals(random.Random(0)))()


def of_methods(rng: Any) -> Any:
    draw_one = rng.random

    def draw() -> float:
        return float(draw_one())

    return draw


async def test_the_script_of_rhapsody_run_is_searched(here: Path) -> None:
    (here / "flow.py").write_text(
        "import random\n"
        "rng = random.Random(0)\n"
        "def helper():\n"
        "    return rng.random()\n"
        "async def main(flow):\n"
        "    await flow.function_task(lambda: helper())()\n"
    )
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rhapsody", "run", "flow.py", "-o", "executor=process",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, stderr = await program.communicate()
    assert program.returncode == 1
    assert "'rng'" in stderr.decode()


async def test_methods_of_a_generator_are_refused_as_well() -> None:
    async with engine(local_processes()) as flow:
        for rng in (python_generator(), numpy_generator()):
            with pytest.raises(ValueError, match="'draw_one'"):
                await flow.function_task(of_methods(rng))()


async def test_functions_imported_from_random_draw_from_the_generator_of_the_worker() -> None:
    numpy = pytest.importorskip("numpy")
    gauss, uniform, normal = random.gauss, random.random, numpy.random.normal

    def draw(_: int) -> tuple[float, ...]:
        return gauss(0, 1), uniform(), float(normal())

    async with engine(local_processes()) as flow:
        found = await asyncio.gather(*flow.map(flow.function_task(draw), range(5)))
    assert [len(set(numbers)) for numbers in zip(*found, strict=True)] == [5, 5, 5]


async def test_functions_of_modules_use_the_generator_of_their_worker() -> None:
    async with engine(local_processes()) as flow:
        draw = flow.function_task(MODULE_WIDE.__class__.random)
        assert isinstance(await draw(random.Random(1)), float)


@generators
async def test_a_generator_is_an_argument_of_one_call(make: Any) -> None:
    async with engine(local_processes(), retries=1) as flow:
        task = flow.function_task(sample)
        rng = make()
        await task(rng)
        with pytest.raises(ValueError, match="'rng'"):
            await task(rng)
        await task(copy.deepcopy(rng))  # on purpose
        sample(rng)  # the program draws itself
        await task(rng)


async def test_a_call_that_is_retried_may_have_a_generator() -> None:
    async with engine(local_processes(), retries=1) as flow:

        @flow.function_task
        def fails_once(rng: random.Random) -> int:
            from rhapsody import current_task

            context = current_task()
            assert context is not None
            if context.attempt == 1:
                raise OSError
            return context.attempt

        assert await fails_once(random.Random(0)) == 2


async def test_spawned_generators_give_the_same_samples_on_all_backends() -> None:
    numpy = pytest.importorskip("numpy")
    if not hasattr(numpy.random.Generator, "spawn"):
        pytest.skip("this NumPy cannot spawn generators")

    async def samples(backend: LocalExecutionBackend) -> list[float]:
        async with engine(backend) as flow:
            children = numpy.random.default_rng(0).spawn(4)
            return list(await asyncio.gather(*flow.map(flow.function_task(sample), children)))

    found = await samples(LocalExecutionBackend("process", resources={"workers": 2}))
    assert found == await samples(LocalExecutionBackend())
    assert len(set(found)) == 4


async def test_workers_start_with_different_global_states() -> None:
    def draw(_: int) -> tuple[int, float, float]:
        import os
        import random
        import time

        import numpy

        time.sleep(0.1)  # so that all workers take part
        return os.getpid(), random.random(), float(numpy.random.random())

    pytest.importorskip("numpy")
    backend = LocalExecutionBackend("process", resources={"workers": 3})
    async with engine(backend) as flow:
        found = await asyncio.gather(*flow.map(flow.function_task(draw), range(6)))
    assert len({first for _, first, _ in found}) == len({second for *_, second in found}) == 6


@pytest.mark.usefixtures("here")
async def test_a_function_that_draws_from_its_argument_is_recorded() -> None:
    async def program(flow: WorkflowEngine) -> float:
        found: float = await flow.function_task(sample)(random.Random(0))
        return found

    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        first = await program(flow)
    async with WorkflowEngine.create(journal="run.sqlite", resume=True) as flow:
        assert await program(flow) == first
        assert flow.stats.recorded == 1
