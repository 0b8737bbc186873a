"""Worker's side of calls in other processes: the half of the call protocol that workers run.

The other half, `rhapsody.sdk.calls`, packs a call and reads its outcome. A backend for which a step
must work differently overrides that step of `Runner`.

Functions of the main program's own modules are pickled by name, and a worker that lives longer than
the program may have an older version of such a module, or none. So the program sends the source of
its own modules (`rhapsody.sdk.modules`), each call names the versions with which it was made, and
`SentModules` imports these instead of the worker's versions. Sending functions by value would not
be enough: modules contain locks and caches, a class must stay the same class from call to call, and
a function may import a module when it runs.

Classes of the script are sent by value. A worker uses a separate copy for each call, so that a
call sees the class as it was when the program made the call, and does not see changes made by
others. An object that is returned is an instance of the program's class, which is not changed
(`ScriptClasses`).

This file needs only the standard library and cloudpickle, so that it can be sent to machines
without Rhapsody and run there. Messages consist of built-in types, except for the user's own
values, and begin with `PROTOCOL_VERSION`.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import importlib
import io
import itertools
import linecache
import os
import pickle
import queue
import re
import resource
import shlex
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import ChainMap, Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source, decode_source, spec_from_file_location
from pathlib import Path
from types import (
    BuiltinMethodType,
    CodeType,
    CoroutineType,
    FrameType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

__all__ = [
    "PROTOCOL_VERSION", "REFERENCE", "RUNNER_FILE", "WRITTEN", "CallResult", "CallSpec", "Captured",
    "Environment", "Meter", "Output",
    "ProtocolVersionError", "Runner", "SentModules", "StaleModuleError", "copied_classes", "dumps",
    "known",
    "pack_error", "pickler", "require_version", "seconds_of_building", "sent_modules", "trimmed",
    "watch_files",
    "watching", "worker_values",
]  # fmt: skip

PROTOCOL_VERSION = 7
"""Version of the messages, increased by each change that makes them unreadable for older code."""

RUNNER_FILE = __file__
"""Path of this file, which can be sent to a worker without Rhapsody and run there."""

MAX_TEXT = 1 << 20
"""Maximum number of bytes of output, and of characters of a traceback, in a result."""

PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values run no other code when they are unpickled."""


class ProtocolVersionError(RuntimeError):
    """The program and a worker use different versions of the protocol."""


class CallSpec(NamedTuple):
    """Data about a task that a worker needs in addition to the call. Sent as a plain tuple.

    Attributes:
        version: The `PROTOCOL_VERSION` of the main program.
        uid: The attempt's uid.
        name: The task's name.
        attempt: The attempt's number, counted from 1.
        sandbox: The task's directory, or `None` if it has none.
        timeout: Number of seconds that the attempt may take, or `None` for no limit.
        cores: Number of threads that numeric libraries may start; 0 for no limit.
        environment: Environment variables to set while the call runs.
        capture: The setting `capture` of the task's description.
        directory: The directory for files of the call, such as large output; `None` if there is
            none.
        more: Values of built-in types for the backend's own `Runner`.
        modules: The program's own modules, packed, or only their first `REFERENCE` bytes if the
            worker has received the modules before; `None` if the program has none.
        trace_context: The key `trace_context` of the task's description; empty if it has none.
        watch: The key `watch` of the task's description; empty if it has none.
    """

    version: int
    uid: str
    name: str
    attempt: int
    sandbox: str | None
    timeout: float | None
    cores: int
    environment: Mapping[str, str]
    capture: bool | Literal["files", "quiet"]
    directory: str | None
    more: Mapping[str, Any]
    modules: bytes | None = None
    trace_context: Mapping[str, str] = {}
    watch: tuple[str, ...] = ()


class CallResult(NamedTuple):
    """Outcome of a call. Sent as a plain tuple.

    Attributes:
        version: The `PROTOCOL_VERSION` of the worker.
        done: True if the call returned.
        payload: The pickled return value or exception.
        plain: True if unpickling the value runs no other code.
        stdout: The call's standard output, or the path of the file that contains it; `None` if it
            was not captured.
        stderr: The same for standard error.
        sandbox: The directory of the call's output files; `None` if no output was written to files.
        host: The name of the machine on which the call ran.
        pid: The id of the process in which the call ran.
        usage: The resources that the call has used, as in `rhapsody.task.Usage`; `None` if they
            were not measured.
        interval: The times, in seconds since the epoch, at which the function was called and ended.
        opened: The files that the call opened in the directories `CallSpec.watch`; see
            `watch_files`.
    """

    version: int
    done: bool
    payload: Any
    plain: bool
    stdout: str | None
    stderr: str | None
    sandbox: str | None
    host: str
    pid: int
    usage: Mapping[str, Any] | None = None
    interval: tuple[float, float] | None = None
    opened: Mapping[str, str] = {}


def require_version(version: int, sender: str, receiver: str) -> None:
    """Check that the sender of a message uses the receiver's version of the protocol.

    Args:
        version: The sender's version.
        sender: The name of the sender in the error message.
        receiver: The name of the receiver, which is this process, in the error message.

    Raises:
        ProtocolVersionError: The versions differ.
    """
    if version != PROTOCOL_VERSION:
        older = receiver if version > PROTOCOL_VERSION else sender
        raise ProtocolVersionError(
            f"{sender} uses version {version} of the call protocol, but {receiver} uses version "
            f"{PROTOCOL_VERSION}: upgrade rhapsody-core of {older}"
        )


class Output:
    """Base class of context managers that capture a call's output. It captures nothing itself.

    Attributes:
        stdout: The standard output, or the path of the file that contains it; `None` if it was
            not captured.
        stderr: The same for standard error.
        directory: The directory of the files if output was written to files, otherwise `None`.
    """

    stdout: str | None = None
    stderr: str | None = None
    directory: str | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        """Set the attributes in subclasses; do nothing in this class."""


_SCRIPT_ADVICE = (
    "workers do not import the script, and the call refers by name to a function or class of the "
    "script, such as a function decorated with functools.lru_cache; put it into a module, or "
    "decorate or define it inside the function that uses it"
)


def _is_missing_script(error: BaseException) -> bool:
    """Return True if unpickling failed because a name of the script was looked up."""
    if isinstance(error, ModuleNotFoundError):
        return error.name == "__rhapsody_script__"  # see `rhapsody.tracebacks.SCRIPT_MODULE`
    return isinstance(error, AttributeError) and "<module '__main__'" in _text(error)


class Runner:
    """Runner of calls on a worker. Override the steps that differ in your system.

    Attributes:
        worker: The name of a worker in messages.
        place: A phrase for where a call runs, for messages, such as `"on its worker"`.
        cure: The remedy for a result that cannot be pickled, for messages.
        own_files: Path prefixes of files whose frames are removed from the start of tracebacks.
        note: A note to add to each exception, such as the rank of this process; empty for none.
        forwards: True if results may be unpickled by other workers, which may lack the classes.
        session: The name under which `WorkerValues.close` closes the values that calls have used.
    """

    worker: str = "its worker"
    place: str = "on its worker"
    cure: str = "return data that can be pickled"
    own_files: tuple[str, ...] = (__file__,)
    note: str = ""
    forwards: bool = False
    session: str = ""

    def run(self, packed: bytes) -> bytes:
        """Make a call that `rhapsody.sdk.calls.pack` packed.

        Errors are returned in the outcome, not raised.

        Returns:
            The packed outcome, for `rhapsody.sdk.calls.unpack`.
        """
        try:
            *fields, call = loads(packed)
            require_version(fields[0], "the program", "this worker")
            outcome = self.make(CallSpec(*fields), call)
        except BaseException as error:  # such as a `ProtocolVersionError`
            outcome = self.failed(error)
        return pickle.dumps(tuple(outcome), 5)

    def make(self, order: CallSpec, call: Any) -> CallResult:
        """Make a packed call, capture its output, and return its outcome, even for an error."""
        output, meter = _none, _meter
        try:
            limit_threads(order.cores)
            output = self.output(order)
            with (
                self.modules(order),
                self.environment(order),
                output,
                self.context(order),
                watching(order.watch) as opened,
            ):
                begin, start = meter.begin(order.name), time.time()
                done, payload, plain = self.answer(order.name, call)
                interval = start, time.time()
                usage = meter.end(order.name, begin)
                if (built := seconds_of_building()) is not None:
                    interval = start + built, interval[1]
                    usage = {**(usage or {}), "build_seconds": built}
        except BaseException as error:  # for example, output cannot be written
            return self.failed(error, output)
        return _outcome(done, payload, plain, output, usage, interval, opened)

    def answer(self, name: str, call: Any) -> tuple[bool, Any, bool]:
        """Load and make a call, and return `done`, `payload` and `plain` of its `CallResult`."""
        classes = script_classes()
        now, received = classes.now, Received(classes, self)
        now.received, now.built = received, None
        try:
            try:
                function, args, kwargs = self.load(call)
            except BaseException as error:  # loading runs the objects' own code
                if failed_handle(error) is None:
                    _add_note(error, f"while task {name!r} was unpacked {self.place}")
                if _is_missing_script(error):
                    _add_note(error, _SCRIPT_ADVICE)
                return False, self.pack_error(error), False
            now.received = None  # the function may unpickle results of calls that it makes itself
            try:
                value = function(*args, **kwargs)
                if type(value) is CoroutineType:
                    value = self.wait(value)
            except BaseException as error:  # whatever a task raises is its result
                now.received = received
                return False, self.pack_error(error), False
            finally:
                del function, args, kwargs
            now.received = received
            try:
                return True, self.pack(value), type(value) in PLAIN
            except BaseException as error:  # pickling runs the objects' own code
                return False, self.pack_error(self.refusal(name, value, error)), False
        finally:
            now.received = None
            if received.found or received.uses is not None:
                now.built = None if received.uses is None else received.uses.seconds
                received.release()

    def failed(self, error: BaseException, output: Output | None = None) -> CallResult:
        """Return the outcome of a call that failed."""
        return _outcome(False, self.pack_error(error), False, output or _none)

    # Steps to override:

    def load(self, call: Any) -> tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]:
        """Unpack a call, and return its function and arguments."""
        function, args, kwargs = loads(call)
        return function, args, kwargs

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run the coroutine of an asynchronous function to completion, on a new loop."""
        if asyncio._get_running_loop() is None:
            return asyncio.run(coroutine)
        with ThreadPoolExecutor(1) as pool:  # another loop runs on this thread
            return pool.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()

    def gpus(self) -> tuple[bytes | None, ...]:
        """Return the values of the environment variables `GPU_VARIABLES`."""
        return tuple(map(os.environb.get, GPU_VARIABLES))  # `os.environ` encodes and decodes

    def building(self, begins: bool) -> None:
        """Report that a call begins, or ends, to build a worker value. Does nothing by default.

        Also called when the call waits for another one that builds the value. Backends with
        `Capabilities.worker_values` forward the report to `rhapsody.sdk.TaskValues.building`.
        """

    def pack(self, value: Any) -> Any:
        """Pickle the value or exception of a call."""
        return dumps(value)

    def unpack(self, payload: Any) -> Any:
        """Unpickle the result of `pack`."""
        return loads(payload)

    def pack_error(self, error: BaseException) -> Any:
        """Pickle the exception of a call, with a traceback that starts in the user's code."""
        if self.note:
            _add_note(error, self.note)
        return pack_error(trimmed(error, self.own_files), self.pack, self.unpack)

    def refusal(self, name: str, value: Any, error: BaseException) -> Exception:
        """Return an error that states why a result cannot be pickled."""
        return TypeError(
            f"task {name!r}: its result ({type(value).__qualname__}) cannot be pickled by "
            f"{self.worker}: {type(error).__name__}: {_text(error)}; {self.cure}"
        )

    def output(self, order: CallSpec) -> Output:
        """Return a context manager that captures a call's output.

        By default, all output of the process is captured.
        """
        return _none if order.capture is False else Captured(order)

    def modules(self, order: CallSpec) -> AbstractContextManager[Any]:
        """Return a context manager that makes the program's versions of its modules importable."""
        return _nothing if order.modules is None else sent_modules().using(order.modules)

    def environment(self, order: CallSpec) -> AbstractContextManager[Any]:
        """Return a context manager that sets the call's environment variables."""
        return Environment(order.environment)

    def context(self, order: CallSpec) -> AbstractContextManager[Any]:
        """Return a context manager that makes `rhapsody.current_task()` work in the call.

        On a worker without Rhapsody, the context manager does nothing.
        """
        try:
            from rhapsody.context import TaskContext, task_context
        except ImportError:
            return nullcontext()
        return task_context(TaskContext(**known(order)))


