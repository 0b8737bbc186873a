"""`rhapsody run --dry-run`: nothing is run, and the graph is shown as far as it was reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsody.builtin.journal.store import opened
from tests._support.command_line import Run, check_mistake

GRAPH = """\
TASK         NAME  DEPENDS ON
task.000001  load  -
task.000002  load  -
task.000003  join  task.000001, task.000002
3 tasks: 2 load, 1 join
"""

LOOKS = "the program inspects the value of a task, which a dry run does not compute"

TASKS = """
from pathlib import Path
import asyncio
from rhapsody import WorkflowEngine

def define(flow):
    @flow.function_task
    def load(name):
        Path("ran").touch()

    @flow.function_task
    def join(left, right):
        Path("ran").touch()

    return load, join
"""

MAIN = f"""{TASKS}
async def main(flow):
    load, join = define(flow)
    joined = join(load("a"), load("b"))
"""


def program(given: str, *lines: str) -> str:
    """A script that makes its engine, calls three tasks, and then has these lines."""
    more = "\n".join(f"        {line}" for line in lines)
    return f"""{TASKS}
async def workflow():
    async with WorkflowEngine.create({given}) as flow:
        load, join = define(flow)
        joined = join(load("a"), load("b"))
{more}

asyncio.run(workflow())
"""


@pytest.mark.parametrize(
    "script",
    [MAIN, program(""), program("dry_run=False"), program("None, False"), program("dry_run=True")],
    ids=["main", "program", "dry_run=False", "positional", "dry_run=True"],
)
def test_the_graph_is_shown_and_nothing_is_run(run: Run, tmp_path: Path, script: str) -> None:
    done = run(script, "--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (0, GRAPH, "")
    assert not (tmp_path / "ran").exists()


def test_settings_for_a_misspelled_task_are_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rhapsody.toml").write_text(
        "[tasks.jion]\ncores = 2\n[tasks.load]\ncores = 2\n[tasks.other]\ncores = 2\n"
    )
    done = run(MAIN, "--dry-run")
    assert (done.returncode, done.stdout) == (0, GRAPH)
    said = "rhapsody: rhapsody.toml:2: no task named 'jion' was called; did you mean 'join'?\n"
    assert done.stderr == said


def test_missing_environments_are_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "image.sif").touch()
    script = """
    async def main(flow):
        tool = flow.executable_task(name="tool", modules=["gcc"])(lambda *_: "tool")
        first = tool.options(container="image.sif")()
        for name in ("second", "third"):
            tool.options(name=name, venv="nowhere")(first)
        tool.options(conda="./none")(first)
    """
    done = run(script, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.count("task.000001") == 4
    said, more = done.stderr.splitlines()
    assert "task 'second', on this machine: venv=" in said
    assert "nowhere' is not a virtual environment" in said
    assert "task 'tool', on this machine: conda=" in more


@pytest.mark.parametrize(
    "script",
    [
        MAIN + "    print(1 + await joined)\n    load('never')\n",
        program("", "print(1 + await joined)", "load('never')"),
    ],
    ids=["main", "program"],
)
def test_a_value_that_is_looked_at_ends_the_graph(run: Run, script: str) -> None:
    line = script[: script.index("1 + await")].count("\n") + 1
    done = run(script, "--dry-run")
    assert (done.returncode, done.stdout) == (0, GRAPH)
    said, *more = done.stderr.splitlines()
    assert more == []
    assert said == (
        f"the dry run stopped at script.py, line {line}: {LOOKS}. The graph up to this line:"
    )


@pytest.mark.parametrize(
    "look",
    [
        '"x" not in value',
        "for part in value: load(part)",
        "if value: load('never')",
        "assert value != 3",
        "value[0]",
        "len(value)",
        "{value: 1}",
        "sorted([value, value])",
        "'a' + value",
        "value % 3",
        "2 * value",
        "float(value)",
        "value.split()",
        "flow.map(load, value)",
        "Path(f'{value}').exists(), json.loads(value)",
    ],
)
def test_whatever_looks_at_a_value_ends_the_graph(run: Run, look: str) -> None:
    script = f"import json\n{MAIN}    value = await joined\n    {look}\n    load('never')\n"
    done = run(script, "--dry-run")
    line = script[: script.index(look)].count("\n") + 1
    assert (done.returncode, done.stdout) == (0, GRAPH)
    assert f" script.py, line {line}: {LOOKS}. " in done.stderr


def test_a_value_may_be_handed_on_printed_and_formatted(run: Run) -> None:
    script = """
    import asyncio, copy, pickle
    async def main(flow):
        @flow.function_task
        def make(*given, **named): ...
        @flow.executable_task
        def show(tool, word):
            return [tool, "--name", word]
        @flow.executable_task
        def call(command):
            return command
        @flow.block
        async def inner(value):
            return value
        value = await inner(make())
        await asyncio.gather(make(value, [value], {"a": value}, make()), show(value, make()))
        await call(show(make(), value))
        print(value, f"{value:>14}", "%s" % value, "{}".format(value), repr(value))
        copied = pickle.loads(pickle.dumps(copy.deepcopy([value])))
        print(copied, value is None, isinstance(value, str), (await call("true")))
    """
    done = run(script, "--dry-run", "-v")
    shown = "Dummy Output   Dummy Output Dummy Output Dummy Output 'Dummy Output'"
    lines = done.stdout.splitlines()
    assert lines[:2] == [shown, "['Dummy Output'] False True Dummy Output"], done.stderr
    assert "stopped" not in done.stderr
    assert done.returncode == 0


def test_what_a_program_says_of_its_own_dry_runs_is_stopped_as_well(run: Run) -> None:
    done = run(program("dry_run=True", "print(1 + await joined)"), "--dry-run")
    assert f": {LOOKS}. " in done.stderr


def test_another_error_is_shown_with_what_tasks_give(run: Run) -> None:
    done = run(f"{MAIN}    (await joined).energy\n", "--dry-run")
    assert "AttributeError: 'NoValue' object has no attribute 'energy'" in done.stderr
    assert "(in a dry run, tasks return 'Dummy Output')" in done.stderr


def test_where_it_stopped_is_in_the_user_s_files_and_said_in_one_line(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "helper.py").write_text(
        "import json\n\ndef check(value):\n    try:\n        json.loads(value)\n"
        "    except ValueError as error:\n        error.add_note('noted')\n        raise\n"
    )
    done = run(
        "from helper import check\nasync def main(flow):\n    check('{')\n    check('\\n')",
        "--dry-run",
    )
    assert done.stderr.startswith("the dry run stopped at helper.py, line 5: JSONDecodeError: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.endswith("no task was called\n")


@pytest.mark.parametrize(
    "lines",
    [
        ["async with asyncio.TaskGroup() as group:", "    group.create_task(check(joined))"],
        ["@flow.executable_task", "def show(x):", "    return x + 1", "await load(show(joined))"],
    ],
    ids=["group", "dependent"],
)
def test_what_failed_first_is_where_it_stopped(run: Run, lines: list[str]) -> None:
    script = program("", *lines).replace(
        "async def workflow", "async def check(future):\n    await future + 1\n\nasync def workflow"
    )
    done = run(script, "--dry-run")
    place = script.index("future + 1" if "group" in lines[0] else "x + 1")
    line = script[:place].count("\n") + 1
    assert done.returncode == 0
    assert f"the dry run stopped at script.py, line {line}: {LOOKS}. " in done.stderr


def test_an_engine_that_was_not_ended_shows_its_graph(run: Run) -> None:
    script = f"""{TASKS}
