"""A pilot through a real Slurm of one node, with the documented resource configuration."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody.testing import Driver
from tests.radical.pilots import backend
from tests.slurm import slurm, until_no_jobs, why_not

PAGE = Path(__file__).parents[2] / "docs/backends/radical_pilot.md"

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.timeout(400),
    pytest.mark.long,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


@pytest.fixture(scope="module")
def batch_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm that runs as long as the module's tests."""
    with slurm(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.mark.usefixtures("batch_system")
async def test_tasks_run_in_a_batch_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = re.search(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert documented is not None
    config = tmp_path / "config/.radical/pilot/configs/resource_tests.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(json.loads(documented[1])))
    monkeypatch.setenv("RADICAL_CONFIG_USER_DIR", str(tmp_path / "config"))
    made = backend(
        {"resource": "tests.cluster", "cores": 2, "runtime": 10, "queue": "debug"},
        work_dir=tmp_path / "work",
        functions="executable",
    )
    async with Driver(made, work_dir=tmp_path) as driver:
        try:
            shell, call, much = await driver.run(
                driver.command("echo job $SLURM_JOB_ID on $SLURM_JOB_PARTITION"),
                driver.call(sum, [1, 2]),
                driver.command("true", task_backend_specific_kwargs={"cores_per_rank": 3}),
            )
            assert re.fullmatch(r"job \d+ on debug\n", shell.stdout or ""), str(shell)
            assert call.value == 3, str(call)
            assert "a node of pilot" in str(much.error)
        finally:
            await made.shutdown()
    await asyncio.to_thread(until_no_jobs)
