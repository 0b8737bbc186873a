"""Each hook, implemented by a distribution that is installed, does its part in a real run.

The tests are named for the hooks; a test of the documentation holds that none is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rhapsody import (
    BackendRegistry,
    LocalExecutionBackend,
    NoopExecutionBackend,
    WorkflowEngine,
    current_task,
    hookimpl,
)
from rhapsody.backends.noop import DUMMY_OUTPUT
from rhapsody.cli import main
from rhapsody.cli.plugin_options import add_options
from rhapsody.plugins import CommandOption, NodeSample, manager
from tests._support.distributions import BACKEND, declaration, install, unique
from tests._support.histories import Records


@pytest.fixture
def site(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manager, "_reported", set())
    return site


class Given:
    """An observer that is passed to an engine."""

    @hookimpl
    def rhapsody_workflow_started(self) -> None: ...


class Installed:
    """A plugin of a distribution of its own; `seen` is what its module has collected."""

    def __init__(self, site: Path, source: str) -> None:
        self._module = unique("each_hook")
        text = f"from rhapsody import hookimpl\nseen = []\n\n@hookimpl\n{source}"
        install(site, "each-hook", plugins={"x": self._module}, modules={self._module: text})

    @property
    def module(self) -> ModuleType:
        return sys.modules[self._module]

    @property
    def seen(self) -> list[Any]:
        found: list[Any] = self.module.seen
        return found


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(limited())


async def squares(*numbers: int, **settings: Any) -> list[Any]:
    """A small workflow: the squares, and the uid of its engine first."""
    async with WorkflowEngine.create(NoopExecutionBackend(), **settings) as flow:
        square = flow.function_task(name="square")(lambda x: x * x)
        return [flow.uid, *await asyncio.gather(*(square(number) for number in numbers))]


def test_rhapsody_backends_declares_a_backend_that_tasks_then_run_on(site: Path) -> None:
    light, heavy = unique("light"), unique("heavy")
    install(
        site,
        "each-hook",
        backends={"declared": light},
        modules={
            light: declaration(f"name='declared', import_path='{heavy}:Backend'"),
            heavy: BACKEND.format(name="declared"),
        },
    )

    async def workflow() -> Any:
        async with WorkflowEngine.create("declared") as flow:
            return await flow.function_task(lambda: "not called")()

    assert BackendRegistry.describe("declared").distribution == "each-hook"
    assert run(workflow()) == "ran"


def test_rhapsody_workflow_started_is_called_once_for_each_engine(site: Path) -> None:
    plugin = Installed(site, "def rhapsody_workflow_started(engine): seen.append(engine.uid)")
    uids = [run(squares(1, 2))[0], run(squares())[0]]
    assert plugin.seen == uids


def test_rhapsody_workflow_finished_is_called_once_with_the_summary(site: Path) -> None:
    plugin = Installed(
        site, "def rhapsody_workflow_finished(engine, summary): seen.append((engine.uid, summary))"
    )
    uid = run(squares(1, 2, 3))[0]
    ((seen, summary),) = plugin.seen
    assert seen == summary.uid == uid
    assert summary.stats.done == 3
    assert summary.still_running == ()
    assert summary.seconds >= 0


def test_rhapsody_observers_adds_observers_to_each_engine(site: Path) -> None:
    plugin = Installed(
        site,
        "def rhapsody_observers(observers): return [Ends(observers)]\n\n"
        "class Ends:\n"
        "    def __init__(self, observers): self.given = observers\n"
        "    @hookimpl\n"
        "    def rhapsody_workflow_finished(self, engine):\n"
        "        seen.append((engine.uid, self.given))",
    )
    given = Given()
    uids = [run(squares(1, observers=[given]))[0], run(squares(2))[0]]
    assert plugin.seen == [(uids[0], [given]), (uids[1], [])]


@pytest.mark.parametrize(
    "answer", ["3", "[object()]", "[int]", "1 / 0"], ids=["number", "no-hooks", "class", "raises"]
)
def test_rhapsody_observers_is_reported_if_its_observers_are_not_usable(
    site: Path, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    Installed(site, f"def rhapsody_observers(): return {answer}")
    assert run(squares(2))[1:] == [DUMMY_OUTPUT]
    assert "plugin each-hook: rhapsody_observers raised" in caplog.text


def test_rhapsody_trace_tasks_sets_the_context_of_attempts_that_are_submitted(site: Path) -> None:
    plugin = Installed(
        site,
        "def rhapsody_trace_tasks(engine, tasks):\n"
        "    for task in tasks:\n"
        "        seen.append(task['uid'])\n"
        "        task['trace_context'] = {'traceparent': task['uid'], 'x-vendor': '1'}\n\n"
        "@hookimpl\n"
        "def rhapsody_task_calls(calls): seen.extend(call.uid for call in calls)",
    )

    async def workflow() -> Any:
        async with WorkflowEngine.create(LocalExecutionBackend()) as flow:
            called = flow.function_task(lambda: (current_task().uid, current_task().trace_context))
            own = flow.executable_task(lambda: "echo $TRACEPARENT $X_VENDOR")
            return await called(), await own()

    (uid, context), output = run(workflow())
    assert context == {"traceparent": uid, "x-vendor": "1"}
    assert output.split() == [plugin.seen[-1], "1"]
    assert plugin.seen[:2] == ["task.000001", uid]  # the call is reported first


def test_rhapsody_task_calls_describes_each_call_before_its_events(site: Path) -> None:
    plugin = Installed(
        site,
        "def rhapsody_task_calls(calls): seen.append([call.call for call in calls])\n\n"
        "@hookimpl\n"
        "def rhapsody_task_events(events): seen.append([event.uid for event in events])",
    )
    run(squares(1, 2))
    assert plugin.seen[0] == ["square(1)", "square(2)"]
    assert {uid for batch in plugin.seen[1:] for uid in batch} == {"task.000001", "task.000002"}


def test_rhapsody_task_events_tells_each_state_of_each_task_in_order(site: Path) -> None:
    plugin = Installed(site, "def rhapsody_task_events(events): seen.extend(events)")
    run(squares(1, 2))
    for uid in ("task.000001", "task.000002"):
        told = [str(event.state) for event in plugin.seen if event.uid == uid]
        assert told == ["PENDING", "SUBMITTED", "DONE"]
    assert {event.name for event in plugin.seen} == {"square"}


def test_rhapsody_task_events_comes_in_batches_also_for_a_fan(site: Path) -> None:
    plugin = Installed(site, "def rhapsody_task_events(events): seen.append(list(events))")
    run(squares(*range(2000)))
    states = [event.state for batch in plugin.seen for event in batch]
    assert len(states) == 3 * 2000
    assert len(plugin.seen) < 50
    numbers = [event.uid for batch in plugin.seen for event in batch if event.state == "DONE"]
    assert numbers == sorted(numbers)


def test_rhapsody_node_samples_tells_the_load_of_nodes(site: Path) -> None:
    plugin = Installed(site, "def rhapsody_node_samples(samples): seen.extend(samples)")
    sample = NodeSample("node17", 5.0, 0.5, 0.25, 2**34)

    class Backend(LocalExecutionBackend):
        def watch_nodes(self, report: Callable[[NodeSample], object] | None) -> None:
            if report is not None:
                report(sample)

    async def workflow() -> Any:
        async with WorkflowEngine.create(Backend()) as flow:
            return await flow.function_task(lambda x: x * x)(2)

    run(workflow())
    (told,) = [each for each in plugin.seen if each.node == "node17"]
    assert told == sample._replace(time=told.time)


def test_rhapsody_prepare_task_changes_what_is_run(site: Path) -> None:
    Installed(site, "def rhapsody_prepare_task(task): task['args'] = (task['args'][0] + 1,)")

    async def workflow() -> Any:
        async with WorkflowEngine.create(LocalExecutionBackend()) as flow:
            return await flow.function_task(lambda x: x * x)(2)

    assert run(workflow()) == 9


def test_rhapsody_select_backend_sends_a_task_elsewhere_unless_it_names_a_backend(
    site: Path,
) -> None:
    plugin = Installed(
        site,
        "def rhapsody_select_backend(task, candidates):\n"
        "    seen.append((task['name'], candidates))\n    return 'noop'\n",
    )

    async def workflow() -> list[Any]:
        backends = [LocalExecutionBackend(), NoopExecutionBackend()]
        async with WorkflowEngine.create(backends) as flow:
            free = flow.function_task(name="free")(lambda: "ran")
            bound = flow.function_task(name="bound", backend="local")(lambda: "ran")
            return [await free(), await bound()]

    assert run(workflow()) == [DUMMY_OUTPUT, "ran"]
    assert plugin.seen == [("free", ("local", "noop"))]


def test_rhapsody_lookup_results_takes_the_place_of_running(site: Path) -> None:
    plugin = Installed(
        site,
        "def rhapsody_lookup_results(tasks):\n"
        "    from rhapsody.plugins.specs import Recorded\n"
        "    seen.append(len(tasks))\n"
        "    return [Recorded(None) if task['args'] == (1,) else None for task in tasks]\n",
    )
    assert run(squares(1, 2))[1:] == [None, DUMMY_OUTPUT]
    assert sum(plugin.seen) == 2


def test_rhapsody_record_results_gets_a_result_before_its_future_is_set(site: Path) -> None:
    plugin = Installed(
        site,
        "async def rhapsody_record_results(records):\n"
        "    import asyncio\n"
        "    await asyncio.sleep(0)\n"
        "    seen.extend((record.uid, record.value, list(order)) for record in records)\n"
        "order = []\n",
    )

    async def workflow() -> None:
        async with WorkflowEngine.create("local") as flow:
            await flow.function_task(lambda: 1)()
            plugin.module.order.append("future")

    run(workflow())
    assert plugin.seen == [("task.000001", 1, [])]


def test_rhapsody_commands_adds_a_command_with_arguments_help_and_exit_code(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Installed(
        site,
        "def rhapsody_commands(cli):\n"
        "    cli.add_command('count', 'counts words', configure, run)\n\n"
        "def configure(parser): parser.add_argument('words', nargs='*')\n\n"
        "def run(arguments):\n    print(len(arguments.words))\n    return 7\n",
    )
    assert main(["count", "a", "b"]) == 7
    assert capsys.readouterr().out == "2\n"
    assert main(["--plugins"]) == 0
    assert "counts words" in capsys.readouterr().out


def test_rhapsody_commands_adds_an_export_format(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Installed(
        site,
        "def rhapsody_commands(cli):\n"
        "    cli.add_export_format('lines', '.txt', write)\n"
        "    cli.add_export_format('broken', '.txt', fail)\n\n"
        "def write(record, output):\n"
        "    output.write_text(str(record.read_text().count('\\n')))\n\n"
        "def fail(record, output):\n"
        "    raise OSError(28, 'No space left on device')\n",
    )
    with Records(tmp_path) as records:
        records.write("20260101T000000-align-00a1")
        assert main(["export", "--format", "lines"]) == 0
        written = Path("20260101T000000-align-00a1.txt")
        assert f"wrote {written}, in the format lines" in capsys.readouterr().err
        assert int(written.read_text()) > 0
        assert main(["export", "--format", "lines"]) == 1
        assert f"{written} already exists" in capsys.readouterr().err
        assert main(["export", "--format", "broken", "-o", "x"]) == 1
        assert "cannot write x: No space left on device" in capsys.readouterr().err
        assert main(["export", "--format", "line"]) == 2
        assert "lines, broken" in capsys.readouterr().err


def test_rhapsody_commands_adds_an_export_format_with_options(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Installed(
        site,
        "def rhapsody_commands(cli):\n"
        "    from typing import Literal\n"
        "    from rhapsody.plugins import CommandOption\n"
        "    options = [CommandOption('line_end', Literal['lf', 'crlf'], 'the end of lines')]\n"
        "    cli.add_export_format('text', '.txt', write, options)\n"
        "    cli.add_export_format('other', '.txt', write)\n\n"
        "def write(record, output, line_end):\n"
        "    output.write_text(str(line_end))\n"
        "    return 'a description'\n",
    )
    with Records(tmp_path) as records:
        records.write("20260101T000000-align-00a1")
        assert main(["export", "--format", "text", "-o", "a"]) == 0
        assert "wrote a, a description" in capsys.readouterr().err
        assert main(["export", "--format", "text", "-o", "b", "--line-end", "crlf"]) == 0
        assert [Path(name).read_text() for name in "ab"] == ["None", "crlf"]
        assert main(["export", "--format", "other", "--line-end", "lf"]) == 2
        assert "--line-end can only be used with --format text" in capsys.readouterr().err


MARKED = """def rhapsody_run_options():
    return [CommandOption("mark", str, "100% of a text"), CommandOption("twice", bool, "twice")]

