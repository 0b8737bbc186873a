"""Which plugins are installed, read from the metadata of distributions. Loads none of them.

Metadata is read in the directories and zip files on `sys.path`.
What was read is kept until one of them changes, so that asking is
cheap and a plugin installed while the program runs is seen.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

BACKENDS = "rhapsody.backends"
"""The entry-point group of backends."""

PLUGINS = "rhapsody.plugins"
"""The entry-point group of all other plugins."""

CORE = "rhapsody-core"
OTHER_FAMILY_MEMBER = "rhapsody-py"
"""A distribution that puts classes, not plugins, into our group of backends."""

DISABLE = "RHAPSODY_DISABLE_PLUGINS"
CORE_MODULE = "rhapsody.backends.plugin"
"""Core's own plugin module, which is known to implement `rhapsody_backends` only."""

_SETTLED = 2.0
"""Seconds after which a directory's time stamp is sure to differ after one more change."""

_METADATA = (".dist-info", ".egg-info")
_SEPARATORS = re.compile(r"[-_.]+")

logger: logging.Logger = logging.getLogger("rhapsody.plugins")


@dataclass(frozen=True, slots=True)
class Declared:
    """One entry point.

    Attributes:
        group: `rhapsody.backends` or `rhapsody.plugins`.
        name: The entry point's name, a backend's name in the first group.
        value: The module, or the object in one, written `module:object`.
        distribution: The distribution's name, normalised.
        version: The distribution's version.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"entry point {self.name!r} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class Installed:
    """What is installed here, at one time.

    Attributes:
        declared: The entry points in use, sorted by distribution and name.
        disabled: Those that `RHAPSODY_DISABLE_PLUGINS` leaves out.
        ignored: Those of `rhapsody-py`.
        unreadable: Distributions whose entry points cannot be read, each with why.
        outcomes: What loading gave, by entry-point value; filled by the manager.
    """

    declared: tuple[Declared, ...] = ()
    disabled: tuple[Declared, ...] = ()
    ignored: tuple[Declared, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    outcomes: dict[str, Any] = field(default_factory=dict, compare=False)

    def group(self, name: str) -> tuple[Declared, ...]:
        """The entry points in use of one group."""
        return tuple(one for one in self.declared if one.group == name)


class _Contents(NamedTuple):
    """What one entry of `sys.path` holds.

    Attributes:
        files: The names of the metadata directories, which have versions in them.
        names: Every distribution in it, whether or not it has plugins.
        declared: The entry points, each with its distribution as in `names`.
        unreadable: As in `Installed`.
    """

    files: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    declared: tuple[tuple[str, Declared], ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()


class _Scan(NamedTuple):
    """When an entry of `sys.path` was read, and what it held.

    Attributes:
        stamp: Which directory it was, with its time stamp.
        settled: Whether any change since then shows in the time stamp.
        contents: What it held.
    """

    stamp: tuple[int, int, int]
    settled: bool
    contents: _Contents


_scans: dict[str, _Scan] = {}
_known: tuple[Any, Installed] = (None, Installed())
_reported: set[str] = set()


def normalise_distribution(name: str) -> str:
    """A distribution's name in its normal form (PEP 503)."""
    return _SEPARATORS.sub("-", name.strip()).lower()


def installed() -> Installed:
    """What is installed here now. Cheap where nothing has changed since the last call."""
    global _known
    paths = dict.fromkeys(entry or os.curdir for entry in sys.path if isinstance(entry, str))
    contents = [_scan(path).contents for path in paths]
    # Only what holds distributions counts: programs write into other places all the time.
    key = (os.environ.get(DISABLE, ""), [one for one in contents if one.files])
    known_key, known = _known
    if key == known_key:
        return known
    found = _in_effect(contents, left_out())
    _known = (key, found)
    _report(found)
    return found


def _scan(path: str) -> _Scan:
    try:
        status = os.stat(path)
    except OSError:  # many entries of sys.path do not exist
        return _Scan((0, 0, 0), True, _Contents())
    stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
    known = _scans.get(path)
    if known is not None and known.settled and known.stamp == stamp:
        return known
    settled = abs(time.time() - status.st_mtime) > _SETTLED
    scan = _Scan(stamp, settled, _contents(path))
    _scans[path] = scan
    return scan


