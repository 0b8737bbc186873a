"""Files that scripts load.

A command may name a script, whose modules and inner scripts belong to the program as well. The text
of the script is read without running it. Python modules are searched where Python would search
them: in the directory of the script, and in the directories of its search path. The latter is not
known exactly, so files that the script would not load may count as well.
"""

from __future__ import annotations

import functools
import glob
import os
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

from rhapsody.builtin.journal.files import LARGE_FILE
from rhapsody.builtin.journal.program import Surroundings
from rhapsody.reading import start_of
from rhapsody.sdk.modules import imported_names

_PYTHON = (".py", ".pyw")

_SCRIPT = re.compile(
    r"\.(py|pyw|sh|bash|zsh|ksh|csh|R|r|jl|pl|pm|awk|sed|sql|lua|tcl|rb|m|[cm]?js)"
)
"""Matches the endings of the names of scripts."""

_COMMENT = re.compile(r"(?m)(?:^|\s)#.*$")

_DOCSTRING = re.compile(r"(\"\"\"|\'\'\')[\s\S]*?\1")

_REST = r"((?:.*[(\[{,+/\\][ \t]*\n)*.*)"
"""Matches the rest of a line, and the lines that continue it."""

_SEARCH = re.compile(
    r"\b(?:(?:sys\.path|addsitedir|use\s+lib|addpath|LOAD_PATH)\b|(?:PYTHONPATH|PERL5LIB)=)" + _REST
)
"""Matches lines that change the search path of modules."""

_ASSIGNED = re.compile(
    r"(?m)^[ \t]*(?:\w+[ \t]+)?[$@]?(\w+)[ \t]*(?::[^=\n]*)?(?:=(?!=)|in\b)" + _REST
)
"""Matches lines that assign a variable."""

_PACKAGES = re.compile(r"(.*/(?:site|dist)-packages)/(\w+)[./].*")
"""Matches the paths of modules in a directory of installed packages."""

_LITERAL = re.compile(r"[\"\']([^\"\']*)[\"\']")

_AROUND_DIRECTORIES = re.compile(r"[\"'(),;]|(?<!:):(?!:)")
"""Splits lines of other languages at the ends of the names of directories."""

_NAMED = re.compile(
    rf"(?<![\w./+~-])([\w./+~-]{{0,200}}[\w+-]{_SCRIPT.pattern})(?![\w/])"
    r"|(?m:(?:^|[;&|({])[ \t]*(?:source|\.)[ \t][^;&|\n]{0,200}?([\w./+~-]{1,200})[\"']?[ \t]*"
    r"(?=[;&|]|$))"
)
"""Matches the names of scripts in the text of a script, and of files that a shell sources."""

_OBJECT = re.compile(r"[\"']([A-Za-z_][\w.]*):[A-Za-z_]\w*[\"']")
"""Matches objects in modules, as in `uvicorn.run("app.main:app")`."""

_RUN_MODULE = re.compile(r"(?<![\w-])-[A-Za-z]*?m[\"',\s\\]*([A-Za-z_][\w.]*)")
"""Matches options that run a Python module, as in `$PYTHON -m tool` and
`[sys.executable, "-m", "tool"]`."""

_WORD = re.compile(r"[\w.+~/-]+")
"""Matches the words of a script that may be paths."""

_MODULES = {
    ".pl": (re.compile(r"\b(?:use|require)\b([^;]*)"), ".pm"),
    ".m": (re.compile(r"(\b[A-Za-z]\w*)"), ".m"),
    ".jl": (re.compile(r"\b(?:using|import)\b([^\n]*)"), ".jl"),
    ".lua": (re.compile(r"\brequire\b([^\n]*)"), ".lua"),
    ".rb": (re.compile(r"\brequire(?:_relative)?\b([^\n]*)"), ".rb"),
    ".js": (re.compile(r"\b(?:require|from|import)\b([^\n]*)"), ".js"),
}
"""For scripts in other languages, the statements that name modules, and the ending of modules."""

_MAX_PARTS = 2
"""Number of directories that a script may name one by one before the name of another script."""

_NOTHING: tuple[str, ...] = ()


class _Text(NamedTuple):
    """Names in the text of a script.

    Attributes:
        modules: The names of the Python modules that it imports.
        search: The paths of the directories that it adds to the search path of modules, as far as
            its text contains them.
        scripts: The paths of scripts that it names. Variables in front of them are left out.
        words: Its words, which may be the paths of scripts without an ending, by the first part of
            the path.
    """

    modules: Collection[str] = _NOTHING
    search: Collection[str] = _NOTHING
    scripts: Collection[str] = _NOTHING
    words: Mapping[str, Collection[str]] = types.MappingProxyType({})


