"""RAPTOR master and worker that survive failures; RADICAL-Pilot loads this file in a pilot.

RAPTOR's own worker never releases the cores of a call that kills its process, cannot cancel a
running call, and does not report the start of a call. This worker executes calls in a pool of
processes, kills a process if its call is canceled, detects when a process ends, and reports calls
as running. All other tasks are handled by its base class, RAPTOR's own worker. This file must not
import other modules of this package except `call.py`; `call.py` and core's `runner.py` are copied
to the same directory.

A message for each short call would cost as much as the call. Therefore, a process receives several
calls at once if they belong to groups, and reads one byte from a pipe before it starts each call.
By reading the remaining bytes, the worker withdraws the calls that have not started. It does so to
send them to an idle process, to cancel them, or because the process has ended. As a result, no call
waits for a long one while cores are free, and each call is executed once.

Commands share the transport of grouped calls, but a separate process starts them; see `command.py`.
The worker only reserves their cores.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

import radical.pilot as rp  # type: ignore[import-untyped,unused-ignore]
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]

STATES = "state_pubsub"

MARK = "rhapsody"
"""Key in the metadata of Rhapsody's tasks.

Its value is `"call"` for a call that `call.run` executes, `"task"` for a `PythonTask`, which any
RAPTOR worker could execute, and `"calls"` for a group, whose `function` is a list of calls and
commands, each with its uid, the packed call, and a dict. For a command, this dict contains the
`script` that starts the process of `command.py`.
"""

CALL_REPORTS = "rhapsody_calls"
"""Name of the messages on RADICAL-Pilot's state channel about starts and ends of grouped calls."""

BATCH_SECONDS = 0.02
"""Seconds for which starts and ends of calls are collected into one message."""

MAX_CALLS, SHORT_SECONDS = 32, 0.05
"""Maximum number of calls that a process receives at once, and the limit of short calls in seconds.

The number of calls starts at 1. It is doubled each time the previous calls took less than
`SHORT_SECONDS` in total, and otherwise reset to 1.
"""


RETRY_DELAYS = (5.0, 10.0, 20.0, 40.0)
"""Seconds before each repetition of the message that registers a master's call queue."""


class RhapsodyMaster(rp.raptor.Master):  # type: ignore[misc,name-defined,unused-ignore]
    """RAPTOR's master, which also repeats the registration of its call queue.

    RAPTOR's own master publishes the address of its call queue once, a second after its start. On a
    busy machine, the socket may not be connected by then, so the message is lost and calls wait
    forever. This master repeats the message until the first call arrives.
    """

    def __init__(self) -> None:
        self._called = threading.Event()
        self._registration: tuple[Any, ...] = ()
        super().__init__()
        threading.Thread(target=self._repeat, daemon=True).start()

    def publish(self, pubsub: str, msg: Any, *more: Any, **options: Any) -> None:
        """Publish a message. Store the registration of the call queue, for `_repeat`."""
        if isinstance(msg, dict) and msg.get("cmd") == "register_raptor_queue":
            self._registration = (pubsub, msg)
        super().publish(pubsub, msg, *more, **options)

    def _request_cb(self, tasks: Any) -> Any:
        self._called.set()
        return super()._request_cb(tasks)

    def _repeat(self) -> None:
        for seconds in RETRY_DELAYS:
            if self._called.wait(seconds):
                return
            super().publish(*self._registration)


