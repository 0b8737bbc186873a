"""From tasks and settings to RADICAL-Pilot's words, which are plain data."""

from __future__ import annotations

import pickle
import socket
import subprocess
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rhapsody.errors import CapabilityError, DataError
from rhapsody.resources import Resources
from rhapsody_radical import descriptions, services
from rhapsody_radical.descriptions import can_work_in, pilot_descriptions, task_settings
from rhapsody_radical.pilot import build, rp
from rhapsody_radical.translate import check_fits, describe_executable, needs, place
from rhapsody_radical.wire import is_plain


class Whole(int):
    """A number of a type of its own, as libraries for numbers have them."""


def task(settings: dict[str, Any] | None = None, **more: Any) -> Any:
    """A task as the engine completes it."""
    given: dict[str, Any] = {
        "uid": "task.000001",
        "name": "t",
        "executable": "true",
        "function": None,
    }
    given |= {"is_service": False, "task_backend_specific_kwargs": settings or {}}
    return cast("Any", {**given, **more})


def pilot(**more: Any) -> Any:
    """A pilot of 8 cores on this machine."""
    given = {"uid": "pilot.0000", "number": 0, "settings": {"resource": "local.localhost"}}
    given |= {"here": True, "cores": 8, "nodes": 1, "raptor_cores": 0, "sandbox": "/none"}
    given |= {"has": {"cores": 8, "gpus": 0, "mem": 0}.__getitem__}
    return SimpleNamespace(**(given | more))


def test_an_executable_is_described_in_plain_words() -> None:
    resources = Resources(cores=2, gpus=1, memory=1 << 20)
    given = task({"tags": {"a": 1}}, resources=resources, environment={"A": "$b"})
    words = describe_executable(given, None)
    environment = words.pop("environment")
    assert words == {
        "mode": "task.executable",
        "executable": "/bin/sh",
        "arguments": ["-c", "true"],
        "tags": {"a": 1},
        "uid": "task.000001",
        "name": "t",
        "ranks": 1,
        "cores_per_rank": 2,
        "gpus_per_rank": 1.0,
        "gpu_type": "CUDA",
        "mem_per_rank": 1,
    }
    assert (environment["A"], environment["OMP_NUM_THREADS"]) == (r"\$b", "2")
    assert type(words) is dict
    assert b"radical" not in pickle.dumps(words)


def test_texts_of_other_types_are_sent_as_built_in_ones() -> None:
    class Text(str):
        __slots__ = ()

    words = describe_executable(task(executable="echo", arguments=[Text("a b")]), None)
    assert is_plain(words)
    assert words["arguments"] == ["a b"]


def test_radical_pilot_takes_the_words() -> None:
    settings = {"input_staging": ["a > b"], "cpu_processes": 2, "timeout": 5, "pre_exec": "date"}
    description = build(describe_executable(task(settings), None), "t")
    assert isinstance(description, rp.TaskDescription)
    assert (description.ranks, description.timeout, description.pre_exec) == (2, 5.0, ["date"])
    assert description.input_staging[0]["target"] == "b"


def test_what_radical_pilot_does_not_take_names_its_task() -> None:
    with pytest.raises(ValueError, match="task 't': task_description: \"sauce\" is invalid"):
        build(describe_executable(task({"input_staging": [{"sauce": "a"}]}), None), "t")
    with pytest.raises(ValueError, match="task 't': task_description: "):
        build({"mode": "task.executable"}, "t")


