"""The conformance kit finds what is wrong: a backend with each fault, and what the kit says."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from rhapsody.testing import ConformanceError
from tests.core import faulty_backends as faulty
from tests.core.kits import Hurried, Lingering, Patient, Quick, Scope, kit_on, prove
from tests.core.small_backend import SmallBackend

WHEN_RUNNING = "RUNNING is reported when the work begins, not while it waits, not at its end"
UNCHANGED = "a backend changes nothing of the program that uses it: "
WHOLE = "a failure keeps its type, arguments, cause and place on every route: "
FAULTS: tuple[tuple[type[SmallBackend], str, str], ...] = (
    (
        faulty.CallsBackTwice,
        "test_each_task_is_reported_terminal_exactly_once",
        "exactly one terminal callback per task: task 'add",
    ),
    (
        faulty.SaysItsEndInWords,
        "test_its_end_is_seconds_or_none",
        "the time until its end is None or a number of seconds, 0 or more: "
        "seconds_left gave '10 min'",
    ),
    (
        faulty.NeverCallsBack,
        "test_each_task_is_reported_terminal_exactly_once",
        "exactly one terminal callback per task: TimeoutError: ",
    ),
    (
        faulty.ReportsAnUnknownStateFromAThread,
        "test_every_reported_state_is_known",
        "every reported state is known to get_task_states_map(): "
        "task 'add_async' was reported 'FINISHED'",
    ),
    (
        faulty.ReportsRunningAfterTheEnd,
        "test_it_runs_functions",
        "nothing is reported after a task's terminal state: "
        "task 'add' was reported RUNNING after DONE",
    ),
    (
        faulty.NeedsTheFirstAttempt,
        "test_what_another_backend_has_failed_goes_on_here",
        "a task that failed on another backend continues here: ",
    ),
    (
        faulty.ReportsRunningWhileItWaits,
        "test_running_is_reported_when_the_work_begins",
        f"{WHEN_RUNNING}: of 8 tasks 'ticking function' that were handed over at once, 4 were "
        "reported RUNNING, and the work of 1 had begun",
    ),
    (
        faulty.ReportsRunningAtTheEnd,
        "test_running_is_reported_when_the_work_begins",
        f"{WHEN_RUNNING}: of 8 tasks 'ticking function' that were handed over at once, 0 were "
        "reported RUNNING, and the work of ",
    ),
    (
        faulty.ReportsTasksNobodySubmitted,
        "test_it_runs_functions",
        "the callback names tasks that were submitted: 'another' was not",
    ),
    (
        faulty.ChangesUids,
        "test_each_task_is_reported_terminal_exactly_once",
        "exactly one terminal callback per task: not done within 0.6 s (`time_limit`); while ",
    ),
    (
        faulty.ChangesSomeUids,
        "test_it_runs_functions",
        "the callback names tasks that were submitted: 'driver-",
    ),
    (
        faulty.LosesResults,
        "test_a_finished_task_holds_its_results",
        "a finished task's dict holds its results: a DONE function has no ['return_value']",
    ),
    (faulty.LosesStdout, "test_a_string_is_run_by_a_shell", "a string is run by a shell"),
    (
        faulty.LosesStdout,
        "test_a_failed_executable_says_why",
        "a failed executable is a TaskFailedError with code and stderr: its stdout is ''",
    ),
    (
        faulty.CutsOutput,
        "test_big_output_comes_whole",
        "big output is complete, on both streams at once: of 200003 characters to stdout "
        "65536 came",
    ),
    (
        faulty.PrintsElsewhere,
        "test_a_running_program_can_be_watched",
        "a future says since when a program runs, and what it has printed: not done "
        "within 0.6 s (`time_limit`); while waiting for 'first' in `stdout_path`, ",
    ),
    (
        faulty.MixesTheStreams,
        "test_the_two_streams_are_kept_apart",
        "stdout and stderr are kept",
    ),
    (
        faulty.IgnoresExitCodes,
        "test_an_exit_code_fails_the_task",
        "a non-zero exit code is FAILED, with exit_code and stderr",
    ),
    (
        faulty.RunsListsThroughAShell,
        "test_a_list_is_run_without_a_shell",
        "a list is run without",
    ),
    (
        faulty.LosesTheEnvironment,
        "test_the_environment_is_added",
        "the environment given is added",
    ),
    (
        faulty.StaysInItsSandbox,
        "test_it_runs_where_it_is_told",
        "an executable with `cwd` runs there, and its sandbox stays: 'pwd' with cwd=",
    ),
    (
        faulty.LeavesFilesBesideTheUsers,
        "test_it_runs_where_it_is_told",
        "an executable with `cwd` runs there, and its sandbox stays: beside the user's file ",
    ),
    (
        faulty.MakesWhatIsMissing,
        "test_a_missing_directory_fails",
        "a missing `cwd` fails the task, and the error names it: 'pwd' with cwd=",
    ),
    (
        faulty.SharesOneSandbox,
        "test_each_executable_has_its_own_directory",
        "each executable runs in a directory of its own: ",
    ),
    (
        faulty.CopiesNothingOut,
        "test_a_file_is_copied_out",
        "a file that a task left can be copied out: the copy holds ''",
    ),
    (
        faulty.CopiesOutWhatIsOutside,
        "test_a_file_is_copied_out",
        "a file that a task left can be copied out: for 'never' it raised FileNotFoundError(2",
    ),
    (
        faulty.MakesPublicSandboxes,
        "test_a_sandbox_is_private",
        "sandboxes are where the task says and private: the mode of ",
    ),
    (
        faulty.IgnoresCancel,
        "test_a_running_executable_is_stopped",
        "a running executable is really stopped: not done within",
    ),
    (
        faulty.CancelsInNameOnly,
        "test_a_running_executable_is_stopped",
        "a running executable is really stopped: "
        "a executable was reported CANCELED while its work goes on",
    ),
    (
        faulty.CancelsWhatHasEnded,
        "test_an_unknown_uid_is_not_cancelled",
        "cancel_task of an unknown uid is False: it gave True",
    ),
    (
        faulty.MangleExceptions,
        "test_an_exception_keeps_type_and_message",
        "an exception keeps its type, message and attributes: a KitError came back as "
        "RuntimeError(",
    ),
    (
        faulty.BlocksTheLoopAWhile,
        "test_the_loop_is_not_held_up_by_tasks",
        "submitting and running do not block the loop: ",
    ),
    (
        faulty.BlocksTheLoopForGood,
        "test_it_runs_functions",
        "a function runs with positional arguments, keywords and defaults: "
        "the loop was blocked for more than",
    ),
    (
        faulty.BlocksTheLoopAtShutdown,
        "test_the_loop_is_not_held_up_by_start_and_shutdown",
        "start and shutdown do not block the loop: ",
    ),
    (
        faulty.WaitsForTheEnd,
        "test_submitting_does_not_wait_for_the_end",
        "submit_tasks returns when the tasks are accepted, not when they ended: not done",
    ),
    (
        faulty.RaisesForOneBadTask,
        "test_one_bad_task_does_not_spoil_its_batch",
        "one task's problem is its FAILED callback, not a raise of submit_tasks: "
        "ValueError: a bad task",
    ),
    (
        faulty.EmptiesTheBatch,
        "test_the_batch_is_left_as_it_was",
        "the list of submitted tasks is not changed: of a list of 9 ",
    ),
    (
        faulty.ChangesArguments,
        "test_arguments_are_left_as_they_were",
        "arguments are not changed by the backend: the caller's arguments were ",
    ),
    (
        faulty.CachesFunctionsForGood,
        "test_tasks_do_not_share_a_functions_state",
        "a function's own state is as it was when the function was called: call 2 of a "
        "function with a closure gave [0, 1], not [1]",
    ),
    (
        faulty.HandsArgumentsOver,
        "test_tasks_do_not_share_arguments",
        "an argument is as it was in the program, whatever other tasks did: call 2 with one "
        "list gave ",
    ),
    (
        faulty.CachesFunctionsForGood,
        "test_big_closures_do_not_pile_up",
        "big closures, one after the other, use bounded memory: after ",
    ),
    (
        faulty.TakesOneAtATime,
        "test_a_task_may_use_the_backends_library",
        "a function may use the library behind the backend inside a task: the function of "
        "`library_function` must return something true: it gave ",
    ),
    (
        faulty.HonoursNoCores,
        "test_cores_bound_what_runs_at_once",
        "no more tasks run at once than their cores allow: on 2 cores 4 tasks of one core",
    ),
    (
        faulty.HonoursNoCores,
        "test_more_than_there_is_is_refused",
        "a task that needs more than there is fails with CapabilityError: Resources(",
    ),
    (
        faulty.RefusesWithoutSayingWhat,
        "test_more_than_there_is_is_refused",
        "a task that needs more than there is fails with CapabilityError: Resources(",
    ),
    (
        faulty.TakesAnySetting,
        "test_an_undeclared_setting_is_refused",
        "a setting that is not declared is refused before the task is submitted: a task with",
    ),
    (
        faulty.BindsNoThreadCounts,
        "test_cores_set_the_thread_counts",
        "an executable's thread-count variables follow its cores: with 2 cores",
    ),
    (
        faulty.LeaksAProcess,
        "test_shutdown_leaves_nothing_behind",
        "shutdown leaves nothing behind: left behind: process ",
    ),
    (
        faulty.LeaksAThread,
        "test_shutdown_leaves_nothing_behind",
        "shutdown leaves nothing behind: left behind: thread forgotten",
    ),
    (
        faulty.LeaksAFile,
        "test_shutdown_leaves_nothing_behind",
        "shutdown leaves nothing behind: left behind: file /dev/null",
    ),
    (
        faulty.LeaksATask,
        "test_shutdown_leaves_nothing_behind",
        "shutdown leaves nothing behind: left behind: task forgotten",
    ),
    (
        faulty.LeaksAFile,
        "test_nothing_grows_over_cycles",
        "nothing grows over start and stop cycles: after 4 cycles there are also file",
    ),
    (
        faulty.StaysInMemory,
        "test_nothing_grows_over_cycles",
        "nothing grows over start and stop cycles: 4 of 4 backends that were shut down are ",
    ),
    (
        faulty.FailsUnseen,
        "test_it_runs_functions",
        "no error on the loop goes unreported: Exception in callback",
    ),
    (faulty.HangsAtShutdown, "test_shutdown_twice_is_harmless", "shutdown may be called twice"),
    (faulty.HangsAtShutdown, "test_it_runs_functions", "shutdown() ends: not within"),
    (
        faulty.ShutsDownSlowly,
        "test_shutdown_does_not_take_long",
        "an idle backend is shut down within `shutdown_limit`: it took ",
    ),
    (
        faulty.WritesHereAtItsStart,
        "test_the_current_directory_is_left_alone",
        "nothing is written into the current directory: it left ['started.log'] in ",
    ),
    (
        faulty.LeavesTasksAtShutdown,
        "test_shutdown_ends_work_in_flight",
        "shutdown ends all running work, each task once: not done within",
    ),
    (
        faulty.CannotBeShutDownTwice,
        "test_shutdown_twice_is_harmless",
        "shutdown may be called twice, and at once: RuntimeError: already shut down",
    ),
    (
        faulty.SaysItIsIdle,
        "test_its_state_is_a_known_word",
        "state() is one of the five words, and may be awaited: it said ['IDLE']",
    ),
    (
        faulty.TakesTasksBeforeItsStart,
        "test_use_before_start_says_to_await_it",
        "use before the start is an error that asks to await the backend: submit_tasks raised",
    ),
    (
        faulty.StartsAnother,
        "test_awaiting_starts_it_and_gives_it_back",
        "awaiting a backend starts it and returns it: await gave ",
    ),
    (
        faulty.LeavesAProcessWhenItsStartFails,
        "test_a_failed_start_leaves_nothing_running",
        "a failed start leaves nothing running: left behind: process ",
    ),
    (
        faulty.ReadyTooEarly,
        "test_it_is_not_ready_too_early",
        "a service is not reported as ready before it is: it was ready before it had said so",
    ),
    (
        faulty.ReadyTooEarly,
        "test_a_port_in_use_is_refused",
        "`ready='tcp:PORT'` is refused if something listens there: its readiness is 'ready'",
    ),
    (
        faulty.ReadyTooEarly,
        "test_it_is_given_a_free_port",
        "`ready='tcp'` gives the service a free port, or is a CapabilityError: its readiness",
    ),
    (
        faulty.SetsAVariable,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after its start the variable OMP_NUM_THREADS is another",
    ),
    (
        faulty.HandlesASignal,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after its start the handler of SIGUSR1 is another",
    ),
    (
        faulty.ChangesTheUmask,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after a few tasks the umask is 027, not 0",
    ),
    (
        faulty.ChangesTheDirectory,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after its shutdown the current directory is /, not ",
    ),
    (
        faulty.AddsToThePath,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after its start sys.path has '/of/the/backend'",
    ),
    (
        faulty.HandlesForks,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after its start tests.core.faulty_backends has an at-fork handler",
    ),
    (
        faulty.LeaksAThread,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after its shutdown there is thread forgotten",
    ),
    (
        faulty.LeaksAProcess,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after its shutdown there is process ",
    ),
    (
        faulty.LeaksAFile,
        "test_it_changes_nothing_of_the_program",
        f"{UNCHANGED}after its shutdown there is file /dev/null",
    ),
    (
        faulty.MapsToNothing,
        "test_its_states_map_has_the_canonical_states",
        "get_task_states_map() is a StateMapper with the four canonical states: it is {",
    ),
    (
        faulty.WritesHereInATask,
        "test_it_runs_functions",
        "nothing is written into the current directory: it left ['task.log'] in ",
    ),
    (
        faulty.NamesNoWorker,
        "test_the_worker_is_named",
        "the worker that ran a task is named: the description of a function that ended must have ",
    ),
    (
        faulty.IgnoresMemory,
        "test_memory_bounds_what_runs_at_once",
        "no more tasks run at once than their memory allows: with 1073741824 bytes of memory "
        "(`memory`) 3 tasks of 1073741824 bytes ran at once",
    ),
    (
        faulty.HasAPathOfItsOwn,
        "test_modules_next_to_the_script_are_imported",
        "modules next to the program's script are imported where functions run: a function of a ",
    ),
    (
        faulty.LosesKeywordsOnOneRoute,
        "test_every_route_passes_arguments_and_keywords",
        "every form of call receives its arguments and keywords, on every route: "
        "a coroutine function with cores=0 was called with ",
    ),
    (
        faulty.LosesTheEnvironmentOnOneRoute,
        "test_every_route_has_its_environment",
        "every form of call sees its `environment`, or is refused: a coroutine function with "
        "cores=0 with environment=",
    ),
    (
        faulty.LosesOutputOnOneRoute,
        "test_every_route_keeps_what_is_printed",
        "printed output is kept for every form of call: a coroutine function with cores=0 printed",
    ),
    (
        faulty.ReplacesExceptionsOnOneRoute,
        "test_every_route_keeps_failures_whole",
        f"{WHOLE}a coroutine function with cores=0 raised KitError('failure 11', 7): ",
    ),
    (
        faulty.DropsTracebacks,
        "test_every_route_keeps_failures_whole",
        f"{WHOLE}the failure of a function does not show its cause, 'LookupError: the reason",
    ),
    (
        faulty.CannotCancelOnOneRoute,
        "test_every_route_can_be_cancelled",
        "every form of call is stopped while it runs, on every route: a coroutine function with "
        "cores=0, a partial of a coroutine function with cores=0, a coroutine method with cores=0: "
        "reported CANCELED while the work goes on",
    ),
    (
        faulty.RunsOneInFiftyTwice,
        "test_each_call_is_executed_exactly_once",
        "each of several hundred calls is executed exactly once: 6 of 300 calls were not, such as ",
    ),
    (
        faulty.KeepsEveryResult,
        "test_finished_tasks_are_given_up",
        "little memory is kept for a finished task, in the program and on workers: for each of ",
    ),
    (
        faulty.BlocksTheLoopABit,
        "test_a_submission_takes_little_of_the_loop",
        "no submission blocks the loop for long in total: a submission of one task of each kind",
    ),
    (
        faulty.LosesOneCompletion,
        "test_results_belong_to_their_tasks",
        "a batch of functions runs whatever the order in which they end: TimeoutError: 99 of 100 "
        "tasks ended, then nothing was reported for ",
    ),
    (
        faulty.LosesOneCompletion,
        "test_a_fan_runs",
        "a wide fan runs, each task once: 999 of 1000 tasks ended, then none for ",
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


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize(
    ("backend", "check", "message"),
    FAULTS,
    ids=[f"{backend.__name__}-{check.removeprefix('test_')}" for backend, check, _ in FAULTS],
)
def test_a_planted_fault_is_found_and_its_rule_named(
    backend: type[SmallBackend], check: str, message: str, scope: Scope, tmp_path: Path
) -> None:
    # What is found at the end of the time limit is found soon, the rest on a busy machine too.
    base: type[Quick] = Quick
    if any(rule in message for rule in ("leaves nothing", "nothing grows", UNCHANGED)):
        base = Lingering
    elif any(words in message for words in ("not done", "not within", "for more than")):
        base = Hurried
    elif any(
        words in message
        for words in (
            "several hundred",
            "finished task",
            "in total",
            "tasks ended",
            "memory allows",
            "script are",
        )
    ):
        base = Lingering
    kit = kit_on(backend, base, scope)
    type(kit).work_dir = tmp_path  # one that blocks the loop for good leaves it behind
    with pytest.raises(ConformanceError) as raised:
        prove(kit, check)
    assert str(raised.value).startswith(message)


def test_a_temporary_directory_of_one_life_is_found() -> None:
    kit = kit_on(faulty.LeavesATemporaryDirectory, Lingering)
    with pytest.raises(ConformanceError, match=r"shutdown leaves nothing behind.*session-"):
        prove(kit, "test_shutdown_leaves_nothing_behind")


@pytest.mark.parametrize("scope", get_args(Scope))
def test_a_temporary_directory_is_found_at_the_end_of_any_check(scope: Scope) -> None:
    kit = kit_on(faulty.LeavesATemporaryDirectory, Lingering, scope)
    with pytest.raises(ConformanceError, match=r"nothing is left in the temporary.*session-"):
        prove(kit, "test_it_runs_functions")


def test_a_file_that_a_backend_writes_again_is_found_too(tmp_path: Path) -> None:
    Path("started.log").touch()  # as the first try of a check leaves it, which is made again
    kit = kit_on(faulty.WritesHereAtItsStart)
    with pytest.raises(ConformanceError, match=r"started\.log"):
        prove(kit, "test_the_current_directory_is_left_alone")


RIGHT: dict[str, type[SmallBackend]] = {
    "test_a_file_is_copied_out": faulty.CopiesOut,
    "test_an_undeclared_setting_is_refused": faulty.KnowsSettings,
    "test_tasks_do_not_share_a_functions_state": faulty.Copying,
    "test_tasks_do_not_share_arguments": faulty.Copying,
    "test_a_task_may_use_the_backends_library": SmallBackend,
    "test_every_route_passes_arguments_and_keywords": faulty.TwoRoutes,
    "test_every_route_has_its_environment": faulty.TwoRoutes,
    "test_every_route_keeps_what_is_printed": faulty.TwoRoutes,
    "test_every_route_keeps_failures_whole": faulty.TwoRoutes,
    "test_every_route_can_be_cancelled": faulty.TwoRoutes,
}
"""Backends without a fault for what the small one's own run of the kit leaves out."""


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("check", sorted(RIGHT))
def test_without_the_fault_the_same_check_passes(check: str, scope: Scope) -> None:
    prove(kit_on(RIGHT[check], Patient, scope), check)
