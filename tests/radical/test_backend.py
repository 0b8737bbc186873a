"""The backend without a pilot: built tasks, held tasks and use before the start."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
from rhapsody.errors import BackendUnavailableError
from rhapsody.resources import Resources
from rhapsody_radical.functions import completed
from rhapsody_radical.pilot import rp
from rhapsody_radical.pilots import PilotTask

CONFIG = {"masters": [{"ranks": 1, "workers": [{"ranks": 1, "worker_type": "DefaultWorker"}]}]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"uid": "mine"}, "'uid' cannot be set here"),
        ({"executable": "/bin/false"}, "'executable' cannot be set here"),
        ({"mode": "task.nonsense"}, "'mode' cannot be set here"),
        ({"ranks": "many"}, '"ranks" - expected type'),
        ({"rank": 2}, "task 't': task_description has no 'rank'; did you mean 'ranks'"),
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


def test_a_backend_with_another_name_has_the_same_states() -> None:
    backend = RadicalExecutionBackend(name="big")
    assert backend.name == "big"
    assert backend.get_task_states_map().RUNNING == "AGENT_EXECUTING"
    assert RadicalExecutionBackend().name == "radical_pilot"


def test_settings_of_every_kind_reach_radical_pilot() -> None:
    settings = {"ranks": 2, "timeout": 5, "pre_exec": ["a"], "tags": {"a": 1}, "named_env": "rp"}
    task = {"name": "t", "executable": "true"}
    built = RadicalExecutionBackend().build_task("task.000001", task, settings)
    assert {key: built[key] for key in settings} == settings


def test_former_names_of_settings_are_converted() -> None:
    settings = {"cpu_processes": 2, "cpu_threads": 3, "gpu_processes": 1}
    task = {"name": "t", "executable": "true"}
    built = RadicalExecutionBackend().build_task("task.000001", task, settings)
    assert (built.ranks, built.cores_per_rank, built.gpus_per_rank) == (2, 3, 1.0)


def test_states_can_be_reported_by_the_former_name_of_the_callback() -> None:
    backend, reports = RadicalExecutionBackend(), []
    backend.register_callback(lambda task, state: reports.append((task["uid"], state)))
    backend._callback_func({"uid": "task.000001"}, "DONE")
    assert reports == [("task.000001", "DONE")]


def test_the_args_of_a_command_are_its_arguments() -> None:
    backend = RadicalExecutionBackend()
    task = {"name": "t", "executable": "echo", "args": ["a", 1]}
    built = backend.build_task("task.000001", task, {})
    assert (built.executable, built.arguments) == ("echo", ["a", "1"])
    other = backend.build_task("task.000002", {**task, "arguments": ["b"]}, {})
    assert other.arguments == ["b"]
    assert task["args"] == ["a", 1]


@pytest.mark.parametrize("task", [{"executable": "true"}, {"function": int}])
def test_staging_that_radical_pilot_rejects_fails_the_task(task: dict[str, Any]) -> None:
    backend, ended = RadicalExecutionBackend(), []
    backend.register_callback(lambda task, state: ended.append(task["exception"]))
    settings = {"input_staging": [{"sauce": "a"}]}
    assert backend.build_task("task.000001", {"name": "t", **task}, settings) is None
    assert "task 't': task_description: description: \"sauce\" is invalid" in str(ended[0])


def test_a_null_byte_in_a_command_is_rejected() -> None:
    description, reports = built(RadicalExecutionBackend(), executable="echo", arguments=["a\0b"])
    assert description is None
    assert "contains a null byte" in str(reports[0][0]["exception"])


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


def test_a_function_fails_without_raptor() -> None:
    description, reports = built(RadicalExecutionBackend(raptor=False), function=int)
    assert description is None
    ((task, state),) = reports
    assert state == "FAILED"
    assert isinstance(task["exception"], RuntimeError)


def test_a_function_as_a_service_fails() -> None:
    description, reports = built(RadicalExecutionBackend(), function=int, is_service=True)
    assert description is None
    assert isinstance(reports[0][0]["exception"], ValueError)


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
        self.backend.register_callback(lambda task, state: self.ended.append((task["uid"], state)))
        monkeypatch.setattr(self.backend, "send", self._send)
        for pilot in self.backend.pilots:
            pilot.sandbox = str(directory / pilot.uid)
            os.mkdir(pilot.sandbox)

    def _send(self, name: str, number: int, batch: Any) -> None:
        assert name == "submit"
        self.sent += [(number, uid) for uid, _, _ in batch]

    def submit(self, count: int, **more: Any) -> list[PilotTask]:
        tasks = [
            completed(f"task.{number}", {"executable": "true", **more}, None)
            for number in range(count)
        ]
        jobs = [PilotTask(task, self.backend.pilots[0]) for task in tasks]
        self.backend.open_tasks.update((job.uid, job) for job in jobs)
        self.do(partial(self.backend._submit, jobs))
        return jobs

    def do(self, function: Any = lambda: None) -> None:
        """Call a function on the thread for commands, after everything before it."""
        self.backend._commands.submit(function).result(10)

    def activate(self, number: int) -> None:
        self.backend._pilots.note(self.backend.pilots[number], "PMGR_ACTIVE", time.time())
        self.backend._reconsider_waiting()
        self.do()


def test_held_tasks_are_sent_when_a_pilot_has_room(
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


def test_a_canceled_held_task_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(tmp_path, monkeypatch)
    (job,) = held.submit(1)
    held.backend._cancel(job)
    held.do()
    held.activate(0)
    assert held.ended == [("task.0", "CANCELED")]
    assert held.sent == []
    assert list(Path(held.backend.pilots[0].sandbox).iterdir()) == []


def test_a_task_canceled_before_its_start_leaves_no_sandbox(
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


def test_held_tasks_are_lost_with_the_last_pilot(
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


def test_arguments_are_documented_attributes() -> None:
    pilots = {"resource": "local.localhost", "cores": 2}
    backend = RadicalExecutionBackend(pilots, CONFIG)
    assert backend.resources == pilots
    assert backend.raptor_config == CONFIG
    assert RadicalExecutionBackend().raptor_config == {}


def test_a_built_task_is_kept_in_tasks() -> None:
    backend = RadicalExecutionBackend()
    description, _ = built(backend, executable="/bin/true")
    assert backend.tasks["task.000001"] is description
    failed, _ = built(RadicalExecutionBackend(raptor=False), function=int)
    assert failed is None
    assert RadicalExecutionBackend().tasks == {}


def test_the_master_selector_recovers_after_there_was_no_master() -> None:
    backend = RadicalExecutionBackend()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no masters"):
            next(backend.master_selector)
    one: Any = SimpleNamespace(uid="one")
    backend.pilots[0].pairs = [(one, [])]
    assert [next(backend.master_selector) for _ in range(2)] == ["one", "one"]


def test_setup_raptor_mode_raises_before_the_start() -> None:
    with pytest.raises(BackendUnavailableError, match="has not been started"):
        RadicalExecutionBackend().setup_raptor_mode(CONFIG)
    with pytest.raises(ValueError, match="does not use RAPTOR"):
        RadicalExecutionBackend(functions="executable").setup_raptor_mode(CONFIG)


def test_a_task_does_not_fail_if_raptor_cannot_be_ended_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("RADICAL-Pilot cannot cancel tasks")

    held = Held(tmp_path, monkeypatch)
    connection: Any = held.backend._connection
    connection.remotes = SimpleNamespace(call=fail)
    pilot = held.backend.pilots[0]
    pilot.raptor, pilot.pairs = CONFIG, [object()]  # type: ignore[list-item]
    task = completed("task.0", {"executable": "true"}, None)
    held.do(
        partial(held.backend._make_room, PilotTask(task, pilot), {"cores_per_rank": 1, "ranks": 1})
    )
    held.do()
    assert pilot.only_programs
    assert "RADICAL-Pilot cannot cancel tasks" in caplog.text
