"""Directive `mermaid`: shows the pictures of a diagram, which `.ci/diagrams.py` draws.

The pictures are in `_static/diagrams`, and their names contain a digest of the source. The build
therefore needs no browser, and warns if the source of a diagram has changed since it was drawn.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

PICTURES = Path(__file__).parents[1] / "_static" / "diagrams"
SCHEMES = ("light", "dark")


def picture(source: str, scheme: str) -> Path:
    """Return the path of the picture of a diagram in a color scheme."""
    digest = hashlib.sha256(source.strip().encode()).hexdigest()[:12]
    return PICTURES / f"{digest}-{scheme}.svg"


class Mermaid(SphinxDirective):
    """A diagram in the Mermaid language; the optional argument describes it for screen readers."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return a box with an image for each color scheme."""
        source = "\n".join(self.content)
        box = nodes.container(classes=["diagram"])
        for scheme in SCHEMES:
            path = picture(source, scheme)
            if not path.exists():
                raise self.error("the diagram has changed; draw it: python .ci/diagrams.py")
            image = nodes.image(
                uri=f"/{path.relative_to(self.env.srcdir)}",
                alt=" ".join(self.arguments) or "diagram",
                classes=[f"only-{scheme}"],
            )
            box += image
        return [box]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("mermaid", Mermaid)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
