"""How Sphinx makes a site of the documents: `make site`."""

import re

from pygments.lexers import TextLexer
from sphinx.application import Sphinx

import channelindex

project = "channelindex"
release = version = channelindex.__version__
author = project_copyright = "the channelindex authors"

extensions = ["myst_parser"]
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md", "channelindex/stores/redis/*.md"]
root_doc = "docs/index"
myst_heading_anchors = 4
nitpicky = True  # each link has to lead somewhere

html_theme = "furo"
html_title = f"channelindex {release}"
html_copy_source = False
html_show_sphinx = False

_SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n?)*)", re.MULTILINE)
_LINK = re.compile(r"^\* \[([^\]]+)\]\(([\w./-]+)\.md\)", re.MULTILINE)


def add_navigation(_: Sphinx, name: str, source: list[str]) -> None:
    """Append to the index page what Sphinx makes the navigation of: the links of each section, in their order."""
    if name != root_doc:
        return
    for caption, text in _SECTION.findall(source[0]):
        entries = "\n".join(f"{title} <{target}>" for title, target in _LINK.findall(text))
        source[0] += f"\n```{{toctree}}\n:caption: {caption}\n:hidden:\n\n{entries}\n```\n"


def setup(app: Sphinx) -> None:
    """Register what is above, and a language that Pygments does not know: Redis' rules of access."""
    app.connect("source-read", add_navigation)
    app.add_lexer("acl", TextLexer)
