"""Configuration files: finds `rhapsody.toml` and `pyproject.toml`, and the lines of their keys.

A project's file is found as by ruff and pytest: the nearest one in the current directory or a
parent. The search ends at the root of the project. Settings of backends, such as RADICAL-Pilot's
`pre_exec`, may contain commands. Therefore, a file of another user is refused until the user has
trusted its path, and the search ends at a directory that another user could write a file into.

`tomllib` does not report the lines of keys. `ConfigFile` finds them by parsing the statements of
the file one by one.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from rhapsody.errors import ProfileError, user_name

NAME = "rhapsody.toml"
PYPROJECT = "pyproject.toml"

TRUSTED = "trusted"
"""Name of the list of trusted files, one path per line, in the directory of the user's file."""

MAX_SIZE = 1 << 20
"""Maximum size of a file in bytes."""

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
        owner: The uid of the owner.
        mode: The mode.
    """

    path: Path
    text: str
    prefix: Keys
    data: Mapping[str, Any]
    owner: int
    mode: int

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
    return path.name if path.parent == Path.cwd() else str(path)


def _numbered(text: str) -> Iterator[tuple[Keys, int]]:
    """Yield each key of a TOML file, and each name of a table, with its line.

    A statement may have several lines. It ends at the first line with which it can be parsed.
    """
    import tomllib

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

    The search starts in the current directory and continues in its parents. It ends at a parent in
    which another user could have created the file, unless the user trusts the path.

    In one directory, `rhapsody.toml` takes precedence over `pyproject.toml`. A `pyproject.toml`
    without a table `[tool.rhapsody]` is ignored.

    Raises:
        ProfileError: The file cannot be read, or belongs to another user and is not trusted.
    """
    here = Path.cwd()
    home = Path(os.path.expanduser("~"))
    for directory in (here, *here.parents):
        private = directory == here or _private(directory)
        for name in (NAME, PYPROJECT):
            trusted = is_trusted(directory / name)
            if not (private or trusted) and _is_open(directory):
                continue
            found = read(directory / name)
            if found is None:
                continue
            if not trusted:
                _require_own(found)
            return found if private or trusted else None
        if (
            not private
            or directory == home
            or any(os.path.exists(directory / root) for root in ROOTS)
        ):
            return None
    return None


def _require_own(file: ConfigFile) -> None:
    """Raise an error if another user could have written a file."""
    own = (0, os.geteuid())
    for uid in (file.owner, os.lstat(file.path).st_uid):  # it may be a link of another user
        if uid not in own:
            raise ProfileError(
                f"{file.path} belongs to user {user_name(uid)}, and its settings can run commands "
                f"as you. If you trust it, run: rhapsody config trust {shlex.quote(str(file.path))}"
            )
    if file.mode & stat.S_IWOTH:
        raise ProfileError(
            f"all users can write to {file.path}, and its settings can run commands as you. If you "
            f"trust its content, run: chmod o-w {shlex.quote(str(file.path))}"
        )


def trusted_paths() -> list[str]:
    """Return the paths of files of other users that the user trusts.

    Raises:
        ProfileError: The list cannot be read.
    """
    own = user_file()
    if own is None:
        return []
    try:
        return own.with_name(TRUSTED).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ProfileError(f"{own.with_name(TRUSTED)}: cannot be read: {error}") from None


def is_trusted(path: Path) -> bool:
    """Return True if the user trusts the file at a path, no matter who can write to it."""
    return _real(path) in trusted_paths()


def trust(path: Path, *, remove: bool = False) -> Path:
    """Add the path of a file to those that the user trusts, or remove it.

    Returns:
        The path of the list.

    Raises:
        ProfileError: The list cannot be written, or the user has no home directory.
    """
    own = user_file()
    if own is None:
        raise ProfileError("no file can be trusted, because you have no home directory; set HOME")
    paths = [known for known in trusted_paths() if known != _real(path)]
    paths += [] if remove else [_real(path)]
    trusted = own.with_name(TRUSTED)
    new = trusted.with_name(f".{TRUSTED}.{os.getpid()}")
    try:
        trusted.parent.mkdir(parents=True, exist_ok=True)
        new.write_text("".join(f"{line}\n" for line in paths), "utf-8")
        os.replace(new, trusted)
    except OSError as error:
        raise ProfileError(f"{trusted}: cannot be written: {error.strerror or error}") from None
    return trusted


def _real(path: Path) -> str:
    """Return a path whose directories are no links."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _is_open(directory: Path) -> bool:
    """Return True if all users may create files in a directory, or it cannot be examined."""
    try:
        return bool(os.stat(directory).st_mode & stat.S_IWOTH)
    except OSError:
        return True


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
        return _read(path, status.st_mtime_ns, status.st_size, status.st_ino, status.st_uid)
    except OSError as error:
        raise ProfileError(f"{short(path)}: cannot be read: {error.strerror or error}") from None


def _unquoted(line: str) -> str:
    """Return a hint if the value in a line with a mistake is text without quotes."""
    match = re.fullmatch(r"\s*([\w.-]+)\s*=\s*([\w~/.$][^\"'\[\]{},#]*?)\s*(#.*)?", line)
    if match is None:
        return ""
    import tomllib

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


def _without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting, because it may be a named pipe of another user."""
    return os.open(path, flags | os.O_NONBLOCK)


@lru_cache(maxsize=16)
def _read(path: Path, modified: int, size: int, inode: int, owner: int) -> ConfigFile | None:
    """Parse a file; the other arguments are the key of the cache."""
    import tomllib  # most programs have no such file

    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise ProfileError(f"{short(path)}: longer than {MAX_SIZE} bytes")
    owner, mode = status.st_uid, status.st_mode
    if path.name == PYPROJECT and b"rhapsody" not in content:
        return None  # most files of other projects need not be parsed
    try:
        text = content.decode("utf-8")
        data: Any = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ProfileError(f"{short(path)}: not UTF-8: {error}") from None
    except RecursionError:
        raise ProfileError(f"{short(path)}: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        found = re.search(r"line (\d+)", place)
        line = int(found[1]) if found else len(text.splitlines())  # at the end of the document
        hint = _unquoted("".join(text.splitlines()[line - 1 : line]))
        raise ProfileError(f"{short(path)}:{line}: invalid TOML: {reason}{hint}") from None
    if path.name != PYPROJECT:
        return ConfigFile(path, text, (), data, owner, mode)
    prefix = ("tool", "rhapsody")
    tool = data.get("tool")
    table = tool.get("rhapsody") if isinstance(tool, dict) else None
    if not isinstance(table, dict):
        return None
    return ConfigFile(path, text, prefix, table, owner, mode)
