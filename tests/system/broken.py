"""Distributions of plugins, most of them broken in one way each, as sources to build."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

BACKENDS = "rhapsody.backends"
PLUGINS = "rhapsody.plugins"


class Plugin(NamedTuple):
    """The source of one distribution, which has the modules given.

    Attributes:
        name: The distribution's name.
        points: Its entry points: group, name, value.
        modules: The text of each module.
    """

    name: str
    points: list[tuple[str, str, str]]
    modules: dict[str, str]

    def write(self, directory: Path) -> Path:
        """Writes the source tree, and gives it."""
        root = directory / self.name
        root.mkdir(parents=True)
        lines = [
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"',
            f'[project]\nname = "{self.name}"\nversion = "1.0"',
        ]
        for group in dict.fromkeys(point[0] for point in self.points):
            own = [f'"{name}" = "{value}"' for g, name, value in self.points if g == group]
            lines.append("\n".join([f'[project.entry-points."{group}"]', *own]))
        inside = ", ".join(f'"{module}.py"' for module in self.modules)
        lines.append(f"[tool.hatch.build.targets.wheel]\nonly-include = [{inside}]")
        (root / "pyproject.toml").write_text("\n\n".join(lines) + "\n")
        for module, text in self.modules.items():
            (root / f"{module}.py").write_text(textwrap.dedent(text))
        return root


IMPORTS = """
from rhapsody import hookimpl
from rhapsody.backends.base import Capabilities
from rhapsody.plugins.specs import BackendSpec, Recorded
"""

CLASS = """
from rhapsody.backends.base import ManagedBackend

class Backend(ManagedBackend):
    async def run_task(self, task):
        return task["function"](*task["args"], **task["kwargs"])
"""


def backend(distribution: str, name: str, spec: str, before: str = "", cls: str = CLASS) -> Plugin:
    """A distribution with one backend, declared by the given expression."""
    light = distribution.replace("-", "_")
    heavy = f"{light}_class"
    declared = f"{before}\n{IMPORTS}\n@hookimpl\ndef rhapsody_backends():\n    return {spec}\n"
    return Plugin(
        distribution,
        [(BACKENDS, name, light)],
        {light: declared.replace("HEAVY", f"{heavy}:Backend"), heavy: cls},
    )


def observer(distribution: str, text: str) -> Plugin:
    """A distribution with hooks that are no backend's."""
    module = distribution.replace("-", "_")
    return Plugin(
        distribution,
        [(PLUGINS, module, module)],
        {module: f"{IMPORTS}\n{textwrap.dedent(text)}"},
    )


def spec(name: str, more: str = "") -> str:
    """Return a valid declaration with an addition."""
    return f"BackendSpec(name={name!r}, import_path='HEAVY', summary='ours'{more})"


GOOD = [
    backend("good-backend", "good", spec("good"), cls=CLASS + "\n    name = 'good'\n"),
    observer(
        "good-observer",
        """
        import sys

        seen = []

        @hookimpl
        def rhapsody_task_events(events):
            seen.extend(event.name for event in events if event.state == "DONE")

        @hookimpl
        def rhapsody_workflow_finished(engine, summary):
            print("good-observer saw", len(seen), file=sys.stderr)

        @hookimpl
        def rhapsody_commands(cli):
            cli.add_command("greet", "greets", None, lambda arguments: print("good day"))
        """,
    ),
]

BROKEN_BACKENDS = {
    # The backend's name, with words that the reason it cannot be used must have.
    "raising": (
        backend("raises-at-import", "raising", spec("raising"), "raise RuntimeError('no license')"),
        "raises-at-import 1.0: importing 'raises_at_import' raised RuntimeError: no license",
    ),
    "exiting": (
        backend("exits-at-import", "exiting", spec("exiting"), "import sys; sys.exit('bye')"),
        "exits-at-import 1.0: importing 'exits_at_import' raised SystemExit: bye",
    ),
    "twice": (
        Plugin(
            "registers-twice",
            [(BACKENDS, "twice", "registers_twice"), (BACKENDS, "Twice", "registers_twice_too")],
            {"registers_twice": "", "registers_twice_too": ""},
        ),
        "registers-twice has 2 different entry points named 'twice'",
    ),
    "nonsense": (
        backend("nonsense-declared", "nonsense", "42"),
        "nonsense-declared 1.0: invalid declaration: TypeError: rhapsody_backends "
        "must return BackendSpecs, got 42",
    ),
    "fields": (
        backend("nonsense-fields", "fields", spec("fields", ", capabilities={'gpus': True}")),
        "nonsense-fields 1.0: invalid declaration: TypeError: BackendSpec: capabilities",
    ),
    "declares": (
        backend("raises-when-asked", "declares", "1 / 0"),
        "raises-when-asked 1.0: invalid declaration: ZeroDivisionError",
    ),
    "tomorrow": (
        backend("wrong-api-version", "tomorrow", spec("tomorrow", ", api_version=99")),
        "wrong-api-version was written for version 99 of the plugin interface",
    ),
    "alpha": (
        backend("wrong-name", "alpha", spec("omega")),
        "wrong-name 1.0: wrong_name declares no backend named 'alpha'; declared: 'omega'",
    ),
    "unmet": (
        backend("wants-more", "unmet", spec("unmet", ", requires=['no-such-thing>=3']")),
        "no-such-thing>=3 is not installed",
    ),
    "clash": (
        backend("clash-one", "clash", spec("clash")),
        "the name 'clash' is claimed by clash-one and clash-two",
    ),
}