def known(order: CallSpec) -> dict[str, Any]:
    """Return the keyword arguments for creating a call's `TaskContext`."""
    return {
        "uid": order.uid,
        "name": order.name,
        "attempt": order.attempt,
        "sandbox": order.sandbox,
        "deadline": None if order.timeout is None else time.time() + order.timeout,
        "trace_context": order.trace_context,
    }


def _outcome(
    done: bool,
    payload: Any,
    plain: bool,
    output: Output,
    usage: Mapping[str, Any] | None = None,
    interval: tuple[float, float] | None = None,
    opened: Mapping[str, str] = {},
) -> CallResult:
    printed = output.stdout, output.stderr, output.directory
    place = _host, os.getpid()
    return CallResult(
        PROTOCOL_VERSION, done, payload, plain, *printed, *place, usage, interval, opened
    )


READ, LISTED, UPDATED, WRITTEN = "read", "listed", "updated", "written"
"""Uses of a path; see `watch_files`."""

STARTED = ""
"""Key in the result of `watch_files` for a call that started other processes. The value contains
the directories in which they search modules, separated as in `PYTHONPATH`."""

WITHOUT_FILE = "module"
"""Key in the result of `watch_files` for a call that unpickled an object whose class is in a module
without a file, such as a notebook. The value is the name of the module."""

STARTED_BEFORE = "started"
"""Key in the result of `watch_files` for a call that uses a worker value whose function started a
process when it was built. The value is the same as for `STARTED`."""

CACHED = "cached "
"""Beginning of keys, in the result of `watch_files`, for files that earlier calls or the program
have read in a function without parameters and with `functools.lru_cache`. The qualified name of the
function follows. The value contains the time in nanoseconds since the epoch and the path of each
file, as in `"1764549000 /data/a.json"`, with null characters between the files."""

RELATIVE = "/./"
"""Text in the result of `watch_files` that separates the current directory from a relative path."""

MAX_OPENED = 10_000
"""Maximum number of paths that are noted for one call."""

_COMPILED = (".pyc", ".so", ".pyd")
"""Endings of the compiled files that `import` reads. The digest of the code covers them."""

_CODE = (".py", *_COMPILED)
"""Endings of all files that `import` reads. A function may also open a `.py` file as data."""

_LISTINGS = frozenset(("os.listdir", "os.scandir"))

_PATTERNS = frozenset(("pathlib.Path.glob", "pathlib.Path.rglob"))
"""Audit events of patterns. pathlib does not list a directory that does not exist."""

_WILDCARDS = frozenset("*?[")

_CHANGES = {
    "os.rename": slice(0, 2),
    "os.remove": slice(0, 1),
    "os.mkdir": slice(0, 1),
    "os.link": slice(1, 2),
    "os.symlink": slice(1, 2),
    "shutil.rmtree": slice(0, 1),
}
"""Audit events of changes to files, each with the arguments that are the changed paths. The last
argument is the descriptor of a directory, or -1."""

_FORKS = frozenset(("os.fork", "os.forkpty"))

_STARTS = frozenset(
    ("subprocess.Popen", "os.system", "os.posix_spawn", "os.spawn", "os.exec", *_FORKS)
)

_STARTS_THREAD = frozenset(("_thread.start_new_thread", "_thread.start_joinable_thread"))

_NOTED = frozenset(
    (
        "open", "sqlite3.connect", "ctypes.dlopen", "pickle.find_class",
        *_LISTINGS, *_PATTERNS, *_CHANGES, *_STARTS, *_STARTS_THREAD,
    )
)  # fmt: skip
"""Audit events that are noted."""

_NAMES = (str, bytes, os.PathLike)
"""Types of file names."""

_INSTALLED = frozenset(("site-packages", "dist-packages"))
"""Directories of installed packages. The keys of tasks contain the versions of packages."""

_AROUND_WORDS = re.compile(r"[\s'\"`|&;<>(){}=]+")
"""Characters between the words of a shell command."""

_AROUND_PATHS = re.compile(r"[\s'\"`|&;<>(){}=:,@#\\]+")
"""Characters around paths in words such as `--in=a.txt,b.txt` and `@arguments.txt`."""

_BETWEEN_PATHS = re.compile(r"[=:,;@#]+")
"""Characters between paths that may contain spaces, as in `--in=my file.txt,other.txt`."""

_AFTER_FLAG = re.compile("^-[^/]+(/.*)|^-[A-Za-z](.+)", re.DOTALL)
"""Path directly after an option, as in `-fprogram.awk`."""

_IN_NAMES = re.compile(r"[=:,@#]")
"""Characters in names such as `T=300.dat`, or before a path."""

_TAIL = re.compile(r"(?=[=:,@](/.*))", re.DOTALL)
"""Absolute path at the end of a word."""

_BETWEEN_WORDS = re.compile(r"[\s'\"`|&;<>(){}]+")
"""Characters between words, which may contain `=`."""

_BEFORE_OUTPUT = re.compile(r"(?<!<)>[|&]?\s*$")
"""Redirection at the end of a text, to a file that a shell writes."""

_BRACED = re.compile(r"\$\{(\w+)\}(?!\w)")
_VARIABLE = re.compile(r"\$(\w+)")
"""Variables in a shell command."""

_RUN_MODULE = re.compile(r"(?:^|\s)-[A-Za-z]*m\s*([A-Za-z_][\w.]*)")
"""Option of `python` that runs a module."""

_OBJECT = re.compile(r"(?<![^\s'\"=])([A-Za-z_][\w.]*):[A-Za-z_][\w.]*(?:\(\))?(?![^\s'\"])")
"""Object in a module, as servers such as uvicorn and gunicorn receive it."""

_MAX_PATH = 4096
"""Length of the longest path that the system accepts."""


def with_variables(text: str, environment: Mapping[str, str]) -> str:
    """Return a shell command with the values of the variables in `environment`."""
    text = _BRACED.sub(r"$\1", text)
    return _VARIABLE.sub(lambda found: environment.get(found[1], found[0]), text)


def split_at_paths(text: str) -> list[str]:
    """Return the parts of a word or text of a command that may be paths or options."""
    return _AROUND_PATHS.split(text)


def paths_in(text: str, written: str) -> list[str]:
    """Return the parts of a word or text of a command that may be paths.

    Args:
        text: The word or text, which may be without redirections.
        written: The same as the user has written it.
    """
    words = [text]
    if "\\" in text or "'" in text or '"' in text:
        words += _quoted(written)
    pieces = words + [piece for word in words for piece in _BETWEEN_PATHS.split(word)]
    pieces += _AROUND_PATHS.split(text)
    if _IN_NAMES.search(text):
        whole = _BETWEEN_WORDS.split(text)
        pieces += whole
        for each in (text, *whole):
            if len(each) <= _MAX_PATH:
                pieces += _TAIL.findall(each)
    return pieces + [last for each in pieces for pair in _AFTER_FLAG.findall(each) for last in pair]


def _quoted(text: str) -> list[str]:
    """Return the words of a shell command without quotation marks, except files that it writes to.

    An assignment is followed by its value. An apostrophe, as in a comment or in a script of another
    language, may be paired with the wrong quotation mark. Therefore, each line is also read
    separately if a quotation is not closed, and the text between two adjacent marks of the same
    kind is always a word as well.
    """
    reader = shlex.shlex(text, posix=True, punctuation_chars="();<>|&`")
    reader.whitespace_split, reader.commenters = True, ""
    words: list[str] = []
    former = ""
    try:
        for word in reader:
            if not former.endswith((">", ">|")) or former.endswith("<>"):
                words += [word, *filter(None, [word.partition("=")[2]])]
                if word != text and ("'" in word or '"' in word):  # such as the script of `sh -c`
                    words += _quoted(word)
            former = word
    except ValueError:  # a quotation mark is not closed
        words += [word for line in text.splitlines() if line != text for word in _quoted(line)]
    for mark in "'\"":
        pieces = text.split(mark)
        pairs = itertools.pairwise(pieces)
        words += [piece for before, piece in pairs if not _BEFORE_OUTPUT.search(before)]
    return words


def files_of_modules(words: Iterable[str]) -> list[str]:
    """Return the relative paths of the modules in a command.

    These are those of `python -m`, and those before a colon, as in `uvicorn app:app`.
    """
    text = " ".join(words)
    names = _RUN_MODULE.findall(text) + _OBJECT.findall(text)
    ends = ".py", "/__main__.py", "/__init__.py"
    return [f"{name.replace('.', os.sep)}{end}" for name in names for end in ends]


