"""Log records of worker processes are handled by the program, as it configured that."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine


class Handler(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def handler() -> Any:
    handler = Handler()
    logger = logging.getLogger("mine")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.mark.asyncio
async def test_a_record_arrives_before_its_task_is_done_and_says_which_that_was(
    handler: Handler,
) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:

        @flow.function_task
        def work(n: int) -> int:
            logger = logging.getLogger("mine.part")
            logger.debug("has %s", object, extra={"size": n, "odd": lambda: n})
            logging.getLogger("other").info("an unwanted record")
            try:
                raise LookupError("own")
            except LookupError:
                logger.exception("it failed")
            return os.getpid()

        future = work(7)
        pid = await future
        assert "it failed" in (future.stderr or "")
    first, second = handler.records
    assert (first.name, first.levelno, first.getMessage()) == (
        "mine.part",
        logging.DEBUG,
        "has <class 'object'>",
    )
    assert first.process == pid != os.getpid()
    attributes = vars(first)
    assert attributes["size"] == 7
    assert attributes["task_uid"] == future.uid == "task.000001"
    assert attributes["task_name"] == "work"
    assert "LookupError: own" in second.getMessage()


@pytest.mark.asyncio
async def test_records_of_threads_and_large_values_come_through_together(handler: Handler) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:

        @flow.function_task
        def work() -> bytes:
            import threading

            def talk() -> None:
                for number in range(200):
                    logging.getLogger("mine").info("%d %s", number, "x" * 1000)

            threads = [threading.Thread(target=talk) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return bytes(1 << 22)

        values = await asyncio.gather(*(work() for _ in range(4)))
    assert [len(value) for value in values] == [1 << 22] * 4
    assert len(handler.records) == 4 * 4 * 200


@pytest.mark.asyncio
async def test_a_handler_that_raises_holds_up_no_task(
    handler: Handler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def emit(record: logging.LogRecord) -> None:
        raise LookupError("of the handler")

    monkeypatch.setattr(handler, "emit", emit)
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:

        @flow.function_task
        def work() -> str:
            logging.getLogger("mine").error("from a task")
            return "well"

        assert await asyncio.wait_for(work(), 30) == "well"
    said = capsys.readouterr().err
    assert "LookupError: of the handler" in said
    assert "'from a task'" in said


@pytest.mark.asyncio
async def test_what_a_task_has_forked_logs_for_itself(handler: Handler) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:

        @flow.function_task
        def work() -> int:
            pid = os.fork()
            if not pid:
                logging.getLogger("mine").error("from the child")
                os._exit(0)
            return os.waitpid(pid, 0)[1]

        assert await work() == 0
        assert await work() == 0
    assert not handler.records


def test_a_program_sees_records_of_its_tasks_as_its_own(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import asyncio, logging, sys
        from rhapsody import LocalExecutionBackend, WorkflowEngine

        def work(n):
            logging.getLogger("lib").info("step %d", n)

        async def main():
            async with WorkflowEngine.create(LocalExecutionBackend(sys.argv[1])) as flow:
                await flow.function_task(work)(3)

        if __name__ == "__main__":
            logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
            logging.getLogger("rhapsody").setLevel(logging.WARNING)
            asyncio.run(main())
        """)
    )
    for executor in ("thread", "process"):
        done = subprocess.run(
            [sys.executable, "program.py", executor],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == "INFO lib: step 3\n"


def test_a_handler_that_a_module_adds_handles_each_record_once(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        textwrap.dedent("""
        import logging, sys

        class Plain(logging.Handler):
            def emit(self, record):
                print("plain", record.getMessage(), file=sys.stderr)

        logger = logging.getLogger("noisy")
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.StreamHandler())
        logger.addHandler(Plain())
        logger.addHandler(logging.FileHandler("noisy.log"))

        def work(n):
            logger.info("step %d", n)
        """)
    )
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import asyncio, logging, sys
        import noisy
        from rhapsody import LocalExecutionBackend, WorkflowEngine

        def own(n):
            import io
            stream = io.StringIO()
            noisy.logger.addHandler(logging.StreamHandler(stream))
            noisy.work(n)
            return stream.getvalue()

        async def main():
            async with WorkflowEngine.create(LocalExecutionBackend(sys.argv[1])) as flow:
                await flow.function_task(noisy.work)(1)
                assert await flow.function_task(own)(2) == "step 2\\n"

        if __name__ == "__main__":
            logging.getLogger("rhapsody").setLevel(logging.WARNING)
            asyncio.run(main())
        """)
    )
    for executor in ("thread", "process"):
        done = subprocess.run(
            [sys.executable, program, executor],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == "step 1\nplain step 1\nstep 2\nplain step 2\n"
        assert (tmp_path / "noisy.log").read_text() == "step 1\nstep 2\n"
        (tmp_path / "noisy.log").unlink()
