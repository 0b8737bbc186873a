"""Cleanup after programs that were killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.radical import kills
from tests.radical.pilots import backend

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]


@pytest.mark.parametrize(
    ("moment", "fork", "keep"),
    [
        ("starting", True, False),
        ("submitting", False, False),
        ("executables", True, True),
        ("raptor calls", False, False),
        ("closing", True, False),
    ],
)
def test_a_killed_program_leaves_nothing(
    tmp_path: Path, moment: str, fork: bool, keep: bool
) -> None:
    kills.kill(tmp_path, moment, fork=fork, keep=keep)


@pytest.mark.asyncio
async def test_the_next_start_cleans_up_after_a_killed_program_and_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with kills.program(tmp_path, "executables") as found, kills.bystanders(found) as others:
        client = found.client()
        found.process.kill()
        client.kill()
        found.process.wait()
        assert found.left(others, files=False)
        made = backend(work_dir=tmp_path / "work")
        await made
        await made.shutdown()
        found.gone(others, files=False)
    (said,) = (text for text in caplog.messages if found.session.name in text)
    assert "its client ended without closing the session" in said
    assert str(found.session) in said
    assert [path.name for path in (tmp_path / "work").iterdir()] == [found.session.name]
