"""Comparison of a backend's declared options with the class of the backend."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from rhapsody.backends import BackendOption, BaseExecutionBackend


def check_options(
    options: Sequence[BackendOption],
    cls: type[BaseExecutionBackend],
    keys: Iterable[str],
    *,
    objects: Iterable[str] = (),
) -> None:
    """Holds that the options are the class's arguments and the keys of `resources`.

    Args:
        options: The declared options.
        cls: The class.
        keys: The keys that the argument `resources` accepts.
        objects: Arguments that are no plain data.
    """
    parameters = dict(inspect.signature(cls).parameters)
    parameters.pop("resources")
    declared = {option.name: option for option in options if not option.instead}
    assert declared.keys() - {"resources"} == {*parameters, *keys} - {*objects, "resources"}
    for name, parameter in parameters.items():
        if name in declared and parameter.default not in (None, ()):
            assert declared[name].default == parameter.default, name
    assert declared["name"].default == cls.name
