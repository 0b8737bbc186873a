"""From a ready node to a description that a backend can have.

The order is fixed: arguments and command, the prepare hooks, the choice of a
backend, where input files are, the look-up of recorded results, links to the files.
Most tasks go through in one call; a step that has to wait takes the node out of its
lane and brings it back.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, cast

from rhapsody.aio import asked_to_stop
from rhapsody.data import InputFile, OutputFile
from rhapsody.engine.life import Event, Work
from rhapsody.errors import CapabilityError, PluginError, describe_error
from rhapsody.plugins.specs import LookupTask, Recorded
from rhapsody.quantities import seconds
from rhapsody.resources import Resources
from rhapsody.task import Outcome, TaskDescription, TaskFuture

if TYPE_CHECKING:
    from rhapsody.engine.dispatch import Lane
    from rhapsody.engine.node import Node
    from rhapsody.engine.runtime import Runtime
    from rhapsody.engine.tasks import Task
    from rhapsody.plugins.manager import PluginHook

Values = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""

NEW, BUILT, ROUTED, RESOLVED, LOOKED_UP, PREPARED = range(6)
"""How far a node's preparation has come (`Node.stage`)."""

_KEYS = TaskDescription.__required_keys__


class Preparation:
    """Prepares the nodes of one engine."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._unlooked: list[tuple[Node, Lane]] = []
        self._looking: set[asyncio.Task[None]] = set()

    def advance(self, node: Node, lane: Lane) -> bool:
        """Takes a node as far as it goes; `True` when it can be submitted by this lane."""
        if node.stage == PREPARED:
            return True
        try:
            return self._advance(node, lane)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a builder raises: its task fails alone
            self._runtime.refuse(node, error)
            return False

    def close(self) -> None:
        """The engine ends: nobody waits for what plugins look up any more."""
        for looking in tuple(self._looking):
            looking.cancel()

    def _advance(self, node: Node, lane: Lane) -> bool:
        runtime, task = self._runtime, node.task
        if node.stage == NEW:
            if task.settings.limit and not runtime.limits.take(node, task.settings.limit):
                return False
            self._describe(node)
            if task.kind == "executable" and not self._command_built(node, lane):
                return False
            node.stage = BUILT
        if node.stage == BUILT:
            hooks = runtime.hooks
            if hooks.prepare_task:
                self._call_prepare(node)
            node.stage = ROUTED
            if hooks.select_backend and len(runtime.lanes) > 1 and not task.settings.backend:
                chosen = self._selected(node, lane)
                if chosen is not lane:
                    chosen.resume(node)
                    return False
        if node.stage == ROUTED:
            if task.accepted_by is not lane or runtime.hooks.prepare_task:
                self._check_capabilities(node, lane)
            node.lane = lane
            if lane.capabilities.unfinished_dependencies:
                assert node.description is not None
                own = task.settings.lost_retries
                node.description["lost_retries"] = runtime.lost_retries if own is None else own
            node.stage = RESOLVED
            if node.extra is not None:
                node.extra.resolved = None  # that of an earlier attempt
                if self._has_files(node, lane):
                    runtime.spawn(self._resolve(node, lane), f"files of {node.uid}")
                    return False
        if node.stage == RESOLVED:
            node.stage = LOOKED_UP
            if runtime.hooks.lookup_results and self._may_be_recorded(node):
                if not self._unlooked:
                    looking = runtime.spawn(self._look_up(), "look up results")
                    self._looking.add(looking)
                    looking.add_done_callback(self._looking.discard)
                self._unlooked.append((node, lane))
                return False
        if node.stage == LOOKED_UP:
            node.stage = PREPARED
            if node.extra is not None and node.extra.resolved is not None:
                assert node.description is not None
                implicit = self._implicit(node, lane)
                runtime.stager.link(
                    node.description, lane.backend, node.extra.resolved, implicit=implicit
                )
        return True

    # Arguments and command.

    def _describe(self, node: Node) -> None:
        runtime, task = self._runtime, node.task
        node.attempt += 1
        node.future._attempt = node.attempt
        node.uid = uid = f"{runtime.uid}.task.{node.number:06d}.{node.attempt}"
        settings, extra = task.settings, node.extra
        executable = task.kind == "executable"
        node.description = description = cast(
            "TaskDescription",
            {
                "uid": uid,
                "name": task.name,
                "function": None if executable else task.function,
                "executable": None,
                "args": () if executable else node.args,
                "kwargs": {} if executable else (node.kwargs or {}),
                "is_service": settings.service,
                "task_backend_specific_kwargs": dict(node.specific or settings.specific),
                "metadata": {"dependencies": [], "input_files": [], "output_files": []},
                "attempt": node.attempt,
            },
        )
        if task.optional:
            description.update(task.optional)  # type: ignore[typeddict-item]
        if runtime.timeout is not None and settings.timeout is None and not settings.service:
            description["timeout"] = runtime.timeout
        if settings.environment:
            description["environment"] = dict(settings.environment)
        if executable or settings.capture == "files":
            description["sandbox"] = runtime.stager.sandbox_path(uid)
        if node.dependencies:
            self._describe_dependencies(node, description)
            if node.pushed:
                description["references"] = runtime.pushdown.references(node)
        if extra is not None:
            if extra.scope is not None:
                description["scope"] = extra.scope
            if extra.found is not None:
                self._describe_files(node, description)
                if not executable:
                    description["args"], description["kwargs"] = self.values(node)

    def _describe_dependencies(self, node: Node, description: TaskDescription) -> None:
        sources: list[Outcome] = []
        uids = description["metadata"]["dependencies"]
        for future in node.dependencies:
            if isinstance(future, TaskFuture):
                if future._outcome is not None:
                    sources.append(future._outcome)
                if future._definition.prefix == "task":
                    owner = cast("Task[Any, Any]", future._definition).runtime.uid
                    uids.append(f"{owner}.{future.uid}.{future.attempt}")
        if sources:
            node.more().sources = sources

    def _describe_files(self, node: Node, description: TaskDescription) -> None:
        assert node.extra is not None
        assert node.extra.found is not None
        found = node.extra.found
        if found.inputs or found.outputs:
            description["metadata"]["input_files"] = [f.filename for f in found.inputs]
            description["metadata"]["output_files"] = [f.filename for f in found.outputs]
            description["sandbox"] = self._runtime.stager.sandbox_path(node.uid)

    def values(self, node: Node) -> Values:
        """The node's arguments with futures replaced by their values and files bound."""
        found = node.extra.found if node.extra is not None else None
        if found is None:
            return node.args, node.kwargs or {}
        sandbox = node.description.get("sandbox") if node.description is not None else None

        def replace(leaf: Any) -> Any:
            if asyncio.isfuture(leaf):
                if node.pushed:
                    reference = self._runtime.pushdown.reference(leaf)
                    if reference is not None:
                        return reference
                return leaf.result()
            if sandbox is None:
                return leaf
            return self._runtime.stager.bind(cast("InputFile | OutputFile", leaf), sandbox)

        args = tuple(found.fill(value, replace) for value in node.args)
        return args, {k: found.fill(v, replace) for k, v in (node.kwargs or {}).items()}

    def _command_built(self, node: Node, lane: Lane) -> bool:
        extra = node.more()
        if extra.command is None:  # a retry runs the same command
            args, kwargs = self.values(node)
            command = node.task.function(*args, **kwargs)
            if inspect.iscoroutine(command):
                waiting = self._await_command(node, lane, command)
                builder = self._runtime.spawn(waiting, node.uid, at_once=True)
                node.future.add_done_callback(lambda _: builder.cancel())  # cancelled meanwhile
                return False
            extra.command = _checked_command(node, command)
        _set_command(node, extra.command)
        return True

    async def _await_command(
        self, node: Node, lane: Lane, command: Coroutine[Any, Any, Any]
    ) -> None:
        try:
            built = _checked_command(node, await command)
        except BaseException as error:  # a builder's own error, whatever it is, fails its task
            self._runtime.refuse(node, error)
            return
        if node.life.work is Work.READY:
            node.more().command = built
            _set_command(node, built)
            node.stage = BUILT
            lane.resume(node)

    # Hooks.

    def _call_prepare(self, node: Node) -> None:
        runtime, description = self._runtime, node.description
        assert description is not None
        for hook in runtime.hooks.prepare_task:
            try:
                hook.call(engine=runtime.engine, task=description)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever a plugin raises fails this task alone
                raise PluginError(
                    f"plugin {hook.plugin!r} failed to prepare task {node.task.name!r}: "
                    f"{describe_error(error)}"
                ) from error
            if description["uid"] != node.uid or not description.keys() >= _KEYS:
                raise PluginError(
                    f"plugin {hook.plugin!r} prepared task {node.task.name!r} so that it cannot "
                    "be submitted: a description keeps its uid and the keys "
                    f"{', '.join(sorted(_KEYS))}"
                )
            _check_prepared(hook.plugin, description)

    def _selected(self, node: Node, default: Lane) -> Lane:
        runtime = self._runtime
        lanes = [lane for lane in runtime.lanes.values() if _lacking(node, lane) is None]
        candidates = [lane.name for lane in lanes]
        for hook in runtime.hooks.select_backend if lanes else ():
            name = runtime.hooks.call(
                hook, engine=runtime.engine, task=node.description, candidates=tuple(candidates)
            )
            if name in candidates:
                return runtime.lane(name)
            if name is not None:
                answer = f"selected {name!r}, which is not used: there were {candidates}"
                runtime.hooks.report(hook, PluginError(answer))
        return default

    def _may_be_recorded(self, node: Node) -> bool:
        settings = node.task.settings
        return settings.cache and not settings.service and node.attempt == 1

    async def _look_up(self) -> None:
        runtime = self._runtime
        waiting, self._unlooked = self._unlooked, []
        for hook in runtime.hooks.lookup_results:
            waiting = [(node, lane) for node, lane in waiting if node.life.work is Work.READY]
            if not waiting:
                return
            tasks = [_to_look_up(node) for node, _ in waiting]
            results = runtime.hooks.call(hook, engine=runtime.engine, tasks=tasks)
            if inspect.isawaitable(results):
                results = await self._looked_up(hook, results)
            if results is None:
                continue
            if not _answers(results, len(waiting)):
                answer = f"answered {len(waiting)} look-ups with {results!r:.200}; it is not used"
                runtime.hooks.report(hook, PluginError(answer))
                continue
            missing = []
            for (node, lane), result in zip(waiting, results, strict=True):
                if node.life.work is not Work.READY:
                    continue  # cancelled meanwhile
                if isinstance(result, Recorded):
                    runtime.stats.recorded += 1
                    node.step(Event.DONE)
                    runtime.gate.reveal(node, result.value)
                else:
                    missing.append((node, lane))
            waiting = missing
        for node, lane in waiting:
            lane.resume(node)

    async def _looked_up(self, hook: PluginHook, results: Awaitable[Any]) -> Any:
        try:
            return await results
        except (Exception, asyncio.CancelledError) as error:  # the plugin's own: the tasks run
            if asked_to_stop():
                raise
            self._runtime.hooks.report(hook, error)
            return None

    # Capabilities and files.

    def _check_capabilities(self, node: Node, lane: Lane) -> None:
        task, lacking = node.task, _lacking(node, lane)
        if lacking is not None:
            able = [o.name for o in self._runtime.lanes.values() if _lacking(node, o) is None]
            where = f"attached backends that can: {', '.join(able)}" if able else (
                "attach one that does: WorkflowEngine.create(backends=[...])"
            )  # fmt: skip
            raise CapabilityError(
                f"task {task.name!r} needs {lacking}, which backend {lane.name!r}, as it is set "
                f"up, does not offer; {where}"
            )
        task.accepted_by = lane

    def _has_files(self, node: Node, lane: Lane) -> bool:
        assert node.extra is not None
        if lane.dry:
            return False  # what runs nothing reads nothing
        found = node.extra.found
        if found is not None and (found.inputs or found.outputs):
            return True
        return self._implicit(node, lane)

    def _implicit(self, node: Node, lane: Lane) -> bool:
        assert node.extra is not None
        assert node.description is not None
        return (
            self._runtime.implicit_data
            and lane.capabilities.sandboxes
            and "sandbox" in node.description
            and any(source.sandbox is not None for source in node.extra.sources)
        )

    async def _resolve(self, node: Node, lane: Lane) -> None:
        extra, description = node.extra, node.description
        if extra is None or description is None:
            return  # cancelled before this began
        found = extra.found
        try:
            extra.resolved = await self._runtime.stager.resolve(
                description,
                lane.backend,
                found.inputs if found else (),
                found.outputs if found else (),
                extra.sources,
            )
        except Exception as error:  # a task whose files cannot be had fails alone
            self._runtime.refuse(node, error)
        else:
            lane.resume(node)


