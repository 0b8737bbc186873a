"""Helpers for tests of the registry: backends to register, and an unusable one."""

from __future__ import annotations

from typing import Any

import pytest

from rhapsody import BackendRegistry, discover_backends, get_backend
from rhapsody.backends.base import ManagedBackend

SPEC = "name={name!r}, import_path='{module}:Backend'"
"""The arguments of a `BackendSpec`."""


class Mine(ManagedBackend):
    """A backend for tests."""

    name = "mine"

    async def run_task(self, task: Any) -> Any:
        return None


class Other(Mine):
    """Another one."""


def check_unusable(name: str, reason: str, remedy: str) -> None:
    described = BackendRegistry.describe(name)
    assert not described.usable
    assert reason in (described.reason or ""), described
    assert remedy in (described.remedy or ""), described
    assert discover_backends()[described.name] is False
    with pytest.raises(ImportError) as caught:
        get_backend(name)
    assert reason in str(caught.value)
    assert remedy in str(caught.value)
    assert discover_backends()["noop"] is True
