"""A pipeline of commands and functions, which read files and variables in many ways."""

import sys  # seen by: stats
from pathlib import Path  # seen by: count clean sorted stats first parts
from typing import Any  # seen by: *

from loading import loaded  # seen by: loaded
from readers import (  # seen by: cut title constant scale offset listed shifted first parts
    constant,
    cut,
    first,
    listed,
    offset,
    parts,
    scale,
    shifted,
    title,
)
from results import show  # seen by: *

from rhapsody import InputFile, OutputFile  # seen by: count clean sorted stats first summary parts

HERE = Path(__file__).parent  # seen by: count clean sorted stats first parts
SAMPLES = HERE / "data" / "samples.csv"  # seen by: count clean sorted stats first
TOOLS = HERE / "tools"  # seen by: clean stats
LINES = 2  # seen by: head
FLAGS = ["-n", "-r"]  # seen by: sorted


def summary(table: str | Path, extra: list[int]) -> float:  # seen by: summary
    """Return a sum of what other tasks wrote and returned."""
    numbers = [float(line) for line in Path(table).read_text().split()]
    return sum(numbers, start=0.5) + max(extra)


async def main(flow: Any) -> None:
    """Call all tasks."""
    calls: dict[str, Any] = {}

    @flow.executable_task
    def count(table: InputFile) -> str:  # seen by: count
        return f"wc -l < {table}"

    @flow.executable_task
    def clean(out: OutputFile, table: InputFile) -> str:  # seen by: clean
        return f"bash {TOOLS}/clean.sh {table} | tee {out}"

    @flow.executable_task
    def sort(out: OutputFile, numbers: InputFile) -> str:  # seen by: sorted
        return f"sort {' '.join(FLAGS)} {numbers} | tee {out}"

    @flow.executable_task
    def stats(table: InputFile) -> list[Any]:  # seen by: stats
        return [sys.executable, f"{TOOLS}/stats.py", table]

    @flow.executable_task
    def mode(word: str) -> str:  # seen by: mode
        return f"echo {word} $PIPELINE_MODE"

    @flow.executable_task(environment={"PIPELINE_LIMIT": "3"})
    def limit() -> str:  # seen by: limit
        return "echo limit $PIPELINE_LIMIT"

    @flow.executable_task
    def head(lines: int = LINES) -> str:  # seen by: head
        return f"printf 'a\\nb\\nc\\nd\\n' | head -n {lines + 1}"

    calls["count"] = count(InputFile(SAMPLES))  # seen by: count
    calls["clean"] = clean(OutputFile("clean.txt"), InputFile(SAMPLES))  # seen by: clean
    calls["sorted"] = sort(  # seen by: sorted
        OutputFile("sorted.txt"), calls["clean"].file("clean.txt")
    )
    calls["stats"] = stats(InputFile(SAMPLES))  # seen by: stats
    calls["mode"] = mode("mode")  # seen by: mode
    calls["limit"] = limit()  # seen by: limit
    calls["head"] = head()  # seen by: head
    calls["head/more"] = head(3)  # seen by: head
    calls["cut"] = flow.function_task(cut)([10, 21, 30])  # seen by: cut
    calls["title"] = flow.function_task(title)(1.25)  # seen by: title
    calls["constant/half"] = flow.function_task(constant)("half")  # seen by: constant
    calls["constant/third"] = flow.function_task(constant)("third")  # seen by: constant
    calls["scale"] = flow.function_task(scale)(5)  # seen by: scale
    calls["offset"] = flow.function_task(offset)(5)  # seen by: offset
    calls["listed"] = flow.function_task(listed)()  # seen by: listed
    calls["shifted"] = flow.function_task(shifted)(4)  # seen by: shifted
    calls["loaded"] = flow.function_task(loaded)("steps")  # seen by: loaded
    calls["parts"] = flow.function_task(parts)(InputFile(HERE / "parts"))  # seen by: parts
    calls["first"] = flow.function_task(first)(InputFile(SAMPLES))  # seen by: first
    calls["first/path"] = flow.function_task(first)(str(SAMPLES), 2)  # seen by: first
    calls["summary"] = flow.function_task(summary)(  # seen by: summary
        calls["sorted"].file("sorted.txt"), calls["cut"]
    )
    await show(calls)
