"""A scan of throws, in which each group of tasks uses other definitions of the program."""

import asyncio  # seen by: total
import functools  # seen by: table half power twice
import math  # seen by: throw swing
import operator  # seen by: sorted
from collections.abc import Callable  # seen by: twice throw
from typing import Any  # seen by: *

import settings  # seen by: fall swing drag planet label limit
from bodies import Body, Hollow, Shape, Track, area, describe  # seen by: drag mass track shape
from results import show  # seen by: *
from settings import rounded  # seen by: fall throw swing drag total

ANGLES = [15, 30, 60]  # seen by: throw swing
STEP = 0.25  # seen by: drag
NAMES = [("b", 2), ("a", 3), ("c", 1)]  # seen by: sorted
FORMULAS = {  # seen by: table
    "line": lambda x: 2 * x + 1,
    "square": lambda x: x * x,
}
FACTOR = settings.LIMIT / 8  # seen by: limit
ENABLED = True  # seen by: limit
SPARE = STEP + 3  # seen by: -


def fall(height: float) -> float:  # seen by: fall
    """Return how long a body falls."""
    time = (2 * height / settings.GRAVITY) ** 0.5
    return rounded(time)


def make_throw(speed: float) -> Callable[[int], float]:  # seen by: throw
    """Return a function for one speed."""
    doubled = speed * 2

    def throw(angle: int) -> float:
        """Return the width of a throw."""
        turn = math.radians(angle)
        if angle <= 15:
            return rounded(doubled * math.sin(turn))
        return rounded(speed * math.cos(turn))

    return throw


def drag(body: Body, *, step: float = STEP, turns: int = 3) -> float:  # seen by: drag
    """Return a speed after some steps with drag."""
    speed = 10.0
    for turn in range(turns):
        speed -= step * settings.AIR["density"] * area(body.radius)
        if speed < 1.0 and turn > 1:
            break
    return rounded(speed + body.mass())


def swing(length: float, *angles: int) -> list[float]:  # seen by: swing
    """Return the periods of a pendulum."""
    base = 2 * math.pi * math.sqrt(length / settings.GRAVITY)
    return [rounded(base * (1 + angle / 100)) for angle in angles if angle != 30]


def planet(name: str) -> str:  # seen by: planet
    """Return what is known about a planet."""
    try:
        gravity, pressure = settings.PLANETS[name]
    except KeyError:
        return "unknown"
    else:
        has_air = pressure > 0.01
    return f"{name} {gravity} {has_air}"


def label(number: int) -> str:  # seen by: label
    """Return a number with its unit."""
    return "/".join(f"{number}{unit}" for unit in settings.UNITS)


def table(name: str, x: int) -> int:  # seen by: table
    """Return a value of a formula."""
    formula: Callable[[int], int] = FORMULAS[name]
    return functools.reduce(lambda a, b: a + formula(b), range(x), 0)


def power(base: int, exponent: int, *, offset: int = 1) -> int:  # seen by: half power
    """Return a power."""
    return base**exponent + offset


half = functools.partial(power, 2, offset=5)  # seen by: half


@functools.lru_cache(maxsize=64)
def fibonacci(n: int) -> int:  # seen by: power
    """Return a number of a sequence."""
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def repeated(
    times: int,
) -> Callable[[Callable[[int], int]], Callable[[int], int]]:  # seen by: twice
    """Return a decorator that calls a function repeatedly."""

    def decorate(function: Callable[[int], int]) -> Callable[[int], int]:
        @functools.wraps(function)
        def call(number: int) -> int:
            for _ in range(times):
                number = function(number)
            return number

        return call

    return decorate


@repeated(2)
def twice(number: int) -> int:  # seen by: twice
    """Return a number after two steps."""
    return 3 * number + 1


def ordered(reverse: bool) -> list[str]:  # seen by: sorted
    """Return names in their order."""
    return [name for name, _ in sorted(NAMES, key=operator.itemgetter(1), reverse=reverse)]