class RhapsodyWorker(rp.raptor.DefaultWorker):  # type: ignore[misc,name-defined,unused-ignore]
    """Worker that executes calls in a pool of processes.

    Args:
        raptor_id: The uid of the worker's master.
    """

    def __init__(self, raptor_id: str) -> None:
        self._change = threading.Condition()
        self._waiting: deque[dict[str, Any]] = deque()
        self._cancelled: set[str] = set()
        self._expired: set[str] = set()
        self._busy: list[Process] = []
        self._idle: list[Process] = []
        self._commands: CommandRunner | None = None
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
        """Let RAPTOR's own worker handle tasks other than calls; blocks until cores are free."""
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
            for process in self._busy:
                if any(call["uid"] in uids for call in process.calls):
                    self._waiting.extendleft(reversed(process.withdraw()))
                    # The last call is running; those before it have ended.
                    if process.calls and (uid := process.calls[-1]["uid"]) in uids:
                        self._cancelled.add(uid)
                        process.kill()
            if self._commands is not None:
                for uid in self._commands.calls.keys() & uids:
                    self._cancelled.add(uid)
                    self._commands.send(uid, None)
            for call in [call for call in self._waiting if call["uid"] in uids]:
                self._waiting.remove(call)
                self._answer(call, cancelled=True)
            self._change.notify_all()

    def stop(self) -> None:
        """End all calls and the worker."""
        self._server.close()
        with self._change:
            if self._commands is not None:
                self._commands.close()
        super().stop()

    # Calls.

    def _schedule(self) -> None:
        while True:
            with self._change:
                while not (calls := self._next()):
                    self._change.wait()
            if "script" in calls[0]:
                self._start_command(calls[0])
                continue
            try:
                threading.Thread(target=self._call_all, args=(calls,), daemon=True).start()
            except RuntimeError as error:  # no more threads can be started
                self._free(_reserved(calls))
                for call in calls:
                    self._answer(call, error=f"RuntimeError('RAPTOR worker: {error}')")

    def _next(self, most: int = 1) -> list[dict[str, Any]]:
        """Take up to `most` waiting calls for one process, and reserve cores for them.

        The process executes the calls one after another, and they need the same number of cores.
        Therefore, the cores of the first call are reserved for all of them.

        Returns:
            The calls; an empty list if there are none or if too few cores are free.
        """
        if not self._waiting or not self._fits(self._waiting[0]):
            busiest = max(self._busy, key=lambda process: len(process.calls), default=None)
            if busiest is None or len(busiest.calls) < 2 or not self._fits(busiest.calls[0]):
                return []
            self._waiting.extendleft(reversed(busiest.withdraw()))
            if not self._waiting or not self._fits(self._waiting[0]):
                return []
        first = self._waiting.popleft()
        with self._rlock:
            taken = self._resources["cores"]
            cores = [number for number, used in enumerate(taken) if not used][: self._cores(first)]
            for number in cores:
                taken[number] = 1
        first["slots"] = [{"cores": cores, "gpus": []}]  # as RAPTOR's own worker does
        calls, most = [first], min(most, len(self._waiting) // (2 * self._n_cores))
        while len(calls) < most and self._may_share(first, self._waiting[0]):
            calls.append(self._waiting.popleft())
        return calls

    def _cores(self, task: dict[str, Any]) -> int:
        """Return the number of cores that a call uses, at most the number that the worker has.

        Calls with GPUs are not sent to RAPTOR.
        """
        cores = task["description"].get("cores_per_rank")
        return 1 if cores is None else min(int(cores), int(self._n_cores))

    def _fits(self, task: dict[str, Any]) -> bool:
        with self._rlock:
            return bool(self._cores(task) <= self._resources["cores"].count(0))

    def _may_share(self, task: dict[str, Any], other: dict[str, Any]) -> bool:
        """Return True if two calls may be sent to a process together."""
        grouped = all("group" in each and "script" not in each for each in (task, other))
        return grouped and self._cores(task) == self._cores(other)

    def _free(self, cores: list[int]) -> None:
        """Release cores."""
        with self._rlock:
            for number in cores:
                self._resources["cores"][number] = 0

    def _call_all(self, calls: list[dict[str, Any]]) -> None:
        """Execute calls, and then further calls on the same thread, because threads are costly."""
        most = 1
        while calls:
            if "script" in calls[0]:
                self._start_command(calls[0])
                return
            began = time.monotonic()
            cores = _reserved(calls)  # a withdrawn call may run on other cores
            try:
                process = self._process(self._cores(calls[0]))
                process.send(calls)
            except Exception as raised:  # such as too many open files: the calls are retried
                error = f"ChildProcessError('cannot start its process: {type(raised).__name__}')"
                for call in calls:
                    self._answer(call, error=error)
            else:
                self._watch(process, calls[0])
            most = min(MAX_CALLS, 2 * most) if time.monotonic() - began < SHORT_SECONDS else 1
            with self._change:
                self._free(cores)
                calls = self._next(most)
                self._change.notify_all()

    def _process(self, cores: int) -> Process:
        with self._change:
            for number, process in enumerate(self._idle):
                if process.cores == cores:
                    return self._idle.pop(number)
        return self._server.start(cores)

    def _watch(self, process: Process, first: dict[str, Any]) -> None:
        """Report each start and outcome of a process's calls, until the process has none left."""
        limit, timer = _limit(first), None
        with self._change:
            self._busy.append(process)
            self._announce(first)
        if limit:  # only calls that are not in groups have a limit
            timer = threading.Timer(limit, self._expire, (first["uid"], process))
            timer.daemon = True
            timer.start()
        while (text := process.receive()) is not None:
            with self._change:
                self._end(process.calls.popleft(), text)
                if process.calls:
                    self._announce(process.calls[0])
        if timer is not None:
            timer.cancel()
        with self._change:
            self._busy.remove(process)
            self._waiting.extendleft(reversed(process.withdraw()))
            for call in process.calls:
                self._end(call, None)
            if process.alive and len(self._idle) < self._n_cores:
                self._idle.append(process)
            else:
                process.close()

    def _end(self, call: dict[str, Any], text: str | None) -> None:
        """Report the outcome of a call.

        Args:
            call: The call.
            text: The call's result, or `None` if its process ended during the call.
        """
        uid, error = call["uid"], None
        if uid in self._expired:
            limit, text = _limit(call), None
            error = f"TimeoutError('it exceeded its timeout of {limit:g} s')"
        elif text is None:
            error = "ChildProcessError('its process was killed or exited')"
        self._answer(call, text=text, error=error, cancelled=uid in self._cancelled)
        self._expired.discard(uid)
        self._cancelled.discard(uid)

    def _expire(self, uid: str, process: Process) -> None:
        """End a call whose timeout has expired, unless it has just ended."""
        with self._change:
            if process.calls and process.calls[0]["uid"] == uid:
                self._expired.add(uid)
                process.kill()

    # Commands.

    def _start_command(self, call: dict[str, Any]) -> None:
        """Start a command whose cores are reserved."""
        with self._change:
            try:
                if self._commands is None:
                    self._commands = CommandRunner(call["script"])
                    watch = self._watch_commands, (self._commands,)
                    threading.Thread(target=watch[0], args=watch[1], daemon=True).start()
            except (OSError, RuntimeError) as raised:  # such as too many processes; it is retried
                self._end_command(call, None, f"cannot start its process: {raised}")
                return
            self._commands.calls[call["uid"]] = call
            self._announce(call)
            self._commands.send(call["uid"], call["description"]["function"])

    def _watch_commands(self, commands: CommandRunner) -> None:
        """Report the end of each command until the process that runs the commands has ended."""
        for uid, text, error in commands.receive():
            with self._change:
                self._end_command(commands.calls.pop(uid), text, error)
        problem = commands.end()
        with self._change:
            if self._commands is commands:
                self._commands = None
            for call in commands.calls.values():
                self._end_command(call, None, problem)

    def _end_command(self, call: dict[str, Any], text: str | None, error: str | None) -> None:
        self._free(_reserved([call]))
        cancelled = call["uid"] in self._cancelled
        self._cancelled.discard(call["uid"])
        lost = None if text is not None else f"ChildProcessError({error!r})"
        self._answer(call, text=text, error=lost, cancelled=cancelled)
        self._change.notify_all()

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
        """Report starts and ends of grouped calls without waiting for the ends of their groups."""
        while True:
            news = [self._news.get()]
            time.sleep(BATCH_SECONDS)
            while not self._news.empty():
                news.append(self._news.get())
            # The end of a call implies its start.
            ended = {uid for uid, *outcome in news if outcome}
            self._publish(
                CALL_REPORTS, [each for each in news if len(each) > 1 or each[0] not in ended]
            )

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
        task["worker"] = self._uid
        task["stdout"] = task["stderr"] = ""
        task["return_value"] = text
        task["exit_code"] = 0 if text is not None else 1
        task["exception"] = error
        task["exception_detail"] = error
        if cancelled:
            task["target_state"] = rp.CANCELED
        self._res_put.put(task)


def _reserved(calls: list[dict[str, Any]]) -> list[int]:
    """Return the numbers of the cores that `_next` has reserved for calls of one process."""
    cores: list[int] = calls[0]["slots"][0]["cores"]
    return cores


def _kind(task: dict[str, Any]) -> Any:
    return (task["description"].get("metadata") or {}).get(MARK)


class CallGroup:
    """RADICAL-Pilot task that contains several calls, which are executed independently."""

    def __init__(self, task: dict[str, Any], size: int) -> None:
        self.task, self.size, self.started = task, size, False
        self.outcomes: list[tuple[Any, ...]] = []


def _members(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of a group as tasks."""
    calls = json.loads(task["description"]["function"])
    group = CallGroup(task, len(calls))
    shared = {**task["description"], "metadata": {MARK: "call"}}
    return [
        {"uid": uid, "description": {**shared, "function": order}, "group": group, **more}
        for uid, order, more in calls
    ]


def _limit(task: dict[str, Any]) -> float:
    return float(task["description"].get("timeout") or 0)


class Process:
    """Process that executes calls one after the other.

    Args:
        channel: The connection to the process.
        unstarted: Both ends of a pipe that contains a byte for each call that has not started.
        cores: The number of cores of each call; it is the same for all calls of the process,
            because libraries read it only once.

    Attributes:
        cores: The argument `cores`.
        calls: The calls that the process has received and that have not ended, in order.
        alive: True if the process can receive more calls.

    Raises:
        ChildProcessError: The process could not be started.
    """

    def __init__(
        self,
        channel: Connection[Any, Any],
        unstarted: tuple[Connection[Any, Any], Connection[Any, Any]],
        cores: int,
    ) -> None:
        self.cores = cores
        self.calls: deque[dict[str, Any]] = deque()
        self.alive = True
        self._channel = channel
        self._unstarted = unstarted
        self._pid: int = self.receive() or 0
        if not self._pid:
            self.close()
            raise ChildProcessError

    def send(self, calls: list[dict[str, Any]]) -> None:
        """Send calls to an idle process, for which `receive` has returned `None`."""
        self.calls.extend(calls)
        os.write(self._unstarted[1].fileno(), bytes(len(calls)))
        orders = [(_kind(call), call["description"]["function"]) for call in calls]
        with suppress(OSError):  # the process has ended, which `receive` detects
            self._channel.send(orders)

    def withdraw(self) -> list[dict[str, Any]]:
        """Remove and return the calls that have not started."""
        with suppress(BlockingIOError):
            number = len(os.read(self._unstarted[0].fileno(), MAX_CALLS))
            return [self.calls.pop() for _ in range(number)][::-1]
        return []

    def receive(self) -> Any:
        """Return the next result; `None` after the last one, or if the process has ended."""
        try:
            return self._channel.recv()
        except (EOFError, OSError):
            self.alive = False
            return None

    def kill(self) -> None:
        """Kill the process, and programs of its calls that are in the same process group."""
        self.alive = False
        if self._pid:
            with suppress(OSError):
                os.killpg(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process exit.

        Programs that its calls started keep running. If the process has ended unexpectedly or was
        killed, they are killed as well.
        """
        if not self.alive:
            self.kill()
        for each in (self._channel, *self._unstarted):
            each.close()


class CommandRunner:
    """Process that runs commands, see `command.py`; it ends when the worker ends.

    Args:
        script: The shell script that starts the process, with a descriptor as its argument.

    Attributes:
        calls: The commands that have not ended, by their uids.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, script: str) -> None:
        self.calls: dict[str, dict[str, Any]] = {}
        self._ready = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        self._socket, child_end = socket.socketpair()
        with child_end:
            self._process = subprocess.Popen(
                [shutil.which("bash") or "/bin/sh", script, str(child_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[child_end.fileno()],
                start_new_session=True,
            )
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        """Close the connection when the process ends, because a daemon may have inherited it."""
        self._process.wait()
        self.close()

    def send(self, uid: str, order: str | None) -> None:
        """Start a command, or cancel it if there is no order."""
        with suppress(OSError):  # the process has ended, which `receive` detects
            self._socket.sendall(json.dumps([uid, order]).encode() + b"\n")

    def receive(self) -> Iterator[tuple[str, str | None, str | None]]:
        """Yield the uid, reply and error of each command that ends, until the process has ended."""
        with self._socket.makefile("rb") as lines, suppress(ConnectionError):
            for line in lines:
                if self._ready:
                    uid, text, error = json.loads(line)
                    yield uid, text, error
                self._ready = True

    def end(self) -> str:
        """Wait until the process has ended, close its files, and describe its end."""
        code = self._process.wait()
        with self._socket, self._log:
            self._log.seek(0)
            output = self._log.read()[-1000:].decode(errors="replace").strip()
        if self._ready:
            return f"the process that runs commands has ended with exit code {code}"
        return f"the process that runs commands cannot start: exit code {code}, {output}"

    def close(self) -> None:
        """End the process and all commands."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Server:
    """Process without threads that forks other processes; it ends when the worker ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        runner = _runner()
        self._socket, child_end = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._socket.close()
                _serve(child_end, runner)
                status = 0
            finally:
                os._exit(status)
        child_end.close()

    def start(self, cores: int) -> Process:
        """Fork a process for calls that need this number of cores."""
        own_end, child_end = Pipe()
        unstarted = Pipe(duplex=False)
        os.set_blocking(unstarted[0].fileno(), False)
        try:
            with self._lock:
                socket.send_fds(self._socket, [b"+"], [child_end.fileno(), unstarted[0].fileno()])
        except ConnectionError:  # the server was killed: exit, so that the worker is replaced
            os._exit(1)
        child_end.close()
        return Process(own_end, unstarted, cores)

    def close(self) -> None:
        """End the server and all processes that it created."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _serve(requests: socket.socket, runner: Callable[[], Any]) -> None:
    """Fork a process for each request, until the worker has ended."""
    with suppress(ImportError):
        import asyncio  # noqa: F401 - import once what every call needs

        import cloudpickle  # type: ignore[import-untyped,unused-ignore] # noqa: F401

        from rhapsody.sdk import task_context  # noqa: F401
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    made: list[int] = []
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 2)
        if not message:
            break
        if len(descriptors) < 2:  # too many open files: the calls are lost and retried
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        channel: Connection[Any, Any] = Connection(descriptors[0])
        unstarted = descriptors[1]
        try:
            pid = os.fork()
        except OSError:  # too many processes: the calls are lost and retried
            channel.close()
            os.close(unstarted)
            continue
        if pid == 0:
            status = 1
            try:
                requests.close()
                _work(channel, unstarted, runner)
                status = 0
            finally:
                os._exit(status)
        # The id of an ended process is not reused before `waitpid`.
        made = [each for each in made if os.waitpid(each, os.WNOHANG) == (0, 0)]
        made.append(pid)
        channel.close()
        os.close(unstarted)
    for pid in made:
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def _runner() -> Callable[[], Any]:
    """Return `call.RaptorRunner`, loaded from a file because Rhapsody may not be installed here."""
    here = os.path.dirname(os.path.abspath(__file__))
    call, protocol = os.path.join(here, "call.py"), os.path.join(here, "runner.py")
    package, name = "rhapsody.sdk", "rhapsody.sdk.runner"
    installed = sys.modules.get(package)
    try:
        if os.path.exists(protocol):  # a copy of the program's version
            # `call.py` imports from the package; this file defines all names that it needs.
            sys.modules[package] = sys.modules[name] = _module(name, protocol)
        runner: Callable[[], Any] = _module("rhapsody_radical_call", call).RaptorRunner
    finally:
        sys.modules.pop(package, None)
        if installed is not None:
            sys.modules[package] = installed
    return runner


def _module(name: str, path: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _work(channel: Connection[Any, Any], unstarted: int, runner: Callable[[], Any]) -> None:
    """Execute calls one after the other until the worker closes the channel."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A process that a call starts must not keep the channel open when this one ends.
    for descriptor in (channel.fileno(), unstarted):
        os.set_inheritable(descriptor, False)
    os.register_at_fork(after_in_child=channel.close)
    channel.send(os.getpid())
    run = runner().run_text
    with suppress(EOFError):
        while True:
            for kind, order in channel.recv():
                try:
                    os.read(unstarted, 1)
                except BlockingIOError:  # the worker has withdrawn the others
                    break
                if kind == "call":
                    text = run(order)
                else:
                    function, args, kwargs = rp.PythonTask.get_func_attr(order)
                    text = function(*args, **(kwargs or {}))
                channel.send(text)
            channel.send(None)
