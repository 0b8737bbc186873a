"""Key of a task: the digest of everything that its result is known to depend on.

The backend, resources, timeouts and retries are not part of the key.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import os
import random
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from rhapsody.builtin.journal.addresses import PLAIN, texts_of
from rhapsody.builtin.journal.code import SEEDS, CodeFingerprint, Known
from rhapsody.builtin.journal.files import Stamp
from rhapsody.builtin.journal.imported import ImportedModules
from rhapsody.builtin.journal.program import Surroundings
from rhapsody.builtin.journal.scripts import Scripts
from rhapsody.builtin.journal.values import (
    DIGEST_SIZE,
    MAX_PATH_LENGTH,
    UnhashableError,
    Values,
    attribute_of,
    counts,
    is_global_generator,
)
from rhapsody.environments import SETTINGS
from rhapsody.sdk.calls import argument_name
from rhapsody.sdk.generators import is_generator, set_state
from rhapsody.sdk.introspect import content_of
from rhapsody.sdk.runner import files_of_modules, paths_in, split_at_paths, with_variables
from rhapsody.sdk.value_handles import WorkerValue

_CODE = (types.FunctionType, type)

_IMMUTABLE = frozenset((int, float, bool, str, bytes, type(None), complex, range))

_BUILTIN = frozenset((list, tuple, dict, set, frozenset, bytearray))

_VARIABLES = "variables set by the program"

_NO_PARTS: Mapping[str, str] = types.MappingProxyType({})

_NO_SOURCES: Mapping[str, tuple[str, Stamp | None]] = types.MappingProxyType({})

_NOTHING: Mapping[str, object] = types.MappingProxyType({})
_NO_CELLS: Mapping[str, types.CellType] = types.MappingProxyType({})
_NO_INPUTS: Mapping[str, str | None] = types.MappingProxyType({})

_SEARCH_PATHS = ("PYTHONPATH", "PERL5LIB")
"""Variables that name the directories in which scripts search modules."""

_SETTINGS = ("environment", "cwd", "stdin", "ready", *SETTINGS)

_OTHER_OUTPUT = (False, "files")
"""Values of the setting `capture` with which a task's output is not the text that it prints."""

_REDIRECTION = re.compile(r"[0-9&]?(?<!<)>>?\s*[^\s;|&()<>]+")
_WILDCARD = re.compile(r"[*?\[]")
_PROGRAM = re.compile(r"\w*[A-Za-z_][\w.+-]*")
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class Key(NamedTuple):
    """Key of a task: its digest, and the parts from which the digest is computed.

    Attributes:
        digest: The digest of `parts`, `code` and `paths`. See `Keys.digest`.
        parts: The parts of the key except `code`, as text (see `as_text`): the name of each part,
            which messages contain, and its digest. Small values, such as numbers, are included
            instead of their digests.
        code: The digest of the function's code and of everything that the code uses (see
            `Keys.codes`); `None` for a command, a callable object, or a task with a `version`.
        paths: The strings and paths in the arguments that may name files, each with the digest
            of its file, or `None` if there is no readable file.
        watched: The parts of the key by name. Those of the task's input files, of the environment
            variables that a command inherits, and of `arguments` and their classes must not change
            until the task has ended. Empty if there are none of these.
        arguments: The arguments of a function that may change in place, the object whose method it
            is, and the values around a function with a `version`, by the names of their parts.
        generators: The random number generators among the arguments of a function in this process,
            by the names of their parts. They are not in `arguments`.
        may_open: True if the task is a function that may open files.
        resolves: True if the task is a function that may resolve symbolic links.
        function: The function that `code` represents.
        used: What `code` represents. If it changes before the task has ended, the function may have
            used either value: calls are sent to workers when one is free.
        cells: The cells of the closure of a function with a `version` that runs in this process, by
            the names of their parts in `watched`.
        absent: Names of modules that a function in this process may be the first one to import.
        sources: The source files of modules that the function may be the first one to import. See
            `CodeFingerprint.sources`.
        portable: True if runs with other command-line arguments may use the result. False if the
            function uses a library that reads these arguments.
        variables: The environment variables that the program has changed; `None` unless a function
            in this process starts programs.
        here: True if the task is a function that runs in this process.
    """

    digest: bytes
    parts: str
    code: bytes | None
    paths: Mapping[str, bytes | None]
    watched: Mapping[str, str]
    arguments: Mapping[str, object]
    generators: Mapping[str, object] = _NOTHING
    may_open: bool = False
    resolves: bool = False
    function: Any = None
    used: Known | None = None
    cells: Mapping[str, types.CellType] = _NO_CELLS
    absent: Collection[str] = ()
    sources: Mapping[str, tuple[str, Stamp | None]] = _NO_SOURCES
    portable: bool = True
    variables: Mapping[str, str | None] | None = None
    here: bool = False

    @property
    def caches(self) -> frozenset[str]:
        """The qualified names of the functions with `functools.lru_cache` that the code uses."""
        memos = () if self.used is None else self.used.found.memos
        names = (getattr(memo.owner, "__qualname__", None) for memo in memos)
        return frozenset(name for name in names if isinstance(name, str))


