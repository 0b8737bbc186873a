"""A program with detached jobs, which tests kill and run again.

Run as `python -m tests.psij.detaching DIRECTORY`. Each task appends a line to the file `log` when
it starts and when it ends, and ends when the file `gate` exists. The program prints the results.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rhapsody import OutputFile, WorkflowEngine
from rhapsody_psij import PsijExecutionBackend


class Eager(PsijExecutionBackend):
    """A backend whose PSI/J queries the queue each second, which only tests may do."""

    ask_every = 1.0


SCRIPT = """
echo start {name} >>{log}; while [ ! -e {gate} ]; do sleep 0.1; done; echo end {name} >>{log}
"""


async def main(directory: Path, shared: int) -> None:
    log, gate = (str(directory / name) for name in ("log", "gate"))
    backend = Eager("slurm", detach=True, tasks_per_job=shared)
    async with WorkflowEngine.create(backend, journal=directory / "journal.sqlite") as flow:

        @flow.function_task
        def function(number: int) -> int:
            import os
            import time

            def note(what: str) -> None:
                with open(log, "a") as file:
                    file.write(f"{what} function{number}\n")

            note("start")
            while not os.path.exists(gate):
                time.sleep(0.1)
            note("end")
            return number * number

        @flow.executable_task
        def program(number: int, made: OutputFile) -> str:
            script = SCRIPT.format(name=f"program{number}", log=log, gate=gate).strip()
            return f"{script}; echo {number} >{made}; echo printed {number}"

        @flow.function_task
        def read(printed: str, made: str) -> str:
            return printed.strip() + ", written " + Path(made).read_text().strip()

        @flow.executable_task(resources={"ranks": 2})
        def ranks() -> str:
            script = SCRIPT.format(name="ranks$SLURM_PROCID", log=log, gate=gate).strip()
            return f"{script}; echo ranked"

        programs = [program(number, OutputFile(f"made{number}")) for number in range(3)]
        results = await asyncio.gather(
            *(function(number) for number in range(3)),
            *(read(each, each.file(f"made{number}")) for number, each in enumerate(programs)),
            ranks(),
        )
    print(results)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
