"""Registry of backends: their names, their classes, and checks of whether they can be used here.

Backends come from entry points (see `rhapsody.plugins`) and from `register_backend`. Listing names
imports nothing. Describing a backend imports only the small plugin module that declares the
backend. The backend's class and the library that it uses are imported only when the class is
requested. `rhapsody run -b NAME -o KEY=VALUE` and commands of plugins use `backend_from_options` to
create backends from settings in text form.
"""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

from rhapsody.errors import PluginError, RhapsodyError
from rhapsody.known import ALIASES as PLUGIN_ALIASES
from rhapsody.known import BACKENDS as RESERVED
from rhapsody.known import BACKENDS_ELSEWHERE
from rhapsody.plugins.manager import (
    BACKENDS,
    CORE,
    DISABLE,
    PluginEntry,
    hidden_entries,
    importing,
    install_command,
    installed,
    load,
    repair_command,
    wrong_version,
)
from rhapsody.plugins.options import BackendOption, option_hint
from rhapsody.plugins.specs import API_VERSION, BackendSpec, UsageError, split_import_path
from rhapsody.spelling import similar
from rhapsody_guard import ConflictError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from rhapsody.backends.base import BaseExecutionBackend, Capabilities

__all__ = [
    "BackendDescription",
    "BackendRegistry",
    "backend_from_options",
    "discover_backends",
    "get_backend",
]

PUBLISHED = {"noop": CORE, "local": CORE, **RESERVED}
"""Reserved backend names, each with the only distribution that may use it."""

ALIASES = {"concurrent": "local", **PLUGIN_ALIASES}
"""Names of related projects that are accepted for the same backend."""

FORMER = {
    **ALIASES,
    **dict.fromkeys(("thread", "threads", "process", "processes"), "local"),
    **dict.fromkeys(("dry_run", "dummy"), "noop"),
    **BACKENDS_ELSEWHERE,
}
"""Names of backends in other projects, and likely guesses, each with the name to use instead."""


