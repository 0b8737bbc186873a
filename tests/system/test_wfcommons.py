"""The distribution `rhapsody-wfcommons` as users get it, next to core's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.support import ROOT, BuildWheels, Built, MakeVenv, check, check_wheel, run

pytestmark = pytest.mark.timeout(1200)

PACKAGE = Path("packages", "rhapsody-wfcommons")

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


@pytest.fixture(scope="module")
def wheel(checkout: Path, build_wheels: BuildWheels) -> Path:
    (built,) = build_wheels(checkout / PACKAGE)
    return built


def test_its_wheel_holds_its_package_and_nothing_else(checkout: Path, wheel: Path) -> None:
    check_wheel(wheel, checkout / PACKAGE)


def test_its_changelog_has_the_version_that_is_built(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert f"\n## {version} " in (ROOT / PACKAGE / "CHANGELOG.md").read_text()


def test_a_run_is_recorded_and_replayed(
    built: Built, wheel: Path, make_venv: MakeVenv, tmp_path: Path
) -> None:
    programs = make_venv(built.wheel, wheel)
    assert check(programs / "python", "-W", "error", "-c", PROGRAM, cwd=tmp_path) == "4\n"
    report = check(programs / "rhapsody", "replay", "run.json", "--json", cwd=tmp_path)
    assert json.loads(report)["tasks"] == 2
    assert "ok " in check(programs / "rhapsody", "doctor", cwd=tmp_path)


def test_without_it_the_error_ends_with_the_command_that_installs_it(
    core_alone: Path, tmp_path: Path
) -> None:
    done = run(core_alone / "rhapsody", "replay", "run.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("pip install rhapsody-wfcommons")
