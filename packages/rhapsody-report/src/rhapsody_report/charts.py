"""Charts of the report, drawn with Bokeh.

The colors of areas and lines are readable on light and dark backgrounds. The colors of text and
axes are variables of the style sheet, from which Bokeh reads them when it draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, PlainText, Range1d
from bokeh.plotting import figure

from rhapsody.history import call_of, duration, size
from rhapsody.history import utilization as parts_of
from rhapsody_report.layout import layers_of, ordered, shortened

if TYPE_CHECKING:
    from rhapsody.history import Attempt, Busy, Graph, Lane, NameStatistics, Step
    from rhapsody.plugins import NodeSample

COLORS = {
    "done": "#2da44e",
    "failed": "#e5534b",
    "retried": "#d4852a",
    "skipped": "#b38728",
    "canceled": "#9a8c3c",
    "running": "#3b82f6",
    "unfinished": "#a371f7",
    "waiting": "#888888",
    "reused": "#2a9d8f",
    "building": "#b0629b",
}
"""Colors by outcome, with a contrast of at least 3 to 1 on white and on the dark background."""

ROW = 20
"""Height of a row with a label, in pixels."""

TALL = 600
"""Maximum height of a chart with rows, in pixels, without its axis."""

NAME_COLORS = (
    "#3b82f6", "#d4722a", "#2a9d8f", "#a371f7", "#8c8a2e", "#c2568f", "#a0715a", "#5f8fb4",
)  # fmt: skip
"""Colors of the names of tasks in the timeline, with the same contrast as `COLORS`."""

OTHER_NAMES = "#888888"
"""Color of the names for which there is no color in `NAME_COLORS`."""

PATTERNS = {
    "failed": "/", "retried": "/", "canceled": "x", "unfinished": "x", "running": ".",
    "building": "-",
}  # fmt: skip
"""Patterns of bars in the timeline, by outcome. The bars of tasks that are done have none."""

PATTERN_NAMES = {
    "/": "failed or lost", "x": "canceled or unfinished", ".": "running", "-": "building a value"
}  # fmt: skip
"""Names of the patterns."""

CHARACTER = 7
"""Width of a character on a bar, in pixels."""

PHONE = 250
"""Width of a chart on a phone, in pixels. Names stand on bars that are wide enough on it."""

LABEL = 18
"""Maximum number of characters of a label, so that there is space for the chart on a phone."""

MAX_NAMES = 30
"""Maximum number of names in a chart."""

SEPARATED = 1000
"""Maximum number of attempts that are separated by lines, which would hide the colors of more."""

NARROW = 300
"""Attempts that are shorter than the run divided by this number have outlines in their own color,
because dark outlines would hide them."""

LOAD_ROW = 56
"""Height of a node's row in the chart of the load, in pixels."""

LOADS = {"processors": "running", "memory": "retried", "GPUs": "building"}
"""Curves of the chart of the load, each with the name of its color in `COLORS`."""

CELLS = 200
"""Number of parts of the time, and maximum number of rows, in an aggregated timeline."""


class LegendItem(NamedTuple):
    """Item of a legend.

    Attributes:
        name: What the chart shows in this way.
        color: Its color.
        pattern: Its pattern as in `PATTERN_NAMES`, or an empty string.
    """

    name: str
    color: str
    pattern: str = ""


class Chart(NamedTuple):
    """Chart for a template.

    Attributes:
        data: The chart for Bokeh's script, as JSON.
        height: Its height in pixels.
        legend: What the colors and patterns of the chart mean.
    """

    data: Mapping[str, Any]
    height: int
    legend: Sequence[LegendItem] = ()


def _figure(height: int, end: float, label: str, *, zoom: bool = False, **options: Any) -> Any:
    """Return a figure with a horizontal axis from 0."""
    found: Any = figure(
        height=height,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="xbox_zoom" if zoom else "",
        x_range=Range1d(
            start=0, end=end or 1.0, reset_start=0, reset_end=end or 1.0, bounds="auto"
        ),
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_right=12,
        **options,
    )
    found.xaxis.axis_label = label
    found.xaxis.ticker.desired_num_ticks = 5
    found.axis.minor_tick_out = 0
    found.axis.axis_label_text_font_style = "normal"
    found.ygrid.grid_line_alpha = 0
    return found


