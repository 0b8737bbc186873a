"""The registry: which backends there are, whether they can be used, and their classes.

Backends come from entry points (see `rhapsody.plugins`) and from
`register_backend`. Asking for names loads nothing, asking for descriptions loads
the plugins' light modules, and only asking for a class imports it.
"""

from __future__ import annotations

import difflib
import sys
import threading
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, overload

from rhapsody.backends.catalog import (
    PUBLISHED,
    Catalog,
    UnusableError,
    catalog,
    check_module,
    normalise,
)
from rhapsody.plugins.installing import install_command
from rhapsody.plugins.manager import named_where_slow
from rhapsody.plugins.specs import API_VERSION, BackendSpec, split_import_path

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend, Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendDescription:
    """What is known of a backend without importing its class.

    Attributes:
        name: The name it is registered under.
        usable: Whether it can be used here, as far as metadata tell.
        reason: Why not, where it cannot.
        remedy: What to do then, a command where there is one.
        distribution: The distribution it comes with, `None` for one that was
            registered at run time.
        version: That distribution's version.
        summary: One line.
        api_version: The plugin interface it was written for.
        import_path: Where its class is.
        requires: Distribution requirements.
        capabilities: What it can do, `None` where that is not declared.
        conflicts: Claims of other distributions on the name, which are not used,
            each with why.
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
    conflicts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The description in plain values, for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["requires"] = list(self.requires)
        values["conflicts"] = list(self.conflicts)
        if self.capabilities is not None:
            values["capabilities"] = self.capabilities.as_dict()
        return values


@dataclass(frozen=True, slots=True)
class _Registered:
    """A backend of `register_backend`: an import path, or a class."""

    name: str
    import_path: str
    cls: type[BaseExecutionBackend] | None = None

    def same_as(self, other: _Registered) -> bool:
        """Whether both name one class. Imports nothing."""
        if self.cls is None and other.cls is None:
            return self.import_path == other.import_path
        return self._loaded() is other._loaded()

    def _loaded(self) -> object:
        """The class; for an import path what it names now, `None` if that is not imported."""
        if self.cls is not None:
            return self.cls
        module, _, qualname = self.import_path.partition(":")
        found: object = sys.modules.get(module)
        for name in qualname.split("."):
            found = getattr(found, "__dict__", {}).get(name)  # no lazy attribute is loaded
        return found


_lock = threading.Lock()
_registered: dict[str, _Registered] = {}


class BackendRegistry:
    """The backends there are. Not instantiated; its methods may be called from any thread.

    Names are compared without case; `-` and `_` are the same.
    """

    @classmethod
    def list_backends(cls) -> list[str]:
        """The names of all backends, usable or not, sorted. Loads and imports none."""
        return sorted(_names(catalog()).values())

    @classmethod
    def get_backend_class(cls, backend_name: str) -> type[BaseExecutionBackend]:
        """Imports a backend's class.

        Args:
            backend_name: The backend's name.

        Returns:
            A subclass of `BaseExecutionBackend`.

        Raises:
            ValueError: Nobody registered the name; says which there are, the
                closest one, and what to install where that is known.
            ImportError: The backend cannot be used or its class cannot be
                imported; says why and what to do.
            TypeError: The name is no string, or what is registered is no backend class.
        """
        key = _key(backend_name)
        known = catalog()
        own = _registered.get(key)
        if own is not None:
            if own.cls is not None:
                return own.cls
            source = f"backend {own.name!r}"
            remedy = f"check {own.import_path!r}, which was given to register_backend"
            return _import(own.import_path, source, remedy)
        if key not in known:
            raise ValueError(_unknown(backend_name, key, known))
        try:
            spec = known.spec(key)
            known.check_usable(key, spec)
        except UnusableError as error:
            raise _unusable(backend_name, error) from _origin(error)
        claim = known.claim(key)
        remedy = spec.install_hint or f"pip install --force-reinstall {claim.distribution}"
        source = f"backend {spec.name!r} of {claim.distribution}"
        with named_where_slow(f"{source}: importing {spec.import_path}", claim.distribution):
            return _import(spec.import_path, source, remedy)

    @classmethod
    def register_backend(cls, name: str, import_path: str | type[BaseExecutionBackend]) -> None:
        """Registers a backend for this process.

        Registering the same again is harmless. A class that was defined anew, in a
        notebook's cell that was run again, is another one: `unregister_backend` makes
        room for it.

        Args:
            name: The backend's name.
            import_path: `"package.module.Class"` or `"package.module:Class"`, which
                is not imported now; or the class itself.

        Raises:
            ValueError: The path is malformed, or the name is taken by something else.
            TypeError: Neither a string nor a backend class.
        """
        from rhapsody.backends.checks import check_backend_class

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
        taken_by = _taken_by(key, new)
        if taken_by == "itself":
            return
        if taken_by is None:
            with _lock:
                known = _registered.setdefault(key, new)
            if known.same_as(new):
                return
            taken_by = known.import_path
            if taken_by == new.import_path:
                raise ValueError(
                    f"backend name {name!r} is taken by an earlier {taken_by}, another class than "
                    "this one; to register this one in its place, call "
                    f"BackendRegistry.unregister_backend({name!r}) first"
                )
        raise ValueError(f"backend name {name!r} is taken by {taken_by}; choose another name")

    @classmethod
    def unregister_backend(cls, name: str) -> None:
        """Undoes `register_backend`.

        Args:
            name: The backend's name.

        Raises:
            ValueError: No backend of this name was registered at run time.
        """
        key = _key(name)
        with _lock:
            if _registered.pop(key, None) is not None:
                return
        if key in catalog():
            raise ValueError(
                f"backend {name!r} was not registered at run time but comes with a distribution; "
                "to leave that out, name it in RHAPSODY_DISABLE_PLUGINS"
            )
        raise ValueError(_unknown(name, key, catalog()))

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
        """What is known of one backend or of all, without importing their classes.

        Args:
            name: A backend's name, or `None` for all.

        Returns:
            A description, or for all backends theirs by name, sorted.

        Raises:
            ValueError: Nobody registered the name.
        """
        known = catalog()
        if name is not None:
            key = _key(name)
            names = _names(known)
            if key not in names:
                raise ValueError(_unknown(name, key, known))
            return _describe(key, names[key], known)
        listed = sorted(_names(known).items(), key=lambda item: item[1])
        return {display: _describe(key, display, known) for key, display in listed}


def discover_backends() -> dict[str, bool]:
    """Every registered backend, and whether it can be used here. Imports no library.

    `BackendRegistry.describe` says why one cannot.
    """
    return {name: known.usable for name, known in BackendRegistry.describe().items()}


def get_backend(backend_name: str, *args: Any, **kwargs: Any) -> BaseExecutionBackend:
    """Makes a backend.

    Args:
        backend_name: The backend's name.
        *args: For its class.
        **kwargs: For its class.

    Returns:
        The backend, to be awaited or entered with `async with`, which starts it.

    Raises:
        ValueError: Nobody registered the name.
        ImportError: The backend cannot be used here.
    """
    return BackendRegistry.get_backend_class(backend_name)(*args, **kwargs)


def _key(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a backend's name must be a string, got {name!r}")
    return normalise(name)


def _names(known: Catalog) -> dict[str, str]:
    return {**known.names(), **{key: own.name for key, own in list(_registered.items())}}


def _describe(key: str, name: str, known: Catalog) -> BackendDescription:
    own = _registered.get(key)
    if own is not None:
        return _describe_registered(own)
    spec: BackendSpec | None = None
    problem: UnusableError | None = None
    distribution = version = None
    try:
        claim = known.claim(key)
        distribution, version = claim.distribution, claim.version
        spec = known.spec(key)
        known.check_usable(key, spec)
    except UnusableError as error:
        problem = error
    return BackendDescription(
        name=name,
        usable=problem is None,
        reason=None if problem is None else problem.reason,
        remedy=None if problem is None else problem.remedy,
        distribution=distribution,
        version=version,
        summary="" if spec is None else spec.summary,
        api_version=None if spec is None else spec.api_version,
        import_path=None if spec is None else spec.import_path,
        requires=() if spec is None else tuple(spec.requires),
        capabilities=None if spec is None else spec.capabilities,
        conflicts=known.conflicts(key),
    )


def _describe_registered(own: _Registered) -> BackendDescription:
    problem: UnusableError | None = None
    if own.cls is None:
        top = own.import_path.partition(":")[0].partition(".")[0]
        try:
            check_module(
                top, f"install the distribution that has {top!r}, or correct the import path"
            )
        except UnusableError as error:
            problem = error
    return BackendDescription(
        name=own.name,
        usable=problem is None,
        reason=None if problem is None else problem.reason,
        remedy=None if problem is None else problem.remedy,
        summary="registered at run time",
        api_version=API_VERSION,
        import_path=own.import_path,
        capabilities=None if own.cls is None else own.cls.capabilities,
    )


def _taken_by(key: str, new: _Registered) -> str | None:
    """Who has a name already: a distribution, `"itself"` for the same class, or nobody."""
    known = catalog()
    if key not in known:
        owner = PUBLISHED.get(key)
        return None if owner is None else f"{owner}, to which it belongs: {install_command(owner)}"
    try:
        module, qualname = split_import_path(known.spec(key).import_path)
        if _Registered(key, f"{module}:{qualname}").same_as(new):
            return "itself"
        return known.claim(key).distribution
    except UnusableError as error:
        return f"a plugin that cannot be used ({error.reason})"


def _import(import_path: str, source: str, remedy: str) -> type[BaseExecutionBackend]:
    from rhapsody.backends.checks import check_backend_class

    module, qualname = split_import_path(import_path)
    try:
        found: Any = import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a library's import may raise anything, SystemExit included
        name = error.name if isinstance(error, ImportError) else None
        raise ImportError(
            f"{source}: importing {module} raised {type(error).__name__}: {error}. {remedy}",
            name=name,
        ) from error
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ImportError(
                f"{source}: module {module} has no class {qualname!r}. {remedy}", name=module
            ) from None
    return check_backend_class(found, source)


def _unusable(name: str, error: UnusableError) -> ImportError:
    origin = _origin(error)
    return ImportError(
        f"backend {name!r} cannot be used: {error.reason}. {error.remedy}",
        name=origin.name if isinstance(origin, ImportError) else None,
    )


def _origin(error: UnusableError) -> BaseException | None:
    """What a plugin raised; what we made of it is in the reason."""
    origin: BaseException = error
    while origin.__cause__ is not None:
        origin = origin.__cause__
    return None if origin is error else origin


FORMER = {
    **dict.fromkeys(("concurrent", "thread", "threads", "process", "processes"), "local"),
    **dict.fromkeys(("dask_parallel", "distributed"), "dask"),
    **dict.fromkeys(("radical", "rp", "radical.pilot"), "radical_pilot"),
    **dict.fromkeys(("dry_run", "dummy"), "noop"),
}
"""What backends are called elsewhere, or by those who guess."""


def _unknown(name: str, key: str, known: Catalog) -> str:
    names = _names(known)
    text = f"Backend {name!r} not found. There are: {', '.join(sorted(names.values()))}"
    left_out = known.left_out(key)
    if left_out is not None:
        return f"{text}. {left_out}"
    if key in PUBLISHED:
        owner = PUBLISHED[key]
        return f"{text}. {key} comes with {owner}: {install_command(owner)}"
    former = FORMER.get(key)
    if former in names:
        return f"{text}. Did you mean {names[former]!r}?"
    close = difflib.get_close_matches(key, {**PUBLISHED, **names}, n=1)
    if not close:
        return text
    if close[0] not in names:
        owner = PUBLISHED[close[0]]
        install = install_command(owner)
        return f"{text}. Did you mean {close[0]!r}, which comes with {owner}: {install}"
    return f"{text}. Did you mean {names[close[0]]!r}?"
