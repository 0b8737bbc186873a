"""The task objects and the session of rhapsody-py, on Rhapsody's engine."""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rhapsody import RhapsodyError, TaskFailedError, TaskFuture
from rhapsody_asyncflow.engine import WorkflowEngine, no_telemetry
from rhapsody_asyncflow.prompts import PARAMETERS, InferenceBackend

_numbers = itertools.count(1)


class TaskValidationError(RhapsodyError):
    """The fields of a task are wrong.

    Args:
        task_uid: The task's uid, if it has one.
        message: The message.
    """

    def __init__(self, task_uid: str | None, message: str) -> None:
        named = f"Task {task_uid!r}" if task_uid else "Task"
        super().__init__(f"{named} validation failed: {message}")
        self.task_uid = task_uid
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_uid, self.message)


class TaskExecutionError(RhapsodyError):
    """A command has failed.

    Args:
        task_uid: The task's uid.
        message: The command's standard error.
        exit_code: The command's exit code.
    """

    def __init__(self, task_uid: str, message: str, exit_code: int | None = None) -> None:
        code = "" if exit_code is None else f" with exit code {exit_code}"
        super().__init__(f"Task {task_uid!r} failed{code}: {message}")
        self.task_uid = task_uid
        self.message = message
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_uid, self.message, self.exit_code)


class SessionError(RhapsodyError):
    """A session cannot be used."""


class ResourceError(RhapsodyError):
    """The resources that a task needs are not available."""


