"""A mixed workflow that is killed at random moments, and taken up each time by the same command.

    python -m tests.system.chaos.killed [--tasks 2000] [--kills 50] [--seed 1] [-b BACKEND]

Every task notes on disk that it has run, and the program what it has seen the result of. At the
end the result has to be right, and no task may have run after it was seen.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROGRAM = '''
import asyncio, hashlib, os, sys
from rhapsody import InputFile, OutputFile

SIZE = int(sys.argv[1])
LOG = os.path.abspath("log.txt")


def note(text):
    """Append a line with one write, which others cannot interrupt."""
    file = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (text + "\\n").encode())
    os.close(file)


async def main(flow):
    @flow.function_task
    def add(number, *others):
        note(f"ran {number}")
        return number + sum(others) % 1000

    @flow.executable_task
    def count(number, *others):
        total = "+".join(map(str, others))
        return f"echo ran {number} >> {LOG}; echo $(({number} + ({total}) % 1000))"

    @flow.executable_task
    def make(number, file):
        return f"echo ran {number} >> {LOG}; echo {number} > {file}"

    @flow.function_task
    def read(number, made, file: InputFile):
        note(f"ran {number}")
        with open(file) as text:
            return number + int(text.read())

    @flow.block
    async def several(number, first):
        one = await add(number, first)
        return one + int(await count(number + 1, one))

    async def see(number, future):
        value = await future
        note(f"seen {number}")
        print(number, flush=True)
        return int(value or 0)

    seen, before = [], None
    for number in range(0, SIZE, 8):
        first = add(number, *([before] if before is not None and number % 64 else []))
        second = count(number + 1, 1, 2)
        made = make(number + 2, OutputFile(f"made{number}.txt"))
        third = read(number + 3, made, InputFile(f"made{number}.txt"))
        fourth = add(number + 4, first, third)
        fifth = add(number + 5, 7)
        before = fourth
        for offset, future in enumerate((first, second, made, third, fourth, fifth)):
            seen.append(asyncio.ensure_future(see(number + offset, future)))
        seen.append(asyncio.ensure_future(see(f"block {number}", several(number + 6, fourth))))
    values = await asyncio.gather(*seen)
    print("result", hashlib.sha256(repr(values).encode()).hexdigest(), flush=True)
'''


def run(place: Path, size: int, kill_after: int | None, backend: str) -> str | None:
    """Runs the program in a directory; kills it when it has seen so many results.

    Returns:
        Its result, `None` where it was killed.
    """
    command = [sys.executable, "-m", "rhapsody", "run", "-q", "-b", backend, "workflow.py"]
    with subprocess.Popen(
        [*command, "--", str(size)], cwd=place, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            if line.startswith("result "):
                return line.split()[1]
            if count == kill_after:
                process.kill()
    if kill_after is None:
        raise AssertionError(f"it ended with {process.returncode}")
    return None


def run_again(place: Path) -> list[str]:
    """The tasks that ran after the program had seen their result."""
    seen: set[str] = set()
    wrong = []
    for line in (place / "log.txt").read_text().splitlines():
        what, _, number = line.partition(" ")
        if what == "seen":
            seen.add(number)
        elif number in seen:
            wrong.append(number)
    return wrong


def trial(place: Path, size: int, kills: int, seed: int, backend: str = "local") -> str:
    """Runs the program to its end with as many kills before, and says what was counted.

    Raises:
        AssertionError: The result is wrong, or a task ran after it was seen.
    """
    chance = random.Random(seed)
    killed, plain = place / "killed", place / "plain"
    for directory in (killed, plain):
        directory.mkdir()
        (directory / "workflow.py").write_text(PROGRAM)
    wanted = run(plain, size, None, backend)
    done = 0
    for _ in range(kills):
        # Of eight numbers seven are seen; those that were seen before are seen again at once.
        last = size // 8 * 7 - 1
        if run(killed, size, chance.randrange(last), backend) is not None:
            (killed / "log.txt").unlink()  # it was too quick, and has ended well
            continue
        done += 1
        wrong = run_again(killed)
        assert not wrong, f"seed {seed}: ran after they were seen: {wrong[:5]}"
    found = run(killed, size, None, backend)
    assert found == wanted, f"seed {seed}: the result differs"
    assert not run_again(killed)
    lines = Counter(line.split()[0] for line in (killed / "log.txt").read_text().splitlines())
    return f"{done} kills, {lines['ran']} attempts, the same result"


def main() -> None:
    """Runs a trial as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-b", "--backend", default="local")
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        said = trial(
            Path(place), arguments.tasks, arguments.kills, arguments.seed, arguments.backend
        )
    print(f"seed {arguments.seed}: {said}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
