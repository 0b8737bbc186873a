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
        ({"binds": frozenset({"gpus"})}, ValueError, "must be a subset of resources"),
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
        ({"name": " "}, ValueError, "a name is needed"),
        ({"name": None}, TypeError, "name=None): a string"),
        ({"import_path": "toys"}, ValueError, "malformed: write 'package.module:Class'"),
        ({"import_path": 3}, TypeError, "import_path=3"),
        ({"summary": b"toys"}, TypeError, "summary=b'toys'): a string"),
        ({"api_version": "1"}, TypeError, "api_version='1'): a number"),
        ({"requires": "numpy"}, TypeError, "requires='numpy'): a list of strings"),
        ({"requires": [1]}, TypeError, "requires=[1]): a list of strings"),
        ({"requires": b"ab"}, TypeError, "requires=b'ab'): a list of strings"),
        ({"capabilities": "all"}, TypeError, "capabilities='all'): a Capabilities or None"),
        ({"install_hint": 3}, TypeError, "install_hint=3): a string"),
    ],
)
def test_an_invalid_declaration_is_refused(
    wrong: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        replace(SPEC, **wrong)
