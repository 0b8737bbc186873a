"""Lines of a record: encodes calls, events, and the beginning and end of runs and engines as JSON.

A record may contain a hundred thousand tasks, each with a line for its call and one for each of its
attempts. These lines are composed of strings, which takes a third of the time of `json.dumps`.
"""

from __future__ import annotations

import functools
import getpass
import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, NamedTuple

from rhapsody._version import __version__
from rhapsody.builtin.record.outputs import OutputStore
from rhapsody.errors import DependencyFailureError, Failure
from rhapsody.history.outputs import PRINTED
from rhapsody.history.reader import FORMAT
from rhapsody.masking import (
    MIN_SECRET_LENGTH,
    Secrets,
    mask,
    mask_arguments,
    mask_value,
    merged,
    secrets_of,
)
from rhapsody.plugins.manager import CORE, installed
from rhapsody.plugins.specs import (
    AttemptFiles,
    ObservedEngine,
    Stats,
    Summary,
    TaskCall,
    TaskEvent,
)
from rhapsody.sdk.capture import TruncatedText
from rhapsody.states import TasksMainStates
from rhapsody.task import NodeSample
from rhapsody.tracebacks import as_lines

MESSAGE = 2000
"""Maximum number of characters of an error's text."""

CAUSES = 10
"""Maximum number of failed tasks that are listed as the cause of a skipped task."""

SHOWN = 200
"""Maximum number of characters of the value of an engine's option."""

PENDING, SUBMITTED, RUNNING = (
    TasksMainStates.PENDING,
    TasksMainStates.SUBMITTED,
    TasksMainStates.RUNNING,
)

_dumps = json.JSONEncoder(default=str, separators=(",", ":")).encode
_quoted = functools.lru_cache(maxsize=4096)(encode_basestring_ascii)
"""Function that returns a string as JSON, for strings that occur often."""


@functools.lru_cache(maxsize=64)
def _common_time(seconds: float) -> str:
    """Return a time as JSON. Cached: all tasks of a batch are submitted at the same time."""
    return f"{seconds:.6f}"


Line = str | Callable[[], str]
"""A line, or a function that returns it, which uses files and must not be called on the loop."""


class _LongOutput(NamedTuple):
    """Output of an attempt that is longer than what the record contains.

    Attributes:
        name: `"stdout"` or `"stderr"`.
        text: The output.
        secrets: The secrets to mask.
        whole: True if the whole output is kept.
    """

    name: str
    text: str
    secrets: Secrets
    whole: bool


_Unfinished = tuple[float | None, str | None, TaskEvent | None]
"""Time of the submission, backend, and the event of the start."""

_NOTHING: _Unfinished = (None, None, None)