def _chart(found: Any, legend: Iterable[tuple[str, ...]] = ()) -> Chart:
    return Chart(json_item(found), found.height, tuple(LegendItem(*each) for each in legend))


def _label_rows(found: Any, labels: Sequence[str], height: int = ROW) -> None:
    """Label the rows of a figure, or some of them if there is no space for all.

    Labels are plain text: to draw formulas, Bokeh would load another script.
    """
    axis = found.yaxis
    axis.major_tick_line_alpha = axis.axis_line_alpha = 0
    every = 1 if height > ROW else math.ceil(len(labels) * ROW / TALL)
    shown = range(0, len(labels), every)
    axis.ticker = FixedTicker(ticks=list(shown))
    axis.major_label_overrides = {
        row: PlainText(text=shortened(labels[row], LABEL)) for row in shown
    }


def _rows_height(rows: int) -> int:
    """Return the height of a figure with this many rows and a horizontal axis."""
    return min(TALL, max(2, rows) * ROW) + 60


def _unit(seconds: float) -> tuple[float, str]:
    """Return the unit of an axis on which this is the longest time, in seconds and as text."""
    for unit, text in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")):
        if seconds >= 2 * unit:
            return unit, text
    return 1e-3, "milliseconds"


# Timeline and utilization.


def timeline(found: Sequence[Lane], end: float, critical: set[str], active: bool) -> Chart | None:
    """Return the chart of the attempts of each worker.

    The color of an attempt shows the name of its task, and its pattern the outcome.

    Args:
        found: The lanes.
        end: The end of the time axis, in microseconds.
        critical: The keys of the tasks on the critical path.
        active: True if the run is in progress.
    """
    if not found:
        return None
    unit, text = _unit(end / 1e6)
    plot = _figure(
        _rows_height(len(found)),
        end / 1e6 / unit,
        f"{text} since the start",
        zoom=True,
        y_range=(len(found) - 0.5, -0.5),
    )
    _label_rows(plot, [lane.name for lane in found])
    colors = _colors(found)
    columns: dict[tuple[str, str], list[tuple[float, float, int, str, str, str, str]]] = {}
    marked: list[tuple[float, float, int]] = []
    labels: list[tuple[float, int, str]] = []
    for row, lane in enumerate(found):
        for each in lane.slices:
            outcome = _outcome(each.attempt, active)
            left, right = each.start / 1e6 / unit, each.end / 1e6 / unit
            took = duration((each.end - each.start) / 1e6)
            name = each.task.name
            color = colors.get(name, OTHER_NAMES)
            columns.setdefault((color, outcome), []).append(
                (left, right, row, each.task.key, name, took, lane.name)
            )
            if (each.end - each.start) / end * PHONE >= len(name) * CHARACTER:
                labels.append(((left + right) / 2, row, name))
            if each.task.key in critical:
                marked.append((left, right, row))
            if built := (each.attempt.usage or {}).get("build_seconds"):
                columns.setdefault((color, "building"), []).append(
                    (left - built / unit, left, row, each.task.key, name, duration(built),
                     lane.name)
                )  # fmt: skip
    bars: list[Any] = []
    attempts = sum(map(len, columns.values()))
    separated = attempts <= SEPARATED and len(found) * ROW <= TALL
    narrow = end / 1e6 / unit / NARROW
    for (own, outcome), values in columns.items():
        lefts, rights, rows, keys, names, times, workers = zip(*values, strict=True)
        source = ColumnDataSource(
            {
                "left": np.array(lefts, "float32"),
                "right": np.array(rights, "float32"),
                "row": np.array(rows, "int32"),
                "key": keys,
                "name": names,
                "took": times,
                "worker": workers,
            }
        )
        if separated:
            widths = np.array(rights) - np.array(lefts)
            source.data["edge"] = ["#000000" if each > narrow else own for each in widths]
        bar = plot.hbar(
            y="row",
            left="left",
            right="right",
            height=0.8,
            source=source,
            fill_color=own,
            line_color="edge" if separated else None,
            line_width=0.5,
            hatch_pattern=PATTERNS.get(outcome),
            hatch_color="#000000",
            hatch_scale=8,
            name=outcome,
        )
        bars.append(bar)
    if marked:
        lefts, rights, rows = zip(*marked, strict=True)
        source = ColumnDataSource(
            {
                "left": np.array(lefts, "float32"),
                "right": np.array(rights, "float32"),
                "row": np.array(rows, "int32"),
            }
        )
        for height, color in ((0.36, "#000000"), (0.14, "#ffffff")):  # visible on all colors
            plot.hbar(
                y="row", left="left", right="right", height=height, source=source,
                fill_color=color, line_color=None,
            )  # fmt: skip
    if labels and separated:
        places, rows, names = zip(*labels, strict=True)
        plot.text(
            x="x", y="row", text="name", text_color="#000000", text_font_size="11px",
            text_align="center", text_baseline="middle", background_fill_color="#ffffff",
            background_fill_alpha=0.9,
            source=ColumnDataSource({"x": places, "row": rows, "name": names}),
        )  # fmt: skip
    tips = [("task", "@key @name"), ("outcome", "$name"), ("time", "@took"), ("on", "@worker")]
    plot.add_tools(HoverTool(renderers=bars, tooltips=tips))
    legend = [(name, color) for name, color in colors.items()]
    if (
        others := len({each.task.name for lane in found for each in lane.slices}) - len(colors)
    ) > 0:
        legend.append((f"{others} other name{'s' if others > 1 else ''}", OTHER_NAMES))
    used = {PATTERNS[outcome] for _, outcome in columns if outcome in PATTERNS}
    patterns = [(PATTERN_NAMES[each], OTHER_NAMES, each) for each in PATTERN_NAMES if each in used]
    return _chart(plot, [*legend, *patterns])