async def workflow():
    flow = await WorkflowEngine.create()
    load, join = define(flow)
    await join(load("a"), load("b"))
    raise KeyError("mine")

asyncio.run(workflow())
"""
    done = run(script, "--dry-run")
    assert (done.returncode, done.stdout) == (0, GRAPH)
    assert "KeyError: 'mine'" in done.stderr


def test_each_of_several_engines_has_its_graph(run: Run) -> None:
    given = """
import asyncio
from rhapsody import WorkflowEngine

async def workflow():
    for uid in ("one", "two"):
        async with WorkflowEngine.create(uid=uid) as flow:
            @flow.function_task
            def load(): ...
            load()

asyncio.run(workflow())
"""
    task = "TASK         NAME  DEPENDS ON\ntask.000001  load  -\n"
    assert run(given, "--dry-run").stdout == f"engine one\n{task}engine two\n{task}"


def test_a_command_that_looks_at_a_value_does_not_fail_a_dry_run(run: Run) -> None:
    script = """
    async def main(flow):
        @flow.executable_task
        def count(number):
            return f"seq {number + 1}"
        count(count(1))
    """
    done = run(script, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [
        "task.000001  count  -",
        "task.000002  count  task.000001",
        "2 tasks: 2 count",
    ]


def test_dry_run_does_not_start_the_named_backend(run: Run) -> None:
    done = run(MAIN, "--dry-run", "-b", "local", "-o", "cores=2")
    assert (done.returncode, done.stdout, done.stderr) == (0, GRAPH, "")


def test_a_backend_that_the_program_names_is_not_started(run: Run, tmp_path: Path) -> None:
    done = run(program("'local'"), "--dry-run")
    check_mistake(done, "script.py passes a backend to WorkflowEngine.create(", "-b NAME")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_a_program_s_own_dry_run_is_its_own_business(run: Run) -> None:
    done = run(program("dry_run=True", "raise KeyError('mine')"), "-b", "local")
    assert (done.returncode, done.stdout) == (1, "")
    assert "KeyError: 'mine'" in done.stderr


def test_an_error_before_there_is_an_engine_is_the_program_s(run: Run) -> None:
    done = run("raise KeyError('mine')", "--dry-run")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback")


def test_an_exit_code_of_the_program_s_is_kept(run: Run) -> None:
    done = run(MAIN + "    raise SystemExit(3)\n", "--dry-run")
    assert (done.returncode, done.stdout) == (3, GRAPH)


def test_it_is_no_option_of_the_engine(run: Run) -> None:
    check_mistake(run(MAIN, "-e", "dry_run=true"), "-e dry_run: use --dry-run")


SERVED = """
from rhapsody import InputFile

