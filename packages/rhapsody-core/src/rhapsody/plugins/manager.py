"""Discovery, loading and calling of plugins, each in isolation.

`importlib_metadata` reads the entry points in directories and zip files on `sys.path`, without
importing any plugin. One distribution with broken metadata does not hide the others, and every
plugin that is skipped is listed with the reason. The result is cached until a directory on
`sys.path` changes, so a plugin that is installed while the program runs is found.

Each plugin has its own pluggy manager: an error while a plugin is imported, registered or called
cannot affect another plugin. The registry of backends is `rhapsody.backends.discovery`.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from rhapsody.errors import PluginError, RhapsodyError, describe_error
from rhapsody.known import PYTHONS
from rhapsody.spelling import suggestion
from rhapsody_guard import ConflictError

# Importing the specifications takes long, and most commands do not need them.
if TYPE_CHECKING:
    import pluggy
    from importlib_metadata import EntryPoint

    from rhapsody.plugins import specs

BACKENDS = "rhapsody.backends"
"""The entry-point group of backends."""

PLUGINS = "rhapsody.plugins"
"""The entry-point group of all other plugins."""

CORE = "rhapsody-core"
OTHER_FAMILY_MEMBER = "rhapsody-py"
"""A distribution whose entry points in the group of backends name classes instead of plugins."""

DISABLE = "RHAPSODY_DISABLE_PLUGINS"

_SETTLE_TIME = 2 * 10**9
"""Nanoseconds after which another change of a directory is certain to change its time stamp."""

Option = TypeVar("Option", "specs.CommandOption", "specs.EngineOption")

logger: logging.Logger = logging.getLogger("rhapsody.plugins")


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """Entry point of a plugin.

    Attributes:
        group: `rhapsody.backends` or `rhapsody.plugins`.
        name: The entry point's name; in the first group, the backend's name.
        value: The import path of the plugin, as `module` or `module:object`.
        distribution: The distribution's normalized name.
        version: The distribution's version.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"entry point {self.name!r} of {self.distribution} {self.version}"

    def load(self) -> Any:
        """Import and return the module or object that the entry point names."""
        from importlib_metadata import EntryPoint

        return EntryPoint(self.name, self.value, self.group).load()


