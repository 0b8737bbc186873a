"""`rhapsody run`: runs a script as a workflow, with the options of its engines.

What a script is, and how it is run, is in `rhapsody.cli.scripts`.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import inspect
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from rhapsody.backends.options import make_backend, parse_options
from rhapsody.cli import recording, scripts
from rhapsody.cli.output import (
    DONE,
    FAILED,
    CommandError,
    complain,
    note,
    reader_is_gone,
    say,
)
from rhapsody.errors import DataError, JournalError, RhapsodyError
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend
    from rhapsody.cli.engines import Engines

HELP = "run a workflow"

OTHERS = {
    "backend": "use -b NAME",
    "backends": "use -b NAME, or make the engine in the script",
    "observers": "objects are given in the script: WorkflowEngine.create(observers=[...])",
    "dry_run": "use --dry-run",
    "clock": "objects are given in the script: WorkflowEngine.create(clock=...)",
    "fail_fast": "use --fail-fast",
    "keep_going": "it is the default; --fail-fast is the other",
    "max_failures": "use --max-failures N",
    "progress": "it is the default; -q shows nothing, and -v lines in place of a table",
    "resume": "use --resume, or --fresh",
    "profile": "there are no profiles yet; the file of a run's events is -e trace=run.jsonl",
}
"""Options of the engine that `-e` does not take, and what to do."""

_SIGNALLED = (128 + signal.SIGHUP, 128 + signal.SIGTERM)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    what = parser.add_mutually_exclusive_group()  # one is required, see `run`
    what.add_argument(
        "script",
        nargs="?",
        metavar="SCRIPT[:FUNC]",
        help="a Python file, and the name of its function for an engine (default: main); one "
        "without such a function is run as python runs it",
    )
    what.add_argument(
        "-m", "--module", metavar="MODULE[:FUNC]", help="the same with a module, as for python -m"
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
    parser.add_argument(
        "--dry-run", action="store_true", help="run no task, and print what would be called"
    )
    parser.epilog = (
        "Arguments after -- are passed to the script as sys.argv[1:]. To run a script whose name "
        "begins with a dash, put another -- before it: rhapsody run -- -x.py -- ARGUMENTS."
    )
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
    recording.configure(parser)
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
        help="show the begin and end of each task, what functions print as it comes, and what "
        "programs print when they end",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the workflow.

    Raises:
        UsageError: The script, the function, the backend or an option is not right;
            or the script, or what it imports, has a syntax error or is not there.
        CommandError: The backend could not be started.
        SystemExit: The script ends with an exit code of its own.
        BrokenPipeError: Nothing reads standard output any more.
    """
    _take_script(arguments)
    with ExitStack() as at_end:  # what comes after a traceback
        recorded = recording.Recording(arguments)
        at_end.callback(recorded.end)
        try:
            code = _code(arguments, recorded, at_end)
        except SystemExit as end:
            if end.code not in _SIGNALLED:
                recorded.how = "failed" if end.code else "done"
            raise
        except (UsageError, CommandError):
            recorded.how = "failed"
            raise
        recorded.how = "failed" if code else "done"
        return code


def _take_script(arguments: argparse.Namespace) -> None:
    """Take the script from what follows `--` if neither it nor a module comes before.

    Raises:
        UsageError: There is no script.
    """
    if arguments.script is not None or arguments.module is not None:
        return
    if not arguments.arguments:
        raise UsageError("no script given: write rhapsody run SCRIPT, or rhapsody run -m MODULE")
    arguments.script, *rest = arguments.arguments
    arguments.arguments = rest[1:] if rest[:1] == ["--"] else rest


def _code(arguments: argparse.Namespace, recorded: recording.Recording, at_end: ExitStack) -> int:
    from rhapsody.cli.engines import Engines

    engines, program = Engines(arguments.dry_run), None
    if arguments.dry_run and recording.resumes(arguments):
        from rhapsody.cli.dry_run import Preview

        engines = Preview(recorded)
    recorded.summaries = engines.summaries
    try:
        program = scripts.find(arguments.script, arguments.module, arguments.arguments)
        options = parse_options(arguments.option)
        engine = engine_options(parse_options(arguments.engine, "-e"))
        engine |= {"fail_fast": arguments.fail_fast, "keep_going": not arguments.fail_fast}
        if arguments.max_failures is not None and arguments.max_failures < 1:
            raise UsageError(f"--max-failures must be 1 or more, got {arguments.max_failures}")
        engine |= {"max_failures": arguments.max_failures, "progress": _progress(arguments)}
        name = arguments.backend or ("local" if options else None)
        make: Callable[[], BaseExecutionBackend] | None = (
            None if name is None else partial(make_backend, name, options)
        )
        if arguments.dry_run:
            from rhapsody.cli.dry_run import DryRunBackend

            make, engine["dry_run"] = DryRunBackend, True
        _run(program, make, engine, partial(recorded.settings, program), engines, at_end)
    except (UsageError, CommandError):
        raise
    except (Exception, asyncio.CancelledError) as error:  # the user's own code may raise anything
        if arguments.dry_run and program is not None:
            _check_backend(error, program)
        if reader_is_gone() and scripts.contains(error, BrokenPipeError):
            raise BrokenPipeError from None
        if program is None or not engines.dry:
            scripts.show(error, program.path if program else None)
            return FAILED
        from rhapsody.cli.dry_run import stop

        note(stop(error, program.path))
    finally:
        _show_graphs(engines)
    failed = any(summary.unawaited or summary.cut_short for summary in engines.summaries)
    return FAILED if failed and not engines.dry else DONE


