"""Digests of files, and the output files of recorded tasks.

A digest is reused for as long as a file's size, time of change and inode stay the same. The time of
change does not reveal writes through a memory map on tmpfs, or later writes to a page that is
already dirty, and some file systems do not record it. Files in these situations are read each time,
and so are small files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rhapsody.data import RESERVED
from rhapsody.journal.values import LONGEST, SIZE, UnhashableError
from rhapsody.plugins.specs import TaskFiles

KERNEL: tuple[str, ...] = ("/proc", "/sys")
"""File systems of the kernel: some of their files are endless, and reading others blocks."""

SMALL = 16 << 10
"""Size in bytes up to which a file is read each time: to check it for a change takes as long."""

LARGE = 1 << 20
"""Size in bytes from which a file's digest is kept for later runs."""

SETTLED = 2_000_000_000
"""Minimum age in nanoseconds of a file's last change for its digest to be kept: another change
within the same clock tick of the file system would go unnoticed (Git calls such an entry racy)."""

QUICKLY_SETTLED = 100_000_000
"""The same on local file systems with times finer than a second: a tick is 10 ms at most."""

NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs",
     "fuse.s3fs", "fuse.sshfs", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
     "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "virtiofs", "wekafs"}
)  # fmt: skip
"""Types of file systems that other hosts may change, as in Linux's list of mounts."""

T = TypeVar("T")

WITHOUT_CHANGE_TIME = frozenset(
    {"devtmpfs", "exfat", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuseblk", "hugetlbfs", "msdos",
     "ramfs", "tmpfs", "vfat"}
)  # fmt: skip
"""Types of file systems on which a file may change without a new time of change."""


class Stamp(NamedTuple):
    """Attributes of a file that change with its content.

    The time is that of the inode's change (`st_ctime_ns`). A program that writes to a file can
    reset the time of its last modification, as `cp -p` does, but not this one.
    """

    device: int
    inode: int
    size: int
    changed: int


class FileDigests:
    """Digests of files, each computed once until the file changes. Not thread-safe.

    Args:
        earlier: Function that returns the digest which an earlier run stored for a stamp, if any.

    Attributes:
        new: Digests to store for later runs, by stamp.
        gone: Digests of missing files that recorded tasks wrote, by path.
        pipes: The requested paths that are pipes.
    """

    def __init__(self, earlier: Callable[[Stamp], bytes | None] = lambda _: None) -> None:
        self.new: dict[Stamp, bytes] = {}
        self.gone: dict[str, bytes] = {}
        self.pipes: set[str] = set()
        self._earlier = earlier
        self._known: dict[Stamp, bytes] = {}
        self._seen: dict[str, bytes | None] | None = None
        self._once: dict[object, Any] | None = None
        self._systems: dict[int, str] = {}
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
        """Return the digest of a file's content, `None` if there is no readable file.

        Args:
            path: The file's path. `~`, `$NAME` and `file:///` are expanded, as most libraries do.
        """
        if not path or len(path) > LONGEST:
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
            if stat.S_ISFIFO(found.st_mode):
                self.pipes.add(given)
            if not stat.S_ISREG(found.st_mode) or found.st_dev in self._kernel:
                return None
            return self._of(path, found)
        except (OSError, ValueError):  # it is missing, or its name has a null byte
            return None

    def once(self, make: Callable[..., T], *args: Any) -> T:
        """Return a function's result, computed once for equal arguments in `looking_once`."""
        if self._once is None:
            return make(*args)
        if (make, args) not in self._once:
            self._once[make, args] = make(*args)
        found: T = self._once[make, args]
        return found

    def of_any(self, path: str) -> bytes | None:
        """Return the digest of a file, or of all files in a directory.

        A directory has no digest if one of its files cannot be read or is a link to a directory.
        A missing file that is in `gone` has the digest of its former content.
        """
        digest = self.of(path)
        if digest is not None or not os.path.isdir(path):
            return digest or self.gone.get(path)
        made = hashlib.blake2b(b"directory", digest_size=SIZE)

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
            return hashlib.blake2b(digest_size=SIZE).digest()
        if found.st_size <= SMALL:
            return _read_small(path)
        system = self._systems.get(found.st_dev)
        if system is None:
            system = self._systems[found.st_dev] = file_system(path)
        if system in WITHOUT_CHANGE_TIME:
            return _read(path)
        if system in NETWORK:  # opening asks the server; `stat` may be a minute old
            with open(path, "rb") as file:
                found = os.fstat(file.fileno())
        stamp = Stamp(found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)
        digest = self._known.get(stamp)
        if digest is None and stamp.size >= LARGE:
            digest = self._earlier(stamp)
        if digest is None:
            coarse = system in NETWORK or not stamp.changed % 1_000_000_000
            settled = time.time_ns() - stamp.changed > (SETTLED if coarse else QUICKLY_SETTLED)
            digest = _read(path)
            if not settled or stamp.inode in self.once(_mapped_inodes):
                return digest
            if stamp.size >= LARGE:
                self.new[stamp] = digest
        self._known[stamp] = digest
        return digest


