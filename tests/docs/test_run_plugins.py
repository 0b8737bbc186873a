"""The complete plugins of docs/plugins/run-plugins.md do in a run what the page says."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests._support.distributions import install
from tests.docs.test_code_blocks import blocks_of

PAGE = Path(__file__).parents[2] / "docs/plugins/run-plugins.md"
TABLE, NOTIFIER, SLOWEST, _ = (block.code for _, block in blocks_of(PAGE.read_text()))
PROGRAM = """
async def main(flow):
    @flow.function_task
    def double(x):
        return 2 * x

    @flow.function_task
    def fail(x):
        raise ValueError("no luck")

    await fail(double(1))
"""


class Run:
    """Runs a command in a directory, with a plugin of the page installed."""

    def __init__(self, directory: Path, source: str) -> None:
        self.directory = directory
        (directory / "program.py").write_text(PROGRAM)
        plugins = {"mine": "my_plugin"}
        install(directory / "site", "rhapsody-mine", plugins=plugins, modules={"my_plugin": source})

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "rhapsody", *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(self.directory / "site")},
        )


@pytest.fixture
def texts() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server, and the texts that it has received."""
    received: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(json.loads(body)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_the_recorder_writes_a_line_for_each_task(tmp_path: Path) -> None:
    done = Run(tmp_path, TABLE)("run", "program.py")
    assert done.returncode == 1
    with open(tmp_path / "tasks.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[1:3] for row in rows] == [["name", "state"], ["double", "DONE"], ["fail", "FAILED"]]


@pytest.mark.parametrize("place", ["flag", "profile"])
def test_the_notifier_sends_messages(
    tmp_path: Path, texts: tuple[str, list[str]], place: str
) -> None:
    url, received = texts
    run = Run(tmp_path, NOTIFIER)
    assert f"--notify-url {url}".split()[0] in run("run", "--help").stdout
    if place == "profile":
        (tmp_path / "rhapsody.toml").write_text(f"[plugins.rhapsody-mine]\nnotify_url = '{url}'\n")
        done = run("run", "program.py")
    else:
        done = run("run", "--notify-url", url, "program.py")
    assert done.returncode == 1, done.stderr
    first, last = received
    assert first == "fail: no luck"
    assert last.endswith(": failed")
    assert "no luck" in done.stderr


def test_the_notifier_does_not_stop_a_run_without_network(tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text("async def main(flow): print('ran')\n")
    done = Run(tmp_path, NOTIFIER)("run", "--notify-url", "http://127.0.0.1:9", "fine.py")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "plugin rhapsody-mine: rhapsody_workflow_finished raised URLError" in done.stderr


def test_the_notifier_is_short() -> None:
    lines = [line for line in NOTIFIER.splitlines() if line.strip()]
    assert len(lines) <= 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "notify_ur = 'x'",
            "rhapsody.toml:2: plugin 'rhapsody-mine' has no option 'notify_ur'; did",
        ),
        ("notify_url = 1", "rhapsody.toml:2: notify_url must be a string, got 1"),
    ],
)
def test_a_wrong_option_in_a_profile_is_refused(tmp_path: Path, text: str, said: str) -> None:
    run = Run(tmp_path, NOTIFIER)
    (tmp_path / "rhapsody.toml").write_text(f"[plugins.rhapsody-mine]\n{text}\n")
    done = run("run", "program.py")
    assert done.returncode == 2
    assert said in done.stderr
    (tmp_path / "rhapsody.toml").write_text("[plugins.rhapsody-other]\nx = 1\n")
    done = run("run", "program.py")
    assert done.returncode == 2
    assert "no plugin with options named 'rhapsody-other' is installed" in done.stderr


def test_the_reader_shows_the_newest_run(tmp_path: Path) -> None:
    run = Run(tmp_path, SLOWEST)
    run("run", "program.py")
    done = run("slowest")
    assert done.returncode == 0, done.stderr
    assert {line.split()[-1] for line in done.stdout.splitlines()} == {"double", "fail"}
