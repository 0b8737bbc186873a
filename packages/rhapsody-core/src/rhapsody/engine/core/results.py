"""Results of attempts, as read from the backends' reports.

This module determines the value or error of an attempt, checks that declared output files exist,
and passes the attempt's output and sandbox to the future.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from rhapsody.backends.programs import write_again
from rhapsody.data import Output
from rhapsody.engine.core import error_messages
from rhapsody.engine.core.record import TaskRecord
from rhapsody.errors import DataError, InputChangedError
from rhapsody.staging.files import Stager
from rhapsody.staging.outputs import check_outputs, leads_into, names_of
from rhapsody.states import TasksMainStates
from rhapsody.task import AttemptInfo, ProducedFiles

DONE = TasksMainStates.DONE


class Results:
    """Reader of the reports of attempts that have ended.

    Args:
        stager: The stager, which keeps or removes sandboxes.
        recording: True if a plugin records results.
    """

    def __init__(self, stager: Stager, *, recording: bool) -> None:
        self._stager = stager
        self._recording = recording

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
        if record.call.found is not None or record.resolved is not None:
            error = self.input_changed(record, error) or error
            try:
                self._check_files(record, failed=error is not None)
            except Exception as mistake:  # a declared file is missing: the attempt failed
                self.keep(record, report, succeeded=False)
                return None, mistake  # no local name: this frame is in its traceback
        self.keep(record, report, succeeded=error is None, done=error is None, value=value)
        return value, error

    def input_changed(
        self, record: TaskRecord, error: BaseException | None
    ) -> InputChangedError | None:
        """Return an error if an input file has changed since the attempt was prepared.

        Args:
            record: The task, whose attempt has ended.
            error: The error of the attempt, or `None` if the attempt succeeded.
        """
        if record.resolved is None or record.call.task.settings.service:
            return None
        changed = self._stager.changed_inputs(record.resolved)
        return error_messages.input_changed(record, changed, error) if changed else None

    def _check_files(self, record: TaskRecord, *, failed: bool) -> None:
        """Check the output files of a successful attempt, and register its input files as read.

        For a failed attempt, only prevent the removal of input files that it read in place, without
        a sandbox.

        Raises:
            DataError: A declared output file is missing.
        """
        resolved = record.resolved
        if failed:
            if resolved is not None:
                self._stager.spare_inputs(record.attempt.description, resolved)
            return
        if record.call.found is not None and record.call.found.outputs:
            self._check_outputs(record, record.call.found.outputs)
        if resolved is not None:
            self._stager.was_read(resolved)

    def _check_outputs(self, record: TaskRecord, outputs: Sequence[Output]) -> None:
        """Check that the declared output files exist, if this process can see them.

        Raises:
            DataError: A file is missing.
        """
        if (
            record.attempt.backend.capabilities.shared_file_system
            and not record.attempt.backend.dry
        ):
            resolved = record.resolved
            given = self._stager.given(record.attempt.description, resolved)
            try:
                matches = check_outputs(record.attempt.description, outputs, given=given)
            except DataError as error:
                raise DataError(f"{error}{error_messages.unquoted_files(record)}") from None
            if resolved is not None:
                resolved.matches.update(matches)

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
        """
        get = report.get
        sandbox, stdout, stderr = get("sandbox"), get("stdout"), get("stderr")
        usage = get("usage")
        if not succeeded:
            leave_script(record)
        if sandbox is None and stdout is None and stderr is None and usage is None:
            return
        outcome = record.future._outcome = AttemptInfo(
            record.attempt.uid, stdout, stderr, get("exit_code"),
            record.future._backend, record.call.task.name,
        )  # fmt: skip
        outcome.usage = usage
        if (host := get("worker")) is not None:
            outcome.host = str(host)
        if sandbox is not None:
            outputs = record.call.found.outputs if record.call.found is not None else ()
            matches = record.matches() if outputs else {}
            inherited = self._stager.inherited(record.attempt.uid)
            reference = self._stager.keep(
                record.attempt.description,
                succeeded=succeeded,
                outputs=outputs if done else (),
                result_is_path=record.call.task.settings.capture == "files"
                or leads_into(value, sandbox),
                matches=matches,
                recorded=self._recording and done and record.call.task.settings.cache,
            )
            names = names_of(outputs, matches)
            outcome.files = ProducedFiles(sandbox, names, matches, None, inherited, reference)

    def leave(self, record: TaskRecord) -> None:
        """Release an ended attempt's destinations, and its sandbox if `keep` was not called."""
        outcome = record.future._outcome
        if not record.attempt.description:
            return
        self._stager.results.claims.release(record.attempt.description)
        if outcome is None or outcome.uid != record.attempt.uid:
            self._stager.keep(record.attempt.description, succeeded=True)

    def leave_interrupted(self, record: TaskRecord) -> None:
        """Keep the sandbox of an attempt that a signal interrupted, as if the attempt had failed.

        Called before futures are settled, because settling them removes the other sandboxes.
        """
        if "sandbox" in record.attempt.description:
            self._stager.keep(record.attempt.description, succeeded=False)


def leave_script(record: TaskRecord) -> None:
    """Leave a script in the sandbox of a failed executable for running the command again."""
    if record.call.task.kind == "executable" and record.attempt.description:
        with contextlib.suppress(OSError):  # the sandbox is not on this file system
            write_again(record.attempt.description)
