"""The tutorial for authors of backends, done step by step as it is written.

In its page a `console` block is run, in the directory where the one before has ended, and
must succeed unless `<!-- fails -->` stands before it. A `text` block after it is what it
prints, with `...` for anything. A block after `<!-- not run: file PATH -->` is that file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.system.support import INSTALL_TIMEOUT, ROOT, Built, MakeVenv, run

# Each step has a limit of its own; on a busy machine many take long.
pytestmark = [pytest.mark.timeout(3600), pytest.mark.long]

PAGE = ROOT / "docs" / "plugins" / "tutorial.md"
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>fails|not run: file (?P<file>\S+)) -->\n)?"
    r"```(?P<kind>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def matches(expected: str, output: str) -> bool:
    """Return whether the output is that of the page, where `...` stands for anything."""
    pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None


def test_dots_stand_for_anything_and_the_rest_for_itself() -> None:
    assert matches("a\n...\nb (1)\n", "a\nx\ny\nb (1)\n")
    assert not matches("a\n...", "b\na\n")


def test_every_step_of_the_tutorial_works(
    built: Built, kit: Path, make_venv: MakeVenv, tmp_path: Path
) -> None:
    programs, where, output = make_venv(built.wheel, kit), tmp_path, ""
    path = f"PATH={programs}{os.pathsep}{os.environ['PATH']}"
    steps = 0
    for block in BLOCK.finditer(PAGE.read_text()):
        kind, body = block["kind"], block["body"]
        if block["file"]:
            (where / block["file"]).write_text(body)
        elif kind == "console":
            script = f"{{ {body}}} 2>&1\nstatus=$?\npwd > {tmp_path / 'where'}\nexit $status\n"
            strict = "-c" if block["mark"] else "-ec"
            command = ("env", path, "COLUMNS=100", "bash", strict, script)
            done = run(*command, cwd=where, timeout=INSTALL_TIMEOUT)
            output = done.stdout
            failed = done.returncode != 0
            assert failed == (block["mark"] == "fails"), f"{body}\n{output}\n{done.stderr}"
            where = Path((tmp_path / "where").read_text().strip())
            steps += 1
        elif kind == "text":
            assert matches(body, output), f"the page says:\n{body}\nand it is:\n{output}"
    assert steps > 5
