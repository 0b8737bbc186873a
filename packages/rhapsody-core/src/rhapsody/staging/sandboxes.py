"""Lifetime of sandboxes on disk, for one engine.

A sandbox that may be removed stays while its `Sandbox` object is referenced, and is then removed on
a thread. Backends create sandboxes; the engine's stager decides which of these may be removed.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Literal, get_args

from rhapsody.data import RESERVED, SavedFile
from rhapsody.fsutil import remove_directory, replace_links
from rhapsody.sdk.threads import ThreadPool, in_thread
from rhapsody.task import Sandbox

Keep = Literal["results", "failed", "all", "none"]
"""Sandboxes that stay on disk after a run.

`"results"`: the sandboxes of failed tasks, and the declared outputs in all others. `"failed"`: the
sandboxes of failed tasks. `"all"`: all sandboxes. `"none"`: no sandboxes.
"""

log: logging.Logger = logging.getLogger(__name__)


def check_keep(value: Keep) -> Keep:
    """Check a value of `keep_sandboxes`, and return it.

    Returns:
        The value.

    Raises:
        ValueError: The value is not a `Keep`.
    """
    if value not in get_args(Keep):
        known = ", ".join(get_args(Keep))
        raise ValueError(f"keep_sandboxes must be one of {known}, got {value!r}")
    return value


class Disposition(Enum):
    """Time at which a sandbox is removed."""

    REMOVE = "removed when unused, and at close"
    PRODUCT = "removed when unused, except for declared files; at close according to `keep`"
    STAY = "removed at close, and only if `keep` is 'none'"


@dataclass(slots=True)
class _Declared:
    """Declared files of a sandbox.

    Attributes:
        stay: Names of files that are kept after the run.
        until_end: Names of files that are needed until the run has succeeded.
        results: The files in `stay` that are results because no task has read them so far, by name.
        recorded: True if a later run may reuse the files.
    """

    stay: set[str]
    until_end: set[str]
    results: dict[str, SavedFile]
    recorded: bool


class SandboxKeeper:
    """Manager of sandboxes, which removes each sandbox once it is no longer needed.

    Args:
        keep: The sandboxes that stay on disk after the run.
        kept: Called with the results that remain when the rest of a sandbox is removed; may be
            called from any thread.
        threads: The threads that remove sandboxes. `close` ends them.
    """

    def __init__(
        self, keep: Keep, kept: Callable[[Iterable[SavedFile]], object], threads: ThreadPool
    ) -> None:
        self._keep = keep
        self._kept = kept
        self._threads = threads
        # Filled by the loop, emptied by the threads: single operations on a dict, which are atomic.
        self._fates: dict[str, Disposition] = {}
        self._declared: dict[str, _Declared] = {}
        self._closed = self._ended_well = False
        self._complained = False

    def hold(self, path: str, fate: Disposition, needs: tuple[Sandbox, ...] = ()) -> Sandbox:
        """Return an object that keeps a sandbox on disk, and record when to remove the sandbox.

        Args:
            path: The path of the sandbox.
            fate: The time at which the sandbox is removed.
            needs: Other sandboxes to which links in this sandbox point.
        """
        self.note(path, fate)
        return Sandbox(path, self, needs)

    def note(self, path: str, fate: Disposition) -> None:
        """Record when to remove a sandbox."""
        if self._closed or (fate is Disposition.STAY and self._keep != "none"):
            return
        self._fates[path] = fate
        with suppress(RuntimeError):  # too many threads: a later call or `close` tries again
            self._threads.start()

    def declare(
        self,
        path: str,
        stay: Iterable[str],
        until_end: Iterable[str],
        results: Mapping[str, SavedFile],
        *,
        recorded: bool,
    ) -> None:
        """Record which files are kept when a sandbox is removed.

        Args:
            path: The path of the sandbox.
            stay: See `_Declared`.
            until_end: See `_Declared`.
            results: See `_Declared`.
            recorded: See `_Declared`.
        """
        if not self._closed:
            self._declared[path] = _Declared(set(stay), set(until_end), dict(results), recorded)

    def read(self, path: str, name: str) -> None:
        """Record that a task has read a file. The file is then regarded as intermediate."""
        if path in self._declared:
            self._declared[path].results.pop(name, None)

    def saved(self, path: str, name: str) -> None:
        """Record that a file was saved, so that it need not be kept after the run."""
        declared = self._declared.get(path)
        if declared is not None and name in declared.stay:
            declared.results.pop(name, None)
            declared.until_end.add(name)
            declared.stay.discard(name)

    def discard(self, path: str) -> bool:
        """Remove a file from a sandbox; the removal runs on another thread.

        The file is renamed immediately, so that no task reads it.

        Returns:
            False if the file does not exist or cannot be renamed.
        """
        removed = os.path.join(os.path.dirname(path), f"{RESERVED}{uuid.uuid4().hex}")
        try:
            os.rename(path, removed)
        except OSError:  # the file was removed, or cannot be renamed
            return False
        self.note(removed, Disposition.REMOVE)
        self.drop(removed)
        return True

    def spare(self, path: str) -> bool:
        """Keep a sandbox, as with `Disposition.STAY`. Return False if it is kept already."""
        if self._fates.get(path, Disposition.STAY) is Disposition.STAY:
            return False
        self._fates[path] = Disposition.STAY
        return True

    def drop(self, path: str) -> None:
        """Remove a sandbox that is no longer referenced, unless it stays until `close`.

        The removal runs on another thread. Destructors call this method, so it takes no lock.
        """
        self._threads.put(partial(self._release, path))

    async def close(self, *, well: bool) -> None:
        """Remove files that are not kept, and wait until all removals are done.

        Args:
            well: True if the run succeeded.
        """
        self._closed = True
        self._ended_well = well
        await self._threads.close()
        if self._fates or self._declared:
            await in_thread(self._finish, or_here=True)

    def _release(self, path: str) -> None:
        if self._fates.get(path, Disposition.STAY) is not Disposition.STAY:
            del self._fates[path]
            declared = self._declared.get(path)
            self._remove(path, () if declared is None else declared.stay | declared.until_end)

    def _finish(self) -> None:
        if self._keep == "results":  # first, because links may lead to files in other sandboxes
            for path, files in self._declared.items():
                self._guard(path, partial(replace_links, path, self._kept_of(files)))
        for path, fate in self._fates.items():
            declared = self._declared.pop(path, None)
            if self._keep == "none" or fate is Disposition.REMOVE:
                self._remove(path)
            elif fate is Disposition.PRODUCT and self._keep == "results" and declared is not None:
                self._trim(path, declared)
        for path, declared in self._declared.items():  # sandboxes that were dropped before
            if self._keep == "results":
                self._trim(path, declared, dropped=True)
            elif self._keep == "none" or self._ended_well or not declared.recorded:
                self._remove(path)
        self._fates.clear()
        self._declared.clear()

    def _trim(self, path: str, declared: _Declared, *, dropped: bool = False) -> None:
        """Remove a sandbox's files that are not kept after the run, and report the results.

        Args:
            path: The path of the sandbox.
            declared: The declared files of the sandbox.
            dropped: True if all other files have been removed before; see `drop`.
        """
        self._kept(declared.results.values())
        if not dropped or (self._ended_well and declared.until_end):
            self._remove(path, self._kept_of(declared))

    def _kept_of(self, declared: _Declared) -> set[str]:
        return declared.stay if self._ended_well else declared.stay | declared.until_end

    def _remove(self, path: str, names: Collection[str] = ()) -> None:
        """Remove a sandbox, or its content except some files and the targets of links."""
        self._guard(path, partial(_remove, path, names))

    def _guard(self, path: str, action: Callable[[], object]) -> None:
        """Perform an action on a sandbox, and log its first error."""
        try:
            action()
        except FileNotFoundError:
            pass  # it was never created, or the user has removed it
        except Exception as error:  # the error must neither end the thread nor reach user code
            if not self._complained:
                self._complained = True
                log.warning(
                    "sandbox %s could not be removed (logged once): %s",
                    path,
                    error,
                    extra={"path": path},
                )


def _remove(path: str, names: Collection[str]) -> None:
    if os.path.basename(path).startswith(RESERVED):  # a single file; see `discard`
        os.unlink(path)
        return
    if names:
        replace_links(path, names)
    remove_directory(path, names)
