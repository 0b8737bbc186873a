"""The conformance kit in a pytest run of its own, as an author of a backend would see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rhapsody_testing
from rhapsody_testing import API_VERSION

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]

CLASS = """
from rhapsody_testing import BackendConformance
from tests._support import faulty_backends
from tests._support.small_backend import SmallBackend

MADE = []

class TestSmall(BackendConformance):
    cycles = 3

    async def make_backend(self):
        MADE.append({backend})
        return MADE[-1]

    def test_of_the_authors_own(self):
        pass

def test_what_was_made():
    assert [str(backend.state()) for backend in MADE] == ["shutdown"] * {count}
"""


def run(tmp_path: Path, text: str, *options: str) -> str:
    """Runs pytest with the options that an author's project might have."""
    (tmp_path / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "--strict-markers", "-W", "error"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, *options, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout + done.stderr


def test_skipped_checks_say_why_and_the_authors_tests_run(tmp_path: Path) -> None:
    text = CLASS.format(backend="SmallBackend()", count=1)
    shown = run(tmp_path, text, "-k", "origin or gpus_are or authors")
    assert "3 passed, 2 skipped" in shown.splitlines()[-1], shown
    assert "the backend does not declare that it enforces the resource 'gpus'" in shown


def test_the_checks_of_a_class_share_a_backend(tmp_path: Path) -> None:
    text = CLASS.format(backend="SmallBackend()", count=1)
    names = "origin or diamonds or by_a_shell or what_was_made"
    shown = run(tmp_path, text, "-k", names)
    assert "5 passed" in shown.splitlines()[-1], shown


def test_the_checks_of_starting_and_stopping_look_at_the_same_backends(tmp_path: Path) -> None:
    # Three lives, in one of which `create` makes another backend, and the backend of the class.
    text = CLASS.format(backend="SmallBackend()", count=4)
    names = (
        "it_starts_and_stops or nothing_behind or quickly or start_and_shutdown or what_was_made"
    )
    shown = run(tmp_path, text, "-k", names)
    assert "7 passed" in shown.splitlines()[-1], shown


def test_a_failed_check_gives_the_next_one_a_new_backend(tmp_path: Path) -> None:
    backend = "SmallBackend() if MADE else faulty_backends.LosesResults()"
    text = CLASS.format(backend=backend, count=2)
    names = "outcome and function and not executable or what_was_made"
    shown = run(tmp_path, text, "-k", names)
    assert "1 failed, 2 passed" in shown.splitlines()[-1], shown
    assert "a DONE function has no ['return_value']" in shown
    assert "The rule: https://rhapsody.example/docs/plugins/contract.html#states" in shown


@pytest.mark.parametrize(
    ("version", "outdated"),
    [(API_VERSION + 1, "rhapsody-testing"), (API_VERSION - 1, "rhapsody-core")],
)
def test_with_another_interface_the_error_says_what_to_upgrade(version: int, outdated: str) -> None:
    code = (
        f"import rhapsody.plugins; rhapsody.plugins.API_VERSION = {version}\n"
        "try:\n    import rhapsody_testing\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith(f"has version {version}: pip install --upgrade {outdated}\n")


def test_the_version_begins_with_that_of_the_interface() -> None:
    assert rhapsody_testing.__version__.partition(".")[0] == str(API_VERSION)


def test_workers_need_no_pytest() -> None:
    code = (
        "import rhapsody_testing._work, sys\n"
        "print('pytest' in sys.modules, 'psutil' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n"
