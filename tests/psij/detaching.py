"""A program with detached jobs, which tests kill and run again.

Run as `python -m tests.psij.detaching DIRECTORY TASKS_PER_JOB [NAME...]`. Each task appends a line
to the file `log` when it starts and when it ends. It ends when the file `gate` or `gate-NAME`
exists. The program runs the tasks with the given names, or all, and prints their results.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhapsody import OutputFile, WorkflowEngine
from rhapsody_psij import PsijExecutionBackend

SCRIPT = """
echo start {name} >>{place}/log
while ! ls {place} | grep -qx -e gate -e gate-{kind}; do sleep 0.1; done
echo end {name} >>{place}/log
"""


async def main(place: Path, shared: int, names: Sequence[str]) -> None:
    max_jobs = int(os.environ.get("MAX_JOBS", "100"))
    backend = PsijExecutionBackend(
        "slurm", detach=True, tasks_per_job=shared, poll_interval=1, max_jobs=max_jobs
    )
    journal = place / os.environ.get("JOURNAL", "journal.sqlite")
    options: dict[str, Any] = {"journal": journal, "record": True}
    async with WorkflowEngine.create(backend, **options) as flow:

        @flow.function_task
        def function(number: int) -> int:
            import os
            import time

            def note(what: str) -> None:
                with open(place / "log", "a") as file:
                    file.write(f"{what} function{number}\n")

            note("start")
            while not {"gate", "gate-function"} & set(os.listdir(place)):
                time.sleep(0.1)
            note("end")
            return number * number

        @flow.executable_task
        def program(number: int, made: OutputFile) -> str:
            script = SCRIPT.format(name=f"program{number}", kind="program", place=place)
            return f"{script}echo {number} >{made}; echo printed {number}"

        @flow.function_task
        def read(printed: str, made: str) -> str:
            return printed.strip() + ", written " + Path(made).read_text().strip()

        @flow.executable_task(resources={"ranks": 2})
        def ranks() -> str:
            script = SCRIPT.format(name="rank$SLURM_PROCID", kind="ranks", place=place)
            return f"{script}echo ranked"

        calls: list[Any] = []
        if "function" in names:
            calls += [function(number) for number in range(2)]
        if "program" in names:
            programs = [program(number, OutputFile(f"made{number}")) for number in range(2)]
            calls += [read(each, each.file(f"made{n}")) for n, each in enumerate(programs)]
        if "ranks" in names:
            calls.append(ranks())
        results = await asyncio.gather(*calls)
    print(results)


if __name__ == "__main__":
    given = sys.argv[3:] or ("function", "program", "ranks")
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), given))
