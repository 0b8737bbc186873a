"""Arguments of `WorkflowEngine.create` that are refused, by their names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rhapsody import NoopExecutionBackend
from tests._support.engine_fixtures import create
from tests._support.scripted import Scripted, outcome

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("retries", -1, ValueError),
        ("retries", "two", TypeError),
        ("retries", 1.5, TypeError),
        ("retries", True, TypeError),
        ("lost_retries", -1, ValueError),
        ("lost_retries", "x", TypeError),
        ("timeout", 0, ValueError),
        ("timeout", -1, ValueError),
        ("timeout", math.nan, ValueError),
        ("timeout", math.inf, ValueError),
        ("timeout", "soon", ValueError),
        ("submit_timeout", 0, ValueError),
        ("submit_timeout", "soon", ValueError),
        ("max_pending", 0, ValueError),
        ("max_pending", -3, ValueError),
        ("max_pending", 2.5, TypeError),
        ("keep_sandboxes", "some", ValueError),
        ("uid", "../up", ValueError),
        ("uid", "a/b", ValueError),
        ("uid", "..", ValueError),
        ("uid", "a\0b", ValueError),
        ("uid", "u" * 300, ValueError),
        ("uid", "ü" * 110, ValueError),
        ("uid", "\ud800", ValueError),
        ("work_dir", 5, TypeError),
        ("work_dir", b"there", TypeError),
        ("work_dir", "a\0b", ValueError),
        ("work_dir", "/dev/null", ValueError),
        ("dry_run", "no", TypeError),
        ("fail_fast", 1, TypeError),
        ("implicit_data", None, TypeError),
        ("push_down", "yes", TypeError),
        ("handle_signals", 0, TypeError),
        ("trace", 7, TypeError),
        ("trace", True, TypeError),
        ("trace", b"p.jsonl", TypeError),
        ("trace", "", ValueError),
        ("trace", "/", ValueError),
        ("trace", "/no/such/place", ValueError),
        ("profile", True, TypeError),
        ("progress", "table", TypeError),
        ("max_failures", 0, ValueError),
        ("max_failures", True, TypeError),
    ],
)
async def test_an_argument_out_of_range_is_refused_by_its_name(
    name: str, value: object, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        await create(NoopExecutionBackend(), **{name: value})
    assert name in str(caught.value)
    assert str(value) in str(caught.value) or repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [42, b"mine"])
async def test_a_uid_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="uid"):
        await create(NoopExecutionBackend(), uid=value)


async def test_a_long_uid_that_is_accepted_can_name_every_sandbox(tmp_path: Path) -> None:
    async with create(uid="u" * 200, work_dir=tmp_path, keep_sandboxes="all") as flow:
        assert await flow.executable_task(lambda: "echo here")() == "here\n"


async def test_no_engine_is_created_in_a_removed_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for work_dir in (None, "here", tmp_path / "work"):
        with pytest.raises(FileNotFoundError):
            await create(work_dir=work_dir)


async def test_an_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_pendign"):
        create(NoopExecutionBackend(), max_pendign=3)


async def test_an_engine_that_was_refused_leaves_no_backend_running() -> None:
    backend = Scripted()
    error = await outcome(_refused(backend))
    assert isinstance(error, ValueError)
    assert backend.state() in ("initialized", "shutdown")


async def _refused(backend: Scripted) -> None:
    await create(backend, keep_sandboxes="some")
