"""Files that functions open without declaring them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ctypes
import functools
import importlib
import logging
import mmap
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from filecmp import cmp as same
from pathlib import Path
from typing import Any

import numpy
import pytest

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, WorkflowEngine
from rhapsody.builtin.journal import opened as opened_files
from rhapsody.builtin.journal.files import LARGE_FILE
from rhapsody.builtin.journal.plugin import Journal
from rhapsody.builtin.journal.store import opened
from rhapsody.sdk import runner
from tests._support.recorded import LOG, engine, note, ran

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def nothing_ran(here: Path) -> None:
    (here / LOG).touch()
    (here / "data").mkdir()
    for name in ("a", "b"):
        (here / "data" / f"{name}.txt").write_text(name)


async def run(
    function: Callable[..., Any],
    *calls: tuple[Any, ...],
    journal: Any = "run.sqlite",
    **options: Any,
) -> list[Any]:
    """Run a program of some calls that resumes the run before it."""
    async with WorkflowEngine.create(journal=journal, resume=True, **options) as flow:
        task = flow.function_task(function)
        return await asyncio.gather(*[task(*call) for call in calls])


READERS = {"text": open}


def read(name: str) -> str:
    note(f"read {name}")
    with open(f"data/{name}.txt") as file:
        return file.read()


async def read_later(name: str) -> str:
    note(f"read {name}")
    await asyncio.sleep(0)
    return await asyncio.to_thread(Path(f"data/{name}.txt").read_text)


BACKENDS: dict[str, Callable[[], Any]] = {
    "threads": lambda: LocalExecutionBackend("thread"),
    "processes": lambda: LocalExecutionBackend("process"),
    "an executor": lambda: LocalExecutionBackend(ThreadPoolExecutor(2)),
}


@pytest.mark.parametrize("function", [read, read_later])
@pytest.mark.parametrize("backend", BACKENDS)
async def test_only_tasks_whose_file_changed_run_again(
    here: Path, backend: str, function: Any
) -> None:
    calls = ("a",), ("b",)
    assert await run(function, *calls, backend=BACKENDS[backend]()) == ["a", "b"]
    assert await run(function, *calls, backend=BACKENDS[backend]()) == ["a", "b"]
    (here / "data" / "b.txt").write_text("changed")
    (here / "data" / "a.txt").touch()
    assert await run(function, *calls, backend=BACKENDS[backend]()) == ["a", "changed"]
    assert ran() == {"read a": 1, "read b": 2}
    with opened(here / "run.sqlite") as journal:
        (why,) = {each.what for each in journal.explain() if each.what.startswith("ran")}
    assert "data/b.txt" in why


async def test_a_directory_that_a_function_lists_counts_with_its_names(here: Path) -> None:
    def names() -> list[str]:
        note("names")
        return sorted(name for name in os.listdir("data") if name.endswith("txt"))

    assert await run(names, ()) == [["a.txt", "b.txt"]]
    (here / "data" / "a.txt").write_text("its content does not count")
    (here / "data" / ".cache").mkdir()
    (here / "data" / ".name.part").touch()
    assert await run(names, ()) == [["a.txt", "b.txt"]]
    assert ran()["names"] == 1
    (here / "data" / "c.txt").touch()
    assert await run(names, ()) == [["a.txt", "b.txt", "c.txt"]]
    (here / "data" / ".txt").touch()
    assert await run(names, ()) == [[".txt", "a.txt", "b.txt", "c.txt"]]


def created_if_missing() -> None:
    os.makedirs("data", exist_ok=True)


def created_once() -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir("data/")


def with_temporary_file() -> None:
    with tempfile.NamedTemporaryFile(dir="data") as file:
        file.write(b"1")


def created_anew() -> None:
    shutil.rmtree("data", ignore_errors=True)
    Path("data").mkdir()
    for name in "ab":
        Path(f"data/{name}.txt").write_text(name)


@pytest.mark.parametrize(
    "before", [created_if_missing, created_once, with_temporary_file, created_anew]
)
@pytest.mark.parametrize("backend", ["thread", "process"])
async def test_names_in_a_directory_that_a_function_creates_or_changes_count(
    before: Callable[[], None], backend: str, here: Path
) -> None:
    def names() -> list[str]:
        note("names")
        before()
        return sorted(os.listdir("data"))

    async def found() -> Any:
        return await run(names, (), backend=LocalExecutionBackend(executor=backend))

    for _ in range(2):
        assert await found() == [["a.txt", "b.txt"]]
    assert ran()["names"] == 1
    (here / "data" / "c.txt").touch()
    others = [] if before is created_anew else ["c.txt"]
    assert await found() == [["a.txt", "b.txt", *others]]
    assert ran()["names"] == 2


def convert() -> list[str]:
    note("convert")
    found = sorted(Path("data").glob("*.txt"))
    for path in found:
        subprocess.run(["sh", "-c", f"sleep 0.02; cp {path} {path}.out"], check=True)
    return [path.name for path in found]


@pytest.mark.parametrize("backend", ["thread", "process"])
async def test_names_in_a_directory_in_which_a_process_writes_count(
    backend: str, here: Path
) -> None:
    async def found() -> Any:
        return await run(convert, (), backend=LocalExecutionBackend(executor=backend))

    for _ in range(2):
        assert await found() == [["a.txt", "b.txt"]]
    assert ran()["convert"] == 1
    (here / "data" / "c.txt").touch()
    assert await found() == [["a.txt", "b.txt", "c.txt"]]


async def test_variables_of_the_program_count_for_processes_that_libraries_start(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mode() -> str:
        note("mode")
        return str(getattr(subprocess, "get" + "output")("echo $MODE"))  # as in a library

    for value in "aab":
        monkeypatch.setitem(os.environ, "MODE", value)
        assert await run(mode, ()) == [value]
    assert ran()["mode"] == 2


@pytest.mark.parametrize("kind", ["current", "argument"])
@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_files_in_the_current_directory_and_in_directories_of_arguments_count(
    here: Path, tmp_path: Path, backend: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, other = tmp_path / "program", tmp_path / "other"
    for place in (program, other / "sub" / ".hidden"):
        place.mkdir(parents=True)
    monkeypatch.setattr("rhapsody.builtin.journal._program_directory", lambda: program)
    given = "data" if kind == "current" else str(other)
    data = here / "data" if kind == "current" else other

    def texts(directory: str) -> list[str]:
        note("texts")
        names = [name for name in sorted(os.listdir(directory)) if name.endswith(".txt")]
        names += [os.path.join("sub", name) for name in names]
        if os.path.isdir(f"{directory}/sub/.hidden"):
            Path(directory, "sub", ".hidden", str(time.time())).touch()
        paths = [Path(directory, name) for name in names]
        return [path.read_text() for path in paths if path.exists()]

    async def changed() -> Any:
        (found,) = await run(texts, (given,), backend=BACKENDS[backend]())
        assert await run(texts, (given,), backend=BACKENDS[backend]()) == [found]
        return found

    for path in data.glob("*.txt"):
        path.unlink()
    (data / "sub").mkdir(exist_ok=True)
    assert await changed() == []
    (data / "a.txt").write_text("1")
    assert await changed() == ["1"]
    (data / "sub" / "a.txt").write_text("2")
    (data / "a.txt").write_text("3")
    assert await changed() == ["3", "2"]
    (data / "sub" / "a.txt").write_text("4")
    assert await changed() == ["3", "4"]
    assert ran() == {"texts": 4}


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "sub/*.txt"])
async def test_a_pattern_notices_a_directory_that_is_missing_at_first(
    here: Path, pattern: str
) -> None:
    def matches(directory: str) -> list[str]:
        note("matches")
        return [path.name for path in Path(directory).glob(pattern)]

    for _ in range(2):
        assert await run(matches, (str(here / "extra"),)) == [[]]
    (here / "extra" / "sub").mkdir(parents=True)
    (here / "extra" / "sub" / "c.txt").touch()
    (here / "extra" / "d.txt").touch()
    (found,) = await run(matches, (str(here / "extra"),))
    assert found
    assert ran() == {"matches": 2}


async def test_files_in_the_current_directory_are_found_after_a_move(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal._program_directory", lambda: tmp_path / "program")
    assert await run(read, ("a",)) == ["a"]
    other = tmp_path / "copy"
    shutil.copytree(here, other)
    monkeypatch.chdir(other)
    assert await run(read, ("a",)) == ["a"]
    assert ran() == {"read a": 1}
    (other / "data" / "a.txt").write_text("changed")
    assert await run(read, ("a",)) == ["changed"]


@pytest.mark.parametrize("runs", ["code", "runs/1"])
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_files_beside_the_directories_of_the_program_and_of_the_run_count(
    tmp_path: Path, runs: str, absolute: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "project"
    for place in ("code", "data/.cache", "runs/1", "runs/data"):
        (first / place).mkdir(parents=True)
    for place in ("", "runs"):
        (first / place / "data" / "a.txt").write_text("a")
    parts = ("..", "data", "a.txt")

    async def reads(project: Path) -> Any:
        monkeypatch.chdir(project / runs)
        program = project / "code"
        monkeypatch.setattr("rhapsody.builtin.journal._program_directory", lambda: program)

        def beside() -> str:
            note("beside")
            Path("..", "data", ".cache", "state").write_text("")
            with open(os.path.join(os.getcwd() if absolute else "", *parts)) as file:
                return file.read()

        return await run(beside, (), backend=BACKENDS[backend](), journal=tmp_path / "run.sqlite")

    (first / runs / "../data/.cache").mkdir(exist_ok=True)
    assert await reads(first) == await reads(first) == ["a"]
    second = first.rename(tmp_path / "moved")
    assert await reads(second) == ["a"]
    assert ran() == {"beside": 1}
    second.joinpath(runs, *parts).write_text("changed")
    assert await reads(second) == await reads(second) == ["changed"]
    assert ran() == {"beside": 2}


@pytest.mark.parametrize("above", ["home", "temporary files"])
async def test_files_beside_a_project_in_a_shared_directory_do_not_count(
    tmp_path: Path, above: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "code"
    program.mkdir()
    monkeypatch.chdir(program)
    monkeypatch.setattr("rhapsody.builtin.journal._program_directory", lambda: program)
    if above == "home":
        monkeypatch.setenv("HOME", str(tmp_path))
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("a")

    def beside() -> str:
        note("beside")
        return Path("..", "other", "a.txt").read_text()

    assert await run(beside, ()) == ["a"]
    (tmp_path / "other" / "a.txt").write_text("changed")
    assert await run(beside, ()) == ["a"]


def rows(path: str, value: int | None = None) -> int:
    note("rows")
    with contextlib.closing(sqlite3.connect(path, uri=path.startswith("file:"))) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
        if value is not None:
            connection.execute("INSERT INTO t VALUES (?)", (value,))
            connection.commit()
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


def rows_of_a_database() -> int:
    return rows("data/t.sqlite")


def rows_of_a_url() -> int:
    return rows("file:data/t.sqlite?mode=rw")


def rows_of_a_full_url() -> int:
    return rows(Path("data").resolve().as_uri() + "/t%2Esqlite?mode=rw")


def rows_in_memory() -> int:
    return rows(":memory:")


def insert_a_row() -> int:
    return rows("data/t.sqlite", 1)


async def test_a_database_that_a_function_reads_counts(here: Path) -> None:
    rows("data/t.sqlite", 1)
    functions = (rows_of_a_database, rows_of_a_url, rows_of_a_full_url, rows_in_memory)
    for rows_now in (1, 1, 2, 2):
        if rows("data/t.sqlite") < rows_now:
            rows("data/t.sqlite", 1)
        (here / LOG).write_text("")
        assert [(await run(each, ()))[0] for each in functions] == [*[rows_now] * 3, 0]
    assert not ran()


@pytest.mark.parametrize("large_file", [LARGE_FILE, 1])
async def test_what_is_only_in_the_log_of_a_database_counts(
    here: Path, monkeypatch: pytest.MonkeyPatch, large_file: int
) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal.opened.LARGE_FILE", large_file)
    with contextlib.closing(sqlite3.connect("data/t.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
        for rows_now in (1, 2, 3):
            connection.execute("INSERT INTO t VALUES (1)")
            connection.commit()
            assert await run(rows_of_a_database, ()) == [rows_now]
        (here / LOG).write_text("")
        assert await run(rows_of_a_database, ()) == [3]
        assert not ran()


async def test_a_database_that_a_function_writes_does_not_count(here: Path) -> None:
    for _ in range(2):
        assert await run(insert_a_row, ()) == [1]
        with contextlib.closing(sqlite3.connect(here / "data" / "t.sqlite")) as connection:
            connection.execute("INSERT INTO t VALUES (2)")
            connection.commit()


def load_library() -> int:
    note("library")
    return int(ctypes.CDLL("data/library.so").value())


def load_library_by_name() -> int:
    note("name")
    return int(ctypes.cdll.LoadLibrary("./data/library.so").value())


def load_library_by_item() -> int:
    note("item")
    return int(ctypes.cdll["./data/library.so"].value())


def load_system_library() -> int:
    note("system")
    return int(ctypes.CDLL(None).abs(-1))


def compile_library(value: int) -> None:
    Path("value.c").write_text(f"int value(void) {{ return {value}; }}")
    command = ["cc", "-shared", "-fPIC", "-o", "data/library.so", "value.c"]
    subprocess.run(command, check=True)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
async def test_a_shared_library_that_a_function_loads_counts(here: Path) -> None:
    functions = (load_library, load_library_by_name, load_system_library)
    for value in (1, 1, 2):
        compile_library(value)
        # In new worker processes, because a process keeps a library that it has loaded.
        results = [await run(each, (), backend=BACKENDS["processes"]()) for each in functions]
        assert results == [[value], [value], [1]]
    assert ran() == {"library": 2, "name": 2, "system": 1}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
async def test_a_library_that_ctypes_keeps_counts_for_later_tasks_of_a_process(here: Path) -> None:
    for value in (1, 2):
        compile_library(value)
        async with engine(resume=True, backend=BACKENDS["processes"]()) as flow:

            @flow.function_task
            def load(number: int) -> int:
                return load_library_by_item()

            assert [await load(number) for number in range(3)] == [value] * 3
    assert ran() == {"item": 6}


async def test_a_file_that_a_module_writes_at_its_import_counts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "prepared_data", raising=False)
    file, own = here / "rate.txt", here / "own.txt"
    (here / "prepared_data.py").write_text(
        "from pathlib import Path\nFILE = Path('rate.txt')\nFILE.write_text('3')\n"
        "def load():\n    Path('own.txt').write_text('4')\n    return FILE.read_text()\n"
    )
    with runner.watching((f"{here}/",)) as paths:
        assert importlib.import_module("prepared_data").load() == "3"
    uses = {path.replace(runner.RELATIVE, "/"): use for path, use in paths.items()}
    assert (uses[str(file)], uses[str(own)]) == (runner.READ, runner.WRITTEN)


def read_number(path: str) -> int:
    return int(Path(path).read_text())


def read_on_threads(count: int) -> int:
    note("threads")
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(read_number, [f"data/{number}.txt" for number in range(count)]))


def read_on_a_thread(count: int) -> int:
    note("thread")
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(read_number("data/0.txt")))
    thread.start()
    thread.join()
    return found[0]


def read_in_fork(count: int) -> int:
    note("fork")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(read_number("data/0.txt")).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as file:
        return int(file.read())


def run_on_threads(count: int) -> int:
    note("processes")

    def read(number: int) -> int:
        return int(subprocess.check_output(["cat", f"data/{number}.txt"]))

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(read, range(count)))


def read_with_exec(count: int) -> int:
    note("exec")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.execvp("cat", ["cat", os.path.abspath("data/0.txt")])
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as file:
        return int(file.read())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # multi-threaded, and forks
@pytest.mark.parametrize("backend", ["threads", "processes"])
@pytest.mark.parametrize(
    ("function", "sums"),
    [
        (read_on_threads, [6, 6, 8]),
        (read_on_a_thread, [3, 3, 5]),
        (run_on_threads, [6, 6, 8]),
        (read_in_fork, [3, 3, 5]),
        (read_with_exec, [3, 3, 5]),
    ],
)
async def test_files_that_threads_and_forks_of_a_function_open_count(
    here: Path, backend: str, function: Callable[[int], int], sums: list[int]
) -> None:
    results: list[int] = []
    (here / "data" / "1.txt").write_text("3")
    for content in ("3", "3", "5"):
        (here / "data" / "0.txt").write_text(content)
        results += await run(function, (2,), backend=BACKENDS[backend]())
    assert results == sums
    assert [*ran().values()] == [2]


async def test_a_fork_that_outlives_its_task_writes_into_no_other_file(here: Path) -> None:
    reading, writing = os.pipe()
    with runner.watching((f"{here}/",)) as paths:
        child = os.fork()
        if not child:
            os.read(reading, 1)  # until the task has ended
            os.close(os.open(here / "data" / "a.txt", os.O_RDONLY))
            os._exit(0)
        watched: Any = paths
        descriptor = int(Path(watched.file).name)
    other = os.open(here / "other.txt", os.O_RDWR | os.O_CREAT)
    os.dup2(other, descriptor)  # as a file that the program opens next
    os.write(writing, b"1")
    assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 - it ends soon
    for each in {other, descriptor, reading, writing}:
        os.close(each)
    assert (here / "other.txt").read_bytes() == b""
    assert str(here / "data" / "a.txt") not in paths


def load_model(path: str) -> float:
    note("model")
    with open(path, "rb") as file:
        return float(pickle.load(file).predict(2))


@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_the_module_of_a_class_that_a_function_unpickles_counts(
    here: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", str(here))
    results = []
    for factor in (3, 3, 50):  # of another size: Python's cache has seconds
        code = f"class Model:\n    def predict(self, x):\n        return {factor} * x\n"
        (here / "fitted.py").write_text(code)
        sys.modules.pop("fitted", None)
        importlib.invalidate_caches()
        (here / "model.pkl").write_bytes(b"cfitted\nModel\n)\x81.")
        results += await run(load_model, ("model.pkl",), backend=BACKENDS[backend]())
    assert results == [6.0, 6.0, 100.0]
    assert ran() == {"model": 2}


def load_cell(path: str) -> float:
    note("model")
    with open(path, "rb") as file:
        return float(pickle.load(file).predict(2))


@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_the_modules_that_a_file_run_with_exec_imports_count(
    here: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", str(here))
    (here / "settings.py").write_text("from units_of_time import hours\nrate = 2 * hours\n")
    (here / "reads_settings.py").write_text(
        "from pathlib import Path\nfrom tests._support.recorded import note\n"
        "def rate():\n    note('rate')\n    settings = {}\n"
        "    exec(Path('settings.py').read_text(), settings)\n    return settings['rate']\n"
    )
    importlib.invalidate_caches()
    function = importlib.import_module("reads_settings").rate
    results = []
    for hours in (1, 1, 24):  # of another size: Python's cache has seconds
        (here / "units_of_time.py").write_text(f"hours = {hours}\n")
        sys.modules.pop("units_of_time", None)
        results += await run(function, (), backend=BACKENDS[backend]())
    assert results == [2, 2, 48]
    assert ran() == {"rate": 2}


async def test_a_function_that_unpickles_an_object_of_a_notebook_cell_is_not_recorded(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "model.pkl").write_bytes(b"ccell\nModel\n)\x81.")
    results = []
    for factor in (3, 50):
        cell = types.ModuleType("cell")
        exec(f"class Model:\n    def predict(self, x):\n        return {factor} * x\n", vars(cell))
        monkeypatch.setitem(sys.modules, "cell", cell)
        results += await run(load_cell, ("model.pkl",), backend=BACKENDS["threads"]())
    assert results == [6.0, 100.0]
    assert "move the class into a module" in caplog.text


def start_python() -> str:
    return subprocess.run([sys.executable, "tool.py"], capture_output=True, text=True).stdout


def start_a_shell() -> str:
    return subprocess.run("cat <'tool.py' | cat", shell=True, capture_output=True, text=True).stdout


def start_elsewhere() -> str:
    command = [sys.executable, "../tool.py"]
    return subprocess.run(command, cwd="data", capture_output=True, text=True).stdout


def start_with_list() -> str:
    code = "import sys; print(*(open(name).read() for name in sys.argv[1][5:].split(',')))"
    command = [sys.executable, "-c", code, "--in=data/a.txt,tool.py"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def start_with_flag() -> str:
    return subprocess.run(["grep", "-ftool.py", "tool.py"], capture_output=True, text=True).stdout


def start_with_url() -> str:
    code = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
    command = [sys.executable, "-c", code, Path("tool.py").absolute().as_uri()]
    return subprocess.run(command, capture_output=True, text=True).stdout


def start_with_list_of_spaces() -> str:
    code = "import sys; print(*(open(name).read() for name in sys.argv[1][5:].split(',')))"
    command = [sys.executable, "-c", code, "--in=data/a.txt,my tool.py"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def start_with_arguments() -> str:
    code = "import sys; print(open(sys.argv[1][1:]).read())"
    command = [sys.executable, "-c", code, "@tool.py"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def start_with_spaces() -> str:
    text = subprocess.getoutput(f"{sys.executable} 'my tool.py'; cat \"$PWD/my tool.py\"")
    other = subprocess.run(["sh", "-c", r"cat my\ tool.py"], capture_output=True, text=True)
    return text + other.stdout


def start_with_variable() -> str:
    command = 'cat "$PLACE"/../tool.py'
    environment = {**os.environ, "PLACE": os.path.abspath("data")}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    return done.stdout


def start_in_path() -> str:
    environment = {**os.environ, "PATH": f"{os.path.abspath('data')}:{os.environ['PATH']}"}
    done = subprocess.run(["a-tool"], env=environment, capture_output=True, text=True)
    return done.stdout


def start_executable() -> str:
    os.chmod("tool.py", 0o700)
    return subprocess.getoutput("cat ./tool.py")


def start_with_system() -> str:
    os.system(f"{sys.executable} tool.py >data/out.txt")
    return Path("data/out.txt").read_text()


async def start_later() -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "tool.py", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.parametrize("backend", ["threads", "processes"])
@pytest.mark.parametrize(
    "function",
    [start_python, start_a_shell, start_elsewhere, start_with_list, start_with_flag,
     start_with_arguments, start_with_spaces, start_executable, start_in_path, start_with_system,
     start_with_variable, start_with_url, start_with_list_of_spaces, start_later],
)  # fmt: skip
async def test_files_that_the_command_of_a_process_names_count(
    here: Path, backend: str, function: Any
) -> None:
    def call() -> Any:
        note("call")
        return function()

    async def call_later() -> Any:
        note("call")
        return await function()

    task = call_later if function is start_later else call
    for text in ("one", "two"):
        for name in ("tool.py", "my tool.py"):
            (here / name).write_text(f"print('{text}')\n")
        (here / "data" / "a-tool").write_text(f"#!/bin/sh\necho {text}\n")
        (here / "data" / "a-tool").chmod(0o700)
        for _ in range(2):
            (found,) = await run(task, (), backend=BACKENDS[backend]())
            assert text in found
    assert ran() == {"call": 2}


async def test_files_in_the_directory_of_sandboxes_count_except_sandboxes(here: Path) -> None:
    def list_directory() -> None:
        note("list")
        os.listdir("data")

    def names(written: OutputFile) -> list[str]:
        note("names")
        Path(written).write_text("1")
        os.listdir(Path(written).parent)
        return [Path("data", name).read_text() for name in ("a.txt", "b.txt")]

    for version in ("a", "a", "new", "new"):
        (here / "data" / "a.txt").write_text(version)
        async with engine(resume=True, work_dir="data", keep_sandboxes="all") as flow:
            called = flow.function_task(list_directory)()
            assert await flow.function_task(names)(OutputFile("out.txt")) == [version, "b"]
            await called
        assert list((here / "data").glob("*.task.*"))
    assert ran() == {"names": 2, "list": 1}


@pytest.mark.parametrize("name", ["run-settings.txt", "run-data/x.txt", "run.txt"])
async def test_a_file_whose_path_begins_like_that_of_the_journal_counts(
    here: Path, name: str
) -> None:
    def look() -> str:
        note("look")
        os.listdir(".")
        return file.read_text()

    file = here / name
    file.parent.mkdir(exist_ok=True)
    for version in ("old", "old", "new"):
        file.write_text(version)
        async with WorkflowEngine.create(journal="run", resume=True) as flow:
            assert await flow.function_task(look)() == version
    assert ran()["look"] == 2


async def test_a_file_in_the_parent_of_a_link_counts(here: Path) -> None:
    (here / "other" / "inner").mkdir(parents=True)
    (here / "link").symlink_to("other/inner")
    (here / "rate.txt").write_text("not this one")
    file = here / "other" / "rate.txt"

    def rate() -> str:
        note("rate")
        Path("link/../made.txt").write_text("1")
        return Path("link/../rate.txt").read_text() + Path("data/../other/made.txt").read_text()

    for version in ("2", "2", "3"):
        file.write_text(version)
        assert await run(rate, ()) == [f"{version}1"]
    assert ran()["rate"] == 2


def real_directory(_: str) -> str:
    note("ran")
    return (Path("latest").resolve() / "x.txt").read_text()


def real_path(_: str) -> str:
    note("ran")
    with open(os.path.join(os.path.realpath("data/link.txt"))) as file:
        return file.read()


def name_of_target(_: str) -> str:
    note("ran")
    return os.readlink("latest")


def real_argument(path: str) -> str:
    note("ran")
    return (Path(path).resolve() / "x.txt").read_text()


class Version:
    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> str:
        return (Path(self.path).resolve() / "x.txt").read_text()


def real_path_in_method(version: Version) -> str:
    note("ran")
    return version.read()


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (real_directory, ""),
        (real_path, ""),
        (name_of_target, ""),
        (real_argument, "latest"),
        (real_argument, "{outside}/latest"),
        (real_path_in_method, Version("latest")),
    ],
)
@pytest.mark.parametrize("backend", ["thread", "process"])
async def test_links_count_for_functions_that_resolve_them(
    function: Callable[..., Any], argument: Any, backend: str, here: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    if isinstance(argument, str):
        argument = argument.format(outside=outside)

    def link(version: str) -> None:
        for place in (here, here / "data", outside):
            (place / version).mkdir(exist_ok=True)
            (place / version / "x.txt").write_text(version)
        for at in (here / "latest", here / "data/link.txt", outside / "latest"):
            at.unlink(missing_ok=True)
        (here / "latest").symlink_to(version)
        (here / "data/link.txt").symlink_to(f"{version}/x.txt")
        (outside / "latest").symlink_to(version)

    async def result() -> Any:
        return await run(function, (argument,), backend=LocalExecutionBackend(executor=backend))

    link("v1")
    assert await result() == ["v1"]
    assert await result() == ["v1"]
    assert ran()["ran"] == 1
    link("v2")
    assert await result() == ["v2"]
    assert ran()["ran"] == 2


async def test_a_file_that_did_not_exist_counts(here: Path) -> None:
    def rate() -> str:
        try:
            with open("rate.txt") as file:
                return file.read()
        except FileNotFoundError:
            return "default"

    assert await run(rate, ()) == ["default"]
    (here / "rate.txt").write_text("0.5")
    assert await run(rate, ()) == ["0.5"]
    (here / "rate.txt").unlink()
    assert await run(rate, ()) == ["default"]


def in_database() -> str:
    with contextlib.closing(sqlite3.connect("file:rate.txt?mode=ro", uri=True)) as database:
        return f"{database.execute('PRAGMA user_version').fetchone()}"


def in_file() -> str:
    with open("rate.txt", "r+") as file:
        return file.read()


@pytest.mark.parametrize("find", [in_database, in_file])
async def test_a_file_to_update_that_did_not_exist_counts(
    find: Callable[[], str], here: Path
) -> None:
    def rate() -> str:
        try:
            return find()
        except (sqlite3.OperationalError, FileNotFoundError):
            return "default"

    assert await run(rate, ()) == ["default"]
    with contextlib.closing(sqlite3.connect("rate.txt")) as database:
        database.execute("PRAGMA user_version = 5")
        if find is in_file:
            (here / "rate.txt").write_text("(5,)")
        assert await run(rate, ()) == ["(5,)"]


@pytest.mark.parametrize("directories", ["ba", "b"])
async def test_a_relative_path_counts_with_the_current_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch, directories: str
) -> None:
    def content() -> tuple[str, list[str]]:
        with open(here / LOG, "a") as log:
            log.write("content\n")
        with open("name.txt") as file:
            return file.read(), os.listdir()

    async def contents(names: str) -> list[Any]:
        monkeypatch.chdir(here)
        async with engine(resume=True) as flow:
            task, found = flow.function_task(content), []
            for name in names:
                monkeypatch.chdir(here / name)
                found.append(await task())
        monkeypatch.chdir(here)
        return found

    for name in "ab":
        (here / name).mkdir()
        (here / name / "name.txt").write_text(name)
    expected = {name: (name, ["name.txt"]) for name in "ab"}
    assert await contents("ab") == await contents("ab") == [expected["a"], expected["b"]]
    assert ran() == {"content": 2}
    assert await contents(directories) == [expected[name] for name in directories]
    assert ran() == {"content": 2 + len(directories)}


@pytest.mark.parametrize(
    "form", ["subprocess.check_output(['cat', 'name.txt'], text=True)",
             "subprocess.getoutput('cat name.txt')",
             "Path('name.txt').absolute().read_text()"]
)  # fmt: skip
async def test_a_program_that_changes_its_directory_for_each_case(
    form: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space: dict[str, Any] = {"__name__": "made", "subprocess": subprocess, "os": os, "Path": Path}
    exec(f"def content():\n    return {form}\n", space)

    async def contents(names: str) -> list[Any]:
        monkeypatch.chdir(here)
        async with engine(resume=True) as flow:
            task, found = flow.function_task(space["content"]), []
            for name in names:
                monkeypatch.chdir(here / name)
                found.append(await task())
        monkeypatch.chdir(here)
        return found

    for name in "abc":
        (here / name).mkdir()
        (here / name / "name.txt").write_text(name)
    assert await contents("ab") == ["a", "b"]
    assert await contents("cab") == ["c", "a", "b"]


async def test_a_file_is_written_in_each_current_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulate(number: int) -> int:
        Path("out.txt").write_text(str(number))
        return number

    for name in ("a", "b"):
        monkeypatch.chdir(here)
        (here / name).mkdir()
        async with engine(resume=True) as flow:
            monkeypatch.chdir(here / name)
            assert await flow.function_task(simulate)(3) == 3
        assert (here / name / "out.txt").read_text() == "3"


@pytest.mark.parametrize("mode", ["x", "x+", "xb"])
async def test_a_file_that_cannot_be_created_because_it_exists_counts(
    mode: str, here: Path
) -> None:
    def rate() -> str:
        note("rate")
        with contextlib.suppress(FileExistsError), open("rate.txt", mode) as file:
            file.write("1" if "b" not in mode else b"1")
        return Path("rate.txt").read_text()

    for rates in ("2", "2", "3"):
        (here / "rate.txt").write_text(rates)
        assert await run(rate, ()) == [rates]
    assert ran()["rate"] == 2


@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_current_directory_counts_only_for_relative_paths(
    here: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    async def values(directory: Path) -> list[str]:
        monkeypatch.chdir(here)  # the directory of the program
        journal = Journal(here / "run.sqlite", here, resume=True)
        monkeypatch.chdir(directory)
        options = {"observers": [journal], "backend": BACKENDS[backend]()}
        async with WorkflowEngine.create(work_dir=here / "work", **options) as flow:
            task = flow.function_task(lambda path: Path(path, "name.txt").read_text())
            found = [await task("."), await task(here / "c"), str(flow.stats.recorded)]
        journal.end("done")
        return found

    for name in "abc":
        (here / name).mkdir()
        (here / name / "name.txt").write_text(name)
    assert await values(here / "a") == ["a", "c", "0"]
    assert await values(here / "a") == ["a", "c", "2"]
    assert await values(here / "b") == ["b", "c", "1"]


async def test_a_file_that_another_task_writes_again_counts(here: Path) -> None:
    def write(text: str) -> None:
        Path("made.txt").write_text(text)

    def use() -> str:
        return Path("made.txt").read_text()

    async def program(text: str) -> str:
        async with engine(resume=True) as flow:
            await flow.function_task(write)(text)
            found: str = await flow.function_task(use)()
            return found

    assert await program("one") == "one"
    assert await program("two") == "two"


def write_and_read(number: int) -> str:
    note(f"write {number}")
    part = Path(f"part{number}")
    part.write_text(str(number))
    part.replace("out.txt")
    with open("all.txt", "a") as file:
        file.write("x")
    return Path("out.txt").read_text() + Path("all.txt").read_text()


async def test_files_that_the_task_writes_do_not_count() -> None:
    for _ in range(2):
        for number in (1, 2):
            await run(write_and_read, (number,))
    await run(write_and_read, (1,), (2,))
    assert ran() == {"write 1": 1, "write 2": 1}


def compare() -> Any:
    return same("data/a.txt", "data/b.txt", False)


def first_lines() -> Any:
    with READERS["text"]("data/a.txt") as lines:
        return list(lines)


def call(function: Callable[..., Any]) -> Any:
    return function("data/a.txt", "u1").tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (compare, ()),
        (first_lines, ()),
        (call, (numpy.memmap,)),
        (call, (numpy.fromfile,)),
    ],
)
async def test_functions_of_libraries_open_files_under_any_name(
    here: Path, backend: str, function: Any, arguments: tuple[Any, ...]
) -> None:
    first = await run(function, arguments, backend=BACKENDS[backend]())
    (here / "data" / "a.txt").write_text("b")
    assert await run(function, arguments, backend=BACKENDS[backend]()) != first


def map_file(name: str) -> bytes:
    note(name)
    with open(f"data/{name}.txt", "r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        return content[:]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_file_that_is_opened_for_writing_but_only_read_counts(
    here: Path, backend: str
) -> None:
    calls = ("a",), ("b",)
    assert await run(map_file, *calls, backend=BACKENDS[backend]()) == [b"a", b"b"]
    (here / "data" / "b.txt").write_text("changed")
    assert await run(map_file, *calls, backend=BACKENDS[backend]()) == [b"a", b"changed"]
    assert ran() == {"a": 1, "b": 2}


def increment(name: str) -> str:
    note(name)
    start = time.time_ns()
    with open(f"data/{name}.txt", "r+") as file:
        text = file.read()
        while os.fstat(file.fileno()).st_ctime_ns < start:  # its clock ticks every few milliseconds
            file.write("+")
            file.flush()
    return text


async def test_a_file_that_the_task_updates_does_not_count(here: Path) -> None:
    for text in ("a", "another"):
        (here / "data" / "a.txt").write_text(text)
        assert await run(increment, ("a",)) == ["a"]
    assert ran() == {"a": 1}


def start_and_read(name: str) -> str:
    note(name)
    subprocess.run([sys.executable, "-c", "open('made.txt', 'w').write('made')"], check=True)
    return Path("made.txt").read_text() + Path("data/a.txt").read_text()


async def test_a_file_that_a_process_of_the_task_wrote_does_not_count(here: Path) -> None:
    assert await run(start_and_read, ("first",)) == ["madea"]
    (here / "made.txt").write_text("another")
    await run(start_and_read, ("first",))
    assert ran()["first"] == 1
    (here / "data" / "a.txt").write_text("changed")
    assert await run(start_and_read, ("first",)) == ["madechanged"]


@pytest.mark.parametrize("path", ["data/a.txt", "data"])
async def test_what_changes_while_the_task_runs_is_not_recorded(
    here: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    (looked, look_done), (changed, change_done) = os.pipe(), os.pipe()

    def look() -> Any:
        found = os.listdir(path) if os.path.isdir(path) else Path(path).read_text()
        os.write(look_done, b".")
        os.read(changed, 1)
        return found

    async with engine() as flow:
        called = flow.function_task(look)()
        await asyncio.wait_for(asyncio.to_thread(os.read, looked, 1), 60)
        begin, probe = time.time_ns(), here / "probe"
        probe.touch()
        while probe.stat().st_ctime_ns < begin:  # the clock of file systems ticks every few ms
            probe.touch()
        (here / "data" / ("a.txt" if path != "data" else "c.txt")).write_text("changed")
        os.write(change_done, b".")
        await called
    for descriptor in (looked, look_done, changed, change_done):
        os.close(descriptor)
    assert path in caplog.text
    with opened(here / "run.sqlite") as journal:
        assert [run.kept for run in journal.runs()] == [0]


async def test_declared_files_hidden_directories_and_the_journal_do_not_count(here: Path) -> None:
    (here / ".cache").mkdir()
    (here / ".cache" / "state").write_text("1")

    def look(data: InputFile) -> str:
        note("look")
        os.listdir(".")
        list(Path(".").rglob("*/state"))  # also in the hidden directories
        Path(".cache/state").read_text()
        with open("run.sqlite", "rb") as file:
            file.read()
        return Path(data).read_text()

    async def program() -> None:
        async with engine(resume=True) as flow:
            await flow.function_task(look)(InputFile("data/a.txt"))

    await program()
    (here / ".cache" / "state").write_text("2")
    (here / ".cache" / "other").touch()
    await program()
    assert ran()["look"] == 1
    with opened(here / "run.sqlite") as journal:
        rows = journal._database.execute("SELECT opened FROM recordings").fetchall()
    assert "a.txt" not in str(rows)


async def test_modules_that_a_function_imports_do_not_count(here: Path, monkeypatch: Any) -> None:
    (here / "lib").mkdir()
    monkeypatch.syspath_prepend(str(here / "lib"))

    def rate() -> int:
        note("rate")
        try:  # looks into all directories of `sys.path`
            import no_module_has_this_name  # type: ignore[import-not-found]
        except ImportError:
            no_module_has_this_name = None
        return len(Path("data/a.txt").read_text()) + (no_module_has_this_name is None)

    assert await run(rate, ()) == [2]
    (here / "lib" / "another.txt").touch()
    assert await run(rate, ()) == [2]
    assert ran()["rate"] == 1


@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_a_source_file_that_a_function_opens_as_data_counts(here: Path, backend: str) -> None:
    def parameters() -> Any:
        note("parameters")
        rate = Path("data/rate.py").read_text().removeprefix("rate = ")
        with tokenize.open("data/more.py") as file:
            return int(rate), file.read()

    for rate, more, runs in ((1, "1", 1), (1, "1", 1), (2, "1", 2), (2, "2", 3), (2, "2", 3)):
        (here / "data" / "rate.py").write_text(f"rate = {rate}\n")
        (here / "data" / "more.py").write_text(more)
        assert await run(parameters, (), backend=BACKENDS[backend]()) == [(rate, more)]
        assert ran()["parameters"] == runs


async def test_too_many_files_are_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal.plugin.MAX_OPENED", 1)
    with caplog.at_level(logging.WARNING):
        await run(read, ("a",), ("b",))
    assert caplog.text.count("InputFile") == 1


async def test_the_directory_of_a_pattern_in_a_command_is_named_once(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert await run_command(f"cat {here}/data/*.txt {here}/data/[ab].txt") == "abab"
    assert caplog.text.count(f"InputFile({str(here / 'data')!r})") == 1
    assert ran()["look"] == 1


async def test_functions_that_cannot_open_files_are_not_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copied(values: list[int]) -> list[int]:
        return copy.deepcopy(values)

    def fail(*args: object) -> None:
        raise AssertionError(args)

    monkeypatch.setattr(opened_files.OpenedFiles, "noted", fail)
    monkeypatch.setattr("rhapsody.backends.local.threads.watch_files", fail)
    assert await run(copied, ([1],)) == [[1]]


async def test_retries_are_watched(here: Path) -> None:
    def flaky() -> str:
        note("flaky")
        text = Path("data/a.txt").read_text()
        if ran()["flaky"] % 2:
            raise ValueError("again")
        return text

    async def program() -> str:
        async with engine(resume=True) as flow:
            found: str = await flow.function_task(retries=1)(flaky)()
            return found

    assert await program() == "a"
    (here / "data" / "a.txt").write_text("changed")
    assert await program() == "changed"


async def run_command(command: str, *inputs: InputFile) -> str:
    """Run a command that resumes the run before it."""
    async with engine(resume=True) as flow:

        @flow.executable_task
        def look(*inputs: InputFile) -> str:
            return f"echo look >> {os.path.abspath(LOG)}; {command}"

        return await look(*inputs)


async def test_data_sets_that_commands_name_count_with_their_files(here: Path) -> None:
    data = here / "image.zarr"
    data.mkdir()
    for number in (1, 2):
        (data / str(number)).write_text("one")
        for _ in range(2):
            await run_command(f"ls {data}")
            assert ran()["look"] == number


async def test_directories_that_commands_read_are_named_once(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await run_command(f"ls {here}/data && ls {here}/data/")
    assert caplog.text.count("InputFile") == 1


async def test_directories_that_commands_write_or_declare_are_not_named(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "empty").mkdir()
    await run_command(f"ls {here}/empty {here}; date > {here}/data/c.txt; ls {here}/data")
    await run_command(f"ls {here}/empty; ls data", InputFile("data"))
    assert "InputFile" not in caplog.text


def count(path: str) -> int:
    note("count")
    return int(path.endswith("."))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    "name", ["image.zarr/0/0.0", "scan/1.dcm", "scan/DICOMDIR", "study/series/1.dcm"]
)
async def test_data_sets_among_the_arguments_count_with_their_files(
    here: Path, tmp_path: Path, inside: bool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    chunk = (here if inside else tmp_path) / name
    data = chunk.parents[name.count("/") - 1]
    chunk.parent.mkdir(parents=True)
    chunk.write_text("one")
    for times in (1, 1):
        await run(count, (str(data),))
        assert ran()["count"] == times
    chunk.write_text("changed")
    await run(count, (str(data),))
    assert ran()["count"] == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened_files, "MAX_ENTRIES", 0)
        await run(count, (str(data),), (str(data),))
    assert caplog.text.count("more than 0 files") == 1


@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_scripts_that_the_function_of_a_worker_value_starts_count(
    here: Path, backend: str
) -> None:
    def load() -> str:
        return subprocess.check_output([sys.executable, "tool.py"], text=True).strip()

    def use(value: str) -> str:
        note("use")
        return value

    (here / "tool.py").write_text("from lib import VALUE\nprint(VALUE)\n")
    for text in ("one", "one", "another", "another"):  # of another size, because of `__pycache__`
        (here / "lib.py").write_text(f"VALUE = {text!r}\n")
        async with engine(resume=True, backend=BACKENDS[backend]()) as flow:
            assert await flow.function_task(use)(flow.worker_value(load)()) == text
    assert ran() == {"use": 2}


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def call() -> Any:
        return function()

    return call


def read_settings() -> str:
    with open("data/a.txt") as file:
        return file.read()


@functools.cache
def settings() -> str:
    return read_settings()


@logged
@functools.lru_cache(maxsize=1)
def logged_settings() -> str:
    return Path("data/b.txt").read_text()


def first() -> Any:
    note("first")
    return settings() + logged_settings()


def second() -> str:
    note("second")
    return settings() * 2


def third() -> Any:
    note("third")
    return logged_settings() * 3


def without_settings() -> str:
    note("without")
    return read_settings.__name__


@pytest.mark.parametrize("before", ["a task", "the program"])
@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_a_cached_function_has_read_counts_for_all_tasks_that_use_it(
    here: Path, backend: str, before: str
) -> None:
    async def results() -> list[str]:
        settings.cache_clear()
        logged_settings.__wrapped__.cache_clear()
        made = BACKENDS[backend]()
        async with WorkflowEngine.create(made, journal="run.sqlite", resume=True) as flow:
            if before == "the program":
                settings(), logged_settings()
            functions = first, second, third, without_settings
            return [await flow.function_task(each)() for each in functions]

    expected = ["ab", "aa", "bbb", "read_settings"]
    assert await results() == await results() == expected
    (here / "data" / "a.txt").write_text("A")
    assert await results() == ["Ab", "AA", "bbb", "read_settings"]
    assert ran() == {"first": 2, "second": 2, "third": 1, "without": 1}
    (here / "data" / "b.txt").write_text("B")
    assert await results() == ["AB", "AA", "BBB", "read_settings"]
    assert ran() == {"first": 3, "second": 2, "third": 2, "without": 1}


async def test_a_task_with_settings_that_changed_after_they_were_read_is_not_recorded(
    here: Path, caplog: Any
) -> None:
    settings.cache_clear()
    async with WorkflowEngine.create(journal="run.sqlite") as flow:
        assert settings() == "a"
        begin, probe = time.time_ns(), here / "probe"
        probe.touch()
        while probe.stat().st_ctime_ns < begin:  # the clock of file systems ticks every few ms
            probe.touch()
        (here / "data" / "a.txt").write_text("A")
        assert await flow.function_task(second)() == "aa"
    assert "'data/a.txt', which it opened, changed after it was read" in caplog.text
