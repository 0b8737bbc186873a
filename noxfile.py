"""Checks of this workspace, for development machines and for CI.

`nox` runs the checks that take minutes: lint, prose, types, the tests on the running Python, and
the built wheels in clean environments, without tests that are marked `long`. `nox -s ci` adds what
CI can afford, `nox -s long` runs the tests that are marked `long`, and `nox -s release` runs
everything on every Python. The docstring of each session describes it; the `pyproject.toml` of each
distribution describes its build.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nox
from packaging.requirements import Requirement

ROOT = Path(__file__).parent

# By default, pip compiles every module of every package in each environment. Without that, Python
# and pytest compile only the modules that a check imports, and store them for later runs. uv has
# the same options.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
COMPILE, NO_COMPILE = "--compile", "--no-compile"


class Distribution(NamedTuple):
    """A distribution with its tests and their requirements.

    Attributes:
        folder: The folder of the distribution.
        tests: The folder of its tests.
        extras: The extras that the tests need.
        ci: The tests that `nox -s ci` adds to plain `nox`, which runs those not marked `long` on
            the running Python. `"nothing"`: no tests. `"long"`: the tests marked `long`. `"all"`:
            also the tests marked neither `long` nor `one_python` on the newest other Python, and
            `minimums` with the lowest dependencies.
        has_long: True if some tests are marked `long`.
        minimums: The tests that depend most on the versions of its dependencies.
        at_once: Number of parallel tests. May exceed the number of processors if most tests wait.
        files_at_once: True if tests of one file run one after the other, because they share
            expensive fixtures.
        reruns: True if a test whose pilot or Slurm did not start is repeated once.
        pythons: The supported Pythons; empty if it supports all.
        tools: Additional packages for the tests.
    """

    folder: str
    tests: str
    extras: str = ""
    ci: Literal["nothing", "long", "all"] = "nothing"
    has_long: bool = True
    minimums: Sequence[str] = ()
    at_once: int = 1
    files_at_once: bool = False
    reruns: bool = False
    pythons: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


# Core's tests of the code that uses cloudpickle, importlib-metadata, packaging, platformdirs,
# pluggy, rich, typeguard, shtab, Bokeh, Jinja, Starlette, uvicorn or fsspec, and of the
# conformance kit, which uses pytest and psutil.
MINIMUMS = [
    "tests/core/engine/test_backend_handles.py",
    "tests/core/backends/test_discovery.py",
    "tests/core/backends/test_discovery_owners.py",
    "tests/core/backends/test_discovery_unusable.py",
    "tests/core/test_exports.py",
    "tests/core/plugins/test_entry_points.py",
    "tests/core/plugins/test_manager.py",
    "tests/core/plugins/test_specs_decisions.py",
    "tests/core/plugins/test_installing.py",
    "tests/core/cli/test_completion.py",
    "tests/core/cli/test_doctor.py",
    "tests/core/cli/test_new_backend.py",
    "tests/core/cli/test_runs.py",
    "tests/core/cli/test_status.py",
    "tests/core/cli/test_config.py",
    "tests/core/report/test_report.py",
    "tests/core/dashboard/test_server.py",
    "tests/core/observers/test_progress.py",
    "tests/core/observers/test_display_notebook.py",
    "tests/core/backends/local/test_packing.py",
    "tests/core/journal/test_code.py",
    "tests/core/test_errors.py",
    "tests/core/test_data.py",
    "tests/core/staging/test_files.py",
    "tests/core/staging/test_fetch.py",
    "tests/core/backends/test_noop_conformance.py",
    "tests/core/testing/test_conformance.py",
    "tests/core/testing/test_tools.py",
]

# To add a distribution, add it here only. Its tests run in an environment with only core and that
# distribution.
DISTRIBUTIONS = {
    "core": Distribution(
        "packages/rhapsody-core",
        "tests/core",
        "[completion,dashboard,files,testing]",
        ci="all",
        minimums=MINIMUMS,
        at_once=4,
        tools=(
            "numpy>=1.26",  # types with special keys in the journal
            "pandas>=2.1",
            "selenium>=4.20",  # the report and the dashboard in a browser, if there is one
            "ipykernel>=6.29; python_version < '3.14'",  # the notebook in the examples
            "nbclient>=0.10; python_version < '3.14'",
        ),
    ),
    "dask": Distribution(
        "packages/rhapsody-dask",
        "tests/dask",
        "[dashboard,jobqueue,testing]",
        ci="long",
        at_once=2,
        files_at_once=True,
    ),
    "radical": Distribution(
        "packages/rhapsody-radical",
        "tests/radical",
        "[testing]",
        at_once=2,
        files_at_once=True,  # also all tests with a pilot; see conftest.py
        reruns=True,
        pythons=("3.11", "3.12", "3.13"),  # supported by RADICAL-Pilot
    ),
    "wfcommons": Distribution("packages/rhapsody-wfcommons", "tests/wfcommons", has_long=False),
}

PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.14t"]
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}{'t' if 't' in sys.abiflags else ''}"
if sys.version_info < (3, 11):  # noqa: UP036 - nox supports older Pythons
    sys.exit(f"nox runs on Python {RUNNING}, but Rhapsody needs 3.11 or newer: recreate the venv")
if RUNNING not in PYTHONS:
    PYTHONS.append(RUNNING)

# Linters and type checkers are pinned, because new versions report new problems.
RUFF = "ruff>=0.17.5,<0.18"
DOCSTRINGS = "DOC201,DOC202,DOC402,DOC403,DOC501"  # preview rules of ruff
CODESPELL = "codespell>=2.4,<3"
MYPY = "mypy>=2.4,<2.5"
PYRIGHT = "pyright[nodejs]>=1.1.414,<1.2"
TEST_TOOLS = ["hypothesis>=6.100", "pytest-asyncio>=1.5", "pytest-timeout>=2.3"]
XDIST = "pytest-xdist>=3.6"
# A test whose pilot or Slurm did not start is repeated once and listed. No other test is repeated.
RERUN = "pytest-rerunfailures>=16.0"
NOT_STARTED = (
    "PilotException: RADICAL-Pilot cannot start in",
    "PilotException: pilot .* was not launched",
    "pilot .* does not come up",
    "AssertionError: the node is",
)
ONCE_MORE = ["--reruns", "1", *(f"--only-rerun={error}" for error in NOT_STARTED), "-raR"]
BUILD = "build>=1.2"
HATCHLING = "hatchling>=1.26"
DOCS = "mkdocs>=1.6,<2"
GRIFFE = "griffe>=2.0,<3"
# Systems that the benchmarks compare with; those that cannot be installed are skipped. Prefect
# allows FastAPI 0.165, but its server does not start with it.
PEERS = {
    "radical.asyncflow": ["radical.asyncflow>=0.6"],
    "Parsl": ["parsl>=2025.1"],
    "executorlib": ["executorlib>=1.5"],
    "Ray": ["ray>=2.40"],
    "Prefect": ["prefect>=3.4", "fastapi<0.145"],
}
BENCHMARK_TOOLS = ["matplotlib>=3.9", "wfcommons>=1.6"]
CAPTURE_TOOLS = ["pyte>=0.8.2", "selenium>=4.25", "scikit-learn>=1.4"]
COVERAGE = "coverage>=7.10"
LEAST_COVERAGE = {"core": ("*", 92), "engine": ("*/rhapsody/engine/*", 96)}  # files, percent
AUDIT_TOOLS = ["pip-audit>=2.9,<3", "cyclonedx-bom>=7,<8", "detect-secrets>=1.5,<2"]

nox.needs_version = ">=2024.10.9"
QUICK = [f"quick-{RUNNING}(backend='{name}')" for name in DISTRIBUTIONS]
nox.options.sessions = ["lint", "prose", "types", *QUICK, "system"]
# Missing Pythons are reported as skipped, also with CI=true.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.options.default_venv_backend = "uv|virtualenv"  # uv takes seconds instead of a minute


def share_pip_index() -> None:
    """Make uv use the package index in pip's settings, which uv does not read."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(pip, capture_output=True, text=True, check=False).stdout
    for index in re.findall(r"^\S*\.index-url='(.*)'$", settings, re.MULTILINE):
        os.environ.setdefault("UV_DEFAULT_INDEX", index)


