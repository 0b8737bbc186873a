"""Clusters without Rhapsody, or with another version of it."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from rhapsody import WorkflowEngine, current_task
from rhapsody.errors import BackendUnavailableError
from rhapsody_dask import DaskExecutionBackend, shipping
from tests.dask.bare import bare_python
from tests.dask.clusters import foreign

pytestmark = pytest.mark.asyncio


async def test_workers_without_rhapsody_run_all_kinds_of_tasks(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "bare")
    missing = await asyncio.to_thread(subprocess.run, [python, "-c", "import rhapsody"])
    assert missing.returncode == 1
    with foreign(tmp_path, workers=1, tls=False, python=python) as there:
        backend = DaskExecutionBackend(scheduler_file=there["scheduler_file"])
        async with asyncio.timeout(100), WorkflowEngine.create(backend=backend) as flow:

            @flow.function_task
            async def name(x: int) -> tuple[int, str]:
                return x, current_task().name

            @flow.function_task
            def bad() -> None:
                raise KeyError("mine")

            @flow.executable_task
            async def program(x: object) -> str:
                return "echo $((6 * 7))"

            @flow.executable_task(service=True, ready="stdout:port (.*)")
            async def service() -> str:
                return "echo port 8; sleep 600"

            first = name(1)
            assert await first == (1, "name")
            assert await program(first) == "42\n"
            assert await service(task_description={}) == "8"
            with pytest.raises(KeyError, match="mine"):
                await bad()


async def test_another_version_on_the_workers_is_rejected_with_a_fix(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "bare", rhapsody_core="0.0.1", rhapsody_dask="0.0.2")
    with (
        foreign(tmp_path, workers=1, tls=False, python=python) as there,
        pytest.raises(
            BackendUnavailableError,
            match=r"rhapsody-core .* here, 0\.0\.1 on the scheduler.*"
            r"`pip install rhapsody-core==.* rhapsody-dask==.*` there",
        ),
    ):
        await DaskExecutionBackend(scheduler_file=there["scheduler_file"])


def _left(**_: Any) -> list[str]:
    """Return the shipped code in the calling process."""
    import sys

    names = [name for name in sys.modules if name.split(".")[0].startswith("rhapsody")]
    return [*names, *(entry for entry in sys.path if "rhapsody" in entry)]


def _upgraded() -> bool:
    from rhapsody_dask.worker import messages

    return hasattr(messages, "UPGRADED")


KILLED = """
import asyncio, os, signal, sys
from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend, shipping

async def main():
    backend = DaskExecutionBackend(scheduler_file=sys.argv[1])
    async with WorkflowEngine.create(backend=backend) as flow:
        assert await flow.function_task(lambda x: 2 * x)(21) == 42
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.filterwarnings("ignore:Mismatched versions")
async def test_shipped_code_is_removed_with_its_last_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from distributed import Client

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    request.addfinalizer(lambda: cloudpickle.unregister_pickle_by_value(module))
    python = bare_python(tmp_path / "bare")
    current = shipping.archive()
    with foreign(tmp_path, workers=1, tls=False, python=python) as there:
        file = there["scheduler_file"]
        async with (
            asyncio.timeout(100),
            Client(scheduler_file=file, asynchronous=True, set_as_default=False) as client,
        ):

            async def left() -> list[str]:
                workers = await client.run(_left)
                return [*await client.run_on_scheduler(_left), *next(iter(workers.values()))]

            async def until_nothing_is_left() -> None:
                while await left():  # noqa: ASYNC110 - Dask has no event for it
                    await asyncio.sleep(0.05)

            async with WorkflowEngine.create(
                backend=DaskExecutionBackend(scheduler_file=file)
            ) as flow:
                assert await flow.function_task(_upgraded)() is False
                assert await left()
            await until_nothing_is_left()
            killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", KILLED, file])
            assert killed.returncode == -signal.SIGKILL
            await until_nothing_is_left()

            monkeypatch.setattr(shipping, "archive", lambda: _upgrade(current))
            async with WorkflowEngine.create(
                backend=DaskExecutionBackend(scheduler_file=file)
            ) as flow:
                assert await flow.function_task(_upgraded)() is True
                monkeypatch.undo()
                with pytest.raises(BackendUnavailableError, match="different version of Rhapsody"):
                    await DaskExecutionBackend(scheduler_file=file)
                assert await flow.function_task(_upgraded)() is True


def _upgrade(sources: bytes) -> bytes:
    """Return the sources of a later version."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sources)) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            more = b"\nUPGRADED = True\n" if name.endswith("/worker/messages.py") else b""
            after.writestr(name, before.read(name) + more)
    return target.getvalue()
