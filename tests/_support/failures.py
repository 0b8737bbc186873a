"""An exception of the user's, and looks at what futures raise."""

from __future__ import annotations

import asyncio
from typing import Any

from rhapsody import DependencyFailureError, WorkflowEngine
from tests._support.scripted import outcome


class OwnError(Exception):
    """An exception type of the user's."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


async def dependency_failure(future: asyncio.Future[Any]) -> DependencyFailureError:
    """Return the exception of a dependent's future."""
    error = await outcome(future)
    assert isinstance(error, DependencyFailureError)
    return error


def broken_and_use(flow: WorkflowEngine) -> tuple[Any, Any]:
    """A task that raises `OwnError(7)`, and one that gives back its argument."""

    @flow.function_task
    def broken() -> int:
        raise OwnError(7)

    @flow.function_task
    def use(x: int) -> int:
        return x

    return broken, use
