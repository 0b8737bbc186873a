"""Tables of what was found, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.suite.measures import MEASURES, Measure

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
    for name, measure in MEASURES.items():
        if name in report["measures"]:
            lines += ["", *section(name, measure, report["measures"][name])]
    return "\n".join(lines) + "\n"


def section(name: str, measure: Measure, found: Mapping[str, Any]) -> Iterator[str]:
    """One measure."""
    values: Values = found["values"]
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
    budgets = [line for each in measure.budgets if (line := verdict(values, each))]
    if budgets:
        yield ""
        yield from budgets
    notes = [f"- {who}: {'; '.join(texts)}" for who, texts in found["notes"].items()]
    if notes:
        yield ""
        yield "Missing:"
        yield ""
        yield from notes
    versions = ", ".join(f"{what} {version}" for what, version in found["versions"].items())
    yield ""
    yield f"{found['date']}, {found['rounds']} rounds" + (f"; {versions}." if versions else ".")


def contestants(values: Values) -> list[str]:
    """All that have a value, in the order of the measure."""
    return list(dict.fromkeys(who for column in values.values() for who in column))


def table(values: Values, cell: Any) -> Iterator[str]:
    """A row for each contestant, a column for each case."""
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
    """A median, with the lowest and the highest."""
    if not found:
        return "-"
    median = short(statistics.median(found))
    return f"{median} ({short(min(found))}-{short(max(found))})" if len(found) > 1 else median


def ratio(column: Mapping[str, list[float]], who: str, floor: str) -> str:
    """The median of a contestant as a multiple of the floor's."""
    if not column.get(who) or not column.get(floor):
        return "-"
    return short(statistics.median(column[who]) / statistics.median(column[floor]))


def verdict(values: Values, budget: Any) -> str:
    """Whether a budget is met; empty where it was not measured."""
    column = values.get(budget.column, {})
    if not column.get(budget.ours) or (budget.beside and not column.get(budget.beside)):
        return ""
    found = statistics.median(column[budget.ours])
    if budget.beside:
        found /= statistics.median(column[budget.beside])
    met = "met" if found <= budget.limit else "NOT MET"
    beside = f" / {budget.beside}" if budget.beside else ""
    return (
        f"- {budget.column}, {budget.ours}{beside}: {found:.3g}, "
        f"the budget is {budget.limit:.3g}: {met}"
    )
