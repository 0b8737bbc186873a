"""The page about machines: profiles are valid, and RADICAL-Pilot knows what they name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import radical.utils as ru  # type: ignore[import-untyped,unused-ignore]

PAGE = (Path(__file__).parents[2] / "docs/how-to/machines.md").read_text()
MACHINES = {
    section.partition("\n")[0]: section for section in PAGE.split("\n## ") if "```toml\n" in section
}
"""The sections with a profile, by their titles."""

VARIABLES = ("MEMBERWORK", "PROJECT", "PSCRATCH", "SCRATCH", "USER")


def blocks(machine: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", MACHINES[machine], re.M | re.S)


def profiles(machine: str) -> dict[str, Any]:
    (file,) = blocks(machine, "toml")
    return dict(tomllib.loads(file)["profile"])


def described(resource: str) -> dict[str, Any]:
    """Return RADICAL-Pilot's description of a resource, merged with the user's."""
    site, label = resource.split(".")
    return dict(ru.Config("radical.pilot.resource", name=site).as_dict()[label])


@pytest.mark.parametrize("machine", MACHINES)
def test_the_profiles_of_a_machine_are_valid(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"/{name}")
    (tmp_path / "rhapsody.toml").write_text(blocks(machine, "toml")[0])
    for name in profiles(machine):
        command = [sys.executable, "-m", "rhapsody", "config", "--profile", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert f'"{name}"' in done.stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_the_resources_of_a_machine_exist(machine: str) -> None:
    configured = {profile["options"]["resource"] for profile in profiles(machine).values()}
    sites = "|".join({resource.partition(".")[0] for resource in configured})
    for resource in configured | set(re.findall(rf"`((?:{sites})\.\w+)`", MACHINES[machine])):
        assert described(resource)["resource_manager"] in ("SLURM", "PBSPRO")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_changed_description_of_a_machine_is_merged(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MACHINES[machine]
    monkeypatch.setenv("RADICAL_CONFIG_USER_DIR", str(tmp_path))
    directory = tmp_path / ".radical/pilot/configs"
    directory.mkdir(parents=True)
    for block in blocks(machine, "json"):
        (file,) = re.findall(r"`~/\.radical/pilot/configs/(resource_(\w+)\.json)`", text)
        (directory / file[0]).write_text(block)
        for label, changes in json.loads(block).items():
            merged = described(f"{file[1]}.{label}")
            assert merged["schemas"]
            for key, value in changes.items():
                kept = {**merged[key], **value} if isinstance(value, dict) else value
                assert merged[key] == kept
    for profile in profiles(machine).values():
        options = profile["options"]
        assert described(options["resource"])["cores_per_node"] > 0