@dataclass(frozen=True, slots=True)
class Installed:
    """The installed plugins at one point in time.

    Attributes:
        entries: The entry points in use, sorted by distribution and name.
        disabled: The entry points that `RHAPSODY_DISABLE_PLUGINS` excludes.
        ignored: The entry points of `rhapsody-py`, which name classes instead of plugins.
        unknown: The entry points whose group starts with `rhapsody.` but is neither of the two.
        unreadable: Distributions whose metadata cannot be read, each with the reason.
        outcomes: The loaded plugin or the error of each entry point, by the entry point's value;
            filled by `load`.
    """

    entries: tuple[PluginEntry, ...] = ()
    disabled: tuple[PluginEntry, ...] = ()
    ignored: tuple[PluginEntry, ...] = ()
    unknown: tuple[PluginEntry, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    outcomes: dict[str, Any] = field(default_factory=dict, compare=False)

    def group(self, name: str) -> tuple[PluginEntry, ...]:
        """Return the entry points of a group, without those that are disabled or ignored."""
        return tuple(one for one in self.entries if one.group == name)


_State = tuple[tuple[str, int, int], ...]

_installed = Installed()
_installed_key: object = None
_states: dict[str, tuple[int, _State]] = {}  # by directory: its time of change, and its metadata
_logged: set[str] = set()


def installed() -> Installed:
    """Return the installed plugins; the same object as long as nothing has changed."""
    global _installed, _installed_key
    states = [(str(entry), state) for entry in sys.path if (state := _metadata(entry))]
    key = (os.environ.get(DISABLE), states)
    if key != _installed_key:
        found = _read()
        if found != _installed:
            _installed = found
            _report(found)
        _installed_key = key
    return _installed


def disabled_distributions() -> set[str]:
    """Return the distributions in `RHAPSODY_DISABLE_PLUGINS`; `all` stands for every plugin."""
    names = os.environ.get(DISABLE, "").split(",")
    return {normalize_distribution(name) for name in names if name.strip()}


def normalize_distribution(name: str) -> str:
    """Return a distribution's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _modified(path: Any) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except (OSError, TypeError):  # entries that do not exist, or are not paths, are common
        return 0


def _metadata(entry: Any) -> _State:
    """Return the names of the metadata in a directory, with a number and a time for each.

    The time of the directory's own change is not sufficient. A second change within the clock's
    resolution would not show, and programs write other files into directories on `sys.path`, such
    as that of the script. If the entry is a zip file, return the time of its change.
    """
    path, stamp = str(entry), _modified(entry or os.curdir)
    known, state = _states.get(path, (None, ()))
    if known == stamp and stamp < time.time_ns() - _SETTLE_TIME:
        return state
    try:
        with os.scandir(path or os.curdir) as entries:
            infos = [each for each in entries if each.name.lower().endswith("-info")]
            found = [(each.name, each.stat()) for each in infos]
    except OSError:  # a zip file, or there is nothing
        state = ((path, 0, stamp),)
    else:
        state = tuple(sorted((name, info.st_ino, info.st_mtime_ns) for name, info in found))
    _states[path] = stamp, state
    return state


def _read() -> Installed:
    import importlib_metadata

    importlib_metadata.MetadataPathFinder().invalidate_caches()
    unreadable: list[tuple[str, str]] = []
    points: Iterable[EntryPoint]
    try:
        points = importlib_metadata.entry_points()
    except Exception:  # one broken distribution makes this call fail for all of them
        points = list(_readable_points(unreadable))
    found = set()
    names: dict[int, tuple[str, str]] = {}  # of the distributions in `points`, by `id`
    for point in points:
        if not point.group.startswith("rhapsody."):
            continue
        try:
            assert point.dist is not None
            if id(point.dist) not in names:
                names[id(point.dist)] = _name_and_version(point.dist)
            name, version = names[id(point.dist)]
            if not point.name:
                raise ValueError(f"the entry point with the value {point.value!r} has no name")
            found.add(PluginEntry(point.group, point.name, point.value, name, version))
        except Exception as error:  # metadata may be broken in any way
            unreadable.append(_unreadable(point.dist, error))
    entries, disabled, ignored, unknown = [], [], [], []
    excluded = disabled_distributions()
    for entry in sorted(found, key=lambda one: (one.distribution, one.group, one.name, one.value)):
        if entry.group not in (BACKENDS, PLUGINS):
            unknown.append(entry)
        elif entry.distribution == OTHER_FAMILY_MEMBER:
            ignored.append(entry)
        elif entry.distribution != CORE and not excluded.isdisjoint(("all", entry.distribution)):
            disabled.append(entry)
        else:
            entries.append(entry)
    return Installed(
        tuple(entries), tuple(disabled), tuple(ignored), tuple(unknown), tuple(unreadable)
    )


def _name_and_version(distribution: Any) -> tuple[str, str]:
    """Return the normalized name and the version of a distribution.

    Both are lines of the metadata. Parsing the metadata with `email` would take ten milliseconds,
    mainly to import it.
    """
    head = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    fields = dict(re.findall(r"^(Name|Version): *(\S+) *$", head, re.MULTILINE))
    if len(fields) == 2:
        return normalize_distribution(fields["Name"]), fields["Version"]
    return normalize_distribution(distribution.name), distribution.version or ""


@dataclass(frozen=True, slots=True)
class HiddenEntry:
    """Entry point that is not found, because other metadata of its distribution come first.

    Such metadata are an `egg-info` directory in a checkout, or a second copy of the distribution.

    Attributes:
        entry: The entry point.
        directory: The directory on `sys.path` with the entry point's distribution.
        version: The version in the metadata that come first.
        first: The directory on `sys.path` with these metadata.
    """

    entry: PluginEntry
    directory: str
    version: str
    first: str

    def __str__(self) -> str:
        return (
            f"{self.entry} in {self.directory} is not found, because {self.first} comes first on "
            f"sys.path and contains metadata of {self.entry.distribution} {self.version} without it"
        )


def hidden_entries() -> Iterator[HiddenEntry]:
    """Yield the entry points of plugins that other metadata of their distributions hide.

    This reads the metadata of all distributions; call it only to explain a problem.
    """
    import importlib_metadata

    seen: dict[str, Any] = {}
    for distribution in importlib_metadata.distributions():
        with suppress(Exception):  # metadata may be broken in any way; `installed` reports it
            name = normalize_distribution(distribution.name)
            first = seen.setdefault(name, distribution)
            if first is distribution:
                continue
            known = {(point.group, point.name) for point in first.entry_points}
            for point in distribution.entry_points:
                if point.group in (BACKENDS, PLUGINS) and (point.group, point.name) not in known:
                    yield HiddenEntry(
                        PluginEntry(
                            point.group, point.name, point.value, name, distribution.version or ""
                        ),
                        str(distribution.locate_file("")),
                        first.version or "",
                        str(first.locate_file("")),
                    )


def _readable_points(unreadable: list[tuple[str, str]]) -> Iterable[EntryPoint]:
    """Yield the entry points of readable distributions, and add the others to `unreadable`."""
    import importlib_metadata

    seen = set()
    for distribution in importlib_metadata.distributions():
        try:
            name = normalize_distribution(distribution.name)
            points = () if name in seen else distribution.entry_points
            seen.add(name)
        except Exception as error:  # metadata may be broken in any way
            unreadable.append(_unreadable(distribution, error))
        else:
            yield from points


def _unreadable(distribution: Any, error: Exception) -> tuple[str, str]:
    """Return a label for a distribution with broken metadata, and a description of the error."""
    label = f"a distribution in {distribution.locate_file('')}"
    with suppress(Exception):  # the name itself may be broken
        label = normalize_distribution(distribution.name)
    return label, f"{type(error).__name__}: {error}"


def _report(found: Installed) -> None:
    """Log a warning for each distribution that is skipped, once per process."""
    messages = [
        f"{OTHER_FAMILY_MEMBER} {one.version}: ignoring its entry points, which are not plugins; "
        "run `rhapsody doctor` for details"
        for one in found.ignored[:1]
    ]
    messages += [
        f"{label}: cannot read its entry points ({why}); reinstall this distribution"
        for label, why in found.unreadable
    ]
    for message in messages:
        if message not in _logged:
            _logged.add(message)
            logger.warning(message)


def wrong_version(distribution: str, version: int) -> tuple[str, str] | None:
    """Return why a plugin does not fit this version of core and the fix; `None` if it fits."""
    from rhapsody.plugins import specs

    if version == specs.API_VERSION:
        return None
    remedy = f"pip install --upgrade {CORE}"
    if version < specs.API_VERSION:
        remedy = repair_command(distribution)
    return (
        f"{distribution} was written for version {version} of the plugin interface, but {CORE} has "
        f"version {specs.API_VERSION}",
        remedy,
    )


def install_command(distribution: str) -> str:
    """Return the command that installs another of Rhapsody's distributions from core's origin.

    If core was installed from a folder or a repository, the other distributions are next to it.
    Installers record the origin of a distribution in `direct_url.json` (PEP 610).

    Args:
        distribution: The distribution's name, which is also the name of its folder.

    Returns:
        `pip install` with a folder or repository if core was installed from one, otherwise with the
        name; preceded by a hint if the distribution does not support this version of Python.
    """
    source = _sibling(_origin(CORE), distribution) or distribution
    command = f"pip install {shlex.quote(source)}"
    library, first, last = PYTHONS.get(distribution, ("", (), ()))
    if library and sys.version_info[:2] > last:
        between = " to ".join(".".join(map(str, each)) for each in (first, last))
        return f"{library} requires Python {between}; with one of them, run: {command}"
    return command


def repair_command(distribution: str, otherwise: str = "pip install --upgrade") -> str:
    """Return how to fix a fault in a plugin.

    Args:
        distribution: The plugin's distribution.
        otherwise: The command for a plugin that was not installed from a folder on this machine.

    Returns:
        For a plugin that was installed from a folder, the folder to correct and the command that
        installs it again; otherwise, the given command with the distribution.
    """
    origin = _origin(distribution)
    url = str(origin.get("url", ""))
    if "dir_info" in origin and url.startswith("file:"):
        folder = unquote(urlsplit(url).path)
        return f"correct the plugin in {folder}, then run: pip install -e {shlex.quote(folder)}"
    return f"{otherwise} {distribution}"


def _origin(distribution: str) -> dict[str, Any]:
    """Return the recorded origin of a distribution; empty if it was installed from an index."""
    from importlib_metadata import PackageNotFoundError
    from importlib_metadata import distribution as find

    try:
        origin = json.loads(find(distribution).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _sibling(origin: dict[str, Any], distribution: str) -> str | None:
    """Return pip's argument for a distribution next to core, or `None` if none is known."""
    url, inside = str(origin.get("url", "")), str(origin.get("subdirectory", ""))
    if "dir_info" in origin and url.startswith("file:"):
        folder = Path(unquote(urlsplit(url).path)).parent / distribution
        return str(folder) if (folder / "pyproject.toml").is_file() else None
    if not url or PurePosixPath(inside).name != CORE:
        return None
    # pip accepts the URL of a repository on this machine only without a name before it.
    name = "" if url.startswith("file:") else f"{distribution} @ "
    vcs = origin.get("vcs_info")
    if isinstance(vcs, dict):
        url = f"{vcs.get('vcs')}+{url}@{vcs.get('commit_id')}"
    return f"{name}{url}#subdirectory={PurePosixPath(inside).with_name(distribution)}"


def missing_plugin(name: str, distribution: str, error: ImportError) -> ModuleNotFoundError:
    """Return the error to raise if a public name cannot be imported from its plugin.

    Args:
        name: The requested name.
        distribution: The distribution that provides it.
        error: The error of the import.

    Returns:
        The error, whose text ends with the command that installs the plugin, or the commands that
        remove a conflicting distribution.
    """
    from rhapsody_guard import ConflictError

    if isinstance(error, ConflictError):
        return ModuleNotFoundError(f"{name} cannot be imported: {error}", name=error.name)
    return ModuleNotFoundError(
        f"{name} comes with {distribution}, which cannot be imported ({error}). "
        f"To install it: {install_command(distribution)}",
        name=error.name,
    )


_PER_TASK = frozenset(
    {
        "rhapsody_prepare_task",
        "rhapsody_select_backend",
        "rhapsody_lookup_results",
        "rhapsody_record_results",
    }
)
"""Hooks that receive a task before its backend does, or a task's value before the user does."""

_AWAITABLE = frozenset(
    {
        "rhapsody_lookup_results",
        "rhapsody_preview_results",
        "rhapsody_record_results",
        "rhapsody_workflow_finished",
    }
)

LAST_SECONDS = 10.0
"""Number of seconds for which the end of an engine waits for `rhapsody_workflow_finished`."""


@functools.cache
def _hooks() -> tuple[str, ...]:
    """Return the names of all hooks."""
    from rhapsody.plugins import specs

    marker = f"{specs.PROJECT}_spec"
    return tuple(name for name, value in vars(specs).items() if hasattr(value, marker))


class _ActiveImports(threading.local):
    """Import paths of the modules that this thread is importing for plugins."""

    def __init__(self) -> None:
        self.active: set[str] = set()


_imports = _ActiveImports()
_reported: set[tuple[str, str]] = set()


class PluginHook(NamedTuple):
    """One plugin's implementation of one hook.

    Attributes:
        plugin: The plugin's distribution, or the observer's class.
        call: Callable that takes all arguments of the hook, by keyword, and passes to the
            implementation those that are among its parameters.
        hook: The hook's name.
        rank: -1 if it is called before those of other plugins, 1 if after them, otherwise 0.
    """

    plugin: str
    call: Callable[..., Any]
    hook: str
    rank: int = 0


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin that was imported and registered.

    Attributes:
        label: The plugin's name in messages.
        plugin: The module or object.
        hooks: The plugin's implementations by hook name.
        seconds: The duration of the plugin's import.
    """

    label: str
    plugin: object
    hooks: Mapping[str, PluginHook]
    seconds: float = 0.0


class EngineHooks:
    """The hooks that one engine calls, as implemented by plugins and by its observers.

    Each attribute named after a hook is a tuple of `PluginHook`. The tuple is empty if no plugin
    implements the hook, so that an unused hook costs nothing per task. Observers come first, in
    the given order, then core's own plugins, then others sorted by distribution; pluggy's
    `tryfirst` and `trylast` take precedence over this order. A plugin that cannot be loaded is
    logged and skipped.

    Args:
        observers: Objects or modules whose functions are marked with `rhapsody.hookimpl`.
        options: The values of the options of plugins, by the plugin's distribution.
        values: The values of the options of the engine, by name. Default: the defaults of those
            that plugins implement.
        sources: Where values come from; see `rhapsody_observers`.

    Attributes:
        push_down: True if tasks may be sent to their backend before their dependencies have
            finished. This requires that every plugin that prepares tasks, selects backends, or
            looks up or records results has a true attribute `push_down`.
        max_value: The smallest attribute `max_value` of these plugins, in bytes: larger results
            that stay on a backend are not fetched in order to record them. `None` for no limit.
        looks_up_in_turn: True if each plugin that looks up results has a true attribute
            `looks_up_in_turn`: tasks that are called during a lookup are then looked up together
            after it.
        shows_output: True if a plugin shows the output of tasks.
        shows_failures: True if a plugin lists the failures at the end.
        journal: The path of a file with which later runs continue, or an empty string.

    Raises:
        RhapsodyError: A plugin refuses the engine.
        TypeError: An observer is a class, or `observers` is not a list.
        PluginError: An observer implements no hook, or implements one with wrong arguments.
    """

    workflow_started: tuple[PluginHook, ...]
    workflow_finished: tuple[PluginHook, ...]
    workflow_not_started: tuple[PluginHook, ...]
    program_event: tuple[PluginHook, ...]
    task_calls: tuple[PluginHook, ...]
    task_events: tuple[PluginHook, ...]
    node_samples: tuple[PluginHook, ...]
    trace_tasks: tuple[PluginHook, ...]
    prepare_task: tuple[PluginHook, ...]
    select_backend: tuple[PluginHook, ...]
    lookup_results: tuple[PluginHook, ...]
    record_results: tuple[PluginHook, ...]

    def __init__(
        self,
        observers: Iterable[object] = (),
        options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        values: Mapping[str, Any] | None = None,
        sources: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._reported: set[tuple[str, str]] = set()
        if values is None:
            values = {name: option.default for name, option in engine_options().items()}
        plugins = _observers(observers)
        given = {
            "observers": [one.plugin for one in plugins],
            "engine_options": values,
            "sources": sources,
        }
        try:
            for plugin in loaded_plugins():
                plugins.append(plugin)
                plugins += self._added(plugin, {**given, "options": options.get(plugin.label, {})})
        except BaseException:
            self.workflow_not_started = implementations("rhapsody_workflow_not_started", plugins)
            self.not_started()
            raise
        plugins = _unique(plugins)
        for name in EngineHooks.__annotations__:
            setattr(self, name, implementations(f"rhapsody_{name}", plugins))
        per_task = [one.plugin for one in plugins if not _PER_TASK.isdisjoint(one.hooks)]
        self.push_down: bool = all(getattr(plugin, "push_down", False) for plugin in per_task)
        limits = [getattr(plugin, "max_value", None) for plugin in per_task]
        self.max_value: int | None = min((n for n in limits if n is not None), default=None)
        looking = [one.plugin for one in plugins if "rhapsody_lookup_results" in one.hooks]
        self.looks_up_in_turn: bool = all(
            getattr(plugin, "looks_up_in_turn", False) for plugin in looking
        )
        objects = [one.plugin for one in plugins]
        self.shows_output: bool = any(getattr(one, "shows_output", False) for one in objects)
        self.shows_failures: bool = any(getattr(one, "shows_failures", False) for one in objects)
        journals = (getattr(one, "journal", "") for one in objects)
        self.journal: str = next((one for one in journals if isinstance(one, str) and one), "")

    def _added(self, plugin: LoadedPlugin, given: Mapping[str, Any]) -> Iterator[LoadedPlugin]:
        """Yield the observers that an installed plugin adds."""
        for hook in implementations("rhapsody_observers", [plugin]):
            added = self.call(hook, raises=RhapsodyError, **given) or ()
            try:
                for observer in added:
                    yield register(observer, plugin.label, f"observer of {plugin.label}")
            except (PluginError, TypeError) as error:
                self.report(hook, error)

    def not_started(self) -> None:
        """Tell the plugins that the engine was not started."""
        for hook in self.workflow_not_started:
            self.call(hook)

    def call(
        self, hook: PluginHook, *, raises: type[Exception] | tuple[()] = (), **arguments: Any
    ) -> Any:
        """Call one plugin's implementation, and log its exception if it raises one.

        Args:
            hook: The implementation.
            raises: The type of the exceptions that are raised and not logged.
            **arguments: The arguments of the hook.

        Returns:
            The result, or `None` if the implementation raised an exception.

        Raises:
            KeyboardInterrupt: The implementation was interrupted.
        """
        try:
            return hook.call(**arguments)
        except KeyboardInterrupt:
            raise
        except raises:
            raise
        except BaseException as error:  # an error of a plugin must not end a workflow
            self.report(hook, error)
            return None

    async def finish(self, hook: PluginHook, result: Awaitable[object]) -> None:
        """Wait for what one plugin's `rhapsody_workflow_finished` has returned."""
        from asyncio import timeout  # not imported by all commands

        try:
            async with timeout(LAST_SECONDS) as limit:
                await result
        except Exception as raised:  # an error of a plugin must not end a workflow
            late = TimeoutError(f"still running after {LAST_SECONDS:g} s, and canceled")
            self.report(hook, late if limit.expired() else raised)

    def report(self, hook: PluginHook, error: BaseException) -> None:
        """Log an implementation's exception, once per plugin and hook."""
        key = (hook.plugin, hook.hook)
        if key not in self._reported:
            self._reported.add(key)
            report(hook, error)


def report(hook: PluginHook, error: BaseException, during: str = "") -> None:
    """Log the exception of a plugin's implementation of a hook.

    Args:
        hook: The implementation.
        error: The exception.
        during: What raised it, if it was not the call.
    """
    logger.error(
        "plugin %s: %s raised %s (reported once; other plugins are not affected)",
        hook.plugin,
        during or hook.hook,
        describe_error(error),
        exc_info=error,
        extra={"plugin": hook.plugin, "hook": hook.hook},
    )


def loaded_plugins(*, only_core: bool = False) -> list[LoadedPlugin]:
    """Return every installed plugin that can be loaded, sorted by distribution.

    Core's own plugins come first; its backends implement no other hook and are skipped. A plugin
    that cannot be loaded is logged, once per process and reason.

    Args:
        only_core: True to return only core's own plugins.
    """
    found = installed()
    loaded = []
    for entry in sorted(found.entries, key=lambda entry: entry.distribution != CORE):
        if entry.group == BACKENDS if entry.distribution == CORE else only_core:
            continue
        try:
            loaded.append(load(entry, found))
        except PluginError as error:
            key = (entry.value, str(error))
            if key in _reported:
                continue
            _reported.add(key)
            remedy = f"; to remove it: pip uninstall {entry.distribution}"
            if isinstance(error.__cause__, ConflictError):
                remedy = ""  # the message names the commands
            extra = {"plugin": entry.distribution}
            logger.error("skipping plugin: %s%s", error, remedy, extra=extra)
    return _unique(loaded)


def checked_options(options: Iterable[object], kind: type[Option]) -> tuple[Option, ...]:
    """Return the options that a plugin has declared.

    Raises:
        TypeError: One of them is not of this kind.
    """
    found = []
    for option in options:
        if not isinstance(option, kind):
            raise TypeError(f"options must be {kind.__name__}s, got {option!r}")
        found.append(option)
    return tuple(found)


def plugin_options() -> dict[str, tuple[specs.CommandOption, ...]]:
    """Return the options that installed plugins declare, by the plugin's distribution.

    Raises:
        KeyboardInterrupt: A plugin was interrupted.
    """
    from rhapsody.plugins import specs

    found: dict[str, tuple[specs.CommandOption, ...]] = {}
    for plugin, options in _declared("rhapsody_run_options", specs.CommandOption):
        found[plugin] = (*found.get(plugin, ()), *options)
    return found


def engine_options() -> dict[str, specs.EngineOption]:
    """Return the options of engines that installed plugins declare, by name.

    Raises:
        KeyboardInterrupt: A plugin was interrupted.
    """
    from rhapsody.plugins import specs

    declared = _declared("rhapsody_engine_options", specs.EngineOption)
    return {option.name: option for _, options in declared for option in options}


def _declared(name: str, kind: type[Option]) -> Iterator[tuple[str, tuple[Option, ...]]]:
    """Yield the plugins that implement a hook, each with the options that it declares.

    A plugin that raises an exception or returns something else is reported, once per process.

    Raises:
        KeyboardInterrupt: A plugin was interrupted.
    """
    for hook in implementations(name, loaded_plugins()):
        try:
            options = checked_options(hook.call() or (), kind)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything
            if (key := (hook.plugin, hook.hook)) not in _reported:
                _reported.add(key)
                report(hook, error)
        else:
            yield hook.plugin, options


def implementations(hook: str, plugins: Iterable[LoadedPlugin]) -> tuple[PluginHook, ...]:
    """Return the implementations of one hook in the order in which they are called."""
    found = [plugin.hooks[hook] for plugin in plugins if hook in plugin.hooks]
    return tuple(sorted(found, key=lambda one: one.rank))


@contextmanager
def importing(path: str) -> Iterator[None]:
    """Return a context manager in which this thread imports a module for a plugin."""
    _imports.active.add(path)
    try:
        yield
    finally:
        _imports.active.discard(path)


def is_importing() -> bool:
    """Return True if this thread is importing a module for a plugin, not for the program."""
    return bool(_imports.active)


def load(entry: PluginEntry, found: Installed | None = None) -> LoadedPlugin:
    """Import and register the plugin that an entry point names, once per module or object.

    Args:
        entry: The entry point.
        found: The installed plugins, in which the loaded plugin or the error is cached.

    Returns:
        The plugin.

    Raises:
        PluginError: The plugin cannot be used.
    """
    outcomes = (installed() if found is None else found).outcomes
    outcome = outcomes.get(entry.value)
    if outcome is None:
        if entry.value in _imports.active:
            raise PluginError(f"{entry}: the plugin was requested while it was being imported")
        try:
            with importing(entry.value):
                outcome = _load(entry)
        except PluginError as error:
            outcome = error
        outcomes[entry.value] = outcome
    if isinstance(outcome, PluginError):
        # A new object, because the traceback of one that is raised repeatedly would grow.
        raise PluginError(str(outcome)) from outcome.__cause__
    loaded: LoadedPlugin = outcome
    return loaded


def _load(entry: PluginEntry) -> LoadedPlugin:
    start = time.perf_counter()
    try:
        plugin = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin's import may raise anything, SystemExit included
        reason = f"{entry}: importing {entry.value!r} raised {type(error).__name__}: {error}"
        if _names_nothing(entry.value, error):
            reason += f"; correct the value of the entry point in the group {entry.group!r}"
        raise PluginError(reason) from error
    seconds = time.perf_counter() - start
    if entry.group == PLUGINS:  # backends declare the version in their specs
        version = getattr(plugin, "rhapsody_api_version", 1)
        if type(version) is not int:
            raise PluginError(f"{entry}: rhapsody_api_version must be a number, got {version!r}")
        if wrong := wrong_version(entry.distribution, version):
            raise PluginError(f"{entry}: {'; to fix it: '.join(wrong)}")
    return register(plugin, entry.distribution, str(entry), seconds)


def _names_nothing(value: str, error: BaseException) -> bool:
    """Return True if the module or object of an entry point does not exist."""
    module, _, path = value.partition(":")
    if isinstance(error, ModuleNotFoundError):
        return f"{module}.".startswith(f"{error.name}.")
    return isinstance(error, AttributeError) and error.name in path.split(".")


def register(plugin: Any, label: str, source: str, seconds: float = 0.0) -> LoadedPlugin:
    """Check a plugin's hooks against their specifications, and collect them.

    Args:
        plugin: A module or object.
        label: The plugin's name in messages about its hooks.
        source: The plugin's origin, for messages about the plugin itself.
        seconds: The duration of the plugin's import.

    Returns:
        The plugin with its hooks.

    Raises:
        PluginError: The plugin implements no hook, or implements one with wrong arguments.
        KeyboardInterrupt: The registration was interrupted.
    """
    import pluggy

    from rhapsody.plugins import specs

    if isinstance(plugin, type):
        raise PluginError(
            f"{source}: a plugin must be a module or an object, got the class "
            f"{plugin.__module__}.{plugin.__qualname__}; name the module that contains the hooks, "
            "or an instance. A backend's class belongs in `BackendSpec.import_path`"
        )
    manager = pluggy.PluginManager(specs.PROJECT)
    manager.add_hookspecs(specs)
    try:
        manager.register(plugin, name=label)
        callers = manager.get_hookcallers(plugin) or []
        hooks = {
            caller.name: _implementation(caller.get_hookimpls(), caller.name, label)
            for caller in callers
        }
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pluggy reads every attribute, and reading may raise
        text = " ".join(str(error).split())
        raise PluginError(f"{source}: invalid hook: {type(error).__name__}: {text}") from error
    for name in hooks:
        if name not in _hooks():
            hint = suggestion(name, _hooks(), "hooks")
            raise PluginError(f"{source}: unknown hook {name!r}{hint}")
    if not hooks:
        unmarked = [name for name in _hooks() if callable(getattr(plugin, name, None))]
        named = ", ".join(unmarked) or "functions such as rhapsody_backends or rhapsody_task_events"
        raise PluginError(
            f"{source}: {_describe(plugin)} implements no Rhapsody hook; mark {named} with "
            "@rhapsody.hookimpl"
        )
    return LoadedPlugin(label, plugin, hooks, seconds)


def _implementation(marked: Sequence[pluggy.HookImpl], hook: str, label: str) -> PluginHook:
    found, *others = marked
    if others:  # their names differ
        functions = ", ".join(one.function.__name__ for one in marked)
        raise TypeError(f"{hook} must be implemented once, but is implemented by {functions}")
    if found.wrapper or found.hookwrapper:
        raise TypeError(f"{hook} must not be a hook wrapper")
    if inspect.iscoroutinefunction(found.function) and hook not in _AWAITABLE:
        raise TypeError(f"{hook} must not be a coroutine function: it is called synchronously")
    function, names = found.function, tuple(found.argnames)

    def call(**arguments: Any) -> Any:
        return function(*[arguments[name] for name in names])

    return PluginHook(label, call, hook, found.trylast - found.tryfirst)


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
