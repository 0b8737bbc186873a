"""What holds for every test: nothing of the user's settings gets in, no file stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in an empty directory, with the plugins that are installed and no others."""
    for variable in [name for name in os.environ if name.startswith("RHAPSODY_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
