"""The log of a run: its contents, when it is written, and no effect on other loggers."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rhapsody import WorkflowEngine
from rhapsody.cli import main
from rhapsody.sdk.runs import RunLog
from tests._support.scripted import within

log = logging.getLogger("rhapsody.task")


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """Our logger, whose level a test may change."""
    logger = logging.getLogger("rhapsody")
    before = logger.level
    yield logger
    logger.setLevel(before)


@pytest.fixture
def take(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """Reads what a log of a run, which takes records, has."""
    path = tmp_path / "log.txt"
    handler = RunLog(lambda: str(path))
    handler.begin()
    yield lambda: path.read_text().splitlines() if path.exists() else []
    handler.end()


@pytest.mark.asyncio
async def test_the_log_is_in_the_runs_directory_and_its_users_alone(tmp_path: Path) -> None:
    before = list(logging.getLogger("rhapsody").handlers)  # of engines that tests have left
    async with WorkflowEngine.create() as one, WorkflowEngine.create():
        log.warning("%s is odd\nvery", "é", stack_info=False)
        path = one.work_dir.parent / "log.txt"
        line, rest = path.read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING rhapsody.task: é .*", line
        )
        assert rest == "very"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.warning("after the end")
    async with WorkflowEngine.create():
        log.warning("once more")
    assert "after" not in path.read_text()
    assert (tmp_path / ".rhapsody" / "latest" / "log.txt").read_text().endswith("once more\n")
    assert logging.getLogger("rhapsody").handlers == before


@pytest.mark.asyncio
async def test_a_run_that_logs_nothing_has_none(tmp_path: Path) -> None:
    async with WorkflowEngine.create(keep_sandboxes="all") as flow:
        await within(flow.executable_task(lambda: "true")())
        log.info("not enabled")
    assert [path.name for path in flow.work_dir.parent.iterdir()] == [flow.uid]


def test_it_takes_what_the_program_has_enabled_from_info_on(
    take: Callable[[], list[str]], ours: logging.Logger
) -> None:
    log.info("quiet")
    assert take() == []
    ours.setLevel(logging.DEBUG)
    log.debug("details")
    log.info("loud")
    assert [line.rpartition(" ")[2] for line in take()] == ["loud"]


def test_an_exception_is_in_it_with_its_traceback(take: Callable[[], list[str]]) -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        log.exception("failed")
    assert take()[-1] == "ValueError: odd"


PRINTS = """
import asyncio, logging, sys
from rhapsody import WorkflowEngine
from rhapsody.cli import main
{}

async def main():
    async with WorkflowEngine.create(), WorkflowEngine.create():
        logging.getLogger("rhapsody.task").warning("careful")
        logging.getLogger("rhapsody.task").info("fine")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("settings", "printed"),
    [
        ("", "careful\n"),
        (
            "logging.basicConfig(level='INFO')",
            "WARNING:rhapsody.task:careful\nINFO:rhapsody.task:fine\n",
        ),
        ("logging.getLogger('rhapsody').addHandler(logging.NullHandler())", ""),
        ("logging.lastResort = None", ""),
        ("logging.disable()", ""),
    ],
)
def test_the_program_prints_what_it_does_without_a_log(
    tmp_path: Path, settings: str, printed: str
) -> None:
    command = [sys.executable, "-c", PRINTS.format(settings)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == printed


def test_a_forked_child_writes_nothing_into_its_parents_log(
    take: Callable[[], list[str]],
) -> None:
    log.warning("parent")
    child = os.fork()
    if child == 0:
        log.warning("child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    (line,) = take()
    assert line.endswith("parent")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_failing_disk_is_reported_once_and_fails_no_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = RunLog(lambda: "/dev/full")
    handler.begin()
    log.warning("one")
    log.warning("two")
    handler.end()
    said, *others = caplog.messages
    assert said.startswith("log of this run: disabled ([Errno 28]")
    assert others == ["one", "two"]


def test_a_record_that_cannot_be_formatted_is_left_out(
    take: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("odd")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    handlers = logging.getLogger().handlers[:]
    for handler in handlers:
        logging.getLogger().removeHandler(handler)
    try:
        log.warning("%s", Odd())
    finally:
        for handler in handlers:
            logging.getLogger().addHandler(handler)
    log.warning("next")
    (line,) = take()
    assert line.endswith("next")


def test_the_command_line_leaves_a_log_of_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow.py").write_text(
        "async def main(flow):\n"
        "    def part(number):\n"
        "        raise LookupError('odd')\n"
        "    def after(part):\n"
        "        pass\n"
        "    parts = flow.map(flow.function_task(part), [1, 2])\n"
        "    flow.map(flow.function_task(after), parts)\n"
    )
    log = tmp_path / ".rhapsody" / "latest" / "log.txt"
    for option in ("-e", "retries=0"), ("-q",):
        assert main(["run", "flow.py", *option]) == 1
        begins, *_ = lines = log.read_text().splitlines()
        assert re.search(
            r" INFO rhapsody\.run: engine \S+ started on local; process \d+ on ", begins
        )
        assert any(
            "INFO rhapsody.run: engine" in line and "2 failed, 2 skipped" in line for line in lines
        )
        assert sum("LookupError: odd in part (flow.py:3)" in line for line in lines) == 1
        shutil.rmtree(log.parent.resolve())
    assert "the run's files" not in capsys.readouterr().err
    assert main(["run", "flow.py", "--dry-run"]) == 0
    assert not log.exists()
