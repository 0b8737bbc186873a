"""Input files given as URLs, fetched from a real server on loopback."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import os
import stat
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.data import InputFile, link_into
from rhapsody.errors import DataError
from rhapsody.staging.flow import FileFlow
from rhapsody.task import TaskDescription
from tests._support.staging import Stager

pytestmark = pytest.mark.asyncio
pytest.importorskip("aiohttp", reason="needs rhapsody-core[files]")

SIZE = 3_000_000


class Server(ThreadingHTTPServer):
    """Serves a few paths, counts the requests, and can be made to hang."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.failures = 0
        self.go_on = threading.Event()
        self.reached = threading.Event()

    def url(self, path: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, *args: Any) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))  # or fsspec asks with a GET again
        self.end_headers()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.server.asked[path] += 1
        if path.endswith("missing.txt"):
            self.send_error(404)
        elif self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
        elif path == "data.csv.gz":
            self.answer(gzip.compress(b"data"), ("Content-Encoding", "gzip"))
        elif path == "large.bin":
            self.answer(os.urandom(SIZE))
        elif path == "cut.bin":
            self.answer(b"only the beginning", length=SIZE)
        elif path == "hang.bin":
            self.answer(b"x" * 100, length=SIZE, hang=True)
        else:
            self.answer(b"data of " + path.encode())

    def answer(
        self, body: bytes, *headers: tuple[str, str], length: int | None = None, hang: bool = False
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.server.reached.set()
        if hang:
            self.server.go_on.wait(timeout=30)
            self.wfile.write(b"y" * 2_000_000)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.go_on.set()
    served.shutdown()
    served.server_close()
    thread.join(timeout=10)


class Linking(ManagedBackend):
    name = "linking"
    capabilities = Capabilities(files=True, sandboxes=True, shared_file_system=True)

    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: Any = None,
        file_name: Any = None,
        file_path: Any = None,
    ) -> None:
        link_into(dst_task["sandbox"], file_name, file_path)


@pytest_asyncio.fixture
async def stager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stager]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = Stager(tmp_path / "work", fetch_timeout=20, fetch_limit=4 * SIZE)
    yield made
    await made.close()


def describe(stager: Stager, uid: str) -> TaskDescription:
    return {
        "uid": uid,
        "name": "reader",
        "function": None,
        "executable": "true",
        "args": (),
        "kwargs": {},
        "is_service": False,
        "task_backend_specific_kwargs": {},
        "metadata": {"dependencies": [], "input_files": [], "output_files": []},
        "sandbox": stager.sandbox_path(uid),
    }


async def fetch(stager: Stager, *urls: str, uid: str = "e.task.000001.1") -> Path:
    """Links URLs into a task's sandbox, which is given back."""
    task = describe(stager, uid)
    async with asyncio.timeout(30):
        flow = stager.flows[uid] = FileFlow(stager, task, [InputFile(u) for u in urls])
        assert flow.resolve(Linking())
        await flow.fetch()
        flow.place(Linking())
    return Path(task["sandbox"])


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


async def test_a_url_is_fetched_when_its_task_is_about_to_run_and_never_into_the_current_directory(
    server: Server, stager: Stager
) -> None:
    url = server.url("some/data%20file.txt?version=3")
    InputFile(url)
    assert not server.asked
    sandbox = await fetch(stager, url)
    assert (sandbox / "data file.txt").read_bytes() == b"data of some/data%20file.txt"
    assert os.listdir(".") == []


async def test_fetched_files_are_in_a_private_cache_and_cannot_be_changed_through_their_links(
    server: Server, stager: Stager
) -> None:
    sandbox = await fetch(stager, server.url("data.txt"))
    cached = (sandbox / "data.txt").resolve()
    assert cached.name == "data.txt"
    cache = cached.parent.parent
    assert cache.parent == stager.work_dir
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(cached.stat().st_mode) == 0o400


async def test_a_url_is_fetched_once_for_tasks_that_come_together_or_later(
    server: Server, stager: Stager
) -> None:
    url = server.url("data.txt")
    boxes = await asyncio.gather(*(fetch(stager, url, uid=f"u.{n}") for n in range(20)))
    boxes.append(await fetch(stager, url, uid="later.1"))
    assert {(box / "data.txt").read_bytes() for box in boxes} == {b"data of data.txt"}
    assert server.asked == {"data.txt": 1}


