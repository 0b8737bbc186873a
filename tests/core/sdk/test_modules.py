"""The program's own modules reach workers in the versions that the program has."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import sys
import traceback
import types
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, WorkflowEngine
from rhapsody.sdk import modules as sdk_modules
from rhapsody.sdk import runner
from rhapsody.sdk.modules import REFERENCE, own_modules
from rhapsody.sdk.runner import SentModules, StaleModuleError
from tests._support.stale_modules import NAMES, write

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The program's directory, on its path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    former = sys.modules.copy()
    yield tmp_path
    for name in sys.modules.keys() - former.keys():
        if name.startswith(NAMES):
            del sys.modules[name]


def own(packed: bytes | None = None) -> dict[str, Any]:
    """Return the modules that are sent, by their names."""

    packed = own_modules() if packed is None else packed
    assert packed is not None
    found: dict[str, Any] = pickle.loads(zlib.decompress(packed[REFERENCE:]))
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize("start", ["before the edit", "after the edit"])
async def test_worker_processes_run_what_the_program_has_imported(place: Path, start: str) -> None:
    write(place, 1)
    main: Any = importlib.import_module("stale_main")
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:
        if start == "before the edit":
            assert await flow.function_task(main.helped)() == 1
        else:
            own_modules()
        write(place, 2)
        values = await flow.function_task(main.all_of_them)()
        assert values == [1] * 6
        with pytest.raises(main.OwnError) as caught:
            await flow.function_task(main.fail)()
        assert caught.value.args == (1,)


@pytest.mark.asyncio
async def test_worker_processes_follow_a_reload(place: Path) -> None:
    write(place, 1)
    main: Any = importlib.import_module("stale_main")
    backend = LocalExecutionBackend("process", resources={"workers": 1})
    async with WorkflowEngine.create(backend) as flow:

        @flow.function_task
        def helped() -> Any:
            return main.helped()

        @flow.function_task
        def count() -> Any:
            return main.count()

        assert [await helped(), await count(), await count()] == [1, 1, 2]
        write(place, 22)
        for name in ("stale_helper", "stale_main"):
            importlib.reload(sys.modules[name])
        assert [await helped(), await count()] == [22, 1]


def test_modules_are_sent_as_they_were_first_seen_and_anew_when_they_are_reloaded(
    place: Path,
) -> None:
    write(place, 1)
    helper = importlib.import_module("stale_main")
    first = own_modules()
    assert first is own_modules()
    assert {name for name in own() if name.startswith("stale")} == {
        *("stale_main", "stale_helper", "stale_lazy", "stale_space", "stale_space.inner"),
        *("stale_package", "stale_package.inner", "stale_package.value", "stale_package.late"),
    }
    write(place, 22)
    (place / "stale_more.py").write_text("")
    importlib.import_module("stale_more")
    del sys.modules["stale_more"]
    assert own()["stale_helper"] == own(first)["stale_helper"]
    importlib.reload(helper)
    assert b"own = 22" in own()["stale_main"][3]
    assert own()["stale_helper"] == own(first)["stale_helper"]


def test_modules_that_a_call_imports_by_a_literal_name_are_sent(place: Path) -> None:
    (place / "stale_main.py").write_text(
        "import importlib\n"
        "def f(): return importlib.import_module('stale_lazy').V\n"
        'def g(): return __import__(\n    "stale_helper"\n).V\n'
    )
    for name in ("stale_lazy", "stale_helper"):
        (place / f"{name}.py").write_text("V = 1\n")
    importlib.import_module("stale_main")
    assert {"stale_main", "stale_lazy", "stale_helper"} <= own().keys()


def test_modules_that_functions_of_a_script_import_are_sent(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "stale_script_s.py").write_text("V = 1\n")
    script = types.ModuleType("__rhapsody_script__")  # as `rhapsody run` makes it
    script.__file__ = str(place / "script.py")
    (place / "script.py").write_text(
        "def f():\n    import stale_script_s\n    return stale_script_s.V\n"
    )
    monkeypatch.setitem(sys.modules, script.__name__, script)
    assert own()["stale_script_s"][3] == b"V = 1\n"


def test_compiled_modules_without_a_spec_are_not_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the parts of an extension module; some have hundreds of megabytes."""
    library = types.ModuleType("stale_part")
    library.__file__ = str(place / "stale_part.so")
    library.__spec__ = None
    (place / "stale_part.so").write_bytes(b"\x7fELF\nimport stale_other\n")
    (place / "stale_other.py").write_text("A = 1\n")
    monkeypatch.setitem(sys.modules, "stale_part", library)
    assert "stale_other" not in own()


