"""The distribution of core as users get it: what is in it, and that it works alone."""

from __future__ import annotations

import json
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.system.support import CORE, ROOT, Built, check, run

pytestmark = pytest.mark.timeout(1200)

FIVE_LINES = """\
import asyncio
from rhapsody import WorkflowEngine
async def main():
    async with WorkflowEngine.create() as flow:
        print(await flow.function_task(lambda words: " ".join(words))(["five", "lines"]))
asyncio.run(main())
"""


def wheel_names(built: Built) -> set[str]:
    with zipfile.ZipFile(built.wheel) as wheel:
        return set(wheel.namelist())


def sources(checkout: Path) -> set[str]:
    """Every file of the packages that is kept in the tree."""
    source = checkout / CORE.relative_to(ROOT) / "src"
    return {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_packages_their_types_and_nothing_else(
    built: Built, checkout: Path
) -> None:
    inside = wheel_names(built)
    package = {name for name in inside if ".dist-info/" not in name}
    assert package == sources(checkout)
    assert "rhapsody/py.typed" in package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)


def test_the_sdist_holds_what_a_wheel_is_built_from(built: Built, checkout: Path) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    expected = {f"src/{name}" for name in sources(checkout)}
    assert expected | {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} <= names


def test_the_metadata_names_the_license_the_pythons_and_the_extras(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(wheel.read(name).decode())
    assert metadata["Name"] == "rhapsody-core"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) >= {
        "completion", "files"
    }  # fmt: skip
    assert "Programming Language :: Python :: 3.13" in metadata.get_all("Classifier", [])
    assert "# rhapsody-core" in str(metadata.get_payload())


def test_the_license_of_the_distribution_is_the_one_of_the_tree() -> None:
    assert (CORE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_changelog_has_the_version_that_is_built(built: Built) -> None:
    version = built.wheel.name.split("-")[1]
    assert f"\n## {version} " in (CORE / "CHANGELOG.md").read_text()


def test_a_lone_wheel_runs_a_five_line_workflow(core_alone: Path, tmp_path: Path) -> None:
    program = tmp_path / "five.py"
    program.write_text(FIVE_LINES)
    assert check(core_alone / "python", "-W", "error", program, cwd=tmp_path) == "five lines\n"


def test_a_lone_wheel_lists_its_backends(core_alone: Path, tmp_path: Path) -> None:
    table = check(core_alone / "rhapsody", "backends", cwd=tmp_path)
    assert "local" in table
    assert "noop" in table
    listed = json.loads(check(core_alone / "rhapsody", "backends", "--json", cwd=tmp_path))
    assert listed


def test_a_lone_wheel_passes_its_own_doctor(core_alone: Path, tmp_path: Path) -> None:
    assert "rhapsody-core" in check(core_alone / "rhapsody", "doctor", cwd=tmp_path)


def test_a_lone_wheel_says_how_to_get_a_backend_that_is_not_there(
    core_alone: Path, tmp_path: Path
) -> None:
    program = "from rhapsody import DaskExecutionBackend"
    done = run(core_alone / "python", "-c", program, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("pip install rhapsody-dask")


def test_nothing_is_written_where_a_program_without_files_runs(
    core_alone: Path, tmp_path: Path
) -> None:
    check(core_alone / "python", "-c", FIVE_LINES, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
