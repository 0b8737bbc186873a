"""The server of the dashboard: requests, events, and its end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from rhapsody.fsutil import FileLock
from rhapsody.history import RunRecord
from rhapsody_report import pages
from rhapsody_report.dashboard import server
from tests._support.histories import Records, call, end, finish
from tests._support.live_runs import Server, until
from tests._support.programs import PATIENCE

NAME = "20260102T000000-align-00b2"


@pytest.fixture(scope="module")
def refusing() -> Iterator[Server]:
    """A server for tests that only send requests."""
    served = Server()
    yield served
    served.join()


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Path]:
    """The record of a run that is in progress, without tasks."""
    records = Records(tmp_path)
    path = records.write(NAME)
    lock = FileLock(path.parent / ".lock")
    yield path
    lock.release()


@pytest.fixture
def served(record: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server for that record, which updates the report at once."""
    monkeypatch.setattr(server, "INTERVAL", 0.02)
    monkeypatch.setattr(server, "REST", 0.0)
    found = Server()
    found.open(record)
    yield found
    found.join()


def add(record: Path, *lines: dict[str, Any]) -> None:
    """Add lines to a record in one step."""
    with record.open("a") as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize("target", ["/", "/events", "/other"])
@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?token=%C3%A9", "?version=1"])
def test_a_request_without_the_token_is_refused(refusing: Server, target: str, query: str) -> None:
    with refusing.browser.response(target + query) as response:
        assert response.status == 403
        assert b"open the address that rhapsody run has printed" in response.read()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:9000", 200),
        ("LOCALHOST", 200),
        ("[::1]:{port}", 200),
        ("example.org:{port}", 403),
        ("127.0.0.1.example.org", 403),
        ("localhost@example.org", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_served(refusing: Server, host: str, status: int) -> None:
    headers = {"Host": host.format(port=refusing.browser.port)}
    with refusing.browser.response(f"/?{refusing.browser.query}", headers) as response:
        assert response.status == status


@pytest.mark.parametrize("target", ["/?{}", "/events?{}", "/other?{}", "/"])
def test_all_responses_have_headers_that_protect_them(refusing: Server, target: str) -> None:
    with refusing.browser.response(target.format(refusing.browser.query)) as response:
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "Server" not in response.headers


def test_other_paths_and_methods_do_not_exist(refusing: Server) -> None:
    browser = refusing.browser
    with browser.response(f"/other?{browser.query}") as response:
        assert response.status == 404
    with browser.response(f"/?{browser.query}", method="POST") as response:
        assert response.status == 405


def test_idle_connections_of_others_do_not_keep_the_browser_out() -> None:
    served = Server()
    address = ("127.0.0.1", served.browser.port)
    with served.browser.events() as events, ExitStack() as stack:
        next(events)
        idle = [
            stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
            for _ in range(server.MAX_WAITING + 10)
        ]
        assert "<h1>align.py</h1>" in served.browser.page()
        with suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""  # the oldest one was closed
        served.end()
        *_, last = events  # a connection that has sent the token stays
    assert last["ended"]
    served.join()


def test_a_run_without_a_record_is_shown(refusing: Server) -> None:
    page = refusing.browser.page()
    assert "<h1>align.py</h1>" in page
    assert "secret" not in page


def test_the_outcome_of_a_run_without_a_record_is_unknown() -> None:
    served = Server()
    with served.browser.events() as events:
        assert next(events)["outcome"] == "running"
        served.end()
        *_, last = events
    assert (last["outcome"], last["ended"]) == ("unknown", True)
    assert "<strong>unknown</strong>" in last["sections"]["summary"]
    served.join()


def test_all_browsers_receive_what_has_changed_until_the_run_ends(
    served: Server, record: Path
) -> None:
    with served.browser.events() as first, served.browser.events() as second:
        add(record, call(1, "part"), end(1, 0, 0, 1))
        event = until(first, "1 done")
        assert (event["outcome"], event["ended"]) == ("running", False)
        assert event["run"] == NAME
        assert event["title"] == f"align.py: running - run {NAME}"
        until(second, "1 done")
        add(record, call(2, "part"), end(2, 1, 1, 2, state="FAILED"))
        event = until(first, "1 failed")
        assert "2(2)" not in event["sections"]["failures"]
        assert "environment" not in event["sections"]
        add(record, *finish(3, "failed", tasks=2, done=1))
        served.end()
        for events in first, second:
            *_, last = events
            assert (last["outcome"], last["ended"]) == ("failed", True)
        assert "<strong>failed</strong>" in last["sections"]["summary"]
    served.join()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.browser.port))


def test_a_browser_that_connects_again_receives_what_it_has_missed(
    served: Server, record: Path
) -> None:
    with served.browser.events() as events:
        add(record, call(1, "part"), end(1, 0, 0, 1))
        last = until(events, "1 done")["id"]
    add(record, call(2, "part"), end(2, 0, 0, 1))
    with served.browser.events(last) as events:
        assert "environment" not in until(events, "2 done")["sections"]
    with served.browser.events("1000000") as events:
        assert "environment" in next(events)["sections"]


def test_the_page_contains_the_version_from_which_its_events_continue(
    served: Server, record: Path
) -> None:
    add(record, call(1, "part"), end(1, 0, 0, 1))
    page = served.browser.page()
    version = page.partition('<body data-version="')[2].partition('"')[0]
    assert "1 done" in page
    with served.browser.events(version) as events:
        add(record, call(2, "part"), end(2, 0, 0, 1))
        assert "environment" not in next(events)["sections"]


def test_text_from_the_record_is_not_run(served: Server, record: Path) -> None:
    add(record, call(1, "<script>alert(1)</script>"), end(1, 0, 0, 1))
    with served.browser.events() as events:
        event = until(events, "1 done")
    assert "<script>alert" not in json.dumps(event["sections"])
    assert "<script>alert" not in served.browser.page()


def test_a_browser_that_does_not_read_does_not_delay_others(served: Server, record: Path) -> None:
    with served.browser.without_reading(), served.browser.events() as events:
        add(record, call(1, "part"), end(1, 0, 0, 1))
        until(events, "1 done")
        served.end()
        *_, last = events
        assert last["ended"]


@pytest.mark.asyncio
async def test_the_report_is_built_only_while_a_browser_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def sections(*arguments: Any) -> dict[str, str]:
        built.append(arguments)
        return {"summary": str(len(built))}

    monkeypatch.setattr(pages, "sections", sections)
    monkeypatch.setattr(server, "INTERVAL", 0.0)
    monkeypatch.setattr(server, "REST", 0.0)
    live = server.LiveReport(RunRecord(tmp_path / "run.jsonl", ""))
    following = asyncio.create_task(live.follow())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not built
    events = live.events(0)
    assert '"summary": "1"' in await anext(events)
    await live.end(killed=False)
    assert '"ended": true' in await anext(events)
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    following.cancel()
