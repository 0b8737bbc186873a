"""Completion of the arguments of `WorkflowEngine.create`.

Arguments that the program passes to `create` take precedence over the command line of `rhapsody
run`, which takes precedence over the profile. The profile is selected by the program, the command
line, an environment variable or a file; see `rhapsody.engine.configuration.profiles`.
"""

from __future__ import annotations

import inspect
import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.backends.discovery import make_backend, normalize_name
from rhapsody.engine.configuration.options import OPTIONS, all_options
from rhapsody.engine.configuration.profiles import Profile, Value, active_profile, overlay
from rhapsody.errors import ProfileError
from rhapsody.plugins.manager import CORE
from rhapsody.plugins.specs import UsageError

log: logging.Logger = logging.getLogger("rhapsody.engine")

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """Options that `rhapsody run` sets for engines that a program creates.

    Arguments that the program passes to `create` take precedence, but cannot turn off a dry run.

    Attributes:
        options: Options of the command line by name.
        implied: Options that apply if neither the command line nor the profile sets them.
        backends: The names of the backends that engines use if the program chooses none.
        backend_options: Options of these backends, which replace those of the profile. Those of
            several backends are named as in `dask.workers`.
        stand_in: Function that creates the backend for a dry run.
        profile: The name of the profile.
        plugin_options: Options of plugins, by the plugin's distribution.
        observers: Observers that every engine has in addition to its own.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    backends: tuple[str, ...] = ()
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    stand_in: Callable[[], BaseExecutionBackend] | None = None
    profile: str | None = None
    plugin_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    observers: tuple[object, ...] = ()

    def active_profile(self, given: object = None) -> Profile:
        """Return the merged settings of the files.

        Args:
            given: The value of `profile` that the program passes to `create`.

        Raises:
            ProfileError: The profile does not exist, or a file contains a mistake.
            TypeError: `given` is neither a name nor `False`.
        """
        if given is False:
            return Profile()
        if given is not None and not (isinstance(given, str) and given):
            raise TypeError(f"profile must be the name of a profile, or False, got {given!r}")
        name = None
        if given is not None:
            name = Value(given, place="the program")
        elif self.profile is not None:
            name = Value(self.profile, place="--profile")
        backends = Value(list(self.backends), place="-b") if self.backends else None
        return active_profile(name, backends)

    def fill_in(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments for `create`: the given ones, and these defaults for the others.

        Raises:
            ProfileError: The profile cannot be used.
            UsageError: The backend cannot be used, or does not accept an option.
            TypeError: `profile` is neither a name nor `False`.
        """
        profile = self.active_profile(given.get("profile"))
        in_files = profile.engine_options()
        chosen = overlay(self.options, in_files)
        implied = dict(self.implied)
        if "fail_fast" in chosen:
            implied.pop("keep_going", None)
        filled = overlay(given, implied | chosen)
        sources = {
            **dict.fromkeys(in_files, "profile"),
            **dict.fromkeys(self.options, "command line"),
            **dict.fromkeys(given.keys() - {"cls"}, "program"),
        }
        chooses = any(given.get(name) is not None for name in ("backend", "backends"))
        if profile.backend is not None and not chooses:
            name = "backend" if len(profile.backends) == 1 else "backends"
            sources[name] = "command line" if self.backends else "profile"
        for name in sources.keys() - all_options().keys():
            raise UsageError(
                f"no installed plugin implements the engine option {name!r}; to repair the "
                f"installation: pip install --force-reinstall {CORE}"
            )
        filled["profile"] = profile.task_defaults(self.plugin_options, sources)
        filled["observers"] = (*given.get("observers", ()), *self.observers)
        if self.options.get("dry_run"):
            filled["dry_run"] = True
        backends: list[BaseExecutionBackend] = []
        if not chooses:
            if not filled.get("dry_run"):
                backends = backends_of(profile, self.backend_options)
            elif self.stand_in is not None:
                backends = [self.stand_in()]
        elif profile.is_for(given.get("backend")) and not filled.get("dry_run"):
            backends = [_backend_of(profile, given["backend"], {})]
        if chooses and (ignored := self._ignored(profile, given)):
            log.warning(
                "%s is not used, because the code passes a backend to this engine; omit it there",
                ignored,
            )  # fmt: skip
        if len(backends) == 1:
            filled["backend"] = backends[0]
        elif backends:
            filled["backends"] = backends
        return filled

    def _ignored(self, profile: Profile, given: Mapping[str, Any]) -> str | None:
        """Return the options of the command line that the program's own backend makes useless."""
        words = [f"-o {name}" for name in self.backend_options]
        if self.backends:
            words = [*(f"-b {name}" for name in self.backends), *words]
        elif self.profile is not None and profile.backend is not None:
            words = [f"--profile {self.profile}", *words]
        if not self.backend_options and profile.is_for(given.get("backend")):
            return None
        return " ".join(words) or None


