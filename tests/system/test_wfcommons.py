"""The distributions `rhapsody-wfcommons` and `rhapsody-simulated` as users get them.

`rhapsody replay --simulate` of the first uses the backend of the second.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.support import ROOT, BuildWheels, Built, MakeVenv, check, check_wheel, run

pytestmark = pytest.mark.timeout(1200)

WFCOMMONS = Path("packages", "rhapsody-wfcommons")
SIMULATED = Path("packages", "rhapsody-simulated")

PROGRAM = """
import asyncio
from rhapsody import WorkflowEngine
from rhapsody_wfcommons import WfCommonsRecorder
async def main():
    async with WorkflowEngine.create(observers=[WfCommonsRecorder("run.json")]) as flow:
        double = flow.function_task(lambda x: 2 * x)
        print(await double(double(1)))
asyncio.run(main())
"""


class Wheels(NamedTuple):
    """The wheels of the two distributions."""

    wfcommons: Path
    simulated: Path


@pytest.fixture(scope="module")
def wheels(checkout: Path, build_wheels: BuildWheels) -> Wheels:
    return Wheels(*build_wheels(checkout / WFCOMMONS, checkout / SIMULATED))


@pytest.fixture(scope="module")
def programs(built: Built, wheels: Wheels, make_venv: MakeVenv) -> Path:
    """The programs of an environment with core and rhapsody-wfcommons."""
    return make_venv(built.wheel, wheels.wfcommons)


def test_the_wheels_hold_their_packages_and_nothing_else(checkout: Path, wheels: Wheels) -> None:
    check_wheel(wheels.wfcommons, checkout / WFCOMMONS)
    check_wheel(wheels.simulated, checkout / SIMULATED)


def test_the_changelogs_have_the_versions_that_are_built(wheels: Wheels) -> None:
    for wheel, package in zip(wheels, (WFCOMMONS, SIMULATED), strict=True):
        version = wheel.name.split("-")[1]
        assert f"\n## {version} " in (ROOT / package / "CHANGELOG.md").read_text()


def test_a_run_is_recorded_replayed_and_simulated(
    programs: Path, wheels: Wheels, tmp_path: Path
) -> None:
    assert check(programs / "python", "-W", "error", "-c", PROGRAM, cwd=tmp_path) == "4\n"
    replay = (programs / "rhapsody", "replay", "run.json", "--json")
    assert json.loads(check(*replay, cwd=tmp_path))["tasks"] == 2
    done = run(*replay, "--simulate", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("pip install rhapsody-simulated")
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "--no-deps")
    check(*pip, wheels.simulated, cwd=tmp_path)
    listed = check(programs / "rhapsody", "backends", cwd=tmp_path)
    assert re.search(r"^simulated +yes +rhapsody-simulated ", listed, re.MULTILINE), listed
    report = json.loads(check(*replay, "--simulate", "--nodes", "2", cwd=tmp_path))
    assert (report["backend"], report["slots"]) == ("simulated", 2)
    assert "ok " in check(programs / "rhapsody", "doctor", "-b", "simulated", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "distribution", "code"),
    [
        (("replay", "run.json"), "rhapsody-wfcommons", 1),
        (("doctor", "-b", "simulated"), "rhapsody-simulated", 2),
    ],
)
def test_without_them_the_error_ends_with_the_command_that_installs_them(
    core_alone: Path, tmp_path: Path, arguments: tuple[str, ...], distribution: str, code: int
) -> None:
    done = run(core_alone / "rhapsody", *arguments, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.rstrip().endswith(f"pip install {distribution}")