class UnusableError(Exception):
    """The backend cannot be used.

    Args:
        reason: The reason why the backend cannot be used.
        remedy: The fix, if possible as a command.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendDescription:
    """Description of a backend, obtained without importing its class.

    Attributes:
        name: The name under which the backend is registered.
        usable: True if the backend can be used here, as far as this can be determined without
            importing its class.
        reason: The reason why the backend cannot be used, or `None` if it is usable.
        remedy: The fix, if possible as a command, or `None` if the backend is usable.
        distribution: The distribution that contains the backend, or `None` for a backend that was
            registered at run time.
        version: The version of the distribution.
        summary: A description in one line.
        api_version: The version of the plugin interface that the backend was written for.
        import_path: The import path of the backend's class.
        requires: The distributions that the backend requires, as requirement strings.
        capabilities: The backend's capabilities, or `None` if they are not declared.
        options: The options that the backend declares.
        conflicts: One sentence for each entry point of another distribution that is not used
            because it claims the same reserved name.

    If the plugin's declaration of the backend cannot be loaded, the attributes that are read from
    the declaration keep their defaults.
    """

    name: str
    usable: bool
    reason: str | None = None
    remedy: str | None = None
    distribution: str | None = None
    version: str | None = None
    summary: str = ""
    api_version: int | None = None
    import_path: str | None = None
    requires: tuple[str, ...] = ()
    capabilities: Capabilities | None = None
    options: tuple[BackendOption, ...] = ()
    conflicts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict of values that JSON supports."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["requires"] = list(self.requires)
        values["options"] = [each.as_dict() for each in self.options if not each.instead]
        values["conflicts"] = list(self.conflicts)
        if self.capabilities is not None:
            values["capabilities"] = self.capabilities.as_dict()
        return values


class _Registered(NamedTuple):
    """Backend that was registered with `register_backend`, by import path or by class."""

    name: str
    import_path: str
    cls: type[BaseExecutionBackend] | None = None

    @property
    def target(self) -> object:
        """The class, or the import path if the class has not been imported."""
        module, _, qualname = self.import_path.partition(":")
        try:
            return self.cls or attrgetter(qualname)(sys.modules[module])
        except (KeyError, AttributeError):
            return self.import_path


_lock = threading.Lock()
_registered: dict[str, _Registered] = {}


class BackendRegistry:
    """Registry of backends, with class methods that may be called from any thread.

    Names are case-insensitive, and `-` and `_` are equivalent.
    """

    @classmethod
    def list_backends(cls) -> list[str]:
        """Return the names of all backends, usable or not, sorted. Imports no plugin."""
        return sorted(_names().values())

    @classmethod
    def get_backend_class(cls, backend_name: str) -> type[BaseExecutionBackend]:
        """Import a backend's class.

        Args:
            backend_name: The backend's name; `"concurrent"` is an alias of `"local"`.

        Returns:
            A subclass of `BaseExecutionBackend`.

        Raises:
            ValueError: No backend has this name. The message lists the available names and, if
                known, the closest match and the distribution to install.
            ImportError: The backend cannot be used, or its class cannot be imported.
            TypeError: The name is not a string, or the import path does not lead to a valid backend
                class.
        """
        key = _key(backend_name)
        if key not in _registered and key not in _claims():
            key = ALIASES.get(key, key)
        own = _registered.get(key)
        if own is not None:
            remedy = f"check the import path {own.import_path!r} passed to register_backend"
            return own.cls or _import(own.import_path, f"backend {own.name!r}", remedy, remedy)
        if key not in _claims():
            raise ValueError(_unknown(backend_name))
        try:
            entry = claim(key)
            spec = _spec(key, entry)
            _check_usable(spec, entry.distribution)
        except UnusableError as error:
            cause = error.__cause__ and (error.__cause__.__cause__ or error.__cause__)
            end = "" if error.reason.endswith("?") else "."
            raise ImportError(
                f"backend {backend_name!r} cannot be used: {error.reason}{end} {error.remedy}",
                name=cause.name if isinstance(cause, ImportError) else None,
            ) from cause
        remedy = _reinstall(entry.distribution)
        source = f"backend {spec.name!r} of {entry.distribution}"
        return _import(spec.import_path, source, remedy, spec.install_hint or remedy)

    @classmethod
    def register_backend(cls, name: str, import_path: str | type[BaseExecutionBackend]) -> None:
        """Register a backend for this process.

        Registering the same class again does nothing. A class that was defined again, for example
        by running a notebook cell twice, is a different class: call `unregister_backend` first.

        Args:
            name: The backend's name.
            import_path: The class, or its import path as `"package.module.Class"` or
                `"package.module:Class"`. A class given by its path is imported when it is needed.

        Raises:
            ValueError: The path is malformed, or the name is empty or taken.
            TypeError: `name` is not a string, `import_path` is neither a string nor a backend
                class, or the class has a method or attribute that the engine cannot use.
        """
        key = _key(name)
        if not key:
            raise ValueError("name must not be empty")
        if isinstance(import_path, str):
            module, qualname = split_import_path(import_path.strip())
            new = _Registered(name.strip(), f"{module}:{qualname}")
        else:
            checked = check_backend_class(import_path, f"backend {name!r}")
            path = f"{checked.__module__}:{checked.__qualname__}"
            new = _Registered(name.strip(), path, checked)
        taken = _installed_owner(key)
        if taken is None:
            with _lock:
                known = _registered.setdefault(key, new)
            taken = known.import_path, known.target
        owner, target = taken
        if target == new.target:
            return
        if owner == new.import_path:
            raise ValueError(
                f"backend name {name!r} is taken by an earlier definition of {owner}; to replace "
                f"it, call BackendRegistry.unregister_backend({name!r}) first"
            )
        raise ValueError(f"backend name {name!r} is taken by {owner}; choose another name")

    @classmethod
    def unregister_backend(cls, name: str) -> None:
        """Remove a backend that was registered with `register_backend`.

        Args:
            name: The backend's name.

        Raises:
            ValueError: No backend of this name was registered at run time.
        """
        key = _key(name)
        with _lock:
            if _registered.pop(key, None) is not None:
                return
        if key in _claims():
            raise ValueError(
                f"backend {name!r} was not registered at run time but comes with a distribution; "
                f"to disable the distribution, add it to {DISABLE}"
            )
        raise ValueError(_unknown(name))

    @overload
    @classmethod
    def describe(cls, name: None = None) -> dict[str, BackendDescription]: ...

    @overload
    @classmethod
    def describe(cls, name: str) -> BackendDescription: ...

    @classmethod
    def describe(
        cls, name: str | None = None
    ) -> dict[str, BackendDescription] | BackendDescription:
        """Describe one backend or all of them, without importing their classes.

        Args:
            name: A backend's name, or `None` for all backends.

        Returns:
            The backend's description; if `name` is `None`, a dict that maps the names of all
            backends, in sorted order, to their descriptions.

        Raises:
            ValueError: No backend has this name.
        """
        names = _names()
        if name is not None:
            key = _key(name)
            if key not in names:
                raise ValueError(_unknown(name))
            return _describe(key, names[key])
        listed = sorted(names.items(), key=lambda item: item[1])
        return {display: _describe(key, display) for key, display in listed}


def discover_backends() -> dict[str, bool]:
    """Check which backends can be used here, without importing the libraries that they use.

    `BackendRegistry.describe` returns more, including the reasons.

    Returns:
        A dict that maps each backend's name to True if the backend can be used, otherwise to False.
    """
    return {name: known.usable for name, known in BackendRegistry.describe().items()}


def get_backend(backend_name: str, *args: Any, **kwargs: Any) -> BaseExecutionBackend:
    """Create a backend, without starting it.

    Args:
        backend_name: The backend's name.
        *args: Arguments for the backend's class.
        **kwargs: Keyword arguments for the backend's class.

    Returns:
        The backend. To start it, await it or enter it with `async with`.

    Raises:
        ValueError: No backend has this name.
        ImportError: The backend cannot be used, or its class cannot be imported.
    """
    return BackendRegistry.get_backend_class(backend_name)(*args, **kwargs)


def normalize_name(name: str) -> str:
    """Return the form in which backend names are compared: lower case, with `_` for `-`."""
    return name.strip().lower().replace("-", "_")


def _key(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a backend must be a string, got {name!r}")
    return normalize_name(name)


# Backends of installed distributions.


def _claims() -> dict[str, list[PluginEntry]]:
    """Return the entry points that claim each name, by normalized name."""
    found: dict[str, list[PluginEntry]] = {}
    for entry in installed().group(BACKENDS):
        found.setdefault(normalize_name(entry.name), []).append(entry)
    return found


def _names() -> dict[str, str]:
    """Return the original spelling of each backend's name, by normalized name."""
    claimed = {key: entries[0].name for key, entries in _claims().items()}
    return claimed | {key: own.name for key, own in list(_registered.items())}