def backends_of(profile: Profile, more: Mapping[str, Any]) -> list[BaseExecutionBackend]:
    """Create a profile's backends, if the profile sets a backend or any of its options.

    Args:
        profile: The profile.
        more: Further options of the backends, which replace those of the profile; see
            `EngineDefaults.backend_options`.

    Returns:
        The backends, not started.

    Raises:
        ProfileError: A backend cannot be used, or does not accept an option of the profile.
        UsageError: A backend does not accept a further option, or a further option is for none
            of the backends.
    """
    if profile.backend is None and not any(profile.options.values()) and not more:
        return []
    names = {normalize_name(name): name for name in profile.backends}
    further: dict[str, dict[str, Any]] = {key: {} for key in names}
    for full, value in more.items():
        key, _, option = full.rpartition(".")
        if not key and len(names) > 1:
            such = " or ".join(f"-o {name}.{option}" for name in names.values())
            raise UsageError(f"-o {full}: there are several backends; write {such}")
        key = normalize_name(key) or next(iter(names))
        if key not in names:
            used = ", ".join(names.values())
            raise UsageError(f"-o {full}: no such backend is used; the backends are {used}")
        further[key][option] = value
    return [_backend_of(profile, name, further[key]) for key, name in names.items()]


def _backend_of(profile: Profile, name: str, more: Mapping[str, Any]) -> BaseExecutionBackend:
    """Create one backend of a profile, with further options; raises as `backends_of`."""
    of_profile = profile.options.get(normalize_name(name), {})
    options = {option: each.value for option, each in of_profile.items()} | dict(more)
    try:
        return make_backend(name, options)
    except UsageError as error:
        if error.option in more:
            raise UsageError(f"-o {error.option}: {error}", option=error.option) from None
        place = profile.backend if error.option is None else of_profile[error.option]
        if place is None or place.file is None:
            raise
        raise ProfileError(f"{place.source}: {error}") from None


_defaults = EngineDefaults()


@contextmanager
def engine_defaults(defaults: EngineDefaults) -> Iterator[None]:
    """Set the defaults for engines that this process creates, in any thread, during the block."""
    global _defaults
    before, _defaults = _defaults, defaults
    try:
        yield
    finally:
        _defaults = before


def takes_options(create: Callable[P, R]) -> Callable[P, R]:
    """Decorate `create`: apply the process's defaults, and add the options to its docstring.

    Only a decorator can distinguish arguments that the program passed from defaults in the
    signature.

    Returns:
        The decorated function.
    """
    signature = inspect.signature(create)

    @wraps(create)
    def filled(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        call: Callable[..., R] = create
        return call(**_defaults.fill_in(given))

    lines = (f"{name}: {option.help}" for name, option in OPTIONS.items())
    text = "\n".join(
        textwrap.fill(line, 84, subsequent_indent="    ", break_on_hyphens=False) for line in lines
    )
    described = f"        Args:\n{textwrap.indent(text, ' ' * 12)}\n\n"
    before, _, after = (create.__doc__ or "").partition("        Returns:\n")
    filled.__doc__ = f"{before}{described}        Returns:\n{after}"
    return filled
