"""The commands of the README work as they stand, in a copy of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.support import INSTALL_TIMEOUT, ROOT, check
from tests.system.test_examples import number

pytestmark = pytest.mark.timeout(1800)


def section(title: str) -> str:
    """The text of one section of the README."""
    text = (ROOT / "README.md").read_text()
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"README.md has no section {title!r}"
    return match[1]


def commands(title: str) -> list[str]:
    """The commands of one section of the README."""
    blocks = re.findall(r"^```console\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_two_commands_do_all_the_set_up() -> None:
    assert len(commands("Start")) == 2


def test_the_introduction_is_five_lines() -> None:
    introduction = (ROOT / "README.md").read_text().split("\n\n")[1]
    assert len(introduction.splitlines()) == 5


def test_the_first_command_runs_the_digits_example_to_its_table(checkout: Path) -> None:
    first, _ = commands("Start")
    output = check("bash", "-euc", first, cwd=checkout, timeout=INSTALL_TIMEOUT)
    assert re.search(r"^rank +model", output, re.MULTILINE), output
    best = re.search(r"^ +1 +support vectors .* (0\.9\d+) ", output, re.MULTILINE)
    assert best, output
    assert float(best[1]) > 0.98
    assert number("tasks", output) > 110
    assert number("utilization", output) > 30


def test_the_second_command_sets_nox_up_and_starts_it(checkout: Path) -> None:
    _, second = commands("Start")
    assert second.endswith(".venv/bin/nox")
    # What it runs is what runs this test: here it is enough that it would start.
    listed = check("bash", "-euc", f"{second} --list", cwd=checkout, timeout=INSTALL_TIMEOUT)
    selected = re.findall(r"^\* ([a-z]+)", listed, re.MULTILINE)
    assert list(dict.fromkeys(selected)) == ["lint", "types", "tests", "system"]


def test_ci_runs_the_second_command_and_what_it_leaves_out() -> None:
    _, second = commands("Start")
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[-2:] == [f"{second} || exit", ".venv/bin/nox -R -s ci"]


def test_the_command_line_of_the_readme_runs_an_example_on_a_chosen_backend(
    checkout: Path,
) -> None:
    (command,) = commands("Backends")
    if not (checkout / ".venv" / "bin" / "rhapsody").exists():
        pytest.skip("needs the environment that the README's first command makes")
    output = check("bash", "-euc", command, cwd=checkout, timeout=300)
    assert re.search(r"^rank +model", output, re.MULTILINE), output


def test_links_of_the_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in targets if not (ROOT / target).exists()] == []
