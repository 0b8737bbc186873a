"""Layout of graphs: layers, the order in a layer, and drawings."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from rhapsody.history import Graph, Node
from rhapsody_report.layout import BOX, drawing, layers_of, ordered, shortened


@pytest.mark.parametrize(
    ("count", "arrows", "layers"),
    [
        (0, [], []),
        (2, [], [0, 0]),
        (3, [(0, 1), (1, 2), (0, 2)], [0, 1, 2]),
        (3, [(2, 1), (1, 0)], [2, 1, 0]),
        (1, [(0, 0)], [0]),
        (2, [(0, 1), (1, 0)], [0, 1]),
        (4, [(0, 1), (1, 2), (2, 1), (2, 3)], [0, 1, 2, 3]),
    ],
)
def test_arrows_lead_to_a_later_layer_except_in_cycles(
    count: int, arrows: list[tuple[int, int]], layers: list[int]
) -> None:
    assert layers_of(count, arrows) == layers


def test_the_order_in_the_layers_avoids_crossings() -> None:
    arrows = [(0, 5), (1, 4), (2, 3)]
    rows = ordered([0, 0, 0, 1, 1, 1], arrows)
    for source, target in arrows:
        assert rows[0].index(source) == rows[1].index(target)


def test_a_long_chain_needs_no_recursion() -> None:
    arrows = [(each, each + 1) for each in range(5000)]
    assert layers_of(5001, arrows)[-1] == 5000


def graph(*arrows: tuple[int, int], members: tuple[tuple[int, int], ...] = ()) -> Graph:
    count = max((max(pair) for pair in (*arrows, *members)), default=0) + 1
    nodes = [Node(f"task_{each}", None, False, {"done": 3}) for each in range(count)]
    return Graph(nodes, Counter(arrows), Counter(members))


@pytest.mark.parametrize(
    "found",
    [
        graph(),
        graph((0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4), (0, 4)),
        graph((0, 0), (0, 1), (1, 0)),
        graph((0, 1), members=((0, 2), (1, 2))),
    ],
    ids=["one", "fan", "cycle", "block"],
)
def test_boxes_do_not_overlap_and_are_in_the_drawing(found: Graph) -> None:
    picture = drawing(found)
    assert len(picture.boxes) == len(found.nodes)
    assert len(picture.lines) == len(found.arrows) + len(found.members)
    for index, box in enumerate(picture.boxes):
        assert box.x - box.width / 2 >= 0
        assert box.x + box.width / 2 <= picture.width
        assert 0 <= box.y <= picture.height - BOX
        for other in picture.boxes[:index]:
            apart = abs(box.x - other.x) >= (box.width + other.width) / 2
            assert apart or abs(box.y - other.y) >= BOX
    for line in picture.lines:
        numbers = [float(each) for each in re.findall(r"[\d.]+", line.path)]
        assert max(numbers) <= max(picture.width, picture.height)
        assert 0 <= line.x <= picture.width


def test_both_ends_of_a_long_name_are_kept() -> None:
    assert shortened("worker-12", 18) == "worker-12"
    found = shortened("rhapsody-worker-on-a-node-12", 18)
    assert len(found) == 18
    assert found.startswith("rhapsody")
    assert found.endswith("node-12")