def _to_look_up(node: Node) -> LookupTask:
    """What a plugin gets of a task to look for its result."""
    assert node.description is not None
    found: Any = {
        **node.description,
        "settings": node.recording_settings(),
        "inputs": node.input_paths(),
    }
    return cast("LookupTask", found)


def _answers(results: object, number: int) -> bool:
    """Whether a look-up was answered with one result or `None` for each task."""
    return (
        isinstance(results, Sequence)
        and len(results) == number
        and all(result is None or isinstance(result, Recorded) for result in results)
    )


def _checked_command(node: Node, command: object) -> str | list[str]:
    if isinstance(command, str) and command.strip():
        return command
    if (
        isinstance(command, list)
        and command
        and command[0]
        and all(isinstance(word, str) for word in command)
    ):
        return command
    raise ValueError(
        f"executable task {node.task.name!r} ({node.future.uid}) must return its command, "
        f"a non-empty string for a shell or list of strings, not {command!r}"
    )


def _set_command(node: Node, command: str | list[str]) -> None:
    assert node.description is not None
    if isinstance(command, str):
        node.description["executable"] = command
    else:
        node.description["executable"] = command[0]
        node.description["arguments"] = command[1:]


_KINDS = {
    "function": "to run ordinary functions",
    "async_function": "to run coroutine functions",
    "executable": "to run executables",
    "service": "to run services",
    "function_service": "to run functions as services",
}

_DEFAULTS = Resources()


def _check_prepared(plugin: str, description: TaskDescription) -> None:
    """Raises for what a hook put into a description, and the engine reads there.

    Raises:
        PluginError: It names the plugin and the key.
    """
    what = f"plugin {plugin!r} prepared task {description['name']!r} with"
    limit, resources = description.get("timeout"), description.get("resources")
    if limit is not None:
        try:
            description["timeout"] = seconds("timeout", limit)
        except (TypeError, ValueError) as error:
            raise PluginError(f"{what} a time-out that cannot be meant: {error}") from error
    if resources is not None and not isinstance(resources, Resources):
        raise PluginError(f"{what} resources that are no rhapsody.Resources: {resources!r}")


def _lacking(node: Node, lane: Lane) -> str | None:
    """What a task needs and a backend does not offer, in words."""
    task, description = node.task, node.description
    if not lane.capabilities.runs(task.task_kind):
        return _KINDS[task.task_kind]
    resources = description.get("resources") if description is not None else None
    if resources is None:
        return None
    for name in ("cores", "gpus", "memory", "ranks"):
        value = getattr(resources, name)
        if value != getattr(_DEFAULTS, name) and name not in lane.capabilities.resources:
            return f"{name}={value!r}"
    return None
