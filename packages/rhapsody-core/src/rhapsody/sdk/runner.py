"""Makes calls where their bytes arrive: the half of the call protocol that can be shipped.

The other half, `rhapsody.sdk.calls`, packs a call and reads its outcome. A backend with a
step of its own overrides that step of `Runner`.

This file needs the standard library and cloudpickle only, so that it can be sent to where
Rhapsody is not installed, and run there. What travels is of Python's own types, but for what
is the user's, and begins with `PROTOCOL_VERSION`.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import io
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections import ChainMap
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from types import CodeType, CoroutineType
from typing import Any, Literal, NamedTuple

__all__ = [
    "PROTOCOL_VERSION", "Captured", "Environment", "Order", "Outcome", "Output",
    "ProtocolVersionError", "Runner", "known", "pack_error", "require_version", "trimmed",
]  # fmt: skip

PROTOCOL_VERSION = 1
"""Raised by each change after which one side of a call could not understand the other."""

KEPT = 1 << 20
"""Bytes of output, and characters of a traceback, that an outcome holds at most."""

PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values run nobody's code when they are unpacked."""


class ProtocolVersionError(RuntimeError):
    """The program and a worker speak different versions of the protocol."""


class Order(NamedTuple):
    """What a worker has to know of a task beside the call itself. Travels as a plain tuple.

    Attributes:
        version: The `PROTOCOL_VERSION` of the program.
        uid: The attempt's uid.
        name: The task's name.
        attempt: Counted from 1.
        sandbox: The task's directory, `None` where it has none.
        timeout: Seconds that the attempt may take, `None` without a limit.
        cores: How many threads numeric libraries may use; 0 leaves them as they are.
        environment: Variables to set while it runs.
        capture: What to do with its output, as in the task's description.
        directory: Where files of the call's go, such as large output; `None` for nowhere.
        more: What only the backend's own `Runner` reads; of Python's own types.
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


class Outcome(NamedTuple):
    """What came of a call. Travels as a plain tuple.

    Attributes:
        version: The `PROTOCOL_VERSION` of the worker.
        done: Whether the call returned.
        payload: What it returned, or what it raised, packed.
        plain: Whether the value is of a type whose values run nobody's code when unpacked.
        stdout: What it printed, or the file that holds it; `None` where that is not kept.
        stderr: The same of standard error.
        sandbox: The directory that holds output of the call's, `None` where none does.
        host: The name of the machine that it ran on.
        pid: The id of the process that it ran in.
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


def require_version(version: int, sender: str, receiver: str) -> None:
    """Refuse what the sender made by another version of the protocol than the receiver's.

    Raises:
        ProtocolVersionError: It says which side is to be upgraded.
    """
    if version != PROTOCOL_VERSION:
        older = receiver if version > PROTOCOL_VERSION else sender
        raise ProtocolVersionError(
            f"{sender} ships calls by version {version} of the protocol, {receiver} by version "
            f"{PROTOCOL_VERSION}: upgrade rhapsody-core at {older}"
        )


class Output:
    """Does nothing about a call's output; what does derives from it. For use in a `with`.

    Attributes:
        stdout: What was printed, or the file that holds it; `None` where that is not kept.
        stderr: The same of standard error.
        directory: The directory that holds some of it, `None` where none does.
    """

    stdout: str | None = None
    stderr: str | None = None
    directory: str | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        """Finds what was printed."""


