"""Generated parts of the reference.

A line such as `<!-- generate: exit_codes -->` in a page is replaced with the Markdown that the
function of this name in `GENERATORS` returns; words after the name are its arguments. Everything
comes from its one description in the code: docstrings, the parsers of the command line, the
options of the engine, and the declarations of the backends.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import ExtensionMetadata

from rhapsody import WorkflowEngine
from rhapsody.backends import BackendRegistry, Capabilities
from rhapsody.cli import Commands
from rhapsody.engine.configuration.options import all_options
from rhapsody.plugins import specs
from rhapsody.plugins.specs import PROJECT
from rhapsody_testing import capability_table

DISTRIBUTIONS = (
    "rhapsody-asyncflow",
    "rhapsody-core",
    "rhapsody-dask",
    "rhapsody-dragon",
    "rhapsody-otel",
    "rhapsody-psij",
    "rhapsody-radical",
    "rhapsody-report",
    "rhapsody-simulated",
    "rhapsody-testing",
    "rhapsody-wfcommons",
)
NAMED = re.compile(
    r"<(?:class|function|built-in \w+) '?[\w.]*?(?:(\w+)|<lambda>)'?(?: (?:of|at) [^>]+)?>"
)
"""Matches a class or function that is a default."""

FILE = re.compile(r"^<!-- file: (\S+) -->\n```(\w+)\n", re.MULTILINE)
"""Matches the beginning of a block with the content of a file."""

GENERATE = re.compile(r"^<!-- generate: (\w+)(.*?) -->$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<![`:\\])`([^`]+)`(?!`)")
"""Code in a docstring, which uses single backquotes as Markdown does."""


def summary(thing: object) -> str:
    """Return the first sentence of an object's docstring as Markdown."""
    first = (inspect.getdoc(thing) or "").partition("\n\n")[0]
    return " ".join(first.split()).rstrip(".")


def names(module: str, *wanted: str) -> str:
    """Return a table of public names, and the documentation of each."""
    found = {name: getattr(importlib.import_module(module), name) for name in wanted}
    rows = [
        f"| {{py:obj}}`~{module}.{name}` | {_about(module, name, found[name])} |" for name in wanted
    ]
    table = ["| name | purpose |", "|---|---|", *rows]
    entries = [_entry(module, name, thing) for name, thing in found.items()]
    return "\n".join([*table, "", "```{eval-rst}", *entries, "```"])


def _about(module: str, name: str, thing: object) -> str:
    if inspect.ismodule(thing):
        return summary(thing)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return summary(thing)
    return " ".join(constant(module, name).partition("\n\n")[0].split()).rstrip(".")


def _entry(module: str, name: str, thing: object) -> str:
    path = f"{module}.{name}"
    if inspect.ismodule(thing):
        return f".. automodule:: {path}\n"
    if inspect.isclass(thing):
        bases = "   :show-inheritance:\n" if issubclass(thing, BaseException) else ""
        return f".. autoclass:: {path}\n   :members:\n{bases}"
    if inspect.isroutine(thing):
        return f".. autofunction:: {path}\n"
    text = CODE.sub(_code, constant(module, name))
    return f".. py:data:: {path}\n\n{textwrap.indent(text, '   ')}\n"


def constant(module: str, name: str) -> str:
    """Return the docstring of a constant from the module that defines it."""
    source = inspect.getsource(importlib.import_module(module))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and name in {each.name for each in node.names}:
            return constant(str(node.module), name)
    found = ModuleAnalyzer.for_module(module).find_attr_docs()
    return "\n".join(found["", name])


def command_line() -> str:
    """Return a section for each command, with its arguments and options."""
    commands = Commands()
    commands.add_from_plugins()
    overview, parsers = commands.overview()
    (group,) = (each for each in overview._actions if each.nargs == argparse.PARSER)
    help_texts = {each.dest: each.help for each in group._get_subactions()}
    sections = []
    for name, parser in parsers.items():
        commands.configure(name, parser)
        sections += _command(name, help_texts[name] or "", parser)
    return "\n".join(sections)


def _command(name: str, about: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## rhapsody {name}\n\n{about[:1].upper()}{about[1:]}.\n"
    yield f"```text\n{_usage(parser)}\n```\n"
    actions = [each for each in parser._actions if each.dest != "help"]
    if actions:
        yield "| argument | effect |\n|---|---|"
    formatter = parser._get_formatter()
    for action in actions:
        yield f"| {_argument(action)} | {_cell(formatter._expand_help(action))} |"
    yield ""


def _usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=88)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, "")
    return formatter.format_help().strip()