def test_former_names_of_settings_are_todays() -> None:
    settings = {"cpu_processes": 2, "ranks": 7, "cpu_threads": 3, "gpu_processes": 1}
    found = {"ranks": 2, "cores_per_rank": 3, "gpus_per_rank": 1.0}
    assert task_settings(task(settings)) == found
    assert needs(task(settings, resources=Resources(cores=5)), pilot()) == found
    assert describe_executable(task({"cpu_threads": 0}), None).get("cpu_threads") is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ranks": Whole(2)}, "'ranks' must be plain data"),
        ({"tags": {"a": [Whole(2)]}}, "'tags' must be plain data"),
        ({"metadata": OrderedDict(a=1)}, "'metadata' must be plain data"),
        ({"metadata": {"a": {1, 2}}}, "got {1, 2}, a builtins.set; convert it first"),
        ({"input_staging": [Path("a")]}, "'input_staging' must be plain data"),
        ({"tags": {Whole(2): 1}}, "'tags' must have strings as keys of dicts, got 2"),
        ({"tags": {"a": "\udcff"}}, "'tags' must be a string that can be encoded as UTF-8"),
        ({"metadata": {"a": 1 << 70}}, "'metadata' must be a number of at most 64 bits"),
        ({"environment": "A=1"}, "'environment' must be a dict, got 'A=1'"),
        ({"pre_exec": 3}, "'pre_exec' must be a list, got 3"),
        ({"slots": [rp.Slot()]}, "'slots' must be plain data"),
    ],
)
def test_settings_that_another_process_would_not_get_as_they_are_are_refused(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError) as caught:
        task_settings(task(settings))
    assert words in str(caught.value)
    assert str(caught.value).startswith("task_description: ")


def test_plain_settings_of_every_kind_are_taken() -> None:
    settings: dict[str, Any] = {
        "metadata": {"a": [1, 2.5, None, True, b"x", ("y", {})], 3: "z"},
        "tags": {},
    }
    assert task_settings(task(settings)) == settings


def test_a_pilots_parameters_are_plain_data() -> None:
    with pytest.raises(TypeError, match="resources: 'cores' must be plain data"):
        pilot_descriptions({"cores": Whole(2)})
    with pytest.raises(TypeError, match="resources: 'services' must be plain data"):
        pilot_descriptions({"services": [rp.TaskDescription()]})


@pytest.mark.parametrize("part", ["executable", "argument", "variable"])
def test_bytes_that_are_no_text_fail_their_task_alone(part: str) -> None:
    text = "\udcff"
    given: dict[str, dict[str, Any]] = {
        "executable": {"executable": text, "arguments": []},
        "argument": {"arguments": [text]},
        "variable": {"environment": {"A": text}},
    }
    shown = r"a value in environment=" if part == "variable" else r"'\\udcff'"
    with pytest.raises(ValueError, match=rf"task 't': {shown} cannot be encoded"):
        describe_executable(task(**given[part]), None)


def test_directories_that_scripts_cannot_quote_are_recognized(tmp_path: Path) -> None:
    assert can_work_in(tmp_path / "plain")
    for name in ("a b", "a'b", "a$b", "a*", "R&D", "a(1)", "\udcff"):
        assert not can_work_in(tmp_path / name)


def test_what_a_pilot_can_never_run_is_refused() -> None:
    check_fits("t", {"cores_per_rank": 8}, pilot())
    for words in ({"cores_per_rank": 9}, {"gpus_per_rank": 1.0}):
        with pytest.raises(CapabilityError, match=r"per rank, but a node of pilot pilot\.0000"):
            check_fits("t", words, pilot())
    with pytest.raises(CapabilityError, match=r"in total, .* has 5 \(RAPTOR uses another 3"):
        check_fits("t", {"cores_per_rank": 8}, pilot(cores=8, raptor_cores=3))


@pytest.mark.parametrize("there", [0, 400])
def test_more_memory_than_a_node_is_known_to_have_is_refused(there: int) -> None:
    small = pilot(has={"cores": 8, "gpus": 0, "mem": there}.__getitem__)
    wanted = needs(task(resources=Resources(memory="500 MB")), small)
    with pytest.raises(CapabilityError) as error:
        check_fits("t", wanted, small)
    assert "477 MB of memory per rank, but a node of pilot pilot.0000 " in str(error.value)
    assert f"has {there}. Request less, or correct `mem_per_node`" in str(error.value)


