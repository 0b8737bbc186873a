"""What the backend does before, and without, a pilot."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from rhapsody.backends.discovery import BackendRegistry, discover_backends, get_backend
from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
from rhapsody.errors import BackendUnavailableError
from rhapsody_radical import calls, links, raptor
from rhapsody_radical.library import rp
from rhapsody_radical.translate import command, in_double_quotes

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
    ],
)
def test_malformed_resources_are_type_errors(resources: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        RadicalExecutionBackend(resources)


@pytest.mark.parametrize("resources", [{"resource": "localhost"}, {"runtime": 0}, {"runtime": 1.5}])
def test_impossible_resources_are_value_errors(resources: Any) -> None:
    with pytest.raises(ValueError, match="resources: "):
        RadicalExecutionBackend(resources)


def test_impossible_settings_are_value_errors() -> None:
    with pytest.raises(ValueError, match="'raptor' or 'executable', got 'threads'"):
        RadicalExecutionBackend(functions="threads")
    with pytest.raises(ValueError, match="function_cores must be 1 or more"):
        RadicalExecutionBackend(function_cores=0)


def test_raptor_configurations_are_checked() -> None:
    assert raptor.checked(CONFIG) == CONFIG
    with pytest.raises(TypeError, match="raptor_config must be"):
        RadicalExecutionBackend(raptor_config={"workers": []})
    with pytest.raises(ValueError, match="a worker for each"):
        RadicalExecutionBackend(raptor_config={"masters": [{"ranks": 1}]})
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
    calls._packed_runner.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: calls._runner(), range(2))
    assert first == second


# Links, as documented.


def test_a_file_from_outside_is_transferred() -> None:
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {}}
    backend = RadicalExecutionBackend()
    given = backend.link_explicit_data_deps(dst_task=target, file_path="/data/in.txt")
    expected = {"source": "/data/in.txt", "target": "task:///in.txt", "action": rp.TRANSFER}
    assert given == expected
    assert target["task_backend_specific_kwargs"]["input_staging"] == [expected]


def test_a_tasks_file_is_linked() -> None:
    target: dict[str, Any] = {"uid": "b", "task_backend_specific_kwargs": {}}
    backend = RadicalExecutionBackend()
    given = backend.link_explicit_data_deps({"uid": "a"}, target, file_name="out")
    assert given == {"source": "pilot:///a/out", "target": "task:///out", "action": rp.LINK}


def test_a_link_needs_a_name_and_a_source() -> None:
    backend, target = RadicalExecutionBackend(), {"uid": "b", "task_backend_specific_kwargs": {}}
    with pytest.raises(ValueError, match="file_name or file_path"):
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
