"""What `WorkflowEngine.create` takes for arguments that a program does not give.

`rhapsody run` says here what its options ask of every engine that a script makes. In any other
program there are no such defaults, and those in the signature of `create` count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend

P = ParamSpec("P")
R = TypeVar("R")

FAILING: frozenset[str] = frozenset({"fail_fast", "keep_going", "max_failures"})
"""Arguments that are one choice: a program that gives one of them has made it."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """Takes the place of the defaults in the signature of `create`.

    What a program gives wins, with one exception: a dry run runs nothing.

    Attributes:
        settings: Arguments by their names.
        backend: Makes a backend for an engine that is given none.
        observers: Objects that are added to each engine's own observers.
        recording: What an engine with such arguments records and reuses: gives `journal` and
            `resume` in place of its own, where it gives them.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    backend: Callable[[], BaseExecutionBackend] | None = None
    observers: tuple[object, ...] = ()
    recording: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {}

    def fill_in(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of `create`, with those that it does not give."""
        chosen = FAILING if FAILING & given.keys() else frozenset[str]()
        ours = {name: value for name, value in self.settings.items() if name not in chosen}
        filled = {**ours, **given}
        filled |= self.recording(filled)
        filled["observers"] = (*given.get("observers", ()), *self.observers)
        overruled = ours.get("dry_run", False)
        if overruled:
            filled["dry_run"] = True
        named = any(given.get(name) is not None for name in ("backend", "backends"))
        works = overruled or not filled.get("dry_run")
        if self.backend is not None and not named and works:
            filled["backend"] = self.backend()
        return filled


_defaults: Defaults | None = None


@contextmanager
def defaults_of_engines(defaults: Defaults) -> Iterator[None]:
    """Has every engine that is made in this process meanwhile, in any thread, take these."""
    global _defaults
    before, _defaults = _defaults, defaults
    try:
        yield
    finally:
        _defaults = before


def with_defaults(create: Callable[P, R]) -> Callable[P, R]:
    """Has `create` take the process's defaults; its signature stays as it is written."""

    @wraps(create)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        if _defaults is None:
            return create(*args, **kwargs)
        given = inspect.signature(create).bind(*args, **kwargs).arguments
        call: Callable[..., R] = create
        return call(**_defaults.fill_in(given))

    return made
