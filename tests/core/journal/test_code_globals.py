"""Tests of globals and other surroundings of functions in the keys of tasks."""

from __future__ import annotations

import abc
import ast
import asyncio
import enum
import functools
import importlib
import importlib.util
import linecache
import math
import operator
import os
import py_compile
import random
import re
import sys
import threading
import types
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pytest

import rhapsody
from rhapsody import WorkflowEngine
from rhapsody.builtin.journal.code import CodeFingerprint
from rhapsody.builtin.journal.files import stamp_of
from rhapsody.builtin.journal.keys import Keys
from rhapsody.builtin.journal.program import Sources
from rhapsody.builtin.journal.values import UnhashableError
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.plugins.manager import PluginEntry, load
from tests._support.journal_keys import described, key_in, key_of, keys_in, loaded, write
from tests._support.journal_values import WITHOUT, Color, Hostile, Odd, Point


def test_a_closure_without_a_digest_is_reported(keys: Keys) -> None:
    numbers = (n for n in range(3))
    with pytest.raises(UnhashableError, match="numbers around"):
        key_of(keys, lambda: next(numbers))
    with pytest.raises(UnhashableError, match="defaults of"):
        key_of(keys, lambda numbers=numbers: next(numbers))


def test_odd_defaults_are_looked_at_and_not_compared(keys: Keys) -> None:
    def one(*, a: Any = np.zeros(2), b: Any = Hostile()) -> None: ...  # noqa: B008
    def other(*, a: Any = np.ones(2), b: Any = Hostile()) -> None: ...  # noqa: B008

    assert key_of(keys, one).code != key_of(keys, other).code


MODE: Any = 1
COUNT = 0
HELD: dict[str, Any] = {}


def by_mode() -> Any:
    return MODE


def counting() -> int:
    global COUNT
    COUNT += 1
    HELD["a"] = COUNT
    return COUNT


def test_a_global_that_is_set_between_two_tasks_counts(keys: Keys, monkeypatch: Any) -> None:
    first = key_of(keys, by_mode).digest
    monkeypatch.setitem(globals(), "MODE", 2)
    assert key_of(keys, by_mode).digest != first
    monkeypatch.setitem(globals(), "MODE", 1)
    assert key_of(keys, by_mode).digest == first


def test_the_record_of_warnings_in_globals_does_not_count(keys: Keys) -> None:
    space: dict[str, Any] = {}
    exec("def evaluate(): return eval('1')", space)
    first = key_of(keys, space["evaluate"]).digest
    space["__warningregistry__"] = {"version": 1}
    assert key_of(keys, space["evaluate"]).digest == first


def test_a_global_that_the_function_sets_counts_as_the_caller_saw_it(keys: Keys) -> None:
    digests: set[bytes] = set()
    for _ in range(3):
        digests.add(key_of(keys, counting).digest)
        digests.add(key_of(keys, counting).digest)
        counting()
    assert len(digests) == 3


class FirstBase:
    pass


class OtherBase:
    pass


class Derived(FirstBase):
    pass


class Abstract(abc.ABC):  # noqa: B024
    pass


def with_classes() -> Any:
    return Derived(), Abstract


def test_bases_that_are_set_between_two_tasks_count(keys: Keys) -> None:
    seen = [key_of(keys, with_classes).digest]
    Derived.__bases__ = (OtherBase,)
    keys.begin()
    seen.append(key_of(keys, with_classes).digest)
    Abstract.register(Derived)
    keys.begin()
    seen.append(key_of(keys, with_classes).digest)
    assert len(set(seen)) == 3


CACHE: dict[int, Any] = {}
MODEL: Any = None
RATE: Any = None


def with_memo(x: int) -> Any:
    global MODEL
    if MODEL is None:
        MODEL = (n for n in range(3))  # it could not be digested
    if x not in CACHE:
        CACHE[x + 1] = [x]
    return CACHE.get(x), MODEL


def reads_cache() -> Any:
    return CACHE


def set_rate(rate: float) -> None:
    global RATE
    RATE = rate


def with_rate() -> Any:
    if CACHE is None:
        set_rate(3)
    return RATE


def test_a_memo_that_the_task_fills_does_not_change_the_next_key(keys: Keys) -> None:
    first = key_of(keys, with_memo).digest
    with_memo(3)
    keys.begin()
    assert key_of(keys, with_memo).digest == first
    keys.begin()
    CACHE.clear()
    first = key_of(keys, reads_cache).digest
    CACHE[1] = 2  # by the program, as that function does not fill it
    keys.begin()
    assert key_of(keys, reads_cache).digest != first


class WithMemo:
    memo: ClassVar[dict[int, int]] = {}
    rate: ClassVar[dict[int, int]] = {}

    def get(self, x: int) -> int:
        if x not in self.memo:
            self.memo[x] = x
        return self.memo[x]


def with_class(x: int) -> int:
    return WithMemo().get(x)


def test_a_memo_of_a_class_does_not_change_the_next_key(keys: Keys) -> None:
    first = key_of(keys, with_class, 1).digest
    with_class(1)
    keys.begin()
    assert key_of(keys, with_class, 1).digest == first
    WithMemo.rate[1] = 2
    keys.begin()
    with pytest.raises(UnhashableError, match="may contain items that were computed before"):
        key_of(keys, with_class, 1)
    WithMemo.memo.clear()
    keys.begin()
    assert key_of(keys, with_class, 1).digest != first


def test_a_global_that_a_helper_sets_to_its_argument_is_no_memo(keys: Keys) -> None:
    digests = {key_of(keys, with_rate).digest}
    for rate in (1, 2):
        set_rate(rate)
        digests.add(key_of(keys, with_rate).digest)
    assert len(digests) == 3


STORES = {
    "assigned": "global X; X = a",
    "unpacked": "global X; X, _ = a, 1",
    "deleted": "global X; del X",
    "in a loop": "global X\nfor X in range(a + 1): pass",
    "imported": "global X; import math as X",
    "walrus": "global X; return (X := a)",
    "of an exception": "global X\ntry: 1 / 0\nexcept ZeroDivisionError as X: pass",
    "in a branch": "global X\nif a: X = a",
    "in a nested function": "def g():\n    global X\n    X = a\ng()",
    "a function": "global X\ndef X(): pass",
    "by a helper": "store(a)",
    "by a method": "Store().store(a)",
    "of another module": "other.store(a)",
    "and reads it before": "global X; before = X; X = a; return before",
    "by a helper that reads it": "replace()",
}


@pytest.mark.parametrize("at_first", ["None", "{'a': 5}"])
@pytest.mark.parametrize("how", STORES)
def test_a_global_that_a_function_only_sets_is_compared(
    how: str, at_first: str, tmp_path: Path
) -> None:
    body = "\n".join(f"    {line}" for line in STORES[how].splitlines())
    store = "def store(a):\n    global X\n    X = a\n"
    store += "def replace():\n    global X\n    before = X\n    X = 8\n    return before\n"
    text = (
        f"import other\nX = {at_first}\n{store}"
        "class Store:\n    def store(self, a):\n        global X\n        X = a\n"
        f"def f(a):\n{body}\n"
    )
    write(tmp_path, {"main.py": text, "other.py": f"X = {at_first}\n{store}"})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        keys.require_same_values(task, key)
        main.f(8)
        keys.begin()
        with pytest.raises(UnhashableError, match="changed in place"):
            keys.require_same_values(task, key)


def test_a_global_that_a_function_defines_or_sets_to_the_same_value(tmp_path: Path) -> None:
    write(tmp_path, {"main.py": "def f(a):\n    global X\n    X = a\n"})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        main.f(8)
        keys.begin()
        with pytest.raises(UnhashableError, match="X set by"):
            keys.require_same_values(task, key)
        key = keys.of(task, {}, {})
        main.f(8)
        keys.begin()
        keys.require_same_values(task, key)


