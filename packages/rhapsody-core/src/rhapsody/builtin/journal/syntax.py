"""Names that code uses but does not define, read from its syntax tree.

The tree shows which globals the code reads, with the attributes that it reads directly from them
(`settings.rate`); which modules it imports; literal subscripts and first arguments, such as
`"RATE"` in `os.environ["RATE"]`; and which variables it uses as caches. A value is followed
only to the expression that contains it: after `rates = settings.rates`, the attributes of `rates`
are not followed, and all of `settings.rates` is used.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import resolve_name
from typing import NamedTuple

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

_COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp

SCOPES = FUNCTIONS | ast.ClassDef | ast.Lambda | _COMPREHENSIONS
"""Syntax nodes with a scope of their own."""

CALLED, PASSED, MERGED, CONTAINS, STORED = "called", "passed", "merged", "contains", "stored"
ITEM_READ, ITEM_SET, ITEM_DELETED = "item read", "item set", "item deleted"
TESTED, OTHER = "tested", "other"
"""Values of `Use.by`: what code does with a value. It is called, is an argument, is an operand or
part of a dict display (`a | b`, `{**a}`), is searched with `in`, becomes an item or an index of
another container, or is only tested (`if not a`, `if a is None`, `if len(a) > 9`); or one of its
items is read, set or deleted."""

FILLS, READS, LISTS = "fills", "reads", "lists"
"""Uses of a variable that is named like a cache: code fills or reads single items, or uses all
items at once, for example to list or count them. In the last case, the variable is not a cache."""

_CACHE = re.compile("(cache|caches|memo)_?$|^_*cached_|^repr_running$", re.IGNORECASE)
"""Matches the names of variables that are caches; the last one is that of `reprlib`."""

_FILLING_METHODS = frozenset(("add", "setdefault", "update"))
"""Names of methods that fill a dict or a set."""

_READING_METHODS = frozenset(("get", "pop", "setdefault"))
"""Names of methods that read single items."""

_REMOVING_METHODS = frozenset(("clear", "discard", "popitem", "remove"))
"""Names of methods that remove items."""


class Use(NamedTuple):
    """Use of a global by code.

    Attributes:
        chain: The global's name, followed by the attributes that are read directly from it.
        by: What the code does with the value, such as `CALLED`; an empty string if it is unknown.
        key: The subscript, the first argument of the call, or the left operand of `in`. A literal
            is represented by a string, a global by a tuple with its name, anything else by `None`.
    """

    chain: tuple[str, ...]
    by: str = ""
    key: str | tuple[str] | None = None

    @property
    def container(self) -> str:
        """The last name in the chain, or the one before it if the last one is a method."""
        return self.chain[-2] if self.by == CALLED and len(self.chain) > 1 else self.chain[-1]

    @property
    def of_cache(self) -> Iterator[tuple[str, str]]:
        """Uses of a variable that is named like a cache; see `Names.caches`."""
        if _CACHE.search(self.container):
            method = self.chain[-1] if self.by == CALLED else ""
            if self.by == ITEM_SET or method in _FILLING_METHODS:
                yield FILLS, self.container
            if self.by in (ITEM_READ, CONTAINS) or method in _READING_METHODS:
                yield READS, self.container
            of_items = self.by in (ITEM_READ, ITEM_SET, ITEM_DELETED, CONTAINS, TESTED)
            if not of_items and method not in (
                _FILLING_METHODS | _READING_METHODS | _REMOVING_METHODS
            ):
                yield LISTS, self.container


@dataclass(frozen=True, slots=True)
class Names:
    """Names that code uses but does not define, and its imports.

    Attributes:
        uses: The globals that the code reads.
        modules: The modules that the code imports, each with the names imported from it. A module's
            name begins with a dot for each relative level.
        members: The uses of those modules: pairs of a module's name and a use whose chain begins
            with that name.
        stored: Names of globals that the code sets or deletes.
        only_stored: The names in `stored` that the code never reads.
        made_once: The names in `stored` that the code sets only if they are `None`, to a value that
            does not depend on the call, as in `if model is None: model = load()`.
        caches: What the code does with variables and attributes that are named like a cache: pairs
            of `FILLS`, `READS` or `LISTS` and a name.
    """

    uses: tuple[Use, ...]
    modules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    members: tuple[tuple[str, Use], ...] = ()
    stored: frozenset[str] = frozenset()
    only_stored: frozenset[str] = frozenset()
    made_once: frozenset[str] = frozenset()
    caches: frozenset[tuple[str, str]] = frozenset()


def names_in(code: ast.AST, closure: Collection[str] = ()) -> Names:
    """Return the names that code and the functions in it use but do not define.

    Args:
        code: The tree of a module, function or lambda, without annotations of arguments. Private
            names of classes are mangled.
        closure: The names of the function's closure variables.
    """
    uses: dict[Use, None] = {}
    modules: dict[tuple[str, tuple[str, ...]], None] = {}
    members: dict[tuple[str, Use], None] = {}
    stored: set[str] = set()
    read: set[str] = set()
    caches: set[tuple[str, str]] = set()
    # By the variable's name: global variables, and local variables of any of the functions.
    imported: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    inside: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    tree = _ScopedTree(code, closure)
    for node, scope in tree.nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules.update(dict.fromkeys(_imports(node)))
            for variable, (module, member) in _imported(node):
                if scope.is_of_class(variable):  # it may be used as an attribute of the class
                    members[module, Use((module, *member), OTHER)] = None
                    continue
                places = inside if scope.kind_of(variable) == _LOCAL else imported
                places.setdefault(variable, []).append((module, member))
        stored.update(scope.declared.intersection(_bound_by(node)))
    caches.update((FILLS, each) for each in stored if _CACHE.search(each))
    for node, scope in tree.nodes:
        if not isinstance(node, ast.Name):
            continue
        name, kind = node.id, scope.kind_of(node.id)
        if not (isinstance(node.ctx, ast.Load) or tree.is_augmented(node)):
            continue
        use = tree.use(node, scope)
        if kind != _LOCAL or use.container != name:
            caches.update(use.of_cache)
        if kind == _GLOBAL:
            read.add(name)
        if kind == _GLOBAL and name not in imported:
            uses[use] = None
        else:
            for module, chain in (imported if kind == _GLOBAL else inside).get(name, ()):
                members[module, use._replace(chain=(module, *chain, *use.chain[1:]))] = None
    return Names(
        tuple(uses),
        tuple(modules),
        tuple(members),
        frozenset(stored),
        frozenset(stored - read),
        frozenset(each for each in stored if tree.is_made_once(each)),
        frozenset(caches),
    )


def is_cache(name: str, uses: Collection[tuple[str, str]]) -> bool:
    """Return True if code uses a variable as a cache.

    Args:
        name: The variable's name.
        uses: All uses of caches in the code. See `Names.caches`.
    """
    return (FILLS, name) in uses and (READS, name) in uses and (LISTS, name) not in uses


_GLOBAL, _LOCAL, _CLOSURE = "global", "local", "closure"


class _NameScope:
    """Scope of names: a module, class, function, lambda or comprehension.

    Args:
        node: The syntax node.
        outer: The scope around it, or `None`.
        closure: The names of the closure variables of the outermost function.

    Attributes:
        node: The syntax node.
        declared: The names that are declared as `global`.
        bound: The names of its own variables.
    """

    def __init__(self, node: ast.AST, outer: _NameScope | None, closure: Collection[str]) -> None:
        self.node = node
        self.outer = outer
        self._closure = closure
        self.declared: set[str] = set()
        self.bound: set[str] = set()
        around: set[str] = set()
        if isinstance(node, _COMPREHENSIONS):
            targets = (each.target for each in node.generators)
            self.bound.update(_named(name for each in targets for name in ast.walk(each)))
            return
        if isinstance(node, FUNCTIONS | ast.Lambda):
            self.bound.update(each.arg for each in ast.walk(node.args) if type(each) is ast.arg)
        todo = _body(node)
        while todo:
            each = todo.pop()
            self.bound.update(_bound_by(each))
            if isinstance(each, ast.Global):
                self.declared.update(each.names)
            elif isinstance(each, ast.Nonlocal):
                around.update(each.names)
            elif isinstance(each, _COMPREHENSIONS):
                self.bound.update(_named(_walruses(each)))
            elif not isinstance(each, SCOPES):
                todo += ast.iter_child_nodes(each)
        self.bound -= around

    def kind_of(self, name: str) -> str:
        """Return what a name refers to: `_GLOBAL`, `_LOCAL` or `_CLOSURE`."""
        scope: _NameScope | None = self
        while scope is not None:
            if name in scope.declared:
                return _GLOBAL
            if name in scope.bound:
                if isinstance(scope.node, FUNCTIONS | ast.Lambda | _COMPREHENSIONS):
                    return _LOCAL
                if scope is self:  # a variable of a module, or perhaps one of a class
                    return _GLOBAL
            scope = scope.outer
        return _CLOSURE if name in self._closure else _GLOBAL

    def is_of_class(self, name: str) -> bool:
        """Return True if this is a class, and a name one of its variables."""
        declared = name in self.declared
        return isinstance(self.node, ast.ClassDef) and name in self.bound and not declared

    def is_global(self, name: str) -> bool:
        """Return True if a name surely refers to a global variable."""
        return self.kind_of(name) == _GLOBAL and not self.is_of_class(name)


class _ScopedTree:
    """Syntax tree of code, with the scope of each node.

    Args:
        code: The tree of a module, function or lambda.
        closure: The names of the function's closure variables.

    Attributes:
        nodes: The nodes of the code, except those of the function's defaults and decorators, in
            source order, each with its scope.
    """

    def __init__(self, code: ast.AST, closure: Collection[str]) -> None:
        self._above: dict[ast.AST, ast.AST] = {}
        self.nodes: list[tuple[ast.AST, _NameScope]] = []
        first = _NameScope(code, None, closure)
        todo = [(each, first) for each in reversed(_body(code))]
        while todo:
            node, scope = todo.pop()
            self.nodes.append((node, scope))
            inner, inside = scope, set[ast.AST]()
            if isinstance(node, SCOPES):
                inner, inside = _NameScope(node, scope, closure), set(_body(node))
            children = []
            for child in ast.iter_child_nodes(node):
                self._above[child] = node
                place = inner if child in inside else scope
                if isinstance(node, ast.comprehension) and child is node.iter:
                    comprehension = self._above[node]
                    assert isinstance(comprehension, _COMPREHENSIONS)
                    if node is comprehension.generators[0] and scope.outer is not None:
                        place = scope.outer
                # Annotations of local variables are not evaluated.
                annotated = isinstance(node, ast.AnnAssign) and child is node.annotation
                if not (annotated and isinstance(scope.node, FUNCTIONS)):
                    children.append((child, place))
            todo += reversed(children)

    def is_augmented(self, node: ast.AST) -> bool:
        """Return True if an expression is the target of an assignment such as `+=`."""
        above = self._above.get(node)
        return isinstance(above, ast.AugAssign) and above.target is node

    def use(self, name: ast.Name, scope: _NameScope) -> Use:
        """Return the use of a name in a scope."""
        node: ast.AST = name
        chain = [name.id]
        above = self._above.get(node)
        while isinstance(above, ast.Attribute) and isinstance(above.ctx, ast.Load):
            chain.append(above.attr)
            node, above = above, self._above.get(above)
        if len(chain) == 1 and isinstance(above, ast.Call) and above.args[:1] == [node]:
            attribute = _literal_attribute(above)
            if attribute is not None:  # `getattr(settings, "rate")`
                chain.append(attribute)
                node, above = above, self._above.get(above)
        if isinstance(above, ast.Call) and above.func is node:
            return Use(tuple(chain), CALLED, _argument(above, scope))
        if isinstance(above, ast.Subscript) and above.value is node:
            by = ITEM_READ
            if not (isinstance(above.ctx, ast.Load) or self.is_augmented(above)):
                by = ITEM_SET if isinstance(above.ctx, ast.Store) else ITEM_DELETED
            return Use(tuple(chain), by, _key(above.slice, scope))
        if isinstance(above, ast.Compare) and node is not above.left:
            number = above.comparators.index(node)  # type: ignore[arg-type]
            if isinstance(above.ops[number], ast.In | ast.NotIn):
                return Use(tuple(chain), CONTAINS, None if number else _key(above.left, scope))
        return Use(tuple(chain), self._by(node, above))

    def _by(self, node: ast.AST, above: ast.AST | None) -> str:
        """Return what code does with a value that is neither called nor has a subscript."""
        match above:
            case ast.UnaryOp(op=ast.Not()):
                return TESTED
            case ast.If() | ast.While() | ast.IfExp() if above.test is node:
                return TESTED
            case ast.Compare(left=left, comparators=[ast.Constant(value=None)]) if left is node:
                return TESTED
            case ast.Call(func=ast.Name(id="len")):
                tested = self._above.get(above)
                return TESTED if isinstance(tested, ast.Compare) else PASSED
            case ast.Call() | ast.keyword():
                return PASSED
            case ast.Starred():
                return PASSED if isinstance(self._above.get(above), ast.Call) else OTHER
            case ast.BinOp():
                return MERGED
            case ast.AugAssign():
                return MERGED if above.value is node else OTHER
            case ast.Dict():
                pairs = zip(above.keys, above.values, strict=True)
                unpacked = any(key is None and value is node for key, value in pairs)
                return MERGED if unpacked else OTHER
            case ast.Subscript():
                read = isinstance(above.ctx, ast.Load) and not self.is_augmented(above)
                return OTHER if read else STORED
            case ast.Assign():
                items = any(isinstance(each, ast.Subscript) for each in above.targets)
                return STORED if items else OTHER
            case ast.AnnAssign():
                return STORED if isinstance(above.target, ast.Subscript) else OTHER
        return OTHER

    def is_made_once(self, name: str) -> bool:
        """Return True if the code sets a global only if it is `None`, and always to the same value.

        Args:
            name: The name of the global, which the code sets.
        """
        places = [
            (node, scope)
            for node, scope in self.nodes
            if name in scope.declared and name in _bound_by(node)
        ]
        if len(places) != 1:
            return False
        target, scope = places[0]
        assignment = self._above.get(target)
        if not (isinstance(assignment, ast.Assign) and isinstance(scope.node, FUNCTIONS)):
            return False
        names = set(_named(ast.walk(assignment.value)))
        has_arguments = any(type(each) is ast.arg for each in ast.walk(scope.node.args))
        kinds = {each: scope.kind_of(each) for each in names}
        depends = has_arguments and any(kind != _GLOBAL for kind in kinds.values())
        around = any(kind == _LOCAL and each not in scope.bound for each, kind in kinds.items())
        depends = depends or around
        return name not in names and not depends and self._is_none_before(assignment, name)

    def _is_none_before(self, node: ast.AST, name: str) -> bool:
        """Return True if code reaches a statement only if a variable is `None`."""
        while not isinstance(above := self._above.get(node), FUNCTIONS | None):
            if isinstance(above, ast.If) and node in above.body:
                return _is_test_for_none(above.test, name)
            node = above
        return False


def _body(node: ast.AST) -> list[ast.AST]:
    """Return the nodes inside the scope of a module, class, function, lambda or comprehension."""
    match node:
        case ast.Lambda():
            return [node.body]
        case ast.DictComp():
            return [node.key, node.value, *node.generators]
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
            return [node.elt, *node.generators]
    body: list[ast.AST] = node.body  # type: ignore[attr-defined]
    return list(body)


def _named(nodes: Iterable[ast.AST]) -> Iterator[str]:
    return (each.id for each in nodes if isinstance(each, ast.Name))


def _walruses(comprehension: ast.AST) -> Iterator[ast.AST]:
    """Yield the targets of `:=` in a comprehension, which are variables of the function."""
    todo = [comprehension]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.NamedExpr):
            yield node.target
        if not isinstance(node, ast.Lambda):
            todo += ast.iter_child_nodes(node)


def _bound_by(node: ast.AST) -> Iterable[str]:
    """Return the variables that a syntax node sets or deletes itself."""
    match node:
        case ast.Name():
            return () if isinstance(node.ctx, ast.Load) else (node.id,)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return (node.name,)
        case ast.Import() | ast.ImportFrom():
            return [name for name, _ in _imported(node)]
        case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
            return () if node.name is None else (node.name,)
        case ast.MatchMapping():
            return () if node.rest is None else (node.rest,)
    return ()


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the modules that a statement imports, each with the names imported from it."""
    if isinstance(node, ast.ImportFrom):
        yield _origin(node), tuple(each.name for each in node.names)
    else:
        yield from ((each.name, ()) for each in node.names)


