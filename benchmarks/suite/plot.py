"""Plot of the cost per task over the number of tasks, for all contestants of three measures."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.suite.measures import MEASURES

PANELS = ("engine", "threads", "processes")

COLOURS = {
    "Rhapsody": "#c0392b",
    "radical.asyncflow": "#1f77b4",
    "Parsl": "#2ca02c",
    "Prefect": "#9467bd",
    "executorlib": "#e6a700",
    "Ray": "#17becf",
    "Dask": "#8c564b",
}
"""Colors by system; the floors are gray."""

MAIN = ("Rhapsody, noop", "Rhapsody, threads", "Rhapsody, processes")
MARKERS = {"Rhapsody": "o", "radical.asyncflow": "s", "Parsl": "^", "Dask": "D"}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the figure as an SVG file."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "rhapsody", "font.size": 11})
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    names = [name for name in PANELS if name in report["measures"]]
    if not names:
        return
    figure, panels = pyplot.subplots(
        len(names), 1, figsize=(8.5, 3.9 * len(names)), sharex=True, squeeze=False
    )
    for name, axes in zip(names, panels[:, 0], strict=True):
        panel(axes, name, report["measures"][name]["values"])
    panels[-1][0].set_xlabel("number of tasks")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def panel(axes: Any, name: str, values: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Plot the fans of one measure."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for column, found in values.items():
        kind, size = column.rsplit(" ", 1)
        if kind == "fan":
            for who, figures in found.items():
                if figures:
                    point = (int(size.replace(",", "")), statistics.median(figures))
                    lines.setdefault(who, []).append(point)
    for who, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), label=who, **style(who))
    axes.set(xscale="log", yscale="log", ylabel="µs per task", title=MEASURES[name].title)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def style(who: str) -> dict[str, Any]:
    """Return the line style of a contestant."""
    system = who.split(",")[0]
    if system not in COLOURS:
        dashes = "--" if who.startswith(("asyncio t", "Thread", "Process")) else ":"
        return {"color": "#777777", "linestyle": dashes, "marker": ".", "linewidth": 1.3}
    ours = system == "Rhapsody"
    return {
        "color": COLOURS[system],
        "linestyle": "-." if ours and who not in MAIN else "-",
        "marker": MARKERS.get(system, "v"),
        "markersize": 5 if ours else 4,
        "linewidth": 2.4 if ours else 1.3,
        "zorder": 3 if ours else 2,
    }