def test_memory_takes_its_share_of_a_nodes_cores() -> None:
    has = {"cores": 8, "gpus": 0, "mem": 4096}.__getitem__

    def cores(there: Any, **wanted: Any) -> int:
        words = describe_executable(task(resources=Resources(**wanted)), there)
        check_fits("t", words, there)
        return int(words["cores_per_rank"])

    alone = pilot(has=has)
    assert cores(alone, cores=0, memory="4 GiB") == 8
    assert cores(alone, memory="600 MiB") == 2
    assert cores(alone, cores=3, memory="600 MiB") == 3
    assert cores(alone, memory="600 MiB", ranks=1) == 2
    assert cores(pilot(has=has, raptor_cores=3), memory="4 GiB") == 5
    assert cores(pilot(has=has, nodes=2, cores=16, raptor_cores=3), memory="4 GiB") == 8
    words = describe_executable(task(resources=Resources(cores=0, memory="4 GiB")), alone)
    assert "OMP_NUM_THREADS" not in words["environment"]


@pytest.mark.parametrize(
    ("word", "radical_pilots"),
    [
        ("partition", "'queue'"),
        ("account", "'project'"),
        ("walltime", "'runtime', in minutes"),
        ("time", "'runtime', in minutes"),
    ],
)
def test_words_of_batch_systems_lead_to_radical_pilots(word: str, radical_pilots: str) -> None:
    with pytest.raises(TypeError, match=f"no {word!r}; RADICAL-Pilot calls it {radical_pilots}"):
        pilot_descriptions({word: "x"})


def test_cores_limit_threads_whichever_words_ask_for_them() -> None:
    words = describe_executable(task({"cores_per_rank": 3}), None)
    assert words["environment"]["OMP_NUM_THREADS"] == "3"
    both = describe_executable(task({"cores_per_rank": 3}, resources=Resources(cores=2)), None)
    assert both["environment"]["OMP_NUM_THREADS"] == "3"
    assert describe_executable(task(), None)["environment"] == {}


def test_a_task_is_placed_where_the_engine_or_its_words_say(tmp_path: Path) -> None:
    there = pilot(sandbox=str(tmp_path / "pilot"))
    (tmp_path / "pilot").mkdir()
    words: dict[str, Any] = {}
    assert place(task(), words, there)
    assert words["sandbox"] == str(tmp_path / "pilot" / "task.000001")
    given, words = task(uid="two", sandbox=str(tmp_path / "two"), stdin="text"), {}
    assert not place(given, words, there)
    assert words["sandbox"] == given["sandbox"] == str((tmp_path / "pilot/two").resolve())
    assert (tmp_path / "two" / "two.in").read_text() == "text"
    given, words = task(uid="three"), {"sandbox": "named"}
    assert not place(given, words, there)
    assert given["sandbox"] == str(tmp_path / "pilot" / "named")
    with pytest.raises(DataError, match="do not quote paths"):
        place(task(uid="four", sandbox=str(tmp_path / "a b")), {}, there)


# RAPTOR's configuration.

CONFIG = {"masters": [{"ranks": 1, "workers": [{"ranks": 1, "worker_type": "DefaultWorker"}]}]}


def run_words(words: dict[str, Any], sandbox: Path) -> subprocess.CompletedProcess[str]:
    """Return what RADICAL-Pilot's script makes of words in a task's sandbox."""
    line = " ".join([words["executable"], *(f'"{word}"' for word in words["arguments"])])
    return subprocess.run(
        line, shell=True, cwd=sandbox, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "given",
    [
        {"executable": "pwd; cat; echo $((6 * 7))"},
        {"executable": "sh", "arguments": ["-c", 'pwd; cat; echo "$1"', "sh", "42"]},
    ],
)
def test_a_command_runs_in_the_directory_of_the_users(given: Any, tmp_path: Path) -> None:
    place = tmp_path / "it's a place"
    place.mkdir()
    (tmp_path / "task.000001.in").write_text("in\n")
    asked = task(cwd=str(place), stdin="in\n", **given)
    ended = run_words(describe_executable(asked, pilot()), tmp_path)
    assert ended.stdout == f"{place}\nin\n42\n"


def test_a_missing_cwd_is_reported_if_it_can_be_seen(tmp_path: Path) -> None:
    asked = task(cwd=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"its cwd '.*/none' does not exist"):
        describe_executable(asked, pilot())


