"""Random graphs: which calls a program makes, in which order, and what each depends on.

A graph is made from a seed alone, before anything runs, so that the same seed is always the same
program. Calls depend on earlier ones only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

MODULUS = 1_000_003
"""Values are numbers below this."""

INNER = 1_000_000
"""Number added to a block's number for the second task that it calls."""

KINDS = {
    "function": 300,
    "coroutine": 150,
    "program": 60,
    "block": 20,
    "thread block": 10,
    "nested block": 5,
    "failing block": 5,
    "fails": 15,
    "failing program": 10,
    "falls back": 15,
    "program falls back": 5,
    "flaky": 30,
    "flaky program": 10,
    "exhausted": 10,
    "too long": 3,
    "limited": 20,
    "make": 20,
    "make by function": 15,
    "make several": 8,
    "save": 10,
    "read": 25,
    "read by program": 10,
}
"""Weight of each kind of call, without services."""

FAILS = {
    "fails": "ValueError",
    "failing program": "TaskFailedError",
    "exhausted": "OSError",
    "too long": "TaskTimeoutError",
    "failing block": "ValueError",
}
"""The kinds that fail, with the class of their exception."""

MAKES_FILE = ("make", "make by function", "save")
MAKES = (*MAKES_FILE, "make several")
BLOCKS = ("block", "thread block", "nested block", "failing block")
RETRIED = ("flaky", "flaky program", "falls back", "program falls back")
PROGRAMS = (
    "program", "failing program", "program falls back", "flaky program", "make", "make several",
    "save", "read by program", "service",
)  # fmt: skip
ON_DISK = (*PROGRAMS, *BLOCKS, "make by function", "read")
"""Kinds for which directories and files are made."""


@dataclass(frozen=True)
class Call:
    """One call of a graph.

    Attributes:
        number: Which one it is; its arguments and its value follow from it.
        kind: One of `KINDS`, or `"service"`.
        needs: The calls whose values it takes. Of a call that reads a file, the first made it.
        after: The calls that it waits for, without their values.
        failures: How many attempts of a flaky one fail.
        priority: Its priority.
        pause: The program lets the loop go round before it makes the call.
        wait_for: A call whose end the program waits for before it makes this one.
        cancels: The calls that the program cancels when it has made this one.
    """

    number: int
    kind: str
    needs: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    failures: int = 0
    priority: int = 0
    pause: bool = False
    wait_for: int | None = None
    cancels: tuple[int, ...] = ()


def make_graph(seed: int, size: int, *, services: int = 2) -> list[Call]:
    """Makes the graph of a seed.

    Args:
        seed: Says which.
        size: How many calls.
        services: How many of them are services, at most.
    """
    chance = random.Random(seed)
    kinds = chance.choices([*KINDS], [*KINDS.values()], k=size)
    for number in chance.sample(range(size), min(services, size // 50)):
        kinds[number] = "service"
    reach = chance.choice((5, 30, 200, size))  # from long chains to wide fans
    graph: list[Call] = []
    spoilt: set[int] = set()
    for number, kind in enumerate(kinds):
        well = [call for call in graph[-300:] if call.number not in spoilt]
        makers = [call.number for call in well if call.kind in MAKES_FILE]
        several = [call.number for call in well if call.kind == "make several"]
        needs = _some_of(chance, number, reach, (0, 0, 0, 1, 1, 1, 2))
        if kind == "read" and makers:
            needs = [chance.choice(makers), *needs]
        elif kind == "read by program" and several:
            needs = [chance.choice(several), *needs]
        elif kind.startswith("read"):
            kind = "function"
        elif kind == "service":
            needs = []
        elif chance.random() < 0.01:  # a wide fan-in
            needs = chance.sample(range(number), min(number, 40))
        cancels: tuple[int, ...] = ()
        if chance.random() < 0.02 and kind != "service":
            cancels = (number,)  # at once: it never runs
        elif chance.random() < 0.01 and number:
            other = chance.randrange(max(0, number - 100), number)
            cancels = (other,) if graph[other].kind != "service" else ()
        after = _some_of(chance, number, reach, (0,) * 12 + (1, 2))
        if chance.random() < 0.95:  # otherwise next to nothing would end well
            needs, after = ([n for n in each if n not in spoilt] for each in (needs, after))
        spoilt.update(cancels)
        if kind in FAILS or not spoilt.isdisjoint((*needs, *after)):
            spoilt.add(number)
        graph.append(
            Call(
                number,
                kind,
                tuple(dict.fromkeys(needs)),
                tuple(after),
                failures=chance.randint(1, 3),
                priority=chance.choice((0, 0, 0, 0, 1, -1)),
                pause=chance.random() < 0.1,
                wait_for=chance.randrange(number) if number and chance.random() < 0.01 else None,
                cancels=cancels,
            )
        )
    return graph


def _some_of(
    chance: random.Random, number: int, reach: int, how_many: tuple[int, ...]
) -> list[int]:
    """Some of the calls before a number, not too far back."""
    first = max(0, number - reach)
    return chance.sample(range(first, number), min(number - first, chance.choice(how_many)))
