"""The conformance kit finds what is wrong: a backend with each fault, and the failure."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests._support import faulty_backends as faulty
from tests._support.kits import Hurried, Kit, Lingering, Patient, Quick, kit_on, run
from tests._support.small_backend import SmallBackend

pytestmark = pytest.mark.long

FAULTS: tuple[tuple[Kit, type[SmallBackend], str, str], ...] = (
    # The limits, the backend, the check that finds its fault, and what the failure says.
    (
        Quick,
        faulty.CallsBackTwice,
        "test_each_task_is_reported_terminal_exactly_once",
        "exactly one terminal callback per task: task 'add",
    ),
    (
        Quick,
        faulty.SaysItsEndInWords,
        "test_its_end_is_seconds_or_none",
        "seconds_left must return None or a number of at least 0, got '10 min'",
    ),
    (
        Hurried,
        faulty.NeverCallsBack,
        "test_each_task_is_reported_terminal_exactly_once",
        "no terminal state for add",
    ),
    (
        Quick,
        faulty.ReportsAnUnknownStateFromAThread,
        "test_each_task_is_reported_terminal_exactly_once",
        "task '.*' was reported 'FINISHED'",
    ),
    (
        Quick,
        faulty.ReportsRunningAfterTheEnd,
        "test_functions_of_any_origin_run[function]",
        "after a task's terminal state: task '.*' was reported RUNNING after DONE",
    ),
    (
        Quick,
        faulty.NeedsTheFirstAttempt,
        "test_a_task_may_come_with_a_later_attempt",
        "KeyError",
    ),
    (
        Quick,
        faulty.ReportsRunningWhileItWaits,
        "test_running_is_reported_when_the_work_begins[function]",
        "of 8 tasks .* 4 were reported RUNNING, but 1 had started",
    ),
    (
        Quick,
        faulty.ReportsRunningAtTheEnd,
        "test_running_is_reported_when_the_work_begins[function]",
        "of 8 tasks .* 0 were reported RUNNING, but ",
    ),
    (
        Quick,
        faulty.ReportsTasksNobodySubmitted,
        "test_functions_of_any_origin_run[function]",
        "reported task 'another', which was not submitted",
    ),
    (
        Hurried,
        faulty.ChangesUids,
        "test_each_task_is_reported_terminal_exactly_once",
        "no terminal state for .*; the callback reported task 'driver-",
    ),
    (
        Quick,
        faulty.ChangesSomeUids,
        "test_functions_of_any_origin_run[function]",
        "reported task 'driver-.*, which was not submitted",
    ),
    (
        Quick,
        faulty.LosesResults,
        "test_a_finished_task_holds_its_outcome[function]",
        r"a DONE function has no \['return_value'\]",
    ),
    (Quick, faulty.LosesStdout, "test_a_string_is_run_by_a_shell", "a,b,"),
    (Quick, faulty.LosesStdout, "test_a_failed_executable_says_why", r"\(3, ''\) == \(3, 'a word"),
    (Quick, faulty.CutsOutput, "test_output_is_whole", r"65536, .* == \(200003, "),
    (Hurried, faulty.PrintsElsewhere, "test_a_running_program_can_be_watched", "text_of.*first"),
    (Quick, faulty.MixesTheStreams, "test_an_exit_code_fails_the_task[a string]", "nerr"),
    (Quick, faulty.IgnoresExitCodes, "test_an_exit_code_fails_the_task[a string]", "ended DONE"),
    (Quick, faulty.RunsListsThroughAShell, "test_a_list_is_run_without_a_shell", "assert"),
    (Quick, faulty.LosesTheEnvironment, "test_the_environment_is_added", "assert"),
    (Quick, faulty.StaysInItsSandbox, "test_it_runs_in_the_given_directory", "assert .*Path"),
    (
        Quick,
        faulty.LeavesFilesBesideTheUsers,
        "test_it_runs_in_the_given_directory",
        "files into the user's directory",
    ),
    (Quick, faulty.MakesWhatIsMissing, "test_a_missing_directory_fails", "'pwd' with cwd="),
    (
        Quick,
        faulty.SharesOneSandbox,
        "test_each_executable_has_its_own_directory",
        "but ran in|not empty at the start",
    ),
    (Quick, faulty.CopiesNothingOut, "test_a_file_is_copied_out", "read_text"),
    (Quick, faulty.CopiesOutWhatIsOutside, "test_a_file_is_copied_out", "FileNotFoundError"),
    (
        Quick,
        faulty.MakesPublicSandboxes,
        "test_a_sandbox_is_private",
        "the mode of .* is 755, not 700",
    ),
    (
        Hurried,
        faulty.IgnoresCancel,
        "test_a_running_task_is_stopped[executable]",
        "did not end within",
    ),
    (
        Quick,
        faulty.CancelsInNameOnly,
        "test_a_running_task_is_stopped[executable]",
        "reported CANCELED, but still running: an executable",
    ),
    (
        Quick,
        faulty.CancelsWhatHasEnded,
        "test_unknown_and_finished_tasks_are_not_canceled",
        "assert True is False",
    ),
    (
        Quick,
        faulty.MangleExceptions,
        "test_every_route_keeps_failures_whole",
        r"a function raised a KitError, but the backend reported RuntimeError\(",
    ),
    (
        Quick,
        faulty.BlocksTheLoopAWhile,
        "test_a_submission_does_not_block_the_loop[a batch]",
        "the loop was blocked for .*`loop_gap` allows .*in_thread",
    ),
    (
        Quick,
        faulty.DoesNotInitializeItsBase,
        "test_the_engine_starts_and_stops_it",
        "DoesNotInitializeItsBase.__init__ must call",
    ),
    (
        Quick,
        faulty.StartsSynchronously,
        "test_the_engine_starts_and_stops_it",
        "start must be a coroutine function, `async def start`",
    ),
    (
        Hurried,
        faulty.BlocksTheLoopForGood,
        "test_functions_of_any_origin_run[function]",
        "time.sleep.60.",
    ),
    (
        Quick,
        faulty.BlocksTheLoopAtShutdown,
        "test_start_and_shutdown_do_not_block_the_loop",
        "the loop was blocked for .*`loop_gap` allows",
    ),
    (
        Hurried,
        faulty.WaitsForTheEnd,
        "test_submitting_does_not_wait_for_the_end",
        "did not end within .*`WaitsForTheEnd.submit_tasks` had not returned; it waited in.*wait",
    ),
    (
        Quick,
        faulty.RaisesForOneBadTask,
        "test_one_bad_task_does_not_spoil_its_batch",
        "ValueError: a bad task",
    ),
    (
        Quick,
        faulty.EmptiesTheBatch,
        "test_every_batch_is_accepted_as_it_is",
        "changed its list, from 1 to 0 tasks",
    ),
    (
        Quick,
        faulty.ChangesArguments,
        "test_arguments_belong_to_the_caller",
        "the backend changed the caller's arguments",
    ),
    (
        Quick,
        faulty.CachesFunctionsForGood,
        "test_tasks_do_not_share_a_functions_state",
        "call 2 with a closure",
    ),
    (
        Quick,
        faulty.HandsArgumentsOver,
        "test_tasks_do_not_share_arguments",
        "call 2 with the same list",
    ),
    (
        Quick,
        faulty.HandsArgumentsOver,
        "test_tasks_do_not_share_classes",
        "the result changed the program's class",
    ),
    (
        Quick,
        faulty.Copying,
        "test_tasks_do_not_share_classes",
        "the class did not have the attributes of the program|changed the program's class",
    ),
    (
        Quick,
        faulty.CachesFunctionsForGood,
        "test_big_closures_do_not_pile_up",
        "closures of 34000000 bytes, .* holds",
    ),
    (
        Quick,
        faulty.TakesOneAtATime,
        "test_a_task_may_use_the_backends_library",
        "`library_function` must return a function",
    ),
    (
        Quick,
        faulty.HonoursNoCores,
        "test_resources_bound_what_runs_at_once[cores]",
        "[23] tasks with .*ran at once, more than 1",
    ),
    (
        Quick,
        faulty.HonoursNoCores,
        "test_more_than_the_backend_has_is_refused",
        r"Resources\(cores=1000000",
    ),
    (
        Quick,
        faulty.RefusesWithoutSayingWhat,
        "test_more_than_the_backend_has_is_refused",
        r"Resources\(.*ValueError",
    ),
    (Quick, faulty.TakesAnySetting, "test_an_undeclared_setting_is_refused", "DID NOT RAISE"),
    (Quick, faulty.IgnoresRanks, "test_a_function_runs_on_every_rank", "== .*0, 2, 21"),
    (Quick, faulty.BindsNoThreadCounts, "test_cores_set_the_thread_counts", "OMP_NUM_THREADS"),
    (
        Lingering,
        faulty.LeaksAProcess,
        "test_shutdown_leaves_nothing_behind",
        "left behind: process ",
    ),
    (
        Lingering,
        faulty.LeaksAThread,
        "test_shutdown_leaves_nothing_behind",
        "left behind: thread forgotten",
    ),
    (
        Lingering,
        faulty.LeaksAFile,
        "test_shutdown_leaves_nothing_behind",
        "left behind: file /dev/null",
    ),
    (
        Lingering,
        faulty.LeaksATask,
        "test_shutdown_leaves_nothing_behind",
        "left behind: task forgotten",
    ),
    (Lingering, faulty.LeaksAFile, "test_nothing_grows_over_cycles", "left behind: file /dev/null"),
    (
        Lingering,
        faulty.StaysInMemory,
        "test_nothing_grows_over_cycles",
        "4 of 4 backends are still in memory",
    ),
    (
        Quick,
        faulty.FailsUnseen,
        "test_functions_of_any_origin_run[function]",
        "unhandled error on the event loop: .*ZeroDivisionError",
    ),
    (
        Hurried,
        faulty.HangsAtShutdown,
        "test_it_starts_and_stops[await]",
        r"did not end within .*Other tasks:.* in stop: await asyncio.sleep\(60\)",
    ),
    (Hurried, faulty.HangsAtShutdown, "test_functions_of_any_origin_run[function]", "TimeoutError"),
    (
        Hurried,
        faulty.HangsOnAThread,
        "test_it_starts_and_stops[await]",
        r"Other threads:.*thread asyncio_0.* in wait: threading.Event\(\).wait\(3\)",
    ),
    (
        Quick,
        faulty.ShutsDownSlowly,
        "test_an_idle_backend_is_shut_down_quickly",
        r"shutdown\(\) took .*`shutdown_limit`",
    ),
    (
        Quick,
        faulty.WritesHereAtItsStart,
        "test_shutdown_leaves_nothing_behind",
        r"wrote \['started.log'\] into the current directory",
    ),
    (
        Hurried,
        faulty.LeavesTasksAtShutdown,
        "test_shutdown_ends_work_in_flight",
        r"did not end within .*The check waited in.*await driver.finished\(task\)",
    ),
    (
        Quick,
        faulty.CannotBeShutDownTwice,
        "test_it_starts_and_stops[await]",
        "RuntimeError: already shut down",
    ),
    (
        Quick,
        faulty.SaysItIsIdle,
        "test_it_starts_and_stops[await]",
        "after the start, the state is 'IDLE'",
    ),
    (
        Quick,
        faulty.TakesTasksBeforeItsStart,
        "test_use_before_the_start_is_an_error",
        "DID NOT RAISE",
    ),
    (
        Quick,
        faulty.StartsAnother,
        "test_it_starts_and_stops[await]",
        "await returned .*, not the backend",
    ),
    (
        Lingering,
        faulty.LeavesAProcessWhenItsStartFails,
        "test_a_failed_start_leaves_nothing_running",
        "left behind: process ",
    ),
    (
        Quick,
        faulty.ReadyTooEarly,
        "test_it_is_not_ready_too_early",
        "the service was ready before",
    ),
    (Quick, faulty.ReadyTooEarly, "test_a_port_in_use_is_refused", "became ready with 'ready'"),
    (
        Quick,
        faulty.ReadyTooEarly,
        "test_it_is_ready_when_it_listens[tcp]",
        "got 'ready'",
    ),
    (
        Lingering,
        faulty.SetsAVariable,
        "test_it_changes_nothing_of_the_program",
        "the environment variable OMP_NUM_THREADS has changed",
    ),
    (
        Lingering,
        faulty.HandlesASignal,
        "test_it_changes_nothing_of_the_program",
        "after the start: the handler of SIGUSR1 has changed",
    ),
    (
        Lingering,
        faulty.ChangesTheUmask,
        "test_it_changes_nothing_of_the_program",
        "the umask is 027, not 0",
    ),
    (
        Lingering,
        faulty.ChangesTheDirectory,
        "test_it_changes_nothing_of_the_program",
        "the current directory is /, not ",
    ),
    (
        Lingering,
        faulty.AddsToThePath,
        "test_it_changes_nothing_of_the_program",
        "'/of/the/backend' was added to sys.path",
    ),
    (
        Lingering,
        faulty.HandlesForks,
        "test_it_changes_nothing_of_the_program",
        "after the start: tests._support.faulty_backends registered an at-fork handler",
    ),
    (
        Lingering,
        faulty.LeaksAThread,
        "test_it_changes_nothing_of_the_program",
        "after the shutdown: new thread forgotten",
    ),
    (
        Lingering,
        faulty.LeaksAProcess,
        "test_it_changes_nothing_of_the_program",
        "after the shutdown: new process ",
    ),
    (
        Lingering,
        faulty.LeaksAFile,
        "test_it_changes_nothing_of_the_program",
        "after the shutdown: new file /dev/null",
    ),
    (
        Quick,
        faulty.MapsToNothing,
        "test_its_states_map_has_the_canonical_states",
        r"get_task_states_map\(\) must return a StateMapper, got",
    ),
    (
        Quick,
        faulty.WritesHereInATask,
        "test_functions_of_any_origin_run[function]",
        r"wrote \['task.log'\] into the current directory",
    ),
    (
        Quick,
        faulty.NamesNoWorker,
        "test_a_finished_task_holds_its_outcome[function]",
        "must name its host or worker in 'worker', got None",
    ),
    (
        Lingering,
        faulty.IgnoresMemory,
        "test_resources_bound_what_runs_at_once[memory]",
        "3 tasks with .*ran at once, more than 1",
    ),
    (
        Lingering,
        faulty.HasAPathOfItsOwn,
        "test_functions_of_any_origin_run[function]",
        "function triple at .*the worker could not run it",
    ),
    (
        Quick,
        faulty.LosesKeywordsOnOneRoute,
        "test_every_route_passes_arguments",
        "a coroutine function with cores=0: ",
    ),
    (
        Quick,
        faulty.LosesTheEnvironmentOnOneRoute,
        "test_every_route_has_its_environment",
        "a coroutine function with cores=0 must see its environment",
    ),
    (
        Quick,
        faulty.LosesOutputOnOneRoute,
        "test_every_route_keeps_its_output",
        "a coroutine function with cores=0 printed",
    ),
    (
        Quick,
        faulty.ReplacesExceptionsOnOneRoute,
        "test_every_route_keeps_failures_whole",
        "a coroutine function with cores=0 raised a KitError, but",
    ),
    (
        Quick,
        faulty.DropsTracebacks,
        "test_every_route_keeps_failures_whole",
        "the traceback of a function does not show 'LookupError: the reason",
    ),
    (
        Quick,
        faulty.CannotCancelOnOneRoute,
        "test_a_running_task_is_stopped[async_function]",
        "still running: a coroutine function with cores=0, a partial of a coroutine ",
    ),
    (
        Lingering,
        faulty.RunsOneInFiftyTwice,
        "test_each_call_is_executed_exactly_once",
        "6 of 300 calls",
    ),
    (
        Lingering,
        faulty.KeepsEveryResult,
        "test_finished_tasks_are_released",
        "the program keeps .* bytes for .*; `growth_per_task`",
    ),
    (
        Quick,
        faulty.BlocksTheLoopABit,
        "test_a_submission_does_not_block_the_loop[a few tasks]",
        "the loop was blocked for .*`submission_gap`",
    ),
    (
        Hurried,
        faulty.LosesOneCompletion,
        "test_results_belong_to_their_tasks[function]",
        "did not end within .* no terminal state for add",
    ),
    (Quick, faulty.LosesOneCompletion, "test_a_fan_runs", "did not end within"),
    (
        Lingering,
        faulty.LeavesATemporaryDirectory,
        "test_shutdown_leaves_nothing_behind",
        "left behind: temporary session-",
    ),
    (
        Lingering,
        faulty.LeavesATemporaryDirectory,
        "test_functions_of_any_origin_run[function]",
        "left behind: temporary session-",
    ),
)


@pytest.fixture(autouse=True)
def _give_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    for thing in faulty.LEAKED:
        match thing:
            case subprocess.Popen():
                thing.kill()
                thing.wait()
            case threading.Event():
                thing.set()
            case _ if hasattr(thing, "close"):
                thing.close()
    faulty.LEAKED.clear()


@pytest.mark.parametrize(
    ("base", "backend", "check", "message"),
    FAULTS,
    ids=[f"{fault[1].__name__}-{fault[2].removeprefix('test_')}" for fault in FAULTS],
)
def test_a_planted_fault_is_found_and_named(
    base: Kit, backend: type[SmallBackend], check: str, message: str, tmp_path: Path
) -> None:
    kit = kit_on(backend, base)
    kit.work_dir = tmp_path  # a backend that blocks the loop leaves it behind
    outcome = run(kit, check)
    assert outcome.word == "failed"
    assert re.search(message, outcome.text, re.DOTALL), outcome.text


RIGHT: dict[str, type[SmallBackend]] = {
    "test_a_file_is_copied_out": faulty.CopiesOut,
    "test_an_undeclared_setting_is_refused": faulty.KnowsSettings,
    "test_tasks_do_not_share_a_functions_state": faulty.Copying,
    "test_tasks_do_not_share_arguments": faulty.Copying,
    "test_tasks_do_not_share_classes": faulty.UsesTheProtocol,
    "test_a_task_may_use_the_backends_library": SmallBackend,
    "test_every_route_passes_arguments": faulty.TwoRoutes,
    "test_every_route_has_its_environment": faulty.TwoRoutes,
    "test_every_route_keeps_its_output": faulty.TwoRoutes,
    "test_every_route_keeps_failures_whole": faulty.TwoRoutes,
    "test_a_running_task_is_stopped[async_function]": faulty.TwoRoutes,
}
"""Backends without a fault for what the small one's own run of the suite leaves out."""


@pytest.mark.parametrize("check", sorted(RIGHT))
def test_without_the_fault_the_same_check_passes(check: str) -> None:
    outcome = run(kit_on(RIGHT[check], Patient), check)
    assert outcome.word == "passed", outcome.text