def as_text(parts: Mapping[str, object]) -> str:
    """Return parts as text that `ast.literal_eval` reads, and that is the same in each run.

    `ascii` takes half the time of `json.dumps` with sorted keys.
    """
    return ascii(parts)


@dataclass(slots=True)
class Keys:
    """Factory of task keys.

    Args:
        program: The state shared by the fingerprints of a run.

    Attributes:
        codes: For each `Key.code`, its parts and the first line numbers of the functions among
            them, as text (see `as_text`).
        imported: The states of the program's modules that tasks import.
    """

    program: Surroundings
    codes: dict[bytes, str] = field(default_factory=dict)
    _functions: WeakKeyDictionary[Any, Known] = field(default_factory=WeakKeyDictionary)
    _checked: dict[Known, bool] = field(default_factory=dict)
    _values: dict[bytes, bytes] = field(default_factory=dict)  # worker values: keys and digests
    _same_values: set[bytes] = field(default_factory=set)  # those compared in this batch
    _texts: WeakKeyDictionary[Any, tuple[Known, frozenset[str]]] = field(
        default_factory=WeakKeyDictionary
    )
    _read: list[object] = field(default_factory=list)  # by code in the arguments of the last task
    _scripts: Scripts = field(init=False)
    _fingerprint: CodeFingerprint = field(init=False)  # shared by all tasks: slow to create
    imported: ImportedModules = field(init=False)

    def __post_init__(self) -> None:
        self.imported = ImportedModules(self.program)
        imported = ref(self.imported)  # without a cycle, it listens only while this object is used

        def has_changed(module: str) -> bool:
            found = imported()
            return found is not None and found.changed(module) is not None

        self.program.has_changed = has_changed
        self._scripts = Scripts(self.program)
        self._fingerprint = CodeFingerprint(self.program)

    def of(
        self,
        task: Mapping[str, Any],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str | None],
        texts: Sequence[str] = (),
        more: Mapping[str, str] = _NO_PARTS,
    ) -> Key:
        """Return the key of a task.

        The text of the command that a service runs is not part of its key, because it may contain a
        port that differs from run to run. The function that returns the command is part of the key.

        Args:
            task: The task's description.
            settings: The task's settings. Only `version` is part of the key.
            inputs: The paths of the task's input files by name; `None` for a file that cannot be
                read on this machine.
            texts: The strings and paths among the arguments of an executable task, which may name
                files.
            more: Further parts of the key.

        Raises:
            UnhashableError: An argument or a value that the function uses has no digest, or an
                input file cannot be read.
        """
        try:
            key = self._of(task, settings, inputs, texts, more)
            if "addresses" in task:
                self._read = _variables_of(self._fingerprint)
            for handle in list(self._fingerprint.handles):
                self._require_same_value(handle)
            return key
        except UnhashableError:
            raise
        except Exception as error:  # any error raised by an object that is inspected
            raise UnhashableError(f"its function cannot be inspected: {error!r}") from error

    def _of(
        self,
        task: Mapping[str, Any],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str | None],
        texts: Sequence[str],
        more: Mapping[str, str],
    ) -> Key:
        found = self._fingerprint
        found.begin(task.get("sandbox") or "", inputs)
        parts = {"name": task["name"], **more}
        function = task["function"]
        shared: dict[str, object] = {}
        cells: Mapping[str, types.CellType] = _NO_CELLS
        if task["executable"] is not None:
            self._command(task, found, parts)
            for text in texts:
                found.path(text)
        if task["executable"] is not None or inputs:
            self._imported(task, found, inputs)
        if function is not None and not isinstance(function, _CODE):
            function = _taken_apart(function, found, parts, shared)
            drawn_from = attribute_of(function, "__self__"), *shared.values()
            if any(map(is_global_generator, drawn_from)):  # such as `random.random`
                seeds = self.program.seeds()
                parts[SEEDS] = "; ".join(sorted(seeds))
                parts |= {part: found.value(seed) for part, seed in seeds.items()}
        for number, value in enumerate(task["args"], 1):
            part = f"argument {number}"
            parts[part] = found.value(value)
            if type(value) not in _IMMUTABLE:
                shared[part] = value
        kwargs = task["kwargs"]
        for name, value in sorted(kwargs.items()) if kwargs else ():
            shown = name if name.isidentifier() else repr(name)  # not taken for a position
            part = f"argument {shown}"
            parts[part] = found.value(value)
            if type(value) not in _IMMUTABLE:
                shared[part] = value
        paths = found.paths
        if paths and function is not None and not self.program.pipes.isdisjoint(paths):
            pipe = min(self.program.pipes & paths.keys())
            raise UnhashableError(f"its argument {pipe!r} is a pipe, whose content is unknown")
        version, known = settings.get("version"), None
        if version is not None:
            parts["version"] = str(version)
            mutable, cells = found.versioned(function, parts)
            shared |= mutable
        elif isinstance(function, _CODE):
            known = self._code(function)
            found.handles += known.found.handles
        elif function is not None:
            parts["function"] = found.value(function)
            shared["function"] = function
        if inputs:
            self._input_files(task, inputs, parts)
        for name in () if task.keys().isdisjoint(_SETTINGS) else _SETTINGS:
            if task.get(name):
                parts[name] = found.value(task[name])
        if "capture" in task and task["capture"] in _OTHER_OUTPUT:
            parts["capture"] = found.value(task["capture"])
        specific = task["task_backend_specific_kwargs"]
        for name in sorted(task["result_settings"]) if specific else ():
            if specific.get(name):
                parts[f"task_description {name}"] = found.value(specific[name])
        shares_memory = task.get("shares_memory")  # `None` if it is unknown
        if known is not None and known.plain and not (shared or inputs or task["executable"]):
            text = ascii(parts)  # as below, in a third of the time
            digest = self.digest(text, known.digest, paths)
            plain_key = (
                digest, text, known.digest, paths, _NO_PARTS, _NOTHING, _NOTHING, False, False,
                function, known, _NO_CELLS, (), _NO_SOURCES, True, None, bool(shares_memory),
            )  # fmt: skip
            return tuple.__new__(Key, plain_key)  # calling the class takes twice as long
        code, used = (None, found) if known is None else (known.digest, known.found)
        if found.parts and used is not found and (names := found.other_versions(used)):
            parts["other versions in the arguments"] = ", ".join(sorted(names))
        inherited = None
        starts_programs = used.starts_programs or found.starts_programs
        if starts_programs and _VARIABLES not in parts:
            inherited = self._variables(task, found)
            if inherited is not None:
                parts[_VARIABLES] = inherited
        generators: Mapping[str, object] = _NOTHING
        plain = not shared or _BUILTIN.issuperset(map(type, shared.values()))
        if not plain:
            generators = {name: value for name, value in shared.items() if _can_be_set(value)}
        if shares_memory is False:
            if found.set_here or used.set_here or inherited is not None:
                values = sorted((found.on_workers | used.on_workers).items())
                parts["values of modules"] = f"as a worker imports them: {values}"
            if generators:
                parts["generators"] = "copied to a worker"  # tasks on threads advance the original
        if found.parts:
            parts = dict(sorted(found.parts.items())) | parts
        text = ascii(parts)  # see `as_text`
        may_open = function is not None and (
            known is None
            or used.may_open
            or found.may_open
            or starts_programs
            or not (plain or all(map(_is_builtin, shared.values())))
        )
        resolves = may_open and (used.resolves or found.resolves)
        absent: Collection[str] = ()
        sources = _NO_SOURCES
        if found.absent or used.absent:
            absent, sources = found.absent | used.absent, found.sources | used.sources
            self.program.require_same_sources(sources, sent=shares_memory is False)
        if not shares_memory:  # it receives copies, but perhaps not yet
            generators, cells, absent = _NOTHING, _NO_CELLS, ()
        watched = parts if shared or cells or inputs or _VARIABLES in parts else _NO_PARTS
        if generators:
            shared = {name: value for name, value in shared.items() if name not in generators}
        if function is None:
            shared = {}
        digest = self.digest(text, code, paths)
        portable = not (found.reads_arguments or used.reads_arguments)
        inherits = known is not None and starts_programs and bool(shares_memory)
        key = (
            digest, text, code, paths, watched, shared or _NOTHING, generators, may_open,
            resolves, None if known is None else function, known, cells, absent, sources, portable,
            self.program.variables() if inherits else None,
            known is not None and bool(shares_memory),
        )  # fmt: skip
        return tuple.__new__(Key, key)

    def _require_same_value(self, handle: WorkerValue[Any]) -> None:
        """Check that building a worker value now would use what it used earlier in this run.

        Workers keep the value that they have built, so a change has no effect on later tasks.

        Raises:
            UnhashableError: The code of the factory, a value that it uses, or a file in its
                arguments has changed.
        """
        key = handle.spec.key
        if key in self._same_values:
            return
        factory: dict[str, Any] = {
            "name": handle.name, "function": handle.definition.factory, "executable": None,
            "args": handle.args, "kwargs": handle.kwargs, "task_backend_specific_kwargs": {},
            "shares_memory": True,
        }  # fmt: skip
        digest = self._of(factory, _NOTHING, {}, (), _NO_PARTS).digest
        if self._values.setdefault(key, digest) != digest:
            raise UnhashableError(
                f"worker value {handle.name!r} may have been built before a variable or file that "
                "its function uses changed: pass the new value as an argument of the function"
            )
        self._same_values.add(key)

    def _input_files(
        self, task: Mapping[str, Any], inputs: Mapping[str, str | None], parts: dict[str, str]
    ) -> None:
        """Add a task's input files to `parts`."""
        for name, path in inputs.items():
            parts[f"input file {name}"] = self.program.content(name, path).hex()
        for name in task.get("given", ()) if task["function"] is not None else ():
            place = self.program.portable(inputs[name] or "")
            if place != f"\0{os.sep}{name}":  # it is not in the program's directory
                parts[f"path of input file {name}"] = place.removeprefix(f"\0{os.sep}")

    def digest(self, parts: str, code: bytes | None, paths: Mapping[str, bytes | None]) -> bytes:
        """Return the digest of a key, computed from its parts, code digest and files.

        Args:
            parts: See `Key.parts`.
            code: See `Key.code`.
            paths: See `Key.paths`.
        """
        made = hashlib.blake2b((code or b"") + parts.encode(), digest_size=DIGEST_SIZE)
        if paths and any(paths.values()):
            portable = self.program.portable
            made.update(
                ascii(sorted((portable(each), of) for each, of in paths.items() if of)).encode()
            )
        return made.digest()

    def _command(
        self, task: Mapping[str, Any], found: CodeFingerprint, parts: dict[str, str]
    ) -> None:
        """Add a command and the variables that it inherits to `parts`, and collect its files.

        The command of a service is not added.
        """
        words = [str(each) for each in (task.get("executable"), *task.get("arguments", ()))]
        sandbox, environment = task.get("sandbox"), task.get("environment") or {}
        metadata = task["metadata"]
        declared = {*metadata.get("input_files", ()), *metadata.get("output_files", ())}
        image = [task["container"]] if "container" in task else []
        for path in self._files_named([*words, *image], environment, task.get("cwd"), declared):
            found.path(path)
            if path.startswith("/") and (wildcard := _WILDCARD.search(path)):
                found.path(os.path.dirname(path[: wildcard.start()]))
        variables = self._variables(task, found)
        if variables is not None:
            parts[_VARIABLES] = variables
        for name, value in _inherited(words, environment):
            # Only the digest is stored: the value may be a secret, and users can see the parts.
            parts[f"environment variable {name}"] = Values(found).digest(value).hex()
        if not sandbox and not task.get("cwd"):  # it runs in the current directory
            for word in words:
                found.path(word)
        if task["function"] is not None:  # a service, whose command may contain a free port
            return
        if sandbox:
            words = [_without(sandbox, word) if sandbox in word else word for word in words]
        words = [self.program.portable(word) for word in words]
        how: tuple[object, ...] = ("arguments" in task,)
        if "arguments" not in task:  # the shell determines which failures end the command
            how += (task.get("shell"),)
        text = ascii((words, *how))  # not as a value, whose texts may name files
        parts["command"] = hashlib.blake2b(text.encode(), digest_size=DIGEST_SIZE).hexdigest()

    def _imported(
        self, task: Mapping[str, Any], found: CodeFingerprint, inputs: Mapping[str, str | None]
    ) -> None:
        """Collect the files that scripts among a task's files, or `python -m`, load."""
        cwd, environment = task.get("cwd"), task.get("environment") or {}
        given = (environment.get(name, "").split(os.pathsep) for name in _SEARCH_PATHS)
        search = [os.path.join(cwd or "", place) for place in itertools.chain(*given) if place]
        search += [cwd] if cwd else []
        words = [str(word) for word in (task["executable"], *task.get("arguments", ()))]
        options = (*_SEARCH_PATHS, "-I", "--app-dir", "--chdir")
        if any(name in word for word in words for name in options):
            search += filter(os.path.isdir, found.paths)
        if modules := files_of_modules(words):
            inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
            for place in (*search, *inherited):
                for name in modules:
                    found.path(os.path.join(place, name))
        if any("python" in word for word in words):
            for path in list(found.paths):
                if os.path.isfile(main := os.path.join(path, "__main__.py")):
                    found.path(main)
        named = [path for path, digest in found.paths.items() if digest]
        for script in (*named, *filter(None, inputs.values())):
            for path in self._scripts.loaded(script, search):
                found.path(path)

    def _files_named(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        cwd: str | None,
        declared: Collection[str],
    ) -> Iterator[str]:
        """Yield the paths of a command's programs, and words or parts of words that may be paths.

        This includes paths in words such as `--in=PATH`, in shell commands and in `environment`,
        but not files that a shell writes to. Only the first program may have the name of a declared
        file.
        """
        programs: dict[str, None] = {}
        modules = files_of_modules(words)
        for place in (sysconfig.get_path("purelib"), cwd) if modules else ():
            yield from (os.path.join(place, name) for name in modules if place is not None)
        for word in words:
            text = with_variables(_REDIRECTION.sub(" ", word), environment)
            for piece in filter(_PROGRAM.fullmatch, split_at_paths(text)):
                if not programs or piece not in declared:
                    programs[piece] = None
            pieces = paths_in(text, with_variables(word, environment))
            for piece in dict.fromkeys((word, *filter(None, pieces))):
                if len(piece) > MAX_PATH_LENGTH:
                    continue
                if piece.startswith(("/", "~", "$")):
                    yield piece
                elif cwd is not None:
                    yield os.path.join(cwd, piece)
        yield from self.program.which(programs, environment.get("PATH"))
        for value in environment.values():
            yield from (piece for piece in value.split(":") if piece.startswith("/"))

    def files(self, paths: Iterable[str]) -> dict[str, bytes | None]:
        """Return the current digest of each file; `None` for a missing or unreadable file."""
        digest = self.program.file
        return {path: digest(path) for path in paths}

    def require_unchanged(
        self, task: Mapping[str, Any], inputs: Mapping[str, str | None], before: Mapping[str, str]
    ) -> None:
        """Raise an error if a task's inputs have changed since its key was computed.

        Args:
            task: The task's description.
            inputs: The paths of the task's input files by name; `None` for a file that cannot be
                read on this machine.
            before: The digests of the inputs when the key was computed. See `Key.watched`.

        Raises:
            UnhashableError: An input file has changed or cannot be read, or an environment variable
                that a command inherits has changed.
        """
        self.require_same_inputs(inputs, before)
        if task["function"] is None:
            self._fingerprint.begin()
            if self._variables(task, self._fingerprint) != before.get(_VARIABLES):
                raise UnhashableError(
                    "the program changed os.environ while the task waited or ran, so that the task "
                    "may have inherited either value; pass environment={...} to the task instead"
                )

    def require_same_inputs(
        self, inputs: Mapping[str, str | None], before: Mapping[str, str]
    ) -> None:
        """Raise an error if input files have changed; see `require_unchanged`.

        Raises:
            UnhashableError: An input file has changed or cannot be read.
        """
        for name, path in inputs.items():
            if self.program.content(name, path).hex() != before.get(f"input file {name}"):
                raise UnhashableError(
                    f"its input file {name!r} changed while the task waited or ran; run again when "
                    "nothing writes to it, and declare files that the task writes as OutputFile"
                )

    def require_same_values(
        self, task: Mapping[str, Any], key: Key, inputs: Mapping[str, str | None] = _NO_INPUTS
    ) -> None:
        """Raise an error if values that a function uses have changed meanwhile.

        These are its arguments and their classes, the source files of modules that it imports and,
        if it runs in this process, its code with all values in its closure, its defaults and the
        globals that it reads. A function that changes them has an effect that is not repeated when
        its result is reused; if something else changes them, it may have used either value.

        Args:
            task: The task's description.
            key: The task's key.
            inputs: The paths of the task's input files by name.

        Raises:
            UnhashableError: A value has changed since the key was computed.
        """
        if key.sources:
            sent = task.get("shares_memory") is False
            self.program.require_same_sources(key.sources, sent=sent)
        for module in key.absent:
            if (variable := self.imported.changed(module)) is not None:
                raise UnhashableError(
                    f"{variable} has changed since a task imported module {module!r}, and a reused "
                    "result would not repeat the change: import the module at the top of the "
                    "program, or let the function return what it changes"
                )
        used = key.used
        if (
            used is not None
            and not self._is_unchanged(used)
            and self._code(key.function).digest != key.code
        ):
            before, now = used.found.parts, self._functions[key.function].found.parts
            names = [name for name in now if now[name] != before.get(name)]
            what = min(names, default="a value that it uses", key=len)
            raise UnhashableError(
                f"{what} changed in place while the task waited or ran, and a reused result would "
                "not repeat the change: let the function return what it changes, or, if it only "
                "computes faster with it, give the dict or set a name that ends with 'cache'"
            )
        if key.variables is not None:
            self._require_same_variables(task.get("environment") or {}, key.variables)
        if not (key.arguments or key.cells):
            return
        self._fingerprint.begin(task.get("sandbox") or "", inputs)
        for name, value in key.arguments.items():
            if self._fingerprint.value(value) != key.watched[name]:
                raise UnhashableError(_changed_in_place(_shown(task["function"], name)))
        for name, cell in key.cells.items():
            value = content_of(cell)
            if isinstance(value, types.FunctionType | type):  # represented by its name
                continue
            if self._fingerprint.value(value) != key.watched.get(name):
                raise UnhashableError(_changed_in_place(name))
        for name, digest in self._fingerprint.parts.items():
            if key.watched.get(name) != digest:
                raise UnhashableError(_changed_in_place(name))

    def _require_same_variables(
        self, own: Collection[str], before: Mapping[str, str | None]
    ) -> None:
        """Raise an error if variables that the programs of a function inherit have changed.

        Args:
            own: The variables that the task sets itself.
            before: The variables that the program had changed before.

        Raises:
            UnhashableError: A variable has changed.
        """
        now = self.program.variables()
        for name in sorted((before.keys() | now.keys()).difference(own)):
            if counts(name) and before.get(name, "") != now.get(name, ""):
                raise UnhashableError(
                    f"os.environ[{name!r}] changed while the task waited or ran, so that the "
                    "programs that it starts may have inherited either value; set the variable "
                    "before the first call, or pass env= to the programs"
                )

    def texts_of_code(self, functions: Iterable[object]) -> set[str]:
        """Return the texts and integers in the variables that the code of a task reads, as text.

        These include environment variables, and variables that code in its arguments reads.

        Args:
            functions: The function of the task whose key was computed last, and those of its
                worker values. Their code is not searched if the task has a `version`.
        """
        codes: list[Callable[..., object]] = []
        texts = texts_of(self._read, codes)
        return texts.union(*map(self._texts_of, [*functions, *codes]))

    def _texts_of(self, function: object) -> frozenset[str]:
        while isinstance(function, types.MethodType | functools.partial):
            function = (
                function.__func__ if isinstance(function, types.MethodType) else function.func
            )
        known = self._functions.get(function) if isinstance(function, types.FunctionType) else None
        if known is None:
            return frozenset()
        former, texts = self._texts.get(function, (None, frozenset()))
        if former is not known:
            codes: list[Callable[..., object]] = []
            texts = frozenset(texts_of(_variables_of(known.found), codes))
            self._texts[function] = known, texts  # also if a factory uses its own handle
            texts = texts.union(*map(self._texts_of, codes))
            self._texts[function] = known, texts
        return texts

    def advanced(self, key: Key) -> dict[str, object]:
        """Return the random number generators that a function has advanced, by their names."""
        self._fingerprint.begin()
        digest, was = self._fingerprint.value, key.watched
        return {name: each for name, each in key.generators.items() if digest(each) != was[name]}

    def can_advance(self, key: Key, advanced: Mapping[str, object]) -> bool:
        """Return True if the generators of a call can be given the states of others.

        They cannot if a generator has more state than `set_state` sets, such as the number of
        generators spawned from it.

        Args:
            key: The key of the call.
            advanced: The generators that have these states, by their names in the key.
        """
        self._fingerprint.begin()
        digest = self._fingerprint.value
        for name, other in advanced.items():
            if name in key.generators:
                trial = copy.deepcopy(key.generators[name])
                set_state(trial, other)
                if digest(trial) != digest(other):
                    return False
        return True

    def _variables(self, task: Mapping[str, Any], found: CodeFingerprint) -> str | None:
        """Return the digest of the environment variables that the program has changed.

        Variables that the task sets itself are left out. Return `None` if no variables are left.
        """
        own = task.get("environment") or {}
        inherited = self.program.variables()
        inherited = {name: value for name, value in inherited.items() if name not in own}
        return found.value(inherited) if inherited else None

    def begin(self) -> None:
        """Begin a batch of tasks. Mutable values are compared again once in each batch."""
        self._checked.clear()
        self._same_values.clear()

    def _code(self, function: Any) -> Known:
        """Return what a function uses. It is inspected again only if something has changed.

        Raises:
            UnhashableError: The function has no digest.
        """
        known = self._functions.get(function)
        if known is None or not known.is_current() or not self._is_unchanged(known):
            known = self._functions[function] = self._looked_at(function)
        if known.refused is not None:
            raise UnhashableError(known.refused)
        return known

    def _is_unchanged(self, known: Known) -> bool:
        """Return True if what a function uses is unchanged. It is compared once per batch."""
        unchanged = self._checked.get(known)
        if unchanged is None:
            unchanged = (
                known.is_unchanged()
                and not self._has_reloaded(known)
                and not self._has_seeded(known)
                and not any(self.imported.changed(each) for each in known.found.absent)
            )
            self._checked[known] = unchanged
        return unchanged

    def _has_reloaded(self, known: Known) -> bool:
        """Return True if the program has imported another version of a module that is used."""
        imported_from = self.program.imported_from
        return any(
            imported_from(name) not in (None, stamp)
            for name, (_, stamp) in known.found.sources.items()
        )

    def _has_seeded(self, known: Known) -> bool:
        """Return True if the program has set other seeds, as a later cell of a notebook does."""
        former = known.found.seeds
        if former is None:
            return False
        now = self.program.seeds()
        return former.keys() != now.keys() or any(
            value is not now[part] and not (type(value) in _IMMUTABLE and value == now[part])
            for part, value in former.items()
        )

    def _looked_at(self, function: Any) -> Known:
        found = CodeFingerprint(self.program)
        try:
            found.function(function)
            self.program.require_same_memos(found.memos, found.parts)
        except UnhashableError as error:
            found.sizes += [(memo, len(memo)) for memo in found.memos]
            fix = (
                "pass the value as an argument, or set version= and change it when the code changes"
            )
            return Known(b"", found, f"{error}; {fix}")
        if sys.flags.optimize:
            found.parts["python -O"] = str(sys.flags.optimize)
        text = as_text(dict(sorted(found.parts.items())))
        digest = hashlib.blake2b(text.encode(), digest_size=DIGEST_SIZE).digest()
        self.codes[digest] = as_text({"parts": found.parts, "lines": found.lines})
        special = found.may_open or found.resolves or found.starts_programs or found.reads_arguments
        special = special or found.set_here or bool(found.absent or found.sources)
        return Known(digest, found, plain=not special)


