"""Installed plugins, read from the entry points of distributions. Imports no plugin.

`importlib_metadata` does the reading, in directories and zip files on `sys.path`. This module
adds what isolation needs: one distribution with broken metadata does not hide the others, and
every plugin that is left out is listed with its reason. The result is kept until a directory on
`sys.path` changes, so a plugin that is installed while the program runs is found.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from importlib_metadata import EntryPoint

BACKENDS = "rhapsody.backends"
"""The entry-point group of backends."""

PLUGINS = "rhapsody.plugins"
"""The entry-point group of all other plugins."""

CORE = "rhapsody-core"
OTHER_FAMILY_MEMBER = "rhapsody-py"
"""A distribution that registers classes, not plugins, in our group of backends."""

DISABLE = "RHAPSODY_DISABLE_PLUGINS"

_SETTLED = 2 * 10**9
"""Nanoseconds after which a change of a directory is certain to change its time stamp."""

logger: logging.Logger = logging.getLogger("rhapsody.plugins")


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """One entry point.

    Attributes:
        group: `rhapsody.backends` or `rhapsody.plugins`.
        name: The entry point's name; in the first group, the backend's name.
        value: `module` or `module:object`.
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
        """Import the module or object."""
        from importlib_metadata import EntryPoint

        return EntryPoint(self.name, self.value, self.group).load()


@dataclass(frozen=True, slots=True)
class Installed:
    """The plugins that are installed, at one time.

    Attributes:
        entries: The entry points in use, sorted by distribution and name.
        disabled: Entry points that `RHAPSODY_DISABLE_PLUGINS` excludes.
        ignored: Entry points of `rhapsody-py`.
        unreadable: Distributions whose metadata cannot be read, each with the reason.
        outcomes: Loaded plugins and errors by entry-point value; filled by the manager.
    """

    entries: tuple[PluginEntry, ...] = ()
    disabled: tuple[PluginEntry, ...] = ()
    ignored: tuple[PluginEntry, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    outcomes: dict[str, Any] = field(default_factory=dict, compare=False)

    def group(self, name: str) -> tuple[PluginEntry, ...]:
        """Return the entry points in use of one group."""
        return tuple(one for one in self.entries if one.group == name)


_installed = Installed()
_installed_key: object = None
_reported: set[str] = set()


def installed() -> Installed:
    """Return the installed plugins: the same object as before while nothing has changed."""
    global _installed, _installed_key
    now = time.time_ns()
    stamps = {str(entry): _modified(entry or os.curdir) for entry in sys.path}
    key = (os.environ.get(DISABLE), list(stamps.items()))
    if key != _installed_key:
        found = _read()
        if found != _installed:
            _installed = found
            _report(found)
        # A second change within the clock's resolution would not show in the time stamps.
        _installed_key = key if max(stamps.values(), default=0) < now - _SETTLED else None
    return _installed


def disabled_distributions() -> set[str]:
    """Return the names in `RHAPSODY_DISABLE_PLUGINS`; `all` is a possible name."""
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


def _read() -> Installed:
    import importlib_metadata

    importlib_metadata.MetadataPathFinder().invalidate_caches()
    unreadable: list[tuple[str, str]] = []
    points: Iterable[EntryPoint]
    try:
        points = importlib_metadata.entry_points()
    except Exception:  # one broken distribution spoils that call for all of them
        points = _readable_points(unreadable)
    found = set()
    for point in points:
        if point.group not in (BACKENDS, PLUGINS):
            continue
        try:
            assert point.dist is not None
            name, version = normalize_distribution(point.dist.name), point.dist.version or ""
            if not point.name:
                raise ValueError(f"the entry point with the value {point.value!r} has no name")
            found.add(PluginEntry(point.group, point.name, point.value, name, version))
        except Exception as error:  # metadata may be broken in any way
            unreadable.append(_unreadable(point.dist, error))
    entries, disabled, ignored = [], [], []
    excluded = disabled_distributions()
    for entry in sorted(found, key=lambda one: (one.distribution, one.group, one.name, one.value)):
        if entry.distribution == OTHER_FAMILY_MEMBER:
            ignored.append(entry)
        elif entry.distribution != CORE and not excluded.isdisjoint(("all", entry.distribution)):
            disabled.append(entry)
        else:
            entries.append(entry)
    return Installed(tuple(entries), tuple(disabled), tuple(ignored), tuple(unreadable))


def _readable_points(unreadable: list[tuple[str, str]]) -> Iterable[EntryPoint]:
    """Yield the entry points of each distribution that can be read, and note the others."""
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
    """Return a label for a distribution with broken metadata, and what is wrong with it."""
    label = f"a distribution in {distribution.locate_file('')}"
    with suppress(Exception):  # the name may be what is broken
        label = normalize_distribution(distribution.name)
    return label, f"{type(error).__name__}: {error}"


def _report(found: Installed) -> None:
    """Log the distributions that are left out, each once per process."""
    messages = [
        f"ignoring the entry points of {OTHER_FAMILY_MEMBER} {one.version}, which are not plugins: "
        "run `rhapsody doctor`"
        for one in found.ignored[:1]
    ]
    messages += [
        f"cannot read the entry points of {label} ({why}): reinstall that distribution"
        for label, why in found.unreadable
    ]
    for message in messages:
        if message not in _reported:
            _reported.add(message)
            logger.warning(message)


def install_command(distribution: str) -> str:
    """Return the command that installs a distribution of ours, from where core was installed.

    Users who installed core from a folder or a repository find the other distributions next to
    it. Installers record the origin of a distribution in `direct_url.json` (PEP 610).

    Args:
        distribution: Its name, which is also the name of its folder.

    Returns:
        `pip install` with a folder or repository if core came from one, else with the name. It
        follows a hint if the distribution does not support this Python.
    """
    source = _sibling(_origin(), distribution) or distribution
    command = f"pip install {shlex.quote(source)}"
    if distribution == "rhapsody-radical" and sys.version_info >= (3, 14):
        return f"RADICAL-Pilot needs Python 3.11 to 3.13; in an environment with one: {command}"
    return command


def _origin() -> dict[str, Any]:
    """Return the recorded origin of core; empty if core was installed from an index."""
    from importlib_metadata import PackageNotFoundError
    from importlib_metadata import distribution as find

    try:
        origin = json.loads(find(CORE).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _sibling(origin: dict[str, Any], distribution: str) -> str | None:
    """Return pip's argument for the distribution next to core, `None` if none is known."""
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
    """Return the error for a name whose plugin cannot be imported.

    Args:
        name: The requested name.
        distribution: The distribution that provides it.
        error: The error of the import.

    Returns:
        An error whose text ends with the command that installs the plugin, or with the commands
        that remove a conflicting distribution.
    """
    from rhapsody_guard import ConflictError

    if isinstance(error, ConflictError):
        return ModuleNotFoundError(f"{name} cannot be imported: {error}", name=error.name)
    return ModuleNotFoundError(
        f"{name} comes with {distribution}, which cannot be imported ({error}). "
        f"To install it: {install_command(distribution)}",
        name=error.name,
    )
