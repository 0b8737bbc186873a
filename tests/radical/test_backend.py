"""Tests of the backend before, and without, a pilot."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from rhapsody.backends import backend_from_options
from rhapsody.backends.discovery import BackendRegistry, discover_backends, get_backend
from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
from rhapsody.errors import BackendUnavailableError
from rhapsody.plugins import UsageError
from rhapsody.resources import Resources
from rhapsody.sdk import OUTPUT_FILES
from rhapsody_radical import descriptions, functions, links, results, schema
from rhapsody_radical.client import raptor
from rhapsody_radical.client.health import Progress
from rhapsody_radical.client.tasks import NEWS, Entry, Tasks
from rhapsody_radical.functions import call_words, completed
from rhapsody_radical.pilot import rp
from rhapsody_radical.pilots import Job
from rhapsody_radical.results import error_of
from rhapsody_radical.translate import command, in_double_quotes
from rhapsody_radical.wire import Worker

CONFIG = {"masters": [{"ranks": 1, "workers": [{"ranks": 1, "worker_type": "DefaultWorker"}]}]}


def test_the_registry_finds_it() -> None:
    assert discover_backends()["radical_pilot"] is True
    assert BackendRegistry.get_backend_class("radical_pilot") is RadicalExecutionBackend
    assert isinstance(get_backend("radical_pilot"), RadicalExecutionBackend)


def test_without_arguments_it_is_this_machine() -> None:
    settings = RadicalExecutionBackend().pilots[0].settings
    assert settings["resource"] == "local.localhost"
    assert settings["exit_on_error"] is False


@pytest.mark.parametrize(
    ("resources", "match"),
    [
        ({"resorce": "local.localhost"}, "no 'resorce'; did you mean 'resource'"),
        ("local.localhost", "must be a dict"),
        ([], "must be a dict"),
        ([{"cores": 1}, 2], "must be a dict"),
        ({"pilots": []}, "must be a dict"),
        ({"pilots": {"cores": 1}}, "'pilots' may be a list of dicts"),
        ({"pilot": [{}]}, "did you mean 'pilots'"),
        ({"pilots": [{"time": 60}]}, "calls it 'runtime', in minutes"),
        ({"qos": "debug"}, "set the variable SBATCH_QOS"),
    ],
)
def test_malformed_resources_are_type_errors(resources: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        RadicalExecutionBackend(resources)


def test_several_pilots_share_the_parameters_next_to_them() -> None:
    pilots = [{"cores": 2}, {"cores": 4, "runtime": 5}]
    made = RadicalExecutionBackend({"runtime": 30, "pilots": pilots})
    options = ["runtime=30", "pilots=[{cores = 2}, {cores = 4, runtime = 5}]"]
    for backend in (made, backend_from_options("radical_pilot", options)):
        assert isinstance(backend, RadicalExecutionBackend)
        settings = [pilot.settings for pilot in backend.pilots]
        assert [(each["cores"], each["runtime"]) for each in settings] == [(2, 30), (4, 5)]
        assert [each["resource"] for each in settings] == ["local.localhost"] * 2


def test_an_invalid_option_does_not_suggest_to_change_a_valid_one() -> None:
    options = ["resource=local.localhost", "account=abc"]
    with pytest.raises(UsageError, match=r"calls it 'project'$"):
        backend_from_options("radical_pilot", options)


@pytest.mark.parametrize("resources", [{"resource": "localhost"}, {"runtime": 0}, {"runtime": 1.5}])
def test_impossible_resources_are_value_errors(resources: Any) -> None:
    with pytest.raises(ValueError, match="resources: "):
        RadicalExecutionBackend(resources)


def test_impossible_settings_are_value_errors() -> None:
    with pytest.raises(ValueError, match="'raptor' or 'executable', got 'threads'"):
        RadicalExecutionBackend(functions="threads")
    with pytest.raises(ValueError, match="function_cores must be an integer of at least 1"):
        RadicalExecutionBackend(function_cores=0)


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"resources": {"cores": 0}}, ValueError, "'cores' must be a number of cores, 1 or more"),
        ({"resources": {"cores": "4"}}, TypeError, "'cores' must be an integer, got '4'"),
        ({"resources": {"cores": 2.5}}, ValueError, "1 or more, got 2.5"),
        ({"resources": {"runtime": True}}, TypeError, "'runtime' must be an integer"),
        ({"resources": {"nodes": -1}}, ValueError, "a number of nodes, 1 or more, got -1"),
        ({"resources": {"uid": "mine"}}, TypeError, "'uid' cannot be set"),
        ({"resources": {"verbos": True}}, TypeError, "did you mean 'verbose'"),
        ({"raptor": "no"}, TypeError, "raptor must be True or False, got 'no'"),
        ({"verbose": "x"}, TypeError, "verbose must be True or False"),
        ({"keep_session": "x"}, TypeError, "keep_session must be True or False"),
        ({"work_dir": 3}, TypeError, "work_dir must be a path, got 3"),
        ({"raptor": False, "raptor_config": CONFIG}, ValueError, "omit one of them"),
        ({"functions": "executable", "raptor_config": CONFIG}, ValueError, "omit one of them"),
    ],
)
def test_invalid_settings_are_refused_at_once(
    settings: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        RadicalExecutionBackend(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"uid": "mine"}, "'uid' cannot be set here"),
        ({"executable": "/bin/false"}, "'executable' cannot be set here"),
        ({"mode": "task.nonsense"}, "'mode' cannot be set here"),
        ({"ranks": "many"}, "'ranks' must be an integer, got 'many'"),
        ({"ranks": 2.5}, "'ranks' must be an integer, got 2.5"),
        ({"stage_on_error": 1}, "'stage_on_error' must be True or False"),
    ],
)
def test_invalid_task_settings_fail_the_task(settings: dict[str, Any], words: str) -> None:
    backend = RadicalExecutionBackend()
    reports: list[Any] = []
    backend.register_callback(lambda task, state: reports.append((task, state)))
    task = {"name": "t", "executable": "true"}
    assert backend.build_task("task.000001", task, settings) is None
    ((task, state),) = reports
    assert state == "FAILED"
    assert isinstance(task["exception"], TypeError)
    assert words in str(task["exception"])


def test_a_backend_of_another_name_has_radical_pilots_states() -> None:
    backend = RadicalExecutionBackend(name="big")
    assert backend.name == "big"
    assert backend.get_task_states_map().RUNNING == "AGENT_EXECUTING"
    assert RadicalExecutionBackend().name == "radical_pilot"


def test_settings_of_every_kind_reach_radical_pilot() -> None:
    settings = {"ranks": 2, "timeout": 5, "pre_exec": ["a"], "tags": {"a": 1}, "named_env": "rp"}
    task = {"name": "t", "executable": "true"}
    built = RadicalExecutionBackend().build_task("task.000001", task, settings)
    assert {key: built[key] for key in settings} == settings


def test_former_names_of_settings_are_todays() -> None:
    settings = {"cpu_processes": 2, "cpu_threads": 3, "gpu_processes": 1}
    task = {"name": "t", "executable": "true"}
    built = RadicalExecutionBackend().build_task("task.000001", task, settings)
    assert (built.ranks, built.cores_per_rank, built.gpus_per_rank) == (2, 3, 1.0)


@pytest.mark.parametrize("task", [{"executable": "true"}, {"function": int}])
def test_staging_that_radical_pilot_refuses_fails_its_task(task: dict[str, Any]) -> None:
    backend, ended = RadicalExecutionBackend(), []
    backend.register_callback(lambda task, state: ended.append(task["exception"]))
    settings = {"input_staging": [{"sauce": "a"}]}
    assert backend.build_task("task.000001", {"name": "t", **task}, settings) is None
    assert "task 't': task_description: \"sauce\" is invalid" in str(ended[0])


def test_a_null_byte_is_refused() -> None:
    description, reports = built(RadicalExecutionBackend(), executable="echo", arguments=["a\0b"])
    assert description is None
    assert "embedded null byte" in str(reports[0][0]["exception"])


def test_raptor_configurations_are_checked() -> None:
    assert descriptions.checked_raptor(CONFIG) == CONFIG
    with pytest.raises(TypeError, match="raptor_config must be"):
        RadicalExecutionBackend(raptor_config={"workers": []})
    with pytest.raises(ValueError, match="a worker for each"):
        RadicalExecutionBackend(raptor_config={"masters": [{"ranks": 1}]})
    with pytest.raises(TypeError, match="did you mean 'worker_type'"):
        RadicalExecutionBackend(raptor_config={"masters": [{"workers": [{"worker_typ": "a"}]}]})
    with pytest.raises(TypeError, match="'ranks' must be an integer, got 'a'"):
        RadicalExecutionBackend(raptor_config={"masters": [{"workers": [{"ranks": "a"}]}]})
    with pytest.raises(TypeError, match="did you mean 'ranks'"):
        RadicalExecutionBackend(raptor_config={"masters": [{"rank": 1, "workers": [{}]}]})


def test_before_the_start_there_is_no_pilot() -> None:
    backend = RadicalExecutionBackend()
    assert backend.state() == "initialized"
    assert backend.pilot_state == "NEW"
    assert backend.get_nodelist() is None
    assert backend.masters == backend.workers == []
    with pytest.raises(BackendUnavailableError, match="await"):
        backend.require_running()
    with pytest.raises(RuntimeError, match="no masters"):
        next(backend.master_selector)


def built(backend: RadicalExecutionBackend, **task: Any) -> tuple[Any, list[Any]]:
    reports: list[Any] = []
    backend.register_callback(lambda task, state: reports.append((task, state)))
    description = {"name": "t", **task}
    return backend.build_task("task.000001", description, {}), reports


def test_an_executable_is_built() -> None:
    description, reports = built(
        RadicalExecutionBackend(), executable="/bin/echo", arguments=["a b", "c"]
    )
    assert isinstance(description, rp.TaskDescription)
    assert description.uid == "task.000001"
    assert description.executable == "/bin/echo"
    assert description.arguments == ["a b", "c"]
    assert reports == []


def test_a_function_is_built() -> None:
    description, _ = built(RadicalExecutionBackend(), function=int, args=("7",))
    assert description.mode == rp.TASK_FUNCTION
    function, args, kwargs = rp.PythonTask.get_func_attr(description.function)
    assert callable(function)
    assert len(args) == 1
    assert kwargs == {}


def test_a_function_without_raptor_is_reported_as_failed() -> None:
    description, reports = built(RadicalExecutionBackend(raptor=False), function=int)
    assert description is None
    ((task, state),) = reports
    assert state == "FAILED"
    assert isinstance(task["exception"], RuntimeError)


def test_a_function_as_a_service_is_reported_as_failed() -> None:
    description, reports = built(RadicalExecutionBackend(), function=int, is_service=True)
    assert description is None
    assert isinstance(reports[0][0]["exception"], ValueError)


def test_commands_are_quoted_for_radical_pilots_scripts() -> None:
    assert command("echo hi", None) == ("/bin/sh", ["-c", "echo hi"])
    assert command("echo $HOME", None) == ("/bin/sh -c 'echo $HOME'", [])
    assert command("printf", ["%s", "it's `id`"]) == ("printf %s 'it'\"'\"'s `id`'", [])
    assert command("cat", [], "in") == ("cat < in", [])
    assert in_double_quotes('a "$b" `c` \\') == 'a \\"\\$b\\" \\`c\\` \\\\'


def test_two_backends_may_pack_their_first_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both, dumps = threading.Barrier(2), cloudpickle.dumps

    def together(value: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return dumps(value)

    monkeypatch.setattr("cloudpickle.dumps", together)
    functions._packed_runner.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: functions._runner(), range(2))
    assert first == second


def raptors(*pilots: Any) -> raptor.Raptors:
    """RAPTOR on some pilots in the client, with no pairs yet."""
    made = raptor.Raptors(list(pilots), lambda *_: None)
    for number, pilot in enumerate(pilots):
        made.found[number] = raptor.Raptor(pilot, {"masters": []}, lambda _: None)
    return made


def client_pilot(number: int, tasks: tuple[str, ...] = ()) -> Any:
    """A pilot in the client, whose task manager knows some tasks."""
    manager = SimpleNamespace(list_tasks=lambda: list(tasks))
    return SimpleNamespace(number=number, uid=f"pilot.{number:04d}", manager=manager)


def pair(uid: str, workers: Any = ({},)) -> raptor.Pair:
    return raptor.Pair(SimpleNamespace(uid=uid), [], {"workers": workers})


def test_a_call_for_a_worker_of_ours_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state of it carries all of it, through every component of RADICAL-Pilot."""
    # With a batch of tasks, the program's own modules are in a file.
    monkeypatch.setattr("rhapsody_radical.functions.own_modules", lambda: None)
    task = completed("task.000001", {"function": sum, "args": ([1, 2],)}, None)
    words, order = call_words(task)
    pilot, sizes = client_pilot(0), []
    for workers in ([{"cores_per_rank": 2}], [{"raptor_class": "MPIWorker"}]):
        made = raptors(pilot)
        made.found[0].config["masters"] = [{"workers": workers}]
        one = raptor.Pair(SimpleNamespace(uid="master"), [], made.found[0].config["masters"][0])
        made.found[0].pairs.append(one)
        sent = dict(words)
        assert made.send(sent, order, pilot) is one
        assert sent["raptor_id"] == "master"
        sizes.append(len(sent["function"]))
    assert sizes[0] < 1500 < sizes[1]


