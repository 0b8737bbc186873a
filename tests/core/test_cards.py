"""Displays of engines, futures and summaries in notebooks and by rich."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from rhapsody import WorkflowEngine, hookimpl
from rhapsody.cards import MAX_LENGTH, Card
from rhapsody.plugins.specs import Stats, Summary
from tests._support.distributions import python

SECRET = "correct horse battery"  # pragma: allowlist secret


class _Texts(HTMLParser):
    """Texts and tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def texts(html: str) -> list[str]:
    """Return the texts of a card's HTML, and check its tags."""
    parser = _Texts()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert parser.seen <= {"div", "strong", "table", "tr", "th", "td"}
    return parser.texts


def printed(shown: object) -> str:
    """Return the text that rich prints, without trailing blanks."""
    console = Console(file=io.StringIO(), width=100)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


@pytest.mark.asyncio
async def test_a_future_shows_its_state_and_where_it_ran() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def double(x: int) -> int:
            return 2 * x

        future = double(2)
        assert texts(future._repr_html_()) == ["double (task.000001)", "state", "PENDING"]
        await future
        title, *rows = texts(future._repr_html_())
        assert title == "double (task.000001)"
        assert rows[:4] == ["state", "DONE", "backend", "local"]
        assert printed(future).splitlines()[:3] == [
            "double (task.000001)",
            "state    DONE",
            "backend  local",
        ]


@pytest.mark.asyncio
async def test_a_failed_future_shows_its_error_escaped_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", SECRET)
    async with WorkflowEngine.create("noop") as flow:

        @flow.block(name="<script>[b]")
        async def fails() -> None:
            raise ValueError(f"<b>no</b> [red]{SECRET} & {SECRET}\nsecond line")

        future = fails()
        await future.ended()
        error = "ValueError: <b>no</b> [red]<API_TOKEN> & <API_TOKEN>"
        for shown in (texts(future._repr_html_()), printed(future)):
            assert "<script>[b] (block.000001)" in shown
            assert error in shown
            assert "second line" not in shown
        assert SECRET not in future._repr_html_()
        assert future._log_traceback, "showing an error does not count as retrieving it"
        future.exception()


def test_values_of_a_tasks_environment_are_masked() -> None:
    card = Card(f"run {SECRET}", "#000000", {"error": SECRET, "empty": ""}, {"PHRASE": SECRET})
    assert texts(card.html()) == ["run <PHRASE>", "error", "<PHRASE>"]
    assert printed(card.rich()) == "run <PHRASE>\nerror  <PHRASE>"


def test_long_texts_are_shortened() -> None:
    *_, text = texts(Card("title", "#000000", {"error": "x" * 10_000}).html())
    assert text == "x" * (MAX_LENGTH - 3) + "..."


@pytest.mark.asyncio
async def test_an_engine_shows_its_state_backends_and_tasks(tmp_path: Path) -> None:
    flow = await WorkflowEngine.create(["local", "noop"], uid="mine", work_dir=tmp_path)
    done = flow.function_task(int)()
    assert texts(flow._repr_html_())[:-1] == [
        "WorkflowEngine mine", "state", "running", "backends", "local, noop",
        "tasks", "0 done, 1 unfinished", "files",
    ]  # fmt: skip
    assert repr(flow) == "<WorkflowEngine mine running>"
    await done
    await flow.shutdown()
    assert repr(flow) == "<WorkflowEngine mine shut down>"
    assert "state     shut down\nbackends  local, noop\ntasks     1 done\n" in printed(flow)


@pytest.mark.asyncio
async def test_a_summary_shows_what_happened() -> None:
    shown: list[str] = []

    class Observer:
        @hookimpl
        def rhapsody_workflow_finished(self, summary: Summary) -> None:
            shown.append(summary._repr_html_())

    async with WorkflowEngine.create("noop", uid="mine", observers=[Observer()]) as flow:
        await flow.function_task(int)()
    assert texts(shown[0])[:5] == ["Summary of mine", "outcome", "done", "tasks", "1 done"]


def test_a_summary_lists_problems_and_counts_the_rest() -> None:
    stats = Stats(tasks=9, done=3, failed=3, skipped=2, cancelled=1, recorded=2, retried=4)
    summary = Summary("mine", stats, 3723.4, still_running=tuple("abcde"), problems=("<no>",))
    assert texts(summary._repr_html_()) == [
        "Summary of mine",
        "outcome",
        "done",
        "tasks",
        "3 done (2 of them reused), 1 failed, 2 skipped, 1 canceled, 2 unfinished, 4 retried",
        "time", "1:02:03", "still running", "a\nb\nc\nand 2 more", "problems", "<no>",
    ]  # fmt: skip
    assert "time           1:02:03" in printed(summary)


def test_html_does_not_import_rich() -> None:
    code = """
    import rhapsody
    from rhapsody.plugins.specs import Stats, Summary
    Summary("mine", Stats(), 1.0)._repr_html_()
    print("rich" in sys.modules)
    """
    assert python(code).stdout == "False\n"
