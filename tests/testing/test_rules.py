"""Rules for every conformance class: checks stay, skips and known failures have reasons."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import threading
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rhapsody.backends.base import Capabilities
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription
from rhapsody_testing import BackendConformance, Driver
from rhapsody_testing._suite import SharedState
from rhapsody_testing._system import ProcessSettings, RunningClock
from tests._support.faulty_backends import (
    AddsToThePath,
    HandlesForks,
    HangsAtShutdown,
    HonoursNoCores,
    IgnoresExitCodes,
    LeaksAThread,
)
from tests._support.kits import Kit, Lingering, Patient, Quick, kit_on, run
from tests._support.small_backend import SmallBackend


def test_a_check_that_is_replaced_is_an_error() -> None:
    with pytest.raises(
        TypeError, match=r"Mine overrides the check 'test_a_fan_runs'.*expected_fai"
    ):

        class Mine(BackendConformance):
            def test_a_fan_runs(self) -> None:
                pass


def test_a_check_that_a_mixin_hides_is_an_error() -> None:
    class Mixin:
        test_a_fan_runs = None

    with pytest.raises(TypeError, match="overrides the check 'test_a_fan_runs'"):

        class Mine(Mixin, BackendConformance):
            pass


def test_the_status_names_an_unknown_task_alone(tmp_path: Path) -> None:
    driver = Driver(SmallBackend())
    driver.strangers.append("other.task.000001.1")
    shared = SharedState(RunningClock(), ProcessSettings.now(), tmp_path, drivers=[driver])
    assert shared.status().startswith("; the callback reported task 'other.task.000001.1'")


def test_tests_of_the_authors_own_are_welcome() -> None:
    class Mine(BackendConformance):
        def test_something_else(self) -> None:
            pass

    assert callable(Mine.test_something_else)


def test_an_expected_failure_of_an_unknown_check_is_an_error() -> None:
    with pytest.raises(
        TypeError, match="unknown check 'test_a_fan_run'; did you mean 'test_a_fan_runs"
    ):

        class Mine(BackendConformance):
            expected_failures: ClassVar[Mapping[str, str]] = {"test_a_fan_run": "reason"}


def test_an_expected_failure_needs_a_reason() -> None:
    with pytest.raises(TypeError, match="'test_a_fan_runs' needs a reason"):

        class Mine(BackendConformance):
            expected_failures: ClassVar[Mapping[str, str]] = {"test_a_fan_runs": " "}


def never_looks(backend: SmallBackend, key: str) -> Kit:
    class Mine(Quick):
        expected_failures: ClassVar[Mapping[str, str]] = {key: "it never looks at them"}

        async def make_backend(self) -> SmallBackend:
            return backend

    return Mine


EXIT_CODES = "test_an_exit_code_fails_the_task"


@pytest.mark.parametrize("key", [EXIT_CODES, f"{EXIT_CODES}[a list]"])
def test_an_expected_failure_is_reported_as_such(key: str) -> None:
    outcome = run(never_looks(IgnoresExitCodes(), key), f"{EXIT_CODES}[a list]")
    assert outcome.word == "xfailed"
    assert "it never looks at them" in outcome.text


def test_an_expected_failure_that_passes_is_an_error() -> None:
    outcome = run(never_looks(SmallBackend(), EXIT_CODES), f"{EXIT_CODES}[a list]")
    assert outcome.word == "failed"
    assert "[XPASS(strict)] it never looks at them" in outcome.text


def test_what_is_not_declared_is_skipped_with_the_reason() -> None:
    class ExecutablesOnly(SmallBackend):
        capabilities = Capabilities(functions=False, sync_functions=False)

    outcome = run(kit_on(ExecutablesOnly), "test_functions_of_any_origin_run[function]")
    assert outcome.word == "skipped"
    assert "the backend does not run tasks of kind function" in outcome.text
    outcome = run(kit_on(ExecutablesOnly), "test_big_values_come_through_whole")
    assert "the backend does not declare sync_functions" in outcome.text


def test_a_class_without_make_backend_says_what_to_write() -> None:
    class Mine(BackendConformance):
        pass

    outcome = run(Mine, "test_a_fan_runs")
    assert "Mine must define `async def make_backend" in outcome.text


def test_cores_must_be_said_where_they_are_declared() -> None:
    class Mine(BackendConformance):
        async def make_backend(self) -> SmallBackend:
            return HonoursNoCores()

    outcome = run(Mine, "test_resources_bound_what_runs_at_once[cores]")
    assert "set `cores = ...` in the test class" in (outcome.text)


def test_what_a_backend_adds_must_be_removed_at_its_end() -> None:
    class AddsBoth(Quick):
        time_limit = 30
        adds: ClassVar[Set[str]] = frozenset({"sys.path", "at-fork handlers"})

    check = "test_it_changes_nothing_of_the_program"
    outcome = run(kit_on(HandlesForks, AddsBoth), check)
    assert outcome.word == "passed", outcome.text
    outcome = run(kit_on(AddsToThePath, AddsBoth), check)
    assert "changed by earlier starts and shutdowns: '/of" in outcome.text


CLASS_LIBRARY = """
import os
os.register_at_fork(before=lambda: None)
os.environ["SET_BY_A_LIBRARY"] = "at its import"
"""
STARTED_LIBRARY = """
import os, signal, threading
os.register_at_fork(before=lambda: None)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
threading.Thread(target=threading.Event().wait, name="of the library", daemon=True).start()

