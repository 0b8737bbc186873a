"""Layout of a graph in layers, from top to bottom, so that most arrows point downwards.

The layers are those of the longest paths. In each layer, a node is placed near the mean position of
its neighbors, which keeps arrows short and crossings few. Arrows that close a cycle point upwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SWEEPS = 4
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
        # Only cycles are left: their first node starts anew.
        first = next((node for node in rest if not done[node]), None)
        if first is None:
            return layer
        before[first] = 0
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
            mean = {
                node: sum(place[each] for each in neighbors[node]) / len(neighbors[node])
                if neighbors[node]
                else place[node]
                for node in row
            }
            row.sort(key=mean.__getitem__)
            _place(row, place)
    return rows


def _place(row: Sequence[int], place: list[float]) -> None:
    """Spread the nodes of a layer evenly between 0 and 1."""
    for index, node in enumerate(row):
        place[node] = (index + 0.5) / len(row)
