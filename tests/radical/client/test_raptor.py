"""RAPTOR's masters and workers in the client, without RADICAL-Pilot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody_radical.client import raptor
from rhapsody_radical.functions import call_words, completed


def raptors(*pilots: Any) -> raptor.Raptors:
    """RAPTOR on some pilots in the client, with no pairs yet."""
    made = raptor.Raptors(list(pilots), lambda *_: None)
    for number, pilot in enumerate(pilots):
        made.found[number] = raptor.Raptor(pilot, {"masters": []}, lambda _: None)
    return made


def client_pilot(number: int, tasks: tuple[str, ...] = ()) -> Any:
    """A pilot in the client, whose task manager knows some tasks."""
    manager = SimpleNamespace(list_tasks=lambda: list(tasks))
    return SimpleNamespace(number=number, uid=f"pilot.{number:04d}", manager=manager, config={})


def pair(uid: str, workers: Any = ({},)) -> raptor.Pair:
    return raptor.Pair(SimpleNamespace(uid=uid), [], {"workers": workers})


def test_calls_for_rhapsodys_workers_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """RADICAL-Pilot sends the whole call with each of its states."""
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


def test_a_raptor_master_of_another_pilot_is_rejected() -> None:
    """RADICAL-Pilot would wait for the master forever."""
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


def test_the_reason_for_a_lost_pair_contains_the_masters_error() -> None:
    master = SimpleNamespace(uid="m", state="FAILED", exception="OSError('disk')", stderr="full\n")
    pair = raptor.Pair(master, [], {"workers": [{"cores_per_rank": 2}]})
    assert pair.problem() == "RAPTOR master m ended (FAILED): OSError('disk'): full"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rank": 1, "workers": [{}]}, "a master has no 'rank'; did you mean 'ranks'"),
        (
            {"workers": [{"worker_typ": "a"}]},
            "a worker has no 'worker_typ'; did you mean 'worker_type'",
        ),
        ({"workers": [{"ranks": "a"}]}, 'a worker: .*"ranks".* expected type'),
    ],
)
def test_invalid_masters_and_workers_are_rejected(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    pilot = client_pilot(0)
    pilot.sandbox = str(tmp_path)
    with pytest.raises(TypeError, match=words):
        raptor.Raptor(pilot, {"masters": [config]}, lambda _: None).start()


@pytest.mark.parametrize(
    ("workers", "size"), [([{}], 256), ([{"ranks": 2}], 31), ([{"worker_type": "MPIWorker"}], 1)]
)
def test_the_size_of_groups_depends_on_the_workers(
    workers: list[dict[str, Any]], size: int
) -> None:
    raptors = raptor.Raptors([], lambda *_: None)
    config = {"masters": [{"workers": workers}]}
    raptors.found[0] = SimpleNamespace(config=config)  # type: ignore[assignment]
    assert raptors.group_size(SimpleNamespace(number=0), 1000) == size  # type: ignore[arg-type]
