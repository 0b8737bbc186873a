"""What was proved so far, and the tables that say it.

Checks note their ends here; the summary of a test run and a backend's README show
them. Nothing is judged here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from rhapsody.backends.base import Capabilities
from rhapsody.testing._rules import Check

End = Literal["passed", "failed", "skipped", "xfailed"]

_MEANINGS = {
    "functions": "coroutine functions",
    "sync_functions": "ordinary functions",
    "executables": "shell commands and programs",
    "services": "executables as services",
    "function_services": "functions as services",
    "cancel_functions": "cancels ordinary functions",
    "cancel_async_functions": "cancels coroutine functions",
    "cancel_executables": "cancels executables",
    "cancel_services": "cancels services",
    "sandboxes": "a directory for each executable",
    "cwd": "runs executables in a given directory",
    "files": "links files into sandboxes",
    "shared_file_system": "sees the engine's file system",
    "copies_files_out": "gives files out of sandboxes",
    "task_settings": "keys of `task_description`",
    "resources": "resources it honours",
    "binds": "of these, enforced",
    "captures_output": "keeps what functions print",
    "reports_running": "says when a task starts",
    "unfinished_dependencies": "takes unfinished tasks as arguments",
}


@dataclass(frozen=True, slots=True)
class Noted:
    """The end of one check."""

    name: str
    check: Check
    end: End
    reason: str


@dataclass(slots=True)
class Ledger:
    """The ends of all checks of a run, by test class."""

    _noted: dict[type, dict[str, Noted]] = field(default_factory=dict)
    _declared: dict[type, Capabilities] = field(default_factory=dict)

    def declared(self, kit: type, capabilities: Capabilities) -> None:
        """Keeps what the backend of a test class declares."""
        self._declared[kit] = capabilities

    def note(self, kit: type, name: str, check: Check, end: End, reason: str) -> None:
        """Record the result of a check; a failure stays even if other rounds pass."""
        former = self._noted.get(kit, {}).get(name)
        if former is not None and former.end == "failed":
            return
        self._noted.setdefault(kit, {})[name] = Noted(name, check, end, reason)

    def of(self, kit: type) -> list[Noted]:
        """The ends noted for a test class, in the order they came."""
        return list(self._noted.get(kit, {}).values())

    def capabilities(self, kit: type) -> Capabilities | None:
        """What the backend of a test class declares, where it came to making one."""
        return self._declared.get(kit)


ledger = Ledger()


def capability_table(backend: Any) -> str:
    """A backend's declaration as a table in Markdown, for its README.

    Args:
        backend: A backend, its class, or a `Capabilities`.
    """
    capabilities = (
        backend if isinstance(backend, Capabilities) else getattr(backend, "capabilities", None)
    )
    if not isinstance(capabilities, Capabilities):
        raise TypeError(f"backend must have `capabilities`, got {backend!r}")
    return markdown(("capability", "meaning", "declared"), _declaration(capabilities))


def proof_tables(kit: type, *, as_markdown: bool = False) -> str:
    """What a backend declares and what was proved of it, for the end of a test run."""
    make = markdown if as_markdown else plain
    tables = []
    capabilities = ledger.capabilities(kit)
    if capabilities is not None:
        proofs = _proofs(kit)
        rows = [
            (
                *row,
                "" if row[2] in ("no", "none") else proofs.get(row[0].strip("`"), ""),
            )
            for row in _declaration(capabilities)
        ]
        tables.append(make(("capability", "meaning", "declared", "checks passed"), rows))
    groups: dict[str, list[Noted]] = {}
    for noted in ledger.of(kit):
        groups.setdefault(noted.check.group, []).append(noted)
    counts = [(group, *_counts(ends)) for group, ends in sorted(groups.items())]
    tables.append(make(("group", "passed", "failed", "expected to fail", "skipped"), counts))
    reasons = Counter(
        noted.reason if noted.end == "skipped" else f"expected to fail: {noted.reason}"
        for noted in ledger.of(kit)
        if noted.end in ("skipped", "xfailed")
    )
    if reasons:
        skips = [(str(count), reason) for reason, count in reasons.items()]
        tables.append(make(("skipped", "because"), skips))
    return "\n\n".join(tables)


def _declaration(capabilities: Capabilities) -> list[tuple[str, str, str]]:
    return [
        (f"`{key}`", _MEANINGS.get(key, ""), _word(value))
        for key, value in capabilities.as_dict().items()
    ]


def _proofs(kit: type) -> dict[str, str]:
    """For each capability, how many of the checks that need it passed."""
    ends: dict[str, list[End]] = {}
    for noted in ledger.of(kit):
        if noted.end != "skipped":
            for capability in {need.capability for need in noted.check.needs}:
                ends.setdefault(capability, []).append(noted.end)
    return {capability: f"{end.count('passed')} of {len(end)}" for capability, end in ends.items()}


def markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plain(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in columns."""
    lines = [[cell.replace("`", "") for cell in line] for line in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _counts(ends: list[Noted]) -> tuple[str, str, str, str]:
    def count(end: End) -> str:
        return str(sum(noted.end == end for noted in ends))

    return count("passed"), count("failed"), count("xfailed"), count("skipped")


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if value is None:
        return "unchecked"
    return str(value)
