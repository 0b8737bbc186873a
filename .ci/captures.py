"""Take pictures of the commands, the report and the dashboard, for a review by eye.

Runs the examples and some small programs in a temporary directory, and the commands in a
pseudo-terminal with different widths. Writes a PNG and an SVG of each terminal, on a light or a
dark background, text files with the output of some commands in a pipe, and PNGs of the pages on
narrow and wide screens, light and dark.

    python .ci/captures.py DIRECTORY [--only WORD]

Requires Chromium and its driver; the examples also require scikit-learn, bowtie2, samtools and
bcftools.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import functools
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text
from selenium import webdriver

EXAMPLES = Path(__file__).absolute().parents[1] / "examples"
RHAPSODY = [sys.executable, "-m", "rhapsody"]
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": SVG_EXPORT_THEME}
ROWS = 300
TIMEOUT = 120.0
"""Seconds after which a command that has not finished is an error."""

MIXED = '''
"""Failed programs and functions, retries, skipped tasks, a block, and wide names."""

async def main(flow):
    @flow.executable_task(resources={"memory": "500 MB"})
    async def align(number):
        if number == 3:
            return f"echo reading part {number}; echo 'part {number}: unexpected end' >&2; exit 2"
        return f"echo part {number}; sleep 0.0{number}"

    @flow.function_task(resources={"memory": "1 GB"}, retries=2)
    def measure(number):
        data = bytearray(number * 10_000_000)
        print(f"measured {len(data)} bytes")
        if number == 5:
            raise ValueError(f"part {number} has no peaks; check the threshold")
        return number

    @flow.function_task
    def größe_日本語_in_dezibel_über_alle_messungen_und_stationen(name, *sizes):
        return f"{name}: {sum(sizes)}"

    @flow.function_task
    def summarize_everything_that_was_measured_in_the_first_campaign(*parts):
        return parts

    @flow.block
    async def refine(number):
        return await measure(await measure(number))

    parts = [align(number) for number in range(8)]
    sizes = [measure(number) for number in range(6)]
    größe_日本語_in_dezibel_über_alle_messungen_und_stationen("Übersicht 日本語データ", sizes[1])
    summarize_everything_that_was_measured_in_the_first_campaign(*parts, *sizes)
    print(await refine(2))
'''
EMPTY = "async def main(flow):\n    print('nothing to do')\n"
ONE = """
async def main(flow):
    @flow.function_task
    def only():
        return 1

    print(await only())
"""
MANY = """
async def main(flow):
    for number in range(30):
        step = flow.function_task(name=f"step_{number:02}")(lambda value: value)
        for value in range(100):
            step(value)
