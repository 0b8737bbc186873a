"""Digests of files, and records of the files that tasks wrote.

A file's digest is reused as long as the file's size, inode and time of change stay the same. The
time of change misses some writes through memory maps: all of them on tmpfs, and elsewhere writes to
a page that is already dirty. Some file systems do not record the time of change. In these cases,
and if it is small, a file is read each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar, cast

from rhapsody.builtin.journal.values import DIGEST_SIZE, MAX_PATH_LENGTH, UnhashableError
from rhapsody.copying import copy_file
from rhapsody.data import RESERVED, File
from rhapsody.errors import DataError
from rhapsody.fsutil import NETWORK, copy_directory, file_system
from rhapsody.plugins.specs import TaskFiles
from rhapsody.reading import SQLITE, pieces, start_of

log: logging.Logger = logging.getLogger("rhapsody.journal")

KERNEL: tuple[str, ...] = ("/proc", "/sys")
"""File systems of the kernel: some of their files are endless, and reading others blocks."""

SMALL_FILE = 16 << 10
"""Maximum size in bytes of a file that is read each time, because a check for changes takes as
long."""

LARGE_FILE = 1 << 20
"""Minimum size in bytes of a file whose digest is stored for later runs."""

TREES = (".zarr", ".n5", ".parquet")
"""Endings of the names of directories that are data sets."""

SEARCHED = 100
"""Maximum number of entries of a directory that are examined to find out what it contains."""

SEARCHED_DIRECTORIES = 10
"""Maximum number of subdirectories that are searched for DICOM files."""

MAX_ENTRIES = 100_000
"""Maximum number of files in a data set whose changes are detected."""

TOP = f"\0{os.sep}"
"""Beginning of `Surroundings.portable` for a path in the program's directory."""

SETTLE_TIME = 2_000_000_000
"""Minimum age in nanoseconds of a file's last change before the digest is kept. Otherwise, a second
change within the same clock tick of the file system would go unnoticed (Git calls such an entry
racy)."""

FINE_SETTLE_TIME = 100_000_000
"""Same as `SETTLE_TIME`, for local file systems whose times are finer than a second: a tick lasts
at most 10 ms."""

_NUMBERS = frozenset((type(None), bool, int, float))

_COLLECTIONS = list, tuple, set, frozenset, deque

_NAMES_FILE = str, PurePath, File
"""Types of the values that may name a file."""

MAX_RETURNED = 10_000
"""Maximum number of values in a result that are checked for paths."""

T = TypeVar("T")

WITHOUT_CHANGE_TIME = frozenset(
    {"devtmpfs", "exfat", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuseblk", "hugetlbfs", "msdos",
     "ramfs", "tmpfs", "vfat"}
)  # fmt: skip
"""File system types on which a file may change without a new time of change."""


_HEADER_SIZE = 20
"""Size of the start of an SQLite database that includes its mode."""

_EMPTY = hashlib.blake2b(digest_size=DIGEST_SIZE).digest()


class Stamp(NamedTuple):
    """Attributes of a file that change with its content.

    `changed` is the time at which the inode was last changed (`st_ctime_ns`). A program cannot set
    this time, whereas it can reset a file's modification time after writing, as `cp -p` does.
    """

    device: int
    inode: int
    size: int
    changed: int