@pytest.mark.parametrize("parameter", ["x", "*, x"])
def test_a_large_default_that_the_function_changes_is_compared(
    parameter: str, tmp_path: Path
) -> None:
    text = f"import numpy as np\ndef f({parameter}=np.zeros(200_000)):\n    x[3] += 1\n"
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, shares_memory=True)
        key = keys.of(task, {}, {})
        keys.require_same_values(task, key)
        main.f()
        keys.begin()
        with pytest.raises(UnhashableError, match="default"):
            keys.require_same_values(task, key)
        assert keys.of(task, {}, {}).digest != key.digest


@pytest.mark.parametrize(
    "change",
    [
        "if X is None: X = a",
        "if X is None or a > X: X = a",
        "if X is None: X = 0\n    X += a",
        "X = a if X is None or a.real > X.real else X",
        "X = max(X or 0, a)",
    ],
)
def test_the_best_result_and_the_sum_of_earlier_calls_are_compared(
    change: str, tmp_path: Path
) -> None:
    text = f"X = None\ndef f(a):\n    global X\n    {change}\n    return X\n"
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        main.f(8)
        keys.begin()
        with pytest.raises(UnhashableError, match="changed in place"):
            keys.require_same_values(task, key)
        assert keys.of(task, {}, {}).digest != key.digest


@pytest.mark.parametrize(
    "body",
    [
        "X = {}\n def set(self, v): self.X[1] = v\n def f(self, a): return self.X.get(1, a)",
        "X = []\n def set(self, v): self.X.append(v)\n def f(self, a): return self.X or a",
        "X = {}\n @classmethod\n def set(cls, v): cls.X[1] = v\n"
        " def f(self, a): return self.X.get(1) or a",
    ],
)
def test_methods_that_the_task_does_not_call_make_no_attribute_a_cache(
    body: str, tmp_path: Path
) -> None:
    write(tmp_path, {"main.py": f"class C:\n {body}\nc = C()\ndef f(a): return c.f(a)\n"})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, 8, shares_memory=True)
        former = keys.of(task, {}, {}).digest
        main.c.set(3)
        keys.begin()
        assert keys.of(task, {}, {}).digest != former


@pytest.mark.parametrize("method", ["add", "update", "insert"])
def test_a_method_does_not_make_none_a_cache(method: str, tmp_path: Path) -> None:
    text = f"X = None\ndef f(a):\n    return a if X is None else X.{method}(a)\n"
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, 8, shares_memory=True)
        former = keys.of(task, {}, {}).digest
        main.X = {1}  # type: ignore[attr-defined]
        keys.begin()
        assert keys.of(task, {}, {}).digest != former


LAZY = {
    "in the function": "def f(a):\n    global X\n    if X is None: X = [1]\n    return X, a",
    "in a helper": (
        "def load():\n    global X\n    if not X: X = [1]\n    return X\ndef f(a): return load()"
    ),
    "a module": "def f(a):\n    global X\n    import math as X\n    return X.pi",
}


@pytest.mark.parametrize("how", LAZY)
def test_a_global_that_is_set_when_it_is_first_used_does_not_count(
    how: str, tmp_path: Path
) -> None:
    write(tmp_path, {"main.py": f"X = None\n{LAZY[how]}\n"})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        main.f(8)
        keys.begin()
        keys.require_same_values(task, key)
        assert keys.of(task, {}, {}).digest == key.digest


COLLECTED = {
    "list": "[]: X.append(a)",
    "mean": "[]: X.append(a); return sum(X) / len(X)",
    "set": "set(): X.add(a)",
    "updated": "{}: X.update({a: a})",
    "counted": "{}: X[a] = X.get(a, 0) + 1",
    "grouped": "{}: X.setdefault(a, []).append(a)",
    "an attribute of an item": (
        "{}: if a not in X:\n    X[a] = type('C', (), {'n': 0})()\nX[a].n += 1; return X[a].n"
    ),
    "best in an item": "{}: if not X or a > X['best']:\n    X.update(best=a)\nreturn X['best']",
    "a cache by another name": "{}: if a not in X:\n    X[a] = a\nreturn X[a]",
}

CACHES = {
    "in": "{}: if a in X:\n    return X[a]\nX[a] = a\nreturn a",
    "an exception": "{}: try:\n    return X[a]\nexcept KeyError:\n    X[a] = a\n    return a",
    "get": "{}: y = X.get(a); X[a] = y or a; return X[a]",
    "setdefault": "{}: return X.setdefault(a, [a])",
    "update": "{}: if not X:\n    X.update({a: a})\nreturn X[a]",
    "at most some": "{}: if len(X) > 9:\n    X.clear()\nif a not in X:\n    X[a] = a\nreturn X[a]",
    "set": "set(): return None if a in X else X.add(a)",
}

HOLDERS = {
    "global": "X = {empty}\ndef f(a):\n        {body}\n",
    "module": "import other\ndef f(a):\n    return other.f(a)\n",
    "closure": (
        "def make():\n    X = {empty}\n    def f(a):\n        {body}\n    return f\nf = make()\n"
    ),
    "class": "class C:\n    X = {empty}\n    def f(self, a):\n        {own}\nf = C().f\n",
}


def held_program(tmp_path: Path, how: str, holder: str, name: str = "X") -> None:
    """Write a program with a function that fills a container."""
    empty, _, body = how.replace("\n", "\n" + 8 * " ").partition(": ")
    texts = {"empty": empty, "body": body, "own": re.sub(r"\bX\b", "self.X", body)}
    files = {"main.py": HOLDERS[holder], "other.py": HOLDERS["global"]}
    texts = {file: re.sub(r"\bX\b", name, text.format(**texts)) for file, text in files.items()}
    write(tmp_path, texts)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("how", COLLECTED)
def test_an_empty_container_that_is_not_a_cache_is_compared(
    how: str, holder: str, tmp_path: Path
) -> None:
    held_program(tmp_path, COLLECTED[how], holder)
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        keys.require_same_values(task, key)
        main.f(8)
        keys.begin()
        with pytest.raises(UnhashableError, match="changed in place"):
            keys.require_same_values(task, key)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("how", CACHES)