def _variables_of(found: CodeFingerprint) -> list[object]:
    """Return the values of the variables that code reads, if their types are plain."""
    values = [value for *_, value in found.read] + [value for _, value in found.cells]
    values += [value for _, value in found.environment]
    return [value for value in values if isinstance(value, PLAIN)]


def _can_be_set(value: object) -> bool:
    """Return True if a value is a random number generator whose whole state `set_state` sets.

    Instances of subclasses of `random.Random` can have attributes, which it does not set.
    """
    return is_generator(value) and (
        type(value) is random.Random or not isinstance(value, random.Random)
    )


def _is_builtin(value: object) -> bool:
    """Return True if methods of a value open no files, as far as its type tells."""
    return type(value).__module__ in ("builtins", "numpy")


def _without(sandbox: str, word: str) -> str:
    """Return a word of a command with the sandbox's path replaced with a NUL character."""
    return re.sub(re.escape(sandbox) + r"(?![\w.-])", "\0", word)


def _inherited(words: Iterable[str], environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that a command names and inherits from the program, with their values.

    Each word may be the name of a variable, as in `printenv MODE` or `[[ N -gt 1 ]]`.
    """
    names = {name for word in words for name in _NAME.findall(word)}
    for name in sorted(names.difference(environment).intersection(os.environ)):
        if counts(name):
            yield name, os.environ[name]


def require_not_changed(
    before: Mapping[str, bytes | None], now: Mapping[str, bytes | None]
) -> None:
    """Raise an error if a file has changed or is missing. New files are regarded as outputs.

    Args:
        before: The digests of the files when the task's key was computed. See `Key.paths`.
        now: The current digests of the same files.

    Raises:
        UnhashableError: A file has changed or is missing; the task may have read it before or
            after the change.
    """
    for path, digest in before.items():
        if digest is not None and now[path] != digest:
            raise UnhashableError(
                f"the file {path!r} in its arguments changed while the task waited or ran; if the "
                "task writes it, pass an OutputFile instead, or remove the file before the run; "
                "otherwise run again when nothing writes to it"
            )


def require_no_relative_paths(paths: Mapping[str, bytes | None], directory: str) -> None:
    """Raise an error if an argument of a function that ran elsewhere is a file's relative path.

    Args:
        paths: See `Key.paths`.
        directory: The current directory in which the function ran.

    Raises:
        UnhashableError: There is a relative path.
    """
    for path, digest in paths.items():
        if digest is not None and not path.startswith(("/", "~", "$", "file:")):
            raise UnhashableError(
                f"its argument {path!r} is a relative path, and the function ran in another "
                f"directory, {directory}; pass os.path.abspath({path!r}) or InputFile({path!r})"
            )


def _taken_apart(
    function: Any, found: CodeFingerprint, parts: dict[str, str], shared: dict[str, object]
) -> Any:
    """Return the function inside a method, a `partial` or a library's wrapper.

    Add everything else, such as the arguments of the `partial`, to `parts`, and values that may
    change to `shared`.
    """
    while not isinstance(function, _CODE):
        part = f"around {len(parts)}"
        if isinstance(function, functools.partial):
            shared[part] = function.args, function.keywords
            parts[part] = found.value(shared[part])
            function = function.func
        elif isinstance(function, types.MethodType):
            shared[part] = function.__self__
            parts[part] = found.value(function.__self__)
            function = function.__func__
        else:
            wrapped = attribute_of(function, "__wrapped__")
            if found.own(type(function)) or not isinstance(wrapped, types.FunctionType):
                break  # a callable object with state
            parts[part] = type(function).__qualname__
            function = wrapped
    return function


def _changed_in_place(what: str) -> str:
    return (
        f"{what} changed in place while the task waited or ran; a reused result would not repeat "
        "the change, and may belong to either value: pass a copy, or let the function change a "
        "copy and return it"
    )


def _shown(function: Any, part: str) -> str:
    """Return the name of a value that a call receives, for messages."""
    kind, _, word = part.partition(" ")
    if kind == "argument":
        return f"its {argument_name(function, int(word) - 1 if word.isdigit() else word)}"
    if kind == "around" and isinstance(function, types.MethodType):
        return f"the {type(function.__self__).__name__} object of its method"
    return "an argument of its functools.partial" if kind == "around" else part