class FileDigests:
    """Cache of the digests of files. Not thread-safe.

    Args:
        earlier: Function that returns the digest that an earlier run stored for a stamp; `None` if
            no earlier run has stored one.

    Attributes:
        new: Digests to store for later runs, by stamp.
        gone: Digests to use for missing files that recorded tasks wrote, by path.
        pipes: Paths passed to `of` that are named pipes.
        directories: Paths passed to `of` that are directories.
    """

    def __init__(self, earlier: Callable[[Stamp], bytes | None] = lambda _: None) -> None:
        self.new: dict[Stamp, bytes] = {}
        self.gone: dict[str, bytes] = {}
        self.pipes: set[str] = set()
        self.directories: set[str] = set()
        self._earlier = earlier
        self._known: dict[Stamp, bytes] = {}
        self._have_logs: dict[bytes, bool] = {}  # results of `_has_log`, by digest
        self._seen: dict[str, bytes | None] | None = None
        self._once: dict[object, Any] | None = None
        self._systems: dict[int, str] = {}
        self._null = os.stat(os.devnull).st_rdev
        self._kernel = {os.stat(place).st_dev for place in KERNEL if os.path.exists(place)}

    @contextlib.contextmanager
    def looking_once(self) -> Iterator[None]:
        """Look at each path at most once inside the `with` block."""
        self._seen, self._once = {}, {}
        try:
            yield
        finally:
            self._seen = self._once = None

    def of(self, path: str) -> bytes | None:
        """Return the digest of a file's content, or `None` if there is no readable regular file.

        Files on a file system in `KERNEL` have no digest. `/dev/null` is an empty file.

        Args:
            path: The file's path. As most libraries do, this method expands `~` and `$NAME`, and
                accepts a URL that starts with `file:///`.
        """
        if not path or len(path) > MAX_PATH_LENGTH:
            return None
        if self._seen is None:
            return self._look(path)
        if path not in self._seen:
            self._seen[path] = self._look(path)
        return self._seen[path]

    def _look(self, given: str) -> bytes | None:
        path = given
        if path[0] == "~" or "$" in path:  # libraries and shells expand them
            path = os.path.expandvars(os.path.expanduser(path))
        elif path.startswith("file:///"):
            path = path[7:]
        try:
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                self.directories.add(given)
            if stat.S_ISFIFO(found.st_mode):
                self.pipes.add(given)
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == self._null:
                return _EMPTY
            if not stat.S_ISREG(found.st_mode) or found.st_dev in self._kernel:
                return None
            return self._of(path, found)
        except (OSError, ValueError):  # the file is missing, or its name contains a NUL byte
            return None

    def once(self, make: Callable[..., T], *args: Any) -> T:
        """Return a function's result; inside `looking_once`, reuse it for equal arguments."""
        if self._once is None:
            return make(*args)
        call = make, args
        if call not in self._once:
            self._once[call] = make(*args)
        found: T = self._once[call]
        return found

    def of_any(self, path: str) -> bytes | None:
        """Return the digest of a file or directory, or `None` if it has none.

        A directory has no digest if it contains a link to a directory, or an entry that is neither
        a directory nor a readable regular file. A missing file has the digest in `gone`, if any.
        """
        digest = self.of(path)
        if digest is not None or not os.path.isdir(path):
            return digest or self.gone.get(path)
        made = hashlib.blake2b(b"directory", digest_size=DIGEST_SIZE)

        def feed(inner: str, tag: bytes, digest: bytes) -> None:
            relative = inner[len(path) :].strip(os.sep).encode("utf-8", "surrogateescape")
            made.update(b"%b%d:%b" % (tag, len(relative), relative) + digest)

        unread: list[OSError] = []
        for place, directories, names in os.walk(path, onerror=unread.append):
            directories.sort()
            feed(place, b"/", b"")
            links = [each for each in directories if os.path.islink(os.path.join(place, each))]
            for name in sorted([*names, *links]):  # a link to a directory has no digest
                inner = os.path.join(place, name)
                digest = self.of(inner)
                if digest is None:
                    return None
                feed(inner, b"x" if os.access(inner, os.X_OK) else b"-", digest)
        return None if unread else made.digest()

    def _of(self, path: str, found: os.stat_result) -> bytes:
        if not found.st_size:  # reading other files of the kernel may block
            return _EMPTY
        if found.st_size <= SMALL_FILE:
            digest, logged = read_small(path)
        else:
            digest = self._of_large(path, found)
            known = self._have_logs.get(digest)
            if known is None:
                known = self._have_logs[digest] = has_log(path)
            logged = known
        if logged:
            log = self.of(f"{os.path.realpath(path)}-wal")
            if log is not None and log != _EMPTY:
                return hashlib.blake2b(digest + log, digest_size=DIGEST_SIZE).digest()
        return digest

    def _of_large(self, path: str, found: os.stat_result) -> bytes:
        system = self._systems.get(found.st_dev)
        if system is None:
            system = self._systems[found.st_dev] = file_system(path)
        if system in WITHOUT_CHANGE_TIME:
            return _read(path)
        if system in NETWORK:  # opening asks the server; `stat` may be a minute old
            start_of(path, 1)
            found = os.stat(path)
        stamp = _stamp(found)
        digest = self._known.get(stamp)
        if digest is None and stamp.size >= LARGE_FILE:
            digest = self._earlier(stamp)
        if digest is None:
            coarse = system in NETWORK or not stamp.changed % 1_000_000_000
            settled = time.time_ns() - stamp.changed > (SETTLE_TIME if coarse else FINE_SETTLE_TIME)
            digest = _read(path)
            if not settled or stamp.inode in self.once(_mapped_inodes):
                return digest
            if stamp.size >= LARGE_FILE:
                self.new[stamp] = digest
        self._known[stamp] = digest
        return digest


