"""What an attempt gets, whether another follows a failed one, and what stands in for a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rhapsody.engine.node import Node
from rhapsody.engine.settings import NO_FALLBACK
from rhapsody.errors import (
    BackendUnavailableError,
    DependencyFailureError,
    TaskHeldBackError,
    TaskLostError,
    add_note,
    blame,
    is_a,
)
from rhapsody.resources import Resources
from rhapsody.retries import RetryPolicy

LOST = (TaskLostError, BackendUnavailableError)
"""Errors of an attempt that are the infrastructure's, which has tries of its own."""

NOT_COUNTED = (DependencyFailureError, TaskHeldBackError)
"""Errors of tasks that did not run: `max_failures` does not count them."""


class Attempts:
    """How often the tasks of one engine are tried that say nothing of their own.

    Args:
        retries: After failures of the task: the first that covers one counts it.
        lost_retries: How many times after a loss.
    """

    def __init__(self, retries: Sequence[RetryPolicy] | None, lost_retries: int) -> None:
        self._retries = retries
        self._lost_retries = lost_retries

    def next(self, node: Node, error: BaseException) -> tuple[float | None, BaseException]:
        """Counts a failed attempt.

        Returns:
            The seconds until the next one, `None` where there is none; and the error to tell
            then, which is another one where the user's own `wait` raised.
        """
        settings, extra = node.task.settings, node.more()
        try:
            if is_a(error, (*LOST, TaskHeldBackError)):  # the latter by a backend with a queue
                extra.losses += 1
                own = settings.lost_retries
                left = (self._lost_retries if own is None else own) - extra.losses
                return (0.0 if left >= 0 else None), error
            policies = self._retries if settings.retries is None else settings.retries
            for place, policy in enumerate(policies or ()):
                if policy.covers(error):
                    spent = extra.failures[place] = extra.failures.get(place, 0) + 1
                    return policy.delay(node.attempt) if spent <= policy.attempts else None, error
        except (Exception, SystemExit) as mistake:  # the user's own `wait` raised
            blame(mistake, error, f"`wait` in the retries of {node.named()}")
            return None, mistake
        return None, error


def resources_for(node: Node, given: Callable[[int], Any]) -> Resources:
    """Asks for what an attempt gets of a task whose resources depend on the attempt's number.

    Raises:
        TypeError: The answer is not a `Resources` or a dict of its fields.
        ValueError: A number in it is out of range.
    """
    whose = f"the resources of {node.named()} for attempt {node.attempt}"
    try:
        answer = given(node.attempt)
    except (Exception, SystemExit) as mistake:  # the user's own callable raised
        add_note(mistake, f"raised by {whose}")
        raise
    try:
        found = Resources.of(answer)
        if found is None:
            raise TypeError("a Resources or a dict such as {'cores': 2} is needed, got None")
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{whose}: {error} (in {answer!r})") from None
    return found


def fallback(node: Node, error: BaseException) -> tuple[Any, BaseException]:
    """Asks for what stands in for the result of a task that has failed for good.

    Returns:
        It, `NO_FALLBACK` for nothing; and the error to tell then, which is another one where
        the user's own fallback raised.
    """
    given = node.task.settings.fallback
    if given is NO_FALLBACK:
        return NO_FALLBACK, error
    try:
        return given(error) if callable(given) else given, error
    except (Exception, SystemExit) as mistake:  # the user's own fallback raised
        blame(mistake, error, f"the fallback of {node.named()}")
        return NO_FALLBACK, mistake
