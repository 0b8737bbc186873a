"""`rhapsody run`: runs a script as a workflow, with settings for the engines that it creates.

`rhapsody.cli.scripts` finds and runs the script.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody._version import __version__
from rhapsody.backends.discovery import parse_options
from rhapsody.cli import scripts
from rhapsody.cli.output import (
    BROKEN_PIPE,
    DONE,
    ENDED_BY,
    FAILED,
    INTERRUPTED,
    USAGE,
    CommandError,
    complain,
    note,
)
from rhapsody.cli.plugin_options import add_options, given_options
from rhapsody.errors import (
    DataError,
    JournalError,
    PluginError,
    ProfileError,
    RhapsodyError,
    is_closed_pipe,
)
from rhapsody.plugins.manager import (
    PluginHook,
    engine_options,
    implementations,
    loaded_plugins,
    register,
    report,
)
from rhapsody.plugins.specs import (
    ObservedEngine,
    Outcome,
    StartedRun,
    Summary,
    UsageError,
    hookimpl,
)
from rhapsody.resources import duration_text
from rhapsody.sdk.runs import PrintableLines, note_in_log
from rhapsody.spelling import suggestion

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend
    from rhapsody.cli import Commands
    from rhapsody.engine.configuration.defaults import EngineDefaults
    from rhapsody.engine.configuration.profiles import Profile


IMPLIED = {"keep_going": True}
"""Options of the engine itself that apply if neither the command line nor the profile sets them."""

ALTERNATIVES = {
    "backend": "use -b NAME",
    "backends": "use -b NAME for each backend",
    "observers": "set it in the script: WorkflowEngine.create(observers=[...])",
    "dry_run": "use --dry-run",
    "clock": "set it in the script: WorkflowEngine.create(clock=...)",
    "fail_fast": "use --fail-fast",
    "keep_going": "it is the default; --fail-fast turns it off",
    "max_failures": "use --max-failures N",
    "profile": "use --profile NAME",
}
"""Options of the engine itself that `-e` does not accept, each with the alternative."""


def implied() -> dict[str, Any]:
    """Return the engine options that apply if neither the command line nor the profile sets them.

    In a dry run, only those of the engine itself apply.
    """
    found = {each.name: each.in_runs for each in engine_options().values()}
    return {**IMPLIED, **{name: value for name, value in found.items() if value is not None}}


def _alternatives() -> dict[str, str]:
    """Return all options that `-e` does not accept, each with the alternative."""
    found = {each.name: each.instead_of_flag for each in engine_options().values()}
    return {**{name: hint for name, hint in found.items() if hint}, **ALTERNATIVES}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    what = parser.add_mutually_exclusive_group()  # one is required; see `_take_script`
    what.add_argument(
        "script",
        nargs="?",
        metavar="SCRIPT[:FUNC]",
        help="a Python script, and the function to call with an engine (default: main); without "
        "such a function, the script runs as with python",
    )
    what.add_argument(
        "-m",
        "--module",
        metavar="MODULE[:FUNC]",
        help="a module instead of a script, as with python -m",
    )
    text = "the backend (default: local); repeat it for further backends after the default one"
    parser.add_argument("-b", "--backend", action="append", default=[], metavar="NAME", help=text)
    text = "the profile in rhapsody.toml that sets the backend and other options"
    parser.add_argument("--profile", metavar="NAME", help=text)
    text = "a setting of the backend, with a TOML value; NAME.KEY=VALUE if there are several"
    keys: dict[str, Any] = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("-o", "--option", **keys, help=text)
    text = "an option of WorkflowEngine.create, such as retries=2; may be repeated"
    parser.add_argument("-e", "--engine", **keys, help=text)
    text = "print the tasks that the program calls, without running them"
    parser.add_argument("--dry-run", action="store_true", help=text)
    text = "with --dry-run: also draw the graph, grouped by task name; FILE ends with .mmd "
    text += "(Mermaid), .dot or .svg (Graphviz)"
    parser.add_argument("--graph", metavar="FILE", type=Path, help=text)
    parser.epilog = (
        "Arguments after -- are passed to the script as sys.argv[1:]. To run a script whose name "
        "begins with a dash, put another -- before it: rhapsody run -- -x.py -- ARGUMENTS."
    )
    failing = parser.add_mutually_exclusive_group()
    text = "after a failure, run all tasks that do not depend on it (the default)"
    failing.add_argument("-k", "--keep-going", action="store_true", help=text)
    text = "cancel all other tasks when one has failed"
    failing.add_argument("--fail-fast", action="store_true", help=text)
    text = "cancel all other tasks when N have failed"
    failing.add_argument("--max-failures", type=int, metavar="N", help=text)
    shown = parser.add_mutually_exclusive_group()
    text = "show neither progress nor the summary, but still the failures that were not awaited"
    shown.add_argument("-q", "--quiet", action="store_true", help=text)
    text = "log the start and end of each task, and show the output of tasks"
    shown.add_argument("-v", "--verbose", action="store_true", help=text)


def extend(parser: argparse.ArgumentParser, commands: Commands) -> None:
    """Add the options of plugins."""
    owners: dict[str, str] = {}
    for owner, options in commands.run_options.items():
        add_options(parser, owner, options, owners)


def run(arguments: argparse.Namespace) -> int:
    """Run the workflow.

    Returns:
        The exit code.

    Raises:
        UsageError: The script, the function, the backend or an option is invalid, or the script
            or a module that the script imports is missing or has a syntax error.
        CommandError: The backend could not be started.
        RhapsodyError: A plugin refuses the run.
        SystemExit: The script raised it, or a signal ended the run.
        BrokenPipeError: The reader of standard output has exited.
    """
    _take_script(arguments)
    try:
        program = scripts.find(arguments.script, arguments.module, arguments.arguments)
    except UsageError:
        raise
    except Exception as error:  # the package of a module may raise anything
        scripts.show(error, None)
        return FAILED
    engines = _Engines()
    with ExitStack() as at_end:  # runs after the traceback has been printed
        plugins = _Plugins()
        code: int = INTERRUPTED
        outcome: Outcome = "interrupted"
        try:
            plugins.start(arguments, program, at_end)
            code = _code(arguments, program, engines, plugins)
            outcome = "failed" if code else "done"
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else FAILED if end.code else DONE
            if end.code not in ENDED_BY:
                outcome = "failed" if end.code else "done"
            raise
        except (RhapsodyError, CommandError) as error:
            code, outcome = USAGE if isinstance(error, UsageError) else FAILED, "failed"
            raise
        except BrokenPipeError:
            code = BROKEN_PIPE
            raise
        finally:
            if outcome == "done" and any(each.held_back for each in engines.summaries):
                outcome = "failed"
            plugins.end(outcome, code)
        return code


def _take_script(arguments: argparse.Namespace) -> None:
    """Take the script from the arguments after `--` if neither script nor module is before `--`.

    Raises:
        UsageError: No script was given.
    """
    if arguments.script is not None or arguments.module is not None:
        return
    if not arguments.arguments:
        raise UsageError("no script given: write rhapsody run SCRIPT, or rhapsody run -m MODULE")
    arguments.script, *rest = arguments.arguments
    arguments.arguments = rest[1:] if rest[:1] == ["--"] else rest


class _Plugins:
    """The plugins that take part in the run, until its end.

    Attributes:
        observers: The observers of the run's engines.
        previews: The implementations of `rhapsody_preview_results`.
    """

    def __init__(self) -> None:
        self.observers: list[object] = []
        self.previews: tuple[PluginHook, ...] = ()
        self._runs: dict[str, StartedRun] = {}

    def start(
        self, arguments: argparse.Namespace, program: scripts.Script, at_end: ExitStack
    ) -> None:
        """Call `rhapsody_run_started` of the plugins.

        Args:
            arguments: The parsed arguments of the command.
            program: The program.
            at_end: The stack to which the context managers of plugins are added.

        Raises:
            UsageError: The profile cannot be used.
            RhapsodyError: A plugin refuses the run.
            KeyboardInterrupt: The user pressed Ctrl-C.
        """
        from rhapsody.engine.configuration.defaults import EngineDefaults
        from rhapsody.engine.configuration.profiles import Profile

        profile = Profile()
        if not arguments.dry_run:
            profile = _active_profile(EngineDefaults(profile=arguments.profile))
        options = profile.plugin_options(_plugin_options(arguments))
        run = StartedRun(
            program=arguments.module or arguments.script,
            dry_run=arguments.dry_run,
            options={},
            arguments=tuple(arguments.arguments),
            quiet=arguments.quiet,
            path=program.path,
            is_module=program.spec is not None,
            function=program.function,
            calls_function=program.calls_function(),
            note=note,
        )
        found = []
        for hook in implementations("rhapsody_run_started", loaded_plugins()):
            started = replace(run, options=options.get(hook.plugin, {}))
            self._runs[hook.plugin] = started
            try:
                context = hook.call(run=started)
                if context is None:
                    continue
                observer = context.__enter__()
                at_end.callback(_leave, hook, context)
                if observer is not None:
                    found.append(register(observer, hook.plugin, f"observer of {hook.plugin}"))
                    self.observers.append(observer)
            except PluginError as error:  # of an invalid observer
                report(hook, error)
            except (KeyboardInterrupt, RhapsodyError):
                raise
            except BaseException as error:  # a plugin may raise anything
                report(hook, error)
        self.previews = implementations("rhapsody_preview_results", found)

    def end(self, outcome: Outcome, code: int) -> None:
        """Call `rhapsody_run_ended` of the plugins."""
        for hook in implementations("rhapsody_run_ended", loaded_plugins()):
            run = self._runs.get(hook.plugin)
            if run is not None:
                try:
                    hook.call(run=run, outcome=outcome, exit_code=code)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # a plugin may raise anything
                    report(hook, error)


def _plugin_options(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the values of the options of plugins on the command line."""
    return {
        plugin: given_options(arguments, plugin, options)
        for plugin, options in arguments.commands.run_options.items()
    }