def _mapped_inodes() -> set[int]:
    """Return the inodes of the files that this process has mapped as shared and writable."""
    found: set[int] = set()
    with contextlib.suppress(OSError), open("/proc/self/maps", "rb", 0) as maps:  # only on Linux
        for line in maps.read().splitlines():
            _, access, _, _, inode, *_ = line.split(None, 5)
            if access == b"rw-s":
                found.add(int(inode))
    return found


def _read(path: str) -> bytes:
    made = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for piece in pieces(path):
        made.update(piece)
    return made.digest()


def read_small(path: str) -> tuple[bytes, bool]:
    """Read a small file at once.

    Returns:
        The file's digest, and the result of `has_log`.
    """
    made, first = hashlib.blake2b(digest_size=DIGEST_SIZE), b""
    for piece in pieces(path, SMALL_FILE + 1):
        made.update(piece)
        first = first or piece
    return made.digest(), _has_log(first)


def has_log(path: str) -> bool:
    """Return True if a file is an SQLite database in WAL mode.

    The last changes to such a database are in the file `NAME-wal`, even if no program uses it.
    """
    return _has_log(start_of(path, _HEADER_SIZE))


def _has_log(first: bytes) -> bool:
    """Return the result of `has_log` for a file with these first bytes."""
    return first.startswith(SQLITE) and 2 in first[18:_HEADER_SIZE]


