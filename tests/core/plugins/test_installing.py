"""Tests of the hints for installing a plugin, which depend on core's installation (PEP 610)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rhapsody.plugins.manager import install_command, missing_plugin
from tests._support.distributions import install

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret
GIT = {"vcs_info": {"vcs": "git", "commit_id": COMMIT}}


def core_from(site: Path, **origin: object) -> None:
    """Writes what pip leaves behind of a core that came from a folder or a URL."""
    info = install(site, "rhapsody-core", version="99.0")
    (info / "direct_url.json").write_text(json.dumps(origin))


@pytest.mark.parametrize("editable", [True, False])
def test_a_folder_next_to_core_is_named(site: Path, tmp_path: Path, editable: bool) -> None:
    packages = tmp_path / "my projects"
    for name in ("rhapsody-core", "rhapsody-dask"):
        (packages / name).mkdir(parents=True)
    (packages / "rhapsody-dask/pyproject.toml").touch()
    url = (packages / "rhapsody-core").as_uri()
    assert "%20" in url
    core_from(site, url=url, dir_info={"editable": True} if editable else {})
    assert install_command("rhapsody-dask") == f"pip install '{packages}/rhapsody-dask'"
    assert install_command("rhapsody-radical") == "pip install rhapsody-radical"


def test_the_commit_of_core_s_repository_is_named(site: Path) -> None:
    url = "https://git.example.org/rhapsody.git"
    core_from(site, url=url, subdirectory="packages/rhapsody-core", **GIT)
    assert install_command("rhapsody-dask") == (
        f"pip install 'rhapsody-dask @ git+{url}@{COMMIT}#subdirectory=packages/rhapsody-dask'"
    )


def test_a_repository_on_this_machine_is_named_as_pip_takes_it(site: Path) -> None:
    core_from(site, url="file:///w/rhapsody", subdirectory="packages/rhapsody-core", **GIT)
    source = f"git+file:///w/rhapsody@{COMMIT}#subdirectory=packages/rhapsody-dask"
    assert install_command("rhapsody-dask") == f"pip install '{source}'"


def test_an_archive_of_the_repository_is_named(site: Path) -> None:
    url = "https://git.example.org/rhapsody.tar.gz"
    core_from(site, url=url, subdirectory="rhapsody-core", archive_info={})
    assert install_command("rhapsody-dask") == (
        f"pip install 'rhapsody-dask @ {url}#subdirectory=rhapsody-dask'"
    )


@pytest.mark.parametrize(
    "origin",
    [
        {},
        {"url": "https://git.example.org/rhapsody.git", **GIT},
        {"url": "https://git.example.org/rhapsody.git", "subdirectory": "core", **GIT},
        {"url": "file:///w/rhapsody_core-0.1.0-py3-none-any.whl", "archive_info": {}},
        {"url": "file:///nowhere/rhapsody-core", "dir_info": {}},
    ],
)
def test_otherwise_the_name_is_enough(site: Path, origin: dict[str, object]) -> None:
    core_from(site, **origin)
    assert install_command("rhapsody-dask") == "pip install rhapsody-dask"


def test_a_python_that_radical_pilot_does_not_support_is_said(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core_from(site)
    monkeypatch.setattr("sys.version_info", (3, 14, 0))
    assert install_command("rhapsody-radical") == (
        "RADICAL-Pilot requires Python 3.11 to 3.13; with one of them, run: "
        "pip install rhapsody-radical"
    )
    assert install_command("rhapsody-dask") == "pip install rhapsody-dask"


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_cannot_be_read_is_as_if_it_were_not_there(site: Path, text: str) -> None:
    core_from(site)
    next(site.glob("rhapsody_core-*/direct_url.json")).write_text(text)
    assert install_command("rhapsody-dask") == "pip install rhapsody-dask"


def test_the_error_of_a_missing_plugin_ends_with_that_command(site: Path) -> None:
    url = "https://git.example.org/rhapsody.git"
    core_from(site, url=url, subdirectory="packages/rhapsody-core", **GIT)
    error = missing_plugin("DaskExecutionBackend", "rhapsody-dask", ImportError("not there"))
    assert str(error).startswith("DaskExecutionBackend comes with rhapsody-dask, which cannot be")
    assert str(error).endswith(f": {install_command('rhapsody-dask')}")
    assert COMMIT in str(error)
