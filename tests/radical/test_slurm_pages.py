"""The pages about Slurm: their commands print what the pages show, on a real Slurm of two nodes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests._support.recipes import recipe
from tests._support.sessions import PROGRESS, CommandStep, FileStep, shows, steps_of
from tests._support.slurm import slurm, why_not

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.long,
    pytest.mark.slurm,
    pytest.mark.usefixtures("hydra"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

PAGES = Path(__file__).parents[2] / "docs/how-to"
QUEUED = re.compile(r"^pilot .*: not active after .*\n", re.MULTILINE)
GPUS = """
import asyncio


async def main(flow):
    @flow.function_task
    def add(*numbers):
        return sum(numbers)

    @flow.executable_task(resources={"gpus": 1})
    def where():
        return "sleep 3; echo $SLURMD_NODENAME GPU $CUDA_VISIBLE_DEVICES"

    @flow.executable_task(resources={"ranks": 4})
    def rank():
        return "echo rank $SLURM_PROCID"

    print(sorted(await asyncio.gather(where(), where())))
    print(sorted((await rank()).split()))
    print("sum", await add(1, 2))
"""


@pytest.fixture(scope="module")
def hydra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cluster of the pages, with the documented description."""
    directory = tmp_path_factory.mktemp("configuration")
    file = directory / ".radical/pilot/configs/resource_hydra.json"
    file.parent.mkdir(parents=True)
    page = (PAGES / "machines.md").read_text()
    file.write_text(re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)[0])
    with (
        slurm(tmp_path_factory.mktemp("slurm"), nodes=2, gpus=1),
        pytest.MonkeyPatch.context() as p,
    ):
        p.setenv("RADICAL_CONFIG_USER_DIR", str(directory))
        p.setenv("XDG_CONFIG_HOME", str(directory))
        p.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        yield


def run(command: str, directory: Path) -> str:
    """Return the output of a command, without the lines that only a slow machine adds."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return QUEUED.sub("", PROGRESS.sub("", done.stdout))


def test_the_first_session_prints_what_the_page_shows(tmp_path: Path) -> None:
    steps = list(steps_of(PAGES / "slurm.md", "it needs Slurm"))
    assert sum(isinstance(step, CommandStep) for step in steps) == 6
    for step in steps:
        if isinstance(step, FileStep):
            (tmp_path / step.name).write_text(step.text)
        else:
            before = sorted(tmp_path.iterdir())
            printed = run(step.command, tmp_path)
            assert shows(step.output, printed), f"$ {step.command}\n{printed}"
            if "doctor" in step.command:  # it leaves nothing behind
                assert sorted(tmp_path.iterdir()) == before


def test_the_documented_profile_runs_programs_on_two_nodes(tmp_path: Path) -> None:
    (tmp_path / "rhapsody.toml").write_text(recipe("hydra"))
    (tmp_path / "gpus.py").write_text(GPUS)
    printed = run("SBATCH_GPUS_PER_NODE=1 rhapsody run gpus.py --profile hydra", tmp_path)
    assert "['node1 GPU 0\\n', 'node2 GPU 0\\n']\n" in printed, printed
    assert "['0', '1', '2', '3', 'rank', 'rank', 'rank', 'rank']\n" in printed, printed
    assert "sum 3\n" in printed, printed
    assert "rhapsody: 4 done" in printed, printed


def test_tasks_with_gpus_fail_with_the_documented_message_in_a_job_without_gpus(
    tmp_path: Path,
) -> None:
    (tmp_path / "gpus.py").write_text(GPUS)
    words = "rhapsody run gpus.py -b radical_pilot -o resource=hydra.cpu -o nodes=2 -o runtime=10"
    (message,) = re.findall(r"`(srun: error: .*)`", (PAGES / "slurm.md").read_text())
    assert message in run(words, tmp_path)
