"""Distributions that use only core's public interface, installed together with its wheel.

`examples/rhapsody-mpi` is a backend: found, proved by the kit, used, and gone once it is
uninstalled. `examples/rhapsody-timing` is an observer.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.support import ROOT, BuildWheels, Built, MakeVenv, check, run

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

MPI = ROOT / "examples" / "rhapsody-mpi"
TIMING = ROOT / "examples" / "rhapsody-timing"

PROGRAM = """
import asyncio, os
from rhapsody import InputFile, OutputFile

async def main(flow):
    @flow.function_task
    def square(x):
        print("squaring", x)
        return x * x, os.getpid()

    @flow.executable_task
    def add(pairs, out: OutputFile):
        return f"expr {' + '.join(str(value) for value, _ in pairs)} > {out.filename}"

    @flow.function_task
    async def read(after, file: InputFile):
        await asyncio.sleep(0)
        return open(file).read().strip()

    squares = [square(n) for n in range(8)]
    added = add(squares, OutputFile("sum"))
    print("sum", await read(added, InputFile("sum")))
    print("printed", repr(squares[3].stdout))
    pids = {pid for _, pid in await asyncio.gather(*squares)}
    print("processes", len(pids), "here" if os.getpid() in pids else "elsewhere")
"""


class Wheels(NamedTuple):
    """The wheels of the two examples."""

    mpi: Path
    timing: Path


@pytest.fixture(scope="module")
def wheels(build_wheels: BuildWheels) -> Wheels:
    return Wheels(*build_wheels(MPI, TIMING))


@pytest.fixture(scope="module")
def plugged_in(built: Built, kit: Path, wheels: Wheels, make_venv: MakeVenv) -> Path:
    """The programs of an environment with core, the kit, the backend, and an MPI to run it on."""
    return make_venv(built.wheel, kit, wheels.mpi, wheels.timing, "mpich")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def under_mpi(programs: Path, *arguments: str | Path) -> tuple[str | Path, ...]:
    """A command in one process of an MPI job, which has two others for its tasks."""
    python = (programs / "python", "-m", "mpi4py.futures", "-m")
    return (programs / "mpiexec", "-n", "3", *python, *arguments)


def test_the_backend_is_found_and_its_library_is_not_imported_for_that(
    plugged_in: Path, tmp_path: Path
) -> None:
    listed = json.loads(check(plugged_in / "rhapsody", "backends", "--json", cwd=tmp_path))
    (mpi,) = (one for one in listed if one["name"] == "mpi")
    assert mpi["usable"]
    assert mpi["distribution"] == "rhapsody-mpi"
    assert mpi["requires"] == ["mpi4py>=4.0"]
    look = (
        "import sys\nfrom rhapsody import BackendRegistry\n"
        "BackendRegistry.describe()\nassert 'mpi4py' not in sys.modules\n"
        "BackendRegistry.get_backend_class('mpi')\nassert 'mpi4py.MPI' not in sys.modules\n"
    )
    check(plugged_in / "python", "-c", look, cwd=tmp_path)
    assert "everything works" in check(plugged_in / "rhapsody", "doctor", cwd=tmp_path)


def test_the_backend_passes_the_conformance_kit(plugged_in: Path, tmp_path: Path) -> None:
    tests = (MPI / "tests", "-c", MPI / "pyproject.toml", "-p", "no:cacheprovider")
    output = check(*under_mpi(plugged_in, "pytest", *tests), cwd=tmp_path, timeout=400)
    counts = re.search(r"^=+ (\d+) passed, (\d+) skipped in .*=+$", output, re.MULTILINE)
    assert counts, output
    assert int(counts[1]) > 90


def test_its_readme_has_its_capabilities(plugged_in: Path, tmp_path: Path) -> None:
    show = (
        "from rhapsody_testing import capability_table\n"
        "from rhapsody_mpi.plugin import CAPABILITIES\nprint(capability_table(CAPABILITIES))\n"
    )
    table = check(plugged_in / "python", "-c", show, cwd=tmp_path)
    assert table in (MPI / "README.md").read_text(), f"put this into its README.md:\n{table}"


def test_a_program_runs_on_the_processes_of_an_mpi_job(plugged_in: Path, program: Path) -> None:
    output = check(
        *under_mpi(plugged_in, "rhapsody", "run", program, "-b", "mpi"), cwd=program.parent
    )
    assert "sum 140\n" in output
    assert "printed 'squaring 3\\n'" in output
    assert "processes 2 elsewhere" in output
    left = [path for path in program.parent.rglob("*") if path.is_file()]
    names = {path.name for path in left if path.parent.name != "journals"}
    assert names == {"program.py", "log.txt", "run.jsonl", "sum"}


def test_a_program_runs_on_processes_that_the_backend_starts(
    plugged_in: Path, program: Path
) -> None:
    path = f"PATH={plugged_in}:/usr/bin:/bin"  # MPI looks for its own programs there
    command = ("env", path, plugged_in / "rhapsody", "run", program, "-b", "mpi", "-o", "workers=2")
    output = check(*command, cwd=program.parent)
    assert "sum 140\n" in output
    assert "processes 2 elsewhere" in output


def test_a_wrong_setting_is_an_error_of_use(plugged_in: Path, program: Path) -> None:
    command = (plugged_in / "rhapsody", "run", program, "-b", "mpi", "-o", "workers=0")
    done = run(*command, cwd=program.parent)
    assert done.returncode == 2
    message = "-o workers: backend 'mpi': workers must be a positive integer, got 0"
    assert done.stderr == f"rhapsody: {message}\n"


def test_the_observer_has_less_than_forty_lines_and_says_where_the_time_went(
    plugged_in: Path, program: Path
) -> None:
    (module,) = (TIMING / "src").glob("*.py")
    assert len(module.read_text().splitlines()) < 40
    done = run(plugged_in / "rhapsody", "run", program, cwd=program.parent)
    assert done.returncode == 0, done.stderr
    for name, attempts in (("square", 8), ("add", 1), ("read", 1)):
        assert re.search(rf"^{name} +{attempts} attempts +\d+\.\d\d s$", done.stderr, re.MULTILINE)
    silent = ("env", "RHAPSODY_DISABLE_PLUGINS=rhapsody-timing")  # pragma: allowlist secret
    assert (
        run(*silent, plugged_in / "rhapsody", "run", "-q", program, cwd=program.parent).stderr == ""
    )


def test_both_are_unknown_after_they_are_uninstalled(plugged_in: Path, program: Path) -> None:
    pip = (plugged_in / "python", "-m", "pip", "uninstall", "--yes", "--quiet")
    check(*pip, "rhapsody-mpi", "rhapsody-timing", cwd=program.parent)
    listed = json.loads(check(plugged_in / "rhapsody", "backends", "--json", cwd=program.parent))
    assert sorted(one["name"] for one in listed) == ["local", "noop"]
    done = run(plugged_in / "rhapsody", "run", program, "-b", "mpi", cwd=program.parent)
    assert done.returncode == 2
    assert "Backend 'mpi' not found" in done.stderr
    assert run(plugged_in / "rhapsody", "run", "-q", program, cwd=program.parent).stderr == ""