def _mapped_inodes() -> set[int]:
    """Return the inodes that this process has mapped for writing."""
    found: set[int] = set()
    with contextlib.suppress(OSError), open("/proc/self/maps", "rb", 0) as maps:  # no Linux
        for line in maps.read().splitlines():
            _, access, _, _, inode, *_ = line.split(None, 5)
            if access == b"rw-s":
                found.add(int(inode))
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=SIZE)).digest()


def _read_small(path: str) -> bytes:
    """Return the digest of a small file, read with as few system calls as possible."""
    made = hashlib.blake2b(digest_size=SIZE)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while data := os.read(descriptor, SMALL + 1):
            made.update(data)
    finally:
        os.close(descriptor)
    return made.digest()


def on_network(directory: Path) -> bool:
    """Return True if other hosts may also have mounted the file system of a directory."""
    return file_system(os.fspath(directory)) in NETWORK


def file_system(path: str) -> str:
    """Return the type of the file system that contains a path; empty if unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux
        return ""
    place, found = os.path.realpath(path), ("", "")
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.encode("latin-1", "ignore").decode("unicode_escape", "ignore")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = point, kind
    return found[1]


class Outputs:
    """Records of the files that tasks made, which are reused only if they have not changed.

    Paths are relative to the journal's directory, so that it can be moved with the files.

    Args:
        directory: The directory of the journal.
        digests: The object that computes digests of files.
    """

    def __init__(self, directory: Path, digests: FileDigests) -> None:
        self._directory = os.fspath(directory)
        self._digests = digests

    def noted(self, files: TaskFiles | None, *, named: bool) -> str | None:
        """Return the record of a task's files as JSON, `None` if there are none.

        Args:
            files: The files.
            named: True if the task's result is, or contains, a path into its sandbox.

        Raises:
            UnhashableError: A later run could not find the files again.
        """
        if files is None:
            return None
        if files.shared and has_files(files.sandbox):
            raise UnhashableError(
                "it left files in its sandbox without declaring them, so that its dependents see "
                f"them all ({files.sandbox}); pass it an OutputFile for each file that they need"
            )
        if not (files.paths or named):
            return None
        kept = {}
        for name, path in files.paths.items():
            digest = self._digests.of_any(path) or self._digests.of_any(files.places.get(name, ""))
            if digest is None:
                raise UnhashableError(f"its output {name!r} cannot be read on this machine")
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
        return json.dumps(noted)

    def changed(self, former: str, made: str) -> dict[str, bytes]:
        """Return the former paths of files that a repeated attempt wrote with different content.

        Args:
            former: The record of the former attempt.
            made: The record of the repeated attempt.

        Returns:
            The former paths, each with the digest of the new file.
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
            The files, some of which may be missing; `None` if one has changed, or if a directory
            or a file that the task's result names is missing.
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

    def is_saved(self, noted: str, name: str) -> bool:
        """Return True if a file was copied to a destination outside the sandbox."""
        return "place" in json.loads(noted)["files"][name]

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._directory)

    def _absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self._directory, path))


def has_files(sandbox: str) -> bool:
    """Return True if a task left files in its sandbox other than those put there for it."""
    own = os.path.basename(sandbox)
    try:
        with os.scandir(sandbox) as entries:
            return any(
                not (entry.is_symlink() or entry.name.startswith((RESERVED, f"{own}.")))
                for entry in entries
            )
    except OSError:  # it was never created
        return False