def test_a_file_that_was_changed_since_its_import_is_known(place: Path) -> None:
    own_modules()
    write(place, 1)
    for name in ("stale_main", "stale_lazy"):
        importlib.import_module(name)
    (place / "stale_helper.py").write_text("V = 2\ndef helped(): return V\n")
    own_modules()
    assert [sdk_modules.altered(name) for name in NAMES[:3]] == [False, True, False]


def packed(program: int, **texts: str) -> bytes:
    """The modules of a program, as it sends them."""

    sources = {}
    for name, text in texts.items():
        content = text.encode()
        sources[name] = (f"/nowhere/{name}.py", False, runner.digest_of(content), content)
    return pack(program, sources)


def pack(program: int, sources: dict[str, Any]) -> bytes:
    data = pickle.dumps(sources)
    reference = bytes([program] * 16) + hashlib.blake2b(data, digest_size=16).digest()
    return reference + zlib.compress(data)


@pytest.fixture
def sent() -> Iterator[SentModules]:
    """The modules on a worker, which is this process."""
    made = SentModules()
    former, path = sys.modules.copy(), sys.meta_path.copy()
    yield made
    sys.meta_path[:] = path
    for name in sys.modules.keys() - former.keys():
        del sys.modules[name]


def value(name: str = "stale_a") -> Any:
    return importlib.import_module(name).V


def test_a_module_that_is_not_there_is_imported_from_what_was_sent(sent: SentModules) -> None:
    with sent.using(packed(1, stale_a="from stale_b import V", stale_b="V = 1")):
        assert value() == 1
        kept = sys.modules["stale_a"]
    with sent.using(packed(1, stale_a="from stale_b import V", stale_b="V = 1")):
        assert importlib.import_module("stale_a") is kept


def test_modules_that_took_names_of_one_that_changed_are_imported_anew(sent: SentModules) -> None:
    with sent.using(packed(1, stale_a="from stale_b import V", stale_b="V = 1")):
        assert value() == 1
    with sent.using(packed(1, stale_a="from stale_b import V", stale_b="V = 2")):
        assert value() == 2


def test_a_module_that_is_no_more_cannot_be_imported(sent: SentModules) -> None:
    with sent.using(packed(1, stale_a="V = 1", stale_b="V = 1")):
        assert value("stale_b") == 1
    for program in (1, 2):
        new = packed(program, stale_a="V = 2")
        with sent.using(new), pytest.raises(ModuleNotFoundError):
            value("stale_b")


def test_what_the_worker_had_imported_itself_is_replaced(place: Path, sent: SentModules) -> None:
    (place / "stale_a.py").write_text("V = 1\n")
    (place / "stale_user.py").write_text("from stale_a import V\n")
    assert value("stale_user") == 1
    (place / "stale_a.py").write_text("V = 2\n")  # what the program has
    text = (place / "stale_a.py").read_text()
    with sent.using(packed(1, stale_a=text, stale_user="from stale_a import V\n")):
        assert (value(), value("stale_user")) == (2, 2)


