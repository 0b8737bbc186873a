"""The backend without an engine."""

from __future__ import annotations

import pytest

from rhapsody_dask import DaskExecutionBackend
from tests.direct import check_direct_use


@pytest.mark.asyncio
async def test_it_is_driven_without_an_engine_too(backend: DaskExecutionBackend) -> None:
    await check_direct_use(backend)
