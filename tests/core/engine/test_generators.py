"""Random number generators of the program, of which calls on workers would receive copies."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
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
async def test_a_second_call_that_would_draw_the_same_numbers_is_refused(
    function: Any, make: Any
) -> None:
    async with engine(local_processes()) as flow:
        draw = flow.function_task(function(make()))
        await draw()
        with pytest.raises(ValueError, match=r"spawn|seed"):
            await draw()


async def test_a_default_that_a_call_replaces_is_not_sent() -> None:
    async with engine(local_processes()) as flow:
        default = random.Random(0)

        def option(number: int, rng: Any = default, *, other: Any = None) -> float:
            return float(rng.random())

        def keyword(*, rng: Any = default) -> float:
            return float(rng.random())

        @functools.wraps(option)
        def wrapper(*args: Any, **kwargs: Any) -> float:
            return option(*args, **kwargs)

        task, bound = flow.function_task(option), flow.function_task(keyword)
        for seed in range(3):
            await task(1, rng=random.Random(seed))
            await task(1, random.Random(10 + seed))
            await bound(rng=random.Random(20 + seed))
            await flow.function_task(wrapper)(1, rng=random.Random(30 + seed))
            await flow.function_task(functools.partial(option, 1))(random.Random(40 + seed))
            partial = functools.partial(option, rng=random.Random(50 + seed))
            await flow.function_task(partial)(1)
        await task(1)
        with pytest.raises(ValueError, match="'rng'"):
            await task(1)


async def test_attributes_that_the_code_does_not_use_may_be_generators() -> None:
    program: dict[str, Any] = {"__name__": "__main__"}
    exec(
        "import random\n"
        "rng = random.Random(2)\n"
        "class Model:\n"
        "    shared = random.Random(1)\n"
        "    def __init__(self):\n"
        "        self.random_state = random.Random(0)\n"
        "        self.weight = rng.random()\n"
        "    @classmethod\n"
        "    def of_class(cls):\n        return cls.shared.random()\n"
        "    def fit(self):\n        return self.random_state.random()\n"
        "    def predict(self, x):\n        return self.scaled(x)\n"
        "    def scaled(self, x):\n        return 2 * x\n"
        "model = Model()\n"
        "def both(x):\n    return model.predict(x)\n"
        "def first(model):\n    return model.predict(1)\n"
        "def made():\n    return Model().weight\n"
        "def drawn(model):\n    return model.fit()\n",
        program,
    )
    async with engine(local_processes()) as flow:
        for function in (program["model"].predict, program["both"]):
            task = flow.function_task(function)
            assert [await task(1), await task(2)] == [2, 4]
        task = flow.function_task(program["first"])
        assert [await task(program["model"]), await task(program["model"])] == [2, 2]
        with pytest.raises(ValueError, match="'model'"):
            await flow.function_task(program["drawn"])(program["model"])
        task = flow.function_task(program["made"])
        await task()
        with pytest.raises(ValueError, match="'rng'"):
            await task()
        program["rng"].random()  # the program draws itself
        task = flow.function_task(program["Model"].of_class)
        await task()
        with pytest.raises(ValueError, match=r"'(Model\.shared|rng)'"):
            await task()


async def test_a_variable_may_contain_another_generator_for_each_call() -> None:
    function = of_globals(random.Random(0))
    async with engine(local_processes()) as flow:
        task = flow.function_task(function)
        for seed in range(3):
            function.__globals__["rng"] = random.Random(seed)
            await task()
        with pytest.raises(ValueError, match="'rng'"):
            await task()


class Sampler:
    """Object with a generator."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng


@dataclasses.dataclass
class Settings:
    """Dataclass with a generator."""

    rng: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    """Dataclass with slots."""

    rng: Any


@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "object", "dataclass", "slots"])
async def test_a_generator_inside_an_argument_of_two_calls_is_refused(kind: str) -> None:
    make: Any = {
        "list": lambda rng: [rng],
        "tuple": lambda rng: (rng, 1),
        "dict": lambda rng: {"rng": rng},
        "object": Sampler,
        "dataclass": Settings,
        "slots": Slotted,
    }[kind]

    def draw(inside: Any) -> float:
        if isinstance(inside, list | tuple):
            return float(inside[0].random())
        rng = inside["rng"] if isinstance(inside, dict) else inside.rng
        return float(rng.random())

    async with engine(local_processes()) as flow:
        task, rng = flow.function_task(draw), random.Random(0)
        await task(make(rng))
        with pytest.raises(ValueError, match="'inside'"):
            await task(make(rng))