def claim(key: str) -> PluginEntry:
    """Return the entry point that a normalized name refers to.

    A name that several distributions claim is refused, because every rule would be a silent winner:
    the first in alphabetical order changes when something is installed, and a variable that chooses
    one is set in one shell and not in the next. Names such as `distribution:name` would be longer
    for all users because of a rare case.

    Raises:
        KeyError: No distribution claims the name.
        UnusableError: The name is reserved and claimed only by other distributions; several
            distributions claim the name; or one distribution claims it with different entry points.
    """
    entries = _claims()[key]
    owner = PUBLISHED.get(key)
    if owner is not None:
        others = _distributions(entries)
        entries = [entry for entry in entries if entry.distribution == owner]
        if not entries:
            raise UnusableError(
                f"the name {key!r} is reserved for {owner}, but claimed by {' and '.join(others)}",
                install_command(owner),
            )
    claimants = _distributions(entries)
    if len(claimants) > 1:
        raise UnusableError(
            f"the name {key!r} is claimed by {' and '.join(claimants)}; only one of them may be "
            "installed",
            f"pip uninstall {' '.join(claimants[1:])}",
        )
    if len({entry.value for entry in entries}) > 1:
        raise UnusableError(
            f"{claimants[0]} has {len(entries)} different entry points named {key!r}",
            repair_command(claimants[0]),
        )
    return entries[0]


def conflicts(key: str) -> tuple[str, ...]:
    """Describe the entry points that are not used because they claim a reserved name.

    Args:
        key: The normalized name.

    Returns:
        One sentence for each such entry point; empty if the distribution for which the name is
        reserved is not installed.
    """
    owner = PUBLISHED.get(key)
    entries = _claims().get(key, [])
    if owner not in _distributions(entries):
        return ()
    return tuple(
        f"{entry} is not used: the name is reserved for {owner}"
        for entry in entries
        if entry.distribution != owner
    )