class _Watch:
    """Paths below some directories that a call has used.

    Args:
        places: The directories, each with a trailing slash.

    Attributes:
        paths: The result of `watch_files`.
    """

    __slots__ = ("_process", "paths", "places")

    def __init__(self, places: tuple[str, ...]) -> None:
        self.places = places
        self.paths = WatchedPaths()
        self._process = os.getpid()

    def note(self, path: Any, use: str, ignored: tuple[str, ...] = _CODE) -> None:
        """Note the use of a path, unless it is ignored or outside the watched directories.

        Args:
            path: The path.
            use: The use; see `watch_files`.
            ignored: Endings of paths that are not noted.
        """
        path = _absolute(path)
        if path[-1:] == "/" and use != LISTED:  # only listed paths end so; see `_audit`
            path = path[:-1]
        if (
            path.startswith(self.places)
            and not path.endswith(ignored)
            and path != self.paths.file
            and len(self.paths) < MAX_OPENED
        ):
            self._add(path, use)

    def _add(self, path: str, use: str) -> None:
        if os.getpid() != self._process:
            self.paths.send(path, use)
        elif use == WRITTEN or (use == UPDATED and self.paths.get(path) != WRITTEN):
            self.paths[path] = use
        else:
            self.paths.setdefault(path, use)

    def note_library_files(self) -> None:
        """Note the shared libraries that `ctypes.cdll` keeps: loading them again goes unnoticed."""
        ctypes = sys.modules.get("ctypes")
        if ctypes is not None:
            for name in [each for each in vars(ctypes.cdll) if os.sep in each]:
                self.note(name, READ, ())

    def note_module(self, name: str) -> None:
        """Note the file of a module of which `pickle` is about to import a class or function."""
        if name not in sys.modules:
            with suppress(Exception):  # `pickle` raises it again
                importlib.import_module(name)
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if not isinstance(file, str):
            if getattr(module, "__spec__", None) is None:  # it is not part of Python
                self._add(WITHOUT_FILE, name)
        elif not _INSTALLED.intersection(file.split(os.sep)):
            self.note(file, READ, _COMPILED)

    def note_command(self, words: Any, cwd: Any = None, environment: Any = None) -> None:
        """Note the existing files that the command of another process names.

        Args:
            words: The words of the command.
            cwd: The current directory of the process, if it differs from that of this process.
            environment: The variables of the process, if they differ from those of this process.
        """
        if isinstance(words, _NAMES):
            words = [words]
        place = os.path.join(os.getcwd(), os.fsdecode(cwd or ""))
        texts = [os.fsdecode(word) if isinstance(word, _NAMES) else "" for word in words]
        texts += [with_variables(text, environment or os.environ) for text in texts if "$" in text]
        pieces = {
            piece
            for text in texts
            for piece in (text, *_AROUND_WORDS.split(text), *paths_in(text, text))
        }
        search = str((environment or os.environ).get("PYTHONPATH", "")).split(os.pathsep)
        if any("PYTHONPATH=" in text for text in texts):
            search += [each for piece in pieces for each in piece.split(os.pathsep)]
        directories = {os.path.join(place, each) for each in search if 0 < len(each) <= _MAX_PATH}
        directories.update(filter(None, self.paths.get(STARTED, "").split(os.pathsep)))
        self.paths[STARTED] = os.pathsep.join(sorted(filter(os.path.isdir, directories)))
        for name in files_of_modules(texts):
            pieces |= {os.path.join(each, name) for each in ("", *search)}
        if any("python" in text for text in texts):
            pieces |= {os.path.join(piece, "__main__.py") for piece in pieces if piece}
        programs = str((environment or os.environ).get("PATH", "")).split(os.pathsep)
        for directory in programs:
            if os.path.join(directory, "").startswith(self.places):
                pieces |= {os.path.join(directory, name) for name in pieces if os.sep not in name}
        for piece in pieces:
            path = os.path.join(place, os.path.expanduser(piece) if piece[:1] == "~" else piece)
            if 0 < len(piece) <= _MAX_PATH and os.path.isfile(path):
                self.note(_without_empty_parts(path), READ, ())


def _without_empty_parts(path: str) -> str:
    """Return a path without repeated slashes, as in that of a `file:` URL."""
    return re.sub("//+", "/", path)


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


class WatchedPaths(dict[str, str]):
    """The result of `watch_files`. Forked processes pass on their paths in a file in memory.

    Attributes:
        ended: True after the end of the call. Threads and processes that continue are ignored.
        file: The path of this file; empty if the process has not forked.
    """

    __slots__ = ("_descriptor", "_identity", "ended", "file")

    def __init__(self) -> None:
        super().__init__()
        self.ended: bool = False
        self.file: str = ""
        self._descriptor = -1
        self._identity: object = None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def fork(self) -> None:
        """Create the file, because the process is about to fork."""
        if not self.file and hasattr(os, "memfd_create"):
            with suppress(OSError):  # no descriptor is free
                self._descriptor = os.memfd_create("rhapsody-watch")
                self._identity = _identity(os.stat(self._descriptor))
                # The child may close all descriptors, so it opens the file by its path.
                self.file = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def send(self, path: str, use: str) -> None:
        """Add a path in a forked process."""
        with suppress(OSError):  # the call has ended
            if _identity(os.stat(self.file)) != self._identity:
                return  # the call has ended, and its process uses the descriptor for another file
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            try:
                if _identity(os.stat(descriptor)) == self._identity:
                    os.write(descriptor, os.fsencode(f"{use} {path}\0"))
            finally:
                os.close(descriptor)

    def end(self) -> None:
        """End the watch. Called when the call has ended."""
        self.ended = True
        _watches.running.pop(id(self), None)
        for name, files in tuple(_watches.cached.items()):
            times = (f"{read} {path}" for path, read in tuple(files.items()))
            self[f"{CACHED}{name}"] = "\0".join(times)
        if not self.file:
            return
        self.file = ""
        with open(self._descriptor, "rb") as file:
            file.seek(0)
            lines = file.read().split(b"\0")
        for line in filter(None, lines):
            use, _, path = os.fsdecode(line).partition(" ")
            if use == WRITTEN:
                self[path] = use
            else:
                self.setdefault(path, use)


class _Watches:
    """The `_Watch` of each context, or `None`. A copy of this object in another process is new.

    The functions of this module may be pickled by value, which context variables cannot be.

    Attributes:
        hooked: True if the audit hook has been added to this process.
        places: The directories of files to note in `cached` while no call is watched.
        running: The watches of the calls that have not ended, by the id of their `paths`.
        cached: The files that functions with a cache have read; see `CACHED`. By the name of the
            function and the path: the time in nanoseconds since the epoch.
    """

    __slots__ = ("cached", "get", "hooked", "places", "running", "set")

    def __init__(self) -> None:
        variable = contextvars.ContextVar[_Watch | None]("rhapsody_watch", default=None)
        self.get: Callable[[], _Watch | None] = variable.get
        self.set: Callable[[_Watch | None], object] = variable.set
        self.hooked: bool = False
        self.places: tuple[str, ...] = ()
        self.running: dict[int, _Watch] = {}
        self.cached: dict[str, dict[str, int]] = {}

    def note_cached(self, path: Any, places: tuple[str, ...], frame: FrameType | None) -> None:
        """Note a file that a function with a cache reads; see `CACHED`."""
        path = _absolute(path)
        if not path.startswith(places) or path.endswith(_COMPILED):
            return
        while frame is not None and not str(frame.f_globals.get("__name__")).startswith(
            "rhapsody."
        ):
            code = frame.f_code
            if not (code.co_argcount or code.co_kwonlyargcount) and _has_cache(frame):
                self.cached.setdefault(code.co_qualname, {})[path] = time.time_ns()
            frame = frame.f_back

    def __reduce__(self) -> tuple[type[_Watches], tuple[()]]:
        return _Watches, ()


_watches = _Watches()

_LRU_CACHE = type(lru_cache(len))


def _has_cache(frame: FrameType) -> bool:
    """Return True if the function of a frame is a global one with `functools.lru_cache`."""
    found = frame.f_globals.get(frame.f_code.co_name)
    while found is not None and type(found) is not _LRU_CACHE:
        found = getattr(found, "__wrapped__", None)
    return found is not None


def _absolute(path: Any) -> str:
    """Return an absolute path; see `RELATIVE`."""
    text = path if type(path) is str else os.fsdecode(path)
    return text if text[:1] == "/" else f"{os.getcwd()}{RELATIVE}{text}"


def _use(flags: int) -> str:
    """Return the use of a file that is opened with some flags of `os.open`."""
    if flags & os.O_ACCMODE == os.O_RDWR and not flags & (os.O_CREAT | os.O_TRUNC):
        return UPDATED
    return WRITTEN if flags & os.O_ACCMODE else READ


def _reads_code(frame: FrameType) -> bool:
    """Return True if the code of a frame is that of `import`, or of tracebacks and `inspect`."""
    if frame.f_code.co_filename.startswith("<frozen importlib"):
        return True
    if frame.f_globals.get("__name__") == "tokenize" and frame.f_back is not None:
        frame = frame.f_back  # `linecache` calls `tokenize.open`
    return frame.f_globals.get("__name__") == "linecache"


def _in_import(frame: FrameType | None) -> bool:
    """Return True if the task imports a module: what the module writes is not the task's output."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        if str(frame.f_globals.get("__name__")).startswith("rhapsody."):
            return False
        frame = frame.f_back
    return False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    """Note the files that a watched call opens: a hook for `sys.addaudithook`."""
    if event not in _NOTED:
        return
    watch, frame = _watches.get(), sys._getframe(1)
    if watch is None:
        thread = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]
        watch = getattr(thread, "_rhapsody_watch", None)
        if watch is None:
            if event == "open" and _watches.places and _is_read(*args):
                _watches.note_cached(args[0], _watches.places, frame)
            if _watches.running and not _is_known(thread):
                for each in tuple(_watches.running.values()):
                    # If several calls are running, it is unknown which of them writes a file.
                    if len(_watches.running) == 1 or _only_reads(event, args):
                        _note(each, event, args, frame)
            return
    if not watch.paths.ended:
        _note(watch, event, args, frame)


def _is_known(thread: threading.Thread | None) -> bool:
    """Return True if a thread without a watched call was not started by one."""
    return (
        thread is None
        or thread is threading.main_thread()
        or thread.name.startswith("rhapsody")
        or isinstance(thread, threading._DummyThread)
    )


def _only_reads(event: str, args: tuple[Any, ...]) -> bool:
    """Return True if an audit event changes no file by itself."""
    return _is_read(*args) if event == "open" else event not in (*_CHANGES, "sqlite3.connect")


def _note(watch: _Watch, event: str, args: tuple[Any, ...], frame: FrameType) -> None:
    """Note an audit event of a watched call, which occurred in a frame."""
    if event == "open":
        path, mode, flags = args
        # A relative path without a mode may be relative to an open directory (`os.open`).
        if type(path) is not int and (mode is not None or path[:1] in ("/", b"/")):
            use = _use(flags)
            if flags & os.O_EXCL and os.path.lexists(path):  # it cannot be created
                use = READ
            if use == READ or not _in_import(frame):
                watch.note(path, use, _CODE if _reads_code(frame) else _COMPILED)
            if use == READ:
                _watches.note_cached(path, watch.places, frame)
    elif event in _LISTINGS:
        path = args[0]
        caller = frame.f_code.co_filename
        if type(path) is not int and not caller.startswith("<frozen importlib"):
            watch.note(os.path.join(path or os.curdir, type(path or "")()), LISTED)
    elif event in _PATTERNS:
        directory, pattern = args
        parts = os.fspath(pattern).split(os.sep)[:-1]
        literal = itertools.takewhile(lambda part: not _WILDCARDS.intersection(part), parts)
        watch.note(os.path.join(directory, *literal, ""), LISTED)
    elif event in _CHANGES:
        if args[-1] in (-1, None) and not _in_import(frame):
            for path in args[_CHANGES[event]]:
                watch.note(path, WRITTEN, _COMPILED)
    elif event == "sqlite3.connect" and isinstance(args[0], _NAMES):
        path = _path_of_database(os.fsencode(args[0]))
        if path not in ("", ":memory:"):
            watch.note(path, UPDATED)
    elif event == "ctypes.dlopen" and isinstance(args[0], _NAMES):
        if os.sep in os.fsdecode(args[0]):  # the system searches other names
            watch.note(args[0], READ, ())
    elif event == "pickle.find_class" and script_classes().now.received is None:
        watch.note_module(args[0])
    elif event in _STARTS:
        watch.paths.setdefault(STARTED, "")
        if event in _FORKS:
            watch.paths.fork()
        elif event == "os.exec":
            watch.note_command([args[0], *args[1]], None, args[2])
        elif event == "subprocess.Popen":
            words = [args[1]] if isinstance(args[1], _NAMES) else args[1]
            watch.note_command([args[0], *words], *args[2:4])
        elif event == "os.posix_spawn":
            watch.note_command([args[0], *args[1]], None, args[2])
        elif event == "os.system":
            watch.note_command(args[0])
    elif event in _STARTS_THREAD:
        thread = getattr(args[0], "__self__", None)
        if isinstance(thread, threading.Thread):
            thread._rhapsody_watch = watch  # type: ignore[attr-defined]


def _is_read(path: Any, mode: Any, flags: int) -> bool:
    """Return True if the audit event `open` with some arguments is that of a file that is read."""
    return type(path) is not int and mode is not None and _use(flags) == READ


def _path_of_database(name: bytes) -> str:
    """Return the path in an SQLite database's name or URI (see https://sqlite.org/uri.html)."""
    if not name.startswith(b"file:"):
        return os.fsdecode(name)
    path = re.split(rb"[?#]", name.removeprefix(b"file:"))[0]
    if path.startswith(b"//"):  # with an authority: empty or "localhost"
        path = b"/" + path[2:].partition(b"/")[2]
    return os.fsdecode(
        re.sub(rb"%([0-9A-Fa-f]{2})", lambda each: bytes.fromhex(each[1].decode()), path)
    )


