"""Fixtures for tests of RADICAL-Pilot, and exceptions for resources that it does not close."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests._support.slurm import slurm
from tests.radical import cluster

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # files that its import leaves open
    from rhapsody_radical.pilot import rp  # noqa: F401

    gc.collect()

HERE = Path(__file__).parent

# RADICAL-Pilot leaves files and sockets to the garbage collector, and forks while threads run.
NOISE = (
    "ignore::ResourceWarning",
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore:.*:DeprecationWarning:radical",
)


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty home directory: the login shells of pilots would run the user's profile.

    Some tests kill such shells, which could leave locks of other programs behind.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PIP_NO_CACHE_DIR", "1")
        yield


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect the resources that RADICAL-Pilot did not close, without warnings."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Collect the remaining resources without warnings, which pytest would report as errors."""
    warnings.simplefilter("ignore", ResourceWarning)
    gc.collect()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ignore RADICAL-Pilot's warnings, in this directory alone, and begin with `WAITING`."""
    if _is_of_slurm(config):
        items.sort(key=lambda item: item.name not in WAITING)
    for item in items:
        if HERE in item.path.parents:
            for noise in NOISE:
                item.add_marker(pytest.mark.filterwarnings(noise))


@pytest.fixture(scope="module")
def batch_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run Slurm during the tests of a module, configured as a cluster."""
    with slurm(tmp_path_factory.mktemp("slurm")), pytest.MonkeyPatch.context() as patch:
        config = cluster.configured(tmp_path_factory.mktemp("cluster"))
        patch.setenv("RADICAL_CONFIG_USER_DIR", config)
        yield


WITHOUT_PILOT = {
    "client/test_health.py",
    "client/test_objects.py",
    "client/test_raptor.py",
    "client/test_session.py",
    "client/test_tasks.py",
    "test_backend.py",
    "test_backend_files.py",
    "test_call.py",
    "test_cleanup_session_files.py",
    "test_cleanup_processes.py",
    "test_descriptions.py",
    "test_diagnosis.py",
    "test_functions.py",
    "test_links.py",
    "test_pilot.py",
    "test_pilots.py",
    "test_pilots_walltime.py",
    "test_plugin.py",
    "test_results.py",
    "test_services.py",
    "test_states.py",
    "test_translate.py",
    "test_wire.py",
}
"""Files of this directory whose tests may run at the same time as those of other files."""


WAITING = {
    "test_a_task_that_reaches_the_limit_of_its_job_fails_at_once",
    "test_srun_starts_a_worker_on_each_node_that_ends_with_the_program",
}
"""Tests that wait longest for Slurm, which compares the times of jobs once per minute."""


def _is_of_slurm(config: pytest.Config) -> bool:
    return bool(config.getoption("markexpr") == "slurm")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let one process run all tests with a pilot: two pilots overload a machine of two cores.

    `nox -s slurm`, whose tests mostly wait, runs two or three pilots side by side, and distributes
    the tests of other directories one by one.
    """
    only_slurm = _is_of_slurm(config)
    without_pilot = {HERE / name for name in WITHOUT_PILOT}

    def group(nodeid: str) -> str:
        file = config.rootpath / nodeid.partition("::")[0]
        if file.parent != HERE:
            return nodeid
        if only_slurm and file.name == "test_slurm_pages.py":
            return nodeid if nodeid.endswith("_without_gpus") else "pages"
        if only_slurm:
            return "pilots"
        return str(file) if file in without_pilot else "pilots"

    scheduler = import_module("xdist.scheduler").LoadScopeScheduling(config, log)
    scheduler._split_scope = group
    return scheduler