async def main(flow):
    @flow.executable_task(service=True, ready="stdout:(listening)")
    def serve(model):
        return f": {model}; echo listening; exec sleep 60"

    @flow.function_task
    def ask(host, number):
        return number

    service = serve(InputFile("model.txt"))
    for future in [ask(service, 1), ask(service, 2)]:
        await future
"""


def test_with_resume_it_compares_services(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("one")
    assert run(SERVED).returncode == 0

    def previewed() -> list[str]:
        lines = run(SERVED, "--dry-run", "--resume").stdout.splitlines()[1:-1]
        return [line.split(maxsplit=3)[3] for line in lines]

    assert previewed() == ["runs", "reused", "reused"]
    (tmp_path / "model.txt").write_text("two")
    changed = "runs: service 'serve': input file model.txt changed"
    assert previewed() == ["runs", changed, changed]


PREVIEWED = """
from helpers import scale
from rhapsody import InputFile, OutputFile

async def main(flow):
    @flow.executable_task
    def make(out):
        return f"echo made > {out}"

    @flow.function_task
    def read(file):
        open("ran", "a").close()
        return open(file).read()

    @flow.function_task
    def work(value):
        open("ran", "a").close()
        return scale(value)

    made = make(OutputFile("a.txt", save="out/"))
    assert await read(made.file("a.txt")) == "made\\n"
    read(InputFile("in.txt"))
    work(work(1))
    made.cancel()
"""


def test_with_resume_it_shows_what_would_run_and_why_and_changes_nothing(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "helpers.py").write_text("def scale(number):\n    return number\n")
    (tmp_path / "in.txt").write_text("one")
    first = run(PREVIEWED, "--dry-run", "--resume")
    assert "no earlier run with these arguments is recorded" in first.stderr
    assert run(PREVIEWED).returncode == 0
    (tmp_path / "helpers.py").write_text("def scale(number):\n    return 2 * number\n")
    (tmp_path / "in.txt").write_text("two")
    (tmp_path / "ran").unlink()
    before = sorted(tmp_path.rglob("*"))
    done = run(PREVIEWED, "--dry-run", "--resume")
    assert done.stdout.splitlines() == [
        "TASK         NAME  DEPENDS ON   WITH --resume",
        "task.000001  make  -            reused",
        "task.000002  read  task.000001  reused",
        "task.000003  read  -            runs: input file in.txt changed",
        "task.000004  work  -            runs: scale in helpers.py (line 1) changed",
        "task.000005  work  task.000004  runs: depends on task.000004, which runs",
        "5 tasks: 1 make, 2 read, 2 work; 3 would run",
    ], done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    rerun = run(PREVIEWED, "--dry-run", "--rerun", "make")  # implies --resume
    assert "WITH --resume" in rerun.stdout.splitlines()[0]
    assert "task.000001  make  -            runs: requested by --rerun" in rerun.stdout
    (journal,) = (tmp_path / ".rhapsody" / "journals").iterdir()
    with opened(journal) as reader:
        assert [each.how for each in reader.runs()] == ["done"]
    journal.write_bytes(b"garbage" * 1000)
    before = sorted(tmp_path.rglob("*"))
    check_mistake(run(PREVIEWED, "--dry-run", "--resume"), f"journal {journal} cannot be read")
    assert sorted(tmp_path.rglob("*")) == before


MISSING = """
from pathlib import Path
from rhapsody import InputFile, OutputFile