async def test_files_of_one_name_from_two_places_are_kept_apart(
    server: Server, stager: Stager
) -> None:
    one = await fetch(stager, server.url("a/data.txt"), uid="u.1")
    two = await fetch(stager, server.url("b/data.txt"), uid="u.2")
    assert (one / "data.txt").read_bytes() == b"data of a/data.txt"
    assert (two / "data.txt").read_bytes() == b"data of b/data.txt"


async def test_a_large_file_arrives_whole(server: Server, stager: Stager) -> None:
    sandbox = await fetch(stager, server.url("large.bin"))
    assert (sandbox / "large.bin").stat().st_size == SIZE


async def test_a_compressed_file_stays_compressed(server: Server, stager: Stager) -> None:
    sandbox = await fetch(stager, server.url("data.csv.gz"))
    assert gzip.decompress((sandbox / "data.csv.gz").read_bytes()) == b"data"


@pytest.mark.parametrize(
    "chain", ["file://{}", "local://{}", "simplecache::file://{}", "zip://a.txt::{}"]
)
async def test_files_of_this_machine_are_refused_as_urls(
    stager: Stager, tmp_path: Path, chain: str
) -> None:
    (tmp_path / "source.txt").write_text("data")
    with pytest.raises(DataError, match="RHAPSODY_FETCH_SCHEMES"):
        await fetch(stager, chain.format(tmp_path / "source.txt"))


async def test_caching_schemes_are_refused(server: Server, stager: Stager) -> None:
    with pytest.raises(DataError, match="'filecache' is refused"):
        await fetch(stager, f"filecache::{server.url('a.txt')}")
    assert not server.asked


async def test_a_refused_scheme_can_be_allowed(
    stager: Stager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source.txt").write_text("data")
    monkeypatch.setenv("RHAPSODY_FETCH_SCHEMES", "simplecache,file")
    sandbox = await fetch(stager, f"file://{tmp_path}/source.txt")
    assert (sandbox / "source.txt").read_text() == "data"


async def test_a_failed_tls_connection_is_not_reported_as_a_missing_file(
    server: Server, stager: Stager
) -> None:
    with pytest.raises(DataError, match="SSL") as caught:
        await fetch(stager, server.url("a.txt").replace("http:", "https:"))
    assert "FileNotFoundError" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("data:text/plain,a%20b,%FF", b"a b,\xff"),
        ("data:;base64,/wA=", b"\xff\0"),
        ("DATA:text/plain;charset=utf-8;BASE64,aGk%3D", b"hi"),
        ("data:,", b""),
    ],
)
async def test_a_url_that_holds_the_data_is_a_file_of_them(
    stager: Stager, url: str, content: bytes
) -> None:
    sandbox = await fetch(stager, url)
    assert (sandbox / "downloaded_file").read_bytes() == content


async def test_data_that_make_no_sense_are_an_error_that_does_not_repeat_them(
    stager: Stager,
) -> None:
    with pytest.raises(DataError, match=r"data:;base64,\.\.\. cannot be fetched") as raised:
        await fetch(stager, "data:;base64,secre")
    assert "secre" not in str(raised.value)


def parts(stager: Stager) -> list[str]:
    return [path.name for path in stager.work_dir.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["missing.txt", "cut.bin"])
async def test_a_file_that_does_not_arrive_whole_is_an_error_and_leaves_nothing(
    server: Server, stager: Stager, path: str
) -> None:
    with pytest.raises(DataError, match=f"127.0.0.1.*{path} cannot be fetched"):
        await fetch(stager, server.url(path))
    assert parts(stager) == []


@pytest.mark.parametrize("path", ["missing.txt?token=secret", "data.txt?token=%73ecret"])
async def test_passwords_and_tokens_are_in_no_message(
    server: Server, stager: Stager, path: str
) -> None:
    server.failures = int("data" in path)  # a library tells of it with the URL in its own form
    with pytest.raises(DataError) as raised:
        await fetch(stager, server.url(path, user="me:secret@"))
    assert "secret" not in str(raised.value)
    assert raised.value.__suppress_context__


