"""`rhapsody run`: runs an asynchronous function of a script as a workflow.

The script is not the program's main module: what stands under
`if __name__ == "__main__"` does not run, and worker processes do not run the
script again, because its functions and classes travel by value.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import inspect
import io
import logging
import os
import sys
import tomllib
import traceback
from collections.abc import Awaitable, Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rhapsody.cli.output import DONE, FAILED, CommandError, UsageError
from rhapsody.errors import RhapsodyError

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend
    from rhapsody.engine import WorkflowEngine
    from rhapsody.observers.progress import Progress
    from rhapsody.plugins.reports import Summary

HELP = "run a workflow"
SCRIPT_MODULE = "__rhapsody_script__"
"""What the script is imported as: not `__main__`, and nothing that can be installed."""

OTHERS = {
    "backend": "use -b NAME",
    "backends": "use -b NAME, or make the engine in the script",
    "observers": "objects are given in the script: WorkflowEngine.create(observers=[...])",
    "clock": "objects are given in the script: WorkflowEngine.create(clock=...)",
    "fail_fast": "use --fail-fast",
    "keep_going": "it is the default; --fail-fast is the other",
    "max_failures": "use --max-failures N",
    "progress": "it is the default; -q shows nothing, and -v lines in place of a table",
    "profile": "there are no profiles yet; the file of a run's events is -e trace=run.jsonl",
}
"""Options of the engine that `-e` does not take, and what to do."""

Main = Callable[["WorkflowEngine"], Awaitable[object]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "script",
        metavar="SCRIPT[:FUNC]",
        help="a Python file, and the name of its `async def main(flow)` (default: main)",
    )
    parser.add_argument(
        "-b", "--backend", metavar="NAME", help="the backend's name (default: local)"
    )
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the backend, its value as in TOML; may be given several times",
    )
    parser.add_argument(
        "-e",
        "--engine",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of WorkflowEngine.create, such as retries=2, in the same way",
    )
    parser.epilog = "What follows -- are the script's own arguments: sys.argv[1:]."
    failing = parser.add_mutually_exclusive_group()
    failing.add_argument(
        "-k",
        "--keep-going",
        action="store_true",
        help="when a task has failed, run what does not depend on it before the end (the default)",
    )
    failing.add_argument(
        "--fail-fast", action="store_true", help="cancel everything when a task has failed"
    )
    failing.add_argument(
        "--max-failures", type=int, metavar="N", help="cancel everything when N tasks have failed"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="show neither progress nor the account at the end",
    )
    shown.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show the begin and end of each task, and what functions print as it comes",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the workflow.

    Raises:
        UsageError: The script, the function, the backend or an option is not right;
            or the script, or what it imports, has a syntax error or is not there.
        CommandError: The backend could not be started.
    """
    path, name = split_target(arguments.script)
    options = parse_options(arguments.option)
    engine = engine_options(parse_options(arguments.engine, "-e"))
    engine |= {"fail_fast": arguments.fail_fast, "keep_going": not arguments.fail_fast}
    engine |= {"max_failures": arguments.max_failures}
    if arguments.verbose:
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        logging.getLogger("rhapsody").setLevel(logging.INFO)
    try:
        module = load_script(path, arguments.arguments)
    except UsageError:
        raise
    except (SyntaxError, ImportError) as error:  # of the script, or of a module of the user's
        raise UsageError(_cannot_be_loaded(error, path)) from None
    except Exception as error:  # the user's own code may raise anything
        return _show(error, path)
    main = find_main(module, name, path)
    backend = arguments.backend
    if backend is None and options:
        backend = "local"
    progress = None if arguments.quiet else _progress(lines=arguments.verbose)
    engine["progress"] = progress or False
    try:
        summary = asyncio.run(_workflow(main, backend, options, engine))
    except (UsageError, CommandError):
        raise
    except (Exception, asyncio.CancelledError) as error:  # as above
        return _show(error, path)
    finally:
        if progress is not None:
            progress.print_account()
    return FAILED if summary.unawaited else DONE


def _progress(*, lines: bool) -> Progress:
    from rhapsody.observers.progress import Progress

    return Progress(lines=lines, account=False)


def split_target(target: str) -> tuple[str, str]:
    """The absolute path and the function's name in `SCRIPT[:FUNC]`.

    Raises:
        UsageError: There is no such file.
    """
    path, name = target, "main"
    if not os.path.exists(target) and ":" in target:  # a file's name may have a colon, too
        path, _, name = target.rpartition(":")
    if not os.path.exists(path):
        raise UsageError(f"there is no file {path!r} (looked in {os.getcwd()})")
    if not os.path.isfile(path):
        raise UsageError(f"{path!r} is no file")
    if not name.isidentifier():
        raise UsageError(f"{name!r} in {target!r} is no function's name; write {path}:main")
    return os.path.abspath(path), name


