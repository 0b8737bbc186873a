"""`rhapsody run`: programs that make their engines themselves, and modules."""

from __future__ import annotations

import ast
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from rhapsody.cli import scripts
from tests._support.command_line import SIMPLE, Run, check_mistake, environment, install_toy
from tests._support.forked import rhapsody

ENGINE = """
import asyncio
from rhapsody import WorkflowEngine

async def workflow():
    async with WorkflowEngine.create({given}) as flow:
        print(flow.backend.name, flow.work_dir.name)

asyncio.run(workflow())
"""


def run_module(
    place: Path, module: str, *arguments: str, files: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a module by `rhapsody run -m`, in a directory with these files."""
    (place / "site").mkdir(exist_ok=True)
    for name, source in files.items():
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
    command = ("run", "-m", module, *arguments)
    return rhapsody(*command, cwd=place, environment=environment(place / "site"), safe_path=True)


# What the syntax tree tells.

GUARD = "if __name__ == '__main__':\n"


@pytest.mark.parametrize(
    "source",
    [
        "async def main(flow): ...",
        "async def main(flow, count=3): ...",
        "async def main(*, flow): ...",
        "def main(flow): ...",
        "@decorated\nasync def main(flow): ...",
        "main = 3",
        "main: object = make()",
        "a, (main, b) = make()",
        "from mine import main",
        "from mine import workflow as main",
        "try:\n    from mine import main\nexcept ImportError:\n    async def main(flow): ...",
        "try:\n    import mine\nexcept ImportError:\n    async def main(flow): ...",
        "if debug:\n    pass\nelse:\n    async def main(flow): ...",
        "async def main(flow=None): ...",
        f"from mine import main\n{GUARD}    other()",
        f"async def main(flow): ...\n{GUARD}    asyncio.run(main(engine()))",
        "from mine import main\nasync def more(flow): await main(flow)",
    ],
)
def test_what_may_be_a_main_for_an_engine(source: str) -> None:
    assert scripts.takes_engine(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        "async def main(): ...",
        "def main(): ...",
        "def main(argv=None): ...",
        "async def main(*numbers, **options): ...",
        "@click.command()\ndef main(count): ...",
        "import main",
        "main: object",
        "from mine import main as other",
        "def f():\n    async def main(flow): ...",
        "class C:\n    async def main(self): ...",
        f"{GUARD}    main = run()",
        f"from mine import main\n{GUARD}    sys.exit(main())",
        f"from mine import main\n{GUARD}    typer.run(main)",
        f"main = lambda: 3\n{GUARD}    main()",
        f"def main(argv): ...\n{GUARD}    main(sys.argv)",
        f"async def main(argv=None): ...\n{GUARD}    asyncio.run(main())",
        "async def main(argv=None): ...\nasyncio.run(main())",
        "from mine import main\nraise SystemExit(main())",
        "@cli\nasync def main(count=1): ...",
        f"async def main(flow): ...\n{GUARD}    rhapsody.run(main)",
        "async def main(flow): ...\nrhapsody.run(main, backend='noop')",
        f"def main(flow): ...\ndef cli():\n    run(main)\n{GUARD}    cli()",
    ],
)
def test_what_is_no_main_for_an_engine(source: str) -> None:
    assert not scripts.takes_engine(ast.parse(source))


# Scripts that are run as they are.


def test_a_script_without_main_is_run_once_as_the_main_module(run: Run) -> None:
    done = run(
        """
        import asyncio, os, sys
        from rhapsody import WorkflowEngine

        print("once", __file__ == os.path.abspath("script.py"), __spec__, sys.argv[1:])
        assert vars(sys.modules["__main__"]) is globals()

        async def main():
            async with WorkflowEngine.create() as flow:
                @flow.function_task
                def double(x):
                    return 2 * x
                print("result", await double(2))

        if __name__ == "__main__":
            asyncio.run(main())
        """,
        "--",
        "--alpha",
    )
    assert done.stdout == "once True None ['--alpha']\nresult 4\n", done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "main",
    [
        "from lib import main",
        "from lib import work\nmain = lambda argv: work(argv)",
        "from lib import work\ndef main(argv):\n    return work(argv)",
    ],
    ids=["imported", "assigned", "plain"],
)
def test_a_main_that_the_program_calls_is_not_called_again(
    run: Run, tmp_path: Path, main: str
) -> None:
    (tmp_path / "lib.py").write_text(
        f"{ENGINE.format(given='').replace('asyncio.run(workflow())', '')}\n"
        "def work(argv):\n    asyncio.run(workflow())\n    return len(argv)\n"
        "main = work\n"
    )
    guard = "if __name__ == '__main__':\n    sys.exit(main(sys.argv))\n"
    done = run(f"import sys\n{main}\n{guard}", "-b", "noop", "-e", "work_dir=w", "--", "one", "two")
    assert (done.returncode, done.stdout) == (3, "noop w\n"), done.stderr


def test_a_main_whose_engine_may_be_left_out_gets_one_where_nothing_calls_it(run: Run) -> None:
    done = run("async def main(flow=None): print(flow.backend.name)", "-b", "noop")
    assert (done.returncode, done.stdout) == (0, "noop\n"), done.stderr


def test_options_are_for_each_engine_that_names_no_backend(run: Run) -> None:
    options = ("-b", "noop", "-e", "work_dir=here")
    assert run(ENGINE.format(given=""), *options).stdout == "noop here\n"
    assert run(ENGINE.format(given="None"), *options).stdout == "noop here\n"
    assert run(ENGINE.format(given="'local', work_dir='mine'"), *options).stdout == "local mine\n"
    assert run(ENGINE.format(given="backends=['local']"), *options).stdout == "local here\n"


def test_settings_make_each_engine_a_backend_of_its_own(run: Run, tmp_path: Path) -> None:
    install_toy(tmp_path)
    done = run(
        """
        import asyncio
        from rhapsody import WorkflowEngine

        async def main():
            async with WorkflowEngine.create() as one, WorkflowEngine.create() as other:
                assert one.backend is not other.backend
                print(one.backend.name, other.backend.speed)

        asyncio.run(main())
        """,
        *("-b", "toy", "-o", "speed=3"),
    )
    assert (done.returncode, done.stdout) == (0, "toy 3\n"), done.stderr


def test_a_program_may_register_the_backend_that_its_engines_get(run: Run) -> None:
    given = ENGINE.format(given="")
    script = f"from rhapsody.backends.noop import NoopExecutionBackend\n{given}"
    script = script.replace(
        "async def workflow",
        "from rhapsody import BackendRegistry\n"
        "BackendRegistry.register_backend('own', NoopExecutionBackend)\nasync def workflow",
    )
    assert run(script, "-b", "own", "-e", "work_dir=w").stdout == "noop w\n"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (("-b", "locl"), "Did you mean 'local'?"),
        (("-e", "retries=many"), "-e: retries must be"),
        (("-e", "keep_sandboxes=some"), "-e: keep_sandboxes must be one of"),
        (("-o", "executer=process"), "backend 'local' has no option 'executer'"),
    ],
)
def test_an_option_that_is_wrong_is_a_mistake_of_the_command_line(
    run: Run, option: tuple[str, str], expected: str
) -> None:
    check_mistake(run(ENGINE.format(given=""), *option), expected)


def test_failures_are_treated_as_the_command_line_says_and_the_program_first(
    run: Run, tmp_path: Path
) -> None:
    script = """
    import asyncio, os
    from rhapsody import WorkflowEngine

    async def main():
        async with WorkflowEngine.create(GIVEN) as flow:
            @flow.function_task
            async def bad():
                raise ValueError("bad sample")
            @flow.function_task
            async def good():
                while not os.path.exists(WAITS_FOR):
                    await asyncio.sleep(0.01)
                open("done.txt", "w").close()
            good()
            failing = bad()
            failing.add_done_callback(lambda _: open("failed.txt", "w").close())
            await failing

    asyncio.run(main())
    """
    made = tmp_path / "done.txt"
    for given, option, kept in [
        ("", (), True),
        ("", ("--fail-fast",), False),
        ("fail_fast=True", ("-k",), False),
        ("keep_going=True", ("--fail-fast",), True),
    ]:
        waits_for = "'failed.txt'" if kept else "'never.txt'"
        program = script.replace("GIVEN", given).replace("WAITS_FOR", waits_for)
        done = run(program, "--fresh", *option)
        assert done.returncode == 1
        assert "ValueError: bad sample" in done.stderr
        assert made.exists() is kept, (given, option)
        made.unlink(missing_ok=True)
        (tmp_path / "failed.txt").unlink()


def test_a_program_without_an_engine_is_reported(run: Run) -> None:
    done = run("print('hello')", "-b", "noop")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "script.py ran without creating a workflow engine" in done.stderr
    assert "write `def main(flow): ...`" in done.stderr


def test_a_hint_contains_the_path_of_a_script_in_another_directory(tmp_path: Path) -> None:
    (tmp_path / "my steps").mkdir()
    (tmp_path / "my steps" / "script.py").write_text("async def work(flow): ...")
    done = rhapsody("run", "my steps/script.py", cwd=tmp_path, environment=environment(tmp_path))
    assert "use rhapsody run 'my steps/script.py':work" in done.stderr


def test_a_workflow_with_another_name_leads_to_a_hint(run: Run) -> None:
    done = run("async def work(flow): ...\nasync def helper(): ...")
    assert "rhapsody run script.py:work\n" in done.stderr
    assert done.returncode == 0


def test_a_program_s_exit_code_is_its_own(run: Run) -> None:
    done = run("import sys\nsys.exit(7)")
    assert (done.returncode, done.stderr) == (7, "")
    done = run("raise SystemExit('my own words')")
    assert (done.returncode, done.stderr) == (1, "my own words\n")
    assert run("raise SystemExit(0)").returncode == 0


def test_a_failed_task_that_is_not_awaited_fails_the_program(run: Run) -> None:
    done = run("""
        import asyncio
        from rhapsody import WorkflowEngine

        async def main():
            async with WorkflowEngine.create() as flow:
                @flow.function_task
                def fails():
                    raise LookupError("nothing there")
                fails()

        asyncio.run(main())
    """)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_the_traceback_of_a_program_s_error_begins_in_it(run: Run) -> None:
    done = run("def inner():\n    raise KeyError('mine')\ninner()")
    assert done.returncode == 1
    files = [line for line in done.stderr.splitlines() if line.strip().startswith("File ")]
    assert len(files) == 2
    assert all("script.py" in file for file in files)
    assert done.stderr.endswith("KeyError: 'mine'\n")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_a_program_starts_import_it(run: Run, method: str) -> None:
    done = run(f"""
        import multiprocessing

        def work(x):
            return x + 1

        if __name__ == "__main__":
            with multiprocessing.get_context({method!r}).Pool(1) as pool:
                print(pool.map(work, [1, 2]))
    """)
    assert (done.returncode, done.stdout) == (0, "[2, 3]\n"), done.stderr


def test_functions_of_the_main_module_run_in_worker_processes(run: Run) -> None:
    done = run(
        """
        import asyncio, os
        from rhapsody import WorkflowEngine
        OFFSET = 10

        async def workflow():
            async with WorkflowEngine.create() as flow:
                @flow.function_task
                def where(x):
                    return x + OFFSET, os.getpid()
                value, pid = await where(1)
                assert pid != os.getpid()
                print(value)

        asyncio.run(workflow())
        """,
        *("-o", "executor=process", "-o", "workers=1"),
    )
    assert (done.returncode, done.stdout) == (0, "11\n"), done.stderr


LINKED = {
    "main for an engine": """
        import helper

        async def main(flow):
            task = flow.function_task(helper.double)
            print(await task(2), helper.__file__, __file__)
    """,
    "main module": """
        import asyncio, helper
        from rhapsody import WorkflowEngine

        async def workflow():
            async with WorkflowEngine.create() as flow:
                task = flow.function_task(helper.double)
                print(await task(2), helper.__file__, __file__)

        if __name__ == "__main__":
            asyncio.run(workflow())
    """,
}


@pytest.mark.parametrize("source", LINKED.values(), ids=LINKED)
def test_a_script_that_is_a_link_imports_the_modules_next_to_its_target(
    tmp_path: Path, source: str
) -> None:
    library, project = tmp_path / "library", tmp_path / "project"
    library.mkdir()
    project.mkdir()
    (project / "helper.py").write_text("raise ImportError('next to the link')\n")
    (library / "script.py").write_text(textwrap.dedent(source))
    (project / "script.py").symlink_to("../library/script.py")
    command = ("run", "-o", "executor=process", "-o", "workers=1", "--resume", "script.py")
    for value, factor in (("4", 2), ("4", 2), ("6", 3)):
        # Python compiles a module again only if its size or the second of its time differs.
        text = f"def double(x):\n    return {factor} * x{' ' * factor}\n"
        (library / "helper.py").write_text(text)
        done = rhapsody(*command, cwd=project, environment=environment(tmp_path))
        assert done.returncode == 0, done.stderr
        expected = [value, str(library / "helper.py"), str(project / "script.py")]
        assert done.stdout.split() == expected


# Modules.


def test_the_main_of_a_module_is_called_with_an_engine(tmp_path: Path) -> None:
    source = f"from .names import NAME\nprint(NAME, __name__)\n{SIMPLE}"
    done = run_module(
        tmp_path,
        "package.flow",
        files={
            "package/__init__.py": "",
            "package/flow.py": source,
            "package/names.py": "NAME = 'package'",
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "package package.flow\nresult 4\n"


def test_a_module_s_functions_run_in_worker_processes(tmp_path: Path) -> None:
    source = """
    class Point:
        pass

    async def main(flow):
        @flow.function_task
        def make():
            return Point()
        assert type(await make()) is Point
        print("the same")
    """
    options = ("-o", "executor=process", "-o", "workers=1")
    done = run_module(tmp_path, "flow", *options, files={"flow.py": source})
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr


def test_another_function_of_a_module(tmp_path: Path) -> None:
    files = {"flow.py": "async def other(flow): print('other')"}
    done = run_module(tmp_path, "flow:other", files=files)
    assert (done.returncode, done.stdout) == (0, "other\n"), done.stderr
    check_mistake(run_module(tmp_path, "flow:othr", files=files), "did you mean 'other'?")


def test_a_module_that_makes_its_engine_is_run_as_python_runs_it(tmp_path: Path) -> None:
    source = """
    import os, sys
    assert sys.argv[0] == __file__ == os.path.abspath("package/flow.py")
    assert sys.path[0] == os.getcwd()
    print(__name__, __spec__.name, __package__, sys.argv[1:])
    """ + textwrap.indent(ENGINE.format(given=""), "    ")
    done = run_module(
        tmp_path,
        *("package.flow", "-b", "noop", "-e", "work_dir=w", "--", "-x"),
        files={"package/__init__.py": "", "package/flow.py": source},
    )
    assert done.stdout == "__main__ package.flow package ['-x']\nnoop w\n", done.stderr
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_is_its_main_module_and_its_processes_import_that(tmp_path: Path) -> None:
    main = """
    import multiprocessing, sys
    from package.work import work

    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(__spec__.name, pool.map(work, [1]))
    """
    done = run_module(
        tmp_path,
        "package",
        files={"package/__main__.py": main, "package/work.py": "def work(x): return x + 1"},
    )
    assert (done.returncode, done.stdout) == (0, "package.__main__ [2]\n"), done.stderr


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            "nowhere.flow",
            "module 'nowhere', a parent of 'nowhere.flow', does not exist (looked in ",
        ),
        ("package.nothing", "module 'package.nothing' does not exist (looked in "),
        ("package", "package 'package' cannot be run"),
        ("package.flow.more", "module 'package.flow.more' does not exist (looked in "),
        ("package/flow", "'package/flow' is not a module name; write -m package.module"),
        ("broken.flow", "broken.flow cannot be loaded: "),
        ("package/flow.py", "-m takes a module, but 'package/flow.py' is a file"),
    ],
)
def test_a_module_that_is_not_there_is_named(tmp_path: Path, module: str, expected: str) -> None:
    files = {"package/__init__.py": "", "package/flow.py": "", "broken/__init__.py": "import nope"}
    check_mistake(run_module(tmp_path, module, files=files), expected)


def test_a_script_or_a_module_and_one_of_the_two(run: Run) -> None:
    done = run(SIMPLE, "-m", "json.tool")
    assert done.returncode == 2
    assert "argument -m/--module: not allowed with argument SCRIPT[:FUNC]" in done.stderr