ARGUMENTS = """
import dataclasses
import random
rng = random.Random(0)
other = random.Random(1)
class Walker:
    def walk(self):
        return rng.random()
    def position(self):
        return 1.0
class Runner(Walker):
    def run(self):
        return self.walk()
class Noise:
    rng = random.Random(2)
    def draw(self):
        return self.rng.random()
class Called:
    def __call__(self):
        return rng.random()
class Own(Noise):
    def __init__(self, seed):
        self.rng = random.Random(seed)
@dataclasses.dataclass
class Default:
    rng: random.Random = random.Random(3)
    def draw(self):
        return self.rng.random()
def function():
    return rng.random()
def walk(walker):
    return walker.walk()
def walk_all(walkers):
    return walkers[0].walk()
def position(walker):
    return walker.position()
def run(runner):
    return runner.run()
def draw(noise):
    return noise.draw()
def call(function):
    return function()
def made(kind):
    return kind().walk()
"""


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("walk", "Walker()"),
        ("walk", "Runner()"),
        ("run", "Runner()"),
        ("walk_all", "[Walker()]"),
        ("walk_all", "{0: Walker()}"),
        ("draw", "Noise()"),
        ("call", "function"),
        ("call", "Walker().walk"),
        ("call", "Called()"),
        ("call", "lambda: other.random()"),
        ("made", "Walker"),
    ],
)
async def test_a_generator_that_methods_of_an_argument_use_is_refused(
    name: str, argument: str
) -> None:
    program: dict[str, Any] = {"__name__": "__main__"}
    exec(ARGUMENTS, program)
    async with engine(local_processes()) as flow:
        task = flow.function_task(program[name])
        await task(eval(argument, program))
        with pytest.raises(ValueError, match=r"'(rng|other|Noise\.rng)'"):
            await task(eval(argument, program))
        value = flow.function_task(lambda: None)()
        with pytest.raises(ValueError, match=r"'(rng|other|Noise\.rng)'"):
            await task.options(after=[value])(eval(argument, program))


async def test_a_generator_of_a_class_that_its_objects_replace_is_not_used() -> None:
    program: dict[str, Any] = {"__name__": "__main__"}
    exec(ARGUMENTS, program)
    own, default, walker = program["Own"], program["Default"], program["Walker"]
    async with engine(local_processes()) as flow:
        position, draw = map(flow.function_task, (program["position"], program["draw"]))
        assert [await position(walker()), await position(walker())] == [1, 1]
        drawn = [await draw(own(seed)) for seed in range(3)]
        drawn += [await draw(default(random.Random(10 + seed))) for seed in range(3)]
        assert len(set(drawn)) == 6
        for seed in range(3):
            program["model"] = default(random.Random(20 + seed))
            function = eval("lambda: model.draw()", program)
            drawn.append(await flow.function_task(function)())
        assert len(set(drawn)) == 9


async def test_a_generator_may_be_in_one_call_twice() -> None:
    async with engine(local_processes()) as flow:
        rng = random.Random(0)
        assert await flow.function_task(lambda first, rest: first is rest[0])(rng, [rng])


@captured
async def test_functions_in_this_process_share_their_generators(function: Any) -> None:
    async with engine(local_threads()) as flow:
        draw = flow.function_task(function(random.Random(0)))
        assert len({await draw(), await draw()}) == 2


async def test_the_message_names_the_variable() -> None:
    async with engine(local_processes()) as flow:
        task = flow.function_task(of_globals(random.Random(0)))
        await task()
        with pytest.raises(ValueError, match="'rng'"):
            await task()


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
        "    task = flow.function_task(lambda: helper())\n"
        "    await task()\n"
        "    await task()\n"
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
            task = flow.function_task(of_methods(rng))
            await task()
            with pytest.raises(ValueError, match="'draw_one'"):
                await task()


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


async def test_workers_start_with_different_global_states(tmp_path: Path) -> None:
    def draw(_: int) -> tuple[int, float, float]:
        import os
        import random
        import time

        import numpy

        (tmp_path / str(os.getpid())).touch()
        while len(os.listdir(tmp_path)) < 3:  # all workers take part
            time.sleep(0.01)
        return os.getpid(), random.random(), float(numpy.random.random())

    pytest.importorskip("numpy")
    backend = LocalExecutionBackend("process", resources={"workers": 3})
    async with engine(backend) as flow:
        found = await asyncio.gather(*flow.map(flow.function_task(draw), range(6)))
    assert len({pid for pid, *_ in found}) == 3
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


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("captured", [True, False], ids=["closure", "argument"])
async def test_a_reused_call_has_received_its_generator(captured: bool) -> None:
    async def program(flow: WorkflowEngine) -> None:
        rng = random.Random(0)

        @flow.function_task
        def draw(number: int, given: random.Random | None) -> float:
            return (given or rng).random()

        for number in range(3):
            await draw(number, None if captured else rng)

    for resume in (False, True, True):
        backend = LocalExecutionBackend("process", resources={"workers": 1})
        async with WorkflowEngine.create(backend, journal="run.sqlite", resume=resume) as flow:
            with pytest.raises(ValueError, match="in the same state"):
                await program(flow)
            assert flow.stats.recorded == resume


async def test_generators_that_share_their_state_count_as_one() -> None:
    numpy = pytest.importorskip("numpy")
    bits = numpy.random.PCG64(0)
    async with engine(local_processes()) as flow:
        draw = flow.function_task(sample)
        await draw(numpy.random.Generator(bits))
        with pytest.raises(ValueError, match="in the same state"):
            await draw(numpy.random.Generator(bits))