def watch_files(places: tuple[str, ...]) -> WatchedPaths:
    """Note the files and directories that Python opens, for the rest of this `Context`.

    Processes that it forks are included until the caller calls the method `end` of the result, and
    so are the threads that it starts. Before Python 3.12, and for threads that existed before, what
    a thread reads is noted for all calls that are running in this process. Not noted are files that
    are opened on the main thread outside a call, by other processes, or by libraries that do not
    open files through Python, except databases of `sqlite3` and shared libraries that `ctypes`
    loads. The modules of classes and functions that the call unpickles are noted as if it had read
    their files; the key `WITHOUT_FILE` is added if one of them has no file. In a process with an
    audit hook, calls of `id` take 0.1 microseconds longer, so the hook is added when a call is
    watched for the first time.

    Args:
        places: The directories to watch, each with a trailing slash.

    Returns:
        A dictionary that receives the absolute paths with their uses. If the call used a relative
        path, `RELATIVE` separates it from the current directory. The use is `READ`, `LISTED` for a
        directory, `UPDATED` for a file that was opened for reading and writing, as with the mode
        `"r+"`, or `WRITTEN` if the call has also created, changed or removed it. The key `STARTED`
        is added if the call starts another process. Existing files that the command of this process
        names are noted as if the call had read them.
    """
    _hook()
    watch = _Watch(places)
    watch.note_library_files()
    _watches.running[id(watch.paths)] = watch
    _watches.set(watch)
    return watch.paths


def watch_cached(places: tuple[str, ...]) -> None:
    """Note the files that functions with a cache read while no call is watched; see `CACHED`.

    Args:
        places: The directories to watch, each with a trailing slash.
    """
    _hook()
    _watches.places = places


def _hook() -> None:
    if not _watches.hooked:
        _watches.hooked = True
        sys.addaudithook(_audit)  # it cannot be removed


@contextmanager
def _watching(places: tuple[str, ...]) -> Iterator[Mapping[str, str]]:
    before, paths = _watches.get(), watch_files(places)
    try:
        yield paths
    finally:
        _watches.set(before)
        paths.end()


_unwatched: AbstractContextManager[Mapping[str, str]] = nullcontext({})


def watching(places: tuple[str, ...]) -> AbstractContextManager[Mapping[str, str]]:
    """Return a context manager that calls `watch_files`, if there are directories to watch."""
    return _watching(places) if places else _unwatched


SHORT_CALL = 0.005
"""Number of seconds below which a call is short. Not all short calls are measured."""

INTERVAL = 0.02
"""Number of seconds from one measurement to the next measurement of a short call."""

MAXRSS_UNIT: int = 1 if sys.platform == "darwin" else 1024
"""Unit in bytes of the system's `ru_maxrss`."""

MARGIN = 1 << 20
"""Number of bytes by which two readings of one peak may differ, because the kernel counts
approximately."""

STORAGE_BLOCK = 512
"""Unit in bytes of `ru_inblock` and `ru_oublock` on Linux."""

STORAGE_COUNTED: bool = os.path.exists("/proc/self/io")
"""True if the kernel counts the data that processes read from and write to storage. Elsewhere,
`ru_inblock` and `ru_oublock` are 0 or have another meaning."""

_RESET, _STATUS = "/proc/self/clear_refs", "/proc/self/status"


class Meter:
    """Meter of the resources that calls use.

    Reading the kernel's counters takes ten to twenty microseconds, which can be longer than a call.
    So if the last call of a task was short, the task's calls are not measured for some time.

    The peak of a process's memory is reset before a call, where this is possible. Otherwise, the
    call's peak is known only if it exceeds all former peaks of the process. A figure that may not
    belong to the call is left out; a share of a measurement of several calls would be a guess.
    Measuring adds about 0.7 µs to a short call in a worker process and 0.3 µs on a thread.

    Args:
        shared: True if other calls may run in this process at the same time. Then only the CPU time
            of the thread that makes the call is measured. Otherwise the figures are those of the
            process, including processes that the call has started and waited for, if the call is
            made on the main thread.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._durations: dict[str, float] = {}
        self._measured = 0.0
        self._floor: int | None = None

    def __reduce__(self) -> tuple[Callable[[], Meter], tuple[()]]:
        # The module may be pickled by value, for another process.
        return partial(type(self), shared=self._shared), ()

    def begin(self, name: str) -> Any:
        """Start measuring a call of the named task. Return the argument for `end`."""
        now = time.perf_counter()
        if now - self._measured < INTERVAL and self._durations.get(name, SHORT_CALL) < SHORT_CALL:
            return now, None, None, 0
        if self._shared or threading.current_thread() is not threading.main_thread():
            return now, time.thread_time(), None, 0
        was_reset = _reset_peak()
        own = resource.getrusage(resource.RUSAGE_SELF)
        if self._floor is None:
            self._floor = _lowest_peak(own.ru_maxrss)
        floor = self._floor if was_reset else own.ru_maxrss
        return time.perf_counter(), own, resource.getrusage(resource.RUSAGE_CHILDREN), floor

    def end(self, name: str, begin: Any) -> dict[str, Any] | None:
        """Return the resources that a call has used; `None` if the call was not measured."""
        start, own, children, floor = begin
        durations, now = self._durations, time.perf_counter()
        if len(durations) > 1000:
            durations.clear()
        durations[name] = now - start
        if own is None:
            return None
        self._measured = now
        if children is None:
            return {"cpu_seconds": round(time.thread_time() - own, 6)}
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        after = resource.getrusage(resource.RUSAGE_SELF)
        peak = after.ru_maxrss if after.ru_maxrss > floor else None
        if peak is not None and ended.ru_minflt != children.ru_minflt:  # a process has ended
            if ended.ru_maxrss > children.ru_maxrss:
                peak = max(peak, ended.ru_maxrss)
            elif children.ru_maxrss > peak:  # the process may have used any amount up to this
                peak = None
        return usage(
            cpu_seconds(after) - cpu_seconds(own) + cpu_seconds(ended) - cpu_seconds(children),
            after.ru_inblock - own.ru_inblock + ended.ru_inblock - children.ru_inblock,
            after.ru_oublock - own.ru_oublock + ended.ru_oublock - children.ru_oublock,
            peak,
        )


def usage(seconds: float, read: int, written: int, peak: int | None) -> dict[str, Any]:
    """Return the resources that a call or program has used, as in `rhapsody.task.Usage`.

    Args:
        seconds: CPU time in seconds.
        read: Blocks read from storage, as in `ru_inblock`.
        written: Blocks written to storage, as in `ru_oublock`.
        peak: The peak of the memory, as in `ru_maxrss`; `None` if it is unknown.
    """
    used: dict[str, Any] = {"cpu_seconds": round(seconds, 6)}
    if peak is not None:
        used["peak_memory"] = peak * MAXRSS_UNIT
    if STORAGE_COUNTED:
        used["read_bytes"] = read * STORAGE_BLOCK
        used["written_bytes"] = written * STORAGE_BLOCK
    return used


def cpu_seconds(counters: resource.struct_rusage) -> float:
    """Return the CPU time in user and system mode together."""
    return counters.ru_utime + counters.ru_stime


def _reset_peak() -> bool:
    """Set the peak of this process's memory to its present size. Return False if that fails."""
    try:
        file = os.open(_RESET, os.O_WRONLY)
    except OSError:  # not Linux, or not permitted
        return False
    try:
        return os.write(file, b"5") == 1
    except OSError:
        return False
    finally:
        os.close(file)


