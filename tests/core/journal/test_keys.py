"""Which files, commands and surroundings are in the key of a task."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhapsody import InputFile, OutputFile
from rhapsody.builtin.journal.files import Stamp
from rhapsody.builtin.journal.keys import Key, Keys
from rhapsody.builtin.journal.values import UnhashableError
from rhapsody.data import InputFiles
from tests._support.journal_keys import (
    described,
    key_in,
    key_of,
    keys_in,
    loaded,
    twice,
    work,
    write,
)


def test_a_text_or_path_that_names_a_file_counts_with_its_content(
    keys: Keys, tmp_path: Path
) -> None:
    data = tmp_path / "data.txt"
    data.write_text("one")
    named: list[Any] = [str(data), data, "data.txt", [{"at": data}]]
    named += [np.array(["data.txt"], object), np.array([b"data.txt"])]
    for name in named:
        data.write_text("one")
        first = key_of(keys, work, name)
        data.write_text("two")
        assert key_of(keys, work, name).digest != first.digest
        assert keys.files(first.paths) != first.paths
        data.write_text("one")
        assert key_of(keys, work, name).digest == first.digest
        assert keys.files(first.paths) == first.paths


def test_a_file_that_a_column_of_a_table_names_counts(keys: Keys, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    tables = [pd.DataFrame({"a": pd.Series(["data.txt"], dtype=d)}) for d in ("str", "object")]
    seen = set()
    for text in ("one", "two"):
        (tmp_path / "data.txt").write_text(text)
        seen |= {key_of(keys, work, table).digest for table in tables}
    assert len(seen) == 4


def test_a_file_counts_however_its_path_is_written(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = tmp_path / "data.txt"
    ways = (
        "~/data.txt",
        "$HOME/data.txt",
        data.as_uri(),
        os.fsencode(data),
        bytearray(b"data.txt"),
    )
    seen = set()
    for text in ("one", "two"):
        data.write_text(text)
        seen |= {key_of(keys, work, way).digest for way in ways}
        seen.add(command(keys, "wc ~/data.txt"))
    assert len(seen) == 12


def test_files_with_the_same_content_have_different_keys(keys: Keys, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    (tmp_path / "link.txt").symlink_to("a.txt")
    names = ["a.txt", "b.txt", "./a.txt", "link.txt", str(tmp_path / "a.txt"), Path("a.txt")]
    assert len({key_of(keys, work, name).digest for name in names}) == len(names)


def test_the_target_of_a_link_counts(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to("a.txt")
    first = key_of(keys, work, "link").digest
    (tmp_path / "a.txt").write_text("b")
    assert key_of(keys, work, "link").digest != first


def test_a_file_that_comes_or_goes_is_seen(keys: Keys, tmp_path: Path) -> None:
    before = key_of(keys, work, "data.txt")
    (tmp_path / "data.txt").touch()
    assert keys.files(before.paths) != before.paths
    assert key_of(keys, work, "data.txt").digest != before.digest


def test_where_the_program_is_does_not_count(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        place = tmp_path / name
        (place / "data").mkdir(parents=True)
        (place / "data" / "a.txt").write_text("same")
        paths = [place, place / "data", str(place / "data" / "a.txt"), str(place / "new.txt")]
        found.append(key_of(keys_in(place), work, paths).digest)
    assert found[0] == found[1]


def test_what_begins_like_the_program_s_directory_is_no_part_of_it(tmp_path: Path) -> None:
    keys = keys_in(tmp_path / "one")
    assert len(set(twice(keys, str(tmp_path / "one/x"), str(tmp_path / "one_x")))) == 2


def test_nothing_but_regular_files_is_read(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "core").symlink_to("/proc/kcore")
    names = ["loop", "gone", "core", "/dev/zero", "/proc/kmsg", "/proc/kcore", ".",
             "", "a" * 5000, "a\0b", "a\nb", "\ud800", "/" * 4096, "x/" * 2000]  # fmt: skip
    for name in names:
        key = key_of(keys, work, name)
        assert key.paths == {name: None}
        assert keys.files(key.paths) == key.paths


def test_a_function_with_a_pipe_as_an_argument_has_no_key(keys: Keys, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("fifo", tmp_path / "fifo", "fifo"):
        with pytest.raises(UnhashableError, match="fifo' is a pipe"):
            key_of(keys, work, path)
    (tmp_path / "fifo").unlink()
    assert key_of(keys, work, "other").paths == {"other": None}


def test_a_file_that_cannot_be_read_is_none(keys: Keys, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "data.txt").write_text("one")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("no")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("os.open", refuse)
    assert key_of(keys, work, "data.txt").paths == {"data.txt": None}


def test_a_file_with_an_odd_name_is_found(keys: Keys, tmp_path: Path) -> None:
    for name in ("a\nb", os.fsdecode(b"\xff\xfe"), "a" * 255):
        (tmp_path / name).write_text("one")
        assert key_of(keys, work, name).paths[name] is not None


def test_a_file_that_is_written_again_at_once_is_read_again(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coarse(device: int, inode: int, size: int, changed: int) -> Stamp:
        return Stamp(device, inode, size, changed // 10**9 * 10**9)  # some keep whole seconds

    monkeypatch.setattr("rhapsody.builtin.journal.files.Stamp", coarse)
    data = tmp_path / "data.txt"
    seen = set()
    for text in ("one", "two", "six"):
        data.write_text(text)
        seen.add(key_of(keys, work, "data.txt").digest)
    assert len(seen) == 3


def test_a_file_that_does_not_change_is_read_once(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal.files.FINE_SETTLE_TIME", -1)  # all files are old
    data = tmp_path / "data.txt"
    data.write_text("one")
    first = key_of(keys, work, "data.txt").digest
    monkeypatch.setattr("rhapsody.builtin.journal.files.hashlib.file_digest", None)
    assert key_of(keys, work, "data.txt").digest == first


def test_a_file_whose_time_of_modification_was_kept_is_read_again(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal.files.FINE_SETTLE_TIME", -1)  # all files are old
    data = tmp_path / "data.txt"
    data.write_text("one")
    os.utime(data, (1, 1))
    first = key_of(keys, work, "data.txt").digest
    changed = data.stat().st_ctime_ns
    while data.stat().st_ctime_ns == changed:  # a tick of the file system's clock
        data.write_text("two")
    os.utime(data, (1, 1))  # as `cp -p` does
    assert key_of(keys, work, "data.txt").digest != first


@pytest.mark.parametrize("rows", [1, 2_000])
def test_a_database_of_sqlite_counts_with_its_write_ahead_log(
    rows: int, keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "data.sqlite"
    (tmp_path / "link.sqlite").symlink_to(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE numbers (number INTEGER)")
        database.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in range(rows)])
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = path.read_bytes()
        names = str(path), str(tmp_path / "link.sqlite")
        first = [key_of(keys, work, name).digest for name in names]
        first.append(keys.of(described(work), {}, {"in": str(path)}).digest)
        database.execute("INSERT INTO numbers VALUES (1)")
        assert path.read_bytes() == before
        second = [key_of(keys, work, name).digest for name in names]
        second.append(keys.of(described(work), {}, {"in": str(path)}).digest)
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_input_files_count_by_their_content(keys: Keys, tmp_path: Path) -> None:
    inner = tmp_path / "in" / "deep"
    inner.mkdir(parents=True)
    (inner / "a.txt").write_text("one")

    def digest(path: str | None) -> bytes:
        return keys.of(described(work), {}, {"in": path}).digest

    first, alone = digest(str(tmp_path / "in")), digest(str(inner / "a.txt"))
    assert first != alone
    (inner / "a.txt").write_text("two")
    changed = digest(str(tmp_path / "in"))
    assert changed != first
    assert digest(str(inner / "a.txt")) != alone
    (inner / "a.txt").rename(inner / "b.txt")
    assert digest(str(tmp_path / "in")) != changed
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    for path in (str(tmp_path / "in"), None, str(tmp_path / "nowhere"), "/dev/zero"):
        with pytest.raises(UnhashableError, match="input file 'in' cannot be read"):
            digest(path)


def test_the_path_of_an_input_file_counts_for_functions(tmp_path: Path) -> None:
    def key(project: Path, path: str, **more: Any) -> bytes:
        file = project / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
        task = described(more.pop("function", work), **{"given": ["in.txt"], **more})
        return keys_in(project).of(task, {}, {"in.txt": str(file)}).digest

    one, two = tmp_path / "one", tmp_path / "two"
    seen = {key(one, "in.txt"), key(one, "a/in.txt"), key(one, "b/in.txt"), key(one, "../in.txt")}
    assert len(seen) == 4
    assert {key(two, "in.txt"), key(two, "a/in.txt"), key(two, "b/in.txt")} < seen
    assert key(one, "in.txt") == key(one, "in.txt", given=())
    assert key(one, "a/in.txt", given=()) == key(one, "b/in.txt", given=())
    program: dict[str, Any] = {"function": None, "executable": "cat", "arguments": ["in.txt"]}
    assert key(one, "a/in.txt", **program) == key(one, "b/in.txt", **program)


@pytest.mark.parametrize("kind", ["file", "pattern", "directory"])
def test_input_files_with_one_name_count_by_the_arguments_that_receive_them(
    kind: str, keys: Keys, tmp_path: Path
) -> None:
    files = {"a.txt": "1/a.txt", "2/a.txt": "2/a.txt"}
    paths: dict[str, str | None] = {name: str(tmp_path / path) for name, path in files.items()}
    bound: list[Any] = []
    for path in files.values():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(path)
        file = InputFile("a.txt").bound_to((tmp_path / path).parent)
        many = InputFiles(file, ["a.txt"], directory=kind == "directory")
        bound.append(file if kind == "file" else many)
    one, two = bound

    def key(*args: Any, **kwargs: Any) -> Key:
        return keys.of(described(work, *args, kwargs=kwargs), {}, paths)

    assert key({"p": one, "q": two}) == key({"q": two, "p": one})
    assert key({"p": one, "q": two}).digest != key({"p": two, "q": one}).digest
    assert key(p=one, q=two).digest != key(p=two, q=one).digest
    task = described(work, one, two)
    keys.require_same_values(task, keys.of(task, {}, paths), paths)


def test_the_null_device_is_an_empty_input(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(os.devnull)
    seen = {
        keys.of(described(work), {}, {"in": str(path)}).digest
        for path in (os.devnull, tmp_path / "link", tmp_path / "empty")
    }
    assert len(seen) == 1


def test_a_directory_counts_with_empty_directories_and_executable_bits(
    keys: Keys, tmp_path: Path
) -> None:
    directory = tmp_path / "in"
    (directory / "empty").mkdir(parents=True)
    (directory / "run.sh").write_text("one")
    seen = {digest_of(keys, directory)}
    (directory / "run.sh").chmod(0o755)
    seen.add(digest_of(keys, directory))
    (directory / "empty").rmdir()
    seen.add(digest_of(keys, directory))
    assert len(seen) == 3


def digest_of(keys: Keys, path: Path) -> bytes:
    return keys.of(described(work), {}, {"in": str(path)}).digest


def test_a_file_that_this_process_has_mapped_to_write_is_read_each_time(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal.files.FINE_SETTLE_TIME", -1)  # all files are old
    data = tmp_path / "data.bin"
    data.write_bytes(bytes(8192))
    array = np.memmap(data, "u1", "r+")
    array[0] = 1
    first = digest_of(keys, data)
    changed = data.stat().st_ctime_ns
    array[1] = 1  # the page is dirty already: the file system does not notice
    assert data.stat().st_ctime_ns == changed
    assert digest_of(keys, data) != first


def test_a_file_without_a_time_of_change_is_read_each_time(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal.files.FINE_SETTLE_TIME", -1)  # all files are old
    monkeypatch.setattr("rhapsody.builtin.journal.files.file_system", lambda _: "tmpfs")
    data = tmp_path / "data.bin"
    data.write_text("one")
    first = digest_of(keys, data)
    monkeypatch.setattr(
        "rhapsody.builtin.journal.files.Stamp", lambda *_: None
    )  # as if none changed
    data.write_text("two")
    assert digest_of(keys, data) != first


def test_files_as_arguments_count_by_their_names(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    one = InputFile("a.txt")
    first, bound = twice(keys, one, one.bound_to("/somewhere", by_path=True))
    assert first == bound
    assert len({first, *twice(keys, InputFile("b.txt"), OutputFile("a.txt"))}) == 3
    places = ("/one", "/two")
    many = [InputFiles(one.bound_to(at, by_path=True), ["a", "b"], directory=True) for at in places]
    assert len(set(twice(keys, *many))) == 1


# Commands and what is around them.


def command(keys: Keys, executable: str, *arguments: Any, **more: Any) -> bytes:
    task = described(None, executable=executable, **more)
    if arguments:
        task["arguments"] = arguments
    key = keys.of(task, {}, {})
    assert key.code is None
    return key.digest


def test_a_command_counts_word_by_word(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "tool.sh").write_text("one")
    found = {
        command(keys, "tool a b"),
        command(keys, "tool", "a b"),
        command(keys, "tool", "a", "b"),
        command(keys, "tool", "b", "a"),
        command(keys, "./tool.sh", "a"),
        command(keys, "tool", Path("tool.sh")),
    }
    assert len(found) == 6
    before = command(keys, "./tool.sh", "a")
    (tmp_path / "tool.sh").write_text("two")
    assert command(keys, "./tool.sh", "a") != before


def test_a_program_counts_with_its_place_on_the_path_and_its_content(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text("#!/bin/sh")
        (tmp_path / name / "tool").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "one"))

    def key(**environment: str) -> Any:
        task = described(None, executable="tool", arguments=["a"], environment=environment)
        return keys.of(task, {}, {})

    one, two = key(), key(PATH=str(tmp_path / "two"))
    assert one.paths[str(tmp_path / "one" / "tool")] is not None
    assert two.paths[str(tmp_path / "two" / "tool")] is not None
    (tmp_path / "one" / "tool").write_text("#!/bin/bash")
    assert key().digest != one.digest
    launched = command(keys, "mpirun", "-n", "4", "tool")
    (tmp_path / "one" / "tool").write_text("#!/bin/dash")
    assert command(keys, "mpirun", "-n", "4", "tool") != launched


@pytest.mark.parametrize(
    "word",
    [
        "--in={}", "-I{}", "a,{}", "in:{}", "@{}", "{}#top", "cat <'{}'", "x; cat {} >/dev/null",
        "cat <> {}", 'cat <>"{}"', "cat 0<>{}",
        "tool -I{}", 'python -c "open(\\"{}\\")"', "cat $PLACE/data.txt", "cat ${{PLACE}}/data.txt",
        'cat "${{PLACE}}"/data.txt', "cat '$PLACE/a file.txt'", r"cat $PLACE/a\ file.txt",
        "cat ${{DIRECTORY}}/data.txt", "x" * 5000 + "; cat {}",
        'wc <"$PLACE/a file.txt"', 'cat <"$PLACE/a file.txt" >"/tmp/an output"',
        "(cat '$PLACE/a file.txt')|wc", 'IN="$PLACE/a file.txt" tool',
        'tool --in="$PLACE/a file.txt"',
        "sh -c 'wc <\"$PLACE/a file.txt\"'",
        'echo "it\'s"; cat "$PLACE/a file.txt"', "# don't fail\ncat '$PLACE/a file.txt'",
        r"echo it\'s; cat '$PLACE/a file.txt'", "# don't\ncat $PLACE/a\\ file.txt",
        "cat >out <<E\nI don't\nE\nwc '$PLACE/a file.txt' # won't",
        "python -c \"print(\\\"it's\\\", open('$PLACE/a file.txt').read())\"",
        'cat "$PLACE/it\'s.txt"', "cat $PLACE/it\\'s.txt", 'cat "$PLACE/bob\'s data"/a\\ file.txt',
    ],
)  # fmt: skip
def test_a_file_in_a_word_of_a_command_counts(
    word: str, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIRECTORY", str(tmp_path))
    data, environment = tmp_path / "data.txt", {"PLACE": str(tmp_path)}
    seen = set()
    for text in ("one", "two"):
        data.write_text(text)
        for name in ("a file.txt", "it's.txt", "bob's data/a file.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        seen.add(command(keys, "tool", word.format(data), environment=environment))
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["T=300.dat", "a,b", "x@2.txt", "a:b", "#1", "T=1/x.dat"])
@pytest.mark.parametrize(
    "words",
    [
        ("cat {}",), ("tool", "--in={}"), ("cat <'{}'; date",), ("tool --in='{}'",),
        ("tool", "if={}", "of=/tmp/x"), ("tool", "a,{}"),
    ],
)  # fmt: skip
def test_a_file_with_an_unusual_name_counts(
    words: Sequence[str], name: str, keys: Keys, tmp_path: Path
) -> None:
    path, seen = tmp_path / "dir, with=a space" / name, set()
    if "'" not in "".join(words) and len(words) == 1:
        path = tmp_path / "dir,with=none" / name
    path.parent.mkdir(parents=True)
    for text in ("one", "two"):
        path.write_text(text)
        seen.add(command(keys, *(word.format(path) for word in words)))
    assert len(seen) == 2


def test_a_file_that_a_command_writes_under_a_name_with_a_space_does_not_count(
    keys: Keys, tmp_path: Path
) -> None:
    seen = set()
    for text in ("one", "two"):
        (tmp_path / "a file.txt").write_text(text)
        for operator in (">", ">>", "2>", "&>", ">|", "> "):
            seen.add(command(keys, f"date {operator}'{tmp_path}/a file.txt'"))
        seen.add(command(keys, f"# don't\ndate >'{tmp_path}/a file.txt'"))
        seen.add(command(keys, f'echo "it\'s" > "{tmp_path}/a file.txt"'))
        seen.add(command(keys, f"echo it\\'s >>{tmp_path}/a\\ file.txt"))
    assert len(seen) == 9


_LONG = " ".join(f"word{number}" for number in range(100))


@pytest.mark.parametrize(
    "text",
    ["7tool", "echo a b c d e f g h; 7tool", "true 1 2 3 && 7tool", f"echo {_LONG}; 7tool"],
)
def test_a_program_in_a_command_of_a_shell_counts(text: str, keys: Keys, tmp_path: Path) -> None:
    seen = set()
    for content in ("one", "two"):
        (tmp_path / "7tool").write_text(content)
        (tmp_path / "7tool").chmod(0o755)
        seen.add(command(keys, text, environment={"PATH": str(tmp_path)}))
    assert len(seen) == 2


@pytest.mark.parametrize(
    "program",
    [
        "import subprocess\ndef f(x): return subprocess.run(x)\n",
        "from subprocess import check_output as run\ndef f(x): return run(x)\n",
        "import os\ndef f(x): return os.popen(x), os.path.exists(x)\n",
        "from os import system\ndef g(x): return system(x)\ndef f(x): return g(x)\n",
        "import asyncio\nasync def f(x): return await asyncio.create_subprocess_exec(x)\n",
    ],
)
def test_variables_that_the_program_has_set_count_where_a_function_starts_programs(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"main.py": program})
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        seen = [key_of(keys, main.f, "a").digest]
        for value in ("1", "2"):
            monkeypatch.setenv("TOOL_MODE", value)
            seen.append(key_of(keys, main.f, "a").digest)
        assert len(set(seen)) == 3
        own = {"environment": {"TOOL_MODE": "3"}}
        inherited = key_of(keys, main.f, "a", **own)
        monkeypatch.setenv("TOOL_MODE", "1")
        assert key_of(keys, main.f, "a", **own) == inherited


def test_variables_must_not_change_while_a_function_that_starts_programs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"main.py": "import subprocess\ndef f(x): return subprocess.run(x)\n"})
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        for shares_memory in (True, False):
            task = described(main.f, "a", shares_memory=shares_memory)
            key = keys.of(task, {}, {})
            keys.require_same_values(task, key)
            monkeypatch.setenv("OMP_NUM_THREADS", f"{shares_memory}")
            keys.require_same_values(task, key)
            monkeypatch.setenv("TOOL_MODE", f"{shares_memory}")
            if shares_memory:
                with pytest.raises(UnhashableError, match=r"TOOL_MODE.* changed"):
                    keys.require_same_values(task, key)
            else:  # the worker has its own environment
                keys.require_same_values(task, key)


def test_a_file_that_a_shell_command_names_counts_unless_it_is_written(
    keys: Keys, tmp_path: Path
) -> None:
    seen = set()
    for text in ("one", "two"):
        for name in ("tool", "in.txt", "log.txt"):
            (tmp_path / name).write_text(text)
        (tmp_path / "tool").chmod(0o755)
        seen.add(command(keys, f"{tmp_path}/tool -v | wc"))
        seen.add(command(keys, f"sh -c 'wc <{tmp_path}/in.txt'"))
        seen.add(command(keys, "FLAG=1 python3 --in=in.txt", cwd=str(tmp_path)))
        seen.add(command(keys, f"date >>{tmp_path}/log.txt 2> {tmp_path}/log.txt"))
    assert len(seen) == 7
    environment = {"PATH": str(tmp_path)}
    first = command(keys, "tool a", environment=environment)
    (tmp_path / "tool").write_text("three")
    assert command(keys, "tool a", environment=environment) != first


def test_a_file_in_the_directory_of_a_command_counts(keys: Keys, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    seen = set()
    for text in ("one", "two"):
        (place / "script.py").write_text(text)
        (place / "a script.py").write_text(text)
        seen.add(command(keys, "python", "script.py", cwd=str(place)))
        seen.add(command(keys, "tool", "--in=script.py", cwd=str(place)))
        seen.add(command(keys, "tool", "-Iscript.py", cwd=str(place)))
        seen.add(command(keys, "./script.py", "a", cwd=str(place)))
        seen.add(command(keys, "show", environment={"TOOLS": f"/none:{place}/script.py"}))
        seen.add(command(keys, "echo \"don't\"; cat 'a script.py'", cwd=str(place)))
    assert len(seen) == 12


def test_variables_that_the_program_has_set_count_where_a_command_inherits_them(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [command(keys, "tool")]
    for value in ("1", "2"):
        monkeypatch.setenv("TOOL_MODE", value)
        seen.append(command(keys, "tool"))
    assert len(set(seen)) == 3
    own = {"environment": {"TOOL_MODE": "3"}}
    assert command(keys, "tool", **own) == command(keys, "tool", **own)
    monkeypatch.delenv("TOOL_MODE")
    assert command(keys, "tool") == seen[0]
    monkeypatch.delenv("HOME")
    assert command(keys, "tool") != seen[0]


@pytest.mark.parametrize(
    "words",
    [["echo $TOOL_MODE"], ['[ "${TOOL_MODE:-1}" = 1 ]'], ["sh", "-c", "cat $TOOL_MODE"],
     ["echo $((TOOL_MODE+1))"], ["[[ TOOL_MODE -gt 1 ]]"], ["printenv", "TOOL_MODE"],
     ["V=TOOL_MODE; echo ${!V}"], ["python3", "-c", "print(os.environ['TOOL_MODE'])"]],
)  # fmt: skip
def test_variables_that_a_command_names_count_wherever_they_were_set(
    words: list[str], keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(keys.program), "variables", lambda _: {})  # as set by a shell
    seen = [command(keys, *words)]
    for value in ("1", "2", "secret.txt"):
        monkeypatch.setenv("TOOL_MODE", value)
        seen.append(command(keys, *words))
    (tmp_path / "secret.txt").write_text("its content counts")
    seen.append(command(keys, *words))
    assert len(set(seen)) == 5
    assert "secret.txt" not in keys.of(described(None, executable=words[0]), {}, {}).parts
    own: dict[str, Any] = {"environment": {"TOOL_MODE": "3"}}
    inherited = command(keys, *words, **own)
    monkeypatch.setenv("TOOL_MODE", "1")
    assert command(keys, *words, **own) == inherited
    monkeypatch.setenv("TMPDIR", "/another")
    before = command(keys, "ls $TMPDIR $HOME")
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert command(keys, "ls $TMPDIR $HOME") == before
    monkeypatch.setenv("TEMP", "300")  # a temperature
    cold = command(keys, "md $TEMP")
    monkeypatch.setenv("TEMP", "400")
    assert command(keys, "md $TEMP") != cold


@pytest.mark.parametrize("executable", ["tool", None])
def test_output_that_is_not_captured_counts(executable: str | None, keys: Keys) -> None:
    def key(**more: Any) -> bytes:
        if executable is not None:
            return command(keys, executable, **more)
        return key_of(keys, work, 1, **more).digest

    assert len({key(), key(capture=False), key(capture="files")}) == 3
    assert {key(capture=True), key(capture="quiet")} == {key()}


def test_the_sandbox_is_not_in_a_key(keys: Keys, tmp_path: Path) -> None:
    found = set()
    for name in ("task.1", "task.2"):
        at = tmp_path / name
        at.mkdir()
        (at / "a.txt").write_text(name)  # the content is that of an input file
        words = f"--in={at}/a.txt", f"cd {at}; ls {at}/b"
        inside = command(keys, "tool", *words, sandbox=str(at))
        found.add((inside, key_of(keys, work, f"{at}/a.txt", sandbox=str(at)).digest))
    assert len(found) == 1


def test_the_sandbox_of_another_task_is_in_a_key(keys: Keys, tmp_path: Path) -> None:
    for name in ("task.1", "task.10"):
        (tmp_path / name).mkdir()
    other = tmp_path / "task.10" / "a.txt"
    found = set()
    for text in ("one", "two"):
        other.write_text(text)
        at = str(tmp_path / "task.1")
        found.add(command(keys, "tool", str(other), sandbox=at))
        found.add(key_of(keys, work, str(other), sandbox=at).digest)
    assert len(found) == 4


def test_the_name_and_surroundings_count(keys: Keys) -> None:
    specific = [{"environment": {"A": "1"}}, {"named_env": "a"}, {"container": "a"},
                {"pre_exec": ["a"]}, {"pre_launch": ["a"]}]  # fmt: skip
    more: list[dict[str, Any]] = [
        {},
        {"name": "other"},
        {"environment": {"A": "1"}},
        {"environment": {"A": "2"}},
        {"cwd": "/tmp"},
        {"stdin": "a"},
        *({"task_backend_specific_kwargs": each} for each in specific),
    ]
    assert len({command(keys, "tool", "a", **each) for each in more}) == len(more)
    same: list[dict[str, Any]] = [
        {"uid": "e.task.000002.1"},
        {"environment": {}},
        {"timeout": 3.0, "attempt": 2, "resources": object(), "capture": "quiet"},
        {"task_backend_specific_kwargs": {"container": ""}},
        {"metadata": {"a": 1}, "scope": "s"},
    ]
    assert {command(keys, "tool", "a", **each) for each in [{}, *same]} == {
        command(keys, "tool", "a")
    }


def test_a_version_stands_for_the_code(tmp_path: Path) -> None:
    def keys_with(code: str) -> list[Key]:
        place = tmp_path / str(len(os.listdir(tmp_path)))
        write(place, {"main.py": f"f = lambda x: {code}\nclass g:\n    n = {code!r}\n"})
        with loaded(place) as main:
            tasks = [described(main.f, 1), described(main.g, 1), described(main.f, 2)]
            made = keys_in(place)
            return [made.of(each, {"version": v}, {}) for each in tasks for v in "12"]

    one, other = keys_with("x + 1"), keys_with("x + 2")
    assert one == other
    assert {each.code for each in one} == {None}
    assert len({each.digest for each in one}) == 6


def test_a_version_does_not_stand_for_the_code_where_a_name_is_used_twice(tmp_path: Path) -> None:
    text = (
        "fs = [lambda: 1, lambda: 2]\nclass X:\n    def __new__(cls): return 1\nY = X\n"
        "class X:\n    def __new__(cls): return 2\nif fs:\n    def f(): return 1\n    g = f\n"
        "    def f(): return 2\n"
    )
    write(tmp_path, {"main.py": text})
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        found = [*main.fs, main.X, main.Y, main.f, main.g]
        digests = {keys.of(described(each), {"version": "1"}, {}).digest for each in found}
    assert len(digests) == 6


def test_a_version_belongs_to_one_function(tmp_path: Path) -> None:
    program = {"moda.py": "def run(x): return 1\n", "modb.py": "def run(x): return 2\n"}
    write(tmp_path, program | {"main.py": "import moda, modb\n"})
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        found = [main.moda.run, main.modb.run, main.moda.run]
        digests = [keys.of(described(each, 1), {"version": "1"}, {}).digest for each in found]
    assert digests[0] == digests[2] != digests[1]


def test_a_version_does_not_stand_for_the_values_in_closures_and_defaults(keys: Keys) -> None:
    def made(n: int, code: str) -> Any:
        inner = eval(code)

        def function(x: int, m: int = n) -> Any:
            return inner(x) + m

        def other(x: int) -> Any:
            return function(x) + n

        return function, other

    for number in (0, 1):
        found = [made(1, "lambda x: 1"), made(2, "lambda x: 1"), made(1, "lambda x: 2")]
        digests = [
            keys.of(described(each[number], 1), {"version": "1"}, {}).digest for each in found
        ]
        assert digests[0] == digests[2] != digests[1]


def test_constants_that_are_paths_may_move_along_with_the_program(tmp_path: Path) -> None:
    text = (
        "from pathlib import Path\nimport os\nHERE = Path(__file__).parent\n"
        "DATA = os.path.join(os.path.dirname(__file__), 'data', 'NAME')\n"
        "def f(x, y=HERE / 'y'): return HERE, DATA\n"
    )
    first = key_in(tmp_path, {"main.py": text})
    assert key_in(tmp_path, {"main.py": text}) == first
    assert key_in(tmp_path, {"main.py": text.replace("NAME", "OTHER")}) != first


MODULE = """
from abc import abstractmethod
from functools import lru_cache, singledispatch, wraps
from dataclasses import dataclass
from inner import LIMIT, twice