def _colors(found: Sequence[Lane]) -> dict[str, str]:
    """Return the colors of the names that took the most time, in the order of their first start.

    The order makes colors of the dashboard stay the same while tasks run.
    """
    total: dict[str, float] = {}
    for each in sorted((each for lane in found for each in lane.slices), key=lambda one: one.start):
        total[each.task.name] = total.get(each.task.name, 0.0) + each.end - each.start
    most = set(sorted(total, key=lambda name: -total[name])[: len(NAME_COLORS)])
    return dict(zip((name for name in total if name in most), NAME_COLORS, strict=False))


def _outcome(attempt: Attempt, active: bool) -> str:
    """Return the outcome of an attempt."""
    if attempt.ended is None:
        return "running" if active else "unfinished"
    if attempt.retried:
        return "retried"
    if attempt.fallback:
        return "failed"
    return {"DONE": "done", "FAILED": "failed"}.get(str(attempt.state), "canceled")


def timeline_aggregated(found: Sequence[Lane], end: float) -> Chart | None:
    """Return a chart that shows how much of the time each worker, or group of workers, was busy.

    Args:
        found: The lanes.
        end: The end of the time axis, in microseconds.
    """
    if not found:
        return None
    unit, text = _unit(end / 1e6)
    rows = min(len(found), CELLS)
    firsts = [row * len(found) // rows for row in range(rows)]  # the first lane of each row
    share = np.zeros((rows, CELLS))
    for row, (first, stop) in enumerate(itertools.pairwise([*firsts, len(found)])):
        parts = parts_of(found[first:stop], end, CELLS)
        share[row] = [each.attempts / (stop - first) for each in parts]
    plot = _figure(
        _rows_height(rows),
        end / 1e6 / unit,
        f"{text} since the start",
        zoom=True,
        y_range=(rows - 0.5, -0.5),
    )
    _label_rows(plot, [found[first].name for first in firsts])
    busy, part = np.nonzero(share > 0.005)
    step = end / CELLS / 1e6 / unit
    source = ColumnDataSource(
        {
            "left": (part * step).astype("float32"),
            "right": ((part + 1) * step).astype("float32"),
            "row": busy.astype("int32"),
            "share": np.clip(share[busy, part], 0, 1).astype("float32"),
            "alpha": np.clip(share[busy, part], 0.25, 1).astype("float32"),
        }
    )
    plot.hbar(
        y="row", left="left", right="right", height=0.9, fill_alpha="alpha", source=source,
        fill_color=COLORS["running"], line_color=None,
    )  # fmt: skip
    plot.add_tools(HoverTool(tooltips=[("busy", "@share{0 %}")]))
    return _chart(plot, [("busy; the paler, the smaller the share", COLORS["running"])])


def utilization(parts: Sequence[Busy], cores: float | None) -> Chart | None:
    """Return the chart of the work at the same time.

    Args:
        parts: The parts of the run.
        cores: The number of cores of the backend, if it is known.
    """
    end = parts[-1].end / 1e6
    unit, text = _unit(end)
    top = max([*(max(each.attempts, each.cores) for each in parts), cores or 0, 1.0])
    plot = _figure(260, end / unit, f"{text} since the start", y_range=(0, top * 1.05))
    ends = [*(each.start / 1e6 / unit for each in parts), end / unit]
    steps = {
        "left": ends[:-1],
        "right": ends[1:],
        "attempts": [each.attempts for each in parts],
        "cores": [each.cores for each in parts],
    }
    source = ColumnDataSource({name: np.array(found, "float32") for name, found in steps.items()})
    legend = [("attempts at the same time", COLORS["running"])]
    plot.varea_step(
        x=ends, y1=[0] * len(ends), y2=[*steps["attempts"], steps["attempts"][-1]],
        step_mode="after", fill_color=COLORS["running"], fill_alpha=0.6,
    )  # fmt: skip
    if any(abs(each.cores - each.attempts) > 0.01 for each in parts):
        legend.append(("requested cores", COLORS["retried"]))
        plot.step(
            x=ends,
            y=[*steps["cores"], steps["cores"][-1]],
            mode="after",
            line_color=COLORS["retried"],
            line_width=2,
        )
    if cores:
        legend.append((f"cores of the backend ({cores:g})", "#888888"))
        plot.hspan(y=cores, line_color="#888888", line_dash="dashed", line_width=2)
    parts_of_it = plot.quad(
        left="left", right="right", bottom=0, top=top, fill_alpha=0, line_color=None, source=source
    )
    tips = [("attempts", "@attempts{0.0}"), ("cores", "@cores{0.0}")]
    plot.add_tools(HoverTool(renderers=[parts_of_it], tooltips=tips, mode="vline"))
    return _chart(plot, legend)


# Load of the nodes.


def load(samples: Sequence[NodeSample], began: float, end: float) -> Chart | None:
    """Return the chart of the load of the nodes, with a row for each, on the timeline's axis.

    Args:
        samples: The loads.
        began: The start of the run, in seconds since the epoch.
        end: The end of the time axis, in microseconds.
    """
    nodes = list(dict.fromkeys(sample.node for sample in samples))[:MAX_NAMES]
    if not nodes:
        return None
    unit, text = _unit(end / 1e6)
    plot = _figure(
        len(nodes) * LOAD_ROW + 60,
        end / 1e6 / unit,
        f"{text} since the start",
        y_range=(len(nodes) - 0.5, -0.5),
    )
    _label_rows(plot, nodes, LOAD_ROW)
    has_gpus = any(sample.gpus for sample in samples)
    legend = [(name, COLORS[color]) for name, color in LOADS.items() if name != "GPUs" or has_gpus]
    columns: dict[str, list[Any]] = {}
    for row, node in enumerate(nodes):
        own = [sample for sample in samples if sample.node == node]
        rights = [max(0.0, sample.time - began) / unit for sample in own]
        lefts = [
            max(0.0, right - sample.seconds / unit)
            for right, sample in zip(rights, own, strict=True)
        ]
        values = {
            "processors": [sample.cpu for sample in own],
            "memory": [sample.memory for sample in own],
            "GPUs": [sum(sample.gpus) / max(1, len(sample.gpus)) for sample in own],
        }
        times = [*lefts, rights[-1]]
        for name, color in legend:
            # Row 0 is at the top: a load of 0 is at the lower edge of a row.
            heights = [row + 0.4 - 0.8 * each for each in (*values[name], values[name][-1])]
            if name == "processors":
                plot.varea_step(
                    x=times, y1=[row + 0.4] * len(times), y2=heights, step_mode="after",
                    fill_color=color, fill_alpha=0.6,
                )  # fmt: skip
            else:
                plot.step(x=times, y=heights, mode="after", line_color=color, line_width=2)
        rows: dict[str, list[Any]] = {
            **values,
            "left": lefts,
            "right": rights,
            "row": [row] * len(own),
            "node": [node] * len(own),
        }
        for name in ("read", "written", "received", "sent"):
            rows[name] = [f"{size(getattr(sample, name))}/s" for sample in own]
        for name, found in rows.items():
            columns.setdefault(name, []).extend(found)
    areas = plot.hbar(
        y="row", left="left", right="right", height=0.8, fill_alpha=0, line_color=None,
        source=ColumnDataSource(columns),
    )  # fmt: skip
    tips = [
        ("node", "@node"),
        *((name, f"@{name}{{0 %}}") for name, _ in legend),
        ("disks", "@read read, @written written"),
        ("network", "@received received, @sent sent"),
    ]
    plot.add_tools(HoverTool(renderers=[areas], tooltips=tips))
    return _chart(plot, legend)


# Critical path, durations and memory.


def critical_path(path: Sequence[Step]) -> Chart | None:
    """Return the chart of the longest steps of the critical path, one after the other."""
    if not path:
        return None
    longest = sorted(range(len(path)), key=lambda index: path[index].seconds, reverse=True)
    kept = set(longest[:MAX_NAMES])
    total = sum(step.seconds for step in path)
    unit, text = _unit(total)
    rows: list[tuple[Step, float]] = []
    time = 0.0
    for index, step in enumerate(path):
        if index in kept:
            rows.append((step, time))
        time += step.seconds
    plot = _figure(
        _rows_height(len(rows)),
        total / unit,
        text,
        y_range=(len(rows) - 0.5, -0.5),
    )
    _label_rows(plot, [step.task.name or step.task.key for step, _ in rows])
    source = ColumnDataSource(
        {
            "row": list(range(len(rows))),
            "start": [start / unit for _, start in rows],
            "ready": [(start + step.waited) / unit for step, start in rows],
            "end": [(start + step.seconds) / unit for step, start in rows],
            "call": [call_of(step.task) for step, _ in rows],
            "waited": [duration(step.waited) for step, _ in rows],
            "ran": [duration(step.ran) for step, _ in rows],
        }
    )
    for left, right, outcome in (("start", "ready", "waiting"), ("ready", "end", "running")):
        plot.hbar(y="row", left=left, right=right, height=0.7, source=source, color=COLORS[outcome])
    tips = [("call", "@call"), ("waited", "@waited"), ("ran", "@ran")]
    plot.add_tools(HoverTool(tooltips=tips))
    return _chart(plot, [("waited", COLORS["waiting"]), ("ran", COLORS["running"])])


def durations(statistics: Sequence[NameStatistics]) -> Chart | None:
    """Return the chart of the durations by name: median, 95th percentile and maximum.

    Blocks are left out: they last as long as all tasks in them.
    """
    known = [each for each in statistics if each.durations is not None and each.kind != "block"]
    found = known[:MAX_NAMES]
    if not found:
        return None
    times = [each.durations for each in found if each.durations is not None]
    unit, text = _unit(max(each.max for each in times))
    plot = _figure(
        _rows_height(len(found)),
        max(each.max for each in times) / unit * 1.03,
        text,
        y_range=(len(found) - 0.5, -0.5),
    )
    _label_rows(plot, [each.name or "-" for each in found])
    source = ColumnDataSource(
        {
            "row": list(range(len(found))),
            "name": [each.name for each in found],
            **{
                name: [getattr(each, name) / unit for each in times]
                for name in ("median", "p95", "max")
            },
            **{
                f"{name}_text": [duration(getattr(each, name)) for each in times]
                for name in ("median", "p95", "max")
            },
        }
    )
    plot.hbar(y="row", left=0, right="median", height=0.6, source=source, color=COLORS["running"])
    plot.hbar(
        y="row", left="median", right="p95", height=0.3, source=source, color=COLORS["reused"]
    )
    plot.scatter(x="max", y="row", marker="diamond", size=9, source=source, color=COLORS["retried"])
    tips = [("name", "@name"), ("median", "@median_text"), ("P95", "@p95_text"),
            ("maximum", "@max_text")]  # fmt: skip
    plot.add_tools(HoverTool(tooltips=tips))
    return _chart(
        plot,
        [
            ("median", COLORS["running"]),
            ("95th percentile", COLORS["reused"]),
            ("maximum", COLORS["retried"]),
        ],
    )


def memory(statistics: Sequence[NameStatistics]) -> Chart | None:
    """Return the chart of the requested and the used memory by name."""
    found = [
        each
        for each in statistics
        if each.requested_memory is not None and each.peak_memory is not None
    ][:MAX_NAMES]
    if not found:
        return None
    largest = max(max(each.requested_memory or 0, each.peak_memory or 0) for each in found)
    power = max(0, int(math.log(max(largest, 1), 1000)))
    unit = 1000.0**power
    plot = _figure(
        _rows_height(len(found)),
        largest / unit * 1.03,
        ("B", "kB", "MB", "GB", "TB", "PB")[min(power, 5)],
        y_range=(len(found) - 0.5, -0.5),
    )
    _label_rows(plot, [each.name or "-" for each in found])
    source = ColumnDataSource(
        {
            "row": list(range(len(found))),
            "name": [each.name for each in found],
            "requested": [(each.requested_memory or 0) / unit for each in found],
            "used": [(each.peak_memory or 0) / unit for each in found],
            "requested_text": [size(each.requested_memory) for each in found],
            "used_text": [size(each.peak_memory) for each in found],
        }
    )
    bars = (("requested", 0.8, "waiting"), ("used", 0.4, "running"))
    for right, height, outcome in bars:
        plot.hbar(y="row", left=0, right=right, height=height, source=source, color=COLORS[outcome])
    tips = [("name", "@name"), ("requested", "@requested_text"), ("used", "@used_text")]
    plot.add_tools(HoverTool(tooltips=tips))
    return _chart(plot, [("requested", COLORS["waiting"]), ("used", COLORS["running"])])


# Graph.


def graph(found: Graph) -> Chart | None:
    """Return the chart of a graph with one point per task."""
    arrows = [*found.arrows, *found.members]
    layer = layers_of(len(found.nodes), arrows)
    x = np.zeros(len(found.nodes))
    for row in ordered(layer, arrows):
        x[row] = (np.arange(len(row)) + 0.5) / len(row)
    y = np.array(layer)
    depth = int(y.max()) + 1
    plot = _figure(min(TALL, 80 + 60 * depth), 1.0, "", zoom=True, y_range=(depth - 0.5, -0.5))
    plot.xaxis.visible = plot.yaxis.visible = False
    plot.xgrid.grid_line_alpha = 0
    if arrows:
        above, below = (np.array(each) for each in zip(*arrows, strict=True))
        plot.segment(
            x0=x[above].astype("float32"), y0=y[above].astype("int32"),
            x1=x[below].astype("float32"), y1=y[below].astype("int32"),
            line_color="#888888", line_alpha=0.5 if len(arrows) < 500 else 0.2,
        )  # fmt: skip
    outcomes = [node.outcome for node in found.nodes]
    points = []
    for outcome in (name for name in COLORS if name in set(outcomes)):
        chosen = [index for index, each in enumerate(outcomes) if each == outcome]
        source = ColumnDataSource(
            {
                "x": x[chosen].astype("float32"),
                "y": y[chosen].astype("int32"),
                "key": [found.nodes[index].key for index in chosen],
                "name": [found.nodes[index].name for index in chosen],
            }
        )
        points.append(
            plot.scatter(
                "x",
                "y",
                source=source,
                color=COLORS[outcome],
                name=outcome,
                size=10 if len(outcomes) < 500 else 5,
            )
        )
    tips = [("task", "@key @name"), ("outcome", "$name")]
    plot.add_tools(HoverTool(renderers=points, tooltips=tips))
    return _chart(plot, [(name, COLORS[name]) for name in COLORS if name in set(outcomes)])
