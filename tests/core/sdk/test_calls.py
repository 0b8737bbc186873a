"""The call protocol: a call goes as bytes to where Rhapsody need not be, and comes back."""

from __future__ import annotations

import ast
import asyncio
import errno
import functools
import linecache
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import cloudpickle  # type: ignore[import-untyped]
import pytest

from rhapsody import TaskDescription, current_task
from rhapsody.errors import TaskFailedError
from rhapsody.sdk import runner
from rhapsody.sdk.calls import RemoteTraceback, call_spec, finish, pack, unpack
from rhapsody.sdk.runner import PROTOCOL_VERSION, CallSpec, ProtocolVersionError, Runner

SOURCE = Path(runner.__file__)

pytestmark = pytest.mark.timeout(60)


def described(function: Callable[..., Any], *args: Any, **more: Any) -> TaskDescription:
    task = {"uid": "task.1", "name": "one", "function": function, "args": args, "kwargs": {}}
    return cast("TaskDescription", {**task, **more})


def made(task: TaskDescription, by: Callable[[bytes], bytes] | None = None) -> Any:
    """A task's description after its call went there and back."""
    finish(task, unpack((by or Runner().run)(pack(task))))
    return task


@pytest.fixture
def bare(tmp_path: Path) -> Callable[[bytes], bytes]:
    """Makes a call by the one file, in a Python that has nothing but cloudpickle."""
    (tmp_path / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
    (tmp_path / "sent.py").write_text(SOURCE.read_text())

    def run(packed: bytes) -> bytes:
        (tmp_path / "order").write_bytes(packed)
        subprocess.run(
            [sys.executable, "-S", "sent.py", "order", "outcome"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            check=True,
            timeout=60,
        )
        return (tmp_path / "outcome").read_bytes()

    return run


def test_the_file_that_is_shipped_imports_nothing_but_pythons_own_and_cloudpickle() -> None:
    tree = ast.parse(SOURCE.read_text())
    at_once, later = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            found = at_once if node in tree.body else later
            found.update([str(node.module)] if isinstance(node, ast.ImportFrom) else names)
    assert {name.partition(".")[0] for name in at_once} <= sys.stdlib_module_names
    assert later - sys.stdlib_module_names == {"cloudpickle", "msgspec", "rhapsody.context"}


def test_the_traceback_of_a_function_that_travels_by_value_has_file_line_and_source() -> None:
    def fails() -> None:
        raise ValueError("on purpose")  # here

    cause = str(made(described(fails))["exception"].__cause__)
    line = fails.__code__.co_firstlineno + 1
    assert f'File "{__file__}", line {line}, in fails' in cause
    assert 'raise ValueError("on purpose")  # here' in cause


def test_the_traceback_has_source_that_only_the_program_can_read(
    bare: Callable[[bytes], bytes],
) -> None:
    text, name = "def fails(x):\n    return 1 // x  # in a cell\n", "<cell 3>"
    cell: dict[str, Any] = {}
    exec(compile(text, name, "exec"), cell)  # as a notebook does
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    cause = str(made(described(cell["fails"], 0), bare)["exception"].__cause__)
    assert 'File "<cell 3>", line 2, in fails\n    return 1 // x  # in a cell\n' in cause


def test_a_call_is_made_where_rhapsody_is_not_installed(bare: Callable[[bytes], bytes]) -> None:
    here = "closure"

    async def look(word: str) -> Any:
        await asyncio.sleep(0)
        print("printed")
        await (await asyncio.create_subprocess_shell("echo by a program")).wait()
        return here, word, find_spec("rhapsody") is None, os.environ["COLOUR"]

    task = made(described(look, "argument", environment={"COLOUR": "red"}), bare)
    assert task["return_value"] == ("closure", "argument", True, "red")
    assert task["stdout"] == "printed\nby a program\n"
    assert task["worker"].partition(":")[0] == os.uname().nodename


def refusing() -> type[Exception]:
    """A class that only this process has, of exceptions that cannot be made again."""

    class RefusingError(Exception):
        def __new__(cls, *args: Any) -> RefusingError:
            if args != ("one", "two"):
                raise ValueError
            return super().__new__(cls)

        def __init__(self, *args: Any) -> None:
            super().__init__(threading.Lock())

    return RefusingError


def test_exceptions_of_all_kinds_come_back_from_where_rhapsody_is_not_installed(
    bare: Callable[[bytes], bytes],
) -> None:
    class OddError(Exception):
        def __init__(self, code: int, *, more: str) -> None:
            super().__init__(f"code {code}")
            self.more = more
            self.lock = threading.Lock()

    refused = refusing()

    def fail() -> None:
        leaves = [OddError(7, more="more"), SystemExit(3), refused("one", "two")]
        raise BaseExceptionGroup("all", leaves)

    error = made(described(fail), bare)["exception"]
    assert type(error) is BaseExceptionGroup
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__)
    assert "sent.py" not in str(error.__cause__)
    odd, left, told = cast("list[Any]", error.exceptions)
    assert (type(odd), odd.args, vars(odd)) == (OddError, ("code 7",), {"more": "more"})
    assert (type(left), left.code) == (SystemExit, 3)
    assert isinstance(told, RuntimeError)
    assert "RefusingError" in str(told)


class ComposedError(Exception):
    """Its message contains the argument."""

    def __init__(self, step: int) -> None:
        super().__init__(f"diverged at step {step}")
        self.step = step


class LicenseError(Exception):
    """Its text does not come back, because its first argument is the whole text."""

    def __init__(self, code: int, message: str = "unknown reason") -> None:
        super().__init__(f"[{code}] {message}")


class JoinedError(Exception):
    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))


