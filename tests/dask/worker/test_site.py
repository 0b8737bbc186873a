"""The cores of a worker are counted, whatever tasks ask for."""

from __future__ import annotations

from rhapsody_dask.worker.site import Gate


def test_a_task_of_more_cores_than_there_are_gives_back_what_it_took() -> None:
    gate = Gate(4)
    waiting = gate.enter(8)
    assert waiting is not None
    assert gate.wait(waiting)
    gate.leave(8)
    assert gate.enter(4) is None
    assert gate.enter(1) is not None, "more cores were given out than there are"
