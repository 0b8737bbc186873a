"""Checks of this workspace, for development machines and for CI.

`nox` runs the checks that take minutes: lint, types, the tests on the running Python, and the built
wheels in clean environments, without tests that are marked `long`. `nox -s ci` adds what CI can
afford, and `nox -s release` runs everything on every Python. The tools of each session are a
dependency group in `pyproject.toml`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import nox
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PYTHONS = ["3.11", "3.12", "3.13"]
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
if sys.version_info < (3, 11):  # noqa: UP036 - nox supports older Pythons
    sys.exit(f"nox runs on Python {RUNNING}, but Rhapsody needs 3.11 or newer: recreate the venv")
if RUNNING not in PYTHONS:
    PYTHONS.append(RUNNING)


class Distribution(NamedTuple):
    """Settings for the tests of a distribution.

    Attributes:
        extras: The extras that the tests need.
        others: Other distributions that the tests need.
        group: The dependency group with the tools of the tests.
        options: Options for pytest. The number of processes may exceed the number of processors if
            most tests wait.
    """

    extras: str = ""
    others: Sequence[str] = ()
    group: str = "test"
    options: Sequence[str] = ()


BY_FILE = ("-n2", "--dist=loadfile")  # the tests of a file share expensive fixtures
# A test whose pilot or Slurm did not start, or whose pilot hung in RADICAL-Pilot, is repeated once
# and listed. No other test is repeated.
NOT_STARTED = (
    "PilotException: RADICAL-Pilot cannot start in",
    "PilotException: pilot .* was not launched",
    "pilot .* does not come up",
    "pilot .* starts no tasks: a task for which it has free cores has waited",
    "AssertionError: the node is",
)
ONCE_MORE = ("--reruns=1", *(f"--only-rerun={error}" for error in NOT_STARTED), "-raR")

KIT = ["testing"]  # the conformance kit, which the tests of backends use
# To add a distribution, add it here. Its tests run in an environment with only core, that
# distribution and the others that it names.
DISTRIBUTIONS = {
    "core": Distribution("[completion,files]", KIT, "core", ("-n4", "--dist=worksteal")),
    "dask": Distribution("[dashboard,jobqueue]", [*KIT, "wfcommons"], options=BY_FILE),
    "radical": Distribution("[mpi]", KIT, "radical", (*BY_FILE, *ONCE_MORE)),
    "report": Distribution(group="report", options=BY_FILE),
    "simulated": Distribution(others=KIT),
    "testing": Distribution(options=("-n4", "--dist=worksteal")),
    "wfcommons": Distribution(others=["simulated"]),
    "otel": Distribution("[otlp]", ["dask"]),
    "asyncflow": Distribution(),
    "dragon": Distribution(others=KIT),
    "psij": Distribution("[mpi]", KIT, options=(*BY_FILE, *ONCE_MORE), group="radical"),
}
# Tests of what depends on Python's version: asyncio, compiled code, imports and processes.
VERSION_DEPENDENT = [
    f"tests/core/{name}"
    for name in (
        "backends/local", "cli/test_main.py", "cli/test_run.py", "cli/test_scripts.py",
        "cli/test_spawned.py", "engine", "journal", "sdk", "test_aio.py", "test_tracebacks.py",
    )
]  # fmt: skip
# The distributions with tests that are marked `long`.
LONG = ["core", "dask", "psij", "radical", "testing"]

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", f"tests-{RUNNING}", "system"]
# `nox -s tests` skips missing Pythons, also with CI=true; `release` requires all of them.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.options.default_venv_backend = "uv|virtualenv"  # uv takes seconds instead of a minute
# Python and pytest compile only the modules that a check imports, and store them for later runs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PIP_COMPILE"] = "no"


def tools(*groups: str) -> tuple[str, ...]:
    """Return the requirements of dependency groups."""
    return nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), *groups)


def supports(backend: str, python: str = RUNNING) -> bool:
    """Return True if a distribution supports a version of Python."""
    pyproject = nox.project.load_toml(f"packages/rhapsody-{backend}/pyproject.toml")
    return SpecifierSet(pyproject["project"]["requires-python"]).contains(python)


def sources(*backends: str) -> list[str]:
    """Return the requirements for distributions in this tree, with the extras of their tests."""
    return [f"./packages/rhapsody-{name}{DISTRIBUTIONS[name].extras}" for name in backends]


def run_tests(session: nox.Session, backend: str, *constraints: str) -> None:
    """Run a backend's tests that are not marked `long`, unless others are requested."""
    python = str(session.python)
    if not supports(backend, python):
        session.skip(f"rhapsody-{backend} does not support Python {python}")
    dist = DISTRIBUTIONS[backend]
    if backend == "radical":  # a pilot's many processes would all compile the same modules
        constraints = (*constraints, "--compile")
    needed = sources(*dict.fromkeys(["core", backend, *dist.others]))
    session.install(*needed, *tools(dist.group), *constraints)
    selected = session.posargs or ["-m", "not long", f"tests/{backend}"]
    session.run("pytest", *dist.options, *selected)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style: ruff's rules, its formatting, and the sections of docstrings."""
    session.install(*tools("lint"))
    session.run("ruff", "check", ".")
    docstrings = "DOC201,DOC202,DOC402,DOC403,DOC501"  # preview rules
    session.run("ruff", "check", "--preview", "--select", docstrings, "packages")
    session.run("ruff", "format", "--check", ".")


