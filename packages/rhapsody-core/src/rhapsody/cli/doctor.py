"""`rhapsody doctor`: reports problems of the installation and its plugins, with remedies.

Each plugin is loaded in a separate process with a time limit, so that the report can include
plugins that crash, exit or hang. The separate process writes a line of JSON before each step, and
a line for each finding.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import rhapsody_guard
from rhapsody.backends.discovery import (
    PUBLISHED,
    UnusableError,
    claim,
    conflicts,
    normalize_name,
    unmet,
)
from rhapsody.cli.output import DONE, FAILED, say, say_json
from rhapsody.errors import ProfileError
from rhapsody.plugins.manager import (
    BACKENDS,
    CORE,
    DISABLE,
    PLUGINS,
    Installed,
    PluginEntry,
    disabled_distributions,
    hidden_entries,
    install_command,
    installed,
    repair_command,
)
from rhapsody.plugins.specs import UsageError
from rhapsody.spelling import suggestion

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend

SLOW_IMPORT = 1.0
"""Number of seconds after which the import of a plugin's module is reported as slow."""

Level = Literal["ok", "note", "slow", "broken"]

LEVELS: tuple[Level, ...] = ("ok", "note", "broken")
"""Levels that the findings of a backend's `diagnose` may have."""

TASK = "true"
"""Shell command of the task that `--run` runs."""

COMMAND = """
import json, sys
request = json.loads(sys.stdin.read())
sys.path[:] = request["path"]
from rhapsody.cli.doctor import probe
probe(request)
"""
"""Python code that a separate process runs to load a plugin, with this process's `sys.path`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: The severity. `"broken"` makes the command fail.
        subject: The name of the distribution, backend or environment variable concerned.
        text: A description of what was found.
        remedy: The fix; empty if there is nothing to do.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    text = "also start this backend, and shut it down again"
    parser.add_argument("-b", "--backend", metavar="NAME", help=text)
    text = "also start the backend of this profile, with its options"
    parser.add_argument("--profile", metavar="NAME", help=text)
    keys: dict[str, Any] = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--run", action="store_true", help="also run a task on that backend")
    text = "a setting of that backend, as for `rhapsody run`"
    parser.add_argument("-o", "--option", **keys, help=text)
    text = "time limit for loading each plugin (default: 30)"
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Check the installation, and print the report.

    Returns:
        The exit code, which is nonzero if something is broken.

    Raises:
        UsageError: The name or a setting of the backend to start is invalid.
    """
    found = installed()
    system = {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "executable": sys.executable,
        "platform": platform.platform(),
    }
    findings = [
        *_conflict(),
        *_distributions(found),
        *_environment(found),
        *_plugins(found, arguments.timeout),
        *_trial(arguments),
    ]
    broken = any(finding.level == "broken" for finding in findings)
    if arguments.json:
        say_json({**system, "ok": not broken, "findings": [asdict(one) for one in findings]})
    else:
        _print(system, findings, broken)
    return FAILED if broken else DONE


def _print(system: dict[str, str], findings: list[Finding], broken: bool) -> None:
    for name, value in system.items():
        say(f"{name:<11} {value}")
    say()
    for finding in findings:
        say(f"{finding.level:<7} {finding.subject}: {finding.text}")
        if finding.remedy:
            say(f"{'':<7} to fix it: {finding.remedy}")
    say()
    say("some checks failed; see above" if broken else "everything works")


def _conflict() -> list[Finding]:
    message = rhapsody_guard.conflict()
    if message is None:
        return []
    text, _, remedy = message.partition("\n")
    return [Finding("broken", "rhapsody-py", text, f"\n{remedy}")]


def _distributions(found: Installed) -> Iterator[Finding]:
    """Check that the requirements of core and of each plugin are installed."""
    from importlib_metadata import PackageNotFoundError, distribution, version
    from packaging.requirements import InvalidRequirement, Requirement

    for name in dict.fromkeys([CORE, *(entry.distribution for entry in found.entries)]):
        try:
            metadata = distribution(name)
        except PackageNotFoundError:
            if name == CORE:
                yield Finding("broken", CORE, "its metadata is missing", f"pip install {CORE}")
            continue
        if name == CORE:
            yield Finding("ok", CORE, metadata.version)
        used: list[str] = []
        for text in metadata.requires or ():
            try:
                requirement = Requirement(text)
            except InvalidRequirement:  # pip reports it
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            requirement.marker = None
            problem = unmet(requirement)
            if problem is not None:
                yield Finding("broken", name, problem, f"pip install '{requirement}'")
            elif name == CORE:
                yield Finding("ok", requirement.name, version(requirement.name))
            elif requirement.name != CORE:
                used.append(f"{requirement.name} {version(requirement.name)}")
        if used:
            yield Finding("ok", name, f"uses {', '.join(used)}")


