"""Chromium without a window, for tests of pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests._support.programs import PATIENCE

IDLE = """
return document.querySelectorAll("[data-chart]").length > 0
    && [...document.querySelectorAll("[data-chart]")].every((plot) =>
        plot.closest("details:not([open])") || plot.hasChildNodes())
    && Bokeh.index.roots.every((view) => view.is_idle)
"""
"""Script that returns True if all visible charts have been drawn."""


class Browser:
    """Chromium without a window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = 1440, dark: bool = False) -> None:
        """Open a page and wait for its charts."""
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.do("Emulation.setDeviceMetricsOverride", **size)
        self.driver.get(url)
        self.wait(IDLE)

    def do(self, command: str, **parameters: Any) -> Any:
        """Run a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def run(self, script: str) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script)

    def wait(self, script: str) -> None:
        """Wait until a script returns a true value."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, PATIENCE, 0.02).until(lambda driver: self.run(script))

    def press(self, *keys: str) -> None:
        """Press keys."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def errors(self) -> list[str]:
        """The messages on the console, except for information."""
        found = self.driver.get_log("browser")
        return [each["message"] for each in found if each["level"] not in ("INFO", "DEBUG")]

    @property
    def requests(self) -> list[str]:
        """The addresses that the page requested."""
        found = [
            json.loads(each["message"])["message"] for each in self.driver.get_log("performance")
        ]
        sent = [each for each in found if each["method"] == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in sent]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium, or skip the test if it or its driver is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    opened = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(opened)
    finally:
        opened.quit()
