"""Names that several distributions claim."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from rhapsody import BackendRegistry, get_backend
from rhapsody.backends.noop import NoopExecutionBackend
from rhapsody.plugins.manager import install_command
from tests._support.distributions import install, install_backend
from tests._support.registry import check_unusable


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
    check_unusable(name, f"reserved for {owner}, but claimed by impostor", install_command(owner))


def test_the_owner_of_a_reserved_name_keeps_it_and_the_claim_is_reported(site: Path) -> None:
    install_backend(site, "impostor", "noop")
    assert BackendRegistry.get_backend_class("noop") is NoopExecutionBackend
    (conflict,) = BackendRegistry.describe("noop").conflicts
    assert "impostor" in conflict
    assert "rhapsody-core" in conflict


def test_a_name_claimed_twice_is_unusable_until_one_distribution_is_uninstalled(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(site, "first-toys", "toy")
    other = install_backend(site / "other", "other-toys", "TOY")
    monkeypatch.syspath_prepend(str(site / "other"))
    monkeypatch.setenv("RHAPSODY_BACKENDS", "other-toys:toy")
    reason = "the name 'toy' is claimed by first-toys and other-toys"
    check_unusable("toy", reason, "pip uninstall other-toys")
    assert other[1] not in sys.modules
    shutil.rmtree(site / "other")
    assert BackendRegistry.describe("toy").distribution == "first-toys"
    assert get_backend("toy").name == "toy"


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
