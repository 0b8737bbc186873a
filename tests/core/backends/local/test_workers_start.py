"""Start of worker processes in unusual surroundings."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests._support.programs import PATIENCE

pytestmark = pytest.mark.timeout(90)

NAMES = ("signal", "random", "string", "queue", "types", "token", "array", "copy", "uuid")


def test_workers_do_not_import_modules_from_the_current_directory(tmp_path: Path) -> None:
    here, scripts = tmp_path / "here", tmp_path / "scripts"
    here.mkdir()
    scripts.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(f"open('imported-{name}', 'w').close()\n")
    (scripts / "helper.py").write_text("VALUE = 5\n")
    (scripts / "program.py").write_text(
        textwrap.dedent("""
            import asyncio
            from rhapsody import LocalExecutionBackend, WorkflowEngine

            def value():
                import helper
                import string
                return helper.VALUE, string.digits

            async def main():
                async with WorkflowEngine.create(
                    LocalExecutionBackend("process"), profile=False
                ) as flow:
                    print(*await flow.function_task(value)())

            asyncio.run(main())
        """)
    )
    done = subprocess.run(
        [sys.executable, str(scripts / "program.py")],
        cwd=here, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.split() == ["5", "0123456789"], done.stderr
    assert list(here.glob("imported-*")) == []
