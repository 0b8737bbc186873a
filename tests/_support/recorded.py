"""Programs whose results are recorded in the current directory, and what of them has run."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from rhapsody import WorkflowEngine

Program = Callable[[WorkflowEngine], Awaitable[Any]]

LOG = "ran.txt"


class BrokenOffError(Exception):
    """Ends a run that has not ended well."""


def note(word: str) -> None:
    """Writes down what has run, outside the program: what it is made of counts."""
    with open(LOG, "a") as log:
        log.write(f"{word}\n")


def ran() -> Counter[str]:
    """Return what has run so far, and how often."""
    return Counter(Path(LOG).read_text().splitlines())


@contextlib.asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[WorkflowEngine]:
    """An engine with the journal of the current directory."""
    async with WorkflowEngine.create(journal="run.sqlite", **options) as flow:
        yield flow


async def broken_off(program: Program, **options: Any) -> Any:
    """Runs a program up to its end, and leaves the engine with an error; what it returned."""
    found = None
    with contextlib.suppress(BrokenOffError):
        async with engine(**options) as flow:
            found = await program(flow)
            raise BrokenOffError
    return found


def tasks(flow: WorkflowEngine) -> tuple[Any, Any]:
    """A task that doubles a number, and one that returns how often it has run."""

    @flow.function_task
    def double(number: int) -> int:
        note("double")
        return 2 * number

    @flow.function_task
    def sample() -> int:
        note("sample")
        return ran()["sample"]

    return double, sample


async def chain(flow: WorkflowEngine) -> int:
    """Three tasks, each of which takes what the one before returned: 8."""
    double, _ = tasks(flow)
    found: int = await double(double(double(1)))
    return found