def _lowest_peak(peak: int) -> int:
    """Return the lowest possible value of `ru_maxrss`; 0 if it is not limited.

    When a process executes a program, `ru_maxrss` keeps the peak from before, which is that of the
    process that started it. The peak in `/proc` does not.

    Args:
        peak: The present `ru_maxrss`.
    """
    with suppress(OSError, ValueError):
        text = Path(_STATUS).read_text()
        now = int(text.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
        if peak * MAXRSS_UNIT <= now + MARGIN:
            return 0
    return peak


_meter = Meter()


REFERENCE = 32
"""Length in bytes of the head of packed modules: the program's id, and a digest of the modules."""

_PROGRAM = 16

_SETTLE_TIME = 10 * 10**9
"""Number of nanoseconds by which a file must be older than the process to be regarded as the file
that was imported: the clocks of file servers may differ."""


class StaleModuleError(ImportError):
    """A worker's module differs from the program's and cannot be replaced."""


class Source(NamedTuple):
    """Source of one of the program's modules. Sent as a plain tuple.

    Attributes:
        file: The path of the module's file in the program, or `None` for a namespace package.
        package: True if the module is a package.
        digest: The digest of the file's content.
        text: The content of a source file, or `None` for other files, such as extension modules.
    """

    file: str | None
    package: bool
    digest: str
    text: bytes | None


class _Held:
    """Modules of one program on this worker, and the number of calls that are using them."""

    def __init__(self, reference: bytes, sources: dict[str, Source]) -> None:
        self.reference = reference
        self.sources = sources
        self.users = 0


class SentModules:
    """Modules that programs have sent to a worker: a finder for `sys.meta_path`. Thread-safe.

    A worker has one version of a module at a time. If a call needs another version, the worker
    unloads the module together with all other modules of the program that sent the module, because
    they may have imported names from it. If other calls are using the worker's version, the new
    call fails.

    Attributes:
        program: The id of the program that runs in this process, and the id of the process. Calls
            by this program use the modules that it has imported. `None` in workers.
        loaded: The spec and the digest of each module whose version is known.
    """

    sent_by_rhapsody = True

    def __init__(self) -> None:
        self.program: tuple[bytes, int] | None = None
        self.loaded: dict[str, tuple[Any, str]] = {}
        self._lock = threading.RLock()
        self._sent: dict[bytes, bytes] = {}
        self._times: Counter[bytes] = Counter()
        self._held: dict[bytes, _Held] = {}

    def receive(self, packed: bytes) -> None:
        """Store modules for calls that refer to them. Each `receive` requires a later `discard`."""
        with self._lock:
            self._sent[packed[:REFERENCE]] = packed
            self._times[packed[:REFERENCE]] += 1

    def knows(self, reference: bytes) -> bool:
        """Return True if the modules that a reference names have been received or are loaded."""
        held = self._held.get(reference[:_PROGRAM])
        return reference in self._sent or (held is not None and held.reference == reference)

    def discard(self, reference: bytes) -> None:
        """Undo one `receive`.

        When each `receive` of these modules has been undone, they are unloaded unless a call is
        using them.
        """
        with self._lock:
            self._times[reference] -= 1
            if self._times[reference] > 0:
                return
            del self._times[reference]
            self._sent.pop(reference, None)
            program = reference[:_PROGRAM]
            held = self._held.get(program)
            if held is not None and not held.users and not self._keeps(program):
                self._drop([program])

    def using(self, modules: bytes) -> AbstractContextManager[Any]:
        """Make a program's modules importable, and prevent their replacement in a `with` block.

        Args:
            modules: The packed modules, or their first `REFERENCE` bytes.

        Returns:
            A context manager. Entering it raises a `StaleModuleError` if calls are using other
            versions, a module cannot be replaced, or the modules have not been received.
        """
        program = self.program
        if program is not None and program == (modules[:_PROGRAM], os.getpid()):
            return _nothing
        return _Using(self, modules)

    def take(self, modules: bytes) -> _Held:
        """Make a program's modules importable; see `using`. Return the argument for `give_back`."""
        with self._lock:
            held = self._held.get(modules[:_PROGRAM])
            if held is None or held.reference != modules[:REFERENCE]:
                held = self._take_in(modules, held)
            held.users += 1
        return held

    def give_back(self, held: _Held) -> None:
        """Undo one `take`."""
        with self._lock:
            held.users -= 1

    def _keeps(self, program: bytes) -> bool:
        return any(reference.startswith(program) for reference in self._sent)

    def _take_in(self, modules: bytes, former: _Held | None) -> _Held:
        reference, program = modules[:REFERENCE], modules[:_PROGRAM]
        packed = modules if len(modules) > REFERENCE else self._sent.get(reference)
        if packed is None:
            raise StaleModuleError("the program's own modules were not sent to this worker")
        travelled = pickle.loads(zlib.decompress(packed[REFERENCE:]))  # noqa: S301 - the program's
        sources = {name: Source(*each) for name, each in travelled.items()}
        going = []
        for other, held in self._held.items():
            for name, source in held.sources.items():
                wanted = sources.get(name)
                if wanted is None and (held.users or held is not former):
                    continue
                if wanted is not None and wanted.digest == source.digest:
                    continue
                if held.users:
                    raise StaleModuleError(
                        f"module {name!r} has version {_short(wanted)} in the program, but calls "
                        f"that use version {_short(source)} are running on this worker: wait until "
                        "they have ended, or use workers that run one call at a time"
                    )
                going.append(other)
                break
            else:
                if held is not former and not held.users and not self._keeps(other):
                    going.append(other)
        self._drop(going)
        in_use = {name for held in self._held.values() if held.users for name in held.sources}
        here = {name: sys.modules[name] for name in sources if name in sys.modules}
        stale = [name for name, each in here.items() if not self._is(name, each, sources[name])]
        for name in stale:
            if sources[name].text is None and sources[name].file is not None:
                raise StaleModuleError(
                    f"this worker has already imported the extension module {name!r}, possibly "
                    f"in a version other than {_short(sources[name])}: restart the worker"
                )
        if stale:
            self._forget(name for name in here if name not in in_use)
        elif program not in self._held:
            # When imported for an earlier program, they may have computed values, say from files.
            earlier = {name for held in self._held.values() for name in held.sources} - in_use
            self._forget(name for name in here if name in earlier and sources[name].text)
        if program not in self._held:
            self._forget(_others(sources))
            self._held[program] = _Held(reference, sources)
        held = self._held[program]
        held.reference, held.sources = reference, sources
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        return held

    def _drop(self, programs: Iterable[bytes]) -> None:
        """Unload the modules of programs, except those that other programs share."""
        dropped = [self._held.pop(program) for program in programs]
        kept = {name for held in self._held.values() for name in held.sources}
        self._forget(name for held in dropped for name in held.sources if name not in kept)

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            module = sys.modules.pop(name, None)
            parent, _, child = name.rpartition(".")
            if module is not None and vars(sys.modules.get(parent, self)).get(child) is module:
                delattr(sys.modules[parent], child)

    def _is(self, name: str, module: Any, source: Source) -> bool:
        """Return True if an imported module has the program's version, as far as can be checked."""
        spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
        known = self.loaded.get(name)
        if known is not None and known[0] is spec:
            return known[1] == source.digest
        if source.file is None or spec is None or not isinstance(file, str):
            return source.file is None and file is None
        try:
            settled = os.stat(file).st_ctime_ns < (process_start_time() or 0) - _SETTLE_TIME
            if not settled or digest_of(Path(file).read_bytes()) != source.digest:
                return False
        except OSError:
            return False
        self.loaded[name] = spec, source.digest
        return True

    # Called by imports (`importlib.abc.MetaPathFinder`):

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module that a program has sent, or `None` for other modules.

        If a sent module is reloaded while no call is using the module, this method leaves it to the
        other finders, because other users of the worker may have replaced the module's file.
        """
        held = next((each for each in self._held.values() if name in each.sources), None)
        if held is None or (target is not None and not held.users):
            return None
        source = held.sources[name]
        if source.file is None:
            spec = PathFinder.find_spec(name, path)
            if spec is None or spec.submodule_search_locations is None:
                spec = ModuleSpec(name, None, is_package=True)
            return spec
        where = [os.path.dirname(source.file)] if source.package else None
        if source.text is not None:
            loader = _SentLoader(name, source.file, source, self)
            return spec_from_file_location(
                name, source.file, loader=loader, submodule_search_locations=where
            )
        return self._binary(name, source, where)

    def _binary(self, name: str, source: Source, where: list[str] | None) -> ModuleSpec | None:
        """Return the spec of an extension module that is installed on this worker.

        Raises:
            StaleModuleError: The installed file, or the version that was loaded before, differs
                from the file that the program uses.
        """
        assert source.file is not None
        try:
            here = digest_of(Path(source.file).read_bytes())
        except OSError:
            here = "none"
        known = self.loaded.get(name)
        if here != source.digest or (known is not None and known[1] != source.digest):
            raise StaleModuleError(
                f"{source.file} has version {_short(source)} in the program and {here[:12]} on "
                "this worker: install the same version there, and restart the worker",
                name=name,
            )
        spec = spec_from_file_location(name, source.file, submodule_search_locations=where)
        self.loaded[name] = spec, source.digest
        return spec


class _Using:
    """Context manager that holds modules; `contextlib.contextmanager` takes several times as long.

    Args:
        sent: The modules that programs have sent.
        modules: The packed modules, or their first `REFERENCE` bytes.
    """

    __slots__ = ("_held", "_modules", "_sent")

    def __init__(self, sent: SentModules, modules: bytes) -> None:
        self._sent = sent
        self._modules = modules

    def __enter__(self) -> None:
        self._held = self._sent.take(self._modules)

    def __exit__(self, *error: object) -> None:
        self._sent.give_back(self._held)


class _SentLoader(SourceFileLoader):
    """Loader that imports a module from the source that was sent, or from its compiled code."""

    def __init__(self, name: str, file: str, source: Source, modules: SentModules) -> None:
        super().__init__(name, file)
        self._source = source
        self._modules = modules

    def exec_module(self, module: Any) -> None:
        """Run the module's code."""
        self._modules.loaded[module.__name__] = module.__spec__, self._source.digest
        with suppress(SyntaxError, UnicodeDecodeError):  # raised by the import itself
            lines = self.get_source(module.__name__).splitlines(keepends=True)
            linecache.cache[self.path] = sum(map(len, lines)), None, lines, self.path
        super().exec_module(module)

    def get_source(self, fullname: str) -> str:
        """Return the module's source, which tracebacks also use."""
        assert self._source.text is not None
        return decode_source(self._source.text)

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the module's code."""
        text = self._source.text
        with suppress(OSError, ImportError, SyntaxError):
            if self.get_data(self.path) == text and self._cache_is_current():
                code = super().get_code(fullname)
                if self.get_data(self.path) == text:
                    return code
        code = compile(text or b"", self.path, "exec", dont_inherit=True)
        return code

    def _cache_is_current(self) -> bool:
        """Return True if Python would notice that the compiled code is older than the source.

        Python compares the size of the source and its modification time in whole seconds. So Python
        misses a change within the second in which the code was compiled.
        """
        try:
            compiled = os.stat(cache_from_source(self.path)).st_mtime
        except (OSError, NotImplementedError):  # there is no compiled code
            return True
        return compiled >= int(os.stat(self.path).st_mtime) + 1


def sent_modules() -> SentModules:
    """Return the modules that programs have sent to this process."""
    if _own.modules is None:
        # If this file is sent by value, it exists several times.
        finders: Iterator[Any] = (f for f in sys.meta_path if hasattr(f, "sent_by_rhapsody"))
        _own.modules = next(finders, None) or SentModules()
    modules: SentModules = _own.modules
    return modules


def digest_of(content: bytes) -> str:
    """Return the digest of the content of a module's file."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _short(source: Source | None) -> str:
    return "none" if source is None else source.digest[:12]


def _others(sources: Mapping[str, Source]) -> list[str]:
    """Return the modules that were not sent but imported from the directories of sent modules.

    Such modules were imported under names computed at run time, perhaps for an earlier program.
    """
    roots = {_root(name, each.file, each.package) for name, each in sources.items()} - {None}
    found = []
    for name, module in list(sys.modules.items()):
        if name in sources or name.startswith("__"):
            continue
        file, path = getattr(module, "__file__", None), getattr(module, "__path__", None)
        if isinstance(file, str) and _root(name, file, path is not None) in roots:
            found.append(name)
    return found


def _root(name: str, file: str | None, package: bool) -> str | None:
    """Return the directory that contains a module's outermost package."""
    if file is None:
        return None
    parts = Path(file).parts[: -1 - name.count(".") - package]
    return os.path.join(*parts) if parts else None


def process_start_time() -> int | None:
    """Return the start time of this process, or `None` if the system does not report it.

    The time is in nanoseconds since the epoch, rounded up to a tick of the kernel.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])  # `starttime` in proc(5)
        # The minimum of three: the process may be delayed between reading the two clocks.
        booted = min(-time.clock_gettime_ns(time.CLOCK_BOOTTIME) + time.time_ns() for _ in "123")
    except (OSError, AttributeError):  # not Linux
        return None
    return booted + (ticks + 1) * 10**9 // os.sysconf("SC_CLK_TCK")


class Environment:
    """Context manager that sets environment variables while a call is unpickled and runs."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __enter__(self) -> None:
        self._former = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)

    def __exit__(self, *error: object) -> None:
        for name, value in self._former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Captured(Output):
    """Context manager that captures the output of this process and its children during one call.

    With `capture="files"`, the output is written to the files `<uid>.out` and `<uid>.err` in
    `CallSpec.directory`.
    """

    directory: str | None

    def __init__(self, order: CallSpec) -> None:
        self._stem = os.path.join(order.directory or "", order.uid)
        self.directory = order.directory if order.capture == "files" else None

    def __enter__(self) -> Output:
        if self.directory is not None:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
        with ExitStack() as undo:
            undo.callback(self._redirect(1, "stdout"))
            undo.callback(self._redirect(2, "stderr"))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _redirect(self, number: int, name: str) -> Callable[[], None]:
        """Redirect a standard stream to a file, and return a function that undoes this."""
        former = getattr(sys, name)
        if former is not None:
            former.flush()
        path = f"{self._stem}.{name[3:]}"
        if self.directory:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            file = os.open(path, flags, 0o600)
        else:
            file = _temporary_file()
        kept = os.dup(number)
        os.dup2(file, number)
        raw: Any = io.FileIO(number, "w", closefd=False)
        stream = io.TextIOWrapper(raw, "utf-8", "replace", write_through=True)
        setattr(sys, name, stream)

        def restore() -> None:
            with suppress(Exception):  # the call may have closed or replaced the stream
                getattr(sys, name).flush()
            stream.close()
            setattr(sys, name, former)
            os.dup2(kept, number)
            os.close(kept)
            size = os.fstat(file).st_size
            setattr(self, name, path if self.directory else _read_output(file, size))
            os.close(file)

        return restore


