"""What holds for every conformance class: checks stay, skips and known failures have reasons."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from rhapsody.backends.base import Capabilities
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription
from rhapsody.testing import BackendConformance, ConformanceError
from tests.core.faulty_backends import (
    AddsToThePath,
    HandlesForks,
    HangsAtShutdown,
    HonoursNoCores,
    IgnoresExitCodes,
    LeaksAThread,
)
from tests.core.kits import Lingering, Patient, Quick, kit_on
from tests.core.small_backend import SmallBackend


def test_a_check_that_is_replaced_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"Mine replaces the check 'test_a_fan_runs'.*expected_fai"):

        class Mine(BackendConformance):
            def test_a_fan_runs(self) -> None:
                pass


def test_a_check_that_a_mixin_hides_is_an_error() -> None:
    class Mixin:
        test_a_fan_runs = None

    with pytest.raises(TypeError, match="replaces the check 'test_a_fan_runs'"):

        class Mine(Mixin, BackendConformance):  # type: ignore[misc]
            pass


def test_tests_of_the_authors_own_are_welcome() -> None:
    class Mine(BackendConformance):
        def test_something_else(self) -> None:
            pass

    assert callable(Mine.test_something_else)


def test_an_expected_failure_of_an_unknown_check_is_an_error() -> None:
    with pytest.raises(TypeError, match="no check 'test_a_fan_run'; did you mean 'test_a_fan_runs"):

        class Mine(BackendConformance):
            expected_failures: ClassVar[Mapping[str, str]] = {"test_a_fan_run": "reason"}


def test_an_expected_failure_needs_a_reason() -> None:
    with pytest.raises(TypeError, match="'test_a_fan_runs' needs a reason"):

        class Mine(BackendConformance):
            expected_failures: ClassVar[Mapping[str, str]] = {"test_a_fan_runs": " "}


def test_an_expected_failure_is_reported_as_such() -> None:
    class Mine(Quick):
        expected_failures: ClassVar[Mapping[str, str]] = {
            "test_an_exit_code_fails_the_task": "it never looks at them"
        }

        async def make_backend(self) -> SmallBackend:
            return IgnoresExitCodes()

    with pytest.raises(pytest.xfail.Exception, match="it never looks at them"):
        Mine().test_an_exit_code_fails_the_task()


def test_an_expected_failure_that_passes_is_an_error() -> None:
    class Mine(Quick):
        expected_failures: ClassVar[Mapping[str, str]] = {
            "test_an_exit_code_fails_the_task": "it never looks at them"
        }

        async def make_backend(self) -> SmallBackend:
            return SmallBackend()

    with pytest.raises(ConformanceError, match="passes, but expected_failures says 'it never look"):
        Mine().test_an_exit_code_fails_the_task()


def test_what_is_not_declared_is_skipped_with_the_reason() -> None:
    class ExecutablesOnly(SmallBackend):
        capabilities = Capabilities(functions=False, sync_functions=False)

    with pytest.raises(pytest.skip.Exception, match="the backend does not declare sync_functions"):
        kit_on(ExecutablesOnly).test_it_runs_functions()


def test_a_class_without_make_backend_says_what_to_write() -> None:
    class Mine(BackendConformance):
        pass

    with pytest.raises(ConformanceError, match="Mine must have `async def make_backend"):
        Mine().test_it_runs_functions()


def test_cores_must_be_said_where_they_are_declared() -> None:
    class Mine(BackendConformance):
        async def make_backend(self) -> SmallBackend:
            return HonoursNoCores()

    with pytest.raises(ConformanceError, match=r"say in the test class how many .* `cores = ...`"):
        Mine().test_cores_bound_what_runs_at_once()


def test_what_a_backend_may_add_is_said_and_gone_at_its_end() -> None:
    class AddsBoth(Quick):
        time_limit = 30
        adds: ClassVar[Set[str]] = frozenset({"sys.path", "at-fork handlers"})

    class Forks(AddsBoth):
        async def make_backend(self) -> SmallBackend:
            return HandlesForks()

    class Path(AddsBoth):
        async def make_backend(self) -> SmallBackend:
            return AddsToThePath()

    Forks().test_it_changes_nothing_of_the_program()
    with pytest.raises(ConformanceError, match=r"after its shutdown sys\.path has '/of"):
        Path().test_it_changes_nothing_of_the_program()


LOCKING = """
import os
os.register_at_fork(before=lambda: None)
os.environ["SET_BY_A_LIBRARY"] = "at its import"
"""
LAZY = """
import os
os.register_at_fork(before=lambda: None)
"""
BACKEND = """
import a_library_with_locks
from tests.core.small_backend import SmallBackend

class Locking(SmallBackend):
    async def start(self):
        import another_library_with_locks
"""


def test_what_the_import_of_a_library_changes_is_not_the_backends_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_library_with_locks.py").write_text(LOCKING)
    (tmp_path / "another_library_with_locks.py").write_text(LAZY)
    (tmp_path / "a_backend_with_locks.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SET_BY_A_LIBRARY", "")
    kind = importlib.import_module("a_backend_with_locks").Locking
    kit_on(kind, Patient).test_it_changes_nothing_of_the_program()


@pytest.mark.parametrize(
    ("given", "problem"),
    [(True, "True, which cannot be called"), (lambda number: number, "without arguments: missing")],
)
def test_a_library_function_that_is_none_says_what_it_must_be(given: Any, problem: str) -> None:
    class Mine(Quick):
        async def make_backend(self) -> SmallBackend:
            return SmallBackend()

        def library_function(self) -> Any:
            return given

    with pytest.raises(ConformanceError, match="`library_function` must return a func") as raised:
        Mine().test_a_task_may_use_the_backends_library()
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("backend", "check", "attribute"),
    [
        (LeaksAThread, "test_shutdown_leaves_nothing_behind", "leaves_behind = ('thread forgotte"),
        (AddsToThePath, "test_it_changes_nothing_of_the_program", "by `adds`: 'sys.path'"),
        (HangsAtShutdown, "test_shutdown_twice_is_harmless", "`time_limit`"),
    ],
)
def test_a_message_names_the_attribute_that_allows_what_was_seen(
    backend: type[SmallBackend], check: str, attribute: str
) -> None:
    base = Lingering if "program" in check else Quick
    with pytest.raises(ConformanceError) as raised:
        getattr(kit_on(backend, base), check)()
    assert attribute in str(raised.value)


def test_a_class_that_cannot_be_pickled_is_looked_at_in_this_process() -> None:
    class SetsAVariable(SmallBackend):
        async def start(self) -> None:
            os.environ["LEFT_BY_A_TEST"] = uuid4().hex  # another where the kit tries again

    try:
        with pytest.raises(ConformanceError, match="start the variable LEFT_BY_A_TEST is another"):
            kit_on(SetsAVariable, Patient).test_it_changes_nothing_of_the_program()
    finally:
        os.environ.pop("LEFT_BY_A_TEST", None)


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
    kit = kit_on(AnswersEarly)
    kit.test_results_belong_to_their_tasks()
    kit.test_a_diamond_runs()
