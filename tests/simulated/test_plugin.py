"""The declaration of the backend, compared with its class and with the README."""

from __future__ import annotations

import inspect

from rhapsody import StateMapper, TasksMainStates, get_backend
from rhapsody_simulated import SimulatedExecutionBackend
from rhapsody_simulated.plugin import CAPABILITIES, OPTIONS
from rhapsody_testing import capability_table
from tests._support.pages import readme


def test_the_readme_lists_the_declared_capabilities() -> None:
    assert capability_table(CAPABILITIES) in readme("rhapsody-simulated")


def test_the_options_are_the_arguments_of_the_class() -> None:
    parameters = inspect.signature(SimulatedExecutionBackend).parameters
    declared = {option.name: option for option in OPTIONS}
    assert declared.keys() == parameters.keys()
    for name, parameter in parameters.items():
        if parameter.default is not None:
            assert declared[name].default == parameter.default


def test_the_backend_is_found_by_its_name_with_the_canonical_states() -> None:
    assert isinstance(get_backend("simulated", nodes=2), SimulatedExecutionBackend)
    mapper = StateMapper("Simulated")
    assert all(mapper.to_main_state(state.name) is state for state in TasksMainStates)
