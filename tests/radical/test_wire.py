"""Messages between a program and its client."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

from rhapsody.sdk import copied_classes
from rhapsody_radical.wire import CallThread, Channel, Outbox, Records, dumps, loads


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of a socket pair."""
    found = [Channel(end) for end in socket.socketpair()]
    yield found[0], found[1]
    for end in found:
        end.close()


def test_messages_are_batched_within_their_time_limit(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    outbox = Outbox(here)
    outbox.put("patient", 1, within=600.0)
    outbox.put("urgent", b"2", within=0.0)
    assert there.receive() == (("patient", 1), ("urgent", b"2"))
    outbox.put("alone", within=0.0)
    assert there.receive() == (("alone",),)
    outbox.put("patient", within=600.0)
    outbox.end()
    assert there.receive() == (("patient",),)


def test_the_end_of_the_other_side_is_received_as_none(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here.send(("before",))
    here.shut()
    assert there.receive() == (("before",),)
    assert there.receive() is None
    with pytest.raises(OSError, match=r"\[Errno"):
        here.send(("after",))


def test_an_incomplete_message_is_received_as_none(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here._socket.sendall(b"\0\0\0\x64half")
    here.shut()
    assert there.receive() is None


def test_log_records_are_sent_without_values_that_cannot_be(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    logger = logging.Logger("somebody's")
    logger.addHandler(Records(Outbox(here)))
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("task %s", object, extra={"session": "mine", "handle": object()})
    messages = there.receive()
    assert messages is not None
    ((name, values),) = messages
    record = logging.makeLogRecord(values)
    assert (name, record.name, record.session) == ("log", "somebody's", "mine")  # type: ignore[attr-defined]
    assert record.getMessage() == "task <class 'object'>"
    assert "ValueError: bad" in str(record.exc_text)
    assert not hasattr(record, "handle")


def test_a_worker_thread_logs_failures_of_posted_calls(caplog: pytest.LogCaptureFixture) -> None:
    worker = CallThread("worker")
    worker.post(lambda: 1 // 0)
    worker.stop()
    assert "ZeroDivisionError" in caplog.text


def test_a_worker_thread_rejects_calls_after_its_end() -> None:
    worker, done = CallThread("worker"), []
    future = worker.submit(lambda: 1)
    worker.post(lambda: done.append(2))
    worker.stop()
    assert (future.result(10), done) == (1, [2])
    with pytest.raises(RuntimeError, match="thread worker was stopped"):
        worker.submit(lambda: 3)
    worker.post(lambda: done.append(4))
    assert done == [2]


def test_results_of_calls_in_the_client_are_of_the_programs_classes() -> None:
    class Cell:
        scale = 1

    def name(thing: object) -> None:
        return None

    packed = dumps(Cell(), name)
    with copied_classes():  # as the client does
        cell = loads(packed, name)
        type(cell).scale = 99
        packed = dumps([cell], name)
    (result,) = loads(packed, name)
    assert (type(result), Cell.scale) == (Cell, 1)
