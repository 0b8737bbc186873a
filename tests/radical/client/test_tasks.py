"""Tasks in the client, without RADICAL-Pilot: submission, reports and freed cores."""

from __future__ import annotations

import json
import queue
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rhapsody_radical._raptor import CALL_REPORTS
from rhapsody_radical.client import raptor
from rhapsody_radical.client.health import IdleTime
from rhapsody_radical.client.raptor import Raptors
from rhapsody_radical.client.tasks import SubmittedTask, Tasks
from rhapsody_radical.states import AGENT_EXECUTING

SLOTS = [{"node_index": 0, "cores": [1, 2]}, {"node_index": 1, "cores": [0, 1]}]


class Canceling:
    """A pilot with one task, which ends as canceled.

    Attributes:
        submitted: The descriptions of the tasks that were submitted.
    """

    def __init__(self) -> None:
        self.submitted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        manager = SimpleNamespace(submit_tasks=self._submit)
        values = {"number": 0, "uid": "pilot.0000", "ended": False, "manager": manager}
        one = SimpleNamespace(**values, config={}, forget=lambda uid: None)
        self.pilot: Any = cast("Any", one)
        self._tasks = Tasks(
            "session",
            [self.pilot],
            Raptors([self.pilot], lambda *_: None),
            lambda *_, within=0: None,
        )

    def _submit(self, descriptions: list[Any]) -> list[Any]:
        for each in descriptions:
            self.submitted.put(each)
        return [SimpleNamespace() for _ in descriptions]

    def cancel(self, slots: Any, *, running: bool = False, **words: Any) -> None:
        """End the task as canceled, and wait for everything that follows."""
        nothing = dict.fromkeys(("exception", "exception_detail", "exit_code", "return_value"))
        info = SimpleNamespace(is_set=lambda: True)
        handle = SimpleNamespace(
            slots=slots, description=words, pilot="pilot.0000", _info_evt=info, **nothing
        )
        entry = self._tasks.by_uid["task"] = SubmittedTask(
            "task", self.pilot, handle, running=running
        )
        self._tasks.end(entry, "CANCELED")
        self._tasks._reaper.stop()


def test_cores_of_a_task_that_was_canceled_before_it_started_are_freed() -> None:
    canceling = Canceling()
    canceling.cancel(SLOTS)
    freed = [canceling.submitted.get_nowait() for _ in SLOTS]
    assert [len(each["slots"]) for each in freed] == [1, 1]
    assert [each["slots"][0]["node_index"] for each in freed] == [0, 1]
    assert [each["uid"] for each in freed] == ["task.free.0", "task.free.1"]
    assert canceling.submitted.empty()


@pytest.mark.parametrize(
    "how",
    [
        {"slots": None},
        {"slots": SLOTS, "running": True},
        {"slots": SLOTS, "raptor_id": "master"},
    ],
)
def test_other_cores_are_not_freed(how: dict[str, Any]) -> None:
    """Tasks without slots, running tasks and calls on RAPTOR keep their cores."""
    canceling = Canceling()
    canceling.cancel(**how)
    assert canceling.submitted.empty()


class Refusing:
    """Task manager that accepts all batches except the second."""

    def __init__(self) -> None:
        self.batches = 0

    def submit_tasks(self, descriptions: list[Any]) -> list[Any]:
        self.batches += 1
        if self.batches == 2:
            raise RuntimeError("no")
        return [SimpleNamespace(uid=each.uid, slots=None) for each in descriptions]


def test_reports_do_not_wait_for_rejected_or_lost_tasks() -> None:
    sent: list[tuple[str, float]] = []

    def send(name: str, *parts: Any, within: float = 0.0) -> None:
        sent.append((name, within))

    def batch(name: str, count: int) -> list[tuple[str, dict[str, Any], Any]]:
        return [(f"{name}.{number}", {"executable": "true"}, None) for number in range(count)]

    pilot: Any = SimpleNamespace(
        manager=Refusing(), ended=False, number=0, progress=IdleTime(), config={}
    )
    tasks = Tasks("session", [pilot], raptor.Raptors([pilot], lambda *_: None), send)
    tasks.submit(0, batch("lost", 50))
    tasks.drop(pilot)
    tasks.submit(0, batch("refused", 50))
    tasks.submit(0, batch("alone", 1))
    entry = tasks.by_uid.get("alone.0")
    assert entry is not None
    tasks.handle_state(entry, entry.handle, AGENT_EXECUTING)
    assert sent[-1] == ("running", 0.0)


def test_the_end_of_a_group_reports_calls_whose_message_was_lost() -> None:
    said: list[Any] = []
    pilot: Any = SimpleNamespace(forget=lambda uid: None)
    tasks = Tasks("session", [pilot], SimpleNamespace(), lambda *what, within: said.append(what))  # type: ignore[arg-type]
    outcomes = [["call.0", "result", None, False], ["call.1", None, "ValueError('a')", False]]
    group = SubmittedTask("group", pilot, SimpleNamespace(return_value=json.dumps(outcomes)))
    group.calls = [SubmittedTask(f"call.{n}", pilot, group=group) for n in range(2)]
    tasks.by_uid.update((each.uid, each) for each in (group, *group.calls))
    tasks.receive_news("state_pubsub", {"cmd": CALL_REPORTS, "arg": [outcomes[0]]})
    tasks.handle_state(group, group.handle, "DONE")
    done, failed = (0, None, None, "result"), (1, "ValueError('a')", "ValueError('a')", None)
    assert said == [
        ("running", "call.0", "AGENT_EXECUTING", ""),
        ("end", "call.0", "DONE", "", done),
        ("end", "call.1", "FAILED", "", failed),
    ]
    assert not tasks.open()


def test_commands_that_end_with_their_job_are_not_reported_as_failed() -> None:
    """Their exit codes are those of the batch system's signals; the program ends them as lost."""
    said: list[Any] = []
    pilot: Any = SimpleNamespace(forget=lambda uid: None)
    ended: list[bool] = [False, True]

    def end_with_job(_: Any) -> bool:
        return ended.pop(0)

    def send(*what: Any, within: float) -> None:
        said.append(what)

    tasks = Tasks("session", [pilot], SimpleNamespace(), send, end_with_job)  # type: ignore[arg-type]
    group = SubmittedTask("group", pilot)
    for name in ("killed", "ended", "failed", "lost"):
        tasks.by_uid[name] = SubmittedTask(name, pilot, running=True, group=group, command=True)
    replies = {"killed": 137, "ended": 143, "failed": 3}
    news = [[name, json.dumps({"exit_code": code}), None, False] for name, code in replies.items()]
    news.append(["lost", None, "ChildProcessError('')", False])
    tasks.receive_news("state_pubsub", {"cmd": CALL_REPORTS, "arg": news})
    tasks._reaper.stop()
    assert sorted((uid, state, found[0]) for _, uid, state, _, found in said) == [
        ("failed", "FAILED", 3),
        ("killed", "FAILED", 137),
        ("lost", "FAILED", None),
    ]
