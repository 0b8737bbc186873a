"""Private names of Dask: a version without them is rejected at the start."""

from __future__ import annotations

from importlib.metadata import version

import dask._task_spec
import distributed  # noqa: F401 - needs the names before the test removes them
import pytest

from rhapsody.errors import BackendUnavailableError
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio


async def test_a_version_of_dask_without_private_names_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(dask._task_spec, "TaskRef")
    words = f"dask {version('dask')}: cannot import name .TaskRef"
    with pytest.raises(BackendUnavailableError, match=words):
        await DaskExecutionBackend({"n_workers": 1, "threads": 1, "processes": False})