class Scripts:
    """Finder of the source files that scripts load, directly and through other source files.

    Only files of the program count: those below its directory or the directory of the script that
    do not belong to an installed package. An installed package is represented by the list of its
    files, which `pip` writes and which contains their digests.

    Args:
        program: The program's sources and directory.
    """

    def __init__(self, program: Surroundings) -> None:
        self._program = program
        self._texts: dict[bytes, _Text] = {}  # by digest of the file

    def loaded(self, script: str, search: Sequence[str] = ()) -> Sequence[str]:
        """Return the paths of the files that a script loads; none if it is not a script.

        Args:
            script: The path of the script.
            search: Directories that the script may search before the `PYTHONPATH` of this process,
                the current directory, the program's directory and `sys.path`, but after its own
                directory.
        """
        return self._program.once(self._loaded, script, tuple(search))

    def _loaded(self, script: str, search: tuple[str, ...]) -> Sequence[str]:
        link = os.path.abspath(os.path.expandvars(os.path.expanduser(script)))
        script = os.path.realpath(link)
        if not os.path.isfile(script):  # reading a pipe could block
            return ()
        if not (_is_script(script) or self._program.once(_interpreter, script)):
            return ()
        if self._program.file(script) is None:
            return ()
        directory = os.path.dirname(script)
        inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        others = (*search, *inherited, os.curdir, self._program.roots[0])
        # A shell script may search next to the link by which it was called.
        near = (directory, os.path.dirname(link), *map(os.path.abspath, others))
        # The script of an installed program is next to the Python interpreter that runs it.
        beside = glob.glob(f"{glob.escape(os.path.dirname(directory))}/lib/python*/*-packages")
        # A script in a package is run by `python -m` from a directory above it.
        above = [os.path.dirname(directory), os.path.dirname(os.path.dirname(directory))]
        places = dict.fromkeys((*near, *above, *sorted(beside), *map(os.path.abspath, sys.path)))
        below = tuple(f"{place}{os.sep}" for place in (*near[:2], *self._program.roots))
        package = os.path.join(directory, "__init__.py")  # imported by `python -m`
        todo = [script, *([package] if os.path.isfile(package) else [])]
        found: dict[str, None] = dict.fromkeys(todo)
        extra: dict[str, None] = {}
        records: dict[str, None] = {}
        specs = functools.cache(self._specs)
        while todo:
            file = todo.pop()
            text = self._text(file)
            added = (os.path.join(place, name) for place in (*near, *above) for name in text.search)
            more = filter(os.path.isdir, map(os.path.normpath, added))
            if new := dict.fromkeys(place for place in more if place not in extra):
                extra |= new
                todo = list(found)  # modules that were found may be in the new directories as well
                continue
            inner = {path for name in text.modules
                     for path in _files_of(name, file, (*extra, *places), specs)}  # fmt: skip
            own = os.path.dirname(file), os.path.dirname(os.path.realpath(file))
            near_file = dict.fromkeys((*own, *near, *extra))
            todo_places = [(place, 0) for place in near_file]
            while todo_places:
                place, depth = todo_places.pop()
                paths = (os.path.normpath(os.path.join(place, name)) for name in text.scripts)
                inner.update(filter(os.path.isfile, paths))
                entries = self._program.once(_entries, place)
                words = [
                    word for first in text.words.keys() & entries for word in text.words[first]
                ]
                named = [os.path.normpath(os.path.join(place, word)) for word in words]
                inner.update(path for path in named if os.path.isfile(path)
                             and self._program.once(_interpreter, path))  # fmt: skip
                if depth < _MAX_PARTS and text.scripts:  # as in `HERE / "scripts" / "step.py"`
                    inside = [each for each in named if each.startswith(f"{place}{os.sep}")]
                    todo_places += [(each, depth + 1) for each in filter(os.path.isdir, inside)]
            for each in sorted(inner.difference(found)):
                if each.startswith(below) and self._program.origins.own(each):
                    found[each] = None
                    todo.append(each)
            installed = (_record_of(each) for each in sorted({file, *inner}))
            records |= dict.fromkeys(filter(None, installed))
        del found[script]
        return (*found, *records)

    def _specs(self, name: str, places: tuple[str, ...]) -> Sequence[ModuleSpec]:
        """Return the specs of modules with a name, up to the first one that is installed."""
        specs: list[ModuleSpec] = []
        for place in dict.fromkeys(places):
            finder: Any = pkgutil.get_importer(place)
            spec: ModuleSpec | None = finder and finder.find_spec(name)
            if spec is not None:
                specs.append(spec)
                if spec.loader is not None and not self._program.origins.own(spec.origin):
                    break
        return specs

    def _text(self, file: str) -> _Text:
        digest = self._program.file(file)
        if digest is None or file.endswith((".so", ".pyc")):
            return _Text()
        text = self._texts.get(digest)
        if text is None:
            text = self._texts[digest] = self._read(file)
        return text

    def _read(self, file: str) -> _Text:
        try:
            content = start_of(file, LARGE_FILE)
        except OSError:
            return _Text()
        is_python = file.endswith(_PYTHON) or b"python" in self._program.once(_interpreter, file)
        code = _COMMENT.sub("", content.decode(errors="replace"))
        if is_python:
            code = _DOCSTRING.sub("", code)
        lines = _SEARCH.findall(code)
        used = set(re.findall(r"\w+", " ".join(lines)))
        lines += [value for name, value in _ASSIGNED.findall(code) if name in used]
        search = set()
        for line in lines:
            split = _LITERAL.findall(line) if is_python else _AROUND_DIRECTORIES.split(line)
            paths = [word.strip().lstrip("/") for word in split]
            # What precedes the first slash may be a variable, as in `f"{HERE}/lib"`.
            inner = [path.partition("/")[2] for path in paths]
            search |= {os.path.join("", *paths), *filter(None, (*paths, *inner))}
        if not is_python:
            search.add("lib")  # usual for Perl, which may receive it from the command
        names = {each[1] or each[3] for each in _NAMED.finditer(code)}
        # What precedes the first slash may be a variable, as in `$HERE/lib.sh`, and what precedes a
        # hyphen as well, as in `${1:-lib.sh}`.
        names |= {name.partition("/")[2] for name in names if "/" in name}
        names |= {name[each.end() :] for name in names for each in re.finditer("-", name)}
        if not is_python:
            names.update(_modules_in(code, file, self._program.once(_interpreter, file)))
        words = set(_WORD.findall(code))
        words |= {word.partition("/")[2] for word in words}
        by_first: dict[str, list[str]] = {}
        for word in words - {"", os.curdir}:
            by_first.setdefault(word.partition("/")[0], []).append(word)
        if not is_python:  # it may contain lines of Python, as in `python -c "import lib"`
            content = re.sub(rb"[\"']", b"\n", content) if b"python" in content else b""
        modules = {*imported_names(content), *_OBJECT.findall(code)}
        for name in _RUN_MODULE.findall(code):
            modules |= {name, f"{name}.__main__"}
        return _Text(modules, search, names - {""}, by_first)


