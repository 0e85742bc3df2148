"The house stands: a notebook imports only lower numbers, and the package is what the notebooks export."
import ast
import graphlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY/"sagelab"
DEFAULT = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.MULTILINE)
EXPORTED = re.compile(r"^#\|\s*export[is]?\b", re.MULTILINE)
HEAVY = {"pandas", "numpy", "numba", "vectorbt", "plotly", "pyarrow"}


@dataclass(frozen=True)
class Notebook:
    "A numbered notebook: its place in the book, the module it exports, its code."
    path: Path
    cells: tuple[str, ...]

    @property
    def number(self) -> int: return int(self.path.name.split("_")[0])

    @property
    def module(self) -> str | None:
        found = next(filter(None, map(DEFAULT.search, self.cells)), None)
        return f"sagelab.{found[1]}" if found else None

    @property
    def exported(self) -> list[str]: return [cell for cell in self.cells if EXPORTED.search(cell)]

    @property
    def checks(self) -> list[str]: return [cell for cell in self.cells if not EXPORTED.search(cell)]


def read(path: Path) -> Notebook:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return Notebook(path, tuple("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))


@cache
def book() -> tuple[Notebook, ...]:
    return tuple(read(path) for path in sorted((REPOSITORY/"nbs").glob("[0-9]*_*.ipynb")))


@cache
def numbers() -> dict[str, int]:
    "Module name -> number of the notebook that exports it."
    return {notebook.module: notebook.number for notebook in book() if notebook.module}


def files() -> dict[str, Path]:
    "Module name -> file, for every module of the package; the packages' own __init__ files hold no code of the book."
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in ("__init__.py", "_modidx.py"): continue
        found[".".join(("sagelab", *path.relative_to(PACKAGE).with_suffix("").parts))] = path
    return found


def parse(code: str) -> ast.Module:
    "Parse a cell; magics and shell lines become calls, as IPython does it."
    return ast.parse(TransformerManager().transform_cell(code))


def imports(
    tree: ast.AST,
    module: str,  # full name of the module that the code is in, to resolve relative imports
) -> set[str]:  # full dotted names, as deep as they are written
    "Every name that code imports, wherever the import stands: at the top, inside a function, or by importlib."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[:-node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            found |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return found


def used(names: set[str]) -> set[str]:
    "The modules of the book among imported names: the longest known module that each name starts with."
    found = set()
    for name in names:
        parts = name.split(".")
        known = next((prefix for end in range(len(parts), 0, -1) if (prefix := ".".join(parts[:end])) in numbers()), None)
        if known: found.add(known)
    return found


def dependencies(notebook: Notebook) -> set[str]:
    "Modules that any cell of a notebook imports, checks included: a reader meets those too."
    return set().union(*(used(imports(parse(cell), notebook.module or "sagelab")) for cell in notebook.cells)) - {notebook.module}


def label(notebook: Notebook) -> str: return notebook.path.stem


def test_imports_are_found_wherever_they_stand() -> None:
    code = "%matplotlib inline\nimport a.b\nfrom .c import d\ndef f():\n    from ..e import g\n    import_module('h.i')"
    assert imports(parse(code), "sagelab.room.module") == {"a.b", "sagelab.room.c.d", "sagelab.e.g", "h.i"}


def test_book_is_numbered_once() -> None:
    found = [notebook.number for notebook in book()]
    assert found and len(found) == len(set(found)), f"two notebooks share a number: {sorted(found)}"


@pytest.mark.parametrize("notebook", book(), ids=label)
def test_notebook_imports_only_lower_numbers(notebook: Notebook) -> None:
    higher = {name: numbers()[name] for name in dependencies(notebook) if numbers()[name] >= notebook.number}
    assert not higher, f"{notebook.path.name} imports what comes later in the book: {higher}"


@pytest.mark.parametrize("module", sorted(files()))
def test_module_imports_only_lower_numbers(module: str) -> None:
    names = imports(ast.parse(files()[module].read_text(encoding="utf-8")), module)
    higher = {name: numbers()[name] for name in used(names) - {module} if numbers()[name] >= numbers()[module]}
    assert not higher, f"{module} ({numbers()[module]}) imports what comes later in the book: {higher}"


def test_imports_have_no_circle() -> None:
    graph = {module: used(imports(ast.parse(path.read_text(encoding="utf-8")), module)) - {module} for module, path in files().items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_package_is_what_the_notebooks_export() -> None:
    assert set(files()) == set(numbers())


@pytest.mark.parametrize("notebook", book(), ids=label)
def test_notebook_is_named_after_its_module(notebook: Notebook) -> None:
    if notebook.module: assert f"sagelab.{notebook.path.stem.split('_', 1)[1]}" == notebook.module
    else: assert not notebook.exported, f"{notebook.path.name} exports cells but has no default_exp"


def checks_something(cell: str) -> bool:
    "Say whether a cell can fail on purpose: an assert, or a call of fastcore.test."
    nodes = list(ast.walk(parse(cell)))
    calls = {getattr(node.func, "id", "") for node in nodes if isinstance(node, ast.Call)}
    return any(isinstance(node, ast.Assert) for node in nodes) or any(name.startswith("test_") for name in calls)


@pytest.mark.parametrize("notebook", [notebook for notebook in book() if notebook.exported], ids=label)
def test_notebook_checks_what_it_exports(notebook: Notebook) -> None:
    assert any(map(checks_something, notebook.checks)), f"{notebook.path.name} exports code and checks none of it"


@pytest.mark.parametrize("notebook", book(), ids=label)
def test_notebook_starts_with_the_python3_kernel(notebook: Notebook) -> None:
    metadata = json.loads(notebook.path.read_text(encoding="utf-8"))["metadata"]
    assert metadata.get("kernelspec", {}).get("name") == "python3", "run `make sync`"


def test_core_stands_on_its_own() -> None:
    for module, path in files().items():
        if not module.startswith("sagelab.core."): continue
        outside = {name for name in imports(ast.parse(path.read_text(encoding="utf-8")), module)
                   if name.split(".")[0] == "sagelab" and name != "sagelab.__version__" and not name.startswith("sagelab.core.")}
        assert not outside, f"{module} imports {outside}"


def test_nothing_imports_the_strategies() -> None:
    plug_ins = {path.stem for path in (REPOSITORY/"strategies").glob("*.py")} | {"strategies"}
    for module, path in files().items():
        roots = {name.split(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")), module)}
        assert not roots & plug_ins, f"{module} imports {roots & plug_ins}"


@pytest.mark.parametrize("module", ["sagelab", "sagelab.cli.main"])
def test_import_stays_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded, f"import {module} loads {loaded}"