class Outputs:
    """Reader and writer of records of the files that tasks wrote.

    A result is reused only if its files have not changed since they were recorded. Recorded paths
    are relative to the journal's directory, so that the directory can be moved with the files.

    Args:
        directory: The directory of the journal.
        digests: The object that computes digests of files.
    """

    def __init__(self, directory: Path, digests: FileDigests) -> None:
        self._directory = os.fspath(directory)
        self._digests = digests

    def noted(
        self,
        files: TaskFiles | None,
        *,
        named: bool,
        returned: Sequence[str] = (),
        root: str = "",
    ) -> str | None:
        """Return the record of a task's files as JSON, or `None` if there is nothing to record.

        Args:
            files: The task's files, or `None` if the task has none.
            named: True if the task's result is, or contains, a path into the task's sandbox.
            returned: The existing paths in the task's result; see `paths_in`.
            root: The program's directory.

        Raises:
            UnhashableError: The task left undeclared files that its dependents see, or an output
                file cannot be read on this machine.
        """
        only_returned = None
        if returned:
            only_returned = json.dumps({"files": {}, "returned": returned, "root": root})
        if files is None:
            return only_returned
        if files.shared and has_files(files.sandbox):
            raise UnhashableError(
                f"it left undeclared files in its sandbox {files.sandbox}, and its dependents see "
                "all of them; pass it an OutputFile for each file that its dependents need"
            )
        if not (files.paths or named):
            return only_returned
        kept = {}
        for name, path in files.paths.items():
            digest = self._digests.of_any(path) or self._digests.of_any(files.places.get(name, ""))
            if digest is None:
                why = "cannot be read on this machine"
                if os.path.isdir(path):
                    why = "contains links to directories, pipes, sockets or unreadable files"
                raise UnhashableError(f"its output {name!r} {why}")
            # `of` checks each path once, and returns no digest for a directory.
            there = digest in (self._digests.of(path), self._digests.of(files.places.get(name, "")))
            kept[name] = {
                "path": self._relative(path),
                "digest": digest.hex(),
                "directory": not there,
            }
            if name in files.places:
                kept[name]["place"] = self._relative(files.places[name])
        noted = {
            "sandbox": self._relative(files.sandbox),
            "named": named,
            "stays": files.stays,
            "matches": dict(files.matches),
            "files": kept,
        }
        if returned:
            noted |= {"returned": returned, "root": root}
        return json.dumps(noted)

    def moved(self, noted: str, directory: Path) -> str:
        """Return the record of a task's files for this journal.

        Args:
            noted: The record in a journal in another directory.
            directory: That directory.
        """
        if os.path.samefile(directory, self._directory):
            return noted
        other, read = Outputs(directory, self._digests), json.loads(noted)
        for file in (read, *read["files"].values()):
            for kind in {"sandbox", "path", "place"} & file.keys():
                file[kind] = self._relative(other._absolute(file[kind]))
        return json.dumps(read)

    def changed(self, former: str, made: str) -> dict[str, bytes]:
        """Return the former paths of files whose content differs after a repeated attempt.

        Args:
            former: The record of the former attempt.
            made: The record of the repeated attempt.

        Returns:
            The former paths, in sandboxes and at destinations, each with the digest of the new
            file; `b""` if the file was not written again. If the names of the files differ, all
            former paths are returned.
        """
        before, now = json.loads(former)["files"], json.loads(made)["files"]
        return {
            self._absolute(file[kind]): bytes.fromhex(now[name]["digest"]) if name in now else b""
            for name, file in before.items()
            if before.keys() != now.keys() or file["digest"] != now[name]["digest"]
            for kind in ("path", "place")
            if kind in file
        }

    def found(self, noted: str) -> TaskFiles | None:
        """Find a task's files from their record.

        Returns:
            The files, some of which may be missing. `None` if a file has changed, if a directory is
            missing, or if a file is missing and the task's result contains a path into the sandbox.
        """
        read = json.loads(noted)
        paths, places, missing = {}, {}, set()
        sandbox = self._absolute(read["sandbox"])
        if read["named"] and not os.path.isdir(sandbox):
            return None
        for name, file in read["files"].items():
            digest = bytes.fromhex(file["digest"])
            path = self._absolute(file["path"])
            place = self._absolute(file.get("place", file["path"]))
            in_place = "place" in file and self._digests.of_any(place) == digest
            if os.path.lexists(path) and self._digests.of_any(path) == digest:
                paths[name] = path
            elif read["named"]:
                return None
            elif in_place:
                paths[name] = place
            elif file["directory"] or os.path.lexists(path):
                return None
            else:
                paths[name] = path
                missing.add(name)
                self._digests.gone[path] = digest
            if in_place:
                places[name] = place
        matches = {pattern: tuple(names) for pattern, names in read["matches"].items()}
        stays, absent = read["stays"], frozenset(missing)
        return TaskFiles(sandbox, paths, matches, places, stays=stays, missing=absent)

    def returned_elsewhere(self, noted: str, root: str) -> str | None:
        """Return what is wrong with a path in a task's result, or `None` if all can be used.

        Args:
            noted: The record of the task's files.
            root: The program's directory. Paths in its former directory cannot be used.
        """
        read = json.loads(noted)
        former = os.path.join(read.get("root") or root, "")
        for path in read.get("returned", ()):
            if not os.path.lexists(path):
                return f"the path {path!r} that it returned is missing"
            if former != os.path.join(root, "") and os.path.join(path, "").startswith(former):
                return f"the path {path!r} that it returned is in the program's former directory"
        return None

    def without_returned(self, noted: str) -> str | None:
        """Return a record, or `None` if it contains nothing but the paths in the task's result."""
        return noted if "sandbox" in json.loads(noted) else None

    def is_saved(self, noted: str, name: str) -> bool:
        """Return True if a recorded file was also copied to a destination outside the sandbox."""
        return "place" in json.loads(noted)["files"][name]

    def has_content(self, noted: str, name: str, path: str) -> bool:
        """Return True if a path has the recorded content of a file or directory."""
        file = json.loads(noted)["files"].get(name)
        if file is None or not os.path.lexists(path):
            return False
        digest = self._digests.of_any(path)
        return digest is not None and digest.hex() == file["digest"]

    def saved(self, recorded: Iterable[str]) -> dict[str, set[bytes]]:
        """Return the digests with which files were saved, by destination.

        Args:
            recorded: The records of the files of tasks.
        """
        found: dict[str, set[bytes]] = {}
        for noted in recorded:
            with contextlib.suppress(
                ValueError, LookupError, TypeError, AttributeError
            ):  # a damaged journal
                for file in json.loads(noted)["files"].values():
                    if "place" in file:
                        place = self._absolute(file["place"])
                        found.setdefault(place, set()).add(bytes.fromhex(file["digest"]))
        return found

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._directory)

    def _absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self._directory, path))


def paths_in(value: object, exists: Callable[[str], bool] = os.path.lexists) -> list[str]:
    """Return the strings and paths in a result that name existing files or directories.

    Only the first `MAX_RETURNED` values are considered: items of lists, tuples, sets and deques,
    values of dicts, and fields of dataclasses.

    Args:
        value: The result.
        exists: Function that returns True if a path exists.
    """
    if type(value) in _NUMBERS:
        return []
    found: list[str] = []
    waiting, left = [value], MAX_RETURNED
    while waiting and left:
        one = waiting.pop()
        left -= 1
        if type(one) in _NUMBERS:
            continue
        if isinstance(one, _NAMES_FILE):
            path = one.filepath if isinstance(one, File) else one
            text = str(path).rstrip("\n")  # commands print paths with a newline
            if text and len(text) <= MAX_PATH_LENGTH and exists(text):
                found.append(text)
        elif isinstance(one, _COLLECTIONS):
            waiting.extend(islice(cast("Iterable[object]", one), left))
        elif isinstance(one, dict):
            waiting.extend(islice(one.values(), left))
        elif is_dataclass(one) and not isinstance(one, type):
            waiting.extend(getattr(one, each.name, None) for each in fields(one))
    return found


