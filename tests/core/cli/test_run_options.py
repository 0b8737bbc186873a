"""`rhapsody run`: backends, their settings, and options of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends.discovery import parse_options
from rhapsody.plugins.specs import UsageError
from tests._support.command_line import SIMPLE, Run, check_mistake, install_toy
from tests._support.distributions import BACKEND, declaration, install, unique

# Options of the engine.


def test_options_of_the_engine(run: Run, tmp_path: Path) -> None:
    done = run(
        """
        async def main(flow):
            @flow.function_task
            def third_time():
                from rhapsody import current_task
                assert current_task().attempt == 3
                return "done"
            print(flow.work_dir.name, await third_time())
        """,
        *("-e", "retries=2", "--engine", "work_dir=here", "-e", "keep_sandboxes=all"),
    )
    assert (done.returncode, done.stdout) == (0, "here done\n"), done.stderr


def test_a_tilde_in_a_path_on_the_command_line_is_the_home_directory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = run(
        "async def main(flow):\n    print(flow.work_dir, flow.results_dir)\n",
        *("-e", "work_dir=~/w", "-e", "results_dir=~/r"),
    )
    assert done.stdout.split() == [str(tmp_path / "home" / each) for each in "wr"], done.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("retry=2", "-e retry: unknown engine option; did you mean 'retries'?"),
        ("colour=red", "-e colour: unknown engine option; the options are "),
        ("backend=dask", "-e backend: use -b NAME"),
        ("fail_fast=true", "-e fail_fast: use --fail-fast"),
        ("retries", "-e 'retries': write KEY=VALUE, such as -e retries=2"),
        ("retries=[1", "-e 'retries=[1': the value is not valid TOML"),
        ("retries=many", "-e: retries must be"),
        ("keep_sandboxes=some", "-e: keep_sandboxes must be one of results, failed, all, none"),
    ],
)
def test_an_option_of_the_engine_that_is_wrong(run: Run, option: str, said: str) -> None:
    done = run(SIMPLE, "-e", option)
    assert done.returncode == 2
    assert done.stderr.startswith(f"rhapsody: {said}"), done.stderr


def test_an_unusable_journal_is_reported(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "no.sqlite"
    path.write_text("no database" * 1000)
    path.chmod(0o600)
    done = run(SIMPLE, "-e", f"journal={str(path)!r}")
    check_mistake(done, f"rhapsody: journal {path} cannot be used: file is not a database; move it")
    assert "backend" not in done.stderr


def test_a_journal_in_a_directory_that_does_not_exist_is_reported(run: Run) -> None:
    done = run(SIMPLE, "-e", "journal='none/j.sqlite'")
    check_mistake(done, "-e: journal: the directory of 'none/j.sqlite' does not exist")


@pytest.mark.parametrize("other", ["record", "trace"])
def test_one_file_for_two_options_is_refused(run: Run, tmp_path: Path, other: str) -> None:
    done = run(SIMPLE, "-e", "journal='out'", "-e", f"{other}='./out'")
    assert done.returncode == 2
    assert "must be different files, got" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_instead_of_the_directory_of_runs_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".rhapsody").touch()
    for options in ((), ("-e", "retries=2"), ("-b", "noop")):
        done = run(SIMPLE, "--no-journal", *options)
        check_mistake(done, f"'{tmp_path}/.rhapsody': it is a file, not a directory")
        assert "; move it, or pass work_dir=" in done.stderr


def test_a_number_of_failures_that_cannot_be(run: Run) -> None:
    done = run(SIMPLE, "--max-failures", "0")
    assert done.returncode == 2
    assert done.stderr == "rhapsody: --max-failures must be 1 or more, got 0\n"


def test_a_run_that_is_cut_short_has_failed_although_its_main_goes_on(run: Run) -> None:
    done = run(
        """
        import asyncio

        async def main(flow):
            @flow.function_task
            def half():
                return 1 / 0
            print(await asyncio.gather(half(), half(), return_exceptions=True))
        """,
        *("--max-failures", "2"),
    )
    assert done.returncode == 1, done.stderr
    assert "2 failed" in done.stderr


# The backend and its settings.


def test_a_backend_is_chosen_by_name(run: Run) -> None:
    done = run("async def main(flow): print(flow.backend.name)", "-b", "NOOP")
    assert (done.returncode, done.stdout) == (0, "noop\n")


def test_a_script_may_register_the_backend_it_runs_on(run: Run) -> None:
    script = BACKEND.format(name="own") + (
        "from rhapsody import BackendRegistry\n"
        "BackendRegistry.register_backend('own', Backend)\n"
        "async def main(flow): print(flow.backend.name)\n"
    )
    done = run(script, "-b", "own")
    assert (done.returncode, done.stdout) == (0, "own\n"), done.stderr


def test_settings_become_keywords_or_resources(run: Run, tmp_path: Path) -> None:
    install_toy(tmp_path)
    done = run(
        "async def main(flow): print(flow.backend.speed, sorted(flow.backend.resources.items()))",
        *("-b", "toy", "-o", "speed=3", "-o", "cores=2", "-o", "resources={gpus = [0, 1]}"),
        *("-o", "address=tcp://host:8786", "-o", "cores=4"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 [('address', 'tcp://host:8786'), ('cores', 4), ('gpus', [0, 1])]\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("2.5", 2.5),
        ("true", True),
        ('"2"', "2"),
        ("'a b'", "a b"),
        ("[1, 2]", [1, 2]),
        ("{a = 1}", {"a": 1}),
        ("process", "process"),
        ("2 GiB", "2 GiB"),
        ("local.localhost", "local.localhost"),
        ("a=b", "a=b"),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_values_are_read_as_toml_and_bare_words_as_strings(text: str, value: Any) -> None:
    assert parse_options([f"key={text}"]) == {"key": value}


@pytest.mark.parametrize("option", ["cores", "=2", "a b=2", "1x=2", "", "a.b.c=1"])
def test_a_setting_of_another_form_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="write KEY=VALUE"):
        parse_options([option])


@pytest.mark.parametrize("text", ["[1", '"open', "{a = }", "'"])
def test_a_value_that_is_broken_toml_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not valid TOML"):
        parse_options([f"key={text}"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-b", "locl"], "Did you mean 'local'?"),
        (["-b", "noop", "-o", "cores"], "write KEY=VALUE"),
        (["-b", "toy", "-o", "resources=3"], "such as resources={cores = 2}"),
        (
            ["-b", "plain", "-o", "cores=3"],
            "backend 'plain' has no setting 'cores'",
        ),
        (["-b", "choosy", "-o", "speed=3"], "backend 'choosy': too fast"),
        (["-b", "broken"], "no_such_library"),
    ],
)
def test_a_backend_or_setting_that_cannot_be_is_a_mistake(
    run: Run, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    install_toy(tmp_path)
    plain, choosy, light, broken = (unique(name) for name in ("plain", "choosy", "light", "broken"))
    start = (
        "from rhapsody.backends.base import ManagedBackend\n"
        "class Backend(ManagedBackend):\n"
        "    async def run_task(self, task): ...\n"
    )
    modules = {
        plain: f"{start}    def __init__(self): super().__init__()\n",
        choosy: f"{start}    def __init__(self, speed): raise ValueError('too fast')\n",
        broken: "import no_such_library",
        light: declaration(
            *(
                f"name={name!r}, import_path='{module}:Backend'"
                for name, module in (("plain", plain), ("choosy", choosy), ("broken", broken))
            )
        ),
    }
    names = dict.fromkeys(("plain", "choosy", "broken"), light)
    install(tmp_path / "site", "odd", backends=names, modules=modules)
    check_mistake(run(SIMPLE, *arguments), expected)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ValueError('bad resources')", 2),
        ("BackendUnavailableError('no scheduler')", 1),
        ("ConnectionRefusedError('nobody there')", 1),
    ],
)
def test_a_backend_that_cannot_be_started_says_why_without_a_traceback(
    run: Run, tmp_path: Path, error: str, code: int
) -> None:
    source = (
        BACKEND.format(name="toy")
        + f"    async def start(self):\n        raise {error}\n"
        + "from rhapsody.errors import BackendUnavailableError\n"
    )
    install_toy(tmp_path, source)
    done = run(SIMPLE, "-b", "toy")
    assert done.returncode == code
    assert error.partition("'")[2].rstrip("')") in done.stderr
    assert done.stderr.startswith("rhapsody: backend 'toy'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        (("-b", "noop"), "-b noop"),
        (("-b", "local", "-o", "cores=1"), "-b local -o cores"),
        (("-o", "cores=1"), "-o cores"),
        (("--profile", "cluster"), "--profile cluster"),
        (("--profile", "plain"), None),
        ((), None),
    ],
)
def test_options_that_the_code_overrides_are_named(
    run: Run, tmp_path: Path, options: tuple[str, ...], ignored: str | None
) -> None:
    (tmp_path / "rhapsody.toml").write_text(
        '[profile.cluster]\nbackend = "noop"\n[profile.plain.engine]\nmax_pending = 5\n'
    )
    script = """
        import asyncio
        from rhapsody import LocalExecutionBackend, WorkflowEngine
        async def main():
            backend = LocalExecutionBackend(resources={"cores": 3})
            async with WorkflowEngine.create(backend) as flow:
                print(flow.backend.name, flow.backend.machine.cores)
        if __name__ == "__main__":
            asyncio.run(main())
    """
    done = run(script, *options)
    assert (done.returncode, done.stdout) == (0, "local 3\n"), done.stderr
    said = [line for line in done.stderr.splitlines() if "is not used" in line]
    assert said == (
        [f"{ignored} is not used, because the code passes a backend to this engine; omit it there"]
        if ignored
        else []
    )
