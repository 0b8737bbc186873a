"""The distribution `rhapsody-report` as users get it, and its RO-Crates meet their profiles.

The validator has a separate environment, because it does not support the newest `rich`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system.support import ROOT, BuildWheels, Built, MakeVenv, check, check_wheel, run

pytestmark = pytest.mark.timeout(1200)

PROGRAM = """
from rhapsody import InputFile, OutputFile

async def main(flow):
    @flow.executable_task
    def make(out):
        return f"seq 20 > {out}"

    @flow.executable_task(retries=1)
    def count(source, out):
        return f"wc -l < {source} > {out}; [ -e ../once ] || {{ touch ../once; exit 1; }}"

    make(OutputFile("numbers.txt"))
    await count(InputFile("numbers.txt"), OutputFile("results/count.txt"))
"""

# Prints the violated requirements. The validator requests the terms of RO-Crate 1.1, and receives
# those of the library. These may be of a later version, in which the terms of Bioschemas moved.
VALIDATE = """
import json, sys
from types import SimpleNamespace

from rocrate.vocabs import RO_CRATE
from rocrate_validator import models, services
from rocrate_validator.utils.http import HttpRequester

terms = json.loads(json.dumps(RO_CRATE).replace("bioschemas.org/terms/", "bioschemas.org/"))

def get(self, url, **_):
    assert url == "https://w3id.org/ro/crate/1.1/context"
    headers = {"Content-Type": "application/ld+json"}
    return SimpleNamespace(status_code=200, headers=headers, json=lambda: terms)

HttpRequester.get = get
crate, *profiles = sys.argv[1:]
for profile in profiles:
    result = services.validate(services.ValidationSettings(
        rocrate_uri=crate,
        profile_identifier=f"{profile}-run-crate-0.5",
        requirement_severity=models.Severity.REQUIRED,
        offline=True,
    ))
    print(profile, result.passed(), [each.message for each in result.get_issues()])
"""


PACKAGE = Path("packages", "rhapsody-report")


@pytest.fixture(scope="module")
def wheel(checkout: Path, build_wheels: BuildWheels) -> Path:
    (found,) = build_wheels(checkout / PACKAGE)
    return found


@pytest.fixture(scope="module")
def programs(built: Built, wheel: Path, make_venv: MakeVenv) -> Path:
    """The programs of an environment with core, rhapsody-report and the validator."""
    return make_venv(built.wheel, wheel, "roc-validator>=0.13")


def test_the_wheel_holds_its_package_and_nothing_else(checkout: Path, wheel: Path) -> None:
    check_wheel(wheel, checkout / PACKAGE)


def test_the_changelog_has_the_version_that_is_built(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert f"\n## {version} " in (ROOT / PACKAGE / "CHANGELOG.md").read_text()


def test_a_run_is_shown_in_the_dashboard_and_reported(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("async def main(flow):\n    pass\n")
    done = run(programs / "rhapsody", "run", "-q", "--dashboard", "program.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rhapsody: dashboard: http://127.0.0.1:" in done.stderr
    check(programs / "rhapsody", "report", "-o", "report.html", cwd=tmp_path)
    assert "program.py: done" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "arguments", [("report",), ("export",), ("run", "--dashboard", "program.py")]
)
def test_without_it_the_error_ends_with_the_command_that_installs_it(
    core_alone: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = run(core_alone / "rhapsody", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("pip install rhapsody-report")


def test_crates_meet_the_requirements_of_their_profiles(programs: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def export(crate: str, *arguments: str) -> None:
        check(programs / "rhapsody", "export", "-o", crate, *arguments, cwd=tmp_path)

    def validated(crate: str, *profiles: str) -> list[str]:
        said = check(programs / "python", "-c", VALIDATE, crate, *profiles, cwd=tmp_path)
        return said.splitlines()

    check(programs / "rhapsody", "run", "-q", program, cwd=tmp_path)
    export("crate", "--license", "https://spdx.org/licenses/CC-BY-4.0")
    export("crate.zip", "--files", "copy")
    every = ("process", "workflow", "provenance")
    for crate in ("crate", "crate.zip"):
        assert validated(crate, *every) == [f"{profile} True []" for profile in every]
    os.utime(program)
    export("process", "--files", "reference")
    assert validated("process", "process") == ["process True []"]
    (refused,) = validated("process", "workflow")
    assert refused.startswith("workflow False")
