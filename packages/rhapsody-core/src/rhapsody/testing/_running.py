"""How a check is run: on a loop of its own, with a time limit, to one of four ends.

A check is an ordinary method for pytest, so that authors need no plugin for
asynchronous tests. What the checks prove is in the modules named for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from rhapsody.testing._clock import Clock
from rhapsody.testing._grounds import grounds
from rhapsody.testing._ledger import ledger
from rhapsody.testing._machine import left_in_temporary, listed, temporary
from rhapsody.testing._rules import Check, ConformanceError, Need, Skip
from rhapsody.testing._trial import Shared, Trial

if TYPE_CHECKING:
    from rhapsody.testing._settings import Settings

NOTHING_WRITTEN = "nothing is written into the current directory"
NOTHING_LEFT = "nothing is left in the temporary directory"

Body = Callable[[Any, Trial], Coroutine[Any, Any, None]]
Test = Callable[[Any], None]


def check(rule: str, *needs: Need, dry: bool = False, times: float = 1.0) -> Callable[[Body], Test]:
    """Turns an asynchronous method that gets a `Trial` into a test that pytest can run.

    Args:
        rule: What is proved, in one line.
        needs: What must be there for the check to apply; it is skipped otherwise.
        dry: Also applies to a backend that only pretends to run tasks.
        times: How many of the class's time limits it may take.
    """

    def decorate(body: Body) -> Test:
        name = body.__name__
        group = body.__qualname__.partition(".")[0]
        declaration = Check(group=group, rule=rule, needs=needs, dry=dry, times=times)

        def test(self: Settings) -> None:
            __tracebackhide__ = True
            run(self, declaration, name, body)

        # Not functools.wraps: pytest would take the body's arguments for fixtures.
        test.__name__ = name
        test.__qualname__ = body.__qualname__
        test.__module__ = body.__module__
        test.__doc__ = body.__doc__ or f"{rule[0].upper()}{rule[1:]}."
        test.__dict__["check"] = declaration
        return test

    return decorate


def run(kit: Settings, check: Check, name: str, body: Body) -> None:
    """Runs one check and ends as pytest understands it: nothing, skip, xfail or an error."""
    __tracebackhide__ = True
    reason = kit.expected_failures.get(name)
    try:
        with grounds.entered():
            _run_undisturbed(kit, check, body)
    except Skip as why:
        ledger.note(type(kit), name, check, "skipped", str(why))
        pytest.skip(str(why))
    except ConformanceError as error:
        if reason is None:
            ledger.note(type(kit), name, check, "failed", str(error))
            raise
        ledger.note(type(kit), name, check, "xfailed", reason)
        pytest.xfail(f"{reason} ({error})")
    if reason is not None:
        passes = check.error(f"passes, but expected_failures says {reason!r}: take {name!r} out")
        ledger.note(type(kit), name, check, "failed", str(passes))
        raise passes
    ledger.note(type(kit), name, check, "passed", "")


class Stage:
    """A loop and a backend for all checks of one test class, see `backend_scope`."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.shared = Shared()
        with grounds.entered():
            self.before = temporary()

    def close(self, kit: type[Settings]) -> None:
        """Shut the backend down and close the loop.

        Raises:
            ConformanceError: That took too long, or something is left in the temporary directory.
        """
        limit = kit.time_limit

        async def end(clock: Clock) -> None:
            async with clock.within(limit):
                await self.shared.discard()
            left = await left_in_temporary(self.before, kit.leaves_behind, clock, 10 * kit.settle)
            if left:
                raise ConformanceError(NOTHING_LEFT, listed(left))

        try:
            with grounds.entered(), Clock() as clock:
                self.runner.run(end(clock))
        except TimeoutError:
            detail = f"not within {limit:g} s (`time_limit`) at the end of the class"
            raise ConformanceError("shutdown() ends", detail) from None
        finally:
            self.runner.close()


stages: dict[type, Stage] = {}


def _run_undisturbed(kit: Settings, check: Check, body: Body) -> None:
    """Runs a check, and again where it failed while the machine paused: its tasks went on."""
    __tracebackhide__ = True
    for last in (False, False, True):
        with Clock() as clock:
            try:
                return _run_on_loop(kit, check, body, clock)
            except ConformanceError:
                if last or clock.lost < _PAUSE:
                    raise


