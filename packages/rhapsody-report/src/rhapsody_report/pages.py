"""Report about a run: one HTML page with tables and charts, from the record of the run.

`sections` returns the content of each section, and `page` the whole page, which is self-contained
and makes no network requests. `content` collects what the sections show, with the figures
of `rhapsody.history`; `charts` draws with Bokeh; `layout` arranges the graph; `templates` contains
the HTML, the style sheet and the script. A chart is data in the HTML of its section, which the
script of the page draws.

All text in a record is untrusted. The templates escape it, the data of charts cannot end its script
element, and the Content-Security-Policy of the page permits only the scripts of the page itself.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import shlex
import time
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import bokeh
import jinja2
from markupsafe import Markup

from rhapsody.history import clock, duration, no_collection, percent, program_of, size, where
from rhapsody_report.content import contents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rhapsody.history import Node, RunHistory, RunRecord

__all__ = ["SECTIONS", "content_security_policy", "page", "sections", "title"]

SECTIONS = {
    "summary": "Summary",
    "failures": "Failures",
    "timeline": "Timeline",
    "utilization": "Utilization",
    "critical-path": "Critical path",
    "durations": "Duration by task name",
    "resources": "Requested and used resources",
    "graph": "Graph",
    "environment": "Environment",
}
"""Titles of the sections by the ids of their elements, in the order of the page."""


def sections(history: RunHistory, now: float | None = None) -> dict[str, str]:
    """Return the inner HTML of each section's element.

    The HTML contains no scripts, only their data: after it has been put into the page, call the
    page's `rhapsodyReport.draw(element)` to draw the charts.

    Args:
        history: The content of the run's record.
        now: The time at which unfinished attempts are cut off. The default is the current time if
            the run is in progress, otherwise the last time in the record.

    Returns:
        The HTML, keyed by the id of the element, in the order of `SECTIONS`.
    """
    if now is None and history.run.outcome == "running":
        now = time.time()
    with no_collection():  # the collector would traverse each task of a large record
        found = contents(history, now)
    return {
        name: _clean(_template(f"{name}.html").render(id=name, title=title, **found))
        for name, title in SECTIONS.items()
    }


def page(
    history: RunHistory,
    *,
    live: bool = False,
    version: int = 0,
    built: Mapping[str, str] | None = None,
) -> str:
    """Return the report as an HTML page.

    Args:
        history: The content of the run's record.
        live: True for a page that a server updates during the run, see `rhapsody_report.dashboard`.
        version: The version of a live report.
        built: The sections, if they have been built before.
    """
    built = sections(history) if built is None else built
    return _template("page.html").render(
        live=live,
        made_by=f"rhapsody-report {metadata.version('rhapsody-report')}",
        name=_clean(history.run.name),
        now=time.time(),
        policy=content_security_policy(live=live),
        program=_clean(program_of(history.run)),
        scripts=[Markup(script) for script in _scripts(live)],  # noqa: S704 - own, and Bokeh's
        sections=[
            (name, SECTIONS[name], Markup(html))  # noqa: S704 - rendered by a template
            for name, html in built.items()
        ],
        style=Markup(_file("report.css")),  # noqa: S704 - own file
        title=title(history.run),
        version=version,
    )


def title(run: RunRecord) -> str:
    """Return the title of the page."""
    return _clean(f"{program_of(run)}: {run.outcome} - run {run.name}")


def content_security_policy(*, live: bool = False) -> str:
    """Return the Content-Security-Policy of the page, which permits only its own scripts."""
    policy = [
        "default-src 'none'",
        f"script-src {' '.join(map(_hash, _scripts(live)))}",
        "style-src 'unsafe-inline'",  # Bokeh creates style elements
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if live:
        policy.append("connect-src 'self'")
    return "; ".join(policy)


def _scripts(live: bool) -> list[str]:
    """Return the scripts of the page."""
    return [_bokeh(), _file("report.js"), *([_file("live.js")] if live else ())]


def _hash(script: str) -> str:
    """Return the source of a script for a Content-Security-Policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@functools.cache
def _bokeh() -> str:
    """Return Bokeh's script, which draws the charts."""
    path = Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js"
    return path.read_text("utf-8").replace("</script", "<\\/script")


@functools.cache
def _file(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text("utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the environment of the templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # Bokeh resolves references in the order of the keys.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    environment.filters |= {
        "date": functools.partial(clock, day=True),
        "duration": duration,
        "outcomes": _outcomes,
        "percent": percent,
        "shell": shlex.join,
        "size": size,
        "where": where,
    }
    return environment


@functools.cache
def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


def _outcomes(node: Node) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in node.counts.items())


def _clean(text: str) -> str:
    """Replace characters that HTML does not allow or that change the direction of text."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
