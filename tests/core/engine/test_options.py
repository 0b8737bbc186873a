"""Options of the engine are described once, and everything else agrees with that."""

from __future__ import annotations

import inspect

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from rhapsody.engine.configuration.options import (
    OPTIONS,
    EngineOptions,
    EngineSettings,
    all_options,
)


def test_the_signature_of_create_has_the_options_and_their_defaults() -> None:
    parameters = inspect.signature(WorkflowEngine.create).parameters
    defaults = {name: option.default for name, option in all_options().items()}
    assert {name: each.default for name, each in parameters.items()} == defaults


def test_the_settings_of_run_have_the_types_of_create() -> None:
    parameters = inspect.signature(WorkflowEngine.create).parameters
    types = {name: each.__forward_arg__ for name, each in EngineSettings.__annotations__.items()}
    assert types == {name: each.annotation for name, each in parameters.items()}


def test_the_docstring_of_create_describes_every_option() -> None:
    text = " ".join((WorkflowEngine.create.__doc__ or "").split())
    assert [name for name, each in OPTIONS.items() if each.help not in text] == []
    assert [name for name in OPTIONS if f"{name}: " not in text] == []
    assert [name for name in all_options().keys() - OPTIONS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", ["work_dir", "results_dir", "trace", "record"])
def test_a_tilde_in_a_path_of_the_program_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"expanduser"):
        EngineOptions.of({name: "~/x"})


def test_numbers_of_numpy_are_accepted() -> None:
    numpy = pytest.importorskip("numpy")
    given = EngineOptions.of({"max_pending": numpy.int64(3), "timeout": numpy.float32(2)})
    assert (given.max_pending, given.timeout) == (3, 2.0)
    backend = LocalExecutionBackend(resources={"cores": numpy.int64(2), "workers": numpy.int64(2)})
    assert backend.machine.workers == 2
