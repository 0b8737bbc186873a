"""How simple the code is, in numbers, side by side for several commits.

- Calls of our functions, and files that they are in, for one task from `task(x)` until its node
  is closed, on three routes: threads of this machine, a worker process of Dask, RAPTOR on a
  pilot on this machine. Tasks run one after the other; see `benchmarks/counting/routes.py`.
- How much of the engine hangs on the object that all its parts hold.
- Knots: modules that import each other. Imports in functions and for type checkers count.
- Imports that run upwards: between core's parts by `tests/core/test_imports_direction.py`, and
  inside the engine by the table in the checkout's own `docs/architecture.md`.
- What our backends, the examples, the scaffold and the kit use of core beyond what the
  checkout's `docs/plugins/versions.md` names.

    python benchmarks/structure.py [--commit 8f69be6 --commit HEAD] [--routes threads dask]

Without `--commit` it is what is here. A route whose packages are not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
BESIDE = ROOT / "benchmarks"
if __name__ == "__main__":  # beside this file one would stand for Dask itself, whose name it has
    sys.path[:] = [str(ROOT), *(each for each in sys.path if Path(each).absolute() != BESIDE)]

from benchmarks.counting import imports  # noqa: E402
from benchmarks.counting.checkouts import checkout, measured  # noqa: E402

NEEDS = {"threads": "rhapsody", "dask": "rhapsody_dask", "raptor": "rhapsody_radical"}
"""The routes, and what must be installed for each."""

Table = dict[str, str]
"""What was counted, by what it is."""


def routes(place: Path, names: list[str], tasks: int, details: list[str]) -> Table:
    """Calls and files for one task."""
    table: Table = {}
    for name in names:
        found = measured(
            place, "benchmarks.counting.routes", name, "--tasks", str(tasks), counted=True
        )
        files = {file for each in found.values() for file in each["files"]}
        calls = sum(each["calls"] for each in found.values())
        table[f"{name}, all processes"] = f"{calls:.1f} calls, {len(files)} files"
        for process, each in found.items():
            title = f"{name}, {process} process"
            table[title] = f"{each['calls']:.1f} calls, {len(each['files'])} files"
            details += [f"{title}: {n:g} {what}" for what, n in each["functions"].items()]
    return table


def sizes(knots: list[list[str]]) -> str:
    """The numbers of modules in some knots."""
    return " ".join(str(len(each)) for each in knots) or "none"


def static(place: Path, details: list[str]) -> Table:
    """What the sources say."""
    modules = imports.packages(place)
    edges, table = imports.graph(modules), {}
    hub = imports.hub(modules)
    table["hub of the engine"] = (
        f"{hub.uses} uses, {hub.attributes} attributes, {hub.modules} modules"
    )
    knots = imports.knots(edges)
    table["knots, all packages"] = sizes(knots)
    details += [f"knot of {len(each)}: {' '.join(each)}" for each in knots]
    for package in ("rhapsody", "rhapsody.engine", "rhapsody_dask", "rhapsody_radical"):
        table[f"knots, {package} alone"] = sizes(imports.knots(imports.among(edges, package)))
    wrong = imports.upward(modules, imports.order_of_parts(ROOT))
    table["imports upwards in core"] = str(len(wrong))
    inside, count = imports.upward_inside(modules, imports.order_inside_engine(place))
    table["imports upwards in the engine"] = f"{len(inside)} of {count}"
    details += [f"upwards: {each}" for each in (*wrong, *inside)]
    users = {folder: imports.sources(place / folder) for folder in imports.BACKENDS}
    users |= {"examples": imports.sources(place / "examples")}
    users |= {"scaffold": imports.template(place), "kit": imports.sources(place / imports.KIT)}
    for user, files in users.items():
        private = imports.private_imports(place, files)
        attributes = imports.private_attributes(place, files)
        name = user.split("/")[1] if "/" in user else user
        table[f"private use of core, {name}"] = (
            f"{len(private)} imports, {len(attributes)} attributes"
        )
        details += [f"private: {each}" for each in (*private, *attributes)]
    return table


def show(columns: dict[str, Table]) -> None:
    """Prints the tables side by side."""
    rows = list(dict.fromkeys(row for table in columns.values() for row in table))
    first = max(map(len, rows))
    width = max(len(cell) for table in columns.values() for cell in [*columns, *table.values()])
    print(f"{'':{first}}", *(f"{title:{width}}" for title in columns), sep="  ")
    for row in rows:
        cells = (f"{table.get(row, '-'):{width}}" for table in columns.values())
        print(f"{row:{first}}", *cells, sep="  ")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--commit", action="append", help="a revision, several times for several")
    parser.add_argument(
        "--routes", nargs="*", choices=list(NEEDS), help="default: those that are installed"
    )
    parser.add_argument("--tasks", type=int, default=100, help="tasks that count, on each route")
    parser.add_argument("--list", action="store_true", help="also what was counted, one by one")
    parser.add_argument("--json", metavar="FILE", help="also write the table there")
    parser.add_argument("--smoke", action="store_true", help="threads, what is here, few tasks")
    options = parser.parse_args()
    there = [name for name, package in NEEDS.items() if importlib.util.find_spec(package)]
    names = there if options.routes is None else options.routes
    if options.smoke:
        names, options.tasks = ["threads"], 5
    columns: dict[str, Table] = {}
    listed: dict[str, list[str]] = {}
    for revision in options.commit or [None]:
        title = revision or "here"
        details: list[str] = []
        with checkout(revision) as place:
            columns[title] = routes(place, names, options.tasks, details) | static(place, details)
        listed[title] = [each.replace(f"{place}/", "") for each in details]
    show(columns)
    if options.list:
        for title, lines in listed.items():
            print(f"\n{title}", *lines, sep="\n  ")
    if options.json:
        Path(options.json).write_text(json.dumps({"table": columns, "list": listed}, indent=1))


if __name__ == "__main__":
    main()