def _environment(found: Installed) -> Iterator[Finding]:
    """Report entry points that are not used, and plugins that are not installed."""
    for label, why in found.unreadable:
        text = f"its entry points cannot be read: {why}"
        yield Finding("broken", label, text, "reinstall this distribution")
    for hidden in hidden_entries():
        remedy = f"remove the copy in {hidden.first}, or install it again"
        yield Finding("broken", hidden.entry.distribution, str(hidden), remedy)
    for entry in found.unknown:
        hint = suggestion(entry.group, (BACKENDS, PLUGINS), "groups")
        text = f"its entry point {entry.name!r} is in the unknown group {entry.group!r}{hint}"
        yield Finding("broken", _subject(entry), text, repair_command(entry.distribution))
    for entry in found.disabled:
        text = f"its entry point {entry.name!r} is disabled by {DISABLE}"
        yield Finding("note", entry.distribution, text)
    present = {entry.distribution for entry in (*found.entries, *found.disabled)}
    for name in sorted(disabled_distributions() - present - {"all"}):
        yield Finding("note", DISABLE, f"no plugin named {name!r} is installed")
    for name, owner in PUBLISHED.items():
        if owner not in present and owner != CORE:
            text = f"{owner} is not installed; to install it: {install_command(owner)}"
            yield Finding("note", name, text)


def _trial(arguments: argparse.Namespace) -> list[Finding]:
    """Start the backend of `-b` or `--profile`, run a task on it for `--run`, and shut it down."""
    if arguments.backend is None and arguments.profile is None:
        if arguments.option or arguments.run:
            raise UsageError("-o and --run require a backend: select it with -b or --profile")
        return []
    from rhapsody.backends.discovery import make_backend, parse_options

    name, options = arguments.backend, parse_options(arguments.option)
    if arguments.profile is None:
        backend = make_backend(name, options)
    else:
        from rhapsody.engine.configuration.defaults import EngineDefaults, backends_of

        try:
            chosen = () if name is None else (name,)
            profile = EngineDefaults(profile=arguments.profile, backends=chosen).active_profile()
            name = profile.backends[0]
            backend = (backends_of(profile, options) or [make_backend(name, options)])[0]
        except ProfileError as error:
            raise UsageError(str(error)) from None
    subject = f"backend {normalize_name(name)}"
    return asyncio.run(
        _try_backend(backend, subject, profile=arguments.profile, run_task=arguments.run)
    )


async def _try_backend(
    backend: BaseExecutionBackend, subject: str, *, profile: str | None, run_task: bool
) -> list[Finding]:
    from rhapsody.engine import WorkflowEngine

    findings: list[Finding] = []
    place: Path | None = None
    try:
        begin = time.perf_counter()
        try:
            if isinstance(backend, Awaitable):
                await backend
            text = f"started in {time.perf_counter() - begin:.2f} s"
            if link := getattr(backend, "dashboard_link", None):
                text += f"; dashboard: {link}"
            if not run_task:
                text += "; to run a task as well, use --run"
            findings.append(Finding("ok", subject, text))
            if run_task:
                begin = time.perf_counter()
                engine = WorkflowEngine.create(backend, profile=profile, journal=False)
                async with engine as flow:
                    place = flow.work_dir
                    if backend.capabilities.executables:
                        await flow.executable_task(_command)()
                    else:
                        await flow.function_task(_nothing)()
                text = f"ran a task in {time.perf_counter() - begin:.2f} s"
                findings.append(Finding("ok", subject, text))
        finally:
            await backend.shutdown()
    except Exception as error:  # a backend and its library may raise anything
        failed = "cannot run a task" if findings else "cannot be started"
        text = f"{failed}: {type(error).__name__}: {error}"
        findings.append(Finding("broken", subject, text))
    else:
        if place is not None:
            _remove_log(place.parent)
    return findings


def _remove_log(run: Path) -> None:
    """Remove the log of the trial, which exists if the backend has logged something."""
    from rhapsody.sdk.runs import BASE, LOG, tidy

    if run.parent == Path(os.path.abspath(BASE)):  # not in a `work_dir` of the profile
        with contextlib.suppress(OSError):  # there is no log, or other files as well
            (run / LOG).unlink()
            run.rmdir()
            tidy(run.parent)


async def _command() -> str:
    return TASK


async def _nothing() -> None:
    return None


def _plugins(found: Installed, timeout: float) -> Iterable[Finding]:
    """Load each plugin module once, import the backends that it declares, and return findings."""
    modules: dict[str, tuple[PluginEntry, list[str]]] = {}
    findings: list[Finding] = []
    for entry in found.entries:
        _, backends = modules.setdefault(entry.value, (entry, []))
        if entry.group != BACKENDS:
            continue
        key = normalize_name(entry.name)
        subject = f"backend {key}"
        try:
            used = claim(key)
        except UnusableError as error:
            findings.append(Finding("broken", subject, error.reason, error.remedy))
            continue
        if used == entry:
            backends.append(entry.name)
        findings += [Finding("note", subject, text) for text in conflicts(key)]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        asked = [pool.submit(_ask, *module, timeout) for module in modules.values()]
    for answer in asked:
        findings += answer.result()
    return dict.fromkeys(findings)


