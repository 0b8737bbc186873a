"""`rhapsody doctor`: what is installed, whether it works, and what to do where it does not.

Each plugin is loaded in a process of its own with a time limit, so that one that
crashes, exits or hangs is a line in the report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
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
from rhapsody.cli import probe
from rhapsody.cli.output import DONE, FAILED, say, say_json
from rhapsody.plugins.entry_points import (
    BACKENDS,
    CORE,
    DISABLE,
    Installed,
    PluginEntry,
    disabled_distributions,
    install_command,
    installed,
)
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

HELP = "check the installation and every plugin"
SLOW = 1.0
"""Seconds that the import of a plugin's light module may take before it is called slow."""

Level = Literal["ok", "note", "slow", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: `"broken"` makes the command fail.
        subject: What it is about.
        text: What was found.
        remedy: What to do, empty where nothing is to be done.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


@dataclass(slots=True)
class _Probed:
    """One plugin module and the entry points that name it."""

    entry: PluginEntry
    backends: list[str] = field(default_factory=list)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "-b", "--backend", metavar="NAME", help="start this backend as well, and end it again"
    )
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of that backend, as for `rhapsody run`",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long one plugin may take to load (default: 30)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; fails where something is broken.

    Raises:
        UsageError: The backend to start, or a setting of it, is not right.
    """
    found = installed()
    system = {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "executable": sys.executable,
        "platform": platform.platform(),
    }
    findings = [
        *_conflict(),
        *_core(),
        *_environment(found),
        *_requirements(found),
        *_plugins(found, arguments.timeout),
        *_not_installed(found),
        *_trial(arguments.backend, arguments.option),
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
            say(f"{'':<7} to mend it: {finding.remedy}")
    say()
    say("something is broken, see above" if broken else "everything works")


def _conflict() -> list[Finding]:
    message = rhapsody_guard.conflict()
    if message is None:
        return []
    text, _, remedy = message.partition("\n")
    return [Finding("broken", "rhapsody-py", text, f"\n{remedy}")]


def _core() -> list[Finding]:
    from importlib_metadata import PackageNotFoundError, distribution, version

    try:
        core = distribution(CORE)
    except PackageNotFoundError:
        return [Finding("broken", CORE, "its metadata are missing", f"pip install {CORE}")]
    findings = [Finding("ok", CORE, core.version)]
    for requirement, problem in _required(core.requires):
        if problem is None:
            findings.append(Finding("ok", requirement.name, version(requirement.name)))
        else:
            findings.append(Finding("broken", CORE, problem, f"pip install '{requirement}'"))
    return findings


def _required(texts: Iterable[str] | None) -> Iterable[tuple[Requirement, str | None]]:
    """What a distribution's metadata require here, each with what is wrong with it."""
    from packaging.requirements import InvalidRequirement, Requirement

    for text in texts or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # pip has said so
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            yield requirement, unmet(requirement)


def _requirements(found: Installed) -> Iterable[Finding]:
    """What plugins' own metadata require, and is not there."""
    from importlib_metadata import PackageNotFoundError, distribution

    for name in dict.fromkeys(one.distribution for one in found.entries):
        try:
            texts = distribution(name).requires if name != CORE else ()
        except PackageNotFoundError:  # its metadata are read elsewhere, and told of
            continue
        for requirement, problem in _required(texts):
            if problem is not None:
                yield Finding("broken", name, problem, f"pip install '{requirement}'")


def _environment(found: Installed) -> list[Finding]:
    findings = [
        Finding(
            "broken",
            label,
            f"its entry points cannot be read: {why}",
            "reinstall that distribution",
        )
        for label, why in found.unreadable
    ]
    findings += [
        Finding("note", one.distribution, f"its entry point {one.name!r} is disabled by {DISABLE}")
        for one in found.disabled
    ]
    present = {one.distribution for one in (*found.entries, *found.disabled)}
    findings += [
        Finding("note", DISABLE, f"no plugin is installed of the name {name!r}")
        for name in sorted(disabled_distributions() - present - {"all"})
    ]
    return findings