registered = False

def lock():
    global registered
    if not registered:
        os.register_at_fork(before=lambda: None)
        registered = True
"""
BACKEND = """
import signal
import a_library_of_the_class
from tests._support.small_backend import SmallBackend

class Locking(SmallBackend):
    async def start(self):
        import a_library_of_the_start
        a_library_of_the_start.lock()

class LockingItself(SmallBackend):
    async def start(self):
        import a_library_of_the_start
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
"""


@pytest.mark.long
def test_what_the_import_of_a_library_changes_is_not_the_backends_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_library_of_the_class.py").write_text(CLASS_LIBRARY)
    (tmp_path / "a_library_of_the_start.py").write_text(STARTED_LIBRARY)
    (tmp_path / "a_backend_with_locks.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SET_BY_A_LIBRARY", "")
    module = importlib.import_module("a_backend_with_locks")
    check = "test_it_changes_nothing_of_the_program"
    outcome = run(kit_on(module.Locking, Patient), check)
    assert outcome.word == "passed", outcome.text
    outcome = run(kit_on(module.LockingItself, Patient), check)
    assert "after the start: the handler of SIGUSR2 has changed" in outcome.text


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (True, "'bool' object is not callable"),
        (lambda number: number, "missing 1 required positional argument"),
    ],
)
def test_a_library_function_that_is_none_says_what_it_must_be(given: Any, problem: str) -> None:
    class Mine(Quick):
        async def make_backend(self) -> SmallBackend:
            return SmallBackend()

        def library_function(self) -> Any:
            return given

    outcome = run(Mine, "test_a_task_may_use_the_backends_library")
    assert "`library_function` must return a function" in outcome.text
    assert problem in outcome.text


@pytest.mark.parametrize(
    ("backend", "check", "attribute"),
    [
        (LeaksAThread, "test_shutdown_leaves_nothing_behind", "leaves_behind = ('thread forgotte"),
        (HandlesForks, "test_it_changes_nothing_of_the_program", "`adds` allows"),
        pytest.param(
            HangsAtShutdown,
            "test_it_starts_and_stops[await]",
            "`time_limit`",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_message_names_the_attribute_that_allows_what_was_seen(
    backend: type[SmallBackend], check: str, attribute: str
) -> None:
    base = Lingering if "program" in check else Quick
    assert attribute in run(kit_on(backend, base), check).text


def test_what_a_backend_changes_once_in_a_program_is_found_and_undone() -> None:
    class SetsAVariableOnce(SmallBackend):
        async def start(self) -> None:
            os.environ.setdefault("LEFT_BY_A_TEST", "1")

    outcome = run(kit_on(SetsAVariableOnce, Patient), "test_it_changes_nothing_of_the_program")
    assert "the environment variable LEFT_BY_A_TEST has changed" in outcome.text
    assert "LEFT_BY_A_TEST" not in os.environ


def test_the_callback_may_come_from_a_thread_before_submit_tasks_returned() -> None:
    class AnswersEarly(SmallBackend):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            self.require_running()

            def answer() -> None:
                for task in tasks:
                    self.accept(task)
                    task["return_value"] = sum(task["args"]) + 1
                    self.task_state_cb(task, TasksMainStates.DONE)

            thread = threading.Thread(target=answer)
            thread.start()
            thread.join()

    AnswersEarly.capabilities = Capabilities(executables=False, functions=False)
    checks = "test_results_belong_to_their_tasks[function]", "test_chains_and_diamonds_run"
    outcome = run(kit_on(AnswersEarly), *checks)
    assert outcome.counts == {"passed": 2}, outcome.text


SECTIONS = {
    check.check.section
    for name, check in inspect.getmembers(BackendConformance)
    if name.startswith("test_")
}


def test_every_check_links_to_a_section_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/plugins/contract.md").read_text()
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    slugs = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert slugs == SECTIONS
