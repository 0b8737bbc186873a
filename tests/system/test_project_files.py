"""Workflows, forms and metadata of the project: they are valid and agree with the tree."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.system.support import DISTRIBUTIONS, ROOT, check, project, run

YAML = pytest.importorskip("ruamel.yaml").YAML(typ="safe", pure=True)

WORKFLOWS = sorted(path.name for path in ROOT.glob(".github/workflows/*"))
SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "dependabot": ".github/dependabot.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "citation-file-format": "CITATION.cff",
}
ADDRESS = "https://rhapsody.example"
"""Replaced before the project is published, see CONTRIBUTING.md."""


def load(path: str) -> Any:
    """Return the content of a YAML file of the tree."""
    return YAML.load(ROOT / path)


@pytest.fixture(scope="module")
def sessions() -> list[str]:
    """The names of all sessions of the noxfile."""
    listed = check(sys.executable, "-m", "nox", "--list", cwd=ROOT)
    return re.findall(r"^[*-] (.+?) -> ", listed, re.MULTILINE)


@pytest.fixture(scope="module")
def matrix() -> list[str]:
    """The sessions that the command in ci.yml lists."""
    listed = check(sys.executable, "-m", "nox", "--json", "--list", "-s", "tests", cwd=ROOT)
    return [each["session"] for each in json.loads(listed)]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_match_their_schema(schema: str) -> None:
    files = sorted(ROOT.glob(SCHEMAS[schema]))
    assert files
    validate = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}")
    check(*validate, *files, cwd=ROOT)


def commands(job: dict[str, Any], matrix: list[str]) -> set[str]:
    """Return the commands of a job, one for each session if it has a matrix of them."""
    names = job.get("strategy", {}).get("matrix", {}).get("session", matrix)
    return {
        step["run"].replace("${{ matrix.session }}", name)
        for step in job["steps"]
        if "run" in step
        for name in names
    }


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflows_run_only_commands_that_are_run_here(
    workflow: str, sessions: list[str], matrix: list[str]
) -> None:
    others = {
        "pip install nox uv",  # as .ci/run does
        "pip install --group build",
        'python .ci/build.py "$GITHUB_REF_NAME"',  # see the tests below
        'echo "tests=$(nox --json --list -s tests)" >> "$GITHUB_OUTPUT"',  # see `matrix`
    }
    for job in load(f".github/workflows/{workflow}")["jobs"].values():
        for command in commands(job, matrix) - others:
            words = shlex.split(command)
            assert words[:2] == ["nox", "-s"], command
            assert set(words[2:]) <= set(sessions), command


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflows_have_few_permissions_and_pinned_actions(workflow: str) -> None:
    content = load(f".github/workflows/{workflow}")
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        assert ("permissions" in job) == (name in ("deploy", "publish"))
        assert "timeout-minutes" in job
        for step in job["steps"]:
            assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v1")), step


def test_the_tag_of_every_distribution_starts_the_release() -> None:
    (pattern,) = load(".github/workflows/release.yml")["on"]["push"]["tags"]
    assert pattern == "rhapsody-*-v*"
    assert all(name.startswith("rhapsody-") for name in DISTRIBUTIONS)


def test_hooks_of_pre_commit_use_the_development_environment() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    included = [each["include-group"] for each in groups["dev"] if isinstance(each, dict)]
    tools = [re.split("[<>=]", tool)[0] for name in included for tool in groups[name] if name]
    for repository in load(".pre-commit-config.yaml")["repos"]:
        for hook in repository["hooks"]:
            program, *words = hook["entry"].split()
            tool = Path(program).name
            assert tool in tools or (tool == "python" and (ROOT / words[0]).exists())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_addresses_of_a_distribution_have_one_origin(name: str) -> None:
    assert project(name)["urls"] == {
        "Documentation": f"{ADDRESS}/docs",
        "Source": f"{ADDRESS}/source",
        "Changelog": f"{ADDRESS}/source/blob/main/packages/{name}/CHANGELOG.md",
        "Issues": f"{ADDRESS}/source/issues",
    }


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_classifiers_name_what_the_tests_run_on(name: str, matrix: list[str]) -> None:
    backend = name.removeprefix("rhapsody-")
    classifiers = project(name)["classifiers"]
    claimed = [c.rpartition(" ")[2] for c in classifiers if re.search(r"Python :: 3\.\d+$", c)]
    assert claimed
    assert {f"tests-{python}(backend='{backend}')" for python in claimed} <= set(matrix)
    systems = [c for c in classifiers if c.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]


def test_the_extra_all_names_every_distribution() -> None:
    listed = project("rhapsody-core")["optional-dependencies"]["all"]
    others = {
        "rhapsody-core",
        "rhapsody-asyncflow",
    }  # the latter replaces modules of other projects
    assert {re.split("[; ]", each)[0] for each in listed} == {*DISTRIBUTIONS} - others


def test_the_citation_has_the_license_and_the_addresses_of_the_project() -> None:
    citation, core = load("CITATION.cff"), project("rhapsody-core")
    assert citation["license"] == core["license"]
    assert citation["repository-code"] == core["urls"]["Source"]
    assert citation["url"] == core["urls"]["Documentation"]


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("rhapsody-core-v99.0", "the version in packages/rhapsody-core/pyproject.toml is"),
        ("v0.1.0", "is not NAME-vVERSION"),
        ("rhapsody-other-v0.1.0", "is not NAME-vVERSION"),
    ],
)
def test_a_tag_that_does_not_fit_is_not_released(tag: str, reason: str) -> None:
    done = run(sys.executable, ROOT / ".ci" / "build.py", tag, cwd=ROOT)
    assert done.returncode == 1
    assert reason in done.stderr


def test_a_release_needs_a_dated_section_of_the_changelog(checkout: Path) -> None:
    name, version = "rhapsody-wfcommons", project("rhapsody-wfcommons")["version"]
    changelog = checkout / "packages" / name / "CHANGELOG.md"
    text = changelog.read_text()
    heading = re.compile(rf"(?m)^## {re.escape(version)} \(.*\)$")
    build = (sys.executable, checkout / ".ci" / "build.py", f"{name}-v{version}", "--no-isolation")
    try:
        changelog.write_text(heading.sub(f"## {version} (unreleased)", text))
        assert "has no section" in run(*build, cwd=checkout).stderr
        changelog.write_text(heading.sub(f"## {version} (2030-01-31)", text))
        check(*build, cwd=checkout, timeout=300)
    finally:
        changelog.write_text(text)
    assert sorted(path.suffix for path in (checkout / "dist").iterdir()) == [".gz", ".whl"]
