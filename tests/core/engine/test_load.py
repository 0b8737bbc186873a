"""Many tasks, and what is said where something runs out: `tests._support.load` with few tasks."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody import OutputFile, WorkflowEngine
from rhapsody.fsutil import used_up
from tests._support.load import TRIALS
from tests._support.scripted import within

pytestmark = [pytest.mark.timeout(120), pytest.mark.long]


@pytest.mark.parametrize("name", TRIALS)
def test_many_tasks_end_as_they_should(name: str, tmp_path: Path) -> None:
    try:
        TRIALS[name](tmp_path, 200)
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.asyncio
async def test_an_engine_works_and_ends_where_no_more_threads_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    work = tmp_path / "work"
    async with WorkflowEngine.create(work_dir=work, uid="e") as flow:

        @flow.executable_task
        def write(file: OutputFile) -> str:
            return f"touch {file}"

        @flow.function_task
        def function() -> None: ...

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            await within(write(OutputFile("made", save=False)))
            call: Any = function()
            with pytest.raises(RuntimeError, match="new thread") as raised:
                await within(call)
            assert "`ulimit -u`" in raised.value.__notes__[0]
            assert (work / "e.task.000001.1").is_dir()
            await within(flow.shutdown())
    assert [path.name for path in (work / "e.task.000001.1").iterdir()] == ["made"]


def test_errors_name_the_exhausted_resource() -> None:
    descriptors = used_up(OSError(errno.EMFILE, "Too many open files"), program=False)
    assert descriptors is not None
    assert "open files was reached" in descriptors
    busy = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    processes = used_up(busy, program=True)
    assert processes is not None
    assert "processes and threads was reached" in processes
    assert used_up(RuntimeError("can't start new thread"), program=False) == processes
    assert used_up(busy, program=False) is None
    assert used_up(RuntimeError("other"), program=True) is None
    assert used_up(OSError("other"), program=True) is None
