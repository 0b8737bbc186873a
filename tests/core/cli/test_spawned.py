"""Processes of `multiprocessing` that a function of the script starts under `rhapsody run`."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests._support.programs import PATIENCE

SCRIPT = """
    import multiprocessing, sys

    class Point:
        def __init__(self, x):
            self.x = x

    def square(x):
        return Point(x * x)

    def pool(start, function, size):
        with multiprocessing.get_context(start).Pool(1) as pool:
            return pool.map_async(function, range(size)).get(timeout={patience})

    def study(size):
        squares = pool({start!r}, square, size)
        with multiprocessing.get_context({start!r}).Pool(1) as children:
            arguments = children.apply(argv)
        assert all(isinstance(point, Point) for point in squares)
        return sum(point.x for point in squares), arguments

    def argv():
        return sys.argv[1:]

    async def main(flow):
        print(await flow.function_task(study)(5))

    if __name__ == "__main__":
        print("run again")
"""
COMMANDS = {
    "module": [sys.executable, "-m", "rhapsody"],
    "command": [str(Path(sys.executable).with_name("rhapsody"))],
}


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
@pytest.mark.parametrize("command", COMMANDS)
def test_spawned_processes_import_the_script(tmp_path: Path, command: str, start: str) -> None:
    script = textwrap.dedent(SCRIPT).format(start=start, patience=PATIENCE)
    (tmp_path / "analysis").write_text(script)  # a script needs no suffix
    done = subprocess.run(
        [*COMMANDS[command], "run", "-q", "--no-journal", "analysis", "--", "first", "second"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=2 * PATIENCE,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "(30, ['first', 'second'])\n", done.stderr
