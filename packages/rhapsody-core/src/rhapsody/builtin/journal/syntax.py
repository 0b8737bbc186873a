"""Names that code uses but does not define, read from its syntax tree.

The tree shows which globals the code reads, with the attributes that it reads directly from them
(`settings.rate`); which modules it imports; literal subscripts and first arguments, such as
`"RATE"` in `os.environ["RATE"]`; and whether it uses a container as a cache. A value is followed
only to the expression that contains it: after `rates = settings.rates`, the attributes of `rates`
are not followed, and all of `settings.rates` is used.
"""

from __future__ import annotations

import ast
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
OTHER = "other"
"""Values of `Use.by`: what code does with a value. It is called, is an argument, is an operand or
part of a dict display (`a | b`, `{**a}`), is searched with `in`, or becomes an item or an index of
another container; or one of its items is read, set or deleted."""

ROLES = ("fills", "looks", "adds")
"""Roles of a container in code. See `Use`."""

_NAMED = ast.Name | ast.Attribute

_READING_METHODS = frozenset(("get", "setdefault", "keys", "values", "items", "index", "count"))
"""Methods of containers that read items."""

_MEASURES = frozenset(("len", "isinstance", "type", "callable", "hasattr"))
"""Functions whose results do not depend on how large a value is."""

_FILLING_METHODS = frozenset((
    "add", "append", "appendleft", "extend", "insert", "move_to_end", "setdefault", "update",
))  # fmt: skip
"""Names of methods that fill a container."""

_CHANGING_METHODS = _FILLING_METHODS | {
    "clear", "discard", "extendleft", "pop", "popitem", "popleft", "remove", "reverse", "rotate",
    "sort",
}  # fmt: skip
"""Names of methods that change a container."""

_CHANGING_FUNCTIONS = frozenset((
    "delattr", "heappop", "heappush", "heappushpop", "heapreplace", "insort", "insort_left",
    "insort_right", "next", "setattr",
))  # fmt: skip
"""Names of functions that change their first arguments."""

_LOOKUP_ERRORS = frozenset(
    ("KeyError", "IndexError", "LookupError", "TypeError", "Exception", "BaseException")
)
"""Names of the exceptions by which code notices that an item is missing."""


class Use(NamedTuple):
    """Use of a global by code.

    Attributes:
        chain: The global's name, followed by the attributes that are read directly from it.
        by: What the code does with the value, such as `CALLED`; an empty string if it is unknown.
        key: The subscript, the first argument of the call, or the left operand of `in`. A literal
            is represented by a string, a global by a tuple with its name, anything else by `None`.
        roles: How the code uses the value; see `is_cache`. It `fills` a container in place, `looks`
            for an item or tests whether the container is empty, or `adds` to an item, which
            includes a new item that is computed from the former one or compared with it, also by
            the name of a variable to which the former one was assigned.
    """

    chain: tuple[str, ...]
    by: str = ""
    key: str | tuple[str] | None = None
    roles: tuple[str, ...] = ()

    @property
    def container(self) -> str:
        """The last name in the chain, or the one before it if the last one is a method."""
        return self.chain[-2] if self.by == CALLED and len(self.chain) > 1 else self.chain[-1]


