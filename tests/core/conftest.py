"""Settings and fixtures of the core tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from rhapsody import WorkflowEngine
from rhapsody.backends import discovery
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody_testing import Driver
from tests._support.accounts import accounts
from tests._support.command_line import run

__all__ = ["accounts", "run"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of `sys.path` for what a test installs; all that is there may be used."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("RHAPSODY_DISABLE_PLUGINS", raising=False)
    return tmp_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, empty."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest_asyncio.fixture
async def flow() -> AsyncIterator[WorkflowEngine]:
    """An engine on the local backend."""
    async with WorkflowEngine.create() as engine:
        yield engine


@pytest.fixture
def unregistered() -> Iterator[None]:
    """Takes back what a test registers."""
    before = dict(discovery._registered)
    yield
    discovery._registered.clear()
    discovery._registered.update(before)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process_backend() -> AsyncIterator[LocalExecutionBackend]:
    """Two worker processes, for all tests of a module."""
    resources = {"cores": 2, "gpus": ["4", "5"]}
    async with LocalExecutionBackend("process", resources=resources, grace=1.0) as backend:
        yield backend


@pytest_asyncio.fixture(loop_scope="module")
async def process_driver(process_backend: LocalExecutionBackend) -> AsyncIterator[Driver]:
    """Yield a driver, and check that the backend kept the contract and ended what it started."""
    async with Driver(process_backend) as driver:
        yield driver
        assert driver.faults == []
        assert process_backend.still_running == []


HERE = Path(__file__).parent
# Tests that need the whole repository, which an sdist does not contain.
WHOLE = ["benchmarks", "plugins/test_boundary.py"]
collect_ignore = [] if (HERE.parents[1] / "packages").exists() else WHOLE

LONG = {
    "engine/test_background_idle",
    "engine/test_scheduler_histories",
    "engine/test_record_memory",
    "engine/test_state_properties",
}
"""Modules that take long for what they find beyond the others: tests that an idle engine uses no
processor time, random histories, and tests of memory."""


ONE_PYTHON = {
    "engine/test_signals_leave",
    "journal/test_files",
    "journal/test_files_edited",
    "journal/test_files_returned",
    "journal/test_keys_runs",
    "journal/test_others",
    "journal/test_plugin_after",
    "journal/test_plugin_services",
    "journal/test_store_damaged",
    "journal/test_store_refused",
    "journal/test_store_runs",
    "sdk/test_processes_reaper",
    "sdk/test_executables_out_of_memory",
}
"""Modules that start many programs, or do not depend on Python's version, in directories that CI
tests on several Pythons."""


MINIMUMS = {
    "engine/test_backend_handles",
    "backends/test_discovery",
    "backends/test_discovery_owners",
    "backends/test_discovery_unusable",
    "test_exports",
    "plugins/test_entry_points",
    "plugins/test_manager",
    "plugins/test_specs_decisions",
    "plugins/test_installing",
    "cli/test_completion",
    "cli/test_doctor",
    "cli/test_new_backend",
    "cli/test_runs",
    "cli/test_status",
    "cli/test_config",
    "observers/test_progress",
    "observers/test_display_notebook",
    "backends/local/test_packing",
    "journal/test_code",
    "test_errors",
    "test_data",
    "staging/test_files",
    "staging/test_fetch",
    "backends/test_noop_conformance",
}
"""Modules that test the code that uses cloudpickle, importlib-metadata, packaging, platformdirs,
pluggy, rich, typeguard, shtab or fsspec, and a run of the conformance kit, which uses pytest and
psutil."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those modules' tests."""
    for item in items:
        if item.path.is_relative_to(HERE):
            module = item.path.relative_to(HERE).with_suffix("").as_posix()
            if module in LONG:
                item.add_marker(pytest.mark.long)
            if module in ONE_PYTHON:
                item.add_marker(pytest.mark.one_python)
            if module in MINIMUMS:
                item.add_marker(pytest.mark.minimums)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the reports of the tests in `journal/test_mutations.py`, also if they pass."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, text in report.user_properties:
                    if name == "mutations":
                        terminalreporter.write_line(f"mutations of the program {text}")