_PAUSE = 0.5


def _run_on_loop(kit: Settings, check: Check, body: Body, clock: Clock) -> None:
    __tracebackhide__ = True
    limit = kit.time_limit * check.times
    stage = stages.get(type(kit))
    try:
        # A limit for the body, one for its end, and one for the loop's own end.
        with _alarm(clock, 3 * limit):
            if stage is not None:
                failure = stage.runner.run(_main(kit, check, body, clock, stage.shared))
            else:
                with asyncio.Runner() as runner:
                    failure = runner.run(_main(kit, check, body, clock, None))
    except _LoopBlocked:
        raise check.error(
            f"the loop was blocked for more than {limit:g} s (`time_limit`)"
        ) from None
    if failure is not None:
        raise failure


async def _main(
    kit: Settings, check: Check, body: Body, clock: Clock, shared: Shared | None
) -> Exception | None:
    """Runs the check and its end; what it ended with is returned, for a short traceback."""
    __tracebackhide__ = True
    limit = kit.time_limit * check.times
    trial = Trial(kit, check, clock, shared)
    before = temporary() if shared is None else None
    failure: Exception | None = None
    try:
        async with clock.within(limit) as within:
            await trial.open()
            why = check.why_skipped(trial.capabilities, kit)
            if why is not None:
                raise Skip(why)
            await body(kit, trial)
    except (ConformanceError, Skip) as error:
        failure = error
    except TimeoutError as error:
        if within.expired():
            failure = check.error(f"not done within {limit:g} s (`time_limit`); {trial.status()}")
        else:
            failure = check.error(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
    except Exception as error:  # whatever a backend raises breaks the rule under test
        failure = check.error(f"{type(error).__name__}: {error}")
        failure.__cause__ = error
    ending = await _end(trial, check, limit, before)
    if failure is not None and shared is not None and not isinstance(failure, Skip):
        with suppress(Exception):  # the failure is reported, not what it leads to
            async with clock.within(limit):
                await shared.discard()
    if failure is None or (isinstance(failure, Skip) and ending is not None):
        failure = ending
    elif ending is not None:
        failure.add_note(f"and at the end of the check: {ending}")
    return failure


async def _end(
    trial: Trial, check: Check, limit: float, before: Mapping[object, str] | None
) -> ConformanceError | None:
    """Closes the trial; what went wrong in that, or along the way."""
    try:
        async with trial.clock.within(limit) as within:
            await trial.close()
        trial.judge()
        written = grounds.written()
        if written:
            return ConformanceError(NOTHING_WRITTEN, f"it left {written} in {os.getcwd()}")
        if before is not None:
            kit = trial.kit
            left = await left_in_temporary(before, kit.leaves_behind, trial.clock, 10 * kit.settle)
            if left:
                return ConformanceError(NOTHING_LEFT, listed(left))
    except ConformanceError as error:
        return error
    except TimeoutError as error:
        if within.expired():
            detail = f"not within {limit:g} s (`time_limit`) after {check.rule!r}; {trial.status()}"
        else:
            detail = f"TimeoutError: {error}"
        return ConformanceError("shutdown() ends", detail)
    except Exception as error:  # whatever a backend raises at its end is its fault
        failure = ConformanceError("shutdown() ends", f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure
    return None


class _LoopBlocked(KeyboardInterrupt):
    """Raised through a blocked loop; the loop lets only this kind through."""


@contextmanager
def _alarm(clock: Clock, seconds: float) -> Iterator[None]:
    """Interrupts code that blocks the loop, where no time-out on the loop can come round.

    Works on the main thread of POSIX systems. A timer that was set before, such as
    pytest-timeout's, is left alone where it comes first, and set again afterwards.
    """

    def ring(number: int, frame: object) -> None:
        left = end - clock.now()
        if left <= 0:
            raise _LoopBlocked
        signal.setitimer(signal.ITIMER_REAL, left, seconds)

    on_main = threading.current_thread() is threading.main_thread()
    before = signal.getitimer(signal.ITIMER_REAL)[0] if on_main else 0.0
    if not on_main or 0 < before <= seconds:
        yield
        return
    handler = signal.signal(signal.SIGALRM, ring)
    began, end = time.monotonic(), clock.now() + seconds
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # what blocks once blocks again
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before:
            left = before - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))
