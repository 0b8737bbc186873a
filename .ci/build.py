"""Build the sdist and the wheel of a distribution for a release tag.

The build fails unless the tag has the version of the distribution, and its changelog has a section
with this version and a date.

    python .ci/build.py rhapsody-core-v0.1.0 [OPTIONS OF BUILD]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]


def problem(tag: str) -> str | None:
    """Return the reason why a tag cannot be released, or None."""
    name, separator, version = tag.rpartition("-v")
    folder = ROOT / "packages" / name
    if not separator or not name or not folder.is_dir():
        return f"tag {tag!r} is not NAME-vVERSION with a distribution in packages/"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if project["version"] != version:
        return f"tag {tag!r}: the version in packages/{name}/pyproject.toml is {project['version']}"
    changelog = (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"(?m)^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog):
        return f"tag {tag!r}: packages/{name}/CHANGELOG.md has no section '## {version} (date)'"
    return None


def main() -> None:
    """Check the tag, and build into `dist/`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tag", help="release tag, NAME-vVERSION")
    arguments, options = parser.parse_known_args()
    found = problem(arguments.tag)
    if found:
        sys.exit(found)
    folder = ROOT / "packages" / arguments.tag.rpartition("-v")[0]
    build = [sys.executable, "-m", "build", str(folder), "--outdir", str(ROOT / "dist"), *options]
    subprocess.run(build, check=True)


if __name__ == "__main__":
    main()