def is_cache(roles: Collection[str]) -> bool:
    """Return True if code uses a container as a cache.

    Such code both fills the container and looks for items in it. A container that is only filled
    collects results. If code adds to the items, it counts (`seen[x] += 1`) or groups
    (`groups[x].append(y)`).

    Args:
        roles: All roles of the container in the code. See `Use`.
    """
    return "fills" in roles and "looks" in roles and "adds" not in roles


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
        roles: The roles of attributes, such as `seen` in `self.seen.append(x)`: pairs of a role
            and the attribute's name.
        closed: Names of closure variables that the code uses as caches.
        weighed: Names of globals whose parts the code compares by size, as in `x.n < best.n`.
    """

    uses: tuple[Use, ...]
    modules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    members: tuple[tuple[str, Use], ...] = ()
    stored: frozenset[str] = frozenset()
    only_stored: frozenset[str] = frozenset()
    roles: frozenset[tuple[str, str]] = frozenset()
    closed: frozenset[str] = frozenset()
    weighed: frozenset[str] = frozenset()


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
    roles: set[tuple[str, str]] = set()
    weighed: set[str] = set()
    enclosed: dict[str, set[str]] = {}
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
    for node, scope in tree.nodes:
        if not isinstance(node, ast.Name):
            continue
        name, kind = node.id, scope.kind_of(node.id)
        if not (isinstance(node.ctx, ast.Load) or tree.is_augmented(node)):
            continue
        use = tree.use(node, scope)
        if kind == _GLOBAL:
            read.add(name)
        if kind == _GLOBAL and name not in imported:
            uses[use] = None
        else:
            for module, chain in (imported if kind == _GLOBAL else inside).get(name, ()):
                members[module, use._replace(chain=(module, *chain, *use.chain[1:]))] = None
            if kind == _GLOBAL:
                continue
        if tree.is_weighed(node):
            if kind == _GLOBAL:
                weighed.add(name)
            elif kind == _CLOSURE:
                enclosed.setdefault(name, set()).add("adds")
        if use.container != name:
            roles.update((role, use.container) for role in use.roles)
        elif kind == _CLOSURE:
            enclosed.setdefault(name, set()).update(use.roles)
    return Names(
        tuple(uses),
        tuple(modules),
        tuple(members),
        frozenset(stored),
        frozenset(stored - read),
        frozenset(roles),
        frozenset(name for name, each in enclosed.items() if is_cache(each)),
        frozenset(weighed),
    )


def caches_in(methods: Iterable[tuple[ast.AST, Collection[str]]]) -> frozenset[str]:
    """Return the names of the attributes that methods use only as caches.

    The methods store single items in such a dict, test with `in` for its keys, and read single
    items; they do nothing else with it. Its name begins with an underscore, or contains `cache` or
    `memo`.

    Args:
        methods: The tree of each method, and the names of its closure variables.
    """
    filled: set[str] = set()
    tested: set[str] = set()
    read: set[str] = set()
    others: set[str] = set()
    for method, closure in methods:
        tree = _ScopedTree(method, closure)
        for node, scope in tree.nodes:
            if not isinstance(node, ast.Name) or scope.kind_of(node.id) == _GLOBAL:
                continue
            use = tree.use(node, scope)
            names, depth = use.chain[1:], len(use.chain) - 1
            if not names:
                continue
            if "adds" in use.roles:
                others.update(names)
            elif depth == 1 and use.by == ITEM_SET:
                filled.add(names[0])
            elif depth == 1 and use.by == CONTAINS:
                tested.add(names[0])
            elif (depth == 1 and use.by == ITEM_READ) or names[1:] == ("get",):
                read.add(names[0])
            else:
                others.update(names)
    named = {each for each in filled if each[0] == "_" or "cache" in each or "memo" in each}
    return frozenset(named & tested & read - others)


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
    """

    def __init__(self, node: ast.AST, outer: _NameScope | None, closure: Collection[str]) -> None:
        self.node = node
        self.outer = outer
        self._closure = closure
        self.declared: set[str] = set()
        self._bound: set[str] = set()
        around: set[str] = set()
        if isinstance(node, _COMPREHENSIONS):
            targets = (each.target for each in node.generators)
            self._bound.update(_named(name for each in targets for name in ast.walk(each)))
            return
        if isinstance(node, FUNCTIONS | ast.Lambda):
            self._bound.update(each.arg for each in ast.walk(node.args) if type(each) is ast.arg)
        todo = _body(node)
        while todo:
            each = todo.pop()
            self._bound.update(_bound_by(each))
            if isinstance(each, ast.Global):
                self.declared.update(each.names)
            elif isinstance(each, ast.Nonlocal):
                around.update(each.names)
            elif isinstance(each, _COMPREHENSIONS):
                self._bound.update(_named(_walruses(each)))
            elif not isinstance(each, SCOPES):
                todo += ast.iter_child_nodes(each)
        self._bound -= around

    def kind_of(self, name: str) -> str:
        """Return what a name refers to: `_GLOBAL`, `_LOCAL` or `_CLOSURE`."""
        scope: _NameScope | None = self
        while scope is not None:
            if name in scope.declared:
                return _GLOBAL
            if name in scope._bound:
                if isinstance(scope.node, FUNCTIONS | ast.Lambda | _COMPREHENSIONS):
                    return _LOCAL
                if scope is self:  # a variable of a module, or perhaps one of a class
                    return _GLOBAL
            scope = scope.outer
        return _CLOSURE if name in self._closure else _GLOBAL

    def is_of_class(self, name: str) -> bool:
        """Return True if this is a class, and a name one of its variables."""
        declared = name in self.declared
        return isinstance(self.node, ast.ClassDef) and name in self._bound and not declared

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
        use = self._use(name, scope)
        if "adds" not in use.roles and self.is_weighed(name):
            use = use._replace(roles=(*use.roles, "adds"))
        return use

    def is_weighed(self, name: ast.Name) -> bool:
        """Return True if code compares a part of a value with another value by size.

        Such code keeps the best value so far, as in `if best is None or x.loss < best.loss`. The
        comparison may be in a function that a condition calls, as in `if x.is_better(best)`.
        """
        node: ast.AST = name
        called = False
        for above in self._around(name):
            if isinstance(above, ast.Compare) and _is_order(above):
                return True
            if isinstance(above, ast.Call):
                if isinstance(above.func, ast.Name) and above.func.id in _MEASURES:
                    return False
                is_method = isinstance(node, ast.Attribute) and node.attr not in _READING_METHODS
                called = called or node is not above.func or (is_method and bool(above.args))
            node = above
        return called and self._is_tested(node)

    def _use(self, name: ast.Name, scope: _NameScope) -> Use:
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
            roles = tuple(self._called(above, chain))
            return Use(tuple(chain), CALLED, _argument(above, scope), roles)
        if isinstance(above, ast.Subscript) and above.value is node:
            by = ITEM_READ
            if not (isinstance(above.ctx, ast.Load) or self.is_augmented(above)):
                by = ITEM_SET if isinstance(above.ctx, ast.Store) else ITEM_DELETED
            return Use(tuple(chain), by, _key(above.slice, scope), tuple(self._items(above)))
        if isinstance(above, ast.Compare):
            return self._compared(tuple(chain), node, above, scope)
        found = ["looks"] if self._is_tested(node) else []
        if self.is_augmented(node) or self._renews_itself(node):
            found.append("adds")
        return Use(tuple(chain), self._by(node, above), None, tuple(found))

    def _compared(
        self, chain: tuple[str, ...], node: ast.AST, above: ast.Compare, scope: _NameScope
    ) -> Use:
        """Return the use of a value in a comparison."""
        if _is_order(above):
            return Use(chain, OTHER, None, ("adds",))  # such as `if best is None or x > best`
        number = 0 if node is above.left else above.comparators.index(node)  # type: ignore[arg-type]
        if node is not above.left and isinstance(above.ops[number], ast.In | ast.NotIn):
            key = None if number else _key(above.left, scope)
            return Use(chain, CONTAINS, key, ("looks",))
        empty = node is above.left and self._is_tested(above) and _is_none(above.comparators[0])
        return Use(chain, OTHER, None, ("looks",) if empty else ())

    def _by(self, node: ast.AST, above: ast.AST | None) -> str:
        """Return what code does with a value that is neither called nor has a subscript."""
        match above:
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

    def _called(self, call: ast.Call, chain: list[str]) -> Iterator[str]:
        """Yield the roles of an object whose method is called."""
        if len(chain) < 2:
            return
        method = chain[-1]
        if method in _FILLING_METHODS:
            yield "fills"
            if isinstance(call.func, ast.Attribute) and _names_again(call, call.func.value):
                yield "adds"  # such as `sums.append(sums[-1] + x)`
        if method == "get" and len(call.args) == 2 and _is_new(call.args[1]):
            yield "adds"  # such as `seen[x] = seen.get(x, 0) + 1`
        elif method in ("get", "setdefault"):
            yield "looks"
        if isinstance(call.func, ast.Attribute) and self._is_changed(call, call.func.value):
            yield "adds"

    def _items(self, item: ast.Subscript) -> Iterator[str]:
        """Yield the roles of a container with a subscript."""
        if not isinstance(item.ctx, ast.Load):
            yield "fills"
            if self.is_augmented(item):
                yield "adds"
            return
        if self._is_tried(item):
            yield "looks"
        if self._is_changed(item, item.value):
            yield "adds"

    def _is_changed(self, item: ast.AST, container: ast.AST) -> bool:
        """Return True if code changes or replaces an item, possibly by the name of a variable."""
        text = ast.unparse(container)
        if self._changes(item) or self._renews(item, text):
            return True
        above = self._above.get(item)
        while isinstance(above, ast.BoolOp | ast.IfExp):
            item, above = above, self._above.get(above)
        targets: list[ast.expr] = []
        match above:
            case ast.Assign():
                targets = above.targets
            case ast.AnnAssign() | ast.NamedExpr() | ast.For() | ast.comprehension():
                targets = [above.target]
        names = {name for each in targets for name in _named(ast.walk(each))}
        return any(
            (self._changes(node) or self._renews(node, text)) and not self._is_missing(node)
            for node, _ in self.nodes
            if isinstance(node, ast.Name) and node.id in names
        )

    def _renews(self, node: ast.AST, container: str) -> bool:
        """Return True if code computes a new item from a value, as in `seen[x] = y + 1`.

        Args:
            node: The expression that contains the value.
            container: The text of the container.
        """
        for each in self._around(node):
            if isinstance(each, ast.Compare):
                return _is_order(each) and self._decides(each, container)
        assignment = self._computed(node)
        if assignment is None:
            return False
        if _sets_item_of(assignment, container):
            return True
        names = set(_named(assignment.targets))
        return any(
            _sets_item_of(each, container) and names.intersection(_named(ast.walk(each.value)))
            for each, _ in self.nodes
            if isinstance(each, ast.Assign)
        )

    def _renews_itself(self, node: ast.AST) -> bool:
        """Return True if code computes the new value of a variable from its former one."""
        assignment = self._computed(node)
        targets = () if assignment is None else assignment.targets
        return any(ast.unparse(each) == ast.unparse(node) for each in targets)

    def _computed(self, node: ast.AST) -> ast.Assign | None:
        """Return the assignment of a value that code computes from another one, not only selects.

        Args:
            node: The other value.
        """
        computed = False
        for each in self._around(node):
            computed = computed or not isinstance(each, ast.BoolOp | ast.IfExp | ast.NamedExpr)
            node = each
        above = self._above.get(node)
        if computed and isinstance(above, ast.Assign) and above.value is node:
            return above
        return None

    def _around(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the expressions that contain an expression, from the inside to the outside."""
        while isinstance(above := self._above.get(node), ast.expr | ast.keyword):
            yield above
            node = above

    def _decides(self, test: ast.AST, container: str) -> bool:
        """Return True if code sets an item of a container because of a test."""
        above: ast.AST | None = test
        while isinstance(above, ast.expr):  # `None` above the body of a lambda
            above = self._above.get(above)
        return isinstance(above, ast.If) and any(
            isinstance(each, ast.Assign) and _sets_item_of(each, container)
            for each in ast.walk(above)
        )

    def _changes(self, node: ast.AST) -> bool:
        """Return True if code changes a value in place where it is mentioned."""
        if self.is_augmented(node):
            return True
        while (above := self._above.get(node)) is not None:
            if isinstance(above, ast.Call):
                function = above.func
                name = function.attr if isinstance(function, ast.Attribute) else ""
                name = function.id if isinstance(function, ast.Name) else name
                return above.args[:1] == [node] and name in _CHANGING_FUNCTIONS
            if not (isinstance(above, ast.Attribute | ast.Subscript) and above.value is node):
                return False
            if not isinstance(above.ctx, ast.Load):
                return True
            if isinstance(above, ast.Attribute) and above.attr in _CHANGING_METHODS:
                return True
            node = above
        return False

    def _is_missing(self, name: ast.Name) -> bool:
        """Return True if code uses a variable only after it has found no item in a container."""
        node: ast.AST = name
        while (above := self._above.get(node)) is not None:
            if isinstance(above, ast.ExceptHandler) and not _LOOKUP_ERRORS.isdisjoint(
                _named(ast.walk(above.type or above))
            ):
                return True
            if isinstance(above, ast.If) and node in above.body:
                tests = above.test.values if isinstance(above.test, ast.BoolOp) else [above.test]
                if any(_is_test_for_none(each, name.id) for each in tests):
                    return True
            node = above
        return False

    def _is_tested(self, node: ast.AST) -> bool:
        """Return True if code tests whether a value is true."""
        match above := self._above.get(node):
            case ast.If() | ast.While() | ast.IfExp() | ast.Assert():
                return above.test is node
            case ast.UnaryOp():
                return isinstance(above.op, ast.Not)
            case ast.BoolOp():
                return above.values[-1] is not node or self._is_tested(above)
            case ast.comprehension():
                return node in above.ifs
            case ast.match_case():
                return above.guard is node
        return False

    def _is_tried(self, node: ast.AST) -> bool:
        """Return True if code catches the error of a missing item."""
        while (above := self._above.get(node)) is not None and not isinstance(above, SCOPES):
            if isinstance(above, ast.Try) and node in above.body:
                types = (each.type for each in above.handlers if each.type is not None)
                caught = set(_named(one for each in types for one in ast.walk(each)))
                if not _LOOKUP_ERRORS.isdisjoint(caught):
                    return True
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


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_order(node: ast.Compare) -> bool:
    return any(isinstance(each, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for each in node.ops)


def _names_again(call: ast.Call, container: ast.expr) -> bool:
    """Return True if an argument of a method contains the object of the method."""
    text = ast.unparse(container)
    parts = [part for each in call.args for part in ast.walk(each)]
    return any(isinstance(each, _NAMED) and ast.unparse(each) == text for each in parts)


def _sets_item_of(node: ast.Assign, container: str) -> bool:
    """Return True if an assignment sets an item of a container, given the container's text."""
    targets = (each for each in node.targets if isinstance(each, ast.Subscript))
    return any(ast.unparse(each.value) == container for each in targets)


def _is_test_for_none(node: ast.AST, name: str) -> bool:
    """Return True for `name is None` and `not name`."""
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name(id=each)):
            return each == name
        case ast.Compare(left=ast.Name(id=each), ops=[ast.Is()], comparators=[none]):
            return each == name and _is_none(none)
    return False


def _is_new(node: ast.AST) -> bool:
    """Return True if an expression is a literal other than `None`, or a new container."""
    if isinstance(node, ast.Constant):
        return node.value is not None
    return isinstance(node, ast.List | ast.Dict | ast.Set | ast.Tuple | ast.UnaryOp | ast.Call)