def _distributions(entries: Iterable[PluginEntry]) -> list[str]:
    return list(dict.fromkeys(entry.distribution for entry in entries))


def _spec(key: str, entry: PluginEntry) -> BackendSpec:
    """Return the declaration of a backend, after importing the plugin's module that contains it.

    Raises:
        UnusableError: The plugin cannot be loaded, or its declaration is invalid.
    """  # noqa: DOC501 - the TypeError is caught here

    def unusable(reason: str) -> UnusableError:
        return UnusableError(reason, repair_command(entry.distribution))

    try:
        plugin = load(entry)
    except PluginError as error:
        conflict = error.__cause__
        if isinstance(conflict, ConflictError):
            raise UnusableError(conflict.reason, conflict.remedy) from error
        raise unusable(str(error)) from error
    if "rhapsody_backends" not in plugin.hooks:
        raise unusable(
            f"{entry}: {entry.value} declares no backend: define the hook rhapsody_backends"
        )
    hook = plugin.hooks["rhapsody_backends"]
    try:
        declared = hook.call()
        many = isinstance(declared, Iterable) and not isinstance(declared, BackendSpec)
        specs: list[BackendSpec] = list(declared) if many else [declared]
        for spec in specs:
            if not isinstance(spec, BackendSpec):
                raise TypeError(f"rhapsody_backends must return BackendSpecs, got {spec!r}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin's hook may raise anything
        reason = f"{entry}: invalid declaration: {type(error).__name__}: {error}"
        raise unusable(reason) from error
    named = [spec for spec in specs if normalize_name(spec.name) == key]
    if len(named) != 1:
        count = f"{len(named)} backends" if named else "no backend"
        others = ", ".join(repr(spec.name) for spec in specs) or "none"
        raise unusable(
            f"{entry}: {entry.value} declares {count} named {key!r}; declared: {others}. The entry "
            "point and the BackendSpec must have the same name"
        )
    return named[0]


def _check_usable(spec: BackendSpec, distribution: str) -> None:
    """Check the interface version, the requirements and the module of a backend.

    Raises:
        UnusableError: The backend was written for another version of the plugin interface, a
            requirement is malformed or not met, or the top-level module cannot be found.
    """
    if wrong := wrong_version(distribution, spec.api_version):
        raise UnusableError(*wrong)
    if spec.requires:
        _check_requirements(spec, distribution)
    if missing := _missing_module(spec.import_path):
        raise UnusableError(missing, _reinstall(distribution))


def _check_requirements(spec: BackendSpec, distribution: str) -> None:
    from packaging.requirements import InvalidRequirement, Requirement

    for text in spec.requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise UnusableError(
                f"{distribution} declares a malformed requirement {text!r}: "
                f"{str(error).partition(chr(10))[0]}",
                repair_command(distribution),
            ) from None
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        problem = unmet(requirement)
        if problem is not None:
            raise UnusableError(problem, spec.install_hint or f"pip install '{text}'")


def _reinstall(distribution: str) -> str:
    return repair_command(distribution, "pip install --force-reinstall")


def unmet(requirement: Requirement) -> str | None:
    """Return the reason why a requirement is not met, or `None` if it is met."""
    from importlib_metadata import PackageNotFoundError, version

    try:
        present = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement} is not installed"
    if present is None or not requirement.specifier.contains(present, prereleases=True):
        return f"{requirement} is required, but {requirement.name} {present} is installed"
    return None


def _missing_module(import_path: str) -> str | None:
    """Return a message if the path's top-level module cannot be found. Imports nothing."""
    top = import_path.partition(":")[0].partition(".")[0]
    try:
        found = find_spec(top) is not None
    except (ImportError, ValueError):  # ValueError: a module in sys.modules without a spec
        found = True
    return None if found else f"no module named {top!r} (import_path {import_path!r})"


# Descriptions and classes.


