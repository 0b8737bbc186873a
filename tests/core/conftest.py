"""Settings and fixtures of the core tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from rhapsody import WorkflowEngine
from rhapsody.backends import discovery
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.testing import Driver
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
    "testing/test_faults",
    "testing/test_run",
    "testing/test_pauses",
    "engine/test_scheduler_histories",
    "engine/test_record_memory",
    "engine/test_state_properties",
}
"""Modules that take long for what they find beyond the others: the kit on planted faults and on a
machine that pauses, tests that an idle engine uses no processor time, random histories, and tests
of memory."""


ONE_PYTHON = {
    "benchmarks/test_compare",
    "benchmarks/test_structure",
    "benchmarks/test_suite",
    "cli/test_backends",
    "cli/test_completion",
    "cli/test_config",
    "cli/test_export",
    "cli/test_graph",
    "cli/test_logs",
    "cli/test_lookup",
    "cli/test_new_backend",
    "cli/test_output",
    "cli/test_report",
    "cli/test_run_killed",
    "cli/test_run_profiles",
    "cli/test_runs",
    "cli/test_show",
    "cli/test_stats",
    "cli/test_status",
    "cli/test_trace",
    "cli/test_clean",
    "cli/test_doctor",
    "cli/test_dry_run",
    "cli/test_run_dashboard",
    "cli/test_run_interrupted",
    "cli/test_journal",
    "cli/test_recording",
    "cli/test_run_options",
    "backends/test_commands",
    "backends/test_commands_conformance",
    "backends/test_noop_conformance",
    "engine/test_signals_leave",
    "journal/test_files",
    "journal/test_files_edited",
    "journal/test_files_returned",
    "journal/test_keys_runs",
    "journal/test_others",
    "journal/test_plugin_after",
    "journal/test_plugin_services",
    "sdk/test_processes_reaper",
    "sdk/test_executables_out_of_memory",
    "observers/test_progress",
    "plugins/test_boundary",
    "testing/test_conformance",
    "test_imports_direction",
}
"""Modules that start many programs, or read the sources alone, or run the conformance kit on a
backend of the tests. Others test what depends on Python's version: the kit runs on the local
backend, and the command `rhapsody run` is tested, too."""


ONE_PYTHON_IN = ("dashboard/", "history/", "journal/test_store", "report/", "staging/")
"""Beginnings of the names of further modules that do not depend on Python's version."""


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
    "report/test_report",
    "dashboard/test_server",
    "observers/test_progress",
    "observers/test_display_notebook",
    "backends/local/test_packing",
    "journal/test_code",
    "test_errors",
    "test_data",
    "staging/test_files",
    "staging/test_fetch",
    "backends/test_noop_conformance",
    "testing/test_conformance",
    "testing/test_tools",
}
"""Modules that test the code that uses cloudpickle, importlib-metadata, packaging, platformdirs,
pluggy, rich, typeguard, shtab, Bokeh, Jinja, Starlette, uvicorn or fsspec, and the conformance kit,
which uses pytest and psutil."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those modules' tests."""
    for item in items:
        if item.path.is_relative_to(HERE):
            module = item.path.relative_to(HERE).with_suffix("").as_posix()
            if module in LONG:
                item.add_marker(pytest.mark.long)
            if module in ONE_PYTHON or module.startswith(ONE_PYTHON_IN):
                item.add_marker(pytest.mark.one_python)
            if module in MINIMUMS:
                item.add_marker(pytest.mark.minimums)