def test_an_empty_container_that_is_a_cache_is_not_compared(
    how: str, holder: str, tmp_path: Path
) -> None:
    held_program(tmp_path, CACHES[how], holder, "X_CACHE")
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        task = described(main.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        main.f(8)
        keys.begin()
        keys.require_same_values(task, key)
        assert keys.of(task, {}, {}).digest == key.digest


FILLED = {
    "dict": (
        "X_CACHE = {}\ndef h(x):\n    if x not in X_CACHE: X_CACHE[x] = g(x)\n    return X_CACHE[x]"
    ),
    "made once": "X = None\ndef h(x):\n    global X\n    if X is None: X = g(1)\n    return X",
    "lru_cache": "import functools\n@functools.lru_cache\ndef h(x): return g(x)",
}
CHANGES = {
    "function": ("def g(x): return x * 3", "def g(x): return x * 5"),
    "global": ("K = 3\ndef g(x): return x * K", "K = 5"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", FILLED)
def test_a_task_with_a_memo_that_former_code_has_filled_has_no_key(
    how: str, change: str, tmp_path: Path
) -> None:
    before, after = CHANGES[change]
    write(tmp_path, {"main.py": f"{before}\n{FILLED[how]}\ndef f(x): return h(x)\n"})
    write(tmp_path, {"edited.py": f"{after}\n"})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        text = (tmp_path / "edited.py").read_text()
        first = key_of(keys, main.f, 1).digest
        assert main.f(1) == 3
        keys.begin()
        assert key_of(keys, main.f, 1).digest == first
        exec(compile(text, str(tmp_path / "edited.py"), "exec"), vars(main))
        keys.begin()
        with pytest.raises(UnhashableError, match=r"computed before .* changed"):
            key_of(keys, main.f, 1)
        if how == "lru_cache":
            main.h.cache_clear()
        else:
            vars(main).update({"X": None})
            vars(main).get("X_CACHE", {}).clear()
        keys.begin()
        assert key_of(keys, main.f, 1).digest != first


def test_a_cache_that_former_code_has_filled_for_another_engine_has_no_key(tmp_path: Path) -> None:
    text = f"K = 1\n{FILLED['lru_cache']}\ndef g(x): return x * K\ndef f(x): return h(x)\n"
    write(tmp_path, {"main.py": text})
    with loaded(tmp_path) as main:
        key_of(keys_in(tmp_path), main.f, 1)
        assert main.f(1) == 1
        vars(main)["K"] = 2
        with pytest.raises(UnhashableError, match=r"computed before .* changed"):
            key_of(keys_in(tmp_path), main.f, 1)
        main.h.cache_clear()
        key_of(keys_in(tmp_path), main.f, 1)


@pytest.mark.parametrize(
    "reader",
    [
        "def work(x): return X * x",
        "def main():\n    def work(x): return X * x\n    return work, setup",
        "def get(): return X\ndef work(x): return get() * x",
        "class Work:\n    def run(self): return X",
    ],
)
def test_a_global_that_one_task_sets_for_others_is_no_memo(reader: str, tmp_path: Path) -> None:
    text = f"X = None\ndef setup():\n    global X\n    if X is None: X = 0.5\n{reader}\n"
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        first = key_of(keys, main.setup).digest
        main.setup()
        keys.begin()
        assert key_of(keys, main.setup).digest != first


def test_a_function_may_read_a_global_after_a_call_that_sets_it(tmp_path: Path) -> None:
    text = "X = None\ndef setup():\n    global X\n    if X is None: X = 0.5\n"
    write(tmp_path, {"main.py": f"{text}def work(x):\n    setup()\n    return X * x\n"})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        first = key_of(keys, main.work, 1).digest
        main.work(1)
        keys.begin()
        assert key_of(keys, main.work, 1).digest == first


def test_a_function_of_numpy_that_the_program_replaces_counts(tmp_path: Path) -> None:
    digests = set()
    for name in ("log10", "log2"):
        text = f"import numpy as np\nnp.own_log = np.{name}\ndef f(x): return np.own_log(x)\n"
        write(tmp_path, {"main.py": text})
        with loaded(tmp_path) as main:
            digests.add(key_of(keys_in(tmp_path), main.f, 1).digest)
            del main.np.own_log
    assert len(digests) == 2


def test_functions_can_share_a_memo(tmp_path: Path) -> None:
    text = FILLED["dict"] + "\nK = 2\ndef g(x): return x\ndef f(x): return h(x)\n"
    text += "def k(x): return h(x) + K\nl = lambda x: h(x)\nm = lambda x: h(x + 1)\n"
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        digests = set()
        for each in (main.f, main.k, main.l, main.m):
            digests.add(key_of(keys, each, 1).digest)
            each(1)
            keys.begin()
        assert len(digests) == 4


@pytest.mark.parametrize("statement", ["y['limit'] = X", "y[X] = a", "del y[X]", "y[X] += a"])
def test_an_item_or_an_index_is_no_container(statement: str, tmp_path: Path) -> None:
    """A global is no cache of a function because another container contains it."""
    test = "return y, a if X is None else min(a, X)"
    text = f"X = None\ndef f(a):\n    y = {{None: 0}}\n    {statement}\n    {test}\n"
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as main:
        first = key_of(keys, main.f, 1).digest
        vars(main)["X"] = 5
        keys.begin()
        assert key_of(keys, main.f, 1).digest != first


def test_the_environment_in_another_container_is_not_ignored(
    tmp_path: Path, monkeypatch: Any
) -> None:
    text = (
        "import os\ndef f():\n    y = {}\n    y['all'] = os.environ\n    return y['all']['RATE']\n"
    )
    write(tmp_path, {"main.py": text})
    digests = set()
    for rate in "1", "2":
        monkeypatch.setenv("RATE", rate)
        with loaded(tmp_path) as main:
            digests.add(key_of(keys_in(tmp_path), main.f).digest)
    assert len(digests) == 2


class Mutable:
    rate = 1


SHARED: dict[str, Any] = {"list": [1], "object": Mutable()}


def with_shared() -> Any:
    return SHARED, Mutable


def test_what_the_program_changes_in_place_counts_from_the_next_batch_on(keys: Keys) -> None:
    def digest() -> bytes:
        keys.begin()
        return key_of(keys, with_shared).digest

    digests = [digest(), digest()]
    SHARED["list"].append(2)
    digests.append(digest())
    SHARED["object"].n = 1
    digests.append(digest())
    Mutable.rate = 2
    digests.append(digest())
    Mutable.more = 1  # type: ignore[attr-defined]
    digests.append(digest())
    with_shared.n = 1  # type: ignore[attr-defined]
    digests.append(digest())
    with_shared.__defaults__ = (1,)
    digests.append(digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 7


def test_a_variable_of_the_environment_that_is_set_between_two_tasks_counts(
    keys: Keys, monkeypatch: Any
) -> None:
    def reading() -> Any:
        return os.environ.get("RHAPSODY_TEST")

    first = key_of(keys, reading).digest
    monkeypatch.setenv("RHAPSODY_TEST", "1")
    assert key_of(keys, reading).digest != first
    monkeypatch.delenv("RHAPSODY_TEST")
    assert key_of(keys, reading).digest == first


def test_the_value_of_a_variable_of_the_environment_is_not_written_down(
    keys: Keys, monkeypatch: Any
) -> None:
    def reading() -> Any:
        return os.environ["RHAPSODY_TOKEN"]

    monkeypatch.setenv("RHAPSODY_TOKEN", "open sesame")
    key = key_of(keys, reading)
    assert key.code is not None
    assert "RHAPSODY_TOKEN" in keys.codes[key.code]
    assert "open sesame" not in keys.codes[key.code] + key.parts


def test_optimized_code_has_a_key_of_its_own(keys: Keys, monkeypatch: Any) -> None:
    first = key_of(keys, by_mode).digest
    flags = types.SimpleNamespace(optimize=1)
    monkeypatch.setattr("rhapsody.builtin.journal.keys.sys", types.SimpleNamespace(flags=flags))
    assert key_of(keys_in(Path()), by_mode).digest != first


def test_an_engine_in_a_global_is_not_looked_into(keys: Keys, monkeypatch: Any) -> None:
    found: set[bytes] = set()
    for engine in (object.__new__(WorkflowEngine), object.__new__(WorkflowEngine)):
        engine.__dict__["opened"] = len(found)
        monkeypatch.setitem(globals(), "MODE", engine)
        found.add(key_of(keys, by_mode).digest)
        monkeypatch.setitem(globals(), "MODE", {"engine": engine})
        found.add(key_of(keys, by_mode).digest)
        found.add(key_of(keys, lambda engine=engine: engine).digest)
        found.add(key_of(keys, _closing_over(engine)).digest)
    assert len(found) == 4


def _closing_over(engine: Any) -> Any:
    return lambda: engine


ODD: dict[str, Any] = {"class": Odd, "hostile": Hostile(), "module": types.ModuleType("odd")}


MUTE = ("lock", "object with a lock", "array of objects", "thread", "file")


@pytest.mark.parametrize("what", [*MUTE, *ODD])
def test_a_global_may_be_anything_that_can_be_followed(
    what: str, keys: Keys, monkeypatch: Any
) -> None:
    monkeypatch.setitem(globals(), "MODE", (WITHOUT | ODD)[what])
    first = key_of(keys, by_mode).digest
    assert key_of(keys_in(Path()), by_mode).digest == first


@pytest.mark.parametrize("what", sorted(WITHOUT.keys() - MUTE))
def test_a_global_without_a_digest_is_refused(what: str, keys: Keys, monkeypatch: Any) -> None:
    monkeypatch.setattr("rhapsody.builtin.journal.values.MAX_OBJECTS", 10_000)
    monkeypatch.setitem(globals(), "MODE", WITHOUT[what])
    with pytest.raises(UnhashableError, match=r"MODE used by by_mode.*set version="):
        key_of(keys, by_mode)


@pytest.mark.parametrize("function", [len, np.add, np.sum, "a".count, Point, Color, math.sqrt,
                                      operator.itemgetter(1), np.vectorize(by_mode), dict.fromkeys,
                                      re.compile("a").match, rhapsody.InputFile])  # fmt: skip
def test_whatever_can_be_called_has_a_key(function: Any, keys: Keys) -> None:
    first = key_of(keys, function, 1).digest
    assert key_of(keys_in(Path()), function, 1).digest == first


def test_a_function_whose_file_has_changed_is_known_by_what_is_loaded(
    keys: Keys, tmp_path: Path
) -> None:
    source = tmp_path / "late.py"
    text = "def f(x):\n    return 1\nclass A:\n    n: int = 1\n    def g(self): return 1\n"
    source.write_text(text)
    spaces: list[dict[str, Any]] = []
    for now in ("return 1", "return 2"):
        spaces.append({"__name__": "late"})
        exec(compile(text.replace("return 1", now), str(source), "exec"), spaces[-1])
    assert len({key_of(keys, space["f"]).digest for space in spaces}) == 2
    assert len({key_of(keys, space["A"]).digest for space in spaces}) == 2


def test_the_version_of_a_distribution_counts(keys: Keys, tmp_path: Path, monkeypatch: Any) -> None:
    def calls() -> Any:
        return np.sum

    def calls_inside() -> Any:
        import numpy.linalg as found

        return found

    for function in (calls, calls_inside, np.sum):
        key = key_of(keys, function)
        parts = {} if key.code is None else ast.literal_eval(keys.codes[key.code])["parts"]
        assert parts.get("numpy", np.__version__) == np.__version__
        monkeypatch.setattr("rhapsody.sdk.modules._version_of", lambda _: "0.1")
        assert key_of(keys_in(tmp_path), function).digest != key.digest
        monkeypatch.undo()


def in_notebook(number: int, text: str, directory: Path, monkeypatch: Any) -> bytes:
    """The key of a function from a cell, whose file has a name of its own and is not there."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    name = f"/tmp/ipykernel_{number}/{number}.py"
    lines = text.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, name, (len(text), None, lines, name))
    code = compile(text, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if asyncio.iscoroutine(coroutine := eval(code, vars(main))):
        asyncio.run(coroutine)
    return key_of(keys_in(directory), main.f).digest


def test_a_cell_of_a_notebook_has_the_same_key_in_each_run(
    tmp_path: Path, monkeypatch: Any
) -> None:
    text = """
from dataclasses import dataclass
class A:
    def get(self):
        return 1
@dataclass
class B:
    n: int = 2
def f():
    return A().get() + B().n
"""
    texts = [text, f"# again\n{text}", text.replace("return 1", "return 3"), text.replace("2", "4")]
    one, same, *others = [
        in_notebook(number, each, tmp_path, monkeypatch) for number, each in enumerate(texts)
    ]
    assert one == same
    assert len({one, *others}) == 3


def test_a_cell_that_awaits_is_analysed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RATE", "1")
    text = """
import asyncio, os
_cache = {}
def f():
    if "rate" not in _cache:
        _cache["rate"] = float(os.environ["RATE"])
    return _cache["rate"]
await asyncio.sleep(0)
"""
    first = in_notebook(11, text, tmp_path, monkeypatch)
    assert in_notebook(12, text.replace("sleep(0)", "sleep(0.0)"), tmp_path, monkeypatch) == first
    monkeypatch.setenv("RATE", "2")
    assert in_notebook(13, text, tmp_path, monkeypatch) != first


def test_the_last_seed_that_a_cell_sets_counts(tmp_path: Path, monkeypatch: Any) -> None:
    def key(number: int, *cells: str) -> bytes:
        text = f"import random\nIn = {list(cells)!r}\ndef f():\n    return random.random()\n"
        return in_notebook(number, text, tmp_path, monkeypatch)

    first = key(1, "import random\nrandom.seed(3)", "def f(): ...")
    assert key(2, "import random\nrandom.seed(5)", "def f(): ...") != first
    assert key(3, "random.seed(5)", "%magic", "random.seed(3)", "def f(): ...") == first
    timed = "get_ipython().run_cell_magic('time', '', 'import random\\nrandom.seed({})\\n')\n"
    assert key(4, timed.format(4)) not in (first, key(5, timed.format(5)))
    timed = "get_ipython().run_line_magic('time', 'random.seed({})')\n"
    assert key(6, timed.format(3)) == first != key(7, timed.format(4))


def test_a_seed_in_a_file_that_was_changed_during_the_run_is_not_believed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    text = "import random\nrandom.seed(3)\ndef f(): return random.random()\n"
    write(tmp_path, {"main.py": text})
    sources = Sources()
    sources.process_start = 0
    monkeypatch.setattr("tests._support.journal_keys.SOURCES", sources)
    with (
        loaded(tmp_path) as main,
        pytest.raises(UnhashableError, match="was changed after the program started"),
    ):
        key_of(keys_in(tmp_path), main.f)


def test_arguments_and_variables_in_the_seed_count(tmp_path: Path, monkeypatch: Any) -> None:
    text = """
import os, random, sys
random.seed(int(sys.argv[1]) + int(os.environ.get("SEED", "0")))
def f():
    return random.random()
"""
    digests = []
    for argument, seed in ("1", None), ("2", None), ("1", "3"), ("1", None):
        monkeypatch.setattr(sys, "argv", ["prog.py", argument])
        monkeypatch.delenv("SEED", raising=False)
        if seed is not None:
            monkeypatch.setenv("SEED", seed)
        digests.append(key_in(tmp_path, {"main.py": text})[0])
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3


def test_a_global_with_the_name_of_a_local_import_counts(tmp_path: Path) -> None:
    text = """
scale = SCALE
def f():
    def inner():
        from math import floor as scale
        return scale(2.5)
    return inner() * scale
def g():
    def inner():
        import math as scale
        return scale.floor(2.5)
    return inner() * scale
"""
    for name in "f", "g":
        keys = {
            key_in(tmp_path, {"main.py": text.replace("SCALE", scale)}, attrgetter(name))[0]
            for scale in ("2", "3", "2")
        }
        assert len(keys) == 2


def test_the_code_of_another_task_counts_where_a_task_calls_it(
    keys: Keys, monkeypatch: Any
) -> None:
    digests: set[bytes] = set()
    for function in (lambda: 1, lambda: 2, lambda: 1):
        task = object.__new__(TaskFunction)
        vars(task)["engine"] = threading.Lock()
        vars(task)["check"] = eval(f"lambda: {len(digests)}")  # of the engine's own making
        functools.update_wrapper(task, function)
        monkeypatch.setitem(globals(), "MODE", task)
        digests.add(key_of(keys, by_mode).digest)
    assert len(digests) == 2


class Modes(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


def both() -> Modes:
    return Modes.READ | Modes.WRITE


def test_combinations_of_flags_are_no_change(keys: Keys) -> None:
    first = key_of(keys, both).digest
    assert both() | Modes.RUN
    keys.begin()
    assert key_of(keys, both).digest == first


class HasEnergy(Protocol):
    def energy(self) -> int: ...


class WithStart:
    def __init__(self) -> None:
        self.start = 2


class Energy(HasEnergy):
    def energy(self) -> int:
        return 1


class EnergyWithStart(HasEnergy, WithStart):
    def energy(self) -> int:
        return self.start


def energies() -> int:
    return Energy().energy() + EnergyWithStart().energy()


def test_the_first_call_of_a_subclass_of_a_protocol_is_no_change(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = described(energies, shares_memory=True)
    key = keys.of(task, {}, {})
    assert energies() == 3
    assert "__init__" in vars(EnergyWithStart)
    keys.begin()
    keys.require_same_values(task, key)
    assert keys.of(task, {}, {}).digest == key.digest
    monkeypatch.setattr(Energy, "__init__", lambda self: None)
    keys.begin()
    assert keys.of(task, {}, {}).digest != key.digest


def test_a_variable_is_no_cache_because_an_inner_function_fills_a_local_of_its_name(
    keys: Keys,
) -> None:
    items: list[int] = []

    def count() -> int:
        def double(number: int) -> list[int]:
            items = []
            items.append(2 * number)
            return items

        return len(items) + len(double(1))

    first = key_of(keys, count).digest
    items.append(1)
    keys.begin()
    assert key_of(keys, count).digest != first


def test_a_library_that_an_earlier_task_loaded_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_library() -> float:
        import colorsys

        return colorsys.ONE_THIRD

    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    keys = keys_in(tmp_path)
    of_library()  # as another task does
    loaded = key_of(keys, of_library).digest
    monkeypatch.delitem(sys.modules, "colorsys")
    assert key_of(keys_in(tmp_path), of_library).digest == loaded


IMPORTED = {
    "list": "lz.TOTAL.append(a)",
    "set": "lz.RATE = a",
    "new": "lz.NEW = a",
    "deleted": "del lz.RATE",
    "generator": "return lz.rng.random()",
    "class": "lz.Settings.rate = a",
    "instance": "lz.settings.rate = a",
    "function": "lz.g = lambda: a",
    "its own function": "lz.set_rate(a)",
    "inner module": "lz.inner.RATE = a",
    "empty list": "lz.EMPTY.append(a)",
    "nested class": "lz.Settings.Inner.rate = a",
    "default": "lz.default(a)",
    "closure": "lz.count()",
    "attribute of a function": "lz.g.calls = a",
    "dict of functions": "lz.TABLE['count']()",
}


@pytest.mark.parametrize("spelling", ["import lz", "from lz import TOTAL\n    import lz"])
@pytest.mark.parametrize("how", IMPORTED)
def test_a_change_of_a_module_that_the_task_imports_first_is_noticed(
    how: str, spelling: str, tmp_path: Path
) -> None:
    text = (
        "import random\nimport lz_inner as inner\nTOTAL = [1]\nRATE = 1\nrng = random.Random(1)\n"
        "EMPTY = []\n"
        "class Settings:\n    rate = 1\n    class Inner:\n        rate = 1\nsettings = Settings()\n"
        "def g():\n    return 1\n"
        "def default(a, seen=[]):\n    seen.append(a)\n"
        "def counter():\n    n = 0\n    def count():\n        nonlocal n\n        n += 1\n"
        "    return count\ncount = counter()\nTABLE = {'count': counter()}\n"
        "def set_rate(a):\n    global RATE\n    RATE = a\n"
        "inner.ADDED = 1\n"
    )
    main = (
        f"def f(a):\n    {spelling}\n    {IMPORTED[how]}\n"
        "def g(a):\n    import lz\n    return lz.RATE\n"
    )
    write(tmp_path, {"main.py": main, "lz.py": text, "lz_inner.py": "RATE = 1\n"})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        reading, changing = (
            described(each, 8, shares_memory=True) for each in (program.g, program.f)
        )
        read, changed = (keys.of(task, {}, {}) for task in (reading, changing))
        program.g(8)
        keys.begin()
        keys.require_same_values(reading, read)
        program.f(8)
        keys.begin()
        with pytest.raises(
            UnhashableError, match=r" has changed since a task imported module 'lz\w*'"
        ):
            keys.require_same_values(changing, changed)


SUBMODULES = {
    "from the package": "from . import lz\n    return lz.g(a)",
    "by its name": "import pk.lz\n    return pk.lz.g(a)",
    "from its name": "from pk import lz\n    return lz.g(a)",
    "its function": "from .lz import g\n    return g(a)",
    "in a package": "from .inner import lz\n    return lz.g(a)",
    "by another module": "from . import uses\n    return uses.h(a)",
}


@pytest.mark.parametrize("how", SUBMODULES)
def test_a_submodule_that_a_task_imports_first_has_not_changed(how: str, tmp_path: Path) -> None:
    """The import adds the submodule to the variables of its package."""
    files = {
        "pk/__init__.py": "OTHER = 1\n",
        "pk/main.py": f"def f(a):\n    {SUBMODULES[how]}\n",
        "pk/lz.py": "RATE = 1\ndef g(a):\n    return a * RATE\n",
        "pk/uses.py": "def h(a):\n    from . import lz\n    return lz.g(a)\n",
        "pk/inner/__init__.py": "",
    }
    files["pk/inner/lz.py"] = files["pk/lz.py"]
    edited = "pk/inner/lz.py" if how == "in a package" else "pk/lz.py"
    digests = []
    for rate in (1, 2):
        directory = tmp_path / str(rate)
        write(directory, files | {edited: files[edited].replace("RATE = 1", f"RATE = {rate}")})
        keys = keys_in(directory)
        with loaded(directory, "pk.main") as program:
            task = described(program.f, 8, shares_memory=True)
            key = keys.of(task, {}, {})
            digests.append(key.digest)
            assert program.f(8) == 8 * rate
            keys.begin()
            keys.require_same_values(task, key)
            assert keys.of(task, {}, {}).digest == key.digest
    assert len(set(digests)) == 2


def test_a_variable_that_a_task_sets_in_a_package_has_changed(tmp_path: Path) -> None:
    files = {
        "pk/__init__.py": "RATE = 1\n",
        "pk/main.py": "import pk\ndef f(a):\n    from . import lz\n    pk.RATE = a\n    return a\n",
        "pk/lz.py": "X = 1\n",
    }
    write(tmp_path, files)
    keys = keys_in(tmp_path)
    with loaded(tmp_path, "pk.main") as program:
        task = described(program.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        program.f(8)
        keys.begin()
        with pytest.raises(UnhashableError, match=r"changed in place"):
            keys.require_same_values(task, key)


def test_stale_compiled_code_of_a_module_that_the_task_imports_first_is_noticed(
    tmp_path: Path,
) -> None:
    main = "def f():\n    import lz\n    return lz.RATE\n"
    for number in (1, 2):
        write(tmp_path, {"main.py": main, "lz.py": f"RATE = {number}\n"})
        os.utime(tmp_path / "lz.py", (1_000_000_000, 1_000_000_000))
        if number == 1:
            compiled = py_compile.compile(str(tmp_path / "lz.py"))
    with loaded(tmp_path) as program:
        with pytest.raises(UnhashableError, match="__pycache__"):
            key_of(keys_in(tmp_path), program.f)
        Path(str(compiled)).unlink()
        key_of(keys_in(tmp_path), program.f)


LAZILY = """
class Solver:
    def __init__(self):
        self.name = "s"

    def solve(self):
        import lz

        lz.N += 1
        return lz.N

    __call__ = solve

def solve():
    import lz

    lz.N += 1
    return lz.N

def f(*args):
    for each in args:
        each()

solver = Solver()
"""


@pytest.mark.parametrize("call", ["f(solver)", "f(solve)", "f(solver.solve)", "solver()"])
def test_a_module_that_an_argument_imports_first_is_compared(call: str, tmp_path: Path) -> None:
    write(tmp_path, {"main.py": LAZILY, "lz.py": "N = 1\n"})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        name, _, rest = call.partition("(")
        function, *args = eval(f"[{name}, {rest[:-1]}]", vars(program))
        task = described(function, *args, shares_memory=True)
        key = keys.of(task, {}, {})
        assert key.absent == {"lz"}
        function(*args)
        keys.begin()
        with pytest.raises(UnhashableError, match="N has changed since a task imported"):
            keys.require_same_values(task, key)


@pytest.mark.parametrize("value", ["1", "'a'", "[]", "{}"])
def test_a_closure_variable_that_a_function_with_a_version_sets_is_compared(
    value: str, tmp_path: Path
) -> None:
    text = (
        f"def make():\n    n = {value}\n"
        "    def f(a):\n        nonlocal n\n        n = a\n        return n\n"
        "    return f\nf = make()\n"
    )
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        task = described(program.f, 8, shares_memory=True)
        key = keys.of(task, {"version": "1"}, {})
        keys.begin()
        keys.require_same_values(task, key)
        program.f(8)
        keys.begin()
        with pytest.raises(UnhashableError, match="n around function changed"):
            keys.require_same_values(task, key)


@pytest.mark.parametrize("filled", ["x.history.append(1)", "x.history['a'] = 1"])
def test_a_closure_variable_with_the_name_of_an_attribute_that_is_filled_counts(
    filled: str, tmp_path: Path
) -> None:
    empty = "{}" if "[" in filled else "[]"
    text = (
        f"class X:\n    history = {empty}\n"
        f"def make():\n    history = {empty}\n"
        f"    def f(a):\n        x = X()\n        x.history = {empty}\n        {filled}\n"
        "        return len(history)\n"
        "    return f, history\nf, history = make()\n"
    )
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        before = key_of(keys, program.f, 1).digest
        program.history.append(1) if "[" not in filled else program.history.update(a=1)
        keys.begin()
        assert key_of(keys, program.f, 1).digest != before


def test_a_module_that_cannot_be_inspected_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"main.py": "def f():\n    import lz\n    return lz.N\n", "lz.py": "N = 1\n"})
    keys = keys_in(tmp_path)
    monkeypatch.setattr(CodeFingerprint, "module", lambda *_: 1 / 0)
    with loaded(tmp_path) as program:
        task = described(program.f, shares_memory=True)
        key = keys.of(task, {}, {})
        assert program.f() == 1
        keys.require_same_values(task, key)
    assert "module 'lz' cannot be inspected" in caplog.text


def test_modules_that_are_imported_for_plugins_are_not_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook = "from rhapsody import hookimpl\n@hookimpl\ndef rhapsody_workflow_started(): pass\n"
    write(tmp_path, {"main.py": "", "plugged.py": f"import under\n{hook}", "under.py": ""})
    keys = keys_in(tmp_path)
    monkeypatch.setattr(CodeFingerprint, "module", lambda *_: 1 / 0)
    with loaded(tmp_path):
        keys.begin()
        load(PluginEntry("rhapsody.plugins", "plugged", "plugged", "mine", "1"))
        assert "plugged" not in caplog.text
        assert "under" not in caplog.text
        del sys.modules["under"]
        importlib.import_module("under")  # by the program
    assert "module 'under' cannot be inspected" in caplog.text


def test_large_values_of_a_module_that_a_task_imports_are_not_compared(tmp_path: Path) -> None:
    text = (
        "import numpy as np\nPATHS = {str(n): [n] for n in range(20_000)}\n"
        "DATA = np.zeros(200_000)\nSMALL = ['a']\n"
    )
    write(tmp_path, {"main.py": "def f(a):\n    import lz\n    lz.DATA[a] = 1\n", "lz.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        task = described(program.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        program.f(8)
        keys.begin()
        keys.require_same_values(task, key)
        sys.modules["lz"].SMALL.append("b")
        with pytest.raises(UnhashableError, match="SMALL has changed"):
            keys.require_same_values(task, key)


def test_a_variable_of_an_inner_function_is_not_the_closure_variable_of_the_same_name(
    tmp_path: Path,
) -> None:
    text = (
        "def make():\n    history = []\n"
        "    def f(a):\n"
        "        def inner():\n            history = []\n"
        "            add = lambda x: history.append(x)\n            add(1)\n"
        "        inner()\n        return len(history)\n"
        "    return f, history\nf, history = make()\n"
    )
    write(tmp_path, {"main.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        before = key_of(keys, program.f, 1).digest
        program.history.append(1)
        keys.begin()
        assert key_of(keys, program.f, 1).digest != before


def test_a_module_that_a_task_imports_may_fill_its_caches(tmp_path: Path) -> None:
    text = (
        "import functools\nCACHE = {}\nmodel = None\n@functools.cache\ndef g(a):\n    return a\n"
        "def load():\n    global model\n    if model is None:\n        model = g(1)\n"
        "    return model\n"
        "def get(a):\n    if a not in CACHE:\n        CACHE[a] = load()\n    return CACHE[a]\n"
    )
    main = "def f(a):\n    import lz\n    return lz.get(a)\n"
    write(tmp_path, {"main.py": main, "lz.py": text})
    keys = keys_in(tmp_path)
    with loaded(tmp_path) as program:
        task = described(program.f, 8, shares_memory=True)
        key = keys.of(task, {}, {})
        program.f(8)
        keys.begin()
        keys.require_same_values(task, key)
        assert keys.of(task, {}, {}).digest == key.digest


def test_a_module_that_an_editable_installation_finds_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such an installation of a flat project has no directory on `sys.path`, but an import hook."""
    file = tmp_path / "flat.py"

    class EditableFinder:
        @classmethod
        def find_spec(cls, name: str, path: Any, target: Any = None) -> Any:
            return importlib.util.spec_from_file_location(name, file) if name == "flat" else None

    def f() -> Any:
        import flat  # type: ignore[import-not-found]

        return flat.rate()

    EditableFinder.__module__ = "__editable___flat_0_1_finder"
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, EditableFinder])
    digests = set()
    for rate in (1, 2):
        file.write_text(f"def rate(): return {rate}\n")
        sources = Sources()
        sources.process_start = sys.maxsize
        monkeypatch.setattr("tests._support.journal_keys.SOURCES", sources)
        digests.add(key_of(keys_in(tmp_path), f).digest)
    assert len(digests) == 2


def test_objects_that_are_no_modules_in_sys_modules_do_no_harm(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "odd", object())

    def f() -> float:
        return random.random()

    assert key_of(keys, f).code is not None


def test_a_seed_that_a_later_cell_sets_counts_from_then_on(
    tmp_path: Path, monkeypatch: Any
) -> None:
    text = "import random\nIn = []\ndef f():\n    return random.random()\n"
    write(tmp_path, {"main.py": text})
    with loaded(tmp_path) as main:
        monkeypatch.setitem(sys.modules, "__main__", main)
        keys, digests = keys_in(tmp_path), []
        for cell in ("random.seed(1)", "g = 2", "random.seed(3)", "random.seed(1)"):
            main.In.append(cell)
            keys.begin()
            digests.append(key_of(keys, main.f).digest)
    assert digests[0] == digests[1] == digests[3] != digests[2]


@pytest.mark.parametrize(
    "task", ["random.random", "np.random.normal", "functools.partial(np.random.normal, 0, 1)"]
)
def test_the_seed_counts_for_a_drawing_function_of_a_library(task: str, tmp_path: Path) -> None:
    text = f"""
import functools, random
import numpy as np
SEED = 3
random.seed(SEED)
f = {task}
"""
    key = key_in(tmp_path, {"main.py": text})[0]
    assert key == key_in(tmp_path, {"main.py": text + "# a comment"})[0]
    assert key != key_in(tmp_path, {"main.py": text.replace("= 3", "= 4")})[0]


@pytest.mark.parametrize(
    "make",
    [
        """
class Base(ABC):
    def run(self): return self.k
F = type("F", (Base,), {"k": 30})
""",
        'F = ABCMeta("F", (), {"run": lambda self: 30})',
        """
class Base(Protocol):
    def run(self): return self.k
F = type(Base)("F", (Base,), {"k": 30})
""",
        """
space = {}
exec("class F:\\n    def run(self): return 30", space)
F = space["F"]
""",
        """
space = {}
exec("from dataclasses import dataclass\\n@dataclass\\nclass F:\\n    k: int = 30", space)
F = space["F"]
""",
    ],
)
def test_a_class_that_is_made_by_a_call_counts(make: str, tmp_path: Path) -> None:
    head = "from abc import ABC, ABCMeta\nfrom typing import Protocol\n"
    text = f"{head}{make}\ndef f(): return F()\n"
    key = key_in(tmp_path, {"main.py": text})[0]
    assert key == key_in(tmp_path, {"main.py": text})[0]
    assert key != key_in(tmp_path, {"main.py": text.replace("30", "50")})[0]


def test_the_seed_of_a_reloaded_module_counts(tmp_path: Path) -> None:
    text = "import seeded, random\ndef f():\n    return random.random()\n"
    write(tmp_path, {"main.py": text, "seeded.py": "import random\nrandom.seed(1)\n"})
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        before = key_of(keys, main.f).digest
        write(tmp_path, {"seeded.py": "import random\nrandom.seed(33)\n"})
        importlib.reload(main.seeded)
        stamp = stamp_of(str(tmp_path / "seeded.py"))
        assert stamp is not None
        keys.program.imported["seeded"] = stamp
        keys.begin()
        assert key_of(keys, main.f).digest != before


def test_a_compiled_function_counts_with_its_source_and_options(tmp_path: Path) -> None:
    library = """
import uuid
class Dispatcher:  # as in numba
    def __init__(self, py_func, **options):
        self.py_func, self.targetoptions = py_func, options
    def __reduce__(self):
        return restored, (str(uuid.uuid4()), self.py_func)
def restored(*parts): ...
def njit(**options):
    return lambda function: Dispatcher(function, **options)
"""
    text = """
from numba import njit
@njit(fastmath=True)
def triple(x):
    return x * 3
def f():
    return triple(2)
"""
    files = {"site-packages/numba.py": library, "main.py": text}
    key = key_in(tmp_path, files)[0]
    assert key == key_in(tmp_path, files)[0]
    for changed in (text.replace("* 3", "* 4"), text.replace("True", "False")):
        assert key != key_in(tmp_path, {**files, "main.py": changed})[0]


@pytest.mark.parametrize(
    "use",
    [
        "import duckdb\ndef f(): return duckdb.connect().execute('SELECT a FROM T')",
        "import duckdb\ndef f(): return duckdb.query('SELECT a FROM T')",
        "def f():\n    from duckdb import query\n    return query('SELECT a FROM T')",
        "from duckdb import query\ndef f(): return query('SELECT a FROM T')",
        "def f(connection=None): return connection.sql('SELECT a FROM T')",
        "from duckdb import evaluate\ndef f(): return evaluate('T * 2')",
        "from duckdb import ols\nDF = 1\ndef f(): return ols('y ~ I(x ** T)', DF)",
        "def f(model=None): return model.from_formula('y ~ T')",
        "def f(store=None): return store.select('d', 'a > T')",
        "def f(table=None): return table.read_where('a > T')",
    ],
)
def test_globals_that_a_text_for_a_library_names_count(use: str, tmp_path: Path) -> None:
    library = (
        "def connect(): ...\ndef query(text): ...\ndef evaluate(text): ...\ndef ols(*a): ...\n"
    )
    files = {"site-packages/duckdb.py": library, "main.py": f"T = 3\nU = 1\n{use}\n"}
    key = key_in(tmp_path, files)[0]
    assert key == key_in(tmp_path, {**files, "main.py": f"T = 3\nU = 2\n{use}\n"})[0]
    assert key != key_in(tmp_path, {**files, "main.py": f"T = 5\nU = 1\n{use}\n"})[0]


def test_the_declared_signatures_of_a_compiled_function_count(tmp_path: Path) -> None:
    library = """
class Dispatcher:  # as in numba
    def __init__(self, py_func, signature):
        self.py_func, self.targetoptions, self.nopython_signatures = py_func, {}, [signature]
        self._can_compile = signature is None
    __reduce__ = None
def njit(signature=None):
    return lambda function: Dispatcher(function, signature)
"""
    text = "from numba import njit\n@njit('int64(float64)')\ndef a(x): return x\n"
    text += "def f(): return a(2)\n"
    files = {"site-packages/numba.py": library, "main.py": text}
    key = key_in(tmp_path, files)[0]
    assert key == key_in(tmp_path, files)[0]
    assert key != key_in(tmp_path, {**files, "main.py": text.replace("int64", "float64")})[0]


def test_a_decorator_whose_result_pretends_to_be_a_function_counts(tmp_path: Path) -> None:
    library = """
import types
class FunctionWrapper:  # as in wrapt
    def __init__(self, wrapped, wrapper):
        self.__wrapped__, self._self_wrapper = wrapped, wrapper
    __class__ = property(lambda self: types.FunctionType)
    __code__ = property(lambda self: self.__wrapped__.__code__)
    __globals__ = property(lambda self: self.__wrapped__.__globals__)
    __reduce__ = None
    def __call__(self, *args):
        return self._self_wrapper(self.__wrapped__, args)
def decorator(wrapper):
    return lambda function: FunctionWrapper(function, wrapper)
"""
    text = """
from wrapping import decorator
@decorator
def shifted(function, args):
    return function(*args) + 3
@shifted
def scale(x):
    return x * 2
def f():
    return scale(5)
"""
    files = {"site-packages/wrapping.py": library, "main.py": text}
    for call in (lambda main: main.f, lambda main: main.scale):
        key = key_in(tmp_path, files, call)[0]
        assert key == key_in(tmp_path, files, call)[0]
        for old, new in (("+ 3", "+ 4"), ("* 2", "* 3")):
            changed = {**files, "main.py": text.replace(old, new)}
            assert key != key_in(tmp_path, changed, call)[0]


def test_fields_of_a_dataclass_count_where_its_name_occurs_twice(tmp_path: Path) -> None:
    text = """
from dataclasses import dataclass, field, fields
FAST = True
if FAST:
    @dataclass
    class P:
        x: int = field(default=1, metadata={"unit": 3})
else:
    class P: ...
class Single:
    __slots__ = ("value",)
    def __reduce__(self):
        return "SINGLE"
SINGLE = Single()
SINGLE.value = 4
def f():
    return fields(P)[0].metadata["unit"] + SINGLE.value
"""
    key = key_in(tmp_path, {"main.py": text})[0]
    assert key == key_in(tmp_path, {"main.py": text})[0]
    for old, new in (('"unit": 3', '"unit": 5'), ("value = 4", "value = 5")):
        assert key != key_in(tmp_path, {"main.py": text.replace(old, new)})[0]


def test_a_class_that_an_annotation_names_in_quotation_marks_counts(tmp_path: Path) -> None:
    text = """
from typing import List, Literal, get_type_hints
class Outer:
    name: "str"
    inner: List["Inner"]
    kind: Literal["Other"]
class Inner:
    rate = 3
class Other:
    rate = 3
def f():
    return get_type_hints(Outer)["inner"].__args__[0].rate
"""
    key = key_in(tmp_path, {"main.py": text})[0]
    changed = text.replace("Inner:\n    rate = 3", "Inner:\n    rate = 5")
    assert key != key_in(tmp_path, {"main.py": changed})[0]
    changed = text.replace("Other:\n    rate = 3", "Other:\n    rate = 5")
    assert key == key_in(tmp_path, {"main.py": changed})[0]


def test_what_pydantic_makes_of_a_class_does_not_count(tmp_path: Path) -> None:
    library = """
import uuid
class Meta(type):
    def __new__(cls, name, bases, space):
        made = super().__new__(cls, name, bases, space)
        made.__pydantic_validator__ = uuid.uuid4()
        made.__pydantic_fields__ = dict(space.get("__annotations__", {}), **space)
        return made
class BaseModel(metaclass=Meta): ...
def create_model(name, **fields):
    return Meta(name, (BaseModel,), {"__module__": "main", **fields})
"""
    text = """
from pydantic import BaseModel, create_model
class Settings(BaseModel):
    rate: int = 3
Made = create_model("Made", size=1)
def f():
    return Settings().rate
def g():
    return Made().size
"""
    files = {"site-packages/pydantic.py": library, "main.py": text}
    key = key_in(tmp_path, files)[0]
    assert key == key_in(tmp_path, files)[0]
    assert key != key_in(tmp_path, {**files, "main.py": text.replace("= 3", "= 4")})[0]
    made = key_in(tmp_path, files, lambda main: main.g)[0]
    changed = {**files, "main.py": text.replace("size=1", "size=2")}
    assert made != key_in(tmp_path, changed, lambda main: main.g)[0]


@pytest.mark.parametrize("function", ["f", "C().go", "h"])
def test_a_submodule_that_a_library_imports_when_it_is_read_does_not_count(
    function: str, tmp_path: Path
) -> None:
    """As `numpy.random` of NumPy 2."""
    files = {
        "site-packages/lazy_library/__init__.py": """
def __getattr__(name):
    if name == "part":
        import lazy_library.part
        return lazy_library.part
    raise AttributeError(name)
""",
        "site-packages/lazy_library/part.py": "def double(a):\n    return a * 2\n",
        "main.py": """
import lazy_library as lib
class C:
    def go(self, c, a):
        return lib.part.double(a)
def f(c, a):
    return lib.part.double(a)
def h(c, a):
    return c.go(c, a)
""",
    }
    write(tmp_path, files)
    digests = []
    for _ in range(2):
        with loaded(tmp_path) as main:
            keys = keys_in(tmp_path)
            task = described(eval(function, vars(main)), main.C(), 3, shares_memory=True)
            key = keys.of(task, {}, {})
            assert task["function"](main.C(), 3) == 6
            keys.begin()
            keys.require_same_values(task, key)
            assert keys.of(task, {}, {}).digest == key.digest
            digests.append(key.digest)
    assert digests[0] == digests[1]


def test_a_package_whose_submodules_a_library_imports_is_refused(tmp_path: Path) -> None:
    """As `lazy_loader` does."""
    files = {
        "site-packages/lazy_names.py": """
import importlib
def attach(package, name):
    def __getattr__(attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(importlib.import_module(f"{package}.{name}"), attribute)
    return __getattr__
""",
        "pk/__init__.py": "import lazy_names\n__getattr__ = lazy_names.attach(__name__, 'sub')\n",
        "pk/sub.py": "def fast(a):\n    return a * 3\n",
        "main.py": "import pk\ndef f(a):\n    return pk.fast(a)\n",
    }
    write(tmp_path, files)
    with loaded(tmp_path) as main:
        assert main.f(2) == 6
        with pytest.raises(UnhashableError, match=r"pk\.fast, which a library imports"):
            key_of(keys_in(tmp_path), main.f)


def test_attributes_that_a_library_sets_when_they_are_read_do_not_count(tmp_path: Path) -> None:
    files = {
        "site-packages/xarray.py": """
class Dataset:
    __slots__ = ("_attrs", "values")
    def __init__(self, values, attrs=None):
        self._attrs, self.values = attrs, values
    @property
    def attrs(self):
        if self._attrs is None:
            self._attrs = {}
        return self._attrs
""",
        "site-packages/sklearn.py": """
class CountVectorizer:
    def __init__(self, words):
        self.words, self._stop_words_id = words, id(self)
""",
        "main.py": """
from sklearn import CountVectorizer
from xarray import Dataset
DATA, WORDS = Dataset([1, 2]), CountVectorizer(["the"])
def f():
    return DATA.values, DATA.attrs, WORDS.words
""",
    }
    write(tmp_path, files)
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        task = described(main.f, shares_memory=True)
        key = keys.of(task, {}, {})
        main.f()
        main.WORDS._stop_words_id = 5
        keys.begin()
        keys.require_same_values(task, key)
        main.DATA.attrs["unit"] = "K"
        keys.begin()
        with pytest.raises(UnhashableError, match=r"DATA .*changed in place"):
            keys.require_same_values(task, key)


def test_a_lambda_may_compare_an_item_of_a_global(tmp_path: Path) -> None:
    text = "LIMITS = {'a': 3}\nf = lambda k: LIMITS[k] > 3\n"
    key = key_in(tmp_path, {"main.py": text})[0]
    assert key != key_in(tmp_path, {"main.py": text.replace("3}", "4}")})[0]


def test_the_method_of_an_argument_may_start_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
import subprocess
class Solver:
    def run(self, x):
        return subprocess.run(["sh", "tool.sh", str(x)], capture_output=True, text=True).stdout
def f(solver, x):
    return solver.run(x)
"""
    write(tmp_path, {"main.py": text})
    digests = set()
    for mode in ("3", "5"):
        with loaded(tmp_path) as main:
            keys = keys_in(tmp_path)  # remembers the environment at the start
            monkeypatch.setenv("MODE8", mode)
            task = described(main.f, main.Solver(), 2, shares_memory=True)
            digests.add(keys.of(task, {}, {}).digest)
            monkeypatch.delenv("MODE8")
    assert len(digests) == 2


def test_classes_of_settings_read_environment_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "site-packages/pydantic_settings/__init__.py": "from .main import BaseSettings\n",
        "site-packages/pydantic_settings/main.py": "class BaseSettings: ...\n",
        "main.py": """
from pydantic_settings import BaseSettings
class Settings(BaseSettings):
    rate8: int = 1
def f():
    return Settings().rate8
""",
    }
    digests = set()
    for rate in ("3", "5"):
        monkeypatch.setenv("RATE8", rate)
        digests.add(key_in(tmp_path, files)[0])
    assert len(digests) == 2


def test_an_argument_of_a_former_version_of_a_class_differs(tmp_path: Path) -> None:
    text = """
from enum import Enum
def make():
    class Color(Enum):
        RED = 1
    return Color
Color, Former = make(), make()
def f(color):
    return color is Color.RED
"""
    write(tmp_path, {"main.py": text})
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        present, former = (
            keys.of(described(main.f, each.RED), {}, {}).digest
            for each in (main.Color, main.Former)
        )
        assert present != former


def test_a_module_that_autoreload_may_have_patched_is_not_believed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    text = "def f():\n    import model\n    return model.C().m()\n"
    model = "class C:\n    def m(self):\n        return {}\n"
    write(tmp_path, {"main.py": text, "model.py": model.format(1)})
    with loaded(tmp_path) as main:
        keys = keys_in(tmp_path)
        before = key_of(keys, main.f).digest
        main.f()
        stamp = stamp_of(str(tmp_path / "model.py"))
        assert stamp is not None
        keys.program.imported["model"] = stamp
        write(tmp_path, {"model.py": model.format(33)})
        keys.begin()
        assert key_of(keys, main.f).digest == before  # the program still has the former version
        monkeypatch.setitem(sys.modules, "IPython.extensions.autoreload", sys)
        keys.begin()
        with pytest.raises(UnhashableError, match=r"model\.py was changed after"):
            key_of(keys, main.f)


def test_a_class_that_names_members_of_the_interpreters_modules_has_a_key(tmp_path: Path) -> None:
    text = """
import os, sys
class Data:
    def path(self):
        return os.path.join("a", "b"), sys.version_info.major, os.sep
    def home(self):
        return os.environ.get("HOME")
def f():
    return Data().path()
"""
    key, parts = key_in(tmp_path, {"main.py": text})
    assert key != key_in(tmp_path, {"main.py": text.replace('"b"', '"c"')})[0]
    assert not any("as a whole" in part for part in parts)


@pytest.mark.parametrize("call", ["double(1)", "scale(2, 1)", "scale(2)(1)"])
def test_a_curried_function_counts_with_its_code(call: str, tmp_path: Path) -> None:
    library = """
from functools import partial
class curry:  # as in toolz
    def __init__(self, function, *args):
        self._partial = partial(function, *args)
        self.__name__ = function.__name__
    def __call__(self, *args):
        given = len(self._partial.args) + len(args)
        return self._partial(*args) if given == 2 else curry(self._partial.func, *args)
    def __reduce__(self):
        return restored, (f"{__name__}:{self.__name__}", self._partial.args)
def restored(name, args): ...
"""
    text = f"""
from currying import curry
@curry
def scale(k, x):
    return k * x * 3
double = scale(2)
def f():
    return {call}
"""
    files = {"site-packages/currying.py": library, "main.py": text}
    key = key_in(tmp_path, files)[0]
    assert key == key_in(tmp_path, files)[0]
    assert key != key_in(tmp_path, {**files, "main.py": text.replace("* 3", "* 4")})[0]


def test_a_dict_whose_keys_are_attributes_has_a_key(tmp_path: Path) -> None:
    text = """
class AttrDict(dict):
    __getattr__ = dict.__getitem__
CONFIG = AttrDict(rate=1)
class Model:
    config = CONFIG
def f():
    return CONFIG.rate, Model.config
"""
    key = key_in(tmp_path, {"main.py": text})[0]
    assert key == key_in(tmp_path, {"main.py": text})[0]
    assert key != key_in(tmp_path, {"main.py": text.replace("rate=1", "rate=2")})[0]
    given = [
        key_in(tmp_path, {"main.py": text}, lambda main: functools.partial(main.f, main.CONFIG))[0]
        for _ in range(2)
    ]
    assert given[0] == given[1]
