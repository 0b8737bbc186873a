"""A simulation with seeds, a package, classes of many kinds, and blocks."""

import abc  # seen by: abstract
import asyncio  # seen by: add shuffled
import itertools  # seen by: pairs
import random  # seen by: drawn
from dataclasses import dataclass, field, replace  # seen by: settled
from functools import cached_property, partial  # seen by: cached partial
from typing import Any  # seen by: *

import lattice  # seen by: walk
import parameters  # seen by: level parsed price chosen mode walk
import tools  # seen by: registered dispatched managed counted generated
from lattice import Walker, make  # seen by: made walk
from lattice.grid import Point, bounded  # seen by: bounded
from results import show  # seen by: *
from tools import text  # seen by: text

random.seed(5)  # seen by: drawn
parameters.LEVELS.append(7)  # seen by: level
parameters.TABLE["low"] = 3  # seen by: level
Walker.stride = 2  # seen by: walk made
WORDS = "alpha=1 beta=22"  # seen by: parsed
POWERS = [lambda n, k=k: n**k for k in (1, 2)]  # seen by: powers
SIZES = {"small": 1, "large": 3}  # seen by: scaled
SIZES |= {"huge": 5}  # seen by: scaled
scaled = partial(lambda size, factor: SIZES[size] * factor, factor=3)  # seen by: scaled
COUNT = 4  # seen by: add


@dataclass(frozen=True)
class Settings:  # seen by: settled
    """Settings with defaults."""

    steps: int = 3
    names: tuple[str, ...] = ("a", "b")
    weights: dict[str, float] = field(default_factory=lambda: {"a": 0.5})

    @property
    def size(self) -> int:
        """The number of names, times the steps."""
        return len(self.names) * self.steps

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(self.steps)


class Model(abc.ABC):  # seen by: abstract cached
    """A model, whose score a subclass computes."""

    bias = 0.5

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = scale

    @abc.abstractmethod
    def score(self, x: float) -> float:
        """Return a score."""

    def best(self) -> float:
        """Return the best score."""
        return max(self.score(x) for x in (0.0, 1.0, 2.0)) + self.bias


class Parabola(Model):  # seen by: abstract cached
    """A model with a largest score within the range."""

    def score(self, x: float) -> float:
        return self.scale * x * (1.5 - x)

    @cached_property
    def top(self) -> float:
        """The largest score."""
        return self.best() * 10


DEFAULTS = Settings(steps=4)  # seen by: settled
MODEL = Parabola(3.0)  # seen by: cached


def settled(steps: int | None = None) -> tuple[int, float]:  # seen by: settled
    """Return figures of settings."""
    settings = DEFAULTS if steps is None else replace(DEFAULTS, steps=steps)
    return settings.size, sum(settings.weights.values())


def walk(
    kind: str, length: int, seed: int = parameters.SEED
) -> list[tuple[int, int]]:  # seen by: walk
    """Return the path of a walker."""
    walker = lattice.Lazy(seed) if kind == "lazy" else make(kind, seed)
    return walker(length)


def made(name: str) -> str:  # seen by: made
    """Return the name of a kind of walkers."""
    return type(make(name, 0)).__name__ + str(Walker.stride)


def level(word: str) -> list[int]:  # seen by: level
    """Return the levels from one on."""
    return parameters.LEVELS[parameters.TABLE[word] - 1 :]


def parsed() -> dict[str, int]:  # seen by: parsed
    """Return the words with their numbers."""
    return {key: int(value) for key, value in parameters.PATTERN.findall(WORDS)}


def price(number: int) -> str:  # seen by: price
    """Return a price."""
    return str(parameters.PRICE * number * int(1 / parameters.SHARE))


def chosen() -> str:  # seen by: chosen
    """Return what the import has chosen."""
    return parameters.CHOSEN


def mode(number: int) -> int:  # seen by: mode
    """Return a number with the mode."""
    return (number << 1) ^ parameters.MODE


