"""A run with a secret in it, which is to be found in nothing that the run leaves or shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECRET = "xyzzy-s3cr3t-marker-0042"  # pragma: allowlist secret

PROGRAM = """
import logging, os, pathlib
from rhapsody import OutputFile

logging.basicConfig(level=logging.DEBUG)
SECRET = os.environ["BACKWARDS"][::-1]
GIVEN = {"environment": {"API_TOKEN": SECRET, "MODE": "fast"}}

def shown():
    "The processes whose command line shows the secret to everybody."
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:  # it has ended
            continue
        if os.environ["BACKWARDS"][::-1].encode() in text:
            found.append(path)
    return len(found)

async def main(flow):
    if "functions" in os.environ["KINDS"]:
        @flow.function_task(**GIVEN)
        def function():
            assert os.environ["API_TOKEN"] == os.environ["BACKWARDS"][::-1]
            return len(SECRET)

        @flow.function_task(**GIVEN)
        def bad_function():
            raise RuntimeError(f"refused: {len(SECRET)}")

        print("function", await function())
        tasks = [bad_function()]
    else:
        tasks = []

    @flow.executable_task(**GIVEN)
    def command(out):
        return f'test -n "$API_TOKEN" && echo fine > {out}'

    @flow.executable_task(**GIVEN)
    def bad_command(*words):
        return ["sh", "-c", 'test -z "$API_TOKEN"']

    @flow.executable_task(**GIVEN)
    def no_command():
        return ["there-is-none"]

    @flow.executable_task(service=True, ready="file:up", ready_timeout=30, **GIVEN)
    def service():
        return 'test -n "$API_TOKEN" && touch up && exec sleep 60'

    @flow.executable_task
    def inherits():
        return ["sh", "-c", 'test -z "$SITE_PASSWORD"']

    await service()
    await command(OutputFile("results/out.txt"))
    print("shown on", shown(), "command lines")
    for task in [*tasks, bad_command(SECRET), no_command(), inherits()]:
        try:
            await task
        except Exception as error:
            print("error", error, *error.__notes__)
"""


NAMED = """
import os
OTHER = os.environ["OTHERS"][::-1]

async def main(flow):
    flow.prof.event("login", token=OTHER, place=f"https://me:{OTHER}@host/")

    @flow.function_task
    def ask(options, token):
        login(password="xyzzy-s3cr3t-marker-0042")
        raise RuntimeError(f"401 for token={OTHER!r} at https://host/?api_key={OTHER}")

    @flow.executable_task
    def fetch():
        return f"echo password={OTHER} >&2; : --password {OTHER} http://me:{OTHER}@host/x; exit 3"

    def login(password):
        pass

    fetch()
    await ask({"api_key": OTHER, "n": [{"token": OTHER}]}, token=OTHER)
"""


def check_no_named_secrets(place: Path) -> None:
    """Runs a program with secrets that only their names show to be secret, and looks for them."""
    (place / "flow.py").write_text(NAMED.replace(SECRET, SECRET[::-1]))
    variables = {"OTHERS": SECRET}
    engine = ["-e", 'trace="trace.jsonl"', "-e", 'keep_sandboxes="all"']
    first = _shown(place, "first", variables, "run", "-v", *engine, "flow.py", "--", "--key", "x")
    call = "ask({'api_key': <api_key>, 'n': [{...}]}, token=<token>)"
    assert call in first, first
    assert "401 for token='<token>' at https://host/?api_key=<api_key>" in first, first
    assert "http://me:<password>@host/x" in first, first
    for command in ("report", "trace", "export"):
        _shown(place, command, variables, command)
    _shown(place, "show", variables, "show", "-", "task.000002")
    (sandbox,) = {path.parent for path in place.rglob(".rhapsody.again")}
    shown = [path for path in _with_secret(place, SECRET[::-1]) if Path(path).parent != sandbox]
    assert {Path(path).name for path in shown} == {"flow.py"}  # and its copy in the crate


def check_no_secrets(place: Path, *options: str, functions: bool = True) -> None:
    """Runs a program that gives tasks a secret, and looks for that in all that is left of it.

    Args:
        place: An empty directory.
        options: What `rhapsody run` gets.
        functions: Whether functions get variables there.
    """
    (place / "flow.py").write_text(PROGRAM)
    kinds = "functions" if functions else "commands"
    variables = {"SITE_PASSWORD": SECRET, "BACKWARDS": SECRET[::-1], "KINDS": kinds}
    engine = ["-e", 'trace="trace.jsonl"', "-e", 'keep_sandboxes="all"']
    run = ["run", *options, *engine, "-k", "-v", "flow.py"]
    first = _shown(place, "first", variables, *run)
    assert "shown on 0 command lines" in first, first
    assert "bad_command('<API_TOKEN>')" in first, first
    assert (place / "results" / "out.txt").read_text() == "fine\n"
    _shown(place, "resumed", variables, *run, "--resume")
    _shown(place, "dry run", variables, "run", "--dry-run", "flow.py")
    _shown(place, "journal", variables, "journal", "explain", "command")
    assert _with_secret(place) == []


def _shown(place: Path, name: str, variables: dict[str, str], *words: str) -> str:
    """Return the output of a command of `rhapsody`, which is kept in a file."""
    path = place / f"{name}.txt"
    with path.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "rhapsody", *words],
            cwd=place,
            env={**os.environ, **variables},
            stdout=file,
            stderr=file,
            timeout=100,
            check=False,
        )
    return path.read_text()


def _with_secret(place: Path, secret: str = SECRET) -> list[str]:
    """The files that hold the secret."""
    files = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".sqlite" for path in files)
    return [str(path) for path in files if secret.encode() in path.read_bytes()]
