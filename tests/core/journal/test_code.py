"""Tests of the code that the key of a task covers."""

from __future__ import annotations

import py_compile
from pathlib import Path

import pytest

from rhapsody.builtin.journal.values import UnhashableError
from rhapsody.sdk.modules import _distributions
from tests._support.journal_keys import key_in, key_of, keys_in, loaded, write
from tests._support.journal_programs import CHANGED, IMPORTS, ORDINARY, REFUSED, SAME, Files


def files(text: str | Files) -> Files:
    return {"main.py": text} if isinstance(text, str) else text


@pytest.mark.parametrize("what", SAME)
def test_what_means_the_same_has_the_same_key(what: str, tmp_path: Path) -> None:
    before, after = SAME[what]
    assert key_in(tmp_path, files(before)) == key_in(tmp_path, files(after))


@pytest.mark.parametrize("what", CHANGED)
def test_a_change_is_seen_and_a_comment_is_not(what: str, tmp_path: Path) -> None:
    program, old, new = CHANGED[what]
    before = files(program)
    after = {name: text.replace(old, new) for name, text in before.items()}
    assert before != after
    key = key_in(tmp_path, before)
    commented = {  # a package without a version counts with its files
        name: text if name.startswith("site-packages/") else f"# a comment\n\n{text}"
        for name, text in before.items()
    }
    assert key_in(tmp_path, commented) == key
    assert key_in(tmp_path, after)[0] != key[0]


@pytest.mark.parametrize("what", IMPORTS)
def test_a_change_in_another_file_is_seen_however_it_is_imported(what: str, tmp_path: Path) -> None:
    before = IMPORTS[what]
    after = {name: text.replace("return 1", "return 2") for name, text in before.items()}
    key = key_in(tmp_path, before)
    assert key_in(tmp_path, before) == key
    assert key_in(tmp_path, after)[0] != key[0]


def test_nothing_is_imported_to_know_what_a_function_imports(tmp_path: Path) -> None:
    before = {
        "main.py": "def f(x):\n    from p.m import g\n    import gone\n    return g(x)\n",
        "p/__init__.py": "raise SystemExit\n",
        "p/m.py": "raise SystemExit\ndef g(x): return 1\n",
    }
    after = {name: text.replace("return 1", "return 2") for name, text in before.items()}
    assert key_in(tmp_path, before)[0] != key_in(tmp_path, after)[0]


def test_a_function_may_be_called_from_modules_that_import_each_other(tmp_path: Path) -> None:
    before = {
        "main.py": "def f(x):\n    import a\n    return a.g(x)\n",
        "a.py": "import b\ndef g(x): return b.h(x)\n",
        "b.py": "import a\ndef h(x): return 1\n",
    }
    after = {name: text.replace("return 1", "return 2") for name, text in before.items()}
    assert key_in(tmp_path, before) == key_in(tmp_path, before)
    assert key_in(tmp_path, before)[0] != key_in(tmp_path, after)[0]


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed_is_refused_with_a_reason(what: str, tmp_path: Path) -> None:
    program, reason = REFUSED[what]
    with pytest.raises(UnhashableError, match=rf"{reason}.*version="):
        key_in(tmp_path, files(program))


@pytest.mark.parametrize("what", ORDINARY)
def test_ordinary_programs_have_the_same_key_in_each_run(what: str, tmp_path: Path) -> None:
    program = files(ORDINARY[what])
    assert key_in(tmp_path, program) == key_in(tmp_path, program)


def test_a_module_without_source_that_a_task_imports_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text("n = 1\n")
    py_compile.compile(str(tmp_path / "source.py"), cfile=str(tmp_path / "m.pyc"))
    write(tmp_path, {"main.py": "def f(x):\n    import m\n    return m.n\n"})
    with loaded(tmp_path) as main, pytest.raises(UnhashableError, match="source of module m"):
        key_of(keys_in(tmp_path), main.f, 1)


def test_the_version_of_the_distribution_that_has_a_module_counts(tmp_path: Path) -> None:
    other = {
        "METADATA": "Name: vlib\nVersion: 1\n",
        "RECORD": "other.py,,\nvlib-1.dist-info/RECORD,,\n",
    }
    seen = set()
    for version in ("1", "2"):
        own = {
            "METADATA": f"Name: vreal\nVersion: {version}\n",
            "RECORD": "vlib.py,,\n",
            "top_level.txt": "vlib\n",
        }
        place = "site-packages/"
        _distributions.cache_clear()
        found = key_in(tmp_path, {
            "main.py": "import vlib\ndef f(x): return vlib.g()\n",
            f"{place}vlib.py": "def g(): return 1\n",
            **{f"{place}vlib-1.dist-info/{name}": text for name, text in other.items()},
            **{f"{place}vreal-{version}.dist-info/{name}": text for name, text in own.items()},
        })  # fmt: skip
        seen.add(found[0])
        assert found[1]["vlib"] == f"vreal {version}"
    _distributions.cache_clear()
    assert len(seen) == 2
