"""Whose a name is, when several distributions claim it."""

from __future__ import annotations

import builtins
import logging
import threading
from pathlib import Path

import pytest

from rhapsody import BackendRegistry, discover_backends, get_backend
from rhapsody.backends.noop import NoopExecutionBackend
from rhapsody.plugins import manager
from rhapsody.plugins.installing import install_command
from tests.core.distributions import install, install_backend
from tests.core.registry import check_unusable


@pytest.mark.parametrize(
    ("name", "owner"),
    [("dask", "rhapsody-dask"), ("radical_pilot", "rhapsody-radical"), ("Radical-Pilot", None)],
)
def test_a_reserved_name_claimed_by_another_distribution_is_unusable(
    site: Path, name: str, owner: str | None
) -> None:
    if any(one.lower().replace("-", "_") == name.lower().replace("-", "_")
           for one in BackendRegistry.list_backends()):  # fmt: skip
        pytest.skip("the owner is installed")
    install_backend(site, "impostor", name)
    owner = owner or "rhapsody-radical"
    check_unusable(name, f"belongs to {owner}, but is claimed by impostor", install_command(owner))


def test_the_owner_of_a_reserved_name_keeps_it_and_the_claim_is_reported(site: Path) -> None:
    install_backend(site, "impostor", "noop")
    assert BackendRegistry.get_backend_class("noop") is NoopExecutionBackend
    (conflict,) = BackendRegistry.describe("noop").conflicts
    assert "impostor" in conflict
    assert "rhapsody-core" in conflict


def test_a_name_claimed_twice_is_unusable_until_one_is_chosen(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(site, "first-toys", "toy")
    install_backend(site, "other-toys", "TOY")
    check_unusable(
        "toy", "first-toys and other-toys all claim the name 'toy'", "RHAPSODY_BACKENDS="
    )
    monkeypatch.setenv("RHAPSODY_BACKENDS", "something:else, Other.Toys:Toy")
    described = BackendRegistry.describe("toy")
    assert described.usable
    assert described.distribution == "other-toys"
    assert described.conflicts
    assert "first-toys" in described.conflicts[0]
    assert get_backend("toy").name == "TOY"


@pytest.mark.parametrize("choice", ["nobody:toy", "nonsense", ":", "first-toys:"])
def test_a_choice_that_names_nobody_chooses_nobody(
    site: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    install_backend(site, "first-toys", "toy")
    install_backend(site, "other-toys", "toy")
    monkeypatch.setenv("RHAPSODY_BACKENDS", choice)
    check_unusable("toy", "first-toys and other-toys", "RHAPSODY_BACKENDS=first-toys:toy")


def test_a_choice_does_not_give_away_a_reserved_name(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(site, "impostor", "noop")
    monkeypatch.setenv("RHAPSODY_BACKENDS", "impostor:noop")
    assert BackendRegistry.get_backend_class("noop") is NoopExecutionBackend


def test_two_different_entry_points_of_one_name_in_one_distribution_are_unusable(
    site: Path,
) -> None:
    install(site, "muddled", backends={"my-toy": "one_module", "my_toy": "two_module"})
    check_unusable("my_toy", "2 different entry points", "pip install --upgrade muddled")


def test_entry_points_of_rhapsody_py_are_no_backends(site: Path) -> None:
    install(site, "rhapsody-py", backends={"old_one": "rhapsody.backends.x:Y"})
    assert "old_one" not in BackendRegistry.list_backends()
    with pytest.raises(ValueError, match="Backend 'old_one' not found"):
        get_backend("old_one")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("not-here:toy", "not-here declares no backend named 'toy'; toys does"),
        ("toys:unheard-of", "no plugin declares a backend named 'unheard_of'"),
        ("toy", "'toy' is not understood: write RHAPSODY_BACKENDS=distribution:name,..."),
    ],
)
def test_a_choice_of_what_is_not_there_is_told_once(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    choice: str,
    said: str,
) -> None:
    install_backend(site, "toys", "toy")
    monkeypatch.setenv("RHAPSODY_BACKENDS", choice)
    for _ in range(2):
        assert discover_backends()["toy"]
    assert [record.getMessage() for record in caplog.records] == [f"RHAPSODY_BACKENDS: {said}"]


@pytest.mark.parametrize("where", ["light", "heavy"])
def test_an_import_that_does_not_come_back_is_named_with_what_leaves_it_out(
    site: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(manager, "SLOW", 0.05)
    told = threading.Event()
    records: list[str] = []

    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())
            told.set()

    # The module comes back when it has been named.
    monkeypatch.setattr(builtins, "told", told, raising=False)
    light, heavy = install_backend(site, "toys", "toy")
    name = light if where == "light" else heavy
    source = site / f"{name}.py"
    source.write_text("assert told.wait(20)\n" + source.read_text())
    handler = Waiting()
    manager.logger.addHandler(handler)
    try:
        BackendRegistry.get_backend_class("toy")
    finally:
        manager.logger.removeHandler(handler)
    (said,) = records
    assert name in said
    assert said.endswith("has not come back after 0.05 s; to leave it out: "
                         "RHAPSODY_DISABLE_PLUGINS=toys")  # fmt: skip