from contextlib import contextmanager
from rhapsody.plugins import CommandOption, UsageError

class Observer:
    @hookimpl
    def rhapsody_workflow_started(self):
        seen.append("engine")

@contextmanager
def marked(run):
    seen.append((run.program, run.dry_run, dict(run.options)))
    try:
        yield Observer()
    finally:
        seen.append("ended")
    if run.options["mark"] == "torn":
        raise KeyError("mark")

@hookimpl
def rhapsody_run_started(run):
    if run.options["mark"] == "refused":
        raise UsageError("no such mark")
    if run.options["mark"] == "broken":
        raise KeyError("mark")
    return marked(run) if run.options["mark"] else None

@hookimpl
def rhapsody_run_ended(outcome, exit_code):
    seen.append((outcome, exit_code))
"""
"""Plugin with two options of `rhapsody run`."""


@pytest.fixture
def runs_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what `rhapsody run` leaves in its process, which normally ends."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    yield
    sys.modules.pop("__rhapsody_script__", None)


@pytest.fixture
def marked(site: Path, tmp_path: Path, runs_here: None) -> Installed:
    (tmp_path / "wf.py").write_text("async def main(flow):\n    print('ran')\n")
    return Installed(site, MARKED)


def test_rhapsody_run_options_adds_options_that_rhapsody_run_started_receives(
    marked: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    assert "--mark MARK" in text
    assert "100% of a text" in text
    assert main(["run", "-q", "wf.py"]) == 0
    assert marked.seen == [("done", 0)]
    marked.seen.clear()
    assert main(["run", "-q", "--mark", "x", "--twice", "wf.py"]) == 0
    options = {"mark": "x", "twice": True}
    assert marked.seen == [("wf.py", False, options), "engine", ("done", 0), "ended"]


def test_rhapsody_run_ended_receives_the_outcome_before_rhapsody_run_started_is_left(
    marked: Installed, tmp_path: Path
) -> None:
    (tmp_path / "wf.py").write_text("raise ValueError('wrong')\n")
    assert main(["run", "-q", "--mark=x", "wf.py"]) == 1
    assert marked.seen[-2:] == [("failed", 1), "ended"]


def test_rhapsody_run_started_may_refuse_the_run(
    marked: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "-q", "--mark", "refused", "wf.py"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "rhapsody: no such mark\n")
    assert marked.seen == [("failed", 2)]


@pytest.mark.usefixtures("marked")
def test_an_error_in_rhapsody_run_started_does_not_end_the_run(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["run", "-q", "--mark", "broken", "wf.py"]) == 0
    assert "ran" in capsys.readouterr().out
    assert "rhapsody_run_started raised KeyError" in caplog.text


@pytest.mark.usefixtures("marked")
def test_an_error_at_the_end_of_rhapsody_run_started_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(["run", "-q", "--mark", "torn", "wf.py"]) == 0
    text = "leaving the context manager that rhapsody_run_started returned raised KeyError"
    assert text in caplog.text


@pytest.mark.usefixtures("runs_here")
def test_a_path_among_the_options_starts_at_the_file_that_names_it(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Installed(
        site,
        "def rhapsody_run_options():\n"
        "    from pathlib import Path\n"
        "    from rhapsody.plugins import CommandOption\n"
        "    return [CommandOption('table', Path), CommandOption('plain')]\n\n@hookimpl\n"
        "def rhapsody_run_started(run):\n    seen.append(run.options)\n",
    )
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "wf.py").write_text("async def main(flow): pass\n")
    (tmp_path / "rhapsody.toml").write_text(
        "[plugins.each-hook]\ntable = 'table.csv'\nplain = 'table.csv'\n"
    )
    monkeypatch.chdir(tmp_path / "deeper")
    monkeypatch.setenv("HOME", "/at-home")
    assert main(["run", "-q", "wf.py"]) == 0
    assert main(["run", "-q", "--table=~/table.csv", "wf.py"]) == 0
    assert main(["run", "-q", "--table=table.csv", "wf.py"]) == 0
    assert plugin.seen == [
        {"table": path, "plain": "table.csv"}
        for path in (tmp_path / "table.csv", Path("/at-home/table.csv"), Path("table.csv"))
    ]


def test_an_option_that_another_plugin_has_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    owners: dict[str, str] = {}
    parser = argparse.ArgumentParser(prog="run")
    parser.add_argument("--quiet")
    add_options(parser, "first", [CommandOption("mark"), CommandOption("quiet")], owners)
    add_options(parser, "second", [CommandOption("mark")], owners)
    assert capsys.readouterr().err.splitlines() == [
        "rhapsody: ignoring the option --quiet of first: run has the same option",
        "rhapsody: ignoring the option --mark of second: first has the same option",
    ]


@pytest.mark.usefixtures("runs_here")
def test_an_option_that_rhapsody_run_has_is_ignored(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = Installed(
        site,
        "def rhapsody_run_options():\n"
        "    from rhapsody.plugins import CommandOption\n"
        "    return [CommandOption('fresh', bool)]\n\n@hookimpl\n"
        "def rhapsody_run_started(run):\n    seen.append(dict(run.options))\n",
    )
    (tmp_path / "wf.py").write_text("async def main(flow): pass\n")
    assert main(["run", "-q", "--fresh", "wf.py"]) == 0
    assert "ignoring the option --fresh of " in capsys.readouterr().err
    assert plugin.seen == [{"fresh": False}]


def test_rhapsody_engine_options_reach_rhapsody_observers_with_their_sources(site: Path) -> None:
    plugin = Installed(
        site,
        "def rhapsody_engine_options():\n"
        "    from rhapsody.plugins import EngineOption\n"
        "    return [EngineOption(name='shade', default='grey')]\n\n@hookimpl\n"
        "def rhapsody_observers(engine_options, sources):\n"
        "    values = engine_options['shade'], engine_options['max_pending']\n"
        "    seen.append((*values, dict(sources)))\n",
    )
    run(squares(2, max_pending=3))
    assert plugin.seen == [("grey", 3, {"backend": "program", "max_pending": "program"})]


@pytest.mark.usefixtures("runs_here")
def test_the_sources_include_that_of_the_backends(site: Path, tmp_path: Path) -> None:
    plugin = Installed(site, "def rhapsody_observers(sources):\n    seen.append(dict(sources))\n")
    (tmp_path / "wf.py").write_text("async def main(flow): pass\n")
    assert main(["run", "-q", "-b", "noop", "wf.py"]) == 0
    assert main(["run", "-q", "-b", "noop", "-b", "local", "wf.py"]) == 0
    (tmp_path / "rhapsody.toml").write_text("backend = 'noop'\n")
    assert main(["run", "-q", "wf.py"]) == 0
    found = [
        {name: each for name, each in seen.items() if "backend" in name} for seen in plugin.seen
    ]
    assert found == [
        {"backend": "command line"}, {"backends": "command line"}, {"backend": "profile"}
    ]  # fmt: skip


def test_rhapsody_workflow_not_started_follows_a_failed_start(site: Path) -> None:
    plugin = Installed(
        site, "def rhapsody_workflow_not_started():\n    seen.append('not started')\n"
    )

    class Broken(NoopExecutionBackend):
        async def start(self) -> None:
            raise ConnectionError("no server answers")

    async def create() -> None:
        await WorkflowEngine.create(Broken())

    with pytest.raises(ConnectionError, match="no server answers"):
        run(create())
    assert plugin.seen == ["not started"]
    run(squares(2))
    assert plugin.seen == ["not started"]


def test_rhapsody_program_event_sees_the_events_of_the_program(site: Path) -> None:
    plugin = Installed(
        site,
        "def rhapsody_program_event(name, uid, details):\n    seen.append((name, uid, details))\n",
    )

    async def program() -> str:
        async with WorkflowEngine.create(NoopExecutionBackend()) as flow:
            assert flow.prof.enabled
            flow.prof.event("loaded", "task.000001", size=3)
            return flow.uid

    uid = run(program())
    assert plugin.seen == [
        ("workflow_started", uid, {}),
        ("loaded", "task.000001", {"size": 3}),
        ("workflow_finished", uid, {}),
    ]


@pytest.mark.usefixtures("runs_here")
def test_rhapsody_preview_results_explains_what_a_dry_run_would_reuse(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Installed(
        site,
        "def rhapsody_run_started(run):\n"
        "    from contextlib import nullcontext\n"
        "    return nullcontext(Preview())\n\n"
        "class Preview:\n"
        "    @hookimpl\n"
        "    async def rhapsody_preview_results(self, tasks):\n"
        "        return [(None, 'runs: ' + task['name']) for task in tasks]\n",
    )
    (tmp_path / "wf.py").write_text("async def main(flow):\n    flow.function_task(print)()\n")
    assert main(["run", "--dry-run", "wf.py"]) == 0
    assert "runs: print" in capsys.readouterr().out
