"""The conda recipes: rattler-build accepts them, and they agree with the distributions."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.system.support import DISTRIBUTIONS, ROOT, project

rattler_build = pytest.importorskip("rattler_build")


def rendered(name: str) -> Any:
    """Return the recipe of a distribution, with its variables replaced."""
    recipe = rattler_build.Stage0Recipe.from_file(ROOT / "conda" / name / "recipe.yaml")
    (variant,) = recipe.render(rattler_build.VariantConfig())
    return variant.recipe


def versions(requirements: list[str]) -> dict[str, set[str]]:
    """Return the bounds of each requirement, of pip or of conda. conda has no extras."""
    found = {}
    for line in requirements:
        requirement = Requirement(re.sub(r" (?=[<>=])", "", line))
        found[requirement.name] = set(str(requirement.specifier).split(","))
    return found


def test_every_distribution_has_a_recipe() -> None:
    assert sorted(path.parent.name for path in ROOT.glob("conda/*/recipe.yaml")) == DISTRIBUTIONS


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_recipe_names_the_distribution(name: str) -> None:
    recipe, metadata = rendered(name), project(name)
    assert recipe.package.name == name
    assert str(recipe.package.version) == metadata["version"]
    assert recipe.about.summary == metadata["description"]
    assert str(recipe.about.license) == metadata["license"]
    assert recipe.about.documentation.rstrip("/") == metadata["urls"]["Documentation"]
    assert recipe.about.repository.rstrip("/") == metadata["urls"]["Source"]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_recipe_has_the_dependencies_of_the_distribution(name: str) -> None:
    metadata, required = project(name), rendered(name).requirements.to_dict()
    extras = metadata.get("optional-dependencies", {}).values()
    others = [each for lines in extras for each in lines if not each.startswith("rhapsody-")]
    python = f"python{metadata['requires-python']}"
    assert versions(required["run"]) == versions([python, *metadata["dependencies"]])
    assert versions(required.get("run_constraints", [])) == versions(others)
    build = tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text())["build-system"]
    lowest, *host = required["host"]
    assert lowest == "python 3.11.*"
    assert versions(host) == versions([*build["requires"], "pip"])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_recipe_installs_the_programs_of_the_distribution(name: str) -> None:
    scripts = project(name).get("scripts", {})
    text = (ROOT / "conda" / name / "recipe.yaml").read_text()
    assert re.findall(r"- (\S+ = \S+:\S+)", text) == [f"{k} = {v}" for k, v in scripts.items()]
