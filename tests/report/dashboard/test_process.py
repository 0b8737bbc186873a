"""The options `--dashboard` and `--dashboard-port` of `rhapsody run`."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests._support.command_line import Run
from tests._support.live_runs import Browser, LiveRun, until
from tests._support.programs import PATIENCE


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveRun]:
    with LiveRun(tmp_path) as run:
        yield run


def failed(run: Run, *options: str, code: int) -> str:
    """The error of a run whose function does not exist, so that it cannot start."""
    done = run("", *options, function=":nothing")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return done.stderr


def refuses(browser: Browser) -> bool:
    """Return True if nothing listens at the address."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", browser.port)) != 0


def test_a_run_is_shown_until_it_ends(live: LiveRun, tmp_path: Path) -> None:
    with live.browser.events() as events:
        live.call(1)
        event = until(events, "1 done")
        assert (event["outcome"], event["ended"]) == ("running", False)
        live.call(-2)
        assert "ValueError" in until(events, "1 failed")["sections"]["failures"]
        live.close_input()
        *_, last = events
        assert (last["outcome"], last["ended"]) == ("failed", True)
    assert live.end()[0] == 1
    assert refuses(live.browser)
    token = live.browser.query.removeprefix("token=").encode()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.jsonl", "log.txt"} <= {path.name for path in files}
    assert not [path for path in files if token in path.read_bytes()]


def test_an_interrupted_run_with_a_browser_that_does_not_read(live: LiveRun) -> None:
    with live.browser.events() as events, live.browser.without_reading():
        live.call(1)
        until(events, "1 done")
        live.interrupt()
        *_, last = events
        assert (last["outcome"], last["ended"]) == ("interrupted", True)
        assert live.process.wait(PATIENCE) == 130


def test_a_run_that_was_killed(live: LiveRun) -> None:
    with live.browser.events() as events:
        live.call(1)
        until(events, "1 done")
        live.process.kill()
        *_, last = events
    assert (last["outcome"], last["ended"]) == ("killed", True)
    assert "was killed" in last["sections"]["summary"]


def test_a_killed_server_is_reported_and_does_not_end_the_run(live: LiveRun) -> None:
    (child,) = psutil.Process(live.process.pid).children()
    assert live.browser.query not in " ".join(child.cmdline())
    child.kill()
    live.call(1)
    assert live.end() == (
        0,
        "rhapsody: the dashboard ended before the run: its process ended with exit code -9\n",
    )


def test_a_fixed_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    for _ in range(2):  # it can be used again at once
        with LiveRun(tmp_path, "--dashboard-port", str(port)) as live:
            assert live.browser.port == port
            assert live.end() == (0, "")


def test_a_port_that_is_in_use_is_an_error_before_the_run_starts(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = failed(run, "--dashboard-port", str(port), code=1)
    assert error == (
        f"rhapsody: the dashboard cannot be started: port {port} is in use; choose another one, "
        "or omit --dashboard-port to use a free one\n"
    )


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_an_impossible_port(run: Run, port: str) -> None:
    error = failed(run, f"--dashboard-port={port}", code=2)
    assert f"--dashboard-port must be between 1 and 65535, got {port}" in error


def test_a_dry_run_has_no_dashboard(run: Run) -> None:
    assert "--dry-run runs none" in failed(run, "--dashboard", "--dry-run", code=2)


def test_a_mistake_ends_the_dashboard_at_once(run: Run) -> None:
    first, second = failed(run, "--dashboard", code=2).splitlines()
    assert "nothing" in second
    assert refuses(Browser(first.removeprefix("rhapsody: dashboard: ")))


def test_without_the_option_no_library_is_imported(run: Run) -> None:
    done = run(
        """
        import sys

        async def main(flow):
            libraries = ("starlette", "uvicorn", "bokeh", "rocrate")
            print([name for name in libraries if name in sys.modules])
        """,
        "-q",
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
