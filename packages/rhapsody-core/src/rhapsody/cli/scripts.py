"""Scripts and modules for `rhapsody run`: finds, parses and runs them.

The syntax tree shows if a program has a function that expects an engine. If so, the program is
imported under a name other than `__main__`, so that code under `if __name__ == "__main__"` does not
run. Functions and classes of an imported script are pickled by value, so worker processes do not
run the script again. Any other program is run by `runpy`, as the `python` command would run it.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import runpy
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rhapsody.cli.output import note
from rhapsody.errors import DependencyFailureError
from rhapsody.plugins.specs import UsageError
from rhapsody.spelling import suggestion
from rhapsody.tracebacks import SCRIPT_MODULE, format_error

if TYPE_CHECKING:
    from rhapsody.engine import WorkflowEngine

Main = Callable[["WorkflowEngine"], object]


@dataclass(frozen=True)
class Script:
    """Script or module to run.

    Attributes:
        path: The absolute path of the program's file.
        name: The program's name in messages: the base name of the file, or the module's name.
        target: The program in suggested commands: the quoted path of the script, or `-m MODULE`.
        function: The name of the function to call, or `None` if the user names none.
        spec: The module's spec, or `None` for a script.
    """

    path: str
    name: str
    target: str
    function: str | None
    spec: ModuleSpec | None = None

    @cached_property
    def tree(self) -> ast.Module:
        """The program's syntax tree, which is empty for a module without source.

        Raises:
            UsageError: The file cannot be read.
            SyntaxError: The file is not valid Python.
        """
        if self.spec is None:
            return ast.parse(_read(self.path), self.path)
        loader: Any = self.spec.loader
        return ast.parse(loader.get_source(self.spec.name) or "", self.path)

    def calls_function(self) -> bool:
        """Return True if a function of the program is called with an engine.

        Raises:
            UsageError: The file cannot be read.
        """
        try:
            return self.function is not None or takes_engine(self.tree)
        except SyntaxError:  # reported when the program starts
            return False

    def workflow(self) -> Main:
        """Import the program, and return the function to call with an engine.

        Returns:
            The function.

        Raises:
            UsageError: The function does not exist, or cannot be called with an engine.
            Exception: Any error of the program.
        """
        module = import_module(self.spec.name) if self.spec else _load_script(self.path)
        return find_main(module, self.function or "main", self.name)

    def run(self) -> None:
        """Run the program as the main module, like `python SCRIPT` and `python -m MODULE`.

        Raises:
            BaseException: Any error of the program.
            UsageError: The module contains no Python code.
        """
        if self.spec is None:
            runpy.run_path(self.path, run_name="__main__")
            return
        loader: Any = self.spec.loader
        if loader.get_code(self.spec.name) is None:
            raise UsageError(f"{self.name} cannot be run: it contains no Python code")
        runpy.run_module(self.spec.name, run_name="__main__", alter_sys=True)


def find(script: str | None, module: str | None, arguments: Iterable[str]) -> Script:
    """Find the program, and set `sys.argv` and `sys.path` for it.

    Args:
        script: `SCRIPT[:FUNC]`, or `None`.
        module: `MODULE[:FUNC]`, or `None`.
        arguments: The program's `sys.argv[1:]`.

    Returns:
        The program.

    Raises:
        UsageError: The file or module does not exist, or a name is invalid.
        Exception: Any error raised by the import of a module's package.
    """
    if module is not None:
        program = find_module(module)
    else:
        path, function = split_target(str(script))
        name = os.path.basename(path)
        program = Script(path, name, shlex.quote(os.path.relpath(path)), function)
        # As `python` does: a link in a project may lead to a script next to its modules.
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    sys.argv = [program.path, *arguments]
    return program


def split_target(target: str) -> tuple[str, str | None]:
    """Split `SCRIPT[:FUNC]`.

    Returns:
        The absolute path of the script, and the name of the function or `None`.

    Raises:
        UsageError: The file does not exist, or the function's name is invalid.
    """
    path, name = target, None
    if not os.path.exists(target) and ":" in target:  # the name of a file may contain a colon
        path, _, name = target.rpartition(":")
    if not os.path.exists(path):
        raise UsageError(f"file {path!r} does not exist (looked in {os.getcwd()})")
    if not os.path.isfile(path):
        raise UsageError(f"{path!r} is not a file")
    _check_function(name, target, path)
    return os.path.abspath(path), name


def _check_function(name: str | None, target: str, before: str) -> None:
    if name is not None and not name.isidentifier():
        raise UsageError(f"{name!r} in {target!r} is not a function name; write {before}:main")


def find_module(target: str) -> Script:
    """Find the module that `MODULE[:FUNC]` names, in the same way as `python -m`.

    The current directory is inserted at the beginning of `sys.path`. For a package, the module
    `__main__` of the package is used.

    Returns:
        The program.

    Raises:
        UsageError: The module does not exist, or a name is invalid.
        Exception: Any error raised by the import of the module's package.
    """
    module, colon, function = target.partition(":")
    if os.path.isfile(module):
        raise UsageError(f"-m takes a module, but {module!r} is a file; omit -m")
    if not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{module!r} is not a module name; write -m package.module")
    name = function if colon else None
    _check_function(name, target, module)
    sys.path.insert(0, os.getcwd())
    spec = _spec(module)
    if spec.submodule_search_locations is not None:
        try:
            spec = _spec(f"{module}.__main__")
        except UsageError:
            raise UsageError(
                f"package {module!r} cannot be run, because it has no module '__main__'; name one "
                f"of its modules: -m {module}.NAME"
            ) from None
    return Script(spec.origin or module, spec.name, f"-m {module}", name, spec)


def _spec(module: str) -> ModuleSpec:
    """Find a module, and import the packages that contain it.

    Returns:
        The module's spec.

    Raises:
        UsageError: The module or one of its packages does not exist, or a package cannot be
            imported.
    """  # noqa: DOC501 - a UsageError
    spec, missing = None, module
    try:
        spec = find_spec(module)
    except ValueError:  # in sys.modules without a spec, as `__main__` may be
        pass
    except (SyntaxError, ImportError) as error:
        missing = str(getattr(error, "name", None))
        if not f"{module}.".startswith(f"{missing}."):  # another import of the package failed
            raise cannot_be_loaded(error, module) from None
    if spec is None:
        parent = "" if missing == module else f", a parent of {module!r},"
        where = f"looked in {os.getcwd()} and on Python's module search path"
        raise UsageError(f"module {missing!r}{parent} does not exist ({where})")
    return spec


def _read(path: str) -> bytes:
    try:
        with io.open_code(path) as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path!r} cannot be read: {error.strerror}") from None


def _load_script(path: str) -> ModuleType:
    """Import a script as a module whose name is not `__main__`."""
    import cloudpickle  # type: ignore[import-untyped]

    module = ModuleType(SCRIPT_MODULE)
    module.__file__ = path
    sys.modules[SCRIPT_MODULE] = module
    # Only the processes of `_share_script` can import this module.
    cloudpickle.register_pickle_by_value(module)
    _share_script(path)
    code = compile(_read(path), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - the user asks for it
    return module


def _share_script(path: str) -> None:
    """Let processes that `multiprocessing` starts import the script.

    This has no effect if the main module is not that of Rhapsody, because the processes may need
    names of that module.
    """
    from multiprocessing import spawn

    prepare = spawn.get_preparation_data

    def with_script(name: str) -> dict[str, Any]:
        data = prepare(name)
        module, file = data.get("init_main_from_name"), data.get("init_main_from_path")
        if module == "rhapsody.__main__" or str(file).endswith("/rhapsody"):
            data.pop("init_main_from_path", None)
            data["init_main_from_name"] = "rhapsody.spawned"
            data["sys_argv"] = [path, *sys.argv[1:]]
        return data

    setattr(spawn, "get_preparation_data", with_script)  # noqa: B010 - typed as a function


# The syntax tree.


def takes_engine(tree: ast.Module, name: str = "main") -> bool:
    """Return True if a program has a function of this name that expects an engine.

    An asynchronous function must take an argument and, if it is decorated, require the argument. An
    ordinary function must require an argument and must not be decorated, because a decorator may
    register it as a command of another tool, such as click. A name that is imported or assigned is
    assumed to be such a function.

    If the program calls the function itself, the result is True only for an asynchronous function
    that requires an argument. If the program passes the function to `rhapsody.run`, the result is
    False.
    """
    if any(_passes_to_run(node, name) for node in ast.walk(tree)):
        return False
    nodes = [*_top_level(tree)]
    called = any(_uses(node, name, guarded) for node, guarded in nodes)
    return any(_binds_workflow(node, name, called) for node, guarded in nodes if not guarded)


def workflows(tree: ast.Module) -> list[str]:
    """Return the names of the program's asynchronous functions that require an argument."""
    return [
        node.name
        for node, guarded in _top_level(tree)
        if isinstance(node, ast.AsyncFunctionDef) and not guarded and _requires(node.args)
    ]


