"""Files that functions open without declaring them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Collection, Container, Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from rhapsody.builtin.journal.files import (
    LARGE_FILE,
    MAX_ENTRIES,
    TOP,
    FileDigests,
    changed_since,
    first_entries,
    has_log,
    is_hidden,
    read_small,
    stat_of,
)
from rhapsody.builtin.journal.program import Surroundings
from rhapsody.builtin.journal.scripts import Scripts
from rhapsody.builtin.journal.store import SUFFIXES
from rhapsody.builtin.journal.values import DIGEST_SIZE, UnhashableError, counts
from rhapsody.sdk.runner import (
    CACHED,
    LISTED,
    READ,
    RELATIVE,
    STARTED,
    STARTED_BEFORE,
    UPDATED,
    WITHOUT_FILE,
    WRITTEN,
    watch_cached,
)

log: logging.Logger = logging.getLogger("rhapsody.journal")

_SANDBOX = re.compile(r".+\.task\.[0-9]{6,}\.[0-9]+(~[0-9]+)?")
"""Names of sandboxes, which may be in any directory (`work_dir`)."""

_OWN = re.compile(rf"{_SANDBOX.pattern}|\..+\.(lock|part)")
"""Names of files and directories that Rhapsody creates in `work_dir` or while it copies files."""

_CURRENT = f".{os.sep}"
"""Beginning of recorded paths that are relative to the current directory."""

_DIRECTORY = ""
"""Key of the current directory in records with files that were opened by relative paths."""

_LOADED = f"{os.sep}loaded"
"""Key, in records of functions that started processes, of the files that scripts may load but that
are not compared."""

_LINKS = f"{os.sep}links in "
"""Beginning of the keys, in records of functions that resolve symbolic links, of the directories
whose links are compared."""

_VARIABLES = f"{os.sep}variables"
"""Key, in records of functions that started processes, of the environment variables that the
program has set."""

_SEARCHED = f"{os.sep}searched"
"""Key, in these records, of the directories in which scripts search modules."""


class OpenedFiles:
    """Reader and writer of records of the files that functions opened without declaring them.

    A result is reused only if these files have not changed since they were recorded. Recorded paths
    are relative to the program's directory or, if they begin with `./`, to the current directory.
    This also applies to paths below the directories above these two. Paths below other directories
    that are arguments of the function are absolute. Files elsewhere, files of installed packages,
    and files in hidden directories are not recorded, because caches and settings are stored there.

    Args:
        program: The program's sources and directory.
        digests: The object that computes digests of files.
        journal: The path of the journal, whose files are ignored.
    """

    def __init__(self, program: Surroundings, digests: FileDigests, journal: Path) -> None:
        self._program = program
        self._digests = digests
        self._journal = os.fspath(journal)
        self._scripts = Scripts(program)
        self._directories: dict[str, str | None] = {}
        self._large: set[str] = set()
        self._last_variables: tuple[Mapping[str, str | None], str] = {}, ""
        self._roots: tuple[str, ...] = tuple(f"{root}{os.sep}" for root in program.roots)
        self._current = os.path.join(os.getcwd(), "")
        self._arguments: set[str] = set()
        inside = self._current == os.sep or self._current.startswith(self._roots)
        self._elsewhere: tuple[str, ...] = () if inside else (self._current,)
        places = (*self._roots, *self._elsewhere)
        above = dict.fromkeys(os.path.dirname(place.rstrip(os.sep)) for place in places)
        self._above: tuple[str, ...] = tuple(
            f"{each}{os.sep}" for each in above if _is_of_project(each)
        )
        self._places = (*places, *self._above)  # from the inner to the outer ones
        self._linked = _linked_directory()
        watch_cached(self._places)

    def watched(self, arguments: Iterable[str]) -> tuple[str, ...]:
        """Return the directories to watch for a function; see `rhapsody.sdk.watch_files`.

        Args:
            arguments: The directories that are arguments of the function.
        """
        paths = {os.path.abspath(os.path.expanduser(path)) for path in arguments}
        paths = {path for path in paths if not f"{path}{os.sep}".startswith(self._places)}
        if not paths <= self._arguments:
            self._arguments |= paths
            self._directories.clear()
        others = (f"{path}{os.sep}" for path in sorted(paths - {os.sep}))
        return (*self._places, *filter(None, [self._linked]), *others)

    def variables(self) -> str:
        """Return a text that changes with the environment variables that the program has set."""
        variables = self._program.variables()
        if variables is not self._last_variables[0]:  # it is another object after a change
            changed = sorted((name, each) for name, each in variables.items() if counts(name))
            digest = hashlib.blake2b(ascii(changed).encode(), digest_size=DIGEST_SIZE)
            self._last_variables = variables, digest.hexdigest() if changed else ""
        return self._last_variables[1]

    def noted(
        self,
        task: Mapping[str, Any],
        declared: Iterable[str | None],
        trees: Iterable[str] = (),
        start: int = 0,
        directory: str = "",
        variables: str = "",
        links: Iterable[str] | None = None,
        caches: Container[str] = (),
    ) -> str | None:
        """Return the record of the files that a function opened, or `None` if there are none.

        Args:
            task: The description of the task, which has ended.
            declared: The paths of files that the task declares, or that its arguments name.
            trees: The directories of data sets among the arguments. One that changes while the task
                runs is regarded as its output, and ignored.
            start: The start time of the task, in nanoseconds since the epoch.
            directory: The current directory of the program when the task was looked up.
            variables: The result of the method `variables` when the task was looked up.
            links: The paths in the arguments of a function that resolves symbolic links; `None` if
                it does not. What it opens then depends on links that it does not open.
            caches: The qualified names of the functions with a cache that the function uses.

        Raises:
            UnhashableError: A file was changed by another task or process while the task ran, or
                the function unpickled an object whose code is in no file.
        """
        if (module := task.get("opened", {}).get(WITHOUT_FILE)) is not None:
            raise UnhashableError(
                f"it unpickled an object of a class in {module!r}, which has no file; pass the "
                "object to it as an argument, or move the class into a module"
            )
        paths = dict(task.get("opened", {}))
        before = paths.pop(STARTED_BEFORE, None)
        cached = {name: paths.pop(name) for name in [*paths] if name.startswith(CACHED)}
        read = {
            path: int(when)
            for name, files in cached.items()
            if name.removeprefix(CACHED) in caches
            for when, _, path in (file.partition(" ") for file in files.split("\0"))
        }
        paths = dict.fromkeys(read, READ) | paths
        since = {self._resolved(path): when for path, when in read.items()}
        uses = sorted(paths.items(), key=itemgetter(1))  # `WRITTEN` replaces others
        opened = {self._resolved(path): use for path, use in uses}
        relative = {self._resolved(path) for path, _ in uses if RELATIVE in path}
        known = {self._resolved(os.path.abspath(path)) for path in declared if path}
        listed = {self._resolved(path) for path, use in uses if use == LISTED}
        written = {
            path
            for path, use in opened.items()
            if use == WRITTEN or (use == UPDATED and changed_since(path, start))
        }
        # One that it created, perhaps with `exist_ok=True`, may also contain files of others.
        written -= {path for path in listed if os.path.isdir(path)}
        known |= written
        loaded: set[str] = set()
        searched = opened.get(STARTED, before)
        if searched is not None:
            search = list(filter(None, searched.split(os.pathsep)))
            loaded.update(*(self._scripts.loaded(path, search) for path in [*opened, *known]))
        else:  # a function may run the text of a file with `exec`
            texts = (path for path, use in opened.items() if use == READ and path.endswith(".py"))
            loaded.update(*map(self._scripts.loaded, texts))
        opened |= dict.fromkeys(loaded.difference(opened), READ)
        states = {}
        here, depends = os.path.join(directory, ""), STARTED in opened
        for path in map(os.path.abspath, trees):
            if os.path.isdir(path) and (state := self._tree(path, start)) is not None:
                states[f"{self._program.portable(path).removeprefix(TOP)}{os.sep}"] = state
        for path in opened:
            if path in known or path == STARTED:
                written_here = path in relative and path in written
                depends = depends or (written_here and here != self._current)
                continue
            name = self._name(path)
            if name is None:
                continue
            about = stat_of(path)
            # A change in the clock tick in which the task started (up to 10 ms) goes unnoticed.
            if about is not None and about.st_ctime_ns >= min(start, since.get(path, start)):
                if STARTED in opened:  # most likely, that process has written it, or its mode
                    is_directory = stat.S_ISDIR(about.st_mode)
                    if path not in listed and (is_directory or about.st_mtime_ns >= start):
                        continue
                elif not stat.S_ISDIR(about.st_mode) or self._is_filled(path, start, written):
                    when = "after it was read" if path in since else "while the task ran"
                    raise UnhashableError(
                        f"{name!r}, which it opened, changed {when}; run again when nothing "
                        "writes to it, or declare what the task writes as OutputFile"
                    )
            states[name] = self._state(path, about)
            if path in relative:
                depends = depends or not name.startswith(_CURRENT) or here != self._current
            elif here != self._current:  # a library may have made a relative path absolute
                depends = depends or f"{path}{os.sep}".startswith(here)
        if links is not None:
            states |= self._links_beside(directory, opened, links)
        if depends:
            states[_DIRECTORY] = self._portable_current(directory)
        if searched is not None:
            if variables:
                states[_VARIABLES] = variables
            names = set(filter(None, map(self._name, loaded)))
            states[_LOADED] = "\n".join(sorted(names.difference(states)))
            if places := list(filter(None, map(self._name, search))):
                states[_SEARCHED] = "\n".join(places)
        return json.dumps(states) if states else None

    def changed(self, noted: str) -> str | None:
        """Return the reason why a result cannot be reused: a file that its function opened changed.

        Args:
            noted: The result of the method `noted`.

        Returns:
            The reason, or `None` if no file has changed.
        """
        states = json.loads(noted)
        started = _LOADED in states
        if started and states.pop(_VARIABLES, "") != self.variables():
            return "it started a process, and the variables that the script sets have changed"
        places = states.pop(_SEARCHED, "").split("\n")
        search = [self._path(place) for place in places if place]
        loaded: set[str] = set()  # they follow the scripts that load them
        known = states.keys() | states.pop(_LOADED, "").split("\n")
        for name, state in states.items():
            if name == _DIRECTORY:
                if self._portable_current(current_directory()) != state:
                    return "it used relative paths, and the current directory has changed"
                continue
            path = self._path(name.removeprefix(_LINKS))
            if name.startswith(_LINKS):
                if self._digests.once(_links_of, path) != state:
                    return f"a symbolic link in {name.removeprefix(_LINKS)!r} has changed"
                continue
            if name.endswith(os.sep):  # a data set, whose path may be absolute
                now = self._digests.once(self._tree, path)
            else:
                now = self._digests.once(self._state_of, path)
            if now != state:
                how = "is missing" if not now else "has changed" if state else "is new"
                return f"{name!r}, which it opened, {how}"
            if started and name not in loaded:
                loaded.update(filter(None, map(self._name, self._scripts.loaded(path, search))))
                if new := min(loaded.difference(known), default=None):
                    return f"{new!r}, which {name!r} may load, is new"
        return None

    def is_only_read(self, directory: str, start: int) -> bool:
        """Return True if a task seems to have read a directory of the program and not written it.

        Args:
            directory: The path of the directory.
            start: The start time of the task, in nanoseconds since the epoch.
        """
        path = os.path.abspath(directory)
        if self._name(path) in (None, ".", f"{_CURRENT}."):
            return False
        inner = [entry.path for entry in first_entries(path) if not is_hidden(entry.name)]
        states = [about for about in map(stat_of, [path, *inner]) if about is not None]
        return bool(inner) and all(about.st_ctime_ns < start for about in states)

    def _links_beside(
        self, current: str, opened: Iterable[str], arguments: Iterable[str]
    ) -> dict[str, str]:
        """Return the states of the symbolic links that a function may have resolved.

        These are the links in the current directory, beside the arguments, and in the directories
        of the project that contain what the function opened.
        """
        places = {current, *(os.path.dirname(os.path.join(current, each)) for each in arguments)}
        for path in opened:
            place = os.path.dirname(path)
            while place not in places and self._name(place) is not None:
                places.add(place)
                place = os.path.dirname(place)
        named = {self._name(place) or place: place for place in map(os.path.normpath, places)}
        return {f"{_LINKS}{name}": _links_of(named[name]) for name in sorted(named)}

    def _resolved(self, path: str) -> str:
        """Return a path without `.`, `..` and the links in the name of the current directory."""
        path = _resolved(path)
        if self._linked and path.startswith(self._linked):
            return f"{self._current}{path.removeprefix(self._linked)}"
        return path

    def _name(self, path: str) -> str | None:
        """Return the recorded form of a path; `None` if it is ignored."""
        if path in self._program.roots:
            return "."
        if f"{path}{os.sep}" == self._current:
            return f"{_CURRENT}."
        if path in self._arguments:
            return path
        directory, name = os.path.split(path)
        if name == "__pycache__" or self._is_own(path):
            return None
        if is_hidden(name) and os.path.isdir(path):  # its entries are not recorded either
            return None
        if directory not in self._directories:
            self._directories[directory] = self._directory(directory)
        place = self._directories[directory]
        return None if place is None else f"{place}{name}"

    def _path(self, name: str) -> str:
        """Return the path that a recorded name represents."""
        inside = not name.startswith(_CURRENT)
        root = self._program.roots[0] if inside else self._current
        return os.path.normpath(os.path.join(root, name))

    def _directory(self, path: str) -> str | None:
        """Return what precedes the names of a directory's entries; `None` if it is ignored."""
        inner = f"{path}{os.sep}"
        place = next(filter(inner.startswith, self._places), None)
        if place is None:
            above = (inner[: end.end()] for end in re.finditer(os.sep, inner))
            place = next((each for each in above if each[:-1] in self._arguments), None)
        if place is None or not self._program.origins.own(path):
            return None
        parts = inner.removeprefix(place).split(os.sep)
        if any(is_hidden(part) or _SANDBOX.fullmatch(part) for part in parts):
            return None
        return self._portable(inner)

    def _portable(self, path: str) -> str:
        """Return a path relative to the program's directory or to the current directory."""
        if path.startswith(self._roots):  # whose names in the key are relative to it, too
            return self._program.portable(path).removeprefix(TOP)
        if path.startswith(self._elsewhere):
            return f"{_CURRENT}{path.removeprefix(self._current)}"
        if self._is_beside(path):
            return f"{os.path.relpath(path, self._program.roots[0])}{os.sep}"
        if path.startswith(self._above):
            return f"{_CURRENT}{os.path.relpath(path, self._current)}{os.sep}"
        return self._program.portable(path).removeprefix(TOP)

    def _portable_current(self, directory: str) -> str:
        if self._is_beside(f"{directory}{os.sep}"):
            return os.path.relpath(directory, self._program.roots[0])
        return self._program.portable(directory)

    def _is_beside(self, path: str) -> bool:
        """Return True if a path is in the directory above the program's, but not in the latter."""
        above = f"{os.path.dirname(self._program.roots[0])}{os.sep}"
        return above in self._above and path.startswith(above) and not path.startswith(self._roots)

    def _is_filled(self, directory: str, start: int, written: Collection[str]) -> bool:
        """Return True if a directory contains a file that another task or process has written.

        The time of the directory itself also changes with hidden directories, and with what the
        task has written.

        Args:
            directory: The path of the directory.
            start: The start time of the task, in nanoseconds since the epoch.
            written: The paths that the task has written.
        """
        others = (stat_of(path) for path in self._entries(directory) if path not in written)
        return any(
            about is not None and about.st_ctime_ns >= start and not stat.S_ISDIR(about.st_mode)
            for about in others
        )

    def _state_of(self, path: str) -> str:
        return self._state(path, stat_of(path))

    def _state(self, path: str, about: os.stat_result | None) -> str:
        """Return a text that changes with a file or with the names in a directory.

        The text is empty if there is neither a regular file nor a directory. Large files are
        represented by their sizes and times, because reading them takes too long.
        """
        if about is None:
            return ""
        if stat.S_ISDIR(about.st_mode):
            names = sorted(map(os.path.basename, self._entries(path)))
            return hashlib.blake2b(ascii(names).encode(), digest_size=DIGEST_SIZE).hexdigest()
        if not stat.S_ISREG(about.st_mode):
            return ""
        with contextlib.suppress(OSError):  # it was removed
            if about.st_size < LARGE_FILE:
                digest, logged = read_small(path)
                state = digest.hex()
            else:
                state, logged = f"{about.st_size} {about.st_mtime_ns}", has_log(path)
            log = f"{os.path.realpath(path)}-wal"
            if logged and (found := stat_of(log)) is not None and found.st_size:
                state += f" {self._state(log, found)}"
            return state
        return ""

    def _tree(self, directory: str, start: int | None = None) -> str | None:
        """Return a text that changes with the names, sizes and times of the files in a directory.

        Args:
            directory: The path of the directory.
            start: The start time of a task, in nanoseconds since the epoch.

        Returns:
            The text; `None` if a file has changed since `start`, or if there are too many files.
        """
        made = hashlib.blake2b(digest_size=DIGEST_SIZE)
        count = 0
        for place, directories, names in os.walk(directory):
            directories.sort()
            count += len(names)
            if count > MAX_ENTRIES:
                if directory not in self._large:
                    self._large.add(directory)
                    log.warning(
                        "%s contains more than %d files: changes in it do not count; pass an "
                        "argument that changes with it",
                        directory, MAX_ENTRIES,
                    )  # fmt: skip
                return None
            for name in sorted(names):
                path = os.path.join(place, name)
                about = stat_of(path)
                if about is None or (start is not None and about.st_ctime_ns >= start):
                    return None
                text = f"{path[len(directory) :]} {about.st_size} {about.st_mtime_ns}\n"
                made.update(text.encode("utf-8", "surrogateescape"))
        return made.hexdigest()

    def _entries(self, directory: str) -> list[str]:
        """Return the paths of a directory's entries, except hidden directories and own files."""
        try:
            with os.scandir(directory) as entries:
                paths = [
                    entry.path
                    for entry in entries
                    if not (
                        (is_hidden(entry.name) and entry.is_dir()) or _OWN.fullmatch(entry.name)
                    )
                ]
        except OSError:
            return []
        return [path for path in paths if not self._is_own(path)]

    def _is_own(self, path: str) -> bool:
        """Return True if a file belongs to the journal."""
        if not path.startswith(self._journal):
            return False
        ending = path.removeprefix(self._journal)
        return ending in SUFFIXES or (ending[0] == "." and ending.endswith(".lock"))