def _read_output(file: int, size: int) -> str:
    """Return the text of a file or, if it is longer than `MAX_TEXT`, its beginning and end."""
    if size <= MAX_TEXT:
        return os.pread(file, size, 0).decode("utf-8", "replace")
    half = MAX_TEXT // 2
    parts = [os.pread(file, half, start).decode("utf-8", "replace") for start in (0, size - half)]
    return f"\n[truncated: {size - 2 * half} of {size} bytes are omitted here]\n".join(parts)


def _temporary_file() -> int:
    """Open a file without a name, in a third of the time that `tempfile` takes on Linux."""
    with suppress(AttributeError, OSError):  # the system or the file system has no such files
        return os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR, 0o600)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_none = Output()
_nothing: AbstractContextManager[Any] = nullcontext()
_host = os.uname().nodename
_threads: int | None = None


def limit_threads(cores: int) -> None:
    """Set the number of threads of numeric libraries that are already loaded; 0 changes nothing.

    Such libraries read their environment variables only when they are loaded. So the first call of
    this function changes nothing, and later calls use threadpoolctl, which the extra
    `rhapsody-core[threads]` installs. Without threadpoolctl, nothing is changed. It is an extra,
    because most programs use one number of threads.
    """
    global _threads
    if cores == 0 or cores == _threads:
        return
    former, _threads = _threads, cores
    if former is not None:
        with suppress(ImportError):
            importlib.import_module("threadpoolctl").threadpool_limits(cores)


def dumps(value: Any, **options: Any) -> bytes:
    """Pickle a value as cloudpickle does, but keep functions' file names for tracebacks.

    Args:
        value: The value.
        **options: Options of `pickle.Pickler`.

    Returns:
        The pickle.
    """
    target = io.BytesIO()
    pickler()(target, **options).dump(value)
    return target.getvalue()


def pickler() -> Any:
    """Return the pickler class that `dumps` uses. A backend may extend this class."""
    if _own.pickler is None:
        # Imported here, so that each call reports an error if cloudpickle is missing.
        import cloudpickle  # type: ignore[import-untyped,unused-ignore]

        reduce_code = cloudpickle.Pickler.dispatch_table[CodeType]
        classes = script_classes()

        def with_file(code: CodeType) -> Any:
            kind, args = reduce_code(code)
            file = code.co_filename
            return kind, tuple(file if each == "<dynamic-code>" else each for each in args)

        reduce_method = cloudpickle.Pickler.dispatch_table[MethodType]
        home_of = home_of_method

        def by_home(method: Any) -> Any:
            home = home_of(method)
            if home is not None:
                return getattr, (home, method.__name__)
            bound = type(method) is MethodType
            return reduce_method(method) if bound else method.__reduce__()

        # cloudpickle does not find globals in the body of a class when it sends this file by value.
        own = {CodeType: with_file, MethodType: by_home, BuiltinMethodType: by_home}
        table = ChainMap(own, cloudpickle.Pickler.dispatch_table)

        class Pickler(cloudpickle.Pickler):  # type: ignore[misc,unused-ignore]
            """Pickler of cloudpickle that keeps file names, and the identity of classes."""

            dispatch_table = table

            def reducer_override(self, value: Any) -> Any:
                if not issubclass(type(value), type):
                    return super().reducer_override(value)
                received = classes.now.received
                known = None if received is None else received.reduced(value)
                if known is not None:
                    return known
                reduced = super().reducer_override(value)
                if type(reduced) is tuple and len(reduced) == 6:  # a class that is sent by value
                    return classes.reduced(value, reduced)
                return reduced

        _own.pickler = Pickler
    return _own.pickler


def home_of_method(method: Any) -> ModuleType | None:
    """Return the module for a method of the generator of `random` or `numpy.random`.

    `from random import random` imports such a method. It is pickled by name, because a pickle of
    the generator would make all calls draw the same numbers. Return `None` for other methods.
    """
    for module, generator in (("random", "_inst"), ("numpy.random.mtrand", "_rand")):
        home = sys.modules.get(module)
        if home is not None and method.__self__ is getattr(home, generator, None):
            return home if getattr(home, method.__name__, None) == method else None
    return None


class _Own:
    """State of this process, which is not copied when this module is pickled by value."""

    pickler: Any = None
    modules: Any = None
    classes: Any = None
    values: Any = None

    def __reduce__(self) -> tuple[type[_Own], tuple[()]]:
        return type(self), ()


_own = _Own()


CLASSES = "_rhapsody_classes"
"""Name of a module that contains the functions to which pickles refer for classes of the script and
for worker values.

It is not the name of this file, which may be sent to a worker that cannot import Rhapsody.
"""


GPU_VARIABLES = (
    b"CUDA_VISIBLE_DEVICES", b"HIP_VISIBLE_DEVICES", b"ROCR_VISIBLE_DEVICES", b"ZE_AFFINITY_MASK",
)  # fmt: skip
"""Environment variables that choose the GPUs of a call. Calls share values only if these agree."""


Build = Callable[[], tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]]
"""Function that returns the factory of a worker value and the factory's arguments."""

ATTEMPTS = 2
"""Number of times that a process calls a factory that fails, for each handle."""

MAX_FAILURES = 16
"""Maximum number of handles whose failures are kept for each value."""

WORKER_VALUE = "__worker_value__"
"""Attribute of an exception that a factory raised: `ValueSpec.handle`."""


class ValueSpec(NamedTuple):
    """Identity of a worker value. Sent as a plain tuple.

    Attributes:
        key: The digest of the pickled factory and its arguments.
        name: The name of the factory, for messages.
        per_thread: True to share the value only with calls on the same thread.
        keep: Maximum number of values of the factory that a process keeps; 0 for no limit.
        factory: The digest of the pickled factory if `keep` is set, otherwise empty.
        handle: An identifier of the handle. Failures of the factory are counted for each handle.
    """

    key: bytes
    name: str
    per_thread: bool
    keep: int
    factory: bytes
    handle: str


class CallValues:
    """Worker values that one call uses.

    Args:
        session: The name of the session that makes the call; see `WorkerValues.close`.
        report: Function that is called with True when the call begins to build a value or to wait
            for another call that builds it, and with False when the call can continue.

    Attributes:
        seconds: The time that the call has spent in this way; `None` if there was no need.
    """

    __slots__ = ("_begun", "_depth", "_report", "kept", "seconds", "session")

    def __init__(self, session: str, report: Callable[[bool], object]) -> None:
        self.session: str = session
        self.kept: list[_Kept] = []
        self.seconds: float | None = None
        self._report = report
        self._depth = 0
        self._begun = 0.0

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:  # otherwise, for an argument of another factory
            self._begun = time.perf_counter()
            self._report(True)

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds = (self.seconds or 0.0) + time.perf_counter() - self._begun
            self._report(False)


class WorkerValues:
    """Values that calls in this process share; see `rhapsody.WorkerValue`. Thread-safe.

    Attributes:
        handle: The class of handles, `rhapsody.WorkerValue`, set by its module; `None` if that has
            not been imported.
    """

    def __init__(self) -> None:
        self.handle: Any = None
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: dict[tuple[Any, ...], _Kept] = {}

    def take(
        self,
        spec: tuple[bytes, str, bool, int, bytes, str],
        build: Build,
        uses: CallValues,
        gpus: Any,
    ) -> Any:
        """Return a value; build it if this process has not built it yet.

        Args:
            spec: The fields of the value's `ValueSpec`.
            build: Function that returns the factory and its arguments.
            uses: The values that the call uses, to which this one is added.
            gpus: The result of `Runner.gpus`, or `None` if calls do not set these variables.

        Returns:
            The value.
        """
        if self._process != os.getpid():  # a forked child is a separate program
            self._begin()
        key, name, per_thread, keep, factory, handle = spec
        place = key, gpus, threading.current_thread() if per_thread else None
        surplus: list[_Kept] | None = None
        with self._lock:
            kept = self._kept.get(place)
            if kept is None or keep:
                if kept is None:
                    kept = _Kept(name, (factory, *place[1:]), keep)
                else:
                    del self._kept[place]
                self._kept[place] = kept  # the last one was used last
                if keep and not kept.built:
                    surplus = self._surplus(kept, keep - 1)
            kept.users += 1
            kept.sessions.add(uses.session)
        uses.kept.append(kept)
        for other in surplus or ():  # before memory is needed for the new one
            other.close()
        if kept.built and _watches.get() is None:
            return kept.value
        return kept.value_of(build, uses, handle)

    def release(self, uses: CallValues) -> None:
        """Note that a call has ended, and close those values that are not kept for other calls."""
        closing: list[_Kept] = []
        with self._lock:
            for kept in uses.kept:
                kept.users -= 1
                if kept.over:
                    closing += [] if kept.users else [kept]
                elif kept.keep:
                    closing += self._surplus(kept, kept.keep)
        for kept in closing:
            kept.close()

    def _surplus(self, kept: _Kept, most: int) -> list[_Kept]:
        """Remove and return values of a group that exceed a number and are not in use."""
        places = [
            place
            for place, other in self._kept.items()
            if other.group == kept.group and other is not kept and other.built
        ]
        free = [place for place in places if not self._kept[place].users]
        excess = len(places) + kept.built - most
        return [self._kept.pop(place) for place in free[: max(0, excess)]]

    def used_by(self, session: str) -> bool:
        """Return True if calls of a session have used a value."""
        with self._lock:
            return any(session in kept.sessions for kept in self._kept.values())

    def close(self, session: str | None = None) -> None:
        """Close the values that only this session has used, in reverse order of their creation.

        Values that a call uses are closed when the call has ended.

        Args:
            session: The name of the session; `None` to close all values.
        """
        with self._lock:
            places = [
                place
                for place, kept in self._kept.items()
                if session is None or kept.sessions == {session}
            ]
            for kept in self._kept.values():
                kept.sessions.discard(session or "")
        self._close(places)

    def close_value(self, key: bytes, session: str | None = None) -> None:
        """Close the values with a key, for all threads and GPUs; see `close`.

        Args:
            key: The key.
            session: The name of a session, to keep values that other sessions have used as well.
        """
        with self._lock:
            places = [place for place in self._kept if place[0] == key]
            for place in places if session is not None else ():
                self._kept[place].sessions.discard(session or "")
            places = [p for p in places if session is None or not self._kept[p].sessions]
        self._close(places)

    def _close(self, places: list[tuple[Any, ...]]) -> None:
        closing = []
        with self._lock:
            for place in places:
                kept = self._kept.pop(place, None)
                if kept is None:
                    continue
                if kept.users:
                    kept.over = True
                else:
                    closing.append(kept)
        for kept in sorted(closing, key=lambda kept: -kept.number):
            kept.close()  # before those that were built earlier, which it may use


