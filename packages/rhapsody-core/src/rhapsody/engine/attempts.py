"""What an attempt gets, whether another follows a failed one, and what stands in for a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rhapsody.engine.record import TaskRecord
from rhapsody.engine.settings import NO_FALLBACK
from rhapsody.errors import (
    BackendUnavailableError,
    DependencyFailureError,
    InsufficientWalltimeError,
    TaskLostError,
    add_note,
    blame,
    is_a,
)
from rhapsody.resources import Resources
from rhapsody.retries import RetryPolicy

LOST = (TaskLostError, BackendUnavailableError)
"""Errors of an attempt that are the infrastructure's, which has tries of its own."""

NOT_COUNTED = (DependencyFailureError, InsufficientWalltimeError)
"""Errors of tasks that did not run: they count neither for `max_failures` nor as retried."""


class Attempts:
    """How often the tasks of one engine are tried that say nothing of their own.

    Args:
        retries: After failures of the task: the first that covers one counts it.
        lost_retries: How many times after a loss.
    """

    def __init__(self, retries: Sequence[RetryPolicy] | None, lost_retries: int) -> None:
        self._retries: Sequence[RetryPolicy] = retries or (RetryPolicy(attempts=0),)
        self._lost_retries = lost_retries

    def next(self, record: TaskRecord, error: BaseException) -> tuple[float | None, BaseException]:
        """Counts a failed attempt, and says so in the task where the next one is elsewhere.

        Returns:
            The seconds until the next one, `None` where there is none; and the error to tell
            then, which is another one where the user's own `wait` raised.
        """
        try:
            return self._delay(record, error), error
        except (Exception, SystemExit) as mistake:  # the user's own `wait` raised
            blame(mistake, error, f"`wait` in the retries of {record.named()}")
            return None, mistake

    def _delay(self, record: TaskRecord, error: BaseException) -> float | None:
        settings, extra = record.task.settings, record.more()
        if extra.restarts:  # a service that was ready before
            extra.restarts += 1
            return 0.0 if extra.restarts <= settings.restarts else None
        other = _next_backend(record) if settings.other_backends else None
        if is_a(error, (*LOST, InsufficientWalltimeError)):  # the latter by a backend with a queue
            extra.losses += 1
            most = self._lost_retries if settings.lost_retries is None else settings.lost_retries
            leaves = other is not None and is_a(
                error, (BackendUnavailableError, InsufficientWalltimeError)
            )
            if extra.losses <= most and not leaves:
                return 0.0
        else:
            policies = settings.retries or self._retries
            covering = (place for place, each in enumerate(policies) if each.covers(error))
            place = next(covering, None)
            if place is None:
                return None
            spent = extra.failures.get(place, 0) + 1
            extra.failures = {**extra.failures, place: spent}
            if spent <= policies[place].attempts:
                return policies[place].delay(record.attempt)
        if other is None:
            return None
        extra.elsewhere, extra.failures, extra.losses = other, {}, 0
        return 0.0


def _next_backend(record: TaskRecord) -> str | None:
    """Notes where an attempt has failed; the next of the task's other backends, if there is one."""
    assert record.backend is not None
    extra, name = record.more(), record.backend.name
    tried = extra.tried = {**extra.tried, name: extra.tried.get(name, 0) + 1}
    return next(
        (other for other in record.task.settings.other_backends if other not in tried), None
    )


def resources_for(record: TaskRecord, given: Callable[[int], Any]) -> Resources:
    """Asks for what an attempt gets of a task whose resources depend on the attempt's number.

    Raises:
        TypeError: The answer is not a `Resources` or a dict of its fields.
        ValueError: A number in it is out of range.
    """
    whose = f"the resources of {record.named()} for attempt {record.attempt}"
    try:
        answer = given(record.attempt)
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


def fallback(record: TaskRecord, error: BaseException) -> tuple[Any, BaseException]:
    """Asks for what stands in for the result of a task that has failed for good.

    Returns:
        It, `NO_FALLBACK` for nothing; and the error to tell then, which is another one where
        the user's own fallback raised.
    """
    given = record.task.settings.fallback
    if given is NO_FALLBACK:
        return NO_FALLBACK, error
    try:
        return given(error) if callable(given) else given, error
    except (Exception, SystemExit) as mistake:  # the user's own fallback raised
        blame(mistake, error, f"the fallback of {record.named()}")
        return NO_FALLBACK, mistake
