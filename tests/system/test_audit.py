"""The audit of the wheels' dependencies, which fails if the service does not answer."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from tests.system.support import ROOT

OWN = {"name": "rhapsody-core", "skip_reason": "not on PyPI"}
GOOD = {"name": "cloudpickle", "version": "3.1", "vulns": []}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        pytest.param([OWN, GOOD], [], id="no problems"),
        pytest.param([], ["cannot be reached"], id="no answer"),
        pytest.param(
            [OWN, {"name": "dask", "skip_reason": "not found"}],
            ["NOT AUDITED", "1 of 2", "dask"],
            id="no data on a package",
        ),
        pytest.param(
            [OWN, {**GOOD, "vulns": [{"id": "CVE-1"}]}], ["cloudpickle 3.1: CVE-1"], id="a fault"
        ),
    ],
)
def test_only_packages_that_were_looked_up_and_have_no_faults_pass(
    audit: ModuleType, packages: list[dict[str, Any]], expected: list[str]
) -> None:
    found = audit.problems("rhapsody-core", packages)
    assert len(found) == bool(expected)
    for text in expected:
        assert text in found[0]