def _leave(hook: PluginHook, context: AbstractContextManager[object]) -> None:
    """Leave the context of a plugin, and report its error."""
    try:
        context.__exit__(None, None, None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything
        report(hook, error, f"leaving the context manager that {hook.hook} returned")


class _Engines:
    """Observer that records the program's engines, and logs when they start and end.

    Attributes:
        started: Number of engines that have started.
        summaries: Summaries of the engines that have finished.
    """

    def __init__(self) -> None:
        self.started: int = 0
        self.summaries: list[Summary] = []

    @hookimpl
    def rhapsody_workflow_started(self, engine: ObservedEngine) -> None:
        """Count the engine, and log its start."""
        self.started += 1
        if not engine.dry_run:
            name = engine.options.get("profile")
            profile = "" if name is None else f" with profile {name!r}"
            note_in_log(
                engine.work_dir,
                f"engine {engine.uid} started on {', '.join(engine.backends)}{profile}; process "
                f"{os.getpid()} on {platform.node()}, rhapsody-core {__version__}, Python "
                f"{platform.python_version()}: {shlex.join(sys.argv)}",
            )

    @hookimpl
    def rhapsody_workflow_finished(self, engine: ObservedEngine, summary: Summary) -> None:
        """Record the summary and log the end of the engine."""
        self.summaries.append(summary)
        if not engine.dry_run:
            stats = summary.stats
            note_in_log(
                engine.work_dir,
                f"engine {engine.uid} ended after {duration_text(summary.seconds)}: "
                f"{stats.done} done, {stats.recorded} of them reused, "
                f"{stats.failed - stats.skipped} failed, {stats.skipped} skipped, "
                f"{stats.cancelled} canceled, {stats.retried} retried",
            )


def _code(
    arguments: argparse.Namespace,
    program: scripts.Script,
    engines: _Engines,
    plugins: _Plugins,
) -> int:
    """Run the program, print its errors, and return the exit code."""
    from rhapsody.engine.configuration.defaults import EngineDefaults

    dry = None
    if arguments.dry_run:
        from rhapsody.cli.dry_run import FORMATS, DryRun

        if arguments.graph is not None and arguments.graph.suffix not in FORMATS:
            raise UsageError(f"--graph: {arguments.graph} must end with {', '.join(FORMATS)}")
        dry = DryRun(plugins.previews)
    elif arguments.graph is not None:
        raise UsageError("--graph needs --dry-run; rhapsody graph draws the graph of a run")
    try:
        observers = plugins.observers
        defaults = EngineDefaults(
            options=_engine_options(arguments),
            implied=IMPLIED if arguments.dry_run else implied(),
            backends=tuple(arguments.backend),
            backend_options=parse_options(arguments.option),
            stand_in=_stand_in(arguments),
            profile=arguments.profile,
            plugin_options=_plugin_options(arguments),
            observers=(engines, *observers) if dry is None else (engines, dry, *observers),
        )
        _active_profile(defaults)  # raises if it cannot be used
        _run(program, defaults, engines)
    except (UsageError, CommandError):
        raise
    except (Exception, asyncio.CancelledError) as error:  # the user's own code may raise anything
        if is_closed_pipe(error):
            raise BrokenPipeError from None
        if dry is None or not dry.explains(error, program):
            scripts.show(error, program.path)
            return FAILED
    finally:
        if dry is not None:
            dry.show()
            if arguments.graph is not None:
                dry.draw(arguments.graph)
    failed = any(summary.unawaited or summary.cut_short for summary in engines.summaries)
    return FAILED if failed and dry is None else DONE


def _engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the engine options that the command line sets."""
    if arguments.max_failures is not None and arguments.max_failures < 1:
        raise UsageError(f"--max-failures must be 1 or more, got {arguments.max_failures}")
    options = _checked(parse_options(arguments.engine, "-e"))
    if arguments.max_failures is not None:
        options["max_failures"] = arguments.max_failures
    if arguments.fail_fast:
        options["fail_fast"] = True
    if arguments.keep_going or arguments.max_failures is not None:
        options["keep_going"] = True
    if arguments.quiet:
        options["progress"] = False
    if arguments.verbose:
        options["progress"] = "lines"
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableLines("%(asctime)s %(message)s", "%H:%M:%S"))
        logging.basicConfig(handlers=[handler])
        logging.getLogger("rhapsody").setLevel(logging.INFO)
    return {**options, "dry_run": True} if arguments.dry_run else options


def _stand_in(arguments: argparse.Namespace) -> Callable[[], BaseExecutionBackend] | None:
    """Return a function that creates the backend of a dry run, or `None` for other runs."""
    if not arguments.dry_run:
        return None
    from rhapsody.cli.dry_run import DryRunBackend

    return DryRunBackend


def _active_profile(defaults: EngineDefaults) -> Profile:
    """Return the profile, or raise a `UsageError` if it cannot be used."""
    try:
        return defaults.active_profile()
    except ProfileError as error:
        raise UsageError(str(error)) from None


def _run(program: scripts.Script, defaults: EngineDefaults, engines: _Engines) -> None:
    """Call the program's function with an engine, or run the program as the main module."""
    from rhapsody.engine.configuration.defaults import engine_defaults

    try:
        tree = program.tree
        main = program.workflow() if program.calls_function() else None
    except (SyntaxError, ImportError) as error:  # in the script or a module that it imports
        raise scripts.cannot_be_loaded(error, program.name) from None
    if main is not None:
        asyncio.run(_workflow(main, defaults))
        return
    end = None
    with engine_defaults(defaults):
        try:
            program.run()
        except SystemExit as error:
            end = error
    if not engines.started and (end is None or not end.code):
        calls = [f"rhapsody run {program.target}:{name}" for name in scripts.workflows(tree)]
        hint = "write `def main(flow): ...`, or `async with WorkflowEngine.create() as flow:`"
        if calls:
            hint = f"to call a function with an engine, use {' or '.join(calls)}"
        complain(f"{program.name} ran without creating a workflow engine; {hint}")
    if end is not None:
        raise end


async def _workflow(main: scripts.Main, defaults: EngineDefaults) -> None:
    """Call the program's function with an engine."""
    from rhapsody.engine import WorkflowEngine
    from rhapsody.engine.configuration.defaults import engine_defaults
    from rhapsody.engine.engine import call_main, warn_of_coroutines

    name = " and ".join(map(repr, defaults.active_profile().backends))
    started = False
    try:
        with engine_defaults(defaults):
            starting = WorkflowEngine.create()
        async with starting as flow:
            started = True
            await call_main(main, flow)
    except (RhapsodyError, OSError, ImportError, ValueError, TypeError) as error:
        if started or isinstance(error, UsageError):
            raise
        if isinstance(error, JournalError | DataError | ProfileError):
            raise UsageError(str(error)) from error
        if isinstance(error, ValueError | TypeError):
            of_engine = defaults.options.keys() - _alternatives().keys()
            what = "-e: " if of_engine else f"backend {name}: "
            raise UsageError(f"{what}{str(error).removeprefix(what)}") from error
        raise CommandError(
            f"backend {name} cannot be started: {type(error).__name__}: {error}"
        ) from error
    refused = warn_of_coroutines(flow)
    if refused:
        raise CommandError(
            f"{refused} call{'s' if refused > 1 else ''} did not run, because `main` had ended "
            "without awaiting the coroutines that made the calls; await them in `main`, for "
            "example with asyncio.gather"
        )


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Check the options of `-e`.

    Returns:
        The options, with `~` expanded in paths, because shells do not expand it after `=`.

    Raises:
        UsageError: `WorkflowEngine.create` does not accept an option or its value, or
            `rhapsody run` has its own option for the same setting.
    """
    from rhapsody.engine.configuration.options import EngineOptions, all_options

    options, alternatives = all_options(), _alternatives()
    known = [name for name in options if name not in alternatives]
    for name in given:
        if name in alternatives:
            raise UsageError(f"-e {name}: {alternatives[name]}")
        if name not in known:
            hint = suggestion(name, known, "options")
            raise UsageError(f"-e {name}: unknown engine option{hint}")
    for name in given:
        if options[name].is_path and isinstance(given[name], str):
            given[name] = os.path.expanduser(given[name])
    try:
        EngineOptions.of(given)
    except (TypeError, ValueError, OSError) as error:
        raise UsageError(f"-e: {error}") from None
    return given