@nox.session
def prose(session: nox.Session) -> None:
    """Print words that may be unusual or misspelled. This is advice: it never fails."""
    session.install(*tools("prose"))
    session.run("python", ".ci/prose.py", success_codes=[0, 1])
    files = session.run("git", "ls-files", "*.md", "*.py", "*.toml", silent=True, external=True)
    session.run("codespell", *str(files).split(), log=False, success_codes=[0, 65])


@nox.session
def types(session: nox.Session) -> None:
    """Check the types: mypy on everything, and pyright on what users import.

    Both check the programs in `tests/core/typing`, with correct and incorrect calls.
    """
    supported = [name for name in DISTRIBUTIONS if supports(name)]
    session.install(*sources(*supported), *tools("types"))
    with ThreadPoolExecutor(1) as pool:  # mypy and pyright each use one processor
        checked = pool.submit(session.run, "mypy", silent=True)
        for name in supported:
            package = "rhapsody" if name == "core" else f"rhapsody_{name}"
            session.run("pyright", "--verifytypes", package, "--ignoreexternal")
        session.run("pyright", "--project", "tests/core/typing")
        session.log("%s", checked.result())


@nox.session(python=PYTHONS)
@nox.parametrize("backend", list(DISTRIBUTIONS))
def tests(session: nox.Session, backend: str) -> None:
    """Run the tests of one distribution that are not marked `long`.

    The environment contains only this distribution, core and the `others` that it names. Other
    tests run if they are requested: `-- tests/core -k cancel`.
    """
    run_tests(session, backend)


@nox.session(python=False)
@nox.parametrize("backend", LONG)
def long(session: nox.Session, backend: str) -> None:
    """Run the tests of one distribution that are marked `long`, with the session `tests`."""
    session.notify(
        f"tests-{RUNNING}(backend='{backend}')",
        ["-m", "long", *session.posargs, f"tests/{backend}"],
    )


@nox.session
def slurm(session: nox.Session) -> None:
    """Run the tests of all distributions that need a Slurm, which they start."""
    distributions = ("core", "dask", "psij", "radical", "testing", "wfcommons")
    session.install(*sources(*distributions), "--compile", *tools("radical"))
    places = ("core/backends/test_commands.py", "dask", "psij", "radical")
    selected = session.posargs or ["-m", "slurm", *(f"tests/{place}" for place in places)]
    session.run("pytest", "-n4", "--dist=loadfile", *ONCE_MORE, *selected)  # most tests wait


@nox.session
def system(session: nox.Session) -> None:
    """Test what users receive: wheels in clean environments, the README's commands, the examples.

    Without tests that are marked `long`, unless others are requested: `-- tests/system`.
    """
    uv = ["uv"] if session.venv_backend == "uv" else []  # the tests create environments, too
    session.install(*tools("system"), *uv)
    session.run("pytest", *BY_FILE, *(session.posargs or ["-m", "not long", "tests/system"]))