def _is_script(name: str) -> bool:
    return _SCRIPT.fullmatch(os.path.splitext(name)[1]) is not None


def _entries(directory: str) -> Set[str]:
    """Return the names in a directory, and those that begin paths of files elsewhere."""
    try:
        return {"", os.pardir, *os.listdir(directory)}
    except OSError:
        return frozenset()


def _modules_in(code: str, file: str, interpreter: bytes) -> Iterator[str]:
    """Yield the possible file names of modules that a script in another language loads."""
    ending = os.path.splitext(file)[1]
    if ending == ".pm" or b"perl" in interpreter:
        ending = ".pl"
    elif ending in (".mjs", ".cjs") or b"node" in interpreter:
        ending = ".js"
    if ending in _MODULES:
        statement, of_module = _MODULES[ending]
        for words in statement.findall(code):
            for word in re.findall(r"[\w:./-]+", words):
                if ending == ".js" and word.startswith("."):
                    yield from (word, f"{word}.json", f"{word}/index.js")
                name = word.strip(":").removesuffix(of_module)
                yield (name if "/" in name else re.sub(r"::|\.", "/", name)) + of_module


def _interpreter(path: str) -> bytes:
    """Return the first line of a file if it names an interpreter, otherwise nothing."""
    try:
        line = start_of(path, 128).partition(b"\n")[0]
    except OSError:
        return b""
    return line if line.startswith(b"#!") else b""


def _files_of(
    name: str,
    file: str,
    places: tuple[str, ...],
    specs: Callable[[str, tuple[str, ...]], Sequence[ModuleSpec]],
) -> Iterator[str]:
    """Yield the files of a module and of its parent packages.

    Args:
        name: The name in an import statement, with leading dots if it is relative.
        file: The file that contains the statement.
        places: The directories in which Python searches modules, in an unknown order.
        specs: The method `Scripts._specs`.
    """
    words = name.lstrip(".").split(".")
    if level := len(name) - len(name.lstrip(".")):
        place = os.path.dirname(file)
        for _ in range(level - 1):
            place = os.path.dirname(place)
        places = (place,)
    for word in filter(None, words):
        inner: dict[str, None] = {}
        for spec in specs(word, places):
            if spec.has_location and spec.origin is not None:
                yield spec.origin
            inner |= dict.fromkeys(spec.submodule_search_locations or ())
        places = tuple(inner)


def _record_of(module: str) -> str | None:
    """Return the path of the list of files of the distribution that contains a module, if any."""
    match = _PACKAGES.fullmatch(module)
    if match is None:
        return None
    place, name = match.groups()
    same_name = glob.glob(f"{glob.escape(place)}/{name}-*.dist-info/RECORD")
    if same_name:
        return same_name[0]
    return _records_in(place, os.stat(place).st_mtime_ns).get(name)


@functools.lru_cache(maxsize=16)
def _records_in(place: str, _: int) -> Mapping[str, str]:
    """Return the lists of files of the distributions in a directory, by name of the module.

    The second argument is the modification time of the directory, which `pip` changes.
    """
    records: dict[str, str] = {}
    for info in glob.glob(f"{glob.escape(place)}/*.dist-info/RECORD"):
        try:
            text = Path(info).read_text(errors="replace")
        except OSError:
            continue
        for name in dict.fromkeys(re.findall(r"(?m)^(\w+)[./]", text)):
            records.setdefault(name, info)
    return records
