"""Mutations of programs: small changes of their sources and files, and the calls that see them.

The sources name the calls that see a statement in a comment at the end of its first line or of its
header, `# seen by: fit plot/2`: a name, or a name before a slash; `*` for all and `-` for none. The
comment applies to all that is in the statement, unless an inner statement has its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

MARK = re.compile(r"# seen by: (.*)$")
OPERATORS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "/", "%": "+", "**": "*", "|": "&", "&": "|",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not",
    "is not": "is", "in": "not in", "not in": "in", "and": "or", "or": "and",
}  # fmt: skip
NEUTRAL = ("comments", "docstrings", "annotations", "unused function", "unused import")
"""Kinds of changes of a source that no call sees."""


@dataclass(frozen=True)
class Mutation:
    """A change of one file or of one environment variable.

    Attributes:
        kind: What was done, for the report.
        place: The file with the line, or the name of the variable.
        text: The change itself.
        seen_by: The names of the calls that may see it.
        file: The path of the changed file, and its new content.
        variable: The name of the changed variable, and its new value or `None`.
    """

    kind: str
    place: str
    text: str
    seen_by: frozenset[str]
    file: tuple[str, str] | None = None
    variable: tuple[str, str | None] | None = None

    def can_be_seen_by(self, call: str) -> bool:
        """Return True if a call uses what is changed."""
        return not self.seen_by.isdisjoint({"*", call, call.split("/")[0]})

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.text}"


@dataclass(frozen=True)
class _Edit:
    kind: str
    node: ast.AST
    start: int
    end: int
    text: str


class MutatedSource:
    """A source in Python, which consists of ASCII characters only.

    Args:
        name: The path of the file in the program.
        text: The source.
        seen_by: The calls that see statements without a comment that names them.
    """

    def __init__(self, name: str, text: str, seen_by: frozenset[str] = frozenset("*")) -> None:
        assert text.isascii()
        self.name, self.text = name, text
        self.tree = ast.parse(text)
        lines = text.splitlines(keepends=True)
        self._marks = [MARK.search(line.rstrip()) for line in lines]
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))
        self._seen: dict[ast.AST, frozenset[str]] = {}
        self._statements: list[ast.stmt] = []
        self._quiet = set[ast.AST]()  # docstrings and annotations, with what is in them
        self._visit(self.tree, seen_by)
        read = {line for statement in self._statements for line in _header(statement)}
        lost = [line for line, mark in enumerate(self._marks, 1) if mark and line not in read]
        assert not lost, f"{name}: no statement begins in the lines {lost}"

    def _visit(self, node: ast.AST, seen: frozenset[str]) -> None:
        if isinstance(node, ast.stmt):
            self._statements.append(node)
            for line in _header(node):
                if mark := self._marks[line - 1]:
                    seen = frozenset(mark[1].split())
                    break
        self._seen[node] = seen
        quiet: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            quiet = [node.returns, *(argument.annotation for argument in _arguments(node))]
        elif isinstance(node, ast.AnnAssign):
            quiet = [node.annotation]
        if documented := _docstring(node):
            quiet.append(documented)
        for each in quiet:
            self._quiet.update(ast.walk(each) if each else ())
        for child in ast.iter_child_nodes(node):
            self._visit(child, seen)

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def _of(self, node: ast.expr | ast.stmt) -> str:
        return self.text[self._start(node) : self._end(node)]

    def mutations(self) -> Iterator[Mutation]:
        """Yield all mutations, except those that do not compile."""
        edits = [*self._deletions(), *self._replacements(self.tree)]
        for edit in sorted(edits, key=lambda edit: edit.start):
            text = self.text[: edit.start] + edit.text + self.text[edit.end :]
            old = " ".join(self.text[edit.start : edit.end].split())
            change = f"{old[:60]} -> {edit.text}"
            if mutation := self._mutation(
                edit.kind, edit.start, change, text, self._seen[edit.node]
            ):
                yield mutation

    def _mutation(
        self, kind: str, start: int, change: str, text: str, seen: frozenset[str]
    ) -> Mutation | None:
        try:
            compile(text, self.name, "exec")
        except SyntaxError:
            return None
        line = self.text.count("\n", 0, start) + 1
        return Mutation(kind, f"{self.name}:{line}", change, seen, (self.name, text))

    def _deletions(self) -> Iterator[_Edit]:
        for statement in self._statements:
            start = self._start(statement)
            for decorator in getattr(statement, "decorator_list", ()):
                start = min(start, self._start(decorator) - 1)
            quiet = isinstance(statement, ast.Expr) and statement.value in self._quiet
            returned = isinstance(statement, ast.Return) and statement.value is not None
            if not (quiet or returned or isinstance(statement, ast.Pass)):
                yield _Edit("deleted", statement, start, self._end(statement), "pass")

    def _replacements(self, node: ast.AST) -> Iterator[_Edit]:
        if node in self._quiet:
            return
        yield from self._replaced(node)
        if not isinstance(node, ast.JoinedStr):  # Python 3.11 does not know what is where in it
            for child in ast.iter_child_nodes(node):
                yield from self._replacements(child)

    def _replaced(self, node: ast.AST) -> Iterator[_Edit]:
        if isinstance(node, ast.Constant):
            start, end = self._start(node), self._end(node)
            if isinstance(node.value, bool):
                yield _Edit("literal", node, start, end, str(not node.value))
            elif isinstance(node.value, int | float):
                yield _Edit("literal", node, start, end, str(node.value + 1))
            elif isinstance(node.value, str):
                yield _Edit("literal", node, start, end, repr(f"{node.value}x"))
        elif isinstance(node, ast.JoinedStr):
            start = self._start(node) + 2
            yield _Edit("literal", node, start, start, "x")
        elif isinstance(node, ast.BinOp):
            yield from self._operator(node, [node.left, node.right])
        elif isinstance(node, ast.Compare):
            yield from self._operator(node, [node.left, *node.comparators])
        elif isinstance(node, ast.BoolOp):
            yield from self._operator(node, node.values)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield _Edit("operator", node, self._start(node), self._start(node.operand), "")
        elif isinstance(node, ast.AugAssign):
            place = self.text.index("=", self._end(node.target)) - 1
            new = OPERATORS[self.text[place]]
            yield _Edit("operator", node, place, place + 1, new)
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            first, second = node.args[:2]
            both = f"{self._of(second)}, {self._of(first)}"
            yield _Edit("arguments", node, self._start(first), self._end(second), both)
        elif isinstance(node, ast.Return) and node.value is not None:
            yield _Edit("returned", node, self._start(node), self._end(node), "return None")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for each in node.decorator_list:
                yield _Edit("decorator", node, self._start(each) - 1, self._end(each), "")
            if isinstance(node, ast.ClassDef) and node.bases:
                start, end = self._start(node.bases[0]), self._end(node.bases[0])
                yield _Edit("base", node, start, end, "object")

    def _operator(self, node: ast.expr, operands: Sequence[ast.expr]) -> Iterator[_Edit]:
        for left, right in pairwise(operands):
            start, end = self._end(left), self._start(right)
            found = re.search(r"[^\s()]+(?: (?:not|in)\b)?", self.text[start:end])
            assert found is not None
            if found[0] in OPERATORS:
                first, last = start + found.start(), start + found.end()
                yield _Edit("operator", node, first, last, OPERATORS[found[0]])

    def neutral(self) -> Iterator[Mutation]:
        """Yield changes that no call sees, one of each kind."""
        texts = {
            "comments": self._with([
                (self._starts[line - 1], f"\n{' ' * column}# another comment\n")
                for line, column in self._lines()
            ]),
            "docstrings": self._with([
                (self._end(each) - (3 if self._of(each).endswith('"""') else 1), " More.")
                for each in filter(None, map(_docstring, ast.walk(self.tree)))
            ]),
            "annotations": self._with([
                (self._end(each.returns), " | int")
                for each in ast.walk(self.tree)
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.returns
            ]),
            "unused function": f"{self.text}\n\ndef never_called():\n    return 17\n",
            "unused import": self._with([
                (self._starts[next(self._lines())[0] - 1], "import colorsys\n")
            ]),
        }  # fmt: skip
        for kind, text in texts.items():
            if text != self.text and (
                mutation := self._mutation(kind, 0, "neutral", text, frozenset("-"))
            ):
                yield mutation

    def _lines(self) -> Iterator[tuple[int, int]]:
        """Yield the first line of each statement other than docstrings, and its column."""
        lines = set()
        for each in self._statements:
            if isinstance(each, ast.Expr) and each.value in self._quiet:
                continue
            before = self.text[self._starts[each.lineno - 1] : self._start(each)]
            if not before.strip():
                lines.add((_first_line(each), each.col_offset))
        yield from sorted(lines)

    def _with(self, inserted: Sequence[tuple[int, str]]) -> str:
        text = self.text
        for place, more in sorted(inserted, reverse=True):
            text = text[:place] + more + text[place:]
        return text


