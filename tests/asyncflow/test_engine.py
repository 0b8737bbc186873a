# mypy: allow-untyped-decorators
"""Programs of radical.asyncflow on Rhapsody's engine."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import rhapsody
from radical.asyncflow import (
    InputFile,
    LocalExecutionBackend,
    NoopExecutionBackend,
    OutputFile,
    WorkflowEngine,
)
from radical.asyncflow.errors import DependencyFailureError
from radical.asyncflow.logging import init_default_logger

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def content(path: Path) -> str:
    return path.read_text()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


async def test_a_program_of_radical_asyncflow_runs() -> None:
    backend = await LocalExecutionBackend(ThreadPoolExecutor())
    flow = await WorkflowEngine.create(backend=backend)

    @flow.executable_task
    async def simulate(steps: int) -> str:
        return f"seq 1 {steps} > {steps}.txt"

    @flow.function_task
    async def mean(steps: int, simulated: str) -> float:
        numbers = [int(line) for line in content(Path(f"{steps}.txt")).split()]
        return sum(numbers) / len(numbers)

    @flow.block
    async def study(steps: int) -> Any:
        return await mean(steps, simulate(steps))

    assert await asyncio.gather(*[study(steps) for steps in (10, 100)]) == [5.5, 50.5]
    assert names_in(Path()) >= {"10.txt", "100.txt"}
    await flow.shutdown()


async def test_calls_with_files_run_in_sandboxes() -> None:
    flow = await WorkflowEngine.create()

    @flow.executable_task
    async def write(*args: Any) -> str:
        return "echo 3 > out.txt"

    @flow.executable_task
    async def read(*args: Any) -> str:
        return "cat out.txt"

    written = write(OutputFile("out.txt"))
    assert await read(written, InputFile("out.txt")) == "3\n"
    assert "out.txt" not in names_in(Path())
    await flow.shutdown()


async def test_output_goes_to_files(tmp_path: Path) -> None:
    flow = await WorkflowEngine.create(None, False, True, "my-flow", str(tmp_path / "work"))

    @flow.executable_task(capture_stdio=True)
    async def hello() -> str:
        return "echo hello"

    @flow.function_task(capture_stdio=True)
    async def number() -> int:
        return 3

    path = Path(await hello())
    assert content(path) == "hello\n"
    assert path.is_relative_to(tmp_path / "work" / "my-flow")
    assert await number() == 3
    await flow.shutdown()


async def test_tasks_are_labelled() -> None:
    labels: dict[str, str | None] = {}

    class Labels:
        @rhapsody.hookimpl
        def rhapsody_task_events(self, events: Any) -> None:
            labels.update({event.name: event.scope for event in events})

    flow = await WorkflowEngine.create(observers=[Labels()])

    def named(name: str) -> Any:
        async def task(x: int) -> int:
            return x

        return flow.function_task(name=name)(task)

    async with flow.workflow_scope("wf") as label:
        assert label == "wf"
        inside = named("inside")(1)
    assert await named("explicit")(2, workflow_id="mine") == 2
    async with flow.workflow_scope() as label:
        assert label.startswith("wf-")
    await asyncio.gather(inside, named("outside")(3))
    await flow.shutdown()
    assert labels == {"inside": "wf", "explicit": "mine", "outside": None}


async def test_a_command_must_not_be_empty() -> None:
    flow = await WorkflowEngine.create(dry_run=True)
    wrongs: list[Any] = ["", "  ", None, []]
    for wrong in wrongs:
        task = flow.executable_task(lambda wrong=wrong: wrong)
        with pytest.raises(ValueError, match="must return a non-empty command string"):
            await task()
    await flow.shutdown()


async def test_a_dry_run_with_a_backend_runs_the_tasks() -> None:
    flow = await WorkflowEngine.create(await LocalExecutionBackend(), dry_run=True)
    assert await flow.function_task(lambda: 3)() == 3
    await flow.shutdown()
    flow = await WorkflowEngine.create(dry_run=True)
    assert await flow.function_task(lambda: 3)() == "Dummy Output"
    await flow.shutdown()


async def test_futures_are_true_in_conditions() -> None:
    flow = await WorkflowEngine.create()

    @flow.function_task
    async def plus(x: int) -> int:
        return x + 1

    @flow.block
    async def part(x: int) -> Any:
        future = plus(x)
        assert future
        return await plus(future)

    result: Any = part(1)
    assert result
    assert isinstance(result, rhapsody.TaskFuture)
    assert await plus(result) == 4
    with pytest.raises(TypeError, match="needs a value"):
        _: Any = result + 1  # type: ignore[operator]
    await flow.shutdown()


async def test_methods_can_be_tasks() -> None:
    flow = await WorkflowEngine.create()

    class Model:
        factor = 3

        @flow.function_task
        async def times(self, x: int) -> int:
            return self.factor * x

    assert await Model().times(2, workflow_id="a") == 6
    await flow.shutdown()


async def test_failed_dependencies_have_the_error_of_the_former_module() -> None:
    flow = await WorkflowEngine.create(NoopExecutionBackend())
    assert flow.backend.name == "noop"
    await flow.shutdown()
    flow = await WorkflowEngine.create()

    @flow.function_task
    async def broken() -> None:
        raise ValueError("no")

    @flow.function_task
    async def after(x: Any) -> None: ...

    with pytest.raises(DependencyFailureError) as caught:
        await after(broken())
    assert caught.value.failed_dependencies == ["broken"]
    await flow.shutdown()


async def test_telemetry_names_the_alternatives() -> None:
    flow = await WorkflowEngine.create()
    with pytest.raises(NotImplementedError, match="rhapsody report"):
        await flow.start_telemetry()
    await flow.shutdown()


async def test_the_logger_writes_to_standard_output_and_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "a.log"
    logger = init_default_logger(
        "WARNING", output_file=path, file_log_level=logging.DEBUG, logger_name="tests.asyncflow"
    )
    logger.warning("loud")
    logger.debug("quiet")
    assert "loud" in (out := capsys.readouterr().out)
    assert "quiet" not in out
    assert "quiet" in path.read_text()
    for handler in logger.handlers:
        handler.close()
    init_default_logger(logger_name="tests.asyncflow", clear_handlers=True).handlers.clear()
    logging.captureWarnings(False)


@pytest.mark.parametrize("name", ["radical.asyncflow", "rhapsody-py"])
async def test_the_original_distributions_are_refused(name: str, tmp_path: Path) -> None:
    about = tmp_path / f"{name.replace('-', '_')}-0.6.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.6.0\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import radical.asyncflow"
    done = run_python(code)
    assert done.returncode == 1
    assert f"pip uninstall -y {name}" in done.stderr


async def test_the_distribution_has_the_version_of_its_changelog() -> None:
    assert importlib.metadata.version("rhapsody-asyncflow") == "0.1.0"
