"""`rhapsody graph`: groups and tasks, their outcomes and arrows, in each format."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rhapsody.cli import main
from rhapsody.fsutil import FileLock
from tests._support.histories import Records, call, end, finish, first_byte, start, submit

NAME = "20260101T000000-align-00a1"

GRAPHVIZ = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")

NODE = re.compile(r'  (n\d+)(\[{1,2})"([^"]*)"(\]{1,2}):::(\w+)')
ARROW = re.compile(r"  (n\d+) (-->|-\.->)(?:\|(\d+)\|)? (n\d+)")
CLASS = re.compile(r"  classDef (\w+) fill:#\w{6},stroke:#\w{6},color:#\w{6}")


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """A run in which one task failed, another was skipped, and a block contains a task."""
    before: dict[str, Any] = {"dependencies": ["task.000001", "task.000002"]}
    with Records(tmp_path) as found:
        found.write(
            NAME,
            call(1, "fetch"),
            call(2, "fetch"),
            call(3, "align", **before),
            call(4, "align", **before),
            call(5, "plot", dependencies=["task.000004"]),
            block("whole", dependencies=["task.000003"]),
            call(6, "fetch", block="block.000001"),
            *(end(number, 0, number, number + 1) for number in (1, 2, 3, 6)),
            end(4, 3, 4, 5, state="FAILED"),
            end(5, 3, None, 5, state="FAILED", skipped=True),
            end(1, 0, 6, 8, uid="block.000001"),
            *finish(8, "failed", tasks=7),
        )
        yield found


def block(name: str, **more: Any) -> dict[str, Any]:
    return call(1, name, **more) | {"uid": "block.000001", "kind": "block"}


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert main(["graph", *arguments]) == code
    said = capsys.readouterr()
    return said.out, said.err


def parsed(text: str) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, ...]]]:
    """The lines of each node's label with its class, by id, and the arrows of a flowchart.

    Every line must be one that this parser knows.
    """
    nodes, arrows, classes = {}, [], set()
    first, *lines = text.splitlines()
    assert first == "flowchart TD"
    for line in lines:
        if found := NODE.fullmatch(line):
            key, left, label, right, outcome = found.groups()
            assert len(left) == len(right)
            text = html.unescape(label.replace("#", "&#"))
            nodes[key] = (*text.split("<br/>"), outcome)
        elif found := ARROW.fullmatch(line):
            source, kind, count, target = found.groups()
            arrows.append((source, kind, target, *([count] if count else [])))
        else:
            found = CLASS.fullmatch(line)
            assert found, line
            classes.add(found[1])
    assert classes == {label[-1] for label in nodes.values()}
    assert {each for arrow in arrows for each in (arrow[0], arrow[2])} <= set(nodes)
    return nodes, arrows


def test_tasks_are_grouped_by_name_with_counts(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes, arrows = parsed(output(capsys)[0])
    assert nodes == {
        "n1": ("fetch", "3 done", "done"),
        "n2": ("align", "1 failed, 1 done", "failed"),
        "n3": ("plot", "1 skipped", "skipped"),
        "n4": ("whole", "1 done", "done"),
    }
    assert arrows == [
        ("n1", "-->", "n2", "4"), ("n2", "-->", "n3"), ("n2", "-->", "n4"), ("n1", "-.->", "n4")
    ]  # fmt: skip


def test_the_full_graph_shows_each_task(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes, arrows = parsed(output(capsys, "00a1", "--full")[0])
    assert nodes["n4"] == ("align", "task.000004", "failed", "failed")
    assert len(nodes) == 7
    assert ("n1", "-->", "n4") in arrows
    assert arrows[-1] == ("n7", "-.->", "n6")
    assert len(arrows) == 7


def test_names_with_special_characters(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ['a"]; end', "x --> y & z;", "<b>%%{init}", "`md`", "naïve\\n\ttab", "#35;", "end"]
    records.write(NAME, *(call(number, name) for number, name in enumerate(names)))
    nodes, _ = parsed(output(capsys)[0])
    assert [label[0] for label in nodes.values()] == [*names[:4], "naïve\\n\\ttab", *names[5:]]
    assert output(capsys, "--format", "dot")[0].count("label=") == len(names)


@GRAPHVIZ
def test_graphviz_reads_the_graph(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME, call(1, 'a"b\\'), call(2, "x & <y> &amp;", dependencies=["task.000001"]))
    for full in ([], ["--full"]):
        text = output(capsys, "--format", "dot", *full)[0]
        plain = subprocess.run(
            ["dot", "-Tplain"], input=text, capture_output=True, text=True, check=True
        ).stdout
        assert plain.count("\nnode ") == 2
        assert plain.count("\nedge ") == 1
        root = ElementTree.fromstring(output(capsys, "--format", "svg", *full)[0])
        words = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
        assert 'a"b\\' in words
        assert "x & <y> &amp;" in words


def test_svg_without_graphviz(
    records: Records, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(records.path))
    out, error = output(capsys, "--format", "svg", code=1)
    assert out == ""
    assert "apt install graphviz" in error
    assert "--format mermaid or dot" in error
    program = records.path / "dot"
    program.write_text("#!/bin/sh\nread -r _\necho no fonts >&2\nexit 3\n")
    program.chmod(0o755)
    assert f"{program} failed: no fonts" in output(capsys, "--format", "svg", code=1)[1]


def test_a_graph_that_is_too_large_is_refused_with_advice(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(NAME, *(call(number, "part") for number in range(501)))
    out, error = output(capsys, "--full", code=2)
    assert out == ""
    assert "has 501 nodes and 0 arrows" in error
    assert "omit --full to group the tasks by name or use --format dot or use --format svg" in error
    assert output(capsys, "--full", "--format", "dot")[0].count("label=") == 501
    assert parsed(output(capsys)[0])[0]["n1"][0] == "part"
    records.write(NAME, *(call(number, f"part-{number}" * 20) for number in range(400)))
    assert "and Mermaid accepts 50000; use --format dot" in output(capsys, code=2)[1]


def test_a_run_in_progress_and_a_killed_run(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [call(number, "part") for number in (1, 2, 3)]
    path = records.write(NAME, *calls, end(1, 0, 1, 2), start(2, 1), submit(3), tail='{"event":"')
    lock = FileLock(path.parent / ".lock")
    nodes, _ = parsed(output(capsys)[0])
    assert nodes["n1"] == ("part", "1 running, 1 waiting, 1 done", "running")
    lock.release()
    (path.parent / ".lock").touch()  # its process was killed
    nodes, _ = parsed(output(capsys)[0])
    assert nodes["n1"] == ("part", "2 unfinished, 1 done", "unfinished")


def test_a_damaged_record(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    lost = call(2, "b", dependencies=["task.000009"])
    records.write(NAME, call(1, "a"), "{", end(7, 0, 1, 2), lost)
    out, error = output(capsys)
    assert [label[0] for label in parsed(out)[0].values()] == ["a", "unnamed", "b"]
    assert "is damaged: line 4 is skipped" in error


def test_a_run_without_tasks(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(NAME)
    assert parsed(output(capsys)[0]) == ({}, [])


def test_an_unknown_format_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["graph", "--format", "png"])
    assert ended.value.code == 2
    assert "mermaid" in capsys.readouterr().err


def test_a_closed_pipe_ends_the_command_quietly(records: Records) -> None:
    records.write(NAME, *(call(number, f"name-{number}" * 9) for number in range(5000)))
    out, error = first_byte("graph", "--format", "dot")
    assert out == "d"
    assert error in ("0\n", "141\n")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["graph", "--help"])
    assert ended.value.code == 0
    assert "Graphviz" in capsys.readouterr().out
