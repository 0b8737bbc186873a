"""Connections to clusters, and the errors of failed connections."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import LocalCluster, Security

from rhapsody import WorkflowEngine
from rhapsody.errors import BackendUnavailableError
from rhapsody.states import TasksMainStates
from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.cluster import skew
from tests._support.machine import free_port
from tests._support.sockets import answers_http, listening
from tests.dask.clusters import foreign, make_credentials

pytestmark = pytest.mark.asyncio


async def _works(backend: DaskExecutionBackend) -> bool:
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        def twice(x: int) -> int:
            return 2 * x

        return await twice(21) == 42


@pytest.mark.filterwarnings("ignore:Port 8787 is already in use:UserWarning")
@pytest.mark.parametrize("processes", [True, False])
@pytest.mark.parametrize("named", [True, False])
async def test_a_cluster_listens_on_loopback_with_tls_and_without_http(
    processes: bool, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes do not import from a directory that another user could have made."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "dask-scratch-space").mkdir()
    before = set(psutil.Process().children(recursive=True))
    elsewhere = listening([psutil.Process()])
    given: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "processes": processes}
    if named:
        kwargs = {**given, "host": "127.0.0.1", "security": Security.temporary()}
        given = {"cluster_class": "distributed.LocalCluster", "cluster_kwargs": kwargs}
    async with asyncio.timeout(60), DaskExecutionBackend(given) as backend:
        assert backend.client.scheduler.address.startswith("tls://127.0.0.1:")
        await backend.client.wait_for_workers(1)
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        ours = listening(family) - elsewhere
        assert {host for host, _ in ours} == {"127.0.0.1"}
        assert not [address for address in ours if answers_http(address)]
        assert len(ours) == (3 if processes else 2)  # the scheduler, the worker and its nanny
        searched = {*sys.path, *await backend.client.run_on_scheduler(lambda: sys.path)}
        for paths in (await backend.client.run(lambda: sys.path)).values():
            searched |= {*paths}
        base = tmp_path / f"rhapsody-dask-{os.getuid()}"
        found = {path for path in searched if path.startswith(str(tmp_path))}
        assert {path for path in found if path.startswith(f"{base}/")} == found
        assert found
        assert base.stat().st_mode & 0o777 == 0o700
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    left = [p for p in left if "resource_tracker" not in " ".join(p.cmdline())]
    assert not left


async def test_tls_can_be_disabled() -> None:
    given = DaskExecutionBackend({"n_workers": 1, "threads": 1}, security=False)
    async with asyncio.timeout(60), given as backend:
        assert backend.client.scheduler.address.startswith("tcp://127.0.0.1:")


async def test_the_backend_connects_to_an_address(cluster: Any) -> None:
    assert await _works(DaskExecutionBackend(address=cluster.scheduler_address))
    assert await _works(DaskExecutionBackend({"address": cluster.scheduler_address}))
    assert cluster.status.name == "running"


async def test_several_backends_can_start_concurrently(cluster: Any) -> None:
    backends = [DaskExecutionBackend(cluster=cluster) for _ in range(8)]
    try:
        started = await asyncio.gather(*(one.__aenter__() for one in backends))
        assert [one.state() for one in started] == ["running"] * 8
    finally:
        await asyncio.gather(*(one.shutdown() for one in backends))


async def test_the_users_client_is_used_and_not_closed(cluster: Any) -> None:
    from distributed import Client

    def connect() -> Any:
        return Client(cluster, set_as_default=False)

    client = await asyncio.to_thread(connect)
    try:
        assert await _works(DaskExecutionBackend(client=client))
        assert client.status == "running"
    finally:
        await asyncio.to_thread(client.close)


def _hold(path: str, *after: Any) -> None:
    while not os.path.exists(path):
        time.sleep(0.02)


async def test_closing_the_client_fails_open_tasks(cluster: Any, raw: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    backend = await DaskExecutionBackend(cluster=cluster)
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:
        hold = flow.function_task(_hold)
        made = flow.function_task(int)(1)
        futures = [hold(str(gate), made), hold(str(gate))]
        while made.state is not TasksMainStates.DONE:  # noqa: ASYNC110 - its value stays there
            await asyncio.sleep(0.01)
        alone = raw.submit(_hold, str(gate))
        await raw.close()
        await backend.client.close()
        gate.touch()
        with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
            await alone
        for future in futures:
            with pytest.raises(BackendUnavailableError, match="client was closed"):
                await future
        with pytest.raises(BackendUnavailableError, match="client was closed"):
            await made
        with pytest.raises(BackendUnavailableError, match="client was closed"):
            await backend.submit_tasks([])
    assert cluster.status.name == "running"


SMALL = {
    "n_workers": 1,
    "threads_per_worker": 1,
    "processes": False,
    "dashboard_address": "127.0.0.1:0",
}


async def test_importing_a_class_changes_no_signal_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "interrupting_clusters.py").write_text(
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: None)\n"
        "from distributed import LocalCluster\n"
    )
    former = signal.getsignal(signal.SIGINT)
    backend = DaskExecutionBackend(
        cluster_class="interrupting_clusters.LocalCluster", cluster_kwargs=SMALL
    )
    async with asyncio.timeout(60), backend:
        assert "interrupting_clusters" in sys.modules
        assert signal.getsignal(signal.SIGINT) is former


class NotAdaptive(LocalCluster):
    def adapt(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("not adaptive")


async def test_a_cluster_of_a_named_class_is_started_and_closed() -> None:
    given = {"cluster_class": "distributed.LocalCluster", "cluster_kwargs": SMALL}
    backend = DaskExecutionBackend(given)
    async with asyncio.timeout(60), backend:
        started = backend._connection._started
        assert started.status.name == "running"
        assert await _works(backend)
    assert started.status.name == "closed"


async def test_a_cluster_of_a_named_class_can_be_adaptive() -> None:
    backend = DaskExecutionBackend(
        cluster_class=LocalCluster,
        cluster_kwargs={**SMALL, "n_workers": 0},
        adapt_kwargs={"minimum": 1, "maximum": 1},
    )
    async with asyncio.timeout(60), backend:
        assert await _works(backend)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cluster_class": "distributed.NoCluster"}, "'distributed.NoCluster': AttributeError"),
        ({"cluster_class": "no_such_library.Cluster"}, "'no_such_library.Cluster': ModuleNotFound"),
        ({"cluster_class": int, "cluster_kwargs": SMALL}, "<class 'int'>: TypeError"),
        (
            {"cluster_class": NotAdaptive, "cluster_kwargs": SMALL, "adapt_kwargs": {}},
            "NotAdaptive'>: NotImplementedError: not adaptive",
        ),
    ],
)
async def test_a_class_that_cannot_be_used_is_named_in_the_error(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(BackendUnavailableError, match=said):
        await DaskExecutionBackend(given)


async def test_a_scheduler_file_connects_to_a_scheduler_with_tls(tmp_path: Path) -> None:
    with foreign(tmp_path, workers=1) as there:
        assert await _works(
            DaskExecutionBackend(scheduler_file=there["scheduler_file"], security=there["security"])
        )
        assert all(process.poll() is None for process in there["processes"])
        with pytest.raises(BackendUnavailableError, match="TLS"):
            await DaskExecutionBackend(scheduler_file=there["scheduler_file"], timeout=2)


async def test_an_address_without_a_scheduler_raises_after_the_timeout() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(BackendUnavailableError, match="dask scheduler"):
        await DaskExecutionBackend(address=address, timeout=1)
    assert time.monotonic() - start < 25  # Dask's own limit is 30 s


async def test_a_missing_scheduler_file_raises_after_the_timeout() -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"'nowhere\.json' was not created within 0\.2"
    ):
        await DaskExecutionBackend(scheduler_file="nowhere.json", timeout=0.2)


async def test_a_mistyped_scheduler_file_is_logged_before_the_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scheduler.json").touch()
    with pytest.raises(BackendUnavailableError):
        await DaskExecutionBackend(scheduler_file=tmp_path / "schedulers.json", timeout=0.2)
    assert [text for text in caplog.messages if "did you mean 'scheduler.json'" in text]


async def test_a_scheduler_file_in_a_missing_directory_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="directory"):
        async with asyncio.timeout(10):
            await DaskExecutionBackend(scheduler_file=tmp_path / "no" / "s.json", timeout=600)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}'])
async def test_an_invalid_scheduler_file_is_named_in_the_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(text)
    with pytest.raises(BackendUnavailableError, match=r"scheduler\.json' within 0\.2 s"):
        await DaskExecutionBackend(scheduler_file=file, timeout=0.2)


async def test_an_address_of_another_server_is_named_in_the_error() -> None:
    async def answer(reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        for protocol in ("tcp", "tls"):
            address = f"{protocol}://{host}:{port}"
            with pytest.raises(
                BackendUnavailableError, match=f"cannot connect to a Dask scheduler at '{address}'"
            ):
                await DaskExecutionBackend(address=address, timeout=1)


async def test_a_server_that_does_not_answer_is_named_in_the_error() -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client closes the connection
        writer.close()

    async with await asyncio.start_server(wait, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(BackendUnavailableError, match=r"within 0\.5 s: \w"):
            await DaskExecutionBackend(address=f"tcp://{host}:{port}", timeout=0.5)


async def test_missing_or_superfluous_tls_files_are_named_in_the_error(
    cluster: Any, tmp_path: Path
) -> None:
    key, cert = make_credentials(tmp_path)
    files = {"tls_ca_file": cert, "tls_client_cert": cert, "tls_client_key": key}
    address = cluster.scheduler_address
    missing = {**files, "tls_client_key": str(tmp_path / "nowhere.pem")}
    with pytest.raises(
        BackendUnavailableError, match=r"tls_client_key: no such file: '.*nowhere\.pem'"
    ):
        await DaskExecutionBackend(address=address, security=missing)
    with pytest.raises(BackendUnavailableError, match=f"'{address}'.*tls:// with TLS"):
        await DaskExecutionBackend({"address": address, **files}, timeout=2)


async def test_different_versions_are_listed_in_pairs() -> None:
    def packages(python: str, cloudpickle: str) -> dict[str, Any]:
        return {"packages": {"python": python, "cloudpickle": cloudpickle}}

    found = {
        "client": packages("3.12.1.final.0", "3.1.2"),
        "scheduler": packages("3.11.0.final.0", "3.1.2"),
        "workers": {
            "tcp://a:1": packages("3.12.9.final.0", "3.1.2"),
            "tcp://b:1": packages("3.11.0.final.0", "3.0.0"),
        },
    }
    assert skew(found) == [
        "python 3.12 here, 3.11 on worker tcp://b:1",
        "cloudpickle 3.1.2 here, 3.0.0 on worker tcp://b:1",
    ]
