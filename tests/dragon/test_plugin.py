"""Tests of the plugin's declaration, and of the README's table of capabilities."""

from __future__ import annotations

import inspect

from rhapsody_dragon import DragonExecutionBackend
from rhapsody_dragon.plugin import CAPABILITIES, OPTIONS
from rhapsody_testing import capability_table
from tests._support.pages import readme


def test_the_readme_lists_the_declared_capabilities() -> None:
    assert capability_table(CAPABILITIES) in readme("rhapsody-dragon")


def test_the_options_are_the_arguments_of_the_class() -> None:
    parameters = inspect.signature(DragonExecutionBackend).parameters
    declared = {option.name: option for option in OPTIONS}
    assert declared.keys() == parameters.keys()
    for name, parameter in parameters.items():
        if parameter.default is not None:
            assert declared[name].default == parameter.default
