"""The README's table of capabilities and the declared options, compared with the backend."""

from __future__ import annotations

import inspect

from rhapsody_psij import PsijExecutionBackend
from rhapsody_psij.plugin import LOCAL, OPTIONS, capabilities_of
from rhapsody_testing import capability_table
from tests._support.pages import readme


def test_the_readme_lists_the_declared_capabilities() -> None:
    assert capability_table(LOCAL) in readme("rhapsody-psij")


def test_the_options_are_the_arguments_of_the_class() -> None:
    parameters = inspect.signature(PsijExecutionBackend).parameters
    declared = {option.name: option for option in OPTIONS if not option.instead}
    assert declared.keys() == parameters.keys()
    for name, parameter in parameters.items():
        if parameter.default is not None:
            assert declared[name].default == parameter.default


def test_capabilities_depend_on_the_executor() -> None:
    assert PsijExecutionBackend("slurm").capabilities == capabilities_of("slurm")
    assert capabilities_of("slurm").resources >= {"cores", "gpus", "memory", "ranks"}
    assert capabilities_of("unknown") == LOCAL
