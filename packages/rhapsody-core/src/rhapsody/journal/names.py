"""Names that a function uses from outside, found in its compiled code.

The compiled code is what runs, even if the source file has changed. It shows which globals a
function reads, with the attributes that are read directly (`settings.rate`), which modules it
imports, and the literal arguments of the few calls whose first argument is a name, such as
`os.environ["RATE"]`.
"""

from __future__ import annotations

import dis
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from rhapsody.sdk.modules import with_inner

_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})

_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})

_IGNORED = frozenset({"EXTENDED_ARG", "PUSH_NULL", "NOP", "NOT_TAKEN"})

_LOCALS = frozenset({"LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})

_STORES = frozenset({"STORE_FAST", "STORE_DEREF", "STORE_GLOBAL", "STORE_NAME"})

CALLS: frozenset[str] = frozenset({
    "PRECALL", "CALL", "CALL_KW", "KW_NAMES", "CALL_FUNCTION_EX", "CALL_INTRINSIC_1",
})  # fmt: skip
"""Instructions that pass a value to a call or prepare that."""


_FILLS = frozenset({
    "add", "append", "appendleft", "extend", "insert", "move_to_end", "setdefault", "update",
})  # fmt: skip
"""Methods that fill a container."""


class Use(NamedTuple):
    """A global that is read.

    Attributes:
        chain: Its name and the attributes that are read from it directly.
        by: The instruction that takes the value, such as `BINARY_SUBSCR` or one of `CALLS`.
        key: The subscript or the first argument: a text, or the name of a global in a tuple;
            `None` if it is something else.
    """

    chain: tuple[str, ...]
    by: str = ""
    key: str | tuple[str] | None = None

    def filled(self) -> tuple[str, ...]:
        """Return the name of the container that is filled in place, if one is."""
        if self.by in CALLS:
            return self.chain[-2:-1] if self.chain[-1] in _FILLS else ()
        return self.chain[-1:] if self.by in ("STORE_SUBSCR", "DELETE_SUBSCR") else ()


@dataclass(frozen=True, slots=True)
class Names:
    """Names and imports that code uses from outside itself.

    Attributes:
        uses: The globals that it reads.
        modules: Modules that it imports itself: the name, with a dot for each level, and what is
            taken from there.
        members: The uses of those modules, by the name of the module, with which the chain begins.
        stored: Names of globals that it sets.
        filled: Names of variables in closures and of attributes that it fills in place, as
            `seen.append(x)` and `self.seen.append(x)` do.
    """

    uses: tuple[Use, ...]
    modules: tuple[tuple[str, tuple[str, ...]], ...]
    members: tuple[tuple[str, Use], ...]
    stored: frozenset[str]
    filled: frozenset[str]


class _Step(NamedTuple):
    """An instruction, with what it adds to the stack."""

    name: str
    value: Any
    effect: int


def names_in(code: types.CodeType) -> Names:
    """Return the names that a function and its nested functions use from outside."""
    uses: dict[Use, None] = {}
    modules: dict[tuple[str, tuple[str, ...]], None] = {}
    members: dict[tuple[str, Use], None] = {}
    stored: set[str] = set()
    filled: set[str] = set()
    bodies = [list(_steps(one)) for one in with_inner(code)]
    imported: dict[str, list[tuple[str, tuple[str, ...]]]] = {}  # by the variable's name
    for steps in bodies:
        for number, step in enumerate(steps):
            if step.name == "IMPORT_NAME":
                level, taken = (each.value for each in steps[number - 2 : number])
                name = "." * level + step.value
                modules[name, taken or ()] = None
                for variable, member in _imported(steps, number, name, taken):
                    imported.setdefault(variable, []).append(member)
    for steps in bodies:
        for number, step in enumerate(steps):
            if step.name in _LOADS and step.value not in imported:
                use = _use(steps, number)
                uses[use] = None
                filled.update(use.filled() if len(use.chain) > 1 else ())
            elif step.name in _LOADS or step.name in _LOCALS:
                for module, chain in imported.get(step.value, ()):
                    use = _use(steps, number)
                    whole = module, *chain, *use.chain[1:]
                    members[module, use._replace(chain=whole)] = None
                if step.name not in _LOADS:
                    filled.update(_use(steps, number).filled())
            elif step.name == "STORE_GLOBAL":
                stored.add(step.value)
    made = tuple(uses), tuple(modules), tuple(members)
    return Names(*made, frozenset(stored), frozenset(filled))


def _steps(code: types.CodeType) -> Iterator[_Step]:
    """Yield the relevant instructions, with combined instructions split in two."""
    for each in dis.get_instructions(code):
        if each.opname in _IGNORED:
            continue
        parts = re.findall("(LOAD|STORE)_FAST", each.opname)
        if len(parts) > 1:
            for part, value in zip(parts, each.argval, strict=True):
                yield _Step(f"{part}_FAST", value, 1 if part == "LOAD" else -1)
            continue
        name = f"{parts[0]}_FAST" if parts else each.opname
        if name == "BINARY_OP" and each.argrepr == "[]":
            name = "BINARY_SUBSCR"
        yield _Step(name, each.argval, dis.stack_effect(each.opcode, each.arg, jump=False))


def _chain(steps: list[_Step], number: int) -> tuple[str, ...]:
    """Return the name that an instruction loads, and the attributes read from it directly."""
    chain = [steps[number].value]
    for step in steps[number + 1 :]:
        if step.name not in _ATTRIBUTES:
            break
        chain.append(step.value)
    return tuple(chain)


def _use(steps: list[_Step], number: int) -> Use:
    chain = _chain(steps, number)
    last = number + len(chain) - 1
    taker = _taker(steps, last)
    if taker is None:
        return Use(chain)
    by, first = steps[taker].name, steps[last + 1]
    key: str | tuple[str] | None = None
    if by == "CONTAINS_OP":
        key = _key(steps[number - 1]) if taker == last + 1 else None
    elif by.endswith("_SUBSCR"):
        key = _key(first) if taker == last + 2 else None
    elif steps[last].name in _ATTRIBUTES or by in CALLS:
        ends = _taker(steps, last + 1)
        key = _key(first) if ends is not None and steps[ends].name in CALLS else None
    return Use(chain, by, key)


def _key(step: _Step) -> str | tuple[str] | None:
    if step.name == "LOAD_CONST" and isinstance(step.value, str):
        return step.value
    return (step.value,) if step.name in _LOADS else None


def _taker(steps: list[_Step], number: int) -> int | None:
    """Return the instruction that consumes the value which another one put on the stack."""
    depth = 1
    for at in range(number + 1, len(steps)):
        depth += steps[at].effect
        if depth <= 1:
            return at
    return None


def _imported(
    steps: list[_Step], number: int, name: str, taken: tuple[str, ...] | None
) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """Yield the variables that an import sets, each with the module and the imported name."""
    member, alias = "", False
    for step in steps[number + 1 :]:
        if step.name == "IMPORT_FROM":
            member, alias = step.value, True
        elif step.name in _STORES:
            if taken:
                yield step.value, (name, (member,))
                continue
            yield step.value, (name if alias else name.partition(".")[0], ())
            return
        elif (step.name == "POP_TOP" and taken) or step.name not in ("SWAP", "POP_TOP", "ROT_TWO"):
            return