class BaseTask(dict[str, Any], ABC):
    """Description of a task, whose fields are items of the dict and attributes.

    The session adds the results: `state`, `return_value`, `response`, `stdout`, `stderr`,
    `exit_code` and `exception`. After submission, the task can be awaited.

    Args:
        uid: The uid. Default: `task.000001` and so on.
        backend: The name of the backend. Default: the session's first one.
        **fields: Further fields.

    Raises:
        TaskValidationError: A field is wrong.
    """

    def __init__(self, uid: str | None = None, backend: str | None = None, **fields: Any) -> None:
        results = ("state", "stdout", "stderr", "exit_code", "return_value", "response")
        super().__init__(
            dict.fromkeys((*results, "exception")),
            uid=f"task.{next(_numbers):06d}" if uid is None else uid,
            backend=backend,
        )
        self.update(fields)
        self.validate()

    def validate(self) -> None:
        """Check the fields.

        Raises:
            TaskValidationError: A field is wrong.
        """
        if not isinstance(self["uid"], str) or not self["uid"]:
            raise TaskValidationError(None, "uid must be a non-empty string")
        self._validate()

    @abstractmethod
    def _validate(self) -> None:
        """Check the fields of this kind of task."""

    def _require(self, name: str, kinds: tuple[type, ...], words: str) -> None:
        value = self.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise TaskValidationError(self["uid"], f"{name} must be {words}, got {type(value)}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BaseTask:
        """Return the task that a dict describes.

        Args:
            data: The fields: `prompt` for an `AITask`, `executable` or `function` for a
                `ComputeTask`.

        Raises:
            TaskValidationError: A field is wrong or missing.
        """
        if data.get("prompt") is not None:
            return AITask(**data)
        if data.get("executable") is not None or data.get("function") is not None:
            return ComputeTask(**data)
        raise TaskValidationError(
            data.get("uid"), "it needs 'prompt', 'executable' or 'function' to determine its type"
        )

    def bind_future(self, future: asyncio.Future[Any]) -> None:
        """Set the future that `await` waits for. Called by the session."""
        self.__dict__["_future"] = future

    def __await__(self) -> Generator[Any, None, Any]:
        future = self.__dict__.get("_future")
        if future is None:
            raise RuntimeError(f"task {self['uid']} has not been submitted to a Session")
        return (yield from future.__await__())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}", name=name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), dict(self))

    def __hash__(self) -> int:  # type: ignore[override]  # tasks may be in sets
        return hash(self["uid"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseTask) and self["uid"] == other["uid"]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"{type(self).__name__}({fields})"


def _rebuilt(kind: type[BaseTask], fields: dict[str, Any]) -> BaseTask:
    return kind(**fields)


class ComputeTask(BaseTask):
    """Task that runs a command or calls a function.

    Args:
        executable: The program of a command, without a shell.
        function: The function to call.
        arguments: The arguments of the command.
        args: The positional arguments of the function.
        kwargs: The keyword arguments of the function.
        uid: The uid. Default: `task.000001` and so on.
        input_files: Names of files, for information only.
        output_files: Names of files, for information only.
        capture_stdio: True to store the output of the command in files. `stdout` and `stderr` are
            then their paths.
        **fields: Further fields. `task_backend_specific_kwargs` may contain `cwd`, `env`, `shell`
            and settings of the backend.

    Raises:
        TaskValidationError: A field is wrong, or neither or both of `executable` and `function` are
            given.
    """

    def __init__(
        self,
        executable: str | None = None,
        function: Callable[..., Any] | None = None,
        arguments: list[Any] | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        uid: str | None = None,
        input_files: list[str] | None = None,
        output_files: list[str] | None = None,
        capture_stdio: bool = False,
        **fields: Any,
    ) -> None:
        super().__init__(
            uid,
            executable=executable,
            function=function,
            arguments=[] if arguments is None else arguments,
            args=() if args is None else args,
            kwargs={} if kwargs is None else kwargs,
            input_files=input_files,
            output_files=output_files,
            capture_stdio=capture_stdio,
            **fields,
        )

    def _validate(self) -> None:
        if (self.get("executable") is None) == (self.get("function") is None):
            raise TaskValidationError(
                self["uid"], "either 'executable' or 'function' must be given, and not both"
            )
        self._require("executable", (str,), "a string")
        self._require("arguments", (list,), "a list")
        self._require("args", (tuple, list), "a tuple or list")
        self._require("kwargs", (dict,), "a dict")
        if self.get("function") is not None and not callable(self["function"]):
            raise TaskValidationError(
                self["uid"], f"function must be callable, got {type(self['function'])}"
            )


class AITask(BaseTask):
    """Task that sends a prompt to a language model; the answer is the field `response`.

    Args:
        prompt: The prompt, or a list of prompts with a list of answers.
        model: The model's name.
        inference_endpoint: The URL of a server with OpenAI's endpoints. Default: the session's
            `InferenceBackend`.
        system_prompt: Instructions for the model.
        temperature: The sampling temperature.
        max_tokens: Maximum number of tokens of the answer.
        top_p: Probability of the tokens that are sampled from.
        top_k: Number of the tokens that are sampled from.
        stop_sequences: Texts that end the answer.
        uid: The uid. Default: `task.000001` and so on.
        backend: The name of the `InferenceBackend`.
        **fields: Further fields.

    Raises:
        TaskValidationError: A field is wrong or missing.
    """

    def __init__(
        self,
        prompt: str | list[str],
        model: str | None = None,
        inference_endpoint: str | None = None,
        system_prompt: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        stop_sequences: list[str] | None = None,
        uid: str | None = None,
        backend: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(
            uid,
            backend,
            prompt=prompt,
            model=model,
            inference_endpoint=inference_endpoint,
            system_prompt=system_prompt,
            temperature=temperature,
            max_tokens=max_tokens,
            top_p=top_p,
            top_k=top_k,
            stop_sequences=stop_sequences,
            **fields,
        )

    def _validate(self) -> None:
        if not self.get("prompt"):
            raise TaskValidationError(self["uid"], "prompt is required")
        self._require("prompt", (str, list), "a string or list of strings")
        if not all(isinstance(each, str) for each in self.prompts):
            raise TaskValidationError(self["uid"], "prompt must be a string or list of strings")
        if not (self.get("model") or self.get("inference_endpoint") or self.get("backend")):
            raise TaskValidationError(
                self["uid"], "one of 'model', 'inference_endpoint' and 'backend' must be given"
            )
        for name in ("model", "inference_endpoint", "system_prompt"):
            self._require(name, (str,), "a string")
        self._require("stop_sequences", (list,), "a list")
        for name, kinds, least, most, words in (
            ("temperature", (int, float), 0, None, "a non-negative number"),
            ("max_tokens", (int,), 1, None, "a positive integer"),
            ("top_p", (int, float), 0, 1, "a number between 0 and 1"),
            ("top_k", (int,), 1, None, "a positive integer"),
        ):
            self._require(name, kinds, words)
            value = self.get(name)
            if value is not None and (value < least or (most is not None and value > most)):
                raise TaskValidationError(self["uid"], f"{name} must be {words}, got {value}")

    @property
    def prompts(self) -> list[str]:
        """The prompts, as a list."""
        prompt = self["prompt"]
        return [prompt] if isinstance(prompt, str) else prompt


class TaskSession:
    """Session that runs tasks on backends, with Rhapsody's engine.

    Args:
        backends: The backends; the first one that runs functions or commands is the default.
        uid: The uid. Default: a random one.
        work_dir: Directory for the files of the session. Default: a directory for each run.
    """

    def __init__(
        self,
        backends: Iterable[Any] | None = None,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.backends: dict[str, Any] = {each.name: each for each in backends or ()}
        self.uid: str = uid or f"rhapsody.session.{uuid.uuid4().hex[:8]}"
        self.work_dir = work_dir
        self._engine: WorkflowEngine | None = None
        self._starting: asyncio.Future[WorkflowEngine] | None = None
        self._closed = False
        self._futures: dict[str, asyncio.Future[Any]] = {}

    def add_backend(self, backend: Any) -> None:
        """Add a backend before the first task is submitted.

        Raises:
            SessionError: Tasks have been submitted.
        """
        if self._starting is not None:
            raise SessionError("add all backends before the first submit_tasks()")
        self.backends[backend.name] = backend

    async def submit_tasks(
        self, tasks: Iterable[BaseTask | dict[str, Any]]
    ) -> list[asyncio.Future[Any]]:
        """Submit tasks.

        Args:
            tasks: The tasks, or dicts with their fields, which receive the results.

        Returns:
            Futures whose results are the tasks. A failed task raises its exception.

        Raises:
            SessionError: The session is closed, or has no backend.
            ValueError: A task names a backend that the session does not have.
        """
        tasks = list(tasks)
        engine = await self._started(tasks)
        made = []
        for task in tasks:
            name = task.get("backend") or task.get("inference_endpoint")
            if name and name not in engine.backends:
                raise ValueError(
                    f"Backend {name!r} requested by task {task['uid']} not found in Session. "
                    f"Available backends: {', '.join(engine.backends)}"
                )
        for task in tasks:
            typed = task if isinstance(task, BaseTask) else BaseTask.from_dict(task)
            waiter: asyncio.Future[Any] = engine.loop.create_future()
            self._futures[task["uid"]] = waiter
            if isinstance(task, BaseTask):
                task.bind_future(waiter)
            calls = _calls(engine, typed)
            ended = asyncio.gather(*calls, return_exceptions=True)
            ended.add_done_callback(partial(_ended, task, typed, calls, waiter))
            made.append(waiter)
        return made

    async def wait_tasks(
        self,
        tasks: Sequence[BaseTask | dict[str, Any]],
        timeout: float | None = None,  # noqa: ASYNC109 - the name in rhapsody-py
    ) -> Sequence[BaseTask | dict[str, Any]]:
        """Wait until tasks have ended. Failed tasks raise nothing here.

        Args:
            tasks: The tasks.
            timeout: Maximum number of seconds to wait.

        Returns:
            The tasks.

        Raises:
            TimeoutError: The tasks have not ended in time.
            SessionError: A task was not submitted to this session.
        """
        missing = [task["uid"] for task in tasks if task["uid"] not in self._futures]
        if missing:
            raise SessionError(f"tasks {', '.join(missing)} have not been submitted")
        futures = [self._futures[task["uid"]] for task in tasks]
        if not futures:
            return tasks
        done, _ = await asyncio.wait(futures, timeout=timeout)
        if len(done) < len(set(futures)):
            raise TimeoutError(
                f"Timeout after {timeout}s: {len(done)}/{len(futures)} tasks completed"
            )
        return tasks

    start_telemetry = no_telemetry

    async def close(self) -> None:
        """Cancel unfinished tasks and shut down the backends."""
        self._closed = True
        if self._starting is not None:
            await (await self._starting).shutdown()
            return
        for backend in self.backends.values():
            await backend.shutdown()

    async def __aenter__(self) -> TaskSession:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _started(self, tasks: Sequence[Mapping[str, Any]]) -> WorkflowEngine:
        """Return the engine; start it if necessary."""
        if self._closed:
            raise SessionError("the session is closed")
        if self._starting is None:
            for task in tasks:  # the servers that these tasks name
                url = task.get("inference_endpoint")
                if url and not task.get("backend"):
                    self.backends.setdefault(url, InferenceBackend(url, name=url))
            if not self.backends:
                raise SessionError("the session has no backend: Session(backends=[...])")
            answers = [
                each for each in self.backends.values() if isinstance(each, InferenceBackend)
            ]
            runs = [each for each in self.backends.values() if each not in answers]
            starting = WorkflowEngine.create(
                [*runs, *answers], uid=self.uid, work_dir=self.work_dir
            )
            self._starting = asyncio.ensure_future(starting)
        return await self._starting


Session = TaskSession
"""The session, under its name in rhapsody-py."""


def _calls(engine: WorkflowEngine, task: BaseTask) -> list[TaskFuture[Any]]:
    """Call Rhapsody's tasks for a task; several if it has several prompts."""
    specific = dict(task.get("task_backend_specific_kwargs") or {})
    settings: dict[str, Any] = {"backend": task.get("backend")}
    if isinstance(task, AITask):
        if task["inference_endpoint"] and not task["backend"]:
            settings["backend"] = task["inference_endpoint"]
        given = {name: task.get(name) for name in PARAMETERS}
        given["stop"] = task.get("stop_sequences")
        specific |= {name: value for name, value in given.items() if value is not None}
        ask = engine.prompt_task(name="prompt", task_description=specific, **settings)(str)
        return [ask(prompt) for prompt in task.prompts]
    env = specific.pop("env", None)
    if env is not None:
        settings["environment"] = env
    shell, cwd = specific.pop("shell", False), specific.pop("cwd", None)
    if specific:
        settings["task_description"] = specific
    if task["function"] is not None:
        return [engine.function_task(task["function"], **settings)(*task["args"], **task["kwargs"])]
    if cwd is not None:
        settings["cwd"] = cwd
    words = [task["executable"], *map(str, task["arguments"])]
    command = " ".join(words) if shell else words
    name = os.path.basename(task["executable"].partition(" ")[0]) or None
    capture = bool(task.get("capture_stdio"))
    run = engine.executable_task(name=name, capture_stdio=capture, **settings)(lambda: command)
    return [run()]


def _ended(
    task: dict[str, Any],
    typed: BaseTask,
    calls: Sequence[TaskFuture[Any]],
    waiter: asyncio.Future[Any],
    ended: asyncio.Future[list[Any]],
) -> None:
    """Write the results into a task, and settle the future that waits for it."""
    if ended.cancelled():
        waiter.cancel()
        return
    results = ended.result()
    future, result = calls[0], results[0] if isinstance(typed.get("prompt", ""), str) else results
    error = next((each for each in results if isinstance(each, BaseException)), None)
    task.update(stdout=future.stdout, stderr=future.stderr, exit_code=future.exit_code)
    if isinstance(error, asyncio.CancelledError):
        task["state"] = "CANCELED"
        waiter.cancel()
        return
    if error is None:
        task["response" if isinstance(typed, AITask) else "return_value"] = result
        if typed.get("function") is not None:
            task.update(stdout=task["stdout"] or str(result), exit_code=0)
        task["state"] = "DONE"
        if not waiter.done():
            waiter.set_result(task)
        return
    if isinstance(error, TaskFailedError) and error.exit_code is not None:
        cause = error
        error = TaskExecutionError(task["uid"], error.stderr or "", error.exit_code)
        error.__cause__ = cause
    task.update(exception=error, state="FAILED")
    if not waiter.done():
        waiter.set_exception(error)
        waiter.exception()  # the task contains it, so it need not be awaited
