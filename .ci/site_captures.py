"""Take pictures of the documentation site for a review by eye, and those that its pages show.

    python .ci/site_captures.py SITE DIRECTORY [--only WORD]
    python .ci/site_captures.py --report

The first form serves a built site, and writes a PNG of each page in `PAGES` on narrow and wide
screens, light and dark. It fails if a page loads anything from elsewhere or is wider than the
screen. The second form writes the pictures of a report and a dashboard that pages show.

Requires the packages of `captures.py`, Chromium and its driver; `--report` also requires bowtie2,
samtools and bcftools.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from captures import EXAMPLES, PROGRAMS, RHAPSODY, Captures, live_run, run

PICTURES = EXAMPLES.parent / "docs" / "_static" / "pictures"
PAGES = {
    "recipes": "how-to/recipes.html",
    "faq": "how-to/faq.html",
    "resume": "explanation/resume.html",
    "landing": "index.html",
    "tutorial": "tutorial/index.html",
    "step": "tutorial/4-failure.html",
    "how-to": "how-to/index.html",
    "guide": "how-to/slurm.html",
    "reference": "reference/index.html",
    "engine": "reference/api/engine.html",
    "command-line": "reference/command-line.html",
    "capabilities": "reference/capabilities.html",
    "errors": "reference/errors.html",
    "architecture": "contributing/architecture.html",
    "states": "reference/engine.html",
    "performance": "explanation/performance.html",
    "plugins": "plugins/index.html",
    "machines": "how-to/machines.html",
    "search": "search.html?q=resume",
}
LOADED = "return performance.getEntriesByType('resource').map(each => each.name)"
WIDTH = "return document.documentElement.scrollWidth"
SEARCHED = "return document.querySelectorAll('#search-results li').length"
TIMEOUT = 20.0


class Handler(http.server.SimpleHTTPRequestHandler):
    """Handler of requests that prints nothing."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a directory on this machine during the block.

    Yields:
        Its address.
    """
    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def capture_site(site: Path, to: Captures) -> list[str]:
    """Take pictures of the pages, and return their faults."""
    faults = []
    with served(site) as address:
        for name, page in PAGES.items():
            for width in (360, 1440):
                for scheme in ("light", "dark"):
                    picture = f"{name}-{width}-{scheme}"
                    if to.only in picture:
                        to.page(picture, address + page, width, scheme=scheme)
                        faults += [f"{picture}: {each}" for each in faults_of(to, address, width)]
    return faults


def faults_of(to: Captures, address: str, width: int) -> Iterator[str]:
    """Yield what is wrong with the page in the browser."""
    for each in to.browser.execute_script(LOADED):
        if not each.startswith((address, "data:")):
            yield f"loads {each}"
    wide = to.browser.execute_script(WIDTH)
    if wide > width:
        yield f"is {wide} pixels wide"


def capture_shown() -> None:
    """Write the pictures of a report and a dashboard that the pages show."""
    to = Captures(PICTURES)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        name = run(str(EXAMPLES / "lambda_phage.py"), "--fresh")
        report = Path("report.html").absolute()
        subprocess.run([*RHAPSODY, "report", name, "-o", str(report)], check=True)
        for scheme in ("light", "dark"):
            to.page(f"report-{scheme}", f"{report.as_uri()}#timeline", 1200, 860, scheme)
        Path("live.py").write_text(PROGRAMS["live.py"])
        with live_run() as (_, dashboard):
            for scheme in ("light", "dark"):
                to.page(f"dashboard-{scheme}", f"{dashboard}#timeline", 1200, 860, scheme)
    to.browser.quit()


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("site", type=Path, nargs="?", help="the directory of the built site")
    parser.add_argument("directory", type=Path, nargs="?", help="the directory for the pictures")
    parser.add_argument("--only", default="", metavar="WORD", help="pictures with this in the name")
    parser.add_argument("--report", action="store_true", help="the pictures that the site shows")
    arguments = parser.parse_args()
    if arguments.report:
        capture_shown()
    elif arguments.directory is None:
        parser.error("name the directory of the site and the directory for the pictures")
    else:
        to = Captures(arguments.directory, arguments.only)
        faults = capture_site(arguments.site, to)
        to.browser.quit()
        if faults:
            sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