class NoSampleError(FileNotFoundError):
    """It can be called with one argument only, and `OSError` keeps its data outside `__dict__`."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.ENOENT, "no such sample", name)


class SlottedError(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class ReducedError(Exception):
    """Its own `__reduce__` is right and stays in use."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step}")
        self.later = threading.Lock()
        self.step = step

    def __reduce__(self) -> Any:
        return ReducedError, (self.step,)


class WithoutItsInitError(Exception):
    """Like exceptions that tblib pickles, it is unpickled without `__init__`."""

    def __reduce__(self) -> Any:
        return bare_copy, (type(self), self.args)


class DecodingError(UnicodeDecodeError, WithoutItsInitError):
    __reduce__ = WithoutItsInitError.__reduce__


def bare_copy(kind: type[BaseException], args: Any) -> BaseException:
    error = kind.__new__(kind)
    error.args = args
    return error


@pytest.mark.parametrize(
    ("kind", "args", "attributes"),
    [
        (ComposedError, (5,), {"step": 5}),
        (LicenseError, (7, "no seat left"), {}),
        (JoinedError, (["a.csv", "b.csv"],), {}),
        (NoSampleError, ("s1",), {"errno": errno.ENOENT, "filename": "s1", "filename2": None}),
        (SlottedError, (3,), {"code": 3}),
        (DecodingError, ("utf-8", b"a\xff", 1, 2, "bad byte"), {"start": 1, "object": b"a\xff"}),
        (ImportError, ("no",), {"msg": "no"}),
        (KeyError, ("k",), {}),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_an_exception_keeps_its_text_and_its_arguments(
    kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any], grouped: bool
) -> None:
    def fail() -> None:
        error = kind(*args)
        raise ExceptionGroup("all", [error]) if grouped else error

    error = kind(*args)
    copy = made(described(fail))["exception"]
    if grouped:
        (copy,) = copy.exceptions
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert {name: getattr(copy, name) for name in attributes} == attributes


def test_a_suitable_reduce_of_an_exception_is_used() -> None:
    def fail() -> None:
        raise ReducedError(5)

    copy = made(described(fail))["exception"]
    assert (str(copy), copy.step, hasattr(copy, "later")) == ("step 5", 5, True)


def test_an_exception_whose_text_contains_an_address_keeps_its_argument() -> None:
    def fail() -> None:
        raise ValueError(object(), 3)

    copy = made(described(fail))["exception"]
    assert (type(copy), type(copy.args[0]), copy.args[1]) == (ValueError, object, 3)


def test_an_exception_that_cannot_be_loaded_is_described() -> None:
    refused = refusing()

    def fail() -> None:
        raise refused("one", "two")

    error = made(described(fail))["exception"]
    assert type(error) is TaskFailedError
    assert "RefusingError" in str(error)


def test_a_call_knows_its_task_where_rhapsody_is_installed() -> None:
    def look() -> Any:
        task = current_task()
        return task.uid, task.name, task.attempt, task.sandbox, task.deadline

    task = made(described(look, attempt=2, timeout=1e6, capture=False))
    assert task["return_value"][:4] == ("task.1", "one", 2, None)
    assert task["return_value"][4] > 1e6
    assert "stdout" not in task
    with pytest.raises(RuntimeError):
        current_task()


def test_a_call_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "before")
    task = described(os.getenv, "KEPT", environment={"KEPT": "within", "ADDED": "too"})
    assert made(task)["return_value"] == "within"
    assert os.environ["KEPT"] == "before"
    assert "ADDED" not in os.environ


def test_what_cannot_be_packed_is_named_on_either_side() -> None:
    with pytest.raises(TypeError, match=r"'one': positional argument 0 \(lock\).* for a node: "):
        pack(described(len, threading.Lock()), worker="a node")
    error = made(described(threading.Lock))["exception"]
    assert "'one': its result (lock) cannot be pickled by its worker" in str(error)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the class can be pickled")