def _contents(path: str) -> _Contents:
    try:
        return _read(path, os.listdir(path), lambda name: os.path.join(path, name))
    except NotADirectoryError:
        return _contents_of_zip(path)
    except OSError:  # a directory that may not be read
        return _Contents()


def _contents_of_zip(path: str) -> _Contents:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            root = zipfile.Path(archive)
            return _read(path, [each.name for each in root.iterdir()], lambda name: root / name)
    except (OSError, zipfile.BadZipFile):  # any other file
        return _Contents()


def _read(path: str, listed: Iterable[str], place: Callable[[str], Any]) -> _Contents:
    """Read the distributions of a directory or zip file; `place` locates what is listed."""
    # A name that begins with ~ is what pip left behind.
    files = sorted(one for one in listed if one.endswith(_METADATA) and not one.startswith("~"))
    names: set[str] = set()
    declared: list[tuple[str, Declared]] = []
    unreadable: list[tuple[str, str]] = []
    for file in files:
        name = normalise_distribution(file.rpartition(".")[0].partition("-")[0])
        names.add(name)
        try:
            if _has_plugins(place(file)):
                found = _of_distribution(place(file), name)
                declared += ((name, one) for one in found if one.name)
                if not all(one.name for one in found):
                    unreadable.append((os.path.join(path, file), "one has no name"))
        except Exception as error:  # metadata is written by others and may be broken in any way
            unreadable.append((os.path.join(path, file), f"{type(error).__name__}: {error}"))
    return _Contents(tuple(files), frozenset(names), tuple(declared), tuple(unreadable))


def _has_plugins(directory: Any) -> bool:
    try:
        if isinstance(directory, str):
            with open(os.path.join(directory, "entry_points.txt"), "rb") as file:
                text = file.read()
        else:
            text = (directory / "entry_points.txt").read_bytes()
    except (OSError, KeyError):  # most distributions have no entry points
        return False
    return BACKENDS.encode() in text or PLUGINS.encode() in text


def _of_distribution(directory: Any, name: str) -> list[Declared]:
    from importlib_metadata import PathDistribution

    place = Path(directory) if isinstance(directory, str) else directory
    distribution = PathDistribution(place)
    metadata = distribution.metadata
    name = normalise_distribution(metadata.get("Name") or name)
    version = metadata.get("Version") or ""
    return [
        Declared(point.group, point.name.strip(), point.value.strip(), name, version)
        for point in distribution.entry_points
        if point.group in (BACKENDS, PLUGINS)
    ]


def left_out() -> set[str]:
    """The distributions that `RHAPSODY_DISABLE_PLUGINS` names; `all` is one of the names."""
    names = os.environ.get(DISABLE, "").split(",")
    return {normalise_distribution(name) for name in names if name.strip()}


def _in_effect(contents: list[_Contents], excluded: set[str]) -> Installed:
    found: dict[Declared, None] = {}
    shadowed: set[str] = set()
    for one in contents:
        # A distribution of the same name earlier on sys.path is the one in effect.
        found.update((each, None) for name, each in one.declared if name not in shadowed)
        shadowed |= one.names
    declared, disabled, ignored = [], [], []
    for each in sorted(found, key=lambda each: (each.distribution, each.group, each.name)):
        if each.distribution == OTHER_FAMILY_MEMBER:
            ignored.append(each)
        elif each.distribution != CORE and not excluded.isdisjoint(("all", each.distribution)):
            disabled.append(each)
        else:
            declared.append(each)
    unreadable = tuple(reason for one in contents for reason in one.unreadable)
    return Installed(tuple(declared), tuple(disabled), tuple(ignored), unreadable)


def _report(found: Installed) -> None:
    """Says what was left out for good reason, once per process."""
    messages = [
        f"the entry points of {OTHER_FAMILY_MEMBER} {one.version} are ignored: they are not "
        "plugins. Run `rhapsody doctor`"
        for one in found.ignored[:1]
    ]
    messages += [
        f"the entry points of {label} cannot be read ({why}): reinstall that distribution"
        for label, why in found.unreadable
    ]
    for message in messages:
        if message not in _reported:
            _reported.add(message)
            logger.warning(message)
