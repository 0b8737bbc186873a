"""Layout of a graph in layers, from top to bottom, so that arrows point downwards.

The layers are those of the longest paths. In each layer, a node is placed near the mean position of
its neighbors, which keeps arrows short and crossings few. Only arrows that close a cycle point
upwards, for example if tasks with one name depend on each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rhapsody.history import Graph, Node

SWEEPS = 8
"""Number of times that the layers are ordered, from the top and from the bottom alternately."""


def layers_of(count: int, arrows: Iterable[tuple[int, int]]) -> list[int]:
    """Return the layer of each node, so that arrows lead to a later one, except in cycles.

    Args:
        count: The number of nodes.
        arrows: Pairs of nodes.
    """
    after: list[list[int]] = [[] for _ in range(count)]
    before = [0] * count
    for source, target in arrows:
        if source != target:
            after[source].append(target)
            before[target] += 1
    layer, done = [0] * count, [False] * count
    ready = [node for node in range(count) if not before[node]]
    rest = iter(range(count))
    while True:
        for node in ready:  # the list grows
            done[node] = True
            for target in after[node]:
                if done[target]:
                    continue
                layer[target] = max(layer[target], layer[node] + 1)
                before[target] -= 1
                if not before[target]:
                    ready.append(target)
        # Only cycles and what follows them are left: begin with the node that was called first.
        first = next((node for node in rest if not done[node]), None)
        if first is None:
            return layer
        ready = [first]


def ordered(layer: Sequence[int], arrows: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the nodes of each layer, from left to right.

    Args:
        layer: The layer of each node.
        arrows: Pairs of nodes.
    """
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for node, index in enumerate(layer):
        rows[index].append(node)
    above: list[list[int]] = [[] for _ in layer]
    below: list[list[int]] = [[] for _ in layer]
    for source, target in arrows:
        if layer[source] < layer[target]:
            above[target].append(source)
            below[source].append(target)
    place = [0.0] * len(layer)
    for row in rows:
        _place(row, place)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbors = above if down else below
        for row in rows if down else reversed(rows):
            for node in row:
                if neighbors[node]:
                    place[node] = sum(place[x] for x in neighbors[node]) / len(neighbors[node])
            row.sort(key=place.__getitem__)
            _place(row, place)
    return rows


def _place(row: Sequence[int], place: list[float]) -> None:
    """Spread the nodes of a layer evenly between 0 and 1."""
    for index, node in enumerate(row):
        place[node] = (index + 0.5) / len(row)


# A drawing with boxes and text, in pixels.

CHARACTER = 7.3
"""Width of a character; the style sheet sets the size of the font."""

BOX, GAP, SPACE = 48.0, 24.0, 44.0
"""Height of a box, and the distances between two boxes in a layer and between two layers."""

MAX_CHARACTERS = 26
"""Maximum number of characters of a line of text."""


@dataclass(frozen=True, slots=True)
class Box:
    """Node in a drawing.

    Attributes:
        node: The node.
        lines: The lines of text in the box.
        x: The center.
        y: The top.
        width: The width.
    """

    node: Node
    lines: tuple[str, ...]
    x: float
    y: float
    width: float


@dataclass(frozen=True, slots=True)
class Line:
    """Arrow in a drawing.

    Attributes:
        path: The path, for SVG.
        count: The number of dependencies.
        dashed: True if it leads from a task to the block that contains it.
        x: The horizontal position of the number.
        y: The vertical position of the number.
    """

    path: str
    count: int
    dashed: bool
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """Drawing of a graph.

    Attributes:
        width: The width.
        height: The height.
        boxes: The nodes.
        lines: The arrows.
    """

    width: float
    height: float
    boxes: list[Box]
    lines: list[Line]


def drawing(graph: Graph) -> Drawing:
    """Return a drawing of a graph."""
    arrows = {
        **{pair: (count, False) for pair, count in graph.arrows.items()},
        **{pair: (count, True) for pair, count in graph.members.items()},
    }
    count = len(graph.nodes)
    layer = layers_of(count, arrows)
    texts = [_lines(node) for node in graph.nodes]
    widths = [max(map(len, lines)) * CHARACTER + 24 for lines in texts]
    # An arrow over several layers passes between the boxes of each layer, at points without width.
    chains: dict[tuple[int, int], list[int]] = {}
    for source, target in arrows:
        if layer[source] < layer[target]:
            between = range(layer[source] + 1, layer[target])
            points = list(range(len(layer), len(layer) + len(between)))
            layer += between
            widths += [8.0] * len(between)
            chains[source, target] = [source, *points, target]
    steps = [step for chain in chains.values() for step in itertools.pairwise(chain)]
    rows = ordered(layer, steps)
    totals = [sum(widths[node] for node in row) + GAP * (len(row) - 1) for row in rows]
    width = max(totals) + 2 * GAP
    x = [0.0] * len(layer)
    for row, total in zip(rows, totals, strict=True):
        left = (width - total) / 2
        for node in row:
            x[node] = left + widths[node] / 2
            left += widths[node] + GAP
    top = [2.0 + index * (BOX + SPACE) for index in layer]
    boxes = [
        Box(node, texts[index], x[index], top[index], widths[index])
        for index, node in enumerate(graph.nodes)
    ]
    lines = []
    for (source, target), (number, dashed) in arrows.items():
        chain = chains.get((source, target))
        if chain is None:
            right = x[source] + widths[source] / 2, top[source] + BOX / 2
            other = x[target] + widths[target] / 2, top[target] + BOX / 2 + 8 * (source == target)
            bulge = max(right[0], other[0]) + GAP
            path = f"M{_at(*right)}C{_at(bulge, right[1])} {_at(bulge, other[1])} {_at(*other)}"
            lines.append(Line(path, number, dashed, bulge, (right[1] + other[1]) / 2))
            width = max(width, bulge + GAP)
            continue
        path = f"M{_at(x[source], top[source] + BOX)}"
        for above, below in itertools.pairwise(chain):
            start, end = top[above] + BOX, top[below]
            half = (start + end) / 2
            path += f"C{_at(x[above], half)} {_at(x[below], half)} {_at(x[below], end)}"
            if below != target:
                path += f"V{end + BOX:.0f}"
        lines.append(
            Line(path, number, dashed, (x[chain[-2]] + x[target]) / 2, top[target] - SPACE / 2)
        )
    return Drawing(width, len(rows) * (BOX + SPACE) - SPACE + 4, boxes, lines)


def _lines(node: Node) -> tuple[str, ...]:
    """Return the text of a node's box: its name, and its task counts by outcome."""
    counts = ", ".join(f"{number} {outcome}" for outcome, number in node.counts.items())
    return shortened(node.name, MAX_CHARACTERS), shortened(counts, MAX_CHARACTERS)


def _at(x: float, y: float) -> str:
    return f"{x:.0f} {y:.0f}"


def shortened(text: str, width: int) -> str:
    """Return a text; the middle of a long one is left out, because names often end with a number.

    Args:
        text: The text.
        width: The maximum number of characters.
    """
    if len(text) <= width:
        return text
    half = (width - 1) // 2
    return f"{text[: width - 1 - half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"