def _argument(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else "")
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        return f"`{value or action.dest}`"
    value = "" if action.nargs == 0 else value or action.dest.upper()
    return ", ".join(f"`{f'{each} {value}'.rstrip()}`" for each in action.option_strings)


def engine_options() -> str:
    """Return a section for each option of the engine."""
    parameters = inspect.signature(WorkflowEngine.create).parameters
    return "\n".join(
        f"## {name}\n\n`{parameters[name].annotation}`, default `{parameters[name].default!r}`\n\n"
        f"{option.help}\n"
        for name, option in all_options().items()
    )


def backend_options() -> str:
    """Return a section for each installed backend with its summary and its options."""
    sections = []
    for backend in BackendRegistry.describe().values():
        about = f"{backend.summary[:1].upper()}{backend.summary[1:]}"
        sections.append(f"## {backend.name}\n\n{about}. Part of {backend.distribution}.\n")
        rows = [
            f"| `{each.name}` | `{_cell(each.type_name)}` | "
            f"{'' if each.default is None else f'`{each.default!r}`'} | {_cell(each.help)} |"
            for each in backend.options
            if each.help and not each.instead
        ]
        others = [f"`{each.name}`" for each in backend.options if not (each.help or each.instead)]
        if rows:
            sections += ["| option | type | default | meaning |", "|---|---|---|---|", *rows, ""]
        else:
            sections.append("This backend has no options.\n")
        if others:
            listed = ", ".join(others)
            sections.append(f"Further options are those of the underlying library: {listed}.\n")
    return "\n".join(sections)


def capability_matrix() -> str:
    """Return a table with the capabilities of each installed backend, and lists of long values."""
    declared = {
        backend.name: [line.split(" | ") for line in _capabilities(backend.capabilities)]
        for backend in BackendRegistry.describe().values()
        if backend.capabilities is not None
    }
    head = f"| capability | meaning | {' | '.join(f'`{name}`' for name in declared)} |"
    table, lists = [head, f"|---|---|{'---|' * len(declared)}"], []
    for columns in zip(*declared.values(), strict=True):
        capability, meaning, _ = columns[0]
        values = [each[2] for each in columns]
        if any(", " in each for each in values):
            pairs = zip(declared, values, strict=True)
            lists.append(f"\n## {capability[2:]}\n\n{meaning[:1].upper()}{meaning[1:]}:\n")
            lists += [f"- `{name}`: {value}" for name, value in pairs]
        else:
            table.append(f"{capability} | {meaning} | {' | '.join(values)} |")
    return "\n".join([*table, *lists])


def _capabilities(capabilities: Capabilities) -> list[str]:
    return [line.removesuffix(" |") for line in capability_table(capabilities).splitlines()[2:]]


EXTRAS = {
    "all": "all distributions above except `rhapsody-asyncflow`",
    "completion": "[completion of commands](../reference/command-line.md#shell-completion)",
    "dashboard": "[Dask's own dashboard](dask.md#dasks-dashboard-and-reports)",
    "files": "[inputs from URLs](files.md)",
    "gpu": "the load of GPUs in the [metrics](opentelemetry.md#metrics)",
    "jobqueue": "clusters that [Dask starts in batch jobs](dask.md#batch-jobs-on-slurm)",
    "mpi": "[functions on several ranks](mpi.md#functions-on-several-ranks)",
    "otlp": "sending [to OpenTelemetry](opentelemetry.md) by OTLP over HTTP",
    "testing": "the tests of this backend",
    "threads": "a [number of threads](workers.md#threads-of-numeric-libraries) for each function",
}
"""What the extras are for, as Markdown of the page about the installation."""


def extras() -> str:
    """Return a table of the extras of the distributions, with the packages that they install."""
    rows = ["| extra | for | installs |", "|---|---|---|"]
    for name in DISTRIBUTIONS:
        metadata = importlib.metadata.metadata(name)
        requirements = [Requirement(each) for each in metadata.get_all("Requires-Dist", [])]
        for extra in metadata.get_all("Provides-Extra", []):
            wanted = [each for each in requirements if f'"{extra}"' in str(each.marker)]
            packages = [f"`{each.name}{_extras(each)}`" for each in wanted]
            rows.append(f"| `{name}[{extra}]` | {EXTRAS[extra]} | {', '.join(packages)} |")
    return "\n".join(rows)


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def hooks() -> str:
    """Return a table of the hooks, and the documentation of each."""
    found = [name for name, value in vars(specs).items() if hasattr(value, f"{PROJECT}_spec")]
    return names(specs.__name__, *found)


