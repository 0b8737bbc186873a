"""Configuration files: finds `rhapsody.toml` and `pyproject.toml`, and the lines of their keys.

A project's file is found as by ruff and pytest: the nearest one in the current directory or a
parent. The search ends at the root of the project. It also ends at a directory that another user
could write a file into, because a setting of a backend, such as RADICAL-Pilot's `pre_exec`, may
contain commands.

`tomllib` does not report the lines of keys. `ConfigFile` finds them by parsing the statements of
the file one by one.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from rhapsody.errors import ProfileError

NAME = "rhapsody.toml"
PYPROJECT = "pyproject.toml"

ROOTS = (".git", ".hg")
"""Entries of the root directory of a project."""

Keys = tuple[str, ...]
"""Path of a value in a file: the names of the tables that contain it, and its key."""


@dataclass(frozen=True)
class ConfigFile:
    """Configuration file, or the table `[tool.rhapsody]` of a `pyproject.toml`.

    Attributes:
        path: The absolute path of the file.
        text: The text of the file.
        prefix: The names of the tables that contain `data`.
        data: The parsed file, or the table.
    """

    path: Path
    text: str
    prefix: Keys
    data: Mapping[str, Any]

    @cached_property
    def _lines(self) -> Mapping[Keys, int]:
        return dict(reversed(list(_numbered(self.text))))  # the first line of each key

    def where(self, keys: Keys) -> str:
        """Return the path of the file and the line of a key, such as `rhapsody.toml:3`.

        The path is relative if the file is in the current directory.
        """
        line = self._lines.get((*self.prefix, *keys))
        shown = short(self.path)
        return shown if line is None else f"{shown}:{line}"


def short(path: Path) -> str:
    """Return a path for messages, relative to the current directory if the file is in it."""
    try:
        return path.name if path.parent == Path.cwd() else str(path)
    except FileNotFoundError:  # the current directory was removed
        return str(path)


def _numbered(text: str) -> Iterator[tuple[Keys, int]]:
    """Yield each key of a TOML file, and each name of a table, with its line.

    A statement may have several lines. It ends at the first line with which it can be parsed.
    """
    table: Keys = ()
    statement, start = "", 1
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        statement, start = (statement + line, start) if statement else (line, number)
        try:
            found = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        is_table = statement.lstrip().startswith("[")
        keys = list(_paths(found))
        yield from (((*(() if is_table else table), *each), start) for each in keys)
        if is_table:
            table = keys[-1]
        statement = ""


def _paths(value: object) -> Iterator[Keys]:
    """Yield the paths of all keys of nested tables, the deepest last."""
    if isinstance(value, list) and value:  # an array of tables
        yield from _paths(value[-1])
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield (key,)
            yield from ((key, *rest) for rest in _paths(inner))


def user_file() -> Path | None:
    """Return the path of the user's file, in the configuration directory of the platform.

    A user without a home directory, as in many containers, has no such file.
    """
    from platformdirs import user_config_path

    try:
        return user_config_path("rhapsody", appauthor=False) / NAME
    except RuntimeError:
        return None


def project_file() -> ConfigFile | None:
    """Return the configuration file in the nearest directory that has one, or `None`.

    The search starts in the current directory and continues in its parents.

    In one directory, `rhapsody.toml` takes precedence over `pyproject.toml`. A `pyproject.toml`
    without a table `[tool.rhapsody]` is ignored.

    Raises:
        ProfileError: The file cannot be read.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current directory was removed
        return None
    home = Path(os.path.expanduser("~"))
    for directory in (here, *here.parents):
        if directory != here and not _private(directory):
            return None
        for name in (NAME, PYPROJECT):
            found = read(directory / name)
            if found is not None:
                return found
        if directory == home or any(os.path.exists(directory / root) for root in ROOTS):
            return None
    return None


def _private(directory: Path) -> bool:
    """Return True if only this user, root and a group can create files in a directory."""
    try:
        status = os.stat(directory)
    except OSError:  # no permission to look into its parent
        return False
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & stat.S_IWOTH


def read(path: Path) -> ConfigFile | None:
    """Read a file.

    Returns:
        The file, or `None` if it does not exist or has no settings of Rhapsody.

    Raises:
        ProfileError: The file cannot be read, or is not valid TOML.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        raise ProfileError(f"{short(path)}: cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        return None
    try:
        return _read(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ProfileError(f"{short(path)}: cannot be read: {error.strerror or error}") from None


def _unquoted(line: str) -> str:
    """Return a hint if the value in a line with a mistake is text without quotes."""
    match = re.fullmatch(r"\s*([\w.-]+)\s*=\s*([\w~/.$][^\"'\[\]{},#]*?)\s*(#.*)?", line)
    if match is None:
        return ""
    key, value = match[1], match[2]
    try:
        tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        pass
    else:  # the mistake is in an earlier line
        return ""
    if value.lower() in ("true", "false"):
        return f"; write {key} = {value.lower()}"
    return f'; text needs quotes: {key} = "{value}"'


@lru_cache(maxsize=16)
def _read(path: Path, modified: int, size: int) -> ConfigFile | None:
    """Parse a file; `modified` and `size` are the key of the cache."""
    content = path.read_bytes()
    if path.name == PYPROJECT and b"rhapsody" not in content:
        return None  # most files of other projects need not be parsed
    try:
        text = content.decode("utf-8")
        data: Any = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ProfileError(f"{short(path)}: not UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        found = re.search(r"line (\d+)", place)
        line = int(found[1]) if found else len(text.splitlines())  # at the end of the document
        hint = _unquoted("".join(text.splitlines()[line - 1 : line]))
        raise ProfileError(f"{short(path)}:{line}: invalid TOML: {reason}{hint}") from None
    if path.name != PYPROJECT:
        return ConfigFile(path, text, (), data)
    prefix = ("tool", "rhapsody")
    tool = data.get("tool")
    table = tool.get("rhapsody") if isinstance(tool, dict) else None
    return ConfigFile(path, text, prefix, table) if isinstance(table, dict) else None
