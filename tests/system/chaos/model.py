"""Model of the end of each call of a graph: plain Python, without an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from tests.system.chaos.graphs import FAILS, INNER, MODULUS, Call

End = tuple[str, object]
"""`("done", value)`, `("failed", the exception's class)`, `("dependency", None)` for what did not
run because another failed, or `("cancelled", None)`."""

CANCELLED: End = ("cancelled", None)
DEPENDENCY: End = ("dependency", None)

PLAIN = ("function", "coroutine")
"""Kinds whose values may stay with a backend, where other calls of these kinds use them."""

LOST = (("failed", "BackendUnavailableError"), ("failed", "TaskLostError"))
"""Ends of a call whose value was lost with its backend."""


def value_of(call: Call, values: Sequence[int]) -> int:
    """The value of a call that ends well, from those of the calls that it needs."""
    total = (sum(values) + call.number) % MODULUS
    match call.kind:
        case "falls back" | "program falls back":
            return call.number * 7 % MODULUS
        case "block" | "thread block":
            return (total + call.number + INNER) % MODULUS
        case "nested block":
            return (total + call.number + INNER + 1) % MODULUS
        case "read":
            return (total + call.needs[0]) % MODULUS
        case "read by program":
            return (total + 2 * call.needs[0] + 1) % MODULUS
        case "service":
            return call.number
        case _:
            return total


def end_of(call: Call, ends: Mapping[int, End], cancelled: bool) -> End:
    """Return how a call must end, given the ends of the calls before it.

    Args:
        call: The call.
        ends: How those before it have ended.
        cancelled: It was cancelled before it had ended.
    """
    before = [ends[number] for number in (*call.needs, *call.after)]
    if cancelled or CANCELLED in before:
        return CANCELLED
    if any(kind != "done" for kind, _ in before):
        return DEPENDENCY
    if call.kind in FAILS:
        return "failed", FAILS[call.kind]
    return "done", value_of(call, [int(str(ends[number][1])) for number in call.needs])


def _failed(ends: Iterable[End]) -> bool:
    return any(kind in ("failed", "dependency") for kind, _ in ends)


def wrong_ends(
    graph: Sequence[Call],
    ends: Mapping[int, End],
    cancelled: Collection[int],
    may_fail: Collection[str] = (),
    *,
    lost: bool = False,
    cut_short: bool = False,
    pushed: bool = False,
) -> list[str]:
    """Return the errors in the ends of the calls of a graph.

    Args:
        graph: The graph.
        ends: How each call has ended.
        cancelled: Those that were cancelled before they had ended.
        may_fail: Kinds that may also fail because of what was done to them.
        lost: Attempts may have been lost, and services.
        cut_short: All that had not ended was cancelled at some moment.
        pushed: Backends may have what depends on a call before it has ended.
    """
    wrong = []
    made: dict[int, int] = {}  # values, also those that were lost after other calls had used them
    services = {call.number for call in graph if call.kind == "service"}
    for call in graph:
        if call.number not in ends:
            wrong.append(f"{call} has not ended")
            break
        end, right = ends[call.number], end_of(call, ends, call.number in cancelled)
        value = None
        if pushed and call.kind in PLAIN and not call.after and made.keys() >= {*call.needs}:
            value = value_of(call, [made[number] for number in call.needs])
        if end[0] == "done":
            made[call.number] = int(str(end[1]))
        elif end in LOST and value is not None:
            made[call.number] = value
        if end == right or (cut_short and end == CANCELLED):
            continue
        if end == ("done", value) and right == DEPENDENCY:
            continue  # the value of a dependency stayed with the backend, and was lost there later
        if end[0] == "failed" and call.kind in may_fail and right != CANCELLED:
            continue
        if end[0] == "dependency" and lost and not services.isdisjoint((*call.needs, *call.after)):
            continue  # its service has failed before it began
        before = {number: ends[number] for number in (*call.needs, *call.after)}
        ended = end[0] == "done" or end == ("failed", FAILS.get(call.kind))
        ended = ended or (end == DEPENDENCY and _failed(before.values()))
        if cut_short and pushed and ended and CANCELLED in before.values():
            continue  # what it depends on had ended, was lost with its worker, and then cancelled
        wrong.append(f"{call} ended as {end}, not {right}; before it: {before}")
    return wrong


def wrong_counts(
    graph: Sequence[Call],
    ends: Mapping[int, End],
    cancelled: Collection[int],
    log: Iterable[str],
    *,
    lost: bool,
    cut_short: bool,
    pushed: bool,
) -> list[str]:
    """Return the errors in how often each call ran.

    Args:
        graph: The graph.
        ends: How each call has ended.
        cancelled: Those that were cancelled before they had ended.
        log: What was noted: a line `ran NUMBER ...` for each attempt.
        lost: Attempts may have been lost, and so there may be more.
        cut_short: All that had not ended was cancelled at some moment.
        pushed: Backends may have what depends on a call before it has ended.
    """
    ran = Counter(int(line.split()[1]) for line in log if line.startswith("ran "))
    at_once = {call.number for call in graph if call.number in call.cancels}
    wrong = []
    for call in graph:
        end, times = ends[call.number][0], ran[call.number]
        attempts = {"flaky": call.failures + 1, "flaky program": call.failures + 1, "exhausted": 2}
        usual = attempts.get(call.kind, 1)
        stopped = end == "cancelled" and (cut_short or pushed or call.number in cancelled)
        if call.kind == "service" or stopped:
            fine = call.number not in at_once or times == 0
        elif end in ("dependency", "cancelled"):
            fine = times == 0 or (lost and end == "dependency")  # its service went meanwhile
        elif not lost:
            fine = times == usual or (cut_short and end == "failed" and times < usual)
        else:  # one that falls back may have been lost for good before it ran
            fine = end != "done" or "falls back" in call.kind or times >= usual
        if not fine:
            wrong.append(f"{call} ended as {ends[call.number]} and ran {times} times")
    return wrong


def runs_again(graph: Iterable[Call]) -> set[int]:
    """The calls that each run makes again: uses of a fallback, and what comes after them."""
    again: set[int] = set()
    for call in graph:
        if "falls back" in call.kind or not again.isdisjoint(call.after):
            again.add(call.number)
    return again


def ran_after_seen(log: Iterable[str]) -> list[str]:
    """The calls that ran after the program had seen their results."""
    seen: set[str] = set()
    wrong = []
    for line in log:
        what, number = line.split()[:2]
        if what == "seen":
            seen.add(number)
        elif number in seen:
            wrong.append(number)
    return wrong
