"""The distribution `rhapsody-psij` as users get it, next to core's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.support import BuildWheels, Built, MakeVenv, check, check_wheel

pytestmark = pytest.mark.timeout(1200)

PACKAGE = Path("packages", "rhapsody-psij")

PROGRAM = """
async def main(flow):
    @flow.function_task
    def double(x):
        return 2 * x

    print(await flow.executable_task(lambda x: f"echo {x}")(await double(4)), end="")
"""


@pytest.fixture(scope="module")
def wheel(checkout: Path, build_wheels: BuildWheels) -> Path:
    (built,) = build_wheels(checkout / PACKAGE)
    return built


def test_its_wheel_holds_its_package_and_nothing_else(checkout: Path, wheel: Path) -> None:
    check_wheel(wheel, checkout / PACKAGE)


def test_a_program_runs_in_jobs(
    built: Built, wheel: Path, make_venv: MakeVenv, tmp_path: Path
) -> None:
    programs = make_venv(built.wheel, wheel)
    listed = check(programs / "rhapsody", "backends", cwd=tmp_path)
    assert re.search(r"^psij +yes +rhapsody-psij ", listed, re.MULTILINE), listed
    (tmp_path / "program.py").write_text(PROGRAM)
    command = (programs / "rhapsody", "run", "-q", "program.py", "-b", "psij")
    assert check(*command, "-o", "tasks_per_job=2", cwd=tmp_path) == "8\n"
    report = check(programs / "rhapsody", "doctor", "-b", "psij", cwd=tmp_path)
    assert re.search(r"^ok +backend psij: started in", report, re.MULTILINE), report