K = 1
NAMES: list = ["a"]
EMPTY = {}
COMPUTED = len(NAMES)

def h(): return K

def plain(): return twice(), Y().p

def reads_all(): return K, NAMES, EMPTY, LIMIT, h(), cached(), Y().m()

@lru_cache
def cached(): return 1

class X:
    k = 1
    def m(self): return self.k

@dataclass
class Y:
    n: int
    def m(self): return twice()
    @property
    def p(self): return self.n

REGISTRY = {}
def register(function):
    REGISTRY[function.__name__] = function
    return function

def registered(): return sorted(REGISTRY)

def closed_over(values):
    def inner(x): return values
    return inner

BOX = [0]
def boxing(values):
    def wrap(function):
        @wraps(function)
        def wrapper(): return values
        return wrapper
    return wrap

@boxing(BOX)
def boxed(): ...

@singledispatch
def area(x): return 0

class Z:
    @abstractmethod
    def m(self): return 1
"""


@pytest.mark.parametrize(
    ("code", "shared"),
    [
        ("from m_a import Y, plain\ndef f(x): return plain(), m_a.twice(), Y", True),
        ("def f(x): return m_a.K", True),
        ("def f(x): return m_a.X().m()", True),
        ("V = 1\ndef f(x): return V\nV = 5", True),
        ("def f(x): return m_a.COMPUTED", False),
        ("m_a.K = 5\ndef f(x): return m_a.K", False),
        ("m_a.K = 5\ndef f(x): return m_a.reads_all()", False),
        ("m_a.K = 5\ndef f(x): return getattr(m_a, 'K')", False),
        ("m_a.NAMES.append('b')\ndef f(x): return m_a.reads_all()", False),
        ("m_a.EMPTY['a'] = 5\ndef f(x): return m_a.reads_all()", False),
        ("m_a.X.k = 5\ndef f(x): return m_a.X().m()", False),
        ("m_a.h = lambda: 5\ndef f(x): return m_a.reads_all()", False),
        ("import inner\ninner.LIMIT = m_a.LIMIT = 5\ndef f(x): return m_a.LIMIT", False),
        ("@m_a.register\ndef g(): ...\ndef f(x): return m_a.registered()", False),
        ("import json\njson.dumps = lambda v: 5\ndef f(x): return json.dumps(1)", False),
        ("import builtins\nbuiltins.EXTRA = 5\ndef f(x): return EXTRA", False),
        ("f = m_a.closed_over(m_a.NAMES)", True),
        ("m_a.BOX.append(1)\ndef f(x): return m_a.boxed()", False),
        ("m_a.plain.rate = 5\ndef f(x): return m_a.plain()", False),
        ("m_a.area.register(int, abs)\ndef f(x): return m_a.area(x)", False),
        ("def f(x): return m_a.Z.m(x)", True),
        ("import os\ndef f(x): return os.environ.get('MODE')", False),
        ("import os\ndef f(x): return dict(os.environ)", False),
    ],
)
def test_a_worker_shares_results_unless_the_program_has_set_values_in_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, *, shared: bool
) -> None:
    monkeypatch.setattr("json.dumps", json.dumps)
    write(tmp_path, {"m_a.py": MODULE, "inner.py": "LIMIT = 10\ndef twice(): return 2\n"})
    (tmp_path / "main.py").write_text(f"import m_a\n{code}\n")
    with loaded(tmp_path, "m_a"):
        script: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        text = f"import m_a\n{code}\n"
        exec(compile(text, str(tmp_path / "main.py"), "exec", dont_inherit=True), script)
        keys = keys_in(tmp_path)
        here, there = (
            keys.of(described(script["f"], 1, shares_memory=memory), {}, {}).digest
            for memory in (True, False)
        )
    assert (here == there) is shared
