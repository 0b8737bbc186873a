"""RO-Crates of runs meet the requirements of their profiles.

The validator has a separate environment, because it does not support the newest `rich`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system.support import Built, MakeVenv, check

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


def test_crates_meet_the_requirements_of_their_profiles(
    built: Built, make_venv: MakeVenv, tmp_path: Path
) -> None:
    core = f"rhapsody-core[provenance] @ {built.wheel.as_uri()}"
    programs = make_venv(core, "roc-validator>=0.13")
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
