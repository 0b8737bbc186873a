"""The live page in Chromium: it changes in place, can be paused, and shows the end of the run.

The test is skipped if chromium, chromedriver or Selenium is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests._support.browser import Browser, chromium
from tests._support.live_runs import LiveRun

STATUS = "document.querySelector('#live [role=status]').textContent"
SUMMARY = "document.querySelector('#summary').textContent"
DRAWN = "[...document.querySelectorAll('[data-chart]')].filter((plot) => plot.hasChildNodes())"

ZOOMED = "Bokeh.documents.filter((each) => each.roots()[0].x_range.start > 0).length"


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def test_the_page_follows_the_run_until_it_ends(browser: Browser, tmp_path: Path) -> None:
    with LiveRun(tmp_path) as live:
        live.call(1)
        browser.open(live.browser.url, width=360)
        browser.wait(f"return {STATUS}.startsWith('Live') && {SUMMARY}.includes('1 done')")
        browser.run(
            """
            document.querySelector("#timeline-table").open = true;
            window.details = document.querySelector("#critical-path details[open]");
            window.details.open = false;
            window.button = document.querySelector("#timeline [data-zoom]");
            window.button.click();
            window.button.scrollIntoView();
            window.button.focus({ preventScroll: true });
            window.top_ = window.button.getBoundingClientRect().top;
            """
        )
        live.call(2)
        browser.wait(f"return {SUMMARY}.includes('2 done')")
        assert (
            browser.run(
                """
            return [
                document.querySelector("#timeline-table").open,
                !window.details.open && window.details.isConnected,
                document.activeElement === window.button,
                Math.abs(window.button.getBoundingClientRect().top - window.top_) < 2,
            ];
            """
            )
            == [True] * 4
        )
        browser.run("document.querySelector('#live button').click()")
        assert "Paused" in browser.run(f"return {STATUS}")
        live.call(-3)
        browser.wait("return document.title.includes('running')")
        with live.browser.events() as events:
            while "1 failed" not in next(events)["sections"]["summary"]:
                pass
        assert "1 failed" not in browser.run(f"return {SUMMARY}")
        browser.run("document.querySelector('#live button').click()")
        browser.wait(f"return {SUMMARY}.includes('1 failed')")
        assert live.end()[0] == 1
        browser.wait(
            f"return {STATUS} === 'The run has ended (failed). This page no longer changes.'"
        )
        browser.wait(f"return {SUMMARY}.includes('failed in ')")
        browser.wait(f"return {DRAWN}.length > 3 && Bokeh.documents.length === {DRAWN}.length")
        assert browser.run(f"return {ZOOMED}") == 1
        assert browser.run("return document.querySelector('#live button')") is None
        assert browser.run("return document.title").startswith("wf.py: failed - run 2")
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        assert browser.errors == []
        assert {url.partition("?")[0] for url in browser.requests if url.startswith("http")} == {
            f"http://127.0.0.1:{live.browser.port}/",
            f"http://127.0.0.1:{live.browser.port}/events",
        }
