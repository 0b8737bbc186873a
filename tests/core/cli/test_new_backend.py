"""`rhapsody new-backend`: what may be a name, what is written and where."""

from __future__ import annotations

import ast
import importlib.util
import time
import tomllib
from pathlib import Path

import pytest

from rhapsody.cli import main
from rhapsody.cli.new_backend import LICENSES, core_range
from rhapsody.plugins.specs import API_VERSION
from rhapsody_testing import capability_table
from tests._support.distributions import install_backend


def made(*arguments: str) -> Path:
    assert main(["new-backend", *arguments]) == 0
    (distribution,) = (path for path in Path().iterdir() if path.is_dir())
    return distribution


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["new-backend", *arguments]) == 2
    return capsys.readouterr().err


def test_it_writes_a_whole_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    root = made("demo")
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        ".github/workflows/ci.yml",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "noxfile.py",
        "pyproject.toml",
        "src/rhapsody_demo/__init__.py",
        "src/rhapsody_demo/backend.py",
        "src/rhapsody_demo/plugin.py",
        "src/rhapsody_demo/py.typed",
        "tests/test_conformance.py",
        "tests/test_plugin.py",
    ]
    told = capsys.readouterr().out
    for command in ("cd rhapsody-demo", "pip install -e '.[test]'", "pytest", "rhapsody backends"):
        assert f"  {command}\n" in told


def test_nothing_of_the_template_is_left_over() -> None:
    root = made("demo")
    for path in root.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "$" not in text.replace("${{ matrix.python }}", ""), path
            assert text == "" or text.endswith("\n"), path
            if path.suffix == ".py":
                ast.parse(text)


def test_its_metadata_name_the_entry_point_and_a_bounded_range_of_core() -> None:
    project = tomllib.loads((made("demo") / "pyproject.toml").read_text())["project"]
    assert project["name"] == "rhapsody-demo"
    assert project["entry-points"] == {"rhapsody.backends": {"demo": "rhapsody_demo.plugin"}}
    assert project["dependencies"] == [f"rhapsody-core{core_range()}"]
    assert project["optional-dependencies"]["test"] == [f"rhapsody-testing~={API_VERSION}.0"]
    assert project["license"] == "MIT"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.0", ">=0.1,<0.2"),
        ("0.3.7", ">=0.3,<0.4"),
        ("0.2.0rc1", ">=0.2.0rc1,<0.3"),
        ("1.4.2", ">=1.4,<2"),
        ("2.0.0.dev3+g123", ">=2.0.0.dev3,<3"),
    ],
)
def test_the_range_of_core_ends_where_the_plugin_interface_may_break(
    monkeypatch: pytest.MonkeyPatch, version: str, expected: str
) -> None:
    monkeypatch.setattr("rhapsody._version.__version__", version)
    assert core_range() == expected


@pytest.mark.parametrize(
    ("given", "name", "stem"),
    [
        ("demo", "demo", "Demo"),
        ("My-Cluster", "my_cluster", "MyCluster"),
        ("k8s_pods", "k8s_pods", "K8sPods"),
        ("class", "class", "Class"),
    ],
)
def test_a_name_becomes_distribution_package_and_class(given: str, name: str, stem: str) -> None:
    root = made(given)
    assert root.name == f"rhapsody-{name.replace('_', '-')}"
    backend = (root / "src" / f"rhapsody_{name}" / "backend.py").read_text()
    assert f"class {stem}Backend(" in backend
    assert f'    name = "{name}"\n' in backend
    assert f"class Test{stem}(" in (root / "tests" / "test_conformance.py").read_text()


@pytest.mark.parametrize("name", ["", "1st", "a b", "a/b", "../up", "-x-", "a--b", "é", "a.b"])
def test_a_name_that_cannot_be_used_is_refused(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    told = refused(capsys, "--", name)
    assert repr(name) in told
    assert "such as my-cluster" in told
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["rhapsody-fast", "Rhapsody_fast"])
def test_the_distributions_prefix_is_not_part_of_the_name(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert refused(capsys, name).endswith("rhapsody new-backend fast\n")


@pytest.mark.parametrize(
    ("name", "owner"),
    [("local", "rhapsody-core"), ("DASK", "rhapsody-dask"), ("radical-pilot", "rhapsody-radical")],
)
def test_a_name_of_ours_is_refused(
    capsys: pytest.CaptureFixture[str], name: str, owner: str
) -> None:
    assert f"{owner} already has a backend" in refused(capsys, name)


def test_the_name_of_an_installed_backend_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install_backend(tmp_path, "somebodys-plugin", "taken")
    assert "somebodys-plugin already has a backend" in refused(capsys, "Taken")


@pytest.mark.parametrize("license", LICENSES)
def test_the_license_is_the_one_chosen(license: str) -> None:
    root = made("demo", "--license", license, "--author", 'Zoë "Z" Ω')
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["license"] == license
    assert project["authors"] == [{"name": 'Zoë "Z" Ω'}]
    text = (root / "LICENSE").read_text()
    if license == "Apache-2.0":
        assert "Version 2.0, January 2004" in text
    else:
        assert f'Copyright (c) {time.strftime("%Y")} Zoë "Z" Ω' in text


def test_an_author_on_two_lines_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be one line" in refused(capsys, "demo", "--author", "a\nb")


def test_the_directory_can_be_chosen_and_may_hold_a_repository() -> None:
    target = Path("deep", "er")
    (target / ".git").mkdir(parents=True)
    assert main(["new-backend", "demo", "--dir", str(target)]) == 0
    assert (target / "pyproject.toml").is_file()
    assert sorted(path.name for path in Path("deep").iterdir()) == ["er"]


@pytest.mark.parametrize("kind", ["file", "full", "parent is a file"])
def test_what_is_there_is_not_touched(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    target = Path("rhapsody-demo")
    if kind == "full":
        target.mkdir()
        (target / "mine").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    else:
        Path("mine").write_text("mine")
        target = Path("mine/there")
    before = sorted(Path().rglob("*"))
    told = refused(capsys, "demo", "--dir", str(target))
    assert str(target) in told
    assert sorted(Path().rglob("*")) == before


def test_the_table_in_its_readme_is_the_one_of_its_capabilities() -> None:
    root = made("demo")
    spec = importlib.util.spec_from_file_location(
        "made_plugin", root / "src" / "rhapsody_demo" / "plugin.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Where a capability has been added: put the new table into template/README.md.in.
    assert capability_table(module.CAPABILITIES) in (root / "README.md").read_text()
    (declared,) = (module.rhapsody_backends(),)
    assert declared.api_version == API_VERSION