def _imported(
    node: ast.Import | ast.ImportFrom,
) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """Yield the variables that an import sets, with the imported objects.

    An object is represented by a module's name and a tuple with the name that is imported from the
    module. The tuple is empty if the variable is the module itself.
    """
    for each in node.names:
        if isinstance(node, ast.ImportFrom):
            if each.name != "*":
                yield each.asname or each.name, (_origin(node), (each.name,))
        elif each.asname is None:
            top = each.name.partition(".")[0]
            yield top, (top, ())
        else:
            yield each.asname, (each.name, ())


def _origin(node: ast.ImportFrom) -> str:
    return "." * node.level + (node.module or "")


def _argument(call: ast.Call, scope: _NameScope) -> str | tuple[str] | None:
    """Return the first argument of a call; see `Use.key`.

    A relative name of a module is resolved if the next argument is its package.
    """
    arguments = [*call.args[:2]]
    named = {each.arg: each.value for each in call.keywords}
    arguments += [named[each] for each in ("key", "name", "package") if each in named]
    key = _key(arguments[0], scope) if arguments else None
    if not isinstance(key, str) or not key.startswith("."):
        return key
    package = _key(arguments[1], scope) if len(arguments) > 1 else None
    if package in (("__package__",), ("__name__",)):
        return key  # the package is that of the code
    try:
        return resolve_name(key, package) if isinstance(package, str) else None
    except ImportError:  # it fails in the task, too
        return None


def _key(node: ast.AST, scope: _NameScope) -> str | tuple[str] | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    return (node.id,) if isinstance(node, ast.Name) and scope.is_global(node.id) else None


def _literal_attribute(call: ast.Call) -> str | None:
    """Return the name of the attribute that `getattr(x, "name")` reads, if it is a literal."""
    if not (isinstance(call.func, ast.Name) and call.func.id in ("getattr", "hasattr")):
        return None
    name = call.args[1] if len(call.args) > 1 else None
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None


def _is_test_for_none(node: ast.AST, name: str) -> bool:
    """Return True for `name is None` and `not name`."""
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name(id=each)):
            return each == name
        case ast.Compare(left=ast.Name(id=each), ops=[ast.Is()], comparators=[none]):
            return each == name and isinstance(none, ast.Constant) and none.value is None
    return False
