"""Tests of what errors have in common, and what callers can rely on."""

from __future__ import annotations

import importlib
import pickle
import threading

import pytest

from rhapsody import errors
from rhapsody.errors import DependencyFailureError, RhapsodyError, TaskFailedError, TaskTimeoutError
from rhapsody.tracebacks import format_error

BUILTINS = {
    "DependencyFailureError": RuntimeError,
    "TaskFailedError": RuntimeError,
    "TaskTimeoutError": TimeoutError,
    "WorkerValueError": RuntimeError,
    "InsufficientWalltimeError": RuntimeError,
    "TaskLostError": RuntimeError,
    "SubmissionError": RuntimeError,
    "BackendUnavailableError": ConnectionError,
    "BackendError": RuntimeError,
    "CapabilityError": ValueError,
    "PluginError": RuntimeError,
    "ProfileError": ValueError,
    "DataError": ValueError,
    "InputChangedError": ValueError,
    "JournalError": RuntimeError,
    "OutOfMemoryError": MemoryError,
    "UsageError": ValueError,
}


def test_the_errors_of_the_contract_are_all_there_and_no_others() -> None:
    found = {name for name, value in vars(errors).items() if isinstance(value, type)}
    classes = {name for name in found if issubclass(getattr(errors, name), BaseException)}
    assert classes == {"RhapsodyError", *BUILTINS}


@pytest.mark.parametrize(("name", "builtin"), BUILTINS.items())
def test_every_error_is_ours_and_what_a_caller_would_catch(
    name: str, builtin: type[Exception]
) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, RhapsodyError)
    assert issubclass(kind, builtin)
    assert kind.__doc__
    with pytest.raises(builtin, match="what happened"):
        raise kind("what happened")


@pytest.mark.parametrize("name", ["RhapsodyError", *BUILTINS])
@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_every_error_survives_pickling_with_its_message_and_attributes(
    name: str, pickler: str
) -> None:
    error = getattr(errors, name)("what happened")
    error.add_note("a note")
    again = pickle.loads(importlib.import_module(pickler).dumps(error))
    assert type(again) is type(error)
    assert str(again) == "what happened"
    assert again.args == error.args
    assert again.__notes__ == ["a note"]


def test_a_dependency_failure_survives_pickling_with_who_failed_and_why() -> None:
    error = DependencyFailureError("d did not run", ("a", "b"), KeyError("root"))
    assert error.failed_dependencies == ["a", "b"]
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "d did not run"
    assert again.failed_dependencies == ["a", "b"]
    assert isinstance(again.root_cause, KeyError)
    assert again.root_cause.args == ("root",)


class ParticularError(Exception):
    def __init__(self, what: str, number: int) -> None:
        super().__init__(what)
        self.number = number


class ComposedError(Exception):
    def __init__(self, step: object) -> None:
        super().__init__(f"diverged at step {step}")
        self.step = step


class AddressError(Exception):
    pass


class LockedError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class MuteError(LockedError):
    def __str__(self) -> str:
        raise ValueError("no text")


def again(cause: BaseException, pickler: str = "pickle") -> BaseException:
    error = DependencyFailureError("d did not run", ("a",), cause)
    copy = pickle.loads(importlib.import_module(pickler).dumps(error))
    assert (str(copy), copy.failed_dependencies) == ("d did not run", ["a"])
    assert error.root_cause is cause
    root: BaseException = copy.root_cause
    return root


@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_a_dependency_failure_keeps_its_root_cause_whatever_that_is_made_from(
    pickler: str,
) -> None:
    class LocalError(Exception):
        pass

    root = again(ParticularError("broke", 7), pickler)
    assert isinstance(root, ParticularError)
    assert (str(root), root.number) == ("broke", 7)
    assert type(again(LocalError("here"), pickler)) is LocalError
    assert isinstance(
        again(DependencyFailureError("e", ("d",), LocalError("x")), pickler), RuntimeError
    )


@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_a_root_cause_that_cannot_be_pickled_is_replaced_by_its_text(pickler: str) -> None:
    root = again(LockedError("broke"), pickler)
    assert isinstance(root, TaskFailedError)
    assert str(root).endswith("LockedError: broke")
    assert "MuteError" in str(again(MuteError("broke"), pickler))
    endless = DependencyFailureError("endless")
    endless.root_cause = endless
    assert "endless" in str(again(endless, pickler))


def test_a_dependency_failure_can_be_made_from_a_message_alone() -> None:
    error = DependencyFailureError("did not run")
    assert error.failed_dependencies == []
    assert error.root_cause is None


@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_the_message_of_a_root_cause_is_not_composed_twice(pickler: str) -> None:
    root = again(ComposedError(5), pickler)
    assert isinstance(root, ComposedError)
    assert (str(root), root.step) == ("diverged at step 5", 5)
    assert type(again(AddressError(object()), pickler)) is AddressError


def test_a_failed_task_survives_pickling_with_all_that_it_holds() -> None:
    error = TaskFailedError(
        "it failed", exit_code=-9, stderr="tail", command="sort x", stdout="a\n", sandbox="/run/t"
    )
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "it failed"
    assert (again.exit_code, again.stderr, again.command) == (-9, "tail", "sort x")
    assert (again.stdout, again.sandbox) == ("a\n", "/run/t")
    bare = TaskFailedError("it failed")
    assert (bare.exit_code, bare.stderr, bare.command) == (None, "", None)
    assert (bare.stdout, bare.sandbox) == (None, None)


def test_an_error_of_a_plugin_that_derives_from_ours_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(QuotaError("full", 3)))
    assert type(again) is QuotaError
    assert (str(again), again.left) == ("full", 3)


class QuotaError(TaskTimeoutError):
    def __init__(self, message: str, left: int) -> None:
        super().__init__(message)
        self.left = left


def test_a_timeout_is_caught_as_asyncios_own() -> None:
    with pytest.raises(TimeoutError):
        raise TaskTimeoutError("after 3 s")


class StuckError(Exception):
    """Its text is never complete."""

    def __str__(self) -> str:
        while True:
            pass


class BlockedError(Exception):
    def __str__(self) -> str:
        threading.Event().wait()
        return ""


@pytest.mark.parametrize("kind", [StuckError, BlockedError])
def test_a_text_that_is_never_complete_is_replaced(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    monkeypatch.setattr(errors, "TEXT_TIMEOUT", 0.1)
    shown = f"{kind.__name__}: (str() of the exception did not return within 0.1 s)"
    for error in (kind(), kind("again")):
        assert errors.describe_error(error) == shown
    assert f"{kind.__name__}: (str() of the exception" in format_error(kind())
    error = ValueError("plain")
    error.__cause__ = kind()
    assert "ValueError: plain" in format_error(error)


def test_code_of_arguments_and_of_classes_makes_texts() -> None:
    class NamesItsThreadError(Exception):
        def __str__(self) -> str:
            return f"told on {threading.current_thread().name}"

    class NamesItsThread:
        def __repr__(self) -> str:
            return f"made on {threading.current_thread().name}"

    here = threading.current_thread().name
    assert errors.text_of(NamesItsThreadError()) != f"told on {here}"
    assert errors.text_of(ValueError(1, NamesItsThread())) != f"(1, made on {here})"
    assert errors.text_of(ValueError("plain", 1)) == "('plain', 1)"
