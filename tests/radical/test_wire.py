"""Messages between a program and its client."""

from __future__ import annotations

import logging
import pickle
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody_radical import wire
from rhapsody_radical.wire import HEADER, Channel, Outbox, Records, Worker
from tests._support.nonsense import little_memory, nonsense


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
    here._socket.sendall(HEADER.pack(wire.VERSION, 100) + b"half")
    here.shut()
    assert there.receive() is None


def test_another_version_raises_with_a_fix(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here._socket.sendall(HEADER.pack(wire.VERSION + 1, 0))
    with pytest.raises(RuntimeError, match="Restart the program"):
        there.receive()


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


@given(nonsense(pickle.dumps((("name", 1, b"x"),))))
@settings(max_examples=50, deadline=None)
def test_malformed_data_is_an_error_or_the_end(data: bytes) -> None:
    here, there = socket.socketpair()
    with here, little_memory():
        here.sendall(HEADER.pack(wire.VERSION, len(data)) + data)
        here.shutdown(socket.SHUT_WR)
        channel = Channel(there)
        try:
            batch = channel.receive()
        except RuntimeError:
            return
        else:
            assert batch is not None
            assert all(type(name) is str for name, *_ in batch)
            assert channel.receive() is None
        finally:
            channel.close()


@given(st.binary(max_size=HEADER.size + 4))
@settings(max_examples=50, deadline=None)
def test_a_malformed_header_is_an_error_or_the_end(data: bytes) -> None:
    here, there = socket.socketpair()
    with here, little_memory():
        here.sendall(data)
        here.shutdown(socket.SHUT_WR)
        channel = Channel(there)
        try:
            assert channel.receive() in (None, ())
        except (RuntimeError, MemoryError):
            assert len(data) >= HEADER.size
        finally:
            channel.close()


def test_a_worker_thread_rejects_calls_after_its_end() -> None:
    worker, done = Worker("worker"), []
    future = worker.submit(lambda: 1)
    worker.post(lambda: done.append(2))
    worker.stop()
    assert (future.result(10), done) == (1, [2])
    with pytest.raises(RuntimeError, match="thread worker was stopped"):
        worker.submit(lambda: 3)
    worker.post(lambda: done.append(4))
    assert done == [2]
