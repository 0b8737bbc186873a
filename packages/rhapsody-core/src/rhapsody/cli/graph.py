"""`rhapsody graph`: prints the graph of a run for Mermaid or Graphviz, or as SVG."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rhapsody.cli.lookup import read_record
from rhapsody.cli.output import CommandError, say
from rhapsody.history.values import RUN_HELP, printable
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.history.graph import Graph, Node


LIMITS = {"mermaid": 500, "dot": 10_000, "svg": 2_000}
"""Maximum number of nodes and of arrows. Mermaid itself refuses more than 500 arrows, and Graphviz
needs minutes for much larger graphs."""

MERMAID_TEXT = 50_000
"""Maximum number of characters that Mermaid accepts."""

COLORS = {
    "failed": ("#f8c4c0", "#b3261e"),
    "skipped": ("#fbd9b5", "#9a5300"),
    "canceled": ("#fbe8a6", "#806000"),
    "unfinished": ("#e3d5f0", "#6b3fa0"),
    "running": ("#c3e0f7", "#1565a5"),
    "waiting": ("#ededed", "#616161"),
    "done": ("#c9e8cb", "#2a7030"),
    "reused": ("#c5ebe6", "#11716a"),
}
"""Colors of the area and of the border of a node, by outcome."""

TEXT = "#1a1a1a"
ARROW = "#757575"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = "mermaid (default), dot (source for Graphviz), or svg (needs Graphviz's program dot)"
    parser.add_argument("--format", choices=tuple(LIMITS), default="mermaid", help=text)
    text = "show each task, instead of groups of tasks with the same name"
    parser.add_argument("--full", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> None:
    """Print the graph.

    Raises:
        CommandError: The record cannot be read, or Graphviz is missing or fails.
        UsageError: The graph is too large.
    """
    from rhapsody.history.graph import graph_of

    graph = graph_of(read_record(arguments.run), full=arguments.full)
    say(drawn(graph, arguments.format, full=arguments.full))


def drawn(graph: Graph, format: str, *, full: bool = False) -> str:
    """Return a graph in one of the formats of `LIMITS`.

    Args:
        graph: The graph.
        format: The format.
        full: True if the graph has a node for each task.

    Raises:
        CommandError: Graphviz is missing or fails.
        UsageError: The graph is too large.
    """
    _check_size(graph, format, full=full)
    if format == "mermaid":
        text = "\n".join(mermaid(graph))
        if len(text) > MERMAID_TEXT:
            raise UsageError(
                f"the graph takes {len(text)} characters, and Mermaid accepts {MERMAID_TEXT}; use "
                "--format dot"
            )
        return text
    text = "\n".join(dot(graph))
    return text if format == "dot" else svg(text).rstrip()


def _check_size(graph: Graph, format: str, *, full: bool) -> None:
    """Raise a `UsageError` if a graph is too large to be drawn."""
    nodes, arrows, limit = len(graph.nodes), len(graph.arrows) + len(graph.members), LIMITS[format]
    if max(nodes, arrows) <= limit:
        return
    advice = ["omit --full to group the tasks by name"] if full else []
    larger = [name for name in LIMITS if LIMITS[name] >= max(nodes, arrows)]
    advice += [f"use --format {name}" for name in larger]
    raise UsageError(
        f"the graph has {nodes} nodes and {arrows} arrows; --format {format} is limited to {limit} "
        f"of each; {' or '.join(advice) or 'give tasks that do the same the same name'}"
    )


def _label(node: Node) -> list[str]:
    """Return the lines of a node's label."""
    if node.key is not None:
        return [printable(node.name), node.key, node.outcome]
    counts = (f"{number} {outcome}" for outcome, number in node.counts.items())
    return [printable(node.name), ", ".join(counts)]


def mermaid(graph: Graph) -> Iterator[str]:
    """Yield the lines of a Mermaid flowchart."""
    yield "flowchart TD"
    for number, node in enumerate(graph.nodes, 1):
        left, right = ("[[", "]]") if node.block else ("[", "]")
        label = "<br/>".join(map(_mermaid_text, _label(node)))
        yield f'  n{number}{left}"{label}"{right}:::{node.outcome}'
    for (source, target), count in graph.arrows.items():
        label = f"|{count}|" if count > 1 else ""
        yield f"  n{source + 1} -->{label} n{target + 1}"
    for source, target in graph.members:
        yield f"  n{source + 1} -.-> n{target + 1}"
    for outcome in dict.fromkeys(node.outcome for node in graph.nodes):
        fill, stroke = COLORS[outcome]
        yield f"  classDef {outcome} fill:{fill},stroke:{stroke},color:{TEXT}"


def _mermaid_text(text: str) -> str:
    """Escape the characters of a label that have a meaning in Mermaid or HTML."""
    return "".join(
        each if each.isalnum() or each in " _.,()-" else f"#{ord(each)};" for each in text
    )


def dot(graph: Graph) -> Iterator[str]:
    """Yield the lines of a graph in Graphviz's language."""
    yield "digraph run {"
    yield f'  node [shape=box, style="rounded,filled", fontname="sans-serif", fontcolor="{TEXT}"]'
    yield f'  edge [color="{ARROW}", fontname="sans-serif", fontcolor="{ARROW}"]'
    for number, node in enumerate(graph.nodes, 1):
        fill, stroke = COLORS[node.outcome]
        more = ", peripheries=2" if node.block else ""
        label = "\\n".join(map(_dot_text, _label(node)))
        yield f'  n{number} [label="{label}", fillcolor="{fill}", color="{stroke}"{more}]'
    for (source, target), count in graph.arrows.items():
        label = f' [label="{count}"]' if count > 1 else ""
        yield f"  n{source + 1} -> n{target + 1}{label}"
    for source, target in graph.members:
        yield f"  n{source + 1} -> n{target + 1} [style=dashed]"
    yield "}"


def _dot_text(text: str) -> str:
    """Escape text for a label of Graphviz."""
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


def svg(text: str) -> str:
    """Return a graph in Graphviz's language as SVG.

    Raises:
        CommandError: Graphviz is not installed, or fails.
    """
    program = shutil.which("dot")
    if program is None:
        raise CommandError(
            "--format svg needs the program dot of Graphviz, which is not in PATH; install it, for "
            "example with `apt install graphviz` or `conda install graphviz`, or use --format "
            "mermaid or dot"
        )
    ended = subprocess.run(
        [program, "-Tsvg"], input=text, capture_output=True, encoding="utf-8", check=False
    )
    if ended.returncode != 0:
        reason = ended.stderr.strip() or f"exit code {ended.returncode}"
        raise CommandError(f"{program} failed: {reason}")
    return ended.stdout
