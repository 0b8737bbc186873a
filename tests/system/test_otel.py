"""The distribution `rhapsody-otel` as users get it, next to core's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.support import BuildWheels, Built, MakeVenv, check, check_wheel

pytestmark = pytest.mark.timeout(1200)

PACKAGE = Path("packages", "rhapsody-otel")

PROGRAM = """
async def main(flow):
    print(await flow.executable_task(lambda: "echo ${TRACEPARENT:-}")())
"""


@pytest.fixture(scope="module")
def wheel(checkout: Path, build_wheels: BuildWheels) -> Path:
    (built,) = build_wheels(checkout / PACKAGE)
    return built


def test_its_wheel_holds_its_package_and_nothing_else(checkout: Path, wheel: Path) -> None:
    check_wheel(wheel, checkout / PACKAGE)


def test_a_run_is_traced_without_the_extra(
    built: Built, wheel: Path, make_venv: MakeVenv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = make_venv(built.wheel, wheel)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = (programs / "rhapsody", "run", "-q", "program.py")
    assert check(*command, cwd=tmp_path) == "\n\n"
    assert "ok " in check(programs / "rhapsody", "doctor", cwd=tmp_path)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    output = check(*command, "--fresh", cwd=tmp_path)
    assert "\n00-" in f"\n{output}"
    assert '"name": "workflow' in output
