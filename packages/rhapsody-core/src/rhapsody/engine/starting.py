"""What making an engine returns: something to await, or to enter."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

E = TypeVar("E", bound=AbstractAsyncContextManager[Any])
"""The engine."""


class Starting(Coroutine[Any, Any, E]):
    """What `WorkflowEngine.create` returns: a coroutine, and an async context manager.

    `await` it, give it to `asyncio.run`, `create_task` or a task group, or enter
    it with `async with`, see `WorkflowEngine.__aexit__`.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, E]) -> None:
        self._coroutine = coroutine
        self._engine: E | None = None

    def __await__(self) -> Generator[Any, None, E]:
        return self._coroutine.__await__()

    if not TYPE_CHECKING:  # which would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith(("_", "cr_")):
                raise AttributeError(name)
            raise AttributeError(
                f"the engine has not been started, and so has no {name!r}: write `flow = await "
                "WorkflowEngine.create(...)`, or `async with WorkflowEngine.create(...) as flow:`"
            )

    def send(self, value: Any, /) -> Any:
        """Part of the coroutine protocol."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Part of the coroutine protocol."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Part of the coroutine protocol."""
        self._coroutine.close()

    async def __aenter__(self) -> E:
        self._engine = await self._coroutine
        return self._engine

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._engine is not None
        await self._engine.__aexit__(kind, error, traceback)
