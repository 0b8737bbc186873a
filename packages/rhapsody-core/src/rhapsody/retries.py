"""Retry policies: how often, after which time and for which exceptions a task is retried.

The engine counts the attempts and waits between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from rhapsody.quantities import seconds


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Policy for retrying a failed task.

    Args:
        attempts: Maximum number of attempts after the first one.
        wait: Time before the next attempt, in seconds or as text such as `"3 min"`; or a
            callable that takes the number of the failed attempt (from 1) and returns the time.
            Called on the engine's loop.
        on: An exception type worth another attempt, or several of them.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A number is negative.
    """

    attempts: int = 1
    wait: float | str | Callable[[int], float | str] = 0.0
    on: type[BaseException] | Iterable[type[BaseException]] = Exception

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise TypeError(f"retries must be a whole number, got {self.attempts!r}")
        if self.attempts < 0:
            raise ValueError(f"retries must be 0 or more, got {self.attempts}")
        if not callable(self.wait):
            object.__setattr__(self, "wait", seconds("wait", self.wait, zero=True))
        types: tuple[object, ...] = (self.on,)
        if isinstance(self.on, Iterable) and not isinstance(self.on, type | str):
            types = tuple(self.on)
            object.__setattr__(self, "on", types)
        for kind in types:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"on must be exception types, got {kind!r}")

    def covers(self, error: BaseException) -> bool:
        """Return True if the policy retries after this exception."""
        return isinstance(error, cast("type[BaseException]", self.on))

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the given attempt has failed."""
        wait = self.wait(attempt) if callable(self.wait) else self.wait
        return seconds("wait", wait, zero=True)


def as_policies(
    value: RetryPolicy | int | Sequence[RetryPolicy] | None,
) -> tuple[RetryPolicy, ...] | None:
    """Return policies given as a policy, a sequence of policies or a number of attempts.

    Raises:
        TypeError: Anything else.
        ValueError: The number is negative.

    Returns:
        At least one policy; `None` for `None`.
    """
    if value is None:
        return None
    if isinstance(value, RetryPolicy):
        return (value,)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (RetryPolicy(attempts=value),)
    for each in value:
        if not isinstance(each, RetryPolicy):
            raise TypeError(
                "retries must be a whole number, a RetryPolicy or a list of these such as "
                f"[RetryPolicy(3, on=MemoryError), RetryPolicy(1, on=OSError)], got {each!r} in it"
            )
    return tuple(value) or (RetryPolicy(attempts=0),)
