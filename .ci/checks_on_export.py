"""Run a notebook's checks against the module that it exported.

`nbdev-test` runs the exported cells inside the notebook, so it never touches the file that users import. Here the module
is imported and only the other cells run, in the module's own namespace: a file that was edited by hand, or that misses
an import, fails, and coverage sees which shipped lines the book's checks reach.
"""
import faulthandler
import importlib
import json
import os
import re
import sys
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

DEFAULT = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.MULTILINE)
# What nbdev writes into a module, and what nbdev-test leaves out.
SKIPPED = re.compile(r"^#\|\s*(exporti?|exports|notest|eval:\s*false)\b", re.MULTILINE)

PATIENCE = 300  # seconds; what hangs, even as it ends, says where instead of holding up the whole run


def main(path: Path) -> None:
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    names = [found[1] for cell in cells if (found := DEFAULT.search(cell))]
    if not names: return
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    os.chdir(path.parent)
    module = importlib.import_module(f"sagelab.{names[0]}")
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}), user_module=module, user_ns=vars(module))
    for cell in cells:
        if SKIPPED.search(cell): continue
        if not shell.run_cell(cell, store_history=False).success: sys.exit(f"{path.name}: this check fails on {module.__file__}:\n{cell}")
    print(f"{path.name}: the exported module passes")


if __name__ == "__main__": main(Path(sys.argv[1]).resolve())