"""
LIVE = '''
"""Programs that run until a file exists."""
import sys

async def main(flow):
    @flow.executable_task
    async def simulate(number):
        return f"echo step 1 of {number}; until test -e {sys.argv[1]}; do sleep 0.2; done"

    @flow.function_task
    def load(number):
        return number

    @flow.function_task
    def analyze(number, output):
        return number

    for number in range(30):
        analyze(number, simulate(load(number)))
'''  # fmt: skip


class Captures:
    """Pictures in a directory.

    Args:
        directory: The directory, which is created.
        only: A word in the names of the pictures that are taken; empty for all.
    """

    def __init__(self, directory: Path, only: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.only = directory.absolute(), only

    @functools.cached_property
    def browser(self) -> webdriver.Chrome:
        """Chromium without a window."""
        options = webdriver.ChromeOptions()
        for each in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"):
            options.add_argument(each)
        driver = shutil.which("chromedriver")
        return webdriver.Chrome(options, webdriver.ChromeService(driver) if driver else None)

    def terminal(self, name: str, *command: str, columns: int = 80, theme: str = "dark") -> None:
        """Take a picture of a command in a terminal."""
        if self.only in name:
            lines = in_terminal([*RHAPSODY, *command], columns)
            self.picture(f"{name}-{columns}", f"$ rhapsody {' '.join(command)}", lines, theme)

    def terminals(self, name: str, *command: str) -> None:
        """Take pictures of a command in terminals of 60, 80 and 120 columns, and in a pipe."""
        self.terminal(name, *command, columns=60)
        self.terminal(name, *command, columns=80, theme="light")
        self.terminal(name, *command, columns=120)
        self.pipe(name, *command)

    def pipe(self, name: str, *command: str) -> None:
        """Write what a command prints in a pipe."""
        if self.only in name:
            done = subprocess.run(
                [*RHAPSODY, *command], capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
            text = f"{done.stdout}{done.stderr}[exit code {done.returncode}]\n"
            (self.directory / f"{name}.txt").write_text(text)

    def picture(self, name: str, title: str, lines: Sequence[Text], theme: str) -> None:
        """Write the picture of a terminal."""
        columns = int(name.rpartition("-")[2])
        console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
        for line in [*lines, ""]:  # an empty last line, because rich cuts off its lower part
            console.print(line, no_wrap=True, crop=True)
        svg = console.export_svg(title=title, theme=THEMES[theme])
        svg = re.sub(r"@font-face\s*\{[^}]*\}", "", svg)  # fonts from the network
        path = self.directory / f"{name}.svg"
        path.write_text(svg)
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
        assert box is not None
        width, height = (int(float(each)) for each in box.groups())
        self.page(name, path.as_uri(), width, height)

    def report(self, name: str, run: str) -> None:
        """Take pictures of the report of a run."""
        file = Path(f"{name}.html").absolute()

        def write() -> str:
            if not file.exists():
                subprocess.run([*RHAPSODY, "report", run, "-o", str(file)], check=True)
            return file.as_uri()

        self.pages(f"report-{name}", write)

    def pages(self, name: str, url: Callable[[], str]) -> None:
        """Take pictures of a page on narrow and wide screens, light and dark."""
        for width in (360, 1440):
            for scheme in ("light", "dark"):
                picture = f"{name}-{width}-{scheme}"
                if self.only in picture:
                    self.page(picture, url(), width, scheme=scheme)

    def page(
        self, name: str, url: str, width: int, height: int | None = None, scheme: str = "light"
    ) -> None:
        """Take a picture of a page in a browser; without a height, of the whole page."""
        send = self.browser.execute_cdp_cmd
        metrics = {"width": width, "deviceScaleFactor": 1, "mobile": False}
        send("Emulation.setDeviceMetricsOverride", metrics | {"height": height or 900})
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        send("Emulation.setEmulatedMedia", {"features": features})
        self.browser.get(url)
        options = {"captureBeyondViewport": height is None, "format": "png"}
        found = send("Page.captureScreenshot", options)
        (self.directory / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


def in_terminal(
    command: Sequence[str], columns: int, rows: int = ROWS, until: str = ""
) -> list[Text]:
    """Run a command in a terminal and return what it shows at the end.

    With a text in `until`, the command is interrupted once it shows this text.

    Raises:
        TimeoutError: The command does not end or does not show the text.
    """
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown: list[Text] = []
    try:
        for data in _until_closed(ours):
            stream.feed(data)
            if until and not shown and until in "\n".join(screen.display):
                shown = _lines(screen)
                process.send_signal(signal.SIGINT)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown or _lines(screen)


def _until_closed(terminal: int) -> Iterator[bytes]:
    end = time.monotonic() + TIMEOUT
    while True:
        if not select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError(f"the command has not finished after {TIMEOUT:.0f} s")
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # the command has ended
            return
        if not data:
            return
        yield data


def _lines(screen: pyte.Screen) -> list[Text]:
    """Return the lines of a screen with their colors, without empty ones at the end."""
    used = [number for number, line in enumerate(screen.display) if line.strip()]
    lines = []
    for number in range(max(used, default=0) + 1):
        line = Text()
        for column in range(screen.columns):
            cell = screen.buffer[number][column]
            color = NAMES.get(cell.fg, cell.fg)
            color = f"#{color}" if re.fullmatch("[0-9a-f]{6}", color) else color
            style = Style(color=color, bold=cell.bold, italic=cell.italics, reverse=cell.reverse)
            line.append(cell.data, style)
        line.rstrip()
        lines.append(line)
    return lines


NAMES = {"brown": "yellow"} | {
    f"bright{name}": f"bright_{name}"
    for name in ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
}
"""Names of colors in rich, by the name in pyte."""


def rhapsody_json(*command: str) -> Any:
    """Return what a command prints with `--json`."""
    done = subprocess.run([*RHAPSODY, *command, "--json"], capture_output=True, check=True)
    return json.loads(done.stdout)


def run(*command: str) -> str:
    """Run a program, and return the last digits of the name of the run."""
    subprocess.run([*RHAPSODY, "run", *command], capture_output=True, check=False)
    return newest()


def newest() -> str:
    """Return the last digits of the name of the newest run."""
    return os.readlink(".rhapsody/latest")[-4:]


@contextlib.contextmanager
def live_run() -> Iterator[tuple[str, str]]:
    """Run a program whose tasks do not end during the block.

    Yields:
        The last digits of the name of the run, and the address of its dashboard.

    Raises:
        TimeoutError: Its tasks do not start.
    """
    go = Path("go").absolute()
    options = ["--dashboard", "-b", "local", "-o", "cores=4"]
    command = [*RHAPSODY, "run", *options, "live.py", "--", str(go)]
    before = newest()
    with (
        open("live.txt", "w") as output,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output),
    ):
        try:
            end = time.monotonic() + TIMEOUT
            while True:
                name, address = newest(), re.search(r"http\S+", Path("live.txt").read_text())
                with contextlib.suppress(subprocess.CalledProcessError):
                    running = () if name == before else rhapsody_json("status", name)["running"]
                    if len(running) >= 4 and address is not None:
                        break
                if time.monotonic() > end:
                    raise TimeoutError("the tasks of live.py do not start")
                time.sleep(0.2)
            yield name, address[0]
        finally:
            go.touch()


def capture(to: Captures) -> None:
    """Take all pictures; the current directory is empty."""
    to.terminal("runs-none", "runs")
    to.terminal("stats-none", "stats")
    for name, text in PROGRAMS.items():
        Path(name).write_text(text)
    empty, one, many = run("empty.py"), run("one.py"), run("many.py")
    to.terminal("run-mixed", "run", "mixed.py")
    mixed = run("mixed.py", "--fresh")
    digits = run(str(EXAMPLES / "digits.py"), "-b", "local", "-o", "executor=process")
    phage, again = (run(str(EXAMPLES / "lambda_phage.py"), "--fresh") for _ in range(2))
    with live_run() as (live, dashboard):
        to.pages("dashboard", lambda: dashboard)
        to.terminals("runs", "runs")
        to.terminals("status-live", "status", live)
        if to.only in "status-watch":
            command = [*RHAPSODY, "status", "--watch", live]
            lines = in_terminal(command, 80, rows=30, until="waiting (")
            to.picture("status-watch-80", "$ rhapsody status --watch", lines, "dark")
        to.terminal("show-running", "show", live, "simulate", columns=80)
        to.terminal("logs-running", "logs", live, "task.000002", columns=80)
        to.terminal("stats-live", "stats", live)
    for name, each in ("empty", empty), ("one", one), ("many", many), ("mixed", mixed):
        to.terminals(f"status-{name}", "status", each)
        to.terminals(f"stats-{name}", "stats", each)
    to.terminals("stats-digits", "stats", digits)
    to.terminals("stats-phage", "stats", phage)
    to.terminals("compare-phage", "stats", phage, again)
    to.terminals("compare-different", "stats", digits, mixed)
    to.terminals("show-failed-program", "show", mixed, "4")
    to.terminals("show-failed-function", "show", mixed, "14")
    to.terminals("show-wide", "show", mixed, "größe")
    to.terminals("show-skipped", "show", mixed, "summarize")
    to.terminals("show-many", "show", many, "step_0")
    to.terminal("show-block", "show", mixed, "refine")
    to.terminal("logs-program", "logs", mixed, "4")
    to.terminal("logs-function", "logs", mixed, "14")
    to.terminal("logs-none", "logs", mixed, "summarize")
    for name, each in ("phage", phage), ("mixed", mixed), ("empty", empty):
        to.terminal(f"graph-{name}", "graph", each)
        svg = subprocess.run(
            [*RHAPSODY, "graph", each, "--format", "svg"], capture_output=True, check=False
        ).stdout
        if to.only in f"graph-{name}-svg" and svg:
            path = to.directory / f"graph-{name}-svg.svg"
            path.write_bytes(svg)
            to.page(f"graph-{name}-svg", path.as_uri(), 1500, 900)
    for name, each in ("mixed", mixed), ("digits", digits), ("phage", phage), ("empty", empty):
        to.report(name, each)
    to.terminal("error-run", "show", "nope", "1")
    to.terminal("error-task", "show", mixed, "nope")
    to.terminal("error-option", "stats", "--al")
    to.terminal("help", "--help")
    to.terminal("help-stats", "stats", "--help", theme="light")
    to.terminals("config", "config")
    to.terminals("backends", "backends")


PROGRAMS = {
    "mixed.py": MIXED,
    "empty.py": EMPTY,
    "one.py": ONE,
    "many.py": MANY,
    "live.py": LIVE,
}


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path, help="the directory for the pictures")
    parser.add_argument("--only", default="", metavar="WORD", help="pictures with this in the name")
    arguments = parser.parse_args()
    to = Captures(arguments.directory, arguments.only)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        capture(to)
    to.browser.quit()
    print(f"{len(list(to.directory.glob('*.png')))} pictures in {to.directory}")


if __name__ == "__main__":
    main()
