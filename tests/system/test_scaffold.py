"""Tests that a new scaffold works unchanged, from wheels in a clean environment."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.support import INSTALL_TIMEOUT, ROOT, Built, MakeVenv, check, run

pytestmark = pytest.mark.timeout(1200)

DIGITS = ROOT / "examples" / "digits.py"


class Scaffold(NamedTuple):
    """A distribution that was written and installed as its author would."""

    programs: Path
    root: Path


@pytest.fixture(scope="module")
def scaffold(
    built: Built, kit: Path, make_venv: MakeVenv, tmp_path_factory: pytest.TempPathFactory
) -> Scaffold:
    """The commands that the scaffold itself says come next, up to `pytest`."""
    programs = make_venv(built.wheel, kit)  # pip would look for the kit in an index
    place = tmp_path_factory.mktemp("author")
    told = check(programs / "rhapsody", "new-backend", "demo", cwd=place)
    assert re.findall(r"^  (.+)$", told, re.MULTILINE) == [
        "cd rhapsody-demo",
        "pip install -e '.[test]'",
        "pytest",
        "rhapsody backends",
    ]
    root = place / "rhapsody-demo"
    install = (programs / "python", "-m", "pip", "install", "--quiet", "-e", ".[test]")
    check(*install, cwd=root, timeout=INSTALL_TIMEOUT)
    return Scaffold(programs, root)


def test_its_own_tests_pass_with_the_conformance_kit_among_them(scaffold: Scaffold) -> None:
    output = check(scaffold.programs / "pytest", cwd=scaffold.root, timeout=300)
    counts = re.search(r"^=+ (\d+) passed, (\d+) skipped in .*=+$", output, re.MULTILINE)
    assert counts, output
    assert int(counts[1]) > 90
    assert "the backend does not declare services" in output


def test_it_is_listed_with_what_it_declares(scaffold: Scaffold, tmp_path: Path) -> None:
    listed = json.loads(check(scaffold.programs / "rhapsody", "backends", "--json", cwd=tmp_path))
    (demo,) = (one for one in listed if one["name"] == "demo")
    assert demo["usable"]
    assert demo["distribution"] == "rhapsody-demo"
    assert demo["capabilities"]["files"]
    assert "backend demo: class imported" in check(
        scaffold.programs / "rhapsody", "doctor", cwd=tmp_path
    )


def test_a_setting_it_does_not_have_is_named(scaffold: Scaffold, tmp_path: Path) -> None:
    command = (scaffold.programs / "rhapsody", "run", DIGITS, "-b", "demo", "-o", "speed=3")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "rhapsody: -o speed: backend 'demo' has no option 'speed'; the options are max_running, "
        "name\n"
    )


def test_it_builds_as_sdist_and_wheel(scaffold: Scaffold, tmp_path: Path) -> None:
    build = (sys.executable, "-m", "build", "--no-isolation", scaffold.root, "--outdir", tmp_path)
    check(*build, cwd=tmp_path, timeout=INSTALL_TIMEOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rhapsody_demo-0.1.0-py3-none-any.whl",
        "rhapsody_demo-0.1.0.tar.gz",
    ]


@pytest.mark.parametrize("command", [["check", "."], ["format", "--check", "."]], ids=str)
def test_its_style_is_in_order(scaffold: Scaffold, command: list[str]) -> None:
    pytest.importorskip("ruff")
    check(sys.executable, "-m", "ruff", *command, cwd=scaffold.root)


def test_its_types_are_in_order(scaffold: Scaffold) -> None:
    pytest.importorskip("mypy")
    command = (sys.executable, "-m", "mypy", "--python-executable", scaffold.programs / "python")
    assert "no issues found" in check(*command, cwd=scaffold.root, timeout=300)


def test_a_type_checker_compares_the_hooks_of_a_plugin(scaffold: Scaffold, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    check(scaffold.programs / "rhapsody", "new-plugin", "table", cwd=tmp_path)
    root = tmp_path / "rhapsody-table"
    python = scaffold.programs / "python"
    command = (sys.executable, "-m", "mypy", "--python-executable", python, "src")
    assert "no issues found" in check(*command, cwd=root, timeout=300)
    plugin = root / "src" / "rhapsody_table" / "plugin.py"
    right = "engine: ObservedEngine, events:"
    plugin.write_text(plugin.read_text().replace(right, "engine: ObservedEngine, event:"))
    done = run(*command, cwd=root, timeout=300)
    assert 'Argument 1 to "__call__" of "Hook" has incompatible type' in done.stdout


def test_its_nox_sessions_can_be_listed(scaffold: Scaffold) -> None:
    listed = check(sys.executable, "-m", "nox", "--list", cwd=scaffold.root)
    assert {"lint", "types"} <= set(re.findall(r"^\* (\S+)", listed, re.MULTILINE))


def test_its_workflow_matches_the_schema(scaffold: Scaffold) -> None:
    pytest.importorskip("check_jsonschema")
    schema = ("-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows")
    workflows = (scaffold.root / ".github" / "workflows").iterdir()
    check(sys.executable, *schema, *workflows, cwd=scaffold.root)


def test_a_backend_that_claims_too_much_fails_its_tests_by_name(scaffold: Scaffold) -> None:
    plugin = scaffold.root / "src" / "rhapsody_demo" / "plugin.py"
    honest = plugin.read_text()
    claim = '    cancel_functions="running",\n    cancel_async_functions="running",\n'
    plugin.write_text(honest.replace('    cancel_async_functions="running",\n', claim))
    try:
        command = (scaffold.programs / "pytest", "-k", "running_task_is_stopped")
        done = run(*command, cwd=scaffold.root)
    finally:
        plugin.write_text(honest)
    assert done.returncode == 1
    assert "test_a_running_task_is_stopped[function]" in done.stdout
    assert "/docs/plugins/contract.html#cancellation" in done.stdout


def test_it_is_unknown_after_it_is_uninstalled(scaffold: Scaffold, tmp_path: Path) -> None:
    pip = (scaffold.programs / "python", "-m", "pip")
    check(*pip, "uninstall", "--yes", "--quiet", "rhapsody-demo", cwd=tmp_path)
    listed = check(scaffold.programs / "rhapsody", "backends", cwd=tmp_path)
    assert "demo" not in listed
    done = run(scaffold.programs / "rhapsody", "run", DIGITS, "-b", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert "Backend 'demo' not found" in done.stderr