def drawn(number: int) -> list[int]:  # seen by: drawn
    """Return numbers from the global generator."""
    return [random.randint(0, 9) for _ in range(number)]


def shuffled(generator: random.Random, values: list[int]) -> list[int]:  # seen by: shuffled
    """Return values in another order."""
    return generator.sample(values, len(values) - 1)


def managed(values: list[int]) -> int:  # seen by: managed
    """Return a sum while a value is added."""
    with tools.managed(list(values)) as more:
        return sum(more)


def counted(start: int) -> list[int]:  # seen by: counted
    """Return numbers of a counter."""
    step = tools.counter(start)
    return [step() for _ in range(3)]


def pairs(values: list[int]) -> list[tuple[int, int]]:  # seen by: pairs
    """Return pairs of values that differ enough."""
    found = set()
    for one, other in itertools.combinations(values, 2):
        if abs(one - other) >= 2 and (one, other) != (1, 4):
            found.add((one, other))
    return sorted(found)


async def main(flow: Any) -> None:
    """Call all tasks."""
    calls: dict[str, Any] = {}
    function = flow.function_task
    calls["walk/lazy"] = function(walk)("lazy", 6)  # seen by: walk
    calls["walk/quick"] = function(walk)("quick", 4, seed=3)  # seen by: walk
    calls["made"] = function(made)("quick")  # seen by: made
    calls["bounded"] = function(lambda x: bounded(Point(x)), name="bounded")(12)  # seen by: bounded
    calls["level/low"] = function(level)("low")  # seen by: level
    calls["level/high"] = function(level)("high")  # seen by: level
    calls["parsed"] = function(parsed)()  # seen by: parsed
    calls["price"] = function(price)(3)  # seen by: price
    calls["chosen"] = function(chosen)()  # seen by: chosen
    calls["mode"] = function(mode)(6)  # seen by: mode
    calls["settled"] = function(settled)()  # seen by: settled
    calls["settled/more"] = function(settled)(5)  # seen by: settled
    calls["abstract"] = function(lambda: Parabola().best(), name="abstract")()  # seen by: abstract
    calls["cached"] = function(lambda: MODEL.top, name="cached")()  # seen by: cached
    calls["powers"] = function(  # seen by: powers
        lambda n: [power(n) for power in POWERS], name="powers"
    )(3)
    calls["scaled"] = function(scaled, name="scaled")("large")  # seen by: scaled
    calls["registered"] = function(  # seen by: registered
        lambda n: [each(n) for each in tools.FUNCTIONS.values()], name="registered"
    )(5)
    calls["dispatched"] = function(tools.described)([1, "b"])  # seen by: dispatched
    calls["managed"] = function(managed)([1, 2])  # seen by: managed
    calls["counted"] = function(counted)(5)  # seen by: counted
    calls["generated"] = function(  # seen by: generated
        lambda n: list(tools.generated(n)), name="generated"
    )(4)
    calls["text"] = function(text)("pi", 3.14)  # seen by: text
    calls["pairs"] = function(pairs)([1, 2, 4, 7])  # seen by: pairs
    calls["drawn"] = function(drawn)(3)  # seen by: drawn
    generator = random.Random(8)  # seen by: shuffled
    for number in (1, 2):  # seen by: shuffled
        calls[f"shuffled/{number}"] = function(shuffled)(generator, [1, 2, 3, 4])
        await asyncio.wait([calls[f"shuffled/{number}"]])

    @function
    def add(x: int, y: int = 10) -> int:  # seen by: add
        """Return a sum."""
        return x + y

    @flow.block
    async def sums(start: int) -> list[int]:  # seen by: add
        """Return sums, each of which uses the one before."""
        numbers = [start]
        for step in range(COUNT):
            future = calls[f"add/{step}"] = add(numbers[-1])
            numbers.append(await future)
            if numbers[-1] > 25:
                break
        return numbers

    await asyncio.wait([sums(2)])  # seen by: add
    await show(calls)