def _top_level(node: ast.AST, guarded: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield each node that runs with its module; True if it is under `if __name__ ...`."""
    for child in ast.iter_child_nodes(node):
        yield child, guarded
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not inner and not (isinstance(child, ast.AnnAssign) and child.value is None):
            guard = isinstance(child, ast.If) and "__name__" in ast.unparse(child.test)
            yield from _top_level(child, guarded or guard)


def _passes_to_run(node: ast.AST, name: str) -> bool:
    """Return True if a node passes this name to a function `run`, as in `rhapsody.run(main)`."""
    match node:
        case ast.Call(
            func=ast.Attribute(attr="run") | ast.Name(id="run"), args=[ast.Name(id=first), *_]
        ):
            return first == name
    return False


def _uses(node: ast.AST, name: str, guarded: bool) -> bool:
    """Return True if a node calls this name or, if `guarded`, uses the name in any way."""
    used = node if guarded else getattr(node, "func", None)
    return isinstance(used, ast.Name) and used.id == name and isinstance(used.ctx, ast.Load)


def _binds_workflow(node: ast.AST, name: str, called: bool) -> bool:
    if isinstance(node, ast.AsyncFunctionDef):
        optional = node.args.args and not (called or node.decorator_list)
        return node.name == name and (_requires(node.args) or bool(optional))
    if called:
        return False
    if isinstance(node, ast.FunctionDef):
        return node.name == name and _requires(node.args) and not node.decorator_list
    if isinstance(node, ast.ImportFrom):
        return any((alias.asname or alias.name) == name for alias in node.names)
    return isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)


def _requires(arguments: ast.arguments) -> bool:
    """Return True if a function with these parameters must be called with an argument."""
    positional = len(arguments.posonlyargs) + len(arguments.args)
    return positional > len(arguments.defaults) or None in arguments.kw_defaults


def find_main(module: ModuleType, name: str, where: str) -> Main:
    """Return the function of a module that expects an engine.

    Args:
        module: The module.
        name: The function's name.
        where: The module's name in messages.

    Raises:
        UsageError: The function does not exist, or cannot be called with an engine.
    """
    from rhapsody.engine.engine import not_a_main

    function = getattr(module, name, None)
    if function is None:
        own = [key for key, value in vars(module).items() if inspect.iscoroutinefunction(value)]
        hint = f"; add `def {name}(flow): ...` or `async def {name}(flow): ...`"
        hint = suggestion(name, own, "asynchronous functions") if own else hint
        raise UsageError(f"{where} has no function {name!r}{hint}")
    problem = "is not a function" if not callable(function) else not_a_main(function)
    if problem is not None:
        raise UsageError(
            f"{name} in {where} {problem}: write `def {name}(flow): ...` or "
            f"`async def {name}(flow): ...`"
        )
    main: Main = function
    return main


def cannot_be_loaded(error: SyntaxError | ImportError, name: str) -> UsageError:
    """Return the error for a program that cannot be imported, with the location of the cause."""
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
    """Print the traceback of an error, starting with the first line in the program's file.

    The traceback of a skipped task includes that of the task that failed first.
    """
    start = error.__traceback__
    while start is not None and start.tb_frame.f_code.co_filename != path:
        start = start.tb_next
    if start is not None:
        error.with_traceback(start)
    if isinstance(error, DependencyFailureError):
        error.__cause__ = error.root_cause
    note(format_error(error).rstrip("\n"))