class _Kept:
    """Value that calls share.

    Args:
        name: The name of its factory, for messages.
        group: The digest of the factory, the GPUs and the thread.
        keep: Maximum number of values of the group that are kept; 0 for no limit.

    Attributes:
        built: True if the value has been built.
        number: The position in the order in which values were built; 0 before the value is built.
        over: True if the value must be closed when no call uses it.
        sessions: The sessions whose calls have used the value.
        users: Number of calls that use the value.
        value: The value if it has been built.
    """

    __slots__ = (
        "_end", "_failures", "_lock", "_name", "_opened", "built", "group", "keep",
        "number", "over", "sessions", "users", "value",
    )  # fmt: skip
    _numbers = itertools.count(1)

    def __init__(self, name: str, group: tuple[Any, ...], keep: int) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._end: Callable[[], object] | None = None
        self._opened: dict[str, str] = {}  # as in `watch_files`, while it was built
        self._failures: dict[str, tuple[int, Any]] = {}  # number and last error, by handle
        self.built = False
        self.group = group
        self.keep = keep
        self.number = 0
        self.over = False
        self.sessions: set[str] = set()
        self.users = 0
        self.value: Any = None

    def value_of(self, build: Build, uses: CallValues, handle: str) -> Any:
        """Return the value; build it if it has not been built yet."""
        watch = _watches.get()
        if not self.built:
            with uses, self._lock:
                if not self.built:
                    self._make(build, handle)
        if watch is not None:  # each call has used what the value was built from
            for path, use in self._opened.items():
                if path.startswith(watch.places) or path in (WITHOUT_FILE, STARTED_BEFORE):
                    watch.paths.setdefault(path, use)
        return self.value

    def _make(self, build: Build, handle: str) -> None:
        failures, former = self._failures.get(handle, (0, None))
        if failures >= ATTEMPTS:
            error = made(*loads(former)[:2])
            _add_note(error, f"the function has failed {failures} times in this process")
            raise error
        try:
            # Watched even if this call is not, because others may use the value.
            with watching(("/",)) as opened:
                factory, args, kwargs = build()
                self.value, self._end = _entered(factory(*args, **kwargs))
        except BaseException as error:  # only the call fails
            if failed_handle(error) is None:  # it is not the error of an argument's factory
                _add_note(error, f"while worker value {self._name!r} was built")
                _vars(error)[WORKER_VALUE] = handle
            if isinstance(error, Exception):
                self._failures[handle] = failures + 1, pack_error(error)
                if len(self._failures) > MAX_FAILURES:
                    del self._failures[next(iter(self._failures))]
            raise
        self._opened = {
            STARTED_BEFORE if path == STARTED else path: use
            for path, use in opened.items()
            if use != WRITTEN
        }
        self.number = next(self._numbers)
        self.built = True

    def close(self) -> None:
        """Run the rest of the factory, and drop the value."""
        with self._lock:
            end, self._end, self.value, self.built = self._end, None, None, False
        if end is not None:
            try:
                end()
            except BaseException:  # the other values must be closed, too
                sys.stderr.write(f"worker value {self._name!r} could not be closed:\n")
                traceback.print_exc()


def failed_handle(error: BaseException) -> str | None:
    """Return `ValueSpec.handle` if the factory of a worker value raised this error."""
    handle: str | None = _vars(error).get(WORKER_VALUE)
    return handle


def seconds_of_building() -> float | None:
    """Return the time that the last call on this thread has spent on building worker values.

    Returns:
        The seconds; `None` if the call did not build a value or wait for one.
    """
    return script_classes().now.built


def _entered(made: Any) -> tuple[Any, Callable[[], object] | None]:
    """Return the value that a factory returned or yielded, and the function to close it, if any."""
    if isinstance(made, GeneratorType):
        for value in made:
            return value, partial(_finish, made)
        raise RuntimeError("the generator function ended before it yielded a value")
    if isinstance(made, AbstractContextManager) and isinstance(
        getattr(made, "gen", None), GeneratorType
    ):  # of `contextlib.contextmanager`; others, such as connections, are values themselves
        return made.__enter__(), partial(made.__exit__, None, None, None)
    return made, None


def _finish(generator: GeneratorType[Any, Any, Any]) -> None:
    for _ in generator:
        generator.close()
        raise RuntimeError("the generator function yielded more than one value")


class ScriptClasses:
    """Classes that pickles contain by value, such as those of the script. Thread-safe.

    cloudpickle also recognizes a class that a process has sent or received before, but resets it to
    the state in the pickle, even while other threads use it. Here, the program finds its class by
    the name, or by an id if no name refers to it, and leaves it unchanged. A worker takes a copy of
    the class for each call, and resets that copy before the call (`Received`). Copies are reused,
    because modules of the worker may keep instances: successive calls use the same class.

    If a worker kept the first version of a class instead, calls would see the changes of earlier
    calls, and methods would not see globals that the function of the call changes.

    Attributes:
        now: The present thread's `Received`, in the attribute `received`; `None` except while a
            call is unpickled or its result is pickled.
        here: The function to which pickles refer for a class.
        define: The function to which pickles refer for the attributes of a class.
        struct: The function to which pickles refer for a new class of msgspec.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.here: Callable[..., Any]
        self.define: Callable[..., Any]
        self.struct: Callable[..., Any]
        self.here, self.define, self.struct = functions
        self.now: _Now = _Now()
        self._undefined: dict[int, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._ids: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._known: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._copies: WeakValueDictionary[tuple[str, int], Any] = WeakValueDictionary()
        self._busy: set[int] = set()
        self._automatic: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()

    def reduced(self, cls: Any, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return how to pickle a class by value, given how cloudpickle does it."""
        make, args, state, _, _, setter = reduced
        module, name = cls.__module__, cls.__qualname__
        reference = self._id(cls), module, name if named(module, name) is cls else None
        if self.now.received is not None:  # `pack_error` unpickles its pickle
            self.now.received.found[reference[0]] = cls
        *args, _, _ = args  # without cloudpickle's own id of the class
        if hasattr(cls, "__struct_config__"):
            make, args = self.struct, _struct_parts(cls)
        elif len(args) == 4:  # not an enum
            attributes = {**args[3], "__qualname__": name}
            if "__slots__" in vars(cls) and not issubclass(cls, tuple):  # they cannot be set later
                attributes["__slots__"] = cls.__slots__
            args[3] = attributes
        shape = type(cls), *cls.__bases__
        arguments = reference, shape, make, (*args, None, None)  # as cloudpickle's functions expect
        return self.here, arguments, (setter, state), None, None, self.define

    def take(self, reference: Any, shape: Any, make: Any, args: Any) -> Any:
        """Return the program's class for a reference, or a new one if the program has none."""
        identity, module, name = reference
        cls = None if name is None else named(module, name)
        if cls is None:
            cls = self.known(identity)
        if cls is not None:
            return cls
        if make is None:
            raise LookupError(
                f"class {name!r} of {module!r} no longer exists in the program: keep the class "
                "under its name until the call has ended"
            )
        cls = make(*args)
        self._undefined[id(cls)] = cls, identity
        return cls

    def copy(self, identity: str, shape: Any, make: Any, args: Any) -> Any:
        """Return a copy of a class that no other call uses, which is to be defined.

        Args:
            identity: The class's id.
            shape: The metaclass and the base classes.
            make: The function that makes the class.
            args: The function's arguments.
        """
        self._renew_if_forked()
        with self._lock:
            for number in itertools.count():
                cls = self._copies.get((identity, number))
                if cls is None:
                    break
                if id(cls) not in self._busy and (type(cls), *cls.__bases__) == shape:
                    self._busy.add(id(cls))
                    break
        if cls is None:
            cls = make(*args)
            with self._lock:
                self._automatic[cls] = frozenset(vars(cls))
                self._copies[identity, number] = cls
                self._busy.add(id(cls))
        self._undefined[id(cls)] = cls, None
        return cls

    def release(self, classes: Iterable[Any]) -> None:
        """Make copies available to other calls."""
        with self._lock:
            self._busy.difference_update(map(id, classes))

    def set_state(self, cls: Any, definition: Any) -> None:
        """Set the attributes of a class that `take` or `copy` returned, if it is not defined."""
        _, identity = self._undefined.pop(id(cls), (None, ""))
        if identity == "":  # the receiver's class
            return
        setter, state = definition
        if identity is None:
            for name in vars(cls).keys() - self._automatic[cls] - state[0].keys():
                delattr(cls, name)
            assert self.now.received is not None
            self.now.received.defined(cls, definition)
        setter(cls, state)
        if identity is not None:
            with self._lock:
                self._ids[cls] = identity
                self._known.setdefault(identity, cls)

    def known(self, identity: str) -> Any:
        """Return the class that this process has sent with an id, or `None`."""
        self._renew_if_forked()
        return self._known.get(identity)

    def _renew_if_forked(self) -> None:
        if self._process != os.getpid():  # a forked child is a separate program
            self._begin()

    def _id(self, cls: Any) -> str:
        self._renew_if_forked()
        with self._lock:
            identity = self._ids.get(cls)
            if identity is None:
                identity = self._ids[cls] = os.urandom(16).hex()
                self._known[identity] = cls
        return identity


class _Now(threading.local):
    received: Received | None = None
    built: float | None = None  # see `seconds_of_building`


class Received:
    """Copies of the program's classes that one call on a worker uses.

    Args:
        classes: The classes of this process.
        runner: The runner of the call.

    Attributes:
        uses: The worker values that the call uses; `None` if there are none.
    """

    __slots__ = ("_classes", "_forwards", "_parts", "_runner", "found", "uses")

    def __init__(self, classes: ScriptClasses, runner: Runner) -> None:
        self.uses: CallValues | None = None
        self._runner = runner
        self._classes = classes
        self._forwards = runner.forwards
        self._parts: dict[int, tuple[tuple[Any, ...], Any]] = {}
        self.found: dict[str, Any] = {}

    def take(self, reference: Any, shape: Any, make: Any, args: Any) -> Any:
        """Return the call's copy of a class, which is new or was used by an earlier call."""
        identity = reference[0]
        cls = self.found.get(identity)
        if cls is None:
            cls = self.found[identity] = self._classes.copy(identity, shape, make, args)
            self._parts[id(cls)] = (reference, shape, make, args), None
        return cls

    def defined(self, cls: Any, definition: Any) -> None:
        """Keep the definition of a class, for other workers that receive objects of the class."""
        self._parts[id(cls)] = self._parts[id(cls)][0], definition

    def reduced(self, cls: Any) -> tuple[Any, ...] | None:
        """Return how to pickle a class that the program has sent; `None` for other classes."""
        parts = self._parts.get(id(cls))
        if parts is None:
            return None
        arguments, definition = parts
        classes = self._classes
        if not self._forwards and arguments[0][2] is not None:
            return classes.here, arguments[:1]
        return classes.here, arguments, definition, None, None, classes.define

    def value(self, spec: Any, build: Build) -> Any:
        """Return a worker value; build it if necessary."""
        if self.uses is None:
            self.uses = CallValues(self._runner.session, self._runner.building)
        return worker_values().take(spec, build, self.uses, self._runner.gpus())

    def release(self) -> None:
        """Make the copies available to other calls, and release the worker values."""
        if self.found:
            self._classes.release(self.found.values())
        if self.uses is not None:
            worker_values().release(self.uses)