def _check_backend(error: BaseException, program: scripts.Program) -> None:
    """Raises where a dry run has ended because of the backend that the program names."""
    from rhapsody.cli.dry_run import origin
    from rhapsody.engine.backend_handles import WouldRunError

    if isinstance(origin(error), WouldRunError):
        raise UsageError(
            f"{program.name} names its backend, and --dry-run runs nothing: leave it out of "
            "WorkflowEngine.create(...), and say it on the command line, -b NAME"
        ) from None


def _run(
    program: scripts.Program,
    make: Callable[[], BaseExecutionBackend] | None,
    engine: dict[str, Any],
    recording: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    engines: Engines,
    at_end: ExitStack,
) -> None:
    """Calls the program's function with an engine, or runs it as it is."""
    try:
        tree = program.tree()
        as_it_is = program.function is None and not scripts.takes_engine(tree)
        main = None if as_it_is else program.workflow()
    except (SyntaxError, ImportError) as error:  # of the script, or of a module of the user's
        raise scripts.cannot_be_loaded(error, program.name) from None
    if main is not None:
        if engine["progress"]:
            from rhapsody.observers.progress import Progress

            progress = Progress(lines=engine["progress"] == "lines", account=False)
            at_end.callback(progress.print_account)
            engine["progress"] = progress
        more = {**recording(engine), "observers": [engines]}
        asyncio.run(_workflow(main, make, engine, more))
        return
    from rhapsody.engine.defaults import Defaults, defaults_of_engines

    with defaults_of_engines(Defaults(engine, make, (engines,), recording)):
        end = _exit_of(program)
    if not engines.started and (end is None or not end.code):
        complain(_no_engine(program, scripts.workflows(tree)))
    if end is not None:
        raise end


def _exit_of(program: scripts.Program) -> SystemExit | None:
    """Runs a program as it is, and gives its own exit where it has one."""
    try:
        program.run()
    except SystemExit as end:
        return end
    return None


def _no_engine(program: scripts.Program, functions: Sequence[str]) -> str:
    """Says of a program that it made no engine, and what could have been meant."""
    if functions:
        call = " or ".join(f"rhapsody run {program.target}:{name}" for name in functions)
        hint = f"to call a function with one: {call}"
    else:
        hint = "write `def main(flow): ...`, or `async with WorkflowEngine.create() as flow:`"
    return f"{program.name} has run, and has made no workflow engine; {hint}"


def _show_graphs(engines: Engines) -> None:
    if not engines.dry:
        return
    from rhapsody.cli.dry_run import graph

    for engine in engines.dry:
        if len(engines.dry) > 1:
            say(f"engine {engine.uid}")
        for line in graph(engine, engines.verdicts.get(engine.uid)):
            say(line)


def _progress(arguments: argparse.Namespace) -> bool | Literal["lines"]:
    """What is shown of the run, see `WorkflowEngine.create`."""
    if arguments.verbose:
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        logging.getLogger("rhapsody").setLevel(logging.INFO)
        return "lines"
    return not (arguments.quiet or arguments.dry_run)


def engine_options(given: dict[str, Any]) -> dict[str, Any]:
    """The same options, which are all known to `WorkflowEngine.create`.

    Raises:
        UsageError: One is not, or is for the command line to say in another way; or a value
            cannot be.
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
    try:
        WorkflowEngine.create(**given).close()  # which checks them, and makes no engine
    except (TypeError, ValueError) as error:
        raise UsageError(f"-e: {error}") from None
    return given


async def _workflow(
    main: scripts.Main,
    make: Callable[[], BaseExecutionBackend] | None,
    engine: dict[str, Any],
    more: dict[str, Any],
) -> None:
    from rhapsody.engine import WorkflowEngine
    from rhapsody.engine.program import call_main

    backend = None if make is None else make()
    name = "local" if backend is None else backend.name
    started = False
    try:
        async with WorkflowEngine.create(backend=backend, **{**engine, **more}) as flow:
            started = True
            await call_main(main, flow)
    except (JournalError, DataError) as error:
        if started:
            raise
        raise UsageError(str(error)) from error
    except (ValueError, TypeError) as error:
        if started:
            raise
        what = "-e: " if engine.keys() - OTHERS.keys() else f"backend {name!r}: "
        raise UsageError(f"{what}{error}") from error
    except (RhapsodyError, OSError, ImportError) as error:
        if started:
            raise
        raise CommandError(
            f"backend {name!r} cannot be started: {type(error).__name__}: {error}"
        ) from error
