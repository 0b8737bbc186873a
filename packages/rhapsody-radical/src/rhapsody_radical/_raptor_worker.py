"""RAPTOR worker that survives failing calls; loaded by its path, in a pilot.

RAPTOR's own worker never releases the cores of a call that kills its process, cannot cancel a
running call, and does not report the start of a call. This worker executes each call in a process
of a pool, kills the process if the call is canceled, detects its end, and reports the call as
running. All other tasks are handled by RAPTOR's own worker, which is its base class. The module
must not import anything of this package except `call.py` and core's `runner.py`, which are copied
to the same directory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]

STATES = "state_pubsub"

MARK = "rhapsody"
"""Key in the metadata of our tasks.

The value `"call"` marks a call for `call.run`, `"task"` a call as a `PythonTask`, which any RAPTOR
worker could execute, and `"calls"` a group: a list of uids, each with its call.
"""

NEWS = "rhapsody_calls"
"""Name of the messages on RADICAL-Pilot's state channel about starts and ends of grouped calls."""

GATHER = 0.02
"""Seconds for which starts and ends of calls are collected into one message."""


class RhapsodyWorker(rp.raptor.DefaultWorker):  # type: ignore[misc,name-defined,unused-ignore]
    """Worker that executes calls in a pool of processes.

    Args:
        raptor_id: The uid of its master.
    """

    def __init__(self, raptor_id: str) -> None:
        self._change = threading.Condition()
        self._waiting: deque[dict[str, Any]] = deque()
        self._running: dict[str, Process] = {}
        self._cancelled: set[str] = set()
        self._expired: set[str] = set()
        self._idle: list[Process] = []
        self._states: Any = None
        self._news: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._made = threading.Event()
        self._server = Server()  # while this process has no threads
        super().__init__(raptor_id)
        self._made.set()
        for target in (self._schedule, self._report):
            threading.Thread(target=target, daemon=True).start()

    # Requests, on RADICAL-Pilot's threads.

    def _request_cb(self, tasks: Any) -> None:
        calls: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for task in ru.as_list(tasks):
            if _kind(task) == "calls":
                calls += _members(task)
            else:
                (calls if _kind(task) in ("call", "task") else others).append(task)
        if others:
            threading.Thread(target=self._leave, args=(others,), daemon=True).start()
        with self._change:
            self._waiting.extend(calls)
            self._change.notify_all()

    def _leave(self, tasks: list[dict[str, Any]]) -> None:
        """Let RAPTOR's own worker handle other tasks; it blocks until cores are free."""
        self._made.wait()
        super()._request_cb(tasks)

    def _result_cb(self, result: Any) -> None:
        super()._result_cb(result)
        with self._change:
            self._change.notify_all()

    def _control_cb(self, topic: Any, message: Any) -> Any:
        if message.get("cmd") == "cancel_tasks":
            self._cancel(set(message["arg"]["uids"]))
            return None
        return super()._control_cb(topic, message)

    def _cancel(self, uids: set[str]) -> None:
        with self._change:
            dropped = [task for task in self._waiting if task["uid"] in uids]
            for task in dropped:
                self._waiting.remove(task)
            for uid in uids & self._running.keys():
                self._cancelled.add(uid)
                self._running[uid].kill()
        for task in dropped:
            self._answer(task, cancelled=True)

    def stop(self) -> None:
        """End all calls and the worker."""
        self._server.close()
        super().stop()

    # Calls.

    def _schedule(self) -> None:
        while True:
            with self._change:
                while not self._waiting or not self._fits(self._waiting[0]):
                    self._change.wait()
                task = self._waiting.popleft()
            try:
                threading.Thread(target=self._call_all, args=(task,), daemon=True).start()
            except RuntimeError as error:  # no more threads can be started
                self._free(task)
                self._answer(task, error=f"RuntimeError('RAPTOR worker: {error}')")

    def _fits(self, task: dict[str, Any]) -> bool:
        """Reserve the cores and GPUs for a call; return False if they are not free."""
        cores, gpus = _wanted(task)
        if cores > self._n_cores or gpus > self._n_gpus:
            task["slots"] = [{"cores": [], "gpus": []}]
            return True  # `_call` answers with an error
        with self._rlock:
            free_cores = [n for n, taken in enumerate(self._resources["cores"]) if not taken]
            free_gpus = [n for n, taken in enumerate(self._resources["gpus"]) if not taken]
            if len(free_cores) < cores or len(free_gpus) < gpus:
                return False
            slot = {"cores": free_cores[:cores], "gpus": free_gpus[:gpus]}
            for kind, numbers in slot.items():
                for number in numbers:
                    self._resources[kind][number] = 1
        task["slots"] = [slot]
        return True

    def _call_all(self, task: dict[str, Any] | None) -> None:
        """Execute a call, then waiting ones, because a thread for each of them would be slow."""
        while task is not None:
            task = self._call(task)

    def _call(self, task: dict[str, Any]) -> dict[str, Any] | None:
        """Execute a call, and return the next one."""
        uid = task["uid"]
        cores, gpus = _wanted(task)
        task["worker"] = self._uid
        if cores > self._n_cores or gpus > self._n_gpus:
            self._answer(
                task,
                error=f"AssertionError('requested {cores} cores and {gpus} GPUs, but the worker "
                f"has {self._n_cores} and {self._n_gpus}')",
            )
            return None
        text, error = None, None
        process = timer = None
        limit = float(task["description"].get("timeout") or 0)
        try:
            process = self._process(cores, gpus)
            with self._change:
                self._running[uid] = process
            self._announce(task)
            if limit:
                timer = threading.Timer(limit, self._expire, (uid, process))
                timer.daemon = True
                timer.start()
            text = process.call(task, task["slots"][0]["gpus"])
        except Exception as raised:  # fails only this call
            error = f"RuntimeError('cannot use its process: {type(raised).__name__}')"
        finally:
            if timer is not None:
                timer.cancel()
            with self._change:
                self._running.pop(uid, None)
                cancelled = uid in self._cancelled
                self._cancelled.discard(uid)
                if uid in self._expired:
                    self._expired.discard(uid)
                    text = None
                    error = f"TimeoutError('it exceeded its timeout of {limit:g} s')"
                if process is not None:
                    if text is None or cancelled:
                        process.kill()
                        process.close()
                    elif len(self._idle) < self._n_cores:
                        self._idle.append(process)
                    else:
                        process.close()
            following = self._free(task, take=True)
        if text is None and error is None:
            error = "ChildProcessError('its process was killed or exited')"
        self._answer(task, text=text, error=error, cancelled=cancelled)
        return following

    def _free(self, task: dict[str, Any], *, take: bool = False) -> dict[str, Any] | None:
        """Free the cores of a call; with `take`, return the next one if it fits."""
        following = None
        with self._change:
            with self._rlock:
                for kind, numbers in task["slots"][0].items():
                    for number in numbers:
                        self._resources[kind][number] = 0
            if take and self._waiting and self._fits(self._waiting[0]):
                following = self._waiting.popleft()
            if following is None or _wanted(following) != _wanted(task):
                self._change.notify_all()
        return following

    def _expire(self, uid: str, process: Process) -> None:
        """End a call whose timeout has expired, unless it has just ended."""
        with self._change:
            if self._running.get(uid) is process:
                self._expired.add(uid)
                process.kill()

    def _process(self, cores: int, gpus: int) -> Process:
        with self._change:
            for number, process in enumerate(self._idle):
                if process.shape == (cores, gpus):
                    return self._idle.pop(number)
        return self._server.start((cores, gpus))

    # Reports.

    def _announce(self, task: dict[str, Any]) -> None:
        """Report the start of a call, as RADICAL-Pilot's agent does for executables."""
        uid, group = task["uid"], task.get("group")
        if group is not None:
            self._news.put((uid,))
            if group.started:
                return
            group.started, uid = True, group.task["uid"]
        self._publish("update", [{"uid": uid, "type": "task", "state": rp.AGENT_EXECUTING}])

    def _publish(self, command: str, content: list[Any]) -> None:
        with self._change:
            if self._states is None:
                url = self._reg[f"bridges.{STATES}"]["addr_pub"]
                self._states = ru.zmq.Publisher(STATES, url=url, log=self._log, prof=self._prof)
            self._states.put(STATES, {"cmd": command, "arg": content, "fwd": True})

    def _report(self) -> None:
        """Report starts and ends of grouped calls before their groups end."""
        while True:
            news = [self._news.get()]
            time.sleep(GATHER)
            while not self._news.empty():
                news.append(self._news.get())
            self._publish(NEWS, news)

    def _answer(
        self,
        task: dict[str, Any],
        *,
        text: str | None = None,
        error: str | None = None,
        cancelled: bool = False,
    ) -> None:
        if (group := task.get("group")) is not None:
            outcome = (task["uid"], text, error, cancelled)
            self._news.put(outcome)
            with self._change:
                group.outcomes.append(outcome)
                if len(group.outcomes) < group.size:
                    return
            # Repeat all outcomes, because messages on the state channel may be lost.
            task, text, error, cancelled = group.task, json.dumps(group.outcomes), None, False
        task["stdout"] = task["stderr"] = ""
        task["return_value"] = text
        task["exit_code"] = 0 if text is not None else 1
        task["exception"] = error
        task["exception_detail"] = error
        if cancelled:
            task["target_state"] = rp.CANCELED
        self._res_put.put(task)