def named(module: str, name: str) -> Any:
    """Return the class that a name in a module refers to; `None` if the class has another name."""
    value: Any = sys.modules.get(module)
    for word in name.split("."):
        value = getattr(value, word, None)
    if isinstance(value, type) and (value.__module__, value.__qualname__) == (module, name):
        return value
    return None


def script_classes() -> ScriptClasses:
    """Return the classes of scripts in this process."""
    if _own.classes is None:
        if CLASSES not in sys.modules:  # if this file is sent by value, it exists several times
            sys.modules[CLASSES] = _classes_module()
        _own.classes = sys.modules[CLASSES].classes
    classes: ScriptClasses = _own.classes
    return classes


def worker_values() -> WorkerValues:
    """Return the worker values of this process."""
    if _own.values is None:
        script_classes()
        _own.values = sys.modules[CLASSES].values
    values: WorkerValues = _own.values
    return values


@contextmanager
def copied_classes() -> Iterator[None]:
    """Use copies of the script's classes for what this thread unpickles and pickles.

    For calls that do not use a `Runner`.
    """
    classes = script_classes()
    received = classes.now.received = Received(classes, Runner())
    try:
        yield
    finally:
        classes.now.received = None
        received.release()


def _classes_module() -> ModuleType:
    def here(reference: Any, shape: Any = (), make: Any = None, args: Any = ()) -> Any:
        received = classes.now.received
        takes = classes if received is None else received
        return takes.take(reference, shape, make, args)

    def define(cls: Any, definition: Any) -> None:
        classes.set_state(cls, definition)

    def struct(name: str, fields: Any, options: Any, *_: None) -> Any:
        import msgspec  # type: ignore[import-not-found,unused-ignore]

        return msgspec.defstruct(
            name, [(field, kind, msgspec.field(**more)) for field, kind, more in fields], **options
        )

    def value(spec: tuple[Any, ...], packed: bytes) -> Any:
        now, received = classes.now, classes.now.received
        if received is None:  # in the program, for example in a result
            return values.handle.of(ValueSpec(*spec), *loads(packed))

        def build() -> Any:
            now.received = received
            try:
                return loads(packed)
            finally:
                now.received = None

        now.received = None  # the factory may unpickle other results
        try:
            return received.value(spec, build)
        finally:
            now.received = received

    functions = here, define, struct
    module, classes, values = ModuleType(CLASSES), ScriptClasses(*functions), WorkerValues()
    vars(module).update(classes=classes, values=values)
    for function in (*functions, value):
        function.__module__, function.__qualname__ = CLASSES, function.__name__
        setattr(module, function.__name__, function)
    return module


def _struct_parts(cls: Any) -> list[Any]:
    """Return how to create a class of msgspec again, because its fields cannot be set later."""
    names, defaults, positional = cls.__struct_fields__, cls.__struct_defaults__, cls.__match_args__
    default = dict(zip(reversed(names), reversed(defaults), strict=False))
    own = vars(cls).get("__annotations__", {})
    fields = []
    for name in filter(own.__contains__, names):
        value: Any = default.get(name)
        if hasattr(value, "factory"):
            more = {"default_factory": value.factory}
        else:
            more = {"default": value} if name in default else {}
        fields.append((name, own[name], more))
    config = cls.__struct_config__
    options = {name: getattr(config, name) for name in dir(config) if not name.startswith("_")}
    options["bases"], options["module"] = cls.__bases__, cls.__module__
    options["kw_only"] = not any(name in positional for name, *_ in fields)
    options["rename"] = dict(zip(names, cls.__struct_encode_fields__, strict=True))
    return [cls.__name__, fields, options]


def loads(packed: Any) -> Any:
    """Unpickle the result of `dumps`."""
    return pickle.loads(packed)  # noqa: S301 - from the other side of the call


def pack_error(
    error: BaseException,
    pack: Callable[[Any], Any] = dumps,
    unpack: Callable[[Any], Any] = loads,
) -> Any:
    """Pickle an exception, with its own type if possible.

    An exception calls its class again when it is unpickled. If the class composes its message, the
    result has another text or other `args`; such exceptions are created without `__init__`.

    Args:
        error: The exception.
        pack: The function that pickles. Attributes of the exception that it cannot pickle are
            omitted.
        unpack: The inverse of `pack`.

    Returns:
        The pickle, which `unpack_error` reads.
    """
    kind, text = type(error), _formatted(error)[-MAX_TEXT:]

    def rebuilt(args: tuple[Any, ...]) -> Any:
        attributes = [
            {name: value for name, value in pairs if _packs(pack, value)}
            for pairs in (_vars(error).items(), _slots(error))
        ]
        return kind, args, *attributes

    ways: list[tuple[str, Callable[[], Any]]] = [
        ("itself", lambda: error),
        ("rebuilt", lambda: rebuilt(_slot("args", error))),
    ]
    if kind is SystemExit:  # tblib, which Dask installs, loses the code
        ways = [("called", lambda: (kind, (getattr(error, "code", None),)))]
    elif issubclass(kind, BaseExceptionGroup):
        ways = [("group", lambda: _group(error))]
    inexact: tuple[bool, bool] = (False, False)
    chosen: Any = None
    for way, data in ways:
        try:
            packed = pack((way, data(), text))
            remade = made(*unpack(packed)[:2])
            if type(remade) is not kind:
                continue
            equal = _equal_args(remade, error), _text(remade) == _text(error)
        except BaseException:  # noqa: S112 - an exception class may do anything; try the next way
            continue
        if all(equal):
            return packed
        if chosen is None or equal > inexact:
            chosen, inexact = packed, equal
    if chosen is not None:
        return chosen
    with suppress(BaseException):
        packed = pack(("rebuilt", rebuilt((_text(error)[:MAX_TEXT],)), text))
        if type(made(*unpack(packed)[:2])) is kind:
            return packed
    return pack(("words", _in_words(error)[:MAX_TEXT], text))


def made(way: str, data: Any) -> BaseException:
    """Recreate an exception in the way that `pack_error` has chosen."""
    error: BaseException
    if way == "itself":
        error = data
    elif way == "words":  # the type cannot be sent: the program raises another error
        error = RuntimeError(data)
    elif way == "called":
        kind, args = data
        error = kind(*args)
    elif way == "group":
        kind, message, members = data
        error = kind(message, [made(*loads(member)[:2]) for member in members])
    else:
        kind, args, state, slots = data
        error = kind.__new__(kind, *args)  # without `__init__`, which may need other arguments
        BaseException.__setattr__(error, "args", args)
        _vars(error).update(state)
        for name, value in slots.items():
            with suppress(AttributeError, TypeError):  # it may be read-only
                BaseException.__setattr__(error, name, value)
    return error


def trimmed(error: BaseException, own_files: tuple[str, ...] = (__file__,)) -> BaseException:
    """Return an exception after removing frames of `own_files` from the start of its traceback."""
    trace = _slot("__traceback__", error)
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(own_files):
        trace = trace.tb_next
    # A TypeError for wrong arguments has no frame of the user.
    return BaseException.with_traceback(error, trace)


def _packs(pack: Callable[[Any], Any], value: Any) -> bool:
    with suppress(BaseException):  # pickling runs the objects' own code
        pack(value)
        return True
    return False


def _group(group: Any) -> Any:
    return type(group), group.message, [pack_error(member) for member in group.exceptions]


def _formatted(error: BaseException) -> str:
    """Return the text of an exception with its traceback."""
    try:
        return _made_in_time(lambda: "".join(traceback.format_exception(error)), type(error))
    except BaseException:  # formatting runs the exception's own code
        return "".join([*traceback.format_tb(_slot("__traceback__", error)), _in_words(error)])


# The class of an exception may forbid setting attributes, as a frozen dataclass does, or may raise
# when the exception is inspected. These functions run no code of the object, like those of
# `rhapsody.errors`, which may not be installed here.


def _in_words(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}: {_text(error)}"


def _text(error: BaseException) -> str:
    try:
        if not _runs_own_code(error):
            return str(error)
        return _made_in_time(partial(str, error), type(error))
    except TimeoutError:
        return f"(str() of the exception did not return within {TEXT_TIMEOUT:g} s)"
    except BaseException as mistake:  # a class's own code must not hide the exception
        return f"(str() of the exception raised {type(mistake).__name__})"


TEXT_TIMEOUT = 2.0
"""Maximum number of seconds that the code of an exception's class may take to make a text."""

_stuck: WeakSet[type] = WeakSet()
"""Classes whose code did not return in time. It is not called again."""


def _runs_own_code(error: BaseException) -> bool:
    """Return True if the text of an exception is made by code of its class or its arguments."""
    return type(type(error).__str__) is not WrapperDescriptorType or not _SIMPLE.issuperset(
        map(type, _slot("args", error))
    )


def _made_in_time(make: Callable[[], str], kind: type) -> str:
    """Call a function in a thread, and return its text.

    A thread cannot be stopped from outside, except that an exception can be raised in Python code
    that it runs, which ends endless loops. A call that blocks forever keeps its thread.

    Args:
        make: The function.
        kind: The class whose code it runs.

    Returns:
        The text.

    Raises:
        TimeoutError: The function did not return within `TEXT_TIMEOUT` seconds, now or earlier.
    """
    made: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            made.put(make())
        except BaseException as mistake:  # the code may raise anything
            made.put(mistake)

    if kind in _stuck:
        raise TimeoutError
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work,), name="rhapsody text", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # the process ends, or has too many threads
        return make()
    try:
        found = made.get(timeout=TEXT_TIMEOUT)
    except queue.Empty:
        _stuck.add(kind)
        import ctypes

        stop = ctypes.pythonapi.PyThreadState_SetAsyncExc
        stop(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise TimeoutError from None
    if isinstance(found, BaseException):
        raise found
    return found


def _slot(name: str, error: BaseException) -> Any:
    return BaseException.__dict__[name].__get__(error)


def _slots(error: BaseException) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that are not in `__dict__`, such as `errno`, with their values."""
    for kind in type(error).__mro__:
        if kind is BaseException or kind is object:
            continue
        for name, slot in vars(kind).items():
            slotted = isinstance(slot, MemberDescriptorType | GetSetDescriptorType)
            if slotted and not name.startswith("__"):
                with suppress(AttributeError):  # it is not set
                    value = slot.__get__(error)
                    if value is not None:  # OSError distinguishes `None` from a missing value
                        yield name, value


def _equal_args(one: BaseException, other: BaseException) -> bool:
    """Return True if exceptions have equal `args`. Only simple values are compared."""
    args = _slot("args", one), _slot("args", other)
    return list(map(type, args[0])) == list(map(type, args[1])) and all(
        type(value) not in _SIMPLE or value == copy for value, copy in zip(*args, strict=True)
    )


_SIMPLE = frozenset({str, bytes, int, float, complex, bool})


def _vars(error: BaseException) -> dict[str, Any]:
    attributes: dict[str, Any] = BaseException.__getattribute__(error, "__dict__")
    return attributes


def _add_note(error: BaseException, note: str) -> None:
    notes = _vars(error).get("__notes__")
    _vars(error)["__notes__"] = [*notes, note] if type(notes) is list else [note]


script_classes()  # before anything is unpickled


def main(order: str, outcome: str) -> None:
    """Make the packed call in the file `order`, and write its outcome to the file `outcome`."""
    part = Path(f"{outcome}.part")
    part.write_bytes(Runner().run(Path(order).read_bytes()))
    part.replace(outcome)
    worker_values().close()


if __name__ == "__main__":
    main(*sys.argv[1:])
