"""Digests of files, kept for as long as a file's size, time of change and inode stay the same.

The time of change does not reveal writes through a memory map on tmpfs, or later writes to a page
that is already dirty, and some file systems have no such time. Such files are read each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from rhapsody.journal.places import NETWORK, file_system
from rhapsody.journal.values import LONGEST, SIZE

KERNEL: tuple[str, ...] = ("/proc", "/sys")
"""Where files are none: some have no end, and reading some waits for news."""

SMALL = 16 << 10
"""Bytes up to which a file is read each time: looking whether it changed takes as long."""

LARGE = 1 << 20
"""Bytes from which on a file's digest is kept for later runs; of smaller ones it is made again."""

SETTLED = 2_000_000_000
"""Nanoseconds since its last change after which a file's digest is kept: a change within the clock
tick of the file system would not be seen (Git calls such an entry racy)."""

QUICKLY_SETTLED = 100_000_000
"""The same on local file systems whose times are finer than a second: a tick is 10 ms at most."""

T = TypeVar("T")

WITHOUT_CHANGE_TIME = frozenset(
    {"devtmpfs", "exfat", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuseblk", "hugetlbfs", "msdos",
     "ramfs", "tmpfs", "vfat"}
)  # fmt: skip
"""Types of file systems on which a file may change without a new time of change."""


class Stamp(NamedTuple):
    """What of a file changes with its content.

    The time is that of the inode's change (`st_ctime_ns`): whoever writes to a file can set the
    time of its last modification to what it was, as `cp -p` does, but not this one.
    """

    device: int
    inode: int
    size: int
    changed: int


class FileDigests:
    """Makes digests of files, each once while it does not change. Used on one thread.

    Args:
        earlier: Gives the digest that an earlier run kept for a stamp.

    Attributes:
        new: Digests that are to be kept for later runs, by their stamps.
        gone: Those of files that recorded tasks made and that are gone, by their paths.
        pipes: Paths that were asked for and name pipes.
    """

    def __init__(self, earlier: Callable[[Stamp], bytes | None] = lambda _: None) -> None:
        self.new: dict[Stamp, bytes] = {}
        self.gone: dict[str, bytes] = {}
        self.pipes: set[str] = set()
        self._earlier = earlier
        self._known: dict[Stamp, bytes] = {}
        self._seen: dict[str, bytes | None] | None = None
        self._mapped: set[int] | None = None
        self._once: dict[object, Any] | None = None
        self._systems: dict[int, str] = {}
        self._kernel = {os.stat(place).st_dev for place in KERNEL if os.path.exists(place)}

    @contextlib.contextmanager
    def looking_once(self) -> Iterator[None]:
        """Look at each path once in this context."""
        self._seen, self._once = {}, {}
        try:
            yield
        finally:
            self._seen = self._mapped = self._once = None

    def of(self, path: str) -> bytes | None:
        """Return the digest of a file's content, `None` if there is no readable file.

        Args:
            path: Its path; `~`, `$NAME` and `file:///` are expanded as most libraries do.
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
        except (OSError, ValueError):  # it is gone, or the name has characters that none can have
            return None

    def once(self, make: Callable[..., T], *args: Any) -> T:
        """Return what a function returns, called once per context for the same arguments."""
        if self._once is None:
            return make(*args)
        if (make, args) not in self._once:
            self._once[make, args] = make(*args)
        found: T = self._once[make, args]
        return found

    def of_any(self, path: str) -> bytes | None:
        """The same of a file or a directory, which has the digests of all files in it.

        It has none where one of them cannot be read, or is a link to a directory. Of a file that
        is gone and known by `gone` it is what its content was.
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
            if not settled or stamp.inode in self._mapped_here():
                return digest
            if stamp.size >= LARGE:
                self.new[stamp] = digest
        self._known[stamp] = digest
        return digest

    def _mapped_here(self) -> set[int]:
        """Return the inodes that this process has mapped to write, looked up once per context."""
        if self._mapped is not None:
            return self._mapped
        found: set[int] = set()
        with contextlib.suppress(OSError), open("/proc/self/maps", "rb", 0) as maps:  # no Linux
            for line in maps.read().splitlines():
                _, access, _, _, inode, *_ = line.split(None, 5)
                if access == b"rw-s":
                    found.add(int(inode))
        if self._seen is not None:
            self._mapped = found
        return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=SIZE)).digest()


def _read_small(path: str) -> bytes:
    """Return the digest of a file, read with as few calls to the system as possible."""
    made = hashlib.blake2b(digest_size=SIZE)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while data := os.read(descriptor, SMALL + 1):
            made.update(data)
    finally:
        os.close(descriptor)
    return made.digest()
