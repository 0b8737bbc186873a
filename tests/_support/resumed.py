"""A program that is run again and again in one directory, as `rhapsody run` takes it up."""

from __future__ import annotations

import io
import subprocess
from collections import Counter
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

from rhapsody.cli import main
from tests._support.forked import rhapsody
from tests._support.programs import PATIENCE

PROGRAM = """
import os, signal, sys
from helpers import scale

async def main(flow):
    @flow.function_task
    def work(number):
        with open("ran.txt", "a") as log:
            log.write(f"work {number}\\n")
        if number == 3 and os.path.exists("bad"):
            raise ValueError("a bad sample")
        return scale(number)

    @flow.executable_task
    def show(value):
        return ["sh", "-c", f"echo show {value} >> {os.getcwd()}/ran.txt; echo {value}"]

    values = [work(number) for number in range(5)]
    if os.path.exists("kill"):
        for value in values:
            await value
        number = int(open("kill").read())
        os.remove("kill")
        os.kill(os.getpid(), number)
        await work(77)
    print([(await show(await value)).strip() for value in values])
"""


class Place:
    """A directory with a program in it, which is run there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("wf.py", PROGRAM)
        self.write("helpers.py", "def scale(number):\n    return 10 * number\n")

    def write(self, name: str, text: str = "") -> None:
        (self.path / name).write_text(text)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.command("run", "wf.py", *arguments)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return rhapsody(*arguments, cwd=self.path, timeout=PATIENCE)

    def journal(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Calls `rhapsody journal` in this process, as it runs none of the program."""
        out, err = io.StringIO(), io.StringIO()
        with chdir(self.path), redirect_stdout(out), redirect_stderr(err):
            code = main(["journal", *arguments])
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def ran(self) -> Counter[str]:
        """Return what has run since the last call, and how often."""
        log = self.path / "ran.txt"
        found = Counter(log.read_text().splitlines() if log.exists() else ())
        log.unlink(missing_ok=True)
        return found


WORK = {f"work {number}": 1 for number in range(5)}
SHOW = {f"show {10 * number}": 1 for number in range(5)}
RESULT = "['0', '10', '20', '30', '40']\n"


def journal(place: Place) -> Path:
    """Return the only journal in the directory."""
    (found,) = (place.path / ".rhapsody" / "journals").glob("*.sqlite")
    return found
