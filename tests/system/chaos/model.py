"""What each call of a graph must end as: plain Python, without an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from tests.system.chaos.graphs import FAILS, INNER, MODULUS, Call

End = tuple[str, object]
"""`("done", value)`, `("failed", the exception's class)`, `("dependency", None)` for what did not
run because another failed, or `("cancelled", None)`."""

CANCELLED: End = ("cancelled", None)
DEPENDENCY: End = ("dependency", None)


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


def allowed(call: Call, ends: Mapping[int, End], cancelled_later: bool) -> set[End]:
    """How a call may end, after how the calls before it have ended."""
    before = [ends[number] for number in (*call.needs, *call.after)]
    if CANCELLED in before:
        return {CANCELLED}
    if any(kind != "done" for kind, _ in before):
        # Where they had failed already, that comes before any cancellation.
        end, cancelled_later = DEPENDENCY, cancelled_later or call.number in call.cancels
    elif call.number in call.cancels:
        return {CANCELLED}
    elif call.kind in FAILS:
        end = ("failed", FAILS[call.kind])
    else:
        values = [int(str(ends[number][1])) for number in call.needs]
        end = ("done", value_of(call, values))
    return {end, CANCELLED} if cancelled_later else {end}


def wrong_ends(
    graph: Sequence[Call],
    ends: Mapping[int, End],
    may_fail: Collection[str] = (),
    *,
    may_be_cancelled: bool = False,
) -> list[str]:
    """What is wrong about how the calls of a graph have ended.

    Args:
        graph: The graph.
        ends: How each call has ended.
        may_fail: Kinds that may also fail because of what was done to them.
        may_be_cancelled: All that had not ended was cancelled at some moment.
    """
    later = {other for call in graph for other in call.cancels if other != call.number}
    wrong = []
    for call in graph:
        if call.number not in ends:
            wrong.append(f"{call} has not ended")
            break
        end = ends[call.number]
        right = allowed(call, ends, may_be_cancelled or call.number in later)
        if end in right or (end[0] == "failed" and call.kind in may_fail and right != {CANCELLED}):
            continue
        before = {number: ends[number] for number in (*call.needs, *call.after)}
        wrong.append(f"{call} ended as {end}, not {right}; before it: {before}")
    return wrong


def wrong_counts(
    graph: Sequence[Call],
    ends: Mapping[int, End],
    log: Iterable[str],
    *,
    lost: bool,
    cut_short: bool,
) -> list[str]:
    """What is wrong about how often each call ran.

    Args:
        graph: The graph.
        ends: How each call has ended.
        log: What was noted: a line `ran NUMBER ...` for each attempt.
        lost: Attempts may have been lost, and so there may be more.
        cut_short: All that had not ended was cancelled at some moment.
    """
    ran = Counter(int(line.split()[1]) for line in log if line.startswith("ran "))
    later = {other for call in graph for other in call.cancels}
    wrong = []
    for call in graph:
        end, times = ends[call.number][0], ran[call.number]
        attempts = {"flaky": call.failures + 1, "flaky program": call.failures + 1, "exhausted": 2}
        usual = attempts.get(call.kind, 1)
        stopped = end == "cancelled" and (cut_short or call.number in later)
        if call.kind == "service" or stopped:
            fine = call.number not in call.cancels or times == 0
        elif end in ("dependency", "cancelled"):
            fine = times == 0
        elif not lost:
            fine = times == usual or (cut_short and end == "failed" and times < usual)
        else:  # one that falls back may have been lost for good before it ran
            fine = end != "done" or "falls back" in call.kind or times >= usual
        if not fine:
            wrong.append(f"{call} ended as {ends[call.number]} and ran {times} times")
    return wrong


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
