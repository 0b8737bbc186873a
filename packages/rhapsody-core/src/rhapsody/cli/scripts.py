"""What `rhapsody run` runs: a script or a module, which is found, read, and run once.

Whether it has a function for a workflow is read from its syntax tree. One that has is
imported, and is not the program's main module: what stands under `if __name__ ==
"__main__"` does not run, and worker processes do not run a script again, because its
functions and classes travel by value. Any other is run as the `python` command runs it.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from rhapsody.cli.output import note
from rhapsody.errors import DependencyFailureError
from rhapsody.plugins.specs import UsageError
from rhapsody.tracebacks import SCRIPT_MODULE, format_error

if TYPE_CHECKING:
    from rhapsody.engine import WorkflowEngine

Main = Callable[["WorkflowEngine"], object]


@dataclass(frozen=True, slots=True)
class Program:
    """A script, or a module.

    Attributes:
        path: Its file, absolute.
        name: What messages call it: the file's base name, or the module's name.
        target: The same as the user writes it, for `target:FUNC`.
        function: The function to call, `None` where the user names none.
        spec: Of a module, how Python found it.
    """

    path: str
    name: str
    target: str
    function: str | None
    spec: ModuleSpec | None = None

    def tree(self) -> ast.Module:
        """Its syntax tree, an empty one where a module has no source.

        Raises:
            UsageError: It cannot be read.
            SyntaxError: It is no Python.
        """
        if self.spec is None:
            return ast.parse(_read(self.path), self.path)
        loader: Any = self.spec.loader
        return ast.parse(loader.get_source(self.spec.name) or "", self.path)

    def workflow(self) -> Main:
        """Imports it, and gives the function that is called with an engine.

        Raises:
            UsageError: There is none, or it cannot be called with an engine.
            Exception: Whatever the program raises.
        """
        module = import_module(self.spec.name) if self.spec else _load_script(self.path)
        return find_main(module, self.function or "main", self.name)

    def run(self) -> None:
        """Runs it as the main module, as `python SCRIPT` and `python -m MODULE` do.

        Raises:
            BaseException: Whatever the program raises.
        """
        module = ModuleType("__main__")
        vars(module).update(
            __file__=self.path,
            __cached__=self.spec.cached if self.spec else None,
            __loader__=self.spec.loader if self.spec else SourceFileLoader("__main__", self.path),
            __package__=self.spec.parent if self.spec else None,
            __spec__=self.spec,
        )
        sys.modules["__main__"] = module  # processes that it starts import the program by this
        exec(self._code(), module.__dict__)  # noqa: S102 - it is what the user asks for

    def _code(self) -> CodeType:
        if self.spec is None:
            return _compiled(self.path)
        loader: Any = self.spec.loader
        code: CodeType | None = loader.get_code(self.spec.name)
        if code is None:
            raise UsageError(f"{self.name} is no Python code, and cannot be run")
        return code


def find(script: str | None, module: str | None, arguments: Iterable[str]) -> Program:
    """Finds what the user wants to run, and lets it see itself as a program does.

    Args:
        script: `SCRIPT[:FUNC]`, or `None`.
        module: `MODULE[:FUNC]`, or `None`.
        arguments: What it finds in `sys.argv[1:]`.

    Raises:
        UsageError: There is no such file or module.
        Exception: What the package of a module raises when it is imported.
    """
    if module is not None:
        program = find_module(module)
    else:
        path, function = split_target(str(script))
        name = os.path.basename(path)
        program = Program(path, name, name, function)
        sys.path.insert(0, os.path.dirname(path))
    sys.argv = [program.path, *arguments]
    return program


def split_target(target: str) -> tuple[str, str | None]:
    """The absolute path in `SCRIPT[:FUNC]`, and the function's name, `None` where it has none.

    Raises:
        UsageError: There is no such file.
    """
    path, name = target, None
    if not os.path.exists(target) and ":" in target:  # a file's name may have a colon, too
        path, _, name = target.rpartition(":")
    if not os.path.exists(path):
        raise UsageError(f"there is no file {path!r} (looked in {os.getcwd()})")
    if not os.path.isfile(path):
        raise UsageError(f"{path!r} is no file")
    _check_function(name, target, path)
    return os.path.abspath(path), name


def _check_function(name: str | None, target: str, before: str) -> None:
    if name is not None and not name.isidentifier():
        raise UsageError(f"{name!r} in {target!r} is no function's name; write {before}:main")


def find_module(target: str) -> Program:
    """The module that `MODULE[:FUNC]` means, found as `python -m` finds it.

    The current directory comes first on `sys.path`; a package is its `__main__`.

    Raises:
        UsageError: There is none.
        Exception: What its package raises when it is imported.
    """
    module, colon, function = target.partition(":")
    if os.path.isfile(module):
        raise UsageError(f"-m takes a module, and {module!r} is a file: leave -m out")
    if not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{module!r} is no module's name; write -m package.module")
    name = function if colon else None
    _check_function(name, target, module)
    sys.path.insert(0, os.getcwd())
    spec = _found(module)
    if spec.submodule_search_locations is not None:
        try:
            spec = _found(f"{module}.__main__")
        except UsageError:
            raise UsageError(
                f"{module!r} is a package, and has no module '__main__' to run; name one of its "
                f"modules: -m {module}.NAME"
            ) from None
    return Program(spec.origin or module, spec.name, f"-m {module}", name, spec)


def _found(module: str) -> ModuleSpec:
    """How Python finds a module; imports the packages that it is in.

    Raises:
        UsageError: It, or one of its packages, is not there, or a package cannot be imported.
    """
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        spec = None
        try:
            spec = find_spec(name)
        except ValueError:  # it is in sys.modules without a spec, as `__main__` may be
            pass
        except (SyntaxError, ImportError) as error:
            if getattr(error, "name", None) != name:  # it is something that the package imports
                raise cannot_be_loaded(error, module) from None
        if spec is None:
            so = "" if name == module else f", and so no {module!r}"
            where = f"looked in {os.getcwd()}, and where Python looks for modules"
            raise UsageError(f"there is no module {name!r}{so} ({where})")
    assert spec is not None
    return spec


def _read(path: str) -> bytes:
    try:
        with io.open_code(path) as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path!r} cannot be read: {error.strerror}") from None


def _compiled(path: str) -> CodeType:
    return compile(_read(path), path, "exec", dont_inherit=True)


def _load_script(path: str) -> ModuleType:
    """Runs a script as a module of its own."""
    import cloudpickle  # type: ignore[import-untyped]

    module = ModuleType(SCRIPT_MODULE)
    module.__file__ = path
    sys.modules[SCRIPT_MODULE] = module
    # No other process can import this module.
    cloudpickle.register_pickle_by_value(module)
    exec(_compiled(path), module.__dict__)  # noqa: S102 - it is what the user asks for
    return module


# What its syntax tree tells.


def takes_engine(tree: ast.Module, name: str = "main") -> bool:
    """Whether a program has a function of this name that is to be called with an engine.

    A function has to take an argument for that, and a plain one must not be decorated, as for
    another tool's command line. Of a name that is imported or assigned the tree tells no more.
    If the program calls the function itself, only an asynchronous function that cannot be called
    without an argument counts; none counts if the program passes it to `rhapsody.run`.
    """
    if _runs(tree, name):
        return False
    called = _calls(tree, name)
    return any(_binds_workflow(one, name, called) for one in _statements(tree.body))


def _calls(tree: ast.Module, name: str) -> bool:
    """Whether a program calls what has this name when it is run, or hands it on in its guard."""
    for one in tree.body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for node in ast.walk(one):
            used = node if _is_guard(one) else getattr(node, "func", None)
            if isinstance(used, ast.Name) and (used.id, type(used.ctx)) == (name, ast.Load):
                return True
    return False


def _runs(tree: ast.Module, name: str) -> bool:
    """Return whether a program passes this name to a function `run`: `rhapsody.run(main)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            function, first = node.func, node.args[0]
            called = getattr(function, "attr", None) or getattr(function, "id", None)
            if called == "run" and isinstance(first, ast.Name) and first.id == name:
                return True
    return False


def _is_guard(one: ast.stmt) -> bool:
    return isinstance(one, ast.If) and "__name__" in ast.unparse(one.test)


def workflows(tree: ast.Module) -> list[str]:
    """The names of its asynchronous functions that have to be given something."""
    found = [one for one in _statements(tree.body) if isinstance(one, ast.AsyncFunctionDef)]
    return [one.name for one in found if _requires(one.args)]


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """What may run when a module is imported: not the inside of functions, nor of its guard."""
    for one in body:
        yield one
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not _is_guard(one):
            yield from _statements(getattr(one, "body", ()))
        for part in ("orelse", "finalbody"):
            yield from _statements(getattr(one, part, ()))
        for part in ("handlers", "cases"):
            for clause in getattr(one, part, ()):
                yield from _statements(clause.body)


def _binds_workflow(one: ast.stmt, name: str, called: bool) -> bool:
    if isinstance(one, ast.AsyncFunctionDef):
        optional = one.args.args and not (called or one.decorator_list)
        return one.name == name and (_requires(one.args) or bool(optional))
    if called:
        return False
    if isinstance(one, ast.FunctionDef):
        return one.name == name and _requires(one.args) and not one.decorator_list
    if isinstance(one, ast.ImportFrom):
        return any((alias.asname or alias.name) == name for alias in one.names)
    targets: list[ast.expr] = []
    if isinstance(one, ast.Assign):
        targets = one.targets
    elif isinstance(one, ast.AnnAssign) and one.value is not None:
        targets = [one.target]
    inside = (node for target in targets for node in ast.walk(target))
    return any(isinstance(node, ast.Name) and node.id == name for node in inside)


def _requires(arguments: ast.arguments) -> bool:
    """Whether a call has to give an argument."""
    positional = len(arguments.posonlyargs) + len(arguments.args)
    return positional > len(arguments.defaults) or None in arguments.kw_defaults


# What the imported program has.


def find_main(module: ModuleType, name: str, where: str) -> Main:
    """The workflow's function in a module.

    Args:
        module: The module.
        name: The function's name.
        where: What messages call the module.

    Raises:
        UsageError: There is none, or it cannot be called with an engine.
    """
    from rhapsody.engine.program import not_a_main

    function = getattr(module, name, None)
    if function is None:
        own = [key for key, value in vars(module).items() if inspect.iscoroutinefunction(value)]
        close = difflib.get_close_matches(name, own, n=1)
        if close:
            hint = f"did you mean {where}:{close[0]}?"
        elif own:
            hint = f"its asynchronous functions are {', '.join(own)}"
        else:
            hint = f"write `def {name}(flow): ...` or `async def {name}(flow): ...` in it"
        raise UsageError(f"{where} has no function {name!r}; {hint}")
    problem = "is not a function" if not callable(function) else not_a_main(function)
    if problem is not None:
        raise UsageError(
            f"{name} in {where} {problem}: write `def {name}(flow): ...` or "
            f"`async def {name}(flow): ...`"
        )
    main: Main = function
    return main


# What goes wrong in it.


def cannot_be_loaded(error: SyntaxError | ImportError, name: str) -> UsageError:
    """The error for a program that cannot be imported: where what keeps it from that is."""
    what = f"{name} cannot be loaded: "
    if isinstance(error, SyntaxError):
        text = "".join(traceback.format_exception_only(error))
        return UsageError(f"{what}{type(error).__name__}\n{text.rstrip()}")
    places = [
        place
        for place in traceback.extract_tb(error.__traceback__)
        if not place.filename.startswith(("<", os.path.dirname(__file__)))
    ]
    where = f"{places[-1].filename}, line {places[-1].lineno}: " if places else ""
    return UsageError(f"{what}{where}{error}")


def show(error: BaseException, path: str | None) -> None:
    """Prints the traceback of the user's own code, from the program's file on.

    Of what did not run because something else failed: that, and none of those in between.
    """
    start = error.__traceback__
    while start is not None and start.tb_frame.f_code.co_filename != path:
        start = start.tb_next
    if start is not None:
        error.with_traceback(start)
    if isinstance(error, DependencyFailureError):
        error.__cause__ = error.root_cause
    note(format_error(error).rstrip("\n"))


def contains(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an error, or one in a group of errors, is of a type."""
    if isinstance(error, BaseExceptionGroup):
        return any(contains(one, kind) for one in error.exceptions)
    return isinstance(error, kind)