def _describe(key: str, name: str) -> BackendDescription:
    own = _registered.get(key)
    known: dict[str, Any] = {"name": name}
    try:
        if own is not None:
            known |= {
                "summary": "registered at run time",
                "api_version": API_VERSION,
                "import_path": own.import_path,
                "capabilities": _declared_capabilities(own.cls),
            }
            if own.cls is None:
                remedy = "install the distribution that contains it, or correct the import path"
                if missing := _missing_module(own.import_path):
                    raise UnusableError(missing, remedy)
        else:
            known["conflicts"] = conflicts(key)
            entry = claim(key)
            known |= {"distribution": entry.distribution, "version": entry.version}
            spec = _spec(key, entry)
            known |= {
                "summary": spec.summary,
                "api_version": spec.api_version,
                "import_path": spec.import_path,
                "requires": tuple(spec.requires),
                "capabilities": spec.capabilities,
                "options": tuple(spec.options),
            }
            _check_usable(spec, entry.distribution)
    except UnusableError as error:
        return BackendDescription(usable=False, reason=error.reason, remedy=error.remedy, **known)
    return BackendDescription(usable=True, **known)


def _declared_capabilities(cls: type[BaseExecutionBackend] | None) -> Capabilities | None:
    declared = None if cls is None else cls.capabilities
    return None if isinstance(declared, property) else declared  # known only to instances


def _installed_owner(key: str) -> tuple[str, object] | None:
    """Return the owner of a name that is reserved or claimed by an installed distribution.

    Returns:
        `None` if the name is free. Otherwise a pair: a phrase that names the owner in messages, and
        the owner's class or import path (`None` if it is unknown).
    """
    if key not in _claims():
        owner = PUBLISHED.get(key)
        if owner is None:
            return None
        return f"{owner}, which is not installed ({install_command(owner)})", None
    try:
        entry = claim(key)
        module, qualname = split_import_path(_spec(key, entry).import_path)
    except UnusableError as error:
        return f"a plugin that cannot be used ({error.reason})", None
    return entry.distribution, _Registered(key, f"{module}:{qualname}").target


def _import(import_path: str, source: str, remedy: str, install: str) -> type[BaseExecutionBackend]:
    """Import a backend's class.

    Args:
        import_path: The import path of the class.
        source: The origin of the path, for messages.
        remedy: The fix if the module is broken, or the module or the class does not exist.
        install: The fix if a module of a library does not exist.

    Returns:
        The class.

    Raises:
        ImportError: The class cannot be imported.
        KeyboardInterrupt: The import was interrupted.
    """
    module, qualname = split_import_path(import_path)
    try:
        with importing(module):
            found: Any = import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library's import may raise anything, SystemExit included
        name = error.name if isinstance(error, ImportError) else None
        own = f"{module}.".startswith(f"{name}.")
        of_library = isinstance(error, ModuleNotFoundError) and not own
        raise ImportError(
            f"{source}: importing {module} raised {type(error).__name__}: {error}. "
            f"{install if of_library else remedy}",
            name=name,
        ) from error
    try:
        found = attrgetter(qualname)(found)
    except AttributeError:
        raise ImportError(
            f"{source}: module {module} has no class {qualname!r}. {remedy}", name=module
        ) from None
    return check_backend_class(found, source)


def _unknown(name: str) -> str:
    """Return the error message for a name that no backend has."""
    key, names = normalize_name(name), _names()
    text = f"Backend {name!r} not found. Available: {', '.join(sorted(names.values()))}"
    for entry in installed().disabled:
        if entry.group == BACKENDS and normalize_name(entry.name) == key:
            return f"{text}. {entry.distribution}, which provides it, is disabled by {DISABLE}"
    for hidden in hidden_entries():
        if hidden.entry.group == BACKENDS and normalize_name(hidden.entry.name) == key:
            return f"{text}. {hidden}; remove or reinstall the copy that comes first"
    candidates = similar(key, {**PUBLISHED, **names})
    meant = FORMER.get(key, candidates[0] if candidates else "")
    if meant in names:
        return f"{text}. Did you mean {names[meant]!r}?"
    if meant in PUBLISHED:
        hint = "" if meant == key else f"Did you mean {meant!r}? "
        owner = PUBLISHED[meant]
        return f"{text}. {hint}{meant} comes with {owner}: {install_command(owner)}"
    return text


