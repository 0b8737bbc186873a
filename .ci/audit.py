"""Audit the distributions: secrets in the tree, contents of the wheels, known vulnerabilities.

Installs each distribution in an empty environment, writes a CycloneDX file about it to `dist/sbom`,
and looks up its packages. The audit fails if the vulnerability service does not answer.

    python .ci/audit.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).absolute().parents[1]
DISTRIBUTIONS = sorted(path.name for path in ROOT.glob("packages/*"))
CORE = "rhapsody-core"


def secrets_in_the_tree() -> list[str]:
    """Return the lines of tracked files that look like secrets.

    Lines with `pragma: allowlist secret` are skipped. Whether a secret is valid is not checked.
    """
    scan = ["detect-secrets", "scan", "--no-verify"]
    text = subprocess.run(scan, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    return [
        f"{file}:{each['line_number']} looks like a secret ({each['type']})"
        for file, several in json.loads(text)["results"].items()
        for each in several
    ]


def install(name: str, environment: Path) -> None:
    """Install a distribution and core from this tree."""
    venv.create(environment, with_pip=True)
    folders = dict.fromkeys([f"./packages/{CORE}", f"./packages/{name}"])
    pip = [f"{environment}/bin/python", "-m", "pip", "install", "--quiet", *folders]
    subprocess.run(pip, cwd=ROOT, check=True)


def write_sbom(name: str, environment: Path) -> None:
    """Write a CycloneDX file for an environment with one distribution and its dependencies."""
    folder = ROOT / "dist" / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    command = ["cyclonedx-py", "environment", "--pyproject", f"packages/{name}/pyproject.toml"]
    options = ["--mc-type", "library", "--output-reproducible"]
    output = ["--output-file", f"{folder}/{name}.cdx.json", f"{environment}/bin/python"]
    subprocess.run([*command, *options, *output], cwd=ROOT, check=True)


def vulnerabilities(name: str, environment: Path) -> list[str]:
    """Return the known vulnerabilities of an environment, or that the service did not answer."""
    answer = environment / "answer.json"
    (site,) = environment.glob("lib/python*/site-packages")
    words = ["--path", str(site), "--format", "json", "--output", str(answer)]
    # Exit code 1 means vulnerabilities, or no answer from the service.
    subprocess.run(["pip-audit", "--progress-spinner", "off", *words], check=False)
    return problems(name, json.loads(answer.read_text())["dependencies"] if answer.exists() else [])


def problems(name: str, packages: list[dict[str, Any]]) -> list[str]:
    """Return the vulnerabilities in an answer of pip-audit, and the packages without data."""
    if not packages:
        return [f"{name}: NOT AUDITED: the vulnerability service cannot be reached"]
    found = [
        f"{name}: {each['name']} {each['version']}: {fault['id']}"
        for each in packages
        for fault in each.get("vulns", ())
    ]
    skipped = {each["name"] for each in packages if "skip_reason" in each}
    unknown = sorted(skipped.difference(DISTRIBUTIONS))
    if unknown:
        found.append(
            f"{name}: NOT AUDITED: the vulnerability service has no data on {len(unknown)} of "
            f"{len(packages)} packages: {', '.join(unknown)}"
        )
    return found


def main() -> None:
    """Audit the tree and all distributions."""
    found = secrets_in_the_tree()
    running = ".".join(map(str, sys.version_info[:3]))
    for name in DISTRIBUTIONS:
        pyproject = tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text())
        if running not in SpecifierSet(pyproject["project"]["requires-python"]):
            found.append(f"{name}: NOT AUDITED: it does not support Python {running}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            environment = Path(folder) / name
            install(name, environment)
            write_sbom(name, environment)
            found += vulnerabilities(name, environment)
    if found:
        sys.exit("\n".join(["problems found:", *found]))


if __name__ == "__main__":
    main()
