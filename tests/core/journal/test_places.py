"""Programs of the same name in several directories, and directories with several names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

READS = {
    "open": "(HERE / 'data.txt').read_text()",
    "open in": "(place / 'data.txt').read_text()",
    "a process": "subprocess.run(['cat', HERE / 'data.txt'], stdout=-1).stdout.decode()",
    "a directory": "','.join(sorted(each for each in os.listdir(HERE) if each.endswith('.dat')))",
    "an optional file": "optional(HERE / 'option.txt')",
}


def run(directory: Path, script: str, *arguments: str, **variables: str) -> str:
    """Run a script with `rhapsody run`, and return what it has printed."""
    done = subprocess.run(
        [sys.executable, "-m", "rhapsody", "run", script, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("way", READS)
@pytest.mark.parametrize("start", [".", "projects"])
def test_programs_of_the_same_name_read_the_files_in_their_own_directories(
    tmp_path: Path, way: str, start: str
) -> None:
    program = f"""
import os, subprocess
from pathlib import Path
HERE = Path(__file__).parent

def optional(path):
    try:
        return path.read_text()
    except FileNotFoundError:
        return "none"

def read(place):
    return {READS[way]}

async def main(flow):
    print(await flow.function_task(read)(HERE))
"""
    for name in ("a", "b"):
        place = tmp_path / "projects" / name
        place.mkdir(parents=True)
        (place / "prog.py").write_text(program)
        (place / "data.txt").write_text(name)
        (place / f"{name}.dat").touch()
    (tmp_path / "projects/b/option.txt").write_text("chosen")
    script = os.path.join("" if start == "projects" else "projects", "{}", "prog.py")
    directory, found = tmp_path / start, []
    for name in ("a", "b", "b", "a"):
        resumed = run(directory, script.format(name), "--resume")
        assert resumed == run(directory, script.format(name), "--no-journal")
        found.append(resumed)
    assert found[0] != found[1]


def test_a_file_is_found_through_a_link_to_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    linked = tmp_path / "home"
    linked.symlink_to("scratch")
    (linked / "prog.py").write_text(
        f"def read():\n    return open('{linked}/data.txt').read()\n"
        "async def main(flow):\n    print(await flow.function_task(read)())\n"
    )
    for executor in ("thread", "process"):
        for text in ("one", "two", "two"):
            (linked / "data.txt").write_text(text)
            options = "--resume", "-b", "local", "-o", f"executor={executor}"
            assert run(linked, "prog.py", *options, PWD=str(linked)) == text


def test_files_beside_a_program_that_is_started_through_a_link_count(tmp_path: Path) -> None:
    directory = tmp_path / "real" / "project"
    directory.mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (directory / "prog.py").write_text(
        "from pathlib import Path\nDATA = Path(__file__).parent / 'data.txt'\n"
        "def read():\n    return DATA.read_text()\n"
        "async def main(flow):\n    print(await flow.function_task(read)())\n"
    )
    named = str(tmp_path / "link" / "project" / "prog.py")
    for content in ("3", "3", "5"):
        (directory / "data.txt").write_text(content)
        for place, script in ((directory, named), (tmp_path, named), (directory, "prog.py")):
            assert run(place, script, "--resume") == content
