"""Invalid declarations are refused when they are made."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from rhapsody.backends.base import Capabilities
from rhapsody.plugins.specs import BackendSpec

SPEC = BackendSpec(name="toy", import_path="toys.backend:Toy")


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"executables": "yes"}, TypeError, "executables must be True or False, got 'yes'"),
        ({"files": None}, TypeError, "files must be True or False, got None"),
        ({"cancel_functions": "always"}, ValueError, "'none', 'queued', 'running'"),
        ({"cancel_services": True}, ValueError, "cancel_services must be one of"),
        ({"resources": ["cores"]}, TypeError, "frozenset({'cores'})"),
        (
            {"resources": frozenset({"cpus"})},
            ValueError,
            "unknown resource 'cpus'; valid resources: cores, ",
        ),
        (
            {"task_settings": {"queue"}},
            TypeError,
            "a frozenset of keys, such as frozenset({'",
        ),
        (
            {"task_settings": frozenset({1})},
            TypeError,
            "task_settings must be None or a frozenset of keys",
        ),
        ({"result_settings": ["flags"]}, TypeError, "result_settings must be None or a frozenset"),
        ({"binds": frozenset({"gpus"})}, ValueError, "must be a subset of resources"),
        ({"mpi_functions": True}, ValueError, "requires 'ranks' in resources"),
    ],
)
def test_invalid_capabilities_are_refused(
    wrong: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        Capabilities(**wrong)
    with pytest.raises(kind, match=re.escape(said)):
        replace(Capabilities(), **wrong)


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"name": " "}, ValueError, "name must not be empty"),
        ({"name": None}, TypeError, "name must be a string, got None"),
        ({"import_path": "toys"}, ValueError, "must be 'package.module:Class'"),
        ({"import_path": 3}, TypeError, "import_path must be a string"),
        ({"summary": b"toys"}, TypeError, "summary must be a string, got b'toys'"),
        ({"api_version": "1"}, TypeError, "api_version must be a number, got '1'"),
        ({"requires": "numpy"}, TypeError, "requires must be a list of strings, got 'numpy'"),
        ({"requires": [1]}, TypeError, "requires must be a list of strings, got [1]"),
        ({"requires": b"ab"}, TypeError, "requires must be a list of strings, got b'ab'"),
        (
            {"capabilities": "all"},
            TypeError,
            "capabilities must be a Capabilities or None, got 'all'",
        ),
        ({"install_hint": 3}, TypeError, "install_hint must be a string, got 3"),
    ],
)
def test_an_invalid_declaration_is_refused(
    wrong: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        replace(SPEC, **wrong)
