"""Loads plugins, each on its own, and gives the engine the hooks they implement.

Each plugin has a pluggy manager of its own: what is wrong with one, when it is
imported, registered or called, cannot touch another. Which backends the plugins
declare is judged by `rhapsody.backends.discovery`.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import pluggy

from rhapsody.errors import PluginError, describe_error
from rhapsody.plugins import specs
from rhapsody.plugins.entry_points import (
    CORE,
    CORE_MODULE,
    DISABLE,
    Declared,
    Installed,
    installed,
)
from rhapsody_guard import ConflictError

logger: logging.Logger = logging.getLogger("rhapsody.plugins")

_ENGINE_HOOKS = (
    "workflow_started",
    "workflow_finished",
    "task_events",
    "prepare_task",
    "select_backend",
    "lookup_results",
    "record_results",
)
_LOOKING = frozenset(
    {
        "rhapsody_prepare_task",
        "rhapsody_select_backend",
        "rhapsody_lookup_results",
        "rhapsody_record_results",
    }
)
"""Hooks that are called for each task before it is with its backend, or with its value."""

_AWAITABLE = frozenset({"rhapsody_lookup_results", "rhapsody_record_results"})
SLOW = 5.0
"""Seconds after which an import that has not come back is named."""

_loading = threading.local()
_reported: set[tuple[str, str]] = set()


class PluginHook(NamedTuple):
    """One plugin's implementation of one hook.

    Attributes:
        plugin: Who implements it: a distribution's name, or an observer's class.
        call: Calls it with the hook's arguments by name; the implementation gets
            those it asks for.
        hook: The hook's name.
    """

    plugin: str
    call: Callable[..., Any]
    hook: str


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin that was imported and registered.

    Attributes:
        label: Who it is, for messages.
        plugin: The module or object.
        hooks: Its implementations by hook name, each with its rank among those of
            other plugins: -1 first, 1 last.
        seconds: How long its import took.
    """

    label: str
    plugin: object
    hooks: Mapping[str, tuple[PluginHook, int]]
    seconds: float = 0.0


