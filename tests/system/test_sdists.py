"""The sdists contain the tests of their distribution, and these pass without the repository."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path

import pytest

from tests.system.support import (
    DISTRIBUTIONS,
    INSTALL_TIMEOUT,
    BuildWheels,
    Built,
    MakeVenv,
    check,
)

pytestmark = pytest.mark.timeout(1200)

# The hook that every build tool calls (PEP 517). What hatchling prints goes elsewhere.
BUILD_ALL = """
import contextlib, os, sys
from hatchling.build import build_sdist
for source in sys.argv[2:]:
    os.chdir(source)
    with contextlib.redirect_stdout(sys.stderr):
        build_sdist(sys.argv[1])
"""


@pytest.fixture(scope="module")
def unpacked(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of the unpacked sdists, by the names of the distributions."""
    out = tmp_path_factory.mktemp("sdists")
    folders = [checkout / "packages" / name for name in DISTRIBUTIONS]
    check(sys.executable, "-c", BUILD_ALL, out, *folders, cwd=checkout, timeout=INSTALL_TIMEOUT)
    found = {}
    for path in out.glob("*.tar.gz"):
        with tarfile.open(path) as sdist:
            sdist.extractall(out, filter="data")
        folder = path.with_name(path.name.removesuffix(".tar.gz"))
        found[folder.name.rpartition("-")[0].replace("_", "-")] = folder
    return found


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_sdist_contains_all_tests_and_what_they_import(
    name: str, unpacked: dict[str, Path], checkout: Path
) -> None:
    root = unpacked[name]
    folder = Path("tests") / name.removeprefix("rhapsody-")
    expected = {path.relative_to(checkout) for path in (checkout / folder).rglob("*.py")}
    assert expected
    assert expected <= {path.relative_to(root) for path in (root / folder).rglob("*.py")}
    missing = []
    for path in [*root.glob("tests/**/*.py")]:
        for module in re.findall(r"(?m)^(?:from|import) (tests(?:\.\w+)+)", path.read_text()):
            place = root / module.replace(".", "/")
            if not place.with_suffix(".py").exists() and not place.is_dir():
                missing.append(f"{path.relative_to(root)}: {module}")
    assert missing == []


def test_tests_pass_in_an_sdist(
    unpacked: dict[str, Path],
    built: Built,
    kit: Path,
    build_wheels: BuildWheels,
    make_venv: MakeVenv,
) -> None:
    (wheel,) = build_wheels(unpacked["rhapsody-wfcommons"])
    programs = make_venv(built.wheel, kit, wheel, "hypothesis>=6.100")
    for name, tests in {
        "rhapsody-core": ["tests/core/test_resources.py", "tests/core/engine/test_submission.py"],
        "rhapsody-wfcommons": ["tests/wfcommons"],
    }.items():
        output = check(programs / "pytest", *tests, cwd=unpacked[name], timeout=600)
        assert re.search(r"\d+ passed", output)