def _cell(text: str) -> str:
    """Return text for a cell of a table, which is one line without unescaped bars."""
    return " ".join(text.split()).replace("|", r"\|")


def notebook(path: str) -> str:
    """Return the cells of a notebook of the repository, without its title."""
    found = json.loads((Path(__file__).parents[2] / path).read_text())
    cells = []
    for cell in found["cells"]:
        text = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        cells.append(f"```python\n{text}\n```" if code else re.sub(r"^# .*\n+", "", text))
    return "\n\n".join(cells)


GENERATORS: dict[str, Callable[..., str]] = {
    each.__name__: each
    for each in (
        names,
        command_line,
        engine_options,
        backend_options,
        capability_matrix,
        extras,
        hooks,
        notebook,
    )
}


def generate(_app: Sphinx, _page: str, content: list[str]) -> None:
    """Replace the marked lines of a page, and show the names of files above their content."""
    text = GENERATE.sub(lambda mark: GENERATORS[mark[1]](*mark[2].split()), content[0])
    content[0] = FILE.sub(r"```{code-block} \2\n:caption: \1\n\n", text)


def root(word: str) -> str:
    """Return the beginning of a word without a frequent ending, as `_static/search.js` does."""
    return re.sub(r"(s|es|ed|ing)$", "", word)[:7]


def write_keywords(app: Sphinx, error: Exception | None) -> None:
    """Write the keywords of all pages for the search."""
    if error is not None or app.builder.format != "html":
        return
    found = {}
    for page in sorted(app.env.found_docs):
        text = app.env.doc2path(page).read_text()
        front = re.match(r"---\n.*?keywords: (?:>-)?(.*?)\n---\n", text, re.DOTALL)
        if front is not None:
            found[page] = sorted({root(each) for each in re.findall(r"[\w./-]+", front[1].lower())})
    script = f"const KEYWORDS = {json.dumps(found)};\n"
    Path(app.outdir, "_static", "keywords.js").write_text(script)


def load_keywords(app: Sphinx, page: str, *_: object) -> None:
    """Load the keywords on the page of the search."""
    if page == "search":
        app.add_js_file("keywords.js")


def mark_code(
    _app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """Convert the code in a docstring from Markdown: names become links, other code is literal."""
    text = CODE.sub(_code, "\n".join(lines))
    lines[:] = text.split("\n")


def _code(found: re.Match[str]) -> str:
    is_name = re.fullmatch(r"[A-Za-z_][\w.]*", found[1])
    return f":py:obj:`{found[1]}`" if is_name else f"``{found[1]}``"


def is_skipped(
    _app: Sphinx, _what: str, _name: str, thing: object, skip: bool, _options: object
) -> bool | None:
    """Leave out what readers do not use.

    These are the fields of named tuples, which the docstrings of their classes describe, and
    methods that only the engine calls.
    """
    text = str(getattr(thing, "__doc__", ""))
    is_field = text.startswith("Alias for field")
    return True if is_field or text.rstrip().endswith("Called by the engine.") else None


def without_private(
    _app: Sphinx,
    _what: str,
    _name: str,
    _thing: object,
    _options: object,
    signature: str | None,
    result: str | None,
) -> tuple[str, str | None] | None:
    """Remove the signature of a class that programs do not call, and shorten defaults in others."""
    hidden = signature and ("**__" in signature or "<factory>" in signature)
    if hidden or signature is None or not NAMED.search(signature):
        return ("", result) if hidden else None
    # Sphinx does not wrap signatures that are no Python code.
    return NAMED.sub(lambda found: found[1] or "...", signature), result


def leave_out_decisions(_app: Sphinx, env: BuildEnvironment) -> None:
    """Leave the decisions out of the search: they contain rejected ideas."""
    for page in env.found_docs:
        if page.startswith("decisions/"):
            env.metadata[page]["nosearch"] = True


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the handlers of Sphinx's events."""
    app.connect("source-read", generate)
    app.connect("env-updated", leave_out_decisions)
    app.connect("html-page-context", load_keywords)
    app.connect("build-finished", write_keywords)
    app.connect("autodoc-process-docstring", mark_code)
    app.connect("autodoc-process-signature", without_private)
    app.connect("autodoc-skip-member", is_skipped)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