class _Interface(Protocol):
    """Methods of a backend that the engine calls, for checking the signatures of a class.

    Parameters before `/` are passed by position, so a backend may give them any names.
    """

    def submit_tasks(self, tasks: Any, /) -> Any: ...
    def cancel_task(self, uid: Any, /) -> Any: ...
    def link_explicit_data_deps(
        self, src_task: Any, dst_task: Any, file_name: Any, file_path: Any
    ) -> Any: ...
    def link_implicit_data_deps(self, src_task: Any, dst_task: Any, /) -> Any: ...
    def get_task_states_map(self) -> Any: ...
    def register_callback(self, func: Any, /) -> Any: ...
    def state(self) -> Any: ...
    def task_state_cb(self, task: Any, state: Any, /) -> Any: ...
    def shutdown(self) -> Any: ...


def check_backend_class(cls: object, source: str) -> type[BaseExecutionBackend]:
    """Check that a class can be instantiated, and that the engine can call its methods.

    Args:
        cls: The class.
        source: The origin of the class, for messages.

    Returns:
        The class, unchanged.

    Raises:
        TypeError: The class is not a subclass of `BaseExecutionBackend`, is abstract, implements
            neither `run_task` nor `submit_tasks`, or has a method or attribute that the engine
            cannot use.
    """
    from rhapsody.backends.base import BaseExecutionBackend, ManagedBackend

    if not (isinstance(cls, type) and issubclass(cls, BaseExecutionBackend)):
        raise TypeError(
            f"{source}: {cls!r} is not a backend class; subclass rhapsody.backends.ManagedBackend"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise TypeError(
            f"{source}: {cls.__qualname__} is abstract; define {missing}, or subclass "
            "rhapsody.backends.ManagedBackend, which implements most of the interface"
        )
    if (cls.submit_tasks, getattr(cls, "run_task", None)) == (
        ManagedBackend.submit_tasks,
        ManagedBackend.run_task,
    ):
        raise TypeError(
            f"{source}: {cls.__qualname__} implements neither run_task nor submit_tasks; define "
            "`async def run_task(self, task)`"
        )
    check_attributes(cls, source)
    if not cls.__module__.startswith("rhapsody."):
        import typeguard

        try:
            typeguard.check_type(cls, type[_Interface])
        except typeguard.TypeCheckError as error:
            raise TypeError(f"{source}: {error}") from None
    return cls


def check_attributes(
    backend: BaseExecutionBackend | type[BaseExecutionBackend], source: str
) -> None:
    """Check a backend for mistakes that would otherwise appear only during a run.

    Args:
        backend: The backend or its class.
        source: The origin of the backend, for messages.

    Raises:
        TypeError: A method that is awaited is not async, a subclass of `ManagedBackend` does not
            call `super().__init__()`, or `capabilities` is not a `Capabilities`.
    """
    from rhapsody.backends.base import Capabilities, ManagedBackend

    cls = backend if isinstance(backend, type) else type(backend)
    name = cls.__qualname__
    methods = ["submit_tasks", "cancel_task", "shutdown"]
    if issubclass(cls, ManagedBackend):
        methods += ["run_task", "start", "stop"]
        if backend is not cls and not hasattr(backend, "session"):
            raise TypeError(f"{source}: {name}.__init__ must call `super().__init__()`")
    for method in methods:
        function = inspect.unwrap(getattr(backend, method))
        plain = inspect.isfunction(function) or inspect.ismethod(function)
        if plain and not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{source}: {name}.{method} must be a coroutine function, `async def {method}`, "
                f"got {function!r}"
            )
    capabilities = backend.capabilities
    if not isinstance(capabilities, Capabilities | property):
        raise TypeError(
            f"{source}: {name}.capabilities must be a Capabilities, such as "
            f"rhapsody.backends.Capabilities(executables=False), got {capabilities!r}"
        )


# Backends from settings that users write as text: `KEY=VALUE` with a TOML value.


