"Render README.md from nbs/index.ipynb."
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|export)", re.MULTILINE)
LINK = re.compile(r"""(\]\(|(?:src|srcset|href)=")(?![a-z][a-z0-9+.-]*:|[#/])([^)"\s]+)""")


def from_root(match: re.Match) -> str:
    "A link that is relative to nbs/, made relative to the repository."
    return match[1] + posixpath.normpath(posixpath.join("nbs", match[2]))


def main() -> None:
    notebook = nbformat.read(ROOT/"nbs"/"index.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or not HIDDEN.search(cell.source)]
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    # nbdev-clean takes the language out of the notebook; the fences of the code cells need it.
    notebook.metadata["language_info"] = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    if resources.get("outputs"):
        sys.exit("nbs/index.ipynb has an output that is an image; save it in nbs/images/ and show it from a markdown cell.")
    (ROOT/"README.md").write_text(LINK.sub(from_root, text).strip() + "\n", encoding="utf-8")


if __name__ == "__main__": main()
