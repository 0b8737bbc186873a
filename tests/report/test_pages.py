"""The page of a report: its sections, its safety, and unusual records."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from rhapsody import RetryPolicy, WorkflowEngine
from rhapsody.backends import LocalExecutionBackend
from rhapsody.fsutil import FileLock
from rhapsody.history import RunHistory, read_run
from rhapsody_report import content, page, sections
from rhapsody_report.pages import SECTIONS
from tests._support.histories import BEGIN, Records, call, end, finish, many, start
from tests._support.pages import Element, parsed, row

NAME = "20260101T000000-align-00a1"
TIMES = "\N{MULTIPLICATION SIGN}"
HOSTILE = "</script></title><script>alert(1)</script><img src=x onerror='alert(2)'>\"&{{ 7*7 }}"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def written(records: Records, *lines: Any, **more: Any) -> RunHistory:
    return read_run(records.write(NAME, *lines, **more))


def read(history: RunHistory) -> Element:
    """The page, after a check of the rules for all pages."""
    text = page(history)
    found = parsed(text)
    check_structure(found)
    check_isolation(found, text)
    return found


def check_structure(found: Element) -> None:
    (html,) = found.find("html")
    assert html.attributes["lang"] == "en"
    assert html.find("head")[0].find("title")[0].content
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(html.find(landmark)) == 1, landmark
    ids = [each.attributes["id"] for each in html.elements if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    first = next(each for each in html.find("body")[0].elements)
    assert (first.tag, first.attributes["href"]) == ("a", "#main")
    main = html.get("main")
    assert [each.attributes["id"] for each in main.find("section")] == list(SECTIONS)
    for section in main.find("section"):
        heading = section.find("h2")[0]
        assert heading.attributes["id"] == section.attributes["aria-labelledby"]
        assert heading.text == SECTIONS[section.attributes["id"]]
    levels = [int(each.tag[1]) for each in html.find("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for link in html.find("a"):
        html.get(link.attributes["href"].removeprefix("#"))
    for table in html.find("table"):
        assert table.find("caption")[0].text
        assert all(each.attributes.get("scope") in ("row", "col") for each in table.find("th"))
    for picture in html.find("div", "svg", role="img"):
        assert picture.attributes["aria-label"]
    for chart in charts(html):
        json.loads(chart)


def charts(found: Element) -> list[str]:
    """The data of the charts."""
    return [each.content for each in found.find("script", type="application/json")]


def check_isolation(found: Element, text: str) -> None:
    """Nothing is loaded, and only the scripts of the page itself may run."""
    for each in found.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            address = each.attributes.get(name, "#")
            assert address.startswith("#"), f"<{each.tag} {name}={address!r}>"
        assert not [name for name in each.attributes if name.startswith("on")]
    assert not found.find("link", "iframe", "img", "base", "object", "embed", "form")
    (style,) = found.find("style")
    assert "url(" not in style.content
    assert "@import" not in style.content
    (policy,) = found.find("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(each.split(" ", 1) for each in policy.attributes["content"].split("; "))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    run = [each.content for each in found.find("script") if "type" not in each.attributes]
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in run]
    assert rules["script-src"] == " ".join(f"'sha256-{each}'" for each in digests)
    assert len(run) == 2
    text.encode()


@pytest.mark.asyncio
async def test_a_run_with_a_failure_retries_and_two_workers(tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    backend = LocalExecutionBackend(resources={"workers": 2})
    flow = await WorkflowEngine.create(backend, work_dir=tmp_path / "work", record=record)
    failures = iter([True, True, False])

    @flow.function_task(retries=RetryPolicy(2, wait=0))
    def fetch(number: int) -> int:
        if next(failures):
            raise ConnectionError("no route to the host")
        return number

    @flow.executable_task(resources={"memory": "1 GB"})
    def tool(number: int) -> str:
        return f"echo reading {number}; echo cannot read {number} >&2; exit 3"

    @flow.function_task
    def join(first: int, second: str) -> None:
        raise AssertionError

    async with flow:
        joined = join(fetch(7), tool(8))
        await flow.join()
    assert joined.exception() is not None
    found = read(read_run(record))

    summary = found.get("summary").text
    assert "1 done, 1 failed, 1 skipped, 2 retried" in summary
    failed = found.get("failures")
    assert [each.text for each in failed.find("h3")] == [f"1 {TIMES} tool: exit code 3"]
    assert "1 task did not run because of this failure." in failed.text
    assert "cannot read 8" in failed.text
    assert "End of the standard output reading 8" in failed.text
    durations = found.get("durations").find("table")[0]
    assert row(durations, "fetch")[:3] == ["1", "0", "2"]
    assert row(durations, "tool")[:3] == ["1", "1", "0"]
    assert row(found.get("resources").find("table")[0], "tool")[0] == "memory 1.0 GB"
    assert row(found.get("graph").find("table")[0], "join") == ["1 skipped", "fetch (1), tool (1)"]
    assert [each.text for each in found.get("graph").find("text", **{"class": "counts"})] == [
        "1 done", "1 failed", "1 skipped"
    ]  # fmt: skip
    workers = found.get("timeline").find("table")[0]
    assert sum(int(each.find("td")[1].text) for each in workers.find("tbody")[0].find("tr")) == 4
    path = found.get("critical-path").find("tbody")[0]
    assert path.find("th")[0].text in ("task.000001", "task.000002")
    assert "rhapsody-core" in found.get("environment").text
    assert len(charts(found)) == 5 + ("memory" in found.get("resources").text) - 1


def test_the_script_finds_charts_and_buttons_of_a_section(records: Records) -> None:
    history = written(records, call(1, "a"), end(1, 0, 1, 2), *finish(2))
    found = {id: parsed(html) for id, html in sections(history).items()}
    assert list(found) == list(SECTIONS)
    (figure,) = found["timeline"].find("figure")
    (plot,) = figure.find("div", role="img")
    assert "data-chart" in plot.attributes
    beside = [each for each in figure.children if isinstance(each, Element)]
    assert beside[beside.index(plot) + 1].tag == "script"
    assert [each.text for each in figure.find("button")][-1] == "Whole run"


@pytest.mark.parametrize("text", [HOSTILE, "$$x$$", "a\x00\x1b[2J\ud800b", "x" * 10_000])
def test_recorded_text_is_only_text(records: Records, text: str) -> None:
    more = {"worker": text, "backend": text, "sandbox": text}
    error = {"type": text, "message": text, "traceback": [text]}
    history = written(
        records,
        call(1, text, call=text, scope=text, resources={"memory": 5, text: text}),
        call(2, f"{text}2", dependencies=["task.000001"], kind="block", settings={text: text}),
        end(1, 0, 1, 2, state="FAILED", error=error, stdout=text, stderr=text, **more,
            usage={"peak_memory": 3}),
        end(2, 2, 2, 3, state="FAILED", error=error, stdout_path=text, **more),
        {"event": "engine", "uid": text, "time": BEGIN, "options": {text: text}, "work_dir": text,
         "backends": [{"name": text, "class": text}]},
        repr(text),
        *finish(3, tasks=2),
        program=text, arguments=[text], command=[text], cwd=text, host=text, user=text,
        python=text, platform=text, profile=text, packages={text: text},
    )  # fmt: skip
    found = read(history)
    expected = "a\\x00\\x1b[2J\\ud800b" if "\x00" in text else text
    assert " ".join(expected.split()) in found.get("failures").text
    assert {each.tag for each in found.elements} <= {
        "html", "head", "meta", "title", "style", "body", "a", "header", "h1", "p", "code", "nav",
        "ul", "li", "main", "noscript", "section", "h2", "strong", "dl", "dt", "dd", "article",
        "h3", "h4", "details", "summary", "pre", "figure", "div", "button", "svg", "rect",
        "script", "table", "caption", "thead", "tbody", "tr", "th", "td", "defs", "marker", "path",
        "g", "text", "footer",
    }  # fmt: skip


def test_ten_thousand_tasks_are_shown_singly_in_less_than_10_megabytes(records: Records) -> None:
    history = written(records, *many(10_000), *finish(10_000, tasks=10_000, done=10_000))
    text = page(history)
    assert len(text.encode()) < 10_000_000
    assert "aggregates" not in parsed(text).get("summary").text
    timeline = charts(parsed(text).get("timeline"))[0]
    assert timeline.count('"task.0') == 10_000


def test_more_attempts_are_shown_as_aggregates(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = written(records, *many(300), *finish(300, tasks=300, done=300))
    assert "task.000001" in "".join(charts(read(history)))
    monkeypatch.setattr(content, "LIMIT", 299)
    found = read(history)
    assert "The run has 300 attempts. More than 299 are not shown one by one" in found.text
    assert "The full graph is too large to be drawn." in found.text
    assert "task.000001" not in "".join(charts(found))
    assert len(charts(found.get("timeline"))) == 1


def test_a_worker_whose_attempts_overlap_has_several_slots(records: Records) -> None:
    ends = [end(number, 0, 0, number, worker=f"worker-{number // 3}") for number in (1, 2, 3)]
    history = written(records, *(call(number, "a") for number in (1, 2, 3)), *ends, *finish(3))
    found = read(history)
    assert "3 attempts on 2 workers with 3 slots" in found.get("timeline").text
    assert "2, with 3 slots, 100 % of 2 cores in use" in found.get("summary").text


def test_the_timeline_shows_names_in_colors_and_failures_with_a_pattern(records: Records) -> None:
    names = ["long", "rare", *(f"other {number}" for number in range(9))]
    calls = [call(number, name) for number, name in enumerate(names, 1)]
    ends = [end(1, 0, 0, 9, retried=True), end(1, 9, 9, 99)]
    ends += [end(number, 99, 99, 100, state="FAILED") for number in range(2, 12)]
    found = read(written(records, *calls, *ends, *finish(100))).get("timeline")
    legend = [each.text for each in found.find("ul", **{"class": "legend"})[0].find("li")]
    others = [f"other {number}" for number in range(6)]
    assert legend == ["long", "rare", *others, "3 other names", "failed or lost"]
    (drawn,) = charts(found)
    assert '"long"' in drawn  # it stands on the bar
    assert '"hatch_pattern":{"type":"value","value":"/"}' in drawn


def test_the_summary_names_what_limits_the_run(records: Records) -> None:
    calls = [call(number, "a") for number in (1, 2, 3, 4)]
    ends = [end(number, 0, number // 3 * 2, number // 3 * 2 + 2) for number in (1, 2, 3, 4)]
    summary = read(written(records, *calls, *ends, *finish(4))).get("summary").text
    assert "100 % of 2 cores in use" in summary
    assert "cores: the tasks need at least 4.0 s on 2 cores, and 2.0 s with any number" in summary
    chain = [call(1, "a"), call(2, "a", dependencies=["task.000001"]), end(1, 0, 0, 2)]
    summary = read(written(records, *chain, end(2, 2, 2, 4), *finish(4))).get("summary").text
    assert "dependencies: the longest chain of tasks runs for 4.0 s" in summary
    late = [call(1, "a", after=9), end(1, 9, 9, 10)]
    summary = read(written(records, *late, *finish(10))).get("summary").text
    assert "the program, while no task was ready, 9.0 s of 10.0 s" in summary


def test_the_outcome_names_failures_that_the_program_handled(records: Records) -> None:
    lines = [call(1, "a"), call(2, "a"), end(1, 0, 0, 1, state="FAILED"), end(2, 0, 0, 1)]
    summary = read(written(records, *lines, *finish(1, tasks=2, done=1, failed=1))).get("summary")
    assert "done, 1 task failed" in " ".join(summary.text.split())


def test_long_tables_are_folded(records: Records) -> None:
    names = [f"name_{number}" for number in range(1, 22)]
    lines = [call(number, name) for number, name in enumerate(names, 1)]
    ends = [end(number, 0, 0, 1, worker=f"worker-{number}") for number in range(1, 22)]
    found = read(written(records, *lines, *ends, *finish(1)))
    assert found.get("durations-table").find("summary")[0].text == "Table of durations"
    short = read(written(records, *lines[:20], *ends[:20], *finish(1)))
    assert not short.get("durations").find("details")
    assert len(short.get("durations").find("table")[0].find("tr")) == 21


def test_a_run_in_progress_and_a_killed_run(records: Records) -> None:
    path = records.write(NAME, call(1, "a"), end(1, 0, 0, 1), call(2, "b"), start(2, 1))
    lock = FileLock(path.parent / ".lock")
    running = read(read_run(path))
    assert "The run is in progress" in running.get("summary").text
    assert "1 done, 1 running" in running.get("summary").text
    live = parsed(page(read_run(path), live=True))
    (policy,) = live.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"].endswith("; connect-src 'self'")
    later = parsed(sections(read_run(path), BEGIN + 11)["timeline"])
    assert row(later.find("table")[0], "worker-1")[:3] == ["local", "2", "0"]
    assert row(later.find("table")[0], "worker-1")[3:] == ["11.0 s", "100 %"]
    lock.release()
    (path.parent / ".lock").touch()  # its process was killed
    killed = read(read_run(path))
    assert "The process of the run was killed" in killed.get("summary").text
    assert '"unfinished"' in charts(killed.get("timeline"))[0]


def test_a_damaged_record(records: Records) -> None:
    history = written(
        records,
        call(1, "a"),
        "{ damaged",
        end(1, 0, 0, 1),
        end(2, 0, 0, 1, state="FAILED"),
        {"event": "end", "uid": "task.000003", "state": "DONE", "ended": "yesterday"},
        call(4, "b", resources={"memory": "much", "cores": "all"}),
        tail='{"event":"en',
    )
    found = read(history)
    assert "The record is damaged: 3 entries are not part" in found.get("summary").text
    assert "line 4 is skipped" in found.get("environment").text
    assert f"1 {TIMES} unnamed: unknown error" in found.get("failures").text


def test_a_run_without_tasks(records: Records) -> None:
    found = read(written(records))
    assert charts(found) == []
    for text in ("No task has failed.", "No task was called.", "No task has ended."):
        assert text in found.text
