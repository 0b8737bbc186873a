"""Stager of one engine: the directories, caches and policies that the files of all tasks share.

The files of one attempt belong to its `FileFlow`; see `rhapsody.staging.flow`.
"""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from rhapsody.data import InputFile, Output, OutputDir, SavedFile, plain_name
from rhapsody.errors import CapabilityError, DataError
from rhapsody.fsutil import disk_use
from rhapsody.identity import AttemptId
from rhapsody.sdk.runs import UidClaim, WorkDir
from rhapsody.sdk.threads import FastCalls, ThreadPool, in_thread
from rhapsody.staging.claims import Kind, Target
from rhapsody.staging.fetch import Fetcher
from rhapsody.staging.inheritance import FileState
from rhapsody.staging.inputs import InputPlace, as_source
from rhapsody.staging.outputs import Put, SavedFiles, names_of, without_place
from rhapsody.staging.sandboxes import Disposition, Keep, SandboxKeeper
from rhapsody.task import AttemptInfo, Sandbox, TaskDescription
from rhapsody.undeclared import left_in

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend
    from rhapsody.plugins.specs import TaskFiles

_CACHE = ".fetched"

_THREADS = 4
"""Number of threads that copy and remove files."""


class Stager:
    """Directories and policies for the files of one engine's tasks.

    All methods are called on the engine's loop.

    Args:
        work_dir: The directory that contains the sandboxes. It is created with the first sandbox.
        keep: The sandboxes that stay on disk; see `Keep`.
        in_run: The engine's uid if `work_dir` is a `.rhapsody` directory. The engine then uses a
            directory of that name in the directory of this process's run.
        uid: The engine's uid if the program chose it: no other engine may use it at the same time,
            and sandboxes of an earlier engine are not reused.
        backends: The engine's backends, by the names that outcomes contain. Backends may be added
            later.
        results_dir: Base directory of saved files. Default: the current directory.
        fetch_timeout: The argument `timeout` of `Fetcher`.
        fetch_limit: The argument `limit` of `Fetcher`.

    Attributes:
        directory: The current directory when the engine was created, at which relative paths of
            inputs start.
        root: The path of `work_dir`, with a slash at its end.
        keep: The argument `keep`.
        results: Files that tasks wrote and that are kept; with the claims on destinations.
        sandboxes: The sandboxes that may be removed.
        fetcher: The cache of remote files.
        cache_stays: True if the cache stays on disk after the run.
        threads: The threads that copy and remove files.
        links: The decision whether inputs are linked on the loop or on one of the threads.
        originals: The states of undeclared files that may be linked, by path.
        destinations: Destinations of the declared outputs that cannot be found by their plain
            names, by these names; for messages.
        disk_use: After `close`, the size of the directory of runs in bytes; 0 if this engine has
            left nothing there.

    Raises:
        ValueError: An argument, or an environment variable that `Fetcher` reads, is invalid; or
            another engine uses the uid.
        OSError: The uid cannot be claimed in `work_dir`.
    """

    def __init__(
        self,
        work_dir: str | os.PathLike[str],
        keep: Keep = "results",
        *,
        in_run: str | None = None,
        uid: str | None = None,
        backends: Mapping[str, BaseExecutionBackend] | None = None,
        results_dir: Path | None = None,
        fetch_timeout: float | None = None,
        fetch_limit: int | str | None = None,
    ) -> None:
        self.keep: Keep = keep
        self.fetcher: Fetcher = Fetcher(
            Path(work_dir, _CACHE), timeout=fetch_timeout, limit=fetch_limit
        )
        self._place = WorkDir(work_dir, in_run)
        self._settle_in()
        self._backends = {} if backends is None else backends
        self.directory: Path = Path.cwd()
        needed = (Path(os.path.abspath(work_dir)), self.directory, Path(os.path.expanduser("~")))
        threads = ThreadPool(_THREADS, "rhapsody-files")
        self.results: SavedFiles = SavedFiles(results_dir or self.directory, needed, threads)
        self.destinations: dict[str, str] = {}
        self.threads: ThreadPool = threads
        self.links: FastCalls = FastCalls()
        self.sandboxes: SandboxKeeper = SandboxKeeper(keep, self.results.add, threads)
        self.originals: dict[str, FileState] = {}
        self.cache_stays: bool = keep == "all"
        self._claim: UidClaim | None = None
        self._taken: frozenset[str] = frozenset()
        self.disk_use: int = 0
        if uid is not None:
            self._claim_uid(uid)

    def _claim_uid(self, uid: str) -> None:
        try:
            self._claim = UidClaim(uid, str(self.settle()))
            names = os.listdir(self.work_dir)
        except BaseException:
            self.leave()
            raise
        self._taken = frozenset(name for name in names if name.startswith(f"{uid}."))

    @property
    def work_dir(self) -> Path:
        """The engine's directory, which may change until `settle` is called."""
        return self._place.path

    @property
    def earlier(self) -> str:
        """Pattern of the `work_dir` of earlier runs, as for `glob.glob`."""
        base = glob.escape(str(self._place.base))
        return base if self._place.base == self.work_dir else os.path.join(base, "*", "*")

    def settle(self) -> Path:
        """Create the run's directory, if any, and return `work_dir`; see `WorkDir.settle`."""
        self._place.settle()
        self._settle_in()
        return self.work_dir

    def _settle_in(self) -> None:
        self.root: str = f"{self.work_dir}{os.sep}"
        self.fetcher.directory = self.work_dir / _CACHE

    def sandbox_path(self, uid: str) -> str:
        """Return the path of an attempt's sandbox, without creating it.

        Raises:
            DataError: The uid cannot be the name of a directory in `work_dir`.
        """
        if uid == _CACHE:
            raise DataError(f"{uid!r} is reserved and cannot be a task's uid")
        if not self._place.settled:
            self.settle()
        name = plain_name(uid)
        if name in self._taken:  # a sandbox of an earlier engine with the same uid
            name = next(n for i in count(2) if (n := f"{name}~{i}") not in self._taken)
        return self.root + name

    def require_capable(
        self,
        task: TaskDescription,
        backend: BaseExecutionBackend,
        inputs: Sequence[InputFile],
        outputs: Sequence[Output],
    ) -> None:
        """Raise a `CapabilityError` if a backend cannot handle the files of a task."""
        can = backend.capabilities
        several = [o.filename for o in outputs if isinstance(o, OutputDir) or o.many]
        if several and not can.shared_file_system:
            raise CapabilityError(
                f"task {task['name']!r} declares {', '.join(map(repr, several))}, but only single "
                f"files can be copied from the sandboxes of backend {backend.name!r}; use a "
                "backend that shares this file system, or pack the files into one"
            )
        saved = [output.filename for output in outputs if output.save]
        if saved and not (can.shared_file_system or can.copies_files_out):
            raise CapabilityError(
                f"task {task['name']!r} saves {', '.join(map(repr, saved))}, but this process "
                f"cannot read the sandboxes of backend {backend.name!r}; use another backend, or "
                "return the file's content"
            )
        if can.files or not (inputs or (outputs and not can.sandboxes)):
            return
        able = sorted(name for name, one in self._backends.items() if one.capabilities.files)
        raise CapabilityError(
            f"task {task['name']!r} declares files, but backend {backend.name!r} cannot link files "
            f"into sandboxes; use a backend that can, such as {', '.join(able) or 'local'}"
        )

    def copied(self, task: TaskDescription, producer: AttemptInfo, name: str) -> asyncio.Task[str]:
        """Start copying a file out of a sandbox of another backend."""
        backend = self._backends.get(producer.backend or "")
        if backend is not None and backend.capabilities.copies_files_out:
            write = partial(backend.copy_file_out, as_source(producer), name)
            return self.fetcher.bring(f"{producer.backend}://{producer.uid}/{name}", name, write)
        if backend is not None and backend.capabilities.shared_file_system:
            raise DataError(
                f"task {task['name']!r} needs {name!r} of task {producer.task}, which is missing "
                f"from {producer.files.sandbox!r}"
            )
        raise CapabilityError(
            f"task {task['name']!r} needs {name!r} from a sandbox of backend "
            f"{producer.backend!r}, which this process cannot read; run both tasks on one backend, "
            "or return the file's content"
        )

    def has_left(self, source: AttemptInfo, backend: BaseExecutionBackend) -> bool:
        """Return True if a dependency may have left files that a task on a backend can receive."""
        sandbox, same = source.files.sandbox or "", self.is_on(backend, source)
        if os.path.isdir(sandbox):
            return (same or backend.capabilities.shared_file_system) and bool(left_in(sandbox))
        return same

    def is_on(self, backend: BaseExecutionBackend, source: AttemptInfo) -> bool:
        """Return True if a task ran on a backend."""
        known = self._backends.get(source.backend or "")
        return source.backend == backend.name if known is None else known is backend

    async def save(
        self,
        source: TaskDescription,
        targets: Mapping[str, Target],
        matches: Mapping[str, tuple[str, ...]],
        backend: BaseExecutionBackend,
        files: TaskFiles | None = None,
    ) -> list[Path]:
        """Save the outputs of a task to their destinations.

        Args:
            source: The attempt's description, or its `uid`, `name` and `sandbox`.
            targets: The destinations of the outputs, by name.
            matches: The files that match each pattern among the names.
            backend: The backend that ran the attempt.
            files: The task's files from an earlier run, if it does not run. Those that are already
                up to date at their destinations are not saved.

        Returns:
            The paths of the saved files and directories.

        Raises:
            DataError: An output could not be saved.
        """
        sandbox, there = source.get("sandbox") or "", set[Path]()
        if files is not None:
            sandbox, matches, there = (
                files.sandbox,
                files.matches,
                set(map(Path, files.places.values())),
            )
        puts: dict[Path, Put] = {}
        for output, (place, kind) in targets.items():
            several = kind == "matches"
            what: Kind = "file" if several else kind
            for name in matches.get(output, ()) if several else (output,):
                path = place / name if several else place
                if files is not None:
                    puts[path] = Put(name, files.paths[name], what)
                elif backend.capabilities.shared_file_system:
                    puts[path] = Put(name, os.path.join(sandbox, name), what, sandbox)
                else:
                    puts[path] = Put(name, partial(backend.copy_file_out, source, name), what)
        await self.results.save(source, puts, there)
        for put in puts.values():
            self.sandboxes.saved(sandbox, put.name)
        return list(puts)

    def discard(self, path: str) -> bool:
        """Remove a file from a sandbox, on another thread; return False if nothing is removed."""
        return self.keep != "all" and self.sandboxes.discard(path)

    def keep_outputs(
        self,
        sandbox: str,
        outputs: Sequence[Output],
        matches: Mapping[str, tuple[str, ...]],
        results: Mapping[str, SavedFile],
        needs: tuple[Sandbox, ...] = (),
        *,
        recorded: bool,
    ) -> Sandbox:
        """Record which declared outputs are kept after the run.

        Outputs with a destination and temporary outputs are kept only until the run has succeeded.

        Args:
            sandbox: The path of the sandbox.
            outputs: The outputs.
            matches: The files that match each pattern among the outputs.
            results: The outputs that are neither temporary nor have a destination, by name.
            needs: Other sandboxes to which links in this sandbox point.
            recorded: True if the result is recorded, so that the outputs stay until the run
                succeeds.

        Returns:
            The reference that keeps the rest of the sandbox on disk.
        """
        rest = [o for o in outputs if o.save or o.temporary]
        stay = [output for output in outputs if output not in rest]
        self.sandboxes.declare(
            sandbox, names_of(stay, matches), names_of(rest, matches), results, recorded=recorded
        )
        return self.sandboxes.hold(sandbox, Disposition.PRODUCT, needs)

    def take_up(
        self, task: TaskDescription, outputs: Sequence[Output], files: TaskFiles
    ) -> Sandbox | None:
        """Decide which of a task's files from an earlier run to keep.

        Args:
            task: The description of the task, which does not run.
            outputs: The output files among the task's arguments.
            files: The task's files that exist.

        Returns:
            The reference that keeps the files on disk; `None` if they are not removed.
        """
        sandbox = files.sandbox
        self._place.use(sandbox)
        unsaved = {
            name: SavedFile(Path(files.paths[name]), file.task, file.uid)
            for name, file in without_place(task, sandbox, outputs, files.matches).items()
        }
        self.results.miss(file for name, file in unsaved.items() if name in files.missing)
        if self.keep == "all" or files.stays or not os.path.isdir(sandbox):
            self.results.add(unsaved.values())
            return None
        return self.keep_outputs(sandbox, outputs, files.matches, unsaved, recorded=True)

    def is_lost(self, producer: AttemptInfo, place: InputPlace) -> bool:
        """Return True if a file of a reused task is missing, or if another task writes to its path.

        Args:
            producer: The outcome of the reused task.
            place: The location of the file; see `left_place`.
        """
        if place.path is None:
            return True
        call = AttemptId.of(producer.uid).task
        return self.results.claims.is_replaced(place.path, call, directory=place.directory)

    def replaced(self, outcome: AttemptInfo) -> None:
        """Record that files of an earlier run were regenerated: the others need not be kept."""
        for name in outcome.files.output_files:
            self.sandboxes.saved(outcome.files.sandbox or "", name)

    async def close(self, *, well: bool = True) -> None:
        """Remove sandboxes, fetched files and empty directories that are not kept.

        The removal does not block the loop. A second call has no effect.

        Args:
            well: True if the run succeeded. Otherwise the outputs of recorded tasks stay.
        """
        await self.sandboxes.close(well=well)  # first, because links may lead into the cache
        await self.fetcher.close(remove=not self.cache_stays)
        if self._claim is not None:
            self._claim.release()
        await in_thread(self._place.close, self.results.saved, or_here=True)
        if self._place.settled and self.work_dir.exists():
            self.disk_use = await in_thread(disk_use, self._place.base, or_here=True)

    def leave(self) -> None:
        """Unregister the engine from its run; see `WorkDir.leave`."""
        self._place.leave()
