"""Loads plugins, each in isolation, and calls the hooks that they implement.

Each plugin has a pluggy manager of its own: an error while one is imported, registered or called
cannot affect another. The registry of backends is `rhapsody.backends.discovery`.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pluggy

from rhapsody.errors import PluginError, describe_error
from rhapsody.plugins import specs
from rhapsody.plugins.entry_points import CORE, DISABLE, Installed, PluginEntry, installed
from rhapsody_guard import ConflictError

logger: logging.Logger = logging.getLogger("rhapsody.plugins")

_PER_TASK = frozenset(
    {
        "rhapsody_prepare_task",
        "rhapsody_select_backend",
        "rhapsody_lookup_results",
        "rhapsody_record_results",
    }
)
"""Hooks that see each task before it reaches its backend, or its value before the user does."""

_AWAITABLE = frozenset({"rhapsody_lookup_results", "rhapsody_record_results"})
SLOW = 5.0
"""Seconds after which an import that has not finished is logged."""

_loading = threading.local()
_reported: set[tuple[str, str]] = set()


class PluginHook(NamedTuple):
    """One plugin's implementation of one hook.

    Attributes:
        plugin: The plugin's distribution, or the observer's class.
        call: Calls the implementation with those of the given arguments that it names.
        hook: The hook's name.
    """

    plugin: str
    call: Callable[..., Any]
    hook: str


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin that was imported and registered.

    Attributes:
        label: The plugin's name in messages.
        plugin: The module or object.
        hooks: Its implementations by hook name, each with its rank among those of other plugins:
            -1 first, 1 last.
        seconds: The duration of its import.
    """

    label: str
    plugin: object
    hooks: Mapping[str, tuple[PluginHook, int]]
    seconds: float = 0.0