async def main(flow):
    @flow.executable_task
    def make(number, out):
        return f"echo {number} > {out}"

    @flow.executable_task
    def copy(file, out):
        return f"cat {file} > {out}"

    @flow.function_task
    def read(left, right):
        return open(left).read() + open(right).read()

    make(1, OutputFile("first.txt", temporary=True))
    copy(InputFile("first.txt"), OutputFile("second.txt", temporary=True))
    make(2, OutputFile("unread.txt"))
    make(3, OutputFile("results/saved.txt"))
    read(InputFile("second.txt"), InputFile("results/saved.txt"))
    read(InputFile("second.txt"), InputFile("extra.txt"))
"""


def test_with_resume_it_shows_which_tasks_run_again_for_missing_files(
    run: Run, tmp_path: Path
) -> None:
    def dry_run() -> list[str]:
        shown = run(MISSING, "--dry-run", "--resume")
        return [line.split("  ")[-1].strip() for line in shown.stdout.splitlines()[1:-1]]

    (tmp_path / "extra.txt").write_text("one")
    assert run(MISSING).returncode == 0
    for file in tmp_path.glob(".rhapsody/*/*/*/unread.txt"):
        file.unlink()
    missing = "reused; its missing file {} is written again only if it is read or saved"
    assert dry_run() == [
        missing.format("first.txt"),
        missing.format("second.txt"),
        missing.format("unread.txt"),
        *["reused"] * 3,
    ]
    (tmp_path / "extra.txt").write_text("two")
    (tmp_path / "results" / "saved.txt").unlink()
    assert dry_run() == [
        "result reused, but the task runs again to recreate first.txt, which task.000002 reads",
        "result reused, but the task runs again to recreate second.txt, which task.000005 reads",
        missing.format("unread.txt"),
        "runs: its output saved.txt is missing",
        "runs: depends on task.000004, which runs",
        "runs: input file extra.txt changed",
    ]
    done = run(MISSING, "--resume")
    assert "rerunning 2 tasks of an earlier run" in done.stderr
    assert "(4 of them reused)" in done.stderr


MANY = """
async def main(flow):
    part = flow.function_task(name="part")(int)
    total = flow.function_task(name="total")(max)
    await total([part(number) for number in range(200)])
"""


@pytest.mark.parametrize(("options", "runs"), [([], ""), (["--resume"], "; none would run")])
def test_many_dependencies_do_not_widen_all_rows(run: Run, options: list[str], runs: str) -> None:
    assert run(MANY).returncode == 0
    lines = run(MANY, "--dry-run", *options).stdout.splitlines()
    assert len(lines) == 203
    assert max(map(len, lines)) < 120
    assert "and 197 more" in lines[-2]
    assert lines[-1] == f"201 tasks: 200 part, 1 total{runs}"


def test_the_graph_is_drawn_into_a_file(run: Run, tmp_path: Path) -> None:
    for _ in range(2):  # the second one replaces the file
        assert run(MANY, "--dry-run", "--graph", "graph.mmd").returncode == 0
    lines = (tmp_path / "graph.mmd").read_text().splitlines()
    assert lines[:4] == [
        "flowchart TD",
        '  n1["part<br/>200 waiting"]:::waiting',
        '  n2["total<br/>1 waiting"]:::waiting',
        "  n1 -->|200| n2",
    ]
    assert run(MANY).returncode == 0
    changed = MANY.replace("(max)", "(min)")
    assert run(changed, "--dry-run", "--resume", "--graph", "graph.dot").returncode == 0
    drawn = (tmp_path / "graph.dot").read_text()
    assert "200 reused" in drawn
    assert "1 waiting" in drawn


def test_mistakes_with_graphs_are_reported(run: Run) -> None:
    check_mistake(run(MANY, "--graph", "graph.mmd"), "--graph needs --dry-run")
    check_mistake(run(MANY, "--dry-run", "--graph", "graph.png"), "must end with .mmd, .dot, .svg")
    done = run(MANY, "--dry-run", "--graph", "missing/graph.mmd")
    assert done.returncode == 1
    assert "missing/graph.mmd cannot be written: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
