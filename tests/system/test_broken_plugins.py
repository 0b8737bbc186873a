"""Tests that a broken plugin affects no other one, and is named with its distribution.

All distributions of `broken.py` are built, and installed into one environment.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.system import broken
from tests.system.support import BuildWheels, Built, MakeVenv, check, run

pytestmark = pytest.mark.timeout(900)

PROGRAM = """
import asyncio

async def main(flow):
    @flow.function_task
    def square(x):
        return x * x

    @flow.function_task
    def doomed():
        return 1

    print("squares", await asyncio.gather(*(square(n) for n in range(4))))
    try:
        await doomed()
    except Exception as error:
        print("doomed", type(error).__name__, error)
"""

SEVERAL = """
import asyncio
from rhapsody import NoopExecutionBackend, LocalExecutionBackend, WorkflowEngine

async def run():
    backends = [LocalExecutionBackend(), NoopExecutionBackend()]
    async with WorkflowEngine.create(backends) as flow:
        print("square", await flow.function_task(lambda x: x * x)(3))

asyncio.run(run())
"""


@pytest.fixture(scope="module")
def zoo(
    built: Built,
    make_venv: MakeVenv,
    build_wheels: BuildWheels,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The programs of an environment with core, and every distribution there is in `broken`."""
    sources = tmp_path_factory.mktemp("sources")
    wheels = build_wheels(*(plugin.write(sources) for plugin in broken.ALL))
    return make_venv(built.wheel, *wheels)