def limit(number: int) -> str:  # seen by: limit
    """Return whether a number is within the limit."""
    if not ENABLED or number > settings.LIMIT:
        return "above"
    assert number >= 0, "negative"
    return "below" if number < FACTOR else "near"


def late(numbers: list[float]) -> float:  # seen by: late
    """Return a sum by a module that is imported now."""
    from late import weighted

    return weighted(numbers)


def kind(value: object) -> str:  # seen by: kind
    """Return the kind of a value."""
    match value:
        case int() | float() if value > 10:
            return "large"
        case {"size": size}:
            return f"size {size}"
        case [first, *_]:
            return f"list {first}"
        case _:
            return "other"


async def main(flow: Any) -> None:
    """Call all tasks."""
    calls: dict[str, Any] = {}
    fallen = flow.function_task(fall)  # seen by: fall total
    for height in (10, 20):  # seen by: fall
        calls[f"fall/{height}"] = fallen(height)
    thrown = flow.function_task(make_throw(12.5), name="throw")  # seen by: throw
    for angle in ANGLES:  # seen by: throw
        calls[f"throw/{angle}"] = thrown(angle)

    offset = 2.5  # seen by: total

    @flow.function_task
    def total(numbers: list[float], scale: int = 2) -> float:  # seen by: total
        """Return a sum."""
        return rounded(sum(numbers) * scale + offset)

    @flow.function_task
    async def mass(hollow: bool) -> float:  # seen by: mass
        """Return the mass of a body."""
        body = Hollow.small() if hollow else Body(density=4.0)
        return body.mass() * Hollow.pieces(1)

    calls["drag/1"] = flow.function_task(drag)(Body(1.0))  # seen by: drag
    calls["drag/2"] = flow.function_task(drag)(Body(0.25), step=0.5)  # seen by: drag
    calls["swing"] = flow.function_task(swing)(1.5, *ANGLES)  # seen by: swing
    for name in ("moon", "mars", "sun"):  # seen by: planet
        calls[f"planet/{name}"] = flow.function_task(planet)(name)
    calls["label"] = flow.function_task(label)(7)  # seen by: label
    calls["table/line"] = flow.function_task(table)("line", 4)  # seen by: table
    calls["table/square"] = flow.function_task(table)("square", 4)  # seen by: table
    calls["half"] = flow.function_task(half, name="half")(4)  # seen by: half
    calls["power"] = flow.function_task(  # seen by: power
        lambda n: power(n, 2) + fibonacci(n), name="power"
    )(6)
    calls["twice"] = flow.function_task(twice)(2)  # seen by: twice
    calls["sorted"] = flow.function_task(ordered)(False)  # seen by: sorted
    calls["limit/4"] = flow.function_task(limit)(4)  # seen by: limit
    calls["limit/41"] = flow.function_task(limit)(41)  # seen by: limit
    calls["late"] = flow.function_task(late)([1.0, 0.5])  # seen by: late
    kinds = flow.function_task(kind)  # seen by: kind
    calls["kind/number"] = kinds(12)  # seen by: kind
    calls["kind/dict"] = kinds({"size": 2})  # seen by: kind
    calls["kind/list"] = kinds([4, 5])  # seen by: kind
    calls["mass/hollow"] = mass(True)  # seen by: mass
    calls["mass/full"] = mass(False)  # seen by: mass
    calls["shape"] = flow.function_task(describe)(Shape.CUBE)  # seen by: shape
    calls["track"] = flow.function_task(  # seen by: track
        lambda: (len(Track()), Track(step=1.5).moved()), name="track"
    )()
    calls["fall/5"] = fallen(5)  # seen by: fall total
    calls["fall/45"] = fallen(45)  # seen by: fall total
    numbers = await asyncio.gather(calls["fall/5"], calls["fall/45"])  # seen by: total
    calls["total"] = total(numbers)  # seen by: total
    await show(calls)
