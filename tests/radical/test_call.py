"""Execution of calls: values in messages or files, errors and output."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody_radical import call, functions
from rhapsody_radical.functions import completed
from tests.radical.calls import MIB, Block, Frozen, packed, same


class Heavy(Exception):  # noqa: N818 - a name
    def __init__(self, block: Any) -> None:
        super().__init__("heavy")
        self.block = block


class Mute(Exception):  # noqa: N818 - a name
    def __str__(self) -> str:
        raise LookupError


def fail(error: BaseException) -> None:
    raise error


def made(directory: Path | None, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the result of a call, or raise its exception, after a round trip."""
    task, order = packed(directory, function, *args, **kwargs)
    error = functions.unpack(call.run(order), task)
    return task["return_value"] if error is None else error


@pytest.mark.parametrize("size", [0, 100, call.LARGE - 1, call.LARGE, 5 * MIB])
@pytest.mark.parametrize("kind", [bytes, bytearray, Block])
@pytest.mark.parametrize("shared", [True, False])
def test_values_arrive_unchanged(tmp_path: Path, kind: Any, size: int, shared: bool) -> None:
    value = [kind(os.urandom(size)), {"size": size}]
    assert made(tmp_path if shared else None, same, value) == value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [100, 5 * MIB])
@pytest.mark.parametrize("shared", [True, False])
def test_values_stay_writable_or_read_only(tmp_path: Path, size: int, shared: bool) -> None:
    directory = tmp_path if shared else None
    for kind in (Block, Frozen):
        assert type(made(directory, same, kind(size))) is kind


def test_large_values_are_sent_in_private_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "own_modules", lambda: None)  # those of all tests are many
    task, order = packed(tmp_path, same, Block(5 * MIB))
    (sent,) = tmp_path.iterdir()
    assert stat.S_IMODE(sent.stat().st_mode) == 0o600
    assert sent.stat().st_size < 5.1 * MIB
    reply = call.run(order)
    (back,) = tmp_path.iterdir()
    assert back != sent
    assert stat.S_IMODE(back.stat().st_mode) == 0o600
    assert max(len(order), len(reply)) < 2000
    assert functions.unpack(reply, task) is None
    assert list(tmp_path.iterdir()) == []


def test_large_buffers_are_not_copied_into_the_pickle(tmp_path: Path) -> None:
    block = Block(5 * MIB)
    data, (buffer,) = call.dump([block], str(tmp_path))
    assert len(data) < 1000
    assert buffer.obj is block


def test_a_missing_file_fails_the_call(tmp_path: Path) -> None:
    task, order = packed(tmp_path, same, bytes(MIB))
    functions.forget(str(tmp_path), task["uid"])
    assert type(functions.unpack(call.run(order), task)) is FileNotFoundError
    task, order = packed(tmp_path, same, bytes(MIB))
    reply = call.run(order)
    functions.forget(str(tmp_path), task["uid"])
    error = functions.unpack(reply, task)
    assert type(error) is FileNotFoundError
    assert "task.1" in error.__notes__[0]


def test_values_that_cannot_be_pickled_are_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'task.1': argument 'rest' \(lock\) cannot be pickled"):
        packed(tmp_path, same, bytes(MIB), rest=threading.Lock())
    error = made(tmp_path, threading.Lock)
    assert type(error) is TypeError
    assert "its result (lock) cannot be pickled by" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_can_contain_a_large_array(tmp_path: Path) -> None:
    error = made(tmp_path, fail, Heavy(Block(5 * MIB)))
    assert type(error) is Heavy
    assert error.args == ("heavy",)
    assert type(error.block) is Block
    assert len(error.block) == 5 * MIB
    assert "in fail" in str(error.__cause__)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_whose_str_fails_is_returned() -> None:
    assert type(made(None, fail, Mute())) is Mute


def test_a_full_disk_fails_the_call_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, order = packed(tmp_path, bytes, MIB)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pickle, "dump", full)
    error = functions.unpack(call.run(order), task)
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOSPC, str(tmp_path / "task.1.result"))
    with pytest.raises(OSError, match="No space left"):
        packed(tmp_path, len, bytes(MIB))
    assert list(tmp_path.iterdir()) == []


def test_processes_of_a_call_have_its_task_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def uid() -> str:
        return subprocess.check_output("echo $RP_TASK_ID", shell=True, text=True).strip()

    monkeypatch.setenv("RP_TASK_ID", "the.worker")
    assert made(None, uid) == "task.1"
    assert os.environ["RP_TASK_ID"] == "the.worker"


def test_a_call_can_close_its_output_streams() -> None:
    def body() -> str:
        print("said")
        sys.stdout.close()
        sys.stderr = None
        return "value"

    task, order = packed(None, body)
    assert functions.unpack(call.run(order), task) is None
    assert (task["return_value"], task["stdout"], task["stderr"]) == ("value", "said\n", "")


def test_a_call_whose_output_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    task = completed("task.1", {"function": same, "args": (1,)}, None)
    task["sandbox"] = str(tmp_path / "file" / "sandbox")
    order = functions.as_text(functions.pack(task, {}, capture="files"))
    before = os.getcwd(), dict(os.environ), sys.stdout
    assert type(functions.unpack(call.run(order), task)) is NotADirectoryError
    assert before == (os.getcwd(), dict(os.environ), sys.stdout)