def _header(statement: ast.stmt) -> range:
    """Return the lines of a statement, without those of the statements in it."""
    body: Sequence[ast.stmt] = getattr(statement, "body", ())
    if body:
        return range(statement.lineno, max(statement.lineno + 1, _first_line(body[0])))
    assert statement.end_lineno is not None
    last = statement.lineno if isinstance(statement, ast.Match) else statement.end_lineno
    return range(statement.lineno, last + 1)


def _first_line(statement: ast.stmt) -> int:
    decorators: Sequence[ast.expr] = getattr(statement, "decorator_list", ())
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    given = function.args
    more = [each for each in (given.vararg, given.kwarg) if each]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *more]


def _docstring(node: ast.AST) -> ast.expr | None:
    if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            return first.value
    return None


def line_mutations(name: str, text: str, seen_by: frozenset[str]) -> Iterator[Mutation]:
    """Yield the changes of a file that is not in Python: each line, changed and deleted."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        changes = {"line deleted": ""}
        if digits := re.findall(r"\d+", line):
            changes["line changed"] = str(int(digits[-1]) + 1).join(line.rsplit(digits[-1], 1))
        elif words := re.findall(r"\w+", line):
            changes["line changed"] = f"{words[-1]}x".join(line.rsplit(words[-1], 1))
        for kind, new in changes.items():
            after = "".join([*lines[:number], new, *lines[number + 1 :]])
            place, change = f"{name}:{number + 1}", f"{line.strip()} -> {new.strip()}"
            yield Mutation(kind, place, change, seen_by, (name, after))


def variable_mutations(
    environment: Mapping[str, str], seen_by: Mapping[str, frozenset[str]]
) -> Iterator[Mutation]:
    """Yield the changes of environment variables: each one, changed and removed."""
    for name, calls in seen_by.items():
        value = environment[name]
        changed = str(int(value) + 1) if value.isdigit() else f"{value}x"
        for kind, new in (("variable changed", changed), ("variable removed", None)):
            yield Mutation(kind, name, f"{value} -> {new}", calls, variable=(name, new))
