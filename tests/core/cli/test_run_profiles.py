"""`rhapsody run` with profiles."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests._support.command_line import SIMPLE, Run, check_mistake, install_toy

FILE = """
default_profile = "threads"

[defaults]
retries = 2

[profile.threads]
[profile.processes]
backend = "local"
[profile.processes.options]
executor = "process"
cores = 3
[profile.processes.engine]
keep_sandboxes = "all"
[profile.processes.defaults]
retries = 5
[profile.nothing]
backend = "noop"
"""

SHOW = """
async def main(flow):
    options = flow._options
    print(flow.backend.name, flow.backend.machine.cores, not flow.backend.shares_memory)
    print(options.keep_sandboxes, options.retries[0].attempts, options.keep_going)
"""


@pytest.fixture
def write(tmp_path: Path) -> Path:
    """The file with profiles."""
    path = tmp_path / "rhapsody.toml"
    path.write_text(FILE)
    return path


def test_a_profile_is_selected_by_an_option_a_variable_or_the_file(
    run: Run, write: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(SHOW, "-o", "cores=7")
    assert done.stdout == "local 7 False\nresults 2 True\n", done.stderr
    monkeypatch.setenv("RHAPSODY_PROFILE", "processes")
    done = run(SHOW)
    assert done.stdout == "local 3 True\nall 5 True\n", done.stderr
    done = run(SHOW, "--profile", "threads", "-o", "cores=7")
    assert done.stdout == "local 7 False\nresults 2 True\n", done.stderr


def test_the_log_of_a_run_names_the_profile(run: Run, write: Path, tmp_path: Path) -> None:
    assert run(SIMPLE, "--profile", "processes").returncode == 0
    (log,) = (tmp_path / ".rhapsody").glob("2*/log.txt")
    assert "started on local with profile 'processes'; process " in log.read_text()


def test_the_command_line_takes_precedence_over_the_profile(run: Run, write: Path) -> None:
    done = run(SHOW, "--profile=processes", "-o", "cores=7", "-e", "retries=1", "--fail-fast")
    assert done.stdout == "local 7 True\nall 1 False\n", done.stderr
    done = run("async def main(flow): print(flow.backend.name)", "--profile=nothing", "-b", "local")
    assert done.stdout == "local\n", done.stderr


def test_a_program_that_creates_its_engines_uses_the_profile(run: Run, write: Path) -> None:
    script = """
    import asyncio
    from rhapsody import WorkflowEngine

    async def run():
        for options in ({}, {"profile": "nothing"}, {"backend": "local", "max_pending": 3}):
            async with WorkflowEngine.create(**options) as flow:
                print(flow.backend.name, flow._options.max_pending, flow._options.keep_sandboxes)

    asyncio.run(run())
    """
    done = run(script, "--profile", "processes")
    assert done.stdout == "local None all\nnoop None results\nlocal 3 all\n", done.stderr


NAMES = """
async def main(flow):
    local = flow.backends["local"]
    print(*flow.backends, local.machine.cores, await flow.function_task(f, backend="local")())

def f():
    return 1