def test_a_module_that_changes_in_the_second_of_its_compilation_is_compiled_again(
    place: Path, sent: SentModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = place / "stale_main.py"
    for text in ("V = 1", "V = 2"):
        file.write_text(text)
        os.utime(file, (2_000_000_000, 2_000_000_000))
        source = str(file), False, runner.digest_of(text.encode()), text.encode()
        with sent.using(pack(1, {"stale_main": source})):
            assert value("stale_main") == int(text[-1])
        (cached,) = place.glob("__pycache__/stale_main.*.pyc")
        os.utime(cached, (2_000_000_000, 2_000_000_000))


def test_a_version_that_calls_are_using_is_not_replaced(sent: SentModules) -> None:
    first, second = packed(1, stale_a="V = 1"), packed(2, stale_a="V = 2")
    with sent.using(first):
        with pytest.raises(StaleModuleError) as caught, sent.using(second):
            pass
        assert value() == 1
        for text in ("V = 1", "V = 2"):
            assert runner.digest_of(text.encode())[:12] in str(caught.value)
        with sent.using(packed(3, stale_b="V = 3")):
            assert value("stale_b") == 3
        with sent.using(first):
            assert value() == 1
    with sent.using(second):
        assert value() == 2


def test_modules_that_were_received_are_named_by_their_reference(sent: SentModules) -> None:
    modules = packed(1, stale_a="V = 1")
    with pytest.raises(StaleModuleError), sent.using(modules[:REFERENCE]):
        pass
    sent.receive(modules)
    with sent.using(modules[:REFERENCE]):
        assert value() == 1
    sent.discard(modules[:REFERENCE])
    assert "stale_a" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        value()


def test_a_new_program_imports_unchanged_modules_anew(place: Path, sent: SentModules) -> None:
    file = place / "config.txt"
    text = f"import pathlib\nV = pathlib.Path({str(file)!r}).read_text()"
    first, second = packed(1, stale_a=text), packed(2, stale_a=text)
    sent.receive(first)  # the program is killed, and its modules are not discarded yet
    sent.receive(second)
    file.write_text("one")
    with sent.using(first):
        assert value() == "one"
    file.write_text("two")
    with sent.using(second):
        assert value() == "two"
        kept = sys.modules["stale_a"]
    with sent.using(first), sent.using(second):
        assert importlib.import_module("stale_a") is kept


def test_a_new_program_keeps_modules_that_calls_are_using(sent: SentModules) -> None:
    with sent.using(packed(1, stale_a="V = 1")):
        assert value() == 1
        kept = sys.modules["stale_a"]
        with sent.using(packed(2, stale_a="V = 1")):
            assert importlib.import_module("stale_a") is kept


def test_an_extension_module_has_to_be_the_same(place: Path, sent: SentModules) -> None:

    file = place / "stale_a.so"
    file.write_bytes(b"here")
    there = {"stale_a": (str(file), False, runner.digest_of(b"there"), None)}
    with sent.using(pack(1, there)), pytest.raises(StaleModuleError) as caught:
        value()
    assert runner.digest_of(b"here")[:12] in str(caught.value)
    assert runner.digest_of(b"there")[:12] in str(caught.value)


def test_the_source_that_was_sent_is_in_tracebacks(sent: SentModules) -> None:

    with sent.using(packed(1, stale_a="def f():\n    raise ValueError  # sent\n")):
        try:
            importlib.import_module("stale_a").f()
        except ValueError as error:
            text = "".join(traceback.format_exception(error))
    assert '/nowhere/stale_a.py", line 2, in f\n    raise ValueError  # sent\n' in text


@pytest.mark.asyncio
async def test_a_forked_process_keeps_what_the_program_had_set(place: Path) -> None:
    write(place, 1)
    main: Any = importlib.import_module("stale_main")
    own_modules()
    main.calls.append("set by the program")
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        async with WorkflowEngine.create(LocalExecutionBackend(pool)) as flow:
            assert await flow.function_task(main.count)() == 2


def test_the_process_of_the_program_keeps_its_modules(place: Path, sent: SentModules) -> None:
    write(place, 1)
    main = importlib.import_module("stale_main")
    modules = own_modules()
    assert modules is not None
    sent.program = modules[:16], os.getpid()
    write(place, 2)
    with sent.using(modules):
        assert sys.modules["stale_main"] is main
    assert sent not in sys.meta_path


def test_a_namespace_package_in_one_that_is_not_imported_is_sent(place: Path) -> None:
    inner = place / "stale_space" / "inner"
    inner.mkdir(parents=True)
    (inner / "value.py").write_text("V = 1\n")
    (place / "stale_main.py").write_text("def f():\n    from stale_space.inner import value\n")
    importlib.import_module("stale_main")
    packed = own_modules()
    assert packed is not None
    sources = pickle.loads(zlib.decompress(packed[REFERENCE:]))
    assert {name for name in sources if name.startswith("stale_")} == {
        "stale_main",
        "stale_space",
        "stale_space.inner",
        "stale_space.inner.value",
    }


@pytest.mark.parametrize("local", [True, False])
def test_a_distribution_of_local_files_counts_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    def installed(digest: str) -> tuple[str, str]:
        place = tmp_path / digest
        about = place / "tool_of_this_test-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Name: tool-of-this-test\nVersion: 1.0\n")
        (about / "RECORD").write_text(f"tool_of_this_test/__init__.py,sha256={digest},12\n")
        if local:
            (about / "direct_url.json").write_text('{"dir_info": {}, "url": "file:///src/tool"}')
        monkeypatch.setattr(sys, "path", [str(place), *sys.path])
        return sdk_modules._version("tool_of_this_test")

    first, second = installed("one"), installed("two")
    assert (first != second) is local
    assert first[1].startswith("1.0")