def _ask(entry: PluginEntry, backends: list[str], timeout: float) -> list[Finding]:
    """Load a plugin in a separate process, and return findings about the plugin and the process."""
    request = {
        "path": [each for each in sys.path if isinstance(each, str)],
        "entry": asdict(entry),
        "backends": backends,
        "slow": SLOW_IMPORT,
    }
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(json.dumps(request), timeout=timeout)
    except subprocess.TimeoutExpired:
        end = f"timed out after {timeout:g} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
    else:
        last = errors.strip().rpartition("\n")[2] or "nothing on standard error"
        end = f"failed: the process exited with code {child.returncode} ({last})"
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            end = f"failed: the process was killed by {name}"
    step, findings = {"subject": _subject(entry), "text": f"loading {entry.value}"}, []
    for line in map(json.loads, output.splitlines()):
        if "level" in line:
            findings.append(Finding(**line))
        else:
            step = line
    if step["text"]:
        remedy = repair_command(entry.distribution)
        findings.append(Finding("broken", step["subject"], f"{step['text']} {end}", remedy))
    return findings


def _subject(entry: PluginEntry) -> str:
    return f"{entry.distribution} {entry.version}"


# In a plugin's process.


def probe(request: dict[str, Any]) -> None:
    """Load one plugin and the backends that it declares, and report on standard output.

    Args:
        request: A dict with `entry`, the entry point; `backends`, the names of the backends to
            import; and `slow`, the number of seconds after which loading is reported as slow.
    """
    # The plugin may print. Its output goes to standard error.
    answers = os.dup(1)
    os.dup2(2, 1)
    os.set_inheritable(answers, False)
    # Imported first, so that the time for this import is not included in the plugin's.
    import rhapsody.backends.base  # noqa: F401

    def answer(**values: Any) -> None:
        os.write(answers, (json.dumps(values) + "\n").encode())

    entry = PluginEntry(**request["entry"])
    for finding in _steps(entry, request["backends"], request["slow"], answer):
        answer(**asdict(finding))
    answer(text="")  # the end
    sys.stdout.flush()
    # Threads that the library started must not keep this process alive.
    os._exit(0)


def _steps(
    entry: PluginEntry, backends: list[str], slow: float, begin: Callable[..., None]
) -> Iterator[Finding]:
    from rhapsody.errors import PluginError
    from rhapsody.plugins.manager import load

    subject = _subject(entry)
    try:
        loaded = load(entry)
    except PluginError as error:
        yield Finding("broken", subject, str(error), repair_command(entry.distribution))
        return
    hooks = ", ".join(sorted(loaded.hooks))
    text = f"{entry.value} loads in {loaded.seconds:.2f} s and implements {hooks}"
    if loaded.seconds > slow:
        yield Finding(
            "slow", subject, f"{text}; that is slow: the module should not import libraries"
        )
    else:
        yield Finding("ok", subject, text)
    # A module that is in both groups is loaded for its entry point in the group of backends.
    if entry.group != BACKENDS and "rhapsody_backends" in loaded.hooks:
        text = (
            f"{entry.value} implements rhapsody_backends, but has no entry point in the group "
            f"{BACKENDS!r}; add one for each backend, with the backend's name"
        )
        yield Finding("broken", subject, text, repair_command(entry.distribution))
    for name in backends:
        begin(subject=f"backend {name}", text="importing the class")
        yield from _backend(name, begin)


def _backend(name: str, begin: Callable[..., None]) -> Iterator[Finding]:
    """Import a backend's class, call its `diagnose()`, and yield the findings."""
    from rhapsody.backends.discovery import BackendRegistry

    subject, described = f"backend {name}", BackendRegistry.describe(name)
    if not described.usable:
        yield Finding("broken", subject, described.reason or "", described.remedy or "")
        return
    start = time.perf_counter()
    try:
        kind: Any = BackendRegistry.get_backend_class(name)
    except (ImportError, TypeError) as error:
        yield Finding("broken", subject, str(error))
        return
    yield Finding("ok", subject, f"class imported in {time.perf_counter() - start:.2f} s")
    begin(subject=subject, text="diagnose()")
    try:
        for level, text, remedy in kind.diagnose() if hasattr(kind, "diagnose") else ():
            yield Finding(level if level in LEVELS else "note", subject, str(text), str(remedy))
    except Exception as error:  # a plugin may raise anything
        text = f"diagnose() raised {type(error).__name__}: {error}"
        yield Finding("broken", subject, text)