class Encoder:
    """Encoder of the calls and events of one engine. Used on the engine's loop.

    Args:
        engine: The uid of the engine, or `None` for the first engine of a record.
        outputs: The store for whole output.
    """

    def __init__(self, engine: str | None, outputs: OutputStore) -> None:
        self._outputs = outputs
        self._engine = "" if engine is None else f',"engine":{_dumps(engine)}'
        self._unfinished: dict[str, _Unfinished] = {}  # attempts, by the uids of their tasks
        self._reasons: dict[str, str] = {}  # for which the jobs of some of them wait
        self._new: list[str] = []  # uids of those that may not have a line yet
        self._secrets: dict[str, Secrets] = {}  # of unfinished tasks that have variables
        self._settings: dict[int, tuple[object, object, str]] = {}
        self._places: dict[tuple[object, ...], str] = {}
        self._process: Secrets | None = None

    def calls(self, calls: Sequence[TaskCall]) -> list[Line]:
        """Return the lines for calls."""
        return [self._call(call) for call in calls]

    def events(self, events: Sequence[TaskEvent]) -> list[Line]:
        """Return the lines for events: those of the attempts that have ended."""
        self._process = None
        lines: list[Line] = []
        unfinished, new = self._unfinished, self._new
        for event in events:
            state = event.state
            if state is PENDING:
                continue
            uid = event.uid
            if state is SUBMITTED:
                if uid not in unfinished:
                    unfinished[uid] = event.time, event.backend, None
                    new.append(uid)
                reason = (event.native or "").partition(": ")[2]
                if reason != self._reasons.get(uid, ""):
                    self._reasons[uid] = reason
                    new.append(uid)
            elif state is RUNNING:
                submitted, backend, started = unfinished.get(uid, _NOTHING)
                if started is None:
                    unfinished[uid] = submitted, backend, event
                    new.append(uid)
            else:
                lines.append(self._end(event))
        return lines

    def unfinished(self) -> list[Line]:
        """Return the lines for attempts that have started since the last call and have not ended.

        Called only from time to time, because most attempts of a burst end soon.
        """
        lines: list[Line] = []
        queued: dict[tuple[str | None, str | None], list[str]] = {}
        for uid in dict.fromkeys(self._new):
            if uid not in self._unfinished:
                continue
            submitted, backend, event = self._unfinished[uid]
            if event is None:
                queued.setdefault((backend, self._reasons.get(uid)), []).append(uid)
                continue
            found = {
                "attempt": event.attempt if event.attempt != 1 else None,
                "backend": event.backend,
                "worker": None if event.worker is None else str(event.worker),
                "submitted": _rounded(submitted),
                "started": _rounded(event.time),
                "sandbox": event.sandbox,
            }
            lines.append(f'{{"event":"start","uid":"{uid}"{self._engine}{_items(found)}}}\n')
        for (backend, reason), uids in queued.items():
            when = min((self._unfinished[uid][0] for uid in uids), key=lambda each: each or 0.0)
            batch: dict[str, Any] = {"backend": backend, "time": _rounded(when), "uids": uids}
            if reason:
                batch["reason"] = reason
            lines.append(f'{{"event":"submit"{self._engine}{_items(batch)}}}\n')
        self._new.clear()
        return lines

    def _call(self, call: TaskCall) -> str:
        uid, name, kind, text, when, block, scope, dependencies, resources, settings, secrets = call
        line = (
            f'{{"event":"call","uid":"{uid}"{self._engine},"name":{_quoted(name)},'
            f'"call":{encode_basestring_ascii(text)},"time":{when:.6f}'
        )
        if kind != "function":
            line += f',"kind":"{kind}"'
        if block is not None:
            line += f',"block":"{block}"'
        if scope is not None:
            line += f',"scope":{_quoted(scope)}'
        if dependencies:
            line += f',"dependencies":{_dumps(dependencies)}'
        if resources or settings:
            line += self._settings_of(resources, settings)
        if secrets:
            self._secrets[uid] = secrets
        return line + "}\n"

    def _settings_of(self, resources: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
        """Return settings as JSON. The settings of one task function are encoded once."""
        found = self._settings.get(id(settings))
        if found is None or found[0] is not resources or found[1] is not settings:
            given = {"resources": resources, "settings": settings}
            if len(self._settings) > SETTINGS:
                self._settings.clear()
            found = resources, settings, _items(given)
            self._settings[id(settings)] = found
        return found[2]

    def _end(self, event: TaskEvent) -> Line:
        (
            uid, _, attempt, state, native, backend, ended, _, worker, _, error, sandbox,
            stdout, stderr, _, exit_code, usage, retried, files, resources, interval, failure,
        ) = event  # fmt: skip
        where = self._places.get((state, backend, worker))
        if where is None:
            where = self._place(state, backend, worker)
        submitted, _, start = self._unfinished.pop(uid, _NOTHING)
        self._reasons.pop(uid, None)
        started = None if start is None else start.time
        # More precise than the times of the events. Times of a clock that differs are not used.
        if interval is not None and (submitted or 0.0) <= interval[0] <= interval[1] <= ended:
            started, ended = interval
        if submitted is not None and started is not None:  # in one step, as most lines have both
            line = (
                f'{{"event":"end","uid":"{uid}"{self._engine}{where},"submitted":{_common_time(submitted)},'
                f'"started":{started:.6f},"ended":{ended:.6f}'
            )
        else:
            line = f'{{"event":"end","uid":"{uid}"{self._engine}{where}'
            if submitted is not None:
                line += f',"submitted":{submitted:.6f}'
            if started is not None:
                line += f',"started":{started:.6f}'
            line += f',"ended":{ended:.6f}'
        if attempt != 1:
            line += f',"attempt":{attempt}'
        if native == "reused":
            line += ',"reused":true'
        elif native == "fallback":
            line += ',"fallback":true'
        if retried:
            line += ',"retried":true'
        if exit_code is not None:
            line += f',"exit_code":{_dumps(exit_code)}'
        if failure is not None:
            skipped = isinstance(error, DependencyFailureError) and native != "fallback"
            line += self._error(uid, failure, skipped=skipped)
        if sandbox is not None:
            line += f',"sandbox":{encode_basestring_ascii(sandbox)}'
        outputs: list[_LongOutput] | None = None
        if stdout:
            if len(stdout) > PRINTED:
                outputs = [self._long(uid, "stdout", stdout)]
            else:
                line += f',"stdout":{encode_basestring_ascii(self._masked(uid, stdout))}'
        if stderr:
            if len(stderr) > PRINTED:
                outputs = [*(outputs or ()), self._long(uid, "stderr", stderr)]
            else:
                line += f',"stderr":{encode_basestring_ascii(self._masked(uid, stderr))}'
        if usage:
            line += f',"usage":{_dumps(usage)}'
        if resources:
            line += f',"resources":{_dumps(resources)}'
        if not retried and self._secrets:
            self._secrets.pop(uid, None)
        if outputs is not None:
            return partial(_with_outputs, line, outputs, self._outputs, files)
        if files is not None:
            return partial(_with_files, line, files)
        return line + "}\n"

    def _place(self, state: TasksMainStates, backend: str | None, worker: object) -> str:
        """Return the state, backend and worker of an attempt as JSON. Cached: many are the same."""
        found = {"backend": backend, "worker": None if worker is None else str(worker)}
        text = f',"state":"{state}"{_items(found)}'
        if len(self._places) > PLACES:
            self._places.clear()
        self._places[state, backend, worker] = text
        return text

    def _error(self, uid: str, failure: Failure, *, skipped: bool) -> str:
        found: dict[str, Any] = {
            "type": failure.kind,
            "message": failure.message[:MESSAGE],
            "place": failure.place,
            "hints": failure.hints,
            "stderr": failure.stderr if failure.of_command else "",
            "caused_by": failure.causes[:CAUSES],
        }
        if frames := as_lines(failure.frames):
            found["traceback"] = self._masked(uid, "\n".join(frames)).split("\n")
        return _items({"skipped": skipped, "error": _without_empty(found)})

    def _masked(self, uid: str, text: str) -> str:
        return text if len(text) < MIN_SECRET_LENGTH else mask(text, self._secrets_of(uid))

    def _long(self, uid: str, name: str, text: str) -> _LongOutput:
        if isinstance(text, TruncatedText):
            whole = self._outputs.reserve(text.stored)
        elif not (whole := self._outputs.reserve(len(text))):
            # Do not keep the text until the line is written.
            return _LongOutput(name, self._last(uid, text), (), whole)
        return _LongOutput(name, text, self._secrets_of(uid), whole)

    def _last(self, uid: str, text: str) -> str:
        """Return the end of a long output, without secrets or parts of them."""
        secrets = self._secrets_of(uid)
        longest = len(secrets[0][0]) if secrets else 0
        if len(text) <= PRINTED + longest:
            return mask(text, secrets)[-PRINTED:]
        return mask(text[-PRINTED - longest :], secrets)[longest:]

    def _secrets_of(self, uid: str) -> Secrets:
        """Return the secrets of a task and of the process, the longest first."""
        if self._process is None:
            self._process = secrets_of()
        return merged(self._secrets.get(uid, ()), self._process)


SETTINGS, PLACES = 1000, 4096
"""Maximum numbers of task functions and of places whose encoded data are kept."""


def _items(given: Mapping[str, Any]) -> str:
    """Return the items of a JSON object, each after a comma, without those that are empty."""
    kept = _without_empty(given)
    return f",{_dumps(kept)[1:-1]}" if kept else ""


def _without_empty(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in given.items()
        if value is not None and value is not False and value not in ((), [], {}, "")
    }


def _line(event: str, given: Mapping[str, Any]) -> str:
    return f'{{"event":"{event}"{_items(given)}}}\n'


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _with_outputs(
    line: str, outputs: Sequence[_LongOutput], store: OutputStore, files: AttemptFiles | None
) -> str:
    """Return the line of an attempt, completed with its long outputs and its files."""
    for output in outputs:
        text = output.text.whole() if isinstance(output.text, TruncatedText) else output.text
        text = mask(text, output.secrets)
        line += f',"{output.name}":{encode_basestring_ascii(text[-PRINTED:])}'
        if output.whole and (place := store.add(text)) is not None:
            line += f',"{output.name}_at":[{place[0]},{place[1]}]'
    return f"{line}}}\n" if files is None else _with_files(line, files)


def _with_files(line: str, files: AttemptFiles) -> str:
    """Return the line of an attempt, completed with its files."""
    found = {
        "inputs": [_file(name, path) for name, path in files.inputs.items()],
        "outputs": [_file(name, path) for name, path in files.outputs.items()],
        "stdout_path": files.stdout,
        "stderr_path": files.stderr,
    }
    return f"{line}{_items(found)}}}\n"


def _file(name: str, path: str | None) -> dict[str, Any]:
    """Return the name, path and size of a file; of a directory, the name and the path."""
    found: dict[str, Any] = {"name": name}
    if path is not None:
        found["path"] = path
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # it was removed meanwhile
            return found
        if not os.path.isdir(path):
            found["size"] = status.st_size
    return found


# Runs and engines.


def run_line(started: float, profile: str | None = None) -> str:
    """Return the first line of a record, which describes this process and its run."""
    secrets = secrets_of()
    program, *arguments = mask_arguments(map(str, sys.argv or [""]), secrets)
    command = list(mask_arguments(getattr(sys, "orig_argv", ()), secrets))
    packages = {entry.distribution: entry.version for entry in installed().entries}
    return _line(
        "run",
        {
            "format": FORMAT,
            "program": program,
            "arguments": arguments,
            "command": command,
            "cwd": os.getcwd(),
            "host": socket.gethostname(),
            "user": _user(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {CORE: __version__, **packages},
            "started": _rounded(started),
            "profile": profile,
        },
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user has no name on this machine
        return str(os.geteuid())


def engine_line(engine: ObservedEngine, now: float) -> str:
    """Return the line that describes an engine that has started now."""
    backends = []
    for name, backend in engine.backends.items():
        kind = type(backend)
        found: dict[str, Any] = {"name": name, "class": f"{kind.__module__}.{kind.__qualname__}"}
        cores = getattr(backend, "cores_in_use", lambda: None)()
        if cores is not None:
            found["cores"] = cores[1]
        backends.append(found)
    options = {
        name: shown
        for name, value in engine.options.items()
        if name not in ("backend", "backends") and (shown := _option(value)) is not None
    }
    return _line(
        "engine",
        {
            "uid": engine.uid,
            "time": _rounded(now),
            "backends": backends,
            "options": options,
            "work_dir": str(engine.work_dir),
        },
    )


def _option(value: Any) -> Any:
    """Return the value of an engine's option as JSON represents it; `None` if it has no meaning."""
    if value is None or isinstance(value, bool | int | float):
        return value
    value = getattr(value, "path", value)  # of a journal
    if isinstance(value, str | Path):
        return mask(str(value), secrets_of())[:SHOWN]
    if isinstance(value, list | tuple):
        return [shown for each in value if (shown := _option(each)) is not None] or None
    if type(value).__name__.startswith("_"):  # an internal observer
        return None
    return f"<{type(value).__name__}>" if not hasattr(value, "attempts") else str(value)[:SHOWN]


def node_line(sample: NodeSample) -> str:
    """Return the line for the load of a node."""
    found: dict[str, Any] = sample._asdict()
    found["time"] = _rounded(sample.time)
    for name in ("seconds", "cpu", "memory"):
        found[name] = round(found[name], 3)
    for name in ("read", "written", "received", "sent"):
        found[name] = round(found[name])
    return _line("node", found)


def engine_end_line(engine: str, summary: Summary, now: float) -> str:
    """Return the line for the end of an engine."""
    secrets = secrets_of()
    return _line(
        "engine_end",
        {
            "uid": engine,
            "time": _rounded(now),
            "outcome": summary.outcome,
            "seconds": _rounded(summary.seconds),
            "stats": counts(summary.stats),
            "unawaited": summary.unawaited or None,
            "cut_short": summary.cut_short,
            "held_back": summary.held_back,
            "still_running": summary.still_running,
            "problems": mask_value(summary.problems, secrets),
            "accounts": mask_value(summary.backends, secrets),
        },
    )


def counts(stats: Stats) -> dict[str, int]:
    """Return the counters that are not 0."""
    return {name: count for name, count in asdict(stats).items() if count}


def run_end_line(
    outcome: str,
    exit_code: int | None,
    stats: Mapping[str, int],
    backends: Iterable[str],
    now: float,
) -> str:
    """Return the line for the end of a run; the counters are those of all its engines."""
    return _line(
        "run_end",
        {
            "time": _rounded(now),
            "outcome": outcome,
            "exit_code": exit_code,
            "stats": stats,
            "backends": list(backends),
        },
    )
