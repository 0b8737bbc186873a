"""Recorder: the observer that writes the record of a run while it happens.

Calls and events are encoded on the event loop, in the hooks that receive them, so that they are
released at once: keeping them for another thread costs more, because the garbage collector then
traverses them. A thread writes the waiting lines in one call, at most half a second after the first
of them was added. No timer is set while nothing is waiting to be written, so an idle engine does
not wake up. A process that is killed loses at most the last half second, and may leave an
incomplete last line.

All engines of a process that use the same record share its file. The record in a run
directory ends when the last engine shuts down or, under `rhapsody run`, when the command ends. If
the program creates another engine later, the record continues, and its last `run_end` line is the
valid one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from rhapsody.builtin.record.lines import (
    Encoder,
    Line,
    counts,
    engine_end_line,
    engine_line,
    node_line,
    run_end_line,
    run_line,
)
from rhapsody.builtin.record.outputs import OutputStore
from rhapsody.errors import describe_error
from rhapsody.fsutil import lock_file, on_network, open_own
from rhapsody.history.written import record_closed, record_opened
from rhapsody.plugins.specs import (
    ObservedEngine,
    Outcome,
    Summary,
    TaskCall,
    TaskEvent,
    UsageError,
    hookimpl,
)
from rhapsody.sdk import PerProcess
from rhapsody.sdk.runs import BASE, RECORD, Run, enter_run, leave_run
from rhapsody.sdk.threads import start_thread
from rhapsody.task import NodeSample

log: logging.Logger = logging.getLogger("rhapsody.engine")

FLUSH: Final = 0.5
"""Maximum number of seconds until a call or event is written."""

MOST: Final = 2000
"""Number of waiting lines that are written without waiting for `FLUSH`."""

GRACE: Final = 10.0
"""Maximum number of seconds that the end of a run waits for its record to be written."""

_WORST: Sequence[Outcome] = get_args(Outcome)


class _Clock:
    """Clock of one run: the system's clock at the start, and the monotonic clock from then on.

    Durations are therefore right if the system's clock is set meanwhile.

    Attributes:
        began: The time of the start, in seconds since the epoch.
    """

    def __init__(self) -> None:
        self.began: float = time.time()
        self._since = time.monotonic()

    def now(self) -> float:
        """Return the seconds since the epoch."""
        return self.began + time.monotonic() - self._since


class RecordFile:
    """File of a record, and the thread that writes it. Methods may be called from any thread.

    An error while writing, such as a full disk, is logged once and ends the record, not the run.

    Args:
        path: The path of the file. Only the user can read it.
        fresh: True to replace an existing file; False to continue it.
        profile: The name of the profile that the run uses, if any.

    Attributes:
        path: The argument `path`.
        outputs: The store for the whole output of tasks.
        clock: The run's clock.

    Raises:
        BlockingIOError: Another process is writing the file.
        OSError: The file cannot be written.
    """

    def __init__(self, path: str, *, fresh: bool, profile: str | None = None) -> None:
        self.path: str = path
        self.clock: _Clock = _process.get().clock or _Clock()
        self._pid = os.getpid()
        self._batches: queue.SimpleQueue[Sequence[Line] | None] = queue.SimpleQueue()
        self._network = on_network(Path(path).parent)
        self._file: int | None = open_own(path, os.O_RDWR | os.O_APPEND)
        try:
            _write(self._file, self._begin(self._file, profile, fresh=fresh))
            self.outputs: OutputStore = OutputStore(path, fresh=fresh)
            self._thread = start_thread(self._work, "rhapsody record")
        except BaseException:
            os.close(self._file)
            raise

    def _begin(self, file: int, profile: str | None, *, fresh: bool) -> str:
        """Lock the file, and return the text to write first."""
        lock_file(file)
        if fresh:
            os.ftruncate(file, 0)
        size = os.fstat(file).st_size
        if size == 0:
            return run_line(self.clock.began, profile)
        return "" if os.pread(file, 1, size - 1) == b"\n" else "\n"  # after an incomplete line

    @property
    def active(self) -> bool:
        """True if the file is open in this process."""
        return self._file is not None and os.getpid() == self._pid

    def put(self, lines: Sequence[Line]) -> None:
        """Queue lines for the writer's thread, which writes them in this order."""
        if self.active:
            self._batches.put(lines)

    def close(self) -> None:
        """Write what is waiting, and close the file."""
        if not self.active:
            return
        self._batches.put(None)
        self._thread.join(GRACE)
        if self._thread.is_alive():
            log.error("record %s: writing takes too long; its last lines may be missing", self.path)
        else:
            self._end()

    def _work(self) -> None:
        while (lines := self._batches.get()) is not None:
            self._write(lines)

    def _write(self, lines: Sequence[Line]) -> None:
        if self._file is None:
            return
        try:
            text = "".join([each if isinstance(each, str) else each() for each in lines])
            if self._network:  # other hosts see what has reached the server
                self.outputs.sync()
            _write(self._file, text)
            if self._network:
                os.fdatasync(self._file)
        except Exception as error:  # a full disk, or a fault in encoding
            log.error(
                "record %s: disabled, later tasks are missing in it (%s)",
                self.path, describe_error(error),
            )  # fmt: skip
            self._end()

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)
            self.outputs.close()


