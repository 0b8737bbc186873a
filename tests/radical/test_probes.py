"""How a RAPTOR pair is asked what became of its calls: delays that no pilot shows when told to."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody_radical import raptor_config
from rhapsody_radical.client import raptor
from rhapsody_radical.client.raptor import COMING_UP, PROBED, Pair, Raptor, Raptors
from rhapsody_radical.client.tasks import Entry, Tasks
from rhapsody_radical.schema import RAPTOR_WORKER

OWN: dict[str, Any] = {"workers": [{}]}


class Asking:
    """A pair that was heard of, whose probes the test answers.

    Attributes:
        pair: The pair.
        sent: The probes.
        given_up: The pairs that were.
    """

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self.sent: list[Any] = []
        self.given_up: list[Pair] = []
        manager = SimpleNamespace(submit_tasks=self._submit, cancel_tasks=lambda uids: None)
        pilot: Any = SimpleNamespace(
            manager=manager, number=0, ended=False, forget=lambda uid: None
        )
        self.pilot = pilot
        ends = (SimpleNamespace(uid=uid, state="AGENT_EXECUTING") for uid in ("master", "worker"))
        self.pair = Pair(next(ends), list(ends), OWN)
        self.pair.heard = clock[0]
        self.raptor = Raptor(pilot, {"masters": [OWN]}, self._changed)
        self.raptor.pairs.append(self.pair)

    def _changed(self, lost: Pair | None) -> None:
        self.given_up += [] if lost is None else [lost]

    def _submit(self, description: Any) -> Any:
        probe = SimpleNamespace(
            uid=description.uid,
            state="NEW",
            return_value=None,
            calls=description.metadata["calls"],
        )
        self.sent.append(probe)
        return probe

    def look(self, calls: list[str], *, later: float = 0.0) -> set[str]:
        """What the watch does, so many seconds later."""
        self._clock[0] += later
        return self.raptor.check({self.pair: calls})

    def ask(self, calls: list[str], *, state: str) -> None:
        """Has a probe sent, and come so far."""
        self.look(calls, later=PROBED + 1)
        self.sent[-1].state = state

    def answer(self, calls: list[str], missing: Any) -> set[str]:
        """Has a probe sent and answered."""
        self.ask(calls, state="DONE")
        self.sent[-1].return_value = json.dumps(missing)
        return self.look(calls)


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    """A pair, on a clock of its own."""
    clock = [1000.0]
    monkeypatch.setattr(raptor, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return Asking(clock)


def test_a_call_missing_from_two_answers_running_is_lost(asking: Asking) -> None:
    calls = ["a", "b", "c"]
    assert asking.answer(calls, ["a", "b"]) == set()
    assert asking.answer(calls, ["a", "c"]) == {"a"}
    assert asking.answer(calls, ["b"]) == set()
    assert asking.answer(["c"], ["b"]) == set(), "b has ended meanwhile"
    assert not asking.given_up


def test_the_oldest_calls_are_asked_about_once_a_minute(asking: Asking) -> None:
    calls = [str(number) for number in range(1000)]
    for _ in range(121):
        asking.look(calls, later=1)
        if asking.sent:
            asking.sent[-1].state, asking.sent[-1].return_value = "DONE", "[]"
    assert [probe.calls for probe in asking.sent] == [calls[: raptor.ASKED]]
    asking.look(calls, later=1)
    assert len(asking.sent) == 2


def test_a_pair_that_does_not_answer_is_given_up(asking: Asking) -> None:
    asking.ask(["a"], state="AGENT_SCHEDULING")
    asking.look(["a"], later=PROBED)
    assert not asking.given_up
    asking.look(["a"], later=1)
    assert asking.given_up == [asking.pair]


def test_a_pair_that_hangs_before_anything_was_heard_of_it_is_given_up(asking: Asking) -> None:
    asking.pair.heard = 0.0
    asking.pair.master.state = "AGENT_SCHEDULING"  # it may wait for cores as long as it likes
    asking.look(["a"])
    asking.look(["a"], later=1000)
    asking.pair.master.state = "AGENT_EXECUTING"
    asking.look(["a"])
    asking.look(["a"], later=COMING_UP)
    assert not asking.sent
    asking.look(["a"], later=1)
    asking.sent[-1].state = "AGENT_SCHEDULING"
    asking.look(["a"], later=PROBED)
    assert not asking.given_up
    asking.look(["a"], later=1)
    assert asking.given_up == [asking.pair]


def test_a_probe_that_waits_for_somebodys_files_says_nothing_of_the_pair(asking: Asking) -> None:
    asking.ask(["a"], state="TMGR_STAGING_INPUT_PENDING")
    for _ in range(3):
        asking.look(["a"], later=PROBED + 1)
    asking.sent[-1].state = "AGENT_SCHEDULING"
    asking.look(["a"], later=PROBED)
    asking.sent[-1].state = "AGENT_STAGING_OUTPUT"
    for _ in range(3):
        asking.look(["a"], later=PROBED + 1)
    assert not asking.given_up


def test_a_probe_behind_many_calls_is_given_the_time(asking: Asking) -> None:
    calls = ["a"] * 10_000
    asking.ask(calls, state="AGENT_SCHEDULING")
    asking.look(calls, later=400)
    assert not asking.given_up
    asking.look(calls, later=400)
    assert asking.given_up == [asking.pair]


def test_where_others_are_heard_of_a_lost_probe_is_sent_again(asking: Asking) -> None:
    asking.ask(["a"], state="AGENT_SCHEDULING")
    asking.look(["a"], later=1)
    asking.pair.heard = 2000.0
    asking.look(["a"], later=PROBED + 1)
    assert len(asking.sent) == 2
    assert not asking.given_up


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"workers": [{"cores_per_rank": 2}]}, True),
        ({"workers": [{"worker_type": "DefaultWorker", "ranks": 1}]}, True),
        ({"workers": [{"ranks": 2}]}, False),
        ({"workers": [{"cpu_processes": 2}]}, False),
        ({"workers": [{}, {}]}, False),
        ({"workers": [{"raptor_class": "DefaultWorker"}]}, False),
        ({"workers": [{}], "raptor_class": "Mine", "raptor_file": "mine.py"}, False),
    ],
)
def test_only_a_worker_that_has_all_calls_is_asked_for_them(
    settings: dict[str, Any], asked: bool
) -> None:
    """Of several processes each would take the others' calls for lost."""
    (checked,) = raptor_config.checked({"masters": [settings]})["masters"]
    pair = Pair(SimpleNamespace(uid="master"), [], checked)
    assert pair.answers_probes is asked