class Edits:
    """Finder of saved files that were changed afterwards, for example by hand.

    Args:
        saved: The digests with which files were saved, by destination.
        digests: The object that computes digests of files.
    """

    def __init__(self, saved: Mapping[str, Collection[bytes]], digests: FileDigests) -> None:
        self._saved = saved
        self._digests = digests

    def keep(self, path: str) -> list[tuple[str, str]]:
        """Copy what was changed at a destination, unless there is a copy already.

        Args:
            path: A destination, or the directory of several destinations.

        Returns:
            The path of each changed file or directory, and of its new copy.
        """
        paths = [path]
        if path not in self._saved and os.path.isdir(path):  # for files that match a pattern
            paths = [place for place in self._saved if os.path.dirname(place) == path]
        found = []
        for place in paths:
            digests = self._saved.get(place)
            if digests is None or not os.path.lexists(place):
                continue
            digest = self._digests.of_any(place)
            if digest not in digests and (copy := self._copy(place, digest)) is not None:
                found.append((place, copy))
        return found

    def _copy(self, path: str, digest: bytes | None) -> str | None:
        """Return the path of a new copy, or `None` if there is a copy or it cannot be made."""
        copy = f"{path}.edited"
        number = 1
        while os.path.lexists(copy):
            if digest is not None and self._digests.of_any(copy) == digest:
                return None
            number += 1
            copy = f"{path}.edited.{number}"
        try:
            if os.path.isdir(path):
                copy_directory(path, copy)
            else:
                copy_file(path, copy)
        except (OSError, DataError) as error:
            log.warning(
                "%s was changed after it was saved, and will be replaced without a copy: %s",
                path, error,
            )  # fmt: skip
            return None
        return copy


def stat_of(path: str) -> os.stat_result | None:
    """Return the status of a path; `None` if there is no such file."""
    try:
        return os.stat(path)
    except (OSError, ValueError):  # missing, or a name with a NUL byte
        return None


def stamp_of(path: str) -> Stamp | None:
    """Return the attributes of a file that change with its content; `None` if there is no file."""
    about = stat_of(path)
    return None if about is None else _stamp(about)


def _stamp(about: os.stat_result) -> Stamp:
    return Stamp(about.st_dev, about.st_ino, about.st_size, about.st_ctime_ns)


def is_data_set(path: str) -> bool:
    """Return True if a directory has an ending in `TREES`, or contains DICOM files.

    Only the first entries of the directory and of its first subdirectories are examined.
    """
    if path.rstrip(os.sep).endswith(TREES):
        return True
    entries = first_entries(path)
    if any(map(_is_dicom, entries)):
        return True
    inner = (entry.path for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    places = islice(inner, SEARCHED_DIRECTORIES)
    return any(_is_dicom(entry) for place in places for entry in first_entries(place))


def first_entries(directory: str) -> list[os.DirEntry[str]]:
    """Return the first entries of a directory; none if it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return list(islice(entries, SEARCHED))
    except OSError:
        return []


def _is_dicom(entry: os.DirEntry[str]) -> bool:
    return entry.name == "DICOMDIR" or entry.name.endswith((".dcm", ".DCM"))


def changed_since(path: str, start: int) -> bool:
    """Return True if a file exists and was changed after a time in nanoseconds since the epoch."""
    about = stat_of(path)
    return about is not None and about.st_ctime_ns >= start


def is_hidden(name: str) -> bool:
    """Return True if undeclared files with this name are not recorded."""
    return name.startswith(".") or name == "__pycache__"


def has_files(sandbox: str) -> bool:
    """Return True if a sandbox contains anything other than links and Rhapsody's own files.

    Directories with numbers as names, in which inputs are linked, are searched as well.
    """
    own = os.path.basename(sandbox)
    try:
        with os.scandir(sandbox) as entries:
            return any(
                not (entry.is_symlink() or entry.name.startswith((RESERVED, f"{own}.")))
                and (not entry.name.isdecimal() or entry.is_file() or has_files(entry.path))
                for entry in entries
            )
    except OSError:  # it was never created
        return False
