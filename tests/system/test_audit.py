"""The audit of the wheels' dependencies, which fails if the service does not answer."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OWN = {"name": "rhapsody-core", "skip_reason": "not on PyPI"}
GOOD = {"name": "cloudpickle", "version": "3.1", "vulns": []}


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """As much of nox's as the audit of one environment needs; `pip-audit` writes the answer."""

    def __init__(self, cache_dir: Path, packages: Sequence[Any] | None) -> None:
        self.cache_dir = cache_dir
        self._packages = packages

    def run(self, *words: str, **_: Any) -> None:
        if self._packages is not None:
            path = Path(words[words.index("--output") + 1])
            path.write_text(json.dumps({"dependencies": self._packages}))


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ([OWN, GOOD], []),
        (None, ["cannot be reached"]),
        ([OWN, {"name": "dask", "skip_reason": "not found"}], ["NOT AUDITED", "1 of 2", "dask"]),
        ([OWN, {**GOOD, "vulns": [{"id": "CVE-1"}]}], ["cloudpickle 3.1: CVE-1"]),
    ],
)
def test_only_what_was_asked_about_and_is_fine_passes(
    noxfile: ModuleType, tmp_path: Path, packages: Sequence[Any] | None, expected: list[str]
) -> None:
    environment = tmp_path / "environment"
    (environment / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    found = noxfile.known_faults(Session(tmp_path, packages), environment, "core")
    assert len(found) == bool(expected)
    for text in expected:
        assert text in found[0]