def test_a_raptor_master_of_another_pilot_is_refused() -> None:
    """RADICAL-Pilot would wait for it for ever, on the pilot that the task goes to."""
    first, second = client_pilot(0, ("the program's own",)), client_pilot(1)
    made = raptors(first, second)
    made.found[1].pairs.append(pair("there"))

    def sent(master: str, pilot: Any) -> Any:
        return made.send({"raptor_id": master}, ("order",), pilot)

    assert sent("there", second) is made.found[1].pairs[0]
    with pytest.raises(ValueError, match=r"on pilot pilot.0001.*; set pilot='pilot.0001'"):
        sent("there", first)
    assert sent("the program's own", first) is None
    with pytest.raises(ValueError, match="no RAPTOR master 'typo'; the masters are there"):
        sent("typo", first)


def test_a_task_fits_on_a_pilot_that_has_room_for_it() -> None:
    backend = RadicalExecutionBackend([{"cores": 8}, {"cores": 64}])
    for pilot, cores in zip(backend.pilots, (8, 64), strict=True):
        pilot._config = {"cores_per_node": cores}
    first, second = backend.pilots

    def fits(specific: dict[str, Any], **task: Any) -> list[Any]:
        description = completed("task.000001", {"executable": "true", **task}, specific)
        return [pilot for pilot in backend.pilots if backend._fits(description, pilot)]

    assert fits({}) == [first, second]
    assert fits({"cores_per_rank": 32}) == [second]
    assert fits({}, resources=Resources(cores=32)) == [second]
    assert fits({"cores_per_rank": 100}) == []
    first.settings["cores"], first._config = 1, {"cores_per_node": 1}
    assert fits({}, executable=None, function=int) == [second]