def backend_from_options(
    name: str, options: Iterable[str] | Mapping[str, Any]
) -> BaseExecutionBackend:
    """Create a backend from settings of a command line or a profile.

    Args:
        name: The name of the backend.
        options: Strings such as `cores=2`, of which the last one for a setting applies, or the
            values of the settings by name. A setting is passed to the backend's class as the
            argument with its name or, if the class has no such argument, as an item of `resources`.

    Returns:
        The backend, not started.

    Raises:
        UsageError: The backend cannot be used, a string is malformed, or the backend does not
            accept a setting.
    """
    values = options if isinstance(options, Mapping) else parse_options(options)
    return make_backend(name, values)


def parse_options(options: Iterable[str], flag: str = "-o") -> dict[str, Any]:
    """Parse `KEY=VALUE` strings into a dict. If a key is repeated, its last value applies.

    Args:
        options: The strings. Each value is TOML, or text without quotes. With the flag `-o`, a key
            may begin with the name of a backend and a dot.
        flag: The command-line option with which the strings were passed, for messages.

    Returns:
        A dict from keys to values.

    Raises:
        UsageError: A string is not of the form `KEY=VALUE`, or its value is invalid TOML.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        key = key.strip()
        parts = key.split(".", 1) if flag == "-o" else [key]
        if not equals or not all(map(str.isidentifier, parts)):
            such = "cores=2" if flag == "-o" else "retries=2"
            raise UsageError(f"{flag} {option!r}: write KEY=VALUE, such as {flag} {such}")
        parsed[key] = _value(text.strip(), f"{flag} {option!r}")
    return parsed


def _value(text: str, option: str) -> Any:
    import tomllib

    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        # Other text is a string, unless it starts like a TOML string, array or table.
        if text and (text[0] in "\"'[{" or "\n" in text):
            raise UsageError(f"{option}: the value is not valid TOML: {error}") from None
        return text
    return found["value"] if len(found) == 1 else text


def declared_options(name: str) -> dict[str, BackendOption]:
    """Return the options that a backend declares, without importing its library.

    Returns:
        The options, keyed by name. Empty if the backend was registered at run time or cannot be
        used.

    Raises:
        ValueError: No backend has this name.
    """
    key = _key(name)
    if key in _registered:
        return {}
    if key not in _claims():
        raise ValueError(_unknown(name))
    try:
        return {option.name: option for option in _spec(key, claim(key)).options}
    except UnusableError:
        return {}


def check_option_names(name: str, options: Iterable[str]) -> None:
    """Check names of options against the backend's declaration, if it declares options.

    Raises:
        ValueError: No backend has this name.
        UsageError: It has no option of a given name.
    """
    known = declared_options(name)
    for option in options:
        hint = option_hint(option, known) if known and option != "resources" else None
        if hint is not None:
            raise UsageError(f"backend {name!r} has no option {option!r}{hint}", option=option)


def make_backend(name: str, options: Mapping[str, Any]) -> BaseExecutionBackend:
    """Create a backend from parsed settings; see `backend_from_options`.

    Returns:
        The backend, not started.

    Raises:
        UsageError: The backend cannot be used, or does not accept a setting, which is the `option`
            of the error if it is known.
    """
    try:
        check_option_names(name, options)
        cls = BackendRegistry.get_backend_class(name)
    except UsageError:
        raise
    except (ValueError, ImportError, TypeError) as error:
        raise UsageError(str(error)) from None
    parameters = inspect.signature(cls).parameters.values()
    keywords = [
        one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    resources: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for key, value in options.items():
        if key == "resources" and key in keywords:
            if not isinstance(value, dict):
                raise UsageError(
                    f"resources must be a table, such as resources={{cores = 2}}, got {value!r}",
                    option=key,
                )
            resources |= value
        elif key in keywords or any(one.kind is one.VAR_KEYWORD for one in parameters):
            given[key] = value
        elif "resources" in keywords:
            resources[key] = value
        else:
            takes = (
                f"its settings are {', '.join(keywords)}" if keywords else "it takes no settings"
            )
            raise UsageError(f"backend {name!r} has no setting {key!r}; {takes}", option=key)
    if resources:
        given["resources"] = resources
    try:
        return cls(**given)
    except (TypeError, ValueError, ImportError, RhapsodyError) as error:
        # The message of a backend should begin with the option. Others may be in a hint.
        words = re.findall(r"\w+", str(error))
        option = next((word for word in words if word in options), None)
        raise UsageError(f"backend {name!r}: {error}", option=option) from None
