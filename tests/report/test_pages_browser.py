"""The report in Chromium: it draws without errors, requests nothing, and needs no mouse.

The tests are skipped if chromium, chromedriver or Selenium is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.history import read_run
from rhapsody_report import page
from tests._support.browser import IDLE, Browser, chromium
from tests._support.histories import Records, call, end, finish, many

NAME = "20260101T000000-align-00a1"
HOSTILE = "<img src=x onerror=\"document.title='injected'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def written(records: Records, *lines: Any) -> Path:
    """Write a page about a run with these lines."""
    path = records.path / "report.html"
    path.write_text(page(read_run(records.write(NAME, *lines))), "utf-8")
    return path


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report with all charts and hostile names."""
    error = {"type": "ValueError", "message": HOSTILE, "traceback": [HOSTILE]}
    names = [HOSTILE, "$$x^2$$", "a_long_name_of_a_task_that_is_not_split_into_words"]
    lines = []
    for number, name in enumerate(names, 1):
        before = [f"task.{number - 1:06d}"] if number > 1 else []
        more: dict[str, Any] = {"worker": f"{number} {name}"}
        if number == 3:
            more |= {"state": "FAILED", "error": error, "stderr": "x" * 500}
        used = {"peak_memory": 10**9, "cpu_seconds": 1.0}
        lines += [
            call(number, name, dependencies=before, resources={"memory": 4 * 10**9}),
            end(number, number, number, number + 2, usage=used, **more),
        ]
    return written(Records(tmp_path), *lines, *finish(6, "failed", tasks=3, done=2, failed=1))


@pytest.mark.parametrize(
    ("width", "dark"), [(360, True), (1440, False)], ids=["narrow and dark", "wide and light"]
)
def test_it_draws_without_errors_and_requests_nothing(
    browser: Browser, report: Path, width: int, dark: bool
) -> None:
    browser.open(report.as_uri(), width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.wait(IDLE)
    assert browser.run("return document.querySelectorAll('[data-chart]').length") == 6
    assert browser.run("return document.documentElement.scrollWidth") <= width
    back = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    assert browser.errors == []
    assert browser.requests == [report.as_uri()]


def test_recorded_text_stays_text_in_charts(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    plot = browser.driver.find_element(By.CSS_SELECTOR, "#timeline [data-chart]")
    browser.run("document.querySelector('#timeline').scrollIntoView()")
    shown = """
        const all = (root) => [...root.querySelectorAll("*")]
            .flatMap((each) => each.shadowRoot ? [each, ...all(each.shadowRoot)] : [each]);
        const [tooltip] = all(document.body).filter((each) => each.matches(".bk-Tooltip"));
        if (tooltip === undefined) return null;
        const inside = all(tooltip.shadowRoot);
        const text = inside.map((each) => each.childElementCount ? "" : each.textContent).join(" ");
        return [text, inside.filter((each) => each.matches("img")).length];
    """
    for step in range(20):  # until the pointer is on a bar
        x = int(plot.size["width"] * (step / 20 - 0.5))
        y = int(-plot.size["height"] / 2 + 20)
        ActionChains(browser.driver, 0).move_to_element_with_offset(plot, x, y).perform()
        if found := browser.run(shown):
            break
    else:
        pytest.fail("no tooltip")
    text, images = found
    assert HOSTILE in text
    assert images == 0
    assert "injected" not in browser.run("return document.title")
    assert browser.errors == []


def test_the_keyboard_reaches_everything(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    browser.press("\ue004")  # tab
    focused = "const at = document.activeElement; return at.getAttribute('href') || at.textContent"
    assert browser.run(focused) == "#main"
    assert browser.run("return document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("\ue007")  # enter
    assert browser.run("return document.activeElement.id") == "main"
    order = []
    while True:
        browser.press("\ue004")
        at = browser.run("return document.activeElement.outerHTML.slice(0, 200)")
        if at in order or at.startswith("<body"):
            break
        style = "return getComputedStyle(document.activeElement).outlineStyle"
        assert browser.run(style) == "solid", at
        order.append(at)
    assert sum("<summary" in each for each in order) >= 4
    assert sum('data-zoom="in"' in each for each in order) == 1
    ranges = """
        const plot = document.querySelector("#timeline [data-chart]");
        const range = Bokeh.index.roots.find((view) => plot.contains(view.el)).model.x_range;
        return [range.start, range.end];
    """
    before = browser.run(ranges)
    browser.run("document.querySelector('#timeline [data-zoom=in]').focus()")
    browser.press("\ue007")
    after = browser.run(ranges)
    assert before[0] < after[0] < after[1] < before[1]
    browser.run("document.querySelector('#timeline [data-zoom=reset]').focus()")
    browser.press("\ue007")
    assert browser.run(ranges) == before


def test_a_replaced_section_is_drawn_again(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    browser.run("""
        const section = document.querySelector("#utilization");
        const [html, plot] = [section.innerHTML, section.querySelector("[data-chart]")];
        plot.replaceChildren();
        section.innerHTML = section.innerHTML;
        rhapsodyReport.draw(section);
    """)
    browser.wait(IDLE)
    assert browser.run("return document.querySelector('#utilization .plot').childElementCount") == 1
    assert browser.errors == []


def test_ten_thousand_tasks(browser: Browser, tmp_path: Path) -> None:
    lines = many(10_000)
    path = written(Records(tmp_path), *lines, *finish(70, tasks=10_000, done=10_000))
    browser.open(path.as_uri())
    browser.run("document.querySelector('#graph-full').open = true")
    browser.wait(IDLE)
    assert browser.run("return document.querySelector('#graph-full .plot').childElementCount") == 1
    assert browser.errors == []
