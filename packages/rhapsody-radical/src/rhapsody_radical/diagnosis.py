"""Findings of `rhapsody doctor` about RADICAL-Pilot: its programs, and common causes of failures.

RADICAL-Pilot starts everything through shell scripts, so that the output of a login shell, or a
missing tool, causes misleading errors. RADICAL-Pilot itself is queried in a separate process: this
one imports nothing of it.
"""

from __future__ import annotations

import json
import locale
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rhapsody import BackendUnavailableError
from rhapsody_radical.connection import scripts

Finding = tuple[str, str, str]

SLOW_SHELL = 5.0
"""Seconds that a login shell may take: each task on a pilot's way waits for a few."""

ASKING = 60.0
"""Seconds that RADICAL-Pilot may take to be imported, and to say what it has."""

SLURM = 20.0
"""Seconds that Slurm may take to list its partitions."""

QUESTION = """
import json, warnings
warnings.simplefilter("ignore")
import radical.pilot as rp
print("version", rp.version_short, flush=True)
configs = rp.utils.misc.get_resource_configs()
names = sorted(f"{site}.{name}" for site in configs for name in configs[site])
print("resources", ", ".join(names), flush=True)
"""

REINSTALL = "pip install --force-reinstall radical.pilot"

LAUNCHERS = ("mpirun", "mpiexec", "srun", "aprun", "jsrun")
BATCH = {"Slurm": "sbatch", "PBS": "qsub", "LSF": "bsub", "Cobalt": "cqsub"}


class Answer(NamedTuple):
    """RADICAL-Pilot's answer about itself.

    Attributes:
        version: Its version, empty if it cannot be imported.
        resources: The resources that it knows.
        error: The reason if one of them is missing.
    """

    version: str
    resources: str
    error: str


def findings() -> Iterator[Finding]:
    """Return the level, text and remedy of each finding."""
    answer = _ask()
    yield _programs(answer)
    yield from _shell()
    yield _encoding()
    yield from _tools()
    yield from _partitions()
    yield _resources(answer)
    yield (
        "note",
        "not checked here: whether a pilot becomes active; to run a task on one: `rhapsody doctor "
        "-b radical_pilot --run -o resource=SITE.MACHINE -o queue=PARTITION`",
        "",
    )


def _ask() -> Answer:
    """Ask a process of its own, which leaves nothing in the home directory."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            run = subprocess.run(
                [sys.executable, "-P", "-c", QUESTION],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ASKING,
                check=False,
                env={**os.environ, "RADICAL_BASE": directory},
            )
        except subprocess.TimeoutExpired:
            return Answer("", "", f"it did not answer within {ASKING:g} s")
    said = dict(line.split(" ", 1) for line in run.stdout.splitlines() if " " in line)
    error = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    return Answer(said.get("version", ""), said.get("resources", ""), error)


def _programs(answer: Answer) -> Finding:
    if not answer.version:
        return "broken", f"RADICAL-Pilot cannot be imported: {answer.error}", REINSTALL
    try:
        return "ok", f"RADICAL-Pilot {answer.version}, its programs are in {scripts()}", ""
    except BackendUnavailableError as error:
        return "broken", str(error), REINSTALL


def _shell() -> Iterator[Finding]:
    bash = shutil.which("bash")
    if bash is None:
        yield "broken", "there is no bash, in which RADICAL-Pilot's scripts are", "install bash"
        return
    begun = time.perf_counter()
    try:
        run = subprocess.run(
            [bash, "-lc", "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=2 * SLOW_SHELL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield "broken", "the login shell does not end", "look into ~/.bash_profile and ~/.profile"
        return
    seconds, said = time.perf_counter() - begun, (run.stdout + run.stderr).strip()
    if run.returncode:
        cure = "let `bash -lc true` succeed: look into ~/.bash_profile and ~/.profile"
        yield "broken", f"the login shell fails with exit code {run.returncode}: {said}", cure
    elif said:
        cure = "print nothing from ~/.bash_profile and ~/.profile unless a terminal is there"
        yield "note", f"the login shell prints, which gets into tasks' output: {said[:200]}", cure
    elif seconds > SLOW_SHELL:
        yield "note", f"the login shell takes {seconds:.0f} s, and pilots start several", ""
    else:
        yield "ok", f"the login shell starts quietly, in {seconds:.2f} s", ""


def _encoding() -> Finding:
    encoding = locale.getpreferredencoding(False)
    if encoding.lower().replace("-", "") == "utf8":
        return "ok", f"text is {encoding}", ""
    return "note", f"text is {encoding}: names and output beyond it get lost", "export LANG=C.UTF-8"


def _tools() -> Iterator[Finding]:
    launchers = [name for name in LAUNCHERS if shutil.which(name)]
    if launchers:
        yield "ok", f"tasks of several ranks can be started by {', '.join(launchers)}", ""
    if not {"mpirun", "mpiexec"} & set(launchers):
        cure = "load or install an MPI, on Debian: apt-get install openmpi-bin"
        yield "note", "there is no mpirun: tasks on this machine's pilots have one rank", cure
    systems = [name for name, program in BATCH.items() if shutil.which(program)]
    yield "ok", f"batch systems here: {', '.join(systems) or 'none'}", ""


def _partitions() -> Iterator[Finding]:
    """Report the state of Slurm's partitions, in which pilots are queued."""
    if shutil.which("sinfo") is None:
        return
    words = ["sinfo", "--noheader", "--format=%R %a %D %T"]
    try:
        run = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=SLURM, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield "note", f"Slurm did not answer within {SLURM:g} s: no pilot can be submitted", ""
        return
    found: dict[str, list[str]] = {}
    for name, state, nodes, of_nodes in map(str.split, run.stdout.splitlines()):
        found.setdefault(f"{name} ({state})", []).append(f"{nodes} {of_nodes}")
    if found:
        listed = "; ".join(f"{name}: {', '.join(nodes)}" for name, nodes in found.items())
        yield "ok", f"Slurm's partitions and the states of their nodes: {listed}", ""
    else:
        why = run.stderr.strip().rpartition("\n")[2] or "it has none"
        yield "note", f"Slurm does not list its partitions: {why}", ""


def _resources(answer: Answer) -> Finding:
    home = os.environ.get("RADICAL_CONFIG_USER_DIR") or os.path.expanduser("~")
    own = sorted(Path(home, ".radical/pilot/configs").glob("resource_*.json"))
    for file in own:
        with suppress(OSError):
            try:
                # RADICAL-Pilot's files have comments, in lines of their own.
                lines = file.read_text().splitlines()
                json.loads("\n".join(x for x in lines if not x.lstrip().startswith("#")))
            except ValueError as error:
                return "broken", f"{file} is not JSON: {error}", "correct it, or move it away"
    if answer.resources:
        return "ok", f"resources: {answer.resources}", ""
    cure = "look at `resource_*.json` in ~/.radical/pilot/configs, and install RADICAL-Pilot again"
    return "broken", f"RADICAL-Pilot cannot list its resources: {answer.error}", cure