"""


def test_several_backends_of_a_profile_or_the_command_line(run: Run, write: Path) -> None:
    done = run(NAMES, "-b", "noop", "-b", "local", "-o", "local.cores=3")
    assert done.stdout == "noop local 3 1\n", done.stderr
    write.write_text("backend = ['noop', 'local']\n[options.local]\ncores = 2\n")
    assert run(NAMES).stdout == "noop local 2 1\n"
    done = run(NAMES, "-b", "local", "-b", "noop", "-o", "local.grace=1")
    assert done.stdout == "local noop 2 1\n", done.stderr
    assert run(NAMES, "-b", "local", "-o", "local.cores=1").stdout == "local 1 1\n"
    for given, said in (
        ("cores=1", "-o cores: there are several backends; write -o noop.cores or -o local.cores"),
        ("dask.x=1", "-o dask.x: no such backend is used; the backends are noop, local"),
        ("local.x=1", "-o x: "),
    ):
        done = run(NAMES, "-o", given)
        assert done.returncode == 2
        assert said in done.stderr


def test_a_dry_run_shows_the_graph_whatever_the_backend_of_the_profile(
    run: Run, write: Path
) -> None:
    write.write_text("default_profile = 'far'\n[profile.far]\nbackend = 'elsewhere'\n")
    script = """
    async def main(flow):
        flow.function_task(load)()

    def load():
        return 1
    """
    done = run(script, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "load" in done.stdout
    check_mistake(run(script), "rhapsody.toml:3: Backend 'elsewhere' not found")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[profile.a]\nbackedn = 'noop'\n", "rhapsody.toml:2: unknown key 'backedn' in [profile."),
        (
            "[profile.a.options]\ncore = 3\n",
            "rhapsody.toml:2: backend 'local' has no option 'core' in [profile.",
        ),
        (
            "[profile.a.options]\ncores = 0\n",
            "rhapsody.toml:2: backend 'local': resources: cores",
        ),
        ("[profile.b]\n", "unknown profile 'a' (--profile); the profiles are b"),
        ("[profile", "rhapsody.toml:1: invalid TOML: "),
    ],
)
def test_a_mistake_is_one_line(run: Run, write: Path, text: str, said: str) -> None:
    write.write_text(text)
    done = run(SIMPLE, "--profile", "a")
    check_mistake(done, f"rhapsody: {said}")
    assert done.stderr.count("\n") == 1


def test_quiet_and_verbose_take_precedence_over_the_progress_of_a_profile(
    run: Run, write: Path
) -> None:
    write.write_text("engine.progress = false\n")
    assert "1 done" not in run(SIMPLE).stderr
    assert "done in" in run(SIMPLE, "-v").stderr
    write.write_text("engine.progress = true\n")
    assert run(SIMPLE, "-q").stderr == ""


def test_a_journal_of_the_profile_is_not_used_with_no_journal(
    run: Run, write: Path, tmp_path: Path
) -> None:
    write.write_text("engine.journal = 'mine.sqlite'\n")
    assert run(SIMPLE, "--no-journal").returncode == 0
    assert not (tmp_path / "mine.sqlite").exists()
    done = run(SIMPLE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.sqlite").exists()


def test_a_program_moves_between_two_profiles_without_changes(
    run: Run, write: Path, tmp_path: Path
) -> None:
    install_toy(tmp_path)
    write.write_text(
        textwrap.dedent(
            """
            [profile.here]
            backend = "local"
            options.executor = "process"
            defaults.memory = "1 MB"

            [profile.there]
            backend = "noop"
            tasks.part.cores = 64
            """
        )
    )
    script = """
    async def main(flow):
        @flow.function_task(resources={"cores": 1})
        def part(x):
            return x + 1

        print(await part(await part(1)), part.settings.resources)
    """
    assert run(script, "--profile", "here").stdout.startswith("3 Resources(cores=1, ")
    there = run(script, "--profile", "there")
    assert there.stdout.startswith("Dummy Output Resources(cores=64, "), there.stderr


def test_misspelled_options_get_the_closest_match(run: Run) -> None:
    done = run(SIMPLE, "-o", "coers=2")
    check_mistake(
        done, "rhapsody: -o coers: backend 'local' has no option 'coers'; did you mean 'cores'?"
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("executer=process", "-o executer: backend 'local' has no option 'executer'; did you mean"),
        ("executor=processes", "-o executor: backend 'local': executor must be "),
        ("workers=many", "-o workers: backend 'local': resources: workers must be "),
    ],
)
def test_a_mistake_on_the_command_line_is_not_attributed_to_the_profile(
    run: Run, write: Path, option: str, said: str
) -> None:
    write.write_text("backend = 'local'\noptions.executor = 'thread'\n")
    check_mistake(run(SIMPLE, "-o", option), f"rhapsody: {said}")
