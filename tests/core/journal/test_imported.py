"""Modules that tasks are the first to import, and whose sources change while the program runs."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from rhapsody.builtin.journal.import_hook import hook
from rhapsody.builtin.journal.program import Sources
from rhapsody.builtin.journal.values import UnhashableError
from tests._support.journal_keys import described, key_in, key_of, keys_in, loaded, write

IMPORTS = [
    "def f(x):\n    import lz\n    return lz.g(x)\n",
    "def f(x):\n    from lz import RATE\n    return RATE + x\n",
    "def f(x):\n    import over\n    return over.lz.g(x)\n",
]

OVER = "import lz\n"


def source(rate: int) -> str:
    return f"RATE = {rate}\ndef g(x):\n    return x + {rate}\n"


@pytest.mark.parametrize("main", IMPORTS)
def test_a_module_that_is_reloaded_counts_with_its_new_source(main: str, tmp_path: Path) -> None:
    files = {"main.py": main, "over.py": OVER}
    one, two = (key_in(tmp_path, files | {"lz.py": source(rate)})[0] for rate in (1, 100))
    write(tmp_path, files | {"lz.py": source(1)})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        task = described(program.f, 1, shares_memory=True)
        assert keys.of(task, {}, {}).digest == one
        assert program.f(1) == 2
        write(tmp_path, {"lz.py": source(100)})
        keys.begin()
        assert keys.of(task, {}, {}).digest == one
        assert program.f(1) == 2  # not reloaded yet
        importlib.reload(sys.modules["lz"])
        keys.begin()
        key = keys.of(task, {}, {})
        assert key.digest == two
        assert program.f(1) == 101
        keys.begin()
        keys.require_same_values(task, key)


@pytest.mark.parametrize("main", IMPORTS)
def test_a_module_that_changes_before_a_task_imports_it_is_noticed(
    main: str, tmp_path: Path
) -> None:
    write(tmp_path, {"main.py": main, "over.py": OVER, "lz.py": source(1)})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        task = described(program.f, 1, shares_memory=True)
        key = keys.of(task, {}, {})
        write(tmp_path, {"lz.py": source(100)})
        assert program.f(1) == 101
        keys.begin()
        with pytest.raises(UnhashableError, match=r"lz\.py was changed after the program started"):
            keys.require_same_values(task, key)
        again = keys.of(task, {}, {})
        assert again.digest != key.digest  # the loaded version counts from now on
        keys.require_same_values(task, again)


@pytest.mark.parametrize("main", IMPORTS)
def test_a_module_that_a_later_run_imports_again_counts_with_its_new_source(
    main: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"main.py": main, "over.py": OVER}
    one, two = (key_in(tmp_path, files | {"lz.py": source(rate)})[0] for rate in (1, 100))
    write(tmp_path, files)
    with loaded(tmp_path) as program:
        task = described(program.f, 1, shares_memory=True)
        for rate, digest in ((1, one), (100, two)):
            write(tmp_path, {"lz.py": source(rate)})
            for name in ("lz", "over"):
                sys.modules.pop(name, None)
            sources = Sources()  # as in a separate run
            sources.process_start = sys.maxsize
            monkeypatch.setattr("tests._support.journal_keys.SOURCES", sources)
            keys = keys_in(tmp_path)
            assert keys.of(task, {}, {}).digest == digest
            assert program.f(1) == 1 + rate
            keys.begin()
            assert keys.of(task, {}, {}).digest == digest


def test_a_module_that_changes_after_a_task_imported_it_makes_no_difference(tmp_path: Path) -> None:
    write(tmp_path, {"main.py": IMPORTS[0], "lz.py": source(1)})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        task = described(program.f, 1, shares_memory=True)
        key = keys.of(task, {}, {})
        assert program.f(1) == 2
        write(tmp_path, {"lz.py": source(100)})
        keys.begin()
        keys.require_same_values(task, key)


def test_a_module_that_is_not_imported_counts_as_workers_receive_it(tmp_path: Path) -> None:
    write(tmp_path, {"main.py": IMPORTS[0], "lz.py": source(1)})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        here = described(program.f, 1, shares_memory=True)
        elsewhere = described(program.f, 1, shares_memory=False)
        keys.of(here, {}, {})
        before = keys.of(elsewhere, {}, {})
        write(tmp_path, {"lz.py": source(100)})
        keys.begin()
        with pytest.raises(UnhashableError, match=r"lz\.py was changed"):
            keys.of(here, {}, {})
        assert keys.of(elsewhere, {}, {}).digest == before.digest
        keys.require_same_values(elsewhere, before)
        importlib.import_module("lz")  # workers receive this version from now on
        keys.begin()
        assert keys.of(elsewhere, {}, {}).digest != before.digest
        with pytest.raises(UnhashableError, match=r"lz\.py was changed"):
            keys.require_same_values(elsewhere, before)


def test_a_variable_that_the_program_sets_after_a_task_imported_the_module_counts(
    tmp_path: Path,
) -> None:
    files = {
        "analysis.py": "TOL = 1\ndef clean(x): return x\ndef fit(x): return x * TOL\n",
        "main.py": "def clean(x):\n    import analysis\n    return analysis.clean(x)\n"
        "def fit(x):\n    import analysis\n    return analysis.fit(x)\n",
    }
    write(tmp_path, files)
    digests = []
    for value in (None, 1, 5):
        with loaded(tmp_path) as main:
            keys = keys_in(tmp_path)
            before = key_of(keys, main.fit).digest
            main.clean(1)
            analysis = importlib.import_module("analysis")
            if value is not None:
                vars(analysis)["TOL"] = value
            keys.begin()
            digests.append((before, key_of(keys, main.fit).digest))
    assert digests[0] == digests[1]
    assert digests[2][0] == digests[0][0] == digests[0][1]
    assert digests[2][1] != digests[0][1]


def test_keys_listen_to_imports_only_while_they_are_used(tmp_path: Path) -> None:
    gc.disable()  # each import would reach all keys of a long program
    try:
        keys = keys_in(tmp_path)
        before = len(hook.listeners)
        del keys
        assert len(hook.listeners) == before - 1
    finally:
        gc.enable()


def test_another_finder_may_ask_all_finders(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asking:
        """Finder that asks all others, as those of lazily imported modules do."""

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            for finder in sys.meta_path:
                if finder is not self and (spec := finder.find_spec(name, path, target)):
                    return spec
            return None

    monkeypatch.setattr(sys, "meta_path", [hook, Asking(), *sys.meta_path])
    sys.modules.pop("this_module_does_not_exist", None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("this_module_does_not_exist")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    assert importlib.import_module("wave").__name__ == "wave"
