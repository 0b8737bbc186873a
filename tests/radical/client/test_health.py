"""Detection of pilots and RAPTOR pairs that start no tasks although cores are free."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rhapsody_radical import descriptions
from rhapsody_radical.client import health
from rhapsody_radical.client.health import STALL_TIMEOUT, is_stuck
from rhapsody_radical.client.main import PilotClient
from rhapsody_radical.client.raptor import Pair, Raptor, Raptors
from rhapsody_radical.client.tasks import SubmittedTask, Tasks

RUNNING, WAITING = "AGENT_EXECUTING", "AGENT_SCHEDULING"


def task(state: str = WAITING, uid: str = "task", **words: Any) -> Any:
    """One of RADICAL-Pilot's tasks."""
    mode = words.pop("mode", "task.executable")
    return SimpleNamespace(uid=uid, state=state, mode=mode, description=words, pilot="pilot.0000")


def call(state: str = WAITING, **words: Any) -> Any:
    """A call for the pair in `Looking`."""
    words = {"raptor_id": "master", "metadata": {"rhapsody": "call"}, **words}
    return task(state, words.pop("uid", "task"), mode="task.function", **words)


@pytest.mark.parametrize("state", [WAITING, "TMGR_SCHEDULING", "AGENT_EXECUTING_PENDING"])
def test_a_task_waiting_while_cores_are_free_is_stuck(state: str) -> None:
    assert is_stuck([task(state)], [4])
    assert is_stuck([task(RUNNING, ranks=3), task(state)], [4])
    assert is_stuck([task(state, cores_per_rank=4)], [4])
    assert is_stuck([task(RUNNING), task(state, cores_per_rank=4)], [4, 4])


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        ({"ranks": 2}, [4]),
        ({"cores_per_rank": 2}, [4]),
        ({}, []),
        ({"gpus_per_rank": 1.0}, [8]),
        ({"mem_per_rank": 1}, [8]),
        ({"tags": {"colocate": "a"}}, [8]),
        ({"services": ["service"]}, [8]),
        ({"input_staging": ["large"]}, [8]),
        ({"named_env": "prepared"}, [8]),
        ({"cores_per_rank": 4}, [4, 4]),
    ],
)
def test_a_task_that_may_not_fit_is_not_stuck(words: dict[str, Any], nodes: list[int]) -> None:
    assert not is_stuck([task(RUNNING, ranks=3), task(**words)], nodes)


def test_a_raptor_master_waiting_while_cores_are_free_is_stuck() -> None:
    assert is_stuck([task(named_env="rp", tags={}, gpus_per_rank=0.0)], [1])


def test_running_and_ended_tasks_are_not_stuck() -> None:
    assert not is_stuck([task(RUNNING), task("AGENT_STAGING_OUTPUT")], [4])