@pytest.mark.parametrize("instance", [True, False])
def test_a_class_with_a_cached_property_that_cannot_be_packed_is_explained(
    *, instance: bool
) -> None:
    class Cell:
        @functools.cached_property
        def size(self) -> int:
            return 1

    with pytest.raises(TypeError, match=r"functools\.cached_property, into a module"):
        pack(described(len, Cell() if instance else Cell))


class _NameOfTheScript:
    def __init__(self, module: str) -> None:
        self.module = module

    def __reduce__(self) -> Any:
        return pickle.loads, (f"c{self.module}\nmissing\n.".encode(),)


@pytest.mark.parametrize(
    ("module", "is_script"),
    [("__main__", True), ("__rhapsody_script__", True), ("math", False), ("unknown", False)],
)
def test_a_name_of_the_script_that_a_worker_lacks_is_explained(
    module: str, *, is_script: bool
) -> None:
    error = made(described(len, _NameOfTheScript(module)))["exception"]
    assert isinstance(error, AttributeError | ImportError)
    assert any("into a module" in note for note in error.__notes__) is is_script


class _NumberWhereItIsLoaded:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


@pytest.mark.parametrize(
    ("function", "args", "said"),
    [
        (len, (_NumberWhereItIsLoaded(),), "while task 'one' was unpacked on its worker"),
        (_NumberWhereItIsLoaded, (), f"the reply of worker process {os.getpid()} for task 'one'"),
    ],
    ids=["arguments", "result"],
)
def test_what_cannot_be_unpacked_says_where(function: Any, args: Any, said: str) -> None:
    error = made(described(function, *args))["exception"]
    assert type(error) is ValueError
    assert said in error.__notes__[0]


def test_output_that_is_to_be_kept_in_files_is_kept_there(tmp_path: Path) -> None:
    task = made(described(print, "said", sandbox=str(tmp_path / "made"), capture="files"))
    assert task["stdout"] == str(tmp_path / "made" / "task.1.out")
    assert Path(task["stdout"]).read_text() == "said\n"
    assert stat.S_IMODE(Path(task["stdout"]).stat().st_mode) == 0o600


def test_output_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "task.1.out").symlink_to(tmp_path / "precious")
    task = made(described(print, "said", sandbox=str(tmp_path), capture="files"))
    assert isinstance(task["exception"], OSError)
    assert (tmp_path / "precious").read_text() == "mine"


def test_output_that_has_no_place_fails_its_task(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    task = made(described(print, "said", sandbox=str(tmp_path / "file" / "x"), capture="files"))
    assert type(task["exception"]) is NotADirectoryError


@pytest.mark.parametrize(
    ("newer", "older"), [(1, "this worker"), (-1, "the program")], ids=["newer", "older"]
)
def test_a_call_of_another_version_is_refused_with_the_package_to_upgrade(
    newer: int, older: str
) -> None:
    version = PROTOCOL_VERSION + newer
    order = pickle.dumps((version, "what a later version may send", b""))
    _, error = _result(Runner().run(order))
    assert type(error) is ProtocolVersionError
    assert f"version {version} " in str(error)
    assert str(error).endswith(f"upgrade rhapsody-core of {older}")


@pytest.mark.parametrize(
    ("newer", "older"), [(1, "this program"), (-1, "the worker")], ids=["newer", "older"]
)
def test_a_result_of_another_version_is_refused_with_the_package_to_upgrade(
    newer: int, older: str
) -> None:
    with pytest.raises(ProtocolVersionError, match=f"upgrade rhapsody-core of {older}$"):
        unpack(pickle.dumps((PROTOCOL_VERSION + newer, "what another version may send")))


@pytest.mark.parametrize(("cores", "threads"), [(0, 0), (0.5, 1), (2.0, 2), (3.5, 3)])
def test_an_order_has_a_thread_for_each_whole_core(cores: float, threads: int) -> None:
    number = call_spec(described(print), cores=cores).cores
    assert (number, type(number)) == (threads, int)


def test_a_backend_can_have_steps_of_its_own() -> None:
    class Own(Runner):
        worker = "the node"
        cure = "return text"

        def load(self, call: Any) -> Any:
            function, args, kwargs = super().load(call)
            return function, (*args, self.own), kwargs

        def context(self, order: CallSpec) -> Any:
            self.own = order.more["own"]
            return super().context(order)

    task = described(max, 1, 2)
    packed = pack(task, call_spec(task, more={"own": 3}))
    assert _result(Own().run(packed)) == (3, None)
    task["function"] = threading.Condition
    task["args"] = ()
    packed = pack(task, call_spec(task, more={"own": None}))
    _, error = _result(Own().run(packed))
    assert "cannot be pickled by the node: " in str(error)
    assert str(error).endswith("; return text")


def _result(packed: bytes) -> Any:
    task = described(int)
    finish(task, unpack(packed))
    return task.get("return_value"), task.get("exception")