@nox.session(python=PYTHONS[0])
@nox.parametrize("backend", list(DISTRIBUTIONS))
def minimums(session: nox.Session, backend: str) -> None:
    """Run the tests with the lowest allowed version of each dependency.

    Without tests that are marked `long`, unless others are requested: `-- tests/core`.
    """
    bounds: dict[str, str] = {}
    for name in ("core", backend, *DISTRIBUTIONS[backend].others):
        project = nox.project.load_toml(f"packages/rhapsody-{name}/pyproject.toml")["project"]
        extras = project.get("optional-dependencies", {}).values()
        for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
            requirement = Requirement(line)
            lowest = [s.version for s in requirement.specifier if s.operator == ">="]
            if not requirement.name.startswith("rhapsody-"):  # those are installed from this tree
                bounds[requirement.name] = lowest[0]  # each has a lower bound
    constraints = session.cache_dir / f"minimums-{backend}.txt"
    constraints.write_text("".join(f"{name}=={low}\n" for name, low in sorted(bounds.items())))
    session.log("lowest allowed versions:\n%s", constraints.read_text())
    run_tests(session, backend, f"--constraint={constraints}")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in strict mode, and run all code blocks."""
    session.install(*sources(*DISTRIBUTIONS), *tools("docs"))
    site = str((session.cache_dir / "site").absolute())
    strict = ["--fail-on-warning", "--keep-going", "--nitpicky"]
    trees = str((session.cache_dir / "doctrees").absolute())
    session.run("sphinx-build", "-q", *strict, "--jobs=auto", "-d", trees, "docs", site)
    session.run("pytest", *(session.posargs or ["-n2", "tests/docs"]))


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Compare costs with other systems; write the tables and plot of the page on performance.

    Takes hours. `-- --only processes mixed` runs some measures. `-- --smoke` runs the measures of
    Rhapsody and the scripts that compare commits at tiny sizes, and writes nothing. `-- slurm` runs
    `benchmarks/slurm.py` instead, with its options.
    """
    if "--smoke" in session.posargs:
        session.install(*sources("core", "wfcommons", "otel", "simulated"), *tools("core"))
        scripts = "journal observer otel history instructions compare scale worker_values"
        for script in scripts.split():
            session.run("python", f"benchmarks/{script}.py", "--smoke")
    else:
        slurm = session.posargs[:1] == ["slurm"]
        peers = ("parsl",) if slurm else ("asyncflow", "parsl", "executorlib", "ray", "prefect")
        # `asyncflow` provides the modules of the peer of this name.
        supported = [name for name in DISTRIBUTIONS if supports(name) and name != "asyncflow"]
        session.install(*sources(*supported), *tools("core", "benchmarks"))
        for peer in peers:
            session.log("installing %s; skipped if that fails", peer)
            session.install(*tools(f"peer-{peer}"), success_codes=[0, 1, 2])
        if slurm:
            session.run("python", "benchmarks/slurm.py", *session.posargs[1:])
            return
    session.run("python", "-m", "benchmarks.suite", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Search for secrets, list what each wheel installs, and look up vulnerabilities."""
    session.install(*tools("audit"))
    session.run("python", ".ci/audit.py")


@nox.session(python=False)
def ci(session: nox.Session) -> None:
    """Run the additional tests of CI, in the environments of plain `nox` where possible."""
    others = [python for python in PYTHONS if python != RUNNING and shutil.which(f"python{python}")]
    for python in others[-1:]:
        selected = ["-m", "not long and not one_python", *VERSION_DEPENDENT]
        session.notify(f"tests-{python}(backend='core')", selected)
    for backend in ("core", "report"):
        session.notify(f"minimums(backend='{backend}')", ["-m", "minimums", f"tests/{backend}"])
    # The other mutations of resume take as long as all other long tests of core.
    session.notify("long(backend='core')", ["-k", "not what_a_mutation_can_change"])
    session.notify("long(backend='dask')")
    session.notify("long(backend='testing')")
    session.notify("system", ["-m", "long", "tests/system"])
    session.notify("docs")
    session.notify("benchmarks", ["--smoke"])


@nox.session
def release(session: nox.Session) -> None:
    """Run all tests on every Python and with the lowest dependencies, an audit, and the coverage.

    Fails if a Python is missing. The tests of the documentation are in `ci`.
    """
    for python in PYTHONS:
        session.run(f"python{python}", "--version", external=True)
    for backend in DISTRIBUTIONS:
        for python in PYTHONS:
            session.notify(f"tests-{python}(backend='{backend}')", [f"tests/{backend}"])
        session.notify(f"minimums(backend='{backend}')", [f"tests/{backend}"])
    session.notify("system", ["tests/system"])
    session.notify("audit")
    session.install(*sources("core", *KIT), *tools("core", "coverage"))
    session.run("bash", ".ci/coverage", external=True)