def _links_of(directory: str) -> str:
    """Return a text that changes with the symbolic links in a directory and with their targets."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        links = [entry for entry in entries if entry.is_symlink()]
        targets = sorted((entry.name, os.readlink(entry.path)) for entry in links)
        return hashlib.blake2b(ascii(targets).encode(), digest_size=DIGEST_SIZE).hexdigest()
    return ""


def current_directory() -> str:
    """Return the current directory, or an empty string if it was removed."""
    with contextlib.suppress(FileNotFoundError):
        return os.getcwd()
    return ""


def _linked_directory() -> str:
    """Return the name of the current directory that contains symbolic links, if there is one.

    Shells store it in `PWD`, and users copy it into their programs.
    """
    linked = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(linked) and linked != os.getcwd() and os.path.samefile(linked, os.curdir):
            return os.path.join(os.path.normpath(linked), "")
    return ""


def _is_of_project(directory: str) -> bool:
    """Return True if a directory seems to contain only a project.

    The home directory and the directory of temporary files also contain files of other programs.
    """
    others = os.path.expanduser("~"), tempfile.gettempdir(), os.sep
    return not any(f"{each}{os.sep}".startswith(f"{directory}{os.sep}") for each in others)


def _resolved(path: str) -> str:
    """Return a path without `.` and `..`, even if the directory before `..` is a symbolic link."""
    if "/." not in path and "//" not in path and path[-1:] != os.sep:
        return path
    plain = os.path.normpath(path)
    if "/.." in path and os.path.realpath(path) != os.path.realpath(plain):
        return os.path.realpath(path)
    return plain