def test_a_command_names_its_files_where_its_sandbox_is(tmp_path: Path) -> None:
    (tmp_path / "sandboxes").mkdir()
    there = pilot(sandbox=str(tmp_path / "sandboxes"))
    former = f"{tmp_path}/engine.task.000001.1"
    for arguments in (None, [f"{former}/a.txt", f"{former}0/a.txt"]):
        given = task({"sandbox": "mine"}, cwd="/", sandbox=former)
        given["executable"] = f"cat {former}/a.txt" if arguments is None else "cat"
        if arguments is not None:
            given["arguments"] = arguments
        given["uid"] = f"task.00000{1 if arguments is None else 2}"
        words = describe_executable(given, there)
        place(given, words, there)
        said = f"{words['executable']} {' '.join(words['arguments'])}"
        assert f"{given['sandbox']}/a.txt" in said
        assert f"{former}/" not in said
        assert (f"{former}0/a.txt" in said) is (arguments is not None)


def test_raptor_configurations_are_checked() -> None:
    checked = descriptions.checked_raptor(CONFIG)
    assert checked == CONFIG
    assert checked["masters"][0] is not CONFIG["masters"][0]
    assert descriptions.total_cores(checked) == 2
    assert descriptions.total_cores(descriptions.default_raptor_config(3)) == 4
    former = {"cpu_processes": 2, "cpu_threads": 3}
    mapped = descriptions.checked_raptor({"masters": [{"workers": [former]}]})
    assert mapped["masters"][0]["workers"] == [{"ranks": 2, "cores_per_rank": 3}]
    assert (descriptions.cores_per_call(mapped), descriptions.total_cores(mapped)) == (3, 7)


@pytest.mark.parametrize(
    ("masters", "kind", "words"),
    [
        ({}, TypeError, "raptor_config must be"),
        ([{"ranks": 1}], ValueError, "a worker for each"),
        ([{"workers": {"ranks": 1}}], TypeError, "'workers' must be a list"),
        ([{"workers": [1]}], TypeError, "a worker must be a dict, got 1"),
        ([{"workers": [{"worker_typ": "a"}]}], TypeError, "did you mean 'worker_type'"),
        ([{"workers": [{"worker_type": 3}]}], TypeError, "'worker_type' must be a string, got 3"),
        ([{"workers": [{"ranks": "a"}]}], TypeError, "'ranks' must be an integer, got 'a'"),
        ([{"workers": [{"ranks": Whole(1)}]}], TypeError, "'ranks' must be plain data"),
        ([{"rank": 1, "workers": [{}]}], TypeError, "did you mean 'ranks'"),
    ],
)
def test_invalid_raptor_configurations_are_refused(
    masters: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        descriptions.checked_raptor({"masters": masters})


@pytest.mark.parametrize(
    ("worker", "own"),
    [
        ({}, True),
        ({"worker_type": "DefaultWorker"}, True),
        ({"worker_type": "MPIWorker"}, False),
        ({"raptor_class": "DefaultWorker"}, False),
        ({"worker_class": "DefaultWorker"}, False),
    ],
)
def test_our_own_workers_are_recognized(worker: dict[str, Any], own: bool) -> None:
    config = descriptions.checked_raptor({"masters": [{"workers": [worker]}]})
    assert descriptions.has_other_workers(config) is not own


def test_a_service_is_refused_where_something_listens_on_its_port_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        service = task(is_service=True, ready=f"tcp:{stranger.getsockname()[1]}")
        with pytest.raises(OSError, match="listens on port"):
            services.prepare(service, {}, pilot())
        services.prepare(service, {}, pilot(here=False))
    services.prepare(service, {}, pilot())


def test_former_words_for_a_workers_size_count() -> None:
    worker = {"cpu_processes": 1, "cpu_threads": 3}
    config = descriptions.checked_raptor({"masters": [{"workers": [worker]}]})
    assert descriptions.cores_per_call(config) == 3
    assert worker == {"cpu_processes": 1, "cpu_threads": 3}
