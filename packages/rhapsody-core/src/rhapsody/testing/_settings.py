"""What an author can say about a backend to the conformance kit, with the defaults.

All of it are class attributes that a test class may set. The checks read them
here and decide nothing else from the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar, Literal


class Settings:
    """The class attributes of a conformance test class.

    Attributes:
        time_limit: Seconds that one check may take, without those in which the
            machine gave this process no processor. A few checks take a stated
            multiple of it.
        settle: Seconds to watch for something that must not come. Processes, threads
            and files are given ten times as long to go.
        silence: Seconds without a report after which the rest of a batch counts as lost, once
            some of its tasks have ended; at least three times as long as the batch has taken.
        loop_gap: Seconds that the loop may be held up at most. The best of three
            tries counts, and a machine that pauses is not mistaken for a fault.
        submission_gap: Seconds for which one submission of a few tasks, including their ends,
            may block the loop in total, however short each pause is.
        shutdown_limit: Seconds that the shutdown of an idle backend may take; the better
            of two tries counts.
        big_bytes: Size of the big argument and the big result.
        output_bytes: Size of an executable's big output.
        fan: Number of tasks in the big fan.
        cycles: Start and stop cycles in which nothing may grow.
        memory_growth: Bytes that the process may grow by in those cycles.
        growth_per_task: Bytes that the program may keep for each task that has ended. The
            results of the check's tasks are much bigger.
        cores: How many cores the backend of `make_backend` has. Must be set where
            the backend declares the resource `cores`.
        cores_per_task: How many of them one task can have at most, where that is fewer.
        gpus: The same of GPUs.
        memory: The memory that it has for tasks, in bytes or as text such as `"2 GiB"`. Must be
            set if the backend declares the resource `memory`.
        memory_per_task: The maximum for one task, if that is less.
        dry: The backend only pretends to run tasks: checks that look at what a
            task did are skipped.
        separate_processes: Functions run in processes of their own, so that one
            which kills its process fails alone.
        shares_memory: Functions and arguments of a task are the program's own objects, so
            that what one does to them others see. `None`: where `separate_processes` is
            `False`.
        closures: How many functions run one after the other that each hold
            `closure_bytes`.
        closure_bytes: Bytes that each of them holds. More than 32 MiB, glibc's highest
            `M_MMAP_THRESHOLD`, are seen to be given back as soon as they are.
        names_workers: The description of a task that has ended names the worker or host that
            ran it. `False` if the system behind the backend does not report it.
        backend_scope: `"test"` makes a backend for each check, `"class"` one for
            all checks that do not stop it, for backends that are slow to start; one
            that a check has started is then left to a check that stops one.
        stands_alone: A process that the tests start can use the backend as well. Not where
            it needs what started the tests, such as `mpiexec`.
        leaves_behind: Patterns (`fnmatch`) of what may be left when the backend
            has been shut down, matched with `"process COMMAND"`, `"thread NAME"`,
            `"task NAME"`, `"file TARGET"` and `"temporary NAME"`, for entries of the
            temporary directory.
        adds: What a backend may add to the program while it lives: any of `"threads"`,
            `"children"`, `"descriptors"` and `"sys.path"`, which must be as before when
            it has been shut down, and `"at-fork handlers"`, which cannot be taken back.
            Variables of the environment, signal handlers, the current directory and the
            umask are never its own to change.
        expected_failures: Checks that are known to fail, with the reason for each.
            They are reported as expected failures, and as errors once they pass.
        create_args: Arguments for the class's `create`.
        create_kwargs: Keyword arguments for the class's `create`.
        work_dir: The directory for sandboxes and files, which the backend must see
            where it declares `shared_file_system`. Default: the system's place for
            temporary files.
    """

    time_limit: ClassVar[float] = 30.0
    settle: ClassVar[float] = 0.2
    silence: ClassVar[float] = 10.0
    loop_gap: ClassVar[float] = 0.25
    submission_gap: ClassVar[float] = 0.1
    shutdown_limit: ClassVar[float] = 5.0
    big_bytes: ClassVar[int] = 5_000_000
    output_bytes: ClassVar[int] = 10_000_000
    fan: ClassVar[int] = 1_000
    cycles: ClassVar[int] = 10
    memory_growth: ClassVar[int] = 32 * 1024 * 1024
    growth_per_task: ClassVar[int] = 20_000
    cores: ClassVar[int | None] = None
    cores_per_task: ClassVar[int | None] = None
    gpus: ClassVar[int | None] = None
    memory: ClassVar[int | str | None] = None
    memory_per_task: ClassVar[int | str | None] = None
    names_workers: ClassVar[bool] = True
    dry: ClassVar[bool] = False
    separate_processes: ClassVar[bool] = False
    shares_memory: ClassVar[bool | None] = None
    closures: ClassVar[int] = 20
    closure_bytes: ClassVar[int] = 34_000_000
    backend_scope: ClassVar[Literal["test", "class"]] = "test"
    stands_alone: ClassVar[bool] = True
    leaves_behind: ClassVar[Sequence[str]] = ()
    adds: ClassVar[Set[str]] = frozenset({"threads", "children", "descriptors"})
    expected_failures: ClassVar[Mapping[str, str]] = {}
    create_args: ClassVar[Sequence[Any]] = ()
    create_kwargs: ClassVar[Mapping[str, Any]] = {}
    work_dir: ClassVar[Path | None] = None

    async def make_backend(self) -> Any:
        """Makes the backend that is proved; it may be started or not.

        Called on a running loop, once or several times per check.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must have `async def make_backend(self)` that returns a backend"
        )

    async def make_failing_backend(self) -> Any:
        """Makes a backend whose start fails; `NotImplemented` where there is no way to."""
        return NotImplemented

    def library_function(self) -> Any:
        """Gives a function for a task that uses the library behind the backend itself.

        Such as one that opens a client of the same cluster, has it compute something and
        gives something true. It takes no arguments, and runs several times at once.

        Returns:
            The function; `NotImplemented` where the backend has no library, or none that
            can be used inside a task.
        """
        return NotImplemented