def _write(file: int, text: str) -> None:
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    while data:
        data = data[os.write(file, data) :]


class _Record:
    """Record of this process at one path, with the engines that use it.

    Args:
        path: The path of the file; `None` for the file in the run's directory.
        base: The `.rhapsody` directory that contains the run's directory.
    """

    def __init__(self, path: Path | None, base: Path) -> None:
        self._run: Run | None = None
        self._given = path
        self._base = base
        self._uid = f"record-{os.urandom(4).hex()}"
        self._file: RecordFile | None = None
        self._engines: set[str] = set()
        self._known: list[str] = []  # all engines so far, in order
        self._outcome: Outcome = "done"
        self._stats: Counter[str] = Counter()
        self._backends: dict[str, None] = {}

    def enter(self, engine: ObservedEngine) -> tuple[RecordFile, Encoder]:
        """Register an engine, and open the file unless it is open."""
        if self._file is None or not self._file.active:
            self._open(engine.options.get("profile"))
        file = self._file
        assert file is not None
        first = not self._known or engine.uid == self._known[0]
        if engine.uid not in self._known:
            self._known.append(engine.uid)
        self._engines.add(engine.uid)
        self._backends.update(dict.fromkeys(engine.backends))
        file.put([engine_line(engine, file.clock.now())])
        return file, Encoder(None if first else engine.uid, file.outputs)

    def _open(self, profile: str | None) -> None:
        if self._given is not None:
            path = os.fspath(self._given)
            self._file = RecordFile(path, fresh=not self._known, profile=profile)
            record_opened(self._given)
            return
        self._run = run = enter_run(self._base, self._uid)
        try:
            path = os.fspath(run.make() / RECORD)
            self._file = RecordFile(path, fresh=False, profile=profile)
        except BaseException:
            self._leave_run()
            raise
        record_opened(Path(os.path.abspath(path)))

    def leave(self, uid: str, outcome: Outcome, summary: Summary | None) -> None:
        """Unregister an engine that has ended."""
        self._engines.discard(uid)
        self._outcome = max(self._outcome, outcome, key=_WORST.index)
        if summary is not None:
            self._stats.update(counts(summary.stats))

    @property
    def idle(self) -> bool:
        """True if no engine uses the record."""
        return not self._engines

    def end(self, outcome: Outcome | None = None, exit_code: int | None = None) -> None:
        """Write the end of the run and close the file. A second call has no effect."""
        file, self._file = self._file, None
        if file is not None:
            how, stats = outcome or self._outcome, dict(self._stats)
            file.put([run_end_line(how, exit_code, stats, self._backends, file.clock.now())])
            file.close()
            record_closed(Path(os.path.abspath(file.path)))
        self._leave_run()

    def _leave_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            leave_run(run, self._uid)


class _RecordsOfProcess:
    """Records of one process, by path; those in run directories by the path of `.rhapsody`.

    `clock` is the clock of the run if the records are held open until its end.
    """

    def __init__(self) -> None:
        self.records: dict[Path, _Record] = {}
        self.clock: _Clock | None = None
        self.lock = threading.RLock()


