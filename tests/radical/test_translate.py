"""Translation of tasks into RADICAL-Pilot's descriptions, which are plain data."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import CapabilityError, DataError
from rhapsody.resources import Resources
from rhapsody_radical.translate import (
    check_fits,
    command,
    describe_executable,
    in_double_quotes,
    needs,
    place,
)
from rhapsody_radical.wire import is_plain
from tests.radical.stand_ins import pilot, task


def test_the_description_of_an_executable_is_plain_data() -> None:
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


def test_subclasses_of_str_are_converted() -> None:
    class Text(str):
        __slots__ = ()

    words = describe_executable(task(executable="echo", arguments=[Text("a b")]), None)
    assert is_plain(words)
    assert words["arguments"] == ["a b"]


def test_tasks_that_do_not_fit_on_the_pilot_are_rejected() -> None:
    check_fits("t", {"cores_per_rank": 8}, pilot())
    for words in ({"cores_per_rank": 9}, {"gpus_per_rank": 1.0}):
        with pytest.raises(CapabilityError, match=r"per rank, but a node of pilot pilot\.0000"):
            check_fits("t", words, pilot())
    with pytest.raises(CapabilityError, match=r"in total, .* has 5 \(RAPTOR uses another 3"):
        check_fits("t", {"cores_per_rank": 8}, pilot(cores=8, raptor_cores=3))


@pytest.mark.parametrize("there", [0, 400])
def test_more_memory_than_a_node_has_is_rejected(there: int) -> None:
    small = pilot(has={"cores": 8, "gpus": 0, "mem": there}.__getitem__)
    wanted = needs(task(resources=Resources(memory="500 MB")), small)
    with pytest.raises(CapabilityError) as error:
        check_fits("t", wanted, small)
    assert "477 MB of memory per rank, but a node of pilot pilot.0000 " in str(error.value)
    assert f"has {there}. Request less, or correct `mem_per_node`" in str(error.value)


def test_memory_reserves_a_proportional_number_of_cores() -> None:
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


def test_requested_cores_limit_threads() -> None:
    words = describe_executable(task({"cores_per_rank": 3}), None)
    assert words["environment"]["OMP_NUM_THREADS"] == "3"
    both = describe_executable(task({"cores_per_rank": 3}, resources=Resources(cores=2)), None)
    assert both["environment"]["OMP_NUM_THREADS"] == "3"
    assert describe_executable(task(), None)["environment"] == {}


def test_the_sandbox_is_chosen_by_the_engine_or_the_settings(tmp_path: Path) -> None:
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


def run_words(words: dict[str, Any], sandbox: Path) -> subprocess.CompletedProcess[str]:
    """Run a description in a sandbox, as RADICAL-Pilot's script does."""
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
def test_a_command_runs_in_its_cwd(given: Any, tmp_path: Path) -> None:
    place = tmp_path / "it's a place"
    place.mkdir()
    (tmp_path / "task.000001.in").write_text("in\n")
    asked = task(cwd=str(place), stdin="in\n", **given)
    ended = run_words(describe_executable(asked, pilot()), tmp_path)
    assert ended.stdout == f"{place}\nin\n42\n"


def test_a_missing_cwd_raises_if_it_is_on_this_machine(tmp_path: Path) -> None:
    asked = task(cwd=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"its cwd '.*/none' does not exist"):
        describe_executable(asked, pilot())


def test_paths_in_a_command_follow_the_sandbox(tmp_path: Path) -> None:
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


def test_commands_are_quoted_for_radical_pilots_scripts() -> None:
    assert command("echo hi", None) == ("/bin/sh", ["-c", "echo hi"])
    assert command("echo $HOME", None) == ("/bin/sh -c 'echo $HOME'", [])
    assert command("printf", ["%s", "it's `id`"]) == ("printf %s 'it'\"'\"'s `id`'", [])
    assert command("cat", [], "in") == ("cat < in", [])
    assert in_double_quotes('a "$b" `c` \\') == 'a \\"\\$b\\" \\`c\\` \\\\'