def _not_installed(found: Installed) -> list[Finding]:
    present = {one.distribution for one in (*found.entries, *found.disabled)}
    return [
        Finding("note", name, f"{owner} is not installed; to install it: {install_command(owner)}")
        for name, owner in PUBLISHED.items()
        if owner not in present and owner != CORE
    ]


def _trial(name: str | None, options: list[str]) -> list[Finding]:
    if name is None:
        if options:
            raise UsageError("-o is for a backend: name it with -b")
        return []
    from rhapsody.cli import trial

    started, text = trial.start(name, options)
    return [Finding("ok" if started else "broken", f"backend {normalize_name(name)}", text)]


def _plugins(found: Installed, timeout: float) -> Iterable[Finding]:
    probed: dict[str, _Probed] = {}
    findings: list[Finding] = []
    for entry in found.entries:
        one = probed.setdefault(entry.value, _Probed(entry))
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
            one.backends.append(entry.name)
        findings += [Finding("note", subject, text) for text in conflicts(key)]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for result in pool.map(partial(_probe, timeout=timeout), probed.values()):
            findings += result
    return dict.fromkeys(findings)


def _probe(probed: _Probed, timeout: float) -> list[Finding]:
    entry = probed.entry
    subject = f"{entry.distribution} {entry.version}"
    remedy = f"pip install --upgrade {entry.distribution}"
    path = [entry for entry in sys.path if isinstance(entry, str)]
    request = {"path": path, "entry": asdict(entry), "backends": probed.backends}
    answers, end = _ask(request, timeout)
    loads = [answer for answer in answers if answer["step"] == "load"]
    if not loads:
        text = f"loading {entry.value} {end or 'gave no answer'}"
        return [Finding("broken", subject, text, remedy)]
    if not loads[0]["ok"]:
        return [Finding("broken", subject, loads[0]["reason"], remedy)]
    findings = []
    seconds = loads[0]["seconds"]
    text = f"{entry.value} loads in {seconds:.2f} s and implements {', '.join(loads[0]['hooks'])}"
    if seconds > SLOW:
        text += "; that is slow, because it should import no library"
        findings.append(Finding("slow", subject, text))
    else:
        findings.append(Finding("ok", subject, text))
    answered = {answer["name"]: answer for answer in answers if answer["step"] == "backend"}
    for name in probed.backends:
        about = f"backend {name}"
        answer = answered.get(name)
        if answer is None:
            text = f"importing its class {end or 'gave no answer'}"
            findings.append(Finding("broken", about, text, remedy))
            break  # nothing that comes after it was looked at
        if answer["ok"]:
            findings.append(Finding("ok", about, f"class imported in {answer['seconds']:.2f} s"))
            findings += [
                Finding(level, about, text, cure) for level, text, cure in answer["findings"]
            ]
        else:
            findings.append(Finding("broken", about, answer["reason"], answer["remedy"]))
    return findings


def _ask(request: dict[str, Any], timeout: float) -> tuple[list[dict[str, Any]], str]:
    """What a plugin's process answered, and how it ended where that was not in order."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", probe.COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    end = ""
    try:
        output, errors = child.communicate(json.dumps(request), timeout=timeout)
    except subprocess.TimeoutExpired:
        end = f"did not end within {timeout:g} s"
        _kill(child)
        output, errors = child.communicate()
    else:
        if child.returncode < 0:
            end = f"ended the process with {signal.Signals(-child.returncode).name}"
        elif child.returncode:
            last = errors.strip().rpartition("\n")[2] or "nothing on standard error"
            end = f"ended the process with exit code {child.returncode} ({last})"
    return [json.loads(line) for line in output.splitlines()], end


def _kill(child: subprocess.Popen[str]) -> None:
    """Ends the process and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
