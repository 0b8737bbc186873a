"""The distribution `rhapsody-dask` as users install it, and the error without it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.support import (
    INSTALL_TIMEOUT,
    ROOT,
    BuildWheels,
    Built,
    MakeVenv,
    check,
    check_wheel,
    run,
)
from tests.system.test_examples import (
    DIGITS,
    LAMBDA_PHAGE,
    LATTICE_PROTEINS,
    needs_phage_tools,
    number,
    unique_folds,
)

pytestmark = pytest.mark.timeout(1200)

DASK = Path("packages", "rhapsody-dask")
ONE_EACH = ("-b", "dask", "-o", "n_workers=2", "-o", "threads=1")


@pytest.fixture(scope="module")
def wheel(checkout: Path, build_wheels: BuildWheels) -> Path:
    (built,) = build_wheels(checkout / DASK)
    return built


@pytest.fixture(scope="module")
def with_dask(built: Built, wheel: Path, make_venv: MakeVenv) -> Path:
    return make_venv(built.wheel, wheel)


def test_its_wheel_holds_its_package_and_nothing_else(checkout: Path, wheel: Path) -> None:
    check_wheel(wheel, checkout / DASK)


def test_its_changelog_has_the_version_that_is_built(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert f"\n## {version} " in (ROOT / DASK / "CHANGELOG.md").read_text()


def test_it_is_listed_and_its_import_paths_work(with_dask: Path, tmp_path: Path) -> None:
    listed = check(with_dask / "rhapsody", "backends", cwd=tmp_path)
    assert re.search(r"^dask +yes +rhapsody-dask ", listed, re.MULTILINE), listed
    program = """
import rhapsody, rhapsody.backends, sys
assert "distributed" not in sys.modules
from rhapsody import DaskExecutionBackend as first
from rhapsody.backends.execution.dask_parallel import DaskExecutionBackend as second
from rhapsody_dask import DaskExecutionBackend as third
print(first is second is third is rhapsody.BackendRegistry.get_backend_class("dask"))
"""
    assert check(with_dask / "python", "-W", "error", "-c", program, cwd=tmp_path) == "True\n"


def test_doctor_finds_nothing_wrong(with_dask: Path, tmp_path: Path) -> None:
    report = check(with_dask / "rhapsody", "doctor", *ONE_EACH, cwd=tmp_path)
    assert re.search(r"^ok +backend dask: started in", report, re.MULTILINE), report


@pytest.mark.long
def test_digits_runs_on_dask_from_the_command_line(with_dask: Path, tmp_path: Path) -> None:
    install = (with_dask / "python", "-m", "pip", "install", "--quiet", "scikit-learn")
    check(*install, cwd=tmp_path, timeout=INSTALL_TIMEOUT)
    command = (with_dask / "rhapsody", "run", DIGITS, *ONE_EACH)
    done = run(*command, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    best = re.search(r"^ +1 +support vectors .* (0\.9\d+) ", done.stdout, re.MULTILINE)
    assert best, done.stdout
    assert float(best[1]) > 0.98
    assert number("tasks", done.stdout) > 110


@pytest.mark.long
def test_lattice_proteins_replaces_its_models_on_dask(with_dask: Path, tmp_path: Path) -> None:
    install = (with_dask / "python", "-m", "pip", "install", "--quiet", "scikit-learn")
    check(*install, cwd=tmp_path, timeout=INSTALL_TIMEOUT)
    command = (with_dask / "rhapsody", "run", LATTICE_PROTEINS, *ONE_EACH)
    output = check(*command, cwd=tmp_path, timeout=600)
    assert unique_folds("model", output) > unique_folds("chance", output)
    assert number("tasks", output) == 212


@needs_phage_tools
def test_lambda_phage_runs_on_dask_from_the_command_line(with_dask: Path, tmp_path: Path) -> None:
    output = check(with_dask / "rhapsody", "run", LAMBDA_PHAGE, *ONE_EACH, cwd=tmp_path)
    assert number("variants", output) > 0
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".fa", ".bt2", ".fq", ".sam", ".bam", ".bcf", ".jsonl", ".sqlite", ".txt"}


def test_without_it_the_error_ends_with_the_command_that_installs_it(
    core_alone: Path, tmp_path: Path
) -> None:
    done = run(core_alone / "rhapsody", "run", DIGITS, "-b", "dask", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("pip install rhapsody-dask")
    assert "Traceback" not in done.stderr
