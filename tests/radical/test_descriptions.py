"""Validation of descriptions of pilots, tasks and RAPTOR."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import backend_from_options
from rhapsody.backends.execution.radical_pilot import RadicalExecutionBackend
from rhapsody.plugins import UsageError
from rhapsody.resources import Resources
from rhapsody_radical import descriptions
from rhapsody_radical.descriptions import (
    as_list,
    can_work_in,
    described,
    leave_gpus,
    pilot_descriptions,
    require_plain,
    task_settings,
)
from rhapsody_radical.pilot import rp
from rhapsody_radical.translate import (
    describe_executable,
    needs,
)
from tests.radical.stand_ins import Whole, pilot, task


def test_former_names_of_settings_are_converted() -> None:
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
        ({"metadata": {"a": {1, 2}}}, "got {'a': {1, 2}}; convert it first"),
        ({"input_staging": [Path("a")]}, "'input_staging' must be plain data"),
        ({"tags": {Whole(2): 1}}, "'tags' must be plain data"),
        ({"slots": [rp.Slot()]}, "'slots' must be plain data"),
    ],
)
def test_settings_that_are_not_plain_data_are_rejected(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError) as caught:
        require_plain("task_description", settings)
    assert words in str(caught.value)
    assert str(caught.value).startswith("task_description: ")


def test_plain_settings_of_every_type_are_accepted() -> None:
    settings: dict[str, Any] = {
        "metadata": {"a": [1, 2.5, None, True, b"x", ("y", {})], 3: "z"},
        "tags": {},
    }
    assert task_settings(task(settings)) == settings
    require_plain("task_description", settings)


def test_pilot_parameters_that_are_not_plain_data_are_rejected() -> None:
    with pytest.raises(TypeError, match="resources: 'cores' must be plain data"):
        pilot_descriptions({"cores": Whole(2)})
    with pytest.raises(TypeError, match="resources: 'services' must be plain data"):
        pilot_descriptions({"services": [rp.TaskDescription()]})


def test_directories_that_scripts_cannot_quote_are_recognized(tmp_path: Path) -> None:
    assert can_work_in(tmp_path / "plain")
    for name in ("a b", "a'b", "a$b", "a*", "R&D", "a(1)", "\udcff"):
        assert not can_work_in(tmp_path / name)


@pytest.mark.parametrize(
    ("word", "radical_pilots"),
    [
        ("partition", "'queue'"),
        ("account", "'project'"),
        ("walltime", "'runtime', in minutes"),
        ("time", "'runtime', in minutes"),
    ],
)
def test_names_of_batch_systems_suggest_radical_pilots_names(
    word: str, radical_pilots: str
) -> None:
    with pytest.raises(TypeError, match=f"no {word!r}; RADICAL-Pilot calls it {radical_pilots}"):
        pilot_descriptions({word: "x"})


CONFIG = {"masters": [{"ranks": 1, "workers": [{"ranks": 1, "worker_type": "DefaultWorker"}]}]}


def test_a_raptor_configuration_is_copied_with_current_keys() -> None:
    checked = descriptions.checked_raptor(CONFIG)
    assert checked == CONFIG
    assert checked["masters"][0] is not CONFIG["masters"][0]
    assert descriptions.total_cores(checked) == 2
    former = {"cpu_processes": 2, "cpu_threads": 3}
    mapped = descriptions.checked_raptor({"masters": [{"workers": [former]}]})
    assert mapped["masters"][0]["workers"] == [{"ranks": 2, "cores_per_rank": 3}]
    assert (descriptions.cores_per_call(mapped), descriptions.total_cores(mapped)) == (3, 7)


@pytest.mark.parametrize(
    ("masters", "kind", "words"),
    [
        ({}, TypeError, "raptor_config must be"),
        ([{"ranks": 1}], ValueError, "a worker for each"),
        ([{"workers": {"ranks": 1}}], TypeError, "raptor_config must be"),
        ([{"workers": [1]}], TypeError, "raptor_config must be"),
        ([{"workers": [{"ranks": Whole(1)}]}], TypeError, "'masters' must be plain data"),
    ],
)
def test_invalid_raptor_configurations_are_rejected(
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
def test_rhapsodys_workers_are_recognized(worker: dict[str, Any], own: bool) -> None:
    config = descriptions.checked_raptor({"masters": [{"workers": [worker]}]})
    assert descriptions.has_other_workers(config) is not own


def test_former_names_of_a_workers_size_are_counted() -> None:
    worker = {"cpu_processes": 1, "cpu_threads": 3}
    config = descriptions.checked_raptor({"masters": [{"workers": [worker]}]})
    assert descriptions.cores_per_call(config) == 3
    assert worker == {"cpu_processes": 1, "cpu_threads": 3}


def test_former_keys_are_renamed_as_by_the_library() -> None:
    """Except for `worker_class`, which RADICAL-Pilot empties instead of copying it."""
    for former, key in descriptions.FORMER.items():
        value = "mine" if rp.TaskDescription._schema[former] is str else 3
        verified = rp.TaskDescription({"executable": "true", former: value}).verify()
        assert descriptions.with_current_keys({former: value, key: "other"}) == {key: value}
        assert verified[key] == value or former == "worker_class"
        assert descriptions.with_current_keys({former: None, key: value}) == {key: value}


def test_the_default_resource_is_this_machine() -> None:
    settings = RadicalExecutionBackend().pilots[0].settings
    assert settings["resource"] == "local.localhost"
    assert settings["exit_on_error"] is False


@pytest.mark.parametrize(
    ("resources", "match"),
    [
        ("local.localhost", "must be a dict"),
        ([], "must be a dict"),
        ([{"cores": 1}, 2], "must be a dict"),
        ({"pilots": []}, "must be a dict"),
        ({"pilots": {"cores": 1}}, "a list of dicts as 'pilots'"),
        ({"pilots": [{"time": 60}]}, "calls it 'runtime', in minutes"),
        ({"qos": "debug"}, "set the variable SBATCH_QOS"),
    ],
)
def test_malformed_resources_raise_type_error(resources: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        RadicalExecutionBackend(resources)


def test_several_pilots_share_the_common_parameters() -> None:
    pilots = [{"cores": 2}, {"cores": 4, "runtime": 5}]
    made = RadicalExecutionBackend({"runtime": 30, "pilots": pilots})
    options = ["runtime=30", "pilots=[{cores = 2}, {cores = 4, runtime = 5}]"]
    for backend in (made, backend_from_options("radical_pilot", options)):
        assert isinstance(backend, RadicalExecutionBackend)
        settings = [pilot.settings for pilot in backend.pilots]
        assert [(each["cores"], each["runtime"]) for each in settings] == [(2, 30), (4, 5)]
        assert [each["resource"] for each in settings] == ["local.localhost"] * 2


def test_the_error_of_an_invalid_option_does_not_mention_valid_ones() -> None:
    options = ["resource=local.localhost", "account=abc"]
    with pytest.raises(UsageError, match=r"calls it 'project'$"):
        backend_from_options("radical_pilot", options)


@pytest.mark.parametrize("resources", [{"resource": "localhost"}, {"runtime": 0}, {"runtime": 1.5}])
def test_impossible_resources_raise_value_error(resources: Any) -> None:
    with pytest.raises(ValueError, match="resources: "):
        RadicalExecutionBackend(resources)


def test_impossible_settings_raise_value_error() -> None:
    with pytest.raises(ValueError, match="'raptor' or 'executable', got 'threads'"):
        RadicalExecutionBackend(functions="threads")
    with pytest.raises(ValueError, match="function_cores must be an integer of at least 1"):
        RadicalExecutionBackend(function_cores=0)


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"resources": {"cores": 0}}, ValueError, "'cores' must be an integer of at least 1"),
        ({"resources": {"cores": "4"}}, TypeError, "'cores' must be a number, got '4'"),
        ({"resources": {"cores": 2.5}}, ValueError, "of at least 1, got 2.5"),
        ({"resources": {"runtime": "1h"}}, TypeError, "'runtime' must be a number of minutes, got"),
        (
            {"resources": {"nodes": -1}},
            ValueError,
            "'nodes' must be an integer of at least 1, got -1",
        ),
        ({"resources": {"uid": "mine"}}, TypeError, "'uid' cannot be set"),
        ({"raptor": "no"}, TypeError, "raptor must be True or False, got 'no'"),
        ({"verbose": "x"}, TypeError, "verbose must be True or False"),
        ({"keep_session": "x"}, TypeError, "keep_session must be True or False"),
        ({"work_dir": 3}, TypeError, "work_dir must be a path, got 3"),
        ({"raptor": False, "raptor_config": CONFIG}, ValueError, "omit one of them"),
        ({"functions": "executable", "raptor_config": CONFIG}, ValueError, "omit one of them"),
        ({"commands": "shell"}, ValueError, "commands must be 'task' or 'raptor', got 'shell'"),
        ({"commands": "raptor", "raptor": False}, ValueError, "combined with raptor=False"),
        (
            {"commands": "raptor", "functions": "executable"},
            ValueError,
            "combined with functions='executable'",
        ),
        (
            {
                "commands": "raptor",
                "raptor_config": {"masters": [{"workers": [{"worker_type": "MPIWorker"}]}]},
            },
            ValueError,
            "needs the backend's own masters and workers",
        ),
    ],
)
def test_invalid_settings_raise_before_the_start(
    settings: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        RadicalExecutionBackend(**settings)


def test_raptor_configurations_are_validated() -> None:
    assert descriptions.checked_raptor(CONFIG) == CONFIG
    with pytest.raises(TypeError, match="raptor_config must be"):
        RadicalExecutionBackend(raptor_config={"workers": []})
    with pytest.raises(ValueError, match="a worker for each"):
        RadicalExecutionBackend(raptor_config={"masters": [{"ranks": 1}]})


def test_radical_pilot_accepts_the_description_of_an_executable() -> None:
    settings = {"input_staging": ["a > b"], "cpu_processes": 2, "timeout": 5, "pre_exec": "date"}
    words = describe_executable(task(settings), None)
    description = described("TaskDescription", words, "it")
    assert isinstance(description, rp.TaskDescription)
    assert (description.ranks, description.timeout, description.pre_exec) == (2, 5.0, ["date"])
    assert description.input_staging[0]["target"] == "b"


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"rank": 2}, TypeError, "it has no 'rank'; did you mean 'ranks'"),
        ({"sauce": 2}, TypeError, "it has no 'sauce'; it has uid, name,"),
        ({"flavour": 2}, TypeError, "did you mean 'flavours'"),
        ({"ranks": "many"}, TypeError, 'it: .*"ranks".* expected type'),
        ({"tags": {"a": "\udcff"}}, ValueError, "it: tags: .* surrogates"),
        ({"arguments": ["\udcff"]}, ValueError, "it: arguments: .* surrogates"),
        ({"metadata": {"a": 1 << 70}}, ValueError, "it: metadata: Integer"),
        ({"input_staging": [{"sauce": "a"}]}, ValueError, 'it: .*"sauce" is invalid'),
        ({"executable": ""}, ValueError, "it: "),
    ],
)
def test_a_rejected_description_names_the_key(
    settings: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        described("TaskDescription", {"executable": "true", **settings}, "it", ["flavours"])
    with pytest.raises(TypeError, match="it has no 'resorce'; did you mean 'resource'"):
        described("PilotDescription", {"resorce": "local.localhost"}, "it")


@pytest.mark.parametrize(
    ("words", "leaves"),
    [
        ({}, True),
        ({"gpus_per_rank": 0.0, "slots": [{"gpus": []}]}, True),
        ({"gpus_per_rank": 0.5}, False),
        ({"slots": [{"gpus": []}, {"gpus": [{"index": 0}]}]}, False),
    ],
)
def test_tasks_without_gpus_leave_those_of_a_slurm_job(words: dict[str, Any], leaves: bool) -> None:
    words["pre_launch"] = "module load mpi"
    here = dict(words)
    leave_gpus(words, {"resource_manager": "SLURM"})
    *added, last = as_list(words["pre_launch"])
    assert (last, "export SLURM_GRES=none" in added) == ("module load mpi", leaves)
    other = dict(here)
    leave_gpus(other, {"resource_manager": "FORK"})
    assert other == here
