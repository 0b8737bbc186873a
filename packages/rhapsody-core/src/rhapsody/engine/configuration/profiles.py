"""Profiles: named sets of options for the engine, its backend and its tasks, read from files.

A file may contain these tables, and the same ones in `[profile.NAME]`, which apply if the profile
is selected:

    default_profile = "laptop"   # only at the top

    backend = "dask" # or several: ["local", "dask"]
    [options]        # options of the backend; of several, [options.local] and [options.dask]
    [engine]         # options of the engine
    [defaults]       # settings for tasks that do not set them in the code
    [tasks.align]    # settings for tasks named "align", which replace those in the code
    [plugins.rhapsody-report]  # options of a plugin, by its distribution

`active_profile` merges the tables in the order of their precedence: the profile and the top level
of the project's file, then those of the user's file. `rhapsody.engine.configuration.defaults`
applies the result.

All names in a file are checked, whichever profile is selected. Values that depend on the machine,
such as paths, environment variables and options of backends, are checked if they are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rhapsody.backends.discovery import declared_options, normalize_name
from rhapsody.config_files import (
    NAME,
    PYPROJECT,
    ConfigFile,
    Keys,
    project_file,
    read,
    user_file,
)
from rhapsody.engine.configuration.options import EngineOptions, all_options
from rhapsody.engine.configuration.settings import CHECKS, Override, TaskDefaults
from rhapsody.environments import SETTINGS, is_path
from rhapsody.errors import ProfileError
from rhapsody.known import RUN_OPTIONS
from rhapsody.plugins.manager import (
    engine_options,
    install_command,
    installed,
    normalize_distribution,
    plugin_options,
)
from rhapsody.plugins.options import BackendOption, option_hint
from rhapsody.resources import ALIASES, Resources
from rhapsody.spelling import suggestion
from rhapsody.task import RetryPolicy

VARIABLE = "RHAPSODY_PROFILE"
"""Environment variable that selects a profile."""

TABLES = ("backend", "options", "engine", "defaults", "tasks", "plugins")
"""Keys of a profile; they may also be at the top level of a file."""

NOT_IN_FILES = {
    "backend": "write it above the table",
    "backends": "write backend = [...] above the table",
    "dry_run": "use rhapsody run --dry-run",
    "observers": "set it in the program",
    "clock": "set it in the program",
    "uid": "set it in the program",
    "profile": "select a profile with default_profile at the top of the file",
    **dict.fromkeys(
        ("retries", "lost_retries", "timeout", "shell"), "write it in the table defaults"
    ),
}
"""Options of the engine itself that the table `engine` does not accept, each with the
alternative."""


def not_in_files() -> Mapping[str, str]:
    """Return all options that the table `engine` does not accept, each with the alternative."""
    of_plugins = {each.name: each.instead_of_key for each in engine_options().values()}
    return {**{name: hint for name, hint in of_plugins.items() if hint}, **NOT_IN_FILES}


def in_files() -> tuple[str, ...]:
    """Return the names of the options that the table `engine` accepts."""
    others = not_in_files()
    return tuple(name for name in all_options() if name not in others)


RESOURCES = tuple(Resources.__dataclass_fields__)
OF_THE_ENGINE = ("retries", "lost_retries", "timeout", "shell")
"""Settings of tasks whose defaults are options of the engine."""

DEFAULTS = (
    *(name for name in RESOURCES if name != "ranks"),
    *OF_THE_ENGINE,
    *("ready_timeout", "environment", "priority", "limit", "capture", "task_description"),
    *SETTINGS,
)
"""Settings of the table `defaults`."""

TASK = (*DEFAULTS, "ranks", "restarts", "backend", "other_backends", "implicit_data")
"""Settings of the tables `tasks.NAME`."""

ELSEWHERE = {
    **dict.fromkeys(TASK, "write it in the table defaults"),
    "tool": f"omit [tool.rhapsody], which is only for {PYPROJECT}",
    "resources": f"write its fields in the table defaults: {', '.join(RESOURCES)}",
}
"""Names of settings, each with the hint for the table that accepts it."""

NOT_SETTINGS = {
    **{alias: f"did you mean {name!r}?" for alias, name in ALIASES.items() if alias != name},
    "resources": f"write its fields here: {', '.join(RESOURCES)}",
}
"""Names that users may expect among the settings of tasks, each with the hint."""


def _of_engine() -> dict[str, str]:
    """Return the names of the options in the table `engine`, each with the hint."""
    return dict.fromkeys(in_files(), "write it in the table engine")


FAILING = frozenset({"fail_fast", "keep_going", "max_failures"})
"""Alternative options: if one place sets one of them, places of lower precedence set none."""


@dataclass(frozen=True, slots=True)
class Value:
    """Value with the place that sets it.

    Attributes:
        value: The value.
        file: The file, or `None` if the value is not set in a file.
        keys: The path of the key in the file.
        place: The description of the place, if it is not a file.
    """

    value: Any
    file: ConfigFile | None = None
    keys: Keys = ()
    place: str = ""

    @property
    def source(self) -> str:
        """The file and line, or the other place."""
        return self.place if self.file is None else self.file.where(self.keys)


Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Checked contents of a profile, or of a file's top level."""

    backend: Value | None = None
    options: Values = field(default_factory=dict)
    engine: Values = field(default_factory=dict)
    defaults: Values = field(default_factory=dict)
    tasks: Mapping[str, Values] = field(default_factory=dict)
    plugins: Mapping[str, Values] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Profile:
    """Merged settings of the files, with the places that set them.

    Attributes:
        files: The files.
        known: The names of all profiles in the files.
        name: The name of the selected profile, or `None`.
        backend: The name of the backend or a list of names, or `None` if it is not set.
        options: The options of each backend, by its normalized name.
        engine: The options of the engine.
        defaults: The settings for tasks that do not set them in the code.
        tasks: Patterns of task names with the settings that replace those in the code; later
            ones take precedence.
        plugins: The options of plugins, by the plugin's distribution.
    """

    files: tuple[ConfigFile, ...] = ()
    known: tuple[str, ...] = ()
    name: Value | None = None
    backend: Value | None = None
    options: Mapping[str, Values] = field(default_factory=dict)
    engine: Values = field(default_factory=dict)
    defaults: Values = field(default_factory=dict)
    tasks: tuple[tuple[str, Values], ...] = ()
    plugins: Mapping[str, Values] = field(default_factory=dict)

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends; the first one is the engine's default backend."""
        return _names(self.backend)

    def is_for(self, backend: object) -> bool:
        """Return True if the program names a backend that the profile sets."""
        return (
            isinstance(backend, str)
            and self.backend is not None
            and normalize_name(backend) in map(normalize_name, self.backends)
        )

    def engine_options(self) -> dict[str, Any]:
        """Return the options of the engine, including those in the table `defaults`."""
        values = {**self.engine, **{n: v for n, v in self.defaults.items() if n in OF_THE_ENGINE}}
        return {name: _converted(name, each.value) for name, each in values.items()}

    def plugin_options(self, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the values of the options of all installed plugins, by distribution.

        Args:
            given: Values of the command line, which replace those of the files.
        """
        found: dict[str, dict[str, Any]] = {}
        for plugin, options in plugin_options().items():
            values = self.plugins.get(plugin, {})
            found[plugin] = {option.name: option.default for option in options}
            found[plugin] |= {name: each.value for name, each in values.items()}
            found[plugin] |= given.get(plugin, {})
        return found

    def task_defaults(
        self, plugins: Mapping[str, Mapping[str, Any]], sources: Mapping[str, str]
    ) -> TaskDefaults:
        """Return the settings of tasks, for the engine.

        Args:
            plugins: Options of plugins that the command line sets.
            sources: Where the values of engine options come from.
        """
        defaults = {n: v for n, v in self.defaults.items() if n not in OF_THE_ENGINE}
        return TaskDefaults(
            None if self.name is None else self.name.value,
            _grouped(defaults),
            tuple(
                Override(pattern, _grouped(values), next(iter(values.values())).source)
                for pattern, values in self.tasks
                if values
            ),
            self.plugin_options(plugins),
            sources,
        )


def active_profile(name: Value | None = None, backend: Value | None = None) -> Profile:
    """Read the files, and merge the settings of the selected profile.

    Args:
        name: The name of the profile, if the program or the command line selects one.
        backend: The name of the backend or a list of names, if the command line selects any.
            Options in the files apply only if they are for one of these backends.

    Returns:
        The merged settings.

    Raises:
        ProfileError: The profile does not exist, or a file contains a mistake.
    """
    own = user_file()
    found = (project_file(), None if own is None else read(own))
    read_files = tuple(file for file in found if file is not None)
    files = [_parse(file) for file in read_files]
    name = name or _selected(files)
    layers: list[_Layer] = []
    known: dict[str, None] = {}
    for profiles, top, _ in files:
        known.update(dict.fromkeys(profiles))
        if name is not None and name.value in profiles:
            layers.append(profiles[name.value])
        layers.append(top)
    if name is not None and name.value not in known:
        raise ProfileError(_unknown_profile(name, known))
    engine: dict[str, Value] = {}
    defaults: dict[str, Value] = {}
    for layer in layers:
        engine = overlay(engine, layer.engine)
        defaults = overlay(defaults, layer.defaults)
    options, every = _options(layers, backend), all_options()
    merged = Profile(
        read_files,
        tuple(known),
        name,
        backend or next((each.backend for each in layers if each.backend is not None), None),
        options,
        {key: _resolved(each) if every[key].is_path else each for key, each in engine.items()},
        defaults,
        tuple(each for layer in reversed(layers) for each in _ordered(layer.tasks)),
        _plugins(layers),
    )
    _check_engine(merged)
    for one in merged.backends:
        _check_options(merged, one, options[normalize_name(one)])
    return merged


def overlay(high: Mapping[str, Any], low: Mapping[str, Any]) -> dict[str, Any]:
    """Merge options from two places; the first place takes precedence."""
    chosen = FAILING if FAILING & high.keys() else frozenset[str]()
    return {**{name: value for name, value in low.items() if name not in chosen}, **high}


def _selected(files: Iterable[tuple[Mapping[str, _Layer], _Layer, Value | None]]) -> Value | None:
    """Return the name of the profile that the environment or a file selects."""
    variable = os.environ.get(VARIABLE)
    if variable:
        return Value(variable, place=f"the environment variable {VARIABLE}")
    return next((default for _, _, default in files if default is not None), None)


def _unknown_profile(name: Value, known: Mapping[str, None]) -> str:
    who = f"unknown profile {name.value!r} ({name.source})"
    if name.file is not None:
        who = f"{name.source}: unknown profile {name.value!r}"
    if known:
        return f"{who}{suggestion(name.value, known, 'profiles')}"
    own = user_file()
    places = [f"{NAME} in the current directory", f"[tool.rhapsody] in {PYPROJECT}"]
    places += [] if own is None else [str(own)]
    return f"{who}; write a table [profile.{name.value}] in {' or in '.join(places)}"


def _names(backend: Value | None) -> tuple[str, ...]:
    """Return the names in a value of `backend`, or that of the default backend."""
    if backend is None:
        return ("local",)
    return (backend.value,) if isinstance(backend.value, str) else tuple(backend.value)


def _options(layers: Iterable[_Layer], backend: Value | None) -> dict[str, dict[str, Value]]:
    """Merge the options of those layers that are for the chosen backends."""
    layers = list(layers)
    in_files = next((each.backend for each in layers if each.backend is not None), None)
    merged: dict[str, dict[str, Value]] = {
        normalize_name(name): {} for name in _names(backend or in_files)
    }
    for layer in reversed(layers):
        own = tuple(map(normalize_name, _names(layer.backend or in_files)))
        tables = {own[0]: layer.options} if len(own) == 1 else _by_backend(layer.options, own)
        for key in tables.keys() & merged.keys():
            for name, each in tables[key].items():
                is_table = name == "resources" and isinstance(each.value, dict)
                merged[key].update(_table(each) if is_table else {name: each})
    return merged


def _by_backend(options: Values, backends: tuple[str, ...]) -> dict[str, Values]:
    """Return the options of several backends, which are in a table for each backend."""
    found: dict[str, Values] = {}
    for name, each in options.items():
        if normalize_name(name) not in backends:
            tables = " or ".join(f"[{'.'.join((*each.keys[:-1], one))}]" for one in backends)
            raise _error(each, f"{name!r} is none of the backends; write options in {tables}")
        found[normalize_name(name)] = _table(each)
    return found


def _plugins(layers: Sequence[_Layer]) -> dict[str, dict[str, Value]]:
    """Merge the options of plugins, and check them against the plugins' declarations."""
    merged: dict[str, dict[str, Value]] = {}
    for layer in reversed(layers):
        for name, values in layer.plugins.items():
            merged.setdefault(normalize_distribution(name), {}).update(values)
    disabled = {entry.distribution for entry in installed().disabled} if merged else set()
    declared = {
        plugin: options
        for plugin, every in (plugin_options() if merged else {}).items()
        if (options := {each.name: each for each in every if each.in_profiles})
    }
    for plugin, values in merged.items():
        options = declared.get(plugin, {})
        for name, each in () if plugin in disabled else values.items():
            if not options:
                text = f"no plugin with options named {plugin!r} is installed"
                if plugin in RUN_OPTIONS.values():
                    hint = f"; to install it: {install_command(plugin)}"
                else:
                    hint = suggestion(plugin, declared, "plugins" if declared else "")
                raise _error(each, f"{text}{hint}")
            if name not in options:
                hint = suggestion(name, options, "options")
                raise _error(each, f"plugin {plugin!r} has no option {name!r}{hint}")
            described = BackendOption(name, options[name].type)
            if not described.accepts(each.value):
                raise _error(each, f"{name} must be {described.expected}, got {each.value!r}")
            if options[name].type is Path:
                values[name] = replace(each, value=Path(_resolved(each).value))
    return merged


def _ordered(tasks: Mapping[str, Values]) -> list[tuple[str, Values]]:
    """Return the tables of tasks with patterns in the order of the file, then those with names."""
    return sorted(tasks.items(), key=lambda item: not set(item[0]) & set("*?["))


def _grouped(values: Values) -> dict[str, Any]:
    """Return settings in the form of `TaskSettings`, with all resources in one dict."""
    resources = {name: each.value for name, each in values.items() if name in RESOURCES}
    others = {
        name: _converted(name, _located(name, each).value)
        for name, each in values.items()
        if name not in RESOURCES
    }
    return {**others, "resources": resources} if resources else others


# Checks of a file.


def _parse(file: ConfigFile) -> tuple[Mapping[str, _Layer], _Layer, Value | None]:
    """Check a file; return its profiles, its top-level settings, and the default profile's name."""
    data = dict(file.data)
    default = None
    if "default_profile" in data:
        default = Value(data.pop("default_profile"), file, ("default_profile",))
        if not isinstance(default.value, str):
            raise _error(default, f"default_profile must be a string, got {default.value!r}")
    profiles: dict[str, _Layer] = {}
    for name, value in _table(Value(data.pop("profile", {}), file, ("profile",))).items():
        profiles[name] = _layer(value, TABLES)
    top = _layer(Value(data, file), ("default_profile", "profile", *TABLES))
    return profiles, top, default


def _layer(value: Value, known: tuple[str, ...]) -> _Layer:
    """Check a profile, or the top-level settings of a file."""
    table = _table(value)
    _check_names(table, known, {**ELSEWHERE, **_of_engine()})
    backend = table.get("backend")
    if backend is not None:
        names = _names(backend) if isinstance(backend.value, str | list) else ()
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise _error(backend, f"backend must be a name or a list, got {backend.value!r}")
        if len(set(map(normalize_name, names))) < len(names):
            raise _error(backend, f"backend names the same backend twice: {backend.value!r}")
    tables = {
        name: _table(table[name]) if name in table else {}
        for name in ("options", "engine", "defaults", "tasks", "plugins")
    }
    _check_names(tables["engine"], in_files(), {**ELSEWHERE, **not_in_files()})
    options = all_options()
    for name, each in tables["engine"].items():
        option = options[name]
        if option.check is not None and not option.is_path:
            _checked(each, option.check)
    return _Layer(
        backend,
        tables["options"],
        tables["engine"],
        _settings(tables["defaults"], DEFAULTS),
        {name: _settings(_table(each), TASK) for name, each in tables["tasks"].items()},
        {name: _table(each) for name, each in tables["plugins"].items()},
    )


def _settings(table: Values, known: tuple[str, ...]) -> Values:
    """Check settings of tasks."""
    _check_names(table, known, {**_of_engine(), **NOT_SETTINGS})
    for name, each in table.items():
        if name in RESOURCES:
            _checked(each, lambda given, name=name: Resources.of({name: given}))
        else:
            _checked(each, lambda given, name=name: CHECKS[name](_converted(name, given)))
    return table


def _converted(name: str, value: Any) -> Any:
    """Return the value of a setting in the form that `WorkflowEngine.create` accepts."""
    return _retries(value) if name == "retries" else value


def _retries(value: Any) -> Any:
    """Return a value of `retries`: a number, a table of a `RetryPolicy`, or a list of these."""
    if isinstance(value, dict):
        unknown = value.keys() - {"attempts", "wait"}
        if unknown:
            raise TypeError(f"retries: unknown key {min(unknown)!r}; the keys are attempts, wait")
        return RetryPolicy(**value)
    if isinstance(value, list):
        return [RetryPolicy(each) if isinstance(each, int) else _retries(each) for each in value]
    return value


def _table(value: Value) -> dict[str, Value]:
    """Return the values of a table, each with its place."""
    if not isinstance(value.value, dict):
        name = ".".join(value.keys)
        hint = ""
        if value.keys == ("profile",):
            hint = f"; to select a profile, write default_profile = {value.value!r}"
        raise _error(value, f"{name} must be a table, got {value.value!r}{hint}")
    return {key: Value(one, value.file, (*value.keys, key)) for key, one in value.value.items()}


def _check_names(table: Values, known: tuple[str, ...], hints: Mapping[str, str]) -> None:
    for name, each in table.items():
        if name not in known:
            hint = f"; {hints[name]}" if name in hints else suggestion(name, known, "keys")
            raise _error(each, f"unknown key {name!r}{_inside(each)}{hint}")


def _inside(value: Value) -> str:
    table = ".".join(value.keys[:-1])
    return f" in [{table}]" if table else ""


def _checked(value: Value, check: Any) -> Any:
    """Call a check with a value, and add the value's place to the error message."""
    try:
        return check(value.value)
    except (TypeError, ValueError, OSError) as error:
        raise _error(value, str(error)) from None


def _error(value: Value, message: str) -> ProfileError:
    return ProfileError(f"{value.source}: {message}")


# Checks of what is used.


def _resolved(value: Value) -> Value:
    """Return a path with `~` and variables replaced, relative to the directory of its file."""
    if not isinstance(value.value, str) or value.file is None:
        return value

    def variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise _error(value, f"the environment variable {name} is not set")
        return os.environ[name]

    text = re.sub(r"\$(?:(\w+)|\{(\w+)\})", variable, value.value)
    path = os.path.join(value.file.path.parent, os.path.expanduser(text))
    return Value(path, value.file, value.keys)


def _located(name: str, value: Value) -> Value:
    """Return the value of a task's setting; a path of an environment is resolved."""
    if name in SETTINGS and isinstance(value.value, str) and is_path(name, value.value):
        return _resolved(value)
    return value


def _check_engine(profile: Profile) -> None:
    options = all_options()
    for name, each in profile.engine.items():
        option = options[name]
        if option.check is not None and option.is_path:
            _checked(each, option.check)
    try:
        EngineOptions.of({name: each.value for name, each in profile.engine.items()})
    except (TypeError, ValueError) as error:  # options that contradict each other
        sources = ", ".join(dict.fromkeys(each.source for each in profile.engine.values()))
        raise ProfileError(f"{sources}: {error}") from None


def _check_options(profile: Profile, backend: str, options: dict[str, Value]) -> None:
    """Check the options of a backend against its declaration, and resolve their paths."""
    if not options:
        return
    default = "" if profile.backend else f"; no backend is set, so these are options of {backend!r}"
    try:
        known = declared_options(backend)
    except ValueError:  # unknown; the program may register it later
        return
    for name, each in list(options.items()):
        if not known or name == "resources":
            continue
        hint = option_hint(name, known)
        if hint is not None:
            text = f"backend {backend!r} has no option {name!r}{_inside(each)}{hint}{default}"
            raise _error(each, text)
        option = known[name]
        if not option.accepts(each.value):
            meaning = option.help.partition(". ")[0].rstrip(".")  # may name the unit
            about = f" ({name}: {meaning})" if meaning else ""
            text = f"{name} must be {option.expected}, got {each.value!r}{about}{default}"
            raise _error(each, text)
        if "path" in option.type_name.split(" | "):
            options[name] = _resolved(each)
