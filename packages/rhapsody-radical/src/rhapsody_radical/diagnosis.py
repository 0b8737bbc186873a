"""Findings of `rhapsody doctor` about RADICAL-Pilot: its programs, and common causes of failures.

RADICAL-Pilot starts everything with shell scripts, so output of a login shell or a missing tool
causes misleading errors. RADICAL-Pilot itself is queried in a separate process, because importing
it has side effects.
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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rhapsody import BackendUnavailableError
from rhapsody_radical.connection import scripts

Finding = tuple[str, str, str]

SLOW_SHELL = 5.0
"""Time in seconds above which a login shell is reported as slow; starting a pilot runs several."""

IMPORT_TIMEOUT = 60.0
"""Time limit in seconds for importing RADICAL-Pilot and listing its resources."""

SLURM_TIMEOUT = 20.0
"""Time limit in seconds for listing Slurm's partitions."""

PROBE_SCRIPT = """
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
    """Information from RADICAL-Pilot.

    Attributes:
        version: The version of RADICAL-Pilot, or an empty string if it cannot be imported.
        resources: The names of the known resources, separated by commas.
        error: If the version or the resources are missing, the reason.
    """

    version: str
    resources: str
    error: str


def findings() -> Iterator[Finding]:
    """Yield the level, text and remedy of each finding."""
    answer = _ask()
    yield _programs(answer)
    yield _shell()
    yield _encoding()
    yield from _tools()
    yield from _partitions()
    yield _resources(answer)
    yield (
        "note",
        "not checked here: whether a pilot becomes active. To check this, run a task on a pilot: "
        "`rhapsody doctor -b radical_pilot --run -o resource=SITE.MACHINE -o queue=PARTITION`",
        "",
    )


def _run(
    words: Sequence[str], seconds: float, **variables: str
) -> subprocess.CompletedProcess[str] | None:
    """Run a program, and return its output; `None` if it does not end in time."""
    try:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, check=False, env={**os.environ, **variables},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


def _ask() -> Answer:
    """Query RADICAL-Pilot in a separate process that leaves no files in the home directory."""
    with tempfile.TemporaryDirectory() as directory:
        run = _run(
            [sys.executable, "-P", "-c", PROBE_SCRIPT], IMPORT_TIMEOUT, RADICAL_BASE=directory
        )
    if run is None:
        return Answer("", "", f"it did not answer within {IMPORT_TIMEOUT:g} s")
    found = dict(line.split(" ", 1) for line in run.stdout.splitlines() if " " in line)
    error = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    return Answer(found.get("version", ""), found.get("resources", ""), error)


def _programs(answer: Answer) -> Finding:
    if not answer.version:
        return "broken", f"RADICAL-Pilot cannot be imported: {answer.error}", REINSTALL
    try:
        return "ok", f"RADICAL-Pilot {answer.version}, programs in {scripts()}", ""
    except BackendUnavailableError as error:
        return "broken", str(error), REINSTALL


def _shell() -> Finding:
    bash = shutil.which("bash")
    if bash is None:
        return "broken", "bash is not installed; RADICAL-Pilot's scripts need it", "install bash"
    start = time.perf_counter()
    run = _run([bash, "-lc", "true"], 2 * SLOW_SHELL)
    seconds = time.perf_counter() - start
    cure = "correct ~/.bash_profile or ~/.profile, so that `bash -lc true` succeeds"
    if run is None:
        return "broken", f"the login shell did not end within {2 * SLOW_SHELL:g} s", cure
    output = (run.stdout + run.stderr).strip()
    if run.returncode:
        text = f"the login shell fails with exit code {run.returncode}: {output}"
        return "broken", text, cure
    if output:
        cure = "in ~/.bash_profile and ~/.profile, print only if standard output is a terminal"
        text = f"the login shell prints text, also into tasks' output: {output[:200]}"
        return "note", text, cure
    if seconds > SLOW_SHELL:
        text = f"the login shell takes {seconds:.0f} s to start; each pilot starts several"
        return "note", text, "speed up ~/.bash_profile or ~/.profile"
    return "ok", f"the login shell starts in {seconds:.2f} s and prints nothing", ""


def _encoding() -> Finding:
    encoding = locale.getpreferredencoding(False)
    if encoding.lower().replace("-", "") == "utf8":
        return "ok", f"text encoding: {encoding}", ""
    text = f"text encoding: {encoding}; characters that it lacks are lost in names and output"
    return "note", text, "export LANG=C.UTF-8"


def _tools() -> Iterator[Finding]:
    launchers = [name for name in LAUNCHERS if shutil.which(name)]
    if launchers:
        yield "ok", f"launchers for tasks with several ranks: {', '.join(launchers)}", ""
    if not {"mpirun", "mpiexec"} & set(launchers):
        cure = "load or install MPI; on Debian: apt-get install openmpi-bin"
        yield "note", "no mpirun: tasks with several ranks cannot run on this machine", cure
    systems = [name for name, program in BATCH.items() if shutil.which(program)]
    yield "ok", f"batch systems: {', '.join(systems) or 'none'}", ""


def _partitions() -> Iterator[Finding]:
    """Report Slurm's partitions, in which pilots are queued, and the states of their nodes."""
    if shutil.which("sinfo") is None:
        return
    run = _run(["sinfo", "--noheader", "--format=%R %a %D %T"], SLURM_TIMEOUT)
    if run is None:
        yield (
            "note",
            f"Slurm did not answer within {SLURM_TIMEOUT:g} s: no pilot can be submitted",
            "",
        )
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
                # RADICAL-Pilot allows lines with comments.
                lines = file.read_text().splitlines()
                json.loads("\n".join(x for x in lines if not x.lstrip().startswith("#")))
            except ValueError as error:
                return "broken", f"{file} is not valid JSON: {error}", "correct it, or move it away"
    if answer.resources:
        return "ok", f"resources: {answer.resources}", ""
    cure = f"check `resource_*.json` in ~/.radical/pilot/configs, or {REINSTALL}"
    return "broken", f"RADICAL-Pilot cannot list its resources: {answer.error}", cure
