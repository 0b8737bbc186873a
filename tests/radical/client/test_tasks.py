"""Cores of canceled tasks, which the client frees if RADICAL-Pilot does not."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rhapsody_radical.client.raptor import Raptors
from rhapsody_radical.client.tasks import Entry, Tasks

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
        self.pilot: Any = cast("Any", SimpleNamespace(**values, forget=lambda uid: None))
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
        entry = self._tasks.by_uid["task"] = Entry("task", self.pilot, handle, running=running)
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
    """Those of others, and those that RADICAL-Pilot frees itself."""
    canceling = Canceling()
    canceling.cancel(**how)
    assert canceling.submitted.empty()