class EngineHooks:
    """The hooks that one engine calls, as implemented by plugins and by its observers.

    Each attribute named after a hook is a tuple of `PluginHook`. It is empty if no plugin
    implements the hook, so that an unused hook costs nothing per task. Observers come first, in
    the given order, then plugins sorted by distribution; pluggy's `tryfirst` and `trylast` take
    precedence over that. A plugin that cannot be loaded is logged and skipped.

    Args:
        observers: Objects whose methods are marked with `rhapsody.hookimpl`.
        own: The engine's own observers, which come after those.

    Attributes:
        push_down: True if tasks may be sent to their backend before their dependencies have
            finished: every plugin that sees each task has a true attribute `push_down`.

    Raises:
        TypeError: An observer is a class, or `observers` is not a list.
        PluginError: An observer implements no hook, or one with wrong arguments.
    """

    workflow_started: tuple[PluginHook, ...]
    workflow_finished: tuple[PluginHook, ...]
    task_events: tuple[PluginHook, ...]
    prepare_task: tuple[PluginHook, ...]
    select_backend: tuple[PluginHook, ...]
    lookup_results: tuple[PluginHook, ...]
    record_results: tuple[PluginHook, ...]

    def __init__(self, observers: Iterable[object] = (), own: Iterable[object] = ()) -> None:
        self._reported: set[tuple[str, str]] = set()
        plugins = _unique([*_observers(observers), *_observers(own), *loaded_plugins()])
        self.workflow_started = implementations("rhapsody_workflow_started", plugins)
        self.workflow_finished = implementations("rhapsody_workflow_finished", plugins)
        self.task_events = implementations("rhapsody_task_events", plugins)
        self.prepare_task = implementations("rhapsody_prepare_task", plugins)
        self.select_backend = implementations("rhapsody_select_backend", plugins)
        self.lookup_results = implementations("rhapsody_lookup_results", plugins)
        self.record_results = implementations("rhapsody_record_results", plugins)
        per_task = (one for one in plugins if not _PER_TASK.isdisjoint(one.hooks))
        self.push_down: bool = all(getattr(one.plugin, "push_down", False) for one in per_task)

    def call(self, hook: PluginHook, **arguments: Any) -> Any:
        """Call one plugin's implementation; log its error if it raises.

        Returns:
            The result, `None` after an error.
        """
        try:
            return hook.call(**arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin's error of any kind must not end a workflow
            self.report(hook, error)
            return None

    def report(self, hook: PluginHook, error: BaseException) -> None:
        """Log an implementation's error, once per plugin and hook."""
        key = (hook.plugin, hook.hook)
        if key not in self._reported:
            self._reported.add(key)
            report(hook, error)


def report(hook: PluginHook, error: BaseException) -> None:
    """Log an implementation's error."""
    logger.error(
        "plugin %s: %s raised %s (reported once; other plugins are not affected)",
        hook.plugin,
        hook.hook,
        describe_error(error),
        exc_info=error,
        extra={"plugin": hook.plugin, "hook": hook.hook},
    )


def loaded_plugins() -> list[LoadedPlugin]:
    """Return every installed plugin that can be loaded, sorted by distribution.

    A plugin that cannot be loaded is logged, once per process and reason. Core's own entry
    points are skipped: they declare backends and implement no other hook.
    """
    found = installed()
    loaded = []
    for entry in found.entries:
        if entry.distribution == CORE:
            continue
        try:
            loaded.append(load(entry, found))
        except PluginError as error:
            key = (entry.value, str(error))
            if key in _reported:
                continue
            _reported.add(key)
            remedy = f". To remove it: pip uninstall {entry.distribution}"
            if isinstance(error.__cause__, ConflictError):
                remedy = ""  # the message names the commands
            extra = {"plugin": entry.distribution}
            logger.error("skipping a plugin: %s%s", error, remedy, extra=extra)
    return _unique(loaded)


def implementations(hook: str, plugins: Iterable[LoadedPlugin]) -> tuple[PluginHook, ...]:
    """Return the implementations of one hook in the order in which they are called."""
    found = [plugin.hooks[hook] for plugin in plugins if hook in plugin.hooks]
    found.sort(key=lambda one: one[1])
    return tuple(implementation for implementation, _ in found)


def load(entry: PluginEntry, found: Installed | None = None) -> LoadedPlugin:
    """Import and register the plugin that an entry point names; each module only once.

    Args:
        entry: The entry point.
        found: The installation that it belongs to, which keeps the outcome.

    Raises:
        PluginError: The plugin cannot be used; the message says why.
    """
    outcomes = (installed() if found is None else found).outcomes
    outcome = outcomes.get(entry.value)
    if outcome is None:
        active: set[str] = _loading.__dict__.setdefault("values", set())
        if entry.value in active:
            raise PluginError(f"{entry}: requested during its own import")
        active.add(entry.value)
        try:
            outcome = _load(entry)
        except PluginError as error:
            outcome = error
        finally:
            active.discard(entry.value)
        outcomes[entry.value] = outcome
    if isinstance(outcome, PluginError):
        # A new object: the traceback of one that is raised repeatedly would grow.
        raise PluginError(str(outcome)) from outcome.__cause__
    loaded: LoadedPlugin = outcome
    return loaded


def _load(entry: PluginEntry) -> LoadedPlugin:
    start = time.perf_counter()
    try:
        with warn_when_slow(f"{entry}: importing {entry.value!r}", entry.distribution):
            plugin = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin's import may raise anything, SystemExit included
        raise PluginError(
            f"{entry}: importing {entry.value!r} raised {type(error).__name__}: {error}"
        ) from error
    seconds = time.perf_counter() - start
    return register(plugin, entry.distribution, str(entry), seconds)


@contextmanager
def warn_when_slow(what: str, distribution: str) -> Iterator[None]:
    """Log a warning if an import takes long, with the setting that disables the plugin."""
    message = f"{what} has taken more than {SLOW:g} s; to disable it: {DISABLE}={distribution}"
    extra = {"plugin": distribution}
    timer = threading.Timer(SLOW, logger.warning, (message,), {"extra": extra})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def register(plugin: Any, label: str, source: str, seconds: float = 0.0) -> LoadedPlugin:
    """Check a plugin's hooks against their specifications.

    Args:
        plugin: A module or object.
        label: Its name in messages about its hooks.
        source: Its origin, for messages about the plugin itself.
        seconds: The duration of its import.

    Raises:
        PluginError: It implements no hook, or one with wrong arguments.
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
        raise TypeError(f"{hook} is a wrapper; wrappers are not supported")
    if inspect.iscoroutinefunction(found.function) and hook not in _AWAITABLE:
        raise TypeError(f"{hook} is a coroutine function, but the hook is called synchronously")
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
