"""Tables of what was found, as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.suite.measures import MEASURES, Budget, Measure

OURS = "Rhapsody"
PEERS = {
    contestant.title
    for measure in MEASURES.values()
    for contestant in measure.contestants
    if contestant.needs and not contestant.title.startswith(OURS)
}
"""Names of other systems; the floors are not systems."""

Values = Mapping[str, Mapping[str, list[float]]]
"""By the column and the contestant, a value for each round."""


def document(report: Mapping[str, Any]) -> str:
    """All tables."""
    machine = report["machine"]
    lines = [
        "# Results of the benchmarks",
        "",
        "Made by `nox -s benchmarks`; `docs/performance.md` says what the figures mean. Each is",
        "the median of the rounds, with the lowest and the highest; what is smaller is better.",
        "",
        f"{machine['cores']} cores, {machine['processor']}, {machine['system']}, "
        f"Python {machine['python']}.",
    ]
    lines += summary(report)
    for name, measure in MEASURES.items():
        if name in report["measures"]:
            lines += ["", *section(name, measure, report["measures"][name])]
    return "\n".join(lines) + "\n"


def summary(report: Mapping[str, Any]) -> Iterator[str]:
    """Return the summary of all budgets and comparisons."""
    both = {"Budgets": budgets(report), "Where another system is ahead": ahead(report)}
    for title, lines in both.items():
        if found := list(lines):
            yield from ("", f"## {title}", "", *found)


def budgets(report: Mapping[str, Any]) -> Iterator[str]:
    """Which budgets are met."""
    for name, measure in MEASURES.items():
        values = report["measures"].get(name, {}).get("values", {})
        lines = [verdict(values, budget) for budget in measure.budgets]
        yield from (f"- `{name}`: {line}" for line in lines if line)


def ahead(report: Mapping[str, Any]) -> Iterator[str]:
    """Return the cases in which another system costs less than Rhapsody."""
    for name in MEASURES:
        values = report["measures"].get(name, {}).get("values", {})
        yield from (f"- `{name}`: {line}" for line in losses(ordered(values)))


def section(name: str, measure: Measure, found: Mapping[str, Any]) -> Iterator[str]:
    """One measure."""
    values = ordered(found["values"])
    yield f"## {measure.title} (`{name}`)"
    yield ""
    yield measure.meaning + (f" In {measure.unit}." if measure.unit else "")
    yield ""
    yield from table(values, lambda column, who: figure(values[column].get(who, [])))
    if measure.floor and len(contestants(values)) > 1:
        yield ""
        yield f"As multiples of {measure.floor}:"
        yield ""
        yield from table(values, lambda column, who: ratio(values[column], who, measure.floor))
    if found["notes"]:
        yield from ("", "Missing:", "")
        yield from (f"- {who}: {reasons(texts)}" for who, texts in found["notes"].items())
    versions = ", ".join(f"{what} {version}" for what, version in found["versions"].items())
    yield ""
    rounds = max((len(each) for column in values.values() for each in column.values()), default=0)
    yield f"{found['date']}, {rounds} round{'s' * (rounds != 1)}" + (
        f"; {versions}." if versions else "."
    )


def ordered(values: Values) -> Values:
    """The columns with those of one kind together, the smallest size first."""
    split = {column: column.rpartition(" ")[::2] for column in values}
    kinds = list(dict.fromkeys(kind for kind, _ in split.values()))

    def place(column: str) -> tuple[int, int]:
        kind, size = split[column]
        number = size.replace(",", "")
        return kinds.index(kind), int(number) if number.isdecimal() else 0

    return {column: values[column] for column in sorted(values, key=place)}


def contestants(values: Values) -> list[str]:
    """All that have a value, in the order of the measure."""
    return list(dict.fromkeys(who for column in values.values() for who in column))


def table(values: Values, cell: Any) -> Iterator[str]:
    """Return a table with a row for each contestant and a column for each case."""
    rows = [["", *values]]
    rows += [[who, *(cell(column, who) for column in values)] for who in contestants(values)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [each.rjust(width) for each, width in zip(row[1:], widths[1:], strict=True)]
        yield f"| {' | '.join(cells)} |"
        if not number:
            yield "|" + "|".join(["---", *["---:"] * (len(row) - 1)]) + "|"


def short(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def figure(found: list[float]) -> str:
    """Return a median with the lowest and the highest value."""
    if not found:
        return "-"
    median = short(statistics.median(found))
    return f"{median} ({short(min(found))}-{short(max(found))})" if len(found) > 1 else median


def ratio(column: Mapping[str, list[float]], who: str, floor: str) -> str:
    """The median of a contestant as a multiple of the floor's."""
    if not column.get(who) or not column.get(floor):
        return "-"
    return short(statistics.median(column[who]) / statistics.median(column[floor]))


def reasons(notes: list[str]) -> str:
    """Return why values are missing, with those that exceed the time limit grouped."""
    long = [note.removeprefix("too long: ") for note in notes if note.startswith("too long: ")]
    others = [note for note in notes if not note.startswith("too long: ")]
    return "; ".join([*others, *([f"{', '.join(long)} would take too long"] if long else [])])


def losses(values: Values) -> Iterator[str]:
    """The peers that cost less than ours, of several ours the one that is first in the tables."""
    ours = next((who for who in contestants(values) if who.startswith(OURS)), "")
    for column, found in values.items():
        medians = {who: statistics.median(each) for who, each in found.items() if each}
        cheaper = [
            f"{who} ({short(cost / medians[ours])} of {ours})"
            if ours in medians
            else f"{who} ({ours} took too long or failed)"
            for who, cost in medians.items()
            if who in PEERS and cost < medians.get(ours, math.inf)
        ]
        if ours and cheaper:
            yield f"{column}: {', '.join(cheaper)}"


def verdict(values: Values, budget: Budget) -> str:
    """Return whether a budget is met; empty if it was not measured."""

    def median(column: str, who: str) -> float:
        return statistics.median(values[column][who])

    what, reference = budget.ours, budget.reference
    try:
        found = median(budget.column, what)
        if budget.since:
            growth = found / median(budget.since, what)
            found = growth * median(budget.since, reference) / median(budget.column, reference)
            what = f"growth since {budget.since} of {what}"
        elif budget.more:
            found -= median(budget.column, reference)
        elif reference:
            found /= median(budget.column, reference)
    except (KeyError, statistics.StatisticsError):
        return ""
    if reference:
        what += f" {'-' if budget.more else '/'} {reference}"
    met = "met" if found <= budget.limit else "NOT MET"
    return f"{budget.column}, {what}: {found:.3g}, the budget is {budget.limit:.3g}: {met}"