share_pip_index()


def install_distribution(session: nox.Session, backend: str, *more: str, **options: Any) -> None:
    """Install core, the backend's distribution and `more`, in one resolution."""
    core, dist = DISTRIBUTIONS["core"], DISTRIBUTIONS[backend]
    wanted = {d.folder: f"./{d.folder}{d.extras}" for d in (core, dist)}
    # A pilot starts many processes at the same time, which would all compile the same modules.
    compiled = COMPILE if backend == "radical" else NO_COMPILE
    session.install(compiled, *wanted.values(), *more, **options)


def run_tests(
    session: nox.Session, backend: str, *options: str, constraints: Path | None = None
) -> None:
    """Run a backend's tests, unless it does not support this Python."""
    dist = DISTRIBUTIONS[backend]
    python = str(session.python or RUNNING)
    if dist.pythons and python not in dist.pythons:
        session.skip(f"{backend} supports Python {', '.join(dist.pythons)}")
    tools = [*TEST_TOOLS, *dist.tools]
    if dist.reruns:
        tools, options = [*tools, RERUN], (*ONCE_MORE, *options)
    if dist.at_once > 1:
        way = "loadfile" if dist.files_at_once else "worksteal"
        tools, options = [*tools, XDIST], (f"-n{dist.at_once}", f"--dist={way}", *options)
    held = ["--constraint", str(constraints)] if constraints else []
    install_distribution(session, backend, *tools, *held)
    session.run("pytest", *options, *(session.posargs or [dist.tests]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style: ruff's rules, its formatting, and the sections of docstrings."""
    session.install(RUFF)
    session.run("ruff", "check", ".")
    session.run("ruff", "check", "--preview", "--select", DOCSTRINGS, "packages")
    session.run("ruff", "format", "--check", ".")


@nox.session
def prose(session: nox.Session) -> None:
    """Check the wording and spelling of texts, and the list of all messages."""
    session.install(CODESPELL)
    session.run("python", ".ci/prose.py")
    session.run("python", ".ci/messages.py", "--check")
    files = session.run("git", "ls-files", "*.md", "*.py", "*.toml", silent=True, external=True)
    session.run("codespell", *str(files).split(), log=False)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types: mypy on everything, and pyright on what users import.

    Both check the programs in `tests/core/typing`, with correct and incorrect calls.
    """
    there = {n: d for n, d in DISTRIBUTIONS.items() if not d.pythons or RUNNING in d.pythons}
    everything = [f"./{d.folder}{d.extras}" for d in there.values()]
    tools = (MYPY, PYRIGHT, "nox", "pytest>=8.4", "types-psutil", *TEST_TOOLS)
    session.install(NO_COMPILE, *tools, *everything)
    with ThreadPoolExecutor(1) as pool:  # mypy and pyright each use one processor
        checked = pool.submit(session.run, "mypy", silent=True)
        for name in there:
            package = "rhapsody" if name == "core" else f"rhapsody_{name}"
            session.run("pyright", "--verifytypes", package, "--ignoreexternal")
        session.run("pyright", "--project", "tests/core/typing")
        session.log("%s", checked.result())


@nox.session(python=PYTHONS)
@nox.parametrize("backend", list(DISTRIBUTIONS))
def tests(session: nox.Session, backend: str) -> None:
    """Run the tests of one backend, in an environment with only its distribution and core."""
    run_tests(session, backend)


@nox.session(python=PYTHONS)
@nox.parametrize("backend", list(DISTRIBUTIONS))
def quick(session: nox.Session, backend: str) -> None:
    """Run the tests of one backend that are not marked `long`, unless others are requested."""
    options = [] if session.posargs else ["-m", "not long"]
    run_tests(session, backend, *options)


@nox.session
@nox.parametrize("backend", [name for name, dist in DISTRIBUTIONS.items() if dist.has_long])
def long(session: nox.Session, backend: str) -> None:
    """Run the tests of one backend that are marked `long`."""
    run_tests(session, backend, "-m", "long")


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure the branch coverage of core's tests, with the processes that they start.

    Without tests that are marked `long`, unless others are requested. Prints the modules that are
    not covered completely, and fails if the total of core or of the engine is below its limit.
    """
    core = DISTRIBUTIONS["core"]
    data = session.cache_dir.absolute() / "coverage"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    settings = {
        "COVERAGE_RCFILE": str(ROOT / "pyproject.toml"),
        "COVERAGE_FILE": str(data / "data"),
    }
    install_distribution(session, "core", COVERAGE, XDIST, *TEST_TOOLS, *core.tools)
    options = (f"-n{core.at_once}", "--dist=worksteal", "-m", "not long")
    given = session.posargs or [*options, core.tests]
    session.run("coverage", "run", "-m", "pytest", *given, env=settings)
    session.run("coverage", "combine", "--quiet", env=settings)
    session.run("coverage", "report", "--skip-covered", "--show-missing", env=settings)
    short = []
    for name, (files, least) in LEAST_COVERAGE.items():
        command = ["coverage", "report", "--format=total", f"--include={files}"]
        # The last word, because warnings about files of killed processes come before it.
        total = str(session.run(*command, env=settings, silent=True)).split()[-1]
        session.log("%s: %s %% covered, at least %s %% required", name, total, least)
        if total != "None" and float(total) < least:  # None with --install-only
            short.append(f"the coverage of {name} is {total} %, which is less than {least} %")
    if short:
        session.error("\n".join(short))


@nox.session
def system(session: nox.Session) -> None:
    """Test what users receive: wheels in clean environments, the README's commands, the examples.

    Without tests that are marked `long`, unless others are requested: `-- tests/system`.
    """
    tools = [BUILD, HATCHLING, GRIFFE, MYPY, RUFF, XDIST, "nox", "pytest>=8.4", *TEST_TOOLS]
    if session.venv_backend == "uv":
        tools.append("uv")  # the tests create environments with it, too
    session.install(NO_COMPILE, *tools)
    files_at_once = ("-n2", "--dist=loadfile")  # the tests of a file share environments
    session.run("pytest", *files_at_once, *(session.posargs or ["-m", "not long", "tests/system"]))


@nox.session
def plugin_api(session: nox.Session) -> None:
    """Compare the plugin interface with the last release: breaking changes need a new version."""
    session.install(GRIFFE, "packaging")
    session.run("python", ".ci/check_plugin_api.py", *session.posargs)


@nox.session(python=PYTHONS[0])
@nox.parametrize("backend", list(DISTRIBUTIONS))
def minimums(session: nox.Session, backend: str) -> None:
    """Run the tests with the lowest allowed version of each dependency.

    Without tests that are marked `long`, unless others are requested: `-- tests/core`.
    """
    constraints = session.cache_dir / f"minimums-{backend}.txt"
    lowest: dict[str, str] = {}
    for dist in (DISTRIBUTIONS["core"], DISTRIBUTIONS[backend]):
        lowest |= lowest_allowed(ROOT / dist.folder / "pyproject.toml")
    text = "".join(f"{name}=={version}\n" for name, version in sorted(lowest.items()))
    constraints.write_text(text)
    session.log("lowest allowed versions:\n%s", text)
    options = [] if session.posargs else ["-m", "not long"]
    run_tests(session, backend, *options, constraints=constraints)


def lowest_allowed(pyproject: Path) -> dict[str, str]:
    """Return the lower bound of every dependency and extra, by name.

    Raises:
        ValueError: A dependency has no lower bound.
    """
    import tomllib  # missing from older Pythons, which are rejected with a message above

    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project.get("optional-dependencies", {})
    bounds: dict[str, str] = {}
    for text in [*project["dependencies"], *(line for lines in extras.values() for line in lines)]:
        requirement = Requirement(text)
        if requirement.name.startswith("rhapsody-"):
            continue  # installed from this tree
        lower = [s.version for s in requirement.specifier if s.operator in (">=", "==", "~=")]
        if not lower:
            raise ValueError(f"{pyproject}: {text!r} has no lower bound: add >= and a version")
        bounds[requirement.name] = lower[0]
    return bounds


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in strict mode, and run all code blocks."""
    wfcommons = f"./{DISTRIBUTIONS['wfcommons'].folder}"  # documented in docs/replay.md
    install_distribution(session, "dask", wfcommons, DOCS, XDIST, *TEST_TOOLS)
    session.run(
        "mkdocs", "build", "--strict", "--site-dir", str((session.cache_dir / "site").absolute())
    )
    session.run("pytest", *(session.posargs or ["-n2", "tests/docs"]))


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Compare costs with other systems; write tables and a plot, see `docs/performance.md`.

    Takes hours. `-- --only processes mixed` runs some measures, `-- --smoke` all of them at tiny
    sizes, without writing anything.
    """
    backends = [n for n, d in DISTRIBUTIONS.items() if not d.pythons or RUNNING in d.pythons]
    folders = [f"./{DISTRIBUTIONS[name].folder}" for name in backends]
    session.install(*folders, *DISTRIBUTIONS["core"].tools, *BENCHMARK_TOOLS)
    for peer, requirements in PEERS.items():
        session.log("installing %s; skipped if that fails", peer)
        session.install(*requirements, success_codes=[0, 1, 2])
    session.run("python", "-m", "benchmarks.suite", *session.posargs)


@nox.session
def benchmarks_smoke(session: nox.Session) -> None:
    """Check with tiny sizes that the benchmarks of core run."""
    install_distribution(session, "wfcommons", *DISTRIBUTIONS["core"].tools)
    session.run("python", "-m", "benchmarks.suite", "--smoke", *session.posargs)
    for script in ("journal.py", "observer.py", "history.py", "instructions.py", "compare.py"):
        session.run("python", f"benchmarks/{script}", "--smoke")


@nox.session
def captures(session: nox.Session) -> None:
    """Take pictures of commands, reports and the dashboard: `nox -s captures -- DIRECTORY`.

    Nothing checks the pictures: look at all of them. Requires Chromium and its driver, and for the
    examples bowtie2, samtools and bcftools.
    """
    if not session.posargs:
        session.error("name a directory for the pictures: nox -s captures -- DIRECTORY")
    session.install(f"./{DISTRIBUTIONS['core'].folder}[dashboard,report]", *CAPTURE_TOOLS)
    session.run("python", ".ci/captures.py", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Search for secrets, list what each wheel installs, and look up vulnerabilities.

    The lists are CycloneDX files in `dist/sbom`. The session fails if the vulnerability service
    does not answer.
    """
    session.install(*AUDIT_TOOLS)
    problems = secrets_in_the_tree(session)
    for name, dist in DISTRIBUTIONS.items():
        if dist.pythons and RUNNING not in dist.pythons:
            problems.append(f"{name}: NOT AUDITED: it does not support Python {RUNNING}")
            continue
        alone = session.cache_dir.absolute() / f"{name}-audited"
        session.run("python", "-m", "venv", "--clear", str(alone), silent=True)
        folders = dict.fromkeys([DISTRIBUTIONS["core"].folder, dist.folder])
        pip = [f"{alone}/bin/python", "-m", "pip", "install", "--quiet"]
        session.run(*pip, *(f"./{folder}" for folder in folders), external=True)
        write_sbom(session, alone, dist)
        problems += known_faults(session, alone, name)
    if problems:
        session.error("\n".join(["problems found:", *problems]))


def secrets_in_the_tree(session: nox.Session) -> list[str]:
    """Return the lines of tracked files that look like secrets.

    Lines with `pragma: allowlist secret` are skipped. Whether a secret is valid is not checked.
    """
    text = session.run("detect-secrets", "scan", "--no-verify", silent=True)
    found = json.loads(str(text))["results"]
    return [
        f"{file}:{each['line_number']} looks like a secret ({each['type']})"
        for file, several in found.items()
        for each in several
    ]


def write_sbom(session: nox.Session, environment: Path, dist: Distribution) -> None:
    """Write a CycloneDX file for an environment with one distribution and its dependencies."""
    folder = ROOT / "dist" / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(dist.folder).name}.cdx.json"
    session.run(
        *("cyclonedx-py", "environment", "--pyproject", f"{dist.folder}/pyproject.toml"),
        *("--mc-type", "library", "--output-reproducible", "--output-file", str(path)),
        f"{environment}/bin/python",
    )


def known_faults(session: nox.Session, environment: Path, name: str) -> list[str]:
    """Return the known vulnerabilities of an environment, or that the service did not answer."""
    answer = session.cache_dir.absolute() / f"{name}-faults.json"
    answer.unlink(missing_ok=True)
    (site,) = environment.glob("lib/python*/site-packages")
    words = ["--path", str(site), "--format", "json", "--output", str(answer)]
    # Exit code 1 means vulnerabilities, or no answer from the service.
    session.run("pip-audit", "--progress-spinner", "off", *words, success_codes=[0, 1])
    if not answer.exists():
        return [f"{name}: NOT AUDITED: the vulnerability service cannot be reached"]
    own = {Path(dist.folder).name for dist in DISTRIBUTIONS.values()}
    packages = json.loads(answer.read_text())["dependencies"]
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    unknown = sorted(set(skipped) - own)
    problems = [
        f"{name}: {each['name']} {each['version']}: {fault['id']}"
        for each in packages
        for fault in each.get("vulns", ())
    ]
    if unknown:
        problems.append(
            f"{name}: NOT AUDITED: the vulnerability service has no data on {len(unknown)} of "
            f"{len(packages)} packages: {', '.join(unknown)}"
        )
    return problems


@nox.session(python=False)
def ci(session: nox.Session) -> None:
    """Run the additional tests of CI; see `Distribution.ci`.

    Tests marked `long` run in the environments of plain `nox`, which `-R` reuses.
    """
    others = [python for python in PYTHONS if python != RUNNING and shutil.which(f"python{python}")]
    for backend, dist in DISTRIBUTIONS.items():
        if dist.ci == "all":
            quick = ["-m", "not long and not one_python", dist.tests]
            for python in others[-1:]:
                session.notify(f"quick-{python}(backend='{backend}')", quick)
            session.notify(f"minimums(backend='{backend}')", dist.minimums)
        if dist.ci in ("long", "all"):
            session.notify(f"quick-{RUNNING}(backend='{backend}')", ["-m", "long", dist.tests])
    session.notify("system", ["-m", "long", "tests/system"])
    session.notify("docs")
    session.notify("plugin_api")
    session.notify("benchmarks_smoke")


@nox.session(python=False)
def release(session: nox.Session) -> None:
    """Run all tests on every Python and with the lowest dependencies, an audit, and `coverage`.

    The tests of the documentation are in `ci`.
    """
    session.notify("audit")
    session.notify("coverage")
    for backend in DISTRIBUTIONS:
        for python in PYTHONS:
            session.notify(f"tests-{python}(backend='{backend}')")
        session.notify(f"minimums(backend='{backend}')", [DISTRIBUTIONS[backend].tests])
    session.notify("system", ["tests/system"])
