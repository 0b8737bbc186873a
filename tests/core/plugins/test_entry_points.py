"""Discovery of installed plugins: shadowing, broken metadata, exclusion, and later changes."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import textwrap
from pathlib import Path

import importlib_metadata  # noqa: F401 - some tests remove its directory from `sys.path`
import pytest

from rhapsody.backends.discovery import get_backend
from rhapsody.errors import PluginError
from rhapsody.plugins import manager
from rhapsody.plugins.manager import Installed, installed
from tests._support.distributions import install, install_backend, unique


def settle(directory: Path) -> None:
    """Make a directory look unchanged for an hour."""
    long_ago = directory.stat().st_mtime - 3600
    os.utime(directory, (long_ago, long_ago))


def found(distribution: str) -> list[tuple[str, str, str]]:
    return [
        (one.group, one.name, one.value)
        for one in installed().entries
        if one.distribution == distribution
    ]


def test_both_groups_are_read_and_no_module_is_imported(site: Path) -> None:
    module = unique("untouched")
    install(
        site,
        "Some.Plugin",
        backends={"one": module},
        plugins={"two": f"{module}:thing"},
        modules={module: "raise SystemExit('imported')"},
    )
    assert found("some-plugin") == [
        ("rhapsody.backends", "one", module),
        ("rhapsody.plugins", "two", f"{module}:thing"),
    ]
    assert module not in sys.modules


@pytest.mark.filterwarnings("ignore:unclosed file .*packed.zip:ResourceWarning")
def test_a_plugin_inside_a_zip_file_is_found_and_runs(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique("zipped")
    light, _ = install_backend(site / "unpacked", "zipped-plugin", name)
    install(site / "unpacked", "without-plugins")
    archive = shutil.make_archive(str(site / "packed"), "zip", site / "unpacked")
    shutil.rmtree(site / "unpacked")
    monkeypatch.syspath_prepend(archive)
    assert found("zipped-plugin") == [("rhapsody.backends", name, light)]
    assert type(get_backend(name)).name == name
    Path(archive).write_bytes(b"no zip file any more")
    assert found("zipped-plugin") == []
    gc.collect()  # old versions of importlib-metadata leave the file to the garbage collector


def test_of_two_versions_on_the_path_the_first_is_in_effect(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site / "late", "twice", version="1.0", backends={"old": "old_module"})
    install(site / "early", "twice", version="2.0", backends={"new": "new_module"})
    monkeypatch.syspath_prepend(str(site / "late"))
    monkeypatch.syspath_prepend(str(site / "early"))
    assert found("twice") == [("rhapsody.backends", "new", "new_module")]


def test_a_distribution_without_plugins_shadows_one_with_plugins(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site / "late", "twice", version="1.0", backends={"old": "old_module"})
    install(site / "early", "twice", version="2.0")
    monkeypatch.syspath_prepend(str(site / "late"))
    monkeypatch.syspath_prepend(str(site / "early"))
    assert found("twice") == []


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("entry_points.txt", b"[rhapsody.backends]\nbad = \xff\xfe\n", "UnicodeDecodeError"),
        ("entry_points.txt", b"[rhapsody.backends]\nno equals sign\n", "Error"),
        ("entry_points.txt", b"[rhapsody.backends]\n = bad_module\n", "has no name"),
        ("METADATA", b"Metadata-Version: 2.1\n", "Error"),
        ("METADATA", None, ""),
    ],
)
def test_broken_metadata_of_one_distribution_does_not_hide_another(
    site: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    content: bytes | None,
    reason: str,
) -> None:
    install(site, "good", backends={"good": "good_module"})
    bad = install(site, "bad", backends={"bad": "bad_module"})
    if content is None:
        (bad / file).unlink()
    else:
        (bad / file).write_bytes(content)
    with caplog.at_level(logging.WARNING, "rhapsody.plugins"):
        assert found("good")
        assert found("rhapsody-core")
        assert not found("bad")
    ((label, why),) = installed().unreadable
    assert label == "bad" or str(site) in label
    assert reason in why
    assert label in caplog.text


def test_entry_points_of_rhapsody_py_are_ignored_and_reported_once(
    site: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "_logged", set())
    install(site, "rhapsody-py", backends={"dask": "rhapsody.backends.dask:Dask"})
    with caplog.at_level(logging.WARNING, "rhapsody.plugins"):
        assert not found("rhapsody-py")
        installed()
    assert [one.name for one in installed().ignored] == ["dask"]
    assert caplog.text.count("rhapsody-py 1.0") == 1
    assert "rhapsody doctor" in caplog.text


@pytest.mark.parametrize("value", ["a-plugin", " A_Plugin , nothing", "all"])
def test_disabled_distributions_are_left_out(
    site: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install(site, "a.plugin", backends={"one": "one_module"})
    monkeypatch.setenv("RHAPSODY_DISABLE_PLUGINS", value)
    assert not found("a-plugin")
    assert [one.name for one in installed().disabled if one.distribution == "a-plugin"] == ["one"]
    assert found("rhapsody-core"), "core's own backends are no plugins and always stay"


def test_core_cannot_be_disabled(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_DISABLE_PLUGINS", "rhapsody-core")
    assert found("rhapsody-core")


def test_nothing_is_read_again_while_nothing_changes(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "quiet", backends={"one": "one_module"})
    settle(site)
    monkeypatch.setattr(sys, "path", [str(site)])
    first = installed()
    monkeypatch.setattr("importlib_metadata.entry_points", lambda: pytest.fail("read again"))
    assert installed() is first


def test_a_plugin_installed_while_the_program_runs_is_found(site: Path) -> None:
    install(site, "before", backends={"one": "one_module"})
    assert found("before")
    install(site, "after", backends={"two": "two_module"})
    assert found("after")


def test_a_plugin_that_was_replaced_at_once_is_read_again(site: Path) -> None:
    info = install(site, "again", backends={"one": "one_module"})
    assert found("again") == [("rhapsody.backends", "one", "one_module")]
    former = site.stat()
    shutil.rmtree(info)
    install(site, "again", backends={"two": "two_module"})
    os.utime(site, ns=(former.st_atime_ns, former.st_mtime_ns))
    assert found("again") == [("rhapsody.backends", "two", "two_module")]


def test_an_uninstalled_plugin_is_forgotten(site: Path) -> None:
    info = install(site, "going", backends={"one": "one_module"})
    settle(site)
    assert found("going")
    for file in info.iterdir():
        file.unlink()
    info.rmdir()
    assert not found("going")


def test_files_written_to_a_directory_on_the_path_do_not_forget_loaded_plugins(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = site / "work"
    work.mkdir()
    install(site, "quiet", backends={"one": "one_module"})
    settle(site)
    monkeypatch.setattr(sys, "path", [str(work), str(site)])
    first = installed()
    monkeypatch.setattr("importlib_metadata.entry_points", lambda: pytest.fail("read again"))
    for name in ("result.txt", "another.txt"):
        (work / name).write_text("done")
        assert installed() is first


def test_odd_entries_of_the_path_are_survived(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "file.zip").write_bytes(b"no zip file")
    odd = ["", str(site / "missing"), str(site / "file.zip"), site, str(site)]
    monkeypatch.setattr(sys, "path", odd)
    assert isinstance(installed(), Installed)


@pytest.mark.parametrize(
    ("written_for", "core", "remedy"),
    [
        ("", 2, "pip install --upgrade observing"),
        ("rhapsody_api_version = 1\n", 2, "pip install --upgrade observing"),
        ("rhapsody_api_version = 2\n", 1, "pip install --upgrade rhapsody-core"),
    ],
)
def test_a_plugin_for_another_version_of_the_interface_is_not_used(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    written_for: str,
    core: int,
    remedy: str,
) -> None:
    module = unique("observing")
    source = """
    from rhapsody import hookimpl

    @hookimpl
    def rhapsody_workflow_started(engine):
        raise SystemExit("used")
    """
    text = written_for + textwrap.dedent(source)
    install(site, "observing", plugins={"observing": module}, modules={module: text})
    monkeypatch.setattr("rhapsody.plugins.specs.API_VERSION", core)
    entry = next(one for one in installed().entries if one.distribution == "observing")
    with pytest.raises(PluginError, match=f"of the plugin interface, .* {remedy}"):
        manager.load(entry)


def test_the_version_of_the_interface_is_a_number(site: Path) -> None:
    module = unique("observing")
    source = "rhapsody_api_version = '1'"
    install(site, "observing", plugins={"observing": module}, modules={module: source})
    entry = next(one for one in installed().entries if one.distribution == "observing")
    with pytest.raises(PluginError, match="rhapsody_api_version must be a number, got '1'"):
        manager.load(entry)