def _kind(task: dict[str, Any]) -> Any:
    return (task["description"].get("metadata") or {}).get(MARK)


class Group:
    """RADICAL-Pilot task that contains several calls, which are executed independently."""

    def __init__(self, task: dict[str, Any], size: int) -> None:
        self.task, self.size, self.started = task, size, False
        self.outcomes: list[tuple[Any, ...]] = []


def _members(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of a group as tasks."""
    calls = json.loads(task["description"]["function"])
    group = Group(task, len(calls))
    shared = {**task["description"], "metadata": {MARK: "call"}}
    return [
        {"uid": uid, "description": {**shared, "function": order}, "group": group}
        for uid, order in calls
    ]


def _wanted(task: dict[str, Any]) -> tuple[int, int]:
    description = task["description"]
    cores = description.get("cores_per_rank")
    return (1 if cores is None else int(cores)), int(description.get("gpus_per_rank") or 0)


class Process:
    """Process that executes calls one after the other.

    Args:
        channel: The connection to it.
        shape: The number of cores and GPUs of all its calls; libraries read them only once.
    """

    def __init__(self, channel: Connection[Any, Any], shape: tuple[int, int]) -> None:
        self.shape = shape
        self._channel = channel
        self._pid: int = self._received() or 0

    def call(self, task: dict[str, Any], gpus: list[int]) -> str | None:
        """Execute a call and return its result, `None` if the process ended during the call."""
        with suppress(OSError):
            self._channel.send((_kind(task), task["description"]["function"], gpus))
        text: str | None = self._received()
        return text

    def kill(self) -> None:
        """Kill the process and all programs that its calls started, except in new sessions."""
        if self._pid:
            with suppress(OSError):
                os.killpg(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process end after its call; programs that calls left running continue."""
        self._channel.close()

    def _received(self) -> Any:
        try:
            return self._channel.recv()
        except (EOFError, OSError):
            return None


class Server:
    """Process without threads that forks others; it ends with the process that started it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        run = _runner()
        self._socket, child_end = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._socket.close()
                _serve(child_end, run)
                status = 0
            finally:
                os._exit(status)
        child_end.close()

    def start(self, shape: tuple[int, int]) -> Process:
        """Create a process."""
        own_end, child_end = Pipe()
        try:
            with self._lock:
                socket.send_fds(self._socket, [b"+"], [child_end.fileno()])
        except ConnectionError:  # the server was killed: exit, so that the worker is replaced
            os._exit(1)
        child_end.close()
        return Process(own_end, shape)

    def close(self) -> None:
        """End the server and all processes that it created."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _serve(requests: socket.socket, run: Callable[[str], str]) -> None:
    """Fork for each request, until the process that started the server has ended."""
    with suppress(ImportError):
        import asyncio  # noqa: F401 - import once what every call needs

        import cloudpickle  # type: ignore[import-untyped,unused-ignore] # noqa: F401

        from rhapsody.sdk import task_context  # noqa: F401
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    made: list[int] = []
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
        if not message:
            break
        if not descriptors:  # the limit of descriptors was reached: the call is lost and retried
            continue
        channel: Connection[Any, Any] = Connection(descriptors[0])
        try:
            pid = os.fork()
        except OSError:  # no more processes: the call is lost and retried
            channel.close()
            continue
        if pid == 0:
            status = 1
            try:
                requests.close()
                _work(channel, run)
                status = 0
            finally:
                os._exit(status)
        # The id of an ended process is not reused before `waitpid`.
        made = [each for each in made if os.waitpid(each, os.WNOHANG) == (0, 0)]
        made.append(pid)
        channel.close()
    for pid in made:
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def _runner() -> Callable[[str], str]:
    """Return `call.run`, loaded from a file: its package and core may not be installed here."""
    here = os.path.dirname(os.path.abspath(__file__))
    call, protocol = os.path.join(here, "call.py"), os.path.join(here, "runner.py")
    package, name = "rhapsody.sdk", "rhapsody.sdk.runner"
    installed = sys.modules.get(package)
    try:
        if os.path.exists(protocol):  # a copy of the program's version
            # `call.py` imports from the package; this file defines all names that it needs.
            sys.modules[package] = sys.modules[name] = _module(name, protocol)
        run: Callable[[str], str] = _module("rhapsody_radical_call", call).run
    finally:
        sys.modules.pop(package, None)
        if installed is not None:
            sys.modules[package] = installed
    return run


def _module(name: str, path: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _work(channel: Connection[Any, Any], run: Callable[[str], str]) -> None:
    """Execute calls one after the other until the worker closes the channel."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A process that a call starts must not keep the channel open when this one ends.
    os.set_inheritable(channel.fileno(), False)
    os.register_at_fork(after_in_child=channel.close)
    channel.send(os.getpid())
    with suppress(EOFError):
        while True:
            kind, order, gpus = channel.recv()
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
            if not gpus:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            if kind == "call":
                text = run(order)
            else:
                function, args, kwargs = rp.PythonTask.get_func_attr(order)
                text = function(*args, **(kwargs or {}))
            channel.send(text)
