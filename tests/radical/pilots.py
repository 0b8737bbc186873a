"""How the tests start a pilot on this machine: small, quiet, and where pytest cleans up."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rhapsody_radical import RadicalExecutionBackend

FUNCTION_CORES = 2


def resources(**more: Any) -> dict[str, Any]:
    """The parameters of a pilot that pretends to have 8 cores, as `local.localhost` does."""
    return {"resource": "local.localhost", "cores": 4, "runtime": 20, **more}


def backend(pilots: Any = None, **settings: Any) -> RadicalExecutionBackend:
    """A backend that was not started, in a directory of its own."""
    settings.setdefault("function_cores", FUNCTION_CORES)
    settings.setdefault("work_dir", os.path.join(tempfile.gettempdir(), "rhapsody-radical-tests"))
    return RadicalExecutionBackend(resources() if pilots is None else pilots, **settings)


def customise(directory: Path, patch: pytest.MonkeyPatch, text: str) -> None:
    """Has every Python that starts from now on run a text first, the pilots' own, too."""
    (directory / "sitecustomize.py").write_text(text)
    patch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