class Held:
    """A backend of two pilots without a client, and what is sent to it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend = RadicalExecutionBackend([{"cores": 1}, {"cores": 1}])
        self.sent: list[tuple[int, str]] = []
        self.ended: list[tuple[str, str]] = []
        connection: Any = SimpleNamespace(directory=directory, closing=False)
        self.backend._connection = connection
        self.backend._commands = Worker("commands")
        self.backend.register_callback(lambda task, state: self.ended.append((task["uid"], state)))
        monkeypatch.setattr(self.backend, "send", self._send)
        for pilot in self.backend.pilots:
            pilot.sandbox = str(directory / pilot.uid)
            os.mkdir(pilot.sandbox)

    def _send(self, name: str, number: int, batch: Any) -> None:
        assert name == "submit"
        self.sent += [(number, uid) for uid, _, _ in batch]

    def submit(self, count: int, **more: Any) -> list[Job]:
        tasks = [
            completed(f"task.{number}", {"executable": "true", **more}, None)
            for number in range(count)
        ]
        jobs = [Job(task, self.backend.pilots[0]) for task in tasks]
        self.backend.open_tasks.update((job.uid, job) for job in jobs)
        self.do(partial(self.backend._submit, jobs))
        return jobs

    def do(self, function: Any = lambda: None) -> None:
        """Call a function on the thread for commands, after everything before it."""
        assert self.backend._commands is not None
        self.backend._commands.submit(function).result(10)

    def activate(self, number: int) -> None:
        self.backend._pilots.note(self.backend.pilots[number], "PMGR_ACTIVE", time.time())
        self.backend._reconsider_held()
        self.do()


def test_held_tasks_are_sent_when_a_pilot_is_active_and_when_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(tmp_path, monkeypatch)
    jobs = held.submit(5)
    assert held.sent == []
    held.activate(1)
    assert held.sent == [(1, "task.0"), (1, "task.1")]
    held.backend.end(jobs[0], "DONE")
    held.do()
    assert held.sent[2:] == [(1, "task.2")]
    held.activate(0)
    assert held.sent[3:] == [(0, "task.3"), (0, "task.4")]


def test_a_held_task_that_is_cancelled_is_never_sent_and_has_no_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(tmp_path, monkeypatch)
    (job,) = held.submit(1)
    held.backend._cancel(job)
    held.do()
    held.activate(0)
    assert held.ended == [("task.0", "CANCELED")]
    assert held.sent == []
    assert list(Path(held.backend.pilots[0].sandbox).iterdir()) == []


def test_a_task_that_is_cancelled_before_it_runs_leaves_no_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(tmp_path, monkeypatch)
    held.activate(0)
    jobs = held.submit(2, stdin="text")
    sandbox = Path(held.backend.pilots[0].sandbox)
    assert sorted(each.name for each in sandbox.iterdir()) == ["task.0", "task.1"]
    jobs[1].begin("")
    for job in jobs:
        job.cancelled = True
        held.backend.end(job, "CANCELED")
    assert [each.name for each in sandbox.iterdir()] == ["task.1"]


def test_held_tasks_are_lost_with_the_last_pilot_and_each_pilot_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(tmp_path, monkeypatch)
    monkeypatch.setattr(held.backend, "state", lambda: "running")
    held.activate(0)
    held.submit(5)
    for pilot in held.backend.pilots:
        held.backend._pilots.ended(pilot, "FAILED: no power")
        held.do()
    assert sorted(held.ended) == [(f"task.{number}", "FAILED") for number in range(5)]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "pilot pilot.0000 on local.localhost FAILED: no power; tasks lost: 2",
        "pilot pilot.0001 on local.localhost FAILED: no power; tasks lost: 0",
    ]


def test_it_keeps_its_arguments_and_callback_under_their_documented_names() -> None:
    pilots = {"resource": "local.localhost", "cores": 2}
    backend = RadicalExecutionBackend(pilots, CONFIG)
    assert backend.resources == pilots
    assert backend.raptor_config == CONFIG
    assert RadicalExecutionBackend().raptor_config == {}

    def called(task: Any, state: Any, service_callback: Any = None) -> None: ...

    assert backend._callback_func is None
    backend.register_callback(called)
    assert backend._callback_func is called


def test_a_built_task_is_kept_in_tasks() -> None:
    backend = RadicalExecutionBackend()
    description, _ = built(backend, executable="/bin/true")
    assert backend.tasks["task.000001"] is description
    failed, _ = built(RadicalExecutionBackend(raptor=False), function=int)
    assert failed is None
    assert RadicalExecutionBackend().tasks == {}


def test_masters_are_asked_for_again_after_there_was_none() -> None:
    backend = RadicalExecutionBackend()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no masters"):
            next(backend.master_selector)
    one: Any = SimpleNamespace(uid="one")
    backend.pilots[0].pairs = [(one, [])]
    assert [next(backend.master_selector) for _ in range(2)] == ["one", "one"]


def test_raptor_is_set_up_after_the_start() -> None:
    with pytest.raises(BackendUnavailableError, match="has not been started"):
        RadicalExecutionBackend().setup_raptor_mode(CONFIG)
    with pytest.raises(ValueError, match="omit one of them"):
        RadicalExecutionBackend(functions="executable").setup_raptor_mode(CONFIG)


def test_a_lost_pair_has_a_reason() -> None:
    master = SimpleNamespace(uid="m", state="FAILED", exception="OSError('disk')", stderr="full\n")
    pair = raptor.Pair(master, [], descriptions.default_raptor_config(2)["masters"][0])
    assert pair.problem() == "RAPTOR master m ended (FAILED): OSError('disk'): full"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("", ""),
        ("\n", "\n"),
        ("own\nsrun: error: node1: task 0: Exited with exit code 3\n", "own\n"),
        ("srun: error: node1: tasks 0-2,4: Killed\nsrun: Terminating StepId=5.0", ""),
        (
            "a\n/p/t.1.exec.sh: line 64:  4262 Killed      /bin/sh -c 'x'\n"
            "srun: error: n: task 0: Killed\n",
            "a\n",
        ),
        ("srun: error: n: task 0: Killed\nown", "srun: error: n: task 0: Killed\nown"),
        ("srun: error: Unable to create step", "srun: error: Unable to create step"),
    ],
)
def test_lines_of_launchers_do_not_end_the_standard_error(
    text: str, left: str, tmp_path: Path
) -> None:
    (tmp_path / OUTPUT_FILES[0]).touch()
    (tmp_path / OUTPUT_FILES[1]).write_text(text)
    pilot = RadicalExecutionBackend().pilots[0]
    job = Job(completed("a", {"executable": "true", "sandbox": str(tmp_path)}, None), pilot)
    results.collect_output(job)
    assert job.task["stderr"] == left


def test_what_failed_in_radical_pilot_is_in_the_standard_error_too() -> None:
    task = completed("task.000001", {"executable": "true", "stderr": "said\n"}, None)
    error = error_of(task, "RuntimeError('no launcher')", "no launcher")
    assert "no launcher" in str(error)
    assert task["stderr"] == "said\nRuntimeError('no launcher')"


# Links, as documented.


def test_a_file_from_outside_is_transferred() -> None:
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {}}
    backend = RadicalExecutionBackend()
    given = backend.link_explicit_data_deps(dst_task=target, file_path="/data/in.txt")
    expected = {"source": "/data/in.txt", "target": "task:///in.txt", "action": schema.TRANSFER}
    assert given == expected
    assert target["task_backend_specific_kwargs"]["input_staging"] == [expected]


def test_a_tasks_file_is_linked() -> None:
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {}}
    backend = RadicalExecutionBackend()
    given = backend.link_explicit_data_deps({"uid": "a"}, target, file_name="out")
    assert given == {"source": "pilot:///a/out", "target": "task:///out", "action": schema.LINK}
    directory = backend.link_explicit_data_deps(None, target, file_path="/data/set/")
    assert directory["target"] == "task:///set"


def test_a_link_needs_a_name_and_a_source() -> None:
    backend, target = RadicalExecutionBackend(), {"uid": "b", "task_backend_specific_kwargs": {}}
    with pytest.raises(ValueError, match="either file_path, or both"):
        backend.link_explicit_data_deps({"uid": "a"}, target)
    with pytest.raises(ValueError, match="src_task"):
        backend.link_explicit_data_deps(None, target, file_name="out")


def test_an_implicit_link_names_its_source() -> None:
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {"pre_exec": ["date"]}}
    links.implicit({"uid": "a.1"}, target)
    first, *commands = target["task_backend_specific_kwargs"]["pre_exec"]
    assert first == "date"
    assert commands[0] == "export SRC_TASK_ID=a.1"
    assert commands[1].startswith("export SRC_TASK_SANDBOX=")


def test_an_implicit_link_leaves_the_tasks_own_variables_alone(tmp_path: Path) -> None:
    (tmp_path / "a.1").mkdir()
    (tmp_path / "a.1" / "it's made").touch()
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {"pre_exec": "true"}}
    links.implicit({"uid": "a.1"}, target)
    lines = [*target["task_backend_specific_kwargs"]["pre_exec"], 'echo "$src $name"', "ls"]
    done = subprocess.run(
        ["sh", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**os.environ, "RP_PILOT_SANDBOX": str(tmp_path), "src": "mine", "name": "too"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["mine too", "a.1", "it's made"]


def test_a_thread_does_what_it_was_given_and_refuses_more_after_its_end() -> None:
    worker, done = Worker("worker"), []
    future = worker.submit(lambda: 1)
    worker.post(lambda: done.append(2))
    worker.stop()
    assert (future.result(10), done) == (1, [2])
    with pytest.raises(RuntimeError, match="thread worker was stopped"):
        worker.submit(lambda: 3)
    worker.post(lambda: done.append(4))
    assert done == [2]


class Refusing:
    """A task manager that takes one batch, and refuses the next."""

    def __init__(self) -> None:
        self.batches = 0

    def submit_tasks(self, descriptions: list[Any]) -> list[Any]:
        self.batches += 1
        if self.batches == 2:
            raise RuntimeError("no")
        return [SimpleNamespace(uid=each.uid, slots=None) for each in descriptions]


def test_reports_do_not_wait_for_tasks_that_were_refused_or_lost_with_their_pilot() -> None:
    sent: list[tuple[str, float]] = []

    def send(name: str, *parts: Any, within: float = 0.0) -> None:
        sent.append((name, within))

    def batch(name: str, count: int) -> list[tuple[str, dict[str, Any], Any]]:
        return [(f"{name}.{number}", {"executable": "true"}, None) for number in range(count)]

    pilot: Any = SimpleNamespace(manager=Refusing(), ended=False, number=0, progress=Progress())
    tasks = Tasks("session", [pilot], raptor.Raptors([pilot], lambda *_: None), send)
    tasks.submit(0, batch("lost", 50))
    tasks.drop(pilot)
    tasks.submit(0, batch("refused", 50))
    tasks.submit(0, batch("alone", 1))
    entry = tasks.by_uid.get("alone.0")
    assert entry is not None
    tasks.handle_state(entry, entry.handle, schema.AGENT_EXECUTING)
    assert sent[-1] == ("running", 0.0)


def test_outcomes_whose_message_was_lost_come_with_their_group() -> None:
    said: list[Any] = []
    pilot: Any = SimpleNamespace(forget=lambda uid: None)
    tasks = Tasks("session", [pilot], SimpleNamespace(), lambda *what, within: said.append(what))  # type: ignore[arg-type]
    outcomes = [["call.0", "result", None, False], ["call.1", None, "ValueError('a')", False]]
    group = Entry("group", pilot, SimpleNamespace(return_value=json.dumps(outcomes)))
    group.calls = [Entry(f"call.{n}", pilot, group=group) for n in range(2)]
    tasks.by_uid.update((each.uid, each) for each in (group, *group.calls))
    tasks.receive_news("state_pubsub", {"cmd": NEWS, "arg": [outcomes[0]]})
    tasks.handle_state(group, group.handle, "DONE")
    done, failed = (0, None, None, "result"), (1, "ValueError('a')", "ValueError('a')", None)
    assert said == [
        ("running", "call.0", "AGENT_EXECUTING", ""),
        ("end", "call.0", "DONE", "", done),
        ("end", "call.1", "FAILED", "", failed),
    ]
    assert not tasks.open()


@pytest.mark.parametrize(
    ("workers", "size"), [([{}], 256), ([{"ranks": 2}], 31), ([{"worker_type": "MPIWorker"}], 1)]
)
def test_several_workers_get_smaller_groups_and_others_none(
    workers: list[dict[str, Any]], size: int
) -> None:
    raptors = raptor.Raptors([], lambda *_: None)
    config = {"masters": [{"workers": workers}]}
    raptors.found[0] = SimpleNamespace(config=config)  # type: ignore[assignment]
    assert raptors.group_size(SimpleNamespace(number=0), 1000) == size  # type: ignore[arg-type]
