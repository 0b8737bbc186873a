"""Modules of the program on workers that outlive the program."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend
from tests._support.stale_modules import NAMES, write
from tests.dask.clusters import foreign

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(100)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The program's directory, which differs from that of the workers."""
    place = tmp_path / "program"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))
    yield place
    forget()


def forget() -> None:
    """Forget the imported modules, as in a new program."""
    for name in [name for name in sys.modules if name.startswith(NAMES)]:
        del sys.modules[name]


async def test_workers_run_the_modules_that_the_program_has_imported(
    place: Path, tmp_path: Path
) -> None:
    def held() -> Any:
        import stale_main  # type: ignore[import-not-found]

        late = "stale_lazy" in sys.modules
        return stale_main.helped(), late, importlib.import_module("stale_lazy").V

    workers = tmp_path / "workers"
    workers.mkdir()
    write(workers, 1)
    with foreign(workers, workers=1, tls=False) as there:
        file = there["scheduler_file"]
        async with Client(scheduler_file=file, asynchronous=True) as client:
            assert [*(await client.run(held)).values()] == [(1, False, 1)]
        for version in (22, 333):
            write(place, version)
            forget()
            main: Any = importlib.import_module("stale_main")
            helped = main.helped
            backend = DaskExecutionBackend(scheduler_file=file)
            async with WorkflowEngine.create(backend) as flow:

                @flow.function_task
                def by_name() -> Any:
                    return helped()  # noqa: B023

                write(place, 4)
                values = await flow.function_task(main.all_of_them)()
                assert values == [version] * 6
                assert await by_name() == version
                with pytest.raises(main.OwnError) as caught:
                    await flow.function_task(main.fail)()
                assert caught.value.args == (version,)
        async with Client(scheduler_file=file, asynchronous=True) as client:
            assert [*(await client.run(held)).values()] == [(1, False, 1)]
