"""How Sphinx makes the site of these pages: `make docs`."""

import sys
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "lightning_icl"
author = "The lightning_icl authors"
root = Path(__file__).parents[1]
version = release = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
html_title = f"lightning_icl {release}"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "reference"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
smartquotes = False  # options begin with --, and choices stand in quotes

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # such as warnings, which name paths of the machine that made the page

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_use_ivar = True
copybutton_prompt_text = ">>> "


def mathml(display):
    """What writes a formula as MathML, which browsers draw themselves: no script, and none from another host."""

    def visit(translator, node):
        translator.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", mathml("inline"), mathml("block"))


html_math_renderer = "mathml"
