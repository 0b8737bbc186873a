"""Tests of the pages for plugin authors: they cover every hook, method and capability."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import rhapsody.sdk
from rhapsody.backends.base import BaseExecutionBackend, Capabilities, ManagedBackend
from rhapsody.plugins import specs
from rhapsody.task import TaskDescription
from rhapsody_testing._suite import Suite

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "docs" / "plugins"
HOOKS = {
    name: value for name, value in vars(specs).items() if hasattr(value, f"{specs.PROJECT}_spec")
}
HOOK_TESTS = ROOT / "tests/core/plugins/test_specs.py"


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_documents_its_purpose_its_calls_and_its_arguments(name: str) -> None:
    text = inspect.getdoc(HOOKS[name]) or ""
    assert text.partition("\n")[0].endswith(".")
    assert re.search(r"^Called ", text, re.MULTILINE)
    for argument in inspect.signature(HOOKS[name]).parameters:
        assert f"\n    {argument}: " in text


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_test_that_calls_it_in_an_installed_plugin(name: str) -> None:
    tests = [
        node.name
        for node in ast.parse(HOOK_TESTS.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [test for test in tests if test.startswith(f"test_{name}_")], (
        f"write test_{name}_... in {HOOK_TESTS.relative_to(ROOT)}"
    )


def first_column(page: str) -> set[str]:
    """Return the names in the first columns of a page's tables."""
    rows = re.findall(r"^\| (`[^|]+) \|", (PLUGINS / page).read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("kind", [BaseExecutionBackend, ManagedBackend])
def test_every_method_of_a_backend_is_documented(kind: type) -> None:
    for name, value in vars(kind).items():
        if inspect.isfunction(value) or isinstance(value, classmethod):
            assert name.startswith("_") or inspect.getdoc(getattr(kind, name)), name


def attributes(kind: type) -> set[str]:
    """Return the names in the section `Attributes` of a docstring."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    return set(re.findall(r"^    (\w+): ", section, re.MULTILINE))


def test_every_capability_is_documented() -> None:
    assert attributes(Capabilities) == {field.name for field in dataclasses.fields(Capabilities)}


def test_every_key_of_a_description_is_documented() -> None:
    keys = TaskDescription.__required_keys__ | TaskDescription.__optional_keys__
    assert attributes(TaskDescription) | {"args", "kwargs", "metadata"} == keys


@pytest.mark.parametrize("name", rhapsody.sdk.__all__)
def test_every_name_of_the_sdk_is_documented(name: str) -> None:
    thing = getattr(rhapsody.sdk, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing), f"{name} has no docstring"
    for method, value in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(value) and not method.startswith("_"):
            assert inspect.getdoc(value), f"{name}.{method} has no docstring"


def test_every_setting_of_the_kit_has_its_row() -> None:
    names = {name for name in (*Suite.__annotations__, *vars(Suite)) if not name.startswith("_")}
    of_checks = {"adder", "capabilities", "drive", "few", "form", "kinds", "place", "routes"}
    assert names - of_checks <= first_column("kit.md")