_process: PerProcess[_RecordsOfProcess] = PerProcess(_RecordsOfProcess)


def hold_records() -> None:
    """Keep the records of this process open until `end_records`. For `rhapsody run`."""
    _process.get().clock = _Clock()


def end_records(outcome: Outcome, exit_code: int) -> None:
    """End the records of this process with the run's outcome and exit code. For `rhapsody run`."""
    process = _process.get()
    with process.lock:
        process.clock = None
        for record in process.records.values():
            record.end(outcome, exit_code)


class RunRecorder:
    """Observer that records one engine.

    Args:
        path: The path of the record; `None` for the record in the run's directory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._record: _Record | None = None
        self._file: RecordFile | None = None
        self._encoder: Encoder | None = None
        self._uid = ""
        self._lines: list[Line] = []
        self._timer: asyncio.TimerHandle | None = None

    @hookimpl(tryfirst=True)  # other plugins may read the record from now on
    def rhapsody_workflow_started(self, engine: ObservedEngine) -> None:
        """Begin to record an engine.

        If the record is in the run's directory and cannot be written, the run is not recorded.

        Raises:
            UsageError: The file at the given path cannot be written.
        """
        process = _process.get()
        try:
            with process.lock:
                key = Path(os.path.abspath(BASE if self._path is None else self._path))
                record = process.records.get(key)
                if record is None:
                    given = None if self._path is None else key
                    record = process.records[key] = _Record(given, key)
                self._file, self._encoder = record.enter(engine)
        except OSError as error:
            reason = describe_error(error)
            if isinstance(error, BlockingIOError):
                reason = f"another run is writing {key}"
            if self._path is not None:
                raise UsageError(f"record: {reason}") from error
            log.warning("this run is not recorded (%s)", reason)
            return
        self._record, self._uid = record, engine.uid

    @hookimpl
    def rhapsody_task_calls(self, engine: ObservedEngine, calls: Sequence[TaskCall]) -> None:
        """Encode calls."""
        if self._encoder is not None:
            self._add(engine, self._encoder.calls(calls))

    @hookimpl
    def rhapsody_task_events(self, engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
        """Encode events."""
        if self._encoder is not None:
            self._add(engine, self._encoder.events(events))

    @hookimpl
    def rhapsody_node_samples(self, engine: ObservedEngine, samples: Sequence[NodeSample]) -> None:
        """Encode samples of nodes."""
        if self._file is not None:
            now = self._file.clock.now()
            self._add(engine, [node_line(sample._replace(time=now)) for sample in samples])

    @hookimpl(trylast=True)
    def rhapsody_workflow_finished(self, engine: ObservedEngine, summary: Summary) -> None:
        """Write what is waiting and the end of the engine, and end the record if it is unused."""
        self._flush()
        if self._file is not None:
            self._file.put([engine_end_line(engine.uid, summary, self._file.clock.now())])
        self._close(summary.outcome, summary)

    @hookimpl
    def rhapsody_workflow_not_started(self) -> None:
        """End the record of an engine that could not be started."""
        self._flush()
        self._close("failed", None)

    def _close(self, outcome: Outcome, summary: Summary | None) -> None:
        record, self._record, self._file = self._record, None, None
        process = _process.get()
        if record is None:
            return
        with process.lock:
            record.leave(self._uid, outcome, summary)
            if record.idle and process.clock is None:
                record.end()

    def _add(self, engine: ObservedEngine, lines: list[Line]) -> None:
        if self._timer is None:
            self._timer = engine.loop.call_later(FLUSH, self._flush)
        self._lines += lines
        if len(self._lines) >= MOST:
            self._pass_on()

    def _flush(self) -> None:
        """Pass everything known so far to the writer, and stop the timer."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            if self._encoder is not None:
                self._lines += self._encoder.unfinished()
            self._pass_on()

    def _pass_on(self) -> None:
        lines, self._lines = self._lines, []
        if self._file is None or not self._file.active:  # a disk error has ended the record
            self._encoder = None
        elif lines:
            self._file.put(lines)
