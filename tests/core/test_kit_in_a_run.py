"""The conformance kit in a pytest run of its own, as an author of a backend would see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CLASS = """
from rhapsody.testing import BackendConformance
from tests.core.small_backend import SmallBackend

MADE = []

class TestSmall(BackendConformance):
    {settings}

    async def make_backend(self):
        MADE.append(SmallBackend())
        return MADE[-1]
"""

AFTER = """
def test_what_was_made():
    assert [str(backend.state()) for backend in MADE] == {states!r}
"""


COUNTED = """
STARTS = []

class Counted(SmallBackend):
    async def start(self):
        STARTS.append(self)
        await super().start()

def test_what_was_made():
    assert len(STARTS) == 5
    assert len({id(backend) for backend in STARTS}) == 5
    assert [str(backend.state()) for backend in STARTS] == ["shutdown"] * 5
"""


def run(tmp_path: Path, text: str, *options: str) -> str:
    """Runs pytest without any plugin that is only here by chance."""
    (tmp_path / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:asyncio", "-p", "no:timeout"]
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [*command, "-W", "error", "--rootdir", os.fspath(tmp_path), *options, "test_it.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout + done.stderr


def test_it_needs_no_other_plugin_and_ends_with_a_table(tmp_path: Path) -> None:
    shown = run(
        tmp_path, CLASS.format(settings=""), "-k", "runs_functions or twice_is_harmless or slots"
    )
    assert "conformance of TestSmall" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["group", "passed", "failed", "expected", "to", "fail", "skipped"] in lines
    assert ["Functions", "1", "0", "0", "1"] in lines
    assert "1        the backend does not declare the resource 'cores'" in shown
    assert "SKIPPED [1]" in shown
    assert "failed," not in shown.splitlines()[-1]


def test_the_tables_can_be_had_in_markdown(tmp_path: Path) -> None:
    options = ("-p", "rhapsody.testing.plugin", "--rhapsody-table=markdown", "-k", "runs_functions")
    shown = run(tmp_path, CLASS.format(settings=""), *options)
    assert "### TestSmall\n" in shown
    assert "| group | passed | failed | expected to fail | skipped |\n| --- |" in shown
    assert "| Functions | 1 | 0 | 0 | 0 |" in shown
    assert "| capability | meaning | declared | checks passed |\n| --- |" in shown
    assert "| `sync_functions` | ordinary functions | yes | 1 of 1 |" in shown
    assert "| `services` | executables as services | no |  |" in shown


REPEATED = """
import tests.core.small_backend

class Racy(tests.core.small_backend.SmallBackend):
    count = 0

    async def run_task(self, task):
        Racy.count += 1
        if Racy.count == 8:
            raise RuntimeError("a race")
        return await super().run_task(task)

def test_of_the_authors_own():
    pass
"""


def test_the_checks_can_be_repeated_to_expose_races(tmp_path: Path) -> None:
    options = (
        "-p",
        "rhapsody.testing.plugin",
        "--rhapsody-repeat=5",
        "-k",
        "runs_functions or of_the_authors",
    )
    text = CLASS.format(settings="").replace("(SmallBackend())", "(Racy())") + REPEATED
    shown = run(tmp_path, text, *options)
    assert "1 failed, 5 passed" in shown.splitlines()[-1], shown
    assert "test_it_runs_functions[round 3]" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["Functions", "0", "1", "0", "0"] in lines


@pytest.mark.parametrize(
    ("scope", "states"), [("test", ["shutdown", "shutdown", "shutdown"]), ("class", ["shutdown"])]
)
def test_the_checks_of_a_class_can_share_a_backend(
    tmp_path: Path, scope: str, states: list[str]
) -> None:
    text = CLASS.format(settings=f"backend_scope = {scope!r}") + AFTER.format(states=states)
    shown = run(tmp_path, text, "-k", "runs_functions or a_diamond or by_a_shell or what_was_made")
    assert "passed" in shown.splitlines()[-1], shown
    assert "failed" not in shown.splitlines()[-1], shown


def test_what_one_check_of_a_class_starts_another_stops(tmp_path: Path) -> None:
    names = "awaiting or twice or create_makes or known_word or after_shutdown or at_once_do_not"
    text = CLASS.format(settings="backend_scope = 'class'").replace("SmallBackend()", "Counted()")
    text += COUNTED
    shown = run(tmp_path, text, "-k", f"{names} or what_was_made")
    assert "9 passed" in shown.splitlines()[-1], shown


def test_a_failed_check_gets_the_next_one_a_new_backend(tmp_path: Path) -> None:
    text = CLASS.format(settings="backend_scope = 'class'").replace(
        "MADE.append(SmallBackend())",
        "MADE.append(SmallBackend() if MADE else faulty_backends.LosesResults())",
    )
    text = "from tests.core import faulty_backends\n" + text
    text += AFTER.format(states=["shutdown", "shutdown"])
    shown = run(tmp_path, text, "-k", "holds_its_results or runs_functions or what_was_made")
    assert "1 failed, 2 passed" in shown.splitlines()[-1], shown
    assert "a finished task's dict holds its results" in shown


def test_without_pytest_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['psutil'] = None\n"
        "try:\n    import rhapsody.testing\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "rhapsody.testing needs psutil: pip install 'rhapsody-core[testing]'\n"


def test_the_package_itself_imports_no_pytest() -> None:
    code = "import rhapsody, sys; print('pytest' in sys.modules, 'psutil' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n"
