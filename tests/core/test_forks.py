"""Tests of objects that forked children do not share with their parent."""

from __future__ import annotations

from rhapsody.forks import PerProcess
from tests._support.distributions import python


def test_a_process_has_one_object() -> None:
    holder: PerProcess[list[int]] = PerProcess(list)
    assert holder.get() is holder.get()


def test_a_forked_child_has_its_own_object() -> None:
    code = """
    import os
    from rhapsody.forks import PerProcess
    holder = PerProcess(list)
    holder.get().append(1)
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        assert holder.get() == [1]
    else:
        own = holder.get()
        own.append(2)
        os._exit(own != [2] or holder.get() is not own)
    """
    done = python(code)
    assert done.returncode == 0, done.stderr