def parse_options(options: Iterable[str], flag: str = "-o") -> dict[str, Any]:
    """The settings in `KEY=VALUE` texts; of a key given twice the last one counts.

    Raises:
        UsageError: Not of that form, or a value that is broken TOML.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            such = "cores=2" if flag == "-o" else "retries=2"
            raise UsageError(f"{flag} {option!r}: write KEY=VALUE, such as {flag} {such}")
        parsed[key] = _value(text.strip(), f"{flag} {option!r}")
    return parsed


def _value(text: str, option: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        # A bare word is a string. What begins as something else was meant as that.
        if text and (text[0] in "\"'[{" or "\n" in text):
            raise UsageError(f"{option}: the value is broken TOML: {error}") from None
        return text
    return found["value"] if len(found) == 1 else text


def engine_options(given: dict[str, Any]) -> dict[str, Any]:
    """The same options, which are all known to `WorkflowEngine.create`.

    Raises:
        UsageError: One is not, or is for the command line to say in another way.
    """
    from rhapsody.engine import WorkflowEngine

    known = [
        name for name in inspect.signature(WorkflowEngine.create).parameters if name not in OTHERS
    ]
    for name in given:
        if name in OTHERS:
            raise UsageError(f"-e {name}: {OTHERS[name]}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise UsageError(f"-e {name}: an engine has no such option; {hint}")
    return given


def load_script(path: str, arguments: Iterable[str] = ()) -> ModuleType:
    """Runs a script as a module of its own.

    Args:
        path: The script.
        arguments: What it finds in `sys.argv[1:]`.

    Raises:
        UsageError: The file cannot be read.
        Exception: Whatever the script raises.
    """
    import cloudpickle  # type: ignore[import-untyped]

    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise UsageError(f"{path!r} cannot be read: {error.strerror}") from None
    module = ModuleType(SCRIPT_MODULE)
    module.__file__ = path
    sys.modules[SCRIPT_MODULE] = module
    sys.path.insert(0, os.path.dirname(path))
    sys.argv = [path, *arguments]
    # No other process can import this module.
    cloudpickle.register_pickle_by_value(module)
    code = compile(source, path, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - it is what the user asks for
    return module


def find_main(module: ModuleType, name: str, path: str) -> Main:
    """The workflow's function in a script.

    Raises:
        UsageError: There is none, or it is not `async def name(flow)`.
    """
    function = getattr(module, name, None)
    where = os.path.basename(path)
    if function is None:
        own = [key for key, value in vars(module).items() if inspect.iscoroutinefunction(value)]
        close = difflib.get_close_matches(name, own, n=1)
        if close:
            hint = f"did you mean {where}:{close[0]}?"
        elif own:
            hint = f"its asynchronous functions are {', '.join(own)}"
        else:
            hint = f"write `async def {name}(flow): ...` in it"
        raise UsageError(f"{where} has no function {name!r}; {hint}")
    if not inspect.iscoroutinefunction(function):
        raise UsageError(
            f"{name} in {where} is no asynchronous function: write `async def {name}(flow): ...`"
        )
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise UsageError(
            f"{name} in {where} must take one argument, the workflow engine: "
            f"write `async def {name}(flow): ...`"
        ) from None
    main: Main = function
    return main


def make_backend(name: str, options: dict[str, Any]) -> BaseExecutionBackend:
    """A backend with settings: keywords of its class, all others in its `resources`.

    Raises:
        UsageError: There is no such backend, or it does not take a setting.
    """
    from rhapsody.backends.discovery import BackendRegistry

    try:
        cls = BackendRegistry.get_backend_class(name)
    except (ValueError, ImportError, TypeError) as error:
        raise UsageError(str(error)) from None
    parameters = inspect.signature(cls).parameters.values()
    keywords = [
        one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    resources: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for key, value in options.items():
        if key == "resources" and key in keywords:
            if not isinstance(value, dict):
                raise UsageError(f"-o resources: write resources={{cores = 2}}, got {value!r}")
            resources |= value
        elif key in keywords or any(one.kind is one.VAR_KEYWORD for one in parameters):
            given[key] = value
        elif "resources" in keywords:
            resources[key] = value
        else:
            takes = f"it takes {', '.join(keywords)}" if keywords else "it takes none"
            raise UsageError(f"backend {name!r} has no setting {key!r}; {takes}")
    if resources:
        given["resources"] = resources
    try:
        return cls(**given)
    except (TypeError, ValueError, ImportError, RhapsodyError) as error:
        meant = [difflib.get_close_matches(key, keywords, n=1) for key in resources]
        hint = next((f"; did you mean -o {close[0]}=...?" for close in meant if close), "")
        raise UsageError(f"backend {name!r}: {error}{hint}") from None


async def _workflow(
    main: Main, name: str | None, options: dict[str, Any], engine: dict[str, Any]
) -> Summary:
    from rhapsody.engine import WorkflowEngine

    backend = None if name is None else make_backend(name, options)
    started = False
    try:
        async with WorkflowEngine.create(backend=backend, **engine) as flow:
            started = True
            await main(flow)
        assert flow.summary is not None
        return flow.summary
    except (ValueError, TypeError) as error:
        if started:
            raise
        what = "-e: " if len(engine) > 4 else f"backend {name or 'local'!r}: "
        raise UsageError(f"{what}{error}") from error
    except (RhapsodyError, OSError, ImportError) as error:
        if started:
            raise
        raise CommandError(
            f"backend {name or 'local'!r} cannot be started: {type(error).__name__}: {error}"
        ) from error


def _cannot_be_loaded(error: SyntaxError | ImportError, path: str) -> str:
    """Where a script, or what it imports, has what keeps it from being loaded."""
    what = f"{os.path.basename(path)} cannot be loaded: "
    if isinstance(error, SyntaxError):
        text = "".join(traceback.format_exception_only(error))
        return f"{what}{type(error).__name__}\n{text.rstrip()}"
    places = [
        place
        for place in traceback.extract_tb(error.__traceback__)
        if not place.filename.startswith(("<", os.path.dirname(__file__)))
    ]
    where = f"{places[-1].filename}, line {places[-1].lineno}: " if places else ""
    return f"{what}{where}{error}"


def _show(error: BaseException, path: str) -> int:
    """Prints the traceback of the user's own code, from the script on."""
    start = error.__traceback__
    while start is not None and start.tb_frame.f_code.co_filename != path:
        start = start.tb_next
    if start is not None:
        error.with_traceback(start)
    traceback.print_exception(error)
    return FAILED
