"""Results of attempts, as read from the backends' reports.

This module determines the value or error of an attempt, checks that declared output files exist,
and passes the attempt's output and sandbox to the future.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from rhapsody.backends.programs import write_again
from rhapsody.data import leads_into
from rhapsody.engine.core import error_messages
from rhapsody.engine.core.record import TaskRecord
from rhapsody.errors import DataError, InputChangedError
from rhapsody.staging.flow import FileFlow
from rhapsody.staging.stager import Stager
from rhapsody.states import TasksMainStates
from rhapsody.task import NO_FILES, AttemptInfo, ProducedFiles

DONE = TasksMainStates.DONE

SHORT: Final = 100
"""Number of characters of output that many attempts may share, instead of one object for each."""


class Results:
    """Reader of the reports of attempts that have ended.

    Args:
        stager: The stager, which keeps or removes sandboxes.
        recording: True if a plugin records results.
    """

    def __init__(self, stager: Stager, *, recording: bool) -> None:
        self._stager = stager
        self._recording = recording
        self._shared: dict[str | None, AttemptInfo] = {}  # the last short output, by host

    def read(
        self, record: TaskRecord, main: TasksMainStates, report: Mapping[str, Any]
    ) -> tuple[Any, BaseException | None]:
        """Read the report of an attempt that is DONE or FAILED, and call `keep`.

        Returns:
            The value and `None`, or `None` and the error.
        """
        value: Any = None
        error: BaseException | None = None
        task = record.call.task
        if main is not DONE:
            error = error_messages.of_attempt(record, report)
        elif task.settings.service:
            error = error_messages.of_service(record, report, ready=False)
        elif task.kind != "executable":
            value = report.get("return_value")
        elif report.get("exit_code"):
            error = error_messages.of_attempt(record, report)
        else:
            value = report.get("stdout")
        if record.files is not None:
            error = self.input_changed(record, error) or error
        elif error is None and report.get("sandbox") is None:  # a function without files
            self._note(record, report)
            return value, None
        if error is None:
            try:
                self.keep(record, report, succeeded=True, done=True, value=value)
            except Exception as mistake:  # a declared file is missing: the attempt failed
                self.keep(record, report, succeeded=False)
                return None, mistake  # no local name: this frame is in its traceback
        else:
            self.keep(record, report, succeeded=False)
        return value, error

    def input_changed(
        self, record: TaskRecord, error: BaseException | None
    ) -> InputChangedError | None:
        """Return an error if an input file has changed since the attempt was prepared.

        Args:
            record: The task, whose attempt has ended.
            error: The error of the attempt, or `None` if the attempt succeeded.
        """
        if record.files is None or record.call.task.settings.service:
            return None
        changed = record.files.changed()
        return error_messages.input_changed(record, changed, error) if changed else None

    def keep(
        self,
        record: TaskRecord,
        report: Mapping[str, Any],
        *,
        succeeded: bool,
        done: bool = False,
        value: Any = None,
    ) -> None:
        """Set an attempt's output, exit code and sandbox on the future; keep or remove the sandbox.

        Args:
            record: The task.
            report: The backend's report of the attempt.
            succeeded: True if the attempt succeeded or was canceled, False if it failed.
            done: True if the attempt has a result; the output files are then part of the result.
            value: The attempt's value, if `done`.

        Raises:
            DataError: A declared output file is missing.
        """
        sandbox, files = report.get("sandbox"), NO_FILES
        if sandbox is not None or record.files is not None:
            files = self._keep_files(record, sandbox, succeeded=succeeded, done=done, value=value)
        if not succeeded:
            leave_script(record)
        self._note(record, report, sandbox, files)

    def _note(
        self,
        record: TaskRecord,
        report: Mapping[str, Any],
        sandbox: str | None = None,
        files: ProducedFiles = NO_FILES,
    ) -> None:
        """Set an attempt's output, exit code and sandbox on the future."""
        get, attempt = report.get, record.attempt
        stdout, stderr, usage = get("stdout"), get("stderr"), get("usage")
        if stdout is None and stderr is None and usage is None and sandbox is None:
            return
        code, host = get("exit_code"), get("worker")
        if host is not None:
            host = str(host)
        if usage is None and code is None and record.files is None:
            outcome = self._shared.get(host)
            if outcome is None or outcome.stdout != stdout or outcome.stderr != stderr:
                outcome = AttemptInfo("", stdout, stderr, host=host)
                if are_short(stdout, stderr):
                    self._shared[host] = outcome
            record.outcome = attempt.outcome = outcome
            return
        outcome = record.outcome = attempt.outcome = AttemptInfo(
            attempt.uid, stdout, stderr, code, record.submitted_to, record.call.task.name, host,
            usage,
        )  # fmt: skip
        if sandbox is not None:
            outcome.files = files

    def _keep_files(
        self, record: TaskRecord, sandbox: str | None, *, succeeded: bool, done: bool, value: Any
    ) -> ProducedFiles:
        flow = record.files
        if flow is None:  # the backend has chosen a sandbox
            flow = record.files = FileFlow(self._stager, record.attempt.description)
            flow.place(record.attempt.backend.backend)
        stays = record.call.task.settings.capture == "files"
        if not done:
            return (flow.stop if succeeded else flow.fail)(sandbox, stays=stays)
        try:
            return flow.check(
                sandbox,
                record.attempt.backend.backend,
                dry=record.attempt.backend.dry,
                stays=stays or leads_into(value, sandbox),
                recorded=self._recording and record.call.task.settings.cache,
            )
        except DataError as error:
            raise error_messages.with_hint(record, error) from None


def are_short(*texts: Any) -> bool:
    """Return True if outputs are texts that many attempts may share."""
    return all(text is None or (type(text) is str and len(text) < SHORT) for text in texts)


def leave_script(record: TaskRecord) -> None:
    """Leave a script in the sandbox of a failed executable for running the command again."""
    if record.call.task.kind == "executable" and record.attempt.description:
        with contextlib.suppress(OSError):  # the sandbox is not on this file system
            write_again(record.attempt.description)
