"""The last frames of a traceback: the user's own, and where a library failed."""

from __future__ import annotations

import json
import os
import site
from pathlib import Path

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine, current_task
from rhapsody.sdk.calls import RemoteTraceback
from rhapsody.tracebacks import as_lines, format_error, is_users_code, last_frames, location_of
from tests._support.scripted import outcome

HERE = os.path.basename(__file__)


def parse(text: str) -> object:
    return json.loads(text)


def caught(text: str = "{") -> BaseException:
    with pytest.raises(ValueError, match=r".") as error:
        parse(text)
    return error.value


def test_the_frames_are_the_users_own_and_the_innermost_of_a_library() -> None:
    frames = last_frames(caught())
    assert [frame.function for frame in frames] == ["caught", "parse", "raw_decode"]
    assert location_of(caught()) == frames[1].location
    assert frames[1].location.startswith(f"{HERE}:")
    _, _, place, source, *_ = as_lines(frames, os.path.dirname(__file__))
    assert place == f'File "{HERE}", line {frames[1].line}, in parse'
    assert source == "  return json.loads(text)"


def test_only_the_last_frames_are_shown() -> None:
    def deep(number: int) -> None:
        deep(number - 1) if number else parse("{")

    with pytest.raises(ValueError, match=r".") as error:
        deep(100)
    assert [frame.function for frame in last_frames(error.value)] == [
        "deep", "deep", "parse", "raw_decode"
    ]  # fmt: skip


def test_an_error_of_rhapsodys_own_shows_the_line_that_called_it() -> None:
    def call() -> None:
        LocalExecutionBackend("nonsense")

    with pytest.raises(ValueError, match=r".") as error:
        call()
    assert last_frames(error.value)[-1].function == "call"
    error.value.__traceback__ = None
    assert last_frames(error.value) == []
    assert location_of(None) is None


def test_a_traceback_that_came_as_text_is_read() -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "/home/me/other.py", line 1, in other\n'
        "    first\n"
        "KeyError: 1\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n"
        '  File "/home/me/stats.py", line 31, in clean\n'
        "    return mean(row)\n"
        "           ^^^^^^^^^\n"
        '  File "/home/me/stats.py", line 12, in mean\n'
        "KeyError: 'temp'\n"
    )
    error = KeyError("temp")
    error.__cause__ = RemoteTraceback(text)
    assert as_lines(last_frames(error), "/home/me") == [
        'File "stats.py", line 31, in clean',
        "  return mean(row)",
        'File "stats.py", line 12, in mean',
    ]
    assert location_of(error) == "stats.py:12"


@pytest.mark.asyncio
async def test_the_frames_of_who_awaited_the_task_are_left_out(tmp_path: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def task() -> None:
            assert current_task() is not None
            parse("{")

        error = await outcome(task())
    assert [frame.function for frame in last_frames(error)] == ["task", "parse", "raw_decode"]


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["thread", "process"])
async def test_a_printed_traceback_has_the_frames_of_the_task_and_none_of_rhapsodys_own(
    kind: str,
) -> None:
    def fail() -> None:
        try:
            parse("{")
        except ValueError as first:
            raise KeyError("second") from first

    async with WorkflowEngine.create(LocalExecutionBackend(kind)) as flow:
        try:
            await flow.function_task(fail)()
        except KeyError as error:
            printed = format_error(ExceptionGroup("several", [error]))
    assert "task.py" not in printed
    assert printed.count("in fail\n") == 2
    assert "JSONDecodeError" in printed


def test_packages_of_the_user_site_and_of_other_environments_are_no_users_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_users_code(__file__)
    assert is_users_code("<string>")
    assert not is_users_code(os.path.join(site.getusersitepackages(), "library.py"))
    assert not is_users_code("/worker/lib/python3.12/site-packages/library/core.py")
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert is_users_code("relative.py")