def test_a_master_that_a_program_gave_a_worker_is_not_asked(asking: Asking) -> None:
    raptors = Raptors([asking.pilot], lambda *_: None)
    raptors.found[0] = asking.raptor
    for uid, master in (("worker", "master"), ("other", "another"), ("more", "master")):
        assert asking.pair.answers_probes
        handle = SimpleNamespace(uid=uid, mode=RAPTOR_WORKER, description={"raptor_id": master})
        raptors.look_at(handle, "AGENT_EXECUTING")
    assert not asking.pair.answers_probes


def test_a_call_cancelled_before_its_pair_started_says_nothing_of_the_pair(asking: Asking) -> None:
    said: list[Any] = []

    def say(*message: Any, within: float) -> None:
        assert within < 1.0
        said.append(message)

    tasks = Tasks("session", [asking.pilot], Raptors([asking.pilot], lambda *_: None), say)
    asking.pair.heard = 0.0
    for state in ("CANCELED", "LOST", "FAILED"):
        entry = Entry("call", asking.pilot)
        entry.pair = asking.pair
        tasks.by_uid["call"] = entry
        tasks.end(entry, state)
        assert asking.pair.heard == 0.0
    assert [message[2] for message in said] == ["CANCELED", "LOST", "FAILED"]


class AlwaysSet(threading.Event):
    def is_set(self) -> bool:
        return True


def test_a_call_whose_pair_is_lost_while_it_is_submitted_is_lost(asking: Asking) -> None:
    said: list[Any] = []

    class Manager:
        def submit_tasks(self, descriptions: list[Any]) -> list[Any]:
            asking.pair.lost = "its master has ended"
            nothing = dict.fromkeys(
                ("exception", "exception_detail", "exit_code", "return_value", "stdout", "stderr")
            )
            return [SimpleNamespace(state="NEW", _info_evt=AlwaysSet(), **nothing)]

    asking.pilot.manager = Manager()
    raptors = Raptors([asking.pilot], lambda *_: None)
    raptors.send = lambda *_: asking.pair  # type: ignore[method-assign]
    tasks = Tasks("session", [asking.pilot], raptors, lambda *parts, within: said.append(parts))
    words = {"uid": "call", "mode": "task.executable", "executable": "true"}
    tasks.submit(asking.pilot.number, [("call", words, b"")])
    assert [message[:4] for message in said] == [("end", "call", "LOST", "its master has ended")]
    assert not tasks.open()


def test_former_words_for_a_workers_size_count() -> None:
    worker = {"cpu_processes": 1, "cpu_threads": 3}
    config = raptor_config.checked({"masters": [{"workers": [worker]}]})
    assert raptor_config.cores_per_call(config) == 3
    assert worker == {"cpu_processes": 1, "cpu_threads": 3}
