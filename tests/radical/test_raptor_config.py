"""RAPTOR as a user configured it, on a real pilot, with RADICAL-Pilot's own workers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from rhapsody.testing import Driver
from tests.radical.pilots import backend

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(400)]

CONFIG = {
    "masters": [
        {"workers": [{"worker_type": "DefaultWorker", "ranks": 1, "cores_per_rank": 1}]},
        {"workers": [{"ranks": 1, "cores_per_rank": 2}]},
    ]
}


class OddError(Exception):
    """An error of a type that only this module has."""


def fail(value: Any) -> None:
    raise OddError(value)


async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def test_masters_and_workers_that_a_user_configured_run_functions(tmp_path: Path) -> None:
    made = backend(work_dir=tmp_path / "work", raptor_config=CONFIG)
    assert made.raptor_mode
    try:
        async with Driver(made, work_dir=tmp_path) as driver:
            assert len(made.masters) == len(made.workers) == 2
            names = [next(made.master_selector) for _ in range(4)]
            assert names[:2] == names[2:]
            assert set(names) == {str(master.uid) for master in made.masters}
            assert made.capabilities.cancel_functions == "none"
            pids = [driver.call(os.getppid) for _ in range(4)]
            values = [(1, 2), b"\xff", {3}, None]
            calls = [driver.call(later, value) for value in values]
            bad, printing = driver.call(fail, b"\xfe"), driver.call(print, "said")
            command = driver.command("echo command")
            ends = await driver.run(*pids, *calls, bad, printing, command)
    finally:
        await made.shutdown()
    assert len({end.value for end in ends[:4]}) > 1, "one master had all calls"
    assert [end.value for end in ends[4:8]] == values
    assert type(ends[8].error) is OddError, str(ends[8])
    assert ends[8].error.args == (b"\xfe",)
    assert ends[9].stdout == "said\n"
    assert ends[10].stdout == "command\n"
