"""Examples, run unchanged on a pilot from wheels in a clean environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests._support.machine import working_in

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
OPTIONS = ("-b", "radical_pilot", "-o", "resource=local.localhost")
PHAGE_TOOLS = ("bowtie2", "samtools", "bcftools")
PHAGE_DATA = Path("/usr/share/doc/bowtie2/examples/reads")

pytestmark = [pytest.mark.timeout(1200), pytest.mark.long]


def run(*command: str | Path, cwd: Path, home: Path | None = None, timeout: float = 900) -> str:
    """Run a command as a user does, without this process's settings of Python."""
    hidden = ("PYTHON", "PYTEST", "NOX", "RHAPSODY", "RADICAL", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    if home is not None:
        environment["HOME"] = str(home)
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, timeout=timeout,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds core's and this distribution's wheels alone."""
    place = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", place, cwd=place)
    pip = (place / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    copies = []
    for name in ("rhapsody-core", "rhapsody-radical"):
        copies.append(place / name)
        shutil.copytree(ROOT / "packages" / name, copies[-1])
    run(*pip, "wheel", "--no-deps", "--wheel-dir", place / "wheels", *copies, cwd=place)
    run(*pip, "install", *(place / "wheels").glob("*.whl"), "scikit-learn", cwd=place)
    return place / "bin"


def run_example(programs: Path, example: str, place: Path) -> str:
    """Return the output of an example, which must leave files and processes as they were."""
    home, here = place / "home", place / "here"
    home.mkdir()
    here.mkdir()
    status = run("git", "status", "--porcelain", "--ignored", cwd=ROOT)
    before = {process.pid for process in psutil.process_iter()}
    printed = run(programs / "rhapsody", "run", EXAMPLES / example, *OPTIONS, cwd=here, home=home)
    paths = [path.relative_to(place) for path in place.rglob("*")]
    names = {path.name for path in paths if ".rhapsody" not in path.parts[:-1]}
    assert names == {"here", "home", ".rhapsody"}
    left = [each for each in working_in(place) if each.pid not in before]
    assert left == []
    assert run("git", "status", "--porcelain", "--ignored", cwd=ROOT) == status
    return printed


def test_digits_finds_its_best_model(programs: Path, tmp_path: Path) -> None:
    printed = run_example(programs, "digits.py", tmp_path)
    best = re.search(r"^ +1 +support vectors .* (0\.9\d+) ", printed, re.MULTILINE)
    assert best, printed
    assert float(best[1]) > 0.98


def test_lattice_proteins_replaces_its_models(programs: Path, tmp_path: Path) -> None:
    printed = run_example(programs, "lattice_proteins.py", tmp_path)
    assert re.search(r"^ +5  model 4 ", printed, re.MULTILINE), printed
    assert re.search(r"^tasks +212 done, 0 failed$", printed, re.MULTILINE), printed


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in PHAGE_TOOLS) or not PHAGE_DATA.exists(),
    reason="needs: apt-get install bowtie2 bowtie2-examples samtools bcftools",
)
def test_lambda_phage_finds_its_variants(programs: Path, tmp_path: Path) -> None:
    printed = run_example(programs, "lambda_phage.py", tmp_path)
    variants = re.search(r"^variants +(\d+)", printed, re.MULTILINE)
    assert variants, printed
    assert int(variants[1]) > 0