BROKEN_CLASSES = {
    # These are seen to be broken when the class is asked for.
    "crashing": (
        backend("raises-later", "crashing", spec("crashing"), cls="raise OSError('libfast.so')"),
        "raises-later: importing raises_later_class raised OSError: libfast.so",
    ),
    "empty": (
        backend("has-no-class", "empty", spec("empty"), cls="x = 1"),
        "has-no-class: module has_no_class_class has no class 'Backend'",
    ),
    "other": (
        backend("has-another-class", "other", spec("other"), cls="class Backend: ..."),
        "has-another-class: <class 'has_another_class_class.Backend'> is not a backend class",
    ),
}

OTHER_CLAIMS = [
    backend("clash-two", "clash", spec("clash"), cls=CLASS + "\n    name = 'clash'\n"),
    backend("claims-local", "local", spec("local")),
]

# Its delay is variable, because every command of every test would wait for it.
SLOW = backend(
    "slow-at-import",
    "slow",
    spec("slow"),
    "import os, time; time.sleep(float(os.environ.get('SLOW_SECONDS', '0')))",
)

BROKEN_OBSERVERS = [
    observer(
        "raises-in-hooks",
        """
        @hookimpl
        def rhapsody_workflow_started(): raise RuntimeError("started")
        @hookimpl
        def rhapsody_workflow_finished(): raise SystemExit("finished")
        @hookimpl
        def rhapsody_task_events(): raise ValueError("events")
        @hookimpl
        def rhapsody_select_backend(): raise KeyError("select")
        @hookimpl
        def rhapsody_lookup_results(): raise LookupError("lookup")
        @hookimpl
        def rhapsody_record_results(): raise OSError("record")
        @hookimpl
        def rhapsody_commands(): raise TypeError("commands")
        @hookimpl
        def rhapsody_prepare_task(task):
            if task["name"] == "doomed":
                raise RuntimeError("prepare")
        """,
    ),
    observer(
        "nonsense-from-hooks",
        """
        @hookimpl
        def rhapsody_workflow_started(): return 42
        @hookimpl
        def rhapsody_task_events(): return object()
        @hookimpl
        def rhapsody_select_backend(): return 17
        @hookimpl
        def rhapsody_lookup_results(tasks): return "x" * len(tasks)
        @hookimpl
        def rhapsody_record_results(): return "recorded"
        @hookimpl
        def rhapsody_prepare_task(): return "prepared"
        @hookimpl
        def rhapsody_commands(cli): cli.add_command("two words", None, 3, "run")
        """,
    ),
    observer("wrong-arguments", "@hookimpl\ndef rhapsody_task_events(evnts): ..."),
    observer("wrong-kind", "@hookimpl\nasync def rhapsody_task_events(events): ..."),
    observer("unknown-hook", "@hookimpl\ndef rhapsody_task_evens(events): ..."),
    observer("no-hooks", "x = 1"),
]

LEFT_OUT = ["wrong-arguments", "wrong-kind", "unknown-hook", "no-hooks"]
"""Those whose hooks do not fit: they are left out of a run, and said so."""

ALL = [
    *GOOD,
    *(plugin for plugin, _ in BROKEN_BACKENDS.values()),
    *(plugin for plugin, _ in BROKEN_CLASSES.values()),
    *OTHER_CLAIMS,
    SLOW,
    *BROKEN_OBSERVERS,
]