async def test_a_fetch_that_failed_is_tried_again_by_the_next_task(
    server: Server, stager: Stager
) -> None:
    server.failures = 1
    url = server.url("data.txt")
    with pytest.raises(DataError):
        await fetch(stager, url, uid="u.1")
    sandbox = await fetch(stager, url, uid="u.2")
    assert (sandbox / "data.txt").read_bytes() == b"data of data.txt"


async def test_a_file_over_the_limit_is_an_error_that_says_how_to_raise_it(
    server: Server, tmp_path: Path
) -> None:
    stager = Stager(tmp_path / "work", fetch_limit="1 MB")
    with pytest.raises(DataError, match=r"large.bin is larger than 1000000 bytes.*FETCH_LIMIT"):
        await fetch(stager, server.url("large.bin"))
    assert parts(stager) == []
    await stager.close()


async def test_a_fetch_that_takes_too_long_is_an_error_and_leaves_nothing(
    server: Server, tmp_path: Path
) -> None:
    stager = Stager(tmp_path / "work", fetch_timeout=0.2)
    with pytest.raises(DataError, match=r"hang.bin was not fetched within 0.2 s.*FETCH_TIMEOUT"):
        await fetch(stager, server.url("hang.bin"))
    assert parts(stager) == []
    await stager.close()


async def test_one_task_that_gives_up_does_not_stop_the_fetch_for_another(
    server: Server, stager: Stager
) -> None:
    url = server.url("hang.bin")
    first = asyncio.create_task(fetch(stager, url, uid="u.1"))
    await until(server.reached)
    first.cancel()
    second = asyncio.create_task(fetch(stager, url, uid="u.2"))
    await asyncio.wait([first], timeout=10)
    assert first.cancelled()
    server.go_on.set()
    with pytest.raises(DataError, match="cannot be fetched"):  # the server sends too little
        await second
    assert server.asked == {"hang.bin": 1}


async def test_closing_stops_a_fetch_at_once_and_leaves_nothing(
    server: Server, stager: Stager
) -> None:
    waiting = asyncio.create_task(fetch(stager, server.url("hang.bin")))
    await until(server.reached)
    async with asyncio.timeout(5):
        await stager.close()
        await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert not stager.work_dir.exists()


async def test_fetched_files_go_at_close_unless_a_failed_task_read_them(
    server: Server, tmp_path: Path
) -> None:
    for succeeded in (True, False):
        stager = Stager(tmp_path / f"work-{succeeded}", "failed")
        sandbox = await fetch(stager, server.url("data.txt"), uid="u.1")
        stager.end(describe(stager, "u.1"), succeeded)
        await stager.close()
        assert stager.work_dir.exists() is not succeeded
    assert (sandbox / "data.txt").read_bytes() == b"data of data.txt"


@pytest.mark.parametrize("missing", ["fsspec.core", "aiohttp"])
async def test_a_missing_library_is_an_error_with_the_command_that_installs_it(
    server: Server, stager: Stager, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(
        DataError, match=r"is not installed; run pip install 'rhapsody-core\[files\]'$"
    ):
        await fetch(stager, server.url("data.txt"))


async def test_an_unknown_protocol_is_an_error_that_names_the_url(stager: Stager) -> None:
    with pytest.raises(DataError, match=r"gopher://example.org/x cannot be fetched: .*gopher"):
        await fetch(stager, "gopher://example.org/x")


async def test_limits_come_from_the_environment_where_none_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHAPSODY_FETCH_LIMIT", "1 KiB")
    monkeypatch.setenv("RHAPSODY_FETCH_TIMEOUT", "2.5")
    fetcher = Stager(tmp_path / "w").fetcher
    assert (fetcher._limit, fetcher._timeout) == (1024, 2.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RHAPSODY_FETCH_LIMIT", "much"), ("RHAPSODY_FETCH_TIMEOUT", "-1"),
     ("RHAPSODY_FETCH_TIMEOUT", "soon"), ("RHAPSODY_FETCH_TIMEOUT", "inf")],
)  # fmt: skip
async def test_a_wrong_limit_in_the_environment_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} must .*{value!r}"):
        Stager(tmp_path / "w")