class Runner:
    """Makes calls where their bytes arrive. Override what your system does in its own way.

    Attributes:
        worker: What a worker is called in messages.
        place: Where a call is, in the same words.
        cure: What a user can do about a result that cannot be pickled.
        own_files: The beginnings of the paths of code that tracebacks are not to begin in.
    """

    worker: str = "its worker"
    place: str = "on its worker"
    cure: str = "return data that can be"
    own_files: tuple[str, ...] = (__file__,)

    def run(self, packed: bytes) -> bytes:
        """Make a call that `rhapsody.sdk.calls.pack` packed, and return its outcome for `unpack`.

        Whatever goes wrong is the outcome: nothing is raised.
        """
        try:
            *fields, call = loads(packed)
            require_version(fields[0], "the program", "this worker")
            outcome = self.make(Order(*fields), call)
        except BaseException as error:  # such as one for the version
            outcome = self.failed(error)
        return pickle.dumps(tuple(outcome), 5)

    def make(self, order: Order, call: Any) -> Outcome:
        """Make a call, which `load` takes, with all that is around it; nothing is raised."""
        output = _none
        try:
            limit_threads(order.cores)
            output = self.output(order)
            with self.environment(order), output, self.context(order):
                done, payload, plain = self.answer(order.name, call)
        except BaseException as error:  # such as that of output which cannot be written
            return self.failed(error, output)
        return _outcome(done, payload, plain, output)

    def answer(self, name: str, call: Any) -> tuple[bool, Any, bool]:
        """Make a call and nothing around it; see `Outcome` for what this returns."""
        try:
            function, args, kwargs = self.load(call)
        except BaseException as error:  # loading runs the objects' own code
            _add_note(error, f"while task {name!r} was unpacked {self.place}")
            return False, self.pack_error(error), False
        try:
            value = function(*args, **kwargs)
            if type(value) is CoroutineType:
                value = self.wait(value)
        except BaseException as error:  # whatever a task raises is its result
            return False, self.pack_error(error), False
        finally:
            del function, args, kwargs
        try:
            return True, self.pack(value), type(value) in PLAIN
        except BaseException as error:  # pickling runs the objects' own code
            return False, self.pack_error(self.refusal(name, value, error)), False

    def failed(self, error: BaseException, output: Output | None = None) -> Outcome:
        """Return the outcome of a call that failed."""
        return _outcome(False, self.pack_error(error), False, output or _none)

    # Steps to override:

    def load(self, call: Any) -> tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]:
        """Unpack a call: its function and arguments."""
        function, args, kwargs = loads(call)
        return function, args, kwargs

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run the coroutine of an asynchronous function to its end, on a loop of its own."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(coroutine)
        with ThreadPoolExecutor(1) as pool:  # another loop runs on this thread
            return pool.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()

    def pack(self, value: Any) -> Any:
        """Pack what a call returned, or raised."""
        return dumps(value)

    def unpack(self, payload: Any) -> Any:
        """Undo `pack`."""
        return loads(payload)

    def pack_error(self, error: BaseException) -> Any:
        """Pack what a call raised, with its traceback from the user's code on."""
        return pack_error(trimmed(error, self.own_files), self.pack, self.unpack)

    def refusal(self, name: str, value: Any, error: BaseException) -> Exception:
        """Return the error for a task's result that cannot be packed, and why it cannot."""
        return TypeError(
            f"task {name!r}: its result ({type(value).__qualname__}) cannot be pickled back from "
            f"{self.worker}: {type(error).__name__}: {_text(error)}; {self.cure}"
        )

    def output(self, order: Order) -> Output:
        """Return what keeps a call's output: here, that of the whole process."""
        return _none if order.capture is False else Captured(order)

    def environment(self, order: Order) -> AbstractContextManager[Any]:
        """Return what sets the call's variables."""
        return Environment(order.environment)

    def context(self, order: Order) -> AbstractContextManager[Any]:
        """Return what makes `rhapsody.current_task()` work, where that is installed."""
        try:
            from rhapsody.context import TaskContext, task_context
        except ImportError:
            return nullcontext()
        return task_context(TaskContext(**known(order)))


def known(order: Order) -> dict[str, Any]:
    """Return what a running task can know of itself: the arguments of its `TaskContext`."""
    return {
        "uid": order.uid,
        "name": order.name,
        "attempt": order.attempt,
        "sandbox": order.sandbox,
        "deadline": None if order.timeout is None else time.time() + order.timeout,
    }


def _outcome(done: bool, payload: Any, plain: bool, output: Output) -> Outcome:
    printed = output.stdout, output.stderr, output.directory
    return Outcome(PROTOCOL_VERSION, done, payload, plain, *printed, _host, os.getpid())


class Environment:
    """Sets variables while a call runs, before anything of it is imported."""

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
    """Keeps what this process and the programs that it starts print: one call at a time.

    With `capture="files"` that goes to `<uid>.out` and `<uid>.err` in the order's directory.
    """

    directory: str | None

    def __init__(self, order: Order) -> None:
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
        """Sends an output of the process to a file; returns what ends that."""
        former = getattr(sys, name)
        if former is not None:
            former.flush()
        path = f"{self._stem}.{name[3:]}"
        file: Any = None if self.directory else tempfile.TemporaryFile()  # noqa: SIM115
        if self.directory:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            file = os.fdopen(os.open(path, flags, 0o600), "w+b")
        kept = os.dup(number)
        os.dup2(file.fileno(), number)
        raw = os.fdopen(os.dup(number), "wb", 0)
        stream = io.TextIOWrapper(raw, "utf-8", "replace", write_through=True)
        setattr(sys, name, stream)

        def restore() -> None:
            with suppress(Exception):  # the call may have closed it, or put another there
                getattr(sys, name).flush()
            stream.close()
            setattr(sys, name, former)
            os.dup2(kept, number)
            os.close(kept)
            with file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                text = path if self.directory else file.read(KEPT).decode("utf-8", "replace")
            if size > KEPT and not self.directory:
                text += f"\n[cut: {size} bytes were printed]\n"
            setattr(self, name, text)

        return restore


_none = Output()
_host = os.uname().nodename
_threads: int | None = None


def limit_threads(cores: int) -> None:
    """Tell numeric libraries that are loaded already about another number of cores, 0 for none.

    They read the variables only once. Needs threadpoolctl, which scikit-learn brings.
    """
    global _threads
    if cores == 0 or cores == _threads:
        return
    former, _threads = _threads, cores
    if former is not None:
        with suppress(ImportError):
            importlib.import_module("threadpoolctl").threadpool_limits(cores)


def dumps(value: Any, **options: Any) -> bytes:
    """Pickle a value as cloudpickle does, but keep the file names of functions for tracebacks.

    Args:
        value: The value.
        **options: Options of `pickle.Pickler`.
    """
    target = io.BytesIO()
    pickler()(target, **options).dump(value)
    return target.getvalue()


