"""How long sandboxes stay on disk, for one engine.

A sandbox that may go stays while somebody holds its `Sandbox` object, and is
then removed in a thread. Which sandboxes may go is said by the caller; making
them is the backends' business.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from queue import SimpleQueue
from typing import Literal, get_args

from rhapsody.data import SavedFile
from rhapsody.sdk.threads import in_thread, start_thread
from rhapsody.staging.trees import remove_directory

Keep = Literal["results", "failed", "all", "none"]
"""Which sandboxes stay on disk: those of failed tasks, all, or none; `"results"`: those of failed
tasks, and the results that are in others."""

log: logging.Logger = logging.getLogger(__name__)


def check_keep(value: Keep) -> Keep:
    """Gives a user's `keep_sandboxes` back where it is one.

    Raises:
        ValueError: It is not.
    """
    if value not in get_args(Keep):
        known = ", ".join(get_args(Keep))
        raise ValueError(f"keep_sandboxes must be one of {known}, got {value!r}")
    return value


class Fate(Enum):
    """What becomes of a sandbox."""

    REMOVE = "goes when nobody holds it, and at close"
    PRODUCT = "goes, but for results, when nobody holds it; at close as `keep` says"
    STAY = "at close only where none are kept"


class Sandbox:
    """Keeps a sandbox on disk while this object is alive.

    Args:
        path: The directory.
        keeper: Who removes it.
        needs: Sandboxes that this one has links into.
    """

    __slots__ = ("_keeper", "needs", "path")

    def __init__(self, path: str, keeper: SandboxKeeper, needs: tuple[Sandbox, ...] = ()) -> None:
        self.path: str = path
        self.needs: tuple[Sandbox, ...] = needs
        self._keeper = keeper

    def __del__(self) -> None:
        self._keeper.drop(self.path)

    def __repr__(self) -> str:
        return f"<Sandbox {self.path!r}>"

    def spare(self) -> None:
        """Lets the directory, and all it has links into, outlive this object."""
        waiting: list[Sandbox] = [self]
        while waiting:
            sandbox = waiting.pop()
            if sandbox._keeper.spare(sandbox.path):
                waiting.extend(sandbox.needs)


class SandboxKeeper:
    """Removes sandboxes once they are no longer needed.

    Args:
        keep: Which stay on disk in the end.
        kept: Called with the results that are left of a sandbox, from any thread.
    """

    def __init__(self, keep: Keep, kept: Callable[[Iterable[SavedFile]], object]) -> None:
        self._keep = keep
        self._kept = kept
        # Filled by the loop, emptied by the thread, read by destructors on any
        # thread: single operations on a dict, which are atomic.
        self._fates: dict[str, Fate] = {}
        self._results: dict[str, dict[str, SavedFile]] = {}  # by sandbox and name
        self._read: dict[str, set[str]] = {}  # names, by sandbox
        self._recorded: dict[str, frozenset[str]] = {}  # the same
        self._left: dict[str, frozenset[str]] = {}  # results in what was removed but for these
        self._dropped: SimpleQueue[str | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = self._ended_well = False
        self._complained = False

    def hold(self, path: str, fate: Fate, needs: tuple[Sandbox, ...] = ()) -> Sandbox:
        """The object that keeps a sandbox on disk; where it goes at the end, too."""
        self.note(path, fate)
        return Sandbox(path, self, needs)

    def note(self, path: str, fate: Fate) -> None:
        """Says what becomes of a sandbox that nobody needs to hold."""
        if self._closed or (fate is Fate.STAY and self._keep != "none"):
            return
        self._fates[path] = fate
        if self._thread is None:
            with suppress(RuntimeError):  # too many threads: the next one tries again, or `close`
                self._thread = start_thread(self._run, "rhapsody-sandboxes")

    def results(self, path: str, files: Mapping[str, SavedFile]) -> None:
        """Says which files stay when the sandbox goes."""
        if files and self._keep == "results":
            self._results[path] = dict(files)

    def recorded(self, path: str, names: Iterable[str]) -> None:
        """Says which files stay until a run ends well, as their task is recorded."""
        if self._keep != "none":
            self._recorded[path] = frozenset(names)

    def read(self, path: str, name: str) -> None:
        """A task has read a file: it does not stay, unless somebody holds it at a good end."""
        if path in self._results:
            self._read.setdefault(path, set()).add(name)

    def saved(self, path: str, name: str) -> None:
        """A file is where it was to be: it does not stay."""
        self._results.get(path, {}).pop(name, None)

    def spare(self, path: str) -> bool:
        """Lets a sandbox stay, see `Fate`; `False` where it did already."""
        if self._fates.get(path, Fate.STAY) is Fate.STAY:
            return False
        self._fates[path] = Fate.STAY
        return True

    def drop(self, path: str) -> None:
        """Nobody holds the sandbox any more. Called by destructors: takes no lock."""
        self._dropped.put(path)

    async def close(self, *, well: bool) -> None:
        """Removes what does not stay, and waits until all removals are done.

        Args:
            well: Whether the run has ended well.
        """
        self._closed = True
        self._ended_well = well
        thread, self._thread = self._thread, None
        self._dropped.put(None)
        if thread is not None:
            await in_thread(thread.join, or_here=True)
        elif self._fates:  # there never was one
            self._run()

    def _run(self) -> None:
        while (path := self._dropped.get()) is not None:
            if self._fates.get(path, Fate.STAY) is not Fate.STAY:
                del self._fates[path]
                self._leave_out_what_was_read(path)
                self._remove(path)
        for path, fate in self._fates.items():
            if not self._ended_well:  # the traceback holds every future of the program's
                self._leave_out_what_was_read(path)
            product = fate is Fate.PRODUCT and self._keep == "results"
            if fate is Fate.REMOVE or product or self._keep == "none":
                self._remove(path)
        for path, results in self._left.items() if self._ended_well else ():
            self._remove_but(path, results)
        self._fates.clear()

    def _leave_out_what_was_read(self, path: str) -> None:
        for name in self._read.pop(path, ()):
            self.saved(path, name)

    def _remove(self, path: str) -> None:
        """Removes a sandbox, or all but the results and recorded files that are in it."""
        results = self._results.pop(path, {})
        self._kept(results.values())
        stays = self._recorded.pop(path, frozenset())
        if stays:
            self._left[path] = frozenset(results)
        self._remove_but(path, stays | results.keys())

    def _remove_but(self, path: str, names: Collection[str]) -> None:
        try:
            remove_directory(path, names)
        except FileNotFoundError:
            pass  # never made, or removed by the user
        except Exception as error:  # must not end the thread, nor reach the user's code
            if not self._complained:
                self._complained = True
                log.warning(
                    "a sandbox could not be removed (said once): %s", error, extra={"path": path}
                )
