"""Settings of the documentation site; `nox -s docs` builds it.

The build makes no request to the network, and neither do the pages: all of their files are local,
so that they can be read on a cluster without access to the internet.

Sphinx resolves names in pages and docstrings. mkdocs would need mkdocstrings for that, and a theme
from another package for a dark mode. The reference is generated during the build
(`_extensions/reference.py`), so that nothing generated is committed, except the pictures of
diagrams.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.domains.python import PyObject

from rhapsody._version import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "Rhapsody"
author = "The Rhapsody authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "diagrams",
    "reference",
]
exclude_patterns = ["_build"]
nitpicky = True
smartquotes = False  # they would change `--` in the help of commands
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # code in docstrings, which is a link only if it is a public name
    # Types in signatures that are private, and names of the standard library's private modules.
    ("py:class", r"rhapsody(_\w+)?\..*|_asyncio\..*|asyncio\.events\..*|concurrent\..*\._base\..*"),
    ("py:class", r"_frozen_importlib\..*"),
    ("py:class", r"opentelemetry\..*"),
    ("py:class", "Arguments|BackendLike|Clock|Files|KeepSandboxes"),
    ("py:class", "P|Place|Starting"),
    ("py:exc", "NotStartedError|PilotException"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 80
# A text file with the names that the docstrings and signatures use; nothing is fetched.
intersphinx_mapping = {"python": ("https://docs.python.org/3", "inventories/python.txt")}

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

# Of blocks with a prompt, only the commands are copied, not their output.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"

html_theme = "pydata_sphinx_theme"
html_title = "Rhapsody"
html_static_path = ["_static"]
html_css_files = ["rhapsody.css"]
html_search_scorer = str(Path(__file__).parent / "_static/search.js")
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navbar_end": ["version-switcher", "theme-switcher", "navbar-icon-links"],
    "navigation_with_keys": False,
    "search_as_you_type": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "switcher": {"json_url": "_static/switcher.json", "version_match": version},
}
html_sidebars = {"index": []}


def setup(app: object) -> None:
    """Label the attributes of classes as such; napoleon describes them as variables."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