@pytest.fixture(scope="module")
def listed(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the output of `rhapsody backends --json`, by backend."""
    output = check(zoo / "rhapsody", "backends", "--json", cwd=tmp_path_factory.mktemp("listed"))
    return {one["name"]: one for one in json.loads(output)}


@pytest.fixture(scope="module")
def examined(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the findings of `rhapsody doctor --json`."""
    slow = ("env", "SLOW_SECONDS=1.5")
    done = run(*slow, zoo / "rhapsody", "doctor", "--json", cwd=tmp_path_factory.mktemp("examined"))
    assert done.returncode == 1, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return found


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def errors(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the standard error of a run on the default backend."""
    directory = tmp_path_factory.mktemp("errors")
    (directory / "program.py").write_text(PROGRAM)
    return run(zoo / "rhapsody", "run", "program.py", cwd=directory).stderr


@pytest.mark.parametrize("name", broken.BROKEN_BACKENDS)
def test_a_broken_backend_is_listed_with_its_reason_and_a_remedy(
    listed: dict[str, dict[str, Any]], name: str
) -> None:
    plugin, reason = broken.BROKEN_BACKENDS[name]
    (one,) = (one for one in listed.values() if one["name"].lower() == name)
    assert not one["usable"]
    assert reason in one["reason"]
    assert one["distribution"] in (plugin.name, None)  # none where two claim a name
    assert one["remedy"]


@pytest.mark.parametrize("name", ["good", "local", "noop", "slow", *broken.BROKEN_CLASSES])
def test_every_other_backend_is_listed_as_usable(
    listed: dict[str, dict[str, Any]], name: str
) -> None:
    assert listed[name]["usable"], listed[name]["reason"]


def test_a_claim_on_our_name_is_reported_and_not_used(
    listed: dict[str, dict[str, Any]],
) -> None:
    assert listed["local"]["distribution"] == "rhapsody-core"
    (conflict,) = listed["local"]["conflicts"]
    assert "claims-local 1.0 is not used: the name is reserved for rhapsody-core" in conflict


def test_the_table_has_a_line_for_each_and_says_how_to_mend_it(zoo: Path, tmp_path: Path) -> None:
    table = check(zoo / "rhapsody", "backends", cwd=tmp_path)
    for name, (_, reason) in broken.BROKEN_BACKENDS.items():
        assert re.search(rf"^{name} +no ", table, re.MULTILINE | re.IGNORECASE)
        assert reason in table
    assert table.count("to fix it: ") == len(broken.BROKEN_BACKENDS)


@pytest.mark.parametrize("backend", ["local", "good"])
def test_a_workflow_runs_in_spite_of_all_of_them(zoo: Path, program: Path, backend: str) -> None:
    slow = ("env", "SLOW_SECONDS=1.5")
    done = run(*slow, zoo / "rhapsody", "run", program, "-b", backend, cwd=program.parent)
    assert done.returncode == 0, done.stderr
    assert "squares [0, 1, 4, 9]" in done.stdout
    assert "doomed PluginError plugin 'raises-in-hooks' failed to prepare" in done.stdout
    assert "good-observer saw 4" in done.stderr


def test_a_hook_that_raises_is_reported_once_with_its_distribution(
    zoo: Path, tmp_path: Path, errors: str
) -> None:
    for hook, error in {
        "rhapsody_workflow_started": "RuntimeError: started",
        "rhapsody_workflow_finished": "SystemExit: finished",
        "rhapsody_task_events": "ValueError: events",
        "rhapsody_lookup_results": "LookupError: lookup",
        "rhapsody_record_results": "OSError: record",
    }.items():
        assert errors.count(f"plugin raises-in-hooks: {hook} raised {error}") == 1, errors
    assert "plugin nonsense-from-hooks: rhapsody_lookup_results" in errors
    errors = run(zoo / "rhapsody", "--plugins", cwd=tmp_path).stderr
    error = "plugin raises-in-hooks: rhapsody_commands raised TypeError: commands"
    assert errors.count(error) == 1, errors
    assert "plugin nonsense-from-hooks: rhapsody_commands raised ValueError: " in errors
    assert "'two words' must be one word" in errors


def test_a_plugin_that_cannot_be_loaded_is_reported_once_with_its_distribution(
    errors: str,
) -> None:
    for name in (*broken.LEFT_OUT, "raises-at-import", "exits-at-import"):
        told = [line for line in errors.splitlines() if line.startswith("skipping plugin")]
        own = [line for line in told if f" {name} 1.0: " in line or f" of {name} 1.0" in line]
        assert len(own) == 1, errors
        assert own[0].endswith(f"pip uninstall {name}")


def test_nonsense_about_where_a_task_is_to_run_is_reported_and_not_followed(
    zoo: Path, tmp_path: Path
) -> None:
    (tmp_path / "several.py").write_text(SEVERAL)
    done = run(zoo / "python", "several.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "square 9\n"
    assert "plugin nonsense-from-hooks: rhapsody_select_backend" in done.stderr
    assert "or None, got 17" in done.stderr
    assert "plugin raises-in-hooks: rhapsody_select_backend raised KeyError" in done.stderr


@pytest.mark.parametrize("name", [*broken.BROKEN_BACKENDS, *broken.BROKEN_CLASSES])
def test_asking_for_a_broken_backend_says_why_without_a_traceback(
    zoo: Path, program: Path, name: str
) -> None:
    silent = ["env", "RHAPSODY_DISABLE_PLUGINS=raises-in-hooks,nonsense-from-hooks"]
    done = run(*silent, zoo / "rhapsody", "run", program, "-b", name, cwd=program.parent)
    assert done.returncode == 2
    _, reason = {**broken.BROKEN_BACKENDS, **broken.BROKEN_CLASSES}[name]
    told = next(line for line in done.stderr.splitlines() if line.startswith("rhapsody: "))
    assert reason in told
    assert done.stdout == ""


def test_plugins_that_are_left_out_are_silent(zoo: Path, program: Path) -> None:
    names = ",".join(plugin.name for plugin in broken.ALL)
    left_out = ("env", f"RHAPSODY_DISABLE_PLUGINS={names}")
    done = run(*left_out, zoo / "rhapsody", "run", "-q", program, cwd=program.parent)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "doomed PluginError" not in done.stdout


def test_commands_of_other_plugins_work(zoo: Path, tmp_path: Path) -> None:
    assert check(zoo / "rhapsody", "greet", cwd=tmp_path) == "good day\n"


# The doctor.


def of(examined: list[dict[str, Any]], subject: str) -> list[dict[str, Any]]:
    return [finding for finding in examined if finding["subject"] == subject]


@pytest.mark.parametrize("distribution", ["raises-at-import", "exits-at-import", *broken.LEFT_OUT])
def test_the_doctor_names_a_plugin_that_cannot_be_loaded(
    examined: list[dict[str, Any]], distribution: str
) -> None:
    (finding,) = of(examined, f"{distribution} 1.0")
    assert finding["level"] == "broken"
    assert finding["remedy"] == f"pip install --upgrade {distribution}"


@pytest.mark.parametrize(
    "name",
    [*sorted(broken.BROKEN_BACKENDS.keys() - {"raising", "exiting"}), *broken.BROKEN_CLASSES],
)
def test_the_doctor_says_why_a_backend_cannot_be_used(
    examined: list[dict[str, Any]], name: str
) -> None:
    _, reason = {**broken.BROKEN_BACKENDS, **broken.BROKEN_CLASSES}[name]
    findings = [one for one in of(examined, f"backend {name}") if one["level"] == "broken"]
    assert any(reason in one["text"] for one in findings), of(examined, f"backend {name}")


def test_the_doctor_calls_a_plugin_slow_that_takes_long_to_import(
    examined: list[dict[str, Any]],
) -> None:
    (finding,) = of(examined, "slow-at-import 1.0")
    assert finding["level"] == "slow"
    assert "is slow" in finding["text"]


@pytest.mark.parametrize("subject", ["good-backend 1.0", "good-observer 1.0", "backend good"])
def test_the_doctor_finds_nothing_wrong_with_the_others(
    examined: list[dict[str, Any]], subject: str
) -> None:
    (finding,) = of(examined, subject)
    assert finding["level"] in ("ok", "slow")  # which is chance on a busy machine
