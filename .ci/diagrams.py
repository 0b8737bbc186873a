"""Draw the Mermaid diagrams of the documentation, light and dark, into `docs/_static/diagrams`.

    python .ci/diagrams.py

Requires npm, which downloads Mermaid, and Chromium with its driver. The build of the documentation
needs neither: it uses the pictures, and warns if one is missing. Pages that load Mermaid would need
the network or 3 MB of JavaScript.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium import webdriver

DOCS = Path(__file__).absolute().parents[1] / "docs"
sys.path.insert(0, str(DOCS / "_extensions"))

from diagrams import PICTURES, SCHEMES, picture  # noqa: E402 - after the path

MERMAID = "mermaid@11"
BLOCK = re.compile(r"^```mermaid[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
DRAW = """
const [source, variables, done] = arguments;
mermaid.initialize({
    startOnLoad: false,
    theme: "base",
    themeVariables: variables,
    fontFamily: "sans-serif",
    flowchart: {wrappingWidth: 500},
});
const asXml = ({svg}) => new XMLSerializer().serializeToString(
    new DOMParser().parseFromString(svg, "text/html").querySelector("svg"));
mermaid.render("diagram", source).then(asXml).then(done, error => done(`error: ${error}`));
"""
COLORS = {
    "light": {
        "darkMode": False,
        "background": "#ffffff",
        "primaryColor": "#eef2f7",
        "primaryBorderColor": "#5b6b80",
        "primaryTextColor": "#1f2937",
        "lineColor": "#5b6b80",
        "edgeLabelBackground": "#ffffff",
    },
    "dark": {
        "darkMode": True,
        "background": "#14181e",
        "primaryColor": "#27303b",
        "primaryBorderColor": "#8796a9",
        "primaryTextColor": "#e5e9ee",
        "lineColor": "#8796a9",
        "edgeLabelBackground": "#14181e",
    },
}
"""Mermaid's theme variables, by color scheme. The backgrounds are those of the site's pages."""


def main() -> None:
    """Draw the diagrams that have no picture, and remove pictures of former diagrams."""
    sources = [
        block for page in sorted(DOCS.rglob("*.md")) for block in BLOCK.findall(page.read_text())
    ]
    wanted = {picture(each, scheme): (each, scheme) for each in sources for scheme in SCHEMES}
    for path in set(PICTURES.glob("*.svg")) - wanted.keys():
        path.unlink()
    missing = {path: diagram for path, diagram in wanted.items() if not path.exists()}
    if missing:
        draw(missing)
    print(f"{len(wanted)} pictures, {len(missing)} of them new")


def draw(missing: dict[Path, tuple[str, str]]) -> None:
    """Write the pictures of diagrams, which are pairs of source and color scheme."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    options = webdriver.ChromeOptions()
    for each in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(each)
    driver = shutil.which("chromedriver")
    with tempfile.TemporaryDirectory() as scratch:
        install = ["npm", "install", "--silent", "--no-audit", "--ignore-scripts", MERMAID]
        subprocess.run(install, cwd=scratch, check=True)
        page = Path(scratch, "page.html")
        script = "node_modules/mermaid/dist/mermaid.min.js"
        page.write_text(f'<meta charset="utf-8"><script src="{script}"></script>')
        browser = webdriver.Chrome(options, webdriver.ChromeService(driver) if driver else None)
        try:
            browser.get(page.as_uri())
            for path, (source, scheme) in missing.items():
                svg = browser.execute_async_script(DRAW, source, COLORS[scheme])
                if not svg.startswith("<svg"):
                    sys.exit(f"cannot draw this diagram: {svg}\n{source}")
                path.write_text(f"{svg}\n")
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