class Looking:
    """Health check of one pilot with one RAPTOR pair, without its thread.

    Attributes:
        tasks: The tasks of the pilot's task manager.
        given_up: The reasons for which something was declared lost.
    """

    def __init__(self, clock: list[float], workers: Any = ({"cores_per_rank": 2},)) -> None:
        self._clock = clock
        self.tasks: list[Any] = []
        self.given_up: list[str] = []
        manager = SimpleNamespace(get_tasks=lambda: self.tasks, cancel_tasks=lambda uids: None)
        values: dict[str, Any] = {
            "number": 0,
            "uid": "pilot.0000",
            "state": "PMGR_ACTIVE",
            "ended": False,
        }
        values |= {"manager": manager, "progress": health.IdleTime()}
        values |= {"cores": lambda: [4], "forget": lambda uid: None}
        self.pilot: Any = cast("Any", SimpleNamespace(**values))
        (settings,) = descriptions.checked_raptor({"masters": [{"workers": list(workers)}]})[
            "masters"
        ]
        self.master = task(RUNNING, "master")
        made = [task(RUNNING, mode="raptor.worker", **each) for each in settings["workers"]]
        self.pair = Pair(self.master, made, settings)
        raptors = Raptors([self.pilot], lambda *_: None)
        raptor = raptors.found[0] = Raptor(self.pilot, {"masters": []}, self._changed)
        raptor.pairs.append(self.pair)
        self.client = PilotClient.__new__(PilotClient)
        self.client.raptors = raptors
        self.client.tasks = Tasks("session", [self.pilot], raptors, lambda *_, within: None)
        self.client._give_up = lambda pilot, how: self.given_up.append(how)  # type: ignore[method-assign]

    def _changed(self, lost: Pair | None) -> None:
        assert lost is self.pair
        self.given_up.append(str(lost.lost))

    def look(self, later: float = 0.0) -> list[str]:
        """Check `later` seconds later; return the reasons so far."""
        self._clock[0] += later
        self.client._look_at_progress(self.pilot)
        return self.given_up


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list."""
    found = [1000.0]
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: found[0]))
    return found


def test_a_pilot_that_does_not_start_a_fitting_task_is_lost(clock: list[float]) -> None:
    looking = Looking(clock)
    looking.look(later=STALL_TIMEOUT + 1)
    looking.tasks = [task(RUNNING), task()]
    assert looking.look() == []
    assert looking.look(later=STALL_TIMEOUT) == []
    (how,) = looking.look(later=1)
    assert "a task for which it has free cores has waited 180 s" in how


def test_a_pilot_that_starts_other_tasks_is_not_lost(clock: list[float]) -> None:
    looking = Looking(clock)
    looking.tasks = [task()]
    for _ in range(3):
        looking.look(later=STALL_TIMEOUT)
        looking.pilot.progress.moved()
    assert looking.given_up == []


def test_a_pilot_that_is_not_active_yet_is_not_lost(clock: list[float]) -> None:
    looking = Looking(clock)
    looking.tasks = [task()]
    looking.pilot.state = "PMGR_ACTIVE_PENDING"
    assert looking.look(later=1000) == looking.look(later=1000) == []
    looking.pilot.state = "PMGR_ACTIVE"
    assert looking.look() == []


def test_a_raptor_pair_that_does_not_start_a_fitting_call_is_lost(clock: list[float]) -> None:
    looking = Looking(clock)
    looking.tasks = [call(RUNNING), call()]
    assert looking.look() == []
    (how,) = looking.look(later=STALL_TIMEOUT + 1)
    assert "RAPTOR master master and its worker start no calls" in how
    assert looking.pair.lost


@pytest.mark.parametrize(
    "calls",
    [
        [call(RUNNING, cores_per_rank=2), call()],
        [call(RUNNING), call(cores_per_rank=2), call()],
        [call(metadata={})],
        [],
    ],
)
def test_a_pair_whose_calls_do_not_fit_is_not_lost(clock: list[float], calls: list[Any]) -> None:
    """Calls start in order, and starts of the program's own calls are not reported."""
    looking = Looking(clock)
    looking.tasks = calls
    looking.look()
    assert looking.look(later=1000) == []


def test_a_pair_that_is_not_running_yet_is_not_lost(clock: list[float]) -> None:
    looking = Looking(clock)
    looking.tasks = [call()]
    looking.master.state = WAITING
    looking.look()
    assert looking.look(later=1000) == []


@pytest.mark.parametrize("running", [1, 2])
def test_the_calls_of_a_group_are_counted_separately(clock: list[float], running: int) -> None:
    looking = Looking(clock)
    group = SubmittedTask("group", looking.pilot, call(RUNNING, uid="group"), looking.pair)
    group.calls = [SubmittedTask(f"call.{n}", looking.pilot, group=group) for n in range(3)]
    for each in group.calls[:running]:
        each.running = True
    looking.client.tasks.by_uid.update((each.uid, each) for each in (group, *group.calls))
    looking.tasks = [group.handle]
    looking.look()
    looking.look(later=STALL_TIMEOUT + 1)
    assert len(looking.given_up) == (0 if running == 2 else 1), "the worker has two cores"


@pytest.mark.parametrize("workers", [[{}, {}], [{"ranks": 2}]])
def test_a_pair_with_one_busy_worker_of_several_is_not_lost(
    clock: list[float], workers: Any
) -> None:
    looking = Looking(clock, workers)
    looking.tasks = [call(RUNNING), call()]
    looking.look()
    assert looking.look(later=1000) == []
    looking.tasks = [call()]
    assert looking.look() == []
    assert len(looking.look(later=STALL_TIMEOUT + 1)) == 1


class AlwaysSet(threading.Event):
    def is_set(self) -> bool:
        return True


def test_a_call_submitted_to_a_lost_pair_is_lost(clock: list[float]) -> None:
    looking = Looking(clock)
    said: list[Any] = []

    class Manager:
        def submit_tasks(self, descriptions: list[Any]) -> list[Any]:
            looking.pair.lost = "its master has ended"
            nothing = dict.fromkeys(
                ("exception", "exception_detail", "exit_code", "return_value", "stdout", "stderr")
            )
            return [SimpleNamespace(state="NEW", _info_evt=AlwaysSet(), **nothing)]

    looking.pilot.manager = Manager()
    raptors = Raptors([looking.pilot], lambda *_: None)
    raptors.send = lambda *_: looking.pair  # type: ignore[method-assign]
    tasks = Tasks("session", [looking.pilot], raptors, lambda *parts, within: said.append(parts))
    words = {"uid": "call", "mode": "task.executable", "executable": "true"}
    tasks.submit(looking.pilot.number, [("call", words, b"")])
    assert [message[:4] for message in said] == [("end", "call", "LOST", "its master has ended")]
    assert not tasks.open()