def pickler() -> Any:
    """Return the class of pickler that `dumps` uses, which a backend may extend."""
    if _own.pickler is None:
        # Here, so that where it is missing each call says so.
        import cloudpickle  # type: ignore[import-untyped,unused-ignore]

        reduce_code = cloudpickle.Pickler.dispatch_table[CodeType]

        def with_file(code: CodeType) -> Any:
            kind, args = reduce_code(code)
            file = code.co_filename
            return kind, tuple(file if each == "<dynamic-code>" else each for each in args)

        table = ChainMap({CodeType: with_file}, cloudpickle.Pickler.dispatch_table)
        _own.pickler = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})
    return _own.pickler


class _Own:
    """What a process makes for itself: it stays behind where this module travels by value."""

    pickler: Any = None

    def __reduce__(self) -> tuple[type[_Own], tuple[()]]:
        return type(self), ()


_own = _Own()


def loads(packed: Any) -> Any:
    """Undo `dumps`."""
    return pickle.loads(packed)  # noqa: S301 - from the other side of the call


def pack_error(
    error: BaseException,
    pack: Callable[[Any], Any] = dumps,
    unpack: Callable[[Any], Any] = loads,
) -> Any:
    """Pack an exception, of its own type wherever that can be had.

    Args:
        error: The exception.
        pack: What to pack with. What it refuses stays behind.
        unpack: Undoes `pack`.
    """
    kind, text = type(error), _formatted(error)[-KEPT:]
    state = {key: value for key, value in _vars(error).items() if _packs(pack, value)}
    ways: list[tuple[str, Callable[[], Any]]] = [
        ("itself", lambda: error),
        ("rebuilt", lambda: (kind, _slot("args", error), state)),
    ]
    if kind is SystemExit:  # tblib, which Dask installs, loses the code
        ways = [("called", lambda: (kind, (getattr(error, "code", None),)))]
    elif issubclass(kind, BaseExceptionGroup):
        ways = [("group", lambda: _group(error))]
    ways.append(("rebuilt", lambda: (kind, (_text(error)[:KEPT],), state)))
    for way, data in ways:
        try:
            packed = pack((way, data(), text))
            if type(made(*unpack(packed)[:2])) is kind:
                return packed
        except BaseException:  # noqa: S112 - an exception class may do anything; try the next way
            continue
    return pack(("words", _in_words(error)[:KEPT], text))


def made(way: str, data: Any) -> BaseException:
    """Return the exception that `pack_error` packed, made in the way that it found."""
    error: BaseException
    if way == "itself":
        error = data
    elif way == "words":  # it could not be had: the program has an error of its own for it
        error = RuntimeError(data)
    elif way == "called":
        kind, args = data
        error = kind(*args)
    elif way == "group":
        kind, message, members = data
        error = kind(message, [made(*loads(member)[:2]) for member in members])
    else:
        kind, args, state = data
        error = kind.__new__(kind, *args)  # not its `__init__`, which may want others
        BaseException.__setattr__(error, "args", args)
        _vars(error).update(state)
    return error


def trimmed(error: BaseException, own_files: tuple[str, ...] = (__file__,)) -> BaseException:
    """Return the exception with a traceback that does not begin in files of ours."""
    trace = _slot("__traceback__", error)
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(own_files):
        trace = trace.tb_next
    # A TypeError for wrong arguments has no frame of the user's at all.
    return BaseException.with_traceback(error, trace)


def _packs(pack: Callable[[Any], Any], value: Any) -> bool:
    with suppress(BaseException):  # pickling runs the objects' own code
        pack(value)
        return True
    return False


def _group(group: Any) -> Any:
    return type(group), group.message, [pack_error(member) for member in group.exceptions]


def _formatted(error: BaseException) -> str:
    """The text of an exception with its traceback."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # formatting runs the exception's own code
        return "".join([*traceback.format_tb(_slot("__traceback__", error)), _in_words(error)])


# Exceptions may be of a class that forbids setting attributes, a frozen dataclass say, or that
# raises when it is looked at in any other way. These ask nothing of the object itself, as do
# those of `rhapsody.errors`, which need not be here.


def _in_words(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}: {_text(error)}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as mistake:  # a class's own code must not hide the exception
        return f"(its text cannot be made: {type(mistake).__name__})"


def _slot(name: str, error: BaseException) -> Any:
    return BaseException.__dict__[name].__get__(error)


def _vars(error: BaseException) -> dict[str, Any]:
    attributes: dict[str, Any] = BaseException.__getattribute__(error, "__dict__")
    return attributes


def _add_note(error: BaseException, note: str) -> None:
    notes = _vars(error).get("__notes__")
    _vars(error)["__notes__"] = [*notes, note] if type(notes) is list else [note]


def main(order: str, outcome: str) -> None:
    """Make a call whose bytes are in one file, and put its outcome into another."""
    part = Path(f"{outcome}.part")
    part.write_bytes(Runner().run(Path(order).read_bytes()))
    part.replace(outcome)


if __name__ == "__main__":
    main(*sys.argv[1:])
