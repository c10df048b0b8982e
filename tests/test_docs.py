"What a reader is promised: each notebook says why it exists, each public name what it does, and no cell is longer than it must be."
import ast
from pathlib import Path
from statistics import median

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for p in (ROOT / "llmdata_nb").glob("*.py") if p.name != "_modidx.py")
NBS = sorted(p for folder in ("", "pipelines", "tutorials") for p in (ROOT / "nbs" / folder).glob("*.ipynb"))
LONGEST = 60  # lines of a code cell
LONG = {("03_store", "class Store(Database)"): "all that can be asked of a store, in one place"}  # notebook and definition → why it stays whole


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.stem)
def test_public_functions_and_classes_have_docstrings(module):
    tree = ast.parse(module.read_text())
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"), [])
    assert public or module.stem in ("__init__", "__main__")
    assert not [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and n.name in public and not ast.get_docstring(n)]


def test_public_methods_have_docstrings():
    bare = [f"{module.stem}.{c.name}.{m.name}" for module in MODULES for c in ast.parse(module.read_text()).body if isinstance(c, ast.ClassDef) and not c.name.startswith("_")
            for m in c.body if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef)) and not m.name.startswith("_") and not ast.get_docstring(m)]
    assert not bare


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.stem)
def test_notebook_opens_with_a_heading_and_why(nb):
    first = next(c.source for c in nbformat.read(nb, 4).cells if c.cell_type == "markdown")
    heading, _, why = first.partition("\n")
    assert heading.startswith("# ") and why.strip().startswith("> ") and len(why.strip()) > 20


def code_cells():
    for nb in NBS:
        for cell in nbformat.read(nb, 4).cells:
            if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []): yield nb.stem, cell.source


def named(nb, source): return next((key for key in LONG if key[0] == nb and key[1] in source), None)


def test_code_cells_are_short():
    assert not [(nb, source[:80], n) for nb, source in code_cells() if (n := len(source.splitlines())) > LONGEST and not named(nb, source)]


def test_cells_that_may_be_long_still_are():
    assert {named(nb, source) for nb, source in code_cells() if len(source.splitlines()) > LONGEST} - {None} == set(LONG), "take out of LONG what has become short"


def test_the_notebooks_read_as_lessons():
    "Three cells of ten are prose, and half of the exported cells have no more than twelve lines"
    cells = [c for nb in (ROOT / "nbs").glob("*.ipynb") for c in nbformat.read(nb, 4).cells if c.source.strip()]
    prose = sum(c.cell_type == "markdown" for c in cells)
    exported = [c.source for c in cells if c.cell_type == "code" and c.source.startswith("#| export")]
    lines = [sum(bool(line.strip()) and not line.startswith("#|") for line in source.splitlines()) for source in exported]
    assert prose / len(cells) >= 0.30 and median(lines) <= 12
