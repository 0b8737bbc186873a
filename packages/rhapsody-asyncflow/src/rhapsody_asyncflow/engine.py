"""The engine of radical.asyncflow: Rhapsody's, with the names and defaults of that project."""

from __future__ import annotations

import functools
import inspect
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from rhapsody import InputFile, NoopExecutionBackend, OutputFile, WorkerValue
from rhapsody import WorkflowEngine as CoreEngine
from rhapsody_asyncflow.prompts import InferenceBackend, answer

DUMMY_ANSWER = "Dummy Prompt Output"
"""The answer to all prompts in a dry run."""


async def no_telemetry(*_: Any, **__: Any) -> Any:
    """Raise an error that names the alternatives.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(
        "Rhapsody has no start_telemetry(): start the program with `rhapsody run`, and look at it "
        "with `rhapsody report`; or install rhapsody-otel"
    )


class AsyncflowEngine(CoreEngine):
    """Rhapsody's engine for programs that were written for radical.asyncflow.

    Commands run in the current directory, except on RADICAL-Pilot, and except for calls with
    `InputFile` or `OutputFile` arguments, which run in a sandbox.
    """

    @classmethod
    def create(
        cls,
        backend: Any = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Any:
        """Create an engine and start its backends.

        Args:
            backend: A backend, a list of backends whose first one is the default, or `None` for the
                local backend.
            dry_run: True to run no tasks. It has an effect only without a backend.
            implicit_data: True if tasks see the files in the sandboxes of their dependencies.
            uid: The engine's uid.
            work_dir: A directory; files of this engine are in its subdirectory `uid`.
            **options: Further options of Rhapsody's `WorkflowEngine.create`.

        Returns:
            A coroutine that is also an async context manager.
        """
        uid = uid or f"asyncflow.session.{uuid.uuid4().hex[:8]}"
        if work_dir is not None:
            work_dir = os.path.join(work_dir, uid)
        dry_run = dry_run and backend is None
        return super().create(
            backend, dry_run, implicit_data, uid=uid, work_dir=work_dir, **options
        )

    def function_task(
        self, function: Any = None, /, *, capture_stdio: bool = False, **settings: Any
    ) -> Any:
        """Decorate a function so that each call runs as a task on a backend.

        Args:
            function: The function to decorate.
            capture_stdio: Ignored, as in radical.asyncflow.
            **settings: See `rhapsody.TaskSettings`.

        Returns:
            The decorated function, or a decorator if only settings are given.
        """
        return _decorated(self, super().function_task, function, settings)

    def executable_task(
        self, function: Any = None, /, *, capture_stdio: bool = False, **settings: Any
    ) -> Any:
        """Decorate a function that returns a command. Each call runs the command as a task.

        Args:
            function: The function to decorate.
            capture_stdio: True to store the output in files. The result of a call is then the path
                of the file with the standard output.
            **settings: See `rhapsody.TaskSettings`. The default of `cwd` is the current directory.

        Returns:
            The decorated function, or a decorator if only settings are given.
        """
        if function is None:
            return functools.partial(self.executable_task, capture_stdio=capture_stdio, **settings)
        function = _checked(function, "executable_task", "command string", (str, list, tuple))
        if capture_stdio:
            settings["capture"] = "files"
        here = "cwd" not in settings and self._runs_here(settings.get("backend"))
        return _decorated(self, super().executable_task, function, settings, here=here)

    def block(self, function: Any = None, /, **settings: Any) -> Any:
        """Decorate a function that calls tasks and awaits them.

        Args:
            function: The function to decorate.
            **settings: `name` and `after`; see `rhapsody.TaskSettings`.

        Returns:
            The decorated function, or a decorator if only settings are given.
        """
        return _decorated(self, super().block, function, settings)

    def prompt_task(
        self, function: Any = None, /, *, model: WorkerValue[Any] | None = None, **settings: Any
    ) -> Any:
        """Decorate a function that returns a prompt. The result of a call is the answer to it.

        Prompts are sent to the `InferenceBackend` with the name in the setting `backend`, by
        default to the engine's first one. With `model`, they are passed to a model in the workers.

        Args:
            function: The function to decorate. It runs on the engine's loop.
            model: The handle of a worker value: a function that returns the answer to a prompt.
            **settings: See `rhapsody.TaskSettings`. `limit="model:8"` limits the number of prompts
                that are sent at once.

        Returns:
            The decorated function, or a decorator if only settings are given.

        Raises:
            TypeError: `function` is not callable, or a setting is of the wrong type.
        """
        if function is None:
            return functools.partial(self.prompt_task, model=model, **settings)
        ask = _checked(function, "prompt_task", "string prompt", (str,))
        settings.setdefault("name", ask.__name__)
        name = settings.get("backend") or next(
            (name for name, each in self.backends.items() if isinstance(each, InferenceBackend)),
            next(iter(self.backends)),
        )
        backend = self.backends.get(name)
        if model is None and (backend is None or isinstance(backend, InferenceBackend)):

            @functools.wraps(ask)
            async def send(*args: Any, **kwargs: Any) -> list[str]:
                return [await ask(*args, **kwargs)]  # as a list, because no shell is involved

            settings["backend"] = name
            return _decorated(self, super().executable_task, send, settings)
        to_model = None if model is None else super().function_task(**settings)(answer)

        @functools.wraps(ask)
        async def answered(*args: Any, **kwargs: Any) -> Any:
            prompt = await ask(*args, **kwargs)
            if to_model is not None:
                return to_model(prompt, model)
            if isinstance(backend, NoopExecutionBackend):
                return DUMMY_ANSWER
            raise NotImplementedError(
                f"prompt_task {settings['name']!r}: backend {name!r} ({type(backend).__name__}) "
                "does not answer prompts; add radical.asyncflow.InferenceBackend(url) to the "
                "engine's backends"
            )

        return _decorated(self, super().block, answered, {"name": settings["name"]})

    def workflow_scope(self, workflow_id: str | None = None) -> Any:
        """Label the tasks that are called in an `async with` statement.

        Args:
            workflow_id: The label. Default: a random one.

        Returns:
            A context manager, whose value is the label.
        """
        return self.scope(workflow_id or f"wf-{uuid.uuid4().hex[:8]}")

    start_telemetry = no_telemetry

    def _runs_here(self, name: str | None) -> bool:
        """Return True if commands on a backend run in the current directory."""
        backend = self.backends.get(name) if name else self.backend
        if backend is None or any(
            each.__name__ == "RadicalExecutionBackend" for each in type(backend).__mro__
        ):
            return False
        return backend.capabilities.cwd


WorkflowEngine = AsyncflowEngine
"""The engine, under its name in radical.asyncflow."""


class LabelledTask:
    """Decorated function that accepts the keyword `workflow_id` at a call.

    Args:
        engine: The engine.
        task: Rhapsody's decorated function.
        with_files: The decorated function for calls with files, if it has other settings.
    """

    def __init__(self, engine: AsyncflowEngine, task: Any, with_files: Any = None) -> None:
        functools.update_wrapper(self, task)
        self._engine = engine
        self._task = task
        self._with_files = task if with_files is None else with_files

    def __call__(self, /, *args: Any, workflow_id: str | None = None, **kwargs: Any) -> Any:
        """Create a task.

        Args:
            *args: The arguments of the function, or futures for them.
            workflow_id: The label of the task; see `WorkflowEngine.workflow_scope`.
            **kwargs: The keyword arguments of the function.

        Returns:
            The future of the result.
        """
        files = any(isinstance(each, InputFile | OutputFile) for each in (*args, *kwargs.values()))
        task = self._with_files if files else self._task
        if workflow_id is None:
            future = task(*args, **kwargs)
        else:
            with self._engine.scope(workflow_id):
                future = task(*args, **kwargs)
        kind: Any = type(future)
        future.__class__ = _with_truth(kind)
        return future

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._task, name)


def _decorated(
    engine: AsyncflowEngine,
    decorator: Callable[..., Any],
    function: Any,
    settings: Mapping[str, Any],
    *,
    here: bool = False,
) -> Any:
    """Decorate a function, or return a decorator if there is none.

    Args:
        engine: The engine.
        decorator: Rhapsody's decorator.
        function: The function, or `None`.
        settings: The settings.
        here: True to run calls without files in the current directory.

    Returns:
        The decorated function, or the decorator.
    """

    def decorate(function: Any) -> LabelledTask:
        task = decorator(**settings)(function)
        if not here:
            return LabelledTask(engine, task)
        return LabelledTask(engine, decorator(**settings, cwd=".")(function), task)

    return decorate if function is None else decorate(function)


def _checked(function: Any, decorator: str, what: str, kinds: tuple[type, ...]) -> Any:
    """Return a coroutine function that raises an error if a function returns nothing useful.

    Args:
        function: The function.
        decorator: The name of the decorator, for messages.
        what: The name of the result, for messages.
        kinds: The types of the result.

    Raises:
        TypeError: The function is not callable.
    """
    if not callable(function):
        raise TypeError(f"@flow.{decorator} decorates a function, got {function!r}")

    @functools.wraps(function)
    async def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        if not isinstance(result, kinds) or not (
            result.strip() if result and isinstance(result, str) else result
        ):
            raise ValueError(
                f"{decorator} {function.__name__!r} must return a non-empty {what}, got {result!r}"
            )
        return result

    return checked


@functools.cache
def _with_truth(kind: Any) -> Any:
    """Return the class of futures that are true in conditions, as those of asyncio are."""
    return type(kind.__name__, (kind,), {"__slots__": (), "__bool__": lambda _: True})