class EngineHooks:
    """The hooks that one engine calls, as the plugins and its observers implement them.

    Each attribute is a tuple of `PluginHook`, empty where nobody implements the
    hook: an engine asks for that and pays nothing. Observers come first, in the
    order given, then plugins by the names of their distributions; pluggy's
    `tryfirst` and `trylast` go before that. A plugin that cannot be loaded is
    logged and left out.

    Args:
        observers: Objects whose methods are marked with `rhapsody.hookimpl`.
        own: More of them, which come after.

    Attributes:
        push_down: Whether tasks may go to their backend before their dependencies have ended:
            nobody looks at each task, or those who do have an attribute of this name that is true.

    Raises:
        TypeError: An observer is a class, or `observers` no list.
        PluginError: An observer implements no hook, or one that does not fit.
    """

    __slots__ = (
        "_reported",
        "lookup_results",
        "prepare_task",
        "push_down",
        "record_results",
        "select_backend",
        "task_events",
        "workflow_finished",
        "workflow_started",
    )

    workflow_started: tuple[PluginHook, ...]
    workflow_finished: tuple[PluginHook, ...]
    task_events: tuple[PluginHook, ...]
    prepare_task: tuple[PluginHook, ...]
    select_backend: tuple[PluginHook, ...]
    lookup_results: tuple[PluginHook, ...]
    record_results: tuple[PluginHook, ...]
    push_down: bool

    def __init__(self, observers: Iterable[object] = (), own: Iterable[object] = ()) -> None:
        self._reported: set[tuple[str, str]] = set()
        plugins = _unique([*_observers(observers), *_observers(own), *loaded_plugins()])
        for hook in _ENGINE_HOOKS:
            setattr(self, hook, implementations(f"rhapsody_{hook}", plugins) if plugins else ())
        looking = (one for one in plugins if not _LOOKING.isdisjoint(one.hooks))
        self.push_down = all(getattr(one.plugin, "push_down", False) for one in looking)

    def call(self, hook: PluginHook, **arguments: Any) -> Any:
        """Calls one plugin's implementation, and reports it where it raises.

        Returns:
            The result, `None` where it raised.
        """
        try:
            return hook.call(**arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin's error of any kind must not end a workflow
            self.report(hook, error)
            return None

    def report(self, hook: PluginHook, error: BaseException) -> None:
        """Logs that an implementation raised, once per plugin and hook."""
        key = (hook.plugin, hook.hook)
        if key not in self._reported:
            self._reported.add(key)
            report(hook, error)


def report(hook: PluginHook, error: BaseException) -> None:
    """Logs that an implementation raised."""
    logger.error(
        "plugin %s: %s raised %s (reported once; everything else goes on)",
        hook.plugin,
        hook.hook,
        describe_error(error),
        exc_info=error,
        extra={"plugin": hook.plugin, "hook": hook.hook},
    )


def loaded_plugins() -> list[LoadedPlugin]:
    """Every installed plugin that can be loaded, by distribution.

    Those that cannot are logged, once per process and reason. Core's own plugin
    module is left out: it declares backends and implements nothing else.
    """
    found = installed()
    loaded = []
    for declared in found.declared:
        if declared.distribution == CORE and declared.value == CORE_MODULE:
            continue
        try:
            loaded.append(load(declared, found))
        except PluginError as error:
            key = (declared.value, str(error))
            if key not in _reported:
                _reported.add(key)
                remedy = f". To remove it: pip uninstall {declared.distribution}"
                if isinstance(error.__cause__, ConflictError):
                    remedy = ""  # it says itself what to remove
                logger.error(
                    "a plugin is left out: %s%s",
                    error,
                    remedy,
                    extra={"plugin": declared.distribution},
                )
    return _unique(loaded)


def implementations(hook: str, plugins: Iterable[LoadedPlugin]) -> tuple[PluginHook, ...]:
    """The implementations of one hook in the order in which they are called."""
    found = [plugin.hooks[hook] for plugin in plugins if hook in plugin.hooks]
    found.sort(key=lambda one: one[1])
    return tuple(implementation for implementation, _ in found)


def load(declared: Declared, found: Installed | None = None) -> LoadedPlugin:
    """Imports and registers what an entry point names; one module is loaded once.

    Args:
        declared: The entry point.
        found: What it is part of, where the outcome is kept.

    Raises:
        PluginError: It cannot be used; says why and what to do.
    """
    outcomes = (installed() if found is None else found).outcomes
    outcome = outcomes.get(declared.value)
    if outcome is None:
        active: set[str] = _loading.__dict__.setdefault("values", set())
        if declared.value in active:
            raise PluginError(f"{declared}: asked for while it is being imported itself")
        active.add(declared.value)
        try:
            outcome = _load(declared)
        except PluginError as error:
            outcome = error
        finally:
            active.discard(declared.value)
        outcomes[declared.value] = outcome
    if isinstance(outcome, PluginError):
        # A fresh object: one that is raised again and again grows its traceback.
        raise PluginError(str(outcome)) from outcome.__cause__
    loaded: LoadedPlugin = outcome
    return loaded


def _load(declared: Declared) -> LoadedPlugin:
    module, _, path = declared.value.partition(":")
    start = time.perf_counter()
    try:
        with named_where_slow(f"{declared}: importing {declared.value!r}", declared.distribution):
            plugin: Any = import_module(module.strip())
            for name in filter(None, path.strip().split(".")):
                plugin = getattr(plugin, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin's import may raise anything, SystemExit included
        raise PluginError(
            f"{declared}: importing {declared.value!r} raised {type(error).__name__}: {error}"
        ) from error
    seconds = time.perf_counter() - start
    return register(plugin, declared.distribution, str(declared), seconds)


@contextmanager
def named_where_slow(what: str, distribution: str) -> Iterator[None]:
    """Says in the log what an import waits for, and how to leave it out, where it takes long."""

    def say() -> None:
        logger.warning(
            "%s has not come back after %g s; to leave it out: %s=%s",
            what, SLOW, DISABLE, distribution,
            extra={"plugin": distribution},
        )  # fmt: skip

    timer = threading.Timer(SLOW, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def register(plugin: Any, label: str, source: str, seconds: float = 0.0) -> LoadedPlugin:
    """Checks a plugin's hooks against their specifications.

    Args:
        plugin: A module or object.
        label: Who it is, for messages about its hooks.
        source: Where it comes from, for messages about it.
        seconds: How long its import took.

    Raises:
        PluginError: It implements no hook, or one that does not fit.
    """
    if isinstance(plugin, type):
        raise PluginError(f"{source}: {plugin!r} is a class; a module or an object is needed")
    manager = pluggy.PluginManager(specs.PROJECT)
    manager.add_hookspecs(specs)
    try:
        manager.register(plugin, name=label)
        manager.check_pending()
        callers = manager.get_hookcallers(plugin) or []
        hooks = {
            caller.name: _implementation(caller.get_hookimpls()[0], caller.name, label)
            for caller in callers
        }
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pluggy reads every attribute, and reading may raise
        text = " ".join(str(error).split())
        raise PluginError(
            f"{source}: its hooks cannot be used: {type(error).__name__}: {text}"
        ) from error
    if not hooks:
        raise PluginError(
            f"{source}: {_describe(plugin)} implements no hook of Rhapsody; "
            "mark functions or methods with @rhapsody.hookimpl"
        )
    return LoadedPlugin(label, plugin, hooks, seconds)


def _implementation(found: pluggy.HookImpl, hook: str, label: str) -> tuple[PluginHook, int]:
    if found.wrapper or found.hookwrapper:
        raise TypeError(f"{hook} is a wrapper, and plugins are called one by one: there is none")
    if inspect.iscoroutinefunction(found.function) and hook not in _AWAITABLE:
        raise TypeError(f"{hook} is a coroutine function, and the hook is called synchronously")
    function, names = found.function, tuple(found.argnames)

    def call(**arguments: Any) -> Any:
        return function(*[arguments[name] for name in names])

    rank = -1 if found.tryfirst else 1 if found.trylast else 0
    return PluginHook(label, call, hook), rank


def _observers(observers: Iterable[object]) -> list[LoadedPlugin]:
    if isinstance(observers, str) or not isinstance(observers, Iterable):
        raise TypeError(f"observers must be a list of objects, got {observers!r}")
    loaded = []
    for observer in observers:
        if isinstance(observer, type):
            raise TypeError(f"observers must be objects, got the class {observer.__qualname__}")
        label = _describe(observer)
        loaded.append(register(observer, label, f"observer {label}"))
    return loaded


def _describe(plugin: Any) -> str:
    if inspect.ismodule(plugin):
        return plugin.__name__
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def _unique(plugins: Iterable[LoadedPlugin]) -> list[LoadedPlugin]:
    first: dict[int, LoadedPlugin] = {}
    for loaded in plugins:
        first.setdefault(id(loaded.plugin), loaded)
    return list(first.values())
