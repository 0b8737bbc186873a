"""Compare the size and structure of the code at several commits.

Counts the modules and the code lines (without comments, docstrings and blank lines) of each
distribution, for core also of each package. For core, also prints the lengths of functions, the
import cycles (including imports inside functions and for type checkers), and the calls, modules and
changes of module for one warm task on local threads.

    python benchmarks/structure.py [--commit 8f69be6 --commit HEAD] [--list]

Without `--commit` the working tree is measured.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import io
import itertools
import json
import statistics
import sys
import threading
import tokenize
from collections.abc import Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
BESIDE = ROOT / "benchmarks"
if __name__ == "__main__":  # `benchmarks/dask.py` must not hide Dask
    sys.path[:] = [str(ROOT), *(each for each in sys.path if Path(each).absolute() != BESIDE)]

from benchmarks.checkouts import checkout, measured  # noqa: E402

Table = dict[str, str]
"""Values by the name of the measurement."""

Graph = Mapping[str, frozenset[str]]
"""The modules that each module imports."""

_NOT_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, *_FUNCTIONS)


# Lines.


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines with code, without comments, docstrings and blank lines."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return lines


def function_lengths(text: str) -> list[int]:
    """Return the number of code lines of each function, including its signature."""
    code = code_lines(text)
    return [
        sum(node.lineno <= line <= (node.end_lineno or 0) for line in code)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, _FUNCTIONS)
    ]


def sizes(place: Path) -> Table:
    """Return lines and modules of each distribution and of core's packages."""
    table: Table = {}
    for source in sorted(place.glob("packages/*/src")):
        name = source.parent.name
        counts = {path: len(code_lines(path.read_text())) for path in source.rglob("*.py")}
        table[name] = f"{sum(counts.values()):,} lines, {len(counts)} modules"
        if name != "rhapsody-core":
            continue
        parts: dict[str, list[int]] = {}
        for path, count in counts.items():
            folders = path.relative_to(source).parts[1:-1]
            parts.setdefault(folders[0] if folders else "(top)", []).append(count)
        for part, each in sorted(parts.items()):
            table[f"  {part}"] = f"{sum(each):,} lines, {len(each)} modules"
        lengths = [n for path in counts for n in function_lengths(path.read_text())]
        median, tenth = statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1]
        table["functions of core"] = f"median {median:g} lines, 90th percentile {tenth:g}"
    return table


# Imports.


def modules_below(root: Path) -> dict[str, Path]:
    """Return the files of the modules below a directory of `sys.path`, by module name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yield each imported module, with the imported name or an empty string."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((module, alias.name) for alias in node.names)


def import_graph(modules: Mapping[str, Path]) -> Graph:
    """Return the import graph; a name exported by a package leads to the module that defines it."""
    exports = {
        name: {taken: module for module, taken in imported(name, path) if taken}
        for name, path in modules.items()
        if path.name == "__init__.py"
    }

    def home(module: str, taken: str) -> str:
        inner = f"{module}.{taken}"
        return inner if inner in modules else exports.get(module, {}).get(taken, module)

    return {
        name: frozenset(home(*each) for each in imported(name, path)) & modules.keys() - {name}
        for name, path in modules.items()
    }


def cycles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other, the largest first (Tarjan)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            at = stack.index(name)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in order:
            visit(name)
    return sorted((each for each in found if len(each) > 1), key=lambda each: (-len(each), each))


def all_modules(place: Path) -> dict[str, Path]:
    """Return the modules of all distributions of a checkout."""
    folders = sorted(place.glob("packages/*/src"))
    return {name: path for each in folders for name, path in modules_below(each).items()}


# Calls.


def same(x: int) -> int:
    """Return the argument. This is the task whose calls are counted."""
    return x


async def called(tasks: int) -> list[CodeType]:
    """Return the code object of each call, on all threads, while warm tasks run one by one."""
    from rhapsody import LocalExecutionBackend, WorkflowEngine

    calls: list[CodeType] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "/rhapsody/" in frame.f_code.co_filename:
            calls.append(frame.f_code)

    threading.setprofile(note)
    async with WorkflowEngine.create(LocalExecutionBackend(), handle_signals=False) as flow:
        task = flow.function_task(same)
        for number in range(20):
            await task(number)
        sys.setprofile(note)
        calls.clear()
        for number in range(tasks):
            await task(number)
        sys.setprofile(None)
        return [
            code
            for code in calls
            if (code.co_name[0] != "<" or code.co_name == "<lambda>") and code.co_name != "__del__"
        ]


def count_calls(tasks: int) -> None:
    """Print the calls, modules and changes of module per task as JSON."""
    codes = asyncio.run(called(tasks))
    names: dict[str, int] = {}
    for code in codes:
        key = f"{code.co_filename.rpartition('/src/')[2]}:{code.co_qualname}"
        names[key] = names.get(key, 0) + 1
    often = {name: count for name, count in names.items() if 2 * count >= tasks}
    changes = sum(a.co_filename != b.co_filename for a, b in itertools.pairwise(codes))
    print(
        json.dumps(
            {
                "calls": len(codes) / tasks,
                "modules": len({name.partition(":")[0] for name in often}),
                "changes": changes / tasks,
                "functions": dict(sorted(often.items(), key=lambda item: -item[1])),
            }
        )
    )


def measure(place: Path, tasks: int, details: list[str]) -> Table:
    """Measure one checkout."""
    table = sizes(place)
    found = cycles(import_graph(all_modules(place)))
    table["import cycles"] = " ".join(str(len(each)) for each in found) or "none"
    details += [f"cycle: {' '.join(each)}" for each in found]
    one = measured(place, "benchmarks.structure", "--count-calls", str(tasks))
    table["one task on threads"] = (
        f"{one['calls']:.0f} calls, {one['modules']} modules, {one['changes']:.0f} changes"
    )
    details += [f"{count / tasks:g} {name}" for name, count in one["functions"].items()]
    return table


def main() -> None:
    """Measure the commits and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--commit", action="append", help="a revision; repeat it to compare")
    parser.add_argument("--tasks", type=int, default=100, help="tasks whose calls are counted")
    parser.add_argument("--list", action="store_true", help="also print the cycles and calls")
    parser.add_argument("--smoke", action="store_true", help="count few tasks")
    parser.add_argument("--count-calls", type=int, metavar="TASKS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count_calls:
        count_calls(options.count_calls)
        return
    columns: dict[str, Table] = {}
    details: list[str] = []
    tasks = 5 if options.smoke else options.tasks
    for revision in options.commit or [None]:
        with checkout(revision) as place:
            columns[revision or "here"] = measure(place, tasks, details)
    rows = list(dict.fromkeys(row for table in columns.values() for row in table))
    first = max(map(len, rows))
    width = max(len(cell) for table in columns.values() for cell in [*columns, *table.values()])
    print(f"{'':{first}}", *(f"{title:{width}}" for title in columns), sep="  ")
    for row in rows:
        cells = (f"{table.get(row, '-'):{width}}" for table in columns.values())
        print(f"{row:{first}}", *cells, sep="  ")
    if options.list:
        print(*details, sep="\n  ")


if __name__ == "__main__":
    main()
