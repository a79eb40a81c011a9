"""The documentation site: the Markdown of the whole repository, read from its root."""

from __future__ import annotations

from typing import Any

from vlcore import __version__

project = "vlcore"
copyright = "the authors of vlcore, Apache-2.0"  # noqa: A001
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "benchmarks/*.md",
    "demo/*.md",
    "docs/**.md",
    "plugins/*/*.md",
]
exclude_patterns = [".*", "**/tests", "build", "dist"]

myst_heading_anchors = 3
myst_links_external_new_tab = True

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes", "Source"]

html_extra_path = ["_root"]
html_theme = "furo"
html_title = f"vlcore {version}"
html_copy_source = False
html_show_sphinx = False
